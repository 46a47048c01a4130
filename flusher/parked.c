#include "flusher/parked.h"

#include <inttypes.h>
#include <stdlib.h>

#include "flusher/deliver.h"
#include "flusher/failure.h"
#include "flusher/sink.h"
#include "flusher/whole.h"
#include "lib/member.h"

#define PAGE_ROWS 10000

/* Transactions tried for one page, as long as only others are in the way. */
#define TRANSACTIONS_MAX 5

/* --- rows --- */

#define ANY_SHARD (-1)

#define SELECT_PAGE                                                                                          \
    "SELECT id, shard, key, reason, detail, target, extract(epoch FROM bucket)::bigint, delta,"              \
    " trunc(extract(epoch FROM seen_at) * 1000), trunc(extract(epoch FROM parked_at) * 1000)"                \
    " FROM counterd.parked WHERE namespace = $1 AND id > $2::bigint"                                         \
    " AND ($3::bigint < 0 OR shard = $3::bigint) AND ($4::text IS NULL OR target = $4::text)"                \
    " AND ($5::text IS NULL OR reason = $5::text)"                                                           \
    " AND parked_at <= now() - make_interval(secs => $6::bigint) ORDER BY id LIMIT 10000"

struct page {
    struct parked_row *items;
    size_t len;
    int64_t last_id; /* where the next begins */
    bool more;
};

static void row_done(struct parked_row *row)
{
    free(row->key);
    free(row->reason);
    free(row->detail);
    free(row->target);
}

static void page_done(struct page *page)
{
    for (size_t i = 0; i < page->len; i++)
        row_done(&page->items[i]);
    free(page->items);
    *page = (struct page){0};
}

static bool take_row(const struct pg_result *rows, int at, struct parked_row *row)
{
    *row = (struct parked_row){
        .id = rows_bigint(rows, at, 0),
        .shard = rows_bigint(rows, at, 1),
        .key = strdup(rows_text(rows, at, 2)),
        .reason = strdup(rows_text(rows, at, 3)),
        .detail = strdup(rows_text(rows, at, 4)),
        .target = strdup(rows_text(rows, at, 5)),
        .bucket = rows_bigint(rows, at, 6),
        .delta = rows_bigint(rows, at, 7),
        .seen_ms = rows_bigint(rows, at, 8),
        .parked_ms = rows_bigint(rows, at, 9),
    };
    return row->key && row->reason && row->detail && row->target;
}

static int take_page(const struct pg_result *rows, const struct parked_filter *filter, struct page *page,
                     struct error *error)
{
    int len = rows_len(rows);

    page->more = len == PAGE_ROWS;
    page->items = calloc((size_t)len + 1, sizeof(*page->items));
    if (!page->items)
        return error_set(error, -ENOMEM, "out of memory");
    for (int i = 0; i < len; i++) {
        page->last_id = rows_bigint(rows, i, 0);
        if (filter->match && !pattern_match(filter->match, span_of(rows_text(rows, i, 2)), NULL))
            continue;
        if (!take_row(rows, i, &page->items[page->len++]))
            return error_set(error, -ENOMEM, "out of memory");
    }
    return 0;
}

/* The rows behind page->last_id. */
static int next_page(struct postgres *postgres, const struct config *config,
                     const struct parked_filter *filter, int64_t shard, struct page *page,
                     struct error *error)
{
    struct parameters parameters = {0};
    struct pg_result *rows;
    int64_t after = page->last_id;
    int r;

    page_done(page);
    page->last_id = after;
    parameters_text(&parameters, config->namespace);
    parameters_bigint(&parameters, after);
    parameters_bigint(&parameters, shard);
    parameters_text(&parameters, filter->target);
    parameters_text(&parameters, filter->reason);
    parameters_bigint(&parameters, filter->older_than_s);
    r = postgres_execute(postgres, shard == ANY_SHARD ? SELECT_PAGE : SELECT_PAGE " FOR UPDATE", &parameters,
                         &rows, error);
    if (r < 0)
        return r;
    r = take_page(rows, filter, page, error);
    rows_free(rows);
    return r;
}

/* --- the list --- */

void parked_list_done(struct parked_list *list)
{
    for (size_t i = 0; i < list->len; i++)
        row_done(&list->items[i]);
    free(list->items);
    *list = (struct parked_list){0};
}

int parked_read(struct postgres *postgres, const struct config *config, const struct parked_filter *filter,
                struct parked_list *ret_list, struct error *error)
{
    struct page page = {.more = true};
    int r = 0;

    ret_list->items = calloc(PARKED_LIST_MAX, sizeof(*ret_list->items));
    if (!ret_list->items)
        r = error_set(error, -ENOMEM, "out of memory");
    while (r == 0 && page.more) {
        r = next_page(postgres, config, filter, ANY_SHARD, &page, error);
        for (size_t i = 0; r == 0 && i < page.len; i++) {
            ret_list->rows++;
            ret_list->total = whole_add(ret_list->total, page.items[i].delta);
            if (ret_list->len < PARKED_LIST_MAX) {
                ret_list->items[ret_list->len++] = page.items[i];
                page.items[i] = (struct parked_row){0};
            }
        }
    }
    page_done(&page);
    return r;
}

/* --- decisions --- */

/* One command. */
struct deciding {
    struct postgres *postgres;
    const struct config *config;
    const struct parked_filter *filter;
    struct applier *applier; /* NULL: all is given up */
    struct parked_result *result;
};

/* What becomes of a page: an outcome for each row. */
enum outcome { OUTCOME_APPLIED, OUTCOME_DROPPED, OUTCOME_REFUSED };

struct verdicts {
    enum outcome *outcomes;
    const struct refusal **refusals; /* of the refused; borrowed from the applier */
    struct origin *origins;
    struct updates updates;
};

static void verdicts_done(struct verdicts *verdicts)
{
    free(verdicts->outcomes);
    free(verdicts->refusals);
    free(verdicts->origins);
    updates_done(&verdicts->updates);
}

static int verdicts_init(struct verdicts *verdicts, size_t len, struct error *error)
{
    *verdicts = (struct verdicts){.outcomes = calloc(len, sizeof(*verdicts->outcomes)),
                                  .refusals = calloc(len, sizeof(*verdicts->refusals)),
                                  .origins = calloc(len, sizeof(*verdicts->origins))};
    if (verdicts->outcomes && verdicts->refusals && verdicts->origins)
        return 0;
    verdicts_done(verdicts);
    return error_set(error, -ENOMEM, "out of memory");
}

/* Each row is an origin of its own, by whose number its refusal is found again. */
static int add_rows(struct verdicts *verdicts, const struct page *page, struct error *error)
{
    char member[MEMBER_LEN_MAX];

    for (size_t i = 0; i < page->len; i++) {
        const struct parked_row *row = &page->items[i];
        size_t len = member_write(span_of(row->key), row->bucket, member);
        verdicts->origins[i] = (struct origin){
            .shard = (uint32_t)row->shard, .gen = "", .opened_ms = row->seen_ms, .seen_ms = row->seen_ms};
        updates_begin(&verdicts->updates, (uint32_t)i);
        if (updates_add(&verdicts->updates, (struct span){member, len}, row->delta) < 0)
            return error_set(error, -ENOMEM, "out of memory");
    }
    updates_order(&verdicts->updates);
    return 0;
}

static int retry_rows(struct deciding *deciding, const struct page *page, struct verdicts *verdicts,
                      struct error *error)
{
    const struct refusal *refusals;
    size_t len;
    int r = add_rows(verdicts, page, error);

    if (r == 0)
        r = applier_apply(deciding->applier, &verdicts->updates, verdicts->origins, page->len, error);
    if (r < 0)
        return r;
    refusals = applier_refusals(deciding->applier, &len);
    for (size_t i = 0; i < len; i++) {
        const struct share *share = &refusals[i].share;
        for (size_t j = share->first; j < share->first + share->len; j++) {
            uint32_t row = verdicts->updates.items[j].cargo;
            verdicts->outcomes[row] = refusals[i].dropped ? OUTCOME_DROPPED : OUTCOME_REFUSED;
            verdicts->refusals[row] = &refusals[i];
        }
    }
    return 0;
}

static int execute_ids(struct deciding *deciding, const char *sql, struct pgarray *arrays, size_t len,
                       struct error *error)
{
    struct parameters parameters = {0};
    bool ok = true;
    int r;

    for (size_t i = 0; i < len; i++) {
        ok &= pgarray_ok(&arrays[i]);
        parameters_array(&parameters, &arrays[i]);
    }
    r = ok ? postgres_execute(deciding->postgres, sql, &parameters, NULL, error)
           : error_set(error, -ENOMEM, "out of memory");
    for (size_t i = 0; i < len; i++)
        pgarray_done(&arrays[i]);
    return r;
}

static int delete_rows(struct deciding *deciding, const struct page *page, const struct verdicts *verdicts,
                       size_t count, struct error *error)
{
    struct pgarray ids = {0};

    if (count == 0)
        return 0;
    pgarray_begin(&ids, PGARRAY_BIGINT, count);
    for (size_t i = 0; i < page->len; i++)
        if (verdicts->outcomes[i] != OUTCOME_REFUSED)
            pgarray_add_bigint(&ids, page->items[i].id);
    return execute_ids(deciding, "DELETE FROM counterd.parked WHERE id = ANY ($1::bigint[])", &ids, 1, error);
}

/* The reason may be another one by now, and so may the target. */
static int note_reasons(struct deciding *deciding, const struct page *page, const struct verdicts *verdicts,
                        size_t count, struct error *error)
{
    struct pgarray arrays[4] = {{0}};

    if (count == 0)
        return 0;
    for (size_t i = 0; i < ARRAY_LEN(arrays); i++)
        pgarray_begin(&arrays[i], i == 0 ? PGARRAY_BIGINT : PGARRAY_TEXT, count);
    for (size_t i = 0; i < page->len; i++) {
        const struct refusal *refusal = verdicts->refusals[i];
        if (verdicts->outcomes[i] != OUTCOME_REFUSED)
            continue;
        pgarray_add_bigint(&arrays[0], page->items[i].id);
        pgarray_add_text(&arrays[1], span_of(reason_name(refusal->reason)));
        pgarray_add_text(&arrays[2], span_of(refusal->detail ? refusal->detail : ""));
        pgarray_add_text(&arrays[3], span_of(applier_table(deciding->applier, refusal)));
    }
    return execute_ids(
        deciding,
        "UPDATE counterd.parked AS p SET reason = n.reason, detail = n.detail, target = n.target"
        " FROM unnest($1::bigint[], $2::text[], $3::text[], $4::text[])"
        " AS n (id, reason, detail, target) WHERE p.id = n.id",
        arrays, ARRAY_LEN(arrays), error);
}

static struct parked_result sum_up(const struct page *page, const struct verdicts *verdicts)
{
    struct parked_result result = {0};

    for (size_t i = 0; i < page->len; i++) {
        int64_t delta = page->items[i].delta;
        switch (verdicts->outcomes[i]) {
        case OUTCOME_APPLIED:
            result.applied_rows++;
            result.applied = whole_add(result.applied, delta);
            break;
        case OUTCOME_DROPPED:
            result.dropped_rows++;
            result.dropped = whole_add(result.dropped, delta);
            break;
        case OUTCOME_REFUSED:
            result.refused_rows++;
            result.refused = whole_add(result.refused, delta);
            break;
        }
    }
    return result;
}

static int decide_rows(struct deciding *deciding, int64_t shard, const struct page *page,
                       struct parked_result *ret_done, struct error *error)
{
    struct verdicts verdicts;
    struct shift shift = {0};
    int r = verdicts_init(&verdicts, page->len, error);

    if (r < 0)
        return r;
    if (deciding->applier)
        r = retry_rows(deciding, page, &verdicts, error);
    for (size_t i = 0; i < page->len; i++) {
        if (!deciding->applier)
            verdicts.outcomes[i] = OUTCOME_DROPPED;
        shift.elsewhere += verdicts.origins[i].tally.elsewhere;
    }
    *ret_done = sum_up(page, &verdicts);
    shift.parked = whole_subtract(0, whole_add(ret_done->applied, ret_done->dropped));
    shift.dropped = ret_done->dropped;
    if (r == 0)
        r = delete_rows(deciding, page, &verdicts, (size_t)(ret_done->applied_rows + ret_done->dropped_rows),
                        error);
    if (r == 0)
        r = note_reasons(deciding, page, &verdicts, (size_t)ret_done->refused_rows, error);
    if (r == 0)
        r = deliver_shift(deciding->postgres, deciding->config->namespace, (uint32_t)shard, &shift, error);
    verdicts_done(&verdicts);
    return r;
}

/* The same lock as a flush takes, and so the same order: shard, then the rest. */
static int lock_shard(struct deciding *deciding, int64_t shard, struct error *error)
{
    struct parameters parameters = {0};

    parameters_text(&parameters, deciding->config->namespace);
    parameters_bigint(&parameters, shard);
    return postgres_execute(
        deciding->postgres,
        "SELECT FROM counterd.shards WHERE namespace = $1 AND shard = $2::bigint FOR UPDATE", &parameters,
        NULL, error);
}

static int decide_page(struct deciding *deciding, int64_t shard, struct page *page, struct error *error)
{
    int64_t after = page->last_id;
    struct parked_result done;
    int r = FAILURE_COLLISION;

    for (int i = 0; i < TRANSACTIONS_MAX && r == FAILURE_COLLISION; i++) {
        page->last_id = after;
        done = (struct parked_result){0};
        r = postgres_begin(deciding->postgres, error);
        if (r == 0)
            r = lock_shard(deciding, shard, error);
        if (r == 0)
            r = next_page(deciding->postgres, deciding->config, deciding->filter, shard, page, error);
        if (r == 0 && page->len > 0)
            r = decide_rows(deciding, shard, page, &done, error);
        r = postgres_end(deciding->postgres, r, error);
    }
    if (r == COMMIT_UNKNOWN)
        r = error_set(
            error, FAILURE_UNAVAILABLE,
            "no answer to COMMIT: whether the last of it was done is unknown; the same command again "
            "does what was not");
    if (r < 0)
        return r;
    deciding->result->applied_rows += done.applied_rows;
    deciding->result->dropped_rows += done.dropped_rows;
    deciding->result->refused_rows += done.refused_rows;
    deciding->result->applied = whole_add(deciding->result->applied, done.applied);
    deciding->result->dropped = whole_add(deciding->result->dropped, done.dropped);
    deciding->result->refused = whole_add(deciding->result->refused, done.refused);
    return 0;
}

static int decide(struct deciding *deciding, struct error *error)
{
    struct parameters parameters = {0};
    struct pg_result *shards;
    int r;

    *deciding->result = (struct parked_result){0};
    parameters_text(&parameters, deciding->config->namespace);
    r = postgres_execute(deciding->postgres,
                         "SELECT DISTINCT shard FROM counterd.parked WHERE namespace = $1 ORDER BY shard",
                         &parameters, &shards, error);
    if (r < 0)
        return r;
    for (int i = 0; r == 0 && i < rows_len(shards); i++) {
        struct page page = {.more = true};
        while (r == 0 && page.more)
            r = decide_page(deciding, rows_bigint(shards, i, 0), &page, error);
        page_done(&page);
    }
    rows_free(shards);
    return r;
}

/* Days whose rollups may be among them. */
static int make_days(struct postgres *postgres, const struct config *config, const struct plan *plan,
                     struct error *error)
{
    struct parameters parameters = {0};

    parameters_text(&parameters, config->namespace);
    return deliver_days(postgres, plan,
                        "SELECT DISTINCT trunc(extract(epoch FROM COALESCE(bucket, seen_at)) / 86400) * 86400"
                        " FROM counterd.parked WHERE namespace = $1",
                        &parameters, error);
}

int parked_retry(struct postgres *postgres, const struct config *config, const struct parked_filter *filter,
                 struct parked_result *ret_result, struct error *error)
{
    struct deciding deciding = {postgres, config, filter, NULL, ret_result};
    struct plan *plan = NULL;
    int r;

    *ret_result = (struct parked_result){0};
    r = plan_make(postgres, config, &plan, error);
    if (r == 0)
        r = make_days(postgres, config, plan, error);
    if (r == 0)
        r = applier_new(postgres, plan, &deciding.applier, error);
    if (r == 0)
        r = decide(&deciding, error);
    applier_free(deciding.applier);
    plan_free(plan);
    return r;
}

int parked_drop(struct postgres *postgres, const struct config *config, const struct parked_filter *filter,
                struct parked_result *ret_result, struct error *error)
{
    struct deciding deciding = {postgres, config, filter, NULL, ret_result};

    return decide(&deciding, error);
}
