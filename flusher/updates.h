/* updates - the deltas of one generation: keys and what to add to each, in memory as a whole
 *
 * Bounded by what one shard gathers between two flushes; kept between shards so that its memory is reused.
 * Not thread-safe. A zeroed struct is an empty one.
 */
#ifndef FLUSHER_UPDATES_H
#define FLUSHER_UPDATES_H

#include "lib/util.h"

struct update {
    size_t offset; /* of the key, in bytes */
    size_t len;
    int64_t delta;
};

struct updates {
    struct update *items;
    size_t len, size;
    char *bytes; /* the keys, one after the other */
    size_t bytes_len, bytes_size;
};

void updates_done(struct updates *updates);

/* Empties it and keeps the memory. */
void updates_clear(struct updates *updates);

/* Copies the key. -ENOMEM leaves it as it was. */
MUST_CHECK int updates_add(struct updates *updates, struct span key, int64_t delta);

/* Borrowed until the next add. */
struct span updates_key(const struct updates *updates, size_t index);

/* Puts them in the order of their keys' bytes, which is how Postgres orders text COLLATE "C": whoever updates
 * rows in this order cannot deadlock with another who does. */
void updates_order(struct updates *updates);

#endif
