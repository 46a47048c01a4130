#include "flusher/source_redis.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "flusher/failure.h"
#include "flusher/redis.h"
#include "flusher/source_redis_private.h"
#include "flusher/whole.h"
#include "lib/id.h"
#include "lib/log.h"
#include "lib/member.h"

/* Members per read: a page holds Redis for a few milliseconds at most. */
#define PAGE_MEMBERS  5000
#define PAGE_COMMANDS 3 /* which generation, its members, which generation */

/* The same for a page that comes along with a seal. Redis may do all that was sent ahead in one go. */
#define AHEAD_MEMBERS 300

/* Releases sent before their answers are waited for. */
#define RELEASES_MAX 64

struct page {
    char id[GENERATION_ID_LEN_MAX + 1]; /* the generation that it is of; "" = none, or it changed meanwhile */
    struct redisReply *members;         /* NULL = there is no page */
};

/* What was asked before anybody wanted it. */
struct ahead {
    struct redisReply *seal; /* NULL = nothing */
    struct page page;        /* the first one of what was sealed */
};

struct source_redis {
    const struct config *config;
    struct redis *redis;
    uint64_t ahead_connection;            /* that it came by */
    uint32_t ahead_first;                 /* shard */
    struct ahead ahead[SOURCE_AHEAD_MAX]; /* of the shards from there on */
    uint32_t page_shard;
    struct page page; /* of page_shard, taken out of `ahead` */
    size_t releases;  /* sent, and not answered yet */
};

int source_redis_new(const struct config *config, struct source_redis **ret_source, struct error *error)
{
    struct source_redis *source = calloc(1, sizeof(*source));
    int r;

    if (!source)
        return error_set(error, -ENOMEM, "out of memory");
    source->config = config;
    r = redis_new(config, &source->redis, error);
    if (r < 0)
        free(source);
    else
        *ret_source = source;
    return r;
}

static void page_done(struct page *page)
{
    reply_free(page->members);
    *page = (struct page){0};
}

static void forget_ahead(struct source_redis *source)
{
    for (size_t i = 0; i < SOURCE_AHEAD_MAX; i++) {
        reply_free(source->ahead[i].seal);
        page_done(&source->ahead[i].page);
        source->ahead[i] = (struct ahead){0};
    }
    page_done(&source->page);
}

void source_redis_free(struct source_redis *source)
{
    if (!source)
        return;
    forget_ahead(source);
    redis_free(source->redis);
    free(source);
}

const struct config *source_redis_config(const struct source_redis *source)
{
    return source->config;
}

struct redis *source_redis_connection(struct source_redis *source)
{
    return source->redis;
}

int source_redis_settle(struct source_redis *source, struct error *error)
{
    struct error ignored;
    struct redisReply *reply;
    int r = 0;

    for (; source->releases > 0; source->releases--) {
        int received = redis_receive(source->redis, &reply, r < 0 ? &ignored : error);
        if (received < 0) {
            source->releases = 0;
            return r < 0 ? r : received;
        }
        if (r == 0)
            r = reply_check(reply, error);
        if (r == 0 && !reply_text_is(reply, 0, "RELEASED") && !reply_text_is(reply, 0, "GONE"))
            r = reply_misunderstood("release", error);
        reply_free(reply);
    }
    return r;
}

int source_redis_script(struct source_redis *source, enum script_id id, uint32_t shard,
                        const struct span *args, size_t args_len, struct redisReply **ret_reply,
                        struct error *error)
{
    int r = source_redis_settle(source, error);

    return r < 0 ? r : redis_script(source->redis, id, shard, args, args_len, ret_reply, error);
}

/* --- replies --- */

bool source_redis_take_id(const struct redisReply *reply, size_t index,
                          char ret_id[GENERATION_ID_LEN_MAX + 1])
{
    struct span text;

    if (!reply_text(reply, index, &text) || text.len > GENERATION_ID_LEN_MAX)
        return false;
    memcpy(ret_id, text.ptr, text.len);
    ret_id[text.len] = '\0';
    return true;
}

/* The pairs of writer and "low-high" from element `from` on. */
static bool take_batches(const struct redisReply *reply, size_t from, struct generation *generation)
{
    size_t len = (reply_len(reply) - from) / 2;

    if ((reply_len(reply) - from) % 2 != 0)
        return false;
    generation->batches = calloc(len + 1, sizeof(struct batches));
    if (!generation->batches)
        return false;
    for (size_t i = 0; i < len; i++) {
        struct batches *batches = &generation->batches[i];
        struct span writer, range;
        if (!reply_text(reply, from + 2 * i, &writer) || !reply_text(reply, from + 2 * i + 1, &range) ||
            !whole_parse_range(range, &batches->low, &batches->high))
            return false;
        batches->writer = strndup(writer.ptr, writer.len);
        if (!batches->writer)
            return false;
        generation->batches_len++;
    }
    return true;
}

static bool take_generation(const struct redisReply *reply, struct generation *generation)
{
    int64_t members;

    if (reply_len(reply) < 11 || !source_redis_take_id(reply, 2, generation->id) ||
        !source_redis_take_id(reply, 4, generation->prev_id) ||
        !reply_whole(reply, 5, &generation->opened_ms) || !reply_whole(reply, 6, &generation->sealed_ms) ||
        !reply_whole(reply, 7, &generation->last_append_ms) ||
        !reply_whole(reply, 8, &generation->accepted_at_seal) ||
        !reply_whole(reply, 9, &generation->events_at_seal) || !reply_whole(reply, 10, &members) ||
        generation->id[0] == '\0' || members < 0)
        return false;
    generation->recovered = !reply_text_is(reply, 3, "1");
    generation->set_aside = reply_text_is(reply, 3, "ASIDE");
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

static int take_page(const struct redisReply *page, struct updates *updates, struct error *error)
{
    for (size_t i = 0; i + 1 < reply_len(page); i += 2) {
        struct span member, key, score;
        int64_t delta, bucket;
        if (!reply_text(page, i, &member) || !reply_text(page, i + 1, &score))
            return reply_misunderstood("read", error);
        key = member_split(member, &bucket);
        if (!whole_parse(score, &delta) || delta > SCORE_MAX || delta < -SCORE_MAX || key.len == 0 ||
            key.len > KEY_LEN_MAX || memchr(key.ptr, ' ', key.len) || memchr(key.ptr, '\0', key.len))
            return refuse_member(member, score, error);
        if (updates_add(updates, member, delta) < 0)
            return error_set(error, -ENOMEM,
                             "out of memory at %zu keys of one shard; more shards make it less",
                             updates->len);
    }
    return READ_PAGE;
}

/* --- replicas --- */

/* Whether enough replicas have all that Redis had done before the last answer on this connection: not only
 * what this connection wrote, so also what an earlier run sealed. */
static int wait_replicas(struct source_redis *source, struct error *error)
{
    int64_t wanted = source->config->redis.wait_replicas, timeout_ms = source->config->redis.timeout_ms, have;
    char number[24], timeout[24];
    struct redisReply *reply;
    int r;

    if (wanted == 0)
        return 0;
    snprintf(number, sizeof(number), "%" PRId64, wanted);
    snprintf(timeout, sizeof(timeout), "%" PRId64, timeout_ms);
    r = source_redis_settle(source, error);
    if (r == 0)
        r = redis_command_slow(source->redis, (const char *[]){"WAIT", number, timeout, NULL}, timeout_ms,
                               &reply, error);
    if (r < 0)
        return r;
    if (!reply_number(reply, &have))
        r = reply_misunderstood("WAIT", error);
    else if (have < wanted)
        r = error_set(error, FAILURE_LATER,
                      "%" PRId64 " of %" PRId64
                      " replicas of Redis have the sealed generation within %" PRId64
                      " ms; nothing was written to Postgres. See INFO replication, 'redis.wait_replicas' and "
                      "'redis.timeout_ms'",
                      have, wanted, timeout_ms);
    reply_free(reply);
    return r;
}

/* --- the seam --- */

/* PROTOCOL's step "read" is the one that needs no script, so that Redis is spared making a Lua table of the
 * page, a third of what reading costs it. Nor a MULTI, in which a Redis above maxmemory refuses even reading.
 * An id is asked for before and after: ids are never used twice, so what was sealed at both moments was
 * sealed in between. Returns how many of the commands were sent. */
static unsigned send_page(struct source_redis *source, uint32_t shard, size_t from, size_t members)
{
    struct shard_keys keys;
    char first[24], last[24];
    const char *const *which = (const char *[]){"HGET", keys.name[SHARD_KEY_META], "sealed_gen", NULL};
    const char *const *commands[PAGE_COMMANDS] = {
        which, (const char *[]){"ZRANGE", keys.name[SHARD_KEY_SEALED], first, last, "WITHSCORES", NULL},
        which};
    unsigned sent = 0;

    keyspace_shard_keys(&keys, source->config->namespace, shard);
    snprintf(first, sizeof(first), "%zu", from);
    snprintf(last, sizeof(last), "%zu", from + members - 1);
    while (sent < PAGE_COMMANDS && redis_send(source->redis, commands[sent]))
        sent++;
    return sent;
}

/* An error of any of the commands is a failure. */
static int receive_page(struct source_redis *source, unsigned sent, struct page *ret_page,
                        struct error *error)
{
    struct redisReply *replies[PAGE_COMMANDS] = {0};
    struct span before, after;
    int r = sent == PAGE_COMMANDS ? 0 : error_set(error, FAILURE_UNAVAILABLE, "can't send to Redis");

    for (unsigned i = 0; i < sent; i++) {
        struct error ignored;
        int received = redis_receive(source->redis, &replies[i], r < 0 ? &ignored : error);
        if (received == 0 && r == 0)
            r = reply_check(replies[i], error);
        if (received < 0) {
            r = r < 0 ? r : received;
            break;
        }
    }
    *ret_page = (struct page){0};
    if (r == 0) {
        ret_page->members = replies[1];
        replies[1] = NULL;
        if (reply_string(replies[0], &before) && reply_string(replies[2], &after) &&
            span_equal(before, after) && before.len <= GENERATION_ID_LEN_MAX)
            memcpy(ret_page->id, before.ptr, before.len);
    }
    for (unsigned i = 0; i < PAGE_COMMANDS; i++)
        reply_free(replies[i]);
    return r;
}

static int fetch_page(struct source_redis *source, uint32_t shard, size_t from, struct page *ret_page,
                      struct error *error)
{
    int r = source_redis_settle(source, error);

    if (r == 0 && from == 0 && source->page.members && source->page_shard == shard) {
        *ret_page = source->page;
        source->page = (struct page){0};
        return 0;
    }
    /* Whoever asks for a page has sealed before; so only a connection lost since then has to be made again.
     */
    if (r == 0)
        r = redis_connect(source->redis, error);
    return r < 0 ? r : receive_page(source, send_page(source, shard, from, PAGE_MEMBERS), ret_page, error);
}

static int read_page(void *context, uint32_t shard, const char *id, struct updates *updates,
                     struct error *error)
{
    struct page page;
    int r = fetch_page(context, shard, updates_added(updates), &page, error);

    if (r < 0)
        return r;
    if (!reply_is_array(page.members) || reply_len(page.members) % 2 != 0)
        r = reply_misunderstood("read", error);
    else if (strcmp(page.id, id) != 0)
        r = READ_GONE;
    else
        r = take_page(page.members, updates, error);
    page_done(&page);
    return r;
}

/* --- ahead --- */

/* Takes what came in order, as far as the connection holds. */
static void receive_ahead(struct source_redis *source, size_t seals, unsigned last_page)
{
    struct error ignored;

    for (size_t i = 0; i < seals; i++) {
        struct ahead *ahead = &source->ahead[i];
        if (redis_receive(source->redis, &ahead->seal, &ignored) < 0)
            return;
        if (reply_check(ahead->seal, &ignored) < 0) {
            reply_free(ahead->seal);
            ahead->seal = NULL;
        }
        (void)receive_page(source, i + 1 == seals ? last_page : PAGE_COMMANDS, &ahead->page, &ignored);
    }
}

/* Seals are asked for together with the first page of what they seal: a page says itself of which generation
 * it is. What goes wrong is asked for again by seal(), and what is wrong is said there. */
static void expect(void *context, uint32_t first, uint32_t len)
{
    struct source_redis *source = context;
    struct error ignored;
    unsigned last_page = PAGE_COMMANDS;
    size_t seals = 0;
    char id[ID_LEN + 1];

    forget_ahead(source);
    if (source_redis_settle(source, &ignored) < 0)
        return;
    source->ahead_first = first;
    source->ahead_connection = redis_connection(source->redis);
    for (; seals < len && seals < SOURCE_AHEAD_MAX && last_page == PAGE_COMMANDS; seals++) {
        id_new(id);
        if (!redis_send_script(source->redis, SCRIPT_SEAL, first + (uint32_t)seals,
                               (struct span[]){span_of(id)}, 1))
            break;
        last_page = send_page(source, first + (uint32_t)seals, 0, AHEAD_MEMBERS);
    }
    receive_ahead(source, seals, last_page);
}

/* What seal answered ahead, if it did; the page is kept. Not after the connection was lost: another Redis may
 * answer by now, which does not have what was sealed, so there is nothing to wait for its replicas with. */
static struct redisReply *take_ahead(struct source_redis *source, uint32_t shard)
{
    struct redisReply *seal;
    struct ahead *ahead;

    if (source->ahead_connection != redis_connection(source->redis))
        forget_ahead(source);
    if (shard < source->ahead_first || shard - source->ahead_first >= SOURCE_AHEAD_MAX)
        return NULL;
    ahead = &source->ahead[shard - source->ahead_first];
    seal = ahead->seal;
    page_done(&source->page);
    source->page = ahead->page;
    source->page_shard = shard;
    *ahead = (struct ahead){0};
    return seal;
}

/* --- the seam --- */

static int settle(void *context, struct error *error)
{
    return source_redis_settle(context, error);
}

static int seal(void *context, uint32_t shard, struct generation *ret_generation, struct error *error)
{
    char id[ID_LEN + 1];
    struct redisReply *reply = take_ahead(context, shard);
    int r = 0;

    id_new(id);
    if (!reply)
        r = source_redis_script(context, SCRIPT_SEAL, shard, (struct span[]){span_of(id)}, 1, &reply, error);
    if (r < 0)
        return r;
    if (!reply_whole(reply, 1, &ret_generation->now_ms))
        r = reply_misunderstood("seal", error);
    else if (reply_text_is(reply, 0, "NONE"))
        r = SEAL_NONE;
    else if (reply_text_is(reply, 0, "SEALED") && take_generation(reply, ret_generation))
        r = SEAL_SEALED;
    else
        r = reply_misunderstood("seal", error);
    reply_free(reply);
    if (r == SEAL_SEALED) {
        int waited = wait_replicas(context, error);
        r = waited < 0 ? waited : r;
    }
    return r;
}

/* A step that was done, or that somebody else has done. */
static int run_step(struct source_redis *source, enum script_id id, uint32_t shard, const struct span *args,
                    size_t args_len, const char *done, struct error *error)
{
    struct redisReply *reply;
    int r = source_redis_script(source, id, shard, args, args_len, &reply, error);

    if (r < 0)
        return r;
    if (!reply_text_is(reply, 0, done) && !reply_text_is(reply, 0, "GONE"))
        r = reply_misunderstood(scripts[id].name, error);
    reply_free(reply);
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
    struct source_redis *source = context;
    char total[24], events[24];
    struct span args[] = {span_of(id), spell(total, correction->total), spell(events, correction->events)};

    if (source->releases < RELEASES_MAX &&
        redis_send_script(source->redis, SCRIPT_RELEASE, shard, args, ARRAY_LEN(args))) {
        source->releases++;
        return 0;
    }
    return run_step(source, SCRIPT_RELEASE, shard, args, ARRAY_LEN(args), "RELEASED", error);
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
    return (struct source){source, seal, read_page, release, reset, settle, expect};
}
