#include <stdio.h>

#include "counterd/fanout.h"
#include "counterd/ingest.h"
#include "lib/config.h"
#include "tests/unit/unit.h"

static struct stats stats;
static struct ingest *ingest;
static struct table *table;

static void set_up(void)
{
    stats_init(&stats);
    ingest = ingest_new(&stats);
    table = table_new(1, 3);
    ingest_set_table(ingest, table, NULL);
}

static void tear_down(void)
{
    ingest_free(ingest);
    table_free(table);
    stats_done(&stats);
}

static void feed(const char *text, bool cut)
{
    ingest_lines(ingest, span_of(text), cut);
    ingest_publish(ingest);
}

static int64_t sum_of(const char *key)
{
    struct table_item item;
    int64_t sum = 0;

    while (table_pop(table, 0, &item))
        if (span_is(item.key, key))
            sum = item.micros;
    return sum;
}

START_TEST(counts_every_line_once)
{
    feed("a:1|c\r\n\n\r\nb:2|g\na:1|c|c:x\n:1|c\n\xff:1|c\na:2|c", false);
    ck_assert_uint_eq(counter_get(&stats.lines), 6);
    ck_assert_uint_eq(counter_get(&stats.accepted), 3);
    ck_assert_uint_eq(counter_get(&stats.rejected[REJECT_TYPE]), 1);
    ck_assert_uint_eq(counter_get(&stats.rejected[REJECT_KEY]), 1);
    ck_assert_uint_eq(counter_get(&stats.rejected[REJECT_UTF8]), 1);
    ck_assert_uint_eq(counter_get(&stats.fields_ignored), 1);
    ck_assert_int_eq(sum_of("a"), 4 * MICROS_PER_UNIT);
}
END_TEST

START_TEST(the_last_line_of_a_cut_datagram_is_truncated)
{
    feed("a:1|c\na:1|c", true);
    ck_assert_uint_eq(counter_get(&stats.accepted), 1);
    ck_assert_uint_eq(counter_get(&stats.rejected[REJECT_TRUNCATED]), 1);
    /* Cut right behind an LF, it took a whole line at the least. */
    feed("a:1|c\n", true);
    ck_assert_uint_eq(counter_get(&stats.accepted), 2);
    ck_assert_uint_eq(counter_get(&stats.rejected[REJECT_TRUNCATED]), 2);
    ck_assert_uint_eq(counter_get(&stats.lines), 4);
}
END_TEST

START_TEST(new_keys_beyond_the_limit_count_as_overflow)
{
    feed("a:1|c\nb:1|c\nc:1|c\nd:4|c\ne:5|c\na:1|c\n", false);
    ck_assert_uint_eq(counter_get(&stats.accepted), 6);
    ck_assert_uint_eq(counter_get(&stats.overflow), 2);
    ck_assert_int_eq(sum_of(OVERFLOW_KEY), 9 * MICROS_PER_UNIT);
}
END_TEST

START_TEST(what_would_leave_the_range_is_rejected)
{
    feed("a:9000000000000|c\na:1|c\na:-1|c\n", false);
    ck_assert_uint_eq(counter_get(&stats.rejected[REJECT_RANGE]), 1);
    ck_assert_int_eq(sum_of("a"), MICROS_MAX - MICROS_PER_UNIT);
}
END_TEST

START_TEST(keeps_a_few_samples_of_what_it_rejects)
{
    struct sample samples[SAMPLES_MAX];
    size_t len;

    for (int i = 0; i < 100; i++)
        feed("one\ntwo\nthree\n", false);
    len = samples_copy(&stats.samples, samples);
    ck_assert_uint_eq(len, SAMPLES_MAX);
    ck_assert_int_eq(samples[0].reject, REJECT_SYNTAX);
    ck_assert(span_is((struct span){samples[0].bytes, samples[0].len}, "two"));
    ck_assert_uint_eq(counter_get(&stats.rejected[REJECT_SYNTAX]), 300);
}
END_TEST

#define HOUR INT64_C(3600)
#define NOW  (INT64_C(1656581400) + 17) /* 09:30:17 */

static int64_t now_ms(void)
{
    return NOW * 1000;
}

/* What a table has of a member; INT64_MIN when it has none. Takes everything out of the table. */
static int64_t units_of(struct table *from, const char *key, int64_t bucket)
{
    char member[MEMBER_LEN_MAX];
    struct span wanted = {member, member_write(span_of(key), bucket, member)};
    struct table_item item;
    int64_t units = INT64_MIN;

    while (table_pop(from, 0, &item))
        if (span_equal(item.key, wanted))
            units = item.micros / MICROS_PER_UNIT;
    return units;
}

START_TEST(counts_in_the_bucket_of_the_moment_or_of_the_lines_time)
{
    static const struct {
        const char *lines, *key;
        int64_t bucket, units;
        unsigned out_of_range;
    } cases[] = {
        {"h.a:1|c\nh.a:2|c", "h.a", NOW - NOW % HOUR, 3, 0},
        {"m.a:1|c", "m.a", NOW - 17, 1, 0},
        {"other:1|c", "other", 0, 1, 0},
        {"other:1|c|T99", "other", 0, 1, 0},
        {"INCR h.a 4", "h.a", NOW - NOW % HOUR, 4, 0},
        {"h.a:1|c|T7200\nh.a:1|c|T10799\nh.a:8|c|T10800", "h.a", 7200, 2, 0},
        {"h.a:1|c|T3599", "h.a", 0, INT64_MIN, 1},
        {"h.a:1|c|T1656667817", "h.a", 1656666000, 1, 0},
        {"h.a:1|c|T1656667818", "h.a", 1656666000, INT64_MIN, 1},
        {"h.a:1|c|#y:2,x:1", "h.a;x=1;y=2", NOW - NOW % HOUR, 1, 0},
        {"h.a:1|c|#y:2|T7201\nh.a:1|c|#y:2|T7202", "h.a;y=2", 7200, 2, 0},
        {"f.a:1|c", "f.a", NOW - 17, 1, 0},
    };
    struct config *config;
    struct error error;
    const char text[] =
        "{\"targets\": [{\"match\": \"h.*\", \"table\": \"counterd.counters\", \"rollup\": {\"bucket\": "
        "\"1h\"}},"
        "{\"match\": \"m.*\", \"table\": \"counterd.counters\", \"rollup\": {\"bucket\": \"1m\"}},"
        "{\"match\": \"*\", \"table\": \"counterd.counters\"}],"
        "\"fanout\": [{\"match\": \"f.{x}\", \"also\": [\"m.all\"]}]}";

    ck_assert_int_eq(config_parse("f", span_of(text), &config, &error), 0);
    ingest_set_clock(ingest, now_ms);
    ingest_set_table(ingest, table, config->targets);
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        uint64_t before = counter_get(&stats.rejected[REJECT_RANGE]);
        feed(cases[i].lines, false);
        ck_assert_msg(units_of(table, cases[i].key, cases[i].bucket) == cases[i].units, "%s", cases[i].lines);
        ck_assert_uint_eq(counter_get(&stats.rejected[REJECT_RANGE]) - before, cases[i].out_of_range);
    }
    config_free(config);
}
END_TEST

START_TEST(the_longest_keys_find_room_for_their_buckets)
{
    const char text[] = "{\"targets\": [{\"match\": \"*\", \"table\": \"counterd.counters\","
                        " \"rollup\": {\"bucket\": \"1m\"}}]}";
    char lines[100 * (KEY_LEN_MAX + 5) + 1] = "", key[KEY_LEN_MAX + 1];
    struct table *large = table_new(1, 1000);
    struct config *config;
    struct error error;

    ck_assert_int_eq(config_parse("f", span_of(text), &config, &error), 0);
    ingest_set_clock(ingest, now_ms);
    ingest_set_table(ingest, large, config->targets);
    for (int i = 0; i < 100; i++) {
        memset(key, 'a' + i % 26, KEY_LEN_MAX);
        snprintf(key + KEY_LEN_MAX - 2, 3, "%02d", i);
        sprintf(lines + strlen(lines), "%s:1|c\n", key);
    }
    feed(lines, false);
    ck_assert_uint_eq(counter_get(&stats.accepted), 100);
    ck_assert_uint_eq(table_keys(large), 100);
    ck_assert_int_eq(units_of(large, key, NOW - 17), 1);
    table_free(large);
    config_free(config);
}
END_TEST

/* Of one source in a bucket, by these rules, into a table of so many keys. */
static struct fanout_losses fan_out_of(const char *rules, size_t keys_max, const char *key,
                                       struct table **ret_made)
{
    struct fanout_losses losses = {0};
    struct table_item item = {.micros = 5 * MICROS_PER_UNIT, .carried = 2 * MICROS_PER_UNIT, .events = 3};
    char member[MEMBER_LEN_MAX], text[1024];
    struct config *config;
    struct error error;

    snprintf(text, sizeof(text),
             "{\"targets\": [{\"match\": \"h.*\", \"table\": \"counterd.counters\", \"rollup\": {\"bucket\": "
             "\"1h\"}},"
             "{\"match\": \"*\", \"table\": \"counterd.counters\"}], \"fanout\": [%s]}",
             rules);
    if (config_parse("f", span_of(text), &config, &error) < 0)
        ck_abort_msg("%s", error.text);
    item.key = (struct span){member, member_write(span_of(key), NOW - 17, member)};
    *ret_made = table_new(1, keys_max);
    fan_out(config->targets, &item, *ret_made, &losses);
    config_free(config);
    return losses;
}

START_TEST(fans_out_what_is_new_into_the_bucket_of_each_target)
{
    const char *rules = "{\"match\": \"s.{x}\", \"also\": [\"h.all\", \"plain.{x}\"]}";
    struct fanout_losses losses;
    struct table *made;

    fan_out_of(rules, 10, "s.1", &made);
    ck_assert_uint_eq(table_keys(made), 2);
    ck_assert_int_eq(units_of(made, "h.all", NOW - NOW % HOUR), 3);
    table_free(made);
    fan_out_of(rules, 10, "s.1", &made);
    ck_assert_int_eq(units_of(made, "plain.1", 0), 3);
    table_free(made);
    losses = fan_out_of(rules, 1, "s.1", &made);
    ck_assert_uint_eq(losses.overflow, 3);
    ck_assert_uint_eq(losses.left_out, 0);
    ck_assert_int_eq(units_of(made, OVERFLOW_KEY, 0), 3);
    table_free(made);
}
END_TEST

START_TEST(tells_what_could_not_be_fanned_out)
{
    char key[KEY_LEN_MAX + 1] = "s.";
    struct fanout_losses losses;
    struct table *made;

    memset(key + 2, 'x', KEY_LEN_MAX - 2);
    losses = fan_out_of("{\"match\": \"s.{x}\", \"also\": [\"all.{x}\", \"all\"]}", 10, key, &made);
    ck_assert_uint_eq(losses.left_out, 3);
    ck_assert_uint_eq(table_keys(made), 1);
    table_free(made);
    losses = fan_out_of("{\"match\": \"counterd.{x}\", \"also\": [\"all\"]}", 10, OVERFLOW_KEY, &made);
    ck_assert_uint_eq(table_keys(made), 0);
    table_free(made);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, counts_every_line_once);
    tcase_add_test(tests, the_last_line_of_a_cut_datagram_is_truncated);
    tcase_add_test(tests, new_keys_beyond_the_limit_count_as_overflow);
    tcase_add_test(tests, what_would_leave_the_range_is_rejected);
    tcase_add_test(tests, keeps_a_few_samples_of_what_it_rejects);
    tcase_add_test(tests, counts_in_the_bucket_of_the_moment_or_of_the_lines_time);
    tcase_add_test(tests, the_longest_keys_find_room_for_their_buckets);
    tcase_add_test(tests, fans_out_what_is_new_into_the_bucket_of_each_target);
    tcase_add_test(tests, tells_what_could_not_be_fanned_out);
}

int main(void)
{
    return unit_run("ingest", add_tests);
}
