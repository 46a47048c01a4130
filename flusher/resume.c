#include "flusher/resume.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

typedef char generation_id[GENERATION_ID_LEN_MAX + 1];

/* The shards that are behind, as far as one statement can tell: what else was released or sealed since Redis
 * was asked, the script finds. */
static int find(struct postgres *postgres, const struct config *config, const generation_id *released,
                struct pg_result **ret_rows, struct error *error)
{
    static const char sql[] =
        "SELECT s.shard, r.gen, s.head_gen, s.cumulative_total, s.cumulative_events"
        " FROM unnest($2::text[]) WITH ORDINALITY AS r (gen, number)"
        " JOIN counterd.shards AS s ON s.namespace = $1 AND s.shard = r.number - 1 AND s.head_gen <> r.gen"
        " WHERE r.gen = '' OR EXISTS (SELECT FROM counterd.ledger WHERE namespace = $1 AND gen = r.gen)";
    struct parameters parameters = {0};
    struct pgarray ids = {0};
    int r;

    pgarray_begin(&ids, PGARRAY_TEXT, (size_t)config->shards);
    for (int64_t i = 0; i < config->shards; i++)
        pgarray_add_text(&ids, span_of(released[i]));
    parameters_text(&parameters, config->namespace);
    parameters_array(&parameters, &ids);
    r = pgarray_ok(&ids) ? postgres_execute(postgres, sql, &parameters, ret_rows, error)
                         : error_set(error, -ENOMEM, "out of memory");
    pgarray_done(&ids);
    return r;
}

static int resume_row(struct source_redis *source, const struct pg_result *rows, int row, struct error *error)
{
    struct reset to = {.accepted = rows_bigint(rows, row, 3), .events = rows_bigint(rows, row, 4)};

    snprintf(to.head_id, sizeof(to.head_id), "%s", rows_text(rows, row, 2));
    return source_redis_resume(source, (uint32_t)rows_bigint(rows, row, 0), rows_text(rows, row, 1), &to,
                               error);
}

int resume_idle(struct postgres *postgres, struct source_redis *source, const struct config *config,
                struct error *error)
{
    generation_id *released = calloc((size_t)config->shards, sizeof(*released));
    struct pg_result *rows = NULL;
    int r = released ? source_redis_released(source, released, error)
                     : error_set(error, -ENOMEM, "out of memory");

    if (r == 0)
        r = find(postgres, config, released, &rows, error);
    for (int i = 0; r == 0 && i < rows_len(rows); i++)
        r = resume_row(source, rows, i, error);
    rows_free(rows);
    free(released);
    return r;
}
