/* merge - how what is counted for a key becomes one: a sum, or the greatest or least of it
 *
 * All but the sum give the same however often and in whatever order they are merged; so of them nothing is
 * ever divided, carried over or scaled. Pure.
 */
#ifndef LIB_MERGE_H
#define LIB_MERGE_H

#include "lib/util.h"

enum merge { MERGE_ADD, MERGE_MAX, MERGE_MIN, MERGE_COUNT };

/* "add", "max", "min": as in the configuration, and in the last argument of the append script. */
static inline const char *merge_name(enum merge merge)
{
    static const char *const names[MERGE_COUNT] = {"add", "max", "min"};

    return names[merge];
}

/* What two become, of all but MERGE_ADD, whose sum may leave the range. */
static inline int64_t merge_extreme(enum merge merge, int64_t a, int64_t b)
{
    return (merge == MERGE_MAX) == (a > b) ? a : b;
}

#endif
