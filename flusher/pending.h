/* pending - what is accepted but not yet in the tables, worked out from one look at Redis and one at Postgres
 *
 * In that order: Redis first, then Postgres; the other way round an increment is missed or seen twice while
 * it moves. Pure.
 */
#ifndef FLUSHER_PENDING_H
#define FLUSHER_PENDING_H

#include "flusher/source.h"
#include "lib/keyspace.h"
#include "lib/merge.h"

/* One key in Redis, with all its buckets, at one moment. */
struct peek {
    bool whole; /* else there were too many members to look for its buckets */
    bool in_open, in_sealed;
    int64_t open, sealed; /* its deltas; 0 when not there */
    char sealed_id[GENERATION_ID_LEN_MAX + 1];
    char prev_id[GENERATION_ID_LEN_MAX + 1]; /* of the shard; "" = none */
};

/* Its row in Postgres and its shard's, in one snapshot later than the peek. */
struct stored {
    bool known;
    int64_t value;
    int64_t parked;                          /* what Postgres has of it beside the row */
    char head_id[GENERATION_ID_LEN_MAX + 1]; /* the newest in the ledger; "" = none */
};

/* What of the peek the row does not hold yet. */
struct key_pending {
    bool known; /* something is pending for the key, a delta of 0 too */
    int64_t delta;
    int64_t value; /* what the row will hold */
};

struct key_pending pending_of_key(const struct peek *peek, const struct stored *stored, enum merge merge);

/* One shard in Redis, at one moment. Numbers that are not there are 0. */
struct shard_state {
    int64_t now_ms;
    int64_t open_members, sealed_members;
    int64_t accepted, accepted_at_seal;
    int64_t events, events_at_seal;
    int64_t opened_ms, sealed_opened_ms;
    char sealed_id[GENERATION_ID_LEN_MAX + 1];
    char prev_id[GENERATION_ID_LEN_MAX + 1];
};

/* What the ledger has of that shard's two generations, looked up after the state. */
struct shard_ledger {
    bool sealed_applied;    /* sealed_id is in it: only its release is missing */
    int64_t released_total; /* cumulative numbers of prev_id; 0 = no row */
    int64_t released_events;
};

struct pending {
    int64_t open_keys, open_total;
    int64_t sealed_keys, sealed_total;
    int64_t events;    /* open and sealed */
    int64_t oldest_ms; /* age of the oldest pending increment; 0 = nothing is pending */
};

/* The keys with the largest deltas, largest first; starts zeroed. */
#define LARGEST_MAX 10

struct largest {
    struct {
        char key[KEY_LEN_MAX]; /* any bytes */
        size_t key_len;
        int64_t delta;
    } items[LARGEST_MAX];
    size_t len;
};

/* Adds what a shard holds under `member`. Where a bucket stands behind the key, a key's buckets add up, as
 * far as they are added here. */
void largest_add(struct largest *largest, struct span member, int64_t delta);

/* Adds a shard to `pending`, which starts zeroed. */
void pending_add_shard(struct pending *pending, const struct shard_state *state,
                       const struct shard_ledger *ledger);

#endif
