/* quarantine - generations that were not applied because Redis went back in time, and what an operator
 * decides
 *
 * A row holds the sum of several batches per key; they can't be taken apart any more. What the vector has of
 * them by now (because their counterd lives and sent them again, or because they were applied before Redis
 * went back) would count twice if the row were applied; what it lacks is nowhere else, unless its counterd is
 * still to send it. The row stays after the decision, marked, so that the generation is known should Redis
 * bring it back.
 */
#ifndef FLUSHER_QUARANTINE_H
#define FLUSHER_QUARANTINE_H

#include "flusher/postgres.h"
#include "flusher/source.h"

/* Batches of one writer in a row. */
struct held_batches {
    char *writer; /* NUL-terminated, owned */
    int64_t low, high;
    int64_t applied; /* Postgres has the writer's batches up to this one; 0 = none */
};

struct quarantined {
    int64_t id, shard;
    char gen[GENERATION_ID_LEN_MAX + 1];
    char part[16];   /* "sealed" or "open" */
    int64_t unix_ms; /* when it was put there */
    int64_t keys, total;
    struct held_batches *writers;
    size_t writers_len;
};

struct quarantine_list {
    struct quarantined *items;
    size_t len;
};

/* How many of a row's batches are in Postgres, and how many only here. */
struct held {
    int64_t applied, only_here;
};

struct held quarantined_held(const struct quarantined *row);

/* What is not decided yet, oldest first. `ret_list` starts zeroed and is to be done also after a failure. */
MUST_CHECK int quarantine_read(struct postgres *postgres, const struct config *config,
                               struct quarantine_list *ret_list, struct error *error);
void quarantine_list_done(struct quarantine_list *list);

/* What was done about a row. */
struct decision {
    int64_t id, shard;
    char gen[GENERATION_ID_LEN_MAX + 1];
    int64_t keys, total;
    int64_t applied; /* batches of it that Postgres had before */
};

/* Adds the row to the tables of its targets, with a ledger row of its own, and moves the vector over its
 * batches, so that they can't come again; once, in one transaction. FAILURE_DATA when the row is not there,
 * is decided, has an older one of its shard before it, or, unless `force`, would count anything twice. */
MUST_CHECK int quarantine_apply(struct postgres *postgres, const struct config *config, int64_t id,
                                bool force, struct decision *ret_decision, struct error *error);

/* Marks the row as not to be applied. FAILURE_DATA when it is not there or is decided. */
MUST_CHECK int quarantine_drop(struct postgres *postgres, const struct config *config, int64_t id,
                               struct decision *ret_decision, struct error *error);

#endif
