#include <stdio.h>

#include "lib/decimal.h"
#include "lib/member.h"
#include "lib/table.h"
#include "tests/unit/unit.h"

#define SHARDS 7

static enum table_result add(struct table *table, const char *key, int64_t micros, uint64_t events)
{
    struct table_item item = {.key = span_of(key), .micros = micros, .events = events};

    item.hash = keyspace_hash(item.key);
    return table_add(table, &item);
}

static enum table_result carry(struct table *table, const char *key, int64_t micros)
{
    return table_carry(table, keyspace_shard(keyspace_hash(span_of(key)), SHARDS), span_of(key), micros);
}

/* Pops everything; returns the entry of `key`, with micros INT64_MIN when there is none. */
static struct table_item drain_for(struct table *table, const char *key)
{
    struct table_item item, found = {.micros = INT64_MIN};

    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        while (table_pop(table, shard, &item)) {
            ck_assert_uint_eq(keyspace_shard(member_hash_of(item.key, shard, SHARDS), SHARDS), shard);
            if (span_is(item.key, key))
                found = item;
        }
    }
    ck_assert_uint_eq(table_keys(table), 0);
    ck_assert_uint_eq(table_events(table), 0);
    return found;
}

START_TEST(adds_up_by_key)
{
    struct table *table = table_new(SHARDS, 10);

    ck_assert_int_eq(add(table, "a", 5, 1), TABLE_OK);
    ck_assert_int_eq(add(table, "b", 1, 1), TABLE_OK);
    ck_assert_int_eq(add(table, "a", -7, 2), TABLE_OK);
    ck_assert_uint_eq(table_keys(table), 2);
    ck_assert_uint_eq(table_events(table), 4);
    struct table_item item = drain_for(table, "a");
    ck_assert_int_eq(item.micros, -2);
    ck_assert_uint_eq(item.events, 3);
    table_free(table);
}
END_TEST

/* Each round adds keys in an order of its own and drains them; what comes out is what went in, once. */
START_TEST(holds_many_keys_and_fills_again)
{
    enum { KEYS = 50000 };
    struct table *table = table_new(SHARDS, KEYS);
    bool *seen = malloc(KEYS);
    struct table_item item;

    for (int round = 0; round < 3; round++) {
        size_t bytes = round > 0 ? table_bytes(table) : SIZE_MAX;
        memset(seen, 0, KEYS);
        for (int i = 0; i < 2 * KEYS; i++) {
            char key[32];
            snprintf(key, sizeof(key), "key.%d", (int)((i * 7919LL + round) % KEYS));
            ck_assert_int_eq(add(table, key, 1 + round, 1), TABLE_OK);
        }
        ck_assert_uint_eq(table_keys(table), KEYS);
        ck_assert_uint_le(table_bytes(table), bytes);
        for (uint32_t shard = 0; shard < SHARDS; shard++) {
            while (table_pop(table, shard, &item)) {
                char name[32];
                snprintf(name, sizeof(name), "%.*s", (int)item.key.len, item.key.ptr);
                int i = atoi(name + strlen("key."));
                ck_assert_int_eq(item.micros, 2 * (1 + round));
                ck_assert_uint_eq(item.events, 2);
                ck_assert(!seen[i]);
                seen[i] = true;
            }
            ck_assert(!table_has(table, shard));
        }
        for (int i = 0; i < KEYS; i++)
            ck_assert(seen[i]);
    }
    free(seen);
    table_free(table);
}
END_TEST

START_TEST(refuses_keys_beyond_the_limit_but_never_the_overflow_key)
{
    struct table *table = table_new(SHARDS, 2);

    ck_assert_int_eq(add(table, "a", 1, 1), TABLE_OK);
    ck_assert_int_eq(add(table, "b", 1, 1), TABLE_OK);
    ck_assert_int_eq(add(table, "c", 1, 1), TABLE_FULL);
    ck_assert_int_eq(add(table, "a", 1, 1), TABLE_OK);
    ck_assert_int_eq(add(table, OVERFLOW_KEY, 1, 1), TABLE_OK);
    table_set_keys_max(table, 1);
    ck_assert_int_eq(add(table, "c", 1, 1), TABLE_FULL);
    ck_assert_int_eq(add(table, OVERFLOW_KEY, 1, 1), TABLE_OK);
    ck_assert_int_eq(drain_for(table, OVERFLOW_KEY).micros, 2);
    table_set_keys_max(table, 2);
    ck_assert_int_eq(add(table, "c", 1, 1), TABLE_OK);
    ck_assert_int_eq(add(table, "d", 1, 1), TABLE_OK);
    table_set_keys_max(table, 1);
    ck_assert_int_eq(add(table, "e", 1, 1), TABLE_FULL);
    ck_assert_int_eq(add(table, OVERFLOW_KEY, 1, 1), TABLE_OK);
    table_free(table);
}
END_TEST

START_TEST(refuses_what_leaves_the_range_and_keeps_the_sum)
{
    struct table *table = table_new(SHARDS, 10);

    ck_assert_int_eq(add(table, "a", MICROS_MAX, 1), TABLE_OK);
    ck_assert_int_eq(add(table, "a", 1, 1), TABLE_RANGE);
    ck_assert_int_eq(add(table, "a", MICROS_MAX, 1), TABLE_RANGE);
    ck_assert_int_eq(add(table, "a", -1, 1), TABLE_OK);
    ck_assert_int_eq(add(table, "a", 1, 1), TABLE_OK);
    ck_assert_int_eq(add(table, "b", -MICROS_MAX, 1), TABLE_OK);
    ck_assert_int_eq(add(table, "b", -MICROS_MAX, 1), TABLE_RANGE);
    table_free(table);
}
END_TEST

START_TEST(keeps_the_greatest_and_the_least_in_shards_that_do_so)
{
    static const enum merge merges[] = {MERGE_ADD, MERGE_MAX, MERGE_MIN};
    static const int64_t values[] = {-7, MICROS_MAX, -MICROS_MAX, 3};
    static const int64_t expected[] = {-4, MICROS_MAX, -MICROS_MAX};
    struct table *table = table_new(3, 10), *copy = table_new(3, 10);
    struct table_item item;

    table_set_merges(copy, merges, 3);
    table_copy_merges(table, copy);
    for (uint32_t shard = 0; shard < 3; shard++) {
        struct span key = {&"abc"[shard], 1};
        uint64_t hash = shard_hash(keyspace_hash(key), shard, 3);
        ck_assert_int_eq(table_merge(table, hash), merges[shard]);
        for (size_t i = 0; i < ARRAY_LEN(values); i++) {
            item = (struct table_item){.key = key, .hash = hash, .micros = values[i], .events = 1};
            ck_assert_int_eq(table_add(table, &item), TABLE_OK);
        }
    }
    for (uint32_t shard = 0; shard < 3; shard++) {
        ck_assert(table_pop(table, shard, &item));
        ck_assert_int_eq(item.micros, expected[shard]);
        ck_assert_uint_eq(item.events, ARRAY_LEN(values));
    }
    table_free(table);
    table_free(copy);
}
END_TEST

START_TEST(carries_fractions_even_out_of_the_range_and_tells_them_apart)
{
    struct table *table = table_new(SHARDS, 10);
    struct table_item item;

    ck_assert_int_eq(carry(table, "a", 300000), TABLE_OK);
    ck_assert_int_eq(add(table, "a", 500000, 2), TABLE_OK);
    ck_assert_int_eq(add(table, "b", -MICROS_MAX, 1), TABLE_OK);
    ck_assert_int_eq(carry(table, "b", -999999), TABLE_OK);
    for (int i = 0; i < 100; i++)
        ck_assert_int_eq(carry(table, OVERFLOW_KEY, 999999), TABLE_OK);
    ck_assert_uint_eq(table_events(table), 3);
    for (uint32_t shard = 0; shard < SHARDS; shard++) {
        while (table_pop(table, shard, &item)) {
            if (span_is(item.key, "a")) {
                ck_assert_int_eq(item.micros, 800000);
                ck_assert_int_eq(item.carried, 300000);
            } else if (span_is(item.key, "b")) {
                ck_assert_int_eq(item.micros, -MICROS_MAX - 999999);
                ck_assert_int_eq(item.carried, -999999);
            } else {
                ck_assert_int_eq(item.micros, 99999900);
            }
        }
    }
    table_free(table);
}
END_TEST

START_TEST(many_buckets_of_a_key_stand_in_its_shard_and_not_in_each_others_way)
{
    enum { BUCKETS = 200000 };
    struct table *table = table_new(SHARDS, BUCKETS);
    uint64_t key_hash = keyspace_hash(span_of("page"));
    uint32_t shard = keyspace_shard(key_hash, SHARDS);
    char member[MEMBER_LEN_MAX];
    struct table_item item = {.micros = 1, .events = 1}, popped;

    /* Were they in one place, it would take hours. */
    for (int64_t i = 1; i <= BUCKETS; i++) {
        item.key = (struct span){member, member_write(span_of("page"), i * 60, member)};
        item.hash = member_hash(key_hash, i * 60, SHARDS);
        ck_assert_int_eq(table_add(table, &item), TABLE_OK);
    }
    for (int i = 0; i < BUCKETS; i++)
        ck_assert(table_pop(table, shard, &popped));
    ck_assert_uint_eq(table_keys(table), 0);
    table_free(table);
}
END_TEST

START_TEST(carries_what_many_workers_have_left)
{
    struct table *table = table_new(SHARDS, 10);
    struct table_item item;

    for (int i = 0; i < 100; i++) {
        ck_assert_int_eq(carry(table, "up", 900000), TABLE_OK);
        ck_assert_int_eq(carry(table, "down", -900000), TABLE_OK);
    }
    /* Nobody added to them before they had to be put away once more. */
    ck_assert_int_eq(carry(table, "up", 90000000), TABLE_OK);
    ck_assert_int_eq(add(table, "up", 7, 1), TABLE_OK);
    ck_assert_int_eq(add(table, "down", 7, 1), TABLE_OK);
    item = drain_for(table, "up");
    ck_assert_int_eq(item.micros - item.carried, 7);
    ck_assert_int_eq(item.micros, 180000007);
    ck_assert_int_eq(carry(table, "down", -90000000), TABLE_OK);
    ck_assert_int_eq(add(table, "down", 7, 1), TABLE_OK);
    item = drain_for(table, "down");
    ck_assert_int_eq(item.micros, -89999993);
    ck_assert_int_eq(item.carried, -90000000);
    table_free(table);
}
END_TEST

/* The hash alone tells no key from another, wherever it is that they differ. */
START_TEST(tells_keys_of_one_hash_apart)
{
    enum { LEN = 41 };
    struct table *table = table_new(SHARDS, LEN * LEN);
    char keys[LEN + 1][LEN];
    struct table_item items[LEN + 1], item;

    for (size_t len = 1; len <= LEN; len++) {
        enum table_result result;
        for (size_t i = 0; i <= len; i++) {
            memset(keys[i], 'a', LEN);
            if (i < len)
                keys[i][i] = 'b';
            items[i] = (struct table_item){.key = {keys[i], len}, .hash = 7, .micros = 1, .events = 2};
        }
        ck_assert_uint_eq(table_add_all(table, items, len + 1, &result), len + 1);
        ck_assert_uint_eq(table_keys(table), len + 1);
        ck_assert_uint_eq(table_events(table), 2 * (len + 1));
        while (table_pop(table, keyspace_shard(7, SHARDS), &item))
            ck_assert_int_eq(item.micros, 1);
    }
    table_free(table);
}
END_TEST

START_TEST(takes_members_of_any_length)
{
    struct table *table = table_new(SHARDS, 1000);
    char key[MEMBER_LEN_MAX + 1] = {0};

    for (size_t len = 1; len <= MEMBER_LEN_MAX; len++) {
        key[len - 1] = (char)('a' + len % 26);
        ck_assert_int_eq(add(table, key, (int64_t)len, 1), TABLE_OK);
    }
    ck_assert_int_eq(drain_for(table, key).micros, MEMBER_LEN_MAX);
    table_free(table);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, adds_up_by_key);
    tcase_add_test(tests, holds_many_keys_and_fills_again);
    tcase_add_test(tests, refuses_keys_beyond_the_limit_but_never_the_overflow_key);
    tcase_add_test(tests, refuses_what_leaves_the_range_and_keeps_the_sum);
    tcase_add_test(tests, keeps_the_greatest_and_the_least_in_shards_that_do_so);
    tcase_add_test(tests, carries_fractions_even_out_of_the_range_and_tells_them_apart);
    tcase_add_test(tests, many_buckets_of_a_key_stand_in_its_shard_and_not_in_each_others_way);
    tcase_add_test(tests, carries_what_many_workers_have_left);
    tcase_add_test(tests, tells_keys_of_one_hash_apart);
    tcase_add_test(tests, takes_members_of_any_length);
}

int main(void)
{
    return unit_run("table", add_tests);
}
