/* sink - the seam to where generations go: one transaction for each, its shard's row locked in it
 *
 * Small generations of several shards may share a transaction: what holds for one holds for each of them.
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

/* A generation on its way from source to sink. */
struct cargo {
    uint32_t shard;
    struct generation generation;
    struct standing standing; /* filled by begin() */
    int64_t *vector;          /* the same, as long as generation.batches; owned */
    struct entry entry;
};

enum commit_outcome {
    COMMIT_DONE,
    COMMIT_UNKNOWN, /* sent, and no answer came: only the ledger can tell */
};

struct sink {
    void *context;

    /* Begins a transaction and locks the rows of the cargo's shards (ascending, each once), connecting first
     * where there is no connection. Fills in each one's standing, and its vector with what each of the
     * generation's writers has applied, in their order; 0 = nothing. */
    int (*begin)(void *context, struct cargo *cargo, size_t cargo_len, struct error *error);

    /* The ledger rows, and the shards' rows moved on to them. */
    int (*record)(void *context, const struct cargo *cargo, size_t cargo_len, struct error *error);

    /* The vectors moved to the generations' batches, and the updates (ordered, no zeros) of all of them. */
    int (*apply)(void *context, const struct cargo *cargo, size_t cargo_len, const struct updates *updates,
                 struct error *error);

    /* A commit_outcome, or a failure when it is certain that nothing was committed. */
    int (*commit)(void *context, struct error *error);

    void (*rollback)(void *context);
};

#endif
