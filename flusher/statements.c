#include "flusher/statements.h"

#include <stdio.h>
#include <stdlib.h>

void layout_done(struct layout *layout)
{
    for (size_t i = 0; i < layout->key_len; i++) {
        free(layout->key[i].name);
        free(layout->key[i].type);
        free(layout->key[i].equals);
    }
    free(layout->table);
    free(layout->value);
    free(layout->time);
    *layout = (struct layout){0};
}

/* "k1, k2, k3", and the bucket when it is a part of the key. */
static void write_keys(FILE *out, const struct layout *layout, const char *prefix)
{
    for (size_t i = 0; i < layout->key_len; i++)
        fprintf(out, "%s%sk%zu", i > 0 ? ", " : "", prefix, i + 1);
    if (layout->time_use == TIME_BUCKET)
        fprintf(out, ", %sat", prefix);
}

static void write_columns(FILE *out, const struct layout *layout)
{
    for (size_t i = 0; i < layout->key_len; i++)
        fprintf(out, "%s%s", i > 0 ? ", " : "", layout->key[i].name);
    if (layout->time_use == TIME_BUCKET)
        fprintf(out, ", %s", layout->time);
}

/* As sub-selects, so that the planner does not look into the arrays: it then takes them for few rows and goes
 * by the index, one after the other and so in their order, instead of reading a large table through. */
static void write_arrays(FILE *out, const struct layout *layout)
{
    size_t number = 1;

    fprintf(out, "unnest(");
    for (; number <= layout->key_len; number++)
        fprintf(out, "(SELECT $%zu::text[]), ", number);
    fprintf(out, "(SELECT $%zu::bigint[])", number);
    if (layout->time_use != TIME_UNUSED)
        fprintf(out, ", (SELECT $%zu::timestamptz[])", number + 1);
    fprintf(out, ") WITH ORDINALITY AS i (");
    for (size_t i = 1; i <= layout->key_len; i++)
        fprintf(out, "k%zu, ", i);
    fprintf(out, "delta%s, number)", layout->time_use != TIME_UNUSED ? ", at" : "");
}

static const char *const aggregates[MERGE_COUNT] = {"sum", "max", "min"};

/* u: a row for each row of the table, in order. */
static void write_sums(FILE *out, const struct layout *layout, bool numbers)
{
    size_t columns = layout->key_len + (layout->time_use == TIME_BUCKET);

    fprintf(out, "WITH u AS MATERIALIZED (SELECT ");
    for (size_t i = 0; i < layout->key_len; i++)
        fprintf(out, "CAST(i.k%zu AS %s) AS k%zu, ", i + 1, layout->key[i].type, i + 1);
    if (layout->time_use == TIME_BUCKET)
        fprintf(out, "i.at, ");
    fprintf(out, "CAST(%s(i.delta) AS bigint) AS delta", aggregates[layout->merge]);
    if (layout->time_use == TIME_TOUCH)
        fprintf(out, ", max(i.at)%s AS at", layout->time_is_local ? " AT TIME ZONE 'UTC'" : "");
    if (numbers)
        fprintf(out, ", array_agg(i.number) AS numbers");
    fprintf(out, " FROM ");
    write_arrays(out, layout);
    fprintf(out, " GROUP BY ");
    for (size_t i = 1; i <= columns; i++)
        fprintf(out, "%s%zu", i > 1 ? ", " : "", i);
    fprintf(out, " ORDER BY ");
    for (size_t i = 1; i <= columns; i++)
        fprintf(out, "%s%zu", i > 1 ? ", " : "", i);
    fprintf(out, ")");
}

/* `from`: what the deltas are called. */
static void write_changes(FILE *out, const struct layout *layout, const char *delta, const char *time)
{
    /* These two pass over NULL. */
    static const char *const functions[MERGE_COUNT] = {[MERGE_MAX] = "GREATEST", [MERGE_MIN] = "LEAST"};

    if (layout->merge == MERGE_ADD)
        fprintf(out, "%s = COALESCE(t.%s, 0) + %s", layout->value, layout->value, delta);
    else
        fprintf(out, "%s = %s(t.%s, %s)", layout->value, functions[layout->merge], layout->value, delta);
    if (layout->time_use == TIME_TOUCH)
        fprintf(out, ", %s = GREATEST(t.%s, %s)", layout->time, layout->time, time);
}

static void write_match(FILE *out, const struct layout *layout)
{
    for (size_t i = 0; i < layout->key_len; i++)
        fprintf(out, "%st.%s %s u.k%zu", i > 0 ? " AND " : "", layout->key[i].name, layout->key[i].equals,
                i + 1);
}

static void write_update(FILE *out, const struct layout *layout)
{
    write_sums(out, layout, true);
    fprintf(out, ", done AS (UPDATE %s AS t SET ", layout->table);
    write_changes(out, layout, "u.delta", "u.at");
    fprintf(out, " FROM u WHERE ");
    write_match(out, layout);
    fprintf(out, " RETURNING u.numbers[1] AS first)"
                 " SELECT number FROM u, unnest(u.numbers) AS number"
                 " WHERE u.numbers[1] NOT IN (SELECT first FROM done)");
}

static void write_upsert(FILE *out, const struct layout *layout)
{
    char delta[160], time[160];
    bool touches = layout->time_use == TIME_TOUCH;

    snprintf(delta, sizeof(delta), "EXCLUDED.%s", layout->value);
    snprintf(time, sizeof(time), "EXCLUDED.%s", touches ? layout->time : "");
    write_sums(out, layout, false);
    fprintf(out, ", done AS (INSERT INTO %s AS t (", layout->table);
    write_columns(out, layout);
    fprintf(out, ", %s%s%s) SELECT ", layout->value, touches ? ", " : "", touches ? layout->time : "");
    write_keys(out, layout, "u.");
    fprintf(out, ", u.delta%s FROM u ORDER BY ", touches ? ", u.at" : "");
    write_keys(out, layout, "u.");
    fprintf(out, " ON CONFLICT (");
    write_columns(out, layout);
    fprintf(out, ") DO UPDATE SET ");
    write_changes(out, layout, delta, time);
    fprintf(out, " RETURNING 1)"
                 " SELECT 1 WHERE (SELECT count(*) FROM u) <> (SELECT count(*) FROM done)");
}

static void write_get(FILE *out, const struct layout *layout)
{
    fprintf(out,
            "SELECT c.value, c.found, s.head_gen FROM (SELECT) AS always"
            " LEFT JOIN (SELECT t.%s AS value, 1 AS found FROM %s AS t WHERE ",
            layout->value, layout->table);
    for (size_t i = 0; i < layout->key_len; i++)
        fprintf(out, "%st.%s %s CAST($%zu::text AS %s)", i > 0 ? " AND " : "", layout->key[i].name,
                layout->key[i].equals, i + 3, layout->key[i].type);
    fprintf(out, ") AS c ON true"
                 " LEFT JOIN counterd.shards AS s ON s.namespace = $1 AND s.shard = $2::bigint");
}

static char *compose(void (*write)(FILE *, const struct layout *), const struct layout *layout)
{
    char *text = NULL;
    size_t len;
    FILE *out = open_memstream(&text, &len);
    bool failed;

    if (!out)
        return NULL;
    write(out, layout);
    failed = ferror(out) != 0;
    if (fclose(out) == 0 && !failed)
        return text;
    free(text);
    return NULL;
}

char *statement_update(const struct layout *layout)
{
    return compose(write_update, layout);
}

char *statement_upsert(const struct layout *layout)
{
    return compose(write_upsert, layout);
}

char *statement_get(const struct layout *layout)
{
    return compose(write_get, layout);
}
