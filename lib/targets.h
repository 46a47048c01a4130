/* targets - the config's "targets" and "fanout": which table a key counts in, and what else one event counts
 *
 * Only what the file says; whether the tables are there and fit is found out by the flusher (flusher/plan.h).
 * counterd needs it too: it decides the bucket of an event when it arrives, and counts what is fanned out.
 * Immutable once read, so that threads may share it, each with a reference of its own: after a reload the old
 * rules live until the last who uses them has changed over. Pure.
 */
#ifndef LIB_TARGETS_H
#define LIB_TARGETS_H

#include "lib/lanes.h"
#include "lib/member.h"
#include "lib/merge.h"
#include "lib/pattern.h"

#define TARGETS_MAX        256
#define TARGET_ROLLUPS_MAX 4
#define FANOUTS_MAX        256
#define FANOUT_ALSO_MAX    16

/* The tables that come with counterd; the file may name them by these names only. */
#define COUNTERS_TABLE "counterd.counters"
#define ROLLUPS_TABLE  "counterd.rollups"

enum target_missing {
    MISSING_INSERT, /* the key's first delta makes its row */
    MISSING_PARK,   /* kept in counterd.parked until somebody decides */
    MISSING_DROP,   /* counted, and gone */
};

struct target_rollup {
    char *table;         /* as written: [schema.]table, quoted as in SQL where need be */
    int64_t bucket_s;    /* of UTC: 60, 3600, 86400, ... */
    int64_t retention_s; /* of ROLLUPS_TABLE: partitions older than that are dropped; 0 = never */
};

struct target {
    char *match;
    struct pattern *pattern; /* its placeholders are the key's columns; in COUNTERS_TABLE `key` is */
    char *table;             /* as written: [schema.]table */
    char *value;             /* the column that counts */
    char *touch;             /* the column that holds the time of the last event; "" = none */
    char *database;          /* where the table is, a conninfo or URI; "" = postgres.url */
    enum merge merge;        /* how a delta and its row become one */
    uint8_t lane;            /* which of the config's lanes both make */
    enum target_missing missing;
    struct target_rollup rollups[TARGET_ROLLUPS_MAX];
    size_t rollups_len;
    int64_t bucket_s; /* the finest of them, of which the others are multiples; 0 = no rollups */
};

struct fanout {
    char *match;
    struct pattern *pattern;
    struct pattern *also[FANOUT_ALSO_MAX]; /* the keys it makes */
    /* Of which of the match's placeholders each placeholder of `also` takes its value. */
    uint8_t places[FANOUT_ALSO_MAX][PATTERN_PLACEHOLDERS_MAX];
    size_t also_len;
    int64_t bucket_s; /* divides the buckets of all targets that those keys may have; 0 = they have none */
};

struct targets {
    struct target *items; /* the first match wins; the last one may match all keys */
    size_t len;
    struct fanout *fanouts; /* all that match hold */
    size_t fanouts_len;
    int64_t bucket_s; /* divides all buckets of all targets; 0 = no target has rollups */
    uint32_t lanes; /* how many the config has; keys of no target are in the first, and so is OVERFLOW_KEY */
    enum merge merges[LANES_MAX]; /* of each lane */
    _Atomic unsigned references;
};

/* Gives an empty one with one reference, to be filled in; NULL when out of memory. */
struct targets *targets_new(void);

/* One more who uses it; returns it. */
struct targets *targets_ref(struct targets *targets);

/* One less; the last one frees it. NULL is none. */
void targets_unref(struct targets *targets);

/* The target that the key counts in; NULL when none matches. */
const struct target *targets_find(const struct targets *targets, struct span key);

/* The same as far as it is of the lane: a key that is in another one's shards got there by other rules, and
 * has no target there. */
const struct target *targets_find_in(const struct targets *targets, size_t lane, struct span key);

/* Of COUNTERS_TABLE and ROLLUPS_TABLE. */
bool target_table_is_ours(const char *table);

/* Whether a row of the target's table, or of one of its rollups', may be several keys': of two targets, one
 * for each of its columns, or of all that a "*" takes. In our own tables it is one key's. Goes by how tables
 * are written. */
bool targets_share_rows(const struct targets *targets, const struct target *target);

/* Where an event of a key counts. */
struct route {
    uint32_t lane;
    /* How fine its bucket has to be: it divides the finest bucket of its own target and those of the keys
     * that it is fanned out to; 0 = no matter. */
    int64_t bucket_s;
    enum merge merge; /* of the lane */
};

struct route targets_route(const struct targets *targets, struct span key);

/* The member under which what is left of one goes on at that time: the same, until its bucket is over, as
 * nothing that comes later counts there; then that of the key's bucket by then, written into `buf`. */
struct span targets_member_at(const struct targets *targets, struct span member, int64_t unix_s,
                              char buf[MEMBER_LEN_MAX]);

/* Whether there are keys for which the answer is not all 0. NULL is no targets. */
static inline bool targets_routes(const struct targets *targets)
{
    return targets && (targets->bucket_s > 0 || targets->lanes > 1);
}

/* The key's shard in a lane, of the so many that all lanes have together, numbered through. */
static inline uint32_t targets_shard(const struct targets *targets, uint32_t lane, uint64_t key_hash,
                                     uint32_t shards)
{
    uint32_t each = shards / (targets ? targets->lanes : 1);

    return lane * each + keyspace_shard(key_hash, each);
}

/* The hash under which a table of so many shards keeps a key that is in the lane. */
static inline uint64_t targets_hash(const struct targets *targets, uint32_t lane, uint64_t key_hash,
                                    uint32_t shards)
{
    return shard_hash(key_hash, targets_shard(targets, lane, key_hash, shards), shards);
}

/* The longest bucket of which both are made; 0 is no bucket, and the other one then. */
int64_t bucket_divisor(int64_t a, int64_t b);

/* Goes over the keys that are counted along with one. They are not fanned out in turn, and a file in which a
 * rule would match them is refused, so that nobody expects it. Starts as {.targets, .key}. */
struct also_walk {
    const struct targets *targets;
    struct span key; /* borrowed */
    size_t fanout;   /* where it is: the rule, */
    size_t also;     /* its next key, */
    bool matched;    /* and whether `values` are the rule's */
    struct span values[PATTERN_PLACEHOLDERS_MAX];
};

/* The next key, once each, whatever number of rules makes it; written into `buf`. False: there are no more.
 * One that would be longer than KEY_LEN_MAX has *ret_len 0. */
bool also_next(struct also_walk *walk, char buf[KEY_LEN_MAX], size_t *ret_len);

#endif
