#include "flusher/source_redis.h"

#include <assert.h>
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "flusher/failure.h"
#include "flusher/whole.h"
#include "lib/id.h"
#include "lib/log.h"

/* Members per read: a page holds Redis for a few milliseconds at most. */
#define PAGE_MEMBERS  5000
#define PAGE_COMMANDS 4 /* MULTI, two in it, EXEC */

struct source_redis {
    const struct config *config;
    redisContext *connection; /* NULL = none */
};

int source_redis_new(const struct config *config, struct source_redis **ret_source, struct error *error)
{
    struct source_redis *source = calloc(1, sizeof(*source));

    if (!source)
        return error_set(error, -ENOMEM, "out of memory");
    source->config = config;
    *ret_source = source;
    return 0;
}

static void disconnect(struct source_redis *source)
{
    if (source->connection)
        redisFree(source->connection);
    source->connection = NULL;
}

void source_redis_free(struct source_redis *source)
{
    if (!source)
        return;
    disconnect(source);
    free(source);
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

static int lose_connection(struct source_redis *source, const char *what, struct error *error)
{
    char url[REDIS_KEY_BYTES + HOST_LEN_MAX];
    bool timed_out = source->connection && source->connection->err == REDIS_ERR_IO && errno == EAGAIN;
    const char *reason = timed_out            ? "no answer within redis.timeout_ms"
                         : source->connection ? source->connection->errstr
                                              : "out of memory";

    redis_address_format(&source->config->redis.address, url, sizeof(url));
    error_set(error, FAILURE_UNAVAILABLE, "%s at %s: %s", what, url, reason);
    disconnect(source);
    return FAILURE_UNAVAILABLE;
}

/* Unlike what a script promises; nothing can be told from it. */
static int misunderstand(const char *script, struct error *error)
{
    return error_set(
        error, FAILURE_LATER,
        "Redis: an answer to '%s' that this version does not understand; nothing was done with it", script);
}

/* --- commands --- */

/* Gives the reply, also when it is an error. */
static int command(struct source_redis *source, int argc, const char **argv, const size_t *lengths,
                   redisReply **ret_reply, struct error *error)
{
    errno = 0;
    *ret_reply = redisCommandArgv(source->connection, argc, argv, lengths);
    return *ret_reply ? 0 : lose_connection(source, "the connection to Redis was lost", error);
}

static bool is_error(const redisReply *reply, const char *prefix)
{
    assert(reply);
    return reply->type == REDIS_REPLY_ERROR && strncmp(reply->str, prefix, strlen(prefix)) == 0;
}

/* A command whose errors are failures and whose reply nobody looks at. */
static int command_ok(struct source_redis *source, int argc, const char **argv, struct error *error)
{
    redisReply *reply;
    int r = command(source, argc, argv, NULL, &reply, error);

    if (r < 0)
        return r;
    if (is_error(reply, ""))
        r = refuse(reply->str, error);
    freeReplyObject(reply);
    return r;
}

static int introduce(struct source_redis *source, struct error *error)
{
    const struct redis_address *address = &source->config->redis.address;
    char database[16];
    int r = 0;

    if (address->password[0] != '\0' && address->user[0] != '\0')
        r = command_ok(source, 3, (const char *[]){"AUTH", address->user, address->password}, error);
    else if (address->password[0] != '\0')
        r = command_ok(source, 2, (const char *[]){"AUTH", address->password}, error);
    snprintf(database, sizeof(database), "%u", address->database);
    if (r == 0 && address->database != 0)
        r = command_ok(source, 2, (const char *[]){"SELECT", database}, error);
    return r;
}

static int ensure_connected(struct source_redis *source, struct error *error)
{
    const struct redis_address *address = &source->config->redis.address;
    int64_t timeout_ms = source->config->redis.timeout_ms;
    struct timeval timeout = {timeout_ms / 1000, timeout_ms % 1000 * 1000};
    int r;

    if (source->connection)
        return 0;
    if (address->path[0] != '\0')
        source->connection = redisConnectUnixWithTimeout(address->path, timeout);
    else
        source->connection = redisConnectWithTimeout(address->host, address->port, timeout);
    if (!source->connection || source->connection->err ||
        redisSetTimeout(source->connection, timeout) != REDIS_OK)
        return lose_connection(source, "can't connect to Redis", error);
    r = introduce(source, error);
    if (r < 0)
        disconnect(source);
    return r;
}

/* EVALSHA, or EVAL where the server does not know the script. */
static int evaluate(struct source_redis *source, enum script_id id, int argc, const char **argv,
                    size_t *lengths, redisReply **ret_reply, struct error *error)
{
    int r = ensure_connected(source, error);

    *ret_reply = NULL;
    if (r == 0)
        r = command(source, argc, argv, lengths, ret_reply, error);
    if (r < 0 || !is_error(*ret_reply, "NOSCRIPT"))
        return r;
    freeReplyObject(*ret_reply);
    argv[0] = "EVAL";
    argv[1] = scripts[id].text;
    lengths[0] = strlen(argv[0]);
    lengths[1] = strlen(argv[1]);
    return command(source, argc, argv, lengths, ret_reply, error);
}

/* Gives a reply that is an array. */
static int run_script(struct source_redis *source, enum script_id id, uint32_t shard, const struct span *args,
                      size_t args_len, redisReply **ret_reply, struct error *error)
{
    size_t len = 3 + SHARD_KEY_COUNT + args_len, argc = 0;
    const char **argv = calloc(len, sizeof(*argv));
    size_t *lengths = calloc(len, sizeof(*lengths));
    struct shard_keys keys;
    redisReply *reply = NULL;
    int r = argv && lengths ? 0 : error_set(error, -ENOMEM, "out of memory");

    if (r == 0) {
        static_assert(SHARD_KEY_COUNT == 7, "the number of keys is spelled out below");
        argv[argc++] = "EVALSHA";
        argv[argc++] = scripts[id].sha1;
        argv[argc++] = "7";
        keyspace_shard_keys(&keys, source->config->namespace, shard);
        for (int i = 0; i < SHARD_KEY_COUNT; i++)
            argv[argc++] = keys.name[i];
        for (size_t i = 0; i < argc; i++)
            lengths[i] = strlen(argv[i]);
        for (size_t i = 0; i < args_len; i++, argc++) {
            argv[argc] = args[i].ptr;
            lengths[argc] = args[i].len;
        }
        r = evaluate(source, id, (int)argc, argv, lengths, &reply, error);
    }
    free(argv);
    free(lengths);
    if (r == 0 && is_error(reply, ""))
        r = refuse(reply->str, error);
    else if (r == 0 && reply->type != REDIS_REPLY_ARRAY)
        r = misunderstand(scripts[id].name, error);
    if (r < 0)
        freeReplyObject(reply);
    else
        *ret_reply = reply;
    return r;
}

/* --- replies --- */

/* Element `index` as text; false when there is none such. */
static bool take_text(const redisReply *reply, size_t index, struct span *ret_text)
{
    const redisReply *element = index < reply->elements ? reply->element[index] : NULL;

    if (!element || (element->type != REDIS_REPLY_STRING && element->type != REDIS_REPLY_STATUS))
        return false;
    *ret_text = (struct span){element->str, (size_t)element->len};
    return true;
}

static bool is_text(const redisReply *reply, size_t index, const char *expected)
{
    struct span text;

    return take_text(reply, index, &text) && span_is(text, expected);
}

/* A number that may be missing: '' is 0. */
static bool take_whole(const redisReply *reply, size_t index, int64_t *ret_number)
{
    struct span text;

    *ret_number = 0;
    return take_text(reply, index, &text) && (text.len == 0 || whole_parse(text, ret_number));
}

static bool take_id(const redisReply *reply, size_t index, char ret_id[GENERATION_ID_LEN_MAX + 1])
{
    struct span text;

    if (!take_text(reply, index, &text) || text.len > GENERATION_ID_LEN_MAX)
        return false;
    memcpy(ret_id, text.ptr, text.len);
    ret_id[text.len] = '\0';
    return true;
}

/* The pairs of writer and "low-high" from element `from` on. */
static bool take_batches(const redisReply *reply, size_t from, struct generation *generation)
{
    size_t len = (reply->elements - from) / 2;

    if ((reply->elements - from) % 2 != 0)
        return false;
    generation->batches = calloc(len + 1, sizeof(struct batches));
    if (!generation->batches)
        return false;
    for (size_t i = 0; i < len; i++) {
        struct batches *batches = &generation->batches[i];
        struct span writer, range;
        if (!take_text(reply, from + 2 * i, &writer) || !take_text(reply, from + 2 * i + 1, &range) ||
            !whole_parse_range(range, &batches->low, &batches->high))
            return false;
        batches->writer = strndup(writer.ptr, writer.len);
        if (!batches->writer)
            return false;
        generation->batches_len++;
    }
    return true;
}

static bool take_generation(const redisReply *reply, struct generation *generation)
{
    int64_t members;

    if (reply->elements < 11 || !take_id(reply, 2, generation->id) ||
        !take_id(reply, 4, generation->prev_id) || !take_whole(reply, 5, &generation->opened_ms) ||
        !take_whole(reply, 6, &generation->sealed_ms) || !take_whole(reply, 7, &generation->last_append_ms) ||
        !take_whole(reply, 8, &generation->accepted_at_seal) ||
        !take_whole(reply, 9, &generation->events_at_seal) || !take_whole(reply, 10, &members) ||
        generation->id[0] == '\0' || members < 0)
        return false;
    generation->recovered = !is_text(reply, 3, "1");
    generation->set_aside = is_text(reply, 3, "ASIDE");
    generation->members = (size_t)members;
    return take_batches(reply, 11, generation);
}

static int refuse_member(struct span member, struct span score, struct error *error)
{
    char member_text[LOG_TEXT_BYTES], score_text[LOG_TEXT_BYTES];

    return error_set(
        error, FAILURE_LATER,
        "member %.600s with score %.60s: a key has 1 to %d bytes without blanks and NULs, a score "
        "is a whole number within 2^53; nothing of its generation was applied",
        log_quote(member_text, member), log_quote(score_text, score), KEY_LEN_MAX);
}

static int take_page(const redisReply *page, struct updates *updates, struct error *error)
{
    for (size_t i = 0; i + 1 < page->elements; i += 2) {
        struct span key, score;
        int64_t delta;
        if (!take_text(page, i, &key) || !take_text(page, i + 1, &score))
            return misunderstand("read", error);
        if (!whole_parse(score, &delta) || delta > SCORE_MAX || delta < -SCORE_MAX || key.len == 0 ||
            key.len > KEY_LEN_MAX || memchr(key.ptr, ' ', key.len) || memchr(key.ptr, '\0', key.len))
            return refuse_member(key, score, error);
        if (updates_add(updates, key, delta) < 0)
            return error_set(error, -ENOMEM,
                             "out of memory at %zu keys of one shard; more shards make it less",
                             updates->len);
    }
    return READ_PAGE;
}

/* --- replicas --- */

/* The answer to WAIT may take as long as WAIT itself. */
static int set_timeout(struct source_redis *source, int64_t ms)
{
    struct timeval timeout = {ms / 1000, ms % 1000 * 1000};

    return redisSetTimeout(source->connection, timeout) == REDIS_OK ? 0 : -EINVAL;
}

/* Whether enough replicas have all that Redis had done before the last answer on this connection: not only
 * what this connection wrote, so also what an earlier run sealed. */
static int wait_replicas(struct source_redis *source, struct error *error)
{
    int64_t wanted = source->config->redis.wait_replicas, timeout_ms = source->config->redis.timeout_ms;
    char number[24], timeout[24];
    redisReply *reply;
    long long have;
    int r;

    if (wanted == 0)
        return 0;
    snprintf(number, sizeof(number), "%" PRId64, wanted);
    snprintf(timeout, sizeof(timeout), "%" PRId64, timeout_ms);
    if (set_timeout(source, 2 * timeout_ms) < 0)
        return lose_connection(source, "can't set a timeout for Redis", error);
    r = command(source, 3, (const char *[]){"WAIT", number, timeout}, NULL, &reply, error);
    if (r < 0)
        return r;
    if (set_timeout(source, timeout_ms) < 0)
        r = lose_connection(source, "can't set a timeout for Redis", error);
    else if (is_error(reply, ""))
        r = refuse(reply->str, error);
    else if (reply->type != REDIS_REPLY_INTEGER)
        r = misunderstand("WAIT", error);
    have = reply->integer;
    freeReplyObject(reply);
    if (r == 0 && have < wanted)
        r = error_set(error, FAILURE_LATER,
                      "%lld of %" PRId64 " replicas of Redis have the sealed generation within %" PRId64
                      " ms; nothing was written to Postgres. See INFO replication, 'redis.wait_replicas' and "
                      "'redis.timeout_ms'",
                      have, wanted, timeout_ms);
    return r;
}

/* --- the seam --- */

static int seal(void *context, uint32_t shard, struct generation *ret_generation, struct error *error)
{
    char id[ID_LEN + 1];
    redisReply *reply;
    int r;

    id_new(id);
    r = run_script(context, SCRIPT_SEAL, shard, (struct span[]){span_of(id)}, 1, &reply, error);
    if (r < 0)
        return r;
    if (!take_whole(reply, 1, &ret_generation->now_ms))
        r = misunderstand("seal", error);
    else if (is_text(reply, 0, "NONE"))
        r = SEAL_NONE;
    else if (is_text(reply, 0, "SEALED") && take_generation(reply, ret_generation))
        r = SEAL_SEALED;
    else
        r = misunderstand("seal", error);
    freeReplyObject(reply);
    if (r == SEAL_SEALED) {
        int waited = wait_replicas(context, error);
        r = waited < 0 ? waited : r;
    }
    return r;
}

/* Sends a page's commands as one transaction; false when the connection is of no more use. */
static bool send_page(struct source_redis *source, uint32_t shard, size_t from)
{
    struct shard_keys keys;
    const char *meta = keys.name[SHARD_KEY_META], *sealed = keys.name[SHARD_KEY_SEALED];

    keyspace_shard_keys(&keys, source->config->namespace, shard);
    return redisAppendCommand(source->connection, "MULTI") == REDIS_OK &&
           redisAppendCommand(source->connection, "HGET %s sealed_gen", meta) == REDIS_OK &&
           redisAppendCommand(source->connection, "ZRANGE %s %lu %lu WITHSCORES", sealed, from,
                              from + PAGE_MEMBERS - 1) == REDIS_OK &&
           redisAppendCommand(source->connection, "EXEC") == REDIS_OK;
}

/* Gives EXEC's reply: the id of what is sealed, and the page. An error of any of the commands is a failure.
 */
static int receive_page(struct source_redis *source, redisReply **ret_reply, struct error *error)
{
    redisReply *last = NULL;
    int r = 0;

    for (int i = 0; i < PAGE_COMMANDS; i++) {
        freeReplyObject(last);
        last = NULL;
        errno = 0;
        if (redisGetReply(source->connection, (void **)&last) != REDIS_OK)
            return lose_connection(source, "the connection to Redis was lost", error);
        if (r == 0 && is_error(last, ""))
            r = refuse(last->str, error);
    }
    for (size_t i = 0; r == 0 && last->type == REDIS_REPLY_ARRAY && i < last->elements; i++)
        if (is_error(last->element[i], ""))
            r = refuse(last->element[i]->str, error);
    if (r < 0)
        freeReplyObject(last);
    else
        *ret_reply = last;
    return r;
}

/* PROTOCOL's step "read" is the one that needs no script: id and page come out of one MULTI, so nothing can
 * come between them, and Redis is spared making a Lua table of the page, a third of what reading costs it. */
static int read_page(void *context, uint32_t shard, const char *id, struct updates *updates,
                     struct error *error)
{
    struct source_redis *source = context;
    redisReply *reply = NULL;
    struct span sealed_id;
    int r = ensure_connected(source, error);

    if (r == 0 && !send_page(source, shard, updates_added(updates)))
        r = lose_connection(source, "can't send to Redis", error);
    if (r == 0)
        r = receive_page(source, &reply, error);
    if (r < 0)
        return r;
    assert(reply);
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        reply->element[1]->type != REDIS_REPLY_ARRAY || reply->element[1]->elements % 2 != 0)
        r = misunderstand("read", error);
    else if (!take_text(reply, 0, &sealed_id) || !span_is(sealed_id, id))
        r = READ_GONE;
    else
        r = take_page(reply->element[1], updates, error);
    freeReplyObject(reply);
    return r;
}

/* A step that was done, or that somebody else has done. */
static int run_step(struct source_redis *source, enum script_id id, uint32_t shard, const struct span *args,
                    size_t args_len, const char *done, struct error *error)
{
    redisReply *reply;
    int r = run_script(source, id, shard, args, args_len, &reply, error);

    if (r < 0)
        return r;
    if (!is_text(reply, 0, done) && !is_text(reply, 0, "GONE"))
        r = misunderstand(scripts[id].name, error);
    freeReplyObject(reply);
    return r;
}

static struct span spell(char buf[24], int64_t number)
{
    snprintf(buf, 24, "%" PRId64, number);
    return span_of(buf);
}

static int release(void *context, uint32_t shard, const char *id, const struct correction *correction,
                   struct error *error)
{
    char total[24], events[24];
    struct span args[] = {span_of(id), spell(total, correction->total), spell(events, correction->events)};

    return run_step(context, SCRIPT_RELEASE, shard, args, ARRAY_LEN(args), "RELEASED", error);
}

static int reset(void *context, uint32_t shard, const char *id, const struct reset *to, struct error *error)
{
    struct numbers {
        char text[24];
    } *numbers = calloc(to->vector_len + 1, sizeof(*numbers));
    struct span *args = calloc(5 + 2 * to->vector_len, sizeof(*args));
    char aside[ID_LEN + 1], accepted[24], events[24];
    int r = numbers && args ? 0 : error_set(error, -ENOMEM, "out of memory");

    if (r == 0) {
        id_new(aside);
        args[0] = span_of(id);
        args[1] = span_of(aside);
        args[2] = span_of(to->head_id);
        args[3] = spell(accepted, to->accepted);
        args[4] = spell(events, to->events);
        for (size_t i = 0; i < to->vector_len; i++) {
            args[5 + 2 * i] = span_of(to->vector[i].writer);
            args[6 + 2 * i] = spell(numbers[i].text, to->vector[i].seq);
        }
        r = run_step(context, SCRIPT_RESET, shard, args, 5 + 2 * to->vector_len, "RESET", error);
    }
    free(args);
    free(numbers);
    return r;
}

struct source source_redis_seam(struct source_redis *source)
{
    return (struct source){source, seal, read_page, release, reset};
}

/* --- beside the seam --- */

static int compare_shards(const struct source_redis *source, const redisReply *reply, struct error *error)
{
    int64_t recorded;

    if (reply->type != REDIS_REPLY_STRING ||
        !whole_parse((struct span){reply->str, (size_t)reply->len}, &recorded))
        return misunderstand("GET shards", error);
    if (recorded == source->config->shards)
        return 0;
    return error_set(error, FAILURE_CONFIG,
                     "'shards' is %" PRId64 ", but Redis has namespace '%s' with %" PRId64
                     " shards, which are fixed for its life: set 'shards' to %" PRId64
                     " or choose another 'namespace'",
                     source->config->shards, source->config->namespace, recorded, recorded);
}

int source_redis_check_shards(struct source_redis *source, bool record, struct error *error)
{
    char key[REDIS_KEY_BYTES], shards[24];
    redisReply *reply;
    int r = ensure_connected(source, error);

    keyspace_shards_key(key, source->config->namespace);
    snprintf(shards, sizeof(shards), "%" PRId64, source->config->shards);
    /* Looked at before it is written: a Redis that is full refuses every SET, and needs the flush most. */
    for (int pass = 0; r == 0 && pass < 2; pass++) {
        bool missing;
        r = command(source, 2, (const char *[]){"GET", key}, NULL, &reply, error);
        if (r < 0)
            return r;
        missing = reply->type == REDIS_REPLY_NIL;
        if (is_error(reply, ""))
            r = refuse(reply->str, error);
        else if (!missing)
            r = compare_shards(source, reply, error);
        freeReplyObject(reply);
        if (!missing || !record)
            return r;
        r = command_ok(source, 4, (const char *[]){"SET", key, shards, "NX"}, error);
    }
    return r;
}

int source_redis_peek(struct source_redis *source, struct span key, struct peek *ret_peek,
                      struct error *error)
{
    uint32_t shard = keyspace_shard(keyspace_hash(key), (uint32_t)source->config->shards);
    struct peek peek;
    redisReply *reply;
    int r = run_script(source, SCRIPT_PEEK, shard, &key, 1, &reply, error);

    if (r < 0)
        return r;
    peek.in_open = !is_text(reply, 0, "");
    peek.in_sealed = !is_text(reply, 1, "");
    if (!take_whole(reply, 0, &peek.open) || !take_whole(reply, 1, &peek.sealed) ||
        !take_id(reply, 2, peek.sealed_id) || !take_id(reply, 3, peek.prev_id))
        r = misunderstand("peek", error);
    else
        *ret_peek = peek;
    freeReplyObject(reply);
    return r;
}

int source_redis_state(struct source_redis *source, uint32_t shard, struct shard_state *ret_state,
                       struct error *error)
{
    struct shard_state state;
    redisReply *reply;
    int r = run_script(source, SCRIPT_STATE, shard, NULL, 0, &reply, error);

    if (r < 0)
        return r;
    if (!take_whole(reply, 0, &state.now_ms) || !take_whole(reply, 1, &state.open_members) ||
        !take_whole(reply, 2, &state.sealed_members) || !take_whole(reply, 3, &state.accepted) ||
        !take_whole(reply, 4, &state.accepted_at_seal) || !take_whole(reply, 5, &state.events) ||
        !take_whole(reply, 6, &state.events_at_seal) || !take_id(reply, 7, state.sealed_id) ||
        !take_id(reply, 8, state.prev_id) || !take_whole(reply, 9, &state.opened_ms) ||
        !take_whole(reply, 10, &state.sealed_opened_ms))
        r = misunderstand("state", error);
    else
        *ret_state = state;
    freeReplyObject(reply);
    return r;
}

/* An audit adds up this many members of a set at most in one go: a few milliseconds. */
#define AUDIT_MEMBERS "4000"

static bool take_holdings(const redisReply *reply, struct shard_holdings *holdings)
{
    holdings->set_aside = is_text(reply, 4, "1");
    holdings->open_known = !is_text(reply, 7, "");
    holdings->sealed_known = !is_text(reply, 8, "");
    return take_whole(reply, 0, &holdings->accepted) && take_whole(reply, 1, &holdings->accepted_at_seal) &&
           take_id(reply, 2, holdings->sealed_id) && take_id(reply, 3, holdings->prev_id) &&
           take_whole(reply, 5, &holdings->open_members) && take_whole(reply, 6, &holdings->sealed_members) &&
           take_whole(reply, 7, &holdings->open) && take_whole(reply, 8, &holdings->sealed);
}

/* In pages, because nobody writes to it any more. */
static int add_up_sealed(struct source_redis *source, uint32_t shard, struct shard_holdings *holdings,
                         struct error *error)
{
    struct updates updates = {0};
    int64_t sum = 0;
    size_t before;
    int r;

    do {
        before = updates.len;
        r = read_page(source, shard, holdings->sealed_id, &updates, error);
    } while (r == READ_PAGE && updates.len > before);
    for (size_t i = 0; i < updates.len; i++)
        sum = whole_add(sum, updates.items[i].delta);
    updates_done(&updates);
    if (r == READ_PAGE) {
        holdings->sealed_known = true;
        holdings->sealed = sum;
    }
    return r < 0 ? r : 0;
}

int source_redis_holdings(struct source_redis *source, uint32_t shard, struct shard_holdings *ret_holdings,
                          struct error *error)
{
    struct shard_holdings holdings = {0};
    redisReply *reply;
    int r =
        run_script(source, SCRIPT_AUDIT, shard, (struct span[]){span_of(AUDIT_MEMBERS)}, 1, &reply, error);

    if (r < 0)
        return r;
    if (!take_holdings(reply, &holdings))
        r = misunderstand("audit", error);
    freeReplyObject(reply);
    if (r == 0 && !holdings.sealed_known && holdings.sealed_id[0] != '\0')
        r = add_up_sealed(source, shard, &holdings, error);
    *ret_holdings = holdings;
    return r;
}
