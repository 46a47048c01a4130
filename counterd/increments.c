#include "counterd/increments.h"

#include <assert.h>
#include <cjson/cJSON.h>
#include <event2/buffer.h>
#include <event2/event.h>
#include <event2/http.h>
#include <event2/keyvalq_struct.h>
#include <stdlib.h>

#include "lib/clock.h"

#define WAITING_MAX 1024

/* Rejected lines that an answer names. */
#define NAMED_MAX 10

#define HTTP_TOO_MANY 429

struct increments {
    struct event_base *base;
    const struct config *config;
    struct stats stats;
    struct ingest *ingest;
    struct pipeline *pipeline;
    void *context;
    void (*on_done)(void *context);
    LIST_HEAD(, posting) waiting;
    size_t waiting_len;
    bool stopping;
};

struct named {
    uint64_t line; /* from 1 */
    enum reject reject;
};

/* A request whose lines are counted and not yet stored. */
struct posting {
    struct increments *increments;
    struct evhttp_request *request;
    struct pipeline_wait wait;
    struct event *deadline;
    uint64_t accepted, rejected;
    struct named named[NAMED_MAX];
    size_t named_len;
    LIST_ENTRY(posting) link;
};

static void send_json(struct evhttp_request *request, int code, const char *reason, cJSON *json)
{
    struct evkeyvalq *headers = evhttp_request_get_output_headers(request);
    struct evbuffer *body = evbuffer_new();
    char *text = cJSON_PrintUnformatted(json);

    if (body && text)
        evbuffer_add_printf(body, "%s\n", text);
    evhttp_add_header(headers, "Content-Type", "application/json");
    if (code == HTTP_SERVUNAVAIL || code == HTTP_TOO_MANY)
        evhttp_add_header(headers, "Retry-After", "1");
    evhttp_send_reply(request, code, reason, body);
    if (body)
        evbuffer_free(body);
    free(text);
    cJSON_Delete(json);
}

static void refuse(struct evhttp_request *request, int code, const char *reason, const char *why)
{
    cJSON *json = cJSON_CreateObject();

    cJSON_AddStringToObject(json, "error", why);
    send_json(request, code, reason, json);
}

static void posting_free(struct posting *posting)
{
    LIST_REMOVE(posting, link);
    posting->increments->waiting_len--;
    event_free(posting->deadline);
    free(posting);
}

static cJSON *counts_of(const struct posting *posting)
{
    cJSON *json = cJSON_CreateObject(), *list;

    cJSON_AddNumberToObject(json, "accepted", (double)posting->accepted);
    cJSON_AddNumberToObject(json, "rejected", (double)posting->rejected);
    list = cJSON_AddArrayToObject(json, "rejects");
    for (size_t i = 0; i < posting->named_len; i++) {
        cJSON *item = cJSON_CreateObject();
        cJSON_AddNumberToObject(item, "line", (double)posting->named[i].line);
        cJSON_AddStringToObject(item, "reason", reject_name(posting->named[i].reject));
        cJSON_AddItemToArray(list, item);
    }
    return json;
}

static void answer(struct posting *posting, bool stored)
{
    struct evhttp_request *request = posting->request;
    cJSON *json = counts_of(posting);

    evhttp_connection_set_closecb(evhttp_request_get_connection(request), NULL, NULL);
    if (!stored)
        cJSON_AddStringToObject(
            json, "error",
            "counted, but Redis has not confirmed it in time; it is stored when Redis does, so "
            "sending it again may count it twice");
    posting_free(posting);
    send_json(request, stored ? HTTP_OK : HTTP_SERVUNAVAIL, stored ? "OK" : "Service Unavailable", json);
}

static void on_stored(void *context)
{
    answer(context, true);
}

static void on_deadline(evutil_socket_t fd, short events, void *data)
{
    struct posting *posting = data;

    (void)fd;
    (void)events;
    pipeline_cancel(posting->increments->pipeline, &posting->wait);
    answer(posting, false);
}

/* The client has gone; nobody is left to be answered. */
static void on_close(struct evhttp_connection *connection, void *data)
{
    struct posting *posting = data;

    (void)connection;
    pipeline_cancel(posting->increments->pipeline, &posting->wait);
    posting_free(posting);
}

static void count_lines(struct posting *posting, struct span body)
{
    const char *at = body.ptr, *end = at + body.len;

    for (uint64_t number = 1; at < end; number++) {
        const char *lf = memchr(at, '\n', (size_t)(end - at));
        struct span line = {at, (size_t)((lf ? lf : end) - at)};
        enum reject reject;

        at = lf ? lf + 1 : end;
        if (line.len > 0 && line.ptr[line.len - 1] == '\r')
            line.len--;
        if (line.len == 0)
            continue;
        reject = ingest_line(posting->increments->ingest, line);
        if (reject == REJECT_NONE) {
            posting->accepted++;
        } else {
            posting->rejected++;
            if (posting->named_len < NAMED_MAX)
                posting->named[posting->named_len++] = (struct named){number, reject};
        }
    }
}

static struct posting *posting_new(struct increments *increments, struct evhttp_request *request)
{
    struct posting *posting = calloc(1, sizeof(*posting));

    if (!posting)
        return NULL;
    posting->deadline = evtimer_new(increments->base, on_deadline, posting);
    if (!posting->deadline) {
        free(posting);
        return NULL;
    }
    posting->increments = increments;
    posting->request = request;
    posting->wait = (struct pipeline_wait){.context = posting, .on_stored = on_stored};
    LIST_INSERT_HEAD(&increments->waiting, posting, link);
    increments->waiting_len++;
    return posting;
}

/* Why the request can't be taken now; NULL when it can. */
static const char *unavailable(const struct increments *increments)
{
    if (increments->stopping)
        return "stopping; nothing was counted";
    if (!atomic_load(&increments->stats.redis_ready))
        return "Redis can't be used now; nothing was counted";
    if (pipeline_is_crowded(increments->pipeline))
        return "Redis is slow, and memory is nearly full; nothing was counted";
    return NULL;
}

void increments_post(struct increments *increments, struct evhttp_request *request)
{
    struct evbuffer *body = evhttp_request_get_input_buffer(request);
    size_t len = evbuffer_get_length(body);
    const char *why = unavailable(increments);
    struct timeval timeout = {.tv_sec = increments->config->redis.timeout_ms / 1000,
                              .tv_usec = increments->config->redis.timeout_ms % 1000 * 1000};
    struct posting *posting;
    const char *bytes;

    if (evhttp_find_header(evhttp_request_get_input_headers(request), "Idempotency-Key")) {
        refuse(request, HTTP_NOTIMPLEMENTED, "Not Implemented",
               "Idempotency-Key is not supported by this version; nothing was counted");
        return;
    }
    if (why || increments->waiting_len >= WAITING_MAX) {
        refuse(request, why ? HTTP_SERVUNAVAIL : HTTP_TOO_MANY,
               why ? "Service Unavailable" : "Too Many Requests",
               why ? why : "too many requests wait to be stored; nothing was counted");
        return;
    }
    bytes = len > 0 ? (const char *)evbuffer_pullup(body, -1) : "";
    posting = bytes ? posting_new(increments, request) : NULL;
    if (!posting) {
        refuse(request, HTTP_SERVUNAVAIL, "Service Unavailable", "out of memory; nothing was counted");
        return;
    }
    counter_add(&increments->stats.bytes, len);
    count_lines(posting, (struct span){bytes, len});
    ingest_publish(increments->ingest);
    evhttp_connection_set_closecb(evhttp_request_get_connection(request), on_close, posting);
    event_add(posting->deadline, &timeout);
    pipeline_wait(increments->pipeline, &posting->wait);
}

static void on_tick(void *context)
{
    struct increments *increments = context;

    stats_note_moment(&increments->stats, clock_monotonic_ms());
}

/* There is nothing of ours to be done. */
static void on_nothing(void *context)
{
    (void)context;
}

static void on_pipeline_done(void *context)
{
    struct increments *increments = context;

    increments->on_done(increments->context);
}

struct increments *increments_new(struct event_base *base, const struct config *config, void *context,
                                  void (*on_done)(void *context))
{
    struct increments *increments = calloc(1, sizeof(*increments));
    struct pipeline_options options = {.base = base,
                                       .config = config,
                                       .on_tick = on_tick,
                                       .on_room = on_nothing,
                                       .on_done = on_pipeline_done};

    if (!increments)
        return NULL;
    increments->base = base;
    increments->config = config;
    increments->context = context;
    increments->on_done = on_done;
    LIST_INIT(&increments->waiting);
    stats_init(&increments->stats);
    increments->ingest = ingest_new(&increments->stats);
    options.ingest = increments->ingest;
    options.stats = &increments->stats;
    options.context = increments;
    if (increments->ingest)
        increments->pipeline = pipeline_new(&options);
    if (!increments->pipeline) {
        increments_free(increments);
        return NULL;
    }
    return increments;
}

void increments_free(struct increments *increments)
{
    if (!increments)
        return;
    assert(LIST_EMPTY(&increments->waiting));
    pipeline_free(increments->pipeline);
    ingest_free(increments->ingest);
    stats_done(&increments->stats);
    free(increments);
}

void increments_set_limits(struct increments *increments, const struct pipeline_limits *limits)
{
    pipeline_set_limits(increments->pipeline, limits);
}

void increments_stop(struct increments *increments)
{
    increments->stopping = true;
    pipeline_finish(increments->pipeline);
}

struct pipeline_rest increments_take_rest(struct increments *increments)
{
    return pipeline_take_rest(increments->pipeline);
}

struct stats *increments_stats(struct increments *increments)
{
    return &increments->stats;
}
