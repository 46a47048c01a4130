/* targets - the config's "targets" and "fanout": which table a key counts in, and what else one event counts
 *
 * Only what the file says; whether the tables are there and fit is found out by the flusher (flusher/plan.h).
 * counterd needs it too: it decides the bucket of an event when it arrives, and counts what is fanned out.
 * Immutable once read, so that threads may share it. Pure.
 */
#ifndef LIB_TARGETS_H
#define LIB_TARGETS_H

#include "lib/pattern.h"

#define TARGETS_MAX        256
#define TARGET_ROLLUPS_MAX 4
#define FANOUTS_MAX        256
#define FANOUT_ALSO_MAX    16

/* A key's member in Redis when time matters: `key SP bucket`, bucket in unix seconds, the start of the finest
 * bucket of its target. */
#define MEMBER_LEN_MAX (KEY_LEN_MAX + 1 + 20)

enum target_missing {
    MISSING_INSERT, /* the key's first delta makes its row */
    MISSING_PARK,   /* kept in counterd.parked until somebody decides */
    MISSING_DROP,   /* counted, and gone */
};

struct target_rollup {
    char *table;         /* as written: [schema.]table, quoted as in SQL where need be */
    int64_t bucket_s;    /* of UTC: 60, 3600, 86400, ... */
    int64_t retention_s; /* partitions older than that are dropped; 0 = never */
};

struct target {
    char *match;
    struct pattern *pattern;
    char *table;    /* as written: [schema.]table */
    char *value;    /* the column that counts */
    char *touch;    /* the column that holds the time of the last event; "" = none */
    char *database; /* where the table is, a conninfo or URI; "" = postgres.url */
    enum target_missing missing;
    struct target_rollup rollups[TARGET_ROLLUPS_MAX];
    size_t rollups_len;
    int64_t bucket_s; /* the finest of them, of which the others are multiples; 0 = no rollups */
};

struct fanout {
    char *match;
    struct pattern *pattern;
    char *also[FANOUT_ALSO_MAX]; /* keys, with placeholders of the pattern */
    size_t also_len;
};

struct targets {
    struct target *items; /* the first match wins; the last one may match all keys */
    size_t len;
    struct fanout *fanouts; /* all that match hold */
    size_t fanouts_len;
    int64_t bucket_s; /* of the target with the finest bucket; 0 = no target has rollups */
};

/* The target that the key counts in; NULL when none matches. */
const struct target *targets_find(const struct targets *targets, struct span key);

/* How fine the bucket of an event of this key has to be, for the sake of its own target and of those of the keys that
 * it is fanned out to; 0 = no matter. */
int64_t targets_bucket_s(const struct targets *targets, struct span key);

/* The key number `index` that is counted along with `key`, over all fanouts that match, written into `buf` (KEY_LEN_MAX
 * bytes). False when there are no more. A key that would be longer, or equal to `key`, is skipped by an `index` of its
 * own: *ret_len is 0. */
bool targets_also(const struct targets *targets, struct span key, size_t index, char *buf, size_t *ret_len);

/* Takes a member apart: its key, and its bucket; 0 = it has none. */
struct span member_split(struct span member, int64_t *ret_bucket);

#endif
