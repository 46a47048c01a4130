#include "flusher/prune.h"

#include <errno.h>
#include <stdlib.h>

#include "lib/clock.h"
#include "lib/id.h"

#define PIECE_ROWS 5000
#define ENOUGH_MS  1000

/* The oldest rows that may go, ordered by shard. What waits in quarantine is judged by the vector, so its
 * shard is left alone until it is resolved. */
static int find(struct postgres *postgres, const struct config *config, struct pg_result **ret_rows,
                struct error *error)
{
    static const char sql[] =
        "SELECT shard, writer FROM (SELECT shard, writer FROM counterd.writers AS w"
        " WHERE namespace = $1 AND starts_with(writer, '" TOKEN_WRITER "')"
        " AND added_at < now() - make_interval(secs => $2::bigint)"
        " AND NOT EXISTS (SELECT FROM counterd.quarantine AS q WHERE q.namespace = $1 AND q.shard = w.shard"
        " AND q.resolution IS NULL)"
        " ORDER BY added_at LIMIT $3::bigint) AS old ORDER BY shard, writer";
    struct parameters parameters = {0};

    parameters_text(&parameters, config->namespace);
    parameters_bigint(&parameters, config->idempotency.ttl_s + config->idempotency.rollback_s);
    parameters_bigint(&parameters, PIECE_ROWS);
    return postgres_execute(postgres, sql, &parameters, ret_rows, error);
}

static int forget_in_redis(struct source_redis *source, const struct pg_result *rows, struct error *error)
{
    const char *writers[PIECE_ROWS];
    int r = 0;

    for (int row = 0, len; row < rows_len(rows) && r == 0; row += len) {
        int64_t shard = rows_bigint(rows, row, 0);
        for (len = 0; row + len < rows_len(rows) && rows_bigint(rows, row + len, 0) == shard; len++)
            writers[len] = rows_text(rows, row + len, 1);
        r = source_redis_forget(source, (uint32_t)shard, writers, (size_t)len, error);
    }
    return r;
}

static int remove_rows(struct postgres *postgres, const struct config *config, const struct pg_result *rows,
                       struct error *error)
{
    static const char sql[] = "DELETE FROM counterd.writers AS w"
                              " USING unnest($2::bigint[], $3::text[]) AS old (shard, writer)"
                              " WHERE w.namespace = $1 AND w.shard = old.shard AND w.writer = old.writer";
    struct parameters parameters = {0};
    struct pgarray shards = {0}, writers = {0};
    size_t len = (size_t)rows_len(rows);
    int r;

    pgarray_begin(&shards, PGARRAY_BIGINT, len);
    pgarray_begin(&writers, PGARRAY_TEXT, len);
    for (int row = 0; row < (int)len; row++) {
        pgarray_add_bigint(&shards, rows_bigint(rows, row, 0));
        pgarray_add_text(&writers, span_of(rows_text(rows, row, 1)));
    }
    parameters_text(&parameters, config->namespace);
    parameters_array(&parameters, &shards);
    parameters_array(&parameters, &writers);
    r = pgarray_ok(&shards) && pgarray_ok(&writers)
            ? postgres_execute(postgres, sql, &parameters, NULL, error)
            : error_set(error, -ENOMEM, "out of memory");
    pgarray_done(&shards);
    pgarray_done(&writers);
    return r;
}

/* Returns how many rows it was. Redis first: who dies in between finds the rows again. */
static int prune_piece(struct postgres *postgres, struct source_redis *source, const struct config *config,
                       struct error *error)
{
    struct pg_result *rows;
    int r = find(postgres, config, &rows, error);
    int len;

    if (r < 0)
        return r;
    len = rows_len(rows);
    r = forget_in_redis(source, rows, error);
    if (r == 0 && len > 0)
        r = remove_rows(postgres, config, rows, error);
    rows_free(rows);
    return r < 0 ? r : len;
}

int prune_requests(struct postgres *postgres, struct source_redis *source, const struct config *config,
                   struct error *error)
{
    int64_t until_ms = clock_monotonic_ms() + ENOUGH_MS;
    int len;

    do
        len = prune_piece(postgres, source, config, error);
    while (len == PIECE_ROWS && clock_monotonic_ms() < until_ms);
    return len < 0 ? len : 0;
}

/* Statements that give one row with how many rows they have removed: all, when less than $3. $1 namespace, $2
 * days; of the ledger's $4, the least id of that age: it only helps to find them, as the primary key is the
 * one index. Of each shard the two newest of those found stay, and what Redis goes by now: three at most, so
 * that is by how many more are looked at. Shards that are being flushed are left out. */
static const char prune_ledger[] =
    "WITH found AS (SELECT shard, gen, applied_at FROM counterd.ledger WHERE namespace = $1 AND gen < $4"
    " AND applied_at < now() - make_interval(days => $2::integer) ORDER BY gen"
    " LIMIT $3::bigint + 3 * (SELECT count(*) FROM counterd.shards WHERE namespace = $1)),"
    " aged AS (SELECT shard, gen, row_number() OVER (PARTITION BY shard ORDER BY applied_at DESC, gen DESC)"
    " AS age FROM found),"
    " old AS (SELECT l.shard, l.gen FROM aged AS l"
    " JOIN counterd.shards AS s ON s.namespace = $1 AND s.shard = l.shard"
    " LEFT JOIN counterd.ledger AS head ON head.namespace = $1 AND head.gen = s.head_gen"
    " WHERE l.age > 2 AND l.gen <> s.head_gen AND l.gen IS DISTINCT FROM head.prev_gen),"
    " locked AS (SELECT shard FROM counterd.shards WHERE namespace = $1 AND shard IN (SELECT shard FROM old)"
    " ORDER BY shard FOR UPDATE SKIP LOCKED),"
    " gone AS (DELETE FROM counterd.ledger AS l USING old, locked WHERE l.namespace = $1 AND l.gen = old.gen"
    " AND locked.shard = old.shard RETURNING l.shard, l.total),"
    " kept AS (UPDATE counterd.shards AS s SET pruned_total = s.pruned_total + g.total"
    " FROM (SELECT shard, sum(total)::bigint AS total FROM gone GROUP BY shard) AS g"
    " WHERE s.namespace = $1 AND s.shard = g.shard)"
    " SELECT count(*) FROM gone";
static const char prune_runs[] =
    "WITH old AS (SELECT id FROM counterd.runs WHERE namespace = $1"
    " AND finished_at < now() - make_interval(days => $2::integer) ORDER BY finished_at LIMIT $3::bigint),"
    " gone AS (DELETE FROM counterd.runs AS r USING old WHERE r.id = old.id RETURNING 1)"
    " SELECT count(*) FROM gone";

static int prune_rows(struct postgres *postgres, const struct config *config, const char *sql,
                      const char *least_id, struct error *error)
{
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    parameters_text(&parameters, config->namespace);
    parameters_bigint(&parameters, config->flush.keep_days);
    parameters_bigint(&parameters, PIECE_ROWS);
    if (least_id)
        parameters_text(&parameters, least_id);
    r = postgres_execute(postgres, sql, &parameters, &rows, error);
    if (r < 0)
        return r;
    r = (int)rows_bigint(rows, 0, 0);
    rows_free(rows);
    return r;
}

/* All of them, unless that takes too long: then the next run goes on. */
static int prune_pieces(struct postgres *postgres, const struct config *config, const char *sql,
                        const char *least_id, int64_t until_ms, struct error *error)
{
    int len;

    do
        len = prune_rows(postgres, config, sql, least_id, error);
    while (len >= PIECE_ROWS && clock_monotonic_ms() < until_ms);
    return len < 0 ? len : 0;
}

int prune_books(struct postgres *postgres, const struct config *config, struct error *error)
{
    int64_t until_ms = clock_monotonic_ms() + ENOUGH_MS;
    char least_id[ID_LEN + 1];
    int r;

    id_floor(clock_unix_ms() - config->flush.keep_days * 86400000, least_id);
    r = prune_pieces(postgres, config, prune_ledger, least_id, until_ms, error);
    return r < 0 ? r : prune_pieces(postgres, config, prune_runs, NULL, until_ms, error);
}
