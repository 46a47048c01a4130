/* source_redis - the shards in one Redis server, by the scripts in lib/scripts
 *
 * Connects when first used, and again after a connection was lost; every wait is bounded by redis.timeout_ms.
 * Replies are taken strictly: what is not what a script promises is a failure, never guessed at. Failures are
 * those of flusher/failure.h. Not thread-safe; each job has its own.
 */
#ifndef FLUSHER_SOURCE_REDIS_H
#define FLUSHER_SOURCE_REDIS_H

#include "flusher/audit.h"
#include "flusher/pending.h"
#include "flusher/source.h"
#include "lib/config.h"

struct source_redis;

/* Borrows `config`. */
MUST_CHECK int source_redis_new(const struct config *config, struct source_redis **ret_source,
                                struct error *error);
void source_redis_free(struct source_redis *source);

/* The seam; its context is the source, so it lives as long. */
struct source source_redis_seam(struct source_redis *source);

/* Compares the number of shards with the one on record; FAILURE_CONFIG when they differ. Where none is, it is
 * recorded if `record`. */
MUST_CHECK int source_redis_check_shards(struct source_redis *source, bool record, struct error *error);

/* Read-only. */
MUST_CHECK int source_redis_peek(struct source_redis *source, struct span key, struct peek *ret_peek,
                                 struct error *error);
MUST_CHECK int source_redis_state(struct source_redis *source, uint32_t shard, struct shard_state *ret_state,
                                  struct error *error);

/* Removes writers from what a shard remembers of them, for good. */
MUST_CHECK int source_redis_forget(struct source_redis *source, uint32_t shard, const char *const *writers,
                                   size_t writers_len, struct error *error);

/* Lets the shard go on from `head_id`, with which the ledger is `ahead` of what `seen` says was released
 * last; not done if the shard holds anything, or is not as it was seen any more. */
MUST_CHECK int source_redis_catch_up(struct source_redis *source, uint32_t shard,
                                     const struct shard_state *seen, const char *head_id,
                                     const struct correction *ahead, bool *ret_done, struct error *error);

/* The sealed set, too, is added up, however large; unless it goes away meanwhile. */
MUST_CHECK int source_redis_holdings(struct source_redis *source, uint32_t shard,
                                     struct shard_holdings *ret_holdings, struct error *error);

#endif
