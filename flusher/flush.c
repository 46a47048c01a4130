#include "flusher/flush.h"

#include <inttypes.h>
#include <stdlib.h>

#include "flusher/failure.h"

/* Generations looked at in one call. Two are usual at most (one that was left, one of our own); more only
 * when other flushers take them away while we read. */
#define GENERATIONS_MAX 16

/* Transactions tried for one generation. */
#define TRANSACTIONS_MAX 5

enum taken { TAKEN_DONE, TAKEN_AWAY };

void generation_done(struct generation *generation)
{
    for (size_t i = 0; i < generation->batches_len; i++)
        free(generation->batches[i].writer);
    free(generation->batches);
    *generation = (struct generation){0};
}

void flush_done(struct flush *flush)
{
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

static int read_generation(struct flush *flush, uint32_t shard, const struct generation *generation,
                           struct error *error)
{
    struct updates *updates = &flush->updates;
    size_t before;

    updates_clear(updates);
    do {
        int r;
        before = updates->len;
        r = flush->source->read(flush->source->context, shard, generation->id, updates, error);
        if (r != READ_PAGE)
            return r;
    } while (updates->len < generation->members && updates->len > before);

    /* It was counted when it was sealed, and nobody writes to it since. */
    if (updates->len != generation->members || updates->len == 0)
        return error_set(error, FAILURE_LATER,
                         "generation '%s' had %zu members, of which %zu are left; something else removes "
                         "keys (maxmemory-policy must be noeviction)",
                         generation->id, generation->members, updates->len);
    updates_order(updates);
    return READ_PAGE;
}

static int make_entry(const struct updates *updates, const struct generation *generation,
                      const struct standing *standing, struct entry *ret_entry, struct error *error)
{
    struct entry entry = {.keys = (int64_t)updates->len};
    bool overflow = false;

    for (size_t i = 0; i < updates->len; i++)
        overflow |= __builtin_add_overflow(entry.total, updates->items[i].delta, &entry.total);
    /* Redis's running number lags behind ours when it lost its state and started again; then how many events
     * these were is not known. */
    if (generation->events_at_seal > standing->cumulative_events)
        entry.events = generation->events_at_seal - standing->cumulative_events;
    overflow |= __builtin_add_overflow(standing->cumulative_total, entry.total, &entry.cumulative_total);
    overflow |= __builtin_add_overflow(standing->cumulative_events, entry.events, &entry.cumulative_events);
    if (overflow)
        return error_set(error, FAILURE_LATER, "the running total would leave the range of 64 bits");
    *ret_entry = entry;
    return 0;
}

static int refuse_mixed(const struct generation *generation, struct error *error)
{
    return error_set(error, FAILURE_LATER,
                     "generation '%s' mixes what Postgres has with what it lacks: Redis went back in time or "
                     "lost data. Nothing of it was applied or dropped, and this shard stays as it is until "
                     "that is resolved; keep Redis's data",
                     generation->id);
}

/* Does inside the transaction what the verdict asks for, and tells what it adds. */
static int act(struct flush *flush, uint32_t shard, const struct generation *generation,
               const struct standing *standing, const int64_t *vector, struct entry *ret_entry,
               struct error *error)
{
    const struct sink *sink = flush->sink;
    struct entry entry = {.cumulative_total = standing->cumulative_total,
                          .cumulative_events = standing->cumulative_events};
    int r = 0;

    switch (flush_judge(generation, standing, vector)) {
    case VERDICT_APPLIED:
        /* Known by its writers only: from now on by its id too. */
        r = sink->record(sink->context, shard, generation, &entry, error);
        break;
    case VERDICT_FRESH:
        r = make_entry(&flush->updates, generation, standing, &entry, error);
        if (r == 0)
            r = sink->record(sink->context, shard, generation, &entry, error);
        if (r == 0)
            r = sink->apply(sink->context, shard, generation, &flush->updates, error);
        break;
    case VERDICT_MIXED:
        r = refuse_mixed(generation, error);
        break;
    }
    *ret_entry = entry;
    return r;
}

/* One transaction, to a commit_outcome or a failure. `entry` becomes what was sent to be committed; when the
 * ledger has the generation it stays what the attempt before this one sent. */
static int transact(struct flush *flush, uint32_t shard, const struct generation *generation, int64_t *vector,
                    struct entry *entry, struct error *error)
{
    const struct sink *sink = flush->sink;
    struct standing standing;
    int r = sink->begin(sink->context, shard, generation, &standing, vector, error);

    if (r < 0)
        return r;
    if (standing.in_ledger) {
        sink->rollback(sink->context);
        return COMMIT_DONE;
    }
    r = act(flush, shard, generation, &standing, vector, entry, error);
    if (r < 0)
        sink->rollback(sink->context);
    else
        r = sink->commit(sink->context, error);
    if (r < 0)
        *entry = (struct entry){0};
    return r;
}

static int apply_generation(struct flush *flush, uint32_t shard, const struct generation *generation,
                            struct flush_result *result, struct error *error)
{
    struct entry entry = {0};
    int64_t *vector = calloc(generation->batches_len + 1, sizeof(*vector));
    int r = vector ? COMMIT_UNKNOWN : error_set(error, -ENOMEM, "out of memory");

    for (int i = 0; i < TRANSACTIONS_MAX && (r == COMMIT_UNKNOWN || r == FAILURE_COLLISION); i++)
        r = transact(flush, shard, generation, vector, &entry, error);
    free(vector);
    if (r == COMMIT_UNKNOWN)
        return error_set(error, FAILURE_UNAVAILABLE,
                         "no answer to COMMIT, several times; the next run finds out whether it happened");
    if (r < 0)
        return r;
    result->keys += entry.keys;
    result->total += entry.total;
    result->events += entry.events;
    return 0;
}

static int take_generation(struct flush *flush, uint32_t shard, const struct generation *generation,
                           struct flush_result *result, struct error *error)
{
    int r = read_generation(flush, shard, generation, error);

    if (r == READ_GONE)
        return TAKEN_AWAY;
    if (r >= 0)
        r = apply_generation(flush, shard, generation, result, error);
    if (r >= 0)
        r = flush->source->release(flush->source->context, shard, generation->id, error);
    return r < 0 ? r : TAKEN_DONE;
}

int flush_shard(struct flush *flush, uint32_t shard, struct flush_result *ret_result, struct error *error)
{
    *ret_result = (struct flush_result){0};
    for (int i = 0; i < GENERATIONS_MAX; i++) {
        struct generation generation = {0};
        bool complete = false;
        int r = flush->source->seal(flush->source->context, shard, &generation, error);

        if (r == SEAL_NONE) {
            ret_result->fresh_ms = generation.now_ms;
            complete = true;
        } else if (r == SEAL_SEALED) {
            r = take_generation(flush, shard, &generation, ret_result, error);
            /* What an earlier run left does not hold what came since. */
            complete = r == TAKEN_DONE && !generation.recovered;
        }
        generation_done(&generation);
        if (r < 0)
            return error_prefix(error, r, "shard %" PRIu32, shard);
        if (complete)
            return 0;
    }
    return error_set(error, FAILURE_LATER,
                     "shard %" PRIu32 ": other flushers took every generation away that this one began with",
                     shard);
}
