#include "flusher/pending.h"

#include "flusher/whole.h"

struct key_pending pending_of_key(const struct peek *peek, const struct stored *stored)
{
    bool sealed_applied = peek->sealed_id[0] != '\0' && strcmp(stored->head_id, peek->sealed_id) == 0;

    if (sealed_applied)
        return (struct key_pending){peek->in_open, peek->open};
    if (strcmp(stored->head_id, peek->prev_id) == 0)
        return (struct key_pending){peek->in_open || peek->in_sealed, peek->open + peek->sealed};
    /* The ledger has moved on past both: what was open then has been sealed and applied since. */
    return (struct key_pending){false, 0};
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
