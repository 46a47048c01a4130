/* decimal - the numbers of the line protocol, exact in fixed point; never a double, no locale
 *
 * Values count in millionths ("micros"), rates in 10^-18. docs/line-protocol.md has the grammar and the
 * rounding.
 */
#ifndef LIB_DECIMAL_H
#define LIB_DECIMAL_H

#include "lib/util.h"

#define MICROS_PER_UNIT INT64_C(1000000)
#define VALUE_MAX       INT64_C(9000000000000) /* whole units, of a value and of what is pending for a key */
#define MICROS_MAX      (VALUE_MAX * MICROS_PER_UNIT)

enum decimal_result {
    DECIMAL_OK,
    DECIMAL_MALFORMED,
    DECIMAL_RANGE, /* beyond +-VALUE_MAX */
};

/* [+-] digits [. digits] [e [+-] 1 to 3 digits], any number of digits; a seventh place is rounded, half away
 * from zero. */
MUST_CHECK enum decimal_result decimal_parse(struct span text, int64_t *ret_micros);

#define RATE_ONE UINT64_C(1000000000000000000)

/* digits [. digits] or . digits, greater than 0 and at most 1; never DECIMAL_RANGE. Places beyond the 18th
 * are cut, so that a rate below 10^-18 gives 0. */
MUST_CHECK enum decimal_result decimal_parse_rate(struct span text, uint64_t *ret_rate);

/* sum / rate, rounded to micros half away from zero; |sum| may be beyond the range (and is DECIMAL_RANGE
 * then). */
MUST_CHECK enum decimal_result decimal_divide(__int128 sum_micros, uint64_t rate, int64_t *ret_micros);

#endif
