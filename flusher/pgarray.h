/* pgarray - text[], bigint[] and timestamptz[] as Postgres takes them in binary; pure
 *
 * Binary, because as text every key would have to be quoted here and taken apart again there. No NULLs, one
 * dimension. A zeroed struct is an empty one; running out of memory is remembered and told by pgarray_ok().
 */
#ifndef FLUSHER_PGARRAY_H
#define FLUSHER_PGARRAY_H

#include "lib/util.h"

/* The elements' oid, fixed in Postgres. */
enum pgarray_type { PGARRAY_BIGINT = 20, PGARRAY_TEXT = 25, PGARRAY_TIMESTAMPTZ = 1184 };

struct pgarray {
    char *bytes;
    size_t len, size;
    bool failed;
};

void pgarray_done(struct pgarray *array);

/* Empties it, keeps its memory, and makes it an array of `count` elements, which have to follow. */
void pgarray_begin(struct pgarray *array, enum pgarray_type type, size_t count);

void pgarray_add_text(struct pgarray *array, struct span text);
void pgarray_add_bigint(struct pgarray *array, int64_t number);
void pgarray_add_timestamptz(struct pgarray *array, int64_t unix_ms);

MUST_CHECK bool pgarray_ok(const struct pgarray *array);

#endif
