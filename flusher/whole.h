/* whole - decimal text to int64_t, strictly: a count that is not a whole number is never guessed at */
#ifndef FLUSHER_WHOLE_H
#define FLUSHER_WHOLE_H

#include "lib/util.h"

/* An optional '-' and digits, nothing else, within int64_t; false otherwise. */
MUST_CHECK bool whole_parse(struct span text, int64_t *ret_number);

/* "lo-hi", both at least 1 and in order: how Redis keeps which batches of a writer a generation holds. */
MUST_CHECK bool whole_parse_range(struct span text, int64_t *ret_low, int64_t *ret_high);

#endif
