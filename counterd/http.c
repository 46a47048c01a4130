#include "counterd/http.h"

#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <stdlib.h>

#define TIMEOUT_S        10
#define HEADER_BYTES_MAX 8192

struct http {
    struct evhttp *server;
    struct http_options options;
};

static void reply(struct evhttp_request *request, int code, const char *reason, const char *type,
                  const char *text)
{
    struct evbuffer *body = evbuffer_new();

    if (body)
        evbuffer_add(body, text, strlen(text));
    evhttp_add_header(evhttp_request_get_output_headers(request), "Content-Type", type);
    evhttp_add_header(evhttp_request_get_output_headers(request), "Cache-Control", "no-store");
    evhttp_send_reply(request, code, reason, body);
    if (body)
        evbuffer_free(body);
}

static void on_health(struct evhttp_request *request, void *data)
{
    (void)data;
    reply(request, HTTP_OK, "OK", "text/plain", "alive\n");
}

static void on_ready(struct evhttp_request *request, void *data)
{
    struct http *http = data;
    struct evbuffer *body;
    const char *why;

    if (status_ready(http->options.view, &why)) {
        reply(request, HTTP_OK, "OK", "text/plain", "ready\n");
        return;
    }
    body = evbuffer_new();
    evhttp_add_header(evhttp_request_get_output_headers(request), "Content-Type", "text/plain");
    if (body)
        evbuffer_add_printf(body, "not ready: %s\n", why);
    evhttp_send_reply(request, HTTP_SERVUNAVAIL, "Service Unavailable", body);
    if (body)
        evbuffer_free(body);
}

static void on_status(struct evhttp_request *request, void *data)
{
    struct http *http = data;
    char *text = status_json(http->options.view);

    if (text)
        reply(request, HTTP_OK, "OK", "application/json", text);
    else
        reply(request, HTTP_INTERNAL, "Internal Server Error", "text/plain", "out of memory\n");
    free(text);
}

static void on_increments(struct evhttp_request *request, void *data)
{
    struct http *http = data;

    if (evhttp_request_get_command(request) != EVHTTP_REQ_POST) {
        evhttp_add_header(evhttp_request_get_output_headers(request), "Allow", "POST");
        reply(request, HTTP_BADMETHOD, "Method Not Allowed", "text/plain", "POST lines here\n");
        return;
    }
    increments_post(http->options.increments, request);
}

static void on_other(struct evhttp_request *request, void *data)
{
    (void)data;
    reply(request, HTTP_NOTFOUND, "Not Found", "text/plain",
          "not found; try /healthz, /readyz, /v1/status or POST /v1/increments\n");
}

struct http *http_new(const struct http_options *options)
{
    struct http *http = calloc(1, sizeof(*http));

    if (!http)
        return NULL;
    http->options = *options;
    http->server = evhttp_new(options->base);
    if (!http->server || evhttp_set_cb(http->server, "/healthz", on_health, http) < 0 ||
        evhttp_set_cb(http->server, "/readyz", on_ready, http) < 0 ||
        evhttp_set_cb(http->server, "/v1/status", on_status, http) < 0 ||
        evhttp_set_cb(http->server, "/v1/increments", on_increments, http) < 0 ||
        evhttp_accept_socket(http->server, options->listener->fd) < 0) {
        http_free(http);
        return NULL;
    }
    evhttp_set_gencb(http->server, on_other, http);
    evhttp_set_allowed_methods(http->server, EVHTTP_REQ_GET | EVHTTP_REQ_HEAD | EVHTTP_REQ_POST);
    evhttp_set_timeout(http->server, TIMEOUT_S);
    evhttp_set_max_headers_size(http->server, HEADER_BYTES_MAX);
    evhttp_set_max_body_size(http->server, INCREMENTS_BODY_BYTES_MAX);
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
