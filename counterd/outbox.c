#include "counterd/outbox.h"

#include <assert.h>
#include <stdlib.h>

#include "lib/decimal.h"

/* The batches of a shard, by seq:
 *
 *     durable | emptied | first: acknowledged ... | cursor: to be sent or in flight ... last | away | held
 *
 * What stands before the cursor is the history. Batches are emptied oldest first, so that a range of numbers
 * is enough to remember them. Away are those on disk only. Held is one that was made for the disk and is not
 * there. */
struct shard {
    struct batch *first, *last;     /* those that are held, oldest first; seqs without a hole */
    struct batch *cursor;           /* the one held with cursor_seq, NULL when none is */
    uint64_t cursor_seq;            /* next to be sent, or in flight; newest_seq + 1: nothing is owed */
    uint64_t newest_seq;            /* 0 = none yet */
    uint64_t acknowledged;          /* highest seq ever acknowledged */
    uint64_t durable;               /* highest seq known to be in Postgres */
    uint64_t emptied_last;          /* highest seq whose batch was emptied; 0 = none */
    uint64_t emptied_events;        /* of those not yet durable, at most */
    uint64_t away_first, away_last; /* 0, 0 = none */
    uint64_t away_events;
    struct batch *held; /* seq is newest_seq; NULL = none */
    struct batch blank; /* what is sent for an emptied one */
    bool in_flight;
    bool in_doubt; /* outbox_doubt(), and no answer since */
};

struct outbox {
    struct outbox_options options;
    struct table *table; /* that drains; NULL before the first one */
    struct table *made;  /* what its keys are fanned out to, and fractions; drains when it is empty */
    struct table *carry; /* that fills */
    const struct targets *targets;
    bool makes;          /* something of this table has gone to `made` */
    int64_t unix_s;      /* outbox_set_time() */
    struct batch *draft; /* in which the next one is made, as large as one can get; NULL before the first */
    struct fanout_losses losses;
    size_t history_bytes;
    uint64_t emptied_events; /* of all shards */
    uint64_t batched_events; /* of batches not yet acknowledged */
    size_t batched;          /* how many those are */
    uint64_t spooled_events; /* of those of them that are on disk */
    size_t spooled;
    uint64_t unread_events; /* in batches that did not come back */
    size_t away;            /* those of them that are on disk only */
    bool spool_broke;       /* what is missing on disk may never have been stored */
    uint32_t empty_next;    /* the shard whose history is emptied next */
    struct shard shards[];
};

struct outbox *outbox_new(const struct outbox_options *options)
{
    struct outbox *outbox = calloc(1, sizeof(*outbox) + options->shards * sizeof(outbox->shards[0]));

    if (!outbox)
        return NULL;
    outbox->options = *options;
    outbox->made = table_new(options->shards, 0);
    if (!outbox->made) {
        outbox_free(outbox);
        return NULL;
    }
    for (uint32_t i = 0; i < options->shards; i++)
        outbox->shards[i].cursor_seq = 1;
    return outbox;
}

void outbox_free(struct outbox *outbox)
{
    if (!outbox)
        return;
    for (uint32_t i = 0; i < outbox->options.shards; i++) {
        struct batch *batch = outbox->shards[i].first;
        while (batch) {
            struct batch *next = batch->next;
            free(batch);
            batch = next;
        }
        free(outbox->shards[i].held);
    }
    table_free(outbox->made);
    free(outbox->draft);
    free(outbox);
}

/* Oldest acknowledged batch of the shard, which leaves the list; the caller owns it. */
static struct batch *take_oldest(struct outbox *outbox, struct shard *shard)
{
    struct batch *batch = shard->first;

    assert(batch && batch->seq < shard->cursor_seq);
    shard->first = batch->next;
    if (!shard->first)
        shard->last = NULL;
    outbox->history_bytes -= batch_size(batch);
    return batch;
}

static bool has_history(const struct shard *shard)
{
    return shard->first && shard->first->seq < shard->cursor_seq;
}

/* The history stays within its bound: of the shards in turn, the oldest batch is emptied. */
static void bound_history(struct outbox *outbox)
{
    for (uint32_t idle = 0;
         outbox->history_bytes > outbox->options.history_bytes && idle < outbox->options.shards;) {
        struct shard *shard = &outbox->shards[outbox->empty_next];
        outbox->empty_next = (outbox->empty_next + 1) % outbox->options.shards;
        idle++;
        if (has_history(shard)) {
            struct batch *batch = take_oldest(outbox, shard);
            shard->emptied_last = batch->seq;
            shard->emptied_events += batch->events;
            outbox->emptied_events += batch->events;
            free(batch);
            idle = 0;
        }
    }
}

void outbox_set_history_bytes(struct outbox *outbox, size_t history_bytes)
{
    outbox->options.history_bytes = history_bytes;
    bound_history(outbox);
}

void outbox_set_time(struct outbox *outbox, int64_t unix_s)
{
    outbox->unix_s = unix_s;
}

void outbox_drain(struct outbox *outbox, struct table *table, struct table *carry,
                  const struct targets *targets)
{
    assert(outbox_drained(outbox));
    outbox->makes = false;
    outbox->table = table;
    outbox->carry = carry;
    outbox->targets = targets;
    table_set_keys_max(outbox->made, table_keys_max(table));
    table_copy_merges(outbox->made, table);
}

bool outbox_drained(const struct outbox *outbox)
{
    return outbox->batched == outbox->spooled && (!outbox->table || table_keys(outbox->table) == 0) &&
           table_keys(outbox->made) == 0;
}

static bool fans_out(const struct outbox *outbox)
{
    return outbox->targets && outbox->targets->fanouts_len > 0;
}

bool outbox_fans_out(const struct outbox *outbox)
{
    return (fans_out(outbox) || outbox->makes) && !outbox_drained(outbox);
}

bool outbox_stored(const struct outbox *outbox)
{
    return outbox->batched == 0 && outbox_drained(outbox);
}

static struct table *draining_table(const struct outbox *outbox)
{
    return outbox->table && table_keys(outbox->table) > 0 ? outbox->table : outbox->made;
}

/* A fraction always finds a place: at worst under OVERFLOW_KEY, so that totals hold. While keys are fanned
 * out, or have buckets, it first goes to what is made: fractions that come together under one member must
 * meet before the table counts as drained, as they may make a whole. */
static void carry_fraction(struct outbox *outbox, bool to_made, uint32_t shard, struct span key,
                           int64_t fraction)
{
    enum table_result result = TABLE_FULL;
    char member[MEMBER_LEN_MAX];

    if (outbox->targets)
        key = targets_member_at(outbox->targets, key, outbox->unix_s, member);
    if (to_made)
        result = table_carry(outbox->made, shard, key, fraction);
    if (result == TABLE_OK)
        outbox->makes = true;
    else
        result = table_carry(outbox->carry, shard, key, fraction);
    if (result != TABLE_OK) {
        struct span overflow = span_of(OVERFLOW_KEY);
        shard = targets_shard(outbox->targets, 0, keyspace_hash(overflow), outbox->options.shards);
        result = table_carry(outbox->carry, shard, overflow, fraction);
    }
    assert(result == TABLE_OK);
}

/* Moves up to batch_keys_max keys of the shard into `batch`. A key that has only a fraction is carried on;
 * one that came to 0 is sent, so that its row exists and shows that it was seen. */
static void fill_batch(struct outbox *outbox, uint32_t shard, struct batch *batch)
{
    struct table *table = draining_table(outbox);
    bool is_source = table == outbox->table;
    bool has_buckets = outbox->targets && outbox->targets->bucket_s > 0;
    struct table_item item;

    while (batch->keys < outbox->options.batch_keys_max && table_pop(table, shard, &item)) {
        int64_t units = item.micros / MICROS_PER_UNIT;
        int64_t fraction = item.micros % MICROS_PER_UNIT;
        if (is_source && fans_out(outbox))
            fan_out(outbox->targets, &item, outbox->made, &outbox->losses);
        if (fraction != 0)
            carry_fraction(outbox, is_source && (has_buckets || fans_out(outbox)), shard, item.key, fraction);
        if (units != 0 || item.events > 0) {
            batch_put_entry(batch, item.key, units);
            batch->events += is_source ? item.events : 0;
        }
    }
}

static void append_batch(struct shard *shard, struct batch *batch)
{
    batch->next = NULL;
    if (shard->last)
        shard->last->next = batch;
    else
        shard->first = batch;
    shard->last = batch;
    if (batch->seq == shard->cursor_seq)
        shard->cursor = batch;
}

/* Takes what the draft has been filled with, in as little memory as it needs; the draft itself, if there is
 * no other. */
static struct batch *cut_batch(struct outbox *outbox)
{
    struct batch *draft = outbox->draft, *batch = batch_new(draft->bytes);

    if (!batch) {
        outbox->draft = NULL;
        return draft;
    }
    batch->events = draft->events;
    batch->keys = draft->keys;
    batch->bytes = draft->bytes;
    memcpy(batch->payload, draft->payload, draft->bytes);
    return batch;
}

/* A new batch out of the table becomes the shard's newest, and is held, if the table has anything to send. */
static void make_batch(struct outbox *outbox, uint32_t index)
{
    struct shard *shard = &outbox->shards[index];
    struct batch *batch;

    if (!table_has(draining_table(outbox), index))
        return;
    /* What is popped must have a place. */
    if (!outbox->draft)
        outbox->draft = batch_new(outbox->options.batch_keys_max * BATCH_ENTRY_BYTES_MAX);
    if (!outbox->draft)
        return;
    outbox->draft->keys = outbox->draft->bytes = outbox->draft->events = 0;
    fill_batch(outbox, index, outbox->draft);
    if (outbox->draft->keys == 0)
        return;
    batch = cut_batch(outbox);
    batch->seq = ++shard->newest_seq;
    shard->held = batch;
    outbox->batched++;
    outbox->batched_events += batch->events;
}

/* In memory, not acknowledged, and not on disk: there is at most one, and nothing of the shard is behind it
 * but what is held. */
static struct batch *find_unspooled(const struct shard *shard)
{
    struct batch *last = shard->last;

    return last && last->seq > shard->acknowledged && last->segment == 0 ? last : shard->held;
}

const struct batch *outbox_spool_next(struct outbox *outbox, uint32_t index)
{
    struct shard *shard = &outbox->shards[index];

    if (!find_unspooled(shard))
        make_batch(outbox, index);
    return find_unspooled(shard);
}

static void extend_away(struct outbox *outbox, struct shard *shard, const struct batch *batch)
{
    if (shard->away_first == 0)
        shard->away_first = batch->seq;
    shard->away_last = batch->seq;
    shard->away_events += batch->events;
    outbox->away++;
}

void outbox_spooled(struct outbox *outbox, uint32_t index, uint64_t segment)
{
    struct shard *shard = &outbox->shards[index];
    struct batch *batch = find_unspooled(shard);

    assert(batch && segment != 0);
    outbox->spooled++;
    outbox->spooled_events += batch->events;
    if (batch == shard->held) {
        extend_away(outbox, shard, batch);
        shard->held = NULL;
        free(batch);
    } else {
        batch->segment = segment;
    }
}

bool outbox_is_spooled(const struct outbox *outbox)
{
    return outbox->spooled > 0;
}

bool outbox_is_away(const struct outbox *outbox)
{
    return outbox->away > 0;
}

size_t outbox_loaded(const struct outbox *outbox)
{
    return outbox->spooled - outbox->away;
}

bool outbox_expect(struct outbox *outbox, uint32_t index, const struct batch *batch, uint64_t durable)
{
    struct shard *shard = &outbox->shards[index];

    if (batch->seq <= shard->newest_seq)
        return false;
    if (shard->newest_seq == 0) {
        shard->acknowledged = shard->emptied_last = batch->seq - 1;
        shard->cursor_seq = batch->seq;
    } else {
        /* Those between are counted here, and made up for when the next one is loaded. */
        outbox->away += batch->seq - shard->newest_seq - 1;
        outbox->spooled += batch->seq - shard->newest_seq - 1;
        outbox->batched += batch->seq - shard->newest_seq - 1;
    }
    if (durable > shard->durable && durable < shard->cursor_seq)
        shard->durable = durable;
    shard->newest_seq = batch->seq;
    extend_away(outbox, shard, batch);
    outbox->batched++;
    outbox->batched_events += batch->events;
    outbox->spooled++;
    outbox->spooled_events += batch->events;
    return true;
}

/* The first one away is in memory now. */
static void take_back(struct outbox *outbox, struct shard *shard, struct batch *batch)
{
    append_batch(shard, batch);
    shard->away_events -= batch->events;
    outbox->away--;
    if (shard->away_first++ == shard->away_last) {
        /* Left over by those that empty ones have taken the place of. */
        outbox->unread_events += shard->away_events;
        outbox->batched_events -= shard->away_events;
        outbox->spooled_events -= shard->away_events;
        shard->away_first = shard->away_last = shard->away_events = 0;
    }
}

/* Empty batches take the place of those away before `end`. Without memory for one, the shard waits. */
static void give_up_before(struct outbox *outbox, struct shard *shard, uint64_t end)
{
    while (shard->away_first != 0 && shard->away_first < end) {
        struct batch *empty = batch_new(0);
        if (!empty)
            return;
        empty->seq = shard->away_first;
        empty->assumed = !outbox->spool_broke;
        outbox->spooled--;
        take_back(outbox, shard, empty);
    }
}

bool outbox_load(struct outbox *outbox, uint32_t index, struct batch *batch)
{
    struct shard *shard = &outbox->shards[index];

    if (shard->away_first == 0 || batch->seq < shard->away_first || batch->seq > shard->away_last) {
        free(batch);
        return false;
    }
    give_up_before(outbox, shard, batch->seq);
    take_back(outbox, shard, batch);
    return true;
}

void outbox_spool_broke(struct outbox *outbox)
{
    outbox->spool_broke = true;
}

void outbox_spool_ended(struct outbox *outbox)
{
    outbox->spool_broke = true;
    for (uint32_t i = 0; i < outbox->options.shards; i++)
        give_up_before(outbox, &outbox->shards[i], UINT64_MAX);
}

uint64_t outbox_take_unread(struct outbox *outbox)
{
    uint64_t events = outbox->unread_events;

    outbox->unread_events = 0;
    return events;
}

uint64_t outbox_durable(const struct outbox *outbox, uint32_t shard)
{
    return outbox->shards[shard].durable;
}

static void point_cursor(struct shard *shard)
{
    struct batch *batch = shard->first;

    while (batch && batch->seq < shard->cursor_seq)
        batch = batch->next;
    shard->cursor = batch && batch->seq == shard->cursor_seq ? batch : NULL;
}

/* The batch at the cursor is in Redis: it belongs to the history from now on. */
static struct outbox_ack step_cursor(struct outbox *outbox, struct shard *shard)
{
    struct batch *batch = shard->cursor;
    struct outbox_ack ack = {0};

    if (shard->cursor_seq > shard->acknowledged) {
        shard->acknowledged = shard->cursor_seq;
        ack = (struct outbox_ack){batch->events, batch->segment};
        outbox->batched--;
        outbox->batched_events -= batch->events;
        if (batch->segment != 0) {
            outbox->spooled--;
            outbox->spooled_events -= batch->events;
        }
    }
    shard->cursor_seq++;
    if (batch) {
        outbox->history_bytes += batch_size(batch);
        shard->cursor = batch->next;
    } else {
        point_cursor(shard);
    }
    return ack;
}

const struct batch *outbox_next(struct outbox *outbox, uint32_t index)
{
    struct shard *shard = &outbox->shards[index];

    if (shard->in_flight)
        return NULL;
    while (shard->cursor && shard->cursor->assumed && shard->cursor_seq > shard->acknowledged)
        (void)step_cursor(outbox, shard);
    if (shard->cursor_seq > shard->newest_seq)
        make_batch(outbox, index);
    if (shard->held && shard->away_first == 0) {
        append_batch(shard, shard->held);
        shard->held = NULL;
    }
    if (shard->cursor_seq > shard->newest_seq ||
        (shard->away_first != 0 && shard->cursor_seq >= shard->away_first))
        return NULL;
    shard->in_flight = true;
    if (shard->cursor)
        return shard->cursor;
    shard->blank = (struct batch){.seq = shard->cursor_seq};
    return &shard->blank;
}

static void forget_emptied(struct outbox *outbox, struct shard *shard)
{
    outbox->emptied_events -= shard->emptied_events;
    shard->emptied_events = 0;
}

static void forget_durable(struct outbox *outbox, struct shard *shard)
{
    while (has_history(shard) && shard->first->seq <= shard->durable)
        free(take_oldest(outbox, shard));
    if (shard->emptied_last <= shard->durable)
        forget_emptied(outbox, shard);
}

static void learn_durable(struct outbox *outbox, struct shard *shard, uint64_t durable)
{
    /* More than was ever sent can't be durable, whatever the reply says. */
    if (durable > shard->acknowledged)
        durable = shard->acknowledged;
    if (durable > shard->durable)
        shard->durable = durable;
    /* Those were acknowledged before. */
    while (shard->cursor_seq <= shard->durable)
        (void)step_cursor(outbox, shard);
    forget_durable(outbox, shard);
}

struct outbox_ack outbox_acknowledge(struct outbox *outbox, uint32_t index, uint64_t durable)
{
    struct shard *shard = &outbox->shards[index];
    struct outbox_ack ack;

    assert(shard->in_flight);
    shard->in_flight = shard->in_doubt = false;
    ack = step_cursor(outbox, shard);
    learn_durable(outbox, shard, durable);
    bound_history(outbox);
    return ack;
}

void outbox_note_durable(struct outbox *outbox, uint32_t index, uint64_t durable)
{
    struct shard *shard = &outbox->shards[index];

    assert(shard->cursor_seq > shard->acknowledged);
    shard->in_doubt = false;
    learn_durable(outbox, shard, durable);
}

uint64_t outbox_rewind(struct outbox *outbox, uint32_t index, uint64_t last, struct outbox_loss *ret_loss)
{
    struct shard *shard = &outbox->shards[index];
    uint64_t from = shard->cursor_seq;

    *ret_loss = (struct outbox_loss){0};
    shard->in_flight = false;
    if (last < shard->durable)
        last = shard->durable;
    if (last + 1 >= from)
        return 0;
    shard->cursor_seq = last + 1;
    point_cursor(shard);
    if (shard->emptied_last > last) {
        *ret_loss = (struct outbox_loss){last + 1, shard->emptied_last, shard->emptied_events};
        forget_emptied(outbox, shard);
    }
    for (struct batch *batch = shard->cursor ? shard->cursor : shard->first; batch && batch->seq < from;
         batch = batch->next) {
        outbox->history_bytes -= batch_size(batch);
        if (batch->assumed) {
            ret_loss->first_seq = ret_loss->first_seq > 0 ? ret_loss->first_seq : batch->seq;
            ret_loss->last_seq = batch->seq;
            batch->assumed = false;
        }
    }
    return from - shard->cursor_seq;
}

static bool owes(const struct shard *shard)
{
    return shard->cursor_seq <= shard->newest_seq;
}

bool outbox_owes(const struct outbox *outbox)
{
    for (uint32_t i = 0; i < outbox->options.shards; i++)
        if (owes(&outbox->shards[i]))
            return true;
    return false;
}

void outbox_doubt(struct outbox *outbox)
{
    for (uint32_t i = 0; i < outbox->options.shards; i++)
        outbox->shards[i].in_doubt = true;
}

static bool owes_again(const struct shard *shard)
{
    return shard->cursor_seq <= shard->acknowledged;
}

bool outbox_is_in_doubt(const struct outbox *outbox)
{
    for (uint32_t i = 0; i < outbox->options.shards; i++) {
        const struct shard *shard = &outbox->shards[i];
        if (owes_again(shard) || (shard->in_doubt && shard->acknowledged > shard->durable))
            return true;
    }
    return false;
}

uint64_t outbox_probe(const struct outbox *outbox, uint32_t index)
{
    const struct shard *shard = &outbox->shards[index];

    if (shard->in_flight || owes_again(shard) || shard->acknowledged == shard->durable ||
        (owes(shard) && !shard->in_doubt))
        return 0;
    return shard->cursor_seq;
}

bool outbox_unsend(struct outbox *outbox, uint32_t shard)
{
    bool was_in_flight = outbox->shards[shard].in_flight;

    outbox->shards[shard].in_flight = false;
    return was_in_flight;
}

uint64_t outbox_emptied_events(const struct outbox *outbox)
{
    return outbox->emptied_events;
}

struct fanout_losses outbox_fanout_losses(const struct outbox *outbox)
{
    return outbox->losses;
}

size_t outbox_history_bytes(const struct outbox *outbox)
{
    return outbox->history_bytes;
}

uint64_t outbox_missing_events(const struct outbox *outbox)
{
    uint64_t events = 0;

    for (uint32_t i = 0; i < outbox->options.shards; i++) {
        const struct shard *shard = &outbox->shards[i];
        for (const struct batch *batch = shard->first; batch; batch = batch->next)
            if (batch->seq >= shard->cursor_seq && batch->seq <= shard->acknowledged)
                events += batch->events;
    }
    return events;
}

uint64_t outbox_pending_events(const struct outbox *outbox)
{
    return outbox->batched_events + (outbox->table ? table_events(outbox->table) : 0);
}

uint64_t outbox_spooled_events(const struct outbox *outbox)
{
    return outbox->spooled_events;
}
