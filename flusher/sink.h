/* sink - the seam to where generations go: one transaction per generation, the shard's row locked in it
 *
 * Each function returns 0 or a negative failure (flusher/failure.h) with a text. After begin() returned 0,
 * commit() or rollback() ends the transaction; after a failure of what stands between, only rollback() may.
 */
#ifndef FLUSHER_SINK_H
#define FLUSHER_SINK_H

#include "flusher/source.h"

/* What Postgres knows about a shard, read under its lock. */
struct standing {
    bool in_ledger;               /* the generation asked for */
    bool in_quarantine;           /* it too; also after an operator resolved it */
    struct correction correction; /* in_ledger: what its row says */
    int64_t cumulative_total, cumulative_events;
    bool prev_known; /* the ledger has what the source released last, or that is nothing; and then: */
    int64_t prev_total, prev_events; /* cumulative, with that one */
};

/* The numbers of a ledger row. */
struct entry {
    int64_t keys, total, events;
    int64_t cumulative_total, cumulative_events; /* with this row's */
    struct correction correction;
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

    /* Keeps the generation whole for an operator, in place of record() and apply(). `total`: of its updates.
     */
    int (*quarantine)(void *context, uint32_t shard, const struct generation *generation,
                      const struct updates *updates, int64_t total, struct error *error);

    /* Where the shard stands now; `ret_reset` to be done by the caller. */
    int (*stand)(void *context, uint32_t shard, struct reset *ret_reset, struct error *error);

    /* A commit_outcome, or a failure when it is certain that nothing was committed. */
    int (*commit)(void *context, struct error *error);

    void (*rollback)(void *context);
};

#endif
