/* spelling - remembers which canonical key a tagged key came to, so that tags are sorted once per way of
 * writing them
 *
 * A cache of fixed size with two places for each hash, of which the older is given up. What is too long to
 * hold is worked out anew every time. Not thread-safe.
 */
#ifndef LIB_SPELLING_H
#define LIB_SPELLING_H

#include "lib/metric.h"

struct spelling_cache;

/* Gives NULL when out of memory. */
struct spelling_cache *spelling_cache_new(void);
void spelling_cache_free(struct spelling_cache *cache);

/* The canonical key of a metric with tags, and its hash. `ret_key` is borrowed from the cache, until the next
 * call. */
MUST_CHECK enum reject spelling_resolve(struct spelling_cache *cache, const struct metric *metric,
                                        struct span *ret_key, uint64_t *ret_hash);

#endif
