#include "flusher/shares.h"

#include <errno.h>
#include <stdlib.h>

#include "lib/member.h"

void shares_done(struct shares *shares)
{
    free(shares->items);
    free(shares->scratch);
    *shares = (struct shares){0};
}

static bool reserve(struct share **items, size_t *size, size_t need)
{
    struct share *grown;

    if (need <= *size)
        return true;
    grown = reallocarray(*items, need, sizeof(**items));
    if (!grown)
        return false;
    *items = grown;
    *size = need;
    return true;
}

struct span share_key(const struct share *share, const struct updates *updates)
{
    int64_t bucket;

    return member_split(updates_key(updates, share->first), &bucket);
}

static uint32_t find_target(const struct targets *targets, size_t lane, struct span key)
{
    const struct target *target = targets_find_in(targets, lane, key);

    return (uint32_t)(target ? (size_t)(target - targets->items) : targets->len);
}

/* In the order of the updates; gives how many there are, and adds up how many each target has. */
static size_t cut(struct share *items, const struct updates *updates, const struct targets *targets,
                  size_t lane, size_t counts[TARGETS_MAX + 1])
{
    struct span key, last = {0};
    size_t len = 0;
    int64_t bucket;

    for (size_t i = 0; i < updates->len; i++) {
        key = member_split(updates_key(updates, i), &bucket);
        if (len > 0 && span_equal(key, last)) {
            items[len - 1].len++;
            continue;
        }
        last = key;
        items[len] = (struct share){i, 1, find_target(targets, lane, key)};
        counts[items[len].target]++;
        len++;
    }
    return len;
}

int shares_deal(struct shares *shares, const struct updates *updates, const struct targets *targets,
                size_t lane)
{
    size_t counts[TARGETS_MAX + 1] = {0}, at = 0;

    shares->len = 0;
    if (!reserve(&shares->items, &shares->size, updates->len) ||
        !reserve(&shares->scratch, &shares->scratch_size, updates->len))
        return -ENOMEM;
    shares->len = cut(shares->scratch, updates, targets, lane, counts);
    for (size_t i = 0; i <= targets->len; i++) {
        size_t count = counts[i];
        counts[i] = at;
        at += count;
    }
    for (size_t i = 0; i < shares->len; i++)
        shares->items[counts[shares->scratch[i].target]++] = shares->scratch[i];
    return 0;
}

bool share_delta(const struct share *share, const struct updates *updates, enum merge merge,
                 int64_t *ret_delta)
{
    const struct update *items = updates->items + share->first;
    int64_t delta = items[0].delta;

    for (size_t i = 1; i < share->len; i++) {
        if (merge != MERGE_ADD)
            delta = merge_extreme(merge, delta, items[i].delta);
        else if (__builtin_add_overflow(delta, items[i].delta, &delta))
            return false;
    }
    *ret_delta = delta;
    return true;
}

int64_t bucket_of(int64_t unix_s, int64_t bucket_s)
{
    int64_t rest = unix_s % bucket_s;

    return unix_s - (rest < 0 ? rest + bucket_s : rest);
}

int64_t bucket_seen_ms(int64_t bucket, int64_t bucket_s, int64_t seen_ms)
{
    int64_t end_ms;

    if (bucket == 0 || __builtin_add_overflow(bucket, bucket_s, &end_ms) ||
        __builtin_mul_overflow(end_ms, 1000, &end_ms))
        return seen_ms;
    return end_ms < seen_ms ? end_ms : seen_ms;
}
