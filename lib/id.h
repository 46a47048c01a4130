/* id - unique names for writers and generations
 *
 * 26 characters of Crockford's base 32: 48 bits of unix milliseconds, then 80 random bits (the form of a
 * ULID), so that ids sort by age to a human eye, and old ones are found by index. Nothing may rely on that
 * order: clocks jump.
 */
#ifndef LIB_ID_H
#define LIB_ID_H

#include <stdint.h>

#define ID_LEN 26

/* Fills `ret_id`, NUL-terminated. Randomness comes from getrandom(2), which does not fail for so few bytes.
 */
void id_new(char ret_id[ID_LEN + 1]);

/* The least id of that moment. */
void id_floor(int64_t unix_ms, char ret_id[ID_LEN + 1]);

#endif
