#include "counterd/idempotent.h"

#include <event2/event.h>
#include <event2/http.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "counterd/answer.h"
#include "counterd/fanout.h"
#include "counterd/ingest.h"
#include "counterd/store.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/member.h"
#include "lib/targets.h"

/* Each may hold keys of a megabyte. */
#define UNDER_WAY_MAX 256

struct idempotent {
    struct event_base *base;
    const struct config *config;
    struct stats *stats; /* for all to see */
    /* Of the request that is being parsed: its counts, what its lines add up to, what that is fanned out to,
     * and both. */
    struct stats parsed;
    struct ingest *ingest;
    struct table *lines, *made, *table;
    struct store *store;
    void *context;
    void (*on_done)(void *context);
    LIST_HEAD(, attempt) under_way;
    size_t under_way_len;
    int64_t refused_logged_ms; /* 0 = never */
    bool stopping;
};

/* A request on its way. */
struct attempt {
    struct idempotent *idempotent;
    struct evhttp_request *request; /* NULL: the client has gone, or has its answer */
    struct once *once;
    struct event *deadline;
    struct tally tally;
    uint64_t rejected[REJECT_COUNT];
    uint64_t fields_ignored;
    bool over; /* no more parts are sent; it goes when none is on its way */
    LIST_ENTRY(attempt) link;
};

static void attempt_free(struct attempt *attempt)
{
    struct idempotent *idempotent = attempt->idempotent;

    LIST_REMOVE(attempt, link);
    idempotent->under_way_len--;
    if (attempt->deadline)
        event_free(attempt->deadline);
    once_free(attempt->once);
    free(attempt);
    if (idempotent->stopping && idempotent->under_way_len == 0)
        idempotent->on_done(idempotent->context);
}

/* --- answers --- */

/* Gives the request whose client still waits, to be answered now; NULL when there is none. */
static struct evhttp_request *take_request(struct attempt *attempt)
{
    struct evhttp_request *request = attempt->request;

    if (request)
        evhttp_connection_set_closecb(evhttp_request_get_connection(request), NULL, NULL);
    attempt->request = NULL;
    return request;
}

static void fail(struct attempt *attempt, int code, const char *why)
{
    struct evhttp_request *request = take_request(attempt);

    if (request)
        answer_error(request, code, NULL, why);
    attempt->over = true;
}

/* Its lines that count have been counted part by part. */
static void count_rest(const struct attempt *attempt)
{
    struct stats *stats = attempt->idempotent->stats;

    counter_add(&stats->lines, attempt->tally.rejected);
    for (int i = 0; i < REJECT_COUNT; i++)
        counter_add(&stats->rejected[i], attempt->rejected[i]);
    counter_add(&stats->fields_ignored, attempt->fields_ignored);
}

static void succeed(struct attempt *attempt, bool duplicate)
{
    struct evhttp_request *request = take_request(attempt);

    if (duplicate)
        counter_add(&attempt->idempotent->stats->idempotent_duplicates, 1);
    else
        count_rest(attempt);
    if (request)
        answer_stored(request, &attempt->tally, duplicate);
    attempt->over = true;
}

static void refuse_other_body(struct attempt *attempt)
{
    counter_add(&attempt->idempotent->stats->idempotent_conflicts, 1);
    fail(attempt, ANSWER_UNPROCESSABLE,
         "this Idempotency-Key was used for a request with another body; nothing was counted");
}

static void fail_refused(struct attempt *attempt, const char *why)
{
    struct idempotent *idempotent = attempt->idempotent;
    char quoted[LOG_TEXT_BYTES], text[512];

    counter_add(&idempotent->stats->redis_errors, 1);
    if (log_is_due(&idempotent->refused_logged_ms))
        log_event(LOG_LEVEL_WARN, "request_refused",
                  "error=%s hint=\"its client was asked to send it again\"", log_quote(quoted, span_of(why)));
    snprintf(text, sizeof(text),
             "Redis did not take it: %.300s; part of it may be stored: send it again with the same key", why);
    fail(attempt, HTTP_SERVUNAVAIL, text);
}

/* --- to Redis --- */

/* Sends what can be sent. After this the attempt may be gone. */
static void proceed(struct attempt *attempt)
{
    struct idempotent *idempotent = attempt->idempotent;
    struct once_part *part;

    while (!attempt->over && store_ready(idempotent->store) && (part = once_next(attempt->once))) {
        if (!store_append_once(idempotent->store, part)) {
            (void)once_tell(attempt->once, part, ONCE_UNKNOWN);
            break;
        }
    }
    switch (attempt->over ? ONCE_UNFINISHED : once_verdict(attempt->once)) {
    case ONCE_UNFINISHED:
        break;
    case ONCE_STORED:
        succeed(attempt, false);
        break;
    case ONCE_DUPLICATE:
        succeed(attempt, true);
        break;
    case ONCE_DIFFERS:
        refuse_other_body(attempt);
        break;
    }
    if (attempt->over && once_is_idle(attempt->once))
        attempt_free(attempt);
}

static void on_part(void *context, struct once_part *part, enum once_outcome outcome, const char *why)
{
    struct idempotent *idempotent = context;
    struct stats *stats = idempotent->stats;
    struct attempt *attempt = part->once->context;
    uint64_t stored = once_tell(attempt->once, part, outcome);

    counter_add(&stats->lines, stored);
    counter_add(&stats->accepted, stored);
    counter_add(&stats->appended, stored);
    if (outcome == ONCE_APPLIED && part->items_len > 0) {
        counter_add(&stats->appended_batches, 1);
        counter_set(&stats->appended_ms, (uint64_t)clock_monotonic_ms());
    }
    if (outcome == ONCE_REFUSED && !attempt->over)
        fail_refused(attempt, why);
    if (outcome != ONCE_UNKNOWN || attempt->over)
        proceed(attempt);
}

static void on_ready(void *context)
{
    struct idempotent *idempotent = context;
    struct attempt *attempt, *next;

    atomic_store(&idempotent->stats->keyed_away, false);
    for (attempt = LIST_FIRST(&idempotent->under_way); attempt; attempt = next) {
        next = LIST_NEXT(attempt, link);
        proceed(attempt);
    }
}

/* The log and the counters have it from the pipeline, whose connection is to the same Redis. */
static void on_lost(void *context, enum link_state state, const struct error *error)
{
    struct idempotent *idempotent = context;
    struct attempt *attempt;

    (void)state;
    LIST_FOREACH(attempt, &idempotent->under_way, link)
    {
        once_doubt(attempt->once);
    }
    trouble_set(&idempotent->stats->trouble, error->text);
    atomic_store(&idempotent->stats->keyed_away, true);
}

static void on_deadline(evutil_socket_t fd, short events, void *data)
{
    struct attempt *attempt = data;

    (void)fd;
    (void)events;
    if (!attempt->over)
        fail(attempt, HTTP_SERVUNAVAIL,
             "Redis has not confirmed it in time, so whether it is stored, or a part of it, is not known: "
             "send it "
             "again with the same key");
    proceed(attempt);
}

/* The client has gone; what has been begun is finished all the same. */
static void on_close(struct evhttp_connection *connection, void *data)
{
    struct attempt *attempt = data;

    (void)connection;
    attempt->request = NULL;
}

/* --- a request --- */

static bool refuse_keys(struct evhttp_request *request)
{
    char why[160];

    snprintf(why, sizeof(why),
             "more than %d different keys in a request with an Idempotency-Key; nothing was counted",
             ONCE_KEYS_MAX);
    answer_error(request, ANSWER_TOO_LARGE, NULL, why);
    return false;
}

/* Moves the lines, and then what they are fanned out to, into the table of what goes to Redis. Increments are
 * counted with the lines only. */
static void add_up(struct idempotent *idempotent, struct table *from, struct fanout_losses *losses)
{
    const struct targets *targets = idempotent->config->targets;
    bool is_lines = from == idempotent->lines;
    struct table_item item;

    for (uint32_t shard = 0; shard < table_shards(from); shard++) {
        while (table_pop(from, shard, &item)) {
            enum table_result result;
            if (is_lines)
                fan_out(targets, &item, idempotent->made, losses);
            else
                item.events = 0;
            item.hash = member_hash_of(item.key, shard, table_shards(from));
            result = table_add(idempotent->table, &item);
            losses->overflow += result == TABLE_FULL;
            losses->left_out += result == TABLE_RANGE;
        }
    }
}

/* False when the request has been refused. */
static bool spread(struct idempotent *idempotent, struct evhttp_request *request)
{
    struct fanout_losses losses = {0};

    add_up(idempotent, idempotent->lines, &losses);
    add_up(idempotent, idempotent->made, &losses);
    if (losses.overflow > 0 || table_keys(idempotent->table) > ONCE_KEYS_MAX)
        return refuse_keys(request);
    if (losses.left_out > 0)
        answer_error(
            request, ANSWER_UNPROCESSABLE, NULL,
            "'fanout' makes a key of it that is too long, or whose sum is out of range; nothing was counted");
    return losses.left_out == 0;
}

/* A batch of its own can't carry a fraction until the next one. */
static bool is_fraction(struct span line)
{
    struct metric metric;

    return metric_parse(line, &metric) == REJECT_NONE && metric.micros % MICROS_PER_UNIT != 0;
}

/* Fills the table; false when the request has been refused. */
static bool parse(struct idempotent *idempotent, struct evhttp_request *request, struct span body,
                  struct tally *tally)
{
    struct span line;
    char why[160];

    while (tally_next_line(tally, &body, &line)) {
        if (is_fraction(line)) {
            snprintf(why, sizeof(why),
                     "line %" PRIu64
                     " counts a fraction; with an Idempotency-Key only whole units can be stored; "
                     "nothing was counted",
                     tally->line);
            answer_error(request, ANSWER_UNPROCESSABLE, NULL, why);
            return false;
        }
        tally_add(tally, ingest_line(idempotent->ingest, line));
        if (table_keys(idempotent->lines) > ONCE_KEYS_MAX)
            return refuse_keys(request);
    }
    return true;
}

/* Takes what parsing has counted over into the attempt. */
static void take_counts(struct idempotent *idempotent, struct attempt *attempt)
{
    struct stats *parsed = &idempotent->parsed;

    for (int i = 0; i < REJECT_COUNT; i++)
        attempt->rejected[i] = counter_get(&parsed->rejected[i]);
    attempt->fields_ignored = counter_get(&parsed->fields_ignored);
}

static void forget_counts(struct idempotent *idempotent)
{
    struct stats *parsed = &idempotent->parsed;

    ingest_publish(idempotent->ingest);
    for (int i = 0; i < REJECT_COUNT; i++)
        counter_set(&parsed->rejected[i], 0);
    counter_set(&parsed->fields_ignored, 0);
}

static struct attempt *attempt_new(struct idempotent *idempotent, struct once_options *options)
{
    struct attempt *attempt = calloc(1, sizeof(*attempt));

    if (!attempt)
        return NULL;
    options->context = attempt;
    attempt->idempotent = idempotent;
    attempt->deadline = evtimer_new(idempotent->base, on_deadline, attempt);
    attempt->once = attempt->deadline ? once_new(options) : NULL;
    if (!attempt->once) {
        if (attempt->deadline)
            event_free(attempt->deadline);
        free(attempt);
        return NULL;
    }
    LIST_INSERT_HEAD(&idempotent->under_way, attempt, link);
    idempotent->under_way_len++;
    return attempt;
}

static void begin(struct idempotent *idempotent, struct evhttp_request *request, struct once_options *options,
                  const struct tally *tally)
{
    struct timeval timeout = clock_timeval(idempotent->config->redis.timeout_ms);
    struct attempt *attempt = attempt_new(idempotent, options);

    if (!attempt) {
        answer_error(request, HTTP_SERVUNAVAIL, NULL, "out of memory; nothing was counted");
        return;
    }
    answer_drop_body(request);
    attempt->request = request;
    attempt->tally = *tally;
    take_counts(idempotent, attempt);
    evhttp_connection_set_closecb(evhttp_request_get_connection(request), on_close, attempt);
    event_add(attempt->deadline, &timeout);
    proceed(attempt);
}

void idempotent_post(struct idempotent *idempotent, struct evhttp_request *request, const char *key)
{
    char token[TOKEN_LEN_MAX + 1];
    struct once_options options = {.token = token,
                                   .body = answer_body(request),
                                   .table = idempotent->table,
                                   .shards = config_shards(idempotent->config),
                                   .homes = (uint32_t)idempotent->config->shards};
    struct tally tally = {0};

    if (!once_read_token(key, token)) {
        answer_error(
            request, HTTP_BADREQUEST, NULL,
            "Idempotency-Key takes 1 to 64 visible ASCII characters other than \" and \\, with or without "
            "quotes around them; nothing was counted");
    } else if (idempotent->stopping || !store_ready(idempotent->store) || !options.body.ptr) {
        answer_error(request, HTTP_SERVUNAVAIL, NULL,
                     idempotent->stopping ? "stopping; nothing was counted"
                                          : "Redis can't be used now; nothing was counted");
    } else if (idempotent->under_way_len >= UNDER_WAY_MAX) {
        answer_error(request, ANSWER_TOO_MANY, NULL,
                     "too many requests wait to be stored; nothing was counted");
    } else {
        counter_add(&idempotent->stats->bytes, options.body.len);
        ingest_set_table(idempotent->ingest, idempotent->lines, idempotent->config->targets);
        if (parse(idempotent, request, options.body, &tally) && spread(idempotent, request)) {
            ingest_publish(idempotent->ingest);
            begin(idempotent, request, &options, &tally);
        }
        table_clear(idempotent->lines);
        table_clear(idempotent->made);
        table_clear(idempotent->table);
        forget_counts(idempotent);
    }
}

/* --- the whole --- */

struct idempotent *idempotent_new(struct event_base *base, const struct config *config, struct stats *stats,
                                  void *context, void (*on_done)(void *context))
{
    struct idempotent *idempotent = calloc(1, sizeof(*idempotent));
    struct store_callbacks callbacks = {
        .context = idempotent, .on_ready = on_ready, .on_lost = on_lost, .on_part = on_part};

    if (!idempotent)
        return NULL;
    *idempotent = (struct idempotent){
        .base = base, .config = config, .stats = stats, .context = context, .on_done = on_done};
    LIST_INIT(&idempotent->under_way);
    stats_init(&idempotent->parsed);
    atomic_store(&stats->keyed_away, true);
    idempotent->ingest = ingest_new(&idempotent->parsed);
    /* One more than may be, so that the one too many is seen, and counts nowhere else. */
    idempotent->lines = table_new(config_shards(config), ONCE_KEYS_MAX + 1);
    idempotent->made = table_new(config_shards(config), ONCE_KEYS_MAX + 1);
    idempotent->table = table_new(config_shards(config), ONCE_KEYS_MAX + 1);
    idempotent->store = store_new(base, config, &callbacks);
    if (!idempotent->ingest || !idempotent->lines || !idempotent->made || !idempotent->table ||
        !idempotent->store) {
        idempotent_free(idempotent);
        return NULL;
    }
    table_set_merges(idempotent->lines, config->targets->merges, config->targets->lanes);
    table_copy_merges(idempotent->made, idempotent->lines);
    table_copy_merges(idempotent->table, idempotent->lines);
    return idempotent;
}

void idempotent_free(struct idempotent *idempotent)
{
    struct attempt *attempt;

    if (!idempotent)
        return;
    store_free(idempotent->store);
    idempotent->stopping = false;
    while ((attempt = LIST_FIRST(&idempotent->under_way)))
        attempt_free(attempt);
    ingest_free(idempotent->ingest);
    table_free(idempotent->lines);
    table_free(idempotent->made);
    table_free(idempotent->table);
    stats_done(&idempotent->parsed);
    free(idempotent);
}

void idempotent_stop(struct idempotent *idempotent)
{
    idempotent->stopping = true;
    if (idempotent->under_way_len == 0)
        idempotent->on_done(idempotent->context);
}
