#include "lib/decimal.h"

#define PLACES      6  /* decimal places of a micro */
#define RATE_PLACES 18 /* of RATE_ONE */

/* So many digits without a point surely fit into MICROS_MAX as micros: the usual counter takes this path. */
#define FAST_DIGITS_MAX 12

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

/* The digits at the front of `*rest`, which moves behind them. */
static struct span take_digits(struct span *rest)
{
    struct span digits = {rest->ptr, 0};

    while (digits.len < rest->len && is_digit(digits.ptr[digits.len]))
        digits.len++;
    rest->ptr += digits.len;
    rest->len -= digits.len;
    return digits;
}

static bool take_char(struct span *rest, char c)
{
    if (rest->len == 0 || rest->ptr[0] != c)
        return false;
    rest->ptr++;
    rest->len--;
    return true;
}

static bool take_sign(struct span *rest)
{
    bool negative = take_char(rest, '-');

    if (!negative)
        (void)take_char(rest, '+');
    return negative;
}

/* A number as it was written: whole.fraction * 10^exponent, with the digits still in the input. */
struct scan {
    struct span whole;
    struct span fraction;
    int exponent;
};

static size_t digit_count(const struct scan *scan)
{
    return scan->whole.len + scan->fraction.len;
}

static unsigned digit_at(const struct scan *scan, size_t i)
{
    char c = i < scan->whole.len ? scan->whole.ptr[i] : scan->fraction.ptr[i - scan->whole.len];

    return (unsigned)(c - '0');
}

/* [. digits] with at least one digit behind the point. */
static bool take_fraction(struct span *rest, struct scan *scan)
{
    if (!take_char(rest, '.'))
        return true;
    scan->fraction = take_digits(rest);
    return scan->fraction.len > 0;
}

static bool take_exponent(struct span *rest, struct scan *scan)
{
    struct span digits;
    bool negative;

    if (!take_char(rest, 'e') && !take_char(rest, 'E'))
        return true;
    negative = take_sign(rest);
    digits = take_digits(rest);
    if (digits.len < 1 || digits.len > 3)
        return false;
    for (size_t i = 0; i < digits.len; i++)
        scan->exponent = scan->exponent * 10 + (digits.ptr[i] - '0');
    if (negative)
        scan->exponent = -scan->exponent;
    return true;
}

/* The number in micros. Of all digits, leading zeros left out, the first `take` make up the micros; the next
 * one decides the rounding. */
static enum decimal_result scale(const struct scan *scan, uint64_t *ret_micros)
{
    size_t count = digit_count(scan), first = 0;
    uint64_t micros = 0;
    int64_t take;

    while (first < count && digit_at(scan, first) == 0)
        first++;
    *ret_micros = 0;
    take = (int64_t)scan->whole.len - (int64_t)first + scan->exponent + PLACES;
    if (first == count || take < 0)
        return DECIMAL_OK;
    if (take > 19)
        return DECIMAL_RANGE;
    for (size_t i = first; i < first + (size_t)take; i++)
        micros = micros * 10 + (i < count ? digit_at(scan, i) : 0);
    if (first + (size_t)take < count && digit_at(scan, first + (size_t)take) >= 5)
        micros++;
    if (micros > (uint64_t)MICROS_MAX)
        return DECIMAL_RANGE;
    *ret_micros = micros;
    return DECIMAL_OK;
}

enum decimal_result decimal_parse(struct span text, int64_t *ret_micros)
{
    struct scan scan = {0};
    enum decimal_result result;
    uint64_t micros = 0;
    bool negative = take_sign(&text);

    scan.whole = take_digits(&text);
    if (scan.whole.len == 0)
        return DECIMAL_MALFORMED;
    if (text.len == 0 && scan.whole.len <= FAST_DIGITS_MAX) {
        for (size_t i = 0; i < scan.whole.len; i++)
            micros = micros * 10 + (uint64_t)(scan.whole.ptr[i] - '0');
        micros *= MICROS_PER_UNIT;
    } else {
        if (!take_fraction(&text, &scan) || !take_exponent(&text, &scan) || text.len > 0)
            return DECIMAL_MALFORMED;
        result = scale(&scan, &micros);
        if (result != DECIMAL_OK)
            return result;
    }
    *ret_micros = negative ? -(int64_t)micros : (int64_t)micros;
    return DECIMAL_OK;
}

static bool all_zero(struct span digits)
{
    for (size_t i = 0; i < digits.len; i++)
        if (digits.ptr[i] != '0')
            return false;
    return true;
}

enum decimal_result decimal_parse_rate(struct span text, uint64_t *ret_rate)
{
    struct scan scan = {0};
    uint64_t rate = 0;

    scan.whole = take_digits(&text);
    if (!take_fraction(&text, &scan) || text.len > 0 || digit_count(&scan) == 0)
        return DECIMAL_MALFORMED;
    while (scan.whole.len > 1 && scan.whole.ptr[0] == '0')
        (void)take_char(&scan.whole, '0');
    if (scan.whole.len == 1 && scan.whole.ptr[0] == '1' && all_zero(scan.fraction)) {
        *ret_rate = RATE_ONE;
        return DECIMAL_OK;
    }
    if (!all_zero(scan.whole) || all_zero(scan.fraction))
        return DECIMAL_MALFORMED;
    for (size_t i = 0; i < RATE_PLACES; i++)
        rate = rate * 10 + (i < scan.fraction.len ? (uint64_t)(scan.fraction.ptr[i] - '0') : 0);
    *ret_rate = rate;
    return DECIMAL_OK;
}

enum decimal_result decimal_divide(__int128 sum_micros, uint64_t rate, int64_t *ret_micros)
{
    unsigned __int128 size = (unsigned __int128)(sum_micros < 0 ? -sum_micros : sum_micros);

    /* A rate never makes it smaller, and below here nothing overflows: 2 * 9*10^18 * 10^18 < 2^127. */
    if (size > (unsigned __int128)MICROS_MAX || (rate == 0 && size > 0))
        return DECIMAL_RANGE;
    if (rate != RATE_ONE && size > 0)
        size = (2 * size * RATE_ONE + rate) / (2 * (unsigned __int128)rate);
    if (size > (unsigned __int128)MICROS_MAX)
        return DECIMAL_RANGE;
    *ret_micros = sum_micros < 0 ? -(int64_t)size : (int64_t)size;
    return DECIMAL_OK;
}
