#include "counterd/health.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

/* Redis is asked again every quarter of a second while it refuses. */
#define REFUSING_MS 3000

/* So long after Redis went back it is told; the log has it for good. */
#define WENT_BACK_TOLD_MS 3600000

/* Of the last minute's lines: one in so many, and no fewer than that. */
#define JUNK_ONE_IN    10
#define JUNK_LINES_MIN 100

/* Of Redis, and of a worker's part of the spool. */
#define NEARLY_FULL_PERCENT 85

/* While Redis is away, each worker tries its spool every second. */
#define SPOOL_FAILING_MS 5000

static const char *const names[WARNING_COUNT] = {
    [WARNING_STOPPING] = "stopping",
    [WARNING_REDIS_AWAY] = "redis_away",
    [WARNING_REDIS_MISFIT] = "redis_misfit",
    [WARNING_REDIS_FULL] = "redis_full",
    [WARNING_REDIS_REFUSES] = "redis_refuses",
    [WARNING_SPOOL_FAILED] = "spool_failed",
    [WARNING_INCREMENTS_LOST] = "increments_lost",
    [WARNING_KERNEL_DROPPING] = "kernel_dropping",
    [WARNING_KEYS_OVER_LIMIT] = "keys_over_limit",
    [WARNING_JUNK] = "junk",
    [WARNING_FLUSH_STUCK] = "flush_stuck",
    [WARNING_FLUSH_OVERDUE] = "flush_overdue",
    [WARNING_REDIS_WENT_BACK] = "redis_went_back",
    [WARNING_SPOOL_NEARLY_FULL] = "spool_nearly_full",
    [WARNING_HISTORY_FULL] = "history_full",
    [WARNING_REDIS_EVICTS] = "redis_evicts",
    [WARNING_REDIS_NEARLY_FULL] = "redis_nearly_full",
    [WARNING_SPOOL_DRAINING] = "spool_draining",
    [WARNING_REDIS_FORGETS] = "redis_forgets",
    [WARNING_REDIS_UNREAD] = "redis_unread",
    [WARNING_BUFFER_CLAMPED] = "buffer_clamped",
};

static const char *const severities[] = {
    [SEVERITY_NOTE] = "note",
    [SEVERITY_WARN] = "warn",
    [SEVERITY_BAD] = "bad",
};

const char *warning_name(enum warning_code code)
{
    return names[code];
}

const char *severity_name(enum severity severity)
{
    return severities[severity];
}

const char *health_reason(const struct health *health)
{
    for (size_t i = 0; !health->ready && i < health->len; i++)
        if (health->warnings[i].code <= WARNING_REDIS_REFUSES)
            return health->warnings[i].text;
    return "";
}

static struct warning *warn(struct health *health, enum warning_code code, enum severity severity,
                            const char *format, ...) PRINTF(4, 5);

static struct warning *warn(struct health *health, enum warning_code code, enum severity severity,
                            const char *format, ...)
{
    struct warning *warning = &health->warnings[health->len++];
    va_list args;

    warning->code = code;
    warning->severity = severity;
    va_start(args, format);
    vsnprintf(warning->text, sizeof(warning->text), format, args);
    va_end(args);
    return warning;
}

static void advise(struct warning *warning, const char *format, ...) PRINTF(2, 3);

static void advise(struct warning *warning, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(warning->action, sizeof(warning->action), format, args);
    va_end(args);
}

#define COUNT_BYTES 32
#define AGE_BYTES   32

/* 1234567 -> "1,234,567" */
static const char *spell_count(uint64_t count, char buf[COUNT_BYTES])
{
    char digits[COUNT_BYTES];
    int len = snprintf(digits, sizeof(digits), "%" PRIu64, count);
    char *at = buf;

    for (int i = 0; i < len; i++) {
        if (i > 0 && (len - i) % 3 == 0)
            *at++ = ',';
        *at++ = digits[i];
    }
    *at = '\0';
    return buf;
}

static const char *spell_age(int64_t ms, char buf[AGE_BYTES])
{
    const struct {
        int64_t ms, shown_up_to;
        const char *unit;
    } units[] = {
        {1000, 120, "seconds"}, {60000, 120, "minutes"}, {3600000, 48, "hours"}, {86400000, 0, "days"}};
    size_t i = 0;

    while (i < ARRAY_LEN(units) - 1 && ms / units[i].ms >= units[i].shown_up_to)
        i++;
    snprintf(buf, AGE_BYTES, "%" PRId64 " %s", ms / units[i].ms, units[i].unit);
    if (ms / units[i].ms == 1)
        buf[strlen(buf) - 1] = '\0';
    return buf;
}

/* "1,234 increments wait in memory, the oldest for 3 seconds." */
static const char *spell_waiting(const struct figures *figures, char *buf, size_t buf_bytes)
{
    uint64_t on_disk = figures->on_disk + figures->to_replay, waiting = figures->pending + figures->to_replay;
    const char *verb = waiting == 1 ? "increment waits" : "increments wait";
    char count[COUNT_BYTES], disk[COUNT_BYTES], age[AGE_BYTES];

    spell_count(waiting, count);
    spell_age(figures->pending_age_ms, age);
    if (waiting == 0)
        snprintf(buf, buf_bytes, "No increments wait.");
    else if (on_disk == 0)
        snprintf(buf, buf_bytes, "%s %s in memory, the oldest for %s.", count, verb, age);
    else if (on_disk == waiting)
        snprintf(buf, buf_bytes, "%s %s on disk, the oldest for %s.", count, verb, age);
    else
        snprintf(buf, buf_bytes, "%s %s, %s of them on disk, the others in memory; the oldest for %s.", count,
                 verb, spell_count(on_disk, disk), age);
    return buf;
}

/* --- storing --- */

static bool is_refusing(const struct figures *figures)
{
    return figures->redis_ready && figures->refused_ago_ms >= 0 && figures->refused_ago_ms < REFUSING_MS &&
           (figures->appended_ago_ms < 0 || figures->appended_ago_ms >= REFUSING_MS);
}

static bool is_spool_failing(const struct figures *figures)
{
    return figures->spool_error_ago_ms >= 0 && figures->spool_error_ago_ms < SPOOL_FAILING_MS;
}

/* Whether what waits outlives the process. */
static bool is_spooling(const struct figures *figures)
{
    return figures->spool_bytes_max > 0 && !is_spool_failing(figures);
}

static void judge_redis(const struct figures *figures, struct health *health)
{
    bool kept = is_spooling(figures);
    const char *trouble = figures->trouble[0] != '\0' ? figures->trouble : "not connected yet";
    char waiting[200];
    struct warning *warning;

    spell_waiting(figures, waiting, sizeof(waiting));
    if (!figures->redis_ready && figures->redis_misfit) {
        warning = warn(health, WARNING_REDIS_MISFIT, SEVERITY_BAD,
                       "Redis can't be used as configured. %s (%s)", waiting, trouble);
        advise(
            warning,
            figures->pending == 0
                ? "Correct the configuration and restart counterd; or undo what has changed in Redis."
            : kept
                ? "Correct the configuration and restart counterd: what waits is on disk then, and goes on "
                  "to Redis. Or undo what has changed in Redis."
                : "Undo what has changed in Redis, so that what waits gets there: a restart of counterd "
                  "drops it. Then correct the configuration.");
    } else if (!figures->redis_ready) {
        warning = warn(health, WARNING_REDIS_AWAY, SEVERITY_BAD, "Redis is away. %s (%s)", waiting, trouble);
        advise(warning,
               "Start Redis, or see what keeps counterd from it. Counting goes on, and what waits is stored "
               "when Redis is back; %s.",
               kept ? "it is written to disk each second, so counterd may be stopped and started meanwhile"
                    : "don't stop counterd before");
    } else if (is_refusing(figures) && strncmp(trouble, "OOM", 3) == 0) {
        warning = warn(health, WARNING_REDIS_FULL, SEVERITY_BAD,
                       "Redis is full (maxmemory) and takes nothing new. %s", waiting);
        advise(warning,
               "Run flusher: what it moves to Postgres is freed. Or raise maxmemory (redis-cli CONFIG SET "
               "maxmemory ...). Don't change maxmemory-policy: that would evict counts.");
    } else if (is_refusing(figures)) {
        warning = warn(health, WARNING_REDIS_REFUSES, SEVERITY_BAD, "Redis refuses what it is sent. %s (%s)",
                       waiting, trouble);
        advise(warning, "See what Redis says, and its log. Every batch is sent again until it is taken.");
    }
}

static void judge_spool(const struct figures *figures, struct health *health)
{
    uint64_t max = figures->spool_bytes_max, on_disk = figures->on_disk + figures->to_replay;
    char memory[COUNT_BYTES], count[COUNT_BYTES], age[AGE_BYTES];
    bool fills = !figures->redis_ready || is_refusing(figures);
    struct warning *warning;

    if (max == 0)
        return;
    if (is_spool_failing(figures) && fills) {
        warning = warn(health, WARNING_SPOOL_FAILED, SEVERITY_BAD,
                       "The disk takes no more: %s increments wait in memory alone, and %s on disk. (%s)",
                       spell_count(figures->pending - figures->on_disk, memory), spell_count(on_disk, count),
                       figures->spool_trouble);
        advise(warning,
               "Bring Redis back: that empties the disk. Or make room in spool_dir; it is tried again every "
               "second. Counting goes on, up to keys_max keys; don't stop counterd, it would drop what is in "
               "memory alone.");
    } else if (fills && figures->spool_bytes_most >= max / 100 * NEARLY_FULL_PERCENT) {
        warning = warn(health, WARNING_SPOOL_NEARLY_FULL, SEVERITY_WARN,
                       "The spool is nearly full: a worker has used %" PRIu64
                       " %% of its spool_bytes. After that, counts wait in memory alone.",
                       figures->spool_bytes_most * 100 / max);
        advise(warning, "Bring Redis back: that empties it. Or raise spool_bytes, if the disk has room, and "
                        "restart counterd: what is on disk stays.");
    }
    if (is_spool_failing(figures) && !fills) {
        warning = warn(health, WARNING_SPOOL_FAILED, SEVERITY_BAD, "The spool can't be read. (%s)",
                       figures->spool_trouble);
        advise(warning,
               "What is damaged is put aside, under the name NAME.aside, and the rest goes on. The log "
               "says how much is lost (event=increments_lost).");
    }
    if (!fills && on_disk > 0) {
        warning =
            warn(health, WARNING_SPOOL_DRAINING, SEVERITY_NOTE,
                 "%s increments are still on disk, from when Redis did not take them; the oldest for %s.",
                 spell_count(on_disk, count), spell_age(figures->pending_age_ms, age));
        advise(warning, "Nothing: Redis takes them now, and Postgres is late by so much until then.");
    }
}

static void judge_loss(const struct figures *figures, struct health *health)
{
    char count[COUNT_BYTES], age[AGE_BYTES];
    struct warning *warning;

    if (figures->lost > 0) {
        warning = warn(health, WARNING_INCREMENTS_LOST, SEVERITY_BAD,
                       "Up to %s increments are lost: Redis went back in time further than the history "
                       "reaches, or a file of the spool was damaged.",
                       spell_count(figures->lost, count));
        advise(warning,
               "The log has shard and batches (event=increments_lost). Raise history_bytes, and let Redis "
               "keep its data: appendonly yes. This stays until counterd is restarted.");
    }
    if (figures->went_back_ago_ms >= 0 && figures->went_back_ago_ms < WENT_BACK_TOLD_MS) {
        warning = warn(
            health, WARNING_REDIS_WENT_BACK, SEVERITY_WARN,
            "Redis went back in time %s ago: it came back with less than it had acknowledged. The missing "
            "batches have been sent again%s.",
            spell_age(figures->went_back_ago_ms, age), figures->lost > 0 ? ", as far as they were kept" : "");
        advise(warning,
               "Find out why (a restart without appendonly, a failover, a backup, FLUSHALL). After the next "
               "flush: flusher quarantine list, flusher audit.");
    }
}

/* --- receiving --- */

static const struct listener_figures *worst_listener(const struct figures *figures)
{
    const struct listener_figures *worst = &figures->listeners[0];

    for (size_t i = 1; i < figures->listeners_len; i++)
        if (figures->listeners[i].dropped > worst->dropped)
            worst = &figures->listeners[i];
    return worst;
}

/* A datagram listener that got a smaller buffer than asked for; NULL when none did. */
static const struct listener_figures *clamped_listener(const struct figures *figures)
{
    for (size_t i = 0; i < figures->listeners_len; i++)
        if (figures->listeners[i].buffer_bytes > 0 &&
            figures->listeners[i].buffer_bytes < figures->buffer_bytes_asked)
            return &figures->listeners[i];
    return NULL;
}

static void judge_kernel(const struct figures *figures, struct health *health)
{
    const struct listener_figures *clamped = clamped_listener(figures);
    char dropped[COUNT_BYTES], total[COUNT_BYTES];
    struct warning *warning;

    if (figures->minute.dropped > 0) {
        const struct listener_figures *worst = worst_listener(figures);
        warning = warn(
            health, WARNING_KERNEL_DROPPING, SEVERITY_BAD,
            "The kernel dropped %s datagrams in the last minute before counterd could read them (%s:%s, %s "
            "since the start). They are lost.",
            spell_count(figures->minute.dropped, dropped), worst->kind, worst->address,
            spell_count(worst->dropped, total));
        if (clamped)
            advise(warning,
                   "The receive buffer is smaller than asked for: sysctl -w net.core.rmem_max=%" PRIu64
                   " and restart. Or more workers.",
                   figures->buffer_bytes_asked);
        else
            advise(warning,
                   "Raise listen.buffer_bytes (and sysctl net.core.rmem_max), or workers; or let clients put "
                   "more lines into a datagram.");
    } else if (clamped) {
        warning = warn(health, WARNING_BUFFER_CLAMPED, SEVERITY_NOTE,
                       "The receive buffer of %s:%s has %" PRIu64 " bytes, not the %" PRIu64
                       " of listen.buffer_bytes.",
                       clamped->kind, clamped->address, clamped->buffer_bytes, figures->buffer_bytes_asked);
        advise(warning, "sysctl -w net.core.rmem_max=%" PRIu64 " and restart, or bursts may be dropped.",
               figures->buffer_bytes_asked);
    }
}

static void judge_junk(const struct figures *figures, struct health *health)
{
    enum reject most = REJECT_NONE + 1;
    char rejected[COUNT_BYTES];
    struct warning *warning;

    if (figures->minute.rejected < JUNK_LINES_MIN ||
        figures->minute.rejected < figures->minute.lines / JUNK_ONE_IN)
        return;
    for (enum reject i = most; i < REJECT_COUNT; i++)
        if (figures->rejected[i] > figures->rejected[most])
            most = i;
    warning = warn(health, WARNING_JUNK, SEVERITY_WARN,
                   "Junk comes in: %s lines of the last minute, %" PRIu64
                   " %% of all, were rejected. Most since the start: '%s'.",
                   spell_count(figures->minute.rejected, rejected),
                   figures->minute.rejected * 100 / (figures->minute.lines > 0 ? figures->minute.lines : 1),
                   reject_name(most));
    advise(warning,
           "The samples show what it looks like; find who sends it. What is valid is counted all the same. "
           "docs/line-protocol.md has every reason.");
}

static void judge_keys(const struct figures *figures, struct health *health)
{
    char count[COUNT_BYTES], max[COUNT_BYTES];
    struct warning *warning;

    if (figures->minute.overflow == 0)
        return;
    warning =
        warn(health, WARNING_KEYS_OVER_LIMIT, SEVERITY_BAD,
             "More keys than keys_max allows (%s per worker): %s increments of the last minute count under "
             "counterd.overflow instead of their key.",
             spell_count(figures->keys_max_each, max), spell_count(figures->minute.overflow, count));
    advise(
        warning,
        "Raise keys_max and send SIGHUP, if there is memory. Or find who puts ids, times or random numbers "
        "into keys or tags: the top pending keys show them.");
}

/* --- behind Redis --- */

static void judge_flush(const struct figures *figures, struct health *health)
{
    const struct reader_look *look = &figures->look;
    char sealed[AGE_BYTES], age[AGE_BYTES], count[COUNT_BYTES], last[AGE_BYTES];
    struct warning *warning;

    if (figures->look_ago_ms < 0 || figures->look_error[0] != '\0')
        return;
    if (look->sealed_for_ms >= FLUSH_OVERDUE_MS) {
        warning = warn(health, WARNING_FLUSH_STUCK, SEVERITY_WARN,
                       "A flush does not end: %" PRIu64 " of %" PRIu64
                       " shards are sealed, the first for %s. Their counts wait in Redis, the oldest for %s.",
                       look->sealed_shards, figures->shards, spell_age(look->sealed_for_ms, sealed),
                       spell_age(look->sealed_age_ms, age));
        advise(
            warning,
            "Is Postgres there, does flusher hang? Run flusher by hand and see what it says: flusher -c "
            "FILE; flusher -c FILE status. Nothing is lost; the next run goes on where the last one ended.");
    } else if (look->open_age_ms >= FLUSH_OVERDUE_MS) {
        warning = warn(
            health, WARNING_FLUSH_OVERDUE, SEVERITY_WARN,
            "No flush for too long: %s keys wait in Redis, the oldest for %s; the last flush ended %s%s.",
            spell_count(look->open_keys, count), spell_age(look->open_age_ms, age),
            look->released_ago_ms < 0 ? "never" : spell_age(look->released_ago_ms, last),
            look->released_ago_ms < 0 ? "" : " ago");
        advise(warning,
               "Does cron run flusher (systemctl status cron; crontab -l)? Run it by hand: flusher -c FILE. "
               "Nothing is lost; Postgres is late.");
    }
}

static void judge_history(const struct figures *figures, struct health *health)
{
    char count[COUNT_BYTES];
    struct warning *warning;

    if (figures->only_in_redis == 0 || figures->history_bytes_max == 0)
        return;
    warning = warn(
        health, WARNING_HISTORY_FULL, SEVERITY_WARN,
        "The history is full: up to %s increments are in Redis only. If Redis went back in time now, they "
        "could not be sent again.",
        spell_count(figures->only_in_redis, count));
    advise(warning, "Flush more often, or raise history_bytes and send SIGHUP.");
}

static void judge_redis_settings(const struct figures *figures, struct health *health)
{
    const struct reader_look *look = &figures->look;
    struct warning *warning;

    if (figures->look_error[0] != '\0' && figures->redis_ready) {
        warning =
            warn(health, WARNING_REDIS_UNREAD, SEVERITY_NOTE,
                 "What is pending in Redis can't be read: %s. The figures of Redis below are old or missing.",
                 figures->look_error);
        advise(warning, "Appends are not affected. The user needs EVALSHA, SCRIPT LOAD and INFO.");
    }
    if (figures->look_ago_ms < 0)
        return;
    if (look->eviction[0] != '\0' && strcmp(look->eviction, "noeviction") != 0) {
        warning =
            warn(health, WARNING_REDIS_EVICTS, look->memory_bytes_max > 0 ? SEVERITY_BAD : SEVERITY_WARN,
                 "Redis may evict counts: its maxmemory-policy is '%s'.", look->eviction);
        advise(warning, "redis-cli CONFIG SET maxmemory-policy noeviction, and the same in redis.conf.");
    }
    if (look->memory_bytes_max > 0 && !is_refusing(figures) &&
        look->memory_bytes >= look->memory_bytes_max / 100 * NEARLY_FULL_PERCENT) {
        warning = warn(health, WARNING_REDIS_NEARLY_FULL, SEVERITY_WARN,
                       "Redis uses %" PRIu64 " %% of its maxmemory.",
                       look->memory_bytes * 100 / look->memory_bytes_max);
        advise(warning, "Flush more often, or raise maxmemory.");
    }
    if (!look->appendonly) {
        warning = warn(health, WARNING_REDIS_FORGETS, SEVERITY_NOTE,
                       "Redis does not keep its data over a restart (appendonly no).");
        advise(warning,
               "redis-cli CONFIG SET appendonly yes, and the same in redis.conf; or a restart of Redis is "
               "made up for only as far as the history reaches.");
    }
}

static int compare(const void *a, const void *b)
{
    const struct warning *left = a, *right = b;

    if (left->severity != right->severity)
        return (int)right->severity - (int)left->severity;
    return (int)left->code - (int)right->code;
}

void health_judge(const struct figures *figures, struct health *ret_health)
{
    struct health *health = ret_health;
    char waiting[200];

    memset(health, 0, sizeof(*health));
    health->ready = !figures->stopping && figures->redis_ready && !is_refusing(figures);
    if (figures->stopping)
        advise(warn(health, WARNING_STOPPING, SEVERITY_NOTE,
                    "counterd is stopping: it stores what it has, and ends. %s",
                    spell_waiting(figures, waiting, sizeof(waiting))),
               "If it does not end, the log says what it waits for.");
    judge_redis(figures, health);
    judge_spool(figures, health);
    judge_loss(figures, health);
    judge_kernel(figures, health);
    judge_junk(figures, health);
    judge_keys(figures, health);
    judge_flush(figures, health);
    judge_history(figures, health);
    judge_redis_settings(figures, health);
    qsort(health->warnings, health->len, sizeof(health->warnings[0]), compare);
}
