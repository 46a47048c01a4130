#include "flusher/records.h"

#include <inttypes.h>
#include <stdio.h>

#include "flusher/failure.h"
#include "flusher/sink.h"

/* --- shards --- */

static int read_shards(struct postgres *postgres, const struct config *config, int64_t *ret_shards,
                       struct error *error)
{
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    parameters_text(&parameters, config->namespace);
    r = postgres_execute(postgres, "SELECT shards FROM counterd.namespaces WHERE namespace = $1", &parameters,
                         &rows, error);
    if (r < 0)
        return r;
    *ret_shards = rows_len(rows) == 1 ? rows_bigint(rows, 0, 0) : 0;
    rows_free(rows);
    return 0;
}

/* Ends a transaction in which all went well so far, or `r` says what did not. */
static int finish(struct postgres *postgres, int r, struct error *error)
{
    r = postgres_end(postgres, r, error);
    return r == COMMIT_UNKNOWN ? error_set(error, FAILURE_UNAVAILABLE, "no answer to COMMIT; run it again")
                               : r;
}

static int create_namespace(struct postgres *postgres, const struct config *config, struct error *error)
{
    struct parameters parameters = {0};
    int r = postgres_begin(postgres, error);

    parameters_text(&parameters, config->namespace);
    parameters_bigint(&parameters, config->shards);
    if (r == 0)
        r = postgres_execute(postgres,
                             "INSERT INTO counterd.namespaces (namespace, shards) VALUES ($1, $2::integer)"
                             " ON CONFLICT DO NOTHING",
                             &parameters, NULL, error);
    /* The numbers as they are now: of two first runs with different configurations one was too late. */
    if (r == 0)
        r = postgres_execute(postgres,
                             "INSERT INTO counterd.shards (namespace, shard) SELECT namespace, shard"
                             " FROM counterd.namespaces, generate_series(0, shards - 1) AS shard"
                             " WHERE namespace = $1 AND shards = $2::integer ON CONFLICT DO NOTHING",
                             &parameters, NULL, error);
    return finish(postgres, r, error);
}

int records_check_shards(struct postgres *postgres, const struct config *config, bool record,
                         struct error *error)
{
    int64_t shards;
    int r = read_shards(postgres, config, &shards, error);

    if (r == 0 && shards == 0 && record) {
        r = create_namespace(postgres, config, error);
        if (r == 0)
            r = read_shards(postgres, config, &shards, error);
    }
    if (r < 0 || shards == 0 || shards == config->shards)
        return r;
    return error_set(error, FAILURE_CONFIG,
                     "'shards' is %" PRId64 ", but Postgres (counterd.namespaces) has namespace '%s' with "
                     "%" PRId64 " shards, which are fixed for its life: set 'shards' to %" PRId64
                     " or choose another 'namespace'",
                     config->shards, config->namespace, shards, shards);
}

/* --- runs --- */

static int insert_run(struct postgres *postgres, const struct config *config, const struct run_record *run,
                      struct error *error)
{
    struct parameters parameters = {0};

    parameters_text(&parameters, config->namespace);
    parameters_bigint(&parameters, run->started_ms);
    parameters_bigint(&parameters, run->finished_ms);
    parameters_bigint(&parameters, run->shards);
    parameters_bigint(&parameters, run->keys);
    parameters_bigint(&parameters, run->total);
    parameters_bigint(&parameters, run->events);
    parameters_text(&parameters, run->failure);
    parameters_bigint(&parameters, run->quarantined);
    parameters_bigint(&parameters, run->parked);
    parameters_bigint(&parameters, run->dropped);
    return postgres_execute(
        postgres,
        "WITH run AS (INSERT INTO counterd.runs (namespace, started_at, finished_at, shards, keys,"
        " increments, events, error, quarantined, parked, dropped)"
        " VALUES ($1, to_timestamp($2::bigint / 1000.0), to_timestamp($3::bigint / 1000.0), $4::integer,"
        " $5::bigint, $6::bigint, $7::bigint, $8, $9::integer, $10::bigint, $11::bigint) RETURNING *)"
        "SELECT pg_notify('counterd_flushed', json_build_object('namespace', namespace, 'run', id,"
        " 'keys', keys, 'increments', increments, 'fresh_until', fresh_until)::text)"
        " FROM run LEFT JOIN counterd.freshness USING (namespace)",
        &parameters, NULL, error);
}

static int update_freshness(struct postgres *postgres, const struct config *config, const int64_t *fresh_ms,
                            struct error *error)
{
    /* Locked in order, or two runs that end together could wait for each other. It does not go back, unless
     * the clock of Redis was ahead. */
    static const char sql[] =
        "WITH fresh AS (SELECT shard - 1 AS shard, to_timestamp(ms / 1000.0) AS until"
        " FROM unnest($2::bigint[]) WITH ORDINALITY AS f (ms, shard) WHERE ms > 0),"
        " locked AS (SELECT shard FROM counterd.shards JOIN fresh USING (shard) WHERE namespace = $1"
        " ORDER BY shard FOR NO KEY UPDATE OF shards)"
        "UPDATE counterd.shards AS s SET fresh_until ="
        " GREATEST(fresh.until, CASE WHEN s.fresh_until <= now() THEN s.fresh_until END)"
        " FROM fresh JOIN locked USING (shard) WHERE s.namespace = $1 AND s.shard = fresh.shard";
    struct parameters parameters = {0};
    struct pgarray times = {0};
    int r;

    pgarray_begin(&times, PGARRAY_BIGINT, (size_t)config->shards);
    for (int64_t i = 0; i < config->shards; i++)
        pgarray_add_bigint(&times, fresh_ms[i]);
    parameters_text(&parameters, config->namespace);
    parameters_array(&parameters, &times);
    r = pgarray_ok(&times) ? postgres_execute(postgres, sql, &parameters, NULL, error)
                           : error_set(error, -ENOMEM, "out of memory");
    pgarray_done(&times);
    return r;
}

int records_finish_run(struct postgres *postgres, const struct config *config, const struct run_record *run,
                       const int64_t *fresh_ms, struct error *error)
{
    int r = postgres_begin(postgres, error);

    /* Worth no wait for the disk: what a crash takes is a line of the log, and freshness then errs on the
     * safe side until the next run. What was flushed is on disk already. For the NOTIFY it is a must: its
     * COMMIT holds a lock of the whole server, so it stands here, once per run, and not in a flush. */
    if (r == 0)
        r = postgres_execute(postgres, "SET LOCAL synchronous_commit = off", NULL, NULL, error);
    if (r == 0)
        r = update_freshness(postgres, config, fresh_ms, error);
    if (r == 0)
        r = insert_run(postgres, config, run, error);
    return finish(postgres, r, error);
}

/* --- lookups --- */

/* Of a key that can have no row. */
static const char stored_nowhere[] = "SELECT NULL, NULL, (SELECT head_gen FROM counterd.shards"
                                     " WHERE namespace = $1 AND shard = $2::bigint)";

/* The query and its parameters; `values` holds the key's parts. */
static const char *ask_for_key(const struct plan *plan, struct span key, struct parameters *parameters,
                               char values[PATTERN_PLACEHOLDERS_MAX][KEY_LEN_MAX + 1])
{
    const struct planned *planned = plan_find(plan, key);
    struct span spans[PATTERN_PLACEHOLDERS_MAX];

    if (!planned)
        return stored_nowhere;
    plan_values(planned, &planned->layout, key, spans);
    if (plan_fit(&planned->layout, spans) != FIT_GOOD)
        return stored_nowhere;
    for (size_t i = 0; i < planned->layout.key_len; i++) {
        snprintf(values[i], KEY_LEN_MAX + 1, "%.*s", (int)spans[i].len, spans[i].ptr);
        parameters_text(parameters, values[i]);
    }
    return planned->get;
}

static int read_parked(struct postgres *postgres, const struct config *config, const char *key,
                       int64_t *ret_parked, struct error *error)
{
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    parameters_text(&parameters, config->namespace);
    parameters_text(&parameters, key);
    r = postgres_execute(postgres, "SELECT sum(delta) FROM counterd.parked WHERE namespace = $1 AND key = $2",
                         &parameters, &rows, error);
    if (r < 0)
        return r;
    *ret_parked = rows_bigint(rows, 0, 0);
    rows_free(rows);
    return 0;
}

int records_stored(struct postgres *postgres, const struct config *config, const struct plan *plan,
                   const char *key, struct stored *ret_stored, struct error *error)
{
    char values[PATTERN_PLACEHOLDERS_MAX][KEY_LEN_MAX + 1];
    struct parameters parameters = {0};
    struct pg_result *rows;
    const char *sql;
    int r;

    parameters_text(&parameters, config->namespace);
    parameters_bigint(&parameters, keyspace_shard(keyspace_hash(span_of(key)), (uint32_t)config->shards));
    sql = ask_for_key(plan, span_of(key), &parameters, values);
    r = postgres_execute(postgres, sql, &parameters, &rows, error);
    if (r == FAILURE_REFUSED) {
        parameters.len = 2;
        r = postgres_execute(postgres, stored_nowhere, &parameters, &rows, error);
    }
    if (r < 0)
        return r;
    *ret_stored = (struct stored){.value = rows_bigint(rows, 0, 0), .known = rows_bigint(rows, 0, 1) == 1};
    snprintf(ret_stored->head_id, sizeof(ret_stored->head_id), "%s", rows_text(rows, 0, 2));
    rows_free(rows);
    return read_parked(postgres, config, key, &ret_stored->parked, error);
}

int records_ledger(struct postgres *postgres, const struct config *config, const struct shard_state *states,
                   struct shard_ledger *ret_ledger, struct error *error)
{
    static const char sql[] =
        "SELECT (sealed.gen IS NOT NULL)::integer, released.cumulative_total, released.cumulative_events"
        " FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS s (sealed_gen, prev_gen, number)"
        " LEFT JOIN counterd.ledger AS sealed ON sealed.namespace = $1 AND sealed.gen = s.sealed_gen"
        " LEFT JOIN counterd.ledger AS released ON released.namespace = $1 AND released.gen = s.prev_gen"
        " ORDER BY s.number";
    struct parameters parameters = {0};
    struct pgarray sealed = {0}, released = {0};
    struct pg_result *rows = NULL;
    int r;

    pgarray_begin(&sealed, PGARRAY_TEXT, (size_t)config->shards);
    pgarray_begin(&released, PGARRAY_TEXT, (size_t)config->shards);
    for (int64_t i = 0; i < config->shards; i++) {
        pgarray_add_text(&sealed, span_of(states[i].sealed_id));
        pgarray_add_text(&released, span_of(states[i].prev_id));
    }
    parameters_text(&parameters, config->namespace);
    parameters_array(&parameters, &sealed);
    parameters_array(&parameters, &released);
    r = pgarray_ok(&sealed) && pgarray_ok(&released)
            ? postgres_execute(postgres, sql, &parameters, &rows, error)
            : error_set(error, -ENOMEM, "out of memory");
    pgarray_done(&sealed);
    pgarray_done(&released);
    if (r < 0)
        return r;
    for (int i = 0; i < (int)config->shards; i++)
        ret_ledger[i] = (struct shard_ledger){rows_bigint(rows, i, 0) == 1, rows_bigint(rows, i, 1),
                                              rows_bigint(rows, i, 2)};
    rows_free(rows);
    return 0;
}

int records_history(struct postgres *postgres, const struct config *config, struct history *ret_history,
                    struct error *error)
{
    static const char sql[] =
        "SELECT trunc(extract(epoch FROM f.fresh_until) * 1000), trunc(extract(epoch FROM s.applied_at) * "
        "1000),"
        " (r.id IS NOT NULL)::integer, trunc(extract(epoch FROM r.started_at) * 1000),"
        " trunc(extract(epoch FROM r.finished_at) * 1000), r.keys, r.increments, r.error, s.parked,"
        " s.dropped, (SELECT count(*) FROM (SELECT FROM counterd.parked WHERE namespace = $1"
        " LIMIT $2::bigint) AS p)"
        " FROM (SELECT max(applied_at) AS applied_at, sum(parked_total) AS parked,"
        " sum(dropped_total) AS dropped FROM counterd.shards WHERE namespace = $1) AS s"
        " LEFT JOIN counterd.freshness AS f ON f.namespace = $1"
        " LEFT JOIN (SELECT * FROM counterd.runs WHERE namespace = $1 ORDER BY id DESC LIMIT 1) AS r ON true";
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    parameters_text(&parameters, config->namespace);
    parameters_bigint(&parameters, PARKED_ROWS_MAX);
    r = postgres_execute(postgres, sql, &parameters, &rows, error);
    if (r < 0)
        return r;
    *ret_history = (struct history){
        .fresh_ms = rows_bigint(rows, 0, 0),
        .applied_ms = rows_bigint(rows, 0, 1),
        .has_run = rows_bigint(rows, 0, 2) == 1,
        .started_ms = rows_bigint(rows, 0, 3),
        .finished_ms = rows_bigint(rows, 0, 4),
        .keys = rows_bigint(rows, 0, 5),
        .total = rows_bigint(rows, 0, 6),
        .parked = rows_bigint(rows, 0, 8),
        .dropped = rows_bigint(rows, 0, 9),
        .parked_rows = rows_bigint(rows, 0, 10),
    };
    snprintf(ret_history->failure, sizeof(ret_history->failure), "%s", rows_text(rows, 0, 7));
    rows_free(rows);
    return 0;
}
