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

/* What one job does itself before the others could have connected. */
#define HELP_KEYS 10000

/* What the jobs share: all of it atomic, but for the arrays, whose elements belong to who took the shard. */
struct pass {
    const struct jobs_options *options;
    struct jobs_result *result;
    atomic_int_least64_t next; /* shard */
    atomic_int_least64_t done; /* shards */
    atomic_bool over;          /* no use in going on */
    atomic_bool help_wanted;   /* by the first job; the others wait for it */
    pthread_mutex_t mutex;
    pthread_cond_t help;
};

struct job {
    struct pass *pass;
    pthread_t thread;
    bool started, borrows; /* a thread; its connections */
    struct postgres *postgres;
    struct source_redis *source;
    struct sink_postgres *sink;
    struct flush flush;
    int64_t next, taken;    /* the shards that it has taken and not begun: from `next` up to before `taken` */
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
        generation->set_aside
            ? "it came after a generation that went into quarantine"
            : "Redis or Postgres went back in time or lost data, and this generation mixes what "
              "Postgres has with what it lacks");
}

static void log_applied_before(uint32_t shard, const struct generation *generation, int64_t keys,
                               int64_t total)
{
    log_event(LOG_LEVEL_WARN, "applied_before",
              "shard=%" PRIu32 " gen=%s keys=%" PRId64 " increments=%" PRId64
              " hint=\"Redis went back in time, and had again what Postgres has: nothing of it was applied a "
              "second time\"",
              shard, generation->id, keys, total);
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

static void add_flushed(struct job *job, int64_t shard, const struct flush_result *flushed)
{
    job->own.keys = whole_add(job->own.keys, flushed->keys);
    job->own.total = whole_add(job->own.total, flushed->total);
    job->own.events = whole_add(job->own.events, flushed->events);
    job->own.parked += flushed->parked;
    job->own.dropped += flushed->dropped;
    note_quarantine(job, shard, flushed->quarantined);
}

static void flush_one(struct job *job, int64_t shard)
{
    struct flush_result flushed;
    struct error error;
    bool mixed = false;
    int r = FAILURE_UNAVAILABLE;

    /* Twice, so that a connection that was cut, or a server that was restarted, does not end the pass. */
    for (int attempt = 0; attempt < 2 && r == FAILURE_UNAVAILABLE; attempt++) {
        r = flush_shard(&job->flush, (uint32_t)shard, &flushed, &error);
        add_flushed(job, shard, &flushed);
        mixed |= flushed.mixed;
    }
    if (r == 0 && !mixed)
        job->pass->result->fresh_ms[shard] = flushed.fresh_ms;
    note_shard(job, shard, r, &error);
    atomic_fetch_add(&job->pass->done, 1);
}

static int job_open(struct job *job, struct error *error)
{
    const struct config *config = job->pass->options->config;
    int r = 0;

    if (job->borrows) {
        job->postgres = job->pass->options->postgres;
        job->source = job->pass->options->source;
    } else {
        r = postgres_new(config, &job->postgres, error);
        if (r == 0)
            r = source_redis_new(config, &job->source, error);
    }
    if (r == 0)
        r = sink_postgres_new(job->postgres, config, job->pass->options->plan, &job->sink, error);
    return r;
}

static void job_close(struct job *job)
{
    flush_done(&job->flush);
    sink_postgres_free(job->sink);
    if (job->borrows)
        return;
    source_redis_free(job->source);
    postgres_free(job->postgres);
}

static bool is_over(const struct pass *pass)
{
    return atomic_load(&pass->over) || (pass->options->stop_requested && pass->options->stop_requested());
}

/* The next shard that nobody has taken yet; false when there is none, or no use in going on. Several are
 * taken at a time, for the source to look ahead. */
static bool take_shard(struct job *job, int64_t *ret_shard)
{
    int64_t shards = job->pass->options->config->shards;

    if (is_over(job->pass))
        return false;
    if (job->next == job->taken) {
        job->next = atomic_fetch_add(&job->pass->next, SOURCE_AHEAD_MAX);
        job->taken = job->next + SOURCE_AHEAD_MAX < shards ? job->next + SOURCE_AHEAD_MAX : shards;
        if (job->next >= shards) {
            job->next = job->taken;
            return false;
        }
        job->flush.source->expect(job->flush.source->context, (uint32_t)job->next,
                                  (uint32_t)(job->taken - job->next));
    }
    *ret_shard = job->next++;
    return true;
}

static void finish_shard(struct job *job, int64_t shard)
{
    note_shard(job, shard, 0, NULL);
    atomic_fetch_add(&job->pass->done, 1);
}

static void call_help(struct pass *pass)
{
    if (atomic_load(&pass->help_wanted))
        return;
    pthread_mutex_lock(&pass->mutex);
    atomic_store(&pass->help_wanted, true);
    pthread_cond_broadcast(&pass->help);
    pthread_mutex_unlock(&pass->mutex);
}

static void wait_for_call(struct pass *pass)
{
    pthread_mutex_lock(&pass->mutex);
    while (!atomic_load(&pass->help_wanted))
        pthread_cond_wait(&pass->help, &pass->mutex);
    pthread_mutex_unlock(&pass->mutex);
}

/* Gathers shards until a transaction is full, or there are no more, or one wants to go alone: that is then
 * given, else -1. */
static int64_t gather(struct job *job, int64_t gathered[FLUSH_CARGO_MAX], size_t *ret_len, bool *ret_more)
{
    struct flush_result result;
    struct error ignored;
    int64_t shard;
    int r = GATHERED_MORE;

    *ret_len = 0;
    while (r != GATHERED_FULL && (*ret_more = take_shard(job, &shard))) {
        r = flush_gather(&job->flush, (uint32_t)shard, &result, &ignored);
        if (r < 0 || r == GATHERED_ALONE)
            return shard;
        if (r == GATHERED_NOTHING) {
            job->pass->result->fresh_ms[shard] = result.fresh_ms;
            finish_shard(job, shard);
        } else {
            gathered[(*ret_len)++] = shard;
        }
        if (job->flush.updates.len >= HELP_KEYS)
            call_help(job->pass);
    }
    return -1;
}

/* Several in one transaction. What does not go smoothly is done again shard by shard, and fails there if it
 * fails. False when no shard is left. */
static bool flush_several(struct job *job)
{
    int64_t gathered[FLUSH_CARGO_MAX];
    struct flush_result result;
    struct error ignored;
    size_t len;
    bool more;
    int64_t alone = gather(job, gathered, &len, &more);
    int r;

    call_help(job->pass);
    r = flush_gathered(&job->flush, &result, &ignored);

    add_flushed(job, -1, &result); /* nothing goes into quarantine that way */
    for (size_t i = 0; i < len; i++) {
        if (r == 0)
            finish_shard(job, gathered[i]);
        else if (!is_over(job->pass))
            flush_one(job, gathered[i]);
    }
    if (alone >= 0 && !is_over(job->pass))
        flush_one(job, alone);
    return more;
}

static void *job_main(void *argument)
{
    struct job *job = argument;
    struct error error;
    int r;

    /* A small pass is over before others could help, and their connections would cost more than they bring.
     */
    if (!job->borrows)
        wait_for_call(job->pass);
    r = job_open(job, &error);
    if (r < 0) {
        add_failure(&job->own, r, &error);
    } else {
        struct source source = source_redis_seam(job->source);
        struct sink sink = sink_postgres_seam(job->sink);
        job->flush =
            (struct flush){.source = &source,
                           .sink = &sink,
                           .gather_keys = (size_t)job->pass->options->config->flush.keys_per_transaction,
                           .on_quarantine = log_quarantine,
                           .on_applied_before = log_applied_before};
        while (flush_several(job))
            ;
    }
    call_help(job->pass);
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

static void start(struct job *job, struct pass *pass, bool borrows)
{
    struct error error;
    int code;

    *job = (struct job){.pass = pass, .borrows = borrows};
    code = pthread_create(&job->thread, NULL, job_main, job);
    job->started = code == 0;
    if (code != 0) {
        error_set(&error, -code, "can't start a thread: %s; make 'flush.jobs' smaller", strerror(code));
        add_failure(&job->own, -code, &error);
        call_help(pass);
    }
}

void jobs_run(const struct jobs_options *options, struct jobs_result *ret_result)
{
    struct pass pass = {.options = options,
                        .result = ret_result,
                        .mutex = PTHREAD_MUTEX_INITIALIZER,
                        .help = PTHREAD_COND_INITIALIZER};
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
        start(&jobs[i], &pass, i == 0);
    for (size_t i = 0; i < len; i++) {
        if (jobs[i].started)
            wait_for(&jobs[i]);
        ret_result->shards += jobs[i].own.shards;
        ret_result->shards_failed += jobs[i].own.shards_failed;
        ret_result->parked += jobs[i].own.parked;
        ret_result->dropped += jobs[i].own.dropped;
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
