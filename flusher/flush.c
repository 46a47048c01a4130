#include "flusher/flush.h"

#include <assert.h>
#include <inttypes.h>
#include <stdlib.h>

#include "flusher/failure.h"

/* Generations looked at in one call. Two are usual at most (one that was left, one of our own); more only
 * when other flushers take them away while we read. */
#define GENERATIONS_MAX 16

/* Transactions tried for one generation. */
#define TRANSACTIONS_MAX 5

enum taken { TAKEN_NOTHING, TAKEN_LOADED, TAKEN_RECOVERED, TAKEN_AWAY };

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

static int refuse_range(struct error *error)
{
    return error_set(error, FAILURE_LATER, "the running total would leave the range of 64 bits");
}

static int make_entries(struct flush *flush, struct error *error)
{
    const struct updates *updates = &flush->updates;
    bool overflow = false;

    for (size_t i = 0; i < updates->len; i++) {
        struct entry *entry = &flush->cargo[updates->items[i].cargo].entry;
        entry->keys++;
        overflow |= __builtin_add_overflow(entry->total, updates->items[i].delta, &entry->total);
    }
    for (size_t i = 0; i < flush->cargo_len; i++) {
        const struct cargo *cargo = &flush->cargo[i];
        struct entry *entry = &flush->cargo[i].entry;
        /* Redis's running number lags behind ours when it lost its state and started again; then how many
         * events these were is not known. */
        if (cargo->generation.events_at_seal > cargo->standing.cumulative_events)
            entry->events = cargo->generation.events_at_seal - cargo->standing.cumulative_events;
        overflow |= __builtin_add_overflow(entry->cumulative_total, entry->total, &entry->cumulative_total);
        overflow |=
            __builtin_add_overflow(entry->cumulative_events, entry->events, &entry->cumulative_events);
    }
    return overflow ? refuse_range(error) : 0;
}

static void clear_entries(struct flush *flush)
{
    for (size_t i = 0; i < flush->cargo_len; i++)
        flush->cargo[i].entry =
            (struct entry){.cumulative_total = flush->cargo[i].standing.cumulative_total,
                           .cumulative_events = flush->cargo[i].standing.cumulative_events};
}

static int refuse_mixed(const struct generation *generation, struct error *error)
{
    return error_set(error, FAILURE_LATER,
                     "generation '%s' mixes what Postgres has with what it lacks: Redis went back in time or "
                     "lost data. Nothing of it was applied or dropped, and this shard stays as it is until "
                     "that is resolved; keep Redis's data",
                     generation->id);
}

/* What holds for all of them; -1 when that is not one thing. */
static int judge_all(const struct flush *flush)
{
    const struct cargo *first = &flush->cargo[0];
    enum verdict verdict = flush_judge(&first->generation, &first->standing, first->vector);

    for (size_t i = 1; i < flush->cargo_len; i++) {
        const struct cargo *cargo = &flush->cargo[i];
        if (cargo->standing.in_ledger != first->standing.in_ledger ||
            flush_judge(&cargo->generation, &cargo->standing, cargo->vector) != verdict)
            return -1;
    }
    return (int)verdict;
}

/* Does inside the transaction what the verdict asks for. */
static int act(struct flush *flush, struct error *error)
{
    const struct sink *sink = flush->sink;
    int r;

    clear_entries(flush);
    switch (judge_all(flush)) {
    case VERDICT_APPLIED:
        /* Known by their writers only: from now on by their ids too. */
        return sink->record(sink->context, flush->cargo, flush->cargo_len, error);
    case VERDICT_FRESH:
        r = make_entries(flush, error);
        if (r == 0)
            r = sink->record(sink->context, flush->cargo, flush->cargo_len, error);
        if (r == 0)
            r = sink->apply(sink->context, flush->cargo, flush->cargo_len, &flush->updates, error);
        return r;
    case VERDICT_MIXED:
        return refuse_mixed(&flush->cargo[0].generation, error);
    default:
        return error_set(error, FAILURE_LATER, "these generations cannot share a transaction");
    }
}

static bool all_in_ledger(const struct flush *flush)
{
    bool all = true;

    for (size_t i = 0; i < flush->cargo_len; i++)
        all &= flush->cargo[i].standing.in_ledger;
    return all;
}

/* One transaction, to a commit_outcome or a failure. The entries become what was sent to be committed; when
 * the ledger has the generations they stay what the attempt before this one sent. */
static int transact(struct flush *flush, struct error *error)
{
    const struct sink *sink = flush->sink;
    int r = sink->begin(sink->context, flush->cargo, flush->cargo_len, error);

    if (r < 0)
        return r;
    if (all_in_ledger(flush)) {
        sink->rollback(sink->context);
        return COMMIT_DONE;
    }
    r = act(flush, error);
    if (r < 0)
        sink->rollback(sink->context);
    else
        r = sink->commit(sink->context, error);
    if (r < 0)
        clear_entries(flush);
    return r;
}

static int apply_cargo(struct flush *flush, struct flush_result *result, struct error *error)
{
    int r = COMMIT_UNKNOWN;

    updates_order(&flush->updates);
    for (int i = 0; i < TRANSACTIONS_MAX && (r == COMMIT_UNKNOWN || r == FAILURE_COLLISION); i++)
        r = transact(flush, error);
    if (r == COMMIT_UNKNOWN)
        return error_set(error, FAILURE_UNAVAILABLE,
                         "no answer to COMMIT, several times; the next run finds out whether it happened");
    for (size_t i = 0; i < flush->cargo_len && r == COMMIT_DONE; i++) {
        result->keys += flush->cargo[i].entry.keys;
        result->total += flush->cargo[i].entry.total;
        result->events += flush->cargo[i].entry.events;
    }
    return r;
}

/* Applies all that is loaded and tells the source. Nothing is loaded afterwards. */
static int ship(struct flush *flush, struct flush_result *result, struct error *error)
{
    const struct source *source = flush->source;
    int r = apply_cargo(flush, result, error);

    for (size_t i = 0; i < flush->cargo_len && r >= 0; i++)
        r = source->release(source->context, flush->cargo[i].shard, flush->cargo[i].generation.id, error);
    unload(flush);
    return r < 0 ? r : 0;
}

/* --- one or several --- */

int flush_shard(struct flush *flush, uint32_t shard, struct flush_result *ret_result, struct error *error)
{
    assert(flush->cargo_len == 0);
    *ret_result = (struct flush_result){0};
    for (int i = 0; i < GENERATIONS_MAX; i++) {
        int taken = take(flush, shard, true, ret_result, error), r = taken;
        if (taken == TAKEN_LOADED || taken == TAKEN_RECOVERED)
            r = ship(flush, ret_result, error);
        if (r < 0)
            return error_prefix(error, r, "shard %" PRIu32, shard);
        /* What an earlier run left does not hold what came since. */
        if (taken == TAKEN_NOTHING || taken == TAKEN_LOADED)
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
    return flush->updates.len >= FLUSH_GATHER_KEYS || flush->cargo_len == FLUSH_CARGO_MAX ? GATHERED_FULL
                                                                                          : GATHERED_MORE;
}

int flush_gathered(struct flush *flush, struct flush_result *ret_result, struct error *error)
{
    *ret_result = (struct flush_result){0};
    return flush->cargo_len > 0 ? ship(flush, ret_result, error) : 0;
}
