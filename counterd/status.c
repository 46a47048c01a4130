#include "counterd/status.h"

#include <cjson/cJSON.h>
#include <stdio.h>

#include "counterd/version.h"
#include "lib/clock.h"
#include "lib/log.h"

#define SUM(view, member) status_sum(view, offsetof(struct stats, member))

/* How a group of the JSON is made of counters. */
struct figure {
    const char *name;
    size_t offset; /* in struct stats */
};

#define FIGURE(name, member)                                                                                 \
    {                                                                                                        \
        name, offsetof(struct stats, member)                                                                 \
    }

static const struct figure received[] = {
    FIGURE("datagrams", datagrams),
    FIGURE("bytes", bytes),
    FIGURE("connections", connections),
    FIGURE("connections_refused", connections_refused),
};

static const struct figure appended[] = {
    FIGURE("increments", appended),
    FIGURE("batches", appended_batches),
    FIGURE("resent_batches", resent_batches),
    FIGURE("history_bytes", history_bytes),
};

static const struct figure redis[] = {
    FIGURE("connections_lost", redis_lost), FIGURE("errors", redis_errors),
    FIGURE("unreplicated", unreplicated),   FIGURE("went_back", gaps),
    FIGURE("increments_lost", lost),
};

static const struct figure idempotency[] = {
    FIGURE("duplicates", idempotent_duplicates),
    FIGURE("conflicts", idempotent_conflicts),
};

uint64_t status_sum(const struct status_view *view, size_t stats_offset)
{
    uint64_t sum = 0;

    for (size_t i = 0; i < view->stats_len; i++)
        sum += counter_get((const counter *)((const char *)view->stats[i] + stats_offset));
    return sum;
}

static bool redis_ready(const struct status_view *view)
{
    for (size_t i = 0; i < view->stats_len; i++)
        if (!atomic_load(&view->stats[i]->redis_ready))
            return false;
    return true;
}

bool status_ready(const struct status_view *view, const char **ret_reason)
{
    *ret_reason = "";
    if (view->stopping)
        *ret_reason = "stopping";
    else if (!redis_ready(view))
        *ret_reason = "Redis can't be used; counting goes on in memory, see the log";
    return (*ret_reason)[0] == '\0';
}

static void add_number(cJSON *object, const char *name, uint64_t number)
{
    cJSON_AddNumberToObject(object, name, (double)number);
}

static cJSON *add_figures(cJSON *root, const char *name, const struct status_view *view,
                          const struct figure *figures, size_t len)
{
    cJSON *group = cJSON_AddObjectToObject(root, name);

    for (size_t i = 0; i < len; i++)
        add_number(group, figures[i].name, status_sum(view, figures[i].offset));
    return group;
}

static void add_rejects(cJSON *root, const struct status_view *view)
{
    cJSON *group = cJSON_AddObjectToObject(root, "rejected");
    uint64_t total = 0;

    for (int i = REJECT_NONE + 1; i < REJECT_COUNT; i++) {
        uint64_t lines = status_sum(view, offsetof(struct stats, rejected) + (size_t)i * sizeof(counter));
        add_number(group, reject_name((enum reject)i), lines);
        total += lines;
    }
    add_number(group, "total", total);
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
            add_number(item, "unix_ms", (uint64_t)samples[j].unix_ms);
            cJSON_AddItemToArray(list, item);
        }
    }
}

/* Workers that hear on the same address are told as one. */
static cJSON *find_listener(cJSON *list, const struct listener *listener)
{
    cJSON *item;

    cJSON_ArrayForEach(item, list)
    {
        if (strcmp(cJSON_GetObjectItem(item, "address")->valuestring, listener->name) == 0 &&
            strcmp(cJSON_GetObjectItem(item, "kind")->valuestring, listener_kind_name(listener->kind)) == 0)
            return item;
    }
    return NULL;
}

static void add_to(cJSON *object, const char *name, uint64_t number)
{
    cJSON *item = cJSON_GetObjectItem(object, name);

    if (item)
        cJSON_SetNumberValue(item, item->valuedouble + (double)number);
    else
        add_number(object, name, number);
}

static uint64_t add_listeners(cJSON *root, const struct status_view *view)
{
    cJSON *list = cJSON_AddArrayToObject(root, "listeners");
    uint64_t dropped = 0;

    for (size_t i = 0; i < view->workers_len; i++) {
        size_t len;
        const struct listener *listeners = worker_listeners(view->workers[i], &len);
        for (size_t j = 0; j < len; j++) {
            cJSON *item = find_listener(list, &listeners[j]);
            if (!item) {
                item = cJSON_CreateObject();
                cJSON_AddStringToObject(item, "kind", listener_kind_name(listeners[j].kind));
                cJSON_AddStringToObject(item, "address", listeners[j].name);
                cJSON_AddItemToArray(list, item);
            }
            add_to(item, "datagrams", counter_get(&listeners[j].datagrams));
            add_to(item, "bytes", counter_get(&listeners[j].bytes));
            add_to(item, "kernel_dropped", counter_get(&listeners[j].dropped));
            add_to(item, "buffer_bytes", (uint64_t)listeners[j].buffer_bytes);
            dropped += counter_get(&listeners[j].dropped);
        }
    }
    return dropped;
}

char *status_json(const struct status_view *view)
{
    cJSON *root = cJSON_CreateObject(), *group;
    const char *reason;
    bool ready = status_ready(view, &reason);
    /* What comes later in a line's life is read first, so that traffic in between makes nothing look lost;
     * and who sees n lines received and none pending may rely on all n. */
    uint64_t lines = SUM(view, lines), stored = SUM(view, appended), accepted = SUM(view, accepted);
    char *text;

    cJSON_AddStringToObject(root, "version", COUNTERD_VERSION);
    add_number(root, "uptime_ms", (uint64_t)(clock_monotonic_ms() - view->started_ms));
    cJSON_AddStringToObject(root, "namespace", view->config->namespace);
    add_number(root, "shards", (uint64_t)view->config->shards);
    add_number(root, "workers", view->workers_len);
    cJSON_AddBoolToObject(root, "ready", ready);
    cJSON_AddStringToObject(root, "not_ready", reason);
    group = add_figures(root, "received", view, received, ARRAY_LEN(received));
    add_number(group, "lines", lines);
    add_number(group, "truncated_datagrams", SUM(view, truncated));
    add_number(root, "accepted", accepted);
    add_rejects(root, view);
    add_samples(root, view);
    add_number(root, "fields_ignored", SUM(view, fields_ignored));
    add_number(root, "kernel_dropped", add_listeners(root, view));
    group = cJSON_AddObjectToObject(root, "table");
    add_number(group, "keys", SUM(view, keys));
    add_number(group, "keys_max", (uint64_t)view->config->keys_max * view->stats_len);
    add_number(group, "bytes", SUM(view, table_bytes));
    add_number(group, "overflow", SUM(view, overflow));
    add_number(group, "fanout_overflow", SUM(view, fanout_overflow));
    add_number(group, "fanout_left_out", SUM(view, fanout_left_out));
    add_number(root, "pending", accepted > stored ? accepted - stored : 0);
    add_figures(root, "appended", view, appended, ARRAY_LEN(appended));
    add_figures(root, "idempotency", view, idempotency, ARRAY_LEN(idempotency));
    group = add_figures(root, "redis", view, redis, ARRAY_LEN(redis));
    cJSON_AddBoolToObject(group, "ready", redis_ready(view));
    text = cJSON_Print(root);
    cJSON_Delete(root);
    return text;
}
