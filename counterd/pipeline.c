#include "counterd/pipeline.h"

#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>

#include "counterd/outbox.h"
#include "counterd/store.h"
#include "lib/clock.h"
#include "lib/id.h"
#include "lib/log.h"
#include "lib/targets.h"

/* An append of so many members holds Redis for two to three milliseconds. */
#define BATCH_KEYS_MAX 1000

/* Batches on their way at a time: enough that Redis never waits for us, and few enough that one connection's
 * buffers stay small. */
#define IN_FLIGHT_MAX 16

/* A shard that Redis refused is asked again so much later. */
#define REFUSED_RETRY_MS 250

/* How often a writer asks whether Redis still has what Postgres has not, when nothing else would show it. */
#define PROBE_MS 5000

/* What happens again and again is logged no more often than this. */
#define LOG_INTERVAL_MS 10000

struct pipeline {
    struct pipeline_options options;
    struct table *tables[2];
    struct targets *targets[2];        /* by which each is filled and fanned out; references */
    struct targets *targets_next;      /* for the next table; a reference */
    unsigned filling;                  /* index of the one that fills */
    uint64_t swaps;                    /* so far: the number of the table that fills */
    TAILQ_HEAD(, pipeline_wait) waits; /* in the order of their tables */
    struct outbox *outbox;
    struct store *store;
    struct event *tick;
    struct event *retry;    /* after a refusal */
    struct event *probe;    /* armed while something acknowledged may not be in Postgres yet */
    struct event *deadline; /* while finishing: Redis has made no progress for so long */
    bool tick_armed, probe_armed, swap_due, finishing, done;
    unsigned in_flight;
    uint64_t untold;  /* increments acknowledged, but not yet all that they are fanned out to */
    unsigned probing; /* shards that have been asked for and not been answered for */
    int64_t coalesce_ms;
    size_t keys_max;
    int64_t refused_logged_ms; /* 0 = never */
    char writer[ID_LEN + 1];
    bool refused[SHARDS_MAX];
};

static struct table *filling_table(const struct pipeline *pipeline)
{
    return pipeline->tables[pipeline->filling];
}

static void arm(struct event *timer, int64_t ms)
{
    struct timeval wait = {.tv_sec = ms / 1000, .tv_usec = (ms % 1000) * 1000};

    event_add(timer, &wait);
}

static void publish(struct pipeline *pipeline)
{
    struct stats *stats = pipeline->options.stats;

    counter_set(&stats->keys, table_keys(pipeline->tables[0]) + table_keys(pipeline->tables[1]));
    counter_set(&stats->table_bytes, table_bytes(pipeline->tables[0]) + table_bytes(pipeline->tables[1]));
    counter_set(&stats->history_bytes, outbox_history_bytes(pipeline->outbox));
    counter_set(&stats->fanout_overflow, outbox_fanout_losses(pipeline->outbox).overflow);
    counter_set(&stats->fanout_left_out, outbox_fanout_losses(pipeline->outbox).left_out);
}

static void fill_table(struct pipeline *pipeline)
{
    struct targets **targets = &pipeline->targets[pipeline->filling];

    targets_unref(*targets);
    *targets = targets_ref(pipeline->targets_next);
    ingest_set_table(pipeline->options.ingest, filling_table(pipeline), *targets);
}

/* What is fanned out follows behind the whole table: until it is there, none of the table's increments counts
 * as stored.
 */
static void count_stored(struct pipeline *pipeline)
{
    const struct targets *targets = pipeline->targets[pipeline->filling ^ 1];

    if (pipeline->untold == 0 || (targets->fanouts_len > 0 && !outbox_drained(pipeline->outbox)))
        return;
    counter_add(&pipeline->options.stats->appended, pipeline->untold);
    pipeline->untold = 0;
}

static void finish_if_stored(struct pipeline *pipeline)
{
    if (!pipeline->finishing || pipeline->done || pipeline->probing > 0 ||
        !outbox_drained(pipeline->outbox) || outbox_owes(pipeline->outbox) ||
        table_events(filling_table(pipeline)) > 0)
        return;
    pipeline->done = true;
    pipeline->options.on_done(pipeline->options.context);
}

/* Whoever waits for a table that is stored is told. */
static void tell_waits(struct pipeline *pipeline)
{
    uint64_t draining = pipeline->swaps - 1;
    uint64_t stored = outbox_drained(pipeline->outbox) ? pipeline->swaps : draining;
    struct pipeline_wait *wait;

    /* A table that fills and is empty has nothing to wait for. */
    if (stored == pipeline->swaps && table_events(filling_table(pipeline)) == 0)
        stored++;
    while ((wait = TAILQ_FIRST(&pipeline->waits)) && wait->table < stored) {
        TAILQ_REMOVE(&pipeline->waits, wait, link);
        wait->on_stored(wait->context);
    }
}

static void send_shard(struct pipeline *pipeline, uint32_t shard)
{
    const struct batch *batch;

    if (!store_ready(pipeline->store) || pipeline->in_flight >= IN_FLIGHT_MAX || pipeline->refused[shard])
        return;
    batch = outbox_next(pipeline->outbox, shard);
    if (!batch)
        return;
    pipeline->in_flight++;
    store_append(pipeline->store, shard, pipeline->writer, outbox_durable(pipeline->outbox, shard), batch);
}

static void send_all(struct pipeline *pipeline)
{
    for (uint32_t shard = 0; shard < config_shards(pipeline->options.config); shard++)
        send_shard(pipeline, shard);
}

/* Turns the full table to the outbox, if the outbox is done with the other one. */
static void swap(struct pipeline *pipeline)
{
    if (!pipeline->swap_due || !outbox_drained(pipeline->outbox))
        return;
    pipeline->swap_due = false;
    if (table_events(filling_table(pipeline)) == 0)
        return;
    pipeline->filling ^= 1;
    pipeline->swaps++;
    fill_table(pipeline);
    outbox_drain(pipeline->outbox, pipeline->tables[pipeline->filling ^ 1], filling_table(pipeline),
                 pipeline->targets[pipeline->filling ^ 1]);
    pipeline->options.on_room(pipeline->options.context);
    send_all(pipeline);
}

/* Once per turn in which something may have moved. */
static void proceed(struct pipeline *pipeline)
{
    if (pipeline->finishing || !TAILQ_EMPTY(&pipeline->waits))
        pipeline->swap_due = true;
    count_stored(pipeline);
    swap(pipeline);
    tell_waits(pipeline);
    publish(pipeline);
    finish_if_stored(pipeline);
}

static void on_tick(evutil_socket_t fd, short events, void *data)
{
    struct pipeline *pipeline = data;

    (void)fd;
    (void)events;
    pipeline->tick_armed = false;
    pipeline->swap_due = true;
    pipeline->options.on_tick(pipeline->options.context);
    send_all(pipeline); /* of a batch for which there was no memory before */
    proceed(pipeline);
}

static void on_retry(evutil_socket_t fd, short events, void *data)
{
    struct pipeline *pipeline = data;

    (void)fd;
    (void)events;
    memset(pipeline->refused, 0, sizeof(pipeline->refused));
    send_all(pipeline);
}

static void on_deadline(evutil_socket_t fd, short events, void *data)
{
    struct pipeline *pipeline = data;

    (void)fd;
    (void)events;
    pipeline->done = true;
    pipeline->options.on_done(pipeline->options.context);
}

/* Redis may have come back with less than it had acknowledged, and a flusher may have set a shard back to
 * what Postgres has. A shard with something to send finds out by that; the others ask, or it would stay
 * unseen until their next increment. Returns whether any had to. */
static bool probe_all(struct pipeline *pipeline)
{
    bool any = false;

    for (uint32_t shard = 0; shard < config_shards(pipeline->options.config); shard++) {
        uint64_t seq = outbox_probe(pipeline->outbox, shard);
        if (seq == 0)
            continue;
        any = true;
        if (!store_ready(pipeline->store))
            continue;
        pipeline->probing++;
        store_probe(pipeline->store, shard, pipeline->writer, outbox_durable(pipeline->outbox, shard), seq);
    }
    return any;
}

static void arm_probe(struct pipeline *pipeline)
{
    if (!pipeline->probe_armed)
        arm(pipeline->probe, PROBE_MS);
    pipeline->probe_armed = true;
}

static void on_probe(evutil_socket_t fd, short events, void *data)
{
    struct pipeline *pipeline = data;

    (void)fd;
    (void)events;
    pipeline->probe_armed = false;
    if (probe_all(pipeline))
        arm_probe(pipeline);
}

static void on_ready(void *context)
{
    struct pipeline *pipeline = context;

    atomic_store(&pipeline->options.stats->redis_ready, true);
    log_event(LOG_LEVEL_INFO, "redis_ready", "writer=%s", pipeline->writer);
    memset(pipeline->refused, 0, sizeof(pipeline->refused));
    (void)!probe_all(pipeline);
    send_all(pipeline);
}

static void on_lost(void *context, enum link_state state, const struct error *error)
{
    struct pipeline *pipeline = context;
    struct stats *stats = pipeline->options.stats;
    char quoted[LOG_TEXT_BYTES];

    /* Whether what was on its way has arrived is unknown: it goes again as it was, and the script tells. */
    for (uint32_t shard = 0; shard < config_shards(pipeline->options.config); shard++)
        if (outbox_unsend(pipeline->outbox, shard))
            counter_add(&stats->resent_batches, 1);
    pipeline->in_flight = pipeline->probing = 0;
    if (atomic_exchange(&stats->redis_ready, false))
        counter_add(&stats->redis_lost, 1);
    log_event(state == LINK_MISFIT ? LOG_LEVEL_ERROR : LOG_LEVEL_WARN,
              state == LINK_MISFIT ? "redis_misfit" : "redis_lost",
              "error=%s hint=\"counting goes on in memory\" pending_increments=%" PRIu64 " keys=%zu",
              log_quote(quoted, span_of(error->text)),
              table_events(filling_table(pipeline)) + outbox_pending_events(pipeline->outbox),
              table_keys(pipeline->tables[0]) + table_keys(pipeline->tables[1]));
}

static void acknowledge(struct pipeline *pipeline, uint32_t shard, uint64_t durable)
{
    struct stats *stats = pipeline->options.stats;

    pipeline->untold += outbox_acknowledge(pipeline->outbox, shard, durable);
    count_stored(pipeline);
    counter_add(&stats->appended_batches, 1);
    arm_probe(pipeline);
    if (pipeline->finishing)
        arm(pipeline->deadline, pipeline->options.config->redis.timeout_ms);
}

static void refuse(struct pipeline *pipeline, uint32_t shard, const char *why)
{
    int64_t now = clock_monotonic_ms();
    char quoted[LOG_TEXT_BYTES];

    counter_add(&pipeline->options.stats->redis_errors, 1);
    outbox_unsend(pipeline->outbox, shard);
    pipeline->refused[shard] = true;
    arm(pipeline->retry, REFUSED_RETRY_MS);
    if (pipeline->refused_logged_ms == 0 || now - pipeline->refused_logged_ms >= LOG_INTERVAL_MS) {
        pipeline->refused_logged_ms = now;
        log_event(LOG_LEVEL_WARN, "append_refused",
                  "shard=%u error=%s hint=\"kept in memory and sent again until it is taken\"", shard,
                  log_quote(quoted, span_of(why)));
    }
}

/* Redis has gone back in time: what it lacks is sent again out of the history. */
static void rewind_shard(struct pipeline *pipeline, uint32_t shard, uint64_t last)
{
    struct stats *stats = pipeline->options.stats;
    struct outbox_loss loss;
    uint64_t batches = outbox_rewind(pipeline->outbox, shard, last, &loss);

    if (batches == 0) {
        refuse(pipeline, shard, "GAP for a batch that is the next one");
        return;
    }
    counter_add(&stats->gaps, 1);
    counter_add(&stats->resent_batches, batches);
    log_event(LOG_LEVEL_WARN, "redis_went_back", "shard=%u last_seq=%" PRIu64 " resent_batches=%" PRIu64,
              shard, last, batches);
    if (loss.last_seq > 0) {
        counter_add(&stats->lost, loss.events);
        log_event(LOG_LEVEL_ERROR, "increments_lost",
                  "shard=%u writer=%s first_seq=%" PRIu64 " last_seq=%" PRIu64 " increments_at_most=%" PRIu64
                  " hint=\"Redis went back further than history_bytes reaches\"",
                  shard, pipeline->writer, loss.first_seq, loss.last_seq, loss.events);
    }
}

static void on_probed(void *context, uint32_t shard, enum store_reply reply, uint64_t seq)
{
    struct pipeline *pipeline = context;
    /* A batch that was sent meanwhile will be told the same, and is what the next answer belongs to. */
    bool idle = outbox_probe(pipeline->outbox, shard) > 0;

    pipeline->probing--;
    if (idle && reply == STORE_GAP) {
        rewind_shard(pipeline, shard, seq);
        send_shard(pipeline, shard);
    } else if (idle && reply == STORE_APPLIED) {
        outbox_note_durable(pipeline->outbox, shard, seq);
    }
    proceed(pipeline);
}

static void on_reply(void *context, uint32_t shard, enum store_reply reply, uint64_t seq, const char *why)
{
    struct pipeline *pipeline = context;

    pipeline->in_flight--;
    switch (reply) {
    case STORE_APPLIED:
        acknowledge(pipeline, shard, seq);
        break;
    case STORE_GAP:
        rewind_shard(pipeline, shard, seq);
        break;
    case STORE_REFUSED:
        refuse(pipeline, shard, why);
        break;
    case STORE_UNREPLICATED:
        counter_add(&pipeline->options.stats->unreplicated, 1);
        refuse(pipeline, shard, why);
        break;
    }
    send_shard(pipeline, shard);
    /* The limit on batches in flight may have held other shards up, or they have waited for what is fanned
     * out: that is there once the whole table is on its way. */
    if (pipeline->in_flight == IN_FLIGHT_MAX - 1 || pipeline->in_flight == 0)
        send_all(pipeline);
    proceed(pipeline);
}

struct pipeline_limits pipeline_limits_of(const struct config *config)
{
    return (struct pipeline_limits){config->coalesce_ms, (size_t)config->keys_max,
                                    (size_t)config->history_bytes, config->targets};
}

struct pipeline *pipeline_new(const struct pipeline_options *options)
{
    const struct config *config = options->config;
    struct pipeline_limits limits = pipeline_limits_of(config);
    struct outbox_options outbox_options = {config_shards(config), BATCH_KEYS_MAX, limits.history_bytes};
    struct pipeline *pipeline = calloc(1, sizeof(*pipeline));
    struct store_callbacks callbacks = {pipeline, on_ready, on_lost, on_reply, on_probed, NULL};

    if (!pipeline)
        return NULL;
    pipeline->options = *options;
    pipeline->coalesce_ms = limits.coalesce_ms;
    pipeline->keys_max = limits.keys_max;
    pipeline->swaps = 1;
    TAILQ_INIT(&pipeline->waits);
    id_new(pipeline->writer);
    pipeline->tables[0] = table_new(outbox_options.shards, limits.keys_max);
    pipeline->tables[1] = table_new(outbox_options.shards, limits.keys_max);
    pipeline->outbox = outbox_new(&outbox_options);
    pipeline->store = store_new(options->base, config, &callbacks);
    pipeline->tick = evtimer_new(options->base, on_tick, pipeline);
    pipeline->retry = evtimer_new(options->base, on_retry, pipeline);
    pipeline->probe = evtimer_new(options->base, on_probe, pipeline);
    pipeline->deadline = evtimer_new(options->base, on_deadline, pipeline);
    if (!pipeline->tables[0] || !pipeline->tables[1] || !pipeline->outbox || !pipeline->store ||
        !pipeline->tick || !pipeline->retry || !pipeline->probe || !pipeline->deadline) {
        pipeline_free(pipeline);
        return NULL;
    }
    pipeline->targets_next = targets_ref(limits.targets);
    fill_table(pipeline);
    publish(pipeline);
    return pipeline;
}

void pipeline_free(struct pipeline *pipeline)
{
    struct event **timers[] = {&pipeline->tick, &pipeline->retry, &pipeline->probe, &pipeline->deadline};

    if (!pipeline)
        return;
    store_free(pipeline->store);
    outbox_free(pipeline->outbox);
    table_free(pipeline->tables[0]);
    table_free(pipeline->tables[1]);
    targets_unref(pipeline->targets[0]);
    targets_unref(pipeline->targets[1]);
    targets_unref(pipeline->targets_next);
    for (size_t i = 0; i < ARRAY_LEN(timers); i++)
        if (*timers[i])
            event_free(*timers[i]);
    free(pipeline);
}

void pipeline_set_limits(struct pipeline *pipeline, const struct pipeline_limits *limits)
{
    pipeline->coalesce_ms = limits->coalesce_ms;
    pipeline->keys_max = limits->keys_max;
    table_set_keys_max(pipeline->tables[0], limits->keys_max);
    table_set_keys_max(pipeline->tables[1], limits->keys_max);
    outbox_set_history_bytes(pipeline->outbox, limits->history_bytes);
    targets_ref(limits->targets);
    targets_unref(pipeline->targets_next);
    pipeline->targets_next = limits->targets;
    if (table_events(filling_table(pipeline)) == 0)
        fill_table(pipeline);
}

bool pipeline_is_crowded(const struct pipeline *pipeline)
{
    return table_keys(filling_table(pipeline)) >= pipeline->keys_max / 4 * 3;
}

static void arm_tick(struct pipeline *pipeline, int64_t ms)
{
    pipeline->tick_armed = true;
    arm(pipeline->tick, ms);
}

void pipeline_poke(struct pipeline *pipeline)
{
    /* A table that is nearly full does not wait for its time. */
    if (pipeline_is_crowded(pipeline) && outbox_drained(pipeline->outbox))
        arm_tick(pipeline, 0);
    else if (!pipeline->tick_armed)
        arm_tick(pipeline, pipeline->coalesce_ms);
}

void pipeline_wait(struct pipeline *pipeline, struct pipeline_wait *wait)
{
    wait->table = pipeline->swaps;
    TAILQ_INSERT_TAIL(&pipeline->waits, wait, link);
    arm_tick(pipeline, 0);
}

void pipeline_cancel(struct pipeline *pipeline, struct pipeline_wait *wait)
{
    TAILQ_REMOVE(&pipeline->waits, wait, link);
}

void pipeline_finish(struct pipeline *pipeline)
{
    pipeline->finishing = true;
    arm(pipeline->deadline, pipeline->options.config->redis.timeout_ms);
    (void)!probe_all(pipeline);
    proceed(pipeline);
}

struct pipeline_rest pipeline_take_rest(struct pipeline *pipeline)
{
    struct pipeline_rest rest = {.events = table_events(filling_table(pipeline)) +
                                           outbox_pending_events(pipeline->outbox) + pipeline->untold};
    struct table_item item;

    for (uint32_t shard = 0; shard < config_shards(pipeline->options.config); shard++) {
        while (table_pop(filling_table(pipeline), shard, &item)) {
            if (item.events == 0 && item.micros != 0) {
                rest.fraction_keys++;
                rest.fraction_micros += item.micros;
            }
        }
    }
    return rest;
}
