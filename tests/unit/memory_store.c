#include "tests/unit/memory_store.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "flusher/failure.h"

#define PAGE_MEMBERS 2 /* so that a few keys make several pages */

enum memory_mutant memory_mutant = MUTANT_NONE;

static int64_t last_of(const struct memory_redis *redis, int writer, int64_t known_durable)
{
    return redis->writers[writer] > known_durable ? redis->writers[writer] : known_durable;
}

static bool is_next(int64_t last, int64_t seq)
{
    return seq == last + 1 || memory_mutant == MUTANT_NO_SEQ_CHECK ||
           (last == 0 && memory_mutant == MUTANT_ANY_FIRST_SEQ);
}

bool memory_is_blank(const struct memory_deltas *deltas)
{
    for (int key = 0; key < MEMORY_KEYS; key++)
        if (deltas->there[key])
            return false;
    return true;
}

enum memory_append memory_append(struct memory_redis *redis, int writer, int64_t seq, int64_t known_durable,
                                 const struct memory_deltas *deltas, int64_t *ret_seq)
{
    int64_t last = last_of(redis, writer, known_durable);

    *ret_seq = redis->durable[writer];
    if (seq <= last && memory_mutant != MUTANT_NO_SEQ_CHECK)
        return MEMORY_DUP;
    if (!is_next(last, seq)) {
        *ret_seq = last;
        return MEMORY_GAP;
    }
    for (int key = 0; key < MEMORY_KEYS; key++) {
        redis->open.there[key] |= deltas->there[key];
        redis->open.score[key] += deltas->delta[key];
        redis->accepted += deltas->delta[key];
    }
    if (redis->open.low[writer] == 0)
        redis->open.low[writer] = seq;
    redis->open.high[writer] = seq;
    if (memory_is_blank(deltas) && seq < 64)
        redis->open.blanks[writer] |= UINT64_C(1) << seq;
    redis->writers[writer] = seq;
    redis->events += deltas->events;
    return MEMORY_OK;
}

enum memory_append memory_probe(const struct memory_redis *redis, int writer, int64_t seq,
                                int64_t known_durable, int64_t *ret_seq)
{
    int64_t last = last_of(redis, writer, known_durable);
    bool taken = seq <= last || is_next(last, seq);

    *ret_seq = taken ? redis->durable[writer] : last;
    return taken ? MEMORY_OK : MEMORY_GAP;
}

static int number_of(const char *writer)
{
    return atoi(writer + 1);
}

static size_t members_of(const struct memory_set *set)
{
    size_t len = 0;

    for (int i = 0; i < MEMORY_KEYS; i++)
        len += set->there[i];
    return len;
}

/* --- faults around every call --- */

static size_t shards_of(const struct memory_flusher *flusher)
{
    return flusher->shards > 0 ? flusher->shards : 1;
}

static void lose_transaction(struct memory_flusher *flusher)
{
    for (size_t i = 0; i < shards_of(flusher); i++)
        if (flusher->store[i].locked_by == flusher)
            flusher->store[i].locked_by = NULL;
}

static void die(struct memory_flusher *flusher)
{
    flusher->dead = true;
    lose_transaction(flusher);
}

/* What to do with a call: go on when it is FAULT_NONE, FAULT_LOST_REPLY or FAULT_CRASH_AFTER. */
static enum memory_fault enter(struct memory_flusher *flusher)
{
    enum memory_fault fault = FAULT_NONE;

    if (flusher->dead)
        return FAULT_CRASH;
    if (flusher->hook)
        fault = flusher->hook(flusher->context, flusher);
    if (fault == FAULT_CRASH)
        die(flusher);
    return fault;
}

static bool is_carried_out(enum memory_fault fault)
{
    return fault == FAULT_NONE || fault == FAULT_LOST_REPLY || fault == FAULT_CRASH_AFTER;
}

static int leave(struct memory_flusher *flusher, enum memory_fault fault, int outcome, struct error *error)
{
    if (flusher->after && !flusher->dead)
        flusher->after(flusher->context, flusher);
    if (fault == FAULT_CRASH_AFTER)
        die(flusher);
    if (fault == FAULT_NONE)
        return outcome;
    if (fault == FAULT_COLLISION)
        return error_set(error, FAILURE_COLLISION, "a collision on purpose");
    return error_set(error, fault == FAULT_REFUSED ? FAILURE_LATER : FAILURE_UNAVAILABLE,
                     "fault %d on purpose", fault);
}

/* --- what Postgres knows --- */

/* NULL when the ledger does not have it. */
static const struct memory_row *find_row(const struct memory_postgres *postgres, const char *id)
{
    for (size_t i = 0; i < postgres->ledger_len; i++)
        if (strcmp(postgres->ledger[i].id, id) == 0)
            return &postgres->ledger[i];
    return NULL;
}

static bool in_quarantine(const struct memory_postgres *postgres, const char *id)
{
    for (size_t i = 0; i < postgres->quarantine_len; i++)
        if (strcmp(postgres->quarantine[i].id, id) == 0)
            return true;
    return false;
}

static struct standing standing_of(const struct memory_postgres *postgres,
                                   const struct generation *generation)
{
    const struct memory_row *own = find_row(postgres, generation->id);
    const struct memory_row *prev = find_row(postgres, generation->prev_id);

    return (struct standing){
        .in_ledger = own,
        .in_quarantine = in_quarantine(postgres, generation->id),
        .correction = own ? own->entry.correction : (struct correction){0},
        .cumulative_total = postgres->head.cumulative_total,
        .cumulative_events = postgres->head.cumulative_events,
        .prev_known = prev || generation->prev_id[0] == '\0',
        .prev_total = prev ? prev->entry.cumulative_total : 0,
        .prev_events = prev ? prev->entry.cumulative_events : 0,
    };
}

/* --- source --- */

static void describe(const struct memory_redis *redis, struct generation *generation)
{
    snprintf(generation->id, sizeof(generation->id), "%s", redis->sealed_id);
    snprintf(generation->prev_id, sizeof(generation->prev_id), "%s", redis->prev_id);
    generation->accepted_at_seal = redis->accepted_at_seal;
    generation->events_at_seal = redis->events_at_seal;
    generation->members = members_of(&redis->sealed);
    generation->batches = calloc(MEMORY_WRITERS, sizeof(struct batches));
    for (int i = 0; i < MEMORY_WRITERS; i++) {
        struct batches *batches = &generation->batches[generation->batches_len];
        if (redis->sealed.low[i] == 0)
            continue;
        assert(asprintf(&batches->writer, "w%d", i) > 0);
        batches->low = redis->sealed.low[i];
        batches->high = redis->sealed.high[i];
        generation->batches_len++;
    }
}

static int seal(void *context, uint32_t shard, struct generation *ret_generation, struct error *error)
{
    struct memory_flusher *flusher = context;
    struct memory_redis *redis = &flusher->store[shard].redis;
    enum memory_fault fault = enter(flusher);
    int outcome = SEAL_NONE;

    if (is_carried_out(fault)) {
        bool found = redis->sealed_id[0] != '\0';
        ret_generation->now_ms = 1;
        if (!found && members_of(&redis->open) > 0) {
            redis->sealed = redis->open;
            redis->open = (struct memory_set){0};
            snprintf(redis->sealed_id, sizeof(redis->sealed_id), "g%u",
                     memory_mutant == MUTANT_ID_FROM_REDIS ? ++redis->seals : ++flusher->store->ids);
            redis->accepted_at_seal = redis->accepted;
            redis->events_at_seal = redis->events;
        }
        if (redis->sealed_id[0] != '\0') {
            describe(redis, ret_generation);
            ret_generation->recovered = found;
            ret_generation->set_aside = redis->set_aside;
            flusher->seen[shard] = standing_of(&flusher->store[shard].postgres, ret_generation);
            memcpy(flusher->seen_vector[shard], flusher->store[shard].postgres.vector,
                   sizeof(flusher->seen_vector[shard]));
            memcpy(flusher->blanks[shard], redis->sealed.blanks, sizeof(flusher->blanks[shard]));
            outcome = SEAL_SEALED;
        }
    }
    return leave(flusher, fault, outcome, error);
}

static int read_page(void *context, uint32_t shard, const char *id, struct updates *updates,
                     struct error *error)
{
    struct memory_flusher *flusher = context;
    const struct memory_redis *redis = &flusher->store[shard].redis;
    enum memory_fault fault = enter(flusher);
    size_t rank = 0, from = updates_added(updates);
    bool gone = strcmp(redis->sealed_id, id) != 0 && memory_mutant != MUTANT_READ_ANY;

    for (int i = 0; i < MEMORY_KEYS && !gone && is_carried_out(fault); i++) {
        char key[3] = {'k', (char)('0' + i), '\0'};
        if (redis->sealed.there[i] && rank++ >= from && rank <= from + PAGE_MEMBERS)
            assert(updates_add(updates, span_of(key), redis->sealed.score[i]) == 0);
    }
    return leave(flusher, fault, gone ? READ_GONE : READ_PAGE, error);
}

static void free_sealed(struct memory_redis *redis)
{
    redis->sealed_id[0] = '\0';
    redis->sealed = (struct memory_set){0};
    redis->set_aside = false;
}

static void release_sealed(struct memory_redis *redis, const struct correction *correction)
{
    for (int i = 0; i < MEMORY_WRITERS; i++)
        if (redis->sealed.high[i] > 0)
            redis->durable[i] = redis->sealed.high[i];
    memcpy(redis->prev_id, redis->sealed_id, sizeof(redis->prev_id));
    redis->accepted += correction->total;
    redis->accepted_at_seal += correction->total;
    redis->events += correction->events;
    redis->events_at_seal += correction->events;
}

static int release(void *context, uint32_t shard, const char *id, const struct correction *correction,
                   struct error *error)
{
    struct memory_flusher *flusher = context;
    struct memory_redis *redis = &flusher->store[shard].redis;
    enum memory_fault fault = enter(flusher);

    if (is_carried_out(fault) && (strcmp(redis->sealed_id, id) == 0 || memory_mutant == MUTANT_RELEASE_ANY)) {
        if (!redis->set_aside)
            release_sealed(redis, correction);
        free_sealed(redis);
    }
    return leave(flusher, fault, 0, error);
}

static void reset_to(struct memory_redis *redis, const struct reset *to, unsigned aside)
{
    free_sealed(redis);
    if (members_of(&redis->open) > 0) {
        redis->sealed = redis->open;
        redis->set_aside = true;
        snprintf(redis->sealed_id, sizeof(redis->sealed_id), "g%u", aside);
    }
    redis->open = (struct memory_set){0};
    memset(redis->writers, 0, sizeof(redis->writers));
    for (size_t i = 0; i < to->vector_len; i++)
        redis->writers[number_of(to->vector[i].writer)] = to->vector[i].seq;
    memcpy(redis->durable, redis->writers, sizeof(redis->durable));
    snprintf(redis->prev_id, sizeof(redis->prev_id), "%s", to->head_id);
    redis->accepted = redis->accepted_at_seal = to->accepted;
    redis->events = redis->events_at_seal = to->events;
}

static int reset(void *context, uint32_t shard, const char *id, const struct reset *to, struct error *error)
{
    struct memory_flusher *flusher = context;
    struct memory_redis *redis = &flusher->store[shard].redis;
    enum memory_fault fault = enter(flusher);

    if (is_carried_out(fault) && strcmp(redis->sealed_id, id) == 0) {
        assert(!redis->set_aside);
        reset_to(redis, to, ++flusher->store->ids);
    }
    return leave(flusher, fault, 0, error);
}

struct source memory_source(struct memory_flusher *flusher)
{
    return (struct source){
        .context = flusher, .seal = seal, .read = read_page, .release = release, .reset = reset};
}

/* --- sink --- */

static int prepare(void *context, const struct cargo *cargo, const struct updates *updates,
                   struct error *error)
{
    (void)context;
    (void)cargo;
    (void)updates;
    (void)error;
    return 0;
}

static int begin(void *context, struct cargo *cargo, size_t cargo_len, struct error *error)
{
    struct memory_flusher *flusher = context;
    enum memory_fault fault = enter(flusher);

    for (size_t i = 0; i < cargo_len; i++) {
        const struct memory_store *store = &flusher->store[cargo[i].shard];
        assert(store->locked_by != flusher); /* it left a transaction open */
        if (store->locked_by && is_carried_out(fault)) {
            if (fault == FAULT_CRASH_AFTER)
                die(flusher);
            fault = flusher->dead ? FAULT_CRASH : FAULT_REFUSED; /* what a lock_timeout does */
        }
    }
    for (size_t i = 0; i < cargo_len && is_carried_out(fault); i++) {
        struct memory_store *store = &flusher->store[cargo[i].shard];
        const struct generation *generation = &cargo[i].generation;
        bool stale = memory_mutant == MUTANT_STALE_VECTOR;
        const int64_t *vector = stale ? flusher->seen_vector[cargo[i].shard] : store->postgres.vector;

        store->locked_by = flusher;
        flusher->transactions[cargo[i].shard] = store->postgres;
        cargo[i].standing = stale ? flusher->seen[cargo[i].shard] : standing_of(&store->postgres, generation);
        for (size_t j = 0; j < generation->batches_len; j++)
            cargo[i].vector[j] = memory_mutant == MUTANT_NO_VECTOR
                                     ? generation->batches[j].low - 1
                                     : vector[number_of(generation->batches[j].writer)];
    }
    if (fault != FAULT_NONE)
        lose_transaction(flusher);
    return leave(flusher, fault, 0, error);
}

/* A row that is there already, or for which this memory has no room. */
static int refuse(struct memory_flusher *flusher, struct error *error)
{
    return leave(flusher, FAULT_REFUSED, 0, error);
}

static void add_row(struct memory_postgres *postgres, const struct cargo *cargo)
{
    struct memory_row *row = &postgres->ledger[postgres->ledger_len++];

    assert(postgres->ledger_len < MEMORY_LEDGER);
    snprintf(row->id, sizeof(row->id), "%s", cargo->generation.id);
    row->entry = cargo->entry;
    postgres->head = cargo->entry;
}

static void release_early(struct memory_redis *redis, const struct cargo *cargo)
{
    if (strcmp(redis->sealed_id, cargo->generation.id) != 0)
        return;
    release_sealed(redis, &cargo->correction);
    free_sealed(redis);
}

static int record(void *context, const struct cargo *cargo, size_t cargo_len, struct error *error)
{
    struct memory_flusher *flusher = context;
    enum memory_fault fault = enter(flusher);

    for (size_t i = 0; i < cargo_len && is_carried_out(fault); i++) {
        struct memory_store *store = &flusher->store[cargo[i].shard];
        assert(flusher->dead || store->locked_by == flusher);
        if (find_row(&flusher->transactions[cargo[i].shard], cargo[i].generation.id))
            return refuse(flusher, error);
        add_row(&flusher->transactions[cargo[i].shard], &cargo[i]);
        if (memory_mutant == MUTANT_LEDGER_OUTSIDE)
            add_row(&store->postgres, &cargo[i]);
        if (memory_mutant == MUTANT_RELEASE_EARLY)
            release_early(&store->redis, &cargo[i]);
    }
    return leave(flusher, fault, 0, error);
}

static int apply(void *context, struct cargo *cargo, size_t cargo_len, const struct updates *updates,
                 struct error *error)
{
    struct memory_flusher *flusher = context;
    enum memory_fault fault = enter(flusher);

    for (size_t i = 0; i < cargo_len && is_carried_out(fault); i++) {
        const struct generation *generation = &cargo[i].generation;
        assert(flusher->dead || flusher->store[cargo[i].shard].locked_by == flusher);
        for (size_t j = 0; j < generation->batches_len; j++)
            flusher->transactions[cargo[i].shard].vector[number_of(generation->batches[j].writer)] =
                generation->batches[j].high;
        for (int writer = 0; writer < MEMORY_WRITERS; writer++)
            flusher->transactions[cargo[i].shard].blanks[writer] |= flusher->blanks[cargo[i].shard][writer];
    }
    for (size_t i = 0; i < updates->len && is_carried_out(fault); i++)
        flusher->transactions[cargo[updates->items[i].cargo].shard]
            .value[updates_key(updates, i).ptr[1] - '0'] += updates->items[i].delta;
    return leave(flusher, fault, 0, error);
}

static int quarantine(void *context, const struct cargo *cargo, const struct updates *updates,
                      struct error *error)
{
    struct memory_flusher *flusher = context;
    const struct generation *generation = &cargo->generation;
    struct memory_postgres *postgres = &flusher->transactions[cargo->shard];
    enum memory_fault fault = enter(flusher);

    assert(flusher->dead || flusher->store[cargo->shard].locked_by == flusher);
    if (is_carried_out(fault) &&
        (in_quarantine(postgres, generation->id) || postgres->quarantine_len == MEMORY_QUARANTINE))
        return refuse(flusher, error);
    if (is_carried_out(fault)) {
        struct memory_quarantine *row = &postgres->quarantine[postgres->quarantine_len++];
        assert(updates->len == generation->members);
        *row = (struct memory_quarantine){.set_aside = generation->set_aside, .total = cargo->total};
        snprintf(row->id, sizeof(row->id), "%s", generation->id);
        memcpy(row->blanks, flusher->blanks[cargo->shard], sizeof(row->blanks));
        for (size_t i = 0; i < generation->batches_len; i++) {
            row->low[number_of(generation->batches[i].writer)] = (int)generation->batches[i].low;
            row->high[number_of(generation->batches[i].writer)] = (int)generation->batches[i].high;
        }
    }
    return leave(flusher, fault, 0, error);
}

static int stand(void *context, uint32_t shard, struct reset *ret_reset, struct error *error)
{
    struct memory_flusher *flusher = context;
    const struct memory_postgres *postgres = &flusher->transactions[shard];
    enum memory_fault fault = enter(flusher);

    assert(flusher->dead || flusher->store[shard].locked_by == flusher);
    if (is_carried_out(fault)) {
        ret_reset->accepted = postgres->head.cumulative_total;
        ret_reset->events = postgres->head.cumulative_events;
        if (postgres->ledger_len > 0)
            memcpy(ret_reset->head_id, postgres->ledger[postgres->ledger_len - 1].id,
                   sizeof(ret_reset->head_id));
        ret_reset->vector = calloc(MEMORY_WRITERS, sizeof(struct position));
        for (int i = 0; i < MEMORY_WRITERS; i++) {
            struct position *position = &ret_reset->vector[ret_reset->vector_len];
            if (postgres->vector[i] == 0)
                continue;
            assert(asprintf(&position->writer, "w%d", i) > 0);
            position->seq = postgres->vector[i];
            ret_reset->vector_len++;
        }
    }
    return leave(flusher, fault, 0, error);
}

static int commit(void *context, struct error *error)
{
    struct memory_flusher *flusher = context;
    enum memory_fault fault = enter(flusher);
    bool locked = false;
    int r;

    for (size_t i = 0; i < shards_of(flusher); i++) {
        if (flusher->store[i].locked_by != flusher)
            continue;
        locked = true;
        if (is_carried_out(fault))
            flusher->store[i].postgres = flusher->transactions[i];
    }
    assert(flusher->dead || locked);
    lose_transaction(flusher);
    r = leave(flusher, fault, COMMIT_DONE, error);
    if (fault == FAULT_LOST_CALL && memory_mutant == MUTANT_UNKNOWN_IS_DONE)
        return COMMIT_DONE;
    return fault == FAULT_LOST_CALL || fault == FAULT_LOST_REPLY ? COMMIT_UNKNOWN : r;
}

static void rollback(void *context)
{
    lose_transaction(context);
}

struct sink memory_sink(struct memory_flusher *flusher)
{
    return (struct sink){flusher, prepare, begin, record, apply, quarantine, stand, commit, rollback};
}
