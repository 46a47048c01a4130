/* member - what a key is called in the table and in Redis when time matters: "page.home 1656581400"
 *
 * `key SP bucket`, bucket in unix seconds: the start of a time bucket, never 0. A key holds no blank, so a
 * member can be taken apart again. Without a bucket the member is the key. Pure.
 */
#ifndef LIB_MEMBER_H
#define LIB_MEMBER_H

#include "lib/keyspace.h"

#define MEMBER_BUCKET_LEN_MAX 20 /* with the blank: what an int64_t that is not negative takes */
#define MEMBER_LEN_MAX        (KEY_LEN_MAX + MEMBER_BUCKET_LEN_MAX)

/* Takes a member apart: its key, and its bucket; 0 = it has none. */
struct span member_split(struct span member, int64_t *ret_bucket);

/* Writes " 1656581400" and returns its length; 0 for bucket 0. */
size_t member_write_bucket(int64_t bucket, char buf[MEMBER_BUCKET_LEN_MAX]);

/* Writes the member and returns its length. */
size_t member_write(struct span key, int64_t bucket, char buf[MEMBER_LEN_MAX]);

#define MEMBER_GLOB_LEN_MAX (2 * KEY_LEN_MAX + 2)

/* Writes what Redis takes as a pattern for all members of the key that have a bucket; returns its length. */
size_t member_glob(struct span key, char glob[MEMBER_GLOB_LEN_MAX]);

/* So many members of a set may be looked through for them: that holds Redis for a few milliseconds. */
#define MEMBER_SCAN_MAX "4000"

/* The hash next to the key's own that is of this shard of so many. It is the key's own in the shard that the
 * key has by itself; in a lane (lib/lanes.h) it may be another one. */
static inline uint64_t shard_hash(uint64_t key_hash, uint32_t shard, uint32_t shards)
{
    uint64_t hash = key_hash - key_hash % shards + shard;

    return hash < shard ? hash - shards : hash;
}

/* The hash under which a table keeps the member, of the one under which it keeps the key: another one for
 * each bucket, so that they do not stand in each other's way, but of the same shard. For bucket 0 it is the
 * key's. */
static inline uint64_t member_hash(uint64_t key_hash, int64_t bucket, uint32_t shards)
{
    uint64_t mixed =
        (key_hash ^ (uint64_t)bucket * UINT64_C(0x9e3779b97f4a7c15)) * UINT64_C(0xd6e8feb86659fd93);
    /* Below 2^53, and SHARDS_MAX is 2^10: no step of so many shards leads out of the 64 bits. */
    uint64_t steps = (mixed ^ mixed >> 32) >> 11;

    if (bucket == 0)
        return key_hash;
    return key_hash >> 63 ? key_hash - steps * shards : key_hash + steps * shards;
}

/* The same of a member as it is written, in the shard that it is in. */
uint64_t member_hash_of(struct span member, uint32_t shard, uint32_t shards);

#endif
