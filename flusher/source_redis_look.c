#include "flusher/source_redis.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "flusher/failure.h"
#include "flusher/redis.h"
#include "flusher/source_redis_private.h"
#include "flusher/whole.h"
#include "lib/member.h"
#include "lib/targets.h"

static int compare_shards(const struct source_redis *source, const struct redisReply *reply,
                          struct error *error)
{
    int64_t recorded;

    if (!reply_number(reply, &recorded))
        return reply_misunderstood("GET shards", error);
    if (recorded == source_redis_config(source)->shards)
        return 0;
    return error_set(
        error, FAILURE_CONFIG,
        "'shards' is %" PRId64 ", but Redis has namespace '%s' with %" PRId64
        " shards, which are fixed for its life: set 'shards' to %" PRId64 " or choose another 'namespace'",
        source_redis_config(source)->shards, source_redis_config(source)->namespace, recorded, recorded);
}

int source_redis_check_shards(struct source_redis *source, bool record, struct error *error)
{
    char key[REDIS_KEY_BYTES], shards[24];
    struct redisReply *reply;
    int r = source_redis_settle(source, error);

    keyspace_shards_key(key, source_redis_config(source)->namespace);
    snprintf(shards, sizeof(shards), "%" PRId64, source_redis_config(source)->shards);
    /* Looked at before it is written: a Redis that is full refuses every SET, and needs the flush most. */
    for (int pass = 0; r == 0 && pass < 2; pass++) {
        bool missing;
        r = redis_command(source_redis_connection(source), (const char *[]){"GET", key, NULL}, &reply, error);
        if (r < 0)
            return r;
        missing = reply_is_nil(reply);
        if (!missing)
            r = compare_shards(source, reply, error);
        reply_free(reply);
        if (!missing || !record)
            return r;
        r = redis_command(source_redis_connection(source), (const char *[]){"SET", key, shards, "NX", NULL},
                          NULL, error);
    }
    return r;
}

int source_redis_peek(struct source_redis *source, struct span key, struct peek *ret_peek,
                      struct error *error)
{
    const struct config *config = source_redis_config(source);
    uint32_t shard = keyspace_shard(keyspace_hash(key), (uint32_t)config->shards);
    bool in_buckets = config->targets->bucket_s > 0;
    char glob[MEMBER_GLOB_LEN_MAX];
    int64_t whole = 0;
    struct peek peek;
    struct redisReply *reply;
    struct span args[] = {key,
                          {glob, in_buckets ? member_glob(key, glob) : 0},
                          span_of(MEMBER_SCAN_MAX),
                          span_of(merge_name(config->lanes[config->lane].merge))};
    int r = source_redis_script(source, SCRIPT_PEEK, shard, args, ARRAY_LEN(args), &reply, error);

    if (r < 0)
        return r;
    peek.in_open = !reply_text_is(reply, 0, "");
    peek.in_sealed = !reply_text_is(reply, 1, "");
    if (!reply_whole(reply, 0, &peek.open) || !reply_whole(reply, 1, &peek.sealed) ||
        !source_redis_take_id(reply, 2, peek.sealed_id) || !source_redis_take_id(reply, 3, peek.prev_id) ||
        !reply_whole(reply, 4, &whole))
        r = reply_misunderstood("peek", error);
    peek.whole = whole == 1;
    if (r == 0)
        *ret_peek = peek;
    reply_free(reply);
    return r;
}

int source_redis_state(struct source_redis *source, uint32_t shard, struct shard_state *ret_state,
                       struct error *error)
{
    struct shard_state state;
    struct redisReply *reply;
    int r = source_redis_script(source, SCRIPT_STATE, shard, NULL, 0, &reply, error);

    if (r < 0)
        return r;
    if (!reply_whole(reply, 0, &state.now_ms) || !reply_whole(reply, 1, &state.open_members) ||
        !reply_whole(reply, 2, &state.sealed_members) || !reply_whole(reply, 3, &state.accepted) ||
        !reply_whole(reply, 4, &state.accepted_at_seal) || !reply_whole(reply, 5, &state.events) ||
        !reply_whole(reply, 6, &state.events_at_seal) || !source_redis_take_id(reply, 7, state.sealed_id) ||
        !source_redis_take_id(reply, 8, state.prev_id) || !reply_whole(reply, 9, &state.opened_ms) ||
        !reply_whole(reply, 10, &state.sealed_opened_ms))
        r = reply_misunderstood("state", error);
    else
        *ret_state = state;
    reply_free(reply);
    return r;
}

int source_redis_forget(struct source_redis *source, uint32_t shard, const char *const *writers,
                        size_t writers_len, struct error *error)
{
    static const enum shard_key hashes[] = {SHARD_KEY_WRITERS, SHARD_KEY_DURABLE};
    const char **words = calloc(2 + writers_len + 1, sizeof(*words));
    struct shard_keys keys;
    int r = words ? source_redis_settle(source, error) : error_set(error, -ENOMEM, "out of memory");

    keyspace_shard_keys(&keys, source_redis_config(source)->namespace, shard);
    for (size_t i = 0; i < ARRAY_LEN(hashes) && r == 0; i++) {
        words[0] = "HDEL";
        words[1] = keys.name[hashes[i]];
        memcpy(words + 2, writers, writers_len * sizeof(*words));
        r = redis_command(source_redis_connection(source), words, NULL, error);
    }
    free(words);
    return r;
}

int source_redis_catch_up(struct source_redis *source, uint32_t shard, const struct shard_state *seen,
                          const char *head_id, const struct correction *ahead, bool *ret_done,
                          struct error *error)
{
    const int64_t totals[] = {seen->accepted, whole_add(seen->accepted, ahead->total),
                              whole_add(seen->accepted_at_seal, ahead->total),
                              whole_add(seen->events, ahead->events),
                              whole_add(seen->events_at_seal, ahead->events)};
    char numbers[ARRAY_LEN(totals)][24];
    struct span args[2 + ARRAY_LEN(totals)] = {span_of(seen->prev_id), [2] = span_of(head_id)};
    struct redisReply *reply;
    int r;

    for (size_t i = 0; i < ARRAY_LEN(totals); i++) {
        snprintf(numbers[i], sizeof(numbers[i]), "%" PRId64, totals[i]);
        args[i == 0 ? 1 : 2 + i] = span_of(numbers[i]);
    }
    r = source_redis_script(source, SCRIPT_CATCH_UP, shard, args, ARRAY_LEN(args), &reply, error);
    if (r < 0)
        return r;
    *ret_done = reply_text_is(reply, 0, "CAUGHT_UP");
    if (!*ret_done && !reply_text_is(reply, 0, "GONE"))
        r = reply_misunderstood("catch_up", error);
    reply_free(reply);
    return r;
}

/* An audit adds up this many members of a set at most in one go: a few milliseconds. */
#define AUDIT_MEMBERS "4000"

static bool take_holdings(const struct redisReply *reply, struct shard_holdings *holdings)
{
    struct span durable;

    holdings->set_aside = reply_text_is(reply, 4, "1");
    holdings->open_known = !reply_text_is(reply, 7, "");
    holdings->sealed_known = !reply_text_is(reply, 8, "");
    return reply_whole(reply, 0, &holdings->accepted) && reply_whole(reply, 1, &holdings->accepted_at_seal) &&
           source_redis_take_id(reply, 2, holdings->sealed_id) &&
           source_redis_take_id(reply, 3, holdings->prev_id) &&
           reply_whole(reply, 5, &holdings->open_members) &&
           reply_whole(reply, 6, &holdings->sealed_members) && reply_whole(reply, 7, &holdings->open) &&
           reply_whole(reply, 8, &holdings->sealed) && reply_text(reply, 9, &durable) &&
           (holdings->durable = strndup(durable.ptr, durable.len));
}

/* In pages, because nobody writes to it any more. */
static int add_up_sealed(struct source_redis *source, uint32_t shard, struct shard_holdings *holdings,
                         struct error *error)
{
    struct source seam = source_redis_seam(source);
    struct updates updates = {0};
    int64_t sum = 0;
    size_t before;
    int r;

    do {
        before = updates.len;
        r = seam.read(seam.context, shard, holdings->sealed_id, &updates, error);
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
    struct redisReply *reply;
    int r = source_redis_script(source, SCRIPT_AUDIT, shard, (struct span[]){span_of(AUDIT_MEMBERS)}, 1,
                                &reply, error);

    if (r < 0)
        return r;
    if (!take_holdings(reply, &holdings))
        r = reply_misunderstood("audit", error);
    reply_free(reply);
    if (r == 0 && !holdings.sealed_known && holdings.sealed_id[0] != '\0')
        r = add_up_sealed(source, shard, &holdings, error);
    *ret_holdings = holdings;
    return r;
}
