#include "lib/table.h"

#include <assert.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "lib/decimal.h"
#include "lib/member.h"

#define SLOTS_MIN 1024 /* a power of two */

/* A page of the larger kind. */
#define HUGE_BYTES ((size_t)2 << 20)

/* Entries lie in the arena at multiples of 8, so that 32 bits reach 32 GiB. Place 0 is never used: it marks a
 * free slot. The arena grows by chunks, so that nothing is ever copied or moved. */
#define ARENA_UNIT  8
#define CHUNK_BYTES HUGE_BYTES
#define CHUNK_UNITS (CHUNK_BYTES / ARENA_UNIT)

/* OVERFLOW_KEY lies in front of all others and is never taken away, so that it needs no memory to come. */
#define OVERFLOW_AT 1

/* Half of the hash is enough to place an entry, also in a larger index, and to tell it from nearly all
 * others: looking a key up touches one slot and one entry, and growing touches no entry at all. */
struct slot {
    uint32_t hash;
    uint32_t entry_at; /* in units of the arena; 0 = free */
};

struct entry {
    int64_t micros;
    uint64_t
        len_events;  /* the key's length above EVENTS_BITS of events: to add to these is one instruction */
    uint32_t hash;   /* as in its slot */
    int32_t carried; /* not kept of OVERFLOW_KEY, which any number of fractions may come to */
    char key[];
};

#define EVENTS_BITS 55
#define EVENTS_MASK ((UINT64_C(1) << EVENTS_BITS) - 1)

_Static_assert(MEMBER_LEN_MAX <= UINT64_MAX >> EVENTS_BITS, "it fits into its bits");

/* The entries of a shard. Not a chain through them: what is popped next must be known before it is loaded. */
struct list {
    uint32_t *entries_at;
    uint32_t len, room;
};

struct table {
    struct slot *slots;
    size_t mask; /* slots - 1 */
    size_t keys, keys_max;
    uint64_t events;
    char **chunks;
    size_t chunks_len, chunks_room;
    size_t arena_peak; /* the most that was ever used */
    size_t arena_used; /* of all chunks; what is left over at the end of one counts as used */
    uint32_t shards;
    bool draining;
    bool adds;                  /* all members add up */
    uint8_t merges[SHARDS_MAX]; /* enum merge; by shard */
    size_t sweep_step;          /* slots freed with each key that is taken, from the first on; 0 = its own */
    size_t swept;               /* so many have been */
    struct list lists[];        /* by shard */
};

static uint64_t events_of(const struct entry *entry)
{
    return entry->len_events & EVENTS_MASK;
}

static size_t entry_size(size_t key_len)
{
    return (offsetof(struct entry, key) + key_len + ARENA_UNIT - 1) / ARENA_UNIT * ARENA_UNIT;
}

static struct entry *entry_at(const struct table *table, uint32_t at)
{
    return (struct entry *)(table->chunks[at / CHUNK_UNITS] + at % CHUNK_UNITS * ARENA_UNIT);
}

/* The low bits choose the shard. */
static uint32_t slot_hash(uint64_t hash)
{
    return (uint32_t)(hash >> 32);
}

static void write_entry(struct table *table, uint32_t at, struct span key)
{
    struct entry *entry = entry_at(table, at);

    entry->len_events = (uint64_t)key.len << EVENTS_BITS;
    memcpy(entry->key, key.ptr, key.len);
}

static void clear_arena(struct table *table)
{
    if (table->arena_used > table->arena_peak)
        table->arena_peak = table->arena_used;
    table->arena_used = OVERFLOW_AT * ARENA_UNIT + entry_size(strlen(OVERFLOW_KEY));
}

/* Zeroed pages. `huge` asks for large ones: what is read here and there in more memory than the processor
 * caches else waits as long for the translation of its address as for the memory itself. */
static void *map_pages(size_t bytes, bool huge)
{
    size_t extra = huge ? HUGE_BYTES : 0, lead;
    char *at = mmap(NULL, bytes + extra, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (at == MAP_FAILED)
        return NULL;
    if (!huge)
        return at;
    lead = -(uintptr_t)at % HUGE_BYTES;
    if (lead > 0)
        munmap(at, lead);
    munmap(at + lead + bytes, extra - lead);
    (void)madvise(at + lead, bytes, MADV_HUGEPAGE);
    return at + lead;
}

static struct slot *new_slots(size_t count)
{
    size_t bytes = count * sizeof(struct slot);

    return map_pages(bytes, bytes >= HUGE_BYTES);
}

static void free_slots_of(struct slot *slots, size_t count)
{
    if (slots)
        munmap(slots, count * sizeof(*slots));
}

/* The first chunk is of ordinary pages: most tables never need more than a few of them. */
static bool add_chunk(struct table *table)
{
    if (table->chunks_len == table->chunks_room) {
        size_t room = table->chunks_room * 2 + 8;
        char **chunks = realloc(table->chunks, room * sizeof(*chunks));
        if (!chunks)
            return false;
        table->chunks = chunks;
        table->chunks_room = room;
    }
    table->chunks[table->chunks_len] = map_pages(CHUNK_BYTES, table->chunks_len > 0);
    if (!table->chunks[table->chunks_len])
        return false;
    table->chunks_len++;
    return true;
}

/* Makes sure that so many more fit. */
static bool make_room(struct list *list, uint32_t more)
{
    uint32_t room = list->room > 0 ? list->room * 2 : 8;
    uint32_t *entries_at;

    if (list->room - list->len >= more)
        return true;
    entries_at = realloc(list->entries_at, room * sizeof(*entries_at));
    if (!entries_at)
        return false;
    list->entries_at = entries_at;
    list->room = room;
    return true;
}

struct table *table_new(uint32_t shards, size_t keys_max)
{
    struct table *table = calloc(1, sizeof(*table) + shards * sizeof(table->lists[0]));

    if (!table)
        return NULL;
    table->shards = shards;
    table->keys_max = keys_max;
    table->adds = true;
    table->mask = SLOTS_MIN - 1;
    table->slots = new_slots(SLOTS_MIN);
    if (!table->slots || !add_chunk(table))
        goto fail;
    for (uint32_t i = 0; i < shards; i++)
        if (!make_room(&table->lists[i], 1))
            goto fail;
    write_entry(table, OVERFLOW_AT, span_of(OVERFLOW_KEY));
    clear_arena(table);
    return table;
fail:
    table_free(table);
    return NULL;
}

void table_free(struct table *table)
{
    if (!table)
        return;
    for (size_t i = 0; i < table->chunks_len; i++)
        munmap(table->chunks[i], CHUNK_BYTES);
    for (uint32_t i = 0; i < table->shards; i++)
        free(table->lists[i].entries_at);
    free(table->chunks);
    free_slots_of(table->slots, table->mask + 1);
    free(table);
}

void table_set_merges(struct table *table, const enum merge *of_lanes, uint32_t lanes)
{
    assert(table->keys == 0);
    table->adds = true;
    for (uint32_t shard = 0; shard < table->shards; shard++) {
        table->merges[shard] = (uint8_t)of_lanes[shard / (table->shards / lanes)];
        table->adds &= table->merges[shard] == MERGE_ADD;
    }
}

void table_copy_merges(struct table *table, const struct table *from)
{
    assert(table->shards == from->shards);
    table->adds = from->adds;
    memcpy(table->merges, from->merges, sizeof(table->merges));
}

enum merge table_merge(const struct table *table, uint64_t hash)
{
    return table->adds ? MERGE_ADD : (enum merge)table->merges[keyspace_shard(hash, table->shards)];
}

void table_set_keys_max(struct table *table, size_t keys_max)
{
    table->keys_max = keys_max;
}

static struct span key_of(const struct entry *entry)
{
    return (struct span){entry->key, entry->len_events >> EVENTS_BITS};
}

static uint64_t load_word(const char *at)
{
    uint64_t word;

    memcpy(&word, at, sizeof(word));
    return word;
}

/* As memcmp() would tell, but without a call for what is usually two or three words. */
static inline bool is_key_of(const struct entry *entry, struct span key)
{
    size_t word = sizeof(uint64_t), at = 0;

    if (entry->len_events >> EVENTS_BITS != key.len)
        return false;
    if (key.len < word)
        return memcmp(entry->key, key.ptr, key.len) == 0;
    for (; at + word < key.len; at += word)
        if (load_word(entry->key + at) != load_word(key.ptr + at))
            return false;
    /* The last word overlaps with the one before, unless the length is a multiple. */
    return load_word(entry->key + key.len - word) == load_word(key.ptr + key.len - word);
}

/* The slot that holds the key, or the free one where it belongs. */
static inline struct slot *find_slot(const struct table *table, struct span key, uint64_t hash)
{
    size_t i = slot_hash(hash) & table->mask;

    for (;;) {
        struct slot *slot = &table->slots[i];
        if (slot->entry_at == 0 ||
            (slot->hash == slot_hash(hash) && is_key_of(entry_at(table, slot->entry_at), key)))
            return slot;
        i = (i + 1) & table->mask;
    }
}

static bool grow_slots(struct table *table)
{
    size_t mask = table->mask * 2 + 1;
    struct slot *old = table->slots, *slots;

    if (mask >= UINT32_MAX)
        return false;
    slots = new_slots(mask + 1);
    if (!slots)
        return false;
    for (size_t i = 0; i <= table->mask; i++) {
        size_t at = old[i].hash & mask;
        if (old[i].entry_at == 0)
            continue;
        while (slots[at].entry_at != 0)
            at = (at + 1) & mask;
        slots[at] = old[i];
    }
    free_slots_of(old, table->mask + 1);
    table->slots = slots;
    table->mask = mask;
    return true;
}

/* Room for an entry of the key in the arena; 0 when there is none. */
static uint32_t new_entry(struct table *table, struct span key)
{
    size_t size = entry_size(key.len), at = table->arena_used;

    /* None lies across the end of a chunk. */
    if (at % CHUNK_BYTES + size > CHUNK_BYTES)
        at = (at + CHUNK_BYTES - 1) / CHUNK_BYTES * CHUNK_BYTES;
    if ((at + size) / ARENA_UNIT > UINT32_MAX || (at / CHUNK_BYTES == table->chunks_len && !add_chunk(table)))
        return 0;
    write_entry(table, (uint32_t)(at / ARENA_UNIT), key);
    table->arena_used = at + size;
    return (uint32_t)(at / ARENA_UNIT);
}

/* Apart, so that adding to a key that is there already stays short. */
static __attribute__((noinline)) enum table_result insert(struct table *table, struct slot *slot,
                                                          const struct table_item *item)
{
    /* Beyond one half too many keys are not where they belong: no jump that the processor can predict.
     * Without memory to grow it fills up; one slot is OVERFLOW_KEY's, and find_slot() needs a free one to end
     * at. */
    bool crowded = (table->keys + 1) * 2 > table->mask + 1;
    bool overflow = span_is(item->key, OVERFLOW_KEY);
    struct list *list = &table->lists[keyspace_shard(item->hash, table->shards)];
    struct entry *entry;
    uint32_t at;

    if (!overflow && table->keys >= table->keys_max)
        return TABLE_FULL;
    if (crowded && grow_slots(table))
        slot = find_slot(table, item->key, item->hash);
    if (table->keys + !overflow >= table->mask)
        return TABLE_FULL;
    /* Each list always keeps a place for OVERFLOW_KEY. */
    if (!overflow && !make_room(list, 2))
        return TABLE_FULL;
    at = overflow ? OVERFLOW_AT : new_entry(table, item->key);
    if (at == 0)
        return TABLE_FULL;
    entry = entry_at(table, at);
    entry->micros = item->micros;
    entry->len_events = ((uint64_t)item->key.len << EVENTS_BITS) + item->events;
    entry->carried = 0;
    entry->hash = slot_hash(item->hash);
    list->entries_at[list->len++] = at;
    *slot = (struct slot){slot_hash(item->hash), at};
    table->keys++;
    return TABLE_OK;
}

static bool in_range(int64_t micros)
{
    return (uint64_t)micros + MICROS_MAX <= 2 * (uint64_t)MICROS_MAX;
}

/* All but the sum of the events. */
static inline enum table_result add(struct table *table, const struct table_item *item)
{
    struct slot *slot = find_slot(table, item->key, item->hash);
    enum merge merge = table_merge(table, item->hash);
    struct entry *entry;
    int64_t sum;

    if (slot->entry_at == 0)
        return insert(table, slot, item);
    entry = entry_at(table, slot->entry_at);
    if (__builtin_expect(merge != MERGE_ADD, false))
        sum = merge_extreme(merge, entry->micros, item->micros);
    else if (__builtin_add_overflow(entry->micros, item->micros, &sum) || !in_range(sum))
        return TABLE_RANGE;
    entry->micros = sum;
    entry->len_events += item->events;
    return TABLE_OK;
}

enum table_result table_add(struct table *table, const struct table_item *item)
{
    enum table_result result;

    assert(!table->draining);
    result = add(table, item);
    if (result == TABLE_OK)
        table->events += item->events;
    return result;
}

enum table_result table_carry(struct table *table, uint32_t shard, struct span key, int64_t micros)
{
    struct table_item item = {.key = key, .hash = member_hash_of(key, shard, table->shards)};
    struct slot *slot;
    struct entry *entry;

    assert(!table->draining);
    slot = find_slot(table, key, item.hash);
    if (slot->entry_at == 0) {
        enum table_result result = insert(table, slot, &item);
        if (result != TABLE_OK)
            return result;
        slot = find_slot(table, key, item.hash);
    }
    entry = entry_at(table, slot->entry_at);
    entry->micros += micros;
    if (!span_is(key, OVERFLOW_KEY))
        entry->carried += (int32_t)micros;
    return TABLE_OK;
}

void table_prefetch(const struct table *table, uint64_t hash)
{
    __builtin_prefetch(&table->slots[slot_hash(hash) & table->mask], 1);
}

/* So many items ahead of its turn an entry is loaded. */
#define ADDS_AHEAD 16

/* Of the slot where the key belongs: usually the right one, or the beginning of a short walk. */
static void prefetch_entry(const struct table *table, uint64_t hash)
{
    const char *entry = (const char *)entry_at(table, table->slots[slot_hash(hash) & table->mask].entry_at);

    __builtin_prefetch(entry, 1);
}

size_t table_add_all(struct table *table, const struct table_item *items, size_t len,
                     enum table_result *ret_result)
{
    uint64_t events = 0;
    size_t done;

    assert(!table->draining);
    *ret_result = TABLE_OK;
    for (size_t i = 0; i < len && i < ADDS_AHEAD; i++)
        prefetch_entry(table, items[i].hash);
    for (done = 0; done < len; done++) {
        if (done + ADDS_AHEAD < len)
            prefetch_entry(table, items[done + ADDS_AHEAD].hash);
        *ret_result = add(table, &items[done]);
        if (*ret_result != TABLE_OK)
            break;
        events += items[done].events;
    }
    table->events += events;
    return done;
}

/* While a table drains nothing is looked up, so its slots may be freed in any order. Where keys lie close,
 * the index is swept from one end to the other: to look for each key's own would cost a cache miss. */
#define SWEEP_STEP_MAX 16

static void start_drain(struct table *table)
{
    size_t step = table->mask / table->keys + 1;

    table->draining = true;
    table->sweep_step = step <= SWEEP_STEP_MAX ? step : 0;
    table->swept = 0;
}

static void sweep(struct table *table)
{
    size_t left = table->mask + 1 - table->swept;
    size_t count = left < table->sweep_step ? left : table->sweep_step;

    memset(&table->slots[table->swept], 0, count * sizeof(*table->slots));
    table->swept += count;
}

/* From where the key belongs up to the next free one, its own among them. Others' may be too: they find
 * theirs free or at the end of such a row. */
static void free_row(struct table *table, uint32_t hash)
{
    for (size_t i = hash & table->mask; table->slots[i].entry_at != 0; i = (i + 1) & table->mask)
        table->slots[i].entry_at = 0;
}

/* How many pops ahead an entry is loaded, and its slot once the entry is there. */
#define ENTRIES_AHEAD 16
#define SLOTS_AHEAD   8

static void prefetch_pops(const struct table *table, const struct list *list)
{
    if (list->len > ENTRIES_AHEAD)
        __builtin_prefetch(entry_at(table, list->entries_at[list->len - 1 - ENTRIES_AHEAD]));
    if (table->sweep_step == 0 && list->len > SLOTS_AHEAD) {
        const struct entry *entry = entry_at(table, list->entries_at[list->len - 1 - SLOTS_AHEAD]);
        __builtin_prefetch(&table->slots[entry->hash & table->mask], 1);
    }
}

bool table_pop(struct table *table, uint32_t shard, struct table_item *ret_item)
{
    struct list *list = &table->lists[shard];
    const struct entry *entry;

    if (list->len == 0)
        return false;
    if (!table->draining)
        start_drain(table);
    prefetch_pops(table, list);
    entry = entry_at(table, list->entries_at[--list->len]);
    *ret_item = (struct table_item){
        .key = key_of(entry),
        .micros = entry->micros,
        .events = events_of(entry),
        .carried = entry->carried,
    };
    if (table->sweep_step > 0)
        sweep(table);
    else
        free_row(table, entry->hash);
    table->events -= events_of(entry);
    table->keys--;
    if (table->keys == 0) {
        table->draining = false;
        clear_arena(table);
    }
    return true;
}

void table_clear(struct table *table)
{
    struct table_item item;

    for (uint32_t shard = 0; shard < table->shards; shard++)
        while (table_pop(table, shard, &item))
            ;
}

bool table_has(const struct table *table, uint32_t shard)
{
    return table->lists[shard].len > 0;
}

size_t table_keys(const struct table *table)
{
    return table->keys;
}

uint32_t table_shards(const struct table *table)
{
    return table->shards;
}

size_t table_keys_max(const struct table *table)
{
    return table->keys_max;
}

uint64_t table_events(const struct table *table)
{
    return table->events;
}

size_t table_bytes(const struct table *table)
{
    size_t chunks = table->chunks_len * CHUNK_BYTES, lists = 0;

    /* A single chunk is of ordinary pages, of which only those count that have been used. */
    if (table->chunks_len == 1)
        chunks = table->arena_used > table->arena_peak ? table->arena_used : table->arena_peak;
    for (uint32_t i = 0; i < table->shards; i++)
        lists += sizeof(table->lists[i]) + table->lists[i].room * sizeof(uint32_t);
    return (table->mask + 1) * sizeof(*table->slots) + chunks + sizeof(*table) + lists;
}
