#include "counterd/pipeline.h"

#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>

#include "counterd/sender.h"
#include "lib/clock.h"
#include "lib/decimal.h"
#include "lib/id.h"
#include "lib/log.h"
#include "lib/targets.h"

/* So long Redis may be away before the disk is used, and so often from then on. */
#define SPOOL_AFTER_MS 1000
#define SPOOL_EVERY_MS 1000

/* Per turn of the loop, so that receiving goes on meanwhile. */
#define SPOOL_BATCHES_PER_TURN 32

struct pipeline {
    struct pipeline_options options;
    struct table *tables[2];
    struct targets *targets[2];        /* by which each is filled and fanned out; references */
    struct targets *targets_next;      /* for the next table; a reference */
    unsigned filling;                  /* index of the one that fills */
    uint64_t swaps;                    /* so far: the number of the table that fills */
    uint64_t stored;                   /* tables below this number are in Redis */
    TAILQ_HEAD(, pipeline_wait) waits; /* in the order of their tables */
    struct spool *spool;               /* NULL = none */
    struct sender *sender;
    struct outbox *outbox; /* the sender's */
    struct event *tick;
    struct event *spool_due;
    struct event *deadline; /* while finishing: Redis has made no progress for so long */
    bool tick_armed, swap_due, finishing, done;
    bool carried;       /* what the table that fills was given at the start may have made wholes */
    bool away;          /* Redis has been lost, or refused a batch, and acknowledged nothing since */
    bool spooling;      /* tables go to disk, until Redis is back */
    bool spool_swapped; /* since spool_due was last armed for later */
    bool spool_paused;  /* it has failed, until spool_due */
    int64_t coalesce_ms;
    size_t keys_max;
    char writer[ID_LEN + 1];
    /* Monotonic; since when the tables hold what they hold; 0 = nothing. */
    int64_t filling_us, draining_us;
};

static struct table *filling_table(const struct pipeline *pipeline)
{
    return pipeline->tables[pipeline->filling];
}

static void arm(struct event *timer, int64_t ms)
{
    struct timeval wait = clock_timeval(ms);

    event_add(timer, &wait);
}

static void publish(struct pipeline *pipeline)
{
    struct stats *stats = pipeline->options.stats;

    counter_set(&stats->keys, table_keys(pipeline->tables[0]) + table_keys(pipeline->tables[1]));
    counter_set(&stats->table_bytes, table_bytes(pipeline->tables[0]) + table_bytes(pipeline->tables[1]));
    counter_set(&stats->history_bytes, outbox_history_bytes(pipeline->outbox));
    counter_set(&stats->emptied, outbox_emptied_events(pipeline->outbox));
    counter_set(&stats->gathered_ms,
                (uint64_t)(pipeline->draining_us > 0 ? pipeline->draining_us : pipeline->filling_us) / 1000);
    counter_set(&stats->fanout_overflow, outbox_fanout_losses(pipeline->outbox).overflow);
    counter_set(&stats->fanout_left_out, outbox_fanout_losses(pipeline->outbox).left_out);
}

/* All of the draining table is in Redis, or on disk. */
static void note_drained(struct pipeline *pipeline)
{
    if (pipeline->draining_us == 0 || !outbox_drained(pipeline->outbox))
        return;
    if (outbox_stored(pipeline->outbox))
        histogram_add(&pipeline->options.stats->gather, clock_monotonic_us() - pipeline->draining_us);
    pipeline->draining_us = 0;
}

static void fill_table(struct pipeline *pipeline)
{
    struct targets **targets = &pipeline->targets[pipeline->filling];

    targets_unref(*targets);
    *targets = targets_ref(pipeline->targets_next);
    ingest_set_table(pipeline->options.ingest, filling_table(pipeline), *targets);
}

/* Whoever waits for a table that is stored is told. */
static void tell_waits(struct pipeline *pipeline)
{
    uint64_t stored;
    struct pipeline_wait *wait;

    /* Of tables that went to disk nobody keeps apart which is stored; they all are in the end. */
    if (outbox_stored(pipeline->outbox))
        pipeline->stored = pipeline->swaps;
    else if (!outbox_is_spooled(pipeline->outbox))
        pipeline->stored = pipeline->swaps - 1;
    stored = pipeline->stored;
    /* A table that fills and is empty has nothing to wait for. */
    if (stored == pipeline->swaps && table_events(filling_table(pipeline)) == 0)
        stored++;
    if (TAILQ_EMPTY(&pipeline->waits) || !sender_is_sure(pipeline->sender))
        return;
    while ((wait = TAILQ_FIRST(&pipeline->waits)) && wait->table < stored) {
        TAILQ_REMOVE(&pipeline->waits, wait, link);
        wait->on_stored(wait->context);
    }
}

/* Turns the full table to the outbox, if the outbox is done with the other one. */
static void swap(struct pipeline *pipeline)
{
    int64_t since_us;

    if (!pipeline->swap_due || !outbox_drained(pipeline->outbox))
        return;
    pipeline->swap_due = false;
    since_us = pipeline->filling_us;
    pipeline->filling_us = 0;
    if (table_events(filling_table(pipeline)) == 0 && !pipeline->carried)
        return;
    pipeline->carried = false;
    pipeline->draining_us = since_us;
    pipeline->filling ^= 1;
    pipeline->swaps++;
    fill_table(pipeline);
    outbox_set_time(pipeline->outbox, clock_unix_ms() / 1000);
    outbox_drain(pipeline->outbox, pipeline->tables[pipeline->filling ^ 1], filling_table(pipeline),
                 pipeline->targets[pipeline->filling ^ 1]);
    pipeline->options.on_room(pipeline->options.context);
    sender_send(pipeline->sender);
}

/* All that there is, at the end. */
static void spool_everything(struct pipeline *pipeline)
{
    while (sender_spool(pipeline->sender, SIZE_MAX) == SENDER_SPOOLED_ALL &&
           outbox_drained(pipeline->outbox) && table_events(filling_table(pipeline)) > 0) {
        pipeline->swap_due = true;
        swap(pipeline);
    }
    sender_sync(pipeline->sender);
}

static void tell_done(struct pipeline *pipeline)
{
    pipeline->done = true;
    pipeline->options.on_done(pipeline->options.context);
}

static void give_up(struct pipeline *pipeline)
{
    if (pipeline->done)
        return;
    if (pipeline->spool)
        spool_everything(pipeline);
    tell_done(pipeline);
}

static void finish_if_stored(struct pipeline *pipeline)
{
    /* What was acknowledged is not on disk. */
    if (!pipeline->finishing || pipeline->done || !sender_is_sure(pipeline->sender))
        return;
    if (pipeline->spool && (pipeline->away || outbox_is_spooled(pipeline->outbox)))
        give_up(pipeline);
    else if (outbox_stored(pipeline->outbox) && table_events(filling_table(pipeline)) == 0)
        tell_done(pipeline);
}

/* Once per turn in which something may have moved. */
static void proceed(struct pipeline *pipeline)
{
    if (pipeline->finishing || !TAILQ_EMPTY(&pipeline->waits))
        pipeline->swap_due = true;
    note_drained(pipeline);
    /* While tables go to disk, they swap when it is time for that. */
    if (!pipeline->spooling)
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
    sender_send(pipeline->sender); /* of a batch for which there was no memory before */
    proceed(pipeline);
}

/* The draining table goes to disk, then the one that fills, a turn's worth at a time. */
static void on_spool_due(evutil_socket_t fd, short events, void *data)
{
    struct pipeline *pipeline = data;
    enum sender_spooled result;

    (void)fd;
    (void)events;
    pipeline->spool_paused = false;
    if (sender_ready(pipeline->sender) && outbox_stored(pipeline->outbox) &&
        table_events(filling_table(pipeline)) == 0)
        pipeline->away = false;
    pipeline->spooling = !pipeline->done && (pipeline->away || pipeline_is_crowded(pipeline));
    if (!pipeline->spooling) {
        pipeline->spool_swapped = false;
        proceed(pipeline);
        return;
    }
    result = sender_spool(pipeline->sender, SPOOL_BATCHES_PER_TURN);
    if (result == SENDER_SPOOLED_ALL && !pipeline->spool_swapped) {
        pipeline->spool_swapped = pipeline->swap_due = true;
        swap(pipeline);
        result = SENDER_SPOOLED_SOME;
    }
    publish(pipeline);
    if (result == SENDER_SPOOLED_SOME) {
        arm(pipeline->spool_due, 0);
        return;
    }
    sender_sync(pipeline->sender);
    pipeline->spool_swapped = false;
    pipeline->spool_paused = result == SENDER_SPOOL_FAILED;
    arm(pipeline->spool_due, SPOOL_EVERY_MS);
}

static void on_deadline(evutil_socket_t fd, short events, void *data)
{
    (void)fd;
    (void)events;
    give_up(data);
}

static void on_ready(void *context)
{
    struct pipeline *pipeline = context;

    /* It may take something now, and else the disk's time comes again. */
    pipeline->spooling = false;
    proceed(pipeline);
}

/* One that is full, or read-only, keeps batches here just as one that is gone. */
static void on_refused(void *context)
{
    struct pipeline *pipeline = context;

    pipeline->away = true;
    if (pipeline->spool && !event_pending(pipeline->spool_due, EV_TIMEOUT, NULL))
        arm(pipeline->spool_due, SPOOL_AFTER_MS);
}

static void on_lost(void *context, enum link_state state, const struct error *error)
{
    struct pipeline *pipeline = context;
    char quoted[LOG_TEXT_BYTES];

    on_refused(pipeline);
    log_event(state == LINK_MISFIT ? LOG_LEVEL_ERROR : LOG_LEVEL_WARN,
              state == LINK_MISFIT ? "redis_misfit" : "redis_lost",
              "error=%s hint=\"counting goes on%s\" pending_increments=%" PRIu64 " keys=%zu",
              log_quote(quoted, span_of(error->text)), pipeline->spool ? "" : " in memory",
              table_events(filling_table(pipeline)) + outbox_pending_events(pipeline->outbox),
              table_keys(pipeline->tables[0]) + table_keys(pipeline->tables[1]));
}

static void on_reply(void *context, bool applied)
{
    struct pipeline *pipeline = context;

    if (applied)
        pipeline->away = pipeline->spooling = false;
    if (applied && pipeline->finishing && !pipeline->done)
        arm(pipeline->deadline, pipeline->options.config->redis.timeout_ms);
    proceed(pipeline);
}

struct pipeline_limits pipeline_limits_of(const struct config *config)
{
    return (struct pipeline_limits){config->coalesce_ms, (size_t)config->keys_max,
                                    (size_t)config->history_bytes, config->targets};
}

static bool set_up_spool(struct pipeline *pipeline)
{
    const struct config *config = pipeline->options.config;
    struct spool_options options = {
        .directory = pipeline->options.spool_directory,
        .namespace = config->namespace,
        .writer = pipeline->writer,
        .shards = config_shards(config),
        .lanes = config_lanes_id(config),
        .bytes_max = (uint64_t)config->spool_bytes,
    };

    if (options.directory < 0)
        return true;
    pipeline->spool = spool_new(&options);
    return pipeline->spool != NULL;
}

static bool set_up_sender(struct pipeline *pipeline)
{
    const struct config *config = pipeline->options.config;
    struct sender_options options = {
        .base = pipeline->options.base,
        .config = config,
        .stats = pipeline->options.stats,
        .writer = pipeline->writer,
        .spool = pipeline->spool,
        .history_bytes = (size_t)config->history_bytes,
        .context = pipeline,
        .on_ready = on_ready,
        .on_lost = on_lost,
        .on_reply = on_reply,
        .on_refused = on_refused,
    };

    pipeline->sender = sender_new(&options);
    if (!pipeline->sender)
        return false;
    pipeline->outbox = sender_outbox(pipeline->sender);
    return true;
}

struct pipeline *pipeline_new(const struct pipeline_options *options)
{
    uint32_t shards = config_shards(options->config);
    struct pipeline_limits limits = pipeline_limits_of(options->config);
    struct pipeline *pipeline = calloc(1, sizeof(*pipeline));

    if (!pipeline)
        return NULL;
    pipeline->options = *options;
    pipeline->coalesce_ms = limits.coalesce_ms;
    pipeline->keys_max = limits.keys_max;
    pipeline->swaps = 1;
    TAILQ_INIT(&pipeline->waits);
    id_new(pipeline->writer);
    pipeline->tables[0] = table_new(shards, limits.keys_max);
    pipeline->tables[1] = table_new(shards, limits.keys_max);
    pipeline->tick = evtimer_new(options->base, on_tick, pipeline);
    pipeline->spool_due = evtimer_new(options->base, on_spool_due, pipeline);
    pipeline->deadline = evtimer_new(options->base, on_deadline, pipeline);
    if (!pipeline->tables[0] || !pipeline->tables[1] || !pipeline->tick || !pipeline->spool_due ||
        !pipeline->deadline || !set_up_spool(pipeline) || !set_up_sender(pipeline)) {
        pipeline_free(pipeline);
        return NULL;
    }
    for (size_t i = 0; i < ARRAY_LEN(pipeline->tables); i++)
        table_set_merges(pipeline->tables[i], limits.targets->merges, limits.targets->lanes);
    pipeline->targets_next = targets_ref(limits.targets);
    fill_table(pipeline);
    publish(pipeline);
    return pipeline;
}

void pipeline_free(struct pipeline *pipeline)
{
    struct event **timers[] = {&pipeline->tick, &pipeline->spool_due, &pipeline->deadline};

    if (!pipeline)
        return;
    sender_free(pipeline->sender);
    spool_free(pipeline->spool);
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
    const struct table *table = filling_table(pipeline);

    /* Of fractions alone no swap makes room. */
    return table_events(table) > 0 && table_keys(table) >= pipeline->keys_max - pipeline->keys_max / 4;
}

static void arm_tick(struct pipeline *pipeline, int64_t ms)
{
    pipeline->tick_armed = true;
    arm(pipeline->tick, ms);
}

static void note_filling(struct pipeline *pipeline)
{
    if (pipeline->filling_us == 0)
        pipeline->filling_us = clock_monotonic_us();
}

void pipeline_poke(struct pipeline *pipeline)
{
    note_filling(pipeline);
    /* A table that is nearly full does not wait for its time. */
    if (pipeline_is_crowded(pipeline) && outbox_drained(pipeline->outbox) && !pipeline->spooling)
        arm_tick(pipeline, 0);
    else if (pipeline_is_crowded(pipeline) && pipeline->spool && !pipeline->spool_paused)
        arm(pipeline->spool_due, 0);
    else if (!pipeline->tick_armed)
        arm_tick(pipeline, pipeline->coalesce_ms);
}

void pipeline_wait(struct pipeline *pipeline, struct pipeline_wait *wait)
{
    note_filling(pipeline);
    wait->table = pipeline->swaps;
    TAILQ_INSERT_TAIL(&pipeline->waits, wait, link);
    arm_tick(pipeline, 0);
}

void pipeline_cancel(struct pipeline *pipeline, struct pipeline_wait *wait)
{
    TAILQ_REMOVE(&pipeline->waits, wait, link);
}

static enum table_result carry(struct pipeline *pipeline, struct span member, int64_t micros)
{
    const struct targets *targets = pipeline->targets[pipeline->filling];
    struct table *table = filling_table(pipeline);
    int64_t bucket;
    struct span key = member_split(member, &bucket);
    struct route route = targets_route(targets, key);
    uint32_t shard = targets_shard(targets, route.lane, keyspace_hash(key), table_shards(table));

    /* What is left over of a sum has no place in a maximum, which the key may be by now. */
    return route.merge == MERGE_ADD ? table_carry(table, shard, member, micros) : TABLE_FULL;
}

void pipeline_carry(struct pipeline *pipeline, struct span key, int64_t micros)
{
    if (carry(pipeline, key, micros) != TABLE_OK &&
        carry(pipeline, span_of(OVERFLOW_KEY), micros) != TABLE_OK)
        log_event(LOG_LEVEL_ERROR, "fractions_dropped", "keys=1 hint=\"out of memory\"");
    pipeline->carried = true;
    arm_tick(pipeline, pipeline->coalesce_ms);
}

void pipeline_finish(struct pipeline *pipeline)
{
    pipeline->finishing = true;
    pipeline->spooling = false;
    event_del(pipeline->spool_due);
    arm(pipeline->deadline, pipeline->options.config->redis.timeout_ms);
    sender_make_sure(pipeline->sender);
    proceed(pipeline);
}

/* Takes up to a batch's worth of fractions out of the table; false when the shard has none. */
static bool take_fractions(struct table *table, uint32_t shard, struct batch *batch)
{
    struct table_item item;

    batch->keys = batch->bytes = 0;
    while (batch->keys < BATCH_KEYS_MAX && table_pop(table, shard, &item))
        if (item.events == 0 && item.micros != 0)
            batch_put_entry(batch, item.key, item.micros);
    return batch->keys > 0;
}

static void rest_of_fractions(struct pipeline *pipeline, struct batch *batch, struct pipeline_rest *rest)
{
    for (uint32_t shard = 0; shard < config_shards(pipeline->options.config); shard++) {
        while (take_fractions(filling_table(pipeline), shard, batch)) {
            struct record record = {.shard = shard, .batch = *batch};
            struct error error;
            struct span key;
            int64_t micros;
            size_t at = 0;
            if (pipeline->spool && spool_put_fractions(pipeline->spool, &record, &error) == 0)
                continue;
            if (pipeline->spool)
                sender_tell_spool_error(pipeline->sender, &error);
            rest->fraction_keys += batch->keys;
            while (batch_next_entry(batch, &at, &key, &micros))
                rest->fraction_micros += micros;
        }
    }
    if (pipeline->spool)
        sender_sync(pipeline->sender);
}

struct pipeline_rest pipeline_take_rest(struct pipeline *pipeline)
{
    struct pipeline_rest rest = {.spooled = outbox_spooled_events(pipeline->outbox)};
    struct batch *batch = batch_new(BATCH_KEYS_MAX * BATCH_ENTRY_BYTES_MAX);
    uint64_t removed = pipeline->spool ? spool_removed_events(pipeline->spool) : 0;

    /* In a removed file there may also be what could not be read, and does not count any more. */
    rest.spooled -= removed < rest.spooled ? removed : rest.spooled;
    rest.events =
        table_events(filling_table(pipeline)) + outbox_pending_events(pipeline->outbox) - rest.spooled;
    rest.missing = outbox_missing_events(pipeline->outbox);
    rest.made = !outbox_drained(pipeline->outbox);
    if (batch)
        rest_of_fractions(pipeline, batch, &rest);
    free(batch);
    return rest;
}
