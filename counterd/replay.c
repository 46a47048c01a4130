#include "counterd/replay.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "counterd/sender.h"
#include "lib/clock.h"
#include "lib/log.h"

/* Batches that are in Redis are watched until they are in Postgres: so often. */
#define WATCH_EVERY_MS 5000

/* Writers that are begun and not wholly in Postgres: each has a connection to Redis. The next one waits for
 * the flusher then. */
#define PASTS_MAX 512

/* An earlier process's writer. */
struct past {
    struct replay *replay;
    struct spool *spool;
    struct sender *sender;
    const char *writer;
    uint64_t batches, events; /* found in the spool */
    bool sent;
    LIST_ENTRY(past) link;
};

struct replay {
    struct replay_options options;
    struct stats stats;
    LIST_HEAD(, past) pasts; /* begun, and not wholly in Postgres */
    size_t pasts_len;
    size_t next;             /* of the writers */
    struct spool_left *left; /* by writer, of those that were not begun */
    struct event *turn;      /* what a sender calls can't free it */
    struct event *watch;
    struct event *deadline; /* while finishing */
    bool finishing, done;
};

static void watch_later(struct replay *replay)
{
    struct timeval pause = clock_timeval(WATCH_EVERY_MS);

    event_add(replay->watch, &pause);
}

static void tell_done(struct replay *replay)
{
    if (replay->done)
        return;
    replay->done = true;
    replay->options.on_done(replay->options.context);
}

static void finish_if_settled(struct replay *replay)
{
    const struct past *past;

    if (!replay->finishing)
        return;
    LIST_FOREACH(past, &replay->pasts, link)
    {
        if (!sender_is_sure(past->sender))
            return;
    }
    tell_done(replay);
}

static void arm_deadline(struct replay *replay)
{
    struct timeval timeout = clock_timeval(replay->options.config->redis.timeout_ms);

    event_add(replay->deadline, &timeout);
}

static void on_deadline(evutil_socket_t fd, short events, void *data)
{
    (void)fd;
    (void)events;
    tell_done(data);
}

static void on_ready(void *context)
{
    (void)context;
}

/* The workers, who have the same Redis, say it. */
static void on_lost(void *context, enum link_state state, const struct error *error)
{
    (void)context;
    (void)state;
    (void)error;
}

static void on_reply(void *context, bool applied)
{
    struct past *past = context;
    struct replay *replay = past->replay;

    if (applied && !past->sent && spool_is_empty(past->spool)) {
        past->sent = true;
        log_event(LOG_LEVEL_INFO, "replayed", "writer=%s batches=%" PRIu64 " increments=%" PRIu64,
                  past->writer, past->batches, past->events);
        event_active(replay->turn, EV_TIMEOUT, 0);
    }
    if (applied && replay->finishing && !replay->done)
        arm_deadline(replay);
    finish_if_settled(replay);
}

static bool on_found(void *context, const struct record *record)
{
    struct past *past = context;

    if (!outbox_expect(sender_outbox(past->sender), record->shard, &record->batch, record->durable))
        return false;
    past->batches++;
    past->events += record->batch.events;
    return true;
}

static void past_free(struct past *past)
{
    LIST_REMOVE(past, link);
    past->replay->pasts_len--;
    sender_free(past->sender);
    spool_free(past->spool);
    free(past);
}

static int set_up(struct past *past, struct error *error)
{
    const struct replay_options *options = &past->replay->options;
    struct spool_options spool = {
        .directory = options->directory,
        .namespace = options->config->namespace,
        .writer = past->writer,
        .shards = config_shards(options->config),
        .lanes = config_lanes_id(options->config),
    };
    struct sender_options sender = {
        .base = options->base,
        .config = options->config,
        .stats = &past->replay->stats,
        .writer = past->writer,
        .replays = true,
        .history_bytes = (size_t)options->config->history_bytes / options->writers.len,
        .context = past,
        .on_ready = on_ready,
        .on_lost = on_lost,
        .on_reply = on_reply,
    };
    struct spool_finder finder = {past, on_found};
    int r;

    past->spool = sender.spool = spool_new(&spool);
    if (past->spool)
        past->sender = sender_new(&sender);
    if (!past->sender)
        return error_set(error, -ENOMEM, "out of memory");
    r = spool_adopt(past->spool, &finder, error);
    if (r == 0)
        sender_publish_spool(past->sender);
    return r;
}

/* They wait too, beside those of the writer that is being sent. */
static void publish_left(struct replay *replay)
{
    struct spool_left sum = {0};

    for (size_t i = 0; i < replay->options.writers.len; i++) {
        sum.events += replay->left[i].events;
        sum.bytes += replay->left[i].bytes;
    }
    counter_set(&replay->stats.replay_left, sum.events);
    counter_set(&replay->stats.replay_left_bytes, sum.bytes);
}

/* Returns whether the writer has something to send. */
static bool begin(struct replay *replay, size_t index)
{
    const char *writer = replay->options.writers.ids[index];
    struct past *past = calloc(1, sizeof(*past));
    struct error error;

    if (!past)
        return false;
    past->replay = replay;
    past->writer = writer;
    LIST_INSERT_HEAD(&replay->pasts, past, link);
    replay->pasts_len++;
    if (set_up(past, &error) < 0) {
        log_error(LOG_LEVEL_ERROR, "replay_failed", &error);
        past_free(past);
        return false;
    }
    replay->left[index] = (struct spool_left){0};
    publish_left(replay);
    if (!spool_is_empty(past->spool)) {
        log_event(LOG_LEVEL_INFO, "replaying", "writer=%s batches=%" PRIu64 " increments=%" PRIu64, writer,
                  past->batches, past->events);
        return true;
    }
    past_free(past);
    return false;
}

static bool may_begin(const struct replay *replay)
{
    return !replay->finishing && replay->next < replay->options.writers.len && replay->pasts_len < PASTS_MAX;
}

/* One writer after the other. */
static void on_turn(evutil_socket_t fd, short events, void *data)
{
    struct replay *replay = data;

    (void)fd;
    (void)events;
    while (may_begin(replay))
        if (begin(replay, replay->next++))
            return;
    watch_later(replay);
}

/* Those that have ended miss nothing, whatever their last word was. */
static void note_ready(struct replay *replay)
{
    const struct past *past;
    bool ready = true;

    LIST_FOREACH(past, &replay->pasts, link)
    {
        ready &= sender_ready(past->sender);
    }
    atomic_store(&replay->stats.redis_ready, ready);
    if (ready)
        atomic_store(&replay->stats.redis_misfit, false);
}

/* All of it is in Postgres. What Redis has to be given again, it had acknowledged before. */
static bool is_finished(struct past *past)
{
    const struct outbox *outbox = sender_outbox(past->sender);

    return past->sent && outbox_stored(outbox) && !outbox_owes(outbox) && !sender_probe(past->sender);
}

/* No traffic of theirs would show that Redis has lost them, or that they are in Postgres. */
static void on_watch(evutil_socket_t fd, short events, void *data)
{
    struct replay *replay = data;
    struct past *past, *next;

    (void)fd;
    (void)events;
    for (past = LIST_FIRST(&replay->pasts); past; past = next) {
        next = LIST_NEXT(past, link);
        if (is_finished(past)) {
            past_free(past);
            note_ready(replay);
        }
    }
    if (may_begin(replay))
        event_active(replay->turn, EV_TIMEOUT, 0);
    else if (!LIST_EMPTY(&replay->pasts))
        watch_later(replay);
}

struct replay *replay_new(const struct replay_options *options)
{
    struct replay *replay = calloc(1, sizeof(*replay));

    if (!replay) {
        struct spool_writers writers = options->writers;
        spool_writers_done(&writers);
        return NULL;
    }
    replay->options = *options;
    LIST_INIT(&replay->pasts);
    stats_init(&replay->stats);
    /* Until there is something to send, nothing is missing. */
    atomic_store(&replay->stats.redis_ready, true);
    replay->left = calloc(options->writers.len, sizeof(*replay->left));
    replay->turn = event_new(options->base, -1, 0, on_turn, replay);
    replay->watch = evtimer_new(options->base, on_watch, replay);
    replay->deadline = evtimer_new(options->base, on_deadline, replay);
    if (!replay->left || !replay->turn || !replay->watch || !replay->deadline) {
        replay_free(replay);
        return NULL;
    }
    for (size_t i = 0; i < options->writers.len; i++)
        replay->left[i] = spool_measure(options->directory, options->writers.ids[i]);
    publish_left(replay);
    event_active(replay->turn, EV_TIMEOUT, 0);
    return replay;
}

void replay_finish(struct replay *replay)
{
    struct past *past;

    replay->finishing = true;
    arm_deadline(replay);
    LIST_FOREACH(past, &replay->pasts, link)
    {
        sender_make_sure(past->sender);
    }
    finish_if_settled(replay);
}

uint64_t replay_missing(const struct replay *replay)
{
    const struct past *past;
    uint64_t events = 0;

    LIST_FOREACH(past, &replay->pasts, link)
    {
        events += outbox_missing_events(sender_outbox(past->sender));
    }
    return events;
}

void replay_free(struct replay *replay)
{
    if (!replay)
        return;
    while (!LIST_EMPTY(&replay->pasts))
        past_free(LIST_FIRST(&replay->pasts));
    if (replay->turn)
        event_free(replay->turn);
    if (replay->watch)
        event_free(replay->watch);
    if (replay->deadline)
        event_free(replay->deadline);
    stats_done(&replay->stats);
    free(replay->left);
    spool_writers_done(&replay->options.writers);
    free(replay);
}

struct stats *replay_stats(struct replay *replay)
{
    return &replay->stats;
}
