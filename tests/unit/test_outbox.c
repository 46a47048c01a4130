/* The writer's side of PROTOCOL.md against a Redis in memory that loses replies and goes back in time. */
#include <stdio.h>

#include "counterd/outbox.h"
#include "lib/config.h"
#include "lib/keyspace.h"
#include "lib/metric.h"
#include "tests/unit/unit.h"

#define SHARDS 3
#define KEYS   40

/* Where the tests fan out: 10 to 19 count in 2 as well, which is counted by itself too, and in "all". */
#define FANOUT "{\"fanout\": [{\"match\": \"1{n}\", \"also\": [\"all\", \"2\"]}]}"
#define ALL    KEYS
#define SLOTS  (KEYS + 1)

/* What the append script keeps of one shard and one writer, and what a flush made durable. */
struct shard_state {
    uint64_t seq, durable;
    int64_t open[SLOTS];
    int64_t stored[SLOTS]; /* in Postgres; never goes back */
};

static struct outbox *outbox;
static struct table *tables[2];
static unsigned filling;
static struct shard_state shards[SHARDS], snapshots[SHARDS];
static int64_t sent_micros[SLOTS];
static struct config *config; /* NULL: nothing is fanned out */
static uint64_t sent_events, acknowledged_events;

/* The disk: batches in the order in which they were written; a segment each, so that what is settled is known
 * by its number. What is read again begins at disk_read. */
#define DISK_MAX 8192
static struct {
    uint32_t shard;
    uint64_t durable;
    struct batch *batch;
    bool settled;
} disk[DISK_MAX];
static size_t disk_len, disk_read;

static void set_up_with(size_t history_bytes)
{
    struct outbox_options options = {SHARDS, 5, history_bytes};

    outbox = outbox_new(&options);
    filling = 0;
    for (int i = 0; i < 2; i++)
        tables[i] = table_new(SHARDS, SLOTS);
    memset(shards, 0, sizeof(shards));
    memset(snapshots, 0, sizeof(snapshots));
    memset(sent_micros, 0, sizeof(sent_micros));
    sent_events = acknowledged_events = 0;
    disk_len = disk_read = 0;
}

static void set_up_fanout(void)
{
    struct error error;

    ck_assert_int_eq(config_parse("f", span_of(FANOUT), &config, &error), 0);
}

#define BUCKET 1656581400 /* the start of a minute */

static void set_up_buckets(void)
{
    static const char text[] = "{\"targets\": [{\"match\": \"*\", \"table\": \"counterd.counters\", "
                               "\"rollup\": {\"bucket\": \"1m\"}}]}";
    struct error error;

    ck_assert_int_eq(config_parse("f", span_of(text), &config, &error), 0);
}

static void tear_down(void)
{
    config_free(config);
    config = NULL;
    outbox_free(outbox);
    for (size_t i = 0; i < disk_len; i++)
        free(disk[i].batch);
    table_free(tables[0]);
    table_free(tables[1]);
}

static void count_in(int key, int64_t bucket, int64_t micros)
{
    struct table_item item = {.micros = micros, .events = 1};
    char name[16], member[MEMBER_LEN_MAX];

    snprintf(name, sizeof(name), "%d", key);
    item.key = (struct span){member, member_write(span_of(name), bucket, member)};
    item.hash = member_hash(keyspace_hash(span_of(name)), bucket, SHARDS);
    ck_assert_int_eq(table_add(tables[filling], &item), TABLE_OK);
    sent_micros[key] += micros;
    if (config && key >= 10 && key < 20) {
        sent_micros[ALL] += micros;
        sent_micros[2] += micros;
    }
    sent_events++;
}

static void count(int key, int64_t micros)
{
    count_in(key, 0, micros);
}

static uint32_t shard_of(int key)
{
    char name[16];

    snprintf(name, sizeof(name), "%d", key);
    return keyspace_shard(keyspace_hash(span_of(name)), SHARDS);
}

static int slot_of(struct span key)
{
    char name[16];

    snprintf(name, sizeof(name), "%.*s", (int)key.len, key.ptr);
    return span_is(key, "all") ? ALL : atoi(name);
}

static void swap_if_drained(void)
{
    if (!outbox_drained(outbox) || table_events(tables[filling]) == 0)
        return;
    outbox_drain(outbox, tables[filling], tables[filling ^ 1], config ? config->targets : NULL);
    filling ^= 1;
}

/* The append script: OK, DUP or GAP. Returns false for GAP. */
static bool append(uint32_t shard, const struct batch *batch, uint64_t known_durable)
{
    struct shard_state *state = &shards[shard];
    uint64_t last = state->seq > known_durable ? state->seq : known_durable;
    struct span key;
    int64_t delta;
    size_t at = 0;

    if (batch->seq <= last)
        return true;
    if (batch->seq != last + 1)
        return false;
    while (batch_next_entry(batch, &at, &key, &delta))
        state->open[slot_of(key)] += delta;
    state->seq = batch->seq;
    return true;
}

enum network { NETWORK_GOOD, NETWORK_LOSES_REQUEST, NETWORK_LOSES_REPLY };

/* Sends what the shard has to send, if anything; returns whether it had. */
static bool step(uint32_t shard, enum network network)
{
    const struct batch *batch = outbox_next(outbox, shard);
    struct outbox_loss loss;
    bool applied;

    if (!batch)
        return false;
    applied = network == NETWORK_LOSES_REQUEST || append(shard, batch, outbox_durable(outbox, shard));
    if (network != NETWORK_GOOD) {
        ck_assert(outbox_unsend(outbox, shard));
    } else if (applied) {
        struct outbox_ack ack = outbox_acknowledge(outbox, shard, shards[shard].durable);
        acknowledged_events += ack.events;
        if (ack.segment != 0)
            disk[ack.segment - 1].settled = true;
    } else {
        uint64_t last = shards[shard].seq;
        if (outbox_durable(outbox, shard) > last)
            last = outbox_durable(outbox, shard);
        ck_assert_uint_gt(outbox_rewind(outbox, shard, last, &loss), 0);
        ck_assert_uint_eq(loss.last_seq, 0);
    }
    return true;
}

static struct batch *copy_batch(const struct batch *batch)
{
    struct batch *copy = batch_new(batch->bytes);
    char *payload = copy->payload;

    *copy = *batch;
    copy->payload = payload;
    if (batch->bytes > 0)
        memcpy(payload, batch->payload, batch->bytes);
    return copy;
}

/* Writes what the shard has to be written, if anything; a disk that fails changes nothing. */
static bool spool(uint32_t shard, bool disk_works)
{
    const struct batch *batch = outbox_spool_next(outbox, shard);

    if (!batch || !disk_works)
        return false;
    ck_assert_uint_lt(disk_len, DISK_MAX);
    disk[disk_len].shard = shard;
    disk[disk_len].durable = outbox_durable(outbox, shard);
    disk[disk_len].batch = copy_batch(batch);
    disk[disk_len].batch->segment = disk_len + 1;
    disk[disk_len].settled = false;
    outbox_spooled(outbox, shard, ++disk_len);
    return true;
}

static bool load(void)
{
    if (!outbox_is_away(outbox))
        return false;
    ck_assert_uint_lt(disk_read, disk_len);
    outbox_load(outbox, disk[disk_read].shard, copy_batch(disk[disk_read].batch));
    disk_read++;
    return true;
}

/* The process ends with all on disk that it can put there; the next one knows only that. */
static void restart(void)
{
    struct outbox_options options = {SHARDS, 5, SIZE_MAX};
    size_t first = 0;

    for (int table = 0; table < 2; table++) {
        for (uint32_t shard = 0; shard < SHARDS; shard++)
            while (spool(shard, true))
                continue;
        ck_assert(outbox_drained(outbox));
        swap_if_drained();
    }
    ck_assert_uint_eq(outbox_spooled_events(outbox), outbox_pending_events(outbox));
    ck_assert_uint_eq(table_keys(tables[filling ^ 1]), 0);
    outbox_free(outbox);
    outbox = outbox_new(&options);
    while (first < disk_len && disk[first].settled)
        first++;
    disk_read = first;
    for (size_t i = first; i < disk_len; i++)
        (void)outbox_expect(outbox, disk[i].shard, disk[i].batch, disk[i].durable);
}

static void settle(void)
{
    bool busy = true;

    while (busy) {
        busy = load();
        for (uint32_t shard = 0; shard < SHARDS; shard++)
            busy |= step(shard, NETWORK_GOOD);
        swap_if_drained();
        busy |= !outbox_drained(outbox) || table_events(tables[filling]) > 0;
    }
}

static void flush(uint32_t shard)
{
    struct shard_state *state = &shards[shard];

    for (int i = 0; i < SLOTS; i++) {
        state->stored[i] += state->open[i];
        state->open[i] = 0;
    }
    state->durable = state->seq;
    snapshots[shard] = *state;
}

/* Whole units are in Redis or Postgres, once; the rest of a key is in the table that fills. */
static void check_all_stored(void)
{
    int64_t fractions[SLOTS] = {0};
    struct table_item item;

    ck_assert_uint_eq(acknowledged_events, sent_events);
    ck_assert_uint_eq(outbox_pending_events(outbox), 0);
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        while (table_pop(tables[filling], shard, &item)) {
            ck_assert(item.micros > -MICROS_PER_UNIT && item.micros < MICROS_PER_UNIT);
            fractions[slot_of(item.key)] = item.micros;
        }
    }
    for (int i = 0; i < SLOTS; i++) {
        int64_t units = 0;
        for (uint32_t shard = 0; shard < SHARDS; shard++)
            units += shards[shard].open[i] + shards[shard].stored[i];
        ck_assert_int_eq(units * MICROS_PER_UNIT + fractions[i], sent_micros[i]);
    }
}

START_TEST(fractions_are_carried_until_they_make_a_whole)
{
    set_up_with(SIZE_MAX);
    for (int i = 0; i < 10; i++) {
        count(0, 100000);
        count(1, -300000);
        swap_if_drained();
        settle();
    }
    check_all_stored();
    tear_down();
}
END_TEST

static int64_t units_of(int slot)
{
    int64_t units = 0;

    for (uint32_t shard = 0; shard < SHARDS; shard++)
        units += shards[shard].open[slot] + shards[shard].stored[slot];
    return units;
}

START_TEST(what_is_fanned_out_is_sent_before_the_table_counts_as_drained)
{
    set_up_with(SIZE_MAX);
    set_up_fanout();
    count(10, 500000);
    settle();
    ck_assert_int_eq(units_of(ALL), 0);
    count(11, 500000);
    settle();
    ck_assert_int_eq(units_of(ALL), 1);
    ck_assert_int_eq(units_of(2), 1);
    count(2, 1500000);
    count(12, 3 * MICROS_PER_UNIT);
    count(13, -3 * MICROS_PER_UNIT);
    settle();
    ck_assert_int_eq(units_of(ALL), 1);
    ck_assert_int_eq(units_of(2), 2);
    check_all_stored();
    tear_down();
}
END_TEST

START_TEST(fractions_of_buckets_that_are_over_make_wholes_and_take_no_memory)
{
    enum { MINUTES = 30 };

    set_up_with(SIZE_MAX);
    set_up_buckets();
    for (int64_t minute = 0; minute < MINUTES; minute++) {
        int64_t bucket = BUCKET + 60 * minute;
        outbox_set_time(outbox, bucket + 30);
        count_in(0, bucket, 300000);
        count_in(1, bucket, -500000);
        count_in(2, bucket + 86400, 500000);
        settle();
        /* Those ahead of the clock stay where they are. */
        ck_assert_uint_le(table_keys(tables[filling]), 2 + (size_t)minute + 1);
    }
    ck_assert_int_eq(units_of(0), MINUTES * 3 / 10);
    ck_assert_int_eq(units_of(1), -MINUTES / 2);
    ck_assert_int_eq(units_of(2), 0);
    outbox_set_time(outbox, BUCKET + 3 * 86400);
    count_in(0, BUCKET + 3 * 86400, 0);
    settle();
    ck_assert_int_eq(units_of(2), MINUTES / 2);
    ck_assert_uint_eq(table_keys(tables[filling]), 0);
    check_all_stored();
    tear_down();
}
END_TEST

/* What waits for others in what is made is of this table, and not of the next one. */
START_TEST(a_fraction_of_a_bucket_is_awaited_by_its_own_table)
{
    uint32_t shard = shard_of(0);

    set_up_with(SIZE_MAX);
    set_up_buckets();
    count_in(0, BUCKET, 1500000);
    swap_if_drained();
    ck_assert(!outbox_fans_out(outbox));
    ck_assert_ptr_nonnull(outbox_next(outbox, shard));
    ck_assert(outbox_fans_out(outbox));
    outbox_acknowledge(outbox, shard, 0);
    settle();
    ck_assert(!outbox_fans_out(outbox));
    count_in(0, BUCKET, 500000);
    swap_if_drained();
    ck_assert_ptr_nonnull(outbox_next(outbox, shard));
    ck_assert(!outbox_fans_out(outbox));
    tear_down();
}
END_TEST

START_TEST(a_fraction_without_room_counts_in_the_overflow_keys_own_shard)
{
    struct span overflow = span_of(OVERFLOW_KEY);
    uint32_t home = keyspace_shard(keyspace_hash(overflow), SHARDS);
    struct table_item item;
    int key = 0;

    set_up_with(SIZE_MAX);
    while (shard_of(key) == home)
        key++;
    count(key, 500000);
    swap_if_drained();
    table_set_keys_max(tables[filling], 0);
    ck_assert_ptr_nonnull(outbox_next(outbox, shard_of(key)));
    ck_assert(table_pop(tables[filling], home, &item));
    ck_assert(span_equal(item.key, overflow));
    ck_assert_int_eq(item.micros, 500000);
    tear_down();
}
END_TEST

START_TEST(a_fraction_that_was_fanned_out_is_not_again_by_later_rules)
{
    set_up_with(SIZE_MAX);
    count(10, 500000);
    settle();
    set_up_fanout();
    count(10, 500000);
    count(10, MICROS_PER_UNIT);
    settle();
    ck_assert_int_eq(units_of(10), 2);
    ck_assert_int_eq(units_of(ALL), 1);
    check_all_stored();
    tear_down();
}
END_TEST

START_TEST(a_key_that_came_to_zero_is_sent_all_the_same)
{
    const struct batch *batch = NULL;

    set_up_with(SIZE_MAX);
    count(0, 5 * MICROS_PER_UNIT);
    count(0, -5 * MICROS_PER_UNIT);
    swap_if_drained();
    for (uint32_t shard = 0; shard < SHARDS && !batch; shard++)
        batch = outbox_next(outbox, shard);
    ck_assert_ptr_nonnull(batch);
    ck_assert_uint_eq(batch->keys, 1);
    ck_assert_uint_eq(batch->events, 2);
    tear_down();
}
END_TEST

START_TEST(one_batch_in_flight_and_the_same_one_again)
{
    const struct batch *batch;
    uint32_t shard = 0;

    set_up_with(SIZE_MAX);
    for (int i = 0; i < KEYS; i++)
        count(i, MICROS_PER_UNIT);
    swap_if_drained();
    batch = outbox_next(outbox, shard);
    ck_assert_uint_eq(batch->seq, 1);
    ck_assert_uint_eq(batch->keys, 5);
    ck_assert_ptr_null(outbox_next(outbox, shard));
    ck_assert(outbox_unsend(outbox, shard));
    ck_assert(!outbox_unsend(outbox, shard));
    ck_assert_ptr_eq(outbox_next(outbox, shard), batch);
    outbox_acknowledge(outbox, shard, 0);
    ck_assert_uint_eq(outbox_next(outbox, shard)->seq, 2);
    ck_assert(!outbox_drained(outbox));
    tear_down();
}
END_TEST

START_TEST(only_a_shard_that_could_have_been_forgotten_is_probed)
{
    uint32_t shard = shard_of(0);

    set_up_with(SIZE_MAX);
    ck_assert_uint_eq(outbox_probe(outbox, shard), 0);
    count(0, MICROS_PER_UNIT);
    settle();
    ck_assert_uint_eq(outbox_probe(outbox, shard), 2);
    ck_assert_uint_eq(outbox_probe(outbox, (shard + 1) % SHARDS), 0);
    count(0, MICROS_PER_UNIT);
    swap_if_drained();
    ck_assert_ptr_nonnull(outbox_next(outbox, shard));
    ck_assert_uint_eq(outbox_probe(outbox, shard), 0);
    outbox_acknowledge(outbox, shard, 2);
    ck_assert_uint_eq(outbox_probe(outbox, shard), 0);
    tear_down();
}
END_TEST

START_TEST(an_idle_shard_that_learns_that_all_is_durable_forgets_it)
{
    uint32_t shard = shard_of(0);

    set_up_with(SIZE_MAX);
    count(0, MICROS_PER_UNIT);
    settle();
    outbox_note_durable(outbox, shard, 0);
    ck_assert_uint_eq(outbox_probe(outbox, shard), 2);
    ck_assert_uint_gt(outbox_history_bytes(outbox), 0);
    outbox_note_durable(outbox, shard, 7); /* more than was ever sent */
    ck_assert_uint_eq(outbox_durable(outbox, shard), 1);
    ck_assert_uint_eq(outbox_probe(outbox, shard), 0);
    ck_assert_uint_eq(outbox_history_bytes(outbox), 0);
    tear_down();
}
END_TEST

START_TEST(a_history_that_may_hold_less_is_emptied_at_once)
{
    set_up_with(SIZE_MAX);
    for (int i = 0; i < 3; i++) {
        count(0, MICROS_PER_UNIT);
        settle();
    }
    ck_assert_uint_eq(outbox_emptied_events(outbox), 0);
    outbox_set_history_bytes(outbox, 0);
    ck_assert_uint_eq(outbox_history_bytes(outbox), 0);
    ck_assert_uint_eq(outbox_emptied_events(outbox), 3);
    outbox_note_durable(outbox, shard_of(0), 3);
    ck_assert_uint_eq(outbox_emptied_events(outbox), 0);
    tear_down();
}
END_TEST

/* Redis forgets more than the history holds: what is lost is told, and the numbers stay without a hole. */
START_TEST(what_no_history_holds_is_told_as_lost)
{
    struct outbox_loss loss;
    const struct batch *batch;

    set_up_with(0);
    for (int i = 0; i < 3; i++) {
        count(0, MICROS_PER_UNIT);
        swap_if_drained();
        settle();
    }
    uint32_t shard = shard_of(0);
    ck_assert_uint_eq(outbox_history_bytes(outbox), 0);
    count(0, MICROS_PER_UNIT);
    swap_if_drained();
    ck_assert_uint_eq(outbox_next(outbox, shard)->seq, 4);
    ck_assert_uint_eq(outbox_rewind(outbox, shard, 0, &loss), 3);
    ck_assert_uint_eq(loss.first_seq, 1);
    ck_assert_uint_eq(loss.last_seq, 3);
    ck_assert_uint_eq(loss.events, 3);
    ck_assert_uint_eq(outbox_emptied_events(outbox), 0);
    for (uint64_t seq = 1; seq <= 4; seq++) {
        batch = outbox_next(outbox, shard);
        ck_assert_uint_eq(batch->seq, seq);
        ck_assert_uint_eq(batch->keys, seq == 4);
        ck_assert_uint_eq(outbox_acknowledge(outbox, shard, 0).events, seq == 4);
    }
    ck_assert(outbox_drained(outbox));
    tear_down();
}
END_TEST

START_TEST(a_rewound_shard_owes_what_redis_and_postgres_lack)
{
    uint32_t shard = shard_of(0);
    struct outbox_loss loss;
    size_t bytes;

    set_up_with(0);
    for (int i = 0; i < 4; i++) {
        count(0, MICROS_PER_UNIT);
        settle();
        outbox_set_history_bytes(outbox, SIZE_MAX); /* of the first one on nothing is emptied */
    }
    bytes = outbox_history_bytes(outbox);
    ck_assert(!outbox_owes(outbox));
    ck_assert_uint_eq(outbox_rewind(outbox, shard, 3, &loss), 1);
    ck_assert(outbox_owes(outbox));
    settle();
    ck_assert(!outbox_owes(outbox));
    ck_assert_uint_eq(outbox_rewind(outbox, shard, 1, &loss), 3);
    ck_assert_uint_eq(loss.last_seq, 0);
    ck_assert_uint_eq(outbox_history_bytes(outbox), 0);
    settle();
    ck_assert_uint_eq(outbox_history_bytes(outbox), bytes);
    ck_assert_uint_eq(outbox_rewind(outbox, shard, 1, &loss), 3);
    ck_assert_uint_eq(outbox_next(outbox, shard)->seq, 2);
    outbox_acknowledge(outbox, shard, 3);
    ck_assert_uint_eq(outbox_next(outbox, shard)->seq, 4);
    outbox_acknowledge(outbox, shard, 3);
    ck_assert_uint_eq(outbox_rewind(outbox, shard, 0, &loss), 1);
    ck_assert_uint_eq(outbox_next(outbox, shard)->seq, 4);
    tear_down();
}
END_TEST

/* Any order of counting, sending, lost requests and replies, flushes, going to disk and coming back, and
 * Redis falling back to any moment since its last flush. Seeded: CK_SEED shows a failure again. */
START_TEST(nothing_is_lost_or_doubled_whatever_happens)
{
    const char *given = getenv("CK_SEED");
    unsigned seed = given ? (unsigned)atoi(given) : (unsigned)_i * 7919 + 1;

    srandom(seed);
    set_up_with(_i % 2 ? SIZE_MAX : 1000000);
    if (_i % 4 >= 2)
        set_up_fanout();
    for (int i = 0; i < 3000; i++) {
        uint32_t shard = (uint32_t)random() % SHARDS;
        switch (random() % 15) {
        case 0:
            swap_if_drained();
            break;
        case 1:
            flush(shard);
            break;
        case 2:
            snapshots[shard] = random() % 2 ? shards[shard] : snapshots[shard];
            break;
        case 3:
            if (random() % 10 == 0)
                shards[shard] = snapshots[shard];
            break;
        case 4:
            step(shard, NETWORK_LOSES_REQUEST);
            break;
        case 5:
            step(shard, NETWORK_LOSES_REPLY);
            break;
        case 6:
        case 7:
        case 8:
            step(shard, NETWORK_GOOD);
            break;
        case 9:
            if (random() % 4 == 0)
                spool(shard, random() % 4 != 0);
            break;
        case 10:
            load();
            break;
        default:
            count((int)(random() % KEYS), (random() % 40 - 15) * (random() % 3 ? MICROS_PER_UNIT : 125000));
            break;
        }
    }
    /* A batch that is the next one shows a rollback, so each shard sends one more. */
    for (int key = 0; key < KEYS; key++)
        count(key, MICROS_PER_UNIT);
    settle();
    ck_assert_msg(acknowledged_events == sent_events, "CK_SEED=%u", seed);
    check_all_stored();
    tear_down();
}
END_TEST

/* Without a rollback: what the dead process had acknowledged, nobody could send again. */
START_TEST(what_is_on_disk_is_stored_once_by_the_next_process)
{
    unsigned seed = (unsigned)_i * 104729 + 1;

    srandom(seed);
    set_up_with(SIZE_MAX);
    for (int i = 0; i < 400; i++) {
        uint32_t shard = (uint32_t)random() % SHARDS;
        count((int)(random() % KEYS), (random() % 40 - 15) * (random() % 3 ? MICROS_PER_UNIT : 125000));
        if (random() % 8 == 0)
            swap_if_drained();
        if (random() % 6 == 0)
            flush(shard);
        if (random() % 5 == 0)
            spool(shard, true);
        if (random() % 5 == 0)
            load();
        step(shard, (enum network)(random() % 3));
    }
    restart();
    /* Its replies may say that a batch was there already, and that counts once too. */
    acknowledged_events = sent_events - outbox_pending_events(outbox);
    settle();
    ck_assert(outbox_stored(outbox));
    check_all_stored();
    tear_down();
}
END_TEST

/* The next process finds that Redis lacks what the one before had acknowledged: empty batches take those
 * numbers, and what was on disk keeps its own. */
START_TEST(what_died_with_its_process_is_told_as_lost)
{
    uint32_t shard = shard_of(0);
    struct outbox_loss loss;

    set_up_with(SIZE_MAX);
    for (int i = 0; i < 3; i++) {
        count(0, MICROS_PER_UNIT);
        swap_if_drained();
        settle();
    }
    count(0, 7 * MICROS_PER_UNIT);
    swap_if_drained();
    restart();
    ck_assert(load());
    ck_assert_uint_eq(outbox_next(outbox, shard)->seq, 4);
    ck_assert_uint_eq(outbox_rewind(outbox, shard, 1, &loss), 2);
    ck_assert_uint_eq(loss.first_seq, 2);
    ck_assert_uint_eq(loss.last_seq, 3);
    for (uint64_t seq = 2; seq <= 4; seq++) {
        const struct batch *batch = outbox_next(outbox, shard);
        ck_assert_uint_eq(batch->seq, seq);
        ck_assert_uint_eq(batch->keys, seq == 4);
        ck_assert_uint_eq(outbox_acknowledge(outbox, shard, 0).events, seq == 4);
    }
    ck_assert(outbox_stored(outbox));
    tear_down();
}
END_TEST

START_TEST(what_the_disk_does_not_give_back_is_told_as_lost)
{
    uint32_t shard = shard_of(0);

    set_up_with(SIZE_MAX);
    for (int i = 0; i < 3; i++) {
        count(0, MICROS_PER_UNIT);
        swap_if_drained();
        ck_assert(spool(shard, true));
    }
    ck_assert(outbox_drained(outbox));
    ck_assert(!outbox_stored(outbox));
    ck_assert_ptr_null(outbox_next(outbox, shard));
    ck_assert(load());
    /* The second can't be read. */
    disk_read++;
    ck_assert(load());
    ck_assert(!load());
    for (uint64_t seq = 1; seq <= 3; seq++) {
        const struct batch *batch = outbox_next(outbox, shard);
        ck_assert_uint_eq(batch->seq, seq);
        ck_assert_uint_eq(batch->keys, seq != 2);
        outbox_acknowledge(outbox, shard, 0);
    }
    count(0, MICROS_PER_UNIT);
    swap_if_drained();
    ck_assert(spool(shard, true));
    ck_assert_uint_eq(outbox_take_unread(outbox), 1);
    outbox_spool_ended(outbox);
    ck_assert_uint_eq(outbox_take_unread(outbox), 1);
    ck_assert_uint_eq(outbox_pending_events(outbox), 0);
    ck_assert_uint_eq(outbox_next(outbox, shard)->keys, 0);
    outbox_acknowledge(outbox, shard, 0);
    ck_assert(outbox_stored(outbox));
    tear_down();
}
END_TEST

START_TEST(only_what_is_awaited_from_disk_is_taken)
{
    set_up_with(SIZE_MAX);
    ck_assert(outbox_expect(outbox, 0, &(struct batch){.seq = 3}, 0));
    ck_assert(outbox_expect(outbox, 0, &(struct batch){.seq = 4}, 0));
    for (uint64_t seq = 2; seq <= 5; seq++) {
        struct batch *batch = batch_new(0);
        batch->seq = seq == 2 ? 5 : seq == 5 ? 2 : seq;
        ck_assert_int_eq(outbox_load(outbox, 0, batch), seq == 3 || seq == 4);
    }
    ck_assert(!outbox_is_away(outbox));
    tear_down();
}
END_TEST

START_TEST(what_the_disk_does_not_take_is_sent_from_memory)
{
    uint32_t shard = shard_of(0);
    const struct batch *batch;

    set_up_with(SIZE_MAX);
    count(0, MICROS_PER_UNIT);
    swap_if_drained();
    ck_assert(!spool(shard, false));
    ck_assert(!outbox_drained(outbox));
    batch = outbox_next(outbox, shard);
    ck_assert_uint_eq(batch->seq, 1);
    /* In flight, and now on disk as well. */
    ck_assert(spool(shard, true));
    ck_assert(outbox_drained(outbox));
    ck_assert_uint_eq(outbox_acknowledge(outbox, shard, 0).segment, 1);
    ck_assert(outbox_stored(outbox));
    tear_down();
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, fractions_are_carried_until_they_make_a_whole);
    tcase_add_test(tests, what_is_fanned_out_is_sent_before_the_table_counts_as_drained);
    tcase_add_test(tests, fractions_of_buckets_that_are_over_make_wholes_and_take_no_memory);
    tcase_add_test(tests, a_fraction_of_a_bucket_is_awaited_by_its_own_table);
    tcase_add_test(tests, a_fraction_without_room_counts_in_the_overflow_keys_own_shard);
    tcase_add_test(tests, a_fraction_that_was_fanned_out_is_not_again_by_later_rules);
    tcase_add_test(tests, a_key_that_came_to_zero_is_sent_all_the_same);
    tcase_add_test(tests, one_batch_in_flight_and_the_same_one_again);
    tcase_add_test(tests, only_a_shard_that_could_have_been_forgotten_is_probed);
    tcase_add_test(tests, an_idle_shard_that_learns_that_all_is_durable_forgets_it);
    tcase_add_test(tests, a_history_that_may_hold_less_is_emptied_at_once);
    tcase_add_test(tests, what_no_history_holds_is_told_as_lost);
    tcase_add_test(tests, a_rewound_shard_owes_what_redis_and_postgres_lack);
    tcase_add_loop_test(tests, what_is_on_disk_is_stored_once_by_the_next_process, 0, 60);
    tcase_add_test(tests, what_died_with_its_process_is_told_as_lost);
    tcase_add_test(tests, what_the_disk_does_not_give_back_is_told_as_lost);
    tcase_add_test(tests, only_what_is_awaited_from_disk_is_taken);
    tcase_add_test(tests, what_the_disk_does_not_take_is_sent_from_memory);
    tcase_add_loop_test(tests, nothing_is_lost_or_doubled_whatever_happens, 0, 60);
}

int main(void)
{
    return unit_run("outbox", add_tests);
}
