/* updates - the deltas of one transaction: keys and what to add to each, in memory as a whole
 *
 * Those of one generation or of several small ones (flusher/flush.h); kept, so that its memory is reused.
 * Not thread-safe. A zeroed struct is an empty one.
 */
#ifndef FLUSHER_UPDATES_H
#define FLUSHER_UPDATES_H

#include "lib/util.h"

struct update {
    size_t offset; /* of the key, in bytes */
    uint32_t len;
    uint32_t cargo; /* number of the generation that it is from, of those in the transaction */
    int64_t delta;
};

struct updates {
    struct update *items;
    size_t len, size;
    size_t first;   /* where the generation begins that is being added */
    uint32_t cargo; /* its number */
    char *bytes;    /* the keys, one after the other */
    size_t bytes_len, bytes_size;
};

/* What became of the updates of one generation that are not in counterd.counters; keys and sums. */
struct tally {
    int64_t parked_keys, parked;
    int64_t dropped_keys, dropped;
    int64_t elsewhere; /* the sum of what is in other tables */
};

void updates_done(struct updates *updates);

/* Empties it and keeps the memory. What is added next is of generation number 0. */
void updates_clear(struct updates *updates);

/* What is added next is of the next generation, number `cargo`. */
void updates_begin(struct updates *updates, uint32_t cargo);

/* Takes back what was added since. */
void updates_cancel(struct updates *updates);

/* How many were added since. */
static inline size_t updates_added(const struct updates *updates)
{
    return updates->len - updates->first;
}

/* Copies the key. -ENOMEM leaves it as it was. */
MUST_CHECK int updates_add(struct updates *updates, struct span key, int64_t delta);

/* Borrowed until the next add. */
struct span updates_key(const struct updates *updates, size_t index);

/* Puts them in the order of their keys' bytes, which is how Postgres orders text COLLATE "C": whoever updates
 * rows in this order cannot deadlock with another who does. */
void updates_order(struct updates *updates);

#endif
