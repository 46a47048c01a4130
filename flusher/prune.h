/* prune - forgets what nobody can ask for any more: requests with an Idempotency-Key, old rows of the ledger
 * and of runs
 *
 * A request's row in counterd.writers has to outlive its marker in Redis by as far as Redis may go back in
 * time, or what comes back by that counts twice (tests/model, TOKEN_ROW_PRUNED). In Redis such a request has
 * a marker, which goes by itself, and after a reset entries in `writers` and `durable`, which go with the
 * row.
 */
#ifndef FLUSHER_PRUNE_H
#define FLUSHER_PRUNE_H

#include "flusher/postgres.h"
#include "flusher/source_redis.h"

/* In pieces, each a statement of its own, for about a second at most; what is left then is for the next run.
 * To be called when all shards were flushed, so that nothing of what is pruned is still on its way. */
MUST_CHECK int prune_requests(struct postgres *postgres, struct source_redis *source,
                              const struct config *config, struct error *error);

/* Rows of counterd.ledger and counterd.runs that are older than flush.keep_days, in the same manner. The
 * newest row of each shard stays, however old, and the one before it, by which Redis goes until it has
 * released the newest; and so do the two that were the newest keep_days ago, because Redis may go back to
 * there. */
MUST_CHECK int prune_books(struct postgres *postgres, const struct config *config, struct error *error);

#endif
