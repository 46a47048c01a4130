/* jobs - one pass over all shards, by several threads that share nothing but which shard is next
 *
 * Each job has its own connections to Redis and Postgres, of which the first are the caller's. A shard that
 * fails is left and the others go on, unless Redis or Postgres is gone or refuses us: then the pass ends
 * early.
 */
#ifndef FLUSHER_JOBS_H
#define FLUSHER_JOBS_H

#include "lib/config.h"
#include "lib/error.h"

struct plan;
struct postgres;
struct source_redis;

struct jobs_options {
    const struct config *config; /* borrowed; flush.jobs says how many */
    const struct plan *plan;     /* borrowed, and shared by the jobs */
    /* The caller's connections, lent to the first job: to open others would take longer than a small pass. */
    struct postgres *postgres;
    struct source_redis *source;
    bool (*stop_requested)(void); /* asked by every job between shards; NULL = never stop */
    void (*tick)(int64_t shards_done,
                 int64_t shards); /* in the caller's thread, ten times a second; or NULL */
};

struct jobs_result {
    int64_t shards;        /* flushed without a failure */
    int64_t shards_failed; /* left for a later run */
    int64_t quarantined;   /* generations; then `failure` is set too */
    int64_t keys, total, events;
    int64_t parked, dropped; /* keys of those */
    int failure;             /* 0, or the worst that happened */
    struct error error;      /* why, when failure != 0 */
    int64_t *fresh_ms;       /* per shard: nothing accepted before it is pending; 0 = not known */
    char **texts;            /* per shard: why it failed; NULL when it did not */
};

/* Fills `ret_result`, to be done by jobs_result_done(), also when it fails. */
void jobs_run(const struct jobs_options *options, struct jobs_result *ret_result);

void jobs_result_done(struct jobs_result *result, const struct config *config);

#endif
