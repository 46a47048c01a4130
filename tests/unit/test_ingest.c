#include "counterd/ingest.h"
#include "tests/unit/unit.h"

static struct stats stats;
static struct ingest *ingest;
static struct table *table;

static void set_up(void)
{
    stats_init(&stats);
    ingest = ingest_new(&stats);
    table = table_new(1, 3);
    ingest_set_table(ingest, table);
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

static void add_tests(TCase *tests)
{
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, counts_every_line_once);
    tcase_add_test(tests, the_last_line_of_a_cut_datagram_is_truncated);
    tcase_add_test(tests, new_keys_beyond_the_limit_count_as_overflow);
    tcase_add_test(tests, what_would_leave_the_range_is_rejected);
    tcase_add_test(tests, keeps_a_few_samples_of_what_it_rejects);
}

int main(void)
{
    return unit_run("ingest", add_tests);
}
