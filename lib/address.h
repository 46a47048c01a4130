/* address - "host:port" and redis:// URLs, taken apart; pure, nothing is resolved or opened */
#ifndef LIB_ADDRESS_H
#define LIB_ADDRESS_H

#include "lib/error.h"

#define HOST_LEN_MAX   255
#define PATH_LEN_MAX   107 /* what sockaddr_un takes, less the NUL */
#define SECRET_LEN_MAX 1023

struct address {
    char host[HOST_LEN_MAX + 1]; /* "" means every address of the machine */
    uint16_t port;
};

/* "127.0.0.1:8125", "[::1]:8125", "localhost:8125", ":8125". -EINVAL with a text that quotes what it got. */
MUST_CHECK int address_parse(const char *text, struct address *ret_address, struct error *error);

struct redis_address {
    char path[PATH_LEN_MAX + 1]; /* Unix socket; "" when it is host and port */
    char host[HOST_LEN_MAX + 1];
    uint16_t port;
    char user[SECRET_LEN_MAX + 1];     /* "" = the default user */
    char password[SECRET_LEN_MAX + 1]; /* "" = none */
    unsigned database;
};

/* redis://[[user]:password@]host[:port][/database], or unix://[[user]:password@]/path.sock[?db=database];
 * user and password may be percent-encoded. The text of an error never holds the password. */
MUST_CHECK int redis_address_parse(const char *url, struct redis_address *ret_address, struct error *error);

/* Names it in messages, without secrets: "redis://host:6379/0" or "unix:///path?db=0". Cut when it does not
 * fit. */
void redis_address_format(const struct redis_address *address, char *buf, size_t buf_bytes);

#endif
