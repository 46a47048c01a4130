/* pool - datagrams made in advance: every key as often as any other, in a shuffled order */
#ifndef TESTS_BENCH_POOL_H
#define TESTS_BENCH_POOL_H

#include <stddef.h>
#include <stdint.h>

struct pool_options {
    uint32_t keys;
    uint32_t lines; /* per datagram */
    int tags;       /* as part of the key */
};

/* Datagrams of the same length, one behind the other. */
struct pool {
    char *bytes; /* owned; NULL: out of memory */
    size_t datagrams, datagram_bytes;
};

struct pool pool_new(const struct pool_options *options);

#endif
