#include "flusher/preview.h"

#include <stdio.h>

#include "flusher/failure.h"
#include "flusher/redis.h"
#include "flusher/shares.h"
#include "flusher/whole.h"

#define PAGE_MEMBERS "1000"
#define CURSOR_BYTES 24

static int take_members(const struct redisReply *page, struct updates *updates, struct error *error)
{
    for (size_t i = 0; i + 1 < reply_len(page); i += 2) {
        struct span member, score;
        int64_t delta;
        if (!reply_text(page, i, &member) || !reply_text(page, i + 1, &score) || !whole_parse(score, &delta))
            return reply_misunderstood("ZSCAN", error);
        if (updates_add(updates, member, delta) < 0)
            return error_set(error, -ENOMEM, "out of memory");
    }
    return 0;
}

/* A page from `cursor` on, which moves. */
static int scan_page(struct redis *redis, const char *set, char cursor[CURSOR_BYTES], struct updates *updates,
                     struct error *error)
{
    const char *const words[] = {"ZSCAN", set, cursor, "COUNT", PAGE_MEMBERS, NULL};
    struct redisReply *reply;
    struct span next;
    int r = redis_command(redis, words, &reply, error);

    if (r < 0)
        return r;
    if (!reply_text(reply, 0, &next) || next.len >= CURSOR_BYTES) {
        r = reply_misunderstood("ZSCAN", error);
    } else {
        snprintf(cursor, CURSOR_BYTES, "%.*s", (int)next.len, next.ptr);
        r = take_members(reply_element(reply, 1), updates, error);
    }
    reply_free(reply);
    return r;
}

/* SCAN may give a member twice. */
static void drop_repeated(struct updates *updates)
{
    size_t kept = 0;

    updates_order(updates);
    for (size_t i = 0; i < updates->len; i++)
        if (kept == 0 || !span_equal(updates_key(updates, kept - 1), updates_key(updates, i)))
            updates->items[kept++] = updates->items[i];
    updates->len = kept;
}

static int read_set(struct redis *redis, const char *set, struct updates *updates, struct error *error)
{
    char cursor[CURSOR_BYTES] = "0";
    int r;

    updates_clear(updates);
    do
        r = scan_page(redis, set, cursor, updates, error);
    while (r == 0 && strcmp(cursor, "0") != 0);
    drop_repeated(updates);
    return r;
}

static int add_shares(const struct config *config, const struct updates *updates, struct shares *shares,
                      struct preview *previews, struct error *error)
{
    if (shares_deal(shares, updates, config->targets, config->lane) < 0)
        return error_set(error, -ENOMEM, "out of memory");
    for (size_t i = 0; i < shares->len; i++) {
        const struct share *share = &shares->items[i];
        previews[share->target].keys++;
        for (size_t j = share->first; j < share->first + share->len; j++)
            previews[share->target].total = whole_add(previews[share->target].total, updates->items[j].delta);
    }
    return 0;
}

int preview_read(const struct config *config, struct preview *ret_previews, struct error *error)
{
    static const enum shard_key sets[] = {SHARD_KEY_OPEN, SHARD_KEY_SEALED};
    struct updates updates = {0};
    struct shares shares = {0};
    struct redis *redis = NULL;
    int r = redis_new(config, &redis, error);

    for (size_t i = 0; i <= config->targets->len; i++)
        ret_previews[i] = (struct preview){0};
    for (uint32_t shard = 0; r == 0 && shard < (uint32_t)config->shards; shard++) {
        struct shard_keys keys;
        keyspace_shard_keys(&keys, config->namespace, shard);
        for (size_t i = 0; r == 0 && i < ARRAY_LEN(sets); i++) {
            r = read_set(redis, keys.name[sets[i]], &updates, error);
            if (r == 0)
                r = add_shares(config, &updates, &shares, ret_previews, error);
        }
    }
    redis_free(redis);
    shares_done(&shares);
    updates_done(&updates);
    return r;
}
