#include "flusher/quarantine.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "flusher/deliver.h"
#include "flusher/failure.h"
#include "flusher/sink.h"

/* --- the list --- */

struct held quarantined_held(const struct quarantined *row)
{
    struct held held = {0};

    for (size_t i = 0; i < row->writers_len; i++) {
        const struct held_batches *batches = &row->writers[i];
        int64_t applied = batches->applied < batches->high ? batches->applied : batches->high;
        int64_t here = applied >= batches->low ? applied - batches->low + 1 : 0;
        held.applied += here;
        held.only_here += batches->high - batches->low + 1 - here;
    }
    return held;
}

void quarantine_list_done(struct quarantine_list *list)
{
    for (size_t i = 0; i < list->len; i++) {
        for (size_t j = 0; j < list->items[i].writers_len; j++)
            free(list->items[i].writers[j].writer);
        free(list->items[i].writers);
    }
    free(list->items);
    *list = (struct quarantine_list){0};
}

/* A row of the result is a writer of a quarantined generation, or one that has none. */
static struct quarantined *row_of(const struct pg_result *rows, int at, struct quarantine_list *list)
{
    struct quarantined *row = list->len > 0 ? &list->items[list->len - 1] : NULL;

    if (row && row->id == rows_bigint(rows, at, 0))
        return row;
    row = &list->items[list->len++];
    *row = (struct quarantined){
        .id = rows_bigint(rows, at, 0),
        .shard = rows_bigint(rows, at, 1),
        .unix_ms = rows_bigint(rows, at, 4),
        .keys = rows_bigint(rows, at, 5),
        .total = rows_bigint(rows, at, 6),
    };
    snprintf(row->gen, sizeof(row->gen), "%s", rows_text(rows, at, 2));
    snprintf(row->part, sizeof(row->part), "%s", rows_text(rows, at, 3));
    return row;
}

static int add_writer(const struct pg_result *rows, int at, struct quarantined *row)
{
    struct held_batches *grown;

    if (rows_text(rows, at, 7)[0] == '\0')
        return 0;
    grown = reallocarray(row->writers, row->writers_len + 1, sizeof(*grown));
    if (!grown)
        return -ENOMEM;
    row->writers = grown;
    row->writers[row->writers_len] = (struct held_batches){
        .writer = strdup(rows_text(rows, at, 7)),
        .low = rows_bigint(rows, at, 8),
        .high = rows_bigint(rows, at, 9),
        .applied = rows_bigint(rows, at, 10),
    };
    return row->writers[row->writers_len].writer ? (row->writers_len++, 0) : -ENOMEM;
}

int quarantine_read(struct postgres *postgres, const struct config *config, struct quarantine_list *ret_list,
                    struct error *error)
{
    static const char sql[] =
        "SELECT q.id, q.shard, q.gen, q.part, trunc(extract(epoch FROM q.quarantined_at) * 1000),"
        " cardinality(q.members), q.total, b.key, b.value->>0, b.value->>1, w.seq"
        " FROM counterd.quarantine AS q LEFT JOIN LATERAL jsonb_each(q.identity) AS b ON true"
        " LEFT JOIN counterd.writers AS w"
        " ON w.namespace = q.namespace AND w.shard = q.shard AND w.writer = b.key"
        " WHERE q.namespace = $1 AND q.resolution IS NULL ORDER BY q.id, b.key";
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    parameters_text(&parameters, config->namespace);
    r = postgres_execute(postgres, sql, &parameters, &rows, error);
    if (r < 0)
        return r;
    ret_list->items = calloc((size_t)rows_len(rows) + 1, sizeof(*ret_list->items));
    if (!ret_list->items)
        r = -ENOMEM;
    for (int i = 0; r == 0 && i < rows_len(rows); i++)
        r = add_writer(rows, i, row_of(rows, i, ret_list));
    rows_free(rows);
    return r < 0 ? error_set(error, r, "out of memory") : 0;
}

/* --- decisions --- */

/* Every statement about a row begins with these. */
static int execute(struct postgres *postgres, const char *sql, const struct config *config, int64_t id,
                   struct pg_result **ret_rows, struct error *error)
{
    struct parameters parameters = {0};

    parameters_text(&parameters, config->namespace);
    parameters_bigint(&parameters, id);
    return postgres_execute(postgres, sql, &parameters, ret_rows, error);
}

/* The same lock as a flush takes, and so the same order: shard, then the rest. */
static int lock_shard(struct postgres *postgres, const struct config *config, int64_t id, struct error *error)
{
    struct pg_result *rows;
    bool found;
    int r = execute(postgres,
                    "SELECT s.shard FROM counterd.quarantine AS q"
                    " JOIN counterd.shards AS s ON s.namespace = q.namespace AND s.shard = q.shard"
                    " WHERE q.namespace = $1 AND q.id = $2::bigint FOR UPDATE OF s",
                    config, id, &rows, error);

    if (r < 0)
        return r;
    found = rows_len(rows) == 1;
    rows_free(rows);
    return found ? 0
                 : error_set(error, FAILURE_DATA,
                             "namespace '%s' has no row %" PRId64
                             " in quarantine; see 'flusher quarantine list'",
                             config->namespace, id);
}

/* What stands against applying a row. */
struct obstacles {
    int64_t
        older_id; /* the oldest of the shard without a decision; the row itself when there is none before */
    bool force;
};

static int check_obstacles(const struct obstacles *obstacles, const struct decision *decision,
                           struct error *error)
{
    /* The vector says up to where a writer is applied, so what stands before must be decided before. */
    if (obstacles->older_id < decision->id)
        return error_set(error, FAILURE_DATA,
                         "row %" PRId64 " of the same shard comes first: apply or drop that one",
                         obstacles->older_id);
    if (decision->applied > 0 && !obstacles->force)
        return error_set(error, FAILURE_DATA,
                         "row %" PRId64 " holds %" PRId64
                         " batches that Postgres has already, and they would count "
                         "twice: drop it, unless it holds others that are worth it; then add --force",
                         decision->id, decision->applied);
    return 0;
}

/* Under the lock, in a statement of its own. `obstacles` is NULL for a row that is not to be applied. */
static int look_at(struct postgres *postgres, const struct config *config, int64_t id,
                   struct obstacles *obstacles, struct decision *ret_decision, struct error *error)
{
    static const char sql[] =
        "SELECT q.shard, q.gen, cardinality(q.members), q.total, q.resolution,"
        " (SELECT min(id) FROM counterd.quarantine AS o"
        " WHERE o.namespace = q.namespace AND o.shard = q.shard AND o.resolution IS NULL),"
        " (SELECT sum(GREATEST(0, LEAST(w.seq, (b.value->>1)::bigint) - (b.value->>0)::bigint + 1))"
        " FROM jsonb_each(q.identity) AS b JOIN counterd.writers AS w"
        " ON w.namespace = q.namespace AND w.shard = q.shard AND w.writer = b.key)"
        " FROM counterd.quarantine AS q WHERE q.namespace = $1 AND q.id = $2::bigint FOR UPDATE OF q";
    struct pg_result *rows;
    int r = execute(postgres, sql, config, id, &rows, error);

    if (r < 0)
        return r;
    if (rows_len(rows) != 1 || rows_text(rows, 0, 4)[0] != '\0') {
        r = error_set(error, FAILURE_DATA, "row %" PRId64 " was %s before; nothing was done now", id,
                      rows_len(rows) == 1 ? rows_text(rows, 0, 4) : "deleted");
    } else {
        *ret_decision = (struct decision){
            .id = id,
            .shard = rows_bigint(rows, 0, 0),
            .keys = rows_bigint(rows, 0, 2),
            .total = rows_bigint(rows, 0, 3),
            .applied = rows_bigint(rows, 0, 6),
        };
        snprintf(ret_decision->gen, sizeof(ret_decision->gen), "%s", rows_text(rows, 0, 1));
    }
    if (r == 0 && obstacles) {
        obstacles->older_id = rows_bigint(rows, 0, 5);
        r = check_obstacles(obstacles, ret_decision, error);
    }
    rows_free(rows);
    return r;
}

/* --- its increments --- */

static int add_members(const struct pg_result *rows, struct updates *updates)
{
    int r = 0;

    for (int i = 0; r == 0 && i < rows_len(rows); i++)
        r = updates_add(updates, span_of(rows_text(rows, i, 0)), rows_bigint(rows, i, 1));
    return r;
}

/* Days whose rollups may be in it. */
static int make_days(struct postgres *postgres, const struct config *config, const struct plan *plan,
                     int64_t id, struct error *error)
{
    struct parameters parameters = {0};

    parameters_text(&parameters, config->namespace);
    parameters_bigint(&parameters, id);
    return deliver_days(
        postgres, plan,
        "SELECT DISTINCT COALESCE(substring(member FROM ' ([0-9]{1,18})$')::bigint,"
        " extract(epoch FROM COALESCE(q.last_append_at, q.sealed_at))::bigint) / 86400 * 86400"
        " FROM counterd.quarantine AS q, unnest(q.members) AS member"
        " WHERE q.namespace = $1 AND q.id = $2::bigint AND q.resolution IS NULL",
        &parameters, error);
}

/* Into the tables of the targets as they are now, like those of a flush. */
static int deliver_members(struct postgres *postgres, const struct config *config, const struct plan *plan,
                           const struct decision *decision, struct error *error)
{
    struct origin origin = {.shard = (uint32_t)decision->shard, .gen = decision->gen};
    struct updates updates = {0};
    struct applier *applier = NULL;
    struct pg_result *rows;
    int r = execute(postgres,
                    "SELECT u.key, u.delta, trunc(extract(epoch FROM q.opened_at) * 1000),"
                    " trunc(extract(epoch FROM COALESCE(q.last_append_at, q.sealed_at)) * 1000)"
                    " FROM counterd.quarantine AS q, unnest(q.members, q.deltas) AS u (key, delta)"
                    " WHERE q.namespace = $1 AND q.id = $2::bigint",
                    config, decision->id, &rows, error);

    if (r < 0)
        return r;
    if (rows_len(rows) > 0) {
        origin.opened_ms = rows_bigint(rows, 0, 2);
        origin.seen_ms = rows_bigint(rows, 0, 3);
    }
    if (add_members(rows, &updates) < 0)
        r = error_set(error, -ENOMEM, "out of memory");
    rows_free(rows);
    updates_order(&updates);
    if (r == 0)
        r = applier_new(postgres, plan, &applier, error);
    if (r == 0)
        r = deliver(postgres, config->namespace, applier, &updates, &origin, 1, error);
    applier_free(applier);
    updates_done(&updates);
    return r;
}

/* --- deciding --- */

static const char *const apply_statements[] = {
    "INSERT INTO counterd.writers AS w (namespace, shard, writer, seq)"
    " SELECT q.namespace, q.shard, b.key, (b.value->>1)::bigint"
    " FROM counterd.quarantine AS q, jsonb_each(q.identity) AS b"
    " WHERE q.namespace = $1 AND q.id = $2::bigint"
    " ON CONFLICT (namespace, shard, writer) DO UPDATE SET seq = GREATEST(w.seq, EXCLUDED.seq)",

    /* Not the shard's head: that is what Redis and Postgres know each other by, and Redis knows nothing of
       this. */
    "INSERT INTO counterd.ledger (namespace, gen, shard, prev_gen, identity, keys, total, events,"
    " accepted_at_seal, cumulative_total, cumulative_events, opened_at, sealed_at)"
    " SELECT q.namespace, 'quarantine-' || q.id, q.shard, q.prev_gen, q.identity, cardinality(q.members),"
    " q.total, 0, q.accepted_at_seal, s.cumulative_total, s.cumulative_events, q.opened_at, q.sealed_at"
    " FROM counterd.quarantine AS q"
    " JOIN counterd.shards AS s ON s.namespace = q.namespace AND s.shard = q.shard"
    " WHERE q.namespace = $1 AND q.id = $2::bigint",

    "UPDATE counterd.shards AS s SET recovered_total = s.recovered_total + q.total"
    " FROM counterd.quarantine AS q"
    " WHERE q.namespace = $1 AND q.id = $2::bigint AND s.namespace = q.namespace AND s.shard = q.shard",

    "UPDATE counterd.quarantine SET resolution = 'applied', resolved_at = now()"
    " WHERE namespace = $1 AND id = $2::bigint",
};

static const char *const drop_statements[] = {
    "UPDATE counterd.quarantine SET resolution = 'dropped', resolved_at = now()"
    " WHERE namespace = $1 AND id = $2::bigint",
};

/* `plan` is NULL for a row that is not to be applied. */
static int carry_out(struct postgres *postgres, const struct config *config, const struct plan *plan,
                     const struct decision *decision, struct error *error)
{
    const char *const *statements = plan ? apply_statements : drop_statements;
    size_t len = plan ? ARRAY_LEN(apply_statements) : ARRAY_LEN(drop_statements);
    int r = plan ? deliver_members(postgres, config, plan, decision, error) : 0;

    for (size_t i = 0; r == 0 && i < len; i++)
        r = execute(postgres, statements[i], config, decision->id, NULL, error);
    return r;
}

static int decide(struct postgres *postgres, const struct config *config, int64_t id,
                  struct obstacles *obstacles, struct decision *ret_decision, struct error *error)
{
    struct plan *plan = NULL;
    int r = obstacles ? plan_make(postgres, config, &plan, error) : 0;

    if (r == 0 && plan)
        r = make_days(postgres, config, plan, id, error);
    if (r == 0)
        r = postgres_begin(postgres, error);
    if (r == 0)
        r = lock_shard(postgres, config, id, error);
    if (r == 0)
        r = look_at(postgres, config, id, obstacles, ret_decision, error);
    if (r == 0)
        r = carry_out(postgres, config, plan, ret_decision, error);
    r = postgres_end(postgres, r, error);
    plan_free(plan);
    if (r == COMMIT_UNKNOWN)
        r = error_set(error, FAILURE_UNAVAILABLE,
                      "no answer to COMMIT: whether row %" PRId64
                      " was decided is unknown; the same command again "
                      "tells, and does it if not",
                      id);
    return r;
}

int quarantine_apply(struct postgres *postgres, const struct config *config, int64_t id, bool force,
                     struct decision *ret_decision, struct error *error)
{
    return decide(postgres, config, id, &(struct obstacles){.force = force}, ret_decision, error);
}

int quarantine_drop(struct postgres *postgres, const struct config *config, int64_t id,
                    struct decision *ret_decision, struct error *error)
{
    return decide(postgres, config, id, NULL, ret_decision, error);
}
