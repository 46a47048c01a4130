#include "flusher/books.h"

#include <stdio.h>

#include "flusher/failure.h"
#include "flusher/whole.h"

#define PAGE_ROWS 10000

/* Has `take` look at each row of a query for the namespace whose first column is the shard. */
static int each_shard(struct postgres *postgres, const struct config *config, const char *sql,
                      void (*take)(void *context, int64_t shard, const struct pg_result *rows, int at),
                      void *context, struct error *error)
{
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    parameters_text(&parameters, config->namespace);
    r = postgres_execute(postgres, sql, &parameters, &rows, error);
    if (r < 0)
        return r;
    for (int i = 0; i < rows_len(rows); i++) {
        int64_t shard = rows_bigint(rows, i, 0);
        if (shard >= 0 && shard < config->shards)
            take(context, shard, rows, i);
    }
    rows_free(rows);
    return 0;
}

static void take_head(void *context, int64_t shard, const struct pg_result *rows, int at)
{
    struct shard_books *books = context;

    snprintf(books[shard].head_before, sizeof(books->head_before), "%s", rows_text(rows, at, 1));
}

int books_heads(struct postgres *postgres, const struct config *config, struct shard_books *ret_books,
                struct error *error)
{
    return each_shard(postgres, config, "SELECT shard, head_gen FROM counterd.shards WHERE namespace = $1",
                      take_head, ret_books, error);
}

static void take_books(const struct pg_result *rows, int at, struct shard_books *books)
{
    snprintf(books->head_id, sizeof(books->head_id), "%s", rows_text(rows, at, 0));
    books->cumulative_total = rows_bigint(rows, at, 1);
    books->recovered_total = rows_bigint(rows, at, 2);
    books->head_total = rows_bigint(rows, at, 3);
    books->ledger_total = rows_bigint(rows, at, 4);
    books->prev_known = rows_bigint(rows, at, 5) == 1;
    books->prev_total = rows_bigint(rows, at, 6);
    books->quarantined_rows = rows_bigint(rows, at, 7);
    books->quarantined = rows_bigint(rows, at, 8);
    books->parked_total = rows_bigint(rows, at, 9);
    books->dropped_total = rows_bigint(rows, at, 10);
    books->parked_rows_total = rows_bigint(rows, at, 11);
    books->vector_behind = rows_bigint(rows, at, 12) == 1;
}

int books_read(struct postgres *postgres, const struct config *config, const struct shard_holdings *holdings,
               struct shard_books *ret_books, struct error *error)
{
    static const char sql[] =
        "WITH booked AS (SELECT shard, sum(total) AS total FROM counterd.ledger WHERE namespace = $1"
        " GROUP BY shard),"
        " parked AS (SELECT shard, sum(delta) AS total FROM counterd.parked WHERE namespace = $1"
        " GROUP BY shard),"
        /* Whose batches are all applied by now, is evidence and no more. */
        " waiting AS (SELECT q.shard, count(*) AS len, sum(q.total) AS total FROM counterd.quarantine AS q"
        " WHERE q.namespace = $1 AND q.resolution IS NULL AND (q.identity = '{}' OR EXISTS ("
        "SELECT FROM jsonb_each(q.identity) AS b LEFT JOIN counterd.writers AS w"
        " ON w.namespace = q.namespace AND w.shard = q.shard AND w.writer = b.key"
        " WHERE COALESCE(w.seq, 0) < (b.value->>1)::bigint)) GROUP BY q.shard)"
        " SELECT s.head_gen, s.cumulative_total, s.recovered_total, head.cumulative_total,"
        " COALESCE(booked.total, 0) + s.pruned_total,"
        /* A newest row that is gone is told by what the others don't add up to. */
        " (h.prev_gen IN ('', s.head_gen) OR prev.gen IS NOT NULL)::integer,"
        " COALESCE(prev.cumulative_total, s.cumulative_total * (h.prev_gen = s.head_gen)::integer),"
        " waiting.len, waiting.total, s.parked_total, s.dropped_total, parked.total,"
        " EXISTS (SELECT FROM jsonb_each_text(h.durable::jsonb) AS d LEFT JOIN counterd.writers AS w"
        " ON w.namespace = $1 AND w.shard = h.number - 1 AND w.writer = d.key"
        " WHERE COALESCE(w.seq, 0) < d.value::bigint)::integer"
        " FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS h (prev_gen, durable, number)"
        " LEFT JOIN counterd.shards AS s ON s.namespace = $1 AND s.shard = h.number - 1"
        " LEFT JOIN counterd.ledger AS head ON head.namespace = $1 AND head.gen = s.head_gen"
        " LEFT JOIN counterd.ledger AS prev ON prev.namespace = $1 AND prev.gen = h.prev_gen"
        " LEFT JOIN booked ON booked.shard = h.number - 1"
        " LEFT JOIN waiting ON waiting.shard = h.number - 1"
        " LEFT JOIN parked ON parked.shard = h.number - 1"
        " ORDER BY h.number";
    struct parameters parameters = {0};
    struct pgarray released = {0}, durable = {0};
    struct pg_result *rows = NULL;
    int r;

    pgarray_begin(&released, PGARRAY_TEXT, (size_t)config->shards);
    pgarray_begin(&durable, PGARRAY_TEXT, (size_t)config->shards);
    for (int64_t i = 0; i < config->shards; i++) {
        pgarray_add_text(&released, span_of(holdings[i].prev_id));
        pgarray_add_text(&durable, span_of(holdings[i].durable ? holdings[i].durable : "{}"));
    }
    parameters_text(&parameters, config->namespace);
    parameters_array(&parameters, &released);
    parameters_array(&parameters, &durable);
    r = pgarray_ok(&released) && pgarray_ok(&durable)
            ? postgres_execute(postgres, sql, &parameters, &rows, error)
            : error_set(error, -ENOMEM, "out of memory");
    pgarray_done(&released);
    pgarray_done(&durable);
    for (int i = 0; r == 0 && i < (int)config->shards; i++)
        take_books(rows, i, &ret_books[i]);
    rows_free(rows);
    return r;
}

/* --- counters --- */

static void add_applied(void *context, int64_t shard, const struct pg_result *rows, int at)
{
    int64_t *shards = context;

    shards[shard] = whole_add(shards[shard], rows_bigint(rows, at, 1));
}

/* One page of the counters, those after `last`, which becomes the page's last key. Returns how many. */
static int subtract_page(struct postgres *postgres, const struct config *config, char last[KEY_LEN_MAX + 1],
                         int64_t *shards, struct error *error)
{
    struct parameters parameters = {0};
    struct pg_result *rows;
    int len, r;

    parameters_text(&parameters, last);
    parameters_bigint(&parameters, PAGE_ROWS);
    r = postgres_execute(
        postgres, "SELECT key, value FROM counterd.counters WHERE key > $1 ORDER BY key LIMIT $2::bigint",
        &parameters, &rows, error);
    if (r < 0)
        return r;
    len = rows_len(rows);
    for (int i = 0; i < len; i++) {
        const char *key = rows_text(rows, i, 0);
        uint32_t shard = keyspace_shard(keyspace_hash(span_of(key)), (uint32_t)config->shards);
        shards[shard] = whole_subtract(shards[shard], rows_bigint(rows, i, 1));
        snprintf(last, KEY_LEN_MAX + 1, "%s", key);
    }
    rows_free(rows);
    return len;
}

/* Where the difference is, which only a look at every key can tell. */
static int locate(struct postgres *postgres, const struct config *config, int64_t *ret_shards,
                  struct error *error)
{
    char last[KEY_LEN_MAX + 1] = "";
    struct error ignored;
    int r = postgres_execute(postgres, "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY", NULL, NULL, error);

    if (r < 0)
        return r;
    r = each_shard(postgres, config,
                   "SELECT shard, cumulative_total + recovered_total - parked_total - dropped_total"
                   " - elsewhere_total FROM counterd.shards WHERE namespace = $1",
                   add_applied, ret_shards, error);
    for (int len = PAGE_ROWS; r == 0 && len == PAGE_ROWS;) {
        len = subtract_page(postgres, config, last, ret_shards, error);
        r = len < 0 ? len : 0;
    }
    if (postgres_execute(postgres, "ROLLBACK", NULL, NULL, &ignored) < 0 && r == 0) {
        *error = ignored;
        r = FAILURE_UNAVAILABLE;
    }
    return r;
}

int books_counters(struct postgres *postgres, const struct config *config, int64_t *ret_total,
                   int64_t *ret_shards, struct error *error)
{
    static const char sql[] =
        "WITH claims AS (SELECT namespace = $1 AS own, cumulative_total + recovered_total - parked_total"
        " - dropped_total - elsewhere_total AS total FROM counterd.shards)"
        " SELECT COALESCE(sum(total), 0) - (SELECT COALESCE(sum(value), 0) FROM counterd.counters),"
        " count(*) FILTER (WHERE own AND total <> 0), count(*) FILTER (WHERE NOT own AND total <> 0)"
        " FROM claims";
    struct parameters parameters = {0};
    struct pg_result *rows;
    bool counts, others_count;
    int r;

    parameters_text(&parameters, config->namespace);
    r = postgres_execute(postgres, sql, &parameters, &rows, error);
    if (r < 0)
        return r;
    *ret_total = rows_bigint(rows, 0, 0);
    counts = rows_bigint(rows, 0, 1) > 0;
    others_count = rows_bigint(rows, 0, 2) > 0;
    rows_free(rows);
    /* Where only others count, it is theirs. */
    if (!counts && others_count)
        *ret_total = 0;
    return *ret_total != 0 && !others_count ? locate(postgres, config, ret_shards, error) : 0;
}
