#include "counterd/status.h"

#include <cjson/cJSON.h>

#include "counterd/version.h"
#include "lib/log.h"

static void add_number(cJSON *object, const char *name, uint64_t number)
{
    cJSON_AddNumberToObject(object, name, (double)number);
}

static void add_signed(cJSON *object, const char *name, int64_t number)
{
    cJSON_AddNumberToObject(object, name, (double)number);
}

/* `ms` below 0: there is no such moment. */
static void add_age(cJSON *object, const char *name, int64_t ms)
{
    if (ms < 0)
        cJSON_AddNullToObject(object, name);
    else
        add_signed(object, name, ms);
}

static void add_received(cJSON *root, const struct figures *figures)
{
    cJSON *group = cJSON_AddObjectToObject(root, "received");

    add_number(group, "datagrams", figures->datagrams);
    add_number(group, "bytes", figures->bytes);
    add_number(group, "connections", figures->connections);
    add_number(group, "connections_refused", figures->connections_refused);
    add_number(group, "lines", figures->lines);
    add_number(group, "truncated_datagrams", figures->truncated);
}

static void add_rejects(cJSON *root, const struct figures *figures)
{
    cJSON *group = cJSON_AddObjectToObject(root, "rejected");

    for (int i = REJECT_NONE + 1; i < REJECT_COUNT; i++)
        add_number(group, reject_name((enum reject)i), figures->rejected[i]);
    add_number(group, "total", figures->rejected_total);
}

static void add_samples(cJSON *root, const struct status_view *view)
{
    cJSON *list = cJSON_AddArrayToObject(root, "rejected_samples");
    struct sample samples[SAMPLES_MAX];
    char escaped[LOG_TEXT_BYTES];

    for (size_t i = 0; i < view->stats_len; i++) {
        size_t len = samples_copy(&view->stats[i]->samples, samples);
        for (size_t j = 0; j < len; j++) {
            cJSON *item = cJSON_CreateObject();
            cJSON_AddStringToObject(item, "reason", reject_name(samples[j].reject));
            /* A rejected line may be anything but text. */
            log_escape(escaped, (struct span){samples[j].bytes, samples[j].len});
            cJSON_AddStringToObject(item, "line", escaped);
            add_signed(item, "unix_ms", samples[j].unix_ms);
            cJSON_AddItemToArray(list, item);
        }
    }
}

static void add_listeners(cJSON *root, const struct figures *figures)
{
    cJSON *list = cJSON_AddArrayToObject(root, "listeners");

    for (size_t i = 0; i < figures->listeners_len; i++) {
        const struct listener_figures *listener = &figures->listeners[i];
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "kind", listener->kind);
        cJSON_AddStringToObject(item, "address", listener->address);
        add_number(item, "lines", listener->lines);
        add_number(item, "datagrams", listener->datagrams);
        add_number(item, "bytes", listener->bytes);
        add_number(item, "kernel_dropped", listener->dropped);
        add_number(item, "buffer_bytes", listener->buffer_bytes);
        cJSON_AddItemToArray(list, item);
    }
}

static void add_table(cJSON *root, const struct figures *figures)
{
    cJSON *group = cJSON_AddObjectToObject(root, "table");

    add_number(group, "keys", figures->keys);
    add_number(group, "keys_max", figures->keys_max);
    add_number(group, "bytes", figures->table_bytes);
    add_number(group, "overflow", figures->overflow);
    add_number(group, "fanout_overflow", figures->fanout_overflow);
    add_number(group, "fanout_left_out", figures->fanout_left_out);
}

static void add_appended(cJSON *root, const struct figures *figures)
{
    cJSON *group = cJSON_AddObjectToObject(root, "appended");

    add_number(group, "increments", figures->appended);
    add_number(group, "batches", figures->batches);
    add_number(group, "resent_batches", figures->resent_batches);
    add_number(group, "history_bytes", figures->history_bytes);
    add_number(group, "history_bytes_max", figures->history_bytes_max);
    add_number(group, "only_in_redis", figures->only_in_redis);
    add_age(group, "last_ms_ago", figures->appended_ago_ms);
}

static void add_spool(cJSON *root, const struct figures *figures)
{
    cJSON *group = cJSON_AddObjectToObject(root, "spool");

    add_number(group, "waiting", figures->on_disk);
    add_number(group, "to_replay", figures->to_replay);
    add_number(group, "bytes", figures->spool_bytes);
    add_number(group, "bytes_max", figures->spool_bytes_max);
    add_number(group, "increments", figures->spooled);
    add_number(group, "batches", figures->spooled_batches);
    add_number(group, "replayed_increments", figures->replayed);
    add_number(group, "replayed_batches", figures->replayed_batches);
    add_number(group, "errors", figures->spool_errors);
    add_number(group, "lost", figures->spool_lost);
}

static void add_idempotency(cJSON *root, const struct figures *figures)
{
    cJSON *group = cJSON_AddObjectToObject(root, "idempotency");

    add_number(group, "duplicates", figures->idempotent_duplicates);
    add_number(group, "conflicts", figures->idempotent_conflicts);
}

static void add_redis(cJSON *root, const struct figures *figures)
{
    cJSON *group = cJSON_AddObjectToObject(root, "redis");

    add_number(group, "connections_lost", figures->redis_lost);
    add_number(group, "errors", figures->redis_errors);
    add_number(group, "unreplicated", figures->unreplicated);
    add_number(group, "went_back", figures->went_back);
    add_number(group, "increments_lost", figures->lost);
    cJSON_AddBoolToObject(group, "ready", figures->redis_ready);
}

static void add_generation(cJSON *group, const char *name, uint64_t keys, int64_t age_ms)
{
    cJSON *generation = cJSON_AddObjectToObject(group, name);

    add_number(generation, "keys", keys);
    add_age(generation, "oldest_ms", age_ms);
}

/* As Redis told when it was last looked at. */
static void add_look(cJSON *root, const struct figures *figures)
{
    const struct reader_look *look = &figures->look;
    cJSON *group = cJSON_AddObjectToObject(root, "in_redis"), *generation;

    cJSON_AddStringToObject(group, "error", figures->look_error);
    add_age(group, "looked_ms_ago", figures->look_ago_ms);
    if (figures->look_ago_ms < 0)
        return;
    add_generation(group, "open", look->open_keys, look->open_age_ms);
    add_signed(cJSON_GetObjectItem(group, "open"), "increments", look->open_total);
    add_generation(group, "sealed", look->sealed_keys, look->sealed_age_ms);
    generation = cJSON_GetObjectItem(group, "sealed");
    if (look->sealed_total_known)
        add_signed(generation, "increments", look->sealed_total);
    else
        cJSON_AddNullToObject(generation, "increments");
    add_number(generation, "shards", look->sealed_shards);
    add_age(generation, "sealed_ms_ago", look->sealed_for_ms);
    add_age(group, "last_flush_ms_ago", look->released_ago_ms);
    add_number(group, "memory_bytes", look->memory_bytes);
    add_number(group, "memory_bytes_max", look->memory_bytes_max);
}

static void add_warnings(cJSON *root, const struct health *health)
{
    cJSON *list = cJSON_AddArrayToObject(root, "warnings");

    for (size_t i = 0; i < health->len; i++) {
        const struct warning *warning = &health->warnings[i];
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "code", warning_name(warning->code));
        cJSON_AddStringToObject(item, "severity", severity_name(warning->severity));
        cJSON_AddStringToObject(item, "text", warning->text);
        cJSON_AddStringToObject(item, "action", warning->action);
        cJSON_AddItemToArray(list, item);
    }
}

static void add_recent(cJSON *root, const struct figures *figures)
{
    cJSON *group = cJSON_AddObjectToObject(root, "recent");
    cJSON *lines = cJSON_AddArrayToObject(group, "lines");
    cJSON *rejected = cJSON_AddArrayToObject(group, "rejected");
    cJSON *dropped = cJSON_AddArrayToObject(group, "kernel_dropped");

    for (size_t i = 0; i < RECENT_SECONDS; i++) {
        cJSON_AddItemToArray(lines, cJSON_CreateNumber((double)figures->recent[i].lines));
        cJSON_AddItemToArray(rejected, cJSON_CreateNumber((double)figures->recent[i].rejected));
        cJSON_AddItemToArray(dropped, cJSON_CreateNumber((double)figures->recent[i].dropped));
    }
}

/* Takes the object. */
static char *give(cJSON *root, char *(*print)(const cJSON *))
{
    char *text = print(root);

    cJSON_Delete(root);
    return text;
}

char *status_json(const struct status_view *view, const struct figures *figures, const struct health *health,
                  bool recent)
{
    cJSON *root = cJSON_CreateObject();

    cJSON_AddStringToObject(root, "version", COUNTERD_VERSION);
    add_signed(root, "uptime_ms", figures->uptime_ms);
    cJSON_AddStringToObject(root, "namespace", figures->namespace);
    add_number(root, "shards", figures->shards);
    add_number(root, "workers", figures->workers);
    cJSON_AddBoolToObject(root, "ready", health->ready);
    cJSON_AddStringToObject(root, "not_ready", health_reason(health));
    add_warnings(root, health);
    add_received(root, figures);
    add_number(root, "accepted", figures->accepted);
    add_rejects(root, figures);
    add_samples(root, view);
    add_number(root, "fields_ignored", figures->fields_ignored);
    add_listeners(root, figures);
    add_number(root, "kernel_dropped", figures->dropped);
    add_table(root, figures);
    add_number(root, "pending", figures->pending);
    add_signed(root, "pending_oldest_ms", figures->pending_age_ms);
    add_signed(root, "memory_oldest_ms", figures->memory_age_ms);
    add_appended(root, figures);
    add_spool(root, figures);
    add_idempotency(root, figures);
    add_redis(root, figures);
    add_look(root, figures);
    if (recent)
        add_recent(root, figures);
    return give(root, recent ? cJSON_PrintUnformatted : cJSON_Print);
}

char *status_pending_json(const char *key, const struct reader_pending *pending)
{
    cJSON *root = cJSON_CreateObject();

    cJSON_AddStringToObject(root, "key", key);
    add_signed(root, "pending", pending->all);
    add_signed(root, "open", pending->open);
    add_signed(root, "sealed", pending->sealed);
    cJSON_AddBoolToObject(root, "known", pending->known);
    cJSON_AddBoolToObject(root, "whole", pending->whole);
    return give(root, cJSON_PrintUnformatted);
}

char *status_top_json(const struct reader_top_key *keys, size_t len)
{
    cJSON *root = cJSON_CreateObject();
    cJSON *list = cJSON_AddArrayToObject(root, "keys");

    for (size_t i = 0; i < len; i++) {
        cJSON *item = cJSON_CreateObject();
        cJSON_AddStringToObject(item, "key", keys[i].key);
        add_signed(item, "pending", keys[i].pending);
        cJSON_AddItemToArray(list, item);
    }
    return give(root, cJSON_PrintUnformatted);
}

char *status_error_json(const char *text)
{
    cJSON *root = cJSON_CreateObject();

    cJSON_AddStringToObject(root, "error", text);
    return give(root, cJSON_PrintUnformatted);
}
