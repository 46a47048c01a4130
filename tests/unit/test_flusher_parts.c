#include <stdio.h>

#include "flusher/failure.h"
#include "flusher/partitions.h"
#include "flusher/pending.h"
#include "flusher/pgarray.h"
#include "flusher/updates.h"
#include "flusher/whole.h"
#include "tests/unit/unit.h"

START_TEST(takes_whole_numbers_only)
{
    static const struct {
        const char *text;
        bool ok;
        int64_t number;
    } cases[] = {
        {"0", true, 0},
        {"-0", true, 0},
        {"9007199254740992", true, INT64_C(9007199254740992)},
        {"9223372036854775807", true, INT64_MAX},
        {"-9223372036854775808", true, INT64_MIN},
        {"9223372036854775808", false, 0},
        {"-9223372036854775809", false, 0},
        {"", false, 0},
        {"-", false, 0},
        {"+1", false, 0},
        {" 1", false, 0},
        {"1.5", false, 0},
        {"1e3", false, 0},
        {"inf", false, 0},
        {"nan", false, 0},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        int64_t number = 0;
        ck_assert_msg(whole_parse(span_of(cases[i].text), &number) == cases[i].ok, "'%s'", cases[i].text);
        ck_assert_int_eq(number, cases[i].number);
    }
}
END_TEST

START_TEST(takes_ranges_in_order_only)
{
    static const char *const wrong[] = {"", "1", "1-", "-1", "0-1", "2-1", "1-2-3", "a-b", "1--2"};
    int64_t low, high;

    ck_assert(whole_parse_range(span_of("3-12"), &low, &high));
    ck_assert(low == 3 && high == 12);
    for (size_t i = 0; i < ARRAY_LEN(wrong); i++)
        ck_assert_msg(!whole_parse_range(span_of(wrong[i]), &low, &high), "'%s'", wrong[i]);
}
END_TEST

START_TEST(sums_stop_at_the_end_of_the_range)
{
    ck_assert_int_eq(whole_add(2, -5), -3);
    ck_assert_int_eq(whole_add(INT64_MAX, 1), INT64_MAX);
    ck_assert_int_eq(whole_add(-1, INT64_MIN), INT64_MIN);
}
END_TEST

START_TEST(orders_keys_by_their_bytes)
{
    static const char *const given[] = {"b", "a\xc3\xa9", "ab", "a", "B"};
    static const char *const ordered[] = {"B", "a", "ab", "a\xc3\xa9", "b"};
    struct updates updates = {0};

    for (size_t i = 0; i < ARRAY_LEN(given); i++)
        ck_assert_int_eq(updates_add(&updates, span_of(given[i]), (int64_t)i), 0);
    updates_order(&updates);
    ck_assert_uint_eq(updates.len, ARRAY_LEN(ordered));
    for (size_t i = 0; i < ARRAY_LEN(ordered); i++)
        ck_assert(span_is(updates_key(&updates, i), ordered[i]));
    updates_done(&updates);
}
END_TEST

START_TEST(cancels_what_was_begun_last_and_no_more)
{
    struct updates updates = {0};

    updates_begin(&updates, 0);
    ck_assert_int_eq(updates_add(&updates, span_of("a"), 1), 0);
    updates_begin(&updates, 1);
    ck_assert_int_eq(updates_add(&updates, span_of("bcd"), 2), 0);
    updates_cancel(&updates);
    ck_assert_uint_eq(updates.len, 1);
    ck_assert_uint_eq(updates.bytes_len, 1);
    updates_begin(&updates, 1);
    ck_assert_int_eq(updates_add(&updates, span_of("e"), 3), 0);
    ck_assert(span_is(updates_key(&updates, 0), "a"));
    ck_assert(span_is(updates_key(&updates, 1), "e"));
    updates_clear(&updates);
    ck_assert_uint_eq(updates.bytes_len, 0);
    updates_done(&updates);
}
END_TEST

START_TEST(keeps_many_keys)
{
    struct updates updates = {0};
    char key[16];

    for (int i = 0; i < 50000; i++) {
        snprintf(key, sizeof(key), "key.%05d", 49999 - i);
        ck_assert_int_eq(updates_add(&updates, span_of(key), i + 1), 0);
    }
    updates_order(&updates);
    ck_assert(span_is(updates_key(&updates, 0), "key.00000"));
    ck_assert_int_eq(updates.items[0].delta, 50000);
    updates_clear(&updates);
    ck_assert_uint_eq(updates.len, 0);
    updates_done(&updates);
}
END_TEST

START_TEST(writes_arrays_as_postgres_reads_them)
{
    static const char texts[] = "\0\0\0\1\0\0\0\0\0\0\0\x19\0\0\0\2\0\0\0\1"
                                "\0\0\0\2ab\0\0\0\0";
    static const char numbers[] = "\0\0\0\1\0\0\0\0\0\0\0\x14\0\0\0\1\0\0\0\1"
                                  "\0\0\0\x8\xff\xff\xff\xff\xff\xff\xff\xfe";
    struct pgarray array = {0};

    pgarray_begin(&array, PGARRAY_TEXT, 2);
    pgarray_add_text(&array, span_of("ab"));
    pgarray_add_text(&array, span_of(""));
    ck_assert(pgarray_ok(&array));
    ck_assert_uint_eq(array.len, sizeof(texts) - 1);
    ck_assert_mem_eq(array.bytes, texts, array.len);
    pgarray_begin(&array, PGARRAY_BIGINT, 1);
    pgarray_add_bigint(&array, -2);
    ck_assert_uint_eq(array.len, sizeof(numbers) - 1);
    ck_assert_mem_eq(array.bytes, numbers, array.len);
    pgarray_done(&array);
}
END_TEST

START_TEST(leaves_out_what_the_row_holds_already)
{
    static const struct {
        const char *sealed_id, *prev_id, *head_id;
        int64_t pending;
    } cases[] = {
        {"", "", "", 11},       /* nothing was ever flushed */
        {"", "g1", "g1", 11},   /* nothing is sealed: open and no sealed score in practice */
        {"g2", "g1", "g1", 11}, /* sealed, not applied */
        {"g2", "g1", "g2", 1},  /* applied, not released */
        {"g2", "g1", "g3", 0},  /* open was sealed and applied after the peek */
        {"", "g1", "g2", 0},    {"g1", "", "g1", 1},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct peek peek = {.in_open = true, .in_sealed = true, .open = 1, .sealed = 10};
        struct stored stored = {.known = true, .value = 100};
        strcpy(peek.sealed_id, cases[i].sealed_id);
        strcpy(peek.prev_id, cases[i].prev_id);
        strcpy(stored.head_id, cases[i].head_id);
        ck_assert_int_eq(pending_of_key(&peek, &stored, MERGE_ADD).delta, cases[i].pending);
        ck_assert_int_eq(pending_of_key(&peek, &stored, MERGE_ADD).value, 100 + cases[i].pending);
    }
}
END_TEST

START_TEST(a_row_will_hold_the_greatest_or_least)
{
    struct peek peek = {.in_open = true, .open = -3};
    struct stored stored = {0};

    ck_assert_int_eq(pending_of_key(&peek, &stored, MERGE_MAX).value, -3);
    stored = (struct stored){.known = true, .value = -5};
    ck_assert_int_eq(pending_of_key(&peek, &stored, MERGE_MAX).value, -3);
    ck_assert_int_eq(pending_of_key(&peek, &stored, MERGE_MIN).value, -5);
    peek = (struct peek){.in_open = true, .open = -3, .in_sealed = true, .sealed = -9};
    ck_assert_int_eq(pending_of_key(&peek, &stored, MERGE_MAX).delta, -3);
    ck_assert_int_eq(pending_of_key(&peek, &stored, MERGE_MIN).value, -9);
    ck_assert_int_eq(pending_of_key(&(struct peek){0}, &stored, MERGE_MAX).value, -5);
}
END_TEST

START_TEST(adds_up_what_shards_hold)
{
    const struct shard_state state = {.now_ms = 1000,
                                      .open_members = 2,
                                      .sealed_members = 3,
                                      .accepted = 100,
                                      .accepted_at_seal = 90,
                                      .events = 50,
                                      .events_at_seal = 45,
                                      .opened_ms = 900,
                                      .sealed_opened_ms = 700};
    const struct shard_ledger waiting = {.released_total = 60, .released_events = 30};
    const struct shard_ledger applied = {.sealed_applied = true};
    struct pending pending = {0};

    pending_add_shard(&pending, &(struct shard_state){.now_ms = 1000}, &waiting);
    ck_assert_int_eq(pending.oldest_ms, 0);
    pending_add_shard(&pending, &state, &applied);
    ck_assert(pending.open_keys == 2 && pending.open_total == 10 && pending.sealed_keys == 0);
    ck_assert_int_eq(pending.oldest_ms, 100);
    pending_add_shard(&pending, &state, &waiting);
    ck_assert(pending.open_total == 20 && pending.sealed_keys == 3 && pending.sealed_total == 30);
    ck_assert_int_eq(pending.events, 5 + 5 + 15);
    ck_assert_int_eq(pending.oldest_ms, 300);
}
END_TEST

START_TEST(keeps_the_largest_keys)
{
    struct largest largest = {0};
    char key[KEY_LEN_MAX + 2];

    memset(key, 'k', sizeof(key));
    largest_add(&largest, (struct span){key, KEY_LEN_MAX + 1}, 99);
    largest_add(&largest, span_of(" 60"), 99);
    ck_assert_uint_eq(largest.len, 0);
    for (int i = 0; i < 3 * LARGEST_MAX; i++) {
        snprintf(key, sizeof(key), "key.%d", i);
        largest_add(&largest, span_of(key), i % 2 ? i : -i);
    }
    ck_assert_uint_eq(largest.len, LARGEST_MAX);
    for (size_t i = 0; i < LARGEST_MAX; i++)
        ck_assert_int_eq(largest.items[i].delta, 29 - 2 * (int64_t)i);
    /* A key's buckets add up, also when that makes it smaller. */
    largest_add(&largest, span_of("key.29 1700000000"), -20);
    ck_assert_uint_eq(largest.len, LARGEST_MAX);
    ck_assert_int_eq(largest.items[0].delta, 27);
    largest_add(&largest, span_of("key.27 1700000060"), 3);
    ck_assert_int_eq(largest.items[0].delta, 30);
    ck_assert_uint_eq(largest.items[0].key_len, strlen("key.27"));
}
END_TEST

START_TEST(the_worse_failure_decides_the_exit_code)
{
    ck_assert_int_eq(failure_exit_code(failure_worse(0, 0)), 0);
    ck_assert_int_eq(failure_exit_code(failure_worse(FAILURE_LATER, 0)), 75);
    ck_assert_int_eq(failure_exit_code(failure_worse(-ENOMEM, FAILURE_UNAVAILABLE)), 69);
    ck_assert_int_eq(failure_exit_code(failure_worse(FAILURE_UNAVAILABLE, FAILURE_LATER)), 69);
    ck_assert_int_eq(failure_exit_code(failure_worse(FAILURE_UNAVAILABLE, FAILURE_CONFIG)), 78);
    ck_assert_int_eq(failure_exit_code(-ENOMEM), 75);
}
END_TEST

START_TEST(a_bucket_expires_by_the_longest_retention_in_its_database)
{
    static const char text[] =
        "{\"targets\": ["
        "{\"match\": \"a.*\", \"table\": \"counterd.counters\", \"rollup\": {\"bucket\": \"1m\", "
        "\"retention\": \"3d\"}},"
        "{\"match\": \"b.*\", \"table\": \"counterd.counters\", \"rollup\": {\"bucket\": \"1h\", "
        "\"retention\": \"2d\"}},"
        "{\"match\": \"m.{x}\", \"table\": \"t\", \"value\": \"v\", \"merge\": \"max\", \"rollup\": "
        "{\"bucket\": \"1h\", \"retention\": \"1d\"}},"
        "{\"match\": \"c.*\", \"table\": \"counterd.counters\", \"database\": \"host=c\","
        " \"rollup\": {\"bucket\": \"1m\", \"retention\": \"none\"}}]}";
    const int64_t day_s = 86400, today = 20000;
    struct partitions_options options = {.now_s = today * day_s + 5};
    struct config *config;
    struct error error;

    ck_assert_int_eq(config_parse("f", (struct span){text, strlen(text)}, &config, &error), 0);
    options.config = config;
    ck_assert(!partitions_expired(&options, today * day_s));
    ck_assert(!partitions_expired(&options, (today - 3) * day_s));
    ck_assert(partitions_expired(&options, (today - 3) * day_s - 1));
    config->lane = 1;
    ck_assert_str_eq(config->lanes[1].database, "host=c");
    ck_assert(!partitions_expired(&options, day_s));
    config->lane = 2;
    ck_assert_int_eq(config->lanes[2].merge, MERGE_MAX);
    ck_assert(!partitions_expired(&options, (today - 3) * day_s));
    ck_assert(partitions_expired(&options, (today - 3) * day_s - 1));
    config_free(config);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, takes_whole_numbers_only);
    tcase_add_test(tests, takes_ranges_in_order_only);
    tcase_add_test(tests, sums_stop_at_the_end_of_the_range);
    tcase_add_test(tests, orders_keys_by_their_bytes);
    tcase_add_test(tests, cancels_what_was_begun_last_and_no_more);
    tcase_add_test(tests, keeps_many_keys);
    tcase_add_test(tests, writes_arrays_as_postgres_reads_them);
    tcase_add_test(tests, leaves_out_what_the_row_holds_already);
    tcase_add_test(tests, a_row_will_hold_the_greatest_or_least);
    tcase_add_test(tests, adds_up_what_shards_hold);
    tcase_add_test(tests, keeps_the_largest_keys);
    tcase_add_test(tests, the_worse_failure_decides_the_exit_code);
    tcase_add_test(tests, a_bucket_expires_by_the_longest_retention_in_its_database);
}

int main(void)
{
    return unit_run("flusher_parts", add_tests);
}
