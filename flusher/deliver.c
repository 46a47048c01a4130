#include "flusher/deliver.h"

#include "flusher/failure.h"
#include "lib/member.h"

#define PART_ROWS 10000
#define DAY_S     INT64_C(86400)

/* What is sent as arrays. */
enum column { SHARDS, GENS, KEYS, BUCKETS, DELTAS, REASONS, DETAILS, TABLES, SEEN, COLUMN_COUNT };

static const enum pgarray_type types[COLUMN_COUNT] = {
    [SHARDS] = PGARRAY_BIGINT,       [GENS] = PGARRAY_TEXT,     [KEYS] = PGARRAY_TEXT,
    [BUCKETS] = PGARRAY_TIMESTAMPTZ, [DELTAS] = PGARRAY_BIGINT, [REASONS] = PGARRAY_TEXT,
    [DETAILS] = PGARRAY_TEXT,        [TABLES] = PGARRAY_TEXT,   [SEEN] = PGARRAY_TIMESTAMPTZ,
};

/* Rows of counterd.parked on their way. */
struct parking {
    struct postgres *postgres;
    const char *namespace;
    const struct applier *applier;
    const struct updates *updates;
    const struct origin *origins;
    struct pgarray columns[COLUMN_COUNT];
};

static void add_row(struct parking *parking, const struct refusal *refusal, size_t index)
{
    const struct update *update = &parking->updates->items[index];
    const struct origin *origin = &parking->origins[update->cargo];
    struct pgarray *columns = parking->columns;
    int64_t bucket;
    struct span key = member_split(updates_key(parking->updates, index), &bucket);

    pgarray_add_bigint(&columns[SHARDS], origin->shard);
    pgarray_add_text(&columns[GENS], span_of(origin->gen));
    pgarray_add_text(&columns[KEYS], key);
    pgarray_add_timestamptz(&columns[BUCKETS], bucket * 1000);
    pgarray_add_bigint(&columns[DELTAS], update->delta);
    pgarray_add_text(&columns[REASONS], span_of(reason_name(refusal->reason)));
    pgarray_add_text(&columns[DETAILS], span_of(refusal->detail ? refusal->detail : ""));
    pgarray_add_text(&columns[TABLES], span_of(applier_table(parking->applier, refusal)));
    pgarray_add_timestamptz(&columns[SEEN], origin->seen_ms);
}

/* No bucket is the epoch in the array, which can hold no NULL. */
static int insert_rows(struct parking *parking, struct error *error)
{
    static const char sql[] =
        "INSERT INTO counterd.parked (namespace, shard, gen, key, bucket, delta, reason, detail, target, "
        "seen_at)"
        " SELECT $1, shard, gen, key, NULLIF(bucket, 'epoch'), delta, reason, detail, target, seen_at"
        " FROM unnest($2::bigint[], $3::text[], $4::text[], $5::timestamptz[], $6::bigint[], $7::text[],"
        " $8::text[], $9::text[], $10::timestamptz[]) AS p"
        " (shard, gen, key, bucket, delta, reason, detail, target, seen_at)";
    struct parameters parameters = {0};

    parameters_text(&parameters, parking->namespace);
    for (int i = 0; i < COLUMN_COUNT; i++) {
        if (!pgarray_ok(&parking->columns[i]))
            return error_set(error, -ENOMEM, "out of memory");
        parameters_array(&parameters, &parking->columns[i]);
    }
    return postgres_execute(parking->postgres, sql, &parameters, NULL, error);
}

/* The parked among some refusals. */
static int park_part(struct parking *parking, const struct refusal *refusals, size_t len, struct error *error)
{
    size_t count = 0;

    for (size_t i = 0; i < len; i++)
        count += refusals[i].dropped ? 0 : refusals[i].share.len;
    if (count == 0)
        return 0;
    for (int i = 0; i < COLUMN_COUNT; i++)
        pgarray_begin(&parking->columns[i], types[i], count);
    for (size_t i = 0; i < len; i++) {
        const struct share *share = &refusals[i].share;
        for (size_t j = share->first; !refusals[i].dropped && j < share->first + share->len; j++)
            add_row(parking, &refusals[i], j);
    }
    return insert_rows(parking, error);
}

static int park(struct parking *parking, struct error *error)
{
    size_t len;
    const struct refusal *refusals = applier_refusals(parking->applier, &len);
    int r = 0;

    for (size_t from = 0; r == 0 && from < len; from += PART_ROWS)
        r = park_part(parking, refusals + from, len - from < PART_ROWS ? len - from : PART_ROWS, error);
    for (int i = 0; i < COLUMN_COUNT; i++)
        pgarray_done(&parking->columns[i]);
    return r;
}

/* --- days --- */

static int make_day(struct postgres *postgres, const struct plan *plan, int64_t unix_s, struct error *error)
{
    int r = 0;

    if (unix_s <= plan->partitions.now_s && !partitions_expired(&plan->partitions, unix_s))
        r = partitions_make(postgres, unix_s, error);
    return r == FAILURE_UNAVAILABLE ? r : 0;
}

int deliver_day(struct postgres *postgres, const struct plan *plan, int64_t unix_s, struct error *error)
{
    int64_t start, made = INT64_MIN;
    int r = 0;

    for (size_t i = 0; r == 0 && i < plan->targets->len; i++) {
        const struct planned *planned = &plan->items[i];
        for (size_t j = 0; r == 0 && j < planned->target->rollups_len; j++) {
            if (!planned->rollups[j].by_day)
                continue;
            start = bucket_of(bucket_of(unix_s, planned->rollups[j].bucket_s), DAY_S);
            if (start != made)
                r = make_day(postgres, plan, start, error);
            made = start;
        }
    }
    return r;
}

int deliver_days(struct postgres *postgres, const struct plan *plan, const char *sql,
                 const struct parameters *parameters, struct error *error)
{
    struct pg_result *rows;
    int r;

    if (!plan->has_days)
        return 0;
    r = postgres_execute(postgres, sql, parameters, &rows, error);
    if (r < 0)
        return r;
    for (int i = 0; r == 0 && i < rows_len(rows); i++)
        r = deliver_day(postgres, plan, rows_bigint(rows, i, 0), error);
    rows_free(rows);
    return r;
}

int deliver_shift(struct postgres *postgres, const char *namespace, uint32_t shard, const struct shift *shift,
                  struct error *error)
{
    static const char sql[] =
        "UPDATE counterd.shards SET parked_total = parked_total + $3::bigint,"
        " dropped_total = dropped_total + $4::bigint, elsewhere_total = elsewhere_total + $5::bigint"
        " WHERE namespace = $1 AND shard = $2::bigint";
    struct parameters parameters = {0};

    if (shift->parked == 0 && shift->dropped == 0 && shift->elsewhere == 0)
        return 0;
    parameters_text(&parameters, namespace);
    parameters_bigint(&parameters, shard);
    parameters_bigint(&parameters, shift->parked);
    parameters_bigint(&parameters, shift->dropped);
    parameters_bigint(&parameters, shift->elsewhere);
    return postgres_execute(postgres, sql, &parameters, NULL, error);
}

int deliver(struct postgres *postgres, const char *namespace, struct applier *applier,
            const struct updates *updates, struct origin *origins, size_t origins_len, struct error *error)
{
    struct parking parking = {postgres, namespace, applier, updates, origins, {{0}}};
    int r = applier_apply(applier, updates, origins, origins_len, error);

    if (r == 0)
        r = park(&parking, error);
    for (size_t i = 0; r == 0 && i < origins_len; i++) {
        const struct tally *tally = &origins[i].tally;
        r = deliver_shift(postgres, namespace, origins[i].shard,
                          &(struct shift){tally->parked, tally->dropped, tally->elsewhere}, error);
    }
    return r;
}
