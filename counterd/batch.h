/* batch - increments of one shard on their way to Redis: a number, and members with their deltas
 *
 * Once it has its number, nothing in it changes: it is sent again, kept and written to disk as it was.
 */
#ifndef COUNTERD_BATCH_H
#define COUNTERD_BATCH_H

#include "lib/member.h"

struct batch {
    uint64_t seq;
    uint64_t events;  /* increments behind it; of what was fanned out, none: they are counted once */
    size_t keys;      /* 0: emptied, but its number is still owed to Redis */
    size_t bytes;     /* of payload */
    char *payload;    /* entries, see batch_next_entry() */
    uint64_t segment; /* of the spool, while it is on disk too; 0 = it is not */
    bool assumed; /* an earlier process went on behind it, so Redis had it: not sent unless Redis lacks it */
    struct batch *next;
};

/* One piece of the heap, payload behind it; free() ends it. NULL when out of memory. */
struct batch *batch_new(size_t payload_bytes);

/* The member's length, the member, the delta. */
typedef uint16_t batch_entry_len;
#define BATCH_ENTRY_BYTES_MAX (sizeof(batch_entry_len) + MEMBER_LEN_MAX + sizeof(int64_t))

/* Adds an entry, for which there must be room. */
void batch_put_entry(struct batch *batch, struct span key, int64_t delta);

/* Walks the entries: `*at` starts as 0; false at the end. `ret_key` is borrowed from the batch. */
bool batch_next_entry(const struct batch *batch, size_t *at, struct span *ret_key, int64_t *ret_delta);

/* In bytes, with its head. */
size_t batch_size(const struct batch *batch);

#endif
