#include "lib/address.h"

#include <ctype.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#define REDIS_PORT         6379
#define REDIS_DATABASE_MAX 65535

/* Decimal digits only, so neither sign nor space nor an empty text. */
static bool parse_number(struct span text, unsigned max, unsigned *ret_number)
{
    unsigned number = 0;

    if (text.len == 0 || text.len > 9)
        return false;
    for (size_t i = 0; i < text.len; i++) {
        if (!isdigit((unsigned char)text.ptr[i]))
            return false;
        number = number * 10 + (unsigned)(text.ptr[i] - '0');
    }
    if (number > max)
        return false;
    *ret_number = number;
    return true;
}

/* host, host:port or [v6]:port. Without a port it leaves `port` as it was and says so by `*ret_has_port`. */
static bool split_host_port(struct span text, char host[HOST_LEN_MAX + 1], uint16_t *port, bool *ret_has_port)
{
    struct span name = text;
    const char *colon;
    unsigned number;

    *ret_has_port = false;
    if (text.len > 0 && text.ptr[0] == '[') {
        const char *close = memchr(text.ptr, ']', text.len);
        if (!close)
            return false;
        name = (struct span){text.ptr + 1, (size_t)(close - text.ptr - 1)};
        colon = close + 1;
        if (colon == text.ptr + text.len)
            colon = NULL;
        else if (*colon != ':')
            return false;
    } else {
        colon = memchr(text.ptr, ':', text.len);
        if (colon)
            name.len = (size_t)(colon - text.ptr);
    }
    if (colon) {
        size_t digits = text.len - (size_t)(colon + 1 - text.ptr);
        if (!parse_number((struct span){colon + 1, digits}, 65535, &number))
            return false;
        *port = (uint16_t)number;
        *ret_has_port = true;
    }
    if (name.len > HOST_LEN_MAX)
        return false;
    memcpy(host, name.ptr, name.len);
    host[name.len] = '\0';
    return true;
}

int address_parse(const char *text, struct address *ret_address, struct error *error)
{
    struct address address = {0};
    bool has_port;

    if (!split_host_port(span_of(text), address.host, &address.port, &has_port) || !has_port)
        return error_set(
            error, -EINVAL,
            "'%s' is not an address; write host:port, [v6 address]:port, or :port for every address", text);
    *ret_address = address;
    return 0;
}

static int hex_digit(char c)
{
    if (isdigit((unsigned char)c))
        return c - '0';
    c = (char)tolower((unsigned char)c);
    return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool percent_decode(struct span text, char *buf, size_t buf_bytes)
{
    size_t len = 0;

    for (size_t i = 0; i < text.len; i++) {
        char c = text.ptr[i];
        if (c == '%') {
            if (i + 2 >= text.len || hex_digit(text.ptr[i + 1]) < 0 || hex_digit(text.ptr[i + 2]) < 0)
                return false;
            c = (char)(hex_digit(text.ptr[i + 1]) * 16 + hex_digit(text.ptr[i + 2]));
            i += 2;
        }
        if (c == '\0' || len + 1 >= buf_bytes)
            return false;
        buf[len++] = c;
    }
    buf[len] = '\0';
    return true;
}

/* Takes "user:password@" off the front of `*rest`. */
static bool take_credentials(struct span *rest, struct redis_address *address)
{
    const char *at = memrchr(rest->ptr, '@', rest->len);
    struct span user, password;
    const char *colon;

    if (!at)
        return true;
    user = (struct span){rest->ptr, (size_t)(at - rest->ptr)};
    *rest = (struct span){at + 1, rest->len - user.len - 1};
    colon = memchr(user.ptr, ':', user.len);
    if (!colon)
        return false;
    password = (struct span){colon + 1, user.len - (size_t)(colon + 1 - user.ptr)};
    user.len = (size_t)(colon - user.ptr);
    return percent_decode(user, address->user, sizeof(address->user)) &&
           percent_decode(password, address->password, sizeof(address->password));
}

static bool parse_unix(struct span rest, struct redis_address *address)
{
    static const char option[] = "?db=";
    const char *query;

    if (!take_credentials(&rest, address))
        return false;
    query = memchr(rest.ptr, '?', rest.len);
    if (query) {
        struct span number = {query + strlen(option), 0};
        size_t query_len = rest.len - (size_t)(query - rest.ptr);
        if (query_len < strlen(option) || memcmp(query, option, strlen(option)) != 0)
            return false;
        number.len = query_len - strlen(option);
        if (!parse_number(number, REDIS_DATABASE_MAX, &address->database))
            return false;
        rest.len = (size_t)(query - rest.ptr);
    }
    return rest.len > 0 && rest.ptr[0] == '/' && percent_decode(rest, address->path, sizeof(address->path));
}

static bool parse_tcp(struct span rest, struct redis_address *address)
{
    const char *slash;
    bool has_port;

    if (!take_credentials(&rest, address))
        return false;
    slash = memchr(rest.ptr, '/', rest.len);
    if (slash) {
        struct span database = {slash + 1, rest.len - (size_t)(slash + 1 - rest.ptr)};
        if (database.len > 0 && !parse_number(database, REDIS_DATABASE_MAX, &address->database))
            return false;
        rest.len = (size_t)(slash - rest.ptr);
    }
    address->port = REDIS_PORT;
    return split_host_port(rest, address->host, &address->port, &has_port) && address->host[0] != '\0';
}

int redis_address_parse(const char *url, struct redis_address *ret_address, struct error *error)
{
    static const char tcp[] = "redis://", local[] = "unix://", tls[] = "rediss://";
    struct redis_address address = {0};
    bool ok = false;

    if (strncmp(url, tls, strlen(tls)) == 0)
        return error_set(
            error, -EINVAL,
            "rediss:// (TLS) is not supported by this build; use redis:// through a local stunnel");
    if (strncmp(url, tcp, strlen(tcp)) == 0)
        ok = parse_tcp(span_of(url + strlen(tcp)), &address);
    else if (strncmp(url, local, strlen(local)) == 0)
        ok = parse_unix(span_of(url + strlen(local)), &address);
    if (!ok)
        return error_set(error, -EINVAL,
                         "not a Redis URL; write redis://[user:password@]host[:port][/database] or "
                         "unix://[user:password@]/path.sock[?db=database]");
    *ret_address = address;
    return 0;
}

void redis_address_format(const struct redis_address *address, char *buf, size_t buf_bytes)
{
    if (address->path[0] != '\0')
        snprintf(buf, buf_bytes, "unix://%s?db=%u", address->path, address->database);
    else
        snprintf(buf, buf_bytes, strchr(address->host, ':') ? "redis://[%s]:%u/%u" : "redis://%s:%u/%u",
                 address->host, address->port, address->database);
}
