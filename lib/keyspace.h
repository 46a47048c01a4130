/* keyspace - where things are in Redis: which shard a key belongs to, what its keys are called, and the
 * scripts
 *
 * Nothing else in the tree spells a Redis key. All keys of a shard carry one hash tag, so that a shard lives
 * on one Cluster node and a script may touch all of them. Pure: no connection, no allocation.
 */
#ifndef LIB_KEYSPACE_H
#define LIB_KEYSPACE_H

#include "lib/util.h"

#define NAMESPACE_LEN_MAX 64
#define SHARDS_MAX        1024 /* of all lanes together */

/* A key with its tags, in bytes; so also a Redis member without its bucket. */
#define KEY_LEN_MAX 255

/* Whole numbers up to here are exact in a sorted set's double. */
#define SCORE_MAX (INT64_C(1) << 53)

/* Counts what has no place of its own when `keys_max` is reached. */
#define OVERFLOW_KEY "counterd.overflow"

/* XXH3, 64 bits, of the key's bytes; fixes the key's shard for good. */
uint64_t keyspace_hash(struct span key);

static inline uint32_t keyspace_shard(uint64_t hash, uint32_t shards)
{
    return (uint32_t)(hash % shards);
}

/* Every script gets all keys of its shard, in this order. */
enum shard_key {
    SHARD_KEY_OPEN,        /* sorted set: what has come since the last seal */
    SHARD_KEY_SEALED,      /* sorted set: the generation being flushed */
    SHARD_KEY_META,        /* hash: ids, times, running totals */
    SHARD_KEY_WRITERS,     /* hash: writer -> last seq appended */
    SHARD_KEY_DURABLE,     /* hash: writer -> last seq known to be in Postgres */
    SHARD_KEY_OPEN_SEQS,   /* hash: writer -> "lo-hi" contained in open */
    SHARD_KEY_SEALED_SEQS, /* hash: writer -> "lo-hi" contained in sealed */
    SHARD_KEY_COUNT
};

#define REDIS_KEY_BYTES (NAMESPACE_LEN_MAX + 32)

struct shard_keys {
    char name[SHARD_KEY_COUNT][REDIS_KEY_BYTES]; /* NUL-terminated */
};

/* A client's token (Idempotency-Key), in bytes. */
#define TOKEN_LEN_MAX 64

/* 128 bits of XXH3, as hex digits. */
#define DIGEST_LEN 32

void keyspace_digest(char ret_digest[DIGEST_LEN + 1], struct span bytes);

/* The writer of what came with a token: this, then a digest; no worker's id begins so. The scripts and the
 * flusher's SQL know it too. */
#define TOKEN_WRITER     "once:"
#define TOKEN_WRITER_LEN (sizeof(TOKEN_WRITER) - 1 + DIGEST_LEN)

#define MARKER_BYTES (REDIS_KEY_BYTES + TOKEN_LEN_MAX)

/* The string keys with a TTL by which a token is applied once: "{namespace:shard}:token:TOKEN" in the token's
 * home shard, and "{namespace:shard}:WRITER" in the other shards that it has increments for. */
void keyspace_token_key(char ret_name[MARKER_BYTES], const char *namespace, uint32_t shard,
                        const char *token);
void keyspace_once_key(char ret_name[MARKER_BYTES], const char *namespace, uint32_t shard,
                       const char *writer);

/* Fills in the names "{namespace:shard}:open" and so on. */
void keyspace_shard_keys(struct shard_keys *ret_keys, const char *namespace, uint32_t shard);

/* The string key that records how many shards the namespace has: "{namespace}:shards". */
void keyspace_shards_key(char ret_name[REDIS_KEY_BYTES], const char *namespace);

/* The scripts, embedded by the build from lib/scripts; each file's first lines say arguments and reply. */
enum script_id {
    SCRIPT_APPEND,
    SCRIPT_SEAL,
    SCRIPT_RELEASE,
    SCRIPT_RESET,
    SCRIPT_PEEK,
    SCRIPT_STATE,
    SCRIPT_AUDIT,
    SCRIPT_PROBE,
    SCRIPT_LARGEST,
    SCRIPT_MEMORY,
    SCRIPT_LOOK,
    SCRIPT_CATCH_UP,
    SCRIPT_COUNT
};

struct script {
    const char *name;
    const char *sha1; /* 40 hex digits, what EVALSHA takes */
    const char *text;
};

extern const struct script scripts[SCRIPT_COUNT];

#endif
