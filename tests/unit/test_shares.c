#include <stdio.h>

#include "flusher/apply.h"
#include "lib/config.h"
#include "tests/unit/unit.h"

static const char targets_text[] =
    "{\"targets\": ["
    "{\"match\": \"post.{id}\", \"table\": \"posts\", \"value\": \"n\"},"
    "{\"match\": \"api.{customer}.calls\", \"table\": \"usage\", \"value\": \"n\","
    " \"rollup\": {\"table\": \"hourly\", \"bucket\": \"1h\"}},"
    "{\"match\": \"page.*\", \"table\": \"counterd.counters\"}]}";

struct world {
    struct config *config;
    struct updates updates;
    struct shares shares;
};

static void world_init(struct world *world, const char *const *members, size_t len)
{
    struct error error;

    *world = (struct world){0};
    if (config_parse("f", span_of(targets_text), &world->config, &error) < 0)
        ck_abort_msg("%s", error.text);
    for (size_t i = 0; i < len; i++)
        ck_assert_int_eq(updates_add(&world->updates, span_of(members[i]), (int64_t)1 << i), 0);
    updates_order(&world->updates);
    ck_assert_int_eq(shares_deal(&world->shares, &world->updates, world->config->targets, 0), 0);
}

static void world_done(struct world *world)
{
    shares_done(&world->shares);
    updates_done(&world->updates);
    config_free(world->config);
}

/* "target key sum" of each share, a line each. */
static const char *spell(const struct world *world, char buf[1024])
{
    size_t len = 0;

    buf[0] = '\0';
    for (size_t i = 0; i < world->shares.len; i++) {
        const struct share *share = &world->shares.items[i];
        struct span key = share_key(share, &world->updates);
        int64_t delta;
        ck_assert(share_delta(share, &world->updates, MERGE_ADD, &delta));
        len += (size_t)snprintf(buf + len, 1024 - len, "%u %.*s %lld\n", share->target, (int)key.len, key.ptr,
                                (long long)delta);
    }
    return buf;
}

START_TEST(a_key_with_all_its_buckets_is_one_share)
{
    static const char *const members[] = {
        "page.b", "api.a.calls 3600", "api.ab.calls 3600", "api.a.calls",       "api.a.calls 7200",
        "post.7", "nobody",           "post.07",           "api.a.calls! 3600", "page.a"};
    struct world world;
    char buf[1024];

    world_init(&world, members, ARRAY_LEN(members));
    ck_assert_str_eq(spell(&world, buf), "0 post.07 128\n"
                                         "0 post.7 32\n"
                                         "1 api.a.calls 26\n"
                                         "1 api.ab.calls 4\n"
                                         "2 page.a 512\n"
                                         "2 page.b 1\n"
                                         "3 api.a.calls! 256\n"
                                         "3 nobody 64\n");
    world_done(&world);
}
END_TEST

START_TEST(dealing_again_forgets_what_was)
{
    static const char *const members[] = {"post.1", "post.2", "x"};
    struct world world;
    char buf[1024];

    world_init(&world, members, ARRAY_LEN(members));
    updates_clear(&world.updates);
    ck_assert_int_eq(shares_deal(&world.shares, &world.updates, world.config->targets, 0), 0);
    ck_assert_str_eq(spell(&world, buf), "");
    ck_assert_int_eq(updates_add(&world.updates, span_of("page.1"), 5), 0);
    ck_assert_int_eq(shares_deal(&world.shares, &world.updates, world.config->targets, 0), 0);
    ck_assert_str_eq(spell(&world, buf), "2 page.1 5\n");
    world_done(&world);
}
END_TEST

START_TEST(a_sum_beyond_the_range_is_told)
{
    struct world world;
    int64_t delta;

    world_init(&world, NULL, 0);
    ck_assert_int_eq(updates_add(&world.updates, span_of("api.a.calls 3600"), INT64_MAX), 0);
    ck_assert_int_eq(updates_add(&world.updates, span_of("api.a.calls 7200"), 1), 0);
    ck_assert_int_eq(shares_deal(&world.shares, &world.updates, world.config->targets, 0), 0);
    ck_assert_uint_eq(world.shares.len, 1);
    ck_assert(!share_delta(&world.shares.items[0], &world.updates, MERGE_ADD, &delta));
    ck_assert(share_delta(&world.shares.items[0], &world.updates, MERGE_MAX, &delta));
    ck_assert_int_eq(delta, INT64_MAX);
    ck_assert(share_delta(&world.shares.items[0], &world.updates, MERGE_MIN, &delta));
    ck_assert_int_eq(delta, 1);
    world_done(&world);
}
END_TEST

START_TEST(buckets_begin_where_utc_says)
{
    ck_assert_int_eq(bucket_of(7199, 3600), 3600);
    ck_assert_int_eq(bucket_of(7200, 3600), 7200);
    ck_assert_int_eq(bucket_of(0, 60), 0);
    ck_assert_int_eq(bucket_of(-1, 60), -60);
    ck_assert_int_eq(bucket_seen_ms(0, 3600, 5000), 5000);
    ck_assert_int_eq(bucket_seen_ms(3600, 3600, 10000000), 7200000);
    ck_assert_int_eq(bucket_seen_ms(3600, 3600, 5000000), 5000000);
    ck_assert_int_eq(bucket_seen_ms(INT64_MAX, 3600, 5000), 5000);
}
END_TEST

START_TEST(integers_are_plain_decimals)
{
    static const struct {
        const char *text;
        enum fit fit;
    } cases[] = {
        {"0", FIT_GOOD},
        {"007", FIT_GOOD},
        {"-32768", FIT_GOOD},
        {"32767", FIT_GOOD},
        {"32768", FIT_RANGE},
        {"-32769", FIT_RANGE},
        {"-", FIT_TYPE},
        {"+1", FIT_TYPE},
        {"1.5", FIT_TYPE},
        {"0x1f", FIT_TYPE},
        {"1_000", FIT_TYPE},
        {"1e3", FIT_TYPE},
        {"99999999999999999999", FIT_RANGE},
        {"--1", FIT_TYPE},
        {"abc", FIT_TYPE},
    };
    struct layout layout = {
        .key = {{.is_integer = false}, {.is_integer = true, .min = INT16_MIN, .max = INT16_MAX}},
        .key_len = 2};

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct span values[] = {span_of("text"), span_of(cases[i].text)};
        ck_assert_msg(plan_fit(&layout, values) == cases[i].fit, "'%s'", cases[i].text);
    }
}
END_TEST

START_TEST(statements_hold_names_as_they_were_quoted)
{
    char table[] = "app.\"My \"\"T\"\"\"", value[] = "\"n; --\"", bucket[] = "bucket";
    char names[2][8] = {"a", "\"B\""}, types[2][16] = {"pg_catalog.int4", "x.y"};
    char equals[2][16] = {"=", "OPERATOR(x.=)"};
    struct layout layout = {.table = table,
                            .key = {{.name = names[0], .type = types[0], .equals = equals[0]},
                                    {.name = names[1], .type = types[1], .equals = equals[1]}},
                            .key_len = 2,
                            .value = value,
                            .time_use = TIME_BUCKET,
                            .time = bucket};
    char *update = statement_update(&layout), *upsert = statement_upsert(&layout);

    ck_assert_ptr_nonnull(
        strstr(update, "UPDATE app.\"My \"\"T\"\"\" AS t SET \"n; --\" = COALESCE(t.\"n; --\", 0) + "
                       "u.delta FROM u WHERE t.a = u.k1 AND t.\"B\" OPERATOR(x.=) u.k2"));
    ck_assert_ptr_nonnull(
        strstr(upsert, "CAST(i.k1 AS pg_catalog.int4) AS k1, CAST(i.k2 AS x.y) AS k2, i.at"));
    ck_assert_ptr_nonnull(strstr(upsert, "ON CONFLICT (a, \"B\", bucket) DO UPDATE"));
    ck_assert_ptr_nonnull(strstr(upsert, "GROUP BY 1, 2, 3 ORDER BY 1, 2, 3"));
    free(update);
    free(upsert);
    layout.time_use = TIME_TOUCH;
    update = statement_update(&layout);
    ck_assert_ptr_nonnull(strstr(update, "max(i.at) AS at"));
    ck_assert_ptr_nonnull(strstr(update, "bucket = GREATEST(t.bucket, u.at)"));
    free(update);
    layout.time_use = TIME_BUCKET;
    layout.merge = MERGE_MAX;
    update = statement_update(&layout);
    layout.merge = MERGE_MIN;
    upsert = statement_upsert(&layout);
    ck_assert_ptr_nonnull(strstr(update, "CAST(max(i.delta) AS bigint)"));
    ck_assert_ptr_nonnull(strstr(update, "SET \"n; --\" = GREATEST(t.\"n; --\", u.delta) FROM u"));
    ck_assert_ptr_nonnull(strstr(upsert, "CAST(min(i.delta) AS bigint)"));
    ck_assert_ptr_nonnull(strstr(upsert, "SET \"n; --\" = LEAST(t.\"n; --\", EXCLUDED.\"n; --\")"));
    free(update);
    free(upsert);
}
END_TEST

START_TEST(reasons_have_names_both_ways)
{
    enum reason reason;

    for (int i = REASON_NO_TARGET; i <= REASON_REFUSED; i++) {
        ck_assert(reason_parse(reason_name((enum reason)i), &reason));
        ck_assert_int_eq(reason, i);
    }
    ck_assert(!reason_parse("", &reason));
    ck_assert(!reason_parse("missing ", &reason));
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, a_key_with_all_its_buckets_is_one_share);
    tcase_add_test(tests, dealing_again_forgets_what_was);
    tcase_add_test(tests, a_sum_beyond_the_range_is_told);
    tcase_add_test(tests, buckets_begin_where_utc_says);
    tcase_add_test(tests, integers_are_plain_decimals);
    tcase_add_test(tests, statements_hold_names_as_they_were_quoted);
    tcase_add_test(tests, reasons_have_names_both_ways);
}

int main(void)
{
    return unit_run("shares", add_tests);
}
