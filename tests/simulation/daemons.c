#include <stdlib.h>

#include "lib/decimal.h"
#include "lib/keyspace.h"
#include "tests/simulation/world.h"

#define BATCH_KEYS_MAX 2

static void name_key(char name[4], int key)
{
    snprintf(name, 4, "k%d", key);
}

void daemon_start(struct world *world, int index)
{
    struct daemon *daemon = &world->daemons[index];
    struct outbox_options options = {SHARDS, BATCH_KEYS_MAX, SIZE_MAX};

    if (daemon->alive || world->writers == MEMORY_WRITERS)
        return;
    *daemon =
        (struct daemon){.alive = true, .writer = world->writers++, .connection = daemon->connection + 1};
    daemon->outbox = outbox_new(&options);
    daemon->tables[0] = table_new(SHARDS, MEMORY_KEYS);
    daemon->tables[1] = table_new(SHARDS, MEMORY_KEYS);
    tell(world, "daemon %d starts as w%d", index, daemon->writer);
}

void daemon_free(struct daemon *daemon)
{
    outbox_free(daemon->outbox);
    table_free(daemon->tables[0]);
    table_free(daemon->tables[1]);
    daemon->outbox = NULL;
    daemon->tables[0] = daemon->tables[1] = NULL;
}

/* --- the network --- */

static void take_out(struct queue *queue, size_t at)
{
    queue->len--;
    memmove(&queue->items[at], &queue->items[at + 1], (queue->len - at) * sizeof(queue->items[0]));
}

static void put_in(struct world *world, struct queue *queue, const struct message *message)
{
    if (queue->len == MESSAGES_MAX)
        complain(world, "too many messages for this simulation");
    else
        queue->items[queue->len++] = *message;
}

/* Some of what the daemon sent is lost, some will arrive after all; no reply will. */
static void drop_messages(struct world *world, int index)
{
    for (size_t i = world->requests.len; i-- > 0;) {
        struct message *message = &world->requests.items[i];
        if (message->daemon != index || message->late)
            continue;
        message->late = true;
        if (message->is_probe || roll(world, 2) == 0)
            take_out(&world->requests, i);
    }
    for (size_t i = world->replies.len; i-- > 0;)
        if (world->replies.items[i].daemon == index)
            take_out(&world->replies, i);
}

void daemon_crash(struct world *world, int index)
{
    struct daemon *daemon = &world->daemons[index];

    if (!daemon->alive || world->writers == MEMORY_WRITERS)
        return;
    tell(world, "daemon %d, w%d, dies", index, daemon->writer);
    world->outcome.crashes++;
    drop_messages(world, index);
    daemon_free(daemon);
    daemon->alive = daemon->connected = false;
}

/* MUTANT_UNKNOWN_IS_FAILED: what is on its way is taken for lost, and counted anew. */
static void merge_back(struct world *world, struct daemon *daemon, uint32_t shard, const struct batch *batch)
{
    struct span key;
    int64_t delta;
    size_t at = 0;

    while (batch_next_entry(batch, &at, &key, &delta)) {
        struct table_item item = {
            .key = key, .hash = keyspace_hash(key), .micros = delta * MICROS_PER_UNIT, .events = 1};
        if (table_add(daemon->tables[daemon->filling], &item) != TABLE_OK)
            complain(world, "no room");
    }
    outbox_acknowledge(daemon->outbox, shard, 0);
}

void daemon_disconnect(struct world *world, int index)
{
    struct daemon *daemon = &world->daemons[index];

    if (!daemon->alive || !daemon->connected)
        return;
    tell(world, "w%d loses its connection", daemon->writer);
    drop_messages(world, index);
    daemon->connected = false;
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        bool was_in_flight = outbox_unsend(daemon->outbox, shard);
        const struct batch *batch = was_in_flight && memory_mutant == MUTANT_UNKNOWN_IS_FAILED
                                        ? outbox_next(daemon->outbox, shard)
                                        : NULL;
        if (batch)
            merge_back(world, daemon, shard, batch);
    }
}

/* --- what a daemon does --- */

void daemon_count(struct world *world, int index)
{
    struct daemon *daemon = &world->daemons[index];
    int key = (int)roll(world, MEMORY_KEYS);
    int64_t units = (int64_t)roll(world, 12) - 3;
    struct table_item item = {.micros = units * MICROS_PER_UNIT / (roll(world, 4) == 0 ? 4 : 1), .events = 1};
    char name[4];

    if (!daemon->alive)
        return;
    name_key(name, key);
    item.key = span_of(name);
    item.hash = keyspace_hash(item.key);
    if (table_add(daemon->tables[daemon->filling], &item) != TABLE_OK)
        complain(world, "a table that is large enough is full");
    daemon->counted[key] += item.micros;
}

void daemon_swap(struct world *world, int index)
{
    struct daemon *daemon = &world->daemons[index];

    (void)world;
    if (!daemon->alive || !outbox_drained(daemon->outbox) ||
        table_events(daemon->tables[daemon->filling]) == 0)
        return;
    outbox_drain(daemon->outbox, daemon->tables[daemon->filling], daemon->tables[daemon->filling ^ 1], NULL);
    daemon->filling ^= 1;
}

static struct memory_deltas deltas_of(const struct batch *batch)
{
    struct memory_deltas deltas = {.events = (int64_t)batch->events};
    struct span key;
    int64_t delta;
    size_t at = 0;

    while (batch_next_entry(batch, &at, &key, &delta)) {
        int number = key.ptr[1] - '0';
        deltas.there[number] = true;
        deltas.delta[number] += delta;
    }
    return deltas;
}

static void note_sent(struct world *world, const struct message *message)
{
    struct sent *sent = &world->sent[message->writer][message->shard][message->seq];

    if (sent->made && memcmp(&sent->deltas, &message->deltas, sizeof(sent->deltas)) != 0)
        complain(world, "batch %d of w%d has changed", (int)message->seq, message->writer);
    sent->made = true;
    sent->deltas = message->deltas;
}

void daemon_send(struct world *world, int index, uint32_t shard)
{
    struct daemon *daemon = &world->daemons[index];
    const struct batch *batch;
    struct message message = {
        .daemon = index, .connection = daemon->connection, .writer = daemon->writer, .shard = shard};

    if (!daemon->alive || !daemon->connected || world->sent[daemon->writer][shard][BATCHES_MAX].made)
        return;
    batch = outbox_next(daemon->outbox, shard);
    if (!batch)
        return;
    message.seq = (int64_t)batch->seq;
    message.known_durable = (int64_t)outbox_durable(daemon->outbox, shard);
    message.deltas = deltas_of(batch);
    note_sent(world, &message);
    put_in(world, &world->requests, &message);
}

void daemon_probe(struct world *world, int index)
{
    struct daemon *daemon = &world->daemons[index];

    if (!daemon->alive || !daemon->connected || memory_mutant == MUTANT_NO_PROBE)
        return;
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        struct message message = {.daemon = index,
                                  .connection = daemon->connection,
                                  .writer = daemon->writer,
                                  .shard = shard,
                                  .is_probe = true,
                                  .seq = (int64_t)outbox_probe(daemon->outbox, shard),
                                  .known_durable = (int64_t)outbox_durable(daemon->outbox, shard)};
        if (message.seq > 0)
            put_in(world, &world->requests, &message);
    }
}

void daemon_connect(struct world *world, int index)
{
    struct daemon *daemon = &world->daemons[index];

    if (!daemon->alive || daemon->connected)
        return;
    daemon->connected = true;
    daemon->connection++;
    daemon_probe(world, index);
}

/* --- what Redis and the daemon make of a message --- */

static void store(struct world *world, struct message *message)
{
    struct sent *sent = &world->sent[message->writer][message->shard][message->seq];
    struct memory_redis *redis = &world->stores[message->shard].redis;

    if (message->is_probe) {
        message->answer =
            memory_probe(redis, message->writer, message->seq, message->known_durable, &message->answer_seq);
        return;
    }
    message->answer = memory_append(redis, message->writer, message->seq, message->known_durable,
                                    &message->deltas, &message->answer_seq);
    tell(world, "w%d/%u batch %d: %s%s", message->writer, message->shard, (int)message->seq,
         (const char *[]){"OK", "DUP", "GAP"}[message->answer], message->late ? ", late" : "");
    if (message->answer != MEMORY_OK)
        return;
    if (sent->stored && !world->schedule->rollbacks)
        complain(world, "Redis has taken batch %d of w%d twice", (int)message->seq, message->writer);
    sent->stored = true;
}

bool deliver_request(struct world *world)
{
    struct queue *queue = &world->requests;
    struct message message;
    size_t at;

    if (queue->len == 0)
        return false;
    at = roll(world, queue->len);
    for (size_t i = 0; i < at && !queue->items[at].late; i++)
        if (queue->items[i].daemon == queue->items[at].daemon && !queue->items[i].late)
            at = i;
    message = queue->items[at];
    take_out(queue, at);
    store(world, &message);
    if (!message.late)
        put_in(world, &world->replies, &message);
    return true;
}

static void go_back(struct world *world, struct daemon *daemon, const struct message *message)
{
    struct outbox_loss loss;
    uint64_t batches = outbox_rewind(daemon->outbox, message->shard, (uint64_t)message->answer_seq, &loss);

    tell(world, "w%d/%u sends %d batches again", daemon->writer, message->shard, (int)batches);
    if (loss.last_seq > 0)
        complain(world, "an endless history does not hold batch %d", (int)loss.first_seq);
}

static void take_reply(struct world *world, const struct message *message)
{
    struct daemon *daemon = &world->daemons[message->daemon];

    if (message->is_probe) {
        if (outbox_probe(daemon->outbox, message->shard) == 0)
            return;
        if (message->answer == MEMORY_GAP)
            go_back(world, daemon, message);
        else
            outbox_note_durable(daemon->outbox, message->shard, (uint64_t)message->answer_seq);
    } else if (message->answer == MEMORY_GAP && memory_mutant != MUTANT_GAP_ADOPTED) {
        go_back(world, daemon, message);
    } else {
        world->sent[message->writer][message->shard][message->seq].acknowledged = true;
        outbox_acknowledge(daemon->outbox, message->shard,
                           (uint64_t)(message->answer == MEMORY_GAP ? message->seq : message->answer_seq));
    }
}

bool deliver_reply(struct world *world)
{
    struct queue *queue = &world->replies;
    struct message message;
    size_t at;

    if (queue->len == 0)
        return false;
    at = roll(world, queue->len);
    for (size_t i = 0; i < at; i++)
        if (queue->items[i].daemon == queue->items[at].daemon)
            at = i;
    message = queue->items[at];
    take_out(queue, at);
    take_reply(world, &message);
    return true;
}

/* --- the end --- */

bool daemon_is_idle(const struct world *world, int index)
{
    const struct daemon *daemon = &world->daemons[index];
    const struct table *filling = daemon->tables[daemon->filling];

    return !daemon->alive || (world->requests.len == 0 && world->replies.len == 0 &&
                              outbox_drained(daemon->outbox) && table_events(filling) == 0);
}

void daemon_check(struct world *world, int index)
{
    struct daemon *daemon = &world->daemons[index];
    struct table_item item;
    int64_t found[MEMORY_KEYS] = {0};

    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        for (int seq = 1; seq <= BATCHES_MAX; seq++)
            for (int key = 0; key < MEMORY_KEYS; key++)
                found[key] += world->sent[daemon->writer][shard][seq].deltas.delta[key] * MICROS_PER_UNIT;
        while (table_pop(daemon->tables[daemon->filling], shard, &item))
            found[item.key.ptr[1] - '0'] += item.micros;
    }
    for (int key = 0; key < MEMORY_KEYS; key++)
        if (found[key] != daemon->counted[key])
            complain(world, "w%d has counted %.2f of k%d, and %.2f is in its batches", daemon->writer,
                     (double)daemon->counted[key] / MICROS_PER_UNIT, key,
                     (double)found[key] / MICROS_PER_UNIT);
}
