#include "flusher/apply.h"

#include <assert.h>
#include <stdlib.h>

#include "flusher/failure.h"
#include "flusher/whole.h"
#include "lib/member.h"

/* Updates per statement: large enough that the round trip vanishes, small enough that one statement stays
 * short and its parameters small. A share is never divided. */
#define PART_UPDATES 10000

/* What is sent as arrays; memory kept. */
enum column {
    OPENED, /* of the origins */
    SEEN,
    DELTAS, /* of a part, from here on */
    ORIGINS,
    TIMES,
    KEYS, /* as many as a key has columns */
    COLUMN_COUNT = KEYS + PATTERN_PLACEHOLDERS_MAX
};

struct applier {
    struct postgres *postgres;
    const struct plan *plan;
    struct shares shares;
    struct pgarray columns[COLUMN_COUNT];
    struct refusal *refusals;
    size_t refusals_len, refusals_size;
    int64_t day; /* that was asked about last, and the answer */
    bool day_expired;
    bool missing[PART_UPDATES];    /* of the part that was written last: shares without a row */
    const struct updates *updates; /* of the call under way, borrowed */
    struct origin *origins;
};

static const char *const reasons[] = {"no_target",   "missing",  "type",   "range",  "check",
                                      "foreign_key", "not_null", "unique", "refused"};

const char *reason_name(enum reason reason)
{
    return reasons[reason];
}

bool reason_parse(const char *name, enum reason *ret_reason)
{
    for (size_t i = 0; i < ARRAY_LEN(reasons); i++) {
        if (strcmp(name, reasons[i]) == 0) {
            *ret_reason = (enum reason)i;
            return true;
        }
    }
    return false;
}

/* By SQLSTATE, the longer first. */
static enum reason reason_of(const char *state)
{
    static const struct {
        const char *state;
        enum reason reason;
    } known[] = {{"22003", REASON_RANGE}, {"22008", REASON_RANGE},       {"22", REASON_TYPE},
                 {"23514", REASON_CHECK}, {"23503", REASON_FOREIGN_KEY}, {"23502", REASON_NOT_NULL},
                 {"23505", REASON_UNIQUE}};

    for (size_t i = 0; i < ARRAY_LEN(known); i++)
        if (strncmp(state, known[i].state, strlen(known[i].state)) == 0)
            return known[i].reason;
    return REASON_REFUSED;
}

int applier_new(struct postgres *postgres, const struct plan *plan, struct applier **ret_applier,
                struct error *error)
{
    struct applier *applier = calloc(1, sizeof(*applier));

    if (!applier)
        return error_set(error, -ENOMEM, "out of memory");
    applier->postgres = postgres;
    applier->plan = plan;
    applier->day = INT64_MIN;
    *ret_applier = applier;
    return 0;
}

static void forget_refusals(struct applier *applier)
{
    for (size_t i = 0; i < applier->refusals_len; i++)
        free(applier->refusals[i].detail);
    applier->refusals_len = 0;
}

void applier_free(struct applier *applier)
{
    if (!applier)
        return;
    forget_refusals(applier);
    free(applier->refusals);
    shares_done(&applier->shares);
    for (int i = 0; i < COLUMN_COUNT; i++)
        pgarray_done(&applier->columns[i]);
    free(applier);
}

const struct refusal *applier_refusals(const struct applier *applier, size_t *ret_len)
{
    *ret_len = applier->refusals_len;
    return applier->refusals;
}

static const struct planned *planned_of(const struct applier *applier, const struct share *share)
{
    return share->target < applier->plan->targets->len ? &applier->plan->items[share->target] : NULL;
}

const char *applier_table(const struct applier *applier, const struct refusal *refusal)
{
    const struct planned *planned = planned_of(applier, &refusal->share);

    return planned ? planned->target->table : "";
}

/* --- what was not applied --- */

static void count_refused(struct applier *applier, const struct refusal *refusal)
{
    const struct planned *planned = planned_of(applier, &refusal->share);

    for (size_t i = refusal->share.first; i < refusal->share.first + refusal->share.len; i++) {
        const struct update *update = &applier->updates->items[i];
        struct tally *tally = &applier->origins[update->cargo].tally;
        if (planned && !planned->counters)
            tally->elsewhere -= update->delta;
        *(refusal->dropped ? &tally->dropped_keys : &tally->parked_keys) += 1;
        *(refusal->dropped ? &tally->dropped : &tally->parked) += update->delta;
    }
}

/* `detail` may be NULL, and is copied. */
static int refuse(struct applier *applier, const struct share *share, enum reason reason, const char *detail,
                  struct error *error)
{
    const struct planned *planned = planned_of(applier, share);
    struct refusal refusal = {*share, reason, false, NULL};

    refusal.dropped = reason == REASON_MISSING && planned->target->missing == MISSING_DROP;
    if (applier->refusals_len == applier->refusals_size) {
        size_t size = applier->refusals_size ? applier->refusals_size * 2 : 64;
        struct refusal *grown = reallocarray(applier->refusals, size, sizeof(*grown));
        if (!grown)
            return error_set(error, -ENOMEM, "out of memory");
        applier->refusals = grown;
        applier->refusals_size = size;
    }
    if (detail && !(refusal.detail = strdup(detail)))
        return error_set(error, -ENOMEM, "out of memory");
    applier->refusals[applier->refusals_len++] = refusal;
    count_refused(applier, &refusal);
    return 0;
}

/* --- statements --- */

static int execute(struct applier *applier, const char *sql, const struct parameters *parameters,
                   struct pg_result **ret_rows, struct error *error)
{
    int r = postgres_execute(applier->postgres, sql, parameters, ret_rows, error);
    bool waited = r == FAILURE_LATER && strcmp(postgres_state(applier->postgres), "55P03") == 0;

    return waited ? FAILURE_COLLISION : r;
}

static int check_column(const struct pgarray *array, int r, struct error *error)
{
    return r < 0 || pgarray_ok(array) ? r : error_set(error, -ENOMEM, "out of memory");
}

static int64_t delta_of(const struct applier *applier, const struct share *share)
{
    const struct target *target = &applier->plan->targets->items[share->target];
    int64_t delta = 0;
    bool fits = share_delta(share, applier->updates, target->merge, &delta);

    assert(fits); /* sift() has seen to it */
    return delta;
}

/* counterd.counters in the usual way: by the key as it is, so nothing is to be cast or added up in the
 * server. One version of each row per flush. The times are their generation's. */
static int write_counters(struct applier *applier, const struct share *shares, size_t len,
                          struct error *error)
{
    static const char sql[] = "INSERT INTO counterd.counters AS c (key, value, first_seen, last_seen)"
                              " SELECT key, delta, ($1::timestamptz[])[origin], ($2::timestamptz[])[origin]"
                              " FROM unnest($3::text[], $4::bigint[], $5::bigint[]) WITH ORDINALITY AS u "
                              "(key, delta, origin, number)"
                              " ORDER BY number"
                              " ON CONFLICT (key) DO UPDATE SET value = c.value + EXCLUDED.value,"
                              " last_seen = GREATEST(c.last_seen, EXCLUDED.last_seen)";
    struct pgarray *columns = applier->columns;
    struct parameters parameters = {0};
    int r = 0;

    pgarray_begin(&columns[KEYS], PGARRAY_TEXT, len);
    pgarray_begin(&columns[DELTAS], PGARRAY_BIGINT, len);
    pgarray_begin(&columns[ORIGINS], PGARRAY_BIGINT, len);
    for (size_t i = 0; i < len; i++) {
        size_t last = shares[i].first + shares[i].len - 1;
        pgarray_add_text(&columns[KEYS], share_key(&shares[i], applier->updates));
        pgarray_add_bigint(&columns[DELTAS], delta_of(applier, &shares[i]));
        pgarray_add_bigint(&columns[ORIGINS], (int64_t)applier->updates->items[last].cargo + 1);
    }
    parameters_array(&parameters, &columns[OPENED]);
    parameters_array(&parameters, &columns[SEEN]);
    parameters_array(&parameters, &columns[KEYS]);
    parameters_array(&parameters, &columns[DELTAS]);
    parameters_array(&parameters, &columns[ORIGINS]);
    r = check_column(&columns[KEYS], r, error);
    r = check_column(&columns[DELTAS], r, error);
    r = check_column(&columns[ORIGINS], r, error);
    return r < 0 ? r : execute(applier, sql, &parameters, NULL, error);
}

static void begin_rows(struct applier *applier, const struct layout *layout, size_t count)
{
    for (size_t i = 0; i < layout->key_len; i++)
        pgarray_begin(&applier->columns[KEYS + i], PGARRAY_TEXT, count);
    pgarray_begin(&applier->columns[DELTAS], PGARRAY_BIGINT, count);
    pgarray_begin(&applier->columns[TIMES], PGARRAY_TIMESTAMPTZ, count);
}

static void add_row(struct applier *applier, const struct layout *layout, const struct span *values,
                    int64_t delta, int64_t unix_ms)
{
    for (size_t i = 0; i < layout->key_len; i++)
        pgarray_add_text(&applier->columns[KEYS + i], values[i]);
    pgarray_add_bigint(&applier->columns[DELTAS], delta);
    pgarray_add_timestamptz(&applier->columns[TIMES], unix_ms);
}

static int send_rows(struct applier *applier, const struct layout *layout, const char *sql,
                     struct pg_result **ret_rows, struct error *error)
{
    struct parameters parameters = {0};
    int r = 0;

    for (size_t i = 0; i < layout->key_len; i++) {
        r = check_column(&applier->columns[KEYS + i], r, error);
        parameters_array(&parameters, &applier->columns[KEYS + i]);
    }
    r = check_column(&applier->columns[DELTAS], r, error);
    r = check_column(&applier->columns[TIMES], r, error);
    parameters_array(&parameters, &applier->columns[DELTAS]);
    if (layout->time_use != TIME_UNUSED)
        parameters_array(&parameters, &applier->columns[TIMES]);
    return r < 0 ? r : execute(applier, sql, &parameters, ret_rows, error);
}

/* The bucket of an update, 0 = none, and when it may have been seen last. */
static int64_t times_of(const struct applier *applier, const struct target *target, size_t index,
                        int64_t *ret_seen_ms)
{
    const struct origin *origin = &applier->origins[applier->updates->items[index].cargo];
    int64_t bucket;

    (void)member_split(updates_key(applier->updates, index), &bucket);
    *ret_seen_ms = bucket_seen_ms(bucket, target->bucket_s, origin->seen_ms);
    return bucket;
}

static int64_t seen_of(const struct applier *applier, const struct target *target, const struct share *share)
{
    int64_t seen_ms = INT64_MIN, each_ms;

    for (size_t i = share->first; i < share->first + share->len; i++) {
        times_of(applier, target, i, &each_ms);
        if (each_ms > seen_ms)
            seen_ms = each_ms;
    }
    return seen_ms;
}

static int refuse_skipped(struct error *error)
{
    return error_set(error, FAILURE_REFUSED,
                     "a row was not written, and nothing was said; is there a trigger "
                     "that skips it?");
}

/* The rows of the targets themselves; those that are not there are noted in `missing`. */
static int write_rows(struct applier *applier, const struct planned *planned, const struct share *shares,
                      size_t len, struct error *error)
{
    struct span values[PATTERN_PLACEHOLDERS_MAX];
    struct pg_result *rows = NULL;
    int r;

    begin_rows(applier, &planned->layout, len);
    for (size_t i = 0; i < len; i++) {
        plan_values(planned, &planned->layout, share_key(&shares[i], applier->updates), values);
        add_row(applier, &planned->layout, values, delta_of(applier, &shares[i]),
                seen_of(applier, planned->target, &shares[i]));
    }
    r = send_rows(applier, &planned->layout, planned->add, &rows, error);
    if (r < 0)
        return r;
    if (planned->target->missing != MISSING_INSERT)
        for (int i = 0; i < rows_len(rows); i++)
            applier->missing[rows_bigint(rows, i, 0) - 1] = true;
    else if (rows_len(rows) > 0)
        r = refuse_skipped(error);
    rows_free(rows);
    return r;
}

/* Not for a partition that is dropped, or about to be. */
static bool is_expired(struct applier *applier, const struct planned_rollup *rollup, int64_t bucket)
{
    if (!rollup->by_day)
        return false;
    if (bucket / 86400 != applier->day) {
        applier->day = bucket / 86400;
        applier->day_expired = partitions_expired(&applier->plan->partitions, bucket);
    }
    return applier->day_expired;
}

/* What has no bucket, because it came before the target had rollups, counts in the one in which it was last
 * appended to. */
static int64_t rollup_bucket(const struct applier *applier, const struct planned *planned,
                             const struct planned_rollup *rollup, size_t index)
{
    int64_t seen_ms, bucket = times_of(applier, planned->target, index, &seen_ms);

    return bucket_of(bucket ? bucket : seen_ms / 1000, rollup->bucket_s);
}

/* A row for each bucket of each key that has its row. */
static int write_rollup(struct applier *applier, const struct planned *planned,
                        const struct planned_rollup *rollup, const struct share *shares, size_t len,
                        struct error *error)
{
    struct span values[PATTERN_PLACEHOLDERS_MAX];
    struct pg_result *rows = NULL;
    size_t count = 0;
    int r;

    for (size_t i = 0; i < len; i++)
        for (size_t j = shares[i].first; !applier->missing[i] && j < shares[i].first + shares[i].len; j++)
            count += !is_expired(applier, rollup, rollup_bucket(applier, planned, rollup, j));
    if (count == 0)
        return 0;
    begin_rows(applier, &rollup->layout, count);
    for (size_t i = 0; i < len; i++) {
        if (applier->missing[i])
            continue;
        plan_values(planned, &rollup->layout, share_key(&shares[i], applier->updates), values);
        for (size_t j = shares[i].first; j < shares[i].first + shares[i].len; j++) {
            int64_t bucket = rollup_bucket(applier, planned, rollup, j);
            if (!is_expired(applier, rollup, bucket))
                add_row(applier, &rollup->layout, values, applier->updates->items[j].delta, bucket * 1000);
        }
    }
    r = send_rows(applier, &rollup->layout, rollup->add, &rows, error);
    if (r < 0)
        return r;
    if (rows_len(rows) > 0)
        r = refuse_skipped(error);
    rows_free(rows);
    return r;
}

static int write_part(struct applier *applier, const struct planned *planned, const struct share *shares,
                      size_t len, struct error *error)
{
    int r;

    memset(applier->missing, 0, len * sizeof(applier->missing[0]));
    r = planned->add ? write_rows(applier, planned, shares, len, error)
                     : write_counters(applier, shares, len, error);
    for (size_t i = 0; r == 0 && i < planned->target->rollups_len; i++)
        r = write_rollup(applier, planned, &planned->rollups[i], shares, len, error);
    return r;
}

/* --- parts --- */

static int refuse_missing(struct applier *applier, const struct share *shares, size_t len,
                          struct error *error)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < len; i++)
        if (applier->missing[i])
            r = refuse(applier, &shares[i], REASON_MISSING, NULL, error);
    return r;
}

static int apply_part(struct applier *applier, const struct planned *planned, const struct share *shares,
                      size_t len, struct error *error);

/* One key is the culprit; of several, each half is tried by itself. */
static int halve(struct applier *applier, const struct planned *planned, const struct share *shares,
                 size_t len, struct error *error)
{
    enum reason reason = reason_of(postgres_state(applier->postgres));
    struct error detail = *error;
    int r = execute(applier, "ROLLBACK TO SAVEPOINT part; RELEASE SAVEPOINT part", NULL, NULL, error);

    if (r < 0)
        return r;
    if (len == 1)
        return refuse(applier, shares, reason, detail.text, error);
    r = apply_part(applier, planned, shares, len / 2, error);
    return r < 0 ? r : apply_part(applier, planned, shares + len / 2, len - len / 2, error);
}

static int apply_part(struct applier *applier, const struct planned *planned, const struct share *shares,
                      size_t len, struct error *error)
{
    int r = execute(applier, "SAVEPOINT part", NULL, NULL, error);

    if (r == 0)
        r = write_part(applier, planned, shares, len, error);
    if (r == FAILURE_REFUSED)
        return halve(applier, planned, shares, len, error);
    if (r == 0)
        r = execute(applier, "RELEASE SAVEPOINT part", NULL, NULL, error);
    return r < 0 ? r : refuse_missing(applier, shares, len, error);
}

/* What Postgres need not be asked about is refused, and taken out: gives how many shares are left. */
static int sift(struct applier *applier, const struct planned *planned, struct share *shares, size_t *len,
                struct error *error)
{
    struct span values[PATTERN_PLACEHOLDERS_MAX];
    size_t kept = 0;
    int64_t delta;
    int r = 0;

    for (size_t i = 0; r == 0 && i < *len; i++) {
        enum fit fit = FIT_GOOD;
        if (planned->add) {
            plan_values(planned, &planned->layout, share_key(&shares[i], applier->updates), values);
            fit = plan_fit(&planned->layout, values);
        }
        if (fit == FIT_GOOD && !share_delta(&shares[i], applier->updates, planned->target->merge, &delta))
            fit = FIT_RANGE;
        if (fit == FIT_GOOD)
            shares[kept++] = shares[i];
        else
            r = refuse(applier, &shares[i], fit == FIT_TYPE ? REASON_TYPE : REASON_RANGE, NULL, error);
    }
    *len = kept;
    return r;
}

/* How many shares make a part. */
static size_t part_len(const struct share *shares, size_t len)
{
    size_t count = 0, updates = 0;

    while (count < len && (count == 0 || updates + shares[count].len <= PART_UPDATES))
        updates += shares[count++].len;
    return count;
}

static int apply_target(struct applier *applier, struct share *shares, size_t len, struct error *error)
{
    const struct planned *planned = planned_of(applier, &shares[0]);
    int r = 0;

    if (!planned) {
        for (size_t i = 0; r == 0 && i < len; i++)
            r = refuse(applier, &shares[i], REASON_NO_TARGET, NULL, error);
        return r;
    }
    r = sift(applier, planned, shares, &len, error);
    for (size_t from = 0, count; r == 0 && from < len; from += count) {
        count = part_len(shares + from, len - from);
        r = apply_part(applier, planned, shares + from, count, error);
    }
    return r < 0 ? error_prefix(error, r, "target '%s'", planned->target->match) : 0;
}

/* --- all of it --- */

static bool shares_rows(const struct applier *applier)
{
    for (size_t i = 0; i < applier->shares.len; i++) {
        const struct planned *planned = planned_of(applier, &applier->shares.items[i]);
        if (planned && planned->shared)
            return true;
    }
    return false;
}

/* Else flushers would wait for each other's rows, in a circle, and for as long as a transaction takes: so
 * this waits for longer than for a row. One lock for all tables, since several could make a circle again. */
static int take_turn(struct applier *applier, struct error *error)
{
    return postgres_execute(applier->postgres,
                            "SET LOCAL lock_timeout = '250s';"
                            "SELECT pg_advisory_xact_lock(hashtextextended('counterd.targets', 0))",
                            NULL, NULL, error);
}

/* That constraints speak at once and not at COMMIT, where nobody could tell whose fault it is. */
static int prepare(struct applier *applier, struct error *error)
{
    int r = shares_rows(applier) ? take_turn(applier, error) : 0;

    if (r < 0)
        return r;
    return execute(applier, "SET LOCAL lock_timeout = '500ms'; SET CONSTRAINTS ALL IMMEDIATE", NULL, NULL,
                   error);
}

static int begin_origins(struct applier *applier, size_t len, struct error *error)
{
    struct pgarray *opened = &applier->columns[OPENED], *seen = &applier->columns[SEEN];
    int r = 0;

    pgarray_begin(opened, PGARRAY_TIMESTAMPTZ, len);
    pgarray_begin(seen, PGARRAY_TIMESTAMPTZ, len);
    for (size_t i = 0; i < len; i++) {
        applier->origins[i].tally = (struct tally){0};
        pgarray_add_timestamptz(opened, applier->origins[i].opened_ms);
        pgarray_add_timestamptz(seen, applier->origins[i].seen_ms);
    }
    r = check_column(opened, r, error);
    return check_column(seen, r, error);
}

/* Until it is refused, all goes where it is meant to. */
static void count_elsewhere(struct applier *applier)
{
    for (size_t i = 0; i < applier->shares.len; i++) {
        const struct share *share = &applier->shares.items[i];
        const struct planned *planned = planned_of(applier, share);
        for (size_t j = share->first; planned && !planned->counters && j < share->first + share->len; j++) {
            const struct update *update = &applier->updates->items[j];
            applier->origins[update->cargo].tally.elsewhere += update->delta;
        }
    }
}

int applier_apply(struct applier *applier, const struct updates *updates, struct origin *origins,
                  size_t origins_len, struct error *error)
{
    struct shares *shares = &applier->shares;
    int r;

    forget_refusals(applier);
    applier->updates = updates;
    applier->origins = origins;
    r = begin_origins(applier, origins_len, error);
    if (r == 0 && shares_deal(shares, updates, applier->plan->targets, applier->plan->lane) < 0)
        r = error_set(error, -ENOMEM, "out of memory");
    if (r == 0 && applier->plan->has_own_tables)
        r = prepare(applier, error);
    if (r < 0)
        return r;
    count_elsewhere(applier);
    for (size_t from = 0, len; r == 0 && from < shares->len; from += len) {
        for (len = 1;
             from + len < shares->len && shares->items[from + len].target == shares->items[from].target;)
            len++;
        r = apply_target(applier, shares->items + from, len, error);
    }
    return r;
}
