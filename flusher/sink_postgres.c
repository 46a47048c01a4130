#include "flusher/sink_postgres.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "flusher/failure.h"

/* Keys per statement: large enough that the round trip vanishes, small enough that one statement stays short
 * and its parameters small. */
#define CHUNK_KEYS 10000

struct sink_postgres {
    struct postgres *postgres;
    const char *namespace;
    struct pgarray keys, deltas;         /* of a chunk; memory kept */
    struct pgarray writers, lows, highs; /* of the generation's batches, from begin() on */
};

int sink_postgres_new(struct postgres *postgres, const char *namespace, struct sink_postgres **ret_sink,
                      struct error *error)
{
    struct sink_postgres *sink = calloc(1, sizeof(*sink));

    if (!sink)
        return error_set(error, -ENOMEM, "out of memory");
    sink->postgres = postgres;
    sink->namespace = namespace;
    *ret_sink = sink;
    return 0;
}

void sink_postgres_free(struct sink_postgres *sink)
{
    if (!sink)
        return;
    pgarray_done(&sink->keys);
    pgarray_done(&sink->deltas);
    pgarray_done(&sink->writers);
    pgarray_done(&sink->lows);
    pgarray_done(&sink->highs);
    free(sink);
}

static int build_identity(struct sink_postgres *sink, const struct generation *generation,
                          struct error *error)
{
    pgarray_begin(&sink->writers, PGARRAY_TEXT, generation->batches_len);
    pgarray_begin(&sink->lows, PGARRAY_BIGINT, generation->batches_len);
    pgarray_begin(&sink->highs, PGARRAY_BIGINT, generation->batches_len);
    for (size_t i = 0; i < generation->batches_len; i++) {
        pgarray_add_text(&sink->writers, span_of(generation->batches[i].writer));
        pgarray_add_bigint(&sink->lows, generation->batches[i].low);
        pgarray_add_bigint(&sink->highs, generation->batches[i].high);
    }
    if (pgarray_ok(&sink->writers) && pgarray_ok(&sink->lows) && pgarray_ok(&sink->highs))
        return 0;
    return error_set(error, -ENOMEM, "out of memory");
}

/* Every statement about a shard begins with these. */
static void add_shard(struct parameters *parameters, const struct sink_postgres *sink, uint32_t shard)
{
    parameters_text(parameters, sink->namespace);
    parameters_bigint(parameters, shard);
}

/* Without this lock two flushers would both find the generation fresh. */
static int lock_shard(struct sink_postgres *sink, uint32_t shard, struct standing *ret_standing,
                      struct error *error)
{
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    add_shard(&parameters, sink, shard);
    r = postgres_execute(sink->postgres,
                         "SELECT cumulative_total, cumulative_events FROM counterd.shards"
                         " WHERE namespace = $1 AND shard = $2::bigint FOR UPDATE",
                         &parameters, &rows, error);

    if (r < 0)
        return r;
    if (rows_len(rows) != 1) {
        r = error_set(error, FAILURE_CONFIG, "counterd.shards has no row for it; was it deleted by hand?");
    } else {
        ret_standing->cumulative_total = rows_bigint(rows, 0, 0);
        ret_standing->cumulative_events = rows_bigint(rows, 0, 1);
    }
    rows_free(rows);
    return r;
}

/* The columns of read_ledger(): what is known of the generation and of the one released before it. */
#define LEDGER_FACTS                                                                                         \
    "SELECT own.gen IS NOT NULL AS known, own.correction, own.events_correction,"                            \
    " EXISTS (SELECT FROM counterd.quarantine WHERE namespace = $1 AND gen = $3) AS quarantined,"            \
    " $5 = '' OR prev.gen IS NOT NULL AS prev_known, prev.cumulative_total, prev.cumulative_events"          \
    " FROM (SELECT) AS always"                                                                               \
    " LEFT JOIN counterd.ledger AS own ON own.namespace = $1 AND own.gen = $3"                               \
    " LEFT JOIN counterd.ledger AS prev ON prev.namespace = $1 AND prev.gen = $5"

/* In a statement of its own, so that its snapshot is taken after the lock was had. */
static int read_ledger(struct sink_postgres *sink, uint32_t shard, const struct generation *generation,
                       struct standing *ret_standing, int64_t *vector, struct error *error)
{
    static const char sql[] =
        "SELECT w.seq, known::integer, correction, events_correction, quarantined::integer,"
        " prev_known::integer, cumulative_total, cumulative_events"
        " FROM (" LEDGER_FACTS
        ") AS facts LEFT JOIN unnest($4::text[]) WITH ORDINALITY AS b (writer, number) ON true"
        " LEFT JOIN counterd.writers AS w"
        " ON w.namespace = $1 AND w.shard = $2::bigint AND w.writer = b.writer"
        " ORDER BY b.number";
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    add_shard(&parameters, sink, shard);
    parameters_text(&parameters, generation->id);
    parameters_array(&parameters, &sink->writers);
    parameters_text(&parameters, generation->prev_id);
    r = postgres_execute(sink->postgres, sql, &parameters, &rows, error);
    if (r < 0)
        return r;
    ret_standing->in_ledger = rows_bigint(rows, 0, 1) == 1;
    ret_standing->correction = (struct correction){rows_bigint(rows, 0, 2), rows_bigint(rows, 0, 3)};
    ret_standing->in_quarantine = rows_bigint(rows, 0, 4) == 1;
    ret_standing->prev_known = rows_bigint(rows, 0, 5) == 1;
    ret_standing->prev_total = rows_bigint(rows, 0, 6);
    ret_standing->prev_events = rows_bigint(rows, 0, 7);
    for (size_t i = 0; i < generation->batches_len; i++)
        vector[i] = rows_bigint(rows, (int)i, 0);
    rows_free(rows);
    return 0;
}

static int begin(void *context, uint32_t shard, const struct generation *generation,
                 struct standing *ret_standing, int64_t *vector, struct error *error)
{
    struct sink_postgres *sink = context;
    int r = build_identity(sink, generation, error);

    if (r == 0)
        r = postgres_begin(sink->postgres, error);
    if (r == 0)
        r = lock_shard(sink, shard, ret_standing, error);
    if (r == 0)
        r = read_ledger(sink, shard, generation, ret_standing, vector, error);
    if (r < 0)
        postgres_rollback(sink->postgres);
    return r;
}

static int record(void *context, uint32_t shard, const struct generation *generation,
                  const struct entry *entry, struct error *error)
{
    static const char sql[] =
        "WITH head AS (UPDATE counterd.shards SET head_gen = $3, cumulative_total = $9::bigint,"
        " cumulative_events = $10::bigint, applied_at = now(),"
        " fresh_until = GREATEST(fresh_until, to_timestamp($12::bigint / 1000.0))"
        " WHERE namespace = $1 AND shard = $2::bigint)"
        "INSERT INTO counterd.ledger (namespace, shard, gen, prev_gen, keys, total, events, accepted_at_seal,"
        " cumulative_total, cumulative_events, opened_at, sealed_at, correction, events_correction, identity)"
        " SELECT $1, $2::bigint, $3, $4, $5::bigint, $6::bigint, $7::bigint, $8::bigint, $9::bigint,"
        " $10::bigint, to_timestamp($11::bigint / 1000.0), to_timestamp($12::bigint / 1000.0),"
        " $16::bigint, $17::bigint, jsonb_object_agg(writer, jsonb_build_array(low, high))"
        " FROM unnest($13::text[], $14::bigint[], $15::bigint[]) AS b (writer, low, high)";
    struct sink_postgres *sink = context;
    struct parameters parameters = {0};

    add_shard(&parameters, sink, shard);
    parameters_text(&parameters, generation->id);
    parameters_text(&parameters, generation->prev_id);
    parameters_bigint(&parameters, entry->keys);
    parameters_bigint(&parameters, entry->total);
    parameters_bigint(&parameters, entry->events);
    parameters_bigint(&parameters, generation->accepted_at_seal);
    parameters_bigint(&parameters, entry->cumulative_total);
    parameters_bigint(&parameters, entry->cumulative_events);
    parameters_bigint(&parameters, generation->opened_ms);
    parameters_bigint(&parameters, generation->sealed_ms);
    parameters_array(&parameters, &sink->writers);
    parameters_array(&parameters, &sink->lows);
    parameters_array(&parameters, &sink->highs);
    parameters_bigint(&parameters, entry->correction.total);
    parameters_bigint(&parameters, entry->correction.events);
    return postgres_execute(sink->postgres, sql, &parameters, NULL, error);
}

static int move_vector(struct sink_postgres *sink, uint32_t shard, struct error *error)
{
    static const char sql[] =
        "INSERT INTO counterd.writers (namespace, shard, writer, seq)"
        " SELECT $1, $2::bigint, writer, high FROM unnest($3::text[], $4::bigint[]) AS b (writer, high)"
        " ON CONFLICT (namespace, shard, writer) DO UPDATE SET seq = EXCLUDED.seq";
    struct parameters parameters = {0};

    add_shard(&parameters, sink, shard);
    parameters_array(&parameters, &sink->writers);
    parameters_array(&parameters, &sink->highs);
    return postgres_execute(sink->postgres, sql, &parameters, NULL, error);
}

/* One version of each row per flush. In the order of the array, because that is the order of the keys. */
static int update_counters(struct sink_postgres *sink, const struct generation *generation,
                           struct error *error)
{
    static const char sql[] =
        "INSERT INTO counterd.counters AS c (key, value, first_seen, last_seen)"
        " SELECT key, delta, to_timestamp($3::bigint / 1000.0), to_timestamp($4::bigint / 1000.0)"
        " FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS u (key, delta, number) ORDER BY number"
        " ON CONFLICT (key) DO UPDATE SET value = c.value + EXCLUDED.value,"
        " last_seen = GREATEST(c.last_seen, EXCLUDED.last_seen)";
    struct parameters parameters = {0};

    parameters_array(&parameters, &sink->keys);
    parameters_array(&parameters, &sink->deltas);
    parameters_bigint(&parameters, generation->opened_ms);
    parameters_bigint(&parameters, generation->last_append_ms);
    return postgres_execute(sink->postgres, sql, &parameters, NULL, error);
}

/* Keys and deltas of the updates from `from` on, as arrays. */
static int build_updates(struct sink_postgres *sink, const struct updates *updates, size_t from, size_t count,
                         struct error *error)
{
    pgarray_begin(&sink->keys, PGARRAY_TEXT, count);
    pgarray_begin(&sink->deltas, PGARRAY_BIGINT, count);
    for (size_t i = from; i < from + count; i++) {
        pgarray_add_text(&sink->keys, updates_key(updates, i));
        pgarray_add_bigint(&sink->deltas, updates->items[i].delta);
    }
    if (pgarray_ok(&sink->keys) && pgarray_ok(&sink->deltas))
        return 0;
    return error_set(error, -ENOMEM, "out of memory");
}

static int apply_chunk(struct sink_postgres *sink, const struct generation *generation,
                       const struct updates *updates, size_t from, struct error *error)
{
    size_t left = updates->len - from, count = left < CHUNK_KEYS ? left : CHUNK_KEYS;
    int r = build_updates(sink, updates, from, count, error);

    return r < 0 ? r : update_counters(sink, generation, error);
}

static int apply(void *context, uint32_t shard, const struct generation *generation,
                 const struct updates *updates, struct error *error)
{
    struct sink_postgres *sink = context;
    int r = move_vector(sink, shard, error);

    for (size_t from = 0; r == 0 && from < updates->len; from += CHUNK_KEYS)
        r = apply_chunk(sink, generation, updates, from, error);
    return r;
}

static int quarantine(void *context, uint32_t shard, const struct generation *generation,
                      const struct updates *updates, int64_t total, struct error *error)
{
    static const char sql[] =
        "INSERT INTO counterd.quarantine (namespace, shard, gen, prev_gen, accepted_at_seal, opened_at,"
        " sealed_at, last_append_at, part, total, members, deltas, vector, identity)"
        " SELECT $1, $2::bigint, $3, $4, $5::bigint, to_timestamp($6::bigint / 1000.0),"
        " to_timestamp($7::bigint / 1000.0), to_timestamp($8::bigint / 1000.0), $9, $10::bigint, $11::text[],"
        " $12::bigint[], COALESCE(jsonb_object_agg(b.writer, COALESCE(w.seq, 0))"
        " FILTER (WHERE b.writer IS NOT NULL), '{}'),"
        " COALESCE(jsonb_object_agg(b.writer, jsonb_build_array(low, high))"
        " FILTER (WHERE b.writer IS NOT NULL), '{}')"
        " FROM unnest($13::text[], $14::bigint[], $15::bigint[]) AS b (writer, low, high)"
        " LEFT JOIN counterd.writers AS w"
        " ON w.namespace = $1 AND w.shard = $2::bigint AND w.writer = b.writer";
    struct sink_postgres *sink = context;
    struct parameters parameters = {0};
    int r = build_updates(sink, updates, 0, updates->len, error);

    if (r < 0)
        return r;
    add_shard(&parameters, sink, shard);
    parameters_text(&parameters, generation->id);
    parameters_text(&parameters, generation->prev_id);
    parameters_bigint(&parameters, generation->accepted_at_seal);
    parameters_bigint(&parameters, generation->opened_ms);
    parameters_bigint(&parameters, generation->sealed_ms);
    parameters_bigint(&parameters, generation->last_append_ms);
    parameters_text(&parameters, generation->set_aside ? "open" : "sealed");
    parameters_bigint(&parameters, total);
    parameters_array(&parameters, &sink->keys);
    parameters_array(&parameters, &sink->deltas);
    parameters_array(&parameters, &sink->writers);
    parameters_array(&parameters, &sink->lows);
    parameters_array(&parameters, &sink->highs);
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

    add_shard(&parameters, sink, shard);
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
    return (struct sink){sink, begin, record, apply, quarantine, stand, commit, rollback};
}
