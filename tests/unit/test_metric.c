/* What conformance.tsv can't show; the table itself is conformance.py's. */
#include <stdio.h>

#include "lib/metric.h"
#include "lib/spelling.h"
#include "tests/unit/unit.h"

static struct metric must_parse(const char *line)
{
    struct metric metric;

    ck_assert_msg(metric_parse(span_of(line), &metric) == REJECT_NONE, "%s", line);
    return metric;
}

START_TEST(tells_key_tags_time_and_ignored_fields)
{
    struct metric metric = must_parse("a.b:1:2|c|#x:1,y|c:id|T12|card:low");

    ck_assert(span_is(metric.key, "a.b"));
    ck_assert(span_is(metric.tags, "x:1,y"));
    ck_assert_int_eq(metric.micros, 3 * MICROS_PER_UNIT);
    ck_assert_int_eq(metric.time, 12);
    ck_assert_uint_eq(metric.fields_ignored, 2);
    ck_assert_int_eq(must_parse("a:1|c").time, -1);
}
END_TEST

START_TEST(a_rejected_line_leaves_the_result_alone)
{
    struct metric metric = {.micros = 42};

    ck_assert_int_eq(metric_parse(span_of("a:1|c|@0"), &metric), REJECT_RATE);
    ck_assert_int_eq(metric.micros, 42);
}
END_TEST

/* Many more spellings than the cache holds, each asked for again: remembered or not, the answer is the same.
 */
START_TEST(spellings_come_to_the_same_key_however_often)
{
    struct spelling_cache *cache = spelling_cache_new();
    uint64_t hash;
    struct span key;

    for (int round = 0; round < 3; round++) {
        for (int i = 0; i < 20000; i++) {
            char line[64], expected[64];
            struct metric metric;
            snprintf(line, sizeof(line), "k%d:1|c|#z:%d,a,b:", i % 100, i);
            snprintf(expected, sizeof(expected), "k%d;a;b=;z=%d", i % 100, i);
            metric = must_parse(line);
            ck_assert_int_eq(spelling_resolve(cache, &metric, &key, &hash), REJECT_NONE);
            ck_assert(span_is(key, expected));
            ck_assert_uint_eq(hash, keyspace_hash(key));
        }
    }
    spelling_cache_free(cache);
}
END_TEST

START_TEST(a_spelling_too_long_to_remember_is_worked_out)
{
    struct spelling_cache *cache = spelling_cache_new();
    char line[300];
    struct metric metric;
    struct span key;
    uint64_t hash;

    snprintf(line, sizeof(line), "%0200d:1|c|#b,a", 0);
    metric = must_parse(line);
    for (int i = 0; i < 2; i++) {
        ck_assert_int_eq(spelling_resolve(cache, &metric, &key, &hash), REJECT_NONE);
        ck_assert_uint_eq(key.len, 204);
        ck_assert_int_eq(memcmp(key.ptr + 200, ";a;b", 4), 0);
    }
    metric = must_parse("a:1|c|#b;");
    ck_assert_int_eq(spelling_resolve(cache, &metric, &key, &hash), REJECT_KEY);
    spelling_cache_free(cache);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, tells_key_tags_time_and_ignored_fields);
    tcase_add_test(tests, a_rejected_line_leaves_the_result_alone);
    tcase_add_test(tests, spellings_come_to_the_same_key_however_often);
    tcase_add_test(tests, a_spelling_too_long_to_remember_is_worked_out);
}

int main(void)
{
    return unit_run("metric", add_tests);
}
