#include "flusher/catch_up.h"

#include <errno.h>
#include <stdlib.h>

/* The shards whose newest generation is not what Redis released last, and how much more the ledger has with
 * it. If the ledger lacks what Redis released last, it is Postgres that went back: that is not mended here.
 * That a generation committed just now is among them does no harm: Redis has it sealed, or has released it.
 */
static int find(struct postgres *postgres, const struct config *config, const struct shard_state *states,
                const int64_t *idle, struct pg_result **ret_rows, struct error *error)
{
    static const char sql[] =
        "SELECT s.shard, s.head_gen, s.cumulative_total - COALESCE(prev.cumulative_total, 0),"
        " s.cumulative_events - COALESCE(prev.cumulative_events, 0)"
        " FROM unnest($2::bigint[], $3::text[]) AS r (shard, prev_gen)"
        " JOIN counterd.shards AS s ON s.namespace = $1 AND s.shard = r.shard AND s.head_gen <> r.prev_gen"
        " LEFT JOIN counterd.ledger AS prev ON prev.namespace = $1 AND prev.gen = r.prev_gen"
        " WHERE r.prev_gen = '' OR prev.gen IS NOT NULL ORDER BY s.shard";
    struct parameters parameters = {0};
    struct pgarray shards = {0}, released = {0};
    size_t len = 0;
    int r;

    for (int64_t i = 0; i < config->shards; i++)
        len += idle[i] > 0;
    pgarray_begin(&shards, PGARRAY_BIGINT, len);
    pgarray_begin(&released, PGARRAY_TEXT, len);
    for (int64_t i = 0; i < config->shards; i++) {
        if (idle[i] <= 0)
            continue;
        pgarray_add_bigint(&shards, i);
        pgarray_add_text(&released, span_of(states[i].prev_id));
    }
    parameters_text(&parameters, config->namespace);
    parameters_array(&parameters, &shards);
    parameters_array(&parameters, &released);
    r = pgarray_ok(&shards) && pgarray_ok(&released)
            ? postgres_execute(postgres, sql, &parameters, ret_rows, error)
            : error_set(error, -ENOMEM, "out of memory");
    pgarray_done(&shards);
    pgarray_done(&released);
    return r;
}

static int read_states(struct source_redis *source, const struct config *config, const int64_t *idle,
                       struct shard_state *ret_states, struct error *error)
{
    int r = 0;

    for (int64_t i = 0; r == 0 && i < config->shards; i++)
        if (idle[i] > 0)
            r = source_redis_state(source, (uint32_t)i, &ret_states[i], error);
    return r;
}

int catch_up(struct postgres *postgres, struct source_redis *source, const struct config *config,
             const int64_t *idle, int64_t *ret_shards, struct error *error)
{
    struct shard_state *states = calloc((size_t)config->shards, sizeof(*states));
    struct pg_result *rows = NULL;
    int r = states ? read_states(source, config, idle, states, error)
                   : error_set(error, -ENOMEM, "out of memory");

    *ret_shards = 0;
    if (r == 0)
        r = find(postgres, config, states, idle, &rows, error);
    for (int row = 0; r == 0 && row < rows_len(rows); row++) {
        int64_t shard = rows_bigint(rows, row, 0);
        struct correction ahead = {rows_bigint(rows, row, 2), rows_bigint(rows, row, 3)};
        bool done = false;
        r = source_redis_catch_up(source, (uint32_t)shard, &states[shard], rows_text(rows, row, 1), &ahead,
                                  &done, error);
        *ret_shards += done;
    }
    rows_free(rows);
    free(states);
    return r;
}
