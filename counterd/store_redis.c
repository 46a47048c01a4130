#include "counterd/store.h"

#include <assert.h>
#include <errno.h>
#include <event2/event.h>
#include <hiredis/hiredis.h>
#include <hiredis/async.h>
#include <hiredis/adapters/libevent.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/keyspace.h"
#include "lib/log.h"

#define RETRY_MS_MIN 100
#define RETRY_MS_MAX 5000

/* EVALSHA sha 7 keys... writer seq known_durable events */
#define APPEND_FIXED_ARGS (3 + SHARD_KEY_COUNT + 4)
#define NUMBER_BYTES      24

#define SHARD_KEYS_TEXT "7"
_Static_assert(SHARD_KEY_COUNT == 7, "the number of keys is spelled out above");

struct store {
    struct event_base *base;
    const struct config *config;
    struct store_callbacks callbacks;
    redisAsyncContext *redis; /* NULL between connections */
    struct event *retry;
    struct event *deadline; /* armed while an answer is owed */
    enum store_state state;
    unsigned attempt;  /* tries since the last time it was ready */
    unsigned owed;     /* answers */
    bool script_known; /* Redis has the script: EVALSHA will do */
    bool timed_out;
    /* Why the connection is being given up; the first reason stands. */
    bool giving_up, misfit;
    struct error error;
    /* Room for one append, as hiredis takes it. */
    const char **argv;
    size_t *argv_len;
    char (*numbers)[NUMBER_BYTES];
};

static void connect_redis(struct store *store);

static struct timeval timeval_ms(int64_t ms)
{
    return (struct timeval){.tv_sec = ms / 1000, .tv_usec = (ms % 1000) * 1000};
}

static void name_redis(const struct store *store, char *buf, size_t buf_bytes)
{
    redis_address_format(&store->config->redis.address, buf, buf_bytes);
}

static void schedule_retry(struct store *store)
{
    unsigned shift = store->attempt < 8 ? store->attempt : 8;
    int64_t ms = RETRY_MS_MIN << shift;
    struct timeval pause = timeval_ms(ms < RETRY_MS_MAX ? ms : RETRY_MS_MAX);

    store->attempt++;
    event_add(store->retry, &pause);
}

/* The connection is gone, or never came. */
static void lost(struct store *store, const char *text)
{
    char name[512];

    store->redis = NULL;
    store->owed = 0;
    event_del(store->deadline);
    name_redis(store, name, sizeof(name));
    if (!store->giving_up)
        error_set(&store->error, -EHOSTUNREACH, "Redis at %s: %s", name, text);
    store->state = store->misfit ? STORE_MISFIT : STORE_AWAY;
    schedule_retry(store);
    store->callbacks.on_lost(store->callbacks.context, store->state, &store->error);
}

static void give_up(struct store *store, bool misfit, const char *format, ...) PRINTF(3, 4);

/* Ends the connection from inside a callback of hiredis, which frees it when the callback returns. */
static void give_up(struct store *store, bool misfit, const char *format, ...)
{
    char name[512], text[512];
    va_list args;

    if (store->giving_up)
        return;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    name_redis(store, name, sizeof(name));
    error_set(&store->error, -EINVAL, "Redis at %s: %s", name, text);
    store->giving_up = true;
    store->misfit = misfit;
    redisAsyncFree(store->redis);
}

static void owe(struct store *store)
{
    struct timeval timeout = timeval_ms(store->config->redis.timeout_ms);

    store->owed++;
    event_add(store->deadline, &timeout);
}

/* An answer has come, so the ones behind it get their time anew. */
static void settle(struct store *store)
{
    struct timeval timeout = timeval_ms(store->config->redis.timeout_ms);

    store->owed--;
    if (store->owed > 0)
        event_add(store->deadline, &timeout);
    else
        event_del(store->deadline);
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

static void become_ready(struct store *store)
{
    store->state = STORE_READY;
    store->attempt = 0;
    store->callbacks.on_ready(store->callbacks.context);
}

/* Takes an answer of the introduction; false when there is none or it is an error, which has been dealt with.
 */
static bool take_answer(struct store *store, const redisReply *reply, const char *hint)
{
    if (!reply)
        return false;
    settle(store);
    if (reply->type != REDIS_REPLY_ERROR)
        return !store->giving_up;
    give_up(store, !is_passing(reply->str), "%s%s", reply->str, is_passing(reply->str) ? "" : hint);
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

static void on_read_shards(redisAsyncContext *redis, void *data, void *unused)
{
    struct store *store = redis->data;
    const redisReply *reply = data;
    char ours[NUMBER_BYTES];

    (void)unused;
    if (!take_answer(store, reply, ""))
        return;
    snprintf(ours, sizeof(ours), "%" PRId64, store->config->shards);
    if (reply->type != REDIS_REPLY_STRING || strcmp(reply->str, ours) != 0)
        give_up(store, true,
                "'shards' is %s here, but namespace '%s' was begun with %s; set 'shards' to that, or take "
                "another "
                "'namespace'",
                ours, store->config->namespace, reply->type == REDIS_REPLY_STRING ? reply->str : "none");
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
    struct store *store = redis->data;
    const redisReply *reply = data;

    (void)unused;
    if (!reply)
        return;
    settle(store);
    if (store->giving_up)
        return;
    /* Managed servers may forbid INFO: then we can't warn, and that is all. */
    if (reply->type == REDIS_REPLY_STRING)
        check_eviction(reply->str);
    become_ready(store);
}

static void ask(struct store *store, redisCallbackFn *callback, int argc, const char **argv)
{
    (void)redisAsyncCommandArgv(store->redis, callback, NULL, argc, argv, NULL);
    owe(store);
}

/* All of it in one go; the first answer that is an error ends the connection. */
static void introduce(struct store *store)
{
    const struct redis_address *address = &store->config->redis.address;
    char shards_key[REDIS_KEY_BYTES], shards[NUMBER_BYTES], database[NUMBER_BYTES];

    keyspace_shards_key(shards_key, store->config->namespace);
    snprintf(shards, sizeof(shards), "%" PRId64, store->config->shards);
    snprintf(database, sizeof(database), "%u", address->database);
    if (address->password[0] != '\0' && address->user[0] != '\0')
        ask(store, on_auth, 3, (const char *[]){"AUTH", address->user, address->password});
    else if (address->password[0] != '\0')
        ask(store, on_auth, 2, (const char *[]){"AUTH", address->password});
    ask(store, on_select, 2, (const char *[]){"SELECT", database});
    ask(store, on_record_shards, 4, (const char *[]){"SET", shards_key, shards, "NX"});
    ask(store, on_read_shards, 2, (const char *[]){"GET", shards_key});
    ask(store, on_info, 2, (const char *[]){"INFO", "memory"});
}

static void on_connect(const redisAsyncContext *redis, int status)
{
    struct store *store = redis->data;

    if (status == REDIS_OK)
        introduce(store);
    else
        lost(store, redis->errstr);
}

static void on_disconnect(const redisAsyncContext *redis, int status)
{
    struct store *store = redis->data;
    const char *why = redis->err ? redis->errstr : "connection closed";

    (void)status;
    /* A store that is being freed has let go of its connection before. */
    if (store)
        lost(store, store->timed_out ? "no answer within 'redis.timeout_ms'" : why);
}

static void on_retry(evutil_socket_t fd, short events, void *data)
{
    (void)fd;
    (void)events;
    connect_redis(data);
}

static void on_deadline(evutil_socket_t fd, short events, void *data)
{
    struct store *store = data;
    redisAsyncContext *redis = store->redis;
    bool connected = redis->c.flags & REDIS_CONNECTED;

    (void)fd;
    (void)events;
    store->timed_out = true;
    /* hiredis tells of the end only when there was a connection. */
    if (!connected)
        redis->data = NULL;
    redisAsyncFree(redis);
    if (!connected)
        lost(store, "no answer within 'redis.timeout_ms'");
}

static void connect_redis(struct store *store)
{
    const struct redis_address *address = &store->config->redis.address;
    struct timeval timeout = timeval_ms(store->config->redis.timeout_ms);
    redisAsyncContext *redis = address->path[0] != '\0' ? redisAsyncConnectUnix(address->path)
                                                        : redisAsyncConnect(address->host, address->port);

    store->state = STORE_CONNECTING;
    store->script_known = store->timed_out = store->giving_up = store->misfit = false;
    if (!redis || redis->err || redisLibeventAttach(redis, store->base) != REDIS_OK) {
        char text[256];
        snprintf(text, sizeof(text), "%s", redis && redis->err ? redis->errstr : "out of memory");
        if (redis)
            redisAsyncFree(redis);
        lost(store, text);
        return;
    }
    redis->data = store;
    store->redis = redis;
    redisAsyncSetConnectCallback(redis, on_connect);
    redisAsyncSetDisconnectCallback(redis, on_disconnect);
    event_add(store->deadline, &timeout);
}

struct store *store_new(struct event_base *base, const struct config *config, size_t batch_keys_max,
                        const struct store_callbacks *callbacks)
{
    struct store *store = calloc(1, sizeof(*store));
    size_t args = APPEND_FIXED_ARGS + 2 * batch_keys_max;
    struct timeval now = {0};

    if (!store)
        return NULL;
    store->base = base;
    store->config = config;
    store->callbacks = *callbacks;
    store->argv = calloc(args, sizeof(*store->argv));
    store->argv_len = calloc(args, sizeof(*store->argv_len));
    store->numbers = calloc(batch_keys_max, sizeof(*store->numbers));
    store->retry = evtimer_new(base, on_retry, store);
    store->deadline = evtimer_new(base, on_deadline, store);
    if (!store->argv || !store->argv_len || !store->numbers || !store->retry || !store->deadline) {
        store_free(store);
        return NULL;
    }
    event_add(store->retry, &now);
    return store;
}

void store_free(struct store *store)
{
    if (!store)
        return;
    if (store->redis) {
        store->redis->data = NULL;
        redisAsyncFree(store->redis);
    }
    if (store->retry)
        event_free(store->retry);
    if (store->deadline)
        event_free(store->deadline);
    free(store->argv);
    free(store->argv_len);
    free(store->numbers);
    free(store);
}

bool store_ready(const struct store *store)
{
    return store->state == STORE_READY;
}

/* {'OK'|'DUP', durable} | {'GAP', last} | {'FULL', durable}; false when it is none of these. */
static bool read_append_reply(const redisReply *reply, enum store_reply *ret_reply, uint64_t *ret_seq)
{
    const char *word;

    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        reply->element[0]->type != REDIS_REPLY_STRING || reply->element[1]->type != REDIS_REPLY_STRING)
        return false;
    word = reply->element[0]->str;
    *ret_seq = strtoull(reply->element[1]->str, NULL, 10);
    if (strcmp(word, "OK") == 0 || strcmp(word, "DUP") == 0)
        *ret_reply = STORE_APPLIED;
    else if (strcmp(word, "GAP") == 0)
        *ret_reply = STORE_GAP;
    else if (strcmp(word, "FULL") == 0)
        *ret_reply = STORE_REFUSED;
    else
        return false;
    return true;
}

static void on_append(redisAsyncContext *redis, void *data, void *shard_data)
{
    struct store *store = redis->data;
    const redisReply *reply = data;
    uint32_t shard = (uint32_t)(uintptr_t)shard_data;
    enum store_reply outcome = STORE_REFUSED;
    const char *why = "a score of this shard is at its limit until the next flush";
    uint64_t seq = 0;

    /* The connection has ended: on_lost() tells. */
    if (!reply || !store)
        return;
    settle(store);
    if (reply->type == REDIS_REPLY_ERROR) {
        why = reply->str;
        /* After SCRIPT FLUSH; the text of the script goes along next time. */
        if (starts_with(reply->str, "NOSCRIPT"))
            store->script_known = false;
        /* We talk to a replica now, as after a failover: look again for who is in charge. */
        if (starts_with(reply->str, "READONLY"))
            give_up(store, false, "%s", reply->str);
    } else if (!read_append_reply(reply, &outcome, &seq)) {
        why = "an answer that is not one of the append script's";
    } else {
        store->script_known = true;
    }
    store->callbacks.on_reply(store->callbacks.context, shard, outcome, seq, why);
}

static void push(struct store *store, int *argc, const char *ptr, size_t len)
{
    store->argv[*argc] = ptr;
    store->argv_len[*argc] = len;
    (*argc)++;
}

/* EVALSHA, or EVAL with the script's text; then its keys and what every script of a writer takes. */
static int push_script(struct store *store, const struct script *script, bool known,
                       const struct shard_keys *keys)
{
    int argc = 0;

    push(store, &argc, known ? "EVALSHA" : "EVAL", strlen(known ? "EVALSHA" : "EVAL"));
    push(store, &argc, known ? script->sha1 : script->text, strlen(known ? script->sha1 : script->text));
    push(store, &argc, SHARD_KEYS_TEXT, strlen(SHARD_KEYS_TEXT));
    for (int i = 0; i < SHARD_KEY_COUNT; i++)
        push(store, &argc, keys->name[i], strlen(keys->name[i]));
    return argc;
}

static void send_script(struct store *store, redisCallbackFn *callback, uint32_t shard, int argc)
{
    /* When it can't even be queued (the connection is being given up, or no memory), the deadline deals with
     * it. */
    (void)redisAsyncCommandArgv(store->redis, callback, (void *)(uintptr_t)shard, argc, store->argv,
                                store->argv_len);
    owe(store);
}

void store_append(struct store *store, uint32_t shard, const char *writer, uint64_t known_durable,
                  const struct batch *batch)
{
    uint64_t fixed[] = {batch->seq, known_durable, batch->events};
    char fixed_text[ARRAY_LEN(fixed)][NUMBER_BYTES];
    struct shard_keys keys;
    struct span key;
    int64_t delta;
    size_t at = 0;
    int argc;

    assert(store->state == STORE_READY);
    keyspace_shard_keys(&keys, store->config->namespace, shard);
    argc = push_script(store, &scripts[SCRIPT_APPEND], store->script_known, &keys);
    push(store, &argc, writer, strlen(writer));
    for (size_t i = 0; i < ARRAY_LEN(fixed); i++) {
        int len = snprintf(fixed_text[i], NUMBER_BYTES, "%" PRIu64, fixed[i]);
        push(store, &argc, fixed_text[i], (size_t)len);
    }
    for (size_t i = 0; batch_next_entry(batch, &at, &key, &delta); i++) {
        int len = snprintf(store->numbers[i], NUMBER_BYTES, "%" PRId64, delta);
        push(store, &argc, key.ptr, key.len);
        push(store, &argc, store->numbers[i], (size_t)len);
    }
    send_script(store, on_append, shard, argc);
}

static void on_probe(redisAsyncContext *redis, void *data, void *shard_data)
{
    struct store *store = redis->data;
    const redisReply *reply = data;
    uint64_t seq;

    if (!reply || !store)
        return;
    settle(store);
    /* An error here is one that the next append will meet too, and tell. */
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        reply->element[0]->type != REDIS_REPLY_STRING || reply->element[1]->type != REDIS_REPLY_STRING)
        return;
    seq = strtoull(reply->element[1]->str, NULL, 10);
    if (strcmp(reply->element[0]->str, "GAP") == 0)
        store->callbacks.on_gap(store->callbacks.context, (uint32_t)(uintptr_t)shard_data, seq);
    else
        store->callbacks.on_durable(store->callbacks.context, (uint32_t)(uintptr_t)shard_data, seq);
}

void store_probe(struct store *store, uint32_t shard, const char *writer, uint64_t known_durable,
                 uint64_t seq)
{
    char seq_text[NUMBER_BYTES], durable_text[NUMBER_BYTES];
    struct shard_keys keys;
    int argc;

    assert(store->state == STORE_READY);
    keyspace_shard_keys(&keys, store->config->namespace, shard);
    snprintf(seq_text, sizeof(seq_text), "%" PRIu64, seq);
    snprintf(durable_text, sizeof(durable_text), "%" PRIu64, known_durable);
    /* So rare that its text may go along. */
    argc = push_script(store, &scripts[SCRIPT_PROBE], false, &keys);
    push(store, &argc, writer, strlen(writer));
    push(store, &argc, seq_text, strlen(seq_text));
    push(store, &argc, durable_text, strlen(durable_text));
    send_script(store, on_probe, shard, argc);
}

/* The verdict of store_check(). */
struct check {
    struct event_base *base;
    enum store_state state;
    struct error *error;
};

static void on_check_ready(void *context)
{
    struct check *check = context;

    check->state = STORE_READY;
    event_base_loopbreak(check->base);
}

static void on_check_lost(void *context, enum store_state state, const struct error *error)
{
    struct check *check = context;

    check->state = state;
    *check->error = *error;
    event_base_loopbreak(check->base);
}

int store_check(const struct config *config, int64_t wait_ms, struct error *error)
{
    struct check check = {.state = STORE_CONNECTING, .error = error, .base = event_base_new()};
    struct store_callbacks callbacks = {
        .context = &check, .on_ready = on_check_ready, .on_lost = on_check_lost};
    struct timeval wait = timeval_ms(wait_ms);
    struct store *store = check.base ? store_new(check.base, config, 1, &callbacks) : NULL;

    if (store) {
        event_base_loopexit(check.base, &wait);
        event_base_dispatch(check.base);
    }
    store_free(store);
    if (check.base)
        event_base_free(check.base);
    switch (check.state) {
    case STORE_READY:
        return 0;
    case STORE_MISFIT:
        return -EINVAL;
    case STORE_AWAY:
        return -EHOSTUNREACH;
    case STORE_CONNECTING:
        break;
    }
    return error_set(error, -EHOSTUNREACH,
                     store ? "Redis did not answer within %" PRId64 " ms" : "out of memory", wait_ms);
}
