#include "flusher/flush.h"

#include <inttypes.h>
#include <stdlib.h>

#include "flusher/failure.h"
#include "flusher/whole.h"

/* Generations looked at in one call. Two are usual at most (one that was left, one of our own); more only
 * when other flushers take them away while we read. */
#define GENERATIONS_MAX 16

/* Transactions tried for one generation. */
#define TRANSACTIONS_MAX 5

enum taken { TAKEN_DONE, TAKEN_AWAY, TAKEN_QUARANTINED };

/* What the transaction about a generation came to. */
struct settlement {
    enum verdict verdict;
    bool quarantined;             /* by this flusher */
    struct entry entry;           /* of what this flusher applied */
    struct correction correction; /* for its release */
    struct reset reset;           /* VERDICT_MIXED, unless it was set aside */
};

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

void flush_done(struct flush *flush)
{
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

/* The sum of the deltas; false when it leaves the range. */
static bool sum_updates(const struct updates *updates, int64_t *ret_total)
{
    bool overflow = false;

    *ret_total = 0;
    for (size_t i = 0; i < updates->len; i++)
        overflow |= __builtin_add_overflow(*ret_total, updates->items[i].delta, ret_total);
    return !overflow;
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

static int make_entry(const struct updates *updates, const struct generation *generation,
                      const struct standing *standing, enum verdict verdict, struct entry *ret_entry,
                      struct error *error)
{
    struct entry entry = {.cumulative_total = standing->cumulative_total,
                          .cumulative_events = standing->cumulative_events};
    int64_t content;
    bool fits = sum_updates(updates, &content);

    if (verdict == VERDICT_FRESH) {
        entry.keys = (int64_t)updates->len;
        entry.total = content;
        entry.events = count_events(generation, standing);
        fits = fits &&
               !__builtin_add_overflow(entry.cumulative_total, entry.total, &entry.cumulative_total) &&
               !__builtin_add_overflow(entry.cumulative_events, entry.events, &entry.cumulative_events);
    }
    if (!fits)
        return error_set(error, FAILURE_LATER, "the running total would leave the range of 64 bits");
    entry.correction = correct(generation, standing, &entry, content);
    *ret_entry = entry;
    return 0;
}

/* Into quarantine, unless it is there from an earlier attempt; and where the shard is to go on from. */
static int put_aside(struct flush *flush, uint32_t shard, const struct generation *generation,
                     const struct standing *standing, struct settlement *settlement, struct error *error)
{
    const struct sink *sink = flush->sink;
    int64_t total;
    int r = 0;

    if (!sum_updates(&flush->updates, &total))
        return error_set(error, FAILURE_LATER, "the total of generation '%s' leaves the range of 64 bits",
                         generation->id);
    if (!standing->in_quarantine) {
        settlement->quarantined = true;
        r = sink->quarantine(sink->context, shard, generation, &flush->updates, total, error);
    }
    reset_done(&settlement->reset);
    if (r == 0 && !generation->set_aside)
        r = sink->stand(sink->context, shard, &settlement->reset, error);
    return r;
}

/* Does inside the transaction what the verdict asks for. */
static int act(struct flush *flush, uint32_t shard, const struct generation *generation,
               const struct standing *standing, struct settlement *settlement, struct error *error)
{
    const struct sink *sink = flush->sink;
    int r;

    /* Of an attempt before this one only what the sink turns out to have counts. */
    settlement->entry = (struct entry){0};
    if (settlement->verdict == VERDICT_MIXED)
        return put_aside(flush, shard, generation, standing, settlement, error);
    /* What was known by its writers only, is from now on known by its id too. */
    r = make_entry(&flush->updates, generation, standing, settlement->verdict, &settlement->entry, error);
    if (r == 0)
        r = sink->record(sink->context, shard, generation, &settlement->entry, error);
    if (r == 0 && settlement->verdict == VERDICT_FRESH)
        r = sink->apply(sink->context, shard, generation, &flush->updates, error);
    settlement->correction = settlement->entry.correction;
    return r;
}

/* One transaction, to a commit_outcome or a failure. When the sink has the generation, `settlement` keeps
 * what the attempt before this one sent to be committed. */
static int transact(struct flush *flush, uint32_t shard, const struct generation *generation, int64_t *vector,
                    struct settlement *settlement, struct error *error)
{
    const struct sink *sink = flush->sink;
    struct standing standing;
    int r = sink->begin(sink->context, shard, generation, &standing, vector, error);

    if (r < 0)
        return r;
    settlement->verdict = flush_judge(generation, &standing, vector);
    if (settlement->verdict == VERDICT_APPLIED && standing.in_ledger) {
        settlement->correction = standing.correction;
        sink->rollback(sink->context);
        return COMMIT_DONE;
    }
    r = act(flush, shard, generation, &standing, settlement, error);
    if (r < 0)
        sink->rollback(sink->context);
    else
        r = sink->commit(sink->context, error);
    if (r < 0) {
        settlement->entry = (struct entry){0};
        settlement->quarantined = false;
    }
    return r;
}

/* Tries until it is known what the sink made of the generation. `settlement` starts zeroed. */
static int settle(struct flush *flush, uint32_t shard, const struct generation *generation,
                  struct settlement *settlement, struct error *error)
{
    int64_t *vector = calloc(generation->batches_len + 1, sizeof(*vector));
    int r = vector ? COMMIT_UNKNOWN : error_set(error, -ENOMEM, "out of memory");

    for (int i = 0; i < TRANSACTIONS_MAX && (r == COMMIT_UNKNOWN || r == FAILURE_COLLISION); i++)
        r = transact(flush, shard, generation, vector, settlement, error);
    free(vector);
    if (r == COMMIT_UNKNOWN)
        r = error_set(error, FAILURE_UNAVAILABLE,
                      "no answer to COMMIT, several times; the next run finds out whether it happened");
    return r;
}

static void report(const struct flush *flush, uint32_t shard, const struct generation *generation,
                   const struct settlement *settlement, struct flush_result *result)
{
    int64_t total;

    result->keys += settlement->entry.keys;
    result->total += settlement->entry.total;
    result->events += settlement->entry.events;
    result->quarantined += settlement->quarantined;
    if (settlement->quarantined && flush->on_quarantine && sum_updates(&flush->updates, &total))
        flush->on_quarantine(shard, generation, (int64_t)flush->updates.len, total);
}

/* The source may forget the generation. */
static int let_go(struct flush *flush, uint32_t shard, const struct generation *generation,
                  const struct settlement *settlement, struct error *error)
{
    const struct source *source = flush->source;

    if (settlement->verdict == VERDICT_MIXED && !generation->set_aside)
        return source->reset(source->context, shard, generation->id, &settlement->reset, error);
    return source->release(source->context, shard, generation->id, &settlement->correction, error);
}

static int take_generation(struct flush *flush, uint32_t shard, const struct generation *generation,
                           struct flush_result *result, struct error *error)
{
    struct settlement settlement = {0};
    int r = read_generation(flush, shard, generation, error);

    if (r == READ_GONE)
        return TAKEN_AWAY;
    if (r >= 0)
        r = settle(flush, shard, generation, &settlement, error);
    if (r >= 0) {
        report(flush, shard, generation, &settlement, result);
        r = let_go(flush, shard, generation, &settlement, error);
    }
    reset_done(&settlement.reset);
    if (r < 0)
        return r;
    return settlement.verdict == VERDICT_MIXED ? TAKEN_QUARANTINED : TAKEN_DONE;
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
            /* What an earlier run left does not hold what came since, and after a reset there is what was set
             * aside. */
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
