#include "counterd/increments.h"

#include <assert.h>
#include <event2/event.h>
#include <event2/http.h>
#include <stdlib.h>

#include "counterd/answer.h"
#include "counterd/idempotent.h"
#include "lib/clock.h"

#define WAITING_MAX 1024

struct increments {
    struct event_base *base;
    const struct config *config;
    struct stats stats;
    struct ingest *ingest;
    struct pipeline *pipeline;
    struct idempotent *idempotent;
    unsigned working; /* pipeline and idempotent, until they have stopped */
    void *context;
    void (*on_done)(void *context);
    LIST_HEAD(, posting) waiting;
    size_t waiting_len;
    bool stopping;
};

/* A request whose lines are counted and not yet stored. */
struct posting {
    struct increments *increments;
    struct evhttp_request *request;
    struct pipeline_wait wait;
    struct event *deadline;
    struct tally tally;
    LIST_ENTRY(posting) link;
};

static void posting_free(struct posting *posting)
{
    LIST_REMOVE(posting, link);
    posting->increments->waiting_len--;
    event_free(posting->deadline);
    free(posting);
}

static void answer(struct posting *posting, bool stored)
{
    struct evhttp_request *request = posting->request;
    struct tally tally = posting->tally;

    evhttp_connection_set_closecb(evhttp_request_get_connection(request), NULL, NULL);
    posting_free(posting);
    if (stored)
        answer_stored(request, &tally, false);
    else
        answer_error(
            request, HTTP_SERVUNAVAIL, &tally,
            "counted, but Redis has not confirmed it in time; it is stored when Redis does, so sending it "
            "again may count it twice (unless with an Idempotency-Key)");
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
    struct span line;

    while (tally_next_line(&posting->tally, &body, &line))
        tally_add(&posting->tally, ingest_line(posting->increments->ingest, line));
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

/* Redis is there and takes nothing: it is full, say. What it refused is sent again until it is taken. */
static bool is_refused(const struct stats *stats)
{
    return counter_get(&stats->refused_ms) > counter_get(&stats->appended_ms);
}

/* Why the request can't be taken now; NULL when it can. */
static const char *unavailable(const struct increments *increments)
{
    if (increments->stopping)
        return "stopping; nothing was counted";
    if (!atomic_load(&increments->stats.redis_ready))
        return "Redis can't be used now; nothing was counted";
    if (is_refused(&increments->stats))
        return "Redis refuses what it is sent now; nothing was counted";
    if (pipeline_is_crowded(increments->pipeline))
        return "Redis is slow, and memory is nearly full; nothing was counted";
    return NULL;
}

static void post_plain(struct increments *increments, struct evhttp_request *request)
{
    struct span body = answer_body(request);
    const char *why = unavailable(increments);
    struct timeval timeout = clock_timeval(increments->config->redis.timeout_ms);
    struct posting *posting;

    if (why || increments->waiting_len >= WAITING_MAX) {
        answer_error(request, why ? HTTP_SERVUNAVAIL : ANSWER_TOO_MANY, NULL,
                     why ? why : "too many requests wait to be stored; nothing was counted");
        return;
    }
    posting = body.ptr ? posting_new(increments, request) : NULL;
    if (!posting) {
        answer_error(request, HTTP_SERVUNAVAIL, NULL, "out of memory; nothing was counted");
        return;
    }
    counter_add(&increments->stats.bytes, body.len);
    count_lines(posting, body);
    answer_drop_body(request);
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

void increments_post(struct increments *increments, struct evhttp_request *request)
{
    const struct evkeyvalq *headers = evhttp_request_get_input_headers(request);
    const char *key = evhttp_find_header(headers, "Idempotency-Key");
    const char *encoding = evhttp_find_header(headers, "Content-Encoding");

    if (encoding && evutil_ascii_strcasecmp(encoding, "identity") != 0)
        answer_error(request, ANSWER_UNSUPPORTED, NULL,
                     "the body has a Content-Encoding; send the lines as they are. Nothing was counted");
    else if (key)
        idempotent_post(increments->idempotent, request, key);
    else
        post_plain(increments, request);
}

/* There is nothing of ours to be done. */
static void on_nothing(void *context)
{
    (void)context;
}

static void on_one_done(void *context)
{
    struct increments *increments = context;

    if (--increments->working == 0)
        increments->on_done(increments->context);
}

struct increments *increments_new(struct event_base *base, const struct config *config, int spool_directory,
                                  void *context, void (*on_done)(void *context))
{
    struct increments *increments = calloc(1, sizeof(*increments));
    struct pipeline_options options = {.base = base,
                                       .config = config,
                                       .spool_directory = spool_directory,
                                       .on_tick = on_tick,
                                       .on_room = on_nothing,
                                       .on_done = on_one_done};

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
    increments->idempotent = idempotent_new(base, config, &increments->stats, increments, on_one_done);
    increments->working = 2;
    if (!increments->pipeline || !increments->idempotent) {
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
    idempotent_free(increments->idempotent);
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
    idempotent_stop(increments->idempotent);
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
