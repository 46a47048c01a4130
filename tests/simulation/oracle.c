/* What has to be true, by what the simulation knows of every batch. */
#include <stdlib.h>
#include <string.h>

#include "lib/decimal.h"
#include "tests/simulation/world.h"

int processes_left(const struct world *world)
{
    return MEMORY_WRITERS - world->writers;
}

int number_of(const char *writer)
{
    return atoi(writer + 1);
}

bool has_short_history(const struct world *world)
{
    return world->schedule->seed & 4;
}

struct memory_deltas deltas_of(const struct batch *batch)
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

struct sent *note_batch(struct world *world, int holder, int writer, uint32_t shard,
                        const struct batch *batch)
{
    struct memory_deltas deltas = deltas_of(batch);
    struct sent *sent;

    if (batch->seq < 1 || batch->seq > BATCHES_MAX) {
        complain(world, "batch %d of w%d is more than this simulation has room for", (int)batch->seq, writer);
        return &world->sent[writer][shard][0];
    }
    sent = &world->sent[writer][shard][batch->seq];
    /* It was acknowledged, and who had it has ended, or had no room for it: its number is made up for. */
    if (memory_is_blank(&deltas) && (holder != writer || has_short_history(world)))
        return sent;
    if (sent->made && memcmp(&sent->deltas, &deltas, sizeof(deltas)) != 0)
        complain(world, "batch %d of w%d has changed", (int)batch->seq, writer);
    sent->made = true;
    sent->deltas = deltas;
    sent->holder = holder;
    return sent;
}

uint64_t acknowledged_events(const struct world *world, int writer)
{
    uint64_t events = 0;

    for (uint32_t shard = 0; shard < SHARDS; shard++)
        for (int seq = 1; seq <= BATCHES_MAX; seq++)
            if (world->sent[writer][shard][seq].acknowledged)
                events += (uint64_t)world->sent[writer][shard][seq].deltas.events;
    return events;
}

static bool was_blank(const uint64_t blanks[MEMORY_WRITERS], int writer, int seq)
{
    return blanks[writer] >> seq & 1;
}

static bool is_in_quarantine(const struct memory_postgres *postgres, int writer, int seq)
{
    for (size_t i = 0; i < postgres->quarantine_len; i++) {
        const struct memory_quarantine *row = &postgres->quarantine[i];
        if (row->low[writer] <= seq && seq <= row->high[writer] && !was_blank(row->blanks, writer, seq))
            return true;
    }
    return false;
}

/* Until it is in quarantine. */
static bool is_set_aside(const struct memory_redis *redis, int writer, int seq)
{
    return redis->set_aside && redis->sealed.low[writer] <= seq && seq <= redis->sealed.high[writer];
}

void check_stored(struct world *world, int writer)
{
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        const struct memory_store *store = &world->stores[shard];
        for (int seq = 1; seq <= BATCHES_MAX; seq++)
            if (world->sent[writer][shard][seq].acknowledged && seq > store->redis.writers[writer] &&
                seq > store->postgres.vector[writer] && !is_in_quarantine(&store->postgres, writer, seq) &&
                !is_set_aside(&store->redis, writer, seq))
                complain(world, "w%d says that all is stored, and batch %d in shard %u is nowhere", writer,
                         seq, shard);
    }
}

void check_counted(struct world *world, const struct daemon *daemon)
{
    for (int key = 0; key < MEMORY_KEYS; key++) {
        int64_t rest = daemon->counted[key];
        for (uint32_t shard = 0; shard < SHARDS; shard++)
            for (int seq = 1; seq <= BATCHES_MAX; seq++)
                rest -= world->sent[daemon->writer][shard][seq].deltas.delta[key] * MICROS_PER_UNIT;
        if (rest <= -MICROS_PER_UNIT || rest >= MICROS_PER_UNIT)
            complain(world, "w%d has counted %.2f of k%d, and %.2f of that is in no batch", daemon->writer,
                     (double)daemon->counted[key] / MICROS_PER_UNIT, key, (double)rest / MICROS_PER_UNIT);
    }
}

void check_values(struct world *world, int shard)
{
    const struct memory_postgres *postgres = &world->stores[shard].postgres;
    int64_t expected[MEMORY_KEYS] = {0};

    for (int writer = 0; writer < world->writers; writer++)
        for (int seq = 1; seq <= postgres->vector[writer] && seq <= BATCHES_MAX; seq++)
            for (int key = 0; key < MEMORY_KEYS; key++)
                if (!was_blank(postgres->blanks, writer, seq))
                    expected[key] += world->sent[writer][shard][seq].deltas.delta[key];
    for (int key = 0; key < MEMORY_KEYS; key++)
        if (postgres->value[key] != expected[key])
            complain(world, "shard %d has %d of k%d in Postgres, and its batches come to %d", shard,
                     (int)postgres->value[key], key, (int)expected[key]);
}

static bool is_in_postgres(const struct memory_postgres *postgres, int writer, int seq)
{
    return seq <= postgres->vector[writer] && !was_blank(postgres->blanks, writer, seq);
}

/* Whether it may be gone: the only places where it was are memories that have ended, one way or another. */
static bool may_be_gone(const struct world *world, const struct sent *sent)
{
    const struct process *holder = &world->processes[sent->holder];

    if (has_short_history(world) && world->outcome.losses > 0 && sent->acknowledged)
        return sent->blanked || world->outcome.rollbacks > sent->rollbacks;
    switch (holder->state) {
    case PROCESS_RUNS:
        return false;
    case PROCESS_CRASHED:
        if (sent->acknowledged)
            return world->outcome.rollbacks > sent->rollbacks;
        return !sent->spooled;
    case PROCESS_STOPPED:
        if (sent->acknowledged)
            return world->outcome.rollbacks > (holder->gave_up ? sent->rollbacks : holder->rollbacks);
        return !sent->spooled && holder->dropped;
    }
    return false;
}

static bool lacks(struct world *world, int writer, int shard, bool told)
{
    static const char *const words[] = {"runs", "was killed", "has stopped"};
    const struct memory_postgres *postgres = &world->stores[shard].postgres;

    for (int seq = 1; seq <= BATCHES_MAX; seq++) {
        const struct sent *sent = &world->sent[writer][shard][seq];
        enum process_state state = world->processes[sent->holder].state;
        if (!sent->made || is_in_postgres(postgres, writer, seq) || may_be_gone(world, sent) ||
            ((state != PROCESS_RUNS || has_short_history(world)) && is_in_quarantine(postgres, writer, seq)))
            continue;
        if (told)
            complain(world, "batch %d of w%d in shard %d is lost, though w%d, which had it, %s", seq, writer,
                     shard, sent->holder, words[state]);
        return true;
    }
    return false;
}

bool lacks_anything(struct world *world, bool told)
{
    bool anything = false;

    for (int writer = 0; writer < world->writers; writer++)
        for (int shard = 0; shard < SHARDS; shard++)
            anything |= lacks(world, writer, shard, told);
    return anything;
}
