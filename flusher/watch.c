#include "flusher/watch.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "flusher/failure.h"
#include "lib/clock.h"

enum who { COUNTERD, REDIS, POSTGRES, WHO_COUNT };

/* One that is asked: a thread, and what it works with. */
struct asked {
    struct watch *watch;
    enum who who;
    pthread_t thread;
    bool started;
    sem_t questions;
    atomic_bool over;

    /* The thread's, while `owes`; else the caller's. */
    int r;
    struct error error;

    /* The caller's. */
    bool owes, reported;           /* an answer; ever one */
    int64_t asked_ms;              /* clock_monotonic_ms() */
    int64_t asked_at, reported_at; /* turns */
    int64_t well_ms;               /* when it last answered well; 0 = never */
    int outcome;                   /* `r` of the last answer */
    struct error trouble;
};

struct watch {
    const struct config *config;
    const char *config_path;
    struct asked asked[WHO_COUNT];
    int reports[2]; /* a pipe: who has reported, a byte each */

    /* The threads', each while it owes an answer. */
    struct daemon_status daemon;
    struct source_redis *source;
    struct redis *redis;
    struct shard_state *states;
    struct largest largest;
    struct redis_memory memory;
    struct postgres *postgres;
    struct shard_state *states_seen; /* Redis's, when Postgres was asked */
    struct shard_books *heads;       /* of the look before */
    bool seen, heads_known;          /* whether they are to be used */
    struct overview overview;

    int64_t turns; /* every question and every report is one: what came before what */
    struct figures figures;
    int64_t rates_ms; /* when `daemon` was last well, to make rates of; 0 = never */
};

/* --- in the threads --- */

static int look_at_redis(struct watch *watch, struct error *error)
{
    int r = overview_redis(watch->source, watch->config, watch->states, error);

    if (r == 0)
        r = overview_largest(watch->redis, watch->config, watch->states, &watch->largest, error);
    return r < 0 ? r : overview_memory(watch->redis, &watch->memory, error);
}

static int look_at_postgres(struct watch *watch, struct error *error)
{
    int r = overview_check(watch->postgres, watch->config, watch->config_path, error);

    if (r == 0)
        r = overview_postgres(watch->postgres, watch->config, watch->seen ? watch->states_seen : NULL,
                              watch->heads_known ? watch->heads : NULL, &watch->overview, error);
    /* For the next look, if Redis is looked at in between. */
    return r < 0 ? r : books_heads(watch->postgres, watch->config, watch->heads, error);
}

static int look(struct asked *asked)
{
    switch (asked->who) {
    case COUNTERD:
        return daemon_ask(asked->watch->config, &asked->watch->daemon, &asked->error);
    case REDIS:
        return look_at_redis(asked->watch, &asked->error);
    case POSTGRES:
        return look_at_postgres(asked->watch, &asked->error);
    case WHO_COUNT:
        break;
    }
    return 0;
}

static void *answer(void *argument)
{
    struct asked *asked = argument;
    char who = (char)asked->who;

    for (;;) {
        while (sem_wait(&asked->questions) < 0 && errno == EINTR)
            ;
        if (atomic_load(&asked->over))
            return NULL;
        asked->r = look(asked);
        /* The pipe holds more than three bytes. */
        if (write(asked->watch->reports[1], &who, 1) != 1)
            return NULL;
    }
}

/* --- the caller's side --- */

static void ask(struct asked *asked)
{
    struct watch *watch = asked->watch;

    if (asked->owes || !asked->started)
        return;
    if (asked->who == POSTGRES) {
        const struct asked *redis = &watch->asked[REDIS];
        watch->seen = !redis->owes && redis->reported && redis->outcome == 0;
        watch->heads_known = asked->reported && asked->outcome == 0 && asked->reported_at < redis->asked_at;
        if (watch->seen)
            memcpy(watch->states_seen, watch->states, (size_t)watch->config->shards * sizeof(*watch->states));
    }
    asked->owes = true;
    asked->asked_ms = clock_monotonic_ms();
    asked->asked_at = ++watch->turns;
    sem_post(&asked->questions);
}

void watch_ask(struct watch *watch)
{
    /* Redis hangs: nobody waits for it. */
    if (watch->asked[REDIS].owes)
        ask(&watch->asked[POSTGRES]);
    ask(&watch->asked[COUNTERD]);
    ask(&watch->asked[REDIS]);
}

/* Below this, a rate is chance. */
#define RATE_MS_MIN 500

static int64_t rate(int64_t now, int64_t before, int64_t elapsed_ms)
{
    return now >= before && elapsed_ms >= RATE_MS_MIN ? (now - before) * 1000 / elapsed_ms : RATE_UNKNOWN;
}

static void take_daemon(struct watch *watch, int64_t now_ms)
{
    struct figures *figures = &watch->figures;
    const struct daemon_status *now = &watch->daemon, *before = &figures->daemon;
    bool same = watch->rates_ms > 0 && now->uptime_ms >= before->uptime_ms;
    int64_t elapsed_ms = same ? now_ms - watch->rates_ms : 0;

    figures->received_per_s = rate(now->received, before->received, elapsed_ms);
    figures->rejected_per_s = rate(now->rejected, before->rejected, elapsed_ms);
    figures->dropped_per_s = rate(now->kernel_dropped, before->kernel_dropped, elapsed_ms);
    figures->daemon = *now;
    watch->rates_ms = now_ms;
}

/* As long as Postgres does not tell, what is sealed may be in the tables already. */
static void take_states(struct watch *watch)
{
    struct figures *figures = &watch->figures;

    figures->largest = watch->largest;
    figures->memory = watch->memory;
    if (watch->asked[POSTGRES].reported && watch->asked[POSTGRES].outcome == 0 &&
        !watch->asked[POSTGRES].owes)
        return;
    overview_redis_alone(watch->config, watch->states, &figures->pending);
    figures->pending_known = true;
    figures->sealed_known = figures->pending.sealed_keys == 0;
}

static void take_overview(struct watch *watch)
{
    struct figures *figures = &watch->figures;

    figures->overview = watch->overview;
    if (!watch->overview.pending_known)
        return;
    figures->pending = watch->overview.pending;
    figures->pending_known = figures->sealed_known = true;
}

static void take(struct asked *asked)
{
    struct watch *watch = asked->watch;
    int64_t now_ms = clock_monotonic_ms();

    asked->owes = false;
    asked->reported = true;
    asked->outcome = asked->r;
    asked->reported_at = ++watch->turns;
    if (asked->r < 0) {
        asked->trouble = asked->error;
    } else {
        asked->well_ms = now_ms;
        asked->trouble.text[0] = '\0';
    }
    if (asked->who == COUNTERD && asked->r == 0)
        take_daemon(watch, now_ms);
    if (asked->who == REDIS && asked->r == 0)
        take_states(watch);
    if (asked->who == REDIS)
        ask(&watch->asked[POSTGRES]);
    if (asked->who == POSTGRES && asked->r == 0)
        take_overview(watch);
}

void watch_take(struct watch *watch)
{
    char who[WHO_COUNT];
    ssize_t len = read(watch->reports[0], who, sizeof(who));

    for (ssize_t i = 0; i < len; i++)
        take(&watch->asked[(size_t)who[i]]);
}

bool watch_waits(const struct watch *watch)
{
    for (size_t i = 0; i < WHO_COUNT; i++)
        if (watch->asked[i].owes)
            return true;
    return false;
}

int watch_fd(const struct watch *watch)
{
    return watch->reports[0];
}

static struct part part_of(struct asked *asked, int64_t now_ms)
{
    struct part part = {.state = asked->reported ? PART_WELL : PART_ASKED,
                        .well_ms = asked->well_ms > 0 ? now_ms - asked->well_ms : -1,
                        .trouble = asked->trouble.text};

    if (asked->owes && now_ms - asked->asked_ms > WATCH_PATIENCE_MS) {
        part.state = PART_AWAY;
        part.silent = true;
        snprintf(asked->trouble.text, sizeof(asked->trouble.text), "no answer for %" PRId64 " s",
                 (now_ms - asked->asked_ms) / 1000);
    } else if (asked->reported && asked->trouble.text[0] != '\0') {
        part.state = PART_AWAY;
        part.silent = asked->who == COUNTERD || asked->outcome == FAILURE_UNAVAILABLE;
    }
    return part;
}

const struct figures *watch_figures(struct watch *watch)
{
    int64_t now_ms = clock_monotonic_ms();

    watch->figures.now_ms = clock_unix_ms();
    watch->figures.counterd = part_of(&watch->asked[COUNTERD], now_ms);
    watch->figures.redis = part_of(&watch->asked[REDIS], now_ms);
    watch->figures.postgres = part_of(&watch->asked[POSTGRES], now_ms);
    return &watch->figures;
}

int watch_failure(const struct watch *watch)
{
    int failure = 0;

    for (enum who who = REDIS; who <= POSTGRES; who++) {
        const struct asked *asked = &watch->asked[who];
        failure =
            failure_worse(failure, asked->owes || !asked->reported ? FAILURE_UNAVAILABLE : asked->outcome);
    }
    return failure;
}

/* --- life --- */

static int start(struct watch *watch, enum who who, struct error *error)
{
    struct asked *asked = &watch->asked[who];
    int code;

    asked->watch = watch;
    asked->who = who;
    sem_init(&asked->questions, 0, 0);
    code = pthread_create(&asked->thread, NULL, answer, asked);
    if (code != 0)
        return error_set(error, -code, "can't start a thread: %s", strerror(code));
    asked->started = true;
    return 0;
}

int watch_new(const struct config *config, int64_t interval_ms, const char *config_path,
              struct watch **ret_watch, struct error *error)
{
    struct watch *watch = calloc(1, sizeof(*watch));
    size_t shards = (size_t)config->shards;
    int r = 0;

    if (!watch)
        return error_set(error, -ENOMEM, "out of memory");
    watch->config = config;
    watch->config_path = config_path;
    watch->figures = (struct figures){.namespace = config->namespace,
                                      .shards = config->shards,
                                      .interval_ms = interval_ms,
                                      .received_per_s = RATE_UNKNOWN,
                                      .rejected_per_s = RATE_UNKNOWN,
                                      .dropped_per_s = RATE_UNKNOWN};
    watch->states = calloc(shards, sizeof(*watch->states));
    watch->states_seen = calloc(shards, sizeof(*watch->states_seen));
    watch->heads = calloc(shards, sizeof(*watch->heads));
    if (pipe2(watch->reports, O_CLOEXEC | O_NONBLOCK) < 0) {
        r = error_set(error, -errno, "can't make a pipe: %s", strerror(errno));
        watch->reports[0] = watch->reports[1] = -1;
    } else if (!watch->states || !watch->states_seen || !watch->heads) {
        r = error_set(error, -ENOMEM, "out of memory");
    }
    if (r == 0)
        r = source_redis_new(config, &watch->source, error);
    if (r == 0)
        r = redis_new(config, &watch->redis, error);
    if (r == 0)
        r = postgres_new(config, &watch->postgres, error);
    for (enum who who = COUNTERD; r == 0 && who < WHO_COUNT; who++)
        r = start(watch, who, error);
    if (r < 0)
        watch_free(watch);
    else
        *ret_watch = watch;
    return r;
}

void watch_free(struct watch *watch)
{
    assert(!watch_waits(watch));
    for (size_t i = 0; i < WHO_COUNT; i++) {
        struct asked *asked = &watch->asked[i];
        if (!asked->started)
            continue;
        atomic_store(&asked->over, true);
        sem_post(&asked->questions);
        pthread_join(asked->thread, NULL);
        sem_destroy(&asked->questions);
    }
    source_redis_free(watch->source);
    redis_free(watch->redis);
    postgres_free(watch->postgres);
    free(watch->states);
    free(watch->states_seen);
    free(watch->heads);
    for (size_t i = 0; i < 2; i++)
        if (watch->reports[i] >= 0)
            close(watch->reports[i]);
    free(watch);
}
