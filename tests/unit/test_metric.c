/* What conformance.tsv can't show; the table itself is conformance.py's. */
#include <stdio.h>
#include <stdlib.h>

#include "lib/error.h"
#include "lib/metric.h"
#include "lib/text.h"
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

START_TEST(lines_end_with_lf_or_cr_lf_or_the_text)
{
    struct span rest = span_of("a\r\n\n\r\nb\rc\nd\r");
    static const char *const lines[] = {"a", "", "", "b\rc", "d", ""};

    for (size_t i = 0; i < ARRAY_LEN(lines); i++) {
        struct span line = text_take_line(&rest);
        ck_assert_msg(span_is(line, lines[i]), "line %zu", i);
    }
    ck_assert_uint_eq(rest.len, 0);
}
END_TEST

START_TEST(a_rejected_line_leaves_the_result_alone)
{
    struct metric metric = {.micros = 42};

    ck_assert_int_eq(metric_parse(span_of("a:1|c|@0"), &metric), REJECT_RATE);
    ck_assert_int_eq(metric.micros, 42);
}
END_TEST

/* The canonical key of a line, in memory that the next call uses again. */
static struct span canonical(const char *line)
{
    static char buf[KEY_LEN_MAX];
    struct metric metric = must_parse(line);
    size_t len;

    ck_assert_int_eq(metric_canonical_key(&metric, buf, &len), REJECT_NONE);
    return (struct span){buf, len};
}

START_TEST(the_greatest_or_least_of_a_lines_values)
{
    static const struct {
        const char *line;
        enum reject reject;
        int64_t max, min;
    } cases[] = {
        {"a:1:-5:3|c", REJECT_NONE, 3, -5},     {"a:4.0|c|#x|T12|@1", REJECT_NONE, 4, 4},
        {"a:-2|c|@1.0\r", REJECT_NONE, -2, -2}, {"INCR a", REJECT_NONE, 1, 1},
        {"DECR a", REJECT_NONE, -1, -1},        {"INCRBY a -17", REJECT_NONE, -17, -17},
        {"a:0.5:0.5|c", REJECT_VALUE, 0, 0},    {"INCRBY a 0.5", REJECT_VALUE, 0, 0},
        {"a:1|c|#x|@0.5", REJECT_RATE, 0, 0},   {"a:1|c|@0.5\r", REJECT_RATE, 0, 0},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct span line = span_of(cases[i].line);
        struct metric metric;
        bool cr = line.ptr[line.len - 1] == '\r';
        ck_assert_int_eq(metric_parse((struct span){line.ptr, line.len - cr}, &metric), REJECT_NONE);
        metric.line = line;
        ck_assert_msg(metric_take_extreme(&metric, MERGE_MAX) == cases[i].reject, "%s", cases[i].line);
        if (cases[i].reject != REJECT_NONE)
            continue;
        ck_assert_int_eq(metric.micros, cases[i].max * MICROS_PER_UNIT);
        ck_assert_int_eq(metric_take_extreme(&metric, MERGE_MIN), REJECT_NONE);
        ck_assert_int_eq(metric.micros, cases[i].min * MICROS_PER_UNIT);
    }
}
END_TEST

START_TEST(tags_come_to_the_same_key_in_any_order)
{
    ck_assert(span_is(canonical("k:1|c|#a,b:,z:1"), "k;a;b=;z=1"));
    ck_assert(span_is(canonical("k:1|c|#z:1,a,b:"), "k;a;b=;z=1"));
    ck_assert(span_is(canonical("k:1|c|#b:,z:1,a,"), "k;a;b=;z=1"));
    ck_assert(span_is(canonical("k:1|c|#z:0,b:,z:1,a"), "k;a;b=;z=1"));
    ck_assert(span_is(canonical("k:1|c|#long.name.of.a.tag:x=y,long.name.of.a:z"),
                      "k;long.name.of.a=z;long.name.of.a.tag=x=y"));
}
END_TEST

START_TEST(a_key_with_tags_takes_up_to_the_limit)
{
    char line[300];
    size_t len;
    struct metric metric;
    char buf[KEY_LEN_MAX];

    snprintf(line, sizeof(line), "%0251d:1|c|#b,a", 0);
    ck_assert_uint_eq(canonical(line).len, KEY_LEN_MAX);
    ck_assert_int_eq(memcmp(canonical(line).ptr + 251, ";a;b", 4), 0);
    snprintf(line, sizeof(line), "%0252d:1|c|#b,a", 0);
    metric = must_parse(line);
    ck_assert_int_eq(metric_canonical_key(&metric, buf, &len), REJECT_TOO_LONG);
}
END_TEST

static bool same_metric(const struct metric *a, const struct metric *b)
{
    return a->key.ptr == b->key.ptr && a->key.len == b->key.len && a->micros == b->micros &&
           a->tags.ptr == b->tags.ptr && a->tags.len == b->tags.len && a->time == b->time &&
           a->fields_ignored == b->fields_ignored;
}

/* Random text in a buffer of its own, so that a sanitizer sees a read behind its end. */
static void compare_parsers(const char *text, size_t len)
{
    char *exact = malloc(len);
    const char *lf;
    struct metric plain, metric;
    struct span line;
    size_t taken, count;

    memcpy(exact, text, len);
    count = metric_parse_plain((struct span){exact, len}, &plain, 1, &taken);
    ck_assert_int_eq(count > 0, taken > 0);
    if (count > 0) {
        lf = memchr(exact, '\n', len);
        line = (struct span){exact, lf ? (size_t)(lf - exact) : len};
        ck_assert_uint_eq(taken, line.len + (lf != NULL));
        line.len -= line.ptr[line.len - 1] == '\r';
        ck_assert_int_eq(metric_parse(line, &metric), REJECT_NONE);
        ck_assert(same_metric(&plain, &metric));
    }
    free(exact);
}

START_TEST(the_plain_parser_agrees_with_the_whole_one)
{
    static const char *const pieces[] = {
        "a",
        "page.home.visits.of.today",
        ":",
        ":1",
        ":-12",
        "|c",
        "|",
        "\n",
        "\r\n",
        "\r",
        "|#a:b,c",
        "|@1",
        ":123456789012",
        "\xc3",
        " ",
        "|#",
        "0.5",
        "c",
        ":+7",
        "INCR ",
        "#",
    };
    unsigned state = 1;
    size_t plain = 0;

    for (int i = 0; i < 300000; i++) {
        char text[300];
        size_t len = 0;
        struct metric metric;
        size_t taken;
        /* Half of them begin as a line should, or hardly any would be plain. */
        size_t regular = i % 2 ? 3 : 0;
        for (size_t j = 0; j < 7; j++) {
            static const size_t form[] = {1, 3, 5};
            size_t piece = (state = state * 1103515245 + 12345) >> 16;
            const char *text_piece = pieces[j < regular ? form[j] : piece % ARRAY_LEN(pieces)];
            memcpy(text + len, text_piece, strlen(text_piece));
            len += strlen(text_piece);
        }
        compare_parsers(text, len);
        plain += metric_parse_plain((struct span){text, len}, &metric, 1, &taken);
    }
    ck_assert_uint_gt(plain, 10000);
}
END_TEST

/* How many bytes the first line takes; 0 when it is not plain. */
static size_t plain_bytes(const char *text, struct metric *ret_metric)
{
    size_t taken;

    return metric_parse_plain(span_of(text), ret_metric, 1, &taken) ? taken : 0;
}

START_TEST(plain_lines_are_parsed_up_to_one_that_is_not)
{
    struct metric metrics[4];
    size_t taken;

    ck_assert_uint_eq(metric_parse_plain(span_of("a:1|c\nb:2|c\nc:3|c|@0.1\nd:4|c\n"), metrics, 4, &taken),
                      2);
    ck_assert_uint_eq(taken, 12);
    ck_assert(span_is(metrics[1].key, "b"));
    ck_assert(span_is(metrics[1].line, "b:2|c"));
    ck_assert_uint_eq(metric_parse_plain(span_of("a:1|c\nb:2|c\nc:3|c"), metrics, 2, &taken), 2);
    ck_assert_uint_eq(metric_parse_plain(span_of("a:1|c\nb:2|c\nc:3|c"), metrics, 4, &taken), 3);
    ck_assert_uint_eq(taken, 17);
}
END_TEST

START_TEST(a_plain_line_ends_where_it_does)
{
    struct metric metric;

    ck_assert_uint_eq(plain_bytes("a:1|c\nb:1|c", &metric), 6);
    ck_assert_uint_eq(plain_bytes("a:-1|c\r\n", &metric), 8);
    ck_assert_int_eq(metric.micros, -MICROS_PER_UNIT);
    ck_assert_uint_eq(plain_bytes("a:1|c|#b:c\r\n|", &metric), 12);
    ck_assert(span_is(metric.tags, "b:c"));
    ck_assert_uint_eq(plain_bytes("a:1|c|@1", &metric), 0);
    ck_assert_uint_eq(plain_bytes("a:1|c\r", &metric), 6);
    ck_assert_uint_eq(plain_bytes("a:1|c\rb:1|c", &metric), 0);
    ck_assert_uint_eq(plain_bytes("a:1|c|#b|T1", &metric), 0);
    ck_assert_uint_eq(plain_bytes("\n", &metric), 0);
}
END_TEST

START_TEST(a_plain_key_has_255_bytes_at_most)
{
    char text[KEY_LEN_MAX + 6];
    struct metric metric;

    memset(text, 'k', sizeof(text));
    memcpy(text + KEY_LEN_MAX + 1, ":1|c", 5);
    ck_assert_uint_eq(plain_bytes(text, &metric), 0);
    ck_assert_uint_eq(plain_bytes(text + 1, &metric), KEY_LEN_MAX + 4);
}
END_TEST

START_TEST(a_text_is_cut_between_characters)
{
    static const struct {
        const char *text;
        size_t len;
    } cases[] = {
        {"", 0},
        {"a", 1},
        {"a\xd0\xb6", 3},
        {"a\xd0", 1},
        {"\xe2\x82\xac", 3},
        {"\xe2\x82", 0},
        {"a\xf0\x9f\x98\x80", 5},
        {"a\xf0\x9f\x98", 1},
        {"a\xf0", 1},
        {"\x82\xac", 0},
    };
    static const char euros[] = "\xe2\x82\xac\xe2\x82\xac\xe2\x82\xac";
    struct error error;

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        ck_assert_msg(text_whole(span_of(cases[i].text)) == cases[i].len, "%zu", i);
    for (int i = 0; i < 3; i++) {
        ck_assert_int_eq(error_set(&error, -1, "%*s%s", (int)sizeof(error.text) - 4 + i, "", euros), -1);
        ck_assert(text_is_utf8(span_of(error.text)));
        ck_assert_uint_gt(strlen(error.text), sizeof(error.text) - 5);
        error_prefix(&error, -1, "%*s%s", 252 + i, "", euros);
        ck_assert(text_is_utf8(span_of(error.text)));
    }
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, tells_key_tags_time_and_ignored_fields);
    tcase_add_test(tests, lines_end_with_lf_or_cr_lf_or_the_text);
    tcase_add_test(tests, a_rejected_line_leaves_the_result_alone);
    tcase_add_test(tests, the_greatest_or_least_of_a_lines_values);
    tcase_add_test(tests, tags_come_to_the_same_key_in_any_order);
    tcase_add_test(tests, a_key_with_tags_takes_up_to_the_limit);
    tcase_add_test(tests, the_plain_parser_agrees_with_the_whole_one);
    tcase_add_test(tests, plain_lines_are_parsed_up_to_one_that_is_not);
    tcase_add_test(tests, a_plain_line_ends_where_it_does);
    tcase_add_test(tests, a_plain_key_has_255_bytes_at_most);
    tcase_add_test(tests, a_text_is_cut_between_characters);
}

int main(void)
{
    return unit_run("metric", add_tests);
}
