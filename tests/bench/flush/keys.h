/* keys - the keys of the flushing benchmarks, the same for both sides: number i of n, 19 bytes, in no order
 */
#ifndef TESTS_BENCH_FLUSH_KEYS_H
#define TESTS_BENCH_FLUSH_KEYS_H

#include <stdint.h>
#include <stdio.h>

#define KEY_BYTES 20
#define KEY_LEN   19

static inline void key_of(uint32_t i, char ret_key[KEY_BYTES])
{
    snprintf(ret_key, KEY_BYTES, "page.%08x.views", i * 2654435761u);
}

#endif
