/* store - a worker's connection to Redis: keeps it up, and carries batches to the append script
 *
 * One connection, on the worker's loop. It connects by itself, again and again with a growing pause, and
 * introduces itself before anything is stored: password, database, and the number of shards, which is
 * recorded in Redis by whoever comes first and has to be the same for all. What is in flight when the
 * connection ends has an unknown outcome; telling the outbox is the owner's business (on_lost). Callbacks run
 * from the loop, never from inside a call.
 */
#ifndef COUNTERD_STORE_H
#define COUNTERD_STORE_H

#include "counterd/outbox.h"
#include "counterd/stats.h"
#include "lib/config.h"

struct event_base;
struct store;

enum store_reply {
    STORE_APPLIED, /* `seq` is the durable one */
    STORE_GAP,     /* `seq` is the last one that Redis has */
    STORE_REFUSED, /* not applied; ask again later. `why` says what Redis said */
};

enum store_state {
    STORE_AWAY,   /* not reached; tried again */
    STORE_MISFIT, /* reached, but it can't be used as configured; tried again all the same */
    STORE_CONNECTING,
    STORE_READY,
};

struct store_callbacks {
    void *context;
    void (*on_ready)(void *context);
    /* The connection, or the try for one, has ended; `state` is STORE_AWAY or STORE_MISFIT. */
    void (*on_lost)(void *context, enum store_state state, const struct error *error);
    void (*on_reply)(void *context, uint32_t shard, enum store_reply reply, uint64_t seq, const char *why);
    /* A probe found that Redis knows nothing of the writer after `last`. */
    void (*on_gap)(void *context, uint32_t shard, uint64_t last);
    /* A probe found nothing missing; all up to `durable` is in Postgres. */
    void (*on_durable)(void *context, uint32_t shard, uint64_t durable);
};

/* Keeps `config` and `base`. Starts to connect at once. Gives NULL when out of memory. */
struct store *store_new(struct event_base *base, const struct config *config, size_t batch_keys_max,
                        const struct store_callbacks *callbacks);
void store_free(struct store *store);

bool store_ready(const struct store *store);

/* Sends a batch, of a ready store; on_reply tells the outcome unless on_lost comes first. */
void store_append(struct store *store, uint32_t shard, const char *writer, uint64_t known_durable,
                  const struct batch *batch);

/* Asks a ready store whether batch `seq` would be the next; on_gap or on_durable tells. */
void store_probe(struct store *store, uint32_t shard, const char *writer, uint64_t known_durable,
                 uint64_t seq);

/* Connects and introduces itself once, on a loop of its own, for at most `wait_ms`. 0; -EHOSTUNREACH when
 * Redis is away; -EINVAL when it can't be used as configured. */
MUST_CHECK int store_check(const struct config *config, int64_t wait_ms, struct error *error);

#endif
