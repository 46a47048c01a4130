/* replay - what earlier processes have left in the spool goes to Redis, under their names
 *
 * A batch that was ever sent must keep its writer and number, or it may count twice; and whether one was,
 * only a process knows that has ended. So each writer's batches are sent as that writer would have sent them,
 * one writer after the other, beside the traffic of this process. Belongs to one loop.
 */
#ifndef COUNTERD_REPLAY_H
#define COUNTERD_REPLAY_H

#include "counterd/spool.h"
#include "counterd/stats.h"
#include "lib/config.h"

struct event_base;
struct replay;

struct replay_options {
    struct event_base *base;
    const struct config *config;  /* kept */
    int directory;                /* kept: spool_directory_open() */
    struct spool_writers writers; /* taken; not none */
    void *context;
    void (*on_done)(void *context); /* after replay_finish() */
};

/* Begins at once. Gives NULL when out of memory. */
struct replay *replay_new(const struct replay_options *options);

/* What is not sent stays on disk, but what Redis has acknowledged does not. So Redis is asked, as in
 * pipeline_finish(), whether it has all of that, and given what it lacks; on_done comes then, or when
 * redis.timeout_ms have brought nothing. May call it at once. */
void replay_finish(struct replay *replay);

/* After on_done: increments that Redis had acknowledged, and turned out to lack, and has not taken again. */
uint64_t replay_missing(const struct replay *replay);

void replay_free(struct replay *replay);

struct stats *replay_stats(struct replay *replay);

#endif
