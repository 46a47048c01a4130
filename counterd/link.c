#include "counterd/link.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <hiredis/hiredis.h>
#include <hiredis/async.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "counterd/dial.h"
#include "lib/clock.h"
#include "lib/keyspace.h"
#include "lib/log.h"

#define RETRY_MS_MIN 100
#define RETRY_MS_MAX 5000

#define NUMBER_BYTES 24

struct link {
    struct event_base *base;
    const struct config *config;
    struct link_callbacks callbacks;
    redisAsyncContext *redis; /* NULL between connections */
    struct event *retry;
    struct event *deadline; /* armed while an answer is owed */
    enum link_state state;
    unsigned attempt;    /* tries since the last time it was ready */
    unsigned owed;       /* answers */
    int64_t patience_ms; /* the most that any of those may take longer */
    bool timed_out;
    /* Why the connection is being given up; the first reason stands. */
    bool giving_up, misfit;
    struct error error;
};

/* Who is to be told of an answer. */
struct sent {
    link_callback *callback;
    void *tag;
};

static void connect_redis(struct link *link);

static void name_redis(const struct link *link, char *buf, size_t buf_bytes)
{
    redis_address_format(&link->config->redis.address, buf, buf_bytes);
}

static void schedule_retry(struct link *link)
{
    unsigned shift = link->attempt < 8 ? link->attempt : 8;
    int64_t ms = RETRY_MS_MIN << shift;
    struct timeval pause = clock_timeval(ms < RETRY_MS_MAX ? ms : RETRY_MS_MAX);

    link->attempt++;
    event_add(link->retry, &pause);
}

/* The connection is gone, or never came. */
static void lost(struct link *link, const char *text)
{
    char name[512];

    link->redis = NULL;
    link->owed = 0;
    link->patience_ms = 0;
    event_del(link->deadline);
    name_redis(link, name, sizeof(name));
    if (!link->giving_up)
        error_set(&link->error, -EHOSTUNREACH, "Redis at %s: %s", name, text);
    link->state = link->misfit ? LINK_MISFIT : LINK_AWAY;
    schedule_retry(link);
    link->callbacks.on_lost(link->callbacks.context, link->state, &link->error);
}

static void give_up(struct link *link, bool misfit, const char *format, ...) PRINTF(3, 4);

/* Ends the connection from inside a callback of hiredis, which frees it when the callback returns. */
static void give_up(struct link *link, bool misfit, const char *format, ...)
{
    char name[512], text[512];
    va_list args;

    if (link->giving_up)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    name_redis(link, name, sizeof(name));
    error_set(&link->error, -EINVAL, "Redis at %s: %s", name, text);
    link->giving_up = true;
    link->misfit = misfit;
    redisAsyncFree(link->redis);
}

static void arm_deadline(struct link *link)
{
    struct timeval timeout = clock_timeval(link->config->redis.timeout_ms + link->patience_ms);

    event_add(link->deadline, &timeout);
}

static void owe(struct link *link)
{
    link->owed++;
    arm_deadline(link);
}

/* An answer has come, so the ones behind it get their time anew. */
static void settle(struct link *link)
{
    link->owed--;
    if (link->owed > 0) {
        arm_deadline(link);
    } else {
        event_del(link->deadline);
        link->patience_ms = 0;
    }
}

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* Errors that pass by themselves; all others, while we introduce ourselves, are a matter of configuration. */
static bool is_passing(const char *error)
{
    static const char *const prefixes[] = {
        "LOADING",     "BUSY",     "MASTERDOWN", "READONLY",   "OOM",
        "CLUSTERDOWN", "TRYAGAIN", "MISCONF",    "NOREPLICAS", "ERR max number of clients"};

    for (size_t i = 0; i < ARRAY_LEN(prefixes); i++)
        if (starts_with(error, prefixes[i]))
            return true;
    return false;
}

static void become_ready(struct link *link)
{
    link->state = LINK_READY;
    link->attempt = 0;
    link->callbacks.on_ready(link->callbacks.context);
}

/* Takes an answer of the introduction; false when there is none or it is an error, which has been dealt with.
 */
static bool take_answer(struct link *link, const redisReply *reply, const char *hint)
{
    if (!reply)
        return false;
    settle(link);
    if (reply->type != REDIS_REPLY_ERROR)
        return !link->giving_up;
    give_up(link, !is_passing(reply->str), "%s%s", reply->str, is_passing(reply->str) ? "" : hint);
    return false;
}

static void on_auth(redisAsyncContext *redis, void *reply, void *unused)
{
    (void)unused;
    (void)take_answer(redis->data, reply,
                      "; check user and password in 'redis.url' or 'redis.password_file'");
}

static void on_select(redisAsyncContext *redis, void *reply, void *unused)
{
    (void)unused;
    (void)take_answer(redis->data, reply,
                      "; check user, password and database in 'redis.url' and 'redis.password_file'");
}

static void on_record_shards(redisAsyncContext *redis, void *reply, void *unused)
{
    (void)unused;
    (void)take_answer(redis->data, reply, "; the user needs all commands on the keys of its namespace");
}

static void on_read_shards(redisAsyncContext *redis, void *data, void *asked)
{
    struct link *link = redis->data;
    const redisReply *reply = data;
    const struct lane *lane = asked;
    char ours[NUMBER_BYTES];

    if (!take_answer(link, reply, ""))
        return;
    snprintf(ours, sizeof(ours), "%" PRId64, link->config->shards);
    if (reply->type != REDIS_REPLY_STRING || strcmp(reply->str, ours) != 0)
        give_up(link, true,
                "'shards' is %s here, but namespace '%s' was begun with %s; set 'shards' to that, or take "
                "another "
                "'namespace'",
                ours, lane->namespace, reply->type == REDIS_REPLY_STRING ? reply->str : "none");
}

/* Counts that can be evicted are counts that get lost. */
static void check_eviction(const char *info)
{
    static const char field[] = "maxmemory_policy:";
    const char *policy = strstr(info, field);

    if (!policy)
        return;
    policy += strlen(field);
    if (!starts_with(policy, "noeviction"))
        log_event(LOG_LEVEL_WARN, "redis_may_evict",
                  "maxmemory_policy=%.*s hint=\"counts may be evicted; set maxmemory-policy noeviction\"",
                  (int)strcspn(policy, "\r\n"), policy);
}

static void on_info(redisAsyncContext *redis, void *data, void *unused)
{
    struct link *link = redis->data;
    const redisReply *reply = data;

    (void)unused;
    if (!reply)
        return;
    settle(link);
    if (link->giving_up)
        return;
    /* Managed servers may forbid INFO: then we can't warn, and that is all. */
    if (reply->type == REDIS_REPLY_STRING)
        check_eviction(reply->str);
    become_ready(link);
}

static void ask(struct link *link, redisCallbackFn *callback, const struct lane *lane, int argc,
                const char **argv)
{
    (void)redisAsyncCommandArgv(link->redis, callback, (void *)(uintptr_t)lane, argc, argv, NULL);
    owe(link);
}

/* Each lane has its record. */
static void ask_for_shards(struct link *link, const struct lane *lane)
{
    char key[REDIS_KEY_BYTES], shards[NUMBER_BYTES];

    keyspace_shards_key(key, lane->namespace);
    snprintf(shards, sizeof(shards), "%" PRId64, link->config->shards);
    ask(link, on_record_shards, NULL, 4, (const char *[]){"SET", key, shards, "NX"});
    ask(link, on_read_shards, lane, 2, (const char *[]){"GET", key});
}

/* All of it in one go; the first answer that is an error ends the connection. */
static void introduce(struct link *link)
{
    unsigned answers = dial_introduce(link->redis, &link->config->redis.address, on_auth, on_select);

    for (; answers > 0; answers--)
        owe(link);
    for (size_t i = 0; i < link->config->lanes_len; i++)
        ask_for_shards(link, &link->config->lanes[i]);
    ask(link, on_info, NULL, 2, (const char *[]){"INFO", "memory"});
}

static void on_connect(const redisAsyncContext *redis, int status)
{
    struct link *link = redis->data;

    if (status == REDIS_OK)
        introduce(link);
    else
        lost(link, redis->errstr);
}

static void on_disconnect(const redisAsyncContext *redis, int status)
{
    struct link *link = redis->data;
    const char *why = redis->err ? redis->errstr : "connection closed";

    (void)status;
    /* A link that is being freed has let go of its connection before. */
    if (link)
        lost(link, link->timed_out ? "no answer within 'redis.timeout_ms'" : why);
}

static void on_retry(evutil_socket_t fd, short events, void *data)
{
    (void)fd;
    (void)events;
    connect_redis(data);
}

static void on_deadline(evutil_socket_t fd, short events, void *data)
{
    struct link *link = data;
    redisAsyncContext *redis = link->redis;
    bool connected = redis->c.flags & REDIS_CONNECTED;

    (void)fd;
    (void)events;
    link->timed_out = true;
    /* hiredis tells of the end only when there was a connection. */
    if (!connected)
        redis->data = NULL;
    redisAsyncFree(redis);
    if (!connected)
        lost(link, "no answer within 'redis.timeout_ms'");
}

static void connect_redis(struct link *link)
{
    struct timeval timeout = clock_timeval(link->config->redis.timeout_ms);
    char why[256];
    redisAsyncContext *redis = dial(&link->config->redis.address, link->base, why, sizeof(why));

    link->state = LINK_CONNECTING;
    link->timed_out = link->giving_up = link->misfit = false;
    if (!redis) {
        lost(link, why);
        return;
    }
    redis->data = link;
    link->redis = redis;
    redisAsyncSetConnectCallback(redis, on_connect);
    redisAsyncSetDisconnectCallback(redis, on_disconnect);
    event_add(link->deadline, &timeout);
}

struct link *link_new(struct event_base *base, const struct config *config,
                      const struct link_callbacks *callbacks)
{
    struct link *link = calloc(1, sizeof(*link));
    struct timeval now = {0};

    if (!link)
        return NULL;
    link->base = base;
    link->config = config;
    link->callbacks = *callbacks;
    link->retry = evtimer_new(base, on_retry, link);
    link->deadline = evtimer_new(base, on_deadline, link);
    if (!link->retry || !link->deadline) {
        link_free(link);
        return NULL;
    }
    /* From the loop, so that no callback comes before the caller has what we return. */
    event_add(link->retry, &now);
    return link;
}

void link_free(struct link *link)
{
    if (!link)
        return;
    if (link->redis) {
        link->redis->data = NULL;
        redisAsyncFree(link->redis);
    }
    if (link->retry)
        event_free(link->retry);
    if (link->deadline)
        event_free(link->deadline);
    free(link);
}

bool link_ready(const struct link *link)
{
    return link->state == LINK_READY;
}

void link_hurry(struct link *link)
{
    struct timeval now = {0};

    link->attempt = 0;
    if (event_pending(link->retry, EV_TIMEOUT, NULL))
        event_add(link->retry, &now);
}

static void on_answer(redisAsyncContext *redis, void *reply, void *data)
{
    struct link *link = redis->data;
    struct sent sent = *(struct sent *)data;

    free(data);
    if (!link)
        return;
    if (reply)
        settle(link);
    sent.callback(link->callbacks.context, sent.tag, reply);
}

bool link_send(struct link *link, const struct link_command *command)
{
    struct sent *sent = malloc(sizeof(*sent));
    bool queued = false;

    assert(link->state == LINK_READY);
    if (sent && command->bytes.ptr) {
        *sent = (struct sent){command->callback, command->tag};
        queued = redisAsyncFormattedCommand(link->redis, on_answer, sent, command->bytes.ptr,
                                            command->bytes.len) == REDIS_OK;
    }
    if (!queued)
        free(sent);
    if (command->patience_ms > link->patience_ms)
        link->patience_ms = command->patience_ms;
    /* Also when it was not queued: then the deadline ends the connection. */
    owe(link);
    return queued;
}

void link_give_up(struct link *link, const char *why)
{
    give_up(link, false, "%s", why);
}

/* The verdict of link_check(). */
struct check {
    struct event_base *base;
    enum link_state state;
    struct error *error;
};

static void on_check_ready(void *context)
{
    struct check *check = context;

    check->state = LINK_READY;
    event_base_loopbreak(check->base);
}

static void on_check_lost(void *context, enum link_state state, const struct error *error)
{
    struct check *check = context;

    check->state = state;
    *check->error = *error;
    event_base_loopbreak(check->base);
}

int link_check(const struct config *config, int64_t wait_ms, struct error *error)
{
    struct check check = {.state = LINK_CONNECTING, .error = error, .base = event_base_new()};
    struct link_callbacks callbacks = {
        .context = &check, .on_ready = on_check_ready, .on_lost = on_check_lost};
    struct timeval wait = clock_timeval(wait_ms);
    struct link *link = check.base ? link_new(check.base, config, &callbacks) : NULL;

    if (link) {
        event_base_loopexit(check.base, &wait);
        event_base_dispatch(check.base);
    }
    link_free(link);
    if (check.base)
        event_base_free(check.base);
    switch (check.state) {
    case LINK_READY:
        return 0;
    case LINK_MISFIT:
        return -EINVAL;
    case LINK_AWAY:
        return -EHOSTUNREACH;
    case LINK_CONNECTING:
        break;
    }
    return error_set(error, -EHOSTUNREACH,
                     link ? "Redis did not answer within %" PRId64 " ms" : "out of memory", wait_ms);
}
