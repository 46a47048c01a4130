#include "flusher/whole.h"

bool whole_parse(struct span text, int64_t *ret_number)
{
    bool negative = text.len > 0 && text.ptr[0] == '-';
    int64_t number = 0;

    if (text.len == (negative ? 1 : 0))
        return false;
    /* Gathered below zero, where there is room for one more. */
    for (size_t i = negative ? 1 : 0; i < text.len; i++) {
        if (text.ptr[i] < '0' || text.ptr[i] > '9' || __builtin_mul_overflow(number, 10, &number) ||
            __builtin_sub_overflow(number, text.ptr[i] - '0', &number))
            return false;
    }
    if (!negative && __builtin_sub_overflow(0, number, &number))
        return false;
    *ret_number = number;
    return true;
}

bool whole_parse_range(struct span text, int64_t *ret_low, int64_t *ret_high)
{
    const char *dash = text.len > 0 ? memchr(text.ptr, '-', text.len) : NULL;
    size_t low_len = dash ? (size_t)(dash - text.ptr) : 0;

    return dash && whole_parse((struct span){text.ptr, low_len}, ret_low) &&
           whole_parse((struct span){dash + 1, text.len - low_len - 1}, ret_high) && *ret_low >= 1 &&
           *ret_low <= *ret_high;
}

int64_t whole_add(int64_t a, int64_t b)
{
    int64_t sum;

    if (__builtin_add_overflow(a, b, &sum))
        return a < 0 ? INT64_MIN : INT64_MAX;
    return sum;
}

int64_t whole_subtract(int64_t a, int64_t b)
{
    int64_t difference;

    if (__builtin_sub_overflow(a, b, &difference))
        return a < 0 ? INT64_MIN : INT64_MAX;
    return difference;
}
