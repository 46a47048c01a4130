/* catch_up - lets Redis go on from what Postgres has where it went back in time and nothing is pending
 *
 * A flush does so by the generation that it finds. In a shard to which nothing comes any more it finds none,
 * and without this the audit would call that shard late for ever.
 */
#ifndef FLUSHER_CATCH_UP_H
#define FLUSHER_CATCH_UP_H

#include "flusher/postgres.h"
#include "flusher/source_redis.h"

/* To be called after a pass; `idle` has a time for each shard in which it found nothing to flush, 0 for the
 * others. Gives how many shards Redis had gone back in. */
MUST_CHECK int catch_up(struct postgres *postgres, struct source_redis *source, const struct config *config,
                        const int64_t *idle, int64_t *ret_shards, struct error *error);

#endif
