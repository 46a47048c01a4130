/* resume - shards of a Redis that went back in time, and in which nothing is pending, go on from where
 * Postgres is
 *
 * A shard in which something is pending learns it when that is flushed (flusher/flush.h). One that is idle
 * would stay behind, and be told as late, until somebody counts in it again, or for ever.
 */
#ifndef FLUSHER_RESUME_H
#define FLUSHER_RESUME_H

#include "flusher/postgres.h"
#include "flusher/source_redis.h"

/* Not where Postgres lacks what Redis released: then it is Postgres that has lost something, which is for the
 * audit to tell. */
MUST_CHECK int resume_idle(struct postgres *postgres, struct source_redis *source,
                           const struct config *config, struct error *error);

#endif
