#include "counterd/store.h"

#include <assert.h>
#include <event2/event.h>
#include <hiredis/hiredis.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "counterd/link.h"
#include "counterd/request.h"
#include "lib/keyspace.h"

/* An answer that is kept back until the replicas have what it tells of. */
struct held {
    bool there;
    uint64_t durable;
};

struct store {
    const struct config *config;
    struct store_callbacks callbacks;
    struct link *link;
    bool script_known; /* Redis has the script: EVALSHA will do */
    /* redis.wait_replicas: appends of one turn of the loop share a WAIT behind them. */
    struct event *turn_end;
    bool wait_due;
    struct held held[SHARDS_MAX];
    TAILQ_HEAD(held_parts, once_part) held_parts;
    struct request request; /* the one that is being written */
};

static bool starts_with(const char *text, const char *prefix)
{
    return strncmp(text, prefix, strlen(prefix)) == 0;
}

/* --- replicas --- */

static void tell_part(struct store *store, struct once_part *part, enum once_outcome outcome, const char *why)
{
    store->callbacks.on_part(store->callbacks.context, part, outcome, why);
}

/* The parts that are held become `outcome`; if that is ONCE_APPLIED, what Redis said of each. */
static void tell_held_parts(struct store *store, enum once_outcome outcome, const char *why)
{
    struct held_parts parts = TAILQ_HEAD_INITIALIZER(parts);
    struct once_part *part;

    /* Whoever is told may send again at once, and that would be held too. */
    TAILQ_CONCAT(&parts, &store->held_parts, held);
    while ((part = TAILQ_FIRST(&parts))) {
        TAILQ_REMOVE(&parts, part, held);
        tell_part(store, part, outcome == ONCE_APPLIED && part->found ? ONCE_FOUND : outcome, why);
    }
}

/* The shards' batches that are held become `reply`. */
static void tell_held(struct store *store, enum store_reply reply, const char *why)
{
    for (uint32_t shard = 0; shard < config_shards(store->config); shard++) {
        struct held held = store->held[shard];
        store->held[shard].there = false;
        if (held.there)
            store->callbacks.on_reply(store->callbacks.context, shard, reply, held.durable, why);
    }
}

static void on_wait(void *context, void *tag, const redisReply *reply)
{
    struct store *store = context;
    char why[160];

    (void)tag;
    /* Whoever is held is told by on_link_lost(). */
    if (!reply)
        return;
    if (reply->type == REDIS_REPLY_INTEGER && reply->integer >= store->config->redis.wait_replicas) {
        tell_held(store, STORE_APPLIED, NULL);
        tell_held_parts(store, ONCE_APPLIED, NULL);
        return;
    }
    if (reply->type == REDIS_REPLY_INTEGER)
        snprintf(why, sizeof(why), "%lld of %" PRId64 " replicas have it within %" PRId64 " ms",
                 reply->integer, store->config->redis.wait_replicas, store->config->redis.timeout_ms);
    else
        snprintf(why, sizeof(why), "WAIT: %.120s", reply->type == REDIS_REPLY_ERROR ? reply->str : "?");
    tell_held(store, STORE_UNREPLICATED, why);
    tell_held_parts(store, ONCE_REFUSED, why);
}

/* WAIT covers all that Redis has done on this connection before it, so also what another append found done.
 */
static void on_turn_end(evutil_socket_t fd, short events, void *data)
{
    struct store *store = data;
    struct link_command command = {.callback = on_wait, .patience_ms = store->config->redis.timeout_ms};

    (void)fd;
    (void)events;
    if (!store->wait_due || !link_ready(store->link))
        return;
    store->wait_due = false;
    request_begin(&store->request);
    request_add_text(&store->request, "WAIT");
    request_add_number(&store->request, store->config->redis.wait_replicas);
    request_add_number(&store->request, store->config->redis.timeout_ms);
    command.bytes = request_end(&store->request);
    (void)link_send(store->link, &command);
}

static void want_wait(struct store *store)
{
    if (store->config->redis.wait_replicas == 0)
        return;
    store->wait_due = true;
    event_active(store->turn_end, EV_TIMEOUT, 0);
}

/* --- commands --- */

/* EVALSHA, or EVAL with the script's text; then its keys, with `marker` if it is not NULL. */
static void begin_script(struct store *store, const struct script *script, bool known, uint32_t shard,
                         const char *marker)
{
    struct request *request = &store->request;
    struct shard_keys keys;

    keyspace_shard_keys(&keys, config_shard_namespace(store->config, shard),
                        config_shard_number(store->config, shard));
    request_begin(request);
    request_add_text(request, known ? "EVALSHA" : "EVAL");
    request_add_text(request, known ? script->sha1 : script->text);
    request_add_number(request, SHARD_KEY_COUNT + (marker != NULL));
    for (int i = 0; i < SHARD_KEY_COUNT; i++)
        request_add_text(request, keys.name[i]);
    if (marker)
        request_add_text(request, marker);
}

/* Behind all else. */
static void add_merge(struct store *store, uint32_t shard)
{
    enum merge merge = config_shard_merge(store->config, shard);

    if (merge != MERGE_ADD)
        request_add_text(&store->request, merge_name(merge));
}

static bool send_script(struct store *store, link_callback *callback, void *tag)
{
    struct link_command command = {request_end(&store->request), callback, tag, 0};

    return link_send(store->link, &command);
}

enum answer { ANSWER_OK, ANSWER_DUP, ANSWER_GAP, ANSWER_OTHER, ANSWER_FULL, ANSWER_NO_SCRIPT, ANSWER_ERROR };

static enum answer read_error(struct store *store, const char *text)
{
    /* We talk to a replica now, as after a failover: look again for who is in charge. */
    if (starts_with(text, "READONLY"))
        link_give_up(store->link, text);
    if (!starts_with(text, "NOSCRIPT"))
        return ANSWER_ERROR;
    /* After SCRIPT FLUSH; the text of the script goes along next time. */
    store->script_known = false;
    return ANSWER_NO_SCRIPT;
}

/* What the append script answers; `ret_why` says what is wrong. */
static enum answer read_answer(struct store *store, const redisReply *reply, uint64_t *ret_seq,
                               const char **ret_why)
{
    static const char *const words[] = {"OK", "DUP", "GAP", "OTHER", "FULL"};

    *ret_seq = 0;
    *ret_why =
        reply->type == REDIS_REPLY_ERROR ? reply->str : "an answer that is not one of the append script's";
    if (reply->type == REDIS_REPLY_ERROR)
        return read_error(store, reply->str);
    if (reply->type != REDIS_REPLY_ARRAY || reply->elements != 2 ||
        reply->element[0]->type != REDIS_REPLY_STRING || reply->element[1]->type != REDIS_REPLY_STRING)
        return ANSWER_ERROR;
    for (size_t i = 0; i < ARRAY_LEN(words); i++) {
        if (strcmp(reply->element[0]->str, words[i]) != 0)
            continue;
        store->script_known = true;
        *ret_seq = strtoull(reply->element[1]->str, NULL, 10);
        *ret_why = i == ANSWER_FULL ? "a score of this shard is at its limit until the next flush" : "";
        return (enum answer)i;
    }
    return ANSWER_ERROR;
}

static void on_append(void *context, void *tag, const redisReply *reply)
{
    struct store *store = context;
    uint32_t shard = (uint32_t)(uintptr_t)tag;
    enum store_reply outcome = STORE_REFUSED;
    enum answer answer;
    const char *why;
    uint64_t seq;

    /* The connection has ended: on_lost() tells. */
    if (!reply)
        return;
    answer = read_answer(store, reply, &seq, &why);
    if (answer == ANSWER_OK || answer == ANSWER_DUP)
        outcome = STORE_APPLIED;
    else if (answer == ANSWER_GAP)
        outcome = STORE_GAP;
    if (outcome == STORE_APPLIED && store->config->redis.wait_replicas > 0)
        store->held[shard] = (struct held){true, seq};
    else
        store->callbacks.on_reply(store->callbacks.context, shard, outcome, seq, why);
}

void store_append(struct store *store, uint32_t shard, const char *writer, uint64_t known_durable,
                  const struct batch *batch)
{
    struct request *request = &store->request;
    struct span key;
    int64_t delta;
    size_t at = 0;

    begin_script(store, &scripts[SCRIPT_APPEND], store->script_known, shard, NULL);
    request_add_text(request, writer);
    request_add_number(request, (int64_t)batch->seq);
    request_add_number(request, (int64_t)known_durable);
    request_add_number(request, (int64_t)batch->events);
    while (batch_next_entry(batch, &at, &key, &delta)) {
        request_add(request, key);
        request_add_number(request, delta);
    }
    add_merge(store, shard);
    (void)send_script(store, on_append, (void *)(uintptr_t)shard);
    want_wait(store);
}

static bool send_part(struct store *store, struct once_part *part);

static void on_append_once(void *context, void *tag, const redisReply *reply)
{
    static const enum once_outcome outcomes[] = {
        [ANSWER_OK] = ONCE_APPLIED,    [ANSWER_DUP] = ONCE_FOUND,    [ANSWER_GAP] = ONCE_REFUSED,
        [ANSWER_OTHER] = ONCE_OTHER,   [ANSWER_FULL] = ONCE_REFUSED, [ANSWER_NO_SCRIPT] = ONCE_UNKNOWN,
        [ANSWER_ERROR] = ONCE_REFUSED,
    };
    struct store *store = context;
    struct once_part *part = tag;
    enum answer answer;
    const char *why;
    uint64_t seq;

    if (!reply) {
        tell_part(store, part, ONCE_UNKNOWN, NULL);
        return;
    }
    answer = read_answer(store, reply, &seq, &why);
    part->found = answer == ANSWER_DUP;
    if (answer == ANSWER_NO_SCRIPT && send_part(store, part))
        return;
    if ((answer == ANSWER_OK || answer == ANSWER_DUP) && store->config->redis.wait_replicas > 0)
        TAILQ_INSERT_TAIL(&store->held_parts, part, held);
    else
        tell_part(store, part, outcomes[answer], why);
}

static bool send_part(struct store *store, struct once_part *part)
{
    const struct once *once = part->once;
    struct request *request = &store->request;
    bool home = part == once->parts;
    const char *namespace = config_shard_namespace(store->config, part->shard);
    uint32_t number = config_shard_number(store->config, part->shard);
    char marker[MARKER_BYTES];

    if (home)
        keyspace_token_key(marker, namespace, number, once->token);
    else
        keyspace_once_key(marker, namespace, number, once->writer);
    begin_script(store, &scripts[SCRIPT_APPEND], store->script_known, part->shard, marker);
    request_add_text(request, once->writer);
    request_add_text(request, "1"); /* seq */
    request_add_text(request, "0"); /* known_durable */
    request_add_number(request, (int64_t)part->events);
    request_add_text(request, home ? once->digest : "1");
    request_add_number(request, store->config->idempotency.ttl_s);
    for (size_t i = 0; i < part->items_len; i++) {
        request_add(request, part->items[i].key);
        request_add_number(request, part->items[i].delta);
    }
    add_merge(store, part->shard);
    want_wait(store);
    return send_script(store, on_append_once, part);
}

bool store_append_once(struct store *store, struct once_part *part)
{
    return send_part(store, part);
}

static void on_probe(void *context, void *tag, const redisReply *reply)
{
    struct store *store = context;
    enum store_reply outcome = STORE_REFUSED;
    uint64_t seq = 0;

    /* The connection has ended: on_lost() tells. */
    if (!reply)
        return;
    if (reply->type == REDIS_REPLY_ARRAY && reply->elements == 2 &&
        reply->element[0]->type == REDIS_REPLY_STRING && reply->element[1]->type == REDIS_REPLY_STRING) {
        outcome = strcmp(reply->element[0]->str, "OK") == 0 ? STORE_APPLIED : STORE_GAP;
        seq = strtoull(reply->element[1]->str, NULL, 10);
    }
    store->callbacks.on_probed(store->callbacks.context, (uint32_t)(uintptr_t)tag, outcome, seq);
}

void store_probe(struct store *store, uint32_t shard, const char *writer, uint64_t known_durable,
                 uint64_t seq)
{
    /* So rare that its text may go along. */
    begin_script(store, &scripts[SCRIPT_PROBE], false, shard, NULL);
    request_add_text(&store->request, writer);
    request_add_number(&store->request, (int64_t)seq);
    request_add_number(&store->request, (int64_t)known_durable);
    (void)send_script(store, on_probe, (void *)(uintptr_t)shard);
}

/* --- the store itself --- */

static void on_link_ready(void *context)
{
    struct store *store = context;

    store->script_known = false;
    store->callbacks.on_ready(store->callbacks.context);
}

static void on_link_lost(void *context, enum link_state state, const struct error *error)
{
    struct store *store = context;

    store->wait_due = false;
    memset(store->held, 0, sizeof(store->held));
    tell_held_parts(store, ONCE_UNKNOWN, NULL);
    store->callbacks.on_lost(store->callbacks.context, state, error);
}

struct store *store_new(struct event_base *base, const struct config *config,
                        const struct store_callbacks *callbacks)
{
    struct store *store = calloc(1, sizeof(*store));
    struct link_callbacks link_callbacks = {store, on_link_ready, on_link_lost};

    if (!store)
        return NULL;
    store->config = config;
    store->callbacks = *callbacks;
    TAILQ_INIT(&store->held_parts);
    store->turn_end = evtimer_new(base, on_turn_end, store);
    store->link = link_new(base, config, &link_callbacks);
    if (!store->turn_end || !store->link) {
        store_free(store);
        return NULL;
    }
    return store;
}

void store_free(struct store *store)
{
    if (!store)
        return;
    link_free(store->link);
    if (store->turn_end)
        event_free(store->turn_end);
    request_done(&store->request);
    free(store);
}

bool store_ready(const struct store *store)
{
    return link_ready(store->link);
}

void store_hurry(struct store *store)
{
    link_hurry(store->link);
}
