/* sink - the seam to where generations go: one transaction per generation, the shard's row locked in it
 *
 * Each function returns 0 or a negative failure (flusher/failure.h) with a text. After begin() returned 0,
 * commit() or rollback() ends the transaction; after a failure of record() or apply(), only rollback() may.
 */
#ifndef FLUSHER_SINK_H
#define FLUSHER_SINK_H

#include "flusher/source.h"

/* What Postgres knows about a shard, read under its lock. */
struct standing {
    bool in_ledger; /* the generation asked for */
    int64_t cumulative_total, cumulative_events;
};

/* The numbers of a ledger row. */
struct entry {
    int64_t keys, total, events;
    int64_t cumulative_total, cumulative_events; /* with this row's */
};

enum commit_outcome {
    COMMIT_DONE,
    COMMIT_UNKNOWN, /* sent, and no answer came: only the ledger can tell */
};

struct sink {
    void *context;

    /* Begins a transaction and locks the shard's row, connecting first where there is no connection. Fills
     * `vector` with what each of the generation's writers has applied, in their order; 0 = nothing. */
    int (*begin)(void *context, uint32_t shard, const struct generation *generation,
                 struct standing *ret_standing, int64_t *vector, struct error *error);

    /* The ledger row, and the shard's row moved on to it. */
    int (*record)(void *context, uint32_t shard, const struct generation *generation,
                  const struct entry *entry, struct error *error);

    /* The vector moved to the generation's batches, and the updates, in order. A delta of zero makes a row
     * too: the key was seen. */
    int (*apply)(void *context, uint32_t shard, const struct generation *generation,
                 const struct updates *updates, struct error *error);

    /* A commit_outcome, or a failure when it is certain that nothing was committed. */
    int (*commit)(void *context, struct error *error);

    void (*rollback)(void *context);
};

#endif
