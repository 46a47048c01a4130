#include "counterd/sender.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/clock.h"
#include "lib/id.h"
#include "lib/log.h"

/* Batches on their way at a time: enough that Redis never waits for us, and few enough that one connection's
 * buffers stay small. */
#define IN_FLIGHT_MAX 16

/* Batches in memory that came back from disk: some for every shard, in the usual order of things. */
#define LOADED_MAX 256

/* How often a writer asks whether Redis still has what Postgres has not, when nothing else would show it. */
#define PROBE_MS 5000

/* A shard that Redis refused is asked again so much later. */
#define REFUSED_RETRY_MS 250

struct sender {
    struct sender_options options;
    char writer[ID_LEN + 1];
    struct outbox *outbox;
    struct store *store;
    struct event *retry; /* after a refusal */
    struct event *probe; /* armed while something acknowledged may not be in Postgres yet */
    unsigned in_flight;
    uint64_t untold;               /* increments acknowledged, but not yet all that they are fanned out to */
    uint32_t spool_shard;          /* whose turn it is to be written to disk */
    int64_t refused_logged_ms;     /* 0 = never */
    int64_t spool_error_logged_ms; /* 0 = never */
    bool refused[SHARDS_MAX];
    int64_t sent_us[SHARDS_MAX]; /* the batch in flight */
};

static uint32_t shards_of(const struct sender *sender)
{
    return config_shards(sender->options.config);
}

static void send_shard(struct sender *sender, uint32_t shard)
{
    const struct batch *batch;

    if (!store_ready(sender->store) || sender->in_flight >= IN_FLIGHT_MAX || sender->refused[shard])
        return;
    batch = outbox_next(sender->outbox, shard);
    if (!batch)
        return;
    sender->in_flight++;
    sender->sent_us[shard] = clock_monotonic_us();
    store_append(sender->store, shard, sender->writer, outbox_durable(sender->outbox, shard), batch);
}

void sender_tell_spool_error(struct sender *sender, const struct error *error)
{
    char quoted[LOG_TEXT_BYTES];

    counter_add(&sender->options.stats->spool_errors, 1);
    counter_set(&sender->options.stats->spool_error_ms, (uint64_t)clock_monotonic_ms());
    trouble_set(&sender->options.stats->spool_trouble, error->text);
    if (log_is_due(&sender->spool_error_logged_ms))
        log_event(LOG_LEVEL_ERROR, "spool_failed",
                  "error=%s hint=\"counting goes on in memory, up to keys_max keys\"",
                  log_quote(quoted, span_of(error->text)));
}

void sender_publish_spool(struct sender *sender)
{
    struct stats *stats = sender->options.stats;
    uint64_t waiting = outbox_spooled_events(sender->outbox);

    counter_set(&stats->spool_bytes, spool_bytes(sender->options.spool));
    counter_set(sender->options.replays ? &stats->replay_waiting : &stats->spool_waiting, waiting);
    if (waiting == 0)
        counter_set(&stats->spool_since_ms, 0);
    else if (counter_get(&stats->spool_since_ms) == 0)
        counter_set(&stats->spool_since_ms, (uint64_t)clock_monotonic_ms());
}

static void load(struct sender *sender)
{
    struct error error;
    uint64_t unread;
    int r = 0;

    while (r != -ENOMEM && outbox_is_away(sender->outbox) && outbox_loaded(sender->outbox) < LOADED_MAX) {
        struct batch *batch;
        uint32_t shard;
        r = spool_pop(sender->options.spool, &shard, &batch, &error);
        if (r < 0) {
            outbox_spool_broke(sender->outbox);
            sender_tell_spool_error(sender, &error);
        } else if (batch) {
            (void)outbox_load(sender->outbox, shard, batch);
        } else {
            outbox_spool_ended(sender->outbox);
            break;
        }
    }
    unread = outbox_take_unread(sender->outbox);
    if (unread > 0) {
        counter_add(&sender->options.stats->lost, unread);
        if (!sender->options.replays)
            counter_add(&sender->options.stats->spool_lost, unread);
        log_event(LOG_LEVEL_ERROR, "increments_lost",
                  "writer=%s increments=%" PRIu64 " hint=\"the spool could not be read\"", sender->writer,
                  unread);
        sender_publish_spool(sender);
    }
}

void sender_send(struct sender *sender)
{
    if (!store_ready(sender->store))
        return;
    load(sender);
    /* Where the first round found nothing but fractions, nobody is going to answer: what it has made of them
     * is for a second one. */
    for (int round = 0; round < 2 && (round == 0 || sender->in_flight == 0); round++)
        for (uint32_t shard = 0; shard < shards_of(sender); shard++)
            send_shard(sender, shard);
}

static bool probe_shard(struct sender *sender, uint32_t shard)
{
    uint64_t seq = outbox_probe(sender->outbox, shard);

    if (seq > 0 && store_ready(sender->store))
        store_probe(sender->store, shard, sender->writer, outbox_durable(sender->outbox, shard), seq);
    return seq > 0;
}

bool sender_probe(struct sender *sender)
{
    bool any = false;

    for (uint32_t shard = 0; shard < shards_of(sender); shard++)
        any |= probe_shard(sender, shard);
    return any;
}

void sender_make_sure(struct sender *sender)
{
    outbox_doubt(sender->outbox);
    store_hurry(sender->store);
    (void)sender_probe(sender);
}

bool sender_is_sure(const struct sender *sender)
{
    return !outbox_is_in_doubt(sender->outbox);
}

static void retry_later(struct sender *sender)
{
    struct timeval pause = clock_timeval(REFUSED_RETRY_MS);

    event_add(sender->retry, &pause);
}

static void on_retry(evutil_socket_t fd, short events, void *data)
{
    struct sender *sender = data;

    (void)fd;
    (void)events;
    memset(sender->refused, 0, sizeof(sender->refused));
    sender_send(sender);
    if (!sender_is_sure(sender))
        (void)sender_probe(sender);
}

static void arm_probe(struct sender *sender)
{
    struct timeval pause = clock_timeval(PROBE_MS);

    if (!event_pending(sender->probe, EV_TIMEOUT, NULL))
        event_add(sender->probe, &pause);
}

static void on_probe(evutil_socket_t fd, short events, void *data)
{
    struct sender *sender = data;

    (void)fd;
    (void)events;
    if (sender_probe(sender))
        arm_probe(sender);
}

static void on_ready(void *context)
{
    struct sender *sender = context;

    atomic_store(&sender->options.stats->redis_ready, true);
    atomic_store(&sender->options.stats->redis_misfit, false);
    log_event(LOG_LEVEL_INFO, "redis_ready", "writer=%s", sender->writer);
    memset(sender->refused, 0, sizeof(sender->refused));
    (void)sender_probe(sender);
    sender_send(sender);
    sender->options.on_ready(sender->options.context);
}

static void on_lost(void *context, enum link_state state, const struct error *error)
{
    struct sender *sender = context;
    struct stats *stats = sender->options.stats;

    /* Whether what was on its way has arrived is unknown: it goes again as it was, and the script tells. */
    for (uint32_t shard = 0; shard < shards_of(sender); shard++)
        if (outbox_unsend(sender->outbox, shard))
            counter_add(&stats->resent_batches, 1);
    outbox_doubt(sender->outbox);
    sender->in_flight = 0;
    trouble_set(&stats->trouble, error->text);
    atomic_store(&stats->redis_misfit, state == LINK_MISFIT);
    if (atomic_exchange(&stats->redis_ready, false))
        counter_add(&stats->redis_lost, 1);
    sender->options.on_lost(sender->options.context, state, error);
}

/* What is fanned out follows behind the whole table: until it is there, none of the table's increments counts
 * as stored. */
static void count_stored(struct sender *sender)
{
    struct stats *stats = sender->options.stats;

    if (sender->untold == 0 || outbox_fans_out(sender->outbox))
        return;
    counter_add(sender->options.replays ? &stats->replayed : &stats->appended, sender->untold);
    sender->untold = 0;
}

static void acknowledge(struct sender *sender, uint32_t shard, uint64_t durable)
{
    struct stats *stats = sender->options.stats;
    struct outbox_ack ack = outbox_acknowledge(sender->outbox, shard, durable);
    int64_t now_us = clock_monotonic_us();

    counter_set(&stats->appended_ms, (uint64_t)now_us / 1000);
    histogram_add(&stats->append, now_us - sender->sent_us[shard]);
    sender->untold += ack.events;
    counter_add(sender->options.replays ? &stats->replayed_batches : &stats->appended_batches, 1);
    arm_probe(sender);
    if (ack.segment != 0) {
        spool_settle(sender->options.spool, ack.segment, ack.events);
        sender_publish_spool(sender);
    }
}

static void refuse(struct sender *sender, uint32_t shard, const char *why)
{
    char quoted[LOG_TEXT_BYTES];

    counter_add(&sender->options.stats->redis_errors, 1);
    counter_set(&sender->options.stats->refused_ms, (uint64_t)clock_monotonic_ms());
    trouble_set(&sender->options.stats->trouble, why);
    outbox_unsend(sender->outbox, shard);
    sender->refused[shard] = true;
    /* A Redis that takes nothing can be asked all the same, and while batches are tried in vain nobody else
     * does. */
    (void)probe_shard(sender, shard);
    retry_later(sender);
    if (log_is_due(&sender->refused_logged_ms))
        log_event(LOG_LEVEL_WARN, "append_refused",
                  "shard=%u error=%s hint=\"kept in memory and sent again until it is taken\"", shard,
                  log_quote(quoted, span_of(why)));
    if (sender->options.on_refused)
        sender->options.on_refused(sender->options.context);
}

/* Of batches that an earlier process had acknowledged, nobody here knows how many increments they held. */
static void tell_loss(const struct sender *sender, uint32_t shard, const struct outbox_loss *loss)
{
    counter_add(&sender->options.stats->lost, loss->events);
    if (sender->options.replays)
        log_event(
            LOG_LEVEL_ERROR, "increments_lost",
            "shard=%u writer=%s first_seq=%" PRIu64 " last_seq=%" PRIu64
            " increments_at_most=unknown hint=\"Redis went back, and the counterd that had stored these "
            "batches has ended\"",
            shard, sender->writer, loss->first_seq, loss->last_seq);
    else
        log_event(LOG_LEVEL_ERROR, "increments_lost",
                  "shard=%u writer=%s first_seq=%" PRIu64 " last_seq=%" PRIu64 " increments_at_most=%" PRIu64
                  " hint=\"Redis went back further than history_bytes reaches\"",
                  shard, sender->writer, loss->first_seq, loss->last_seq, loss->events);
}

/* Redis has gone back in time: what it lacks is sent again out of the history. */
static void rewind_shard(struct sender *sender, uint32_t shard, uint64_t last)
{
    struct stats *stats = sender->options.stats;
    struct outbox_loss loss;
    uint64_t batches = outbox_rewind(sender->outbox, shard, last, &loss);

    if (batches == 0) {
        refuse(sender, shard, "GAP for a batch that is the next one");
        return;
    }
    counter_add(&stats->gaps, 1);
    counter_set(&stats->went_back_ms, (uint64_t)clock_monotonic_ms());
    counter_add(&stats->resent_batches, batches);
    log_event(LOG_LEVEL_WARN, "redis_went_back", "shard=%u last_seq=%" PRIu64 " resent_batches=%" PRIu64,
              shard, last, batches);
    if (loss.last_seq > 0)
        tell_loss(sender, shard, &loss);
}

static void on_probed(void *context, uint32_t shard, enum store_reply reply, uint64_t seq)
{
    struct sender *sender = context;
    /* A batch that was sent meanwhile will be told the same, and is what the next answer belongs to. */
    bool asks = outbox_probe(sender->outbox, shard) > 0;

    if (asks && reply == STORE_GAP) {
        rewind_shard(sender, shard, seq);
        send_shard(sender, shard);
    } else if (asks && reply == STORE_APPLIED) {
        outbox_note_durable(sender->outbox, shard, seq);
    } else if (asks) {
        retry_later(sender);
    }
    sender->options.on_reply(sender->options.context, false);
}

static void on_reply(void *context, uint32_t shard, enum store_reply reply, uint64_t seq, const char *why)
{
    struct sender *sender = context;

    sender->in_flight--;
    switch (reply) {
    case STORE_APPLIED:
        acknowledge(sender, shard, seq);
        break;
    case STORE_GAP:
        rewind_shard(sender, shard, seq);
        break;
    case STORE_REFUSED:
        refuse(sender, shard, why);
        break;
    case STORE_UNREPLICATED:
        counter_add(&sender->options.stats->unreplicated, 1);
        refuse(sender, shard, why);
        break;
    }
    send_shard(sender, shard);
    /* The limit on batches in flight may have held other shards up, or they have waited for what is fanned
     * out: that is there once the whole table is on its way. And what was loaded may have run out. */
    if (sender->in_flight == IN_FLIGHT_MAX - 1 || sender->in_flight == 0 || outbox_is_away(sender->outbox))
        sender_send(sender);
    /* Behind that: where nothing but fractions were left of what is fanned out, there was nothing to send. */
    count_stored(sender);
    sender->options.on_reply(sender->options.context, reply == STORE_APPLIED);
}

struct sender *sender_new(const struct sender_options *options)
{
    struct outbox_options outbox = {config_shards(options->config), BATCH_KEYS_MAX, options->history_bytes};
    struct sender *sender = calloc(1, sizeof(*sender));
    struct store_callbacks callbacks = {sender, on_ready, on_lost, on_reply, on_probed, NULL};

    if (!sender)
        return NULL;
    sender->options = *options;
    snprintf(sender->writer, sizeof(sender->writer), "%s", options->writer);
    sender->outbox = outbox_new(&outbox);
    sender->store = store_new(options->base, options->config, &callbacks);
    sender->retry = evtimer_new(options->base, on_retry, sender);
    sender->probe = evtimer_new(options->base, on_probe, sender);
    if (!sender->outbox || !sender->store || !sender->retry || !sender->probe) {
        sender_free(sender);
        return NULL;
    }
    return sender;
}

void sender_free(struct sender *sender)
{
    if (!sender)
        return;
    store_free(sender->store);
    outbox_free(sender->outbox);
    if (sender->retry)
        event_free(sender->retry);
    if (sender->probe)
        event_free(sender->probe);
    free(sender);
}

struct outbox *sender_outbox(struct sender *sender)
{
    return sender->outbox;
}

bool sender_ready(const struct sender *sender)
{
    return store_ready(sender->store);
}

/* 0, 1 when the shard has nothing to be written, or a negative errno. */
static int spool_one(struct sender *sender, uint32_t shard, struct error *error)
{
    const struct batch *batch = outbox_spool_next(sender->outbox, shard);
    struct record record = {.shard = shard, .durable = outbox_durable(sender->outbox, shard)};
    uint64_t events, segment;
    int r;

    if (!batch)
        return 1;
    record.batch = *batch;
    events = batch->events;
    r = spool_push(sender->options.spool, &record, &segment, error);
    if (r < 0)
        return r;
    outbox_spooled(sender->outbox, shard, segment);
    counter_add(&sender->options.stats->spooled, events);
    counter_add(&sender->options.stats->spooled_batches, 1);
    sender_publish_spool(sender);
    return 0;
}

enum sender_spooled sender_spool(struct sender *sender, size_t batches_max)
{
    uint32_t idle = 0;
    struct error error;

    /* Twice around: where the table has nothing but fractions, what becomes of them is written when all of
     * the table has been gone over. */
    while (idle < 2 * shards_of(sender)) {
        int r;
        if (batches_max == 0)
            return SENDER_SPOOLED_SOME;
        r = spool_one(sender, sender->spool_shard, &error);
        if (r < 0) {
            sender_tell_spool_error(sender, &error);
            return SENDER_SPOOL_FAILED;
        }
        if (r == 1) {
            sender->spool_shard = (sender->spool_shard + 1) % shards_of(sender);
            idle++;
        } else {
            idle = 0;
            batches_max--;
        }
    }
    return SENDER_SPOOLED_ALL;
}

void sender_sync(struct sender *sender)
{
    struct error error;

    if (spool_sync(sender->options.spool, &error) < 0)
        sender_tell_spool_error(sender, &error);
}
