/* plan - each target's table as the catalogue has it, and the statements that follow from it
 *
 * Made at the start of every command that writes to targets, so that a table that does not fit is refused
 * before anything is sealed, with the reason and what would mend it. Immutable then, so that jobs may share
 * it. What changes in the tables after that is found by the statements themselves.
 */
#ifndef FLUSHER_PLAN_H
#define FLUSHER_PLAN_H

#include "flusher/partitions.h"
#include "flusher/postgres.h"
#include "flusher/statements.h"
#include "lib/targets.h"

struct planned_rollup {
    struct layout layout;
    int64_t bucket_s;
    bool by_day; /* it is counterd.rollups, which has partitions */
    char *add;   /* its statement */
};

struct planned {
    const struct target *target;
    bool counters;        /* its table is counterd.counters, which the audit compares */
    struct layout layout; /* of its table */
    bool shared;          /* keys of several shards may mean one row, there or in a rollup */
    char *add;            /* its statement; NULL for counterd.counters, for which flusher/apply.c has one */
    char *get;
    struct planned_rollup rollups[TARGET_ROLLUPS_MAX];
};

struct plan {
    const struct targets *targets;
    size_t lane;
    struct planned *items; /* one for each target; of other lanes' only the target is set */
    bool has_own_tables;   /* somebody else may hold rows of theirs */
    bool has_days;         /* some target rolls up by_day, and then: */
    struct partitions_options partitions;
};

/* Borrows the config. Gives a plan, to be freed by plan_free(). FAILURE_CONFIG when a table does
 * not fit. */
MUST_CHECK int plan_make(struct postgres *postgres, const struct config *config, struct plan **ret_plan,
                         struct error *error);
void plan_free(struct plan *plan);

/* The one that a key counts in; NULL = none of this lane. */
const struct planned *plan_find(const struct plan *plan, struct span key);

/* What stands in the key's columns of the layout, which is of that target; borrowed from the key. */
void plan_values(const struct planned *planned, const struct layout *layout, struct span key,
                 struct span ret_values[PATTERN_PLACEHOLDERS_MAX]);

/* Whether the values could be those of a row. Integers are plain decimals: what more Postgres takes, in which
 * version, is nobody's concern then. */
enum fit { FIT_GOOD, FIT_TYPE, FIT_RANGE };

enum fit plan_fit(const struct layout *layout, const struct span *values);

#endif
