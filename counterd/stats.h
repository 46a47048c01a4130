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

/* How long something took: how often up to each of the bounds, and the sum. */
#define HISTOGRAM_BOUNDS 14

struct histogram {
    counter counts[HISTOGRAM_BOUNDS + 1]; /* not cumulative; the last one: beyond all bounds */
    counter sum_us;
};

/* Ascending. */
extern const int64_t histogram_bounds_us[HISTOGRAM_BOUNDS];

void histogram_add(struct histogram *histogram, int64_t us);

/* The last minutes, second by second, written by the worker when it ticks anyway: nobody wakes up for them.
 */
#define MOMENTS_MAX 310

/* What had been counted at the end of a second. */
struct moment {
    int64_t second; /* monotonic */
    uint64_t lines, rejected, dropped, overflow;
};

struct moments {
    pthread_mutex_t lock;
    struct moment ring[MOMENTS_MAX];
    unsigned count; /* ever; the newest is at (count - 1) % MOMENTS_MAX */
};

#define TROUBLE_BYTES 256

/* What Redis, or the way to it, or the disk, last said against us. */
struct trouble {
    pthread_mutex_t lock;
    char text[TROUBLE_BYTES];
};

struct stats {
    counter datagrams, bytes, lines;          /* received; lines: blank ones left out */
    counter connections, connections_refused; /* TCP, ever accepted; turned away at the limit */
    counter truncated;                        /* datagrams that the kernel cut */
    counter accepted;                         /* lines that count: increments */
    counter rejected[REJECT_COUNT];           /* lines, by reason */
    counter fields_ignored;
    counter dropped;  /* datagrams that the kernel dropped before they were read */
    counter overflow; /* accepted lines that count under OVERFLOW_KEY */
    counter
        fanout_overflow; /* of those fanned out: counted under OVERFLOW_KEY instead of a key that was made */
    counter fanout_left_out; /* of those fanned out: without such a key, as it would be too long or out of
                                range */
    counter keys;            /* in memory now; may fall */
    counter table_bytes;     /* of both tables; may fall */
    counter appended;        /* increments that are in Redis */
    counter appended_batches;
    counter resent_batches;             /* sent once more, after a lost connection or a rollback of Redis */
    counter redis_lost;                 /* connections to Redis lost */
    counter redis_errors;               /* error replies */
    counter gaps;                       /* times that Redis was found to have gone back */
    counter lost;                       /* increments that no history held when Redis had gone back */
    counter unreplicated;               /* appends that too few replicas confirmed in time; sent again */
    counter idempotent_duplicates;      /* requests that had been applied before */
    counter idempotent_conflicts;       /* requests refused because their key stands for another body */
    counter history_bytes;              /* of batches not yet known to be in Postgres; may fall */
    counter emptied;                    /* increments that only Redis has, as the history is full; may fall */
    counter spooled, spooled_batches;   /* increments and batches written to disk */
    counter replayed, replayed_batches; /* of an earlier process, out of its spool into Redis */
    counter spool_bytes;                /* on disk; may fall */
    counter spool_errors;               /* writes and reads that failed */
    counter spool_lost;                 /* of `lost`: accepted here, and never in Redis */
    counter spool_waiting;              /* increments that are on disk and not in Redis; may fall */
    counter replay_waiting;             /* of an earlier process, the same */
    counter replay_left;                /* the same of its writers whose turn has not come; may fall */
    counter replay_left_bytes;          /* what that takes on disk; may fall */
    /* Monotonic milliseconds, 0 = never. */
    counter went_back_ms;    /* when Redis was last found to have gone back */
    counter appended_ms;     /* when Redis last took a batch */
    counter refused_ms;      /* when Redis last refused one */
    counter gathered_ms;     /* since when the oldest increments in memory are there; 0 = none are */
    counter spool_since_ms;  /* since when something waits on disk; 0 = nothing does */
    counter spool_error_ms;  /* when the spool last failed */
    struct histogram append; /* from sending a batch to its acknowledgement */
    struct histogram gather; /* from the first increment of a table until all of the table is in Redis */
    _Atomic bool redis_ready;
    _Atomic bool keyed_away;   /* requests with an Idempotency-Key have no connection */
    _Atomic bool redis_misfit; /* not ready because it can't be used as configured */
    struct trouble trouble, spool_trouble;
    struct samples samples;
    struct moments moments;
};

void stats_init(struct stats *stats);
void stats_done(struct stats *stats);

void samples_add(struct samples *samples, enum reject reject, struct span line);

/* Copies the samples, newest first, and returns how many there are. */
size_t samples_copy(struct samples *samples, struct sample ret_samples[SAMPLES_MAX]);

/* Notes what has been counted by now as the state of this second. For the worker, at every tick. */
void stats_note_moment(struct stats *stats, int64_t now_ms);

/* Copies the moments, oldest first, and returns how many there are. */
size_t moments_copy(struct moments *moments, struct moment ret_moments[MOMENTS_MAX]);

/* Text is cut when it does not fit. */
void trouble_set(struct trouble *trouble, const char *text);
void trouble_copy(struct trouble *trouble, char ret_text[TROUBLE_BYTES]);

#endif
