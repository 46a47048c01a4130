/* table - member -> what it has counted; the memory in which increments gather
 *
 * A member is a key, or a key in a time bucket (lib/member.h); to the table it is a row of bytes.
 * An index of hashes by open addressing, and entries that hold their keys, in an arena. A table first fills
 * (table_add), then drains (table_pop) until it is empty, then fills again; adding to one that drains is a
 * bug. Entries of a shard are listed, so that draining costs what is in the table and never a scan of it.
 * Memory is bounded by `keys_max` keys, not by events, and grows by doubling up to that; it is kept when
 * drained. Not thread-safe.
 */
#ifndef LIB_TABLE_H
#define LIB_TABLE_H

#include "lib/merge.h"

struct table;

/* What a member has gathered. */
struct table_item {
    struct span key; /* up to MEMBER_LEN_MAX bytes; of a popped one borrowed from the table: until the next
                        table_add */
    uint64_t hash;   /* member_hash(); a popped one has none */
    int64_t micros;  /* within +-MICROS_MAX */
    uint64_t events; /* increments behind it; 0: only a fraction carried over from before */
    int32_t carried; /* how much of `micros` was; table_add() does not look at it */
};

enum table_result {
    TABLE_OK,
    TABLE_FULL,  /* a new key, and there are keys_max already, or no memory for it */
    TABLE_RANGE, /* the key's sum would leave +-MICROS_MAX; nothing was added */
};

/* Gives NULL when out of memory. `shards` says how hashes fall into shards (keyspace_shard). */
struct table *table_new(uint32_t shards, size_t keys_max);
void table_free(struct table *table);

/* How the members of its shards merge, which are those of so many lanes, numbered through; by default they
 * add up. Only while it is empty. */
void table_set_merges(struct table *table, const enum merge *of_lanes, uint32_t lanes);

/* The same as another one of as many shards. */
void table_copy_merges(struct table *table, const struct table *from);

/* Of the members with such a hash. */
enum merge table_merge(const struct table *table, uint64_t hash);

/* Takes effect for keys to come; keys already there stay. */
void table_set_keys_max(struct table *table, size_t keys_max);

/* The key is copied. OVERFLOW_KEY always finds a place: beyond keys_max, and without memory. It has one only:
 * as long as it is there it is added to under the same hash. */
MUST_CHECK enum table_result table_add(struct table *table, const struct table_item *item);

/* Adds what is left over of increments which were there before, in the shard that they were in, and which
 * adds up: less than a unit, or than a unit for each of a hundred tables where they come together at a start.
 * TABLE_RANGE is no outcome, as it may go that far beyond the range. */
MUST_CHECK enum table_result table_carry(struct table *table, uint32_t shard, struct span key,
                                         int64_t micros);

/* Says early that a key with this hash is going to be added, so that its slot is there by then. */
void table_prefetch(const struct table *table, uint64_t hash);

/* table_add() of each item in turn, in less time than one by one, up to the first that is not TABLE_OK.
 * Returns how many were added, and the result of the next one. */
MUST_CHECK size_t table_add_all(struct table *table, const struct table_item *items, size_t len,
                                enum table_result *ret_result);

/* Takes one entry of the shard out, in no order; false when the shard has none left. */
MUST_CHECK bool table_pop(struct table *table, uint32_t shard, struct table_item *ret_item);

/* Takes all of them out. */
void table_clear(struct table *table);

/* Whether the shard has entries. */
bool table_has(const struct table *table, uint32_t shard);

size_t table_keys(const struct table *table);

/* Sum of the entries' events; as long as it is 0 there is nothing worth draining. */
uint64_t table_events(const struct table *table);

uint32_t table_shards(const struct table *table);
size_t table_keys_max(const struct table *table);

/* What it holds of the heap. */
size_t table_bytes(const struct table *table);

#endif
