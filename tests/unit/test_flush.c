#include "flusher/failure.h"
#include "flusher/flush.h"
#include "tests/unit/memory_store.h"
#include "tests/unit/unit.h"

/* --- a small world: two writers that go on appending while flushers come, fail and die --- */

#define HISTORY 400

struct world {
    struct memory_store store;
    int64_t accepted[MEMORY_KEYS]; /* what Redis acknowledged, per key */
    int64_t seq[MEMORY_WRITERS];
    struct {
        int key;
        int64_t delta;
    } history[MEMORY_WRITERS][HISTORY + 1]; /* what each seq was, for when Redis forgets it */
    int64_t durable[MEMORY_WRITERS];        /* what Redis last told the writer */
};

static enum memory_append append_one(struct memory_redis *redis, int writer, int64_t seq,
                                     int64_t known_durable, int key, int64_t delta)
{
    struct memory_deltas deltas = {.events = 1};
    int64_t ignored;

    deltas.there[key] = true;
    deltas.delta[key] = delta;
    return memory_append(redis, writer, seq, known_durable, &deltas, &ignored);
}

/* A batch, and before it whatever Redis says that it lacks. */
static void must_append(struct world *world, int writer, int key, int64_t delta)
{
    struct memory_redis *redis = &world->store.redis;
    int64_t newest = ++world->seq[writer];

    ck_assert_int_lt(newest, HISTORY);
    world->history[writer][newest].key = key;
    world->history[writer][newest].delta = delta;
    world->accepted[key] += delta;
    for (int64_t seq = newest; seq <= newest;) {
        enum memory_append answer =
            append_one(redis, writer, seq, world->durable[writer], world->history[writer][seq].key,
                       world->history[writer][seq].delta);
        if (answer == MEMORY_GAP)
            seq = (redis->writers[writer] > world->durable[writer] ? redis->writers[writer]
                                                                   : world->durable[writer]);
        else if (redis->durable[writer] > world->durable[writer])
            world->durable[writer] = redis->durable[writer];
        seq++;
    }
}

static void append_some(struct world *world)
{
    must_append(world, 0, 0, 5);
    must_append(world, 0, 3, -2);
    must_append(world, 1, 1, 7);
    must_append(world, 1, 0, 1);
    must_append(world, 0, 5, 11);
}

static int run_flusher(struct memory_flusher *flusher, struct flush_result *result)
{
    struct source source = memory_source(flusher);
    struct sink sink = memory_sink(flusher);
    struct flush flush = {.source = &source, .sink = &sink, .gather_keys = 250000};
    struct error error;
    int r = flush_shard(&flush, 0, result, &error);

    flush_done(&flush);
    return r;
}

static void must_flush(struct world *world)
{
    struct memory_flusher flusher = {.store = &world->store};
    struct flush_result result;

    ck_assert_int_eq(run_flusher(&flusher, &result), 0);
}

/* Each increment is in Postgres exactly once, and Redis holds nothing any more. */
static void must_be_exact(const struct world *world)
{
    int64_t total = 0;

    for (int i = 0; i < MEMORY_KEYS; i++) {
        ck_assert_int_eq(world->store.postgres.value[i], world->accepted[i]);
        ck_assert(!world->store.redis.open.there[i] && !world->store.redis.sealed.there[i]);
        total += world->accepted[i];
    }
    ck_assert_int_eq(world->store.postgres.head.cumulative_total, total);
    ck_assert_int_eq(world->store.postgres.head.cumulative_total, world->store.redis.accepted);
    ck_assert_int_eq(world->store.postgres.head.cumulative_events, world->store.redis.events);
    ck_assert_ptr_null(world->store.locked_by);
}

/* --- the ordinary case --- */

START_TEST(flushes_what_is_open)
{
    struct world world = {0};
    struct memory_flusher flusher = {.store = &world.store};
    struct flush_result result;

    append_some(&world);
    must_append(&world, 0, 2, 4);
    must_append(&world, 0, 2, -4);
    ck_assert_int_eq(run_flusher(&flusher, &result), 0);
    must_be_exact(&world);
    ck_assert_int_eq(result.keys, 5); /* k2 came to nothing, but was seen */
    ck_assert_int_eq(result.total, 22);
    ck_assert_int_eq(result.events, 7);
    ck_assert_int_eq(result.fresh_ms, 0);
    ck_assert(!result.mixed);
    ck_assert_int_eq(world.store.postgres.ledger_len, 1);
}
END_TEST

START_TEST(an_empty_shard_is_fresh_and_touches_no_sink)
{
    struct world world = {0};
    struct memory_flusher flusher = {.store = &world.store};
    struct flush_result result;

    ck_assert_int_eq(run_flusher(&flusher, &result), 0);
    ck_assert_int_eq(result.fresh_ms, 1);
    ck_assert_int_eq(world.store.postgres.ledger_len, 0);
}
END_TEST

/* As a flusher that died right behind its seal. */
static void leave_sealed(struct world *world)
{
    struct memory_flusher flusher = {.store = &world->store};
    struct source source = memory_source(&flusher);
    struct generation left = {0};
    struct error error;

    ck_assert_int_eq(source.seal(source.context, 0, &left, &error), SEAL_SEALED);
    generation_done(&left);
}

START_TEST(a_pass_takes_what_came_after_the_recovered_generation)
{
    struct world world = {0};

    append_some(&world);
    leave_sealed(&world);
    append_some(&world);
    must_flush(&world);
    must_be_exact(&world);
    ck_assert_int_eq(world.store.postgres.ledger_len, 2);
}
END_TEST

/* --- one or two faults at every call --- */

struct countdown {
    enum memory_fault kind;
    int first, second; /* calls until they fire; -1 = never, or has fired */
};

static enum memory_fault count_down(void *context, struct memory_flusher *flusher)
{
    struct countdown *countdown = context;
    bool fires = countdown->first == 0 || countdown->second == 0;

    (void)flusher;
    countdown->first -= countdown->first >= 0;
    countdown->second -= countdown->second >= 0;
    return fires ? countdown->kind : FAULT_NONE;
}

/* Flushes under the faults, again and again until it works; increments come in between. */
static void must_get_through(struct world *world, struct countdown *countdown)
{
    struct flush_result result;
    int r;

    for (int run = 0; run < 20; run++) {
        struct memory_flusher flusher = {.store = &world->store, .hook = count_down, .context = countdown};
        r = run_flusher(&flusher, &result);
        if (run < 3)
            append_some(world);
        else if (r == 0)
            break;
    }
    ck_assert_int_eq(r, 0);
}

static void flush_under(struct countdown *countdown)
{
    struct world world = {0};

    append_some(&world);
    must_get_through(&world, countdown);
    must_be_exact(&world);
}

/* At the first call, at the second, ... until there are no more. */
static void sweep_one_fault(enum memory_fault kind, void (*under)(struct countdown *))
{
    struct countdown countdown;

    for (int k = 0;; k++) {
        countdown = (struct countdown){kind, k, -1};
        under(&countdown);
        if (countdown.first >= 0)
            break;
    }
}

static void sweep_two_faults(enum memory_fault kind, void (*under)(struct countdown *))
{
    struct countdown countdown;
    bool first_fired = true;

    for (int k = 0; first_fired; k++) {
        bool second_fired = true;
        for (int j = k + 1; second_fired; j++) {
            countdown = (struct countdown){kind, k, j};
            under(&countdown);
            first_fired = countdown.first < 0;
            second_fired = countdown.second < 0;
        }
    }
}

START_TEST(one_fault_at_any_call_loses_and_doubles_nothing)
{
    sweep_one_fault((enum memory_fault)_i, flush_under);
}
END_TEST

START_TEST(two_faults_at_any_calls_lose_and_double_nothing)
{
    sweep_two_faults((enum memory_fault)_i, flush_under);
}
END_TEST

/* Calls of a flush of append_some(): seal, two pages, begin, record, apply, commit, release. */
#define CALL_READ   1
#define CALL_COMMIT 6

START_TEST(a_commit_without_an_answer_is_settled_by_the_ledger)
{
    static const enum memory_fault kinds[] = {FAULT_LOST_CALL, FAULT_LOST_REPLY};

    for (size_t i = 0; i < ARRAY_LEN(kinds); i++) {
        struct world world = {0};
        struct countdown countdown = {kinds[i], CALL_COMMIT, -1};
        struct memory_flusher flusher = {.store = &world.store, .hook = count_down, .context = &countdown};
        struct flush_result result;

        append_some(&world);
        ck_assert_int_eq(run_flusher(&flusher, &result), 0);
        ck_assert_int_eq(result.keys, 4);
        ck_assert_int_eq(result.total, 22);
        must_be_exact(&world);
    }
}
END_TEST

/* From COMMIT on, nothing is answered any more. */
static enum memory_fault no_answers(void *context, struct memory_flusher *flusher)
{
    (void)context;
    return flusher->store->locked_by == flusher ? FAULT_LOST_CALL : FAULT_NONE;
}

static enum memory_fault no_commit(void *context, struct memory_flusher *flusher)
{
    int *calls = context;

    /* record, apply, commit */
    *calls = flusher->store->locked_by == flusher ? *calls + 1 : 0;
    return *calls == 3 ? FAULT_LOST_CALL : FAULT_NONE;
}

START_TEST(what_was_never_committed_is_not_released)
{
    struct world world = {0};
    int calls = 0;
    struct memory_flusher deaf = {.store = &world.store, .hook = no_answers};
    struct memory_flusher mute = {.store = &world.store, .hook = no_commit, .context = &calls};
    struct flush_result result;

    append_some(&world);
    ck_assert_int_eq(run_flusher(&deaf, &result), FAILURE_UNAVAILABLE);
    ck_assert_int_eq(run_flusher(&mute, &result), FAILURE_UNAVAILABLE);
    ck_assert_int_eq(result.keys, 0);
    ck_assert_str_ne(world.store.redis.sealed_id, "");
    must_flush(&world);
    must_be_exact(&world);
}
END_TEST

/* --- several shards in one transaction --- */

struct shards {
    struct memory_store stores[MEMORY_SHARDS];
    int64_t seq[MEMORY_SHARDS];
    int64_t accepted[MEMORY_SHARDS][MEMORY_KEYS];
};

static void append_everywhere(struct shards *shards)
{
    for (int i = 0; i < MEMORY_SHARDS; i++)
        for (int key = 0; key < 4; key++) {
            ck_assert_int_eq(append_one(&shards->stores[i].redis, 0, ++shards->seq[i], 0, key, key + i + 1),
                             MEMORY_OK);
            shards->accepted[i][key] += key + i + 1;
        }
}

static void must_all_be_exact(const struct shards *shards)
{
    for (int i = 0; i < MEMORY_SHARDS; i++) {
        for (int key = 0; key < MEMORY_KEYS; key++)
            ck_assert_int_eq(shards->stores[i].postgres.value[key], shards->accepted[i][key]);
        ck_assert_int_eq(shards->stores[i].postgres.head.cumulative_total, shards->stores[i].redis.accepted);
        ck_assert_int_eq(shards->stores[i].postgres.vector[0], shards->seq[i]);
        ck_assert_str_eq(shards->stores[i].redis.sealed_id, "");
        ck_assert_ptr_null(shards->stores[i].locked_by);
    }
}

/* As a job does it: together, and what does not go smoothly, alone. */
static int run_gathering(struct memory_flusher *flusher, struct flush_result *result)
{
    struct source source = memory_source(flusher);
    struct sink sink = memory_sink(flusher);
    struct flush flush = {.source = &source, .sink = &sink, .gather_keys = 250000};
    struct flush_result one;
    struct error error;
    bool gathered[MEMORY_SHARDS] = {false}, alone[MEMORY_SHARDS] = {false};
    int r, worst = 0;

    for (uint32_t i = 0; i < MEMORY_SHARDS; i++) {
        r = flush_gather(&flush, i, &one, &error);
        gathered[i] = r == GATHERED_MORE;
        alone[i] = r < 0 || r == GATHERED_ALONE;
    }
    r = flush_gathered(&flush, result, &error);
    for (uint32_t i = 0; i < MEMORY_SHARDS; i++) {
        if (!alone[i] && !(gathered[i] && r < 0))
            continue;
        if (flush_shard(&flush, i, &one, &error) < 0)
            worst = -1;
        result->keys += one.keys;
        result->total += one.total;
        result->events += one.events;
    }
    flush_done(&flush);
    return worst;
}

START_TEST(several_shards_share_a_transaction)
{
    struct shards shards = {0};
    struct memory_flusher flusher = {.store = shards.stores, .shards = MEMORY_SHARDS};
    struct flush_result result;

    append_everywhere(&shards);
    append_everywhere(&shards);
    ck_assert_int_eq(run_gathering(&flusher, &result), 0);
    must_all_be_exact(&shards);
    ck_assert_int_eq(result.keys, 4 * MEMORY_SHARDS);
    ck_assert_int_eq(result.total, 2 * (10 + 14 + 18));
    ck_assert_int_eq(result.events, 8 * MEMORY_SHARDS);
    for (int i = 0; i < MEMORY_SHARDS; i++)
        ck_assert_int_eq(shards.stores[i].postgres.ledger_len, 1);
}
END_TEST

START_TEST(faults_while_several_share_a_transaction_lose_and_double_nothing)
{
    bool fired = true;

    for (int k = 0; fired; k++) {
        for (int distance = 1; distance < 20; distance *= 2) {
            struct countdown countdown = {(enum memory_fault)_i, k, k + distance};
            struct shards shards = {0};
            struct flush_result result;
            int r = -1;
            append_everywhere(&shards);
            for (int run = 0; run < 20 && (r != 0 || run < 4); run++) {
                struct memory_flusher flusher = {.store = shards.stores,
                                                 .shards = MEMORY_SHARDS,
                                                 .hook = count_down,
                                                 .context = &countdown};
                r = run_gathering(&flusher, &result);
                if (run < 3)
                    append_everywhere(&shards);
            }
            ck_assert_int_eq(r, 0);
            must_all_be_exact(&shards);
            fired = countdown.first < 0;
        }
    }
}
END_TEST

START_TEST(one_mixed_shard_does_not_hold_up_the_others)
{
    struct shards shards = {0};
    struct memory_flusher flusher = {.store = shards.stores, .shards = MEMORY_SHARDS};
    struct memory_redis before;
    struct memory_postgres postgres;
    struct flush_result result;

    append_everywhere(&shards);
    before = shards.stores[1].redis;
    ck_assert_int_eq(run_gathering(&flusher, &result), 0);
    shards.stores[1].redis = before;
    append_everywhere(&shards);
    postgres = shards.stores[1].postgres;
    ck_assert_int_eq(run_gathering(&flusher, &result), 0);
    ck_assert_int_eq(result.keys, 8);
    ck_assert_mem_eq(postgres.value, shards.stores[1].postgres.value, sizeof(postgres.value));
    ck_assert_int_eq(shards.stores[0].postgres.quarantine_len, 0);
    ck_assert_int_eq(shards.stores[1].postgres.quarantine_len, 1);
    ck_assert_int_eq(shards.stores[0].postgres.value[0], shards.accepted[0][0]);
    ck_assert_int_eq(shards.stores[2].postgres.value[0], shards.accepted[2][0]);
}
END_TEST

/* A second flusher flushes the shards one by one while the first is at any of its calls. */
static enum memory_fault overlap_several(void *context, struct memory_flusher *flusher)
{
    int *calls = context;

    if ((*calls)-- == 0) {
        struct memory_flusher second = {.store = flusher->store, .shards = MEMORY_SHARDS};
        struct source source = memory_source(&second);
        struct sink sink = memory_sink(&second);
        struct flush flush = {.source = &source, .sink = &sink, .gather_keys = 250000};
        struct flush_result result;
        struct error error;
        for (uint32_t i = 0; i < MEMORY_SHARDS; i++) {
            int r = flush_shard(&flush, i, &result, &error);
            ck_assert(r == 0 || r == FAILURE_LATER);
        }
        flush_done(&flush);
    }
    return FAULT_NONE;
}

START_TEST(a_second_flusher_while_several_share_a_transaction_does_no_harm)
{
    for (int k = 0, left = -1; left < 0; k++) {
        struct shards shards = {0};
        struct memory_flusher first = {
            .store = shards.stores, .shards = MEMORY_SHARDS, .hook = overlap_several, .context = &left};
        struct flush_result result;
        left = k;
        append_everywhere(&shards);
        ck_assert_int_eq(run_gathering(&first, &result), 0);
        must_all_be_exact(&shards);
    }
}
END_TEST

/* --- flushers that overlap --- */

/* At one call of a first flusher, a second one runs from its beginning to its end; the first may die later.
 */
struct overlap {
    struct world *world;
    int before, after; /* calls of the first until the second runs; -1 = never, or has run */
    int crash;         /* calls until the first dies; -1 = never */
};

static void run_second(struct overlap *overlap)
{
    struct memory_flusher second = {.store = &overlap->world->store};
    struct flush_result result;
    int r = run_flusher(&second, &result);

    /* It may find the row locked, and gives up. */
    ck_assert(r == 0 || r == FAILURE_LATER);
    append_some(overlap->world);
}

static enum memory_fault overlap_before(void *context, struct memory_flusher *flusher)
{
    struct overlap *overlap = context;
    bool crashes = overlap->crash == 0;

    (void)flusher;
    if (overlap->before == 0)
        run_second(overlap);
    overlap->before -= overlap->before >= 0;
    overlap->crash -= overlap->crash >= 0;
    return crashes ? FAULT_CRASH : FAULT_NONE;
}

static void overlap_after(void *context, struct memory_flusher *flusher)
{
    struct overlap *overlap = context;

    (void)flusher;
    if (overlap->after == 0)
        run_second(overlap);
    overlap->after -= overlap->after >= 0;
}

static void flush_overlapping(struct overlap overlap, bool *ret_fired)
{
    struct world world = {0};
    struct memory_flusher first = {
        .store = &world.store, .hook = overlap_before, .after = overlap_after, .context = &overlap};
    struct flush_result result;
    int r;

    overlap.world = &world;
    append_some(&world);
    r = run_flusher(&first, &result);
    ck_assert(r == 0 || first.dead);
    *ret_fired = overlap.before < 0 && overlap.after < 0;
    must_flush(&world);
    must_be_exact(&world);
}

static enum memory_fault collide(void *context, struct memory_flusher *flusher)
{
    struct overlap *overlap = context;

    (void)flusher;
    return overlap->crash-- == 0 ? FAULT_COLLISION : FAULT_NONE;
}

/* What another flusher has done by the time of the next attempt is no part of what this one tells. */
START_TEST(what_collides_with_the_one_who_did_it_is_told_once)
{
    for (int hole = 0; hole < 2; hole++) {
        struct world world = {0};
        struct overlap overlap = {&world, -1, CALL_COMMIT, CALL_COMMIT};
        struct memory_flusher first = {
            .store = &world.store, .hook = collide, .after = overlap_after, .context = &overlap};
        struct flush_result result;

        append_some(&world);
        if (hole)
            world.store.redis.open.low[0] = 2;
        ck_assert_int_eq(run_flusher(&first, &result), 0);
        ck_assert_int_lt(overlap.after, 0);
        ck_assert_int_eq(result.keys, 0);
        ck_assert_int_eq(result.quarantined, 0);
    }
}
END_TEST

START_TEST(a_second_flusher_at_any_call_does_no_harm)
{
    bool before_fired = true, after_fired = true;

    for (int k = 0; before_fired || after_fired; k++) {
        flush_overlapping((struct overlap){NULL, k, -1, -1}, &before_fired);
        flush_overlapping((struct overlap){NULL, -1, k, -1}, &after_fired);
        for (int crash = k + 1; crash < k + 12; crash++) {
            bool fired;
            flush_overlapping((struct overlap){NULL, k, -1, crash}, &fired);
            flush_overlapping((struct overlap){NULL, -1, k, crash}, &fired);
        }
    }
}
END_TEST

/* --- Redis that went back in time, or lost something --- */

/* Redis as it was before a flush that is in Postgres. */
static void flush_and_go_back(struct world *world)
{
    struct memory_redis before;

    append_some(world);
    before = world->store.redis;
    must_flush(world);
    world->store.redis = before;
}

START_TEST(a_generation_that_came_back_under_a_new_id_is_not_applied_again)
{
    struct world world = {0};

    flush_and_go_back(&world);
    must_flush(&world);
    must_be_exact(&world);
    ck_assert_int_eq(world.store.postgres.ledger_len, 2);
    ck_assert_int_eq(world.store.postgres.ledger[1].entry.total, 0);
    ck_assert_int_eq(world.store.redis.durable[0], world.seq[0]);
    append_some(&world);
    must_flush(&world);
    must_be_exact(&world);
}
END_TEST

struct time_machine {
    struct memory_redis before;
    int calls;
};

static enum memory_fault go_back_before_second_page(void *context, struct memory_flusher *flusher)
{
    struct time_machine *machine = context;

    if (machine->calls++ == CALL_READ + 1)
        flusher->store->redis = machine->before;
    return FAULT_NONE;
}

START_TEST(a_generation_that_is_gone_while_it_is_read_is_dropped)
{
    struct world world = {0};
    struct time_machine machine = {0};
    struct memory_flusher flusher = {
        .store = &world.store, .hook = go_back_before_second_page, .context = &machine};
    struct flush_result result;

    append_some(&world);
    machine.before = world.store.redis;
    ck_assert_int_eq(run_flusher(&flusher, &result), 0);
    must_be_exact(&world);
}
END_TEST

/* Writers go on, the flusher comes again, until nothing is in doubt any more: all is exact, and what was
 * told of Redis's totals holds again. */
static void must_recover(struct world *world)
{
    append_some(world);
    must_flush(world);
    append_some(world);
    must_flush(world);
    must_be_exact(world);
}

START_TEST(a_generation_that_mixes_old_and_new_goes_into_quarantine_and_is_sent_again)
{
    struct world world = {0};
    struct memory_flusher flusher = {.store = &world.store};
    struct flush_result result;

    flush_and_go_back(&world);
    append_some(&world);
    ck_assert_int_eq(run_flusher(&flusher, &result), 0);
    ck_assert_int_eq(result.quarantined, 1);
    ck_assert_int_eq(result.keys, 0);
    ck_assert(result.mixed);
    ck_assert_int_eq(world.store.postgres.quarantine[0].total, 44);
    ck_assert_int_eq(world.store.redis.accepted, 22);
    ck_assert_str_eq(world.store.redis.prev_id, world.store.postgres.ledger[0].id);
    must_recover(&world);
    ck_assert_uint_eq(world.store.postgres.quarantine_len, 1);
}
END_TEST

START_TEST(what_is_open_beside_a_mixed_generation_goes_into_quarantine_too)
{
    struct world world = {0};
    struct memory_flusher flusher = {.store = &world.store};
    struct source source = memory_source(&flusher);
    struct generation mixed = {0};
    struct flush_result result;
    struct error error;

    flush_and_go_back(&world);
    append_some(&world);
    ck_assert_int_eq(source.seal(source.context, 0, &mixed, &error), SEAL_SEALED);
    generation_done(&mixed);
    /* A writer of which Postgres has nothing, so that by its numbers this would be fresh. */
    must_append(&world, 2, 4, 22);
    ck_assert_int_eq(run_flusher(&flusher, &result), 0);
    ck_assert_int_eq(result.quarantined, 2);
    ck_assert(!world.store.postgres.quarantine[0].set_aside && world.store.postgres.quarantine[1].set_aside);
    ck_assert_int_eq(world.store.postgres.quarantine[1].total, 22);
    ck_assert_int_eq(world.store.postgres.vector[2], 0);
    must_append(&world, 2, 4, 1);
    must_recover(&world);
    ck_assert_uint_eq(world.store.postgres.quarantine_len, 2);
}
END_TEST

/* Redis went back, old and new are mixed in sealed, more is in open; then flushers fail at any call. */
static void quarantine_under(struct countdown *countdown)
{
    struct world world = {0};
    struct memory_flusher calm = {.store = &world.store};
    struct source source = memory_source(&calm);
    struct generation mixed = {0};
    struct error error;

    flush_and_go_back(&world);
    append_some(&world);
    ck_assert_int_eq(source.seal(source.context, 0, &mixed, &error), SEAL_SEALED);
    generation_done(&mixed);
    append_some(&world);
    must_get_through(&world, countdown);
    must_recover(&world);
    ck_assert_uint_eq(world.store.postgres.quarantine_len, 2);
}

START_TEST(one_fault_at_any_call_of_a_quarantine_loses_and_doubles_nothing)
{
    sweep_one_fault((enum memory_fault)_i, quarantine_under);
}
END_TEST

START_TEST(two_faults_at_any_calls_of_a_quarantine_lose_and_double_nothing)
{
    sweep_two_faults((enum memory_fault)_i, quarantine_under);
}
END_TEST

/* Redis as it was at one call of a flush comes back at a later one, of that flush or the next. */
struct rollback {
    int save, restore; /* calls until then */
    struct memory_redis saved;
};

static enum memory_fault save_and_restore(void *context, struct memory_flusher *flusher)
{
    struct rollback *rollback = context;

    if (rollback->save-- == 0)
        rollback->saved = flusher->store->redis;
    if (rollback->restore-- == 0)
        flusher->store->redis = rollback->saved;
    return FAULT_NONE;
}

START_TEST(redis_may_go_back_from_any_call_to_any_earlier_one)
{
    bool fired = true;

    for (int save = 0; fired; save++) {
        fired = true;
        for (int distance = 1; distance < 60; distance++) {
            struct world world = {0};
            struct rollback rollback = {.save = save, .restore = save + distance};
            for (int run = 0; run < 4; run++) {
                struct memory_flusher flusher = {
                    .store = &world.store, .hook = save_and_restore, .context = &rollback};
                struct flush_result result;
                int r;
                append_some(&world);
                r = run_flusher(&flusher, &result);
                ck_assert_int_eq(r, 0);
            }
            fired = rollback.save < 0;
            must_recover(&world);
        }
    }
}
END_TEST

START_TEST(an_emptied_redis_goes_on_where_postgres_is)
{
    struct world world = {0};

    append_some(&world);
    must_flush(&world);
    append_some(&world);
    must_flush(&world);
    world.store.redis = (struct memory_redis){0};
    must_recover(&world);
    ck_assert_int_eq(world.store.postgres.ledger[world.store.postgres.ledger_len - 1].entry.correction.total,
                     0);
}
END_TEST

START_TEST(a_running_total_that_belongs_to_another_set_is_not_made_up_for)
{
    struct world world = {0};

    append_some(&world);
    world.store.redis.accepted += 3;
    must_flush(&world);
    ck_assert_int_eq(world.store.redis.accepted, world.store.postgres.head.cumulative_total + 3);
    world.store.redis.prev_id[0] = '\0'; /* and neither when it went back */
    append_some(&world);
    world.store.redis.accepted -= 22;
    world.store.redis.accepted_at_seal -= 22;
    must_flush(&world);
    ck_assert_int_eq(world.store.redis.accepted, world.store.postgres.head.cumulative_total + 3);
}
END_TEST

START_TEST(a_running_total_that_belongs_to_nothing_known_is_left_alone)
{
    struct world world = {0};

    append_some(&world);
    must_flush(&world);
    append_some(&world);
    world.store.redis.prev_id[0] = '?';
    must_flush(&world);
    ck_assert_int_eq(world.store.postgres.head.cumulative_total, 44);
    ck_assert_int_eq(world.store.postgres.head.correction.total, 0);
    ck_assert_int_eq(world.store.postgres.head.correction.events, 0);
}
END_TEST

/* Redis forgets what was released, and a batch behind it, of which the writers know that Postgres has all
 * but that batch. */
START_TEST(events_are_counted_from_what_redis_released_last)
{
    struct world world = {0};
    struct memory_flusher flusher = {.store = &world.store};
    struct memory_redis before;
    struct flush_result result;

    append_some(&world);
    must_flush(&world);
    before = world.store.redis;
    append_some(&world);
    must_flush(&world);
    append_some(&world);
    world.store.redis = before;
    append_some(&world);
    ck_assert_int_eq(run_flusher(&flusher, &result), 0);
    ck_assert_int_eq(result.quarantined, 0);
    ck_assert_int_eq(result.events, 10);
    must_be_exact(&world);
}
END_TEST

static void must_refuse(struct world *world)
{
    struct memory_flusher flusher = {.store = &world->store};
    struct memory_postgres postgres = world->store.postgres;
    struct memory_set sealed;
    struct flush_result result;

    ck_assert_int_eq(run_flusher(&flusher, &result), FAILURE_LATER);
    sealed = world->store.redis.sealed;
    ck_assert_int_eq(run_flusher(&flusher, &result), FAILURE_LATER);
    ck_assert_int_eq(result.keys, 0);
    ck_assert_mem_eq(&postgres, &world->store.postgres, sizeof(postgres));
    ck_assert_mem_eq(&sealed, &world->store.redis.sealed, sizeof(sealed));
    ck_assert_ptr_null(world->store.locked_by);
}

START_TEST(a_generation_with_a_hole_before_it_goes_into_quarantine)
{
    struct world world = {0};

    append_some(&world);
    world.store.redis.open.low[0] = 2;
    must_flush(&world);
    ck_assert_uint_eq(world.store.postgres.quarantine_len, 1);
    must_recover(&world);
}
END_TEST

START_TEST(a_generation_without_its_batches_goes_into_quarantine)
{
    struct world world = {0};

    append_some(&world);
    memset(world.store.redis.open.low, 0, sizeof(world.store.redis.open.low));
    must_flush(&world);
    ck_assert_uint_eq(world.store.postgres.quarantine_len, 1);
    must_recover(&world);
}
END_TEST

/* A member evicted between the seal and the read: the seal counted it. */
static enum memory_fault evict_before_read(void *context, struct memory_flusher *flusher)
{
    (void)context;
    flusher->store->redis.sealed.there[3] = false;
    return FAULT_NONE;
}

START_TEST(a_generation_that_lost_a_member_is_refused)
{
    struct world world = {0};
    struct memory_flusher flusher = {.store = &world.store, .hook = evict_before_read};
    struct flush_result result;

    append_some(&world);
    ck_assert_int_eq(run_flusher(&flusher, &result), FAILURE_LATER);
    ck_assert_int_eq(world.store.postgres.ledger_len, 0);
}
END_TEST

START_TEST(a_generation_that_lost_all_its_members_is_refused)
{
    struct world world = {0};

    append_some(&world);
    leave_sealed(&world);
    memset(world.store.redis.sealed.there, 0, sizeof(world.store.redis.sealed.there));
    must_refuse(&world);
}
END_TEST

START_TEST(a_total_beyond_64_bits_is_refused_and_stays)
{
    struct world world = {0};

    must_append(&world, 0, 0, INT64_MAX);
    must_flush(&world);
    world.store.redis.accepted = 0;
    must_append(&world, 0, 1, INT64_MAX);
    must_refuse(&world);
}
END_TEST

/* --- the verdict --- */

START_TEST(judges_by_ledger_and_vector)
{
    static const struct {
        bool in_ledger;
        size_t len;
        int64_t low[2], high[2], vector[2];
        enum verdict verdict;
    } cases[] = {
        {true, 1, {1}, {3}, {0}, VERDICT_APPLIED},
        {false, 1, {1}, {3}, {0}, VERDICT_FRESH},
        {false, 1, {4}, {4}, {3}, VERDICT_FRESH},
        {false, 1, {1}, {3}, {3}, VERDICT_APPLIED},
        {false, 1, {1}, {3}, {9}, VERDICT_APPLIED},
        {false, 1, {1}, {3}, {2}, VERDICT_MIXED},
        {false, 1, {3}, {5}, {1}, VERDICT_MIXED},
        {false, 2, {1, 4}, {3, 5}, {0, 3}, VERDICT_FRESH},
        {false, 2, {1, 4}, {3, 5}, {3, 5}, VERDICT_APPLIED},
        {false, 2, {1, 4}, {3, 5}, {3, 3}, VERDICT_MIXED},
        {false, 2, {1, 4}, {3, 5}, {0, 4}, VERDICT_MIXED},
        {false, 0, {0}, {0}, {0}, VERDICT_MIXED},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct batches batches[2] = {{NULL, cases[i].low[0], cases[i].high[0]},
                                     {NULL, cases[i].low[1], cases[i].high[1]}};
        struct generation generation = {.batches = batches, .batches_len = cases[i].len};
        struct standing standing = {.in_ledger = cases[i].in_ledger};
        ck_assert_int_eq(flush_judge(&generation, &standing, cases[i].vector), cases[i].verdict);
    }
}
END_TEST

START_TEST(judges_quarantine_before_all_else)
{
    struct batches batches = {NULL, 1, 3};
    struct generation generation = {.batches = &batches, .batches_len = 1, .set_aside = true};
    struct standing standing = {0};
    int64_t vector = 0;

    ck_assert_int_eq(flush_judge(&generation, &standing, &vector), VERDICT_MIXED);
    generation.set_aside = false;
    standing.in_quarantine = standing.in_ledger = true;
    ck_assert_int_eq(flush_judge(&generation, &standing, &vector), VERDICT_MIXED);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, flushes_what_is_open);
    tcase_add_test(tests, an_empty_shard_is_fresh_and_touches_no_sink);
    tcase_add_test(tests, a_pass_takes_what_came_after_the_recovered_generation);
    tcase_add_loop_test(tests, one_fault_at_any_call_loses_and_doubles_nothing, FAULT_NONE + 1, FAULT_COUNT);
    tcase_add_loop_test(tests, two_faults_at_any_calls_lose_and_double_nothing, FAULT_NONE + 1, FAULT_COUNT);
    tcase_add_test(tests, a_commit_without_an_answer_is_settled_by_the_ledger);
    tcase_add_test(tests, what_was_never_committed_is_not_released);
    tcase_add_test(tests, several_shards_share_a_transaction);
    tcase_add_loop_test(tests, faults_while_several_share_a_transaction_lose_and_double_nothing,
                        FAULT_NONE + 1, FAULT_COUNT);
    tcase_add_test(tests, one_mixed_shard_does_not_hold_up_the_others);
    tcase_add_test(tests, a_second_flusher_while_several_share_a_transaction_does_no_harm);
    tcase_add_test(tests, a_second_flusher_at_any_call_does_no_harm);
    tcase_add_test(tests, what_collides_with_the_one_who_did_it_is_told_once);
    tcase_add_test(tests, a_generation_that_came_back_under_a_new_id_is_not_applied_again);
    tcase_add_test(tests, a_generation_that_is_gone_while_it_is_read_is_dropped);
    tcase_add_test(tests, a_generation_that_mixes_old_and_new_goes_into_quarantine_and_is_sent_again);
    tcase_add_test(tests, what_is_open_beside_a_mixed_generation_goes_into_quarantine_too);
    tcase_add_loop_test(tests, one_fault_at_any_call_of_a_quarantine_loses_and_doubles_nothing,
                        FAULT_NONE + 1, FAULT_COUNT);
    tcase_add_loop_test(tests, two_faults_at_any_calls_of_a_quarantine_lose_and_double_nothing,
                        FAULT_NONE + 1, FAULT_COUNT);
    tcase_add_test(tests, redis_may_go_back_from_any_call_to_any_earlier_one);
    tcase_add_test(tests, an_emptied_redis_goes_on_where_postgres_is);
    tcase_add_test(tests, a_running_total_that_belongs_to_another_set_is_not_made_up_for);
    tcase_add_test(tests, a_running_total_that_belongs_to_nothing_known_is_left_alone);
    tcase_add_test(tests, events_are_counted_from_what_redis_released_last);
    tcase_add_test(tests, a_generation_with_a_hole_before_it_goes_into_quarantine);
    tcase_add_test(tests, a_generation_without_its_batches_goes_into_quarantine);
    tcase_add_test(tests, a_generation_that_lost_a_member_is_refused);
    tcase_add_test(tests, a_generation_that_lost_all_its_members_is_refused);
    tcase_add_test(tests, a_total_beyond_64_bits_is_refused_and_stays);
    tcase_add_test(tests, judges_by_ledger_and_vector);
    tcase_add_test(tests, judges_quarantine_before_all_else);
}

int main(void)
{
    return unit_run("flush", add_tests);
}
