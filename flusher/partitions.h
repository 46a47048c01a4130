/* partitions - counterd.rollups has one for each day of UTC: made ahead, or on demand, and dropped after the
 * retention
 *
 * Nobody is held up by it for long. To make one, a table is made and then attached, which stops neither
 * readers nor writers; to drop one takes a moment alone, for which it waits no longer than
 * PARTITION_DROP_WAIT_MS and else leaves it to the next run. Any number of flushers may do it at the same
 * time. Partitions of other names, and tables of the application's own, are never touched.
 */
#ifndef FLUSHER_PARTITIONS_H
#define FLUSHER_PARTITIONS_H

#include "flusher/postgres.h"
#include "lib/targets.h"

#define PARTITIONS_AHEAD_DAYS  2 /* besides today */
#define PARTITION_DROP_WAIT_MS 200

struct partitions_options {
    const struct config *config; /* borrowed */
    int64_t now_s;               /* unix: partitions_now() */
};

/* The earlier of this machine's clock and Postgres's: one that is ahead makes days look expired, whose rows
 * nobody could bring back. */
MUST_CHECK int partitions_now(struct postgres *postgres, int64_t *ret_now_s, struct error *error);

struct partitions_kept {
    size_t made, dropped;
    size_t postponed; /* expired, but in use */
};

/* Once per run, outside of a transaction. Does nothing unless some target of the config's lane rolls up
 * there; one statement when there is nothing to do. */
MUST_CHECK int partitions_keep(struct postgres *postgres, const struct partitions_options *options,
                               struct partitions_kept *ret_kept, struct error *error);

/* Makes sure that there is a partition for the bucket; outside of a transaction. For a row that found none
 * (SQLSTATE 23514, "no partition of relation"), of an event that was late or early: the transaction is rolled
 * back, the day made, and the whole done again. Not for a bucket that is expired, as the next run would drop
 * it. */
MUST_CHECK int partitions_make(struct postgres *postgres, int64_t bucket, struct error *error);

/* Whether the bucket is older than the longest retention of all lanes that share its database: its row is not
 * to be written any more. */
bool partitions_expired(const struct partitions_options *options, int64_t bucket);

#endif
