#include "counterd/once.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/decimal.h"
#include "lib/member.h"

bool once_read_token(const char *header, char ret_token[TOKEN_LEN_MAX + 1])
{
    size_t len = strlen(header);
    bool quoted = len >= 2 && header[0] == '"' && header[len - 1] == '"';
    struct span token = {header + quoted, len - (quoted ? 2 : 0)};

    if (token.len == 0 || token.len > TOKEN_LEN_MAX)
        return false;
    for (size_t i = 0; i < token.len; i++)
        if (token.ptr[i] <= 0x20 || token.ptr[i] > 0x7e || token.ptr[i] == '"' || token.ptr[i] == '\\')
            return false;
    memcpy(ret_token, token.ptr, token.len);
    ret_token[token.len] = '\0';
    return true;
}

/* The writer stands for token and body. Were it the token alone, then after a rollback, which takes the
 * marker along, another body would count as applied, in silence. */
static void name_request(struct once *once, const struct once_options *options)
{
    char both[TOKEN_LEN_MAX + 1 + DIGEST_LEN + 1], digest[DIGEST_LEN + 1];

    snprintf(once->token, sizeof(once->token), "%s", options->token);
    keyspace_digest(once->digest, options->body);
    snprintf(both, sizeof(both), "%s %s", once->token, once->digest);
    keyspace_digest(digest, span_of(both));
    snprintf(once->writer, sizeof(once->writer), TOKEN_WRITER "%s", digest);
}

static void begin_part(struct once *once, uint32_t shard, const struct once_item *items)
{
    once->parts[once->parts_len++] = (struct once_part){.once = once, .shard = shard, .items = items};
}

/* Moves a shard's increments out of the table; what has been used of `keys` before is `keys_len`. */
static size_t fill_part(struct once *once, struct once_part *part, struct table *table, size_t keys_len)
{
    struct once_item *items = once->items + (part->items - once->items);
    struct table_item item;

    while (table_pop(table, part->shard, &item)) {
        char *key = once->keys + keys_len;
        assert(item.micros % MICROS_PER_UNIT == 0);
        memcpy(key, item.key.ptr, item.key.len);
        keys_len += item.key.len;
        items[part->items_len++] = (struct once_item){{key, item.key.len}, item.micros / MICROS_PER_UNIT};
        part->events += item.events;
    }
    return keys_len;
}

struct once *once_new(const struct once_options *options)
{
    struct once *once = calloc(1, sizeof(*once));
    size_t keys = table_keys(options->table), keys_len = 0, items_len = 0;
    uint32_t home = keyspace_shard(keyspace_hash(span_of(options->token)), options->homes);

    if (once) {
        /* A key is as long as it may be only rarely: what is not touched costs nothing. */
        once->keys = malloc(keys * MEMBER_LEN_MAX + 1);
        once->items = calloc(keys + 1, sizeof(*once->items));
        once->parts = calloc(options->shards, sizeof(*once->parts));
    }
    if (!once || !once->keys || !once->items || !once->parts) {
        once_free(once);
        return NULL;
    }
    once->context = options->context;
    name_request(once, options);
    for (uint32_t i = 0; i < options->shards; i++) {
        uint32_t shard = (home + i) % options->shards;
        if (i > 0 && !table_has(options->table, shard))
            continue;
        begin_part(once, shard, once->items + items_len);
        keys_len = fill_part(once, &once->parts[once->parts_len - 1], options->table, keys_len);
        items_len += once->parts[once->parts_len - 1].items_len;
    }
    return once;
}

void once_free(struct once *once)
{
    if (!once)
        return;
    free(once->parts);
    free(once->items);
    free(once->keys);
    free(once);
}

struct once_part *once_next(struct once *once)
{
    size_t reachable = once->parts[0].stage == ONCE_DONE ? once->parts_len : 1;

    for (size_t i = 0; i < reachable && !once->differs; i++) {
        struct once_part *part = &once->parts[i];
        if (part->stage == ONCE_TO_SEND) {
            part->stage = ONCE_SENT;
            return part;
        }
    }
    return NULL;
}

uint64_t once_tell(struct once *once, struct once_part *part, enum once_outcome outcome)
{
    bool ours = outcome == ONCE_APPLIED || (outcome == ONCE_FOUND && part->resent);

    assert(part->stage == ONCE_SENT);
    part->stage = ONCE_TO_SEND;
    switch (outcome) {
    case ONCE_APPLIED:
    case ONCE_FOUND:
        part->stage = ONCE_DONE;
        once->fresh |= ours;
        if (!ours || part->counted)
            break;
        part->counted = true;
        return part->events;
    case ONCE_OTHER:
        once->differs = true;
        break;
    case ONCE_UNKNOWN:
        part->resent = true;
        break;
    case ONCE_REFUSED:
        break;
    }
    return 0;
}

void once_doubt(struct once *once)
{
    for (size_t i = 0; i < once->parts_len; i++)
        if (once->parts[i].stage == ONCE_DONE)
            once->parts[i].stage = ONCE_TO_SEND;
}

bool once_is_idle(const struct once *once)
{
    for (size_t i = 0; i < once->parts_len; i++)
        if (once->parts[i].stage == ONCE_SENT)
            return false;
    return true;
}

enum once_verdict once_verdict(const struct once *once)
{
    if (once->differs)
        return ONCE_DIFFERS;
    for (size_t i = 0; i < once->parts_len; i++)
        if (once->parts[i].stage != ONCE_DONE)
            return ONCE_UNFINISHED;
    return once->fresh ? ONCE_STORED : ONCE_DUPLICATE;
}
