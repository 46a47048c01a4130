/* sender - one writer: its outbox, its connection to Redis, its spool
 *
 * Sends what the outbox has as fast as Redis takes it, resends what must be, and answers a Redis that has
 * gone back in time. What waits on disk is loaded back in small portions. Belongs to one loop.
 */
#ifndef COUNTERD_SENDER_H
#define COUNTERD_SENDER_H

#include "counterd/outbox.h"
#include "counterd/spool.h"
#include "counterd/stats.h"
#include "counterd/store.h"
#include "lib/config.h"

struct event_base;
struct sender;

/* An append of so many members holds Redis for two to three milliseconds. */
#define BATCH_KEYS_MAX 1000

struct sender_options {
    struct event_base *base;
    const struct config *config; /* kept */
    struct stats *stats;         /* kept */
    const char *writer;          /* copied */
    struct spool *spool;         /* kept; of the same writer; NULL = none */
    bool replays;                /* an earlier process has counted what is sent */
    size_t history_bytes;
    void *context;
    void (*on_ready)(void *context);
    void (*on_lost)(void *context, enum link_state state, const struct error *error);
    void (*on_reply)(void *context, bool applied); /* something may have moved */
    void (*on_refused)(void *context);             /* Redis does not take a batch now; NULL = never mind */
};

/* Starts to connect at once. Gives NULL when out of memory. */
struct sender *sender_new(const struct sender_options *options);
void sender_free(struct sender *sender);

/* For draining tables and asking how far it is; sending is done here. */
struct outbox *sender_outbox(struct sender *sender);

bool sender_ready(const struct sender *sender);

/* Sends all that there is and may be sent now. */
void sender_send(struct sender *sender);

/* Redis may have come back with less than it had acknowledged, and a flusher may have set a shard back to
 * what Postgres has. A shard with something to send finds out by that; the others ask, or it would stay
 * unseen until their next increment: when Redis is there again, every few seconds, and by this. Returns
 * whether any had to. */
bool sender_probe(struct sender *sender);

/* Before the end: asks Redis, connecting at once if need be, whether it has all that it acknowledged, and
 * sends again what it lacks. Until it is sure, this may be the only copy. */
void sender_make_sure(struct sender *sender);
bool sender_is_sure(const struct sender *sender);

enum sender_spooled {
    SENDER_SPOOLED_ALL,  /* nothing is left that is not on disk */
    SENDER_SPOOLED_SOME, /* `batches_max` was reached */
    SENDER_SPOOL_FAILED, /* the disk is full or broken; counted, and said now and then */
};

/* Writes what is not acknowledged to the spool. */
enum sender_spooled sender_spool(struct sender *sender, size_t batches_max);

/* Makes sure that what was spooled outlives a power cut. */
void sender_sync(struct sender *sender);

/* Notes in the stats what waits on disk. Done here whenever it changes, but for what the spool was given
 * otherwise. */
void sender_publish_spool(struct sender *sender);

/* Says that the spool has failed, but not each time. */
void sender_tell_spool_error(struct sender *sender, const struct error *error);

#endif
