/* stats - what a worker has counted, for others to read while it runs
 *
 * One writer, the worker; any number of readers, from any thread. Every figure only grows unless it says
 * otherwise. A reader sees each figure whole, but not all of them at the same moment.
 */
#ifndef COUNTERD_STATS_H
#define COUNTERD_STATS_H

#include <pthread.h>
#include <stdatomic.h>

#include "lib/metric.h"

typedef _Atomic uint64_t counter;

/* For the one writer of a counter: no locked instruction is needed. */
static inline void counter_add(counter *c, uint64_t n)
{
    atomic_store_explicit(c, atomic_load_explicit(c, memory_order_relaxed) + n, memory_order_relaxed);
}

static inline void counter_set(counter *c, uint64_t n)
{
    atomic_store_explicit(c, n, memory_order_relaxed);
}

static inline uint64_t counter_get(const counter *c)
{
    return atomic_load_explicit(c, memory_order_relaxed);
}

#define SAMPLE_BYTES 120
#define SAMPLES_MAX  16

/* The beginning of a line that was rejected. */
struct sample {
    enum reject reject;
    int64_t unix_ms;
    uint8_t len;
    char bytes[SAMPLE_BYTES]; /* raw: whoever shows it escapes it */
};

struct samples {
    pthread_mutex_t lock;
    struct sample ring[SAMPLES_MAX];
    unsigned count; /* ever taken; the newest is at (count - 1) % SAMPLES_MAX */
};

struct stats {
    counter datagrams, bytes, lines;          /* received; lines: blank ones left out */
    counter connections, connections_refused; /* TCP, ever accepted; turned away at the limit */
    counter truncated;                        /* datagrams that the kernel cut */
    counter accepted;                         /* lines that count: increments */
    counter rejected[REJECT_COUNT];           /* lines, by reason */
    counter fields_ignored;
    counter overflow; /* accepted lines that count under OVERFLOW_KEY */
    counter
        fanout_overflow; /* of those fanned out: counted under OVERFLOW_KEY instead of a key that was made */
    counter fanout_left_out; /* of those fanned out: without such a key, as it would be too long or out of
                                range */
    counter keys;            /* in memory now; may fall */
    counter table_bytes;     /* of both tables; may fall */
    counter appended;        /* increments that are in Redis */
    counter appended_batches;
    counter resent_batches;        /* sent once more, after a lost connection or a rollback of Redis */
    counter redis_lost;            /* connections to Redis lost */
    counter redis_errors;          /* error replies */
    counter gaps;                  /* times that Redis was found to have gone back */
    counter lost;                  /* increments that no history held when Redis had gone back */
    counter unreplicated;          /* appends that too few replicas confirmed in time; sent again */
    counter idempotent_duplicates; /* requests that had been applied before */
    counter idempotent_conflicts;  /* requests refused because their key stands for another body */
    counter history_bytes;         /* of batches not yet known to be in Postgres; may fall */
    _Atomic bool redis_ready;
    struct samples samples;
};

void stats_init(struct stats *stats);
void stats_done(struct stats *stats);

void samples_add(struct samples *samples, enum reject reject, struct span line);

/* Copies the samples, newest first, and returns how many there are. */
size_t samples_copy(struct samples *samples, struct sample ret_samples[SAMPLES_MAX]);

#endif
