#include "tests/simulation/simulation.h"

#include <stdarg.h>
#include <stdlib.h>
#include <ucontext.h>

#include "flusher/audit.h"
#include "flusher/quarantine.h"
#include "lib/clock.h"
#include "tests/simulation/loop.h"
#include "tests/simulation/world.h"

#define STEPS       600
#define FLUSHERS    3
#define SNAPSHOTS   4
#define STACK_BYTES ((size_t)256 * 1024)
#define CALM_ROUNDS 40
#define PROBES_MS   6000 /* in this time all ask Redis whether it has what it acknowledged */

/* A flusher that can be left at any call of its seams: a coroutine. */
struct flusher {
    struct world *world;
    struct memory_flusher memory;
    struct flush flush;
    ucontext_t own, scheduler;
    bool running, calm; /* calm: nothing goes wrong, and it does not stop in between */
    enum memory_fault fault;
};

/* Reads the books in three looks, with whatever happens between them. */
struct auditor {
    int looks;
    struct shard_books books[SHARDS];
    struct shard_holdings holdings[SHARDS];
};

struct simulation {
    struct world world;
    struct flusher flushers[FLUSHERS];
    struct auditor auditor;
    struct memory_redis snapshots[SNAPSHOTS][SHARDS];
    size_t snapshots_len;
    size_t checked[SHARDS]; /* ledger rows, when the values were last compared */
};

static char stacks[FLUSHERS][STACK_BYTES];

/* splitmix64, by Sebastiano Vigna, in the public domain. */
uint64_t roll(struct world *world, uint64_t sides)
{
    uint64_t z = (world->dice += 0x9e3779b97f4a7c15);

    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
    z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
    return (z ^ (z >> 31)) % sides;
}

void tell(const struct world *world, const char *format, ...)
{
    va_list args;

    if (!world->schedule->trace)
        return;
    fprintf(world->schedule->trace, "%5u ", world->outcome.steps);
    va_start(args, format);
    vfprintf(world->schedule->trace, format, args);
    va_end(args);
    fputc('\n', world->schedule->trace);
}

void complain(struct world *world, const char *format, ...)
{
    struct outcome *outcome = &world->outcome;
    va_list args;
    int len;

    if (outcome->wrong)
        return;
    outcome->wrong = true;
    len = snprintf(outcome->text, sizeof(outcome->text), "step %u: ", outcome->steps);
    va_start(args, format);
    vsnprintf(outcome->text + len, sizeof(outcome->text) - (size_t)len, format, args);
    va_end(args);
    tell(world, "WRONG: %s", outcome->text);
}

/* --- flushers --- */

static enum memory_fault pause_at_call(void *context, struct memory_flusher *memory)
{
    struct flusher *flusher = context;

    (void)memory;
    if (flusher->calm)
        return FAULT_NONE;
    swapcontext(&flusher->own, &flusher->scheduler);
    return flusher->fault;
}

/* As a job of flusher/jobs.c: together what goes smoothly, the rest alone. */
static void flush_all(struct flusher *flusher)
{
    struct flush_result result;
    struct error error;
    bool alone[SHARDS], gathered[SHARDS];
    int r;

    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        r = flush_gather(&flusher->flush, shard, &result, &error);
        gathered[shard] = r == GATHERED_MORE;
        alone[shard] = r < 0 || r == GATHERED_ALONE;
    }
    r = flush_gathered(&flusher->flush, &result, &error);
    for (uint32_t shard = 0; shard < SHARDS; shard++)
        if (alone[shard] || (gathered[shard] && r < 0))
            (void)!flush_shard(&flusher->flush, shard, &result, &error);
}

static void run_flusher(struct flusher *flusher)
{
    struct source source = memory_source(&flusher->memory);
    struct sink sink = memory_sink(&flusher->memory);
    struct flush_result result;
    struct error error;

    flusher->flush = (struct flush){.source = &source, .sink = &sink};
    if (roll(flusher->world, 3) > 0)
        flush_all(flusher);
    else
        for (uint32_t shard = 0; shard < SHARDS; shard++)
            (void)!flush_shard(&flusher->flush, shard, &result, &error);
    flush_done(&flusher->flush);
    flusher->running = false;
}

/* makecontext() passes ints only. */
static void run_coroutine(unsigned high, unsigned low)
{
    run_flusher((struct flusher *)((uintptr_t)high << 32 | low));
}

static void start_flusher(struct simulation *simulation, struct flusher *flusher)
{
    uintptr_t address = (uintptr_t)flusher;

    if (flusher->running)
        return;
    tell(&simulation->world, "flusher %d starts", (int)(flusher - simulation->flushers));
    flusher->world = &simulation->world;
    flusher->memory = (struct memory_flusher){
        .store = simulation->world.stores, .shards = SHARDS, .hook = pause_at_call, .context = flusher};
    getcontext(&flusher->own);
    flusher->own.uc_stack.ss_sp = stacks[flusher - simulation->flushers];
    flusher->own.uc_stack.ss_size = STACK_BYTES;
    flusher->own.uc_link = &flusher->scheduler;
    flusher->running = true;
    makecontext(&flusher->own, (void (*)(void))run_coroutine, 2, (unsigned)(address >> 32),
                (unsigned)address);
    swapcontext(&flusher->scheduler, &flusher->own);
}

/* To its next call, or its end. */
static void step_flusher(struct simulation *simulation, struct flusher *flusher, enum memory_fault fault)
{
    if (!flusher->running)
        return;
    if (fault != FAULT_NONE)
        tell(&simulation->world, "flusher %d meets fault %d", (int)(flusher - simulation->flushers), fault);
    flusher->fault = fault;
    swapcontext(&flusher->scheduler, &flusher->own);
}

static enum memory_fault any_fault(struct world *world)
{
    return roll(world, 12) > 0 ? FAULT_NONE : (enum memory_fault)(1 + roll(world, FAULT_COUNT - 1));
}

/* --- Redis going back in time --- */

static void take_snapshot(struct simulation *simulation)
{
    size_t at = simulation->snapshots_len < SNAPSHOTS ? simulation->snapshots_len++
                                                      : roll(&simulation->world, SNAPSHOTS);

    for (int shard = 0; shard < SHARDS; shard++)
        simulation->snapshots[at][shard] = simulation->world.stores[shard].redis;
}

static void go_back_in_time(struct simulation *simulation)
{
    struct world *world = &simulation->world;
    size_t at;

    if (simulation->snapshots_len == 0)
        return;
    at = roll(world, simulation->snapshots_len);
    tell(world, "Redis goes back in time");
    world->outcome.rollbacks++;
    connections_lost(world);
    for (int shard = 0; shard < SHARDS; shard++)
        world->stores[shard].redis = simulation->snapshots[at][shard];
}

/* --- the audit --- */

static void copy_id(char to[GENERATION_ID_LEN_MAX + 1], const char *from)
{
    memcpy(to, from, GENERATION_ID_LEN_MAX + 1);
}

static const char *head_of(const struct memory_postgres *postgres)
{
    static const char none[GENERATION_ID_LEN_MAX + 1] = "";

    return postgres->ledger_len > 0 ? postgres->ledger[postgres->ledger_len - 1].id : none;
}

static int64_t sum_of(const struct memory_set *set, int64_t *ret_members)
{
    int64_t sum = 0;

    *ret_members = 0;
    for (int key = 0; key < MEMORY_KEYS; key++) {
        sum += set->score[key];
        *ret_members += set->there[key];
    }
    return sum;
}

static struct shard_holdings look_at_redis(const struct memory_redis *redis)
{
    struct shard_holdings holdings = {.accepted = redis->accepted,
                                      .accepted_at_seal = redis->accepted_at_seal,
                                      .set_aside = redis->set_aside,
                                      .open_known = true,
                                      .sealed_known = true};

    copy_id(holdings.sealed_id, redis->sealed_id);
    copy_id(holdings.prev_id, redis->prev_id);
    holdings.open = sum_of(&redis->open, &holdings.open_members);
    holdings.sealed = sum_of(&redis->sealed, &holdings.sealed_members);
    return holdings;
}

static bool is_evidence(const struct memory_quarantine *row, const struct memory_postgres *postgres)
{
    for (int writer = 0; writer < MEMORY_WRITERS; writer++)
        if (row->high[writer] > postgres->vector[writer])
            return false;
    return true;
}

static void look_at_postgres(const struct memory_postgres *postgres, const char *prev_id,
                             struct shard_books *books)
{
    copy_id(books->head_id, head_of(postgres));
    books->prev_known = prev_id[0] == '\0';
    books->cumulative_total = books->head_total = postgres->head.cumulative_total;
    for (size_t i = 0; i < postgres->ledger_len; i++) {
        books->ledger_total += postgres->ledger[i].entry.total;
        if (strcmp(postgres->ledger[i].id, prev_id) == 0) {
            books->prev_known = true;
            books->prev_total = postgres->ledger[i].entry.cumulative_total;
        }
    }
    for (size_t i = 0; i < postgres->quarantine_len; i++) {
        if (is_evidence(&postgres->quarantine[i], postgres))
            continue;
        books->quarantined_rows++;
        books->quarantined += postgres->quarantine[i].total;
    }
}

static void judge_books(struct simulation *simulation)
{
    struct world *world = &simulation->world;

    for (int shard = 0; shard < SHARDS; shard++) {
        struct shard_audit audit =
            audit_shard(&simulation->auditor.holdings[shard], &simulation->auditor.books[shard]);
        if (audit.verdict > (world->schedule->rollbacks ? AUDIT_LATE : AUDIT_BALANCED))
            complain(world, "the audit says that shard %d is %s: %s", shard,
                     audit_verdict_name(audit.verdict), audit.where);
    }
}

static void audit_on(struct simulation *simulation)
{
    struct auditor *auditor = &simulation->auditor;

    for (int shard = 0; shard < SHARDS; shard++) {
        const struct memory_store *store = &simulation->world.stores[shard];
        if (auditor->looks == 0) {
            auditor->books[shard] = (struct shard_books){0};
            copy_id(auditor->books[shard].head_before, head_of(&store->postgres));
        } else if (auditor->looks == 1) {
            auditor->holdings[shard] = look_at_redis(&store->redis);
        } else {
            look_at_postgres(&store->postgres, auditor->holdings[shard].prev_id, &auditor->books[shard]);
        }
    }
    if (auditor->looks == 2)
        judge_books(simulation);
    auditor->looks = (auditor->looks + 1) % 3;
}

/* --- what holds at every step --- */

static void check_step(struct simulation *simulation)
{
    for (int shard = 0; shard < SHARDS; shard++) {
        const struct memory_postgres *postgres = &simulation->world.stores[shard].postgres;
        if (postgres->ledger_len == simulation->checked[shard])
            continue;
        simulation->checked[shard] = postgres->ledger_len;
        simulation->world.outcome.commits++;
        check_values(&simulation->world, shard);
    }
}

/* What a process, the network or the disk does, or what happens to them. */
static void step_daemons(struct world *world, uint64_t event)
{
    int daemon = (int)roll(world, DAEMONS);

    if (event < 130)
        daemon_count(world, daemon);
    else if (event < 150)
        daemon_ask(world, daemon);
    else if (event < 280)
        (void)loop_fire();
    else if (event < 400)
        (void)deliver_request(world);
    else if (event < 520)
        (void)deliver_reply(world);
    else if (event < 580)
        (void)connection_answered(world);
    else if (event < 590)
        connection_lost(world);
    else if (event < 594)
        daemon_crash(world, daemon);
    else if (event < 602)
        daemon_stop(world, daemon);
    else if (event < 640 && processes_left(world) > DAEMONS)
        daemon_start(world, daemon);
}

static void step_faults(struct simulation *simulation, uint64_t event)
{
    struct world *world = &simulation->world;

    if (event < 6) {
        world->redis_is_away = true;
        connections_lost(world);
    } else if (event < 18) {
        world->redis_is_away = false;
    } else if (event < 22) {
        world->redis_refuses = !world->redis_refuses;
    } else if (event < 26) {
        world->disk_is_full = !world->disk_is_full && roll(world, 3) == 0;
    } else if (event < 28) {
        world->write_tears = true;
    } else if (event < 40) {
        take_snapshot(simulation);
    } else if (world->schedule->rollbacks) {
        go_back_in_time(simulation);
    }
}

static void take_step(struct simulation *simulation)
{
    struct world *world = &simulation->world;
    struct flusher *flusher = &simulation->flushers[roll(world, FLUSHERS)];
    uint64_t event = roll(world, 1000);

    world->outcome.steps++;
    if (event < 640)
        step_daemons(world, event);
    else if (event < 670)
        start_flusher(simulation, flusher);
    else if (event < 890)
        step_flusher(simulation, flusher, any_fault(world));
    else if (event < 950)
        audit_on(simulation);
    else
        step_faults(simulation, event - 950);
    daemons_reap(world);
    check_step(simulation);
}

/* --- the end --- */

static void flush_calmly(struct simulation *simulation)
{
    struct flusher *calm = &simulation->flushers[0];

    calm->calm = true;
    start_flusher(simulation, calm);
    check_step(simulation);
}

/* Who does not run starts again; all send what they have, and ask what Redis lacks. */
static void let_daemons_finish(struct world *world)
{
    int64_t until_ms = clock_monotonic_ms() + PROBES_MS;

    for (int turn = 0; turn < 5000 && !world->outcome.wrong; turn++) {
        bool idle = true;
        daemons_reap(world);
        for (int i = 0; i < DAEMONS; i++) {
            daemon_start(world, i);
            idle &= daemon_is_idle(world, i);
        }
        if (deliver_request(world) || deliver_reply(world) || connection_answered(world))
            continue;
        if ((idle && clock_monotonic_ms() > until_ms) || !loop_fire())
            return;
    }
}

static bool is_empty(const struct world *world)
{
    for (int shard = 0; shard < SHARDS; shard++) {
        const struct memory_redis *redis = &world->stores[shard].redis;
        int64_t open, sealed;
        sum_of(&redis->open, &open);
        sum_of(&redis->sealed, &sealed);
        if (open + sealed > 0)
            return false;
    }
    return true;
}

static void settle(struct simulation *simulation)
{
    struct world *world = &simulation->world;

    world->redis_is_away = world->redis_refuses = world->disk_is_full = world->write_tears = false;
    for (int i = 0; i < FLUSHERS; i++)
        for (int calls = 0; simulation->flushers[i].running && calls < 1000; calls++)
            step_flusher(simulation, &simulation->flushers[i], FAULT_NONE);
    for (int round = 0; round < CALM_ROUNDS && !world->outcome.wrong; round++) {
        let_daemons_finish(world);
        flush_calmly(simulation);
        if (is_empty(world) && !lacks_anything(world, false))
            break;
    }
    if (!is_empty(world))
        complain(world, "flushes do not come to an end");
    lacks_anything(world, true);
    for (int i = 0; i < DAEMONS; i++)
        if (!daemon_is_idle(world, i))
            complain(world, "daemon %d does not come to an end", i);
        else
            check_counted(world, &world->daemons[i]);
    simulation->auditor.looks = 0;
    for (int look = 0; look < 3; look++)
        audit_on(simulation);
}

static void end(struct simulation *simulation)
{
    for (int i = 0; i < FLUSHERS; i++)
        while (simulation->flushers[i].running)
            step_flusher(simulation, &simulation->flushers[i], FAULT_CRASH);
    for (int i = 0; i < DAEMONS; i++)
        daemon_crash(&simulation->world, i);
}

struct outcome simulate(const struct schedule *schedule)
{
    static struct simulation memory; /* megabytes that need not come from the kernel every time */
    struct simulation *simulation = &memory;
    struct world *world = &simulation->world;
    struct outcome outcome;

    memset(simulation, 0, sizeof(*simulation));
    world->schedule = schedule;
    world->dice = schedule->seed;
    loop_reset();
    network_begin(world);
    daemons_begin(world);
    for (int i = 0; i < DAEMONS; i++)
        daemon_start(world, i);
    while (world->outcome.steps < STEPS && !world->outcome.wrong)
        take_step(simulation);
    if (!world->outcome.wrong)
        settle(simulation);
    for (int shard = 0; shard < SHARDS; shard++)
        world->outcome.quarantined += (unsigned)world->stores[shard].postgres.quarantine_len;
    outcome = world->outcome;
    end(simulation);
    return outcome;
}
