/* apply - ordered updates into the tables of their targets, within a transaction that somebody else began
 *
 * Key by key all or nothing: its row and its rollups. What Postgres refuses is found by halving, each part in
 * a savepoint of its own, so that the rest goes in; it is told, and is the caller's to keep. Each part goes
 * through its rows in the order of their keys. Flushers that overlap hold different shards and so different
 * keys; where these may mean the same rows (targets_share_rows), they take turns. Others who update the same
 * rows in another order may meet us in a circle: so the wait for a row is shorter than Postgres's
 * deadlock_timeout, and it is us who give up, by FAILURE_COLLISION. Not thread-safe.
 */
#ifndef FLUSHER_APPLY_H
#define FLUSHER_APPLY_H

#include "flusher/plan.h"
#include "flusher/shares.h"

enum reason {
    REASON_NO_TARGET,
    REASON_MISSING, /* the row is not there */
    REASON_TYPE,    /* the key's part is no value of the column's type */
    REASON_RANGE,
    REASON_CHECK, /* also: no partition */
    REASON_FOREIGN_KEY,
    REASON_NOT_NULL,
    REASON_UNIQUE,
    REASON_REFUSED, /* something else, by a trigger say */
};

const char *reason_name(enum reason reason);

/* False when there is none of that name. */
bool reason_parse(const char *name, enum reason *ret_reason);

/* A key that was not applied. */
struct refusal {
    struct share share;
    enum reason reason;
    bool dropped; /* as the target says of keys without a row; else to be parked */
    char *detail; /* what Postgres said; NULL = nothing */
};

/* Where updates are from, by their number `cargo`. */
struct origin {
    uint32_t shard;
    const char *gen; /* borrowed */
    int64_t opened_ms, seen_ms;
    struct tally tally; /* filled in */
};

struct applier;

/* Borrows both. */
MUST_CHECK int applier_new(struct postgres *postgres, const struct plan *plan, struct applier **ret_applier,
                           struct error *error);
void applier_free(struct applier *applier);

/* After a failure only a rollback may follow. */
MUST_CHECK int applier_apply(struct applier *applier, const struct updates *updates, struct origin *origins,
                             size_t origins_len, struct error *error);

/* Those of the last call; borrowed until the next. */
const struct refusal *applier_refusals(const struct applier *applier, size_t *ret_len);

/* The table of a refusal's target as the configuration has it; "" = no target. */
const char *applier_table(const struct applier *applier, const struct refusal *refusal);

#endif
