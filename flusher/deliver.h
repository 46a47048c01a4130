/* deliver - updates into their targets, with all the books that go along: what is refused is parked, and the
 * shards' rows say how much of their totals is where
 *
 * Within a transaction that holds the locks of the shards' rows.
 */
#ifndef FLUSHER_DELIVER_H
#define FLUSHER_DELIVER_H

#include "flusher/apply.h"

/* The partitions of counterd.rollups for what happened on the day that the moment is of: its own, and those
 * on which longer buckets begin. Not one that is expired or to come: those of the next days are there, and
 * more ahead is a clock that is wrong. Outside of a transaction, so as not to hold a lock on the table for as
 * long. Fails only when Postgres is not available: rows without a partition are parked. */
MUST_CHECK int deliver_day(struct postgres *postgres, const struct plan *plan, int64_t unix_s,
                           struct error *error);

/* The same for each moment that a query gives, if it is needed at all. */
MUST_CHECK int deliver_days(struct postgres *postgres, const struct plan *plan, const char *sql,
                            const struct parameters *parameters, struct error *error);

/* The origins are of one shard each; their tallies are filled in. */
MUST_CHECK int deliver(struct postgres *postgres, const char *namespace, struct applier *applier,
                       const struct updates *updates, struct origin *origins, size_t origins_len,
                       struct error *error);

/* What is added to the figures of a shard's row. */
struct shift {
    int64_t parked, dropped, elsewhere;
};

MUST_CHECK int deliver_shift(struct postgres *postgres, const char *namespace, uint32_t shard,
                             const struct shift *shift, struct error *error);

#endif
