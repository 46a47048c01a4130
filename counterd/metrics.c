#include "counterd/metrics.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "counterd/version.h"

enum metric_kind { METRIC_COUNTER, METRIC_GAUGE, METRIC_HISTOGRAM };

struct writer {
    FILE *out;
    enum metrics_format format;
};

/* --- the format --- */

enum metrics_format metrics_choose(const char *accept)
{
    return accept && strstr(accept, "application/openmetrics-text") ? METRICS_OPENMETRICS
                                                                    : METRICS_PROMETHEUS;
}

const char *metrics_content_type(enum metrics_format format)
{
    return format == METRICS_OPENMETRICS ? "application/openmetrics-text; version=1.0.0; charset=utf-8"
                                         : "text/plain; version=0.0.4; charset=utf-8";
}

/* `name` is without _total, which a counter's samples have; in the older format so has its description. */
static void describe(const struct writer *writer, const char *name, enum metric_kind kind, const char *help)
{
    static const char *const kinds[] = {"counter", "gauge", "histogram"};
    const char *suffix = kind == METRIC_COUNTER && writer->format == METRICS_PROMETHEUS ? "_total" : "";

    fprintf(writer->out, "# HELP counterd_%s%s %s\n# TYPE counterd_%s%s %s\n", name, suffix, help, name,
            suffix, kinds[kind]);
}

/* A label's value: between quotes. */
static void put_value(FILE *out, const char *value)
{
    for (; *value != '\0'; value++) {
        if (*value == '\n') {
            fputs("\\n", out);
            continue;
        }
        if (*value == '"' || *value == '\\')
            fputc('\\', out);
        fputc(*value, out);
    }
}

static void put_label(FILE *out, const char *name, const char *value)
{
    fprintf(out, "{%s=\"", name);
    put_value(out, value);
    fputs("\"}", out);
}

static void put_seconds(FILE *out, int64_t ms)
{
    fprintf(out, "%" PRId64 ".%03d", ms / 1000, (int)(ms % 1000));
}

/* --- one figure each --- */

static void counter_of(const struct writer *writer, const char *name, const char *help, uint64_t value)
{
    describe(writer, name, METRIC_COUNTER, help);
    fprintf(writer->out, "counterd_%s_total %" PRIu64 "\n", name, value);
}

static void gauge_of(const struct writer *writer, const char *name, const char *help, int64_t value)
{
    describe(writer, name, METRIC_GAUGE, help);
    fprintf(writer->out, "counterd_%s %" PRId64 "\n", name, value);
}

/* Left out when there is no such moment. */
static void age_of(const struct writer *writer, const char *name, const char *help, int64_t ms)
{
    if (ms < 0)
        return;
    describe(writer, name, METRIC_GAUGE, help);
    fprintf(writer->out, "counterd_%s ", name);
    put_seconds(writer->out, ms);
    fputc('\n', writer->out);
}

static void histogram_of(const struct writer *writer, const char *name, const char *help,
                         const struct histogram_figures *histogram)
{
    uint64_t count = 0;

    describe(writer, name, METRIC_HISTOGRAM, help);
    for (int i = 0; i < HISTOGRAM_BOUNDS; i++) {
        count += histogram->counts[i];
        fprintf(writer->out, "counterd_%s_bucket{le=\"%g\"} %" PRIu64 "\n", name,
                (double)histogram_bounds_us[i] / 1e6, count);
    }
    count += histogram->counts[HISTOGRAM_BOUNDS];
    fprintf(writer->out, "counterd_%s_bucket{le=\"+Inf\"} %" PRIu64 "\n", name, count);
    fprintf(writer->out, "counterd_%s_sum %" PRIu64 ".%06" PRIu64 "\n", name, histogram->sum_us / 1000000,
            histogram->sum_us % 1000000);
    fprintf(writer->out, "counterd_%s_count %" PRIu64 "\n", name, count);
}

/* --- groups --- */

static void put_by_listener(const struct writer *writer, const struct figures *figures)
{
    static const struct {
        const char *name, *help;
        size_t offset; /* in struct listener_figures */
        bool is_gauge, datagrams_only;
    } columns[] = {
        {"received_lines", "Lines received, blank ones left out.", offsetof(struct listener_figures, lines),
         false, false},
        {"received_bytes", "Bytes received.", offsetof(struct listener_figures, bytes), false, false},
        {"received_datagrams", "Datagrams received.", offsetof(struct listener_figures, datagrams), false,
         true},
        {"kernel_dropped_datagrams", "Datagrams that the kernel dropped because the receive buffer was full.",
         offsetof(struct listener_figures, dropped), false, true},
        {"receive_buffer_bytes", "What the kernel gave for receiving.",
         offsetof(struct listener_figures, buffer_bytes), true, true},
    };

    for (size_t i = 0; i < ARRAY_LEN(columns); i++) {
        describe(writer, columns[i].name, columns[i].is_gauge ? METRIC_GAUGE : METRIC_COUNTER,
                 columns[i].help);
        for (size_t j = 0; j < figures->listeners_len; j++) {
            const struct listener_figures *listener = &figures->listeners[j];
            /* Streams have no buffer of ours. */
            if (columns[i].datagrams_only && listener->buffer_bytes == 0)
                continue;
            fprintf(writer->out, "counterd_%s%s{listener=\"%s://", columns[i].name,
                    columns[i].is_gauge ? "" : "_total", listener->kind);
            put_value(writer->out, listener->address);
            fprintf(writer->out, "\"} %" PRIu64 "\n",
                    *(const uint64_t *)((const char *)listener + columns[i].offset));
        }
    }
}

static void put_received(const struct writer *writer, const struct figures *figures)
{
    put_by_listener(writer, figures);
    counter_of(writer, "truncated_datagrams", "Datagrams that were longer than can be read at once.",
               figures->truncated);
    counter_of(writer, "connections", "TCP connections accepted.", figures->connections);
    counter_of(writer, "connections_refused", "TCP connections turned away at the limit.",
               figures->connections_refused);
    counter_of(writer, "accepted_increments", "Lines that count.", figures->accepted);
    describe(writer, "rejected_lines", METRIC_COUNTER, "Lines that do not count, by reason.");
    for (int i = REJECT_NONE + 1; i < REJECT_COUNT; i++) {
        fputs("counterd_rejected_lines_total", writer->out);
        put_label(writer->out, "reason", reject_name((enum reject)i));
        fprintf(writer->out, " %" PRIu64 "\n", figures->rejected[i]);
    }
    counter_of(writer, "idempotent_duplicates",
               "Requests with an Idempotency-Key that had been applied before.",
               figures->idempotent_duplicates);
    counter_of(writer, "idempotent_conflicts", "Requests whose Idempotency-Key stands for another body.",
               figures->idempotent_conflicts);
    counter_of(writer, "fields_ignored", "Fields of lines that mean nothing to counterd.",
               figures->fields_ignored);
}

static void put_memory(const struct writer *writer, const struct figures *figures)
{
    gauge_of(writer, "table_keys", "Keys in memory.", (int64_t)figures->keys);
    gauge_of(writer, "table_keys_max", "Keys that memory may hold.", (int64_t)figures->keys_max);
    gauge_of(writer, "table_bytes", "Memory of the tables.", (int64_t)figures->table_bytes);
    counter_of(writer, "overflow_increments", "Increments that count under counterd.overflow.",
               figures->overflow);
    counter_of(writer, "fanout_overflow_increments",
               "Fanned-out increments that count under counterd.overflow instead of a key that was made.",
               figures->fanout_overflow);
    counter_of(writer, "fanout_left_out_increments",
               "Fanned-out increments without a key that would be too long, or out of range.",
               figures->fanout_left_out);
    gauge_of(writer, "pending_increments", "Accepted increments that are not in Redis.",
             (int64_t)figures->pending);
    age_of(writer, "pending_oldest_seconds", "Age of the oldest of them.", figures->pending_age_ms);
    gauge_of(writer, "history_bytes", "Acknowledged batches kept because they are not in Postgres.",
             (int64_t)figures->history_bytes);
    gauge_of(writer, "only_in_redis_increments",
             "Increments that only Redis has, because the history is full; at most.",
             (int64_t)figures->only_in_redis);
    gauge_of(writer, "history_bytes_max", "What they may take.", (int64_t)figures->history_bytes_max);
}

static void put_stored(const struct writer *writer, const struct figures *figures)
{
    counter_of(writer, "appended_increments", "Increments that are in Redis.", figures->appended);
    counter_of(writer, "appended_batches", "Batches that Redis has acknowledged.", figures->batches);
    counter_of(writer, "resent_batches", "Batches sent again after a lost connection or a rollback of Redis.",
               figures->resent_batches);
    histogram_of(writer, "append_seconds", "From sending a batch to its acknowledgement.", &figures->append);
    histogram_of(writer, "store_seconds",
                 "From the first increment that a table gathers until all of the table is in Redis.",
                 &figures->gather);
    age_of(writer, "last_append_seconds", "Since Redis last acknowledged a batch.", figures->appended_ago_ms);
    gauge_of(writer, "redis_ready", "1 when all connections to Redis can be used.", figures->redis_ready);
    counter_of(writer, "redis_connections_lost", "Connections to Redis lost.", figures->redis_lost);
    counter_of(writer, "redis_errors", "Batches that Redis refused; they are sent again.",
               figures->redis_errors);
    counter_of(writer, "unreplicated_batches",
               "Batches that too few replicas confirmed in time; they are sent again.",
               figures->unreplicated);
    counter_of(writer, "redis_went_back", "Times that a shard of Redis was found to have gone back.",
               figures->went_back);
    counter_of(writer, "lost_increments", "Increments that Redis forgot and no history held, at most.",
               figures->lost);
}

static void put_spool(const struct writer *writer, const struct figures *figures)
{
    gauge_of(writer, "spool_bytes_max", "What each worker may use on disk; 0 = there is no spool.",
             (int64_t)figures->spool_bytes_max);
    gauge_of(writer, "spool_bytes", "What all use.", (int64_t)figures->spool_bytes);
    gauge_of(writer, "spool_fullest_bytes", "What the worker uses that uses most.",
             (int64_t)figures->spool_bytes_most);
    gauge_of(writer, "spool_waiting_increments", "Of the pending increments, those that are on disk.",
             (int64_t)figures->on_disk);
    gauge_of(writer, "spool_to_replay_increments",
             "Increments on disk that an earlier process had accepted, and that are not in Redis yet.",
             (int64_t)figures->to_replay);
    counter_of(writer, "spooled_increments", "Increments written to disk.", figures->spooled);
    counter_of(writer, "spooled_batches", "Batches written to disk.", figures->spooled_batches);
    counter_of(writer, "replayed_increments",
               "Increments that an earlier process had left on disk, and that are in Redis now.",
               figures->replayed);
    counter_of(writer, "replayed_batches", "The batches of these.", figures->replayed_batches);
    counter_of(writer, "spool_errors", "Times that the disk could not be written or read.",
               figures->spool_errors);
    counter_of(writer, "spool_lost_increments",
               "Of the lost increments, those that this process had accepted and the disk did not give back.",
               figures->spool_lost);
}

static void put_states(const struct writer *writer, const char *name, int64_t open, int64_t sealed,
                       bool sealed_known)
{
    fprintf(writer->out, "counterd_%s{state=\"open\"} %" PRId64 "\n", name, open);
    if (sealed_known)
        fprintf(writer->out, "counterd_%s{state=\"sealed\"} %" PRId64 "\n", name, sealed);
}

/* Only what Redis has told lately: an old number would look like a new one. */
static void put_look(const struct writer *writer, const struct figures *figures)
{
    const struct reader_look *look = &figures->look;
    bool fresh = figures->look_ago_ms >= 0 && figures->look_error[0] == '\0';

    gauge_of(writer, "redis_looked", "1 when the figures of what is in Redis are here.", fresh);
    if (!fresh)
        return;
    describe(writer, "redis_keys", METRIC_GAUGE, "Keys that wait in Redis for a flush.");
    put_states(writer, "redis_keys", (int64_t)look->open_keys, (int64_t)look->sealed_keys, true);
    describe(writer, "redis_increments", METRIC_GAUGE,
             "What they add up to; of large sealed generations it is not known.");
    put_states(writer, "redis_increments", look->open_total, look->sealed_total, look->sealed_total_known);
    describe(writer, "redis_oldest_seconds", METRIC_GAUGE, "Age of the oldest increment of them.");
    fputs("counterd_redis_oldest_seconds{state=\"open\"} ", writer->out);
    put_seconds(writer->out, look->open_age_ms > 0 ? look->open_age_ms : 0);
    fputs("\ncounterd_redis_oldest_seconds{state=\"sealed\"} ", writer->out);
    put_seconds(writer->out, look->sealed_age_ms > 0 ? look->sealed_age_ms : 0);
    fputc('\n', writer->out);
    gauge_of(writer, "redis_sealed_shards", "Shards that a flusher has sealed and not released.",
             (int64_t)look->sealed_shards);
    age_of(writer, "last_flush_seconds", "Since a flusher last finished a shard.", look->released_ago_ms);
    gauge_of(writer, "redis_memory_bytes", "Memory that Redis uses.", (int64_t)look->memory_bytes);
    gauge_of(writer, "redis_memory_bytes_max", "Its maxmemory; 0 = no limit.",
             (int64_t)look->memory_bytes_max);
}

static void put_health(const struct writer *writer, const struct health *health)
{
    bool given[WARNING_COUNT] = {false};

    for (size_t i = 0; i < health->len; i++)
        given[health->warnings[i].code] = true;
    gauge_of(writer, "ready", "1 when what is received can be stored; as /readyz says.", health->ready);
    describe(writer, "warning", METRIC_GAUGE,
             "1 for each warning that the status page shows; docs/operations.md.");
    for (int i = 0; i < WARNING_COUNT; i++) {
        fputs("counterd_warning", writer->out);
        put_label(writer->out, "code", warning_name((enum warning_code)i));
        fprintf(writer->out, " %d\n", given[i]);
    }
}

static void put_process(const struct writer *writer, const struct figures *figures)
{
    FILE *out = writer->out;
    const char *suffix = writer->format == METRICS_PROMETHEUS ? "_total" : "";

    describe(writer, "build_info", METRIC_GAUGE, "1.");
    fputs("counterd_build_info", out);
    put_label(out, "version", COUNTERD_VERSION);
    fputs(" 1\n", out);
    gauge_of(writer, "workers", "Threads that receive.", (int64_t)figures->workers);
    fputs("# HELP process_start_time_seconds When it was started.\n# TYPE process_start_time_seconds gauge\n"
          "process_start_time_seconds ",
          out);
    put_seconds(out, figures->started_unix_ms);
    fprintf(out,
            "\n# HELP process_resident_memory_bytes Resident memory.\n"
            "# TYPE process_resident_memory_bytes gauge\nprocess_resident_memory_bytes %" PRIu64 "\n"
            "# HELP process_cpu_seconds%s CPU time of all threads.\n# TYPE process_cpu_seconds%s counter\n"
            "process_cpu_seconds_total %.6f\n",
            figures->rss_bytes, suffix, suffix, figures->cpu_seconds);
}

char *metrics_text(const struct figures *figures, const struct health *health, enum metrics_format format)
{
    struct writer writer = {.format = format};
    char *text = NULL;
    size_t len;

    writer.out = open_memstream(&text, &len);
    if (!writer.out)
        return NULL;
    put_health(&writer, health);
    put_received(&writer, figures);
    put_memory(&writer, figures);
    put_stored(&writer, figures);
    put_spool(&writer, figures);
    put_look(&writer, figures);
    put_process(&writer, figures);
    if (format == METRICS_OPENMETRICS)
        fputs("# EOF\n", writer.out);
    if (ferror(writer.out) | fclose(writer.out)) {
        free(text);
        return NULL;
    }
    return text;
}
