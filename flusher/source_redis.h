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

/* What each shard has released last, asked for all at once; "" = nothing. `ret_ids`: as many as shards. */
MUST_CHECK int source_redis_released(struct source_redis *source, char (*ret_ids)[GENERATION_ID_LEN_MAX + 1],
                                     struct error *error);

/* The step resume: the shard goes on from `to`, whose vector is left out, if nothing is pending in it and
 * `prev_id` is what it has released last; else nothing. */
MUST_CHECK int source_redis_resume(struct source_redis *source, uint32_t shard, const char *prev_id,
                                   const struct reset *to, struct error *error);

/* Read-only. */
MUST_CHECK int source_redis_peek(struct source_redis *source, struct span key, struct peek *ret_peek,
                                 struct error *error);
MUST_CHECK int source_redis_state(struct source_redis *source, uint32_t shard, struct shard_state *ret_state,
                                  struct error *error);

/* Removes writers from what a shard remembers of them, for good. */
MUST_CHECK int source_redis_forget(struct source_redis *source, uint32_t shard, const char *const *writers,
                                   size_t writers_len, struct error *error);

/* The sealed set, too, is added up, however large; unless it goes away meanwhile. */
MUST_CHECK int source_redis_holdings(struct source_redis *source, uint32_t shard,
                                     struct shard_holdings *ret_holdings, struct error *error);

#endif
