/* sink - the seam to where generations go: one transaction for each, its shard's row locked in it
 *
 * Small generations of several shards may share a transaction: what holds for one holds for each of them.
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

/* What a generation is, by what the sink knows. */
enum verdict {
    VERDICT_APPLIED, /* all of it is in the sink already */
    VERDICT_FRESH,   /* none of it is, and it follows what is there without a hole */
    VERDICT_MIXED,   /* neither: the source went back in time, or lost what it held; into quarantine */
};

/* A generation on its way from source to sink. */
struct cargo {
    uint32_t shard;
    struct generation generation;
    struct standing standing; /* filled by begin() */
    int64_t *vector;          /* the same, as long as generation.batches; owned */
    int64_t keys, total;      /* what it holds */
    enum verdict verdict;
    struct entry entry;           /* of what this flusher applied */
    struct tally tally;           /* what became of it, as far as it is not in counterd.counters */
    bool quarantined;             /* by this flusher */
    struct correction correction; /* for its release */
    struct reset reset;           /* VERDICT_MIXED, unless it was set aside; owned */
};

enum commit_outcome {
    COMMIT_DONE,
    COMMIT_UNKNOWN, /* sent, and no answer came: only the ledger can tell */
};

struct sink {
    void *context;

    /* What the updates need that can't be made inside of a transaction; before the first begin(). */
    int (*prepare)(void *context, const struct cargo *cargo, const struct updates *updates,
                   struct error *error);

    /* Begins a transaction and locks the rows of the cargo's shards (ascending, each once), connecting first
     * where there is no connection. Fills in each one's standing, and its vector with what each of the
     * generation's writers has applied, in their order; 0 = nothing. */
    int (*begin)(void *context, struct cargo *cargo, size_t cargo_len, struct error *error);

    /* The ledger rows, and the shards' rows moved on to them. */
    int (*record)(void *context, const struct cargo *cargo, size_t cargo_len, struct error *error);

    /* The vectors moved to the generations' batches, and the updates of all of them, in order. A delta of
     * zero makes a row too: the key was seen. What the tables do not take is parked or dropped, which is told
     * in each one's tally. */
    int (*apply)(void *context, struct cargo *cargo, size_t cargo_len, const struct updates *updates,
                 struct error *error);

    /* Keeps the generation whole for an operator, in place of record() and apply(). It is alone in the
     * transaction, so the updates are all its own. */
    int (*quarantine)(void *context, const struct cargo *cargo, const struct updates *updates,
                      struct error *error);

    /* Where the shard stands now; `ret_reset` to be done by the caller. */
    int (*stand)(void *context, uint32_t shard, struct reset *ret_reset, struct error *error);

    /* A commit_outcome, or a failure when it is certain that nothing was committed. */
    int (*commit)(void *context, struct error *error);

    void (*rollback)(void *context);
};

#endif
