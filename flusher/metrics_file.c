#include "flusher/metrics_file.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "lib/log.h"

#define LAST_SUCCESS "counterd_flush_last_success_timestamp_seconds"

/* How a number is written. */
enum unit { UNIT_WHOLE, UNIT_MS };

struct sheet {
    FILE *file;
    const char *namespace; /* as it stands between the quotes of a label */
};

static void put_head(const struct sheet *sheet, const char *name, const char *help)
{
    fprintf(sheet->file, "# HELP %s %s\n# TYPE %s gauge\n", name, help, name);
}

static void put_number(const struct sheet *sheet, enum unit unit, int64_t number)
{
    if (unit == UNIT_MS)
        fprintf(sheet->file, "%" PRId64 ".%03d\n", number / 1000, (int)(number % 1000));
    else
        fprintf(sheet->file, "%" PRId64 "\n", number);
}

static void put(const struct sheet *sheet, const char *name, const char *help, enum unit unit, int64_t number)
{
    put_head(sheet, name, help);
    fprintf(sheet->file, "%s{namespace=\"%s\"} ", name, sheet->namespace);
    put_number(sheet, unit, number);
}

static void put_generations(const struct sheet *sheet, const char *name, const char *help, int64_t open,
                            int64_t sealed)
{
    put_head(sheet, name, help);
    fprintf(sheet->file, "%s{namespace=\"%s\",generation=\"open\"} %" PRId64 "\n", name, sheet->namespace,
            open);
    fprintf(sheet->file, "%s{namespace=\"%s\",generation=\"sealed\"} %" PRId64 "\n", name, sheet->namespace,
            sealed);
}

static void put_run(const struct sheet *sheet, const struct run_metrics *metrics)
{
    int64_t elapsed_ms = metrics->elapsed_ms > 0 ? metrics->elapsed_ms : 1;

    put(sheet, "counterd_flush_last_run_timestamp_seconds", "When the last run ended.", UNIT_MS,
        metrics->finished_ms);
    put(sheet, "counterd_flush_last_run_failed", "1 when the last run did not exit with 0.", UNIT_WHOLE,
        metrics->exit_code != 0);
    put(sheet, "counterd_flush_last_run_exit_code", "Exit code of the last run, see flusher(8).", UNIT_WHOLE,
        metrics->exit_code);
    put(sheet, "counterd_flush_last_run_duration_seconds", "How long the last run took.", UNIT_MS,
        metrics->elapsed_ms);
    put(sheet, "counterd_flush_last_run_shards", "Shards that the last run flushed.", UNIT_WHOLE,
        metrics->shards);
    put(sheet, "counterd_flush_last_run_shards_failed", "Shards that the last run left for a later one.",
        UNIT_WHOLE, metrics->shards_failed);
    put(sheet, "counterd_flush_last_run_keys", "Keys that the last run updated.", UNIT_WHOLE, metrics->keys);
    put(sheet, "counterd_flush_last_run_increments", "Sum of the deltas that the last run applied.",
        UNIT_WHOLE, metrics->increments);
    put(sheet, "counterd_flush_last_run_events", "Increments behind them, a line each.", UNIT_WHOLE,
        metrics->events);
    put(sheet, "counterd_flush_last_run_rows_per_second", "Keys by duration of the last run.", UNIT_WHOLE,
        metrics->keys * 1000 / elapsed_ms);
    put(sheet, "counterd_flush_last_run_parked_keys", "Of its keys, those that their tables did not take.",
        UNIT_WHOLE, metrics->parked);
    put(sheet, "counterd_flush_last_run_dropped_keys",
        "Of its keys, those that were dropped, as their target says of missing rows.", UNIT_WHOLE,
        metrics->dropped);
    put(sheet, "counterd_flush_last_run_quarantined", "Generations that the last run put into quarantine.",
        UNIT_WHOLE, metrics->quarantined);
}

static void put_overview(const struct sheet *sheet, const struct overview *overview)
{
    const struct pending *pending = &overview->pending;

    if (overview->pending_known) {
        put_generations(sheet, "counterd_flush_pending_keys", "Keys in Redis after the last run.",
                        pending->open_keys, pending->sealed_keys);
        put_generations(sheet, "counterd_flush_pending_increments", "Sum of their deltas.",
                        pending->open_total, pending->sealed_total);
        put(sheet, "counterd_flush_lag_seconds",
            "Age of the oldest increment in Redis that Postgres did not have after the last run.", UNIT_MS,
            pending->oldest_ms);
        put(sheet, "counterd_flush_shards_gone_back",
            "Shards in which Redis has gone back in time and no run has seen to it yet.", UNIT_WHOLE,
            overview->gone_back);
    }
    if (overview->history.fresh_ms > 0)
        put(sheet, "counterd_flush_fresh_until_timestamp_seconds",
            "What Redis had accepted before this moment is in Postgres.", UNIT_MS,
            overview->history.fresh_ms);
    put(sheet, "counterd_flush_quarantined_generations",
        "Generations in quarantine that nobody has decided about.", UNIT_WHOLE, overview->quarantined);
    put(sheet, "counterd_flush_parked_rows",
        "Rows of counterd.parked that nobody has decided about, counted up to 100000.", UNIT_WHOLE,
        overview->history.parked_rows);
    put(sheet, "counterd_flush_parked_increments", "The sum of what they hold.", UNIT_WHOLE,
        overview->history.parked);
    put(sheet, "counterd_flush_dropped_increments", "The sum of all that was ever dropped.", UNIT_WHOLE,
        overview->history.dropped);
}

/* What the file at `path` says about the last success; 0 when it is not there or says nothing. */
static int64_t previous_success_ms(const char *path, const struct sheet *sheet)
{
    FILE *file = fopen(path, "r");
    char *line = NULL, *end, *start;
    char prefix[sizeof(LAST_SUCCESS) + NAMESPACE_LEN_MAX + 32];
    size_t line_bytes = 0;
    int64_t seconds, ms = 0;

    if (!file)
        return 0;
    snprintf(prefix, sizeof(prefix), "%s{namespace=\"%s\"} ", LAST_SUCCESS, sheet->namespace);
    while (getline(&line, &line_bytes, file) >= 0) {
        if (strncmp(line, prefix, strlen(prefix)) != 0)
            continue;
        start = line + strlen(prefix);
        seconds = strtoll(start, &end, 10);
        if (end > start && *end == '.' && seconds > 0 && seconds < INT64_MAX / 1000 - 1)
            ms = seconds * 1000 + strtol(end + 1, NULL, 10) % 1000;
    }
    free(line);
    fclose(file);
    return ms;
}

static void put_all(const struct sheet *sheet, int64_t success_ms, const struct run_metrics *metrics)
{
    put_run(sheet, metrics);
    if (success_ms > 0)
        put(sheet, LAST_SUCCESS, "When a run last ended with exit code 0.", UNIT_MS, success_ms);
    if (metrics->overview)
        put_overview(sheet, metrics->overview);
}

/* A temporary file in the same directory, whose name no collector takes for one of its own. */
static FILE *open_beside(const char *path, char **ret_name)
{
    FILE *file = NULL;
    int fd;

    if (asprintf(ret_name, "%s.new-XXXXXX", path) < 0) {
        *ret_name = NULL;
        errno = ENOMEM;
        return NULL;
    }
    fd = mkstemp(*ret_name);
    if (fd >= 0 && fchmod(fd, 0644) == 0)
        file = fdopen(fd, "w");
    if (fd >= 0 && !file) {
        int failure = errno;
        close(fd);
        unlink(*ret_name);
        errno = failure;
    }
    return file;
}

int metrics_file_write(const char *path, const struct config *config, const struct run_metrics *metrics,
                       struct error *error)
{
    struct sheet sheet = {.namespace = config->namespace};
    int64_t success_ms = metrics->exit_code == 0 ? metrics->finished_ms : previous_success_ms(path, &sheet);
    char *name;
    int failure = 0;

    sheet.file = open_beside(path, &name);
    if (!sheet.file)
        goto fail;
    put_all(&sheet, success_ms, metrics);
    if (ferror(sheet.file))
        failure = EIO;
    if (fclose(sheet.file) != 0 || failure != 0 || rename(name, path) < 0) {
        failure = failure ? failure : errno;
        unlink(name);
        errno = failure;
        goto fail;
    }
    free(name);
    return 0;
fail:
    failure = errno;
    free(name);
    return error_set(error, -failure, "can't write '%s': %s; see --metrics-file", path, strerror(failure));
}
