/* store - a worker's connection to Redis: carries batches to the append script, over a link that keeps itself
 * up
 *
 * What is in flight when the connection ends has an unknown outcome; telling the outbox is the owner's
 * business (on_lost). With redis.wait_replicas, a batch counts as applied only when so many replicas have it.
 * Callbacks run from the loop, never from inside a call.
 */
#ifndef COUNTERD_STORE_H
#define COUNTERD_STORE_H

#include "counterd/link.h"
#include "counterd/once.h"
#include "counterd/batch.h"
#include "counterd/stats.h"

struct store;

enum store_reply {
    STORE_APPLIED,      /* `seq` is the durable one */
    STORE_GAP,          /* `seq` is the last one that Redis has */
    STORE_REFUSED,      /* not applied; ask again later. `why` says what Redis said */
    STORE_UNREPLICATED, /* applied, but too few replicas have confirmed that they have it: send it again */
};

struct store_callbacks {
    void *context;
    void (*on_ready)(void *context);
    /* The connection, or the try for one, has ended; `state` is LINK_AWAY or LINK_MISFIT. */
    void (*on_lost)(void *context, enum link_state state, const struct error *error);
    void (*on_reply)(void *context, uint32_t shard, enum store_reply reply, uint64_t seq, const char *why);
    /* The answer to a probe: as to an append, which STORE_APPLIED says would be taken. */
    void (*on_probed)(void *context, uint32_t shard, enum store_reply reply, uint64_t seq);
    /* What became of a part; `why` goes with ONCE_REFUSED. Nothing may be sent after ONCE_UNKNOWN, which
     * comes when the connection ends, until on_ready. */
    void (*on_part)(void *context, struct once_part *part, enum once_outcome outcome, const char *why);
};

/* Keeps `config` and `base`. Starts to connect at once. Gives NULL when out of memory. */
struct store *store_new(struct event_base *base, const struct config *config,
                        const struct store_callbacks *callbacks);
void store_free(struct store *store);

bool store_ready(const struct store *store);

/* If it waits to connect again, it does so now. */
void store_hurry(struct store *store);

/* Sends a batch, of a ready store; on_reply tells the outcome unless on_lost comes first. */
void store_append(struct store *store, uint32_t shard, const char *writer, uint64_t known_durable,
                  const struct batch *batch);

/* Asks a ready store whether batch `seq` would be the next; on_probed tells, unless on_lost comes
 * first. */
void store_probe(struct store *store, uint32_t shard, const char *writer, uint64_t known_durable,
                 uint64_t seq);

/* Sends a part of a request, of a ready store. It must stay where it is until on_part has told its outcome,
 * or the store is freed. False when out of memory: it was not sent, and the connection will end. */
bool store_append_once(struct store *store, struct once_part *part);

#endif
