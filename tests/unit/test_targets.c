#include <stdio.h>

#include "lib/config.h"
#include "lib/targets.h"
#include "tests/unit/configs.h"
#include "tests/unit/unit.h"

#define POSTS "{\"match\": \"post.{id}\", \"table\": \"posts\", \"value\": \"views\""

START_TEST(without_any_all_keys_count_in_counters)
{
    struct config *config = must_parse("{}");
    const struct target *target = targets_find(config->targets, span_of("any.key;a=b"));

    ck_assert_uint_eq(config->targets->len, 1);
    ck_assert_ptr_nonnull(target);
    ck_assert_str_eq(target->match, "*");
    ck_assert_str_eq(target->table, COUNTERS_TABLE);
    ck_assert_str_eq(target->value, "value");
    ck_assert_str_eq(target->touch, "last_seen");
    ck_assert_str_eq(target->database, "");
    ck_assert_int_eq(target->missing, MISSING_INSERT);
    ck_assert_uint_eq(target->rollups_len, 0);
    ck_assert_int_eq(targets_route(config->targets, span_of("any.key")).bucket_s, 0);
    config_free(config);
}
END_TEST

START_TEST(the_first_match_wins)
{
    struct config *config = must_parse(
        "{\"targets\": ["
        "{\"match\": \"post.views.{id}\", \"table\": \"posts\", \"value\": \"view_count\", \"touch\": "
        "\"seen\"},"
        "{\"match\": \"team.{t}.user.{u}.points\", \"table\": \"app.scores\", \"value\": \"points\","
        " \"missing\": \"drop\", \"database\": \"postgresql:///other\"},"
        "{\"match\": \"api.{customer}.calls\", \"table\": \"usage\", \"value\": \"calls\", \"rollup\": ["
        "  {\"table\": \"usage_minutely\", \"bucket\": \"1m\"}, {\"table\": \"usage_daily\", \"bucket\": "
        "\"1d\"}]},"
        "{\"match\": \"*\", \"table\": \"counterd.counters\","
        " \"rollup\": {\"bucket\": \"90s\", \"retention\": \"7d\"}}]}");
    const struct targets *targets = config->targets;
    const struct target *target = targets_find(targets, span_of("post.views.1"));

    ck_assert_ptr_eq(target, &targets->items[0]);
    ck_assert_str_eq(target->touch, "seen");
    ck_assert_int_eq(target->missing, MISSING_PARK);
    target = targets_find(targets, span_of("team.1.user.2.points"));
    ck_assert_ptr_eq(target, &targets->items[1]);
    ck_assert_int_eq(target->missing, MISSING_DROP);
    ck_assert_str_eq(target->database, "postgresql:///other");
    target = targets_find(targets, span_of("api.x.calls"));
    ck_assert_ptr_eq(target, &targets->items[2]);
    ck_assert_int_eq(target->bucket_s, 60);
    ck_assert_int_eq(target->rollups[1].bucket_s, 86400);
    ck_assert_int_eq(target->rollups[1].retention_s, 0);
    target = targets_find(targets, span_of("api.x.calls;a"));
    ck_assert_ptr_eq(target, &targets->items[3]);
    ck_assert_str_eq(target->rollups[0].table, ROLLUPS_TABLE);
    ck_assert_int_eq(target->rollups[0].retention_s, 7 * 86400);
    ck_assert_int_eq(targets->bucket_s, 30);
    config_free(config);
}
END_TEST

START_TEST(a_key_without_a_target_has_none)
{
    struct config *config = must_parse("{\"targets\": [" POSTS "}]}");

    ck_assert_ptr_null(targets_find(config->targets, span_of("other")));
    ck_assert_int_eq(targets_route(config->targets, span_of("other")).bucket_s, 0);
    config_free(config);
}
END_TEST

START_TEST(every_mistake_is_named_with_its_place)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"\"targets\": {}", "'targets' is an object; it takes a list"},
        {"\"targets\": []",
         "'targets' is empty; every key would be parked. Leave it out for counterd.counters"},
        {"\"targets\": [1]", "'targets[0]' is a number; it takes an object"},
        {"\"targets\": [{\"match\": \"*\"}]",
         "'targets[0].table' is missing; write \"counterd.counters\" or a table of your own"},
        {"\"targets\": [{\"table\": \"counterd.counters\"}]",
         "'targets[0].match' is missing; write which keys are meant, \"*\" for all"},
        {"\"targets\": [" POSTS ", \"tabel\": 1}]",
         "'targets[0].tabel' is not a key; allowed in 'targets[0]': match table value touch missing rollup "
         "merge database"},
        {"\"targets\": [" POSTS ", \"match table\": 1}]",
         "'targets[0].match table' is not a key; allowed in 'targets[0]': match table value touch missing "
         "rollup merge "
         "database"},
        {"\"targets\": [" POSTS ", \"value\": \"x\"}]", "'targets[0].value' is given twice"},
        {"\"targets\": [" POSTS ", \"touch\": 1}]", "'targets[0].touch' is a number; it takes a string"},
        {"\"targets\": [" POSTS ", \"touch\": \"\"}]", "'targets[0].touch' has 0 bytes; it takes 1 to 256"},
        {"\"targets\": [" POSTS ", \"touch\": \"id\"}]",
         "'targets[0].touch': 'id' is a column of the row's key too"},
        {"\"targets\": [" POSTS ", \"missing\": \"skip\"}]",
         "'targets[0].missing' is 'skip'; it takes insert, park or drop"},
        {"\"targets\": [{\"match\": \"post.{id\", \"table\": \"posts\", \"value\": \"v\"}]",
         "'targets[0].match': '{id' is not a placeholder; write {name}, of letters, digits and '_', at most "
         "63"},
        {"\"targets\": [{\"match\": \"post.{id}\", \"table\": \"posts\"}]",
         "'targets[0].value' is missing; name the column of 'posts' that counts"},
        {"\"targets\": [{\"match\": \"posts\", \"table\": \"posts\", \"value\": \"v\"}]",
         "'targets[0].match': 'posts' has no placeholder; each is a column that says which row of 'posts' is "
         "meant"},
        {"\"targets\": [{\"match\": \"*\", \"table\": \"counterd.counters\", \"value\": \"n\"}]",
         "'targets[0].value' is 'n'; in counterd.counters it is 'value'"},
        {"\"targets\": [{\"match\": \"*\", \"table\": \"counterd.counters\", \"missing\": \"park\"}]",
         "'targets[0].missing': counterd.counters takes every key; it is always insert there"},
        {"\"targets\": [{\"match\": \"*\", \"table\": \"counterd.counters\"}, " POSTS "}]",
         "'targets[1].match': 'post.{id}' is never reached, as 'targets[0]' ('*') comes first"},
        {"\"targets\": [" POSTS "}, " POSTS "}]",
         "'targets[1].match': 'post.{id}' is never reached, as 'targets[0]' ('post.{id}') comes first"},
        {"\"targets\": [" POSTS ", \"rollup\": 1}]", "'targets[0].rollup' is a number; it takes an object"},
        {"\"targets\": [" POSTS ", \"rollup\": {}}]",
         "'targets[0].rollup.bucket' is missing; write \"1m\", \"1h\", \"1d\" or the like"},
        {"\"targets\": [" POSTS ", \"rollup\": [{\"bucket\": \"7m\"}]}]",
         "'targets[0].rollup[0].bucket' is '7m'; it takes a number of s, m or h that divides a day, as in "
         "15m, or whole "
         "days, as in 7d"},
        {"\"targets\": [" POSTS ", \"rollup\": [{\"bucket\": \"99999999999999999999d\"}]}]",
         "'targets[0].rollup[0].bucket' has 21 bytes; it takes 1 to 16"},
        {"\"targets\": [" POSTS ", \"rollup\": [{\"bucket\": \"1m\", \"retention\": \"1h\"}]}]",
         "'targets[0].rollup[0].retention' is '1h'; it takes whole days, as in \"30d\", or \"none\""},
        {"\"targets\": [" POSTS ", \"rollup\": [{\"bucket\": \"7d\", \"retention\": \"6d\"}]}]",
         "'targets[0].rollup[0].retention' is 6 days, shorter than its bucket, which would go before it "
         "ends"},
        {"\"targets\": [" POSTS
         ", \"rollup\": [{\"table\": \"r\", \"bucket\": \"1m\", \"retention\": \"1d\"}]}]",
         "'targets[0].rollup[0].retention': only counterd.rollups is cleared by the flusher; leave it out"},
        {"\"targets\": [" POSTS ", \"rollup\": [{\"bucket\": \"1m\"}, {\"bucket\": \"1h\"}]}]",
         "'targets[0].rollup[1].table': 'counterd.rollups' is in the list already; each bucket needs a table "
         "of its "
         "own"},
        {"\"targets\": [" POSTS
         ", \"rollup\": [{\"bucket\": \"40s\"}, {\"table\": \"r\", \"bucket\": \"1m\"}]}]",
         "'targets[0].rollup': a bucket of 60 s is not made of buckets of 40 s"},
        {"\"fanout\": [1]", "'fanout[0]' is a number; it takes an object"},
        {"\"fanout\": [{\"match\": \"a.{x}\"}]",
         "'fanout[0].also' is missing or empty; write the keys that are counted too"},
        {"\"fanout\": [{\"match\": \"a.{x}\", \"also\": [\"b.{y}\"]}]",
         "'fanout[0].also[0]': '{y}' is not in the rule's match 'a.{x}'"},
        {"\"fanout\": [{\"match\": \"a.{x}\", \"also\": [\"b.*\"]}]",
         "'fanout[0].also[0]': 'b.*' has a '*', but it is one key that is made"},
        {"\"fanout\": [{\"match\": \"a.{x}\", \"also\": [\"a.sum\"]}]",
         "'fanout[0].also[0]' makes keys that 'fanout[0].match' ('a.{x}') may match, which would be a loop "
         "or a "
         "chain; narrow the match, and name all keys in one 'also'"},
        {"\"targets\": [" POSTS
         ", \"merge\": \"max\"}], \"fanout\": [{\"match\": \"a.{x}\", \"also\": [\"post.{x}\"]}]",
         "'fanout[0].also[0]': the rule's match 'a.{x}' and the keys it makes may be of targets with "
         "different "
         "'merge'; narrow the match, or the targets'"},
        {"\"targets\": [" POSTS ", \"merge\": \"max\"}], \"fanout\": [{\"match\": \"pos*\", \"also\": "
         "[\"a\"]}]",
         "'fanout[0].also[0]': the rule's match 'pos*' and the keys it makes may be of targets with "
         "different "
         "'merge'; narrow the match, or the targets'"},
        {"\"fanout\": [{\"match\": \"a\", \"also\": [\"b\"]}, {\"match\": \"b\", \"also\": [\"a\"]}]",
         "'fanout[0].also[0]' makes keys that 'fanout[1].match' ('b') may match, which would be a loop or a "
         "chain; narrow the match, and name all keys in one 'also'\n"
         "f: 'fanout[1].also[0]' makes keys that 'fanout[0].match' ('a') may match, which would be a loop or "
         "a "
         "chain; narrow the match, and name all keys in one 'also'"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct config *config = NULL;
        struct error error;
        char text[1024], message[1024];
        snprintf(text, sizeof(text), "{%s}", cases[i].text);
        snprintf(message, sizeof(message), "f: %s", cases[i].message);
        ck_assert_msg(config_parse("f", span_of(text), &config, &error) < 0, "%s", text);
        ck_assert_str_eq(error.text, message);
    }
}
END_TEST

/* The keys that are counted along, joined by blanks; "-" for one that is too long. */
static const char *also_of(const struct targets *targets, struct span key, char *text)
{
    struct also_walk walk = {.targets = targets, .key = key};
    char buf[KEY_LEN_MAX];
    size_t len;

    text[0] = '\0';
    while (also_next(&walk, buf, &len)) {
        strcat(text, text[0] ? " " : "");
        strncat(text, len > 0 ? buf : "-", len > 0 ? len : 1);
    }
    return text;
}

START_TEST(all_rules_that_match_fan_out_and_each_key_is_made_once)
{
    struct config *config =
        must_parse("{\"fanout\": ["
                   "{\"match\": \"team.{t}.user.{u}\", \"also\": [\"total\", \"t.{t}\", \"u.{u}.of.{t}\"]},"
                   "{\"match\": \"team.*\", \"also\": [\"total\", \"teams\", \"teams\"]},"
                   "{\"match\": \"long.{x}\", \"also\": [\"longer.{x}\", \"total\"]}]}");
    char text[2048], key[KEY_LEN_MAX + 1] = "long.";

    ck_assert_str_eq(also_of(config->targets, span_of("team.1.user.2"), text), "total t.1 u.2.of.1 teams");
    ck_assert_str_eq(also_of(config->targets, span_of("team.1"), text), "total teams");
    ck_assert_str_eq(also_of(config->targets, span_of("total"), text), "");
    memset(key + 5, 'x', KEY_LEN_MAX - 5);
    ck_assert_str_eq(also_of(config->targets, span_of(key), text), "- total");
    config_free(config);
}
END_TEST

START_TEST(a_bucket_is_fine_enough_for_all_keys_that_are_counted)
{
    struct config *config = must_parse(
        "{\"targets\": ["
        "{\"match\": \"hourly.{x}\", \"table\": \"h\", \"value\": \"n\", \"rollup\": {\"bucket\": \"1h\"}},"
        "{\"match\": \"minutely.{x}\", \"table\": \"h\", \"value\": \"n\", \"rollup\": {\"bucket\": \"1m\"}},"
        "{\"match\": \"odd.{x}\", \"table\": \"h\", \"value\": \"n\", \"rollup\": {\"bucket\": \"90s\"}},"
        "{\"match\": \"*\", \"table\": \"counterd.counters\"}],"
        "\"fanout\": ["
        "{\"match\": \"plain.{x}\", \"also\": [\"hourly.{x}\", \"other.{x}\"]},"
        "{\"match\": \"odd.{x}\", \"also\": [\"minutely.all\"]},"
        "{\"match\": \"none.{x}\", \"also\": [\"none\"]}]}");
    static const struct {
        const char *key;
        int64_t bucket_s;
    } cases[] = {{"hourly.1", 3600}, {"minutely.1", 60}, {"plain.1", 3600},
                 {"odd.1", 30},      {"none.1", 0},      {"x", 0}};

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        ck_assert_int_eq(targets_route(config->targets, span_of(cases[i].key)).bucket_s, cases[i].bucket_s);
    config_free(config);
}
END_TEST

START_TEST(a_bucket_is_over_when_the_next_one_begins)
{
    enum { BUCKET = 1656581400 };
    struct config *config = must_parse("{\"targets\": [{\"match\": \"*\", \"table\": "
                                       "\"counterd.counters\", \"rollup\": {\"bucket\": \"1m\"}}]}");
    char buf[MEMBER_LEN_MAX];
    struct span member = span_of("a 1656581400");

    ck_assert(span_is(targets_member_at(config->targets, member, BUCKET + 59, buf), "a 1656581400"));
    ck_assert(span_is(targets_member_at(config->targets, member, BUCKET + 60, buf), "a 1656581460"));
    config_free(config);
}
END_TEST

START_TEST(rules_outlive_the_file_they_came_from)
{
    struct config *config = must_parse("{\"targets\": [" POSTS "}]}");
    struct targets *targets = targets_ref(config->targets);

    config_free(config);
    ck_assert_ptr_nonnull(targets_find(targets, span_of("post.1")));
    targets_unref(targets);
    targets_unref(NULL);
}
END_TEST

START_TEST(rows_are_shared_by_targets_of_one_table_and_by_what_a_star_takes)
{
    static const char text[] =
        "{\"targets\": ["
        "{\"match\": \"v.{id}\", \"table\": \"posts\", \"value\": \"v\", \"rollup\": {\"table\": \"days\", "
        "\"bucket\": \"1d\"}},"
        "{\"match\": \"l.{id}\", \"table\": \"posts\", \"value\": \"l\", \"rollup\": {\"bucket\": \"1d\"}},"
        "{\"match\": \"t.{id}.*\", \"table\": \"teams\", \"value\": \"n\"},"
        "{\"match\": \"u.{id}\", \"table\": \"users\", \"value\": \"n\", \"rollup\": {\"table\": \"days\", "
        "\"bucket\": \"1d\"}},"
        "{\"match\": \"w.{id}\", \"table\": \"words\", \"value\": \"n\", \"rollup\": {\"bucket\": \"1d\"}},"
        "{\"match\": \"*\", \"table\": \"counterd.counters\"}]}";
    static const bool shared[] = {true, true, true, true, false, false};
    struct config *config;
    struct error error;

    ck_assert_msg(config_parse("f", span_of(text), &config, &error) == 0, "%s", error.text);
    for (size_t i = 0; i < ARRAY_LEN(shared); i++)
        ck_assert_msg(targets_share_rows(config->targets, &config->targets->items[i]) == shared[i], "%zu", i);
    config_free(config);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, without_any_all_keys_count_in_counters);
    tcase_add_test(tests, the_first_match_wins);
    tcase_add_test(tests, a_key_without_a_target_has_none);
    tcase_add_test(tests, every_mistake_is_named_with_its_place);
    tcase_add_test(tests, all_rules_that_match_fan_out_and_each_key_is_made_once);
    tcase_add_test(tests, a_bucket_is_fine_enough_for_all_keys_that_are_counted);
    tcase_add_test(tests, rows_are_shared_by_targets_of_one_table_and_by_what_a_star_takes);
    tcase_add_test(tests, a_bucket_is_over_when_the_next_one_begins);
    tcase_add_test(tests, rules_outlive_the_file_they_came_from);
}

int main(void)
{
    return unit_run("targets", add_tests);
}
