#include "flusher/redis.h"

#include <assert.h>
#include <errno.h>
#include <hiredis/hiredis.h>
#include <stdio.h>
#include <stdlib.h>

#include "flusher/failure.h"
#include "flusher/whole.h"
#include "lib/clock.h"

/* EVALSHA, the script, the number of keys, and the keys. */
#define SCRIPT_WORDS (3 + SHARD_KEY_COUNT)

struct redis {
    const struct config *config;
    redisContext *connection; /* NULL = none */
    uint64_t connections;     /* so far */
    bool known[SCRIPT_COUNT]; /* scripts that the server had when this connection last ran them */
};

int redis_new(const struct config *config, struct redis **ret_redis, struct error *error)
{
    struct redis *redis = calloc(1, sizeof(*redis));

    if (!redis)
        return error_set(error, -ENOMEM, "out of memory");
    redis->config = config;
    *ret_redis = redis;
    return 0;
}

static void disconnect(struct redis *redis)
{
    if (redis->connection)
        redisFree(redis->connection);
    redis->connection = NULL;
    memset(redis->known, 0, sizeof(redis->known));
}

void redis_free(struct redis *redis)
{
    if (!redis)
        return;
    disconnect(redis);
    free(redis);
}

/* --- failures --- */

struct refusal {
    const char *prefix; /* of Redis's error reply */
    int failure;
    const char *advice; /* what to do next */
};

static const struct refusal refusals[] = {
    {"NOAUTH", FAILURE_CONFIG, "; give a password in 'redis.password_file' or 'redis.url'"},
    {"WRONGPASS", FAILURE_CONFIG, "; see 'redis.password_file' and 'redis.url'"},
    {"ERR invalid password", FAILURE_CONFIG, "; see 'redis.password_file' and 'redis.url'"},
    {"ERR AUTH", FAILURE_CONFIG, "; this Redis has no password: leave it out"},
    {"ERR Client sent AUTH", FAILURE_CONFIG, "; this Redis has no password: leave it out"},
    {"NOPERM", FAILURE_CONFIG, "; allow this user the scripts' commands and keys (ACL SETUSER)"},
    {"ERR DB index", FAILURE_CONFIG, "; see the database in 'redis.url'"},
    {"ERR invalid DB index", FAILURE_CONFIG, "; see the database in 'redis.url'"},
    {"ERR SELECT", FAILURE_CONFIG, "; see the database in 'redis.url'"},
    {"MOVED", FAILURE_CONFIG, "; this is a Redis Cluster, which this version cannot use"},
    {"ERR max number of clients", FAILURE_UNAVAILABLE, "; raise Redis's maxclients"},
    {"LOADING", FAILURE_LATER, ""},
    {"READONLY", FAILURE_LATER, "; this is a replica: 'redis.url' has to lead to the primary"},
    {"OOM", FAILURE_LATER, "; raise Redis's maxmemory"},
};

static int refuse(const char *text, struct error *error)
{
    for (size_t i = 0; i < ARRAY_LEN(refusals); i++)
        if (strncmp(text, refusals[i].prefix, strlen(refusals[i].prefix)) == 0)
            return error_set(error, refusals[i].failure, "Redis: %s%s", text, refusals[i].advice);
    return error_set(error, FAILURE_LATER, "Redis: %s", text);
}

static int lose_connection(struct redis *redis, const char *what, struct error *error)
{
    char url[REDIS_KEY_BYTES + HOST_LEN_MAX];
    bool timed_out = redis->connection && redis->connection->err == REDIS_ERR_IO && errno == EAGAIN;
    const char *reason = timed_out           ? "no answer within redis.timeout_ms"
                         : redis->connection ? redis->connection->errstr
                                             : "out of memory";

    redis_address_format(&redis->config->redis.address, url, sizeof(url));
    error_set(error, FAILURE_UNAVAILABLE, "%s at %s: %s", what, url, reason);
    disconnect(redis);
    return FAILURE_UNAVAILABLE;
}

static bool is_error(const redisReply *reply, const char *prefix)
{
    assert(reply);
    return reply->type == REDIS_REPLY_ERROR && strncmp(reply->str, prefix, strlen(prefix)) == 0;
}

int reply_check(const struct redisReply *reply, struct error *error)
{
    return is_error(reply, "") ? refuse(reply->str, error) : 0;
}

int reply_misunderstood(const char *what, struct error *error)
{
    return error_set(
        error, FAILURE_LATER,
        "Redis: an answer to '%s' that this version does not understand; nothing was done with it", what);
}

/* --- commands --- */

int redis_receive(struct redis *redis, struct redisReply **ret_reply, struct error *error)
{
    redisReply *reply = NULL;

    errno = 0;
    if (redisGetReply(redis->connection, (void **)&reply) != REDIS_OK)
        return lose_connection(redis, "the connection to Redis was lost", error);
    *ret_reply = reply;
    return 0;
}

/* Sends and waits. Gives the reply, also when it is an error. */
static int exchange(struct redis *redis, int argc, const char **argv, const size_t *lengths,
                    redisReply **ret_reply, struct error *error)
{
    if (redisAppendCommandArgv(redis->connection, argc, argv, lengths) != REDIS_OK)
        return lose_connection(redis, "can't send to Redis", error);
    return redis_receive(redis, ret_reply, error);
}

/* Gives a reply that is no error; `ret_reply` may be NULL. */
static int give(redisReply *reply, redisReply **ret_reply, struct error *error)
{
    int r = reply_check(reply, error);

    if (r == 0 && ret_reply)
        *ret_reply = reply;
    else
        freeReplyObject(reply);
    return r;
}

static int count_words(const char *const *words)
{
    int len = 0;

    while (words[len])
        len++;
    return len;
}

/* Of a connection that is up. */
static int command(struct redis *redis, const char *const *words, redisReply **ret_reply, struct error *error)
{
    redisReply *reply;
    int r = exchange(redis, count_words(words), (const char **)(uintptr_t)words, NULL, &reply, error);

    return r < 0 ? r : give(reply, ret_reply, error);
}

static int introduce(struct redis *redis, struct error *error)
{
    const struct redis_address *address = &redis->config->redis.address;
    char database[16];
    int r = 0;

    if (address->password[0] != '\0' && address->user[0] != '\0')
        r = command(redis, (const char *[]){"AUTH", address->user, address->password, NULL}, NULL, error);
    else if (address->password[0] != '\0')
        r = command(redis, (const char *[]){"AUTH", address->password, NULL}, NULL, error);
    snprintf(database, sizeof(database), "%u", address->database);
    if (r == 0 && address->database != 0)
        r = command(redis, (const char *[]){"SELECT", database, NULL}, NULL, error);
    return r;
}

int redis_connect(struct redis *redis, struct error *error)
{
    const struct redis_address *address = &redis->config->redis.address;
    struct timeval timeout = clock_timeval(redis->config->redis.timeout_ms);
    int r;

    if (redis->connection)
        return 0;
    if (address->path[0] != '\0')
        redis->connection = redisConnectUnixWithTimeout(address->path, timeout);
    else
        redis->connection = redisConnectWithTimeout(address->host, address->port, timeout);
    if (!redis->connection || redis->connection->err ||
        redisSetTimeout(redis->connection, timeout) != REDIS_OK)
        return lose_connection(redis, "can't connect to Redis", error);
    redis->connections++;
    r = introduce(redis, error);
    if (r < 0)
        disconnect(redis);
    return r;
}

uint64_t redis_connection(const struct redis *redis)
{
    return redis->connection ? redis->connections : 0;
}

int redis_command(struct redis *redis, const char *const *words, struct redisReply **ret_reply,
                  struct error *error)
{
    int r = redis_connect(redis, error);

    return r < 0 ? r : command(redis, words, ret_reply, error);
}

static int set_timeout(struct redis *redis, int64_t ms, struct error *error)
{
    struct timeval timeout = clock_timeval(ms);

    return redisSetTimeout(redis->connection, timeout) == REDIS_OK
               ? 0
               : lose_connection(redis, "can't set a timeout for Redis", error);
}

int redis_command_slow(struct redis *redis, const char *const *words, int64_t extra_ms,
                       struct redisReply **ret_reply, struct error *error)
{
    int64_t timeout_ms = redis->config->redis.timeout_ms;
    redisReply *reply;
    int r = redis_connect(redis, error);

    if (r == 0)
        r = set_timeout(redis, timeout_ms + extra_ms, error);
    if (r == 0)
        r = command(redis, words, &reply, error);
    if (r < 0)
        return r;
    r = set_timeout(redis, timeout_ms, error);
    if (r < 0)
        freeReplyObject(reply);
    else
        *ret_reply = reply;
    return r;
}

bool redis_send(struct redis *redis, const char *const *words)
{
    return redis->connection && redisAppendCommandArgv(redis->connection, count_words(words),
                                                       (const char **)(uintptr_t)words, NULL) == REDIS_OK;
}

/* --- scripts --- */

/* The words of a script's command. */
struct call {
    struct shard_keys keys;
    const char **argv;
    size_t *lengths;
    size_t len;
};

static void call_done(struct call *call)
{
    free(call->argv);
    free(call->lengths);
}

/* Borrows `args`. False without memory; to be done in any case. */
static bool call_init(struct call *call, const struct redis *redis, enum script_id id, uint32_t shard,
                      const struct span *args, size_t args_len)
{
    static_assert(SHARD_KEY_COUNT == 7, "the number of keys is spelled out below");
    size_t len = SCRIPT_WORDS + args_len;

    *call = (struct call){.argv = calloc(len, sizeof(*call->argv)),
                          .lengths = calloc(len, sizeof(*call->lengths))};
    if (!call->argv || !call->lengths)
        return false;
    call->argv[call->len++] = "EVALSHA";
    call->argv[call->len++] = scripts[id].sha1;
    call->argv[call->len++] = "7";
    keyspace_shard_keys(&call->keys, redis->config->namespace, shard);
    for (int i = 0; i < SHARD_KEY_COUNT; i++)
        call->argv[call->len++] = call->keys.name[i];
    for (size_t i = 0; i < call->len; i++)
        call->lengths[i] = strlen(call->argv[i]);
    for (size_t i = 0; i < args_len; i++, call->len++) {
        call->argv[call->len] = args[i].ptr;
        call->lengths[call->len] = args[i].len;
    }
    return true;
}

/* EVALSHA, or EVAL where the server does not know the script. */
static int evaluate(struct redis *redis, enum script_id id, struct call *call, redisReply **ret_reply,
                    struct error *error)
{
    redisReply *reply;
    int r = exchange(redis, (int)call->len, call->argv, call->lengths, &reply, error);

    if (r == 0 && is_error(reply, "NOSCRIPT")) {
        freeReplyObject(reply);
        call->argv[0] = "EVAL";
        call->argv[1] = scripts[id].text;
        call->lengths[0] = strlen(call->argv[0]);
        call->lengths[1] = strlen(call->argv[1]);
        r = exchange(redis, (int)call->len, call->argv, call->lengths, &reply, error);
    }
    if (r == 0) {
        redis->known[id] = true;
        r = give(reply, ret_reply, error);
    }
    return r;
}

int redis_script(struct redis *redis, enum script_id id, uint32_t shard, const struct span *args,
                 size_t args_len, struct redisReply **ret_reply, struct error *error)
{
    struct call call;
    redisReply *reply = NULL;
    int r = call_init(&call, redis, id, shard, args, args_len) ? redis_connect(redis, error)
                                                               : error_set(error, -ENOMEM, "out of memory");

    if (r == 0)
        r = evaluate(redis, id, &call, &reply, error);
    call_done(&call);
    if (r < 0)
        return r;
    if (!reply_is_array(reply)) {
        freeReplyObject(reply);
        return reply_misunderstood(scripts[id].name, error);
    }
    *ret_reply = reply;
    return 0;
}

bool redis_send_script(struct redis *redis, enum script_id id, uint32_t shard, const struct span *args,
                       size_t args_len)
{
    struct call call;
    bool sent;

    if (!redis->connection || !redis->known[id])
        return false;
    sent = call_init(&call, redis, id, shard, args, args_len) &&
           redisAppendCommandArgv(redis->connection, (int)call.len, call.argv, call.lengths) == REDIS_OK;
    call_done(&call);
    return sent;
}

/* --- replies --- */

bool reply_is_array(const struct redisReply *reply)
{
    return reply && reply->type == REDIS_REPLY_ARRAY;
}

size_t reply_len(const struct redisReply *reply)
{
    return reply_is_array(reply) ? reply->elements : 0;
}

bool reply_is_nil(const struct redisReply *reply)
{
    return reply->type == REDIS_REPLY_NIL;
}

bool reply_string(const struct redisReply *reply, struct span *ret_text)
{
    if (reply->type != REDIS_REPLY_STRING && reply->type != REDIS_REPLY_STATUS)
        return false;
    *ret_text = (struct span){reply->str, (size_t)reply->len};
    return true;
}

bool reply_number(const struct redisReply *reply, int64_t *ret_number)
{
    struct span text;

    *ret_number = reply->integer;
    return reply->type == REDIS_REPLY_INTEGER ||
           (reply_string(reply, &text) && whole_parse(text, ret_number));
}

const struct redisReply *reply_element(const struct redisReply *reply, size_t index)
{
    return index < reply_len(reply) ? reply->element[index] : NULL;
}

bool reply_text(const struct redisReply *reply, size_t index, struct span *ret_text)
{
    const struct redisReply *element = reply_element(reply, index);

    return element && reply_string(element, ret_text);
}

bool reply_text_is(const struct redisReply *reply, size_t index, const char *expected)
{
    struct span text;

    return reply_text(reply, index, &text) && span_is(text, expected);
}

bool reply_whole(const struct redisReply *reply, size_t index, int64_t *ret_number)
{
    struct span text;

    *ret_number = 0;
    return reply_text(reply, index, &text) && (text.len == 0 || whole_parse(text, ret_number));
}

void reply_free(struct redisReply *reply)
{
    freeReplyObject(reply);
}
