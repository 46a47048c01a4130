/* records - what the flusher keeps and looks up in Postgres beside the flush itself
 *
 * Namespaces, freshness, runs, and the numbers behind `get` and `status`. All in the schema counterd.
 */
#ifndef FLUSHER_RECORDS_H
#define FLUSHER_RECORDS_H

#include "flusher/pending.h"
#include "flusher/plan.h"

/* Compares the number of shards with the one on record; FAILURE_CONFIG when they differ. Where none is, it
 * and the shards' rows are made if `record`. */
MUST_CHECK int records_check_shards(struct postgres *postgres, const struct config *config, bool record,
                                    struct error *error);

struct run_record {
    int64_t started_ms, finished_ms;
    int64_t shards; /* flushed without a failure */
    int64_t keys, total, events;
    int64_t parked, dropped; /* keys of those */
    int64_t quarantined;     /* generations */
    const char *failure;     /* NULL = none */
};

/* The run, and for each shard with fresh_ms[shard] > 0 that it is fresh until then. Who listens to the
 * channel counterd_flushed is told: {"namespace", "run", "keys", "increments", "fresh_until"},
 * docs/reading.md. */
MUST_CHECK int records_finish_run(struct postgres *postgres, const struct config *config,
                                  const struct run_record *run, const int64_t *fresh_ms, struct error *error);

/* The key's row in its target's table and its shard's newest generation, in one snapshot; what is parked of
 * it, in a later one. */
MUST_CHECK int records_stored(struct postgres *postgres, const struct config *config, const struct plan *plan,
                              const char *key, struct stored *ret_stored, struct error *error);

/* Fills one struct per state: what the ledger has of its generations. */
MUST_CHECK int records_ledger(struct postgres *postgres, const struct config *config,
                              const struct shard_state *states, struct shard_ledger *ret_ledger,
                              struct error *error);

#define RUN_ERROR_BYTES 1024
#define PARKED_ROWS_MAX 100000 /* they are counted again and again */

struct history {
    int64_t fresh_ms;   /* unix time; 0 = not known */
    int64_t applied_ms; /* when a generation was last applied; 0 = never */
    bool has_run;       /* and if so the last one: */
    int64_t started_ms, finished_ms;
    int64_t keys, total;
    int64_t parked_rows;           /* of counterd.parked; counting them ends at PARKED_ROWS_MAX */
    int64_t parked;                /* the sum of what they hold */
    int64_t dropped;               /* of all that was ever dropped */
    char failure[RUN_ERROR_BYTES]; /* "" = none */
};

MUST_CHECK int records_history(struct postgres *postgres, const struct config *config,
                               struct history *ret_history, struct error *error);

#endif
