#include "flusher/overview.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "flusher/failure.h"
#include "flusher/migrate.h"

int overview_redis(struct source_redis *source, const struct config *config, struct shard_state *ret_states,
                   struct error *error)
{
    int r = source_redis_check_shards(source, false, error);

    for (int64_t i = 0; r == 0 && i < config->shards; i++)
        r = source_redis_state(source, (uint32_t)i, &ret_states[i], error);
    return r;
}

static int add_largest(const struct redisReply *reply, struct largest *largest, struct error *error)
{
    struct span member;
    int64_t delta;

    for (size_t i = 0; i < reply_len(reply); i += 2) {
        if (!reply_text(reply, i, &member) || !reply_whole(reply, i + 1, &delta))
            return reply_misunderstood("largest", error);
        largest_add(largest, member, delta);
    }
    return 0;
}

int overview_largest(struct redis *redis, const struct config *config, const struct shard_state *states,
                     struct largest *ret_largest, struct error *error)
{
    char most[24];
    const struct span args[] = {{most, (size_t)snprintf(most, sizeof(most), "%d", LARGEST_MAX)}};
    int r = 0;

    *ret_largest = (struct largest){0};
    /* Only of what adds up it says where the most goes on. */
    for (int64_t i = 0; r == 0 && config->lanes[config->lane].merge == MERGE_ADD && i < config->shards; i++) {
        struct redisReply *reply = NULL;
        if (states[i].open_members == 0 && states[i].sealed_members == 0)
            continue;
        r = redis_script(redis, SCRIPT_LARGEST, (uint32_t)i, args, ARRAY_LEN(args), &reply, error);
        if (r == 0)
            r = add_largest(reply, ret_largest, error);
        reply_free(reply);
    }
    return r;
}

int overview_memory(struct redis *redis, struct redis_memory *ret_memory, struct error *error)
{
    struct redisReply *reply;
    int r = redis_script(redis, SCRIPT_MEMORY, 0, NULL, 0, &reply, error);

    *ret_memory = (struct redis_memory){0};
    if (r < 0)
        return r == FAILURE_UNAVAILABLE ? r : 0;
    if (reply_whole(reply, 0, &ret_memory->used_bytes) && reply_whole(reply, 1, &ret_memory->max_bytes))
        ret_memory->evicts = ret_memory->max_bytes > 0 && !reply_text_is(reply, 2, "noeviction") &&
                             !reply_text_is(reply, 2, "");
    else
        *ret_memory = (struct redis_memory){0};
    reply_free(reply);
    return 0;
}

void overview_redis_alone(const struct config *config, const struct shard_state *states,
                          struct pending *ret_pending)
{
    *ret_pending = (struct pending){0};
    for (int64_t i = 0; i < config->shards; i++)
        pending_add_shard(ret_pending, &states[i], &(struct shard_ledger){0});
    ret_pending->sealed_total = 0;
}

static int add_pending(struct postgres *postgres, const struct config *config,
                       const struct shard_state *states, struct overview *overview, struct error *error)
{
    struct shard_ledger *ledger = calloc((size_t)config->shards, sizeof(*ledger));
    int r = ledger ? records_ledger(postgres, config, states, ledger, error)
                   : error_set(error, -ENOMEM, "out of memory");

    for (int64_t i = 0; r == 0 && i < config->shards; i++)
        pending_add_shard(&overview->pending, &states[i], &ledger[i]);
    overview->pending_known = r == 0;
    free(ledger);
    return r;
}

static int count_gone_back(struct postgres *postgres, const struct config *config,
                           const struct shard_state *states, const struct shard_books *heads,
                           struct overview *overview, struct error *error)
{
    struct shard_books *now = calloc((size_t)config->shards, sizeof(*now));
    int r = now ? books_heads(postgres, config, now, error) : error_set(error, -ENOMEM, "out of memory");

    for (int64_t i = 0; r == 0 && i < config->shards; i++)
        overview->gone_back +=
            audit_went_back(heads[i].head_before, now[i].head_before, states[i].prev_id, states[i].sealed_id);
    free(now);
    return r;
}

/* A flusher in work is never seconds without a statement, so one whose server process waits that long for it
 * does not run: stopped, swapped out, or gone without its connection having noticed. */
static int look_beside(struct postgres *postgres, const struct config *config, struct overview *overview,
                       struct error *error)
{
    static const char sql[] =
        "SELECT (SELECT count(*) FROM counterd.quarantine WHERE namespace = $1 AND resolution IS NULL),"
        " stuck.pid, stuck.ms"
        " FROM (SELECT) AS always LEFT JOIN"
        " (SELECT pid, trunc(extract(epoch FROM clock_timestamp() - state_change) * 1000) AS ms"
        " FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'flusher'"
        " AND xact_start IS NOT NULL AND wait_event = 'ClientRead' AND pid <> pg_backend_pid()"
        " AND state_change < clock_timestamp() - interval '3 s'"
        " ORDER BY state_change LIMIT 1) AS stuck ON true";
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    parameters_text(&parameters, config->namespace);
    r = postgres_execute(postgres, sql, &parameters, &rows, error);
    if (r < 0)
        return r;
    overview->quarantined = rows_bigint(rows, 0, 0);
    overview->stuck_pid = rows_bigint(rows, 0, 1);
    overview->stuck_ms = rows_bigint(rows, 0, 2);
    rows_free(rows);
    return 0;
}

int overview_postgres(struct postgres *postgres, const struct config *config,
                      const struct shard_state *states, const struct shard_books *heads,
                      struct overview *ret_overview, struct error *error)
{
    int r = 0;

    *ret_overview = (struct overview){0};
    if (states)
        r = add_pending(postgres, config, states, ret_overview, error);
    if (r == 0 && states && heads)
        r = count_gone_back(postgres, config, states, heads, ret_overview, error);
    if (r == 0)
        r = records_history(postgres, config, &ret_overview->history, error);
    return r < 0 ? r : look_beside(postgres, config, ret_overview, error);
}

int overview_check(struct postgres *postgres, const struct config *config, const char *config_path,
                   struct error *error)
{
    int r = migrate_check(postgres, config_path, error);

    return r < 0 ? r : records_check_shards(postgres, config, false, error);
}

bool overview_is_worrying(const struct overview *overview)
{
    return overview->quarantined > 0 || overview->gone_back > 0 || overview->stuck_ms > 0;
}

void overview_view(struct source_redis *source, struct postgres *postgres, const struct config *config,
                   const char *config_path, struct overview_view *ret_view)
{
    struct shard_state *states = calloc((size_t)config->shards, sizeof(*states));
    struct shard_books *heads = calloc((size_t)config->shards, sizeof(*heads));
    struct overview_view view = {0};

    if (!states || !heads) {
        view.redis = error_set(&view.redis_error, -ENOMEM, "out of memory");
        view.postgres = error_set(&view.postgres_error, -ENOMEM, "out of memory");
    } else {
        view.postgres = overview_check(postgres, config, config_path, &view.postgres_error);
        if (view.postgres == 0)
            view.postgres = books_heads(postgres, config, heads, &view.postgres_error);
        view.redis = overview_redis(source, config, states, &view.redis_error);
        if (view.postgres == 0)
            view.postgres = overview_postgres(postgres, config, view.redis == 0 ? states : NULL, heads,
                                              &view.overview, &view.postgres_error);
        if (view.postgres < 0 && view.redis == 0)
            overview_redis_alone(config, states, &view.overview.pending);
    }
    free(states);
    free(heads);
    *ret_view = view;
}
