/* Stands in for counterd/store_redis.c: the linker takes this. What a daemon sends gets to a Redis in memory
 * late, or not at all, and so do the answers. */
#include <stdlib.h>
#include <string.h>

#include <event2/event.h>

#include "lib/clock.h"
#include "tests/simulation/world.h"

/* As link.c waits, from its first try to its last. */
#define RETRY_MS_LEAST 50
#define RETRY_MS_MOST  5000

static struct world *world;

void network_begin(struct world *of)
{
    world = of;
    for (size_t i = 0; i < CONNECTIONS_MAX; i++)
        world->connections[i].daemon = -1;
}

static struct store *find_connection(unsigned number)
{
    for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
        struct store *store = &world->connections[i];
        if (store->daemon >= 0 && store->state == CONNECTION_UP && store->number == number)
            return store;
    }
    return NULL;
}

static bool is_late(const struct message *message)
{
    return !find_connection(message->connection);
}

static void take_out(struct queue *queue, size_t at)
{
    queue->len--;
    memmove(&queue->items[at], &queue->items[at + 1], (queue->len - at) * sizeof(queue->items[0]));
}

static void put_in(struct queue *queue, const struct message *message)
{
    if (queue->len == MESSAGES_MAX)
        complain(world, "too many messages for this simulation");
    else
        queue->items[queue->len++] = *message;
}

/* Which message is next: any, but of a connection the oldest. */
static size_t choose(const struct queue *queue)
{
    size_t at = roll(world, queue->len);

    for (size_t i = 0; i < at; i++)
        if (queue->items[i].connection == queue->items[at].connection && !is_late(&queue->items[i]))
            return i;
    return at;
}

/* --- connections --- */

static void on_retry(evutil_socket_t fd, short events, void *data)
{
    struct store *store = data;

    (void)fd;
    (void)events;
    store->state = CONNECTION_ASKED;
}

static void retry_later(struct store *store)
{
    struct timeval pause =
        clock_timeval(RETRY_MS_LEAST + (int64_t)roll(world, RETRY_MS_MOST - RETRY_MS_LEAST));

    store->state = CONNECTION_AWAY;
    event_add(store->retry, &pause);
}

/* Some of what went this way is lost, some will arrive after all; no answer will. */
static void drop_messages(unsigned connection)
{
    for (size_t i = world->requests.len; i-- > 0;) {
        const struct message *message = &world->requests.items[i];
        if (message->connection == connection && (message->is_probe || roll(world, 2) == 0))
            take_out(&world->requests, i);
    }
    for (size_t i = world->replies.len; i-- > 0;)
        if (world->replies.items[i].connection == connection)
            take_out(&world->replies, i);
}

static const char *name_of(const struct store *store)
{
    static const char *const names[] = {"daemon 0", "daemon 1"};

    return names[store->daemon];
}

/* MUTANT_UNKNOWN_IS_FAILED: what is on its way is taken for lost, and counted anew. */
static void count_again(const struct store *store, const struct message *message)
{
    struct daemon *daemon = &world->daemons[store->daemon];
    char line[32];

    for (int key = 0; key < MEMORY_KEYS; key++) {
        if (!message->deltas.there[key])
            continue;
        snprintf(line, sizeof(line), "k%d:%d|c", key, (int)message->deltas.delta[key]);
        ingest_lines(daemon->ingest, span_of(line), false);
    }
    ingest_publish(daemon->ingest);
    store->callbacks.on_reply(store->callbacks.context, message->shard, STORE_APPLIED, 0, "");
}

static void lose(struct store *store, const char *why)
{
    struct error error;
    struct message failed[MESSAGES_MAX];
    size_t failed_len = 0;

    tell(world, "%s: connection %u: %s", name_of(store), store->number, why);
    if (memory_mutant == MUTANT_UNKNOWN_IS_FAILED && store->state == CONNECTION_UP)
        for (size_t i = 0; i < world->requests.len; i++)
            if (world->requests.items[i].connection == store->number && !world->requests.items[i].is_probe)
                failed[failed_len++] = world->requests.items[i];
    if (store->state == CONNECTION_UP)
        drop_messages(store->number);
    retry_later(store);
    for (size_t i = 0; i < failed_len; i++)
        count_again(store, &failed[i]);
    error_set(&error, -1, "%s", why);
    store->callbacks.on_lost(store->callbacks.context, LINK_AWAY, &error);
}

static struct store *find_by_state(enum connection_state state)
{
    struct store *found[CONNECTIONS_MAX];
    size_t len = 0;

    for (size_t i = 0; i < CONNECTIONS_MAX; i++)
        if (world->connections[i].daemon >= 0 && world->connections[i].state == state)
            found[len++] = &world->connections[i];
    return len > 0 ? found[roll(world, len)] : NULL;
}

bool connection_answered(struct world *of)
{
    struct store *store = find_by_state(CONNECTION_ASKED);

    if (!store)
        return false;
    if (of->redis_is_away) {
        lose(store, "not reached");
        return true;
    }
    store->state = CONNECTION_UP;
    store->number = ++of->connections_made;
    tell(of, "%s: connection %u is up", name_of(store), store->number);
    store->callbacks.on_ready(store->callbacks.context);
    return true;
}

void connection_lost(struct world *of)
{
    struct store *store = find_by_state(CONNECTION_UP);

    (void)of;
    if (store)
        lose(store, "lost");
}

void connections_lost(struct world *of)
{
    for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
        struct store *store = &of->connections[i];
        if (store->daemon >= 0 && store->state == CONNECTION_UP)
            lose(store, "lost, as all are");
    }
}

/* --- counterd/store.h --- */

static int daemon_of(const struct config *config)
{
    for (int i = 0; i < DAEMONS; i++)
        if (world->daemons[i].config == config)
            return i;
    return -1;
}

struct store *store_new(struct event_base *base, const struct config *config,
                        const struct store_callbacks *callbacks)
{
    for (size_t i = 0; i < CONNECTIONS_MAX; i++) {
        struct store *store = &world->connections[i];
        if (store->daemon >= 0)
            continue;
        *store =
            (struct store){.daemon = daemon_of(config), .callbacks = *callbacks, .state = CONNECTION_ASKED};
        store->retry = evtimer_new(base, on_retry, store);
        return store;
    }
    complain(world, "too many connections for this simulation");
    return NULL;
}

void store_free(struct store *store)
{
    if (!store)
        return;
    if (store->state == CONNECTION_UP)
        drop_messages(store->number);
    event_free(store->retry);
    store->daemon = -1;
}

bool store_ready(const struct store *store)
{
    return store->state == CONNECTION_UP;
}

void store_hurry(struct store *store)
{
    if (store->state != CONNECTION_AWAY)
        return;
    event_del(store->retry);
    store->state = CONNECTION_ASKED;
}

void store_append(struct store *store, uint32_t shard, const char *writer, uint64_t known_durable,
                  const struct batch *batch)
{
    struct message message = {
        .connection = store->number,
        .writer = number_of(writer),
        .shard = shard,
        .seq = (int64_t)batch->seq,
        .known_durable = (int64_t)known_durable,
        .deltas = deltas_of(batch),
    };

    (void)note_batch(world, world->daemons[store->daemon].writer, message.writer, shard, batch);
    if (!world->outcome.wrong)
        put_in(&world->requests, &message);
}

void store_probe(struct store *store, uint32_t shard, const char *writer, uint64_t known_durable,
                 uint64_t seq)
{
    struct message message = {
        .connection = store->number,
        .writer = number_of(writer),
        .shard = shard,
        .is_probe = true,
        .seq = (int64_t)seq,
        .known_durable = (int64_t)known_durable,
    };

    put_in(&world->requests, &message);
}

bool store_append_once(struct store *store, struct once_part *part)
{
    (void)store;
    (void)part;
    abort(); /* of tokens, these schedules know nothing */
}

/* --- what Redis and the daemon make of a message --- */

static void store_batch(struct message *message)
{
    static const char *const words[] = {"OK", "DUP", "GAP"};
    struct sent *sent = &world->sent[message->writer][message->shard][message->seq];
    enum memory_append answer;
    int64_t seq;

    if (world->redis_refuses && roll(world, 2) == 0) {
        message->answer = STORE_REFUSED;
        return;
    }
    answer = memory_append(&world->stores[message->shard].redis, message->writer, message->seq,
                           message->known_durable, &message->deltas, &seq);
    message->answer = answer == MEMORY_GAP ? STORE_GAP : STORE_APPLIED;
    message->answer_seq = (uint64_t)seq;
    tell(world, "w%d/%u batch %d: %s%s", message->writer, message->shard, (int)message->seq, words[answer],
         is_late(message) ? ", late" : "");
    if (answer == MEMORY_GAP)
        return;
    if (answer == MEMORY_OK && sent->stored && !world->schedule->rollbacks)
        complain(world, "Redis has taken batch %d of w%d twice", (int)message->seq, message->writer);
    if (answer == MEMORY_OK && memory_is_blank(&message->deltas) && !world->schedule->rollbacks)
        complain(world, "Redis has taken batch %d of w%d without its content", (int)message->seq,
                 message->writer);
    sent->stored = true;
    if (answer == MEMORY_OK && memory_is_blank(&message->deltas)) {
        sent->blanked = true;
        if (world->outcome.losses == 0)
            complain(world, "batch %d of w%d goes without its content, and nobody has said so",
                     (int)message->seq, message->writer);
    }
    if (world->redis_refuses && roll(world, 4) == 0)
        message->answer = STORE_UNREPLICATED;
}

static void probe(struct message *message)
{
    int64_t seq;
    enum memory_append answer = memory_probe(&world->stores[message->shard].redis, message->writer,
                                             message->seq, message->known_durable, &seq);

    message->answer = answer == MEMORY_GAP ? STORE_GAP : STORE_APPLIED;
    message->answer_seq = (uint64_t)seq;
    if (world->redis_refuses && roll(world, 4) == 0)
        message->answer = STORE_REFUSED;
    if (memory_mutant == MUTANT_NO_PROBE) {
        message->answer = STORE_APPLIED;
        message->answer_seq = (uint64_t)message->known_durable;
    }
}

bool deliver_request(struct world *of)
{
    struct message message;
    size_t at;

    if (of->requests.len == 0 || of->redis_is_away)
        return false;
    at = choose(&of->requests);
    message = of->requests.items[at];
    take_out(&of->requests, at);
    if (message.is_probe)
        probe(&message);
    else
        store_batch(&message);
    if (!is_late(&message))
        put_in(&of->replies, &message);
    return true;
}

static void take_reply(const struct store *store, const struct message *message)
{
    struct sent *sent = &world->sent[message->writer][message->shard][message->seq];
    enum store_reply answer = message->answer;
    uint64_t seq = message->answer_seq;

    if (message->is_probe) {
        store->callbacks.on_probed(store->callbacks.context, message->shard, answer, seq);
        return;
    }
    if (answer == STORE_GAP && memory_mutant == MUTANT_GAP_ADOPTED) {
        answer = STORE_APPLIED;
        seq = (uint64_t)message->seq;
    }
    if (answer == STORE_APPLIED && !memory_is_blank(&message->deltas)) {
        sent->acknowledged = true;
        sent->rollbacks = world->outcome.rollbacks;
    }
    store->callbacks.on_reply(store->callbacks.context, message->shard, answer, seq, "on purpose");
}

bool deliver_reply(struct world *of)
{
    struct message message;
    size_t at;

    if (of->replies.len == 0)
        return false;
    at = choose(&of->replies);
    message = of->replies.items[at];
    take_out(&of->replies, at);
    take_reply(find_connection(message.connection), &message);
    return true;
}
