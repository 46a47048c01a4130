/* statements - the SQL that merges deltas into a table, made of what the catalogue says about it; pure
 *
 * Names come quoted from the server; nothing of a key or of the configuration is ever part of a text. All of
 * them take the rows as arrays: a text[] for each column of the key, then the deltas, bigint[], then the
 * times, timestamptz[], when the layout has a use for them. Rows that mean the same after the cast become
 * one. Each is in the order of its key, which is the order in which its rows are locked.
 */
#ifndef FLUSHER_STATEMENTS_H
#define FLUSHER_STATEMENTS_H

#include "lib/merge.h"
#include "lib/pattern.h"
#include "lib/util.h"

struct key_column {
    char *name;   /* quoted */
    char *type;   /* what to cast to, quoted, without a length: a cast to one would cut the value */
    char *equals; /* the operator that says whether two are the same, quoted */
    bool is_integer;
    int64_t min, max; /* of an integer */
};

enum time_use {
    TIME_UNUSED,
    TIME_TOUCH,  /* the column becomes the larger of itself and the time */
    TIME_BUCKET, /* the column is a part of the key */
};

/* Where deltas go: a target's table or one of its rollups. Owns its texts. */
struct layout {
    char *table;    /* quoted, with its schema */
    bool whole_key; /* its key is the counter's key as it is, in one column; not what placeholders took */
    struct key_column key[PATTERN_PLACEHOLDERS_MAX];
    size_t key_len;
    char *value; /* quoted */
    enum merge merge;
    enum time_use time_use;
    char *time;         /* quoted; NULL when unused */
    bool time_is_local; /* timestamp without time zone: written as UTC */
};

/* Frees what it owns, not itself. */
void layout_done(struct layout *layout);

/* Gives a text, to be freed; NULL = out of memory. */

/* Adds to rows that are there. Its result: the numbers of the rows of the arrays, from 1 on, that have none.
 */
char *statement_update(const struct layout *layout);

/* Adds, and makes rows that are not there. Its result: nothing, or one row when less rows were written than
 * should have been, as by a trigger that skips them. */
char *statement_upsert(const struct layout *layout);

/* The value of one key and whether it has a row; $3 and on are its columns, as text. With it, in the same
 * snapshot: the head of the shard, $1 namespace and $2 shard. */
char *statement_get(const struct layout *layout);

#endif
