#include "flusher/pending.h"

#include "flusher/whole.h"

static int64_t merge_two(enum merge merge, bool has_a, int64_t a, bool has_b, int64_t b)
{
    if (merge == MERGE_ADD || !has_a || !has_b)
        return whole_add(a, b);
    return merge_extreme(merge, a, b);
}

struct key_pending pending_of_key(const struct peek *peek, const struct stored *stored, enum merge merge)
{
    bool sealed_applied = peek->sealed_id[0] != '\0' && strcmp(stored->head_id, peek->sealed_id) == 0;
    struct key_pending pending = {0};

    if (sealed_applied)
        pending = (struct key_pending){.known = peek->in_open, .delta = peek->open};
    else if (strcmp(stored->head_id, peek->prev_id) == 0)
        pending = (struct key_pending){
            .known = peek->in_open || peek->in_sealed,
            .delta = merge_two(merge, peek->in_open, peek->open, peek->in_sealed, peek->sealed)};
    /* Else the ledger has moved on past both: what was open then has been sealed and applied since. */
    pending.value = merge_two(merge, pending.known, pending.delta, stored->known, stored->value);
    return pending;
}

static void note_age(struct pending *pending, int64_t now_ms, int64_t since_ms)
{
    if (now_ms - since_ms > pending->oldest_ms)
        pending->oldest_ms = now_ms - since_ms;
}

void pending_add_shard(struct pending *pending, const struct shard_state *state,
                       const struct shard_ledger *ledger)
{
    if (state->open_members > 0) {
        pending->open_keys += state->open_members;
        pending->open_total = whole_add(pending->open_total, state->accepted - state->accepted_at_seal);
        pending->events = whole_add(pending->events, state->events - state->events_at_seal);
        note_age(pending, state->now_ms, state->opened_ms);
    }
    if (state->sealed_members > 0 && !ledger->sealed_applied) {
        pending->sealed_keys += state->sealed_members;
        pending->sealed_total =
            whole_add(pending->sealed_total, state->accepted_at_seal - ledger->released_total);
        pending->events = whole_add(pending->events, state->events_at_seal - ledger->released_events);
        note_age(pending, state->now_ms, state->sealed_opened_ms);
    }
}

/* Takes the key out; gives what it had. */
static int64_t take_out(struct largest *largest, struct span key)
{
    for (size_t i = 0; i < largest->len; i++) {
        int64_t delta = largest->items[i].delta;
        if (!span_equal((struct span){largest->items[i].key, largest->items[i].key_len}, key))
            continue;
        largest->len--;
        memmove(&largest->items[i], &largest->items[i + 1], (largest->len - i) * sizeof(largest->items[0]));
        return delta;
    }
    return 0;
}

void largest_add(struct largest *largest, struct span member, int64_t delta)
{
    const char *blank = memchr(member.ptr, ' ', member.len);
    struct span key = {member.ptr, blank ? (size_t)(blank - member.ptr) : member.len};
    size_t at;

    if (key.len == 0 || key.len > KEY_LEN_MAX)
        return;
    delta = whole_add(delta, take_out(largest, key));
    if (largest->len < LARGEST_MAX)
        largest->len++;
    else if (delta <= largest->items[LARGEST_MAX - 1].delta)
        return;
    for (at = largest->len - 1; at > 0 && largest->items[at - 1].delta < delta; at--)
        largest->items[at] = largest->items[at - 1];
    memcpy(largest->items[at].key, key.ptr, key.len);
    largest->items[at].key_len = key.len;
    largest->items[at].delta = delta;
}
