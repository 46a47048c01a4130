#include "counterd/replay.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>

#include "counterd/sender.h"
#include "lib/log.h"

struct replay {
    struct replay_options options;
    struct stats stats;
    size_t next; /* of the writers */
    struct spool *spool;
    struct sender *sender; /* with the spool; the last one stays, in case Redis forgets what it was given */
    uint64_t batches, events; /* found in it */
    bool sending;             /* it is not empty yet */
    struct event *turn;       /* what the sender calls can't free it */
};

static void on_ready(void *context)
{
    (void)context;
}

/* The workers, who have the same Redis, say it. */
static void on_lost(void *context, enum store_state state, const struct error *error)
{
    (void)context;
    (void)state;
    (void)error;
}

static void on_reply(void *context, bool applied)
{
    struct replay *replay = context;

    counter_set(&replay->stats.history_bytes, outbox_history_bytes(sender_outbox(replay->sender)));
    if (applied && replay->sending && spool_is_empty(replay->spool))
        event_active(replay->turn, EV_TIMEOUT, 0);
}

static bool on_found(void *context, const struct record *record)
{
    struct replay *replay = context;

    if (!outbox_expect(sender_outbox(replay->sender), record->shard, &record->batch, record->durable))
        return false;
    replay->batches++;
    replay->events += record->batch.events;
    return true;
}

static void end_writer(struct replay *replay)
{
    sender_free(replay->sender);
    spool_free(replay->spool);
    replay->sender = NULL;
    replay->spool = NULL;
}

static int begin_writer(struct replay *replay, const char *writer, struct error *error)
{
    const struct config *config = replay->options.config;
    struct spool_options spool = {
        .directory = replay->options.directory,
        .namespace = config->namespace,
        .writer = writer,
        .shards = (uint32_t)config->shards,
    };
    struct sender_options sender = {
        .base = replay->options.base,
        .config = config,
        .stats = &replay->stats,
        .writer = writer,
        .replays = true,
        .history_bytes = (size_t)config->history_bytes,
        .context = replay,
        .on_ready = on_ready,
        .on_lost = on_lost,
        .on_reply = on_reply,
    };
    struct spool_finder finder = {replay, on_found};

    replay->batches = replay->events = 0;
    replay->spool = sender.spool = spool_new(&spool);
    if (replay->spool)
        replay->sender = sender_new(&sender);
    if (!replay->sender)
        return error_set(error, -ENOMEM, "out of memory");
    return spool_adopt(replay->spool, &finder, error);
}

/* The writer that is done makes room for the next one that has something to send. */
static void on_turn(evutil_socket_t fd, short events, void *data)
{
    struct replay *replay = data;

    (void)fd;
    (void)events;
    if (replay->sending)
        log_event(LOG_LEVEL_INFO, "replayed", "writer=%s batches=%" PRIu64 " increments=%" PRIu64,
                  replay->options.writers.ids[replay->next - 1], replay->batches, replay->events);
    replay->sending = false;
    while (!replay->sending && replay->next < replay->options.writers.len) {
        const char *writer = replay->options.writers.ids[replay->next++];
        struct error error;
        end_writer(replay);
        if (begin_writer(replay, writer, &error) < 0) {
            log_error(LOG_LEVEL_ERROR, "replay_failed", &error);
            continue;
        }
        log_event(LOG_LEVEL_INFO, "replaying", "writer=%s batches=%" PRIu64 " increments=%" PRIu64, writer,
                  replay->batches, replay->events);
        counter_set(&replay->stats.spool_bytes, spool_bytes(replay->spool));
        replay->sending = !spool_is_empty(replay->spool);
    }
}

struct replay *replay_new(const struct replay_options *options)
{
    struct replay *replay = calloc(1, sizeof(*replay));

    if (!replay)
        return NULL;
    replay->options = *options;
    stats_init(&replay->stats);
    /* Until there is something to send, nothing is missing. */
    atomic_store(&replay->stats.redis_ready, true);
    replay->turn = event_new(options->base, -1, 0, on_turn, replay);
    if (!replay->turn) {
        replay_free(replay);
        return NULL;
    }
    event_active(replay->turn, EV_TIMEOUT, 0);
    return replay;
}

void replay_free(struct replay *replay)
{
    if (!replay)
        return;
    end_writer(replay);
    if (replay->turn)
        event_free(replay->turn);
    stats_done(&replay->stats);
    free(replay);
}

struct stats *replay_stats(struct replay *replay)
{
    return &replay->stats;
}
