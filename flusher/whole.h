/* whole - whole numbers: read strictly, as a count is never guessed at, and added up without a wrap */
#ifndef FLUSHER_WHOLE_H
#define FLUSHER_WHOLE_H

#include "lib/util.h"

/* An optional '-' and digits, nothing else, within int64_t; false otherwise. */
MUST_CHECK bool whole_parse(struct span text, int64_t *ret_number);

/* "lo-hi", both at least 1 and in order: how Redis keeps which batches of a writer a generation holds. */
MUST_CHECK bool whole_parse_range(struct span text, int64_t *ret_low, int64_t *ret_high);

/* Sums over shards may pass 64 bits where those of one shard may not; then they stop at the end of the range.
 */
int64_t whole_add(int64_t a, int64_t b);
int64_t whole_subtract(int64_t a, int64_t b);

#endif
