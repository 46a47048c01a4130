#include "flusher/flush.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "flusher/failure.h"
#include "flusher/whole.h"

/* Generations looked at in one call. Two are usual at most (one that was left, one of our own); more only
 * when other flushers take them away while we read. */
#define GENERATIONS_MAX 16

/* Transactions tried for one generation. */
#define TRANSACTIONS_MAX 5

enum taken { TAKEN_NOTHING, TAKEN_LOADED, TAKEN_RECOVERED, TAKEN_AWAY };

void reset_done(struct reset *reset)
{
    for (size_t i = 0; i < reset->vector_len; i++)
        free(reset->vector[i].writer);
    free(reset->vector);
    *reset = (struct reset){0};
}

void generation_done(struct generation *generation)
{
    for (size_t i = 0; i < generation->batches_len; i++)
        free(generation->batches[i].writer);
    free(generation->batches);
    *generation = (struct generation){0};
}

/* Forgets all but its memory. */
static void unload(struct flush *flush)
{
    for (size_t i = 0; i < flush->cargo_len; i++) {
        generation_done(&flush->cargo[i].generation);
        reset_done(&flush->cargo[i].reset);
        free(flush->cargo[i].vector);
    }
    flush->cargo_len = 0;
    updates_clear(&flush->updates);
}

void flush_done(struct flush *flush)
{
    unload(flush);
    free(flush->cargo);
    flush->cargo = NULL;
    updates_done(&flush->updates);
}

enum verdict flush_judge(const struct generation *generation, const struct standing *standing,
                         const int64_t *vector)
{
    size_t applied = 0, fresh = 0;

    if (standing->in_quarantine || generation->set_aside)
        return VERDICT_MIXED;
    if (standing->in_ledger)
        return VERDICT_APPLIED;
    for (size_t i = 0; i < generation->batches_len; i++) {
        applied += generation->batches[i].high <= vector[i];
        fresh += generation->batches[i].low == vector[i] + 1;
    }
    /* Without batches there is no identity, and "all of none" proves nothing. */
    if (generation->batches_len == 0)
        return VERDICT_MIXED;
    if (applied == generation->batches_len)
        return VERDICT_APPLIED;
    return fresh == generation->batches_len ? VERDICT_FRESH : VERDICT_MIXED;
}

/* --- from the source --- */

static int read_generation(struct flush *flush, uint32_t shard, const struct generation *generation,
                           struct error *error)
{
    struct updates *updates = &flush->updates;
    size_t before;

    do {
        int r;
        before = updates->len;
        r = flush->source->read(flush->source->context, shard, generation->id, updates, error);
        if (r != READ_PAGE)
            return r;
    } while (updates_added(updates) < generation->members && updates->len > before);

    /* It was counted when it was sealed, and nobody writes to it since. */
    if (updates_added(updates) != generation->members || generation->members == 0)
        return error_set(error, FAILURE_LATER,
                         "generation '%s' had %zu members, of which %zu are left; something else removes "
                         "keys (maxmemory-policy must be noeviction)",
                         generation->id, generation->members, updates_added(updates));
    return READ_PAGE;
}

/* Adds the generation, which it takes in any case. */
static int load(struct flush *flush, uint32_t shard, struct generation *generation, struct error *error)
{
    struct cargo cargo = {.shard = shard, .generation = *generation};
    int r = -ENOMEM;

    if (!flush->cargo)
        flush->cargo = calloc(FLUSH_CARGO_MAX, sizeof(*flush->cargo));
    cargo.vector = calloc(generation->batches_len + 1, sizeof(*cargo.vector));
    *generation = (struct generation){0};
    updates_begin(&flush->updates, (uint32_t)flush->cargo_len);
    if (flush->cargo && cargo.vector)
        r = read_generation(flush, shard, &cargo.generation, error);
    else
        error_set(error, r, "out of memory");
    if (r == READ_PAGE) {
        flush->cargo[flush->cargo_len++] = cargo;
        return TAKEN_LOADED;
    }
    updates_cancel(&flush->updates);
    generation_done(&cargo.generation);
    free(cargo.vector);
    return r < 0 ? r : TAKEN_AWAY;
}

/* Seals, and loads what is sealed; unless an earlier run left it and that is not `wanted`. */
static int take(struct flush *flush, uint32_t shard, bool recovered_wanted, struct flush_result *result,
                struct error *error)
{
    struct generation generation = {0};
    bool recovered;
    int r = flush->source->seal(flush->source->context, shard, &generation, error);

    if (r == SEAL_NONE)
        result->fresh_ms = generation.now_ms;
    recovered = generation.recovered;
    if (r != SEAL_SEALED || (recovered && !recovered_wanted)) {
        generation_done(&generation);
        return r == SEAL_NONE || r < 0 ? r : TAKEN_RECOVERED;
    }
    r = load(flush, shard, &generation, error);
    return r == TAKEN_LOADED && recovered ? TAKEN_RECOVERED : r;
}

/* --- to the sink --- */

static int refuse_range(const struct cargo *cargo, struct error *error)
{
    return error_set(error, FAILURE_LATER,
                     "generation '%s' or the running total with it would leave the range of 64 bits",
                     cargo->generation.id);
}

/* What each generation holds, by which its entry, and its copy in quarantine, are made. */
static int sum_contents(struct flush *flush, struct error *error)
{
    const struct updates *updates = &flush->updates;

    for (size_t i = 0; i < flush->cargo_len; i++)
        flush->cargo[i].keys = flush->cargo[i].total = 0;
    for (size_t i = 0; i < updates->len; i++) {
        struct cargo *cargo = &flush->cargo[updates->items[i].cargo];
        cargo->keys++;
        if (__builtin_add_overflow(cargo->total, updates->items[i].delta, &cargo->total))
            return refuse_range(cargo, error);
    }
    return 0;
}

/* How many events are behind a fresh generation. */
static int64_t count_events(const struct generation *generation, const struct standing *standing)
{
    int64_t before = standing->prev_known ? standing->prev_events : standing->cumulative_events;

    return generation->events_at_seal > before ? generation->events_at_seal - before : 0;
}

/* The source's running total stands for what it released, plus what is in the generation. When it has gone
 * back in time, the sink holds more than it remembers, and that has to be made up for, or no audit would
 * balance again. What is *not* made up for is a running total that disagrees with the set that it belongs
 * to: that is no rollback, and stays for the audit to find. */
static struct correction correct(const struct generation *generation, const struct standing *standing,
                                 const struct entry *entry, int64_t content)
{
    if (!standing->prev_known)
        return (struct correction){0};
    return (struct correction){
        whole_subtract(entry->cumulative_total, whole_add(standing->prev_total, content)),
        whole_subtract(entry->cumulative_events, generation->events_at_seal),
    };
}

static int make_entry(struct cargo *cargo, struct error *error)
{
    const struct standing *standing = &cargo->standing;
    struct entry entry = {.cumulative_total = standing->cumulative_total,
                          .cumulative_events = standing->cumulative_events};

    if (cargo->verdict == VERDICT_FRESH) {
        entry.keys = cargo->keys;
        entry.total = cargo->total;
        entry.events = count_events(&cargo->generation, standing);
        if (__builtin_add_overflow(entry.cumulative_total, entry.total, &entry.cumulative_total) ||
            __builtin_add_overflow(entry.cumulative_events, entry.events, &entry.cumulative_events))
            return refuse_range(cargo, error);
    }
    entry.correction = correct(&cargo->generation, standing, &entry, cargo->total);
    cargo->entry = entry;
    cargo->correction = entry.correction;
    return 0;
}

static void clear_entries(struct flush *flush)
{
    for (size_t i = 0; i < flush->cargo_len; i++) {
        flush->cargo[i].entry = (struct entry){0};
        flush->cargo[i].tally = (struct tally){0};
    }
}

/* Whether the verdict about all of them is the same, which is then in each. */
static bool judge_all(struct flush *flush)
{
    bool same = true;

    for (size_t i = 0; i < flush->cargo_len; i++) {
        struct cargo *cargo = &flush->cargo[i];
        cargo->verdict = flush_judge(&cargo->generation, &cargo->standing, cargo->vector);
        same &= cargo->verdict == flush->cargo[0].verdict &&
                cargo->standing.in_ledger == flush->cargo[0].standing.in_ledger;
    }
    return same;
}

/* Into quarantine, unless it is there from an earlier attempt; and where the shard is to go on from. */
static int put_aside(struct flush *flush, struct cargo *cargo, struct error *error)
{
    const struct sink *sink = flush->sink;
    int r = 0;

    if (!cargo->standing.in_quarantine) {
        cargo->quarantined = true;
        r = sink->quarantine(sink->context, cargo, &flush->updates, error);
    }
    reset_done(&cargo->reset);
    if (r == 0 && !cargo->generation.set_aside)
        r = sink->stand(sink->context, cargo->shard, &cargo->reset, error);
    return r;
}

/* A generation that was known by its writers only, is from now on known by its id too; a fresh one is
 * applied. */
static int enter(struct flush *flush, struct error *error)
{
    const struct sink *sink = flush->sink;
    int r = 0;

    for (size_t i = 0; i < flush->cargo_len && r == 0; i++)
        r = make_entry(&flush->cargo[i], error);
    if (r == 0)
        r = sink->record(sink->context, flush->cargo, flush->cargo_len, error);
    if (r == 0 && flush->cargo[0].verdict == VERDICT_FRESH)
        r = sink->apply(sink->context, flush->cargo, flush->cargo_len, &flush->updates, error);
    return r;
}

/* Does inside the transaction what the verdict asks for. */
static int act(struct flush *flush, bool same, struct error *error)
{
    int r = sum_contents(flush, error);

    if (r < 0)
        return r;
    /* Of an attempt before this one only what the sink turns out to have counts. */
    clear_entries(flush);
    if (!same || (flush->gathering && flush->cargo[0].verdict == VERDICT_MIXED))
        return error_set(error, FAILURE_LATER, "these generations cannot share a transaction");
    return flush->cargo[0].verdict == VERDICT_MIXED ? put_aside(flush, &flush->cargo[0], error)
                                                    : enter(flush, error);
}

/* One transaction, to a commit_outcome or a failure. The entries become what was sent to be committed; when
 * the sink has the generations they stay what the attempt before this one sent. */
static int transact(struct flush *flush, struct error *error)
{
    const struct sink *sink = flush->sink;
    int r = sink->begin(sink->context, flush->cargo, flush->cargo_len, error);
    bool same;

    if (r < 0)
        return r;
    same = judge_all(flush);
    if (same && flush->cargo[0].verdict == VERDICT_APPLIED && flush->cargo[0].standing.in_ledger) {
        for (size_t i = 0; i < flush->cargo_len; i++)
            flush->cargo[i].correction = flush->cargo[i].standing.correction;
        sink->rollback(sink->context);
        return COMMIT_DONE;
    }
    r = act(flush, same, error);
    if (r < 0)
        sink->rollback(sink->context);
    else
        r = sink->commit(sink->context, error);
    if (r < 0) {
        clear_entries(flush);
        flush->cargo[0].quarantined = false;
    }
    return r;
}

/* Tries until it is known what the sink made of all that is loaded. */
static int settle(struct flush *flush, struct error *error)
{
    const struct sink *sink = flush->sink;
    int r = sink->prepare(sink->context, flush->cargo, &flush->updates, error);

    if (r < 0)
        return r;
    updates_order(&flush->updates);
    r = COMMIT_UNKNOWN;
    for (int i = 0; i < TRANSACTIONS_MAX && (r == COMMIT_UNKNOWN || r == FAILURE_COLLISION); i++)
        r = transact(flush, error);
    if (r == COMMIT_UNKNOWN)
        r = error_set(error, FAILURE_UNAVAILABLE,
                      "no answer to COMMIT, several times; the next run finds out whether it happened");
    return r;
}

static void report(const struct flush *flush, const struct cargo *cargo, struct flush_result *result)
{
    result->keys += cargo->entry.keys;
    result->total += cargo->entry.total;
    result->events += cargo->entry.events;
    result->parked += cargo->tally.parked_keys;
    result->dropped += cargo->tally.dropped_keys;
    result->quarantined += cargo->quarantined;
    result->mixed |= cargo->verdict == VERDICT_MIXED;
    if (cargo->quarantined && flush->on_quarantine)
        flush->on_quarantine(cargo->shard, &cargo->generation, cargo->keys, cargo->total);
    if (cargo->verdict == VERDICT_APPLIED && !cargo->standing.in_ledger && flush->on_applied_before)
        flush->on_applied_before(cargo->shard, &cargo->generation, cargo->keys, cargo->total);
}

/* The source may forget the generation. */
static int let_go(struct flush *flush, const struct cargo *cargo, struct error *error)
{
    const struct source *source = flush->source;

    if (cargo->verdict == VERDICT_MIXED && !cargo->generation.set_aside)
        return source->reset(source->context, cargo->shard, cargo->generation.id, &cargo->reset, error);
    return source->release(source->context, cargo->shard, cargo->generation.id, &cargo->correction, error);
}

/* Applies all that is loaded, or puts it aside, and tells the source. Nothing is loaded afterwards. */
static int ship(struct flush *flush, struct flush_result *result, struct error *error)
{
    int r = settle(flush, error);

    for (size_t i = 0; i < flush->cargo_len && r >= 0; i++)
        report(flush, &flush->cargo[i], result);
    for (size_t i = 0; i < flush->cargo_len && r >= 0; i++)
        r = let_go(flush, &flush->cargo[i], error);
    if (r >= 0 && flush->source->settle)
        r = flush->source->settle(flush->source->context, error);
    unload(flush);
    return r < 0 ? r : 0;
}

/* --- one or several --- */

int flush_shard(struct flush *flush, uint32_t shard, struct flush_result *ret_result, struct error *error)
{
    assert(flush->cargo_len == 0);
    *ret_result = (struct flush_result){0};
    flush->gathering = false;
    for (int i = 0; i < GENERATIONS_MAX; i++) {
        int64_t quarantined = ret_result->quarantined;
        int taken = take(flush, shard, true, ret_result, error), r = taken;
        if (taken == TAKEN_LOADED || taken == TAKEN_RECOVERED)
            r = ship(flush, ret_result, error);
        if (r < 0)
            return error_prefix(error, r, "shard %" PRIu32, shard);
        /* What an earlier run left does not hold what came since, and after a reset there is what was set
         * aside. */
        if (taken == TAKEN_NOTHING || (taken == TAKEN_LOADED && ret_result->quarantined == quarantined))
            return 0;
    }
    return error_set(error, FAILURE_LATER,
                     "shard %" PRIu32 ": other flushers took every generation away that this one began with",
                     shard);
}

int flush_gather(struct flush *flush, uint32_t shard, struct flush_result *ret_result, struct error *error)
{
    int taken;

    assert(flush->cargo_len < FLUSH_CARGO_MAX);
    assert(flush->cargo_len == 0 || flush->cargo[flush->cargo_len - 1].shard < shard);
    *ret_result = (struct flush_result){0};
    taken = take(flush, shard, false, ret_result, error);
    if (taken == TAKEN_RECOVERED || taken == TAKEN_AWAY)
        return GATHERED_ALONE;
    if (taken != TAKEN_LOADED)
        return taken < 0 ? taken : GATHERED_NOTHING;
    return flush->updates.len >= flush->gather_keys || flush->cargo_len == FLUSH_CARGO_MAX ? GATHERED_FULL
                                                                                           : GATHERED_MORE;
}

int flush_gathered(struct flush *flush, struct flush_result *ret_result, struct error *error)
{
    *ret_result = (struct flush_result){0};
    flush->gathering = true;
    return flush->cargo_len > 0 ? ship(flush, ret_result, error) : 0;
}
