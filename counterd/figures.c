#include "counterd/figures.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <unistd.h>

#include "counterd/worker.h"
#include "lib/clock.h"

#define MINUTE 60

#define SUM(view, member) status_sum(view, offsetof(struct stats, member))

uint64_t status_sum(const struct status_view *view, size_t stats_offset)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < view->stats_len; i++)
        sum += counter_get((const counter *)((const char *)view->stats[i] + stats_offset));
    return sum;
}

/* Since the latest of such moments; -1 = there was none. */
static int64_t ago(const struct status_view *view, size_t stats_offset, int64_t now_ms)
{
    int64_t latest = 0;

    for (size_t i = 0; i < view->stats_len; i++) {
        int64_t ms = (int64_t)counter_get((const counter *)((const char *)view->stats[i] + stats_offset));
        if (ms > latest)
            latest = ms;
    }
    if (latest == 0)
        return -1;
    return now_ms > latest ? now_ms - latest : 0;
}

/* --- received --- */

static struct listener_figures *find_listener(struct figures *figures, const char *kind, const char *address)
{
    struct listener_figures *found;

    for (size_t i = 0; i < figures->listeners_len; i++)
        if (strcmp(figures->listeners[i].kind, kind) == 0 &&
            strcmp(figures->listeners[i].address, address) == 0)
            return &figures->listeners[i];
    found = &figures->listeners[figures->listeners_len++];
    found->kind = kind;
    found->address = address;
    return found;
}

static void take_listener(struct figures *figures, const struct listener *listener)
{
    struct listener_figures *sum = find_listener(figures, listener_kind_name(listener->kind), listener->name);

    sum->lines += counter_get(&listener->lines);
    sum->datagrams += counter_get(&listener->datagrams);
    sum->bytes += counter_get(&listener->bytes);
    sum->dropped += counter_get(&listener->dropped);
    sum->buffer_bytes += (uint64_t)listener->buffer_bytes;
}

static void take_listeners(const struct status_view *view, struct figures *figures)
{
    for (size_t i = 0; i < view->workers_len; i++) {
        size_t len;
        const struct listener *listeners = worker_listeners(view->workers[i], &len);
        for (size_t j = 0; j < len; j++)
            take_listener(figures, &listeners[j]);
    }
    if (view->posts) {
        struct listener_figures *posts = find_listener(figures, "http", view->http_listener->name);
        posts->lines = counter_get(&view->posts->lines);
        posts->bytes = counter_get(&view->posts->bytes);
    }
    for (size_t i = 0; i < figures->listeners_len; i++)
        figures->dropped += figures->listeners[i].dropped;
}

static void take_received(const struct status_view *view, struct figures *figures)
{
    take_listeners(view, figures);
    figures->datagrams = SUM(view, datagrams);
    figures->bytes = SUM(view, bytes);
    figures->connections = SUM(view, connections);
    figures->connections_refused = SUM(view, connections_refused);
    figures->truncated = SUM(view, truncated);
    figures->fields_ignored = SUM(view, fields_ignored);
    for (int i = REJECT_NONE + 1; i < REJECT_COUNT; i++) {
        figures->rejected[i] =
            status_sum(view, offsetof(struct stats, rejected) + (size_t)i * sizeof(counter));
        figures->rejected_total += figures->rejected[i];
    }
    figures->buffer_bytes_asked = (uint64_t)view->config->listen.buffer_bytes;
}

/* --- on the way to Redis --- */

static void take_histogram(const struct histogram *histogram, struct histogram_figures *sum)
{
    for (int i = 0; i <= HISTOGRAM_BOUNDS; i++)
        sum->counts[i] += counter_get(&histogram->counts[i]);
    sum->sum_us += counter_get(&histogram->sum_us);
}

/* The age of what is there since such a moment, if that is more than `age_ms`. */
static int64_t older(int64_t age_ms, const counter *since_ms, int64_t now_ms)
{
    int64_t ms = (int64_t)counter_get(since_ms);

    return ms > 0 && now_ms - ms > age_ms ? now_ms - ms : age_ms;
}

static void take_spool(const struct status_view *view, struct figures *figures, int64_t now_ms)
{
    const struct config *config = view->config;

    figures->spooled = SUM(view, spooled);
    figures->spooled_batches = SUM(view, spooled_batches);
    figures->replayed = SUM(view, replayed);
    figures->replayed_batches = SUM(view, replayed_batches);
    figures->spool_errors = SUM(view, spool_errors);
    figures->spool_error_ago_ms = ago(view, offsetof(struct stats, spool_error_ms), now_ms);
    figures->spool_bytes_max = config->spool_dir[0] != '\0' ? (uint64_t)config->spool_bytes : 0;
    figures->to_replay = SUM(view, replay_waiting) + SUM(view, replay_left);
    figures->spool_bytes = SUM(view, replay_left_bytes);
    figures->on_disk = SUM(view, spool_waiting);
    if (figures->on_disk > figures->pending)
        figures->on_disk = figures->pending;
    for (size_t i = 0; i < view->stats_len; i++) {
        struct stats *stats = view->stats[i];
        uint64_t bytes = counter_get(&stats->spool_bytes);
        figures->spool_bytes += bytes;
        if (bytes > figures->spool_bytes_most)
            figures->spool_bytes_most = bytes;
        if (figures->spool_trouble[0] == '\0')
            trouble_copy(&stats->spool_trouble, figures->spool_trouble);
        if (figures->on_disk + figures->to_replay > 0)
            figures->pending_age_ms = older(figures->pending_age_ms, &stats->spool_since_ms, now_ms);
    }
}

static void take_stored(const struct status_view *view, struct figures *figures, int64_t now_ms)
{
    /* What an earlier process has left is sent, but nothing is added to it. */
    uint64_t tables = view->workers_len + (view->posts ? 1 : 0);

    figures->redis_ready = true;
    for (size_t i = 0; i < view->stats_len; i++) {
        struct stats *stats = view->stats[i];
        figures->memory_age_ms = older(figures->memory_age_ms, &stats->gathered_ms, now_ms);
        if (!atomic_load(&stats->redis_ready) || atomic_load(&stats->keyed_away))
            figures->redis_ready = false;
        if (atomic_load(&stats->redis_misfit))
            figures->redis_misfit = true;
        if (figures->trouble[0] == '\0')
            trouble_copy(&stats->trouble, figures->trouble);
        take_histogram(&stats->append, &figures->append);
        take_histogram(&stats->gather, &figures->gather);
    }
    if (figures->pending == 0)
        figures->memory_age_ms = 0;
    figures->pending_age_ms = figures->memory_age_ms;
    take_spool(view, figures, now_ms);
    figures->history_bytes_max = (uint64_t)view->config->history_bytes * view->stats_len;
    figures->only_in_redis = SUM(view, emptied);
    figures->appended_ago_ms = ago(view, offsetof(struct stats, appended_ms), now_ms);
    figures->refused_ago_ms = ago(view, offsetof(struct stats, refused_ms), now_ms);
    figures->went_back_ago_ms = ago(view, offsetof(struct stats, went_back_ms), now_ms);
    figures->batches = SUM(view, appended_batches);
    figures->resent_batches = SUM(view, resent_batches);
    figures->history_bytes = SUM(view, history_bytes);
    figures->redis_lost = SUM(view, redis_lost);
    figures->redis_errors = SUM(view, redis_errors);
    figures->went_back = SUM(view, gaps);
    figures->lost = SUM(view, lost);
    figures->unreplicated = SUM(view, unreplicated);
    figures->idempotent_duplicates = SUM(view, idempotent_duplicates);
    figures->idempotent_conflicts = SUM(view, idempotent_conflicts);
    figures->keys = SUM(view, keys);
    figures->keys_max_each = (uint64_t)view->config->keys_max;
    figures->keys_max = figures->keys_max_each * tables;
    figures->table_bytes = SUM(view, table_bytes);
    figures->overflow = SUM(view, overflow);
    figures->fanout_overflow = SUM(view, fanout_overflow);
    figures->fanout_left_out = SUM(view, fanout_left_out);
}

/* --- the recent past --- */

static void add_recent(struct recent *sum, const struct recent *more)
{
    sum->lines += more->lines;
    sum->rejected += more->rejected;
    sum->dropped += more->dropped;
    sum->overflow += more->overflow;
}

/* One of `parts` equal shares; the remainder goes to the first. */
static struct recent share(const struct recent *whole, uint64_t parts, bool first)
{
    struct recent part = {whole->lines / parts, whole->rejected / parts, whole->dropped / parts,
                          whole->overflow / parts};

    if (first) {
        part.lines += whole->lines % parts;
        part.rejected += whole->rejected % parts;
        part.dropped += whole->dropped % parts;
        part.overflow += whole->overflow % parts;
    }
    return part;
}

/* What came between two moments, spread over the seconds that it may have come in: a worker notes it when it
 * ticks, which is coalesce_ms after the first line. */
static void add_step(struct figures *figures, const struct moment *from, const struct moment *to,
                     int64_t now_second, int64_t tick_seconds)
{
    const struct recent step = {to->lines - from->lines, to->rejected - from->rejected,
                                to->dropped - from->dropped, to->overflow - from->overflow};
    int64_t parts = to->second - from->second;

    if (parts > tick_seconds)
        parts = tick_seconds;
    for (int64_t i = 0; i < parts; i++) {
        /* The second that goes on now is not whole. */
        int64_t at = RECENT_SECONDS - (now_second - (to->second - i));
        struct recent part = share(&step, (uint64_t)parts, i == 0);
        if (at >= 0 && at < RECENT_SECONDS)
            add_recent(&figures->recent[at], &part);
    }
}

static void take_recent(const struct status_view *view, struct figures *figures, int64_t now_ms)
{
    struct moment moments[MOMENTS_MAX];
    int64_t now_second = now_ms / 1000, tick_seconds = 1 + view->config->coalesce_ms / 1000;

    for (size_t i = 0; i < view->stats_len; i++) {
        size_t len = moments_copy(&view->stats[i]->moments, moments);
        /* With a full ring, what came before the first is not known any more. */
        const struct moment start = {.second = len > 0 ? moments[0].second - 1 : 0};
        for (size_t j = len == MOMENTS_MAX ? 1 : 0; j < len; j++)
            add_step(figures, j > 0 ? &moments[j - 1] : &start, &moments[j], now_second, tick_seconds);
    }
    for (size_t i = RECENT_SECONDS - MINUTE; i < RECENT_SECONDS; i++)
        add_recent(&figures->minute, &figures->recent[i]);
}

/* --- the process --- */

static void take_process(const struct status_view *view, struct figures *figures, int64_t now_ms)
{
    FILE *file = fopen("/proc/self/statm", "re");
    unsigned long long pages = 0;
    struct rusage usage;

    if (file) {
        if (fscanf(file, "%*u %llu", &pages) != 1)
            pages = 0;
        fclose(file);
    }
    figures->rss_bytes = pages * (uint64_t)sysconf(_SC_PAGESIZE);
    if (getrusage(RUSAGE_SELF, &usage) == 0)
        figures->cpu_seconds = (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
                               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6;
    figures->uptime_ms = now_ms - view->started_ms;
    figures->started_unix_ms = view->started_unix_ms;
}

void figures_take(const struct status_view *view, const struct reader_look *look, const char *look_error,
                  struct figures *ret_figures)
{
    struct figures *figures = ret_figures;
    int64_t now_ms = clock_monotonic_ms();
    uint64_t gone;

    memset(figures, 0, sizeof(*figures));
    figures->namespace = view->config->namespace;
    figures->shards = config_shards(view->config);
    figures->workers = view->workers_len;
    figures->stopping = view->stopping;
    /* In this order: who sees n lines received and none pending may rely on all n. */
    figures->lines = SUM(view, lines);
    figures->appended = SUM(view, appended);
    figures->spool_lost = SUM(view, spool_lost);
    figures->accepted = SUM(view, accepted);
    gone = figures->appended + figures->spool_lost;
    figures->pending = figures->accepted > gone ? figures->accepted - gone : 0;
    take_received(view, figures);
    take_stored(view, figures, now_ms);
    take_recent(view, figures, now_ms);
    take_process(view, figures, now_ms);
    figures->look = *look;
    figures->look_ago_ms = look->taken_ms > 0 ? now_ms - look->taken_ms : -1;
    snprintf(figures->look_error, sizeof(figures->look_error), "%s", look_error ? look_error : "");
}
