#include "counterd/reader.h"

#include <assert.h>
#include <event2/event.h>
#include <hiredis/hiredis.h>
#include <hiredis/async.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "counterd/dial.h"
#include "lib/clock.h"
#include "lib/id.h"
#include "lib/member.h"
#include "lib/targets.h"

/* After Redis did not answer, nobody asks again for so long: a page that polls must not wait each time. */
#define PAUSE_MS 1000

/* A connection that nobody has asked anything for so long is closed. */
#define IDLE_MS 30000

#define NUMBER_BYTES 24
#define LOOK_FIELDS  11

#define SHARD_KEYS_TEXT "7"
_Static_assert(SHARD_KEY_COUNT == 7, "the number of keys is spelled out above");

enum question_kind { QUESTION_LOOK, QUESTION_PENDING, QUESTION_TOP };

struct question {
    struct reader *reader;
    enum question_kind kind;
    void *context;
    union {
        reader_on_look *look;
        reader_on_pending *pending;
        reader_on_top *top;
    } tell;
    unsigned owed; /* answers */
    char error[256];
    struct reader_look look;
    struct reader_pending pending;
    size_t wanted, keys_len;
    struct reader_top_key *keys; /* room for three times `wanted`: the first so far, and those of a shard */
};

/* The total of what a shard has sealed, which does not change. */
struct sealed {
    char gen[ID_LEN + 1];
    int64_t total;
};

struct reader {
    struct event_base *base;
    const struct config *config;
    redisAsyncContext *redis; /* NULL between connections */
    struct event *deadline; /* while a question is open: it has waited too long; else: nobody asks any more */
    size_t asked;           /* questions */
    int64_t failed_ms;      /* monotonic; 0 = the last one was answered */
    bool looking;
    bool late;
    char error[256];
    struct reader_look look; /* the last one */
    struct sealed *sealed;   /* of each shard */
};

static void arm(struct reader *reader, int64_t ms)
{
    struct timeval wait = clock_timeval(ms);

    event_add(reader->deadline, &wait);
}

/* Answers all that is asked, with an error. */
static void disconnect(struct reader *reader)
{
    redisAsyncContext *redis = reader->redis;

    reader->redis = NULL;
    if (redis)
        redisAsyncFree(redis);
}

static void fail(struct question *question, const char *text)
{
    if (question->error[0] == '\0')
        snprintf(question->error, sizeof(question->error), "%s", text);
}

static void tell(struct question *question)
{
    struct reader *reader = question->reader;
    const char *error = question->error[0] != '\0' ? question->error : NULL;

    switch (question->kind) {
    case QUESTION_LOOK:
        reader->looking = false;
        if (!error)
            reader->look = question->look;
        question->tell.look(question->context, &reader->look, error);
        break;
    case QUESTION_PENDING:
        question->tell.pending(question->context, &question->pending, error);
        break;
    case QUESTION_TOP:
        question->tell.top(question->context, question->keys, question->keys_len, error);
        break;
    }
}

static void finish(struct question *question)
{
    struct reader *reader = question->reader;

    reader->asked--;
    reader->failed_ms = question->error[0] != '\0' ? clock_monotonic_ms() : 0;
    snprintf(reader->error, sizeof(reader->error), "%s", question->error);
    if (reader->asked == 0 && reader->redis)
        arm(reader, IDLE_MS);
    /* Whatever was wrong (scripts flushed, a password changed) may not be so with the next connection. */
    if (reader->asked == 0 && reader->failed_ms != 0)
        disconnect(reader);
    tell(question);
    free(question->keys);
    free(question);
}

/* --- answers --- */

static int64_t number_at(const redisReply *reply, size_t at)
{
    return strtoll(reply->element[at]->str, NULL, 10);
}

/* How long before `now_ms` the time at `at` was; -1 when it is not there. */
static int64_t age_at(const redisReply *reply, size_t at, int64_t now_ms)
{
    int64_t since_ms = number_at(reply, at);

    if (since_ms == 0)
        return -1;
    return now_ms > since_ms ? now_ms - since_ms : 0;
}

static int64_t older(int64_t a, int64_t b)
{
    return a > b ? a : b;
}

static int64_t younger(int64_t a, int64_t b)
{
    if (a < 0 || b < 0)
        return a < 0 ? b : a;
    return a < b ? a : b;
}

static bool is_texts(const redisReply *reply)
{
    if (reply->type != REDIS_REPLY_ARRAY)
        return false;
    for (size_t i = 0; i < reply->elements; i++)
        if (reply->element[i]->type != REDIS_REPLY_STRING)
            return false;
    return true;
}

/* Of one shard; the order is that of look.lua. */
static void take_look(struct question *question, uint32_t shard, const redisReply *reply)
{
    struct sealed *sealed = &question->reader->sealed[shard];
    struct reader_look *look = &question->look;
    int64_t now_ms, open_keys, sealed_keys;
    const char *gen;

    if (!is_texts(reply) || reply->elements != LOOK_FIELDS) {
        fail(question, "an answer that is not the script's");
        return;
    }
    now_ms = number_at(reply, 0);
    open_keys = number_at(reply, 1);
    sealed_keys = number_at(reply, 2);
    gen = reply->element[9]->str;
    look->released_ago_ms = younger(look->released_ago_ms, age_at(reply, 8, now_ms));
    if (open_keys > 0) {
        look->open_keys += (uint64_t)open_keys;
        look->open_total += number_at(reply, 3) - number_at(reply, 4);
        look->open_age_ms = older(look->open_age_ms, age_at(reply, 5, now_ms));
    }
    if (gen[0] == '\0')
        return;
    if (reply->element[10]->len > 0) {
        snprintf(sealed->gen, sizeof(sealed->gen), "%s", gen);
        sealed->total = number_at(reply, 10);
    }
    look->sealed_shards++;
    look->sealed_keys += (uint64_t)sealed_keys;
    look->sealed_age_ms = older(look->sealed_age_ms, age_at(reply, 6, now_ms));
    look->sealed_for_ms = older(look->sealed_for_ms, age_at(reply, 7, now_ms));
    if (strcmp(sealed->gen, gen) == 0)
        look->sealed_total += sealed->total;
    else
        look->sealed_total_known = false;
}

/* The value of a field of INFO; "" when it is not there. */
static void copy_info(const char *info, const char *field, char *buf, size_t buf_bytes)
{
    const char *at = strstr(info, field);

    buf[0] = '\0';
    if (at)
        snprintf(buf, buf_bytes, "%.*s", (int)strcspn(at + strlen(field), "\r\n"), at + strlen(field));
}

static void take_info(struct question *question, const redisReply *reply)
{
    struct reader_look *look = &question->look;
    char number[NUMBER_BYTES];

    if (reply->type != REDIS_REPLY_STRING)
        return;
    copy_info(reply->str, "\nmaxmemory_policy:", look->eviction, sizeof(look->eviction));
    copy_info(reply->str, "\nused_memory:", number, sizeof(number));
    look->memory_bytes = strtoull(number, NULL, 10);
    copy_info(reply->str, "\nmaxmemory:", number, sizeof(number));
    look->memory_bytes_max = strtoull(number, NULL, 10);
    copy_info(reply->str, "\naof_enabled:", number, sizeof(number));
    look->appendonly = strcmp(number, "0") != 0;
}

static void take_pending(struct question *question, uint32_t shard, const redisReply *reply)
{
    struct reader_pending *pending = &question->pending;
    enum merge merge = config_shard_merge(question->reader->config, shard);

    if (!is_texts(reply) || reply->elements != 5) {
        fail(question, "an answer that is not the script's");
        return;
    }
    pending->known = reply->element[0]->len > 0 || reply->element[1]->len > 0;
    pending->open = number_at(reply, 0);
    pending->sealed = number_at(reply, 1);
    pending->all = pending->open + pending->sealed;
    if (merge != MERGE_ADD && reply->element[0]->len > 0 && reply->element[1]->len > 0)
        pending->all = merge_extreme(merge, pending->open, pending->sealed);
    pending->whole = number_at(reply, 4) == 1;
}

static int compare_keys(const void *a, const void *b)
{
    const struct reader_top_key *left = a, *right = b;

    if (left->pending != right->pending)
        return left->pending < right->pending ? 1 : -1;
    return strcmp(left->key, right->key);
}

/* A member is a key, or a key and its bucket behind a blank. */
static void add_key(struct question *question, const redisReply *member, int64_t pending)
{
    int len = (int)strcspn(member->str, " ");

    for (size_t i = 0; i < question->keys_len; i++) {
        struct reader_top_key *known = &question->keys[i];
        if (strncmp(known->key, member->str, (size_t)len) == 0 && known->key[len] == '\0') {
            known->pending += pending;
            return;
        }
    }
    snprintf(question->keys[question->keys_len].key, KEY_LEN_MAX + 1, "%.*s", len, member->str);
    question->keys[question->keys_len++].pending = pending;
}

static void take_top(struct question *question, const redisReply *reply)
{
    if (!is_texts(reply) || reply->elements % 2 != 0 || reply->elements > 4 * question->wanted) {
        fail(question, "an answer that is not the script's");
        return;
    }
    for (size_t i = 0; i < reply->elements; i += 2)
        add_key(question, reply->element[i], number_at(reply, i + 1));
    qsort(question->keys, question->keys_len, sizeof(*question->keys), compare_keys);
    if (question->keys_len > question->wanted)
        question->keys_len = question->wanted;
}

/* What an answer belongs to. */
struct asked {
    struct question *question;
    uint32_t shard;
    bool is_info;
};

static void take(const struct asked *asked, const redisReply *reply)
{
    struct question *question = asked->question;

    /* Managed servers may forbid INFO: then its figures are not told, and that is all. */
    if (asked->is_info) {
        take_info(question, reply);
        return;
    }
    if (reply->type == REDIS_REPLY_ERROR) {
        fail(question, reply->str);
        return;
    }
    switch (question->kind) {
    case QUESTION_LOOK:
        take_look(question, asked->shard, reply);
        break;
    case QUESTION_PENDING:
        take_pending(question, asked->shard, reply);
        break;
    case QUESTION_TOP:
        take_top(question, reply);
        break;
    }
}

static void on_answer(redisAsyncContext *redis, void *data, void *context)
{
    struct asked *asked = context;
    struct question *question = asked->question;
    struct reader *reader = question->reader;

    if (data) {
        arm(reader, READER_TIMEOUT_MS);
        take(asked, data);
    } else {
        /* The connection ends here, and with it all that was asked. */
        if (reader->redis == redis)
            reader->redis = NULL;
        fail(question, reader->late ? "no answer within a second" : redis->err ? redis->errstr : "closed");
    }
    free(asked);
    if (--question->owed == 0)
        finish(question);
}

/* --- the connection --- */

/* What follows fails too, and tells, if one of these does. */
static void on_introduced(redisAsyncContext *redis, void *data, void *context)
{
    (void)redis;
    (void)data;
    (void)context;
}

static void introduce(struct reader *reader)
{
    static const enum script_id loaded[] = {SCRIPT_LOOK, SCRIPT_PEEK, SCRIPT_LARGEST};

    (void)dial_introduce(reader->redis, &reader->config->redis.address, on_introduced, on_introduced);
    for (size_t i = 0; i < ARRAY_LEN(loaded); i++)
        redisAsyncCommand(reader->redis, on_introduced, NULL, "SCRIPT LOAD %s", scripts[loaded[i]].text);
}

static void on_connected(const redisAsyncContext *redis, int status)
{
    (void)redis;
    (void)status;
}

static void on_disconnected(const redisAsyncContext *redis, int status)
{
    struct reader *reader = redis->data;

    (void)status;
    if (reader->redis == redis)
        reader->redis = NULL;
}

/* Whether there is a connection, or one under way: questions can be put at once, and go out when it stands.
 */
static bool ensure_connection(struct reader *reader)
{
    redisAsyncContext *redis;

    if (reader->redis)
        return true;
    reader->late = false;
    redis = dial(&reader->config->redis.address, reader->base, reader->error, sizeof(reader->error));
    if (!redis) {
        reader->failed_ms = clock_monotonic_ms();
        return false;
    }
    redis->data = reader;
    reader->redis = redis;
    redisAsyncSetConnectCallback(redis, on_connected);
    redisAsyncSetDisconnectCallback(redis, on_disconnected);
    introduce(reader);
    return true;
}

static void on_deadline(evutil_socket_t fd, short events, void *data)
{
    struct reader *reader = data;

    (void)fd;
    (void)events;
    reader->late = reader->asked > 0;
    disconnect(reader);
}

struct reader *reader_new(struct event_base *base, const struct config *config)
{
    struct reader *reader = calloc(1, sizeof(*reader));

    if (!reader)
        return NULL;
    reader->base = base;
    reader->config = config;
    reader->sealed = calloc(config_shards(config), sizeof(*reader->sealed));
    reader->deadline = evtimer_new(base, on_deadline, reader);
    if (!reader->sealed || !reader->deadline) {
        reader_free(reader);
        return NULL;
    }
    return reader;
}

void reader_free(struct reader *reader)
{
    if (!reader)
        return;
    disconnect(reader);
    assert(reader->asked == 0);
    if (reader->deadline)
        event_free(reader->deadline);
    free(reader->sealed);
    free(reader);
}

/* --- questions --- */

/* NULL: it can't be asked; the reason has been written into `error`. */
static struct question *question_new(struct reader *reader, enum question_kind kind, void *context)
{
    struct question *question;

    if (reader->failed_ms != 0 && clock_monotonic_ms() - reader->failed_ms < PAUSE_MS)
        return NULL;
    if (!ensure_connection(reader))
        return NULL;
    question = calloc(1, sizeof(*question));
    if (!question) {
        snprintf(reader->error, sizeof(reader->error), "out of memory");
        return NULL;
    }
    question->reader = reader;
    question->kind = kind;
    question->context = context;
    question->owed = 1; /* released by put(), so that it ends only when all of it has been asked */
    if (reader->asked++ == 0)
        arm(reader, READER_TIMEOUT_MS);
    return question;
}

static void put(struct question *question)
{
    if (--question->owed == 0)
        finish(question);
}

static struct asked *asked_new(struct question *question, uint32_t shard)
{
    struct asked *asked = calloc(1, sizeof(*asked));

    if (!asked) {
        fail(question, "out of memory");
        return NULL;
    }
    asked->question = question;
    asked->shard = shard;
    question->owed++;
    return asked;
}

/* hiredis has not taken it, so it will not call back. */
static void untaken(struct asked *asked)
{
    fail(asked->question, "the connection is closing");
    asked->question->owed--;
    free(asked);
}

#define ARGUMENTS_MAX 4

static void ask_script(struct question *question, enum script_id id, uint32_t shard,
                       const struct span *arguments, size_t arguments_len)
{
    const char *argv[3 + SHARD_KEY_COUNT + ARGUMENTS_MAX] = {"EVALSHA", scripts[id].sha1, SHARD_KEYS_TEXT};
    size_t argv_len[ARRAY_LEN(argv)];
    struct asked *asked = asked_new(question, shard);
    struct reader *reader = question->reader;
    struct shard_keys keys;

    if (!asked)
        return;
    keyspace_shard_keys(&keys, config_shard_namespace(reader->config, shard),
                        config_shard_number(reader->config, shard));
    for (size_t i = 0; i < SHARD_KEY_COUNT; i++)
        argv[3 + i] = keys.name[i];
    for (size_t i = 0; i < 3 + SHARD_KEY_COUNT; i++)
        argv_len[i] = strlen(argv[i]);
    assert(arguments_len <= ARGUMENTS_MAX);
    for (size_t i = 0; i < arguments_len; i++) {
        argv[3 + SHARD_KEY_COUNT + i] = arguments[i].ptr;
        argv_len[3 + SHARD_KEY_COUNT + i] = arguments[i].len;
    }
    if (!reader->redis ||
        redisAsyncCommandArgv(reader->redis, on_answer, asked, (int)(3 + SHARD_KEY_COUNT + arguments_len),
                              argv, argv_len) != REDIS_OK)
        untaken(asked);
}

static void ask_info(struct question *question)
{
    struct asked *asked = asked_new(question, 0);

    if (!asked)
        return;
    asked->is_info = true;
    if (redisAsyncCommand(question->reader->redis, on_answer, asked, "INFO") != REDIS_OK)
        untaken(asked);
}

void reader_ask_look(struct reader *reader, int64_t age_ms_max, reader_on_look *on_look, void *context)
{
    int64_t age_ms = clock_monotonic_ms() - reader->look.taken_ms;
    struct question *question;

    if (reader->looking || (reader->look.taken_ms != 0 && age_ms <= age_ms_max && reader->failed_ms == 0)) {
        on_look(context, &reader->look, NULL);
        return;
    }
    question = question_new(reader, QUESTION_LOOK, context);
    if (!question) {
        on_look(context, &reader->look, reader->error);
        return;
    }
    reader->looking = true;
    question->tell.look = on_look;
    question->look = (struct reader_look){.taken_ms = clock_monotonic_ms(),
                                          .sealed_total_known = true,
                                          .open_age_ms = -1,
                                          .sealed_age_ms = -1,
                                          .sealed_for_ms = -1,
                                          .released_ago_ms = -1,
                                          .appendonly = true};
    ask_info(question);
    for (uint32_t shard = 0; shard < config_shards(reader->config); shard++) {
        struct span gen = span_of(reader->sealed[shard].gen);
        ask_script(question, SCRIPT_LOOK, shard, &gen, 1);
    }
    put(question);
}

void reader_ask_pending(struct reader *reader, struct span key, reader_on_pending *on_pending, void *context)
{
    const struct targets *targets = reader->config->targets;
    uint32_t shard = targets_shard(targets, targets_route(targets, key).lane, keyspace_hash(key),
                                   config_shards(reader->config));
    struct question *question = question_new(reader, QUESTION_PENDING, context);
    bool in_buckets = targets->bucket_s > 0;
    char glob[MEMBER_GLOB_LEN_MAX];
    struct span arguments[] = {key,
                               {glob, in_buckets ? member_glob(key, glob) : 0},
                               span_of(MEMBER_SCAN_MAX),
                               span_of(merge_name(config_shard_merge(reader->config, shard)))};

    if (!question) {
        on_pending(context, NULL, reader->error);
        return;
    }
    question->tell.pending = on_pending;
    ask_script(question, SCRIPT_PEEK, shard, arguments, ARRAY_LEN(arguments));
    put(question);
}

void reader_ask_top(struct reader *reader, size_t n, reader_on_top *on_top, void *context)
{
    struct question *question = question_new(reader, QUESTION_TOP, context);
    char number[NUMBER_BYTES];
    struct span wanted = {number, (size_t)snprintf(number, sizeof(number), "%zu", n)};

    assert(n >= 1 && n <= READER_TOP_MAX);
    if (!question) {
        on_top(context, NULL, 0, reader->error);
        return;
    }
    question->tell.top = on_top;
    question->wanted = n;
    question->keys = calloc(3 * n, sizeof(*question->keys));
    if (!question->keys)
        fail(question, "out of memory");
    for (uint32_t shard = 0; question->keys && shard < config_shards(reader->config); shard++)
        if (config_shard_merge(reader->config, shard) == MERGE_ADD)
            ask_script(question, SCRIPT_LARGEST, shard, &wanted, 1);
    put(question);
}
