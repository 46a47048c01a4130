#include "flusher/partitions.h"

#include <inttypes.h>
#include <stdio.h>
#include <time.h>

#include "flusher/failure.h"
#include "lib/clock.h"

#define DAY_S INT64_C(86400)

/* "20261121", as the names end: they sort by time. */
#define DAY_NAME_BYTES 16

int partitions_now(struct postgres *postgres, int64_t *ret_now_s, struct error *error)
{
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    parameters_bigint(&parameters, clock_unix_ms() / 1000);
    r = postgres_execute(postgres, "SELECT LEAST($1::bigint, trunc(extract(epoch FROM now()))::bigint)",
                         &parameters, &rows, error);
    if (r < 0)
        return r;
    *ret_now_s = rows_bigint(rows, 0, 0);
    rows_free(rows);
    return 0;
}

static void name_day(int64_t day, char ret_name[DAY_NAME_BYTES])
{
    time_t start = day * DAY_S;
    struct tm tm;

    gmtime_r(&start, &tm);
    strftime(ret_name, DAY_NAME_BYTES, "%Y%m%d", &tm);
}

static bool shares_database(const struct config *config, size_t lane)
{
    return strcmp(config->lanes[lane].database, config->lanes[config->lane].database) == 0;
}

/* Whether some target of the lane rolls up into counterd.rollups; the longest of the retentions of all that
 * do, 0 = for ever: lanes of one database have one table. */
static bool is_used(const struct partitions_options *options, int64_t *ret_retention_s)
{
    const struct targets *targets = options->config->targets;
    bool used = false, for_ever = false;

    *ret_retention_s = 0;
    for (size_t i = 0; i < targets->len; i++) {
        const struct target *target = &targets->items[i];
        if (!shares_database(options->config, target->lane))
            continue;
        for (size_t j = 0; j < target->rollups_len; j++) {
            const struct target_rollup *rollup = &target->rollups[j];
            if (strcmp(rollup->table, ROLLUPS_TABLE) != 0)
                continue;
            used |= target->lane == options->config->lane;
            for_ever |= rollup->retention_s == 0;
            if (rollup->retention_s > *ret_retention_s)
                *ret_retention_s = rollup->retention_s;
        }
    }
    if (for_ever)
        *ret_retention_s = 0;
    return used;
}

/* The first day that is kept. */
static int64_t first_day(const struct partitions_options *options)
{
    int64_t retention_s;

    if (!is_used(options, &retention_s) || retention_s == 0)
        return INT64_MIN;
    return options->now_s / DAY_S - retention_s / DAY_S;
}

bool partitions_expired(const struct partitions_options *options, int64_t bucket)
{
    return bucket / DAY_S < first_day(options);
}

/* Attached by itself, since CREATE TABLE ... PARTITION OF would lock all of counterd.rollups. Whoever comes
 * second waits for the first, and finds it done. A day's rows are changed a few times while it is today, so
 * its pages keep some room. */
static int make_day(struct postgres *postgres, int64_t day, bool *ret_made, struct error *error)
{
    char name[DAY_NAME_BYTES], next[DAY_NAME_BYTES], sql[640];
    struct pg_result *rows = NULL;
    int r = postgres_begin(postgres, error);

    name_day(day, name);
    name_day(day + 1, next);
    *ret_made = false;
    if (r < 0)
        return r;
    snprintf(sql, sizeof(sql),
             "SELECT pg_advisory_xact_lock(hashtextextended('counterd.rollups', 0));"
             "SELECT 1 FROM pg_inherits WHERE inhparent = to_regclass('counterd.rollups')"
             " AND inhrelid = to_regclass('counterd.rollups_%s')",
             name);
    r = postgres_execute(postgres, sql, NULL, &rows, error);
    if (r == 0 && rows_len(rows) == 0) {
        snprintf(
            sql, sizeof(sql),
            "CREATE TABLE counterd.rollups_%s (LIKE counterd.rollups INCLUDING ALL) WITH (fillfactor = 80);"
            "ALTER TABLE counterd.rollups ATTACH PARTITION counterd.rollups_%s"
            " FOR VALUES FROM ('%s 00:00:00+00') TO ('%s 00:00:00+00')",
            name, name, name, next);
        r = postgres_execute(postgres, sql, NULL, NULL, error);
        *ret_made = r == 0;
    }
    rows_free(rows);
    return postgres_end(postgres, r, error);
}

int partitions_make(struct postgres *postgres, int64_t bucket, struct error *error)
{
    bool made;
    int r = make_day(postgres, bucket / DAY_S, &made, error);

    return r < 0 ? error_prefix(error, r, "making a partition of counterd.rollups") : 0;
}

/* `name` is one that was listed. */
static int drop_day(struct postgres *postgres, const char *name, struct error *error)
{
    char sql[160];
    int r = postgres_begin(postgres, error);

    if (r < 0)
        return r;
    snprintf(sql, sizeof(sql), "SET LOCAL lock_timeout = %d; DROP TABLE IF EXISTS counterd.%s",
             PARTITION_DROP_WAIT_MS, name);
    return postgres_end(postgres, postgres_execute(postgres, sql, NULL, NULL, error), error);
}

static bool is_listed(const struct pg_result *rows, int64_t day)
{
    char name[DAY_NAME_BYTES];

    name_day(day, name);
    for (int i = 0; i < rows_len(rows); i++)
        if (strcmp(rows_text(rows, i, 0) + strlen("rollups_"), name) == 0)
            return true;
    return false;
}

static int make_ahead(struct postgres *postgres, const struct pg_result *rows, int64_t today,
                      struct partitions_kept *kept, struct error *error)
{
    for (int64_t day = today; day <= today + PARTITIONS_AHEAD_DAYS; day++) {
        bool made = false;
        int r = is_listed(rows, day) ? 0 : make_day(postgres, day, &made, error);
        if (r < 0)
            return r;
        kept->made += made;
    }
    return 0;
}

static int drop_expired(struct postgres *postgres, const struct pg_result *rows, const char *first,
                        struct partitions_kept *kept, struct error *error)
{
    for (int i = 0; i < rows_len(rows); i++) {
        const char *name = rows_text(rows, i, 0);
        int r;
        if (strcmp(name + strlen("rollups_"), first) >= 0)
            break;
        r = drop_day(postgres, name, error);
        if (r < 0 && r != FAILURE_LATER && r != FAILURE_COLLISION)
            return r;
        kept->dropped += r == 0;
        kept->postponed += r < 0;
    }
    return 0;
}

int partitions_keep(struct postgres *postgres, const struct partitions_options *options,
                    struct partitions_kept *ret_kept, struct error *error)
{
    static const char sql[] = "SELECT c.relname FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhrelid"
                              " WHERE i.inhparent = to_regclass('counterd.rollups')"
                              " AND c.relname ~ '^rollups_[0-9]{8}$' ORDER BY c.relname COLLATE \"C\"";
    int64_t retention_s, first = first_day(options);
    char first_name[DAY_NAME_BYTES];
    struct pg_result *rows = NULL;
    int r;

    *ret_kept = (struct partitions_kept){0};
    if (!is_used(options, &retention_s))
        return 0;
    r = postgres_execute(postgres, sql, NULL, &rows, error);
    if (r == 0)
        r = make_ahead(postgres, rows, options->now_s / DAY_S, ret_kept, error);
    if (r == 0 && first > 0) {
        name_day(first, first_name);
        r = drop_expired(postgres, rows, first_name, ret_kept, error);
    }
    rows_free(rows);
    return r < 0 ? error_prefix(error, r, "keeping the partitions of counterd.rollups") : 0;
}
