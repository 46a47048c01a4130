#include "counterd/http.h"

#include <errno.h>
#include <event2/buffer.h>
#include <event2/bufferevent.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/keyvalq_struct.h>
#include <event2/listener.h>
#include <stdio.h>
#include <stdlib.h>

#include "counterd/listener.h"
#include "counterd/metrics.h"
#include "counterd/page.h"
#include "lib/clock.h"
#include "lib/targets.h"
#include "lib/text.h"

#define TIMEOUT_S        10
#define HEADER_BYTES_MAX 8192

/* libevent reads on while an answer is under way, whatever comes. A body is wholly there before it is taken.
 */
#define READ_BYTES_MAX (INCREMENTS_BODY_BYTES_MAX + HEADER_BYTES_MAX)

/* After running out of file descriptors. */
#define ACCEPT_PAUSE_MS 500

/* What is told of Redis is no older, unless Redis does not answer. */
#define LOOK_AGE_MS 2000

#define TOP_DEFAULT 10

struct http {
    struct evhttp *server;
    struct http_options options;
};

/* A request that waits for the reader. */
struct visit {
    struct http *http;
    struct evhttp_request *request; /* NULL: the client has gone */
    void (*answer)(struct http *http, struct evhttp_request *request, const struct figures *figures);
    char key[KEY_LEN_MAX + 1];
};

static void add_header(struct evhttp_request *request, const char *name, const char *value)
{
    evhttp_add_header(evhttp_request_get_output_headers(request), name, value);
}

static void reply(struct evhttp_request *request, int code, const char *type, const char *text)
{
    bool is_head = evhttp_request_get_command(request) == EVHTTP_REQ_HEAD;
    struct evbuffer *body = is_head ? NULL : evbuffer_new();
    char len[24];

    if (body)
        evbuffer_add(body, text, strlen(text));
    add_header(request, "Content-Type", type);
    add_header(request, "Cache-Control", "no-store");
    add_header(request, "X-Content-Type-Options", "nosniff");
    /* libevent would send the body all the same, and no length. */
    snprintf(len, sizeof(len), "%zu", strlen(text));
    if (is_head)
        add_header(request, "Content-Length", len);
    evhttp_send_reply(request, code, NULL, body);
    if (body)
        evbuffer_free(body);
}

/* Takes the text; NULL: there was no memory for it. */
static void reply_made(struct evhttp_request *request, int code, const char *type, char *text)
{
    if (text)
        reply(request, code, type, text);
    else
        reply(request, HTTP_INTERNAL, "text/plain", "out of memory\n");
    free(text);
}

static void reply_error(struct evhttp_request *request, int code, const char *text)
{
    reply_made(request, code, "application/json", status_error_json(text));
}

static bool is_get(struct evhttp_request *request)
{
    enum evhttp_cmd_type command = evhttp_request_get_command(request);

    if (command == EVHTTP_REQ_GET || command == EVHTTP_REQ_HEAD)
        return true;
    add_header(request, "Allow", "GET, HEAD");
    reply(request, HTTP_BADMETHOD, "text/plain", "only GET here\n");
    return false;
}

/* --- what needs nobody else --- */

static void on_health(struct evhttp_request *request, void *data)
{
    (void)data;
    if (is_get(request))
        reply(request, HTTP_OK, "text/plain", "alive\n");
}

static void on_page(struct evhttp_request *request, void *data)
{
    (void)data;
    if (!is_get(request))
        return;
    add_header(request, "Content-Security-Policy", page_policy);
    add_header(request, "Referrer-Policy", "no-referrer");
    reply(request, HTTP_OK, "text/html; charset=utf-8", page_html);
}

/* --- the figures --- */

static void on_ready(struct evhttp_request *request, void *data)
{
    const struct http *http = data;
    const struct reader_look unknown = {0};
    struct figures figures;
    struct health health;
    char text[512];

    if (!is_get(request))
        return;
    /* What is pending makes no difference here, and a load balancer must not wait. */
    figures_take(http->options.view, &unknown, NULL, &figures);
    health_judge(&figures, &health);
    snprintf(text, sizeof(text), "not ready: %s\n", health_reason(&health));
    reply(request, health.ready ? HTTP_OK : HTTP_SERVUNAVAIL, "text/plain", health.ready ? "ready\n" : text);
}

/* The value of a parameter; NULL when it is not there. To be freed with free(). */
static char *parameter(const struct evhttp_request *request, const char *name)
{
    const char *query = evhttp_uri_get_query(evhttp_request_get_evhttp_uri(request));
    struct evkeyvalq parameters;
    const char *found;
    char *value = NULL;

    if (!query || evhttp_parse_query_str(query, &parameters) < 0)
        return NULL;
    found = evhttp_find_header(&parameters, name);
    if (found)
        value = strdup(found);
    evhttp_clear_headers(&parameters);
    return value;
}

static bool wants_recent(const struct evhttp_request *request)
{
    const char *query = evhttp_uri_get_query(evhttp_request_get_evhttp_uri(request));

    return query && strcmp(query, "recent") == 0;
}

static void answer_status(struct http *http, struct evhttp_request *request, const struct figures *figures)
{
    struct health health;

    health_judge(figures, &health);
    reply_made(request, HTTP_OK, "application/json",
               status_json(http->options.view, figures, &health, wants_recent(request)));
}

static void answer_metrics(struct http *http, struct evhttp_request *request, const struct figures *figures)
{
    const char *accept = evhttp_find_header(evhttp_request_get_input_headers(request), "Accept");
    enum metrics_format format = metrics_choose(accept);
    struct health health;

    (void)http;
    health_judge(figures, &health);
    reply_made(request, HTTP_OK, metrics_content_type(format), metrics_text(figures, &health, format));
}

/* --- visits --- */

static void on_gone(struct evhttp_connection *connection, void *data)
{
    struct visit *visit = data;

    (void)connection;
    visit->request = NULL;
}

/* NULL when out of memory; then it has been answered. */
static struct visit *visit_new(struct http *http, struct evhttp_request *request)
{
    struct visit *visit = calloc(1, sizeof(*visit));

    if (!visit) {
        reply(request, HTTP_INTERNAL, "text/plain", "out of memory\n");
        return NULL;
    }
    visit->http = http;
    visit->request = request;
    evhttp_connection_set_closecb(evhttp_request_get_connection(request), on_gone, visit);
    return visit;
}

/* Ends it, and gives the request that is to be answered now; NULL when nobody is left to be answered. */
static struct evhttp_request *visit_end(struct visit *visit)
{
    struct evhttp_request *request = visit->request;

    if (request)
        evhttp_connection_set_closecb(evhttp_request_get_connection(request), NULL, NULL);
    free(visit);
    return request;
}

static void on_look(void *context, const struct reader_look *look, const char *error)
{
    struct visit *visit = context;
    struct http *http = visit->http;
    void (*answer)(struct http *, struct evhttp_request *, const struct figures *) = visit->answer;
    struct evhttp_request *request = visit_end(visit);
    struct figures figures;

    if (!request)
        return;
    figures_take(http->options.view, look, error, &figures);
    answer(http, request, &figures);
}

static void look(struct http *http, struct evhttp_request *request,
                 void (*answer)(struct http *, struct evhttp_request *, const struct figures *))
{
    struct visit *visit = is_get(request) ? visit_new(http, request) : NULL;

    if (!visit)
        return;
    visit->answer = answer;
    reader_ask_look(http->options.reader, LOOK_AGE_MS, on_look, visit);
}

static void on_status(struct evhttp_request *request, void *data)
{
    look(data, request, answer_status);
}

static void on_metrics(struct evhttp_request *request, void *data)
{
    look(data, request, answer_metrics);
}

static void on_top_keys(void *context, const struct reader_top_key *keys, size_t len, const char *error)
{
    struct evhttp_request *request = visit_end(context);

    if (request && error)
        reply_error(request, HTTP_SERVUNAVAIL, error);
    else if (request)
        reply_made(request, HTTP_OK, "application/json", status_top_json(keys, len));
}

static void on_top(struct evhttp_request *request, void *data)
{
    struct http *http = data;
    char *text = parameter(request, "n"), *end = NULL;
    long n = text ? strtol(text, &end, 10) : TOP_DEFAULT;
    bool valid = !text || (end != text && *end == '\0' && n >= 1 && n <= READER_TOP_MAX);
    struct visit *visit;

    free(text);
    if (!is_get(request))
        return;
    if (!valid) {
        reply_error(request, HTTP_BADREQUEST, "'n' is how many keys, from 1 to 100");
        return;
    }
    visit = visit_new(http, request);
    if (visit)
        reader_ask_top(http->options.reader, (size_t)n, on_top_keys, visit);
}

static void on_pending(void *context, const struct reader_pending *pending, const char *error)
{
    struct visit *visit = context;
    char key[KEY_LEN_MAX + 1];
    struct evhttp_request *request;

    memcpy(key, visit->key, sizeof(key));
    request = visit_end(visit);
    if (request && error)
        reply_error(request, HTTP_SERVUNAVAIL, error);
    else if (request)
        reply_made(request, HTTP_OK, "application/json", status_pending_json(key, pending));
}

static bool is_key(struct span key)
{
    return key.len >= 1 && key.len <= KEY_LEN_MAX && !text_has_forbidden(key) && text_is_utf8(key);
}

/* `escaped`: as in the path; a key's slashes may stand there as they are. */
static void ask_counter(struct http *http, struct evhttp_request *request, const char *escaped)
{
    size_t len = 0;
    char *key = evhttp_uridecode(escaped, 0, &len);
    struct visit *visit = NULL;

    if (!key || !is_key((struct span){key, len}))
        reply_error(request, HTTP_BADREQUEST, "not a key; it has 1 to 255 bytes, and no blank, ':' or '|'");
    else
        visit = visit_new(http, request);
    if (visit) {
        memcpy(visit->key, key, len);
        reader_ask_pending(http->options.reader, (struct span){key, len}, on_pending, visit);
    }
    free(key);
}

static void on_increments(struct evhttp_request *request, void *data)
{
    struct http *http = data;

    if (evhttp_request_get_command(request) != EVHTTP_REQ_POST) {
        add_header(request, "Allow", "POST");
        reply(request, HTTP_BADMETHOD, "text/plain", "POST lines here\n");
        return;
    }
    increments_post(http->options.increments, request);
}

/* Paths of which only the beginning is known, and all others. */
static void on_other(struct evhttp_request *request, void *data)
{
    static const char counters[] = "/v1/counters/";
    const char *path = evhttp_uri_get_path(evhttp_request_get_evhttp_uri(request));

    if (!path || strncmp(path, counters, strlen(counters)) != 0)
        reply(request, HTTP_NOTFOUND, "text/plain",
              "not found; there are /, /healthz, /readyz, /metrics, /v1/status, /v1/counters/KEY, /v1/top "
              "and POST "
              "/v1/increments\n");
    else if (is_get(request))
        ask_counter(data, request, path + strlen(counters));
}

static bool set_routes(struct http *http)
{
    static const struct {
        const char *path;
        void (*callback)(struct evhttp_request *request, void *data);
    } routes[] = {
        {"/", on_page},
        {"/healthz", on_health},
        {"/readyz", on_ready},
        {"/metrics", on_metrics},
        {"/v1/status", on_status},
        {"/v1/top", on_top},
        {"/v1/increments", on_increments},
    };

    for (size_t i = 0; i < ARRAY_LEN(routes); i++)
        if (evhttp_set_cb(http->server, routes[i].path, routes[i].callback, http) < 0)
            return false;
    evhttp_set_gencb(http->server, on_other, http);
    return true;
}

static void on_accept_again(evutil_socket_t fd, short events, void *data)
{
    (void)fd;
    (void)events;
    evconnlistener_enable(data);
}

/* The connection stays in the backlog, and would wake us at once. */
static void on_accept_error(struct evconnlistener *listener, void *data)
{
    struct timeval pause = clock_timeval(ACCEPT_PAUSE_MS);

    (void)data;
    if (event_base_once(evconnlistener_get_base(listener), -1, EV_TIMEOUT, on_accept_again, listener,
                        &pause) == 0)
        evconnlistener_disable(listener);
}

/* NULL: libevent makes one itself, or gives the connection up. */
static struct bufferevent *new_connection(struct event_base *base, void *data)
{
    struct bufferevent *connection = bufferevent_socket_new(base, -1, 0);

    (void)data;
    if (connection)
        bufferevent_setwatermark(connection, EV_READ, 0, READ_BYTES_MAX);
    return connection;
}

static bool start_accepting(struct http *http)
{
    struct evhttp_bound_socket *bound =
        evhttp_accept_socket_with_handle(http->server, http->options.listener->fd);

    if (bound)
        evconnlistener_set_error_cb(evhttp_bound_socket_get_listener(bound), on_accept_error);
    return bound != NULL;
}

struct http *http_new(const struct http_options *options)
{
    struct http *http = calloc(1, sizeof(*http));

    if (!http)
        return NULL;
    http->options = *options;
    http->server = evhttp_new(options->base);
    if (!http->server || !set_routes(http) || !start_accepting(http)) {
        http_free(http);
        return NULL;
    }
    /* The others are answered with 405, and what is allowed. */
    evhttp_set_allowed_methods(http->server, EVHTTP_REQ_GET | EVHTTP_REQ_HEAD | EVHTTP_REQ_POST |
                                                 EVHTTP_REQ_PUT | EVHTTP_REQ_DELETE | EVHTTP_REQ_OPTIONS |
                                                 EVHTTP_REQ_PATCH);
    evhttp_set_bevcb(http->server, new_connection, NULL);
    evhttp_set_timeout(http->server, TIMEOUT_S);
    evhttp_set_max_headers_size(http->server, HEADER_BYTES_MAX);
    evhttp_set_max_body_size(http->server, INCREMENTS_BODY_BYTES_MAX);
    /* Closed before its client has sent all, a connection is reset, and the 413 may be lost with it. */
    (void)evhttp_set_flags(http->server, EVHTTP_SERVER_LINGERING_CLOSE);
    return http;
}

void http_free(struct http *http)
{
    if (!http)
        return;
    if (http->server)
        evhttp_free(http->server);
    free(http);
}
