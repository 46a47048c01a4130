#include "lib/keyspace.h"

#include <inttypes.h>
#include <stdio.h>

/* Keys are short: a call into the library, through the PLT and by the size of the input, costs as much as the
 * hash. The bits are the same. */
#define XXH_INLINE_ALL
#include <xxhash.h>

static const char *const suffixes[SHARD_KEY_COUNT] = {
    [SHARD_KEY_OPEN] = "open",
    [SHARD_KEY_SEALED] = "sealed",
    [SHARD_KEY_META] = "meta",
    [SHARD_KEY_WRITERS] = "writers",
    [SHARD_KEY_DURABLE] = "durable",
    [SHARD_KEY_OPEN_SEQS] = "open_seqs",
    [SHARD_KEY_SEALED_SEQS] = "sealed_seqs",
};

uint64_t keyspace_hash(struct span key)
{
    return XXH3_64bits(key.ptr, key.len);
}

void keyspace_digest(char ret_digest[DIGEST_LEN + 1], struct span bytes)
{
    XXH128_hash_t hash = XXH3_128bits(bytes.ptr, bytes.len);

    snprintf(ret_digest, DIGEST_LEN + 1, "%016" PRIx64 "%016" PRIx64, hash.high64, hash.low64);
}

void keyspace_token_key(char ret_name[MARKER_BYTES], const char *namespace, uint32_t shard, const char *token)
{
    snprintf(ret_name, MARKER_BYTES, "{%s:%u}:token:%s", namespace, shard, token);
}

void keyspace_once_key(char ret_name[MARKER_BYTES], const char *namespace, uint32_t shard, const char *writer)
{
    snprintf(ret_name, MARKER_BYTES, "{%s:%u}:%s", namespace, shard, writer);
}

void keyspace_shard_keys(struct shard_keys *ret_keys, const char *namespace, uint32_t shard)
{
    for (int i = 0; i < SHARD_KEY_COUNT; i++)
        snprintf(ret_keys->name[i], REDIS_KEY_BYTES, "{%s:%u}:%s", namespace, shard, suffixes[i]);
}

void keyspace_shards_key(char ret_name[REDIS_KEY_BYTES], const char *namespace)
{
    snprintf(ret_name, REDIS_KEY_BYTES, "{%s}:shards", namespace);
}
