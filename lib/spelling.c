#include "lib/spelling.h"

#include <stdlib.h>

#define SETS          4096 /* a power of two */
#define WAYS          2
#define SPELLED_BYTES 200 /* key and tags as written, and the canonical key, that an entry has room for */

struct entry {
    uint64_t spelled_hash;
    uint64_t key_hash;
    uint16_t name_len; /* of the key as written, in front of the tags; 0 = free */
    uint16_t tags_len;
    uint16_t key_len;          /* of the canonical key */
    char bytes[SPELLED_BYTES]; /* name, tags, canonical key */
};

struct spelling_cache {
    struct entry entries[SETS][WAYS]; /* the one used last stands first */
    char buf[KEY_LEN_MAX];
};

struct spelling_cache *spelling_cache_new(void)
{
    return calloc(1, sizeof(struct spelling_cache));
}

void spelling_cache_free(struct spelling_cache *cache)
{
    free(cache);
}

static bool is_spelled_so(const struct entry *entry, const struct metric *metric, uint64_t hash)
{
    return entry->spelled_hash == hash && entry->name_len == metric->key.len &&
           entry->tags_len == metric->tags.len &&
           memcmp(entry->bytes, metric->key.ptr, metric->key.len) == 0 &&
           memcmp(entry->bytes + metric->key.len, metric->tags.ptr, metric->tags.len) == 0;
}

static void remember(struct entry *entry, const struct metric *metric, uint64_t hash, struct span key,
                     uint64_t key_hash)
{
    size_t spelled = metric->key.len + metric->tags.len;

    if (spelled + key.len > SPELLED_BYTES)
        return;
    entry[1] = entry[0];
    entry->spelled_hash = hash;
    entry->key_hash = key_hash;
    entry->name_len = (uint16_t)metric->key.len;
    entry->tags_len = (uint16_t)metric->tags.len;
    entry->key_len = (uint16_t)key.len;
    memcpy(entry->bytes, metric->key.ptr, metric->key.len);
    memcpy(entry->bytes + metric->key.len, metric->tags.ptr, metric->tags.len);
    memcpy(entry->bytes + spelled, key.ptr, key.len);
}

enum reject spelling_resolve(struct spelling_cache *cache, const struct metric *metric, struct span *ret_key,
                             uint64_t *ret_hash)
{
    /* Both hashes are needed: tags alone repeat over many keys. */
    uint64_t hash = keyspace_hash(metric->key) * 31 + keyspace_hash(metric->tags);
    struct entry *set = cache->entries[hash % SETS];
    enum reject reject;
    struct span key;
    size_t len;

    for (int way = 0; way < WAYS; way++) {
        struct entry *entry = &set[way];
        if (is_spelled_so(entry, metric, hash)) {
            *ret_key = (struct span){entry->bytes + entry->name_len + entry->tags_len, entry->key_len};
            *ret_hash = entry->key_hash;
            return REJECT_NONE;
        }
    }
    reject = metric_canonical_key(metric, cache->buf, &len);
    if (reject != REJECT_NONE)
        return reject;
    key = (struct span){cache->buf, len};
    *ret_key = key;
    *ret_hash = keyspace_hash(key);
    remember(set, metric, hash, key, *ret_hash);
    return REJECT_NONE;
}
