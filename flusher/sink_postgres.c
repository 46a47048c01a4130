#include "flusher/sink_postgres.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "flusher/deliver.h"
#include "flusher/failure.h"
#include "lib/member.h"

#define DAY_S          INT64_C(86400)
#define DAYS_KNOWN_MAX 64

/* What is sent as arrays; memory kept. */
enum column {
    SHARDS, /* of the cargo, from here on */
    IDS,
    PREV_IDS,
    KEYS,
    TOTALS,
    EVENTS,
    ACCEPTED,
    CUMULATIVE_TOTALS,
    CUMULATIVE_EVENTS,
    CORRECTIONS,
    EVENTS_CORRECTIONS,
    OPENED,
    SEALED,
    BATCH_SHARDS, /* of their batches, from here on */
    BATCH_IDS,
    BATCH_PREV_IDS,
    BATCH_WRITERS,
    BATCH_LOWS,
    BATCH_HIGHS,
    UPDATE_KEYS, /* of the updates, from here on */
    UPDATE_DELTAS,
    COLUMN_COUNT
};

static enum pgarray_type type_of(enum column column)
{
    switch ((int)column) {
    case IDS:
    case PREV_IDS:
    case BATCH_IDS:
    case BATCH_PREV_IDS:
    case BATCH_WRITERS:
    case UPDATE_KEYS:
        return PGARRAY_TEXT;
    case OPENED:
    case SEALED:
        return PGARRAY_TIMESTAMPTZ;
    default:
        return PGARRAY_BIGINT;
    }
}

struct sink_postgres {
    struct postgres *postgres;
    const char *namespace;
    const char *left_out; /* what the writers begin with that get no row in the vector; "" = none */
    const struct plan *plan;
    struct applier *applier;
    int64_t days[DAYS_KNOWN_MAX]; /* that have their partitions of counterd.rollups, or get none */
    size_t days_len;
    struct pgarray columns[COLUMN_COUNT];
};

int sink_postgres_new(struct postgres *postgres, const struct config *config, const struct plan *plan,
                      struct sink_postgres **ret_sink, struct error *error)
{
    struct sink_postgres *sink = calloc(1, sizeof(*sink));
    int r;

    if (!sink)
        return error_set(error, -ENOMEM, "out of memory");
    sink->postgres = postgres;
    sink->plan = plan;
    sink->namespace = config->namespace;
    sink->left_out = config->idempotency.vector ? "" : TOKEN_WRITER;
    r = applier_new(postgres, plan, &sink->applier, error);
    if (r < 0)
        sink_postgres_free(sink);
    else
        *ret_sink = sink;
    return r;
}

void sink_postgres_free(struct sink_postgres *sink)
{
    if (!sink)
        return;
    applier_free(sink->applier);
    for (int i = 0; i < COLUMN_COUNT; i++)
        pgarray_done(&sink->columns[i]);
    free(sink);
}

/* Empties the columns from `first` to `last`, for `count` elements each. */
static void begin_columns(struct sink_postgres *sink, enum column first, enum column last, size_t count)
{
    for (unsigned i = first; i <= last; i++)
        pgarray_begin(&sink->columns[i], type_of(i), count);
}

static int end_columns(const struct sink_postgres *sink, enum column first, enum column last,
                       struct error *error)
{
    bool ok = true;

    for (unsigned i = first; i <= last; i++)
        ok &= pgarray_ok(&sink->columns[i]);
    return ok ? 0 : error_set(error, -ENOMEM, "out of memory");
}

static void add_bigint(struct sink_postgres *sink, enum column column, int64_t number)
{
    pgarray_add_bigint(&sink->columns[column], number);
}

static void add_text(struct sink_postgres *sink, enum column column, const char *text)
{
    pgarray_add_text(&sink->columns[column], span_of(text));
}

/* The namespace and the columns from `first` to `last` as parameters. */
static void add_columns(struct parameters *parameters, const struct sink_postgres *sink, enum column first,
                        enum column last)
{
    if (parameters->len == 0)
        parameters_text(parameters, sink->namespace);
    for (unsigned i = first; i <= last; i++)
        parameters_array(parameters, &sink->columns[i]);
}

static int refuse_shard(struct error *error)
{
    return error_set(error, FAILURE_CONFIG, "counterd.shards has no row for it; was it deleted by hand?");
}

/* Without this lock two flushers would both find a generation fresh. In order, or two who lock several could
 * wait for each other. */
static int lock_shards(struct sink_postgres *sink, struct cargo *cargo, size_t cargo_len, struct error *error)
{
    static const char sql[] =
        "SELECT cumulative_total, cumulative_events FROM counterd.shards"
        " WHERE namespace = $1 AND shard = ANY ($2::bigint[]) ORDER BY shard FOR UPDATE";
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    add_columns(&parameters, sink, SHARDS, SHARDS);
    r = postgres_execute(sink->postgres, sql, &parameters, &rows, error);
    if (r < 0)
        return r;
    if (rows_len(rows) != (int)cargo_len)
        r = refuse_shard(error);
    for (size_t i = 0; r == 0 && i < cargo_len; i++) {
        cargo[i].standing.cumulative_total = rows_bigint(rows, (int)i, 0);
        cargo[i].standing.cumulative_events = rows_bigint(rows, (int)i, 1);
    }
    rows_free(rows);
    return r;
}

/* A row for each batch, after one without a writer for each generation. */
static int build_batches(struct sink_postgres *sink, const struct cargo *cargo, size_t cargo_len,
                         struct error *error)
{
    size_t count = cargo_len;

    for (size_t i = 0; i < cargo_len; i++)
        count += cargo[i].generation.batches_len;
    begin_columns(sink, BATCH_SHARDS, BATCH_HIGHS, count);
    for (size_t i = 0; i < cargo_len; i++) {
        const struct generation *generation = &cargo[i].generation;
        for (size_t j = 0; j <= generation->batches_len; j++) {
            const struct batches *batches = j > 0 ? &generation->batches[j - 1] : NULL;
            add_bigint(sink, BATCH_SHARDS, cargo[i].shard);
            add_text(sink, BATCH_IDS, generation->id);
            add_text(sink, BATCH_PREV_IDS, generation->prev_id);
            add_text(sink, BATCH_WRITERS, batches ? batches->writer : "");
            add_bigint(sink, BATCH_LOWS, batches ? batches->low : 0);
            add_bigint(sink, BATCH_HIGHS, batches ? batches->high : 0);
        }
    }
    return end_columns(sink, BATCH_SHARDS, BATCH_HIGHS, error);
}

/* What the first row of each generation says: of itself, and of the one that was released before it. */
static void take_facts(const struct pg_result *rows, int row, struct standing *standing)
{
    standing->in_ledger = rows_bigint(rows, row, 1) == 1;
    standing->correction = (struct correction){rows_bigint(rows, row, 2), rows_bigint(rows, row, 3)};
    standing->in_quarantine = rows_bigint(rows, row, 4) == 1;
    standing->prev_known = rows_bigint(rows, row, 5) == 1;
    standing->prev_total = rows_bigint(rows, row, 6);
    standing->prev_events = rows_bigint(rows, row, 7);
}

/* In a statement of its own, so that its snapshot is taken after the locks were had. */
static int read_ledger(struct sink_postgres *sink, struct cargo *cargo, size_t cargo_len, struct error *error)
{
    static const char sql[] =
        "SELECT w.seq, (own.gen IS NOT NULL)::integer, own.correction, own.events_correction,"
        " (q.gen IS NOT NULL)::integer, (b.prev_gen = '' OR prev.gen IS NOT NULL)::integer,"
        " prev.cumulative_total, prev.cumulative_events"
        " FROM unnest($2::bigint[], $3::text[], $4::text[], $5::text[]) WITH ORDINALITY"
        " AS b (shard, gen, prev_gen, writer, number)"
        " LEFT JOIN counterd.ledger AS own ON b.writer = '' AND own.namespace = $1 AND own.gen = b.gen"
        " LEFT JOIN counterd.ledger AS prev ON b.writer = '' AND prev.namespace = $1 AND prev.gen = "
        "b.prev_gen"
        " LEFT JOIN counterd.quarantine AS q ON b.writer = '' AND q.namespace = $1 AND q.gen = b.gen"
        " LEFT JOIN counterd.writers AS w"
        " ON w.namespace = $1 AND w.shard = b.shard AND w.writer = b.writer"
        " ORDER BY b.number";
    struct parameters parameters = {0};
    struct pg_result *rows;
    int row = 0, r;

    add_columns(&parameters, sink, BATCH_SHARDS, BATCH_WRITERS);
    r = postgres_execute(sink->postgres, sql, &parameters, &rows, error);
    if (r < 0)
        return r;
    for (size_t i = 0; i < cargo_len; i++) {
        take_facts(rows, row++, &cargo[i].standing);
        for (size_t j = 0; j < cargo[i].generation.batches_len; j++)
            cargo[i].vector[j] = rows_bigint(rows, row++, 0);
    }
    rows_free(rows);
    return 0;
}

/* --- days --- */

static bool is_known(const struct sink_postgres *sink, int64_t day)
{
    for (size_t i = sink->days_len; i > 0; i--)
        if (sink->days[i - 1] == day)
            return true;
    return false;
}

static bool rolls_up_by_day(const struct plan *plan, struct span key)
{
    const struct planned *planned = plan_find(plan, key);

    for (size_t i = 0; planned && i < planned->target->rollups_len; i++)
        if (planned->rollups[i].by_day)
            return true;
    return false;
}

static int make_day(struct sink_postgres *sink, int64_t unix_s, struct error *error)
{
    int r = deliver_day(sink->postgres, sink->plan, unix_s, error);

    if (r < 0)
        return r;
    if (sink->days_len == ARRAY_LEN(sink->days))
        sink->days_len = 0;
    sink->days[sink->days_len++] = unix_s / DAY_S;
    return 0;
}

/* The partitions of counterd.rollups for each day that an update is of. */
static int prepare(void *context, const struct cargo *cargo, const struct updates *updates,
                   struct error *error)
{
    struct sink_postgres *sink = context;
    int r = 0;

    for (size_t i = 0; r == 0 && sink->plan->has_days && i < updates->len; i++) {
        int64_t bucket;
        struct span key = member_split(updates_key(updates, i), &bucket);
        if (bucket == 0)
            bucket = cargo[updates->items[i].cargo].generation.last_append_ms / 1000;
        if (!is_known(sink, bucket / DAY_S) && rolls_up_by_day(sink->plan, key))
            r = make_day(sink, bucket, error);
    }
    return r;
}

/* --- the transaction --- */

static int begin(void *context, struct cargo *cargo, size_t cargo_len, struct error *error)
{
    struct sink_postgres *sink = context;
    int r;

    begin_columns(sink, SHARDS, SHARDS, cargo_len);
    for (size_t i = 0; i < cargo_len; i++)
        add_bigint(sink, SHARDS, cargo[i].shard);
    r = end_columns(sink, SHARDS, SHARDS, error);
    if (r == 0)
        r = build_batches(sink, cargo, cargo_len, error);
    if (r == 0)
        r = postgres_begin(sink->postgres, error);
    if (r == 0)
        r = lock_shards(sink, cargo, cargo_len, error);
    if (r == 0)
        r = read_ledger(sink, cargo, cargo_len, error);
    if (r < 0)
        postgres_rollback(sink->postgres);
    return r;
}

static int build_entries(struct sink_postgres *sink, const struct cargo *cargo, size_t cargo_len,
                         struct error *error)
{
    begin_columns(sink, IDS, SEALED, cargo_len);
    for (size_t i = 0; i < cargo_len; i++) {
        const struct generation *generation = &cargo[i].generation;
        const struct entry *entry = &cargo[i].entry;
        add_text(sink, IDS, generation->id);
        add_text(sink, PREV_IDS, generation->prev_id);
        add_bigint(sink, KEYS, entry->keys);
        add_bigint(sink, TOTALS, entry->total);
        add_bigint(sink, EVENTS, entry->events);
        add_bigint(sink, ACCEPTED, generation->accepted_at_seal);
        add_bigint(sink, CUMULATIVE_TOTALS, entry->cumulative_total);
        add_bigint(sink, CUMULATIVE_EVENTS, entry->cumulative_events);
        add_bigint(sink, CORRECTIONS, entry->correction.total);
        add_bigint(sink, EVENTS_CORRECTIONS, entry->correction.events);
        pgarray_add_timestamptz(&sink->columns[OPENED], generation->opened_ms);
        pgarray_add_timestamptz(&sink->columns[SEALED], generation->sealed_ms);
    }
    return end_columns(sink, IDS, SEALED, error);
}

static int record(void *context, const struct cargo *cargo, size_t cargo_len, struct error *error)
{
    static const char sql[] =
        "WITH c AS (SELECT * FROM unnest($2::bigint[], $3::text[], $4::text[], $5::bigint[], $6::bigint[],"
        " $7::bigint[], $8::bigint[], $9::bigint[], $10::bigint[], $11::bigint[], $12::bigint[],"
        " $13::timestamptz[], $14::timestamptz[])"
        " AS c (shard, gen, prev_gen, keys, total, events, accepted, cumulative_total, cumulative_events,"
        " correction, events_correction, opened_at, sealed_at)),"
        " head AS (UPDATE counterd.shards AS s SET head_gen = c.gen, cumulative_total = c.cumulative_total,"
        " cumulative_events = c.cumulative_events, applied_at = now(),"
        /* It does not go back, unless the clock of Redis was ahead. */
        " fresh_until = GREATEST(c.sealed_at, CASE WHEN s.fresh_until <= now() THEN s.fresh_until END)"
        " FROM c WHERE s.namespace = $1 AND s.shard = c.shard)"
        "INSERT INTO counterd.ledger (namespace, shard, gen, prev_gen, keys, total, events, accepted_at_seal,"
        " cumulative_total, cumulative_events, correction, events_correction, opened_at, sealed_at, identity)"
        " SELECT $1, c.*, b.identity FROM c LEFT JOIN"
        " (SELECT shard, jsonb_object_agg(writer, jsonb_build_array(low, high)) AS identity FROM"
        /* Of requests only how many there are: they are thousands, and the ledger stays for good. */
        " (SELECT shard, CASE WHEN once THEN 'once' ELSE writer END AS writer, min(low) AS low,"
        " CASE WHEN bool_and(once) THEN count(*) ELSE max(high) END AS high"
        " FROM (SELECT *, starts_with(writer, '" TOKEN_WRITER "') AS once"
        " FROM unnest($15::bigint[], $16::text[], $17::bigint[], $18::bigint[]) AS b (shard, writer, low, "
        "high)"
        " WHERE writer <> '') AS b GROUP BY 1, 2) AS b GROUP BY shard) AS b USING (shard)";
    struct sink_postgres *sink = context;
    struct parameters parameters = {0};
    int r = build_entries(sink, cargo, cargo_len, error);

    add_columns(&parameters, sink, SHARDS, SEALED);
    add_columns(&parameters, sink, BATCH_SHARDS, BATCH_SHARDS);
    add_columns(&parameters, sink, BATCH_WRITERS, BATCH_HIGHS);
    return r < 0 ? r : postgres_execute(sink->postgres, sql, &parameters, NULL, error);
}

static int move_vectors(struct sink_postgres *sink, struct error *error)
{
    static const char sql[] =
        "INSERT INTO counterd.writers (namespace, shard, writer, seq)"
        " SELECT $1, shard, writer, high FROM unnest($2::bigint[], $3::text[], $4::bigint[])"
        " AS b (shard, writer, high) WHERE writer <> '' AND ($5 = '' OR NOT starts_with(writer, $5))"
        " ON CONFLICT (namespace, shard, writer) DO UPDATE SET seq = EXCLUDED.seq";
    struct parameters parameters = {0};

    add_columns(&parameters, sink, BATCH_SHARDS, BATCH_SHARDS);
    add_columns(&parameters, sink, BATCH_WRITERS, BATCH_WRITERS);
    add_columns(&parameters, sink, BATCH_HIGHS, BATCH_HIGHS);
    parameters_text(&parameters, sink->left_out);
    return postgres_execute(sink->postgres, sql, &parameters, NULL, error);
}

static int apply(void *context, struct cargo *cargo, size_t cargo_len, const struct updates *updates,
                 struct error *error)
{
    struct sink_postgres *sink = context;
    struct origin *origins = calloc(cargo_len, sizeof(*origins));
    int r = origins ? move_vectors(sink, error) : error_set(error, -ENOMEM, "out of memory");

    for (size_t i = 0; r == 0 && i < cargo_len; i++) {
        const struct generation *generation = &cargo[i].generation;
        origins[i] = (struct origin){.shard = cargo[i].shard,
                                     .gen = generation->id,
                                     .opened_ms = generation->opened_ms,
                                     .seen_ms = generation->last_append_ms};
    }
    if (r == 0)
        r = deliver(sink->postgres, sink->namespace, sink->applier, updates, origins, cargo_len, error);
    for (size_t i = 0; r == 0 && i < cargo_len; i++)
        cargo[i].tally = origins[i].tally;
    free(origins);
    return r;
}

static int build_updates(struct sink_postgres *sink, const struct updates *updates, struct error *error)
{
    begin_columns(sink, UPDATE_KEYS, UPDATE_DELTAS, updates->len);
    for (size_t i = 0; i < updates->len; i++) {
        pgarray_add_text(&sink->columns[UPDATE_KEYS], updates_key(updates, i));
        add_bigint(sink, UPDATE_DELTAS, updates->items[i].delta);
    }
    return end_columns(sink, UPDATE_KEYS, UPDATE_DELTAS, error);
}

static int quarantine(void *context, const struct cargo *cargo, const struct updates *updates,
                      struct error *error)
{
    static const char sql[] =
        "INSERT INTO counterd.quarantine (namespace, shard, gen, prev_gen, accepted_at_seal, opened_at,"
        " sealed_at, last_append_at, part, total, members, deltas, vector, identity)"
        " SELECT $1, $2::bigint, $3, $4, $5::bigint, to_timestamp($6::bigint / 1000.0),"
        " to_timestamp($7::bigint / 1000.0), to_timestamp($8::bigint / 1000.0), $9, $10::bigint, $11::text[],"
        " $12::bigint[], COALESCE(jsonb_object_agg(b.writer, COALESCE(w.seq, 0))"
        " FILTER (WHERE b.writer <> ''), '{}'),"
        " COALESCE(jsonb_object_agg(b.writer, jsonb_build_array(low, high))"
        " FILTER (WHERE b.writer <> ''), '{}')"
        " FROM unnest($13::text[], $14::bigint[], $15::bigint[]) AS b (writer, low, high)"
        " LEFT JOIN counterd.writers AS w"
        " ON w.namespace = $1 AND w.shard = $2::bigint AND w.writer = b.writer";
    struct sink_postgres *sink = context;
    const struct generation *generation = &cargo->generation;
    struct parameters parameters = {0};
    int r = build_updates(sink, updates, error);

    if (r < 0)
        return r;
    parameters_text(&parameters, sink->namespace);
    parameters_bigint(&parameters, cargo->shard);
    parameters_text(&parameters, generation->id);
    parameters_text(&parameters, generation->prev_id);
    parameters_bigint(&parameters, generation->accepted_at_seal);
    parameters_bigint(&parameters, generation->opened_ms);
    parameters_bigint(&parameters, generation->sealed_ms);
    parameters_bigint(&parameters, generation->last_append_ms);
    parameters_text(&parameters, generation->set_aside ? "open" : "sealed");
    parameters_bigint(&parameters, cargo->total);
    add_columns(&parameters, sink, UPDATE_KEYS, UPDATE_DELTAS);
    add_columns(&parameters, sink, BATCH_WRITERS, BATCH_HIGHS);
    return postgres_execute(sink->postgres, sql, &parameters, NULL, error);
}

static int take_positions(const struct pg_result *rows, struct reset *reset)
{
    size_t len = (size_t)rows_len(rows);

    reset->vector = calloc(len + 1, sizeof(struct position));
    for (size_t i = 0; reset->vector && i < len; i++) {
        struct position *position = &reset->vector[i];
        position->writer = strdup(rows_text(rows, (int)i, 0));
        if (!position->writer)
            return -ENOMEM;
        position->seq = rows_bigint(rows, (int)i, 1);
        reset->vector_len++;
    }
    return reset->vector ? 0 : -ENOMEM;
}

static int stand(void *context, uint32_t shard, struct reset *ret_reset, struct error *error)
{
    struct sink_postgres *sink = context;
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    parameters_text(&parameters, sink->namespace);
    parameters_bigint(&parameters, shard);
    r = postgres_execute(sink->postgres,
                         "SELECT head_gen, cumulative_total, cumulative_events FROM counterd.shards"
                         " WHERE namespace = $1 AND shard = $2::bigint",
                         &parameters, &rows, error);
    if (r < 0)
        return r;
    snprintf(ret_reset->head_id, sizeof(ret_reset->head_id), "%s", rows_text(rows, 0, 0));
    ret_reset->accepted = rows_bigint(rows, 0, 1);
    ret_reset->events = rows_bigint(rows, 0, 2);
    rows_free(rows);
    r = postgres_execute(
        sink->postgres,
        "SELECT writer, seq FROM counterd.writers WHERE namespace = $1 AND shard = $2::bigint", &parameters,
        &rows, error);
    if (r < 0)
        return r;
    if (take_positions(rows, ret_reset) < 0)
        r = error_set(error, -ENOMEM, "out of memory");
    rows_free(rows);
    return r;
}

static int commit(void *context, struct error *error)
{
    struct sink_postgres *sink = context;

    return postgres_commit(sink->postgres, error);
}

static void rollback(void *context)
{
    struct sink_postgres *sink = context;

    postgres_rollback(sink->postgres);
}

struct sink sink_postgres_seam(struct sink_postgres *sink)
{
    return (struct sink){sink, prepare, begin, record, apply, quarantine, stand, commit, rollback};
}
