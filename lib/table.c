#include "lib/table.h"

#include <assert.h>
#include <stdlib.h>

#include "lib/decimal.h"
#include "lib/keyspace.h"

#define SLOTS_MIN 1024

/* Keys lie in the arena as a length byte and the bytes, at multiples of 8, so that 32 bits reach 32 GiB.
 * Place 0 is never used: it marks a free slot, and the end of a chain. */
#define ARENA_UNIT  8
#define ARENA_BYTES 4096

/* OVERFLOW_KEY lies in front of all others and is never taken away, so that it needs no memory to come. */
#define OVERFLOW_AT 1

struct slot {
    uint64_t hash;
    int64_t micros;
    uint64_t events;
    uint32_t key_at; /* in units of the arena; 0 = free */
    uint32_t next;   /* index + 1 of the next slot of this shard; 0 = last */
};

struct table {
    struct slot *slots;
    size_t mask; /* slots - 1; a power of two */
    size_t keys, keys_max;
    uint64_t events;
    unsigned char *arena;
    size_t arena_used, arena_bytes;
    uint32_t shards;
    bool draining;
    uint32_t heads[]; /* by shard: index + 1 of its first slot */
};

static size_t arena_size(size_t key_len)
{
    return (1 + key_len + ARENA_UNIT - 1) / ARENA_UNIT * ARENA_UNIT;
}

static void clear_arena(struct table *table)
{
    table->arena_used = OVERFLOW_AT * ARENA_UNIT + arena_size(strlen(OVERFLOW_KEY));
}

struct table *table_new(uint32_t shards, size_t keys_max)
{
    struct table *table = calloc(1, sizeof(*table) + shards * sizeof(table->heads[0]));

    if (!table)
        return NULL;
    table->shards = shards;
    table->keys_max = keys_max;
    table->mask = SLOTS_MIN - 1;
    table->slots = calloc(SLOTS_MIN, sizeof(*table->slots));
    table->arena = malloc(ARENA_BYTES);
    table->arena_bytes = ARENA_BYTES;
    if (!table->slots || !table->arena) {
        table_free(table);
        return NULL;
    }
    table->arena[OVERFLOW_AT * ARENA_UNIT] = strlen(OVERFLOW_KEY);
    memcpy(table->arena + OVERFLOW_AT * ARENA_UNIT + 1, OVERFLOW_KEY, strlen(OVERFLOW_KEY));
    clear_arena(table);
    return table;
}

void table_free(struct table *table)
{
    if (!table)
        return;
    free(table->slots);
    free(table->arena);
    free(table);
}

void table_set_keys_max(struct table *table, size_t keys_max)
{
    table->keys_max = keys_max;
}

static struct span key_of(const struct table *table, const struct slot *slot)
{
    const unsigned char *at = table->arena + (size_t)slot->key_at * ARENA_UNIT;

    return (struct span){(const char *)at + 1, at[0]};
}

/* The slot that holds the key, or the free one where it belongs. */
static struct slot *find_slot(const struct table *table, struct span key, uint64_t hash)
{
    size_t i = hash & table->mask;

    for (;;) {
        struct slot *slot = &table->slots[i];
        if (slot->key_at == 0 || (slot->hash == hash && span_equal(key_of(table, slot), key)))
            return slot;
        i = (i + 1) & table->mask;
    }
}

static void chain(struct table *table, struct slot *slot)
{
    uint32_t *head = &table->heads[keyspace_shard(slot->hash, table->shards)];

    slot->next = *head;
    *head = (uint32_t)(slot - table->slots) + 1;
}

static bool grow_slots(struct table *table)
{
    size_t mask = table->mask * 2 + 1;
    struct slot *old = table->slots, *slots;

    /* Chains hold index + 1 in 32 bits. */
    if (mask >= UINT32_MAX)
        return false;
    slots = calloc(mask + 1, sizeof(*slots));
    if (!slots)
        return false;
    memset(table->heads, 0, table->shards * sizeof(table->heads[0]));
    table->slots = slots;
    for (size_t i = 0; i <= table->mask; i++) {
        size_t at = old[i].hash & mask;
        if (old[i].key_at == 0)
            continue;
        while (slots[at].key_at != 0)
            at = (at + 1) & mask;
        slots[at] = old[i];
        chain(table, &slots[at]);
    }
    table->mask = mask;
    free(old);
    return true;
}

/* Room for the key in the arena; 0 when there is none. */
static uint32_t store_key(struct table *table, struct span key)
{
    size_t at = table->arena_used;
    size_t end = at + arena_size(key.len);

    if (end / ARENA_UNIT > UINT32_MAX)
        return 0;
    if (end > table->arena_bytes) {
        unsigned char *arena = realloc(table->arena, table->arena_bytes * 2);
        if (!arena)
            return 0;
        table->arena = arena;
        table->arena_bytes *= 2;
    }
    table->arena[at] = (unsigned char)key.len;
    memcpy(table->arena + at + 1, key.ptr, key.len);
    table->arena_used = end;
    return (uint32_t)(at / ARENA_UNIT);
}

static enum table_result insert(struct table *table, struct slot *slot, const struct table_item *item)
{
    /* At two thirds the next key would wait behind others too often. Without memory to grow it fills up to
     * the last slot but one; find_slot() needs a free one to end at. */
    bool crowded = (table->keys + 1) * 3 > (table->mask + 1) * 2;

    if (table->keys >= table->keys_max &&
        !(table->keys == table->keys_max && span_is(item->key, OVERFLOW_KEY)))
        return TABLE_FULL;
    if (crowded && grow_slots(table))
        slot = find_slot(table, item->key, item->hash);
    if (table->keys == table->mask)
        return TABLE_FULL;
    slot->key_at = store_key(table, item->key);
    if (slot->key_at == 0)
        return TABLE_FULL;
    slot->hash = item->hash;
    slot->micros = item->micros;
    slot->events = item->events;
    chain(table, slot);
    table->keys++;
    table->events += item->events;
    return TABLE_OK;
}

enum table_result table_add(struct table *table, const struct table_item *item)
{
    struct slot *slot = find_slot(table, item->key, item->hash);
    int64_t sum;

    assert(!table->draining);
    if (slot->key_at == 0)
        return insert(table, slot, item);
    if (__builtin_add_overflow(slot->micros, item->micros, &sum))
        return TABLE_RANGE;
    if (item->events > 0 && (sum > MICROS_MAX || sum < -MICROS_MAX))
        return TABLE_RANGE;
    slot->micros = sum;
    slot->events += item->events;
    table->events += item->events;
    return TABLE_OK;
}

bool table_pop(struct table *table, uint32_t shard, struct table_item *ret_item)
{
    uint32_t head = table->heads[shard];
    struct slot *slot;

    if (head == 0)
        return false;
    slot = &table->slots[head - 1];
    *ret_item = (struct table_item){
        .key = key_of(table, slot),
        .hash = slot->hash,
        .micros = slot->micros,
        .events = slot->events,
    };
    table->heads[shard] = slot->next;
    table->events -= slot->events;
    table->keys--;
    /* While it drains nothing is looked up, so slots may be freed in any order. */
    memset(slot, 0, sizeof(*slot));
    table->draining = table->keys > 0;
    if (!table->draining)
        clear_arena(table);
    return true;
}

bool table_has(const struct table *table, uint32_t shard)
{
    return table->heads[shard] != 0;
}

size_t table_keys(const struct table *table)
{
    return table->keys;
}

uint64_t table_events(const struct table *table)
{
    return table->events;
}

size_t table_bytes(const struct table *table)
{
    return (table->mask + 1) * sizeof(*table->slots) + table->arena_bytes + sizeof(*table) +
           table->shards * sizeof(table->heads[0]);
}
