/* pipeline - a worker's way from its table to Redis: two tables that swap, the outbox, the store
 *
 * One table fills while the other drains; they swap every coalesce_ms, once the drained one is wholly
 * acknowledged. Under a slow or absent Redis the filling table coalesces more, so memory is bounded by keys
 * and not by events. Idle, it wakes nobody up. Belongs to one worker's loop.
 *
 * With a spool, what Redis does not take goes to disk, and the tables swap on: when Redis has been away for
 * SPOOL_AFTER_MS, and from then on every SPOOL_EVERY_MS; when the table that fills is crowded; and at the
 * end. A batch on disk is not stored: who waits for it, waits on. As long as the disk takes nothing, all is
 * as without a spool.
 */
#ifndef COUNTERD_PIPELINE_H
#define COUNTERD_PIPELINE_H

#include <sys/queue.h>

#include "counterd/ingest.h"
#include "counterd/stats.h"
#include "lib/config.h"

struct event_base;
struct pipeline;

/* The settings that a reload may change. */
struct pipeline_limits {
    int64_t coalesce_ms;
    size_t keys_max;
    size_t history_bytes;
    struct targets *targets; /* borrowed */
};

struct pipeline_limits pipeline_limits_of(const struct config *config);

struct pipeline_options {
    struct event_base *base;
    const struct config *config; /* kept */
    struct ingest *ingest;       /* kept; is given its table */
    struct stats *stats;         /* kept */
    int spool_directory;         /* kept; -1 = no spool */
    void *context;
    void (*on_tick)(void *context); /* every coalesce_ms while there is traffic */
    void (*on_room)(void *context); /* the tables have swapped, so pipeline_is_crowded() may have ended */
    void (*on_done)(void *context); /* after pipeline_finish(): all is stored, or time is up */
};

/* Gives NULL when out of memory. */
struct pipeline *pipeline_new(const struct pipeline_options *options);
void pipeline_free(struct pipeline *pipeline);

/* Targets hold from the next table on, so that an event is counted by the old ones or by the new ones as a
 * whole; at once, when nothing is gathered. */
void pipeline_set_limits(struct pipeline *pipeline, const struct pipeline_limits *limits);

/* The table that fills is nearly full of keys: whoever can wait should, until on_room, which comes. */
bool pipeline_is_crowded(const struct pipeline *pipeline);

/* Something has been received: makes sure that a tick comes. */
void pipeline_poke(struct pipeline *pipeline);

/* Somebody who wants to know when what has been received so far is in Redis. Belongs to who waits, and must
 * stay where it is until it was told or cancelled. */
struct pipeline_wait {
    void *context;
    void (*on_stored)(void *context); /* called from the loop, never from pipeline_wait() */
    uint64_t table;                   /* the pipeline's: number of the table that has to be stored */
    TAILQ_ENTRY(pipeline_wait) link;
};

/* Tells when all that was received before this call is in Redis, also if that has gone back meanwhile. Who
 * waits makes the tables swap as soon as the one before is stored, without regard to coalesce_ms; all who
 * wait meanwhile share the next swap. */
void pipeline_wait(struct pipeline *pipeline, struct pipeline_wait *wait);
void pipeline_cancel(struct pipeline *pipeline, struct pipeline_wait *wait);

/* Before the loop runs: a fraction that an earlier process has left. Those of several workers may make a
 * whole, which is stored without waiting for a line. */
void pipeline_carry(struct pipeline *pipeline, struct span key, int64_t micros);

/* Nothing more will be received: stores what is there, giving up when Redis makes no progress for its
 * timeout, and calls on_done. With a spool, what can't be stored goes there: at once when Redis is away, but
 * for one thing: what it has acknowledged and Postgres may not have, it is asked for first, as it may have
 * come back with less. */
void pipeline_finish(struct pipeline *pipeline);

/* What is not in Redis. */
struct pipeline_rest {
    uint64_t spooled;       /* increments on disk */
    uint64_t events;        /* increments that are nowhere */
    uint64_t missing;       /* others that Redis had acknowledged, and turned out to lack */
    bool made;              /* some that are in Redis lack what they, or their fractions, were to count for */
    uint64_t fraction_keys; /* keys of which less than a unit is left */
    int64_t fraction_micros; /* their sum */
};

/* For the end, after on_done: takes it all out of the tables. */
struct pipeline_rest pipeline_take_rest(struct pipeline *pipeline);

#endif
