/* Targets in several databases: which lanes they make, and that a key's way leads into the one of its target.
 */
#include <stdio.h>

#include "counterd/fanout.h"
#include "counterd/ingest.h"
#include "lib/config.h"
#include "lib/targets.h"
#include "tests/unit/configs.h"
#include "tests/unit/unit.h"

#define SHOP "{\"match\": \"shop.*\", \"table\": \"counterd.counters\", \"database\": \"service=shop\"}"
#define BLOG                                                                                                 \
    "{\"match\": \"blog.*\", \"table\": \"counterd.counters\", \"database\": \"service=blog\", \"rollup\": " \
    "{\"bucket\": \"1m\"}}"
#define REST "{\"match\": \"*\", \"table\": \"counterd.counters\"}"

#define SHARDS 8

static struct config *three_lanes(void)
{
    return must_parse("{\"shards\": 8, \"targets\": [" SHOP "," BLOG "," REST "],"
                      "\"fanout\": [{\"match\": \"blog.{x}\", \"also\": [\"shop.all\", \"all\"]}]}");
}

/* The lane in which the key counts; also checks what else there is to know of it. */
static uint32_t lane_of(const struct config *config, const char *key)
{
    uint64_t hash = keyspace_hash(span_of(key));
    uint32_t lane = targets_route(config->targets, span_of(key)).lane;
    uint32_t shard = targets_shard(config->targets, lane, hash, config_shards(config));

    ck_assert_str_eq(config_shard_namespace(config, shard), config->lanes[lane].namespace);
    ck_assert_uint_eq(config_shard_number(config, shard), keyspace_shard(hash, (uint32_t)config->shards));
    ck_assert_uint_eq(
        targets_hash(config->targets, lane, hash, config_shards(config)) % config_shards(config), shard);
    return lane;
}

START_TEST(without_databases_there_is_one)
{
    struct config *config = must_parse("{}");

    ck_assert_uint_eq(config->lanes_len, 1);
    ck_assert_str_eq(config->lanes[0].namespace, "counterd");
    ck_assert_str_eq(config->lanes[0].database, "");
    ck_assert_uint_eq(config_shards(config), 64);
    ck_assert_uint_eq(config_lanes_id(config), 0);
    ck_assert(!targets_routes(config->targets));
    for (uint64_t hash = 0; hash < 1000; hash++)
        ck_assert_uint_eq(targets_hash(config->targets, 0, UINT64_MAX - hash, 64), UINT64_MAX - hash);
    config_free(config);
}
END_TEST

START_TEST(each_database_makes_one_and_the_first_is_always_there)
{
    struct config *config = three_lanes(), own;

    ck_assert_uint_eq(config->lanes_len, 3);
    ck_assert_uint_eq(config_shards(config), 24);
    ck_assert_uint_eq(lane_of(config, "other"), 0);
    ck_assert_uint_eq(lane_of(config, OVERFLOW_KEY), 0);
    ck_assert_uint_ne(lane_of(config, "shop.a"), 0);
    ck_assert_uint_ne(lane_of(config, "blog.a"), 0);
    ck_assert_uint_ne(lane_of(config, "blog.a"), lane_of(config, "shop.a"));
    for (size_t i = 1; i < 3; i++) {
        ck_assert_uint_eq(strlen(config->lanes[i].namespace), strlen("counterd@12345678"));
        ck_assert_int_eq(strncmp(config->lanes[i].namespace, "counterd@", 9), 0);
    }
    config_of_lane(config, lane_of(config, "shop.a"), &own);
    ck_assert_str_eq(own.postgres.url, "service=shop");
    ck_assert_str_eq(own.namespace, config->lanes[own.lane].namespace);
    ck_assert_ptr_nonnull(targets_find_in(own.targets, own.lane, span_of("shop.a")));
    ck_assert_ptr_null(targets_find_in(own.targets, own.lane, span_of("other")));
    config_free(config);
    config = must_parse("{\"targets\": [" SHOP "]}");
    ck_assert_uint_eq(config->lanes_len, 2);
    ck_assert_uint_eq(lane_of(config, "of.no.target"), 0);
    config_free(config);
    config = must_parse("{\"postgres\": {\"url\": \"service=shop\"}, \"targets\": [" SHOP "," REST "]}");
    ck_assert_uint_eq(config->lanes_len, 1);
    config_free(config);
}
END_TEST

START_TEST(the_order_of_targets_does_not_matter)
{
    struct config *one = three_lanes(), *other = must_parse("{\"targets\": [" BLOG "," SHOP "," REST "]}");
    struct config *fewer = must_parse("{\"targets\": [" BLOG "," REST "]}");
    char names[64];

    ck_assert(config_lanes_equal(one, other));
    ck_assert_uint_eq(config_lanes_id(one), config_lanes_id(other));
    ck_assert_uint_eq(lane_of(one, "shop.a"), lane_of(other, "shop.a"));
    ck_assert(!config_lanes_equal(one, fewer));
    ck_assert_uint_ne(config_lanes_id(one), config_lanes_id(fewer));
    ck_assert_uint_ne(config_lanes_id(fewer), 0);
    ck_assert(config_needs_restart(other, fewer, names, sizeof(names)));
    ck_assert_str_eq(names, "targets fanout");
    config_free(one);
    config_free(other);
    config_free(fewer);
}
END_TEST

#define PEAKS "{\"match\": \"%s.{q}\", \"table\": \"t\", \"value\": \"v\", \"merge\": \"%s\"%s}"

START_TEST(each_merge_makes_one_of_each_database)
{
    static const char *const names[] = {"counterd", "counterd@", "counterd@", "counterd@max", "counterd@min"};
    char text[1024];
    struct config *config, own;
    uint32_t lane;

    snprintf(text, sizeof(text), "{\"targets\": [" PEAKS "," PEAKS "," PEAKS "," PEAKS "," SHOP "," REST "]}",
             "a", "max", "", "b", "min", "", "c", "max", ",\"database\": \"service=shop\"", "d", "max", "");
    config = must_parse(text);
    ck_assert_uint_eq(config->lanes_len, ARRAY_LEN(names));
    for (size_t i = 0; i < ARRAY_LEN(names); i++)
        ck_assert_int_eq(strncmp(config->lanes[i].namespace, names[i], strlen(names[i])), 0);
    ck_assert_uint_eq(lane_of(config, "a.x"), lane_of(config, "d.x"));
    ck_assert_uint_eq(lane_of(config, "other"), 0);
    lane = lane_of(config, "c.x");
    ck_assert_uint_ne(lane, lane_of(config, "shop.a"));
    ck_assert_int_eq(strncmp(config->lanes[lane].namespace,
                             config->lanes[lane_of(config, "shop.a")].namespace, strlen("counterd@12345678")),
                     0);
    ck_assert_str_eq(config->lanes[lane].namespace + strlen("counterd@12345678"), ".max");
    ck_assert_int_eq(targets_route(config->targets, span_of("c.x")).merge, MERGE_MAX);
    ck_assert_int_eq(targets_route(config->targets, span_of("b.x")).merge, MERGE_MIN);
    ck_assert_int_eq(targets_route(config->targets, span_of("shop.a")).merge, MERGE_ADD);
    config_of_lane(config, lane, &own);
    ck_assert_str_eq(own.postgres.url, "service=shop");
    config_of_lane(config, lane_of(config, "b.x"), &own);
    ck_assert_str_eq(own.namespace, "counterd@min");
    ck_assert_str_eq(own.postgres.url, config->postgres.url);
    config_free(config);
}
END_TEST

START_TEST(another_merge_is_another_lane)
{
    char text[256];
    struct config *max, *min;

    snprintf(text, sizeof(text), "{\"targets\": [" PEAKS "]}", "a", "max", "");
    max = must_parse(text);
    snprintf(text, sizeof(text), "{\"targets\": [" PEAKS "]}", "a", "min", "");
    min = must_parse(text);
    ck_assert(config_lanes_equal(max, max));
    ck_assert(!config_lanes_equal(max, min));
    config_free(max);
    config_free(min);
}
END_TEST

static void must_not_parse(const char *text, const char *complaint)
{
    struct config *config;
    struct error error;

    ck_assert_msg(config_parse("f", span_of(text), &config, &error) < 0, "%s", text);
    ck_assert_msg(strstr(error.text, complaint), "%s: %s", text, error.text);
}

START_TEST(what_can_not_be_is_refused)
{
    char text[4096];
    int len = snprintf(text, sizeof(text), "{\"targets\": [");

    must_not_parse("{\"shards\": 512, \"targets\": [" SHOP "," BLOG "]}",
                   "makes 1536 shards; 1024 are the most");
    config_free(must_parse("{\"shards\": 512, \"targets\": [" SHOP "]}"));
    must_not_parse("{\"namespace\": \"a2345678901234567890123456789012345678901234567890123456\","
                   "\"targets\": [" SHOP "]}",
                   "'namespace' has 56 bytes");
    must_not_parse("{\"namespace\": \"a@12345678\"}", "it takes letters");
    must_not_parse(
        "{\"targets\": [{\"match\": \"*\", \"table\": \"counterd.counters\", \"merge\": \"max\"}]}",
        "'targets[0].merge' is 'max'; counterd.counters holds sums");
    for (int i = 0; i < LANES_MAX; i++)
        len += snprintf(
            text + len, sizeof(text) - (size_t)len,
            "{\"match\": \"%d.*\", \"table\": \"counterd.counters\", \"database\": \"host=h%d\"},", i, i);
    snprintf(text + len, sizeof(text) - (size_t)len, REST "]}");
    must_not_parse(text, "'targets[15]': there may be 15 lanes");
}
END_TEST

START_TEST(a_hash_is_moved_into_any_shard)
{
    static const uint32_t shards[] = {1, 2, 24, 1000, SHARDS_MAX};
    static const uint64_t hashes[] = {0, 1, 1023, UINT64_MAX, UINT64_MAX - 1023, UINT64_C(1) << 63};

    for (size_t i = 0; i < ARRAY_LEN(shards); i++) {
        for (size_t j = 0; j < ARRAY_LEN(hashes); j++) {
            for (uint32_t shard = 0; shard < shards[i]; shard++) {
                uint64_t hash = shard_hash(hashes[j], shard, shards[i]);
                ck_assert_uint_eq(keyspace_shard(hash, shards[i]), shard);
                ck_assert_uint_eq(keyspace_shard(member_hash(hash, 1800000000, shards[i]), shards[i]), shard);
            }
            ck_assert_uint_eq(shard_hash(hashes[j], keyspace_shard(hashes[j], shards[i]), shards[i]),
                              hashes[j]);
        }
    }
}
END_TEST

static uint64_t events_in_lane(struct table *table, uint32_t lane)
{
    struct table_item item;
    uint64_t events = 0;

    for (uint32_t shard = lane * SHARDS; shard < (lane + 1) * SHARDS; shard++)
        while (table_pop(table, shard, &item))
            events += item.events;
    return events;
}

static void feed(struct table *table, const struct config *config, const char *lines)
{
    struct stats stats;
    struct ingest *ingest;

    stats_init(&stats);
    ingest = ingest_new(&stats);
    ingest_set_table(ingest, table, config->targets);
    ingest_lines(ingest, span_of(lines), false);
    ingest_free(ingest);
    stats_done(&stats);
}

START_TEST(the_overflow_key_is_in_the_first_lane_whoever_takes_it)
{
    struct config *config = must_parse("{\"targets\": [{\"match\": \"*\", \"table\": "
                                       "\"counterd.counters\", \"database\": \"service=shop\"}]}");

    ck_assert_uint_eq(targets_route(config->targets, span_of("a")).lane, 1);
    ck_assert_uint_eq(targets_route(config->targets, span_of(OVERFLOW_KEY)).lane, 0);
    config_free(config);
}
END_TEST

START_TEST(lines_and_what_they_are_fanned_out_to_go_to_the_lanes_of_their_keys)
{
    struct config *config = three_lanes();
    uint32_t shop = lane_of(config, "shop.a"), blog = lane_of(config, "blog.a");
    struct table *table = table_new(3 * SHARDS, 100), *made = table_new(3 * SHARDS, 100);
    struct fanout_losses losses = {0};
    struct table_item item;

    feed(table, config,
         "shop.a:1|c\nblog.a:1|c|#x:1\nother:1|c\nshop.b:1|c\nblog.b:1|c|T1700000000\nblog.b:1|c");
    for (uint32_t shard = blog * SHARDS; shard < (blog + 1) * SHARDS; shard++)
        while (table_pop(table, shard, &item))
            fan_out(config->targets, &item, made, &losses);
    ck_assert_uint_eq(events_in_lane(table, 0), 1);
    ck_assert_uint_eq(events_in_lane(table, shop), 2);
    ck_assert_uint_eq(events_in_lane(made, shop), events_in_lane(made, 0));
    ck_assert_uint_eq(table_keys(table) + table_keys(made) + losses.left_out + losses.overflow, 0);
    table_free(table);
    table_free(made);
    config_free(config);
}
END_TEST

START_TEST(a_full_table_counts_in_the_first_lane_and_fractions_stay_in_theirs)
{
    struct config *config = three_lanes();
    uint32_t shop = lane_of(config, "shop.a");
    struct table *table = table_new(3 * SHARDS, 1);
    struct table_item item;
    struct span key = span_of("shop.a");
    uint32_t shard = targets_shard(config->targets, shop, keyspace_hash(key), 3 * SHARDS);

    feed(table, config, "shop.a:1|c\nshop.b:1|c\nblog.a:1|c\ncounterd.overflow:1|c\nother:1|c");
    ck_assert_int_eq(table_carry(table, shard, key, 500000), TABLE_OK);
    ck_assert(table_pop(table, shard, &item));
    ck_assert_int_eq(item.micros, 1500000);
    ck_assert_uint_eq(table_keys(table), 1);
    ck_assert_uint_eq(events_in_lane(table, 0), 4);
    table_free(table);
    config_free(config);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, without_databases_there_is_one);
    tcase_add_test(tests, each_database_makes_one_and_the_first_is_always_there);
    tcase_add_test(tests, each_merge_makes_one_of_each_database);
    tcase_add_test(tests, another_merge_is_another_lane);
    tcase_add_test(tests, the_order_of_targets_does_not_matter);
    tcase_add_test(tests, what_can_not_be_is_refused);
    tcase_add_test(tests, a_hash_is_moved_into_any_shard);
    tcase_add_test(tests, the_overflow_key_is_in_the_first_lane_whoever_takes_it);
    tcase_add_test(tests, lines_and_what_they_are_fanned_out_to_go_to_the_lanes_of_their_keys);
    tcase_add_test(tests, a_full_table_counts_in_the_first_lane_and_fractions_stay_in_theirs);
}

int main(void)
{
    return unit_run("lanes", add_tests);
}
