#include "tests/bench/pool.h"

#include <stdio.h>
#include <stdlib.h>

#define LINE_BYTES 80
#define POOL_LINES (1U << 20)
#define MULTIPLE   64 /* of which the number of datagrams is one */

static uint64_t next_random(uint64_t *state)
{
    *state ^= *state << 13;
    *state ^= *state >> 7;
    *state ^= *state << 17;
    return *state;
}

static void shuffle(uint32_t *keys, uint32_t len, uint64_t *state)
{
    for (uint32_t i = len - 1; i > 0; i--) {
        uint32_t j = (uint32_t)(next_random(state) % (i + 1));
        uint32_t key = keys[i];
        keys[i] = keys[j];
        keys[j] = key;
    }
}

/* Always the same length, as GSO asks for datagrams of one size. */
static size_t write_line(char *at, uint32_t key, char digit, int tags)
{
    int len;

    if (tags)
        len = snprintf(at, LINE_BYTES, "web.page.views:%c|c|#env:prod,host:web%03u,page:%05u\n", digit,
                       key % 1000, key / 1000);
    else
        len = snprintf(at, LINE_BYTES, "web.page.views.%07u:%c|c\n", key, digit);
    return (size_t)len;
}

struct pool pool_new(const struct pool_options *options)
{
    uint64_t state = 0x9e3779b97f4a7c15;
    uint32_t per_cycle = options->keys, at_key = per_cycle;
    uint32_t lines = options->keys > POOL_LINES ? options->keys : POOL_LINES;
    struct pool pool = {.datagrams = lines / options->lines};
    uint32_t *keys = malloc(per_cycle * sizeof(*keys));
    char *at;

    pool.datagrams = (pool.datagrams + MULTIPLE - 1) / MULTIPLE * MULTIPLE;
    at = pool.bytes = malloc(pool.datagrams * options->lines * LINE_BYTES);
    if (!keys || !pool.bytes) {
        free(keys);
        free(pool.bytes);
        pool.bytes = NULL;
        return pool;
    }
    for (uint32_t i = 0; i < per_cycle; i++)
        keys[i] = i;
    for (size_t i = 0; i < pool.datagrams * options->lines; i++) {
        if (at_key == per_cycle) {
            shuffle(keys, per_cycle, &state);
            at_key = 0;
        }
        at += write_line(at, keys[at_key++], (char)('1' + next_random(&state) % 9), options->tags);
    }
    pool.datagram_bytes = (size_t)(at - pool.bytes) / pool.datagrams;
    free(keys);
    return pool;
}
