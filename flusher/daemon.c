#include "flusher/daemon.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

#include "lib/clock.h"

#define DEADLINE_MS      2000
#define ANSWER_BYTES_MAX (256 * 1024)

/* What is being asked, and how it came. */
struct exchange {
    int fd;
    int64_t deadline_ms;
    char *answer; /* NUL-terminated */
    size_t len;
};

static bool wait_for(const struct exchange *exchange, short events)
{
    struct pollfd poll_fd = {exchange->fd, events, 0};
    int64_t left_ms = exchange->deadline_ms - clock_monotonic_ms();

    return left_ms > 0 && poll(&poll_fd, 1, (int)left_ms) > 0;
}

static bool connect_to(struct exchange *exchange, const struct addrinfo *address)
{
    int failure = 0;
    socklen_t len = sizeof(failure);

    exchange->fd = socket(address->ai_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (exchange->fd < 0)
        return false;
    if (connect(exchange->fd, address->ai_addr, address->ai_addrlen) == 0 ||
        (errno == EINPROGRESS && wait_for(exchange, POLLOUT) &&
         getsockopt(exchange->fd, SOL_SOCKET, SO_ERROR, &failure, &len) == 0 && failure == 0))
        return true;
    close(exchange->fd);
    exchange->fd = -1;
    return false;
}

static bool send_request(const struct exchange *exchange)
{
    static const char request[] = "GET /v1/status HTTP/1.0\r\nHost: counterd\r\nConnection: close\r\n\r\n";
    size_t sent = 0;

    while (sent < sizeof(request) - 1 && wait_for(exchange, POLLOUT)) {
        ssize_t n = send(exchange->fd, request + sent, sizeof(request) - 1 - sent, MSG_NOSIGNAL);
        if (n <= 0)
            return false;
        sent += (size_t)n;
    }
    return sent == sizeof(request) - 1;
}

/* To the end of the connection. */
static bool read_answer(struct exchange *exchange)
{
    while (exchange->len < ANSWER_BYTES_MAX && wait_for(exchange, POLLIN)) {
        ssize_t n = recv(exchange->fd, exchange->answer + exchange->len, ANSWER_BYTES_MAX - exchange->len, 0);
        if (n < 0)
            return false;
        if (n == 0)
            return true;
        exchange->len += (size_t)n;
        exchange->answer[exchange->len] = '\0';
    }
    return false;
}

static int exchange_with(struct exchange *exchange, const struct address *address, struct error *error)
{
    const struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV};
    const char *host = address->host[0] != '\0' ? address->host : "127.0.0.1";
    struct addrinfo *found;
    char port[8];
    bool answered;

    snprintf(port, sizeof(port), "%u", address->port);
    if (getaddrinfo(host, port, &hints, &found) != 0)
        return error_set(error, -EHOSTUNREACH, "'%s' has no address", host);
    for (const struct addrinfo *at = found; at && exchange->fd < 0; at = at->ai_next)
        if (connect_to(exchange, at))
            break;
    freeaddrinfo(found);
    if (exchange->fd < 0)
        return error_set(error, -ECONNREFUSED, "nobody listens there");
    answered = send_request(exchange) && read_answer(exchange);
    close(exchange->fd);
    return answered ? 0 : error_set(error, -ETIMEDOUT, "no whole answer within %d ms", DEADLINE_MS);
}

/* A number at `group`.`name`, or at `name` when there is no group; 0 when it is missing. */
static int64_t number_at(const cJSON *root, const char *group, const char *name)
{
    const cJSON *item = group ? cJSON_GetObjectItemCaseSensitive(root, group) : root;

    item = cJSON_GetObjectItemCaseSensitive(item, name);
    return cJSON_IsNumber(item) && item->valuedouble >= 0 && item->valuedouble < 9e18
               ? (int64_t)item->valuedouble
               : 0;
}

static void take_reasons(const cJSON *rejected, struct daemon_status *status)
{
    const cJSON *item;

    cJSON_ArrayForEach(item, rejected)
    {
        int64_t lines = number_at(rejected, NULL, item->string);
        if (lines == 0 || strcmp(item->string, "total") == 0 || status->reasons_len == DAEMON_REASONS_MAX)
            continue;
        snprintf(status->reasons[status->reasons_len].name, sizeof(status->reasons[0].name), "%s",
                 item->string);
        status->reasons[status->reasons_len++].lines = lines;
    }
}

static void take_text(const cJSON *item, const char *name, char *ret_text, size_t text_bytes)
{
    const char *text = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(item, name));

    snprintf(ret_text, text_bytes, "%s", text ? text : "");
}

static void take_warnings(const cJSON *warnings, struct daemon_status *status)
{
    const cJSON *item;

    cJSON_ArrayForEach(item, warnings)
    {
        struct daemon_warning *warning = &status->warnings[status->warnings_len];
        char severity[8];
        take_text(item, "severity", severity, sizeof(severity));
        if (strcmp(severity, "note") == 0 || status->warnings_len == DAEMON_WARNINGS_MAX)
            continue;
        take_text(item, "code", warning->code, sizeof(warning->code));
        take_text(item, "text", warning->text, sizeof(warning->text));
        take_text(item, "action", warning->action, sizeof(warning->action));
        status->warnings_len++;
    }
}

static int take_status(const struct config *config, const char *answer, struct daemon_status *ret_status,
                       struct error *error)
{
    const char *body = strstr(answer, "\r\n\r\n");
    cJSON *root = strncmp(answer, "HTTP/1.", 7) == 0 && body ? cJSON_Parse(body) : NULL;
    const char *namespace = cJSON_GetStringValue(cJSON_GetObjectItemCaseSensitive(root, "namespace"));
    int r = 0;

    if (!namespace) {
        r = error_set(error, -EPROTO, "what answers there is no counterd");
    } else if (strcmp(namespace, config->lanes[0].namespace) != 0) {
        r = error_set(error, -EPROTO, "the counterd there is of another namespace, '%.100s'", namespace);
    } else {
        *ret_status = (struct daemon_status){
            .ready = cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(root, "ready")),
            .received = number_at(root, "received", "lines"),
            .accepted = number_at(root, NULL, "accepted"),
            .pending = number_at(root, NULL, "pending"),
            .on_disk = number_at(root, "spool", "waiting"),
            .to_replay = number_at(root, "spool", "to_replay"),
            .has_spool = number_at(root, "spool", "bytes_max") > 0,
            .lost = number_at(root, "redis", "increments_lost"),
            .rejected = number_at(root, "rejected", "total"),
            .kernel_dropped = number_at(root, NULL, "kernel_dropped"),
            .uptime_ms = number_at(root, NULL, "uptime_ms"),
        };
        take_text(root, "not_ready", ret_status->not_ready, sizeof(ret_status->not_ready));
        take_warnings(cJSON_GetObjectItemCaseSensitive(root, "warnings"), ret_status);
        take_reasons(cJSON_GetObjectItemCaseSensitive(root, "rejected"), ret_status);
    }
    cJSON_Delete(root);
    return r;
}

int daemon_ask(const struct config *config, struct daemon_status *ret_status, struct error *error)
{
    struct exchange exchange = {.fd = -1, .deadline_ms = clock_monotonic_ms() + DEADLINE_MS};
    struct address address;
    int r;

    if (config->listen.http[0] == '\0')
        return error_set(error, -ENOTCONN, "'listen.http' is empty");
    r = address_parse(config->listen.http, &address, error);
    if (r == 0 && address.port == 0)
        r = error_set(error, -ENOTCONN, "the port in 'listen.http' is the kernel's choice");
    exchange.answer = calloc(ANSWER_BYTES_MAX + 1, 1);
    if (r == 0 && !exchange.answer)
        r = error_set(error, -ENOMEM, "out of memory");
    if (r == 0)
        r = exchange_with(&exchange, &address, error);
    if (r == 0)
        r = take_status(config, exchange.answer, ret_status, error);
    free(exchange.answer);
    return r < 0 ? error_prefix(error, r, "counterd at '%s'", config->listen.http) : 0;
}
