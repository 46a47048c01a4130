#include "flusher/jobs.h"

#include <inttypes.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <time.h>

#include "flusher/failure.h"
#include "flusher/flush.h"
#include "flusher/sink_postgres.h"
#include "flusher/source_redis.h"
#include "flusher/whole.h"
#include "lib/log.h"

#define JOBS_MAX 64
#define TICK_MS  100

/* What the jobs share: all of it atomic, but for the arrays, whose elements belong to who took the shard. */
struct pass {
    const struct jobs_options *options;
    struct jobs_result *result;
    atomic_int_least64_t next; /* shard */
    atomic_int_least64_t done; /* shards */
    atomic_bool over;          /* no use in going on */
};

struct job {
    struct pass *pass;
    pthread_t thread;
    bool started;
    struct postgres *postgres;
    struct source_redis *source;
    struct sink_postgres *sink;
    struct flush flush;
    struct jobs_result own; /* without the arrays */
};

static void add_failure(struct jobs_result *result, int failure, const struct error *error)
{
    if (failure == 0 || failure_worse(result->failure, failure) == result->failure)
        return;
    result->failure = failure;
    result->error = *error;
}

static void note_shard(struct job *job, int64_t shard, int failure, const struct error *error)
{
    struct pass *pass = job->pass;

    if (failure == 0) {
        job->own.shards++;
        return;
    }
    job->own.shards_failed++;
    pass->result->texts[shard] = strdup(error->text);
    add_failure(&job->own, failure, error);
    if (failure == FAILURE_UNAVAILABLE || failure == FAILURE_CONFIG)
        atomic_store(&pass->over, true);
}

static void log_quarantine(uint32_t shard, const struct generation *generation, int64_t keys, int64_t total)
{
    log_event(
        LOG_LEVEL_ERROR, "quarantined",
        "shard=%" PRIu32 " gen=%s part=%s keys=%" PRId64 " increments=%" PRId64
        " hint=\"%s. Nothing of it was applied; what its counterd still has is sent again by itself. See "
        "'flusher quarantine list'\"",
        shard, generation->id, generation->set_aside ? "open" : "sealed", keys, total,
        generation->set_aside ? "it came after a generation that went into quarantine"
                              : "Redis went back in time or lost data, and this generation mixes what "
                                "Postgres has with what it lacks");
}

/* No shard has failed, but somebody has to look. */
static void note_quarantine(struct job *job, int64_t shard, int64_t quarantined)
{
    struct error error;

    job->own.quarantined += quarantined;
    if (quarantined > 0)
        add_failure(&job->own,
                    error_set(&error, FAILURE_LATER,
                              "shard %" PRId64 ": Redis went back in time or lost data, and %" PRId64
                              " generation%s went into quarantine; see 'flusher quarantine list'",
                              shard, quarantined, quarantined > 1 ? "s" : ""),
                    &error);
}

static void flush_one(struct job *job, int64_t shard)
{
    struct flush_result flushed;
    struct error error;
    int r = FAILURE_UNAVAILABLE;

    /* Twice, so that a connection that was cut, or a server that was restarted, does not end the pass. */
    for (int attempt = 0; attempt < 2 && r == FAILURE_UNAVAILABLE; attempt++) {
        r = flush_shard(&job->flush, (uint32_t)shard, &flushed, &error);
        job->own.keys = whole_add(job->own.keys, flushed.keys);
        job->own.total = whole_add(job->own.total, flushed.total);
        job->own.events = whole_add(job->own.events, flushed.events);
        note_quarantine(job, shard, flushed.quarantined);
    }
    if (r == 0)
        job->pass->result->fresh_ms[shard] = flushed.fresh_ms;
    note_shard(job, shard, r, &error);
}

static int job_open(struct job *job, struct error *error)
{
    const struct config *config = job->pass->options->config;
    int r = postgres_new(config, &job->postgres, error);

    if (r == 0)
        r = sink_postgres_new(job->postgres, config->namespace, &job->sink, error);
    if (r == 0)
        r = source_redis_new(config, &job->source, error);
    return r;
}

static void job_close(struct job *job)
{
    flush_done(&job->flush);
    source_redis_free(job->source);
    sink_postgres_free(job->sink);
    postgres_free(job->postgres);
}

static bool is_over(struct pass *pass)
{
    return atomic_load(&pass->over) || (pass->options->stop_requested && pass->options->stop_requested());
}

static void *job_main(void *argument)
{
    struct job *job = argument;
    struct pass *pass = job->pass;
    struct error error;
    int r = job_open(job, &error);

    if (r < 0) {
        add_failure(&job->own, r, &error);
    } else {
        struct source source = source_redis_seam(job->source);
        struct sink sink = sink_postgres_seam(job->sink);
        int64_t shard;
        job->flush = (struct flush){.source = &source, .sink = &sink, .on_quarantine = log_quarantine};
        while (!is_over(pass) && (shard = atomic_fetch_add(&pass->next, 1)) < pass->options->config->shards) {
            flush_one(job, shard);
            atomic_fetch_add(&pass->done, 1);
        }
    }
    job_close(job);
    return NULL;
}

static void wait_for(struct job *job)
{
    const struct jobs_options *options = job->pass->options;
    struct timespec until;

    while (options->tick) {
        clock_gettime(CLOCK_REALTIME, &until);
        until.tv_nsec += TICK_MS * 1000000L;
        until.tv_sec += until.tv_nsec / 1000000000L;
        until.tv_nsec %= 1000000000L;
        if (pthread_timedjoin_np(job->thread, NULL, &until) != ETIMEDOUT)
            return;
        options->tick(atomic_load(&job->pass->done), options->config->shards);
    }
    pthread_join(job->thread, NULL);
}

static void start(struct job *job, struct pass *pass)
{
    struct error error;
    int code;

    *job = (struct job){.pass = pass};
    code = pthread_create(&job->thread, NULL, job_main, job);
    job->started = code == 0;
    if (code != 0) {
        error_set(&error, -code, "can't start a thread: %s; make 'flush.jobs' smaller", strerror(code));
        add_failure(&job->own, -code, &error);
    }
}

void jobs_run(const struct jobs_options *options, struct jobs_result *ret_result)
{
    struct pass pass = {.options = options, .result = ret_result};
    struct job jobs[JOBS_MAX];
    size_t shards = (size_t)options->config->shards, len = (size_t)options->config->flush.jobs;

    *ret_result = (struct jobs_result){.fresh_ms = calloc(shards, sizeof(int64_t)),
                                       .texts = calloc(shards, sizeof(char *))};
    if (!ret_result->fresh_ms || !ret_result->texts) {
        ret_result->failure = error_set(&ret_result->error, -ENOMEM, "out of memory");
        return;
    }
    if (len > shards)
        len = shards;
    for (size_t i = 0; i < len; i++)
        start(&jobs[i], &pass);
    for (size_t i = 0; i < len; i++) {
        if (jobs[i].started)
            wait_for(&jobs[i]);
        ret_result->shards += jobs[i].own.shards;
        ret_result->shards_failed += jobs[i].own.shards_failed;
        ret_result->quarantined += jobs[i].own.quarantined;
        ret_result->keys = whole_add(ret_result->keys, jobs[i].own.keys);
        ret_result->total = whole_add(ret_result->total, jobs[i].own.total);
        ret_result->events = whole_add(ret_result->events, jobs[i].own.events);
        add_failure(ret_result, jobs[i].own.failure, &jobs[i].own.error);
    }
}

void jobs_result_done(struct jobs_result *result, const struct config *config)
{
    for (int64_t i = 0; result->texts && i < config->shards; i++)
        free(result->texts[i]);
    free(result->texts);
    free(result->fresh_ms);
    *result = (struct jobs_result){0};
}
