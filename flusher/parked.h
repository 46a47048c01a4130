/* parked - the rows of counterd.parked: what is there, tried again, or given up
 *
 * A row leaves the table in the same transaction in which its delta is added to its target, or counted as
 * dropped, under the lock of its shard. So whatever is interrupted and done again, it counts once. Large
 * tables are gone through in pages, each a transaction.
 */
#ifndef FLUSHER_PARKED_H
#define FLUSHER_PARKED_H

#include "flusher/apply.h"

#define PARKED_LIST_MAX 1000

/* Which rows are meant: those to which all of it applies. */
struct parked_filter {
    const char *target;          /* the table, as the configuration has it; NULL = any */
    const char *reason;          /* its name; NULL = any */
    int64_t older_than_s;        /* parked for so long; 0 = any */
    const struct pattern *match; /* of the key; NULL = any */
};

struct parked_row {
    int64_t id, shard;
    char *key, *reason, *detail, *target; /* owned */
    int64_t bucket;                       /* unix time; 0 = none */
    int64_t delta;
    int64_t seen_ms, parked_ms;
};

struct parked_list {
    struct parked_row *items; /* the oldest of them, up to PARKED_LIST_MAX */
    size_t len;
    int64_t rows, total; /* of all */
};

/* `ret_list` starts zeroed and is to be done also after a failure. */
MUST_CHECK int parked_read(struct postgres *postgres, const struct config *config,
                           const struct parked_filter *filter, struct parked_list *ret_list,
                           struct error *error);
void parked_list_done(struct parked_list *list);

struct parked_result {
    int64_t applied_rows, applied;
    int64_t dropped_rows, dropped;
    int64_t refused_rows, refused; /* still parked, with the reason of today */
};

/* Adds them to the tables of the targets that their keys have by now. `ret_result` tells what was done also
 * when it fails. */
MUST_CHECK int parked_retry(struct postgres *postgres, const struct config *config,
                            const struct parked_filter *filter, struct parked_result *ret_result,
                            struct error *error);

/* Gives them up. */
MUST_CHECK int parked_drop(struct postgres *postgres, const struct config *config,
                           const struct parked_filter *filter, struct parked_result *ret_result,
                           struct error *error);

#endif
