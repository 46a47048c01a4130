/* prune - forgets requests with an Idempotency-Key that can't come any more: their rows in counterd.writers
 *
 * A row has to outlive its marker in Redis by as far as Redis may go back in time, or what comes back by that
 * counts twice (tests/model, TOKEN_ROW_PRUNED). In Redis such a request has a marker, which goes by itself,
 * and after a reset entries in `writers` and `durable`, which go with the row.
 */
#ifndef FLUSHER_PRUNE_H
#define FLUSHER_PRUNE_H

#include "flusher/postgres.h"
#include "flusher/source_redis.h"

/* In pieces, each a statement of its own, for about a second at most; what is left then is for the next run.
 * To be called when all shards were flushed, so that nothing of what is pruned is still on its way. */
MUST_CHECK int prune_requests(struct postgres *postgres, struct source_redis *source,
                              const struct config *config, struct error *error);

#endif
