#include <stdio.h>

#include "lib/member.h"
#include "lib/pattern.h"
#include "tests/unit/unit.h"

static struct pattern *must_parse(const char *text)
{
    struct pattern *pattern = NULL;
    struct error error;

    if (pattern_parse(text, &pattern, &error) < 0)
        ck_abort_msg("%s: %s", text, error.text);
    return pattern;
}

/* "a|b": what the placeholders took; "no": no match. */
static void values_of(const char *text, struct span key, char *buf, size_t buf_bytes)
{
    struct pattern *pattern = must_parse(text);
    struct span values[PATTERN_PLACEHOLDERS_MAX];
    size_t len = 0;

    snprintf(buf, buf_bytes, "no");
    if (pattern_match(pattern, key, values)) {
        buf[0] = '\0';
        for (size_t i = 0; i < pattern_placeholders(pattern); i++)
            len += (size_t)snprintf(buf + len, buf_bytes - len, "%s%.*s", i > 0 ? "|" : "",
                                    (int)values[i].len, values[i].ptr);
    }
    ck_assert(pattern_match(pattern, key, NULL) == (strcmp(buf, "no") != 0));
    pattern_free(pattern);
}

START_TEST(matches_whole_keys_and_says_what_was_taken)
{
    static const struct {
        const char *text, *key, *values;
    } cases[] = {
        {"post.views.{id}", "post.views.17", "17"},
        {"post.views.{id}", "post.views.", "no"},
        {"post.views.{id}", "post.views.1.2", "no"},
        {"post.views.{id}", "post.views.1;env=a", "no"},
        {"post.views.{id}", "post.view.1", "no"},
        {"post.views.{id};*", "post.views.1;env=a", "1"},
        {"team.{t}.user.{u}.points", "team.7.user.9.points", "7|9"},
        {"team.{t}.user.{u}.points", "team.7.user..points", "no"},
        {"views;post={id}", "views;post=3", "3"},
        {"{a}-{b}", "x-y-z", "x|y-z"},
        {"{a}-{b}", "--", "no"},
        {"{a}-{b}", "---", "-|-"},
        {"{a}x.y{b}", "1x2x.y3", "1x2|3"},
        {"{a}", "abc", "abc"},
        {"{a}", "a.c", "no"},
        {"*", "", ""},
        {"*", "a.b;c", ""},
        {"a*a", "a", "no"},
        {"a*a", "aa", ""},
        {"*.{b}", "x.y.z", "z"},
        {"*.{b}-{c}", "x.1-2-3", "1-2|3"},
        {"{a}.*.{b}", "1.2", "no"},
        {"{a}.*.{b}", "1..2", "1|2"},
        {"literal", "literal", ""},
        {"literal", "literal1", "no"},
        {"literal", "litera", "no"},
        {"k\xc3\xa4se.{id}", "k\xc3\xa4se.\xc3\xa4", "\xc3\xa4"},
    };
    char got[256];

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        values_of(cases[i].text, span_of(cases[i].key), got, sizeof(got));
        ck_assert_msg(strcmp(got, cases[i].values) == 0, "%s of %s: %s", cases[i].text, cases[i].key, got);
    }
}
END_TEST

START_TEST(says_what_is_wrong_with_a_text)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "has 0 bytes; it takes 1 to 512"},
        {"a b", "no key holds blanks, control characters, ':', '|' or invalid UTF-8"},
        {"a:b", "no key holds blanks, control characters, ':', '|' or invalid UTF-8"},
        {"\xff", "no key holds blanks, control characters, ':', '|' or invalid UTF-8"},
        {"a.{id", "'{id' is not a placeholder; write {name}, of letters, digits and '_', at most 63"},
        {"a.{}", "'{}' is not a placeholder; write {name}, of letters, digits and '_', at most 63"},
        {"a.{1}", "'{1}' is not a placeholder; write {name}, of letters, digits and '_', at most 63"},
        {"a}", "'}' is not a placeholder; write {name}, of letters, digits and '_', at most 63"},
        {"{a}.{a}", "'{a}' is given twice"},
        {"*.*", "has more than one '*'"},
        {"{a}{b}", "'{b}' directly follows another placeholder; put at least one byte between them"},
        {"{a}*", "'*' directly follows another placeholder; put at least one byte between them"},
        {"{a}.{b}.{c}.{d}.{e}.{f}.{g}.{h}.{i}", "has more than 8 placeholders"},
    };
    struct pattern *pattern = NULL;
    struct error error;

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        ck_assert_int_lt(pattern_parse(cases[i].text, &pattern, &error), 0);
        ck_assert_str_eq(error.text, cases[i].message);
        ck_assert_ptr_null(pattern);
    }
}
END_TEST

/* The slow and obvious way, on the text of the pattern: a gap takes as little as makes the rest fit. In what
 * stands behind a "*" that is counted from the end, so there it runs from right to left. */
struct slow {
    const char *text; /* of the pattern */
    struct span key;
    int from_end; /* 0 or 1: which way it runs */
    struct span values[PATTERN_PLACEHOLDERS_MAX];
};

static size_t gaps_before(const char *text, size_t at)
{
    size_t count = 0;

    for (size_t i = 0; i < at; i++)
        count += text[i] == '{';
    return count;
}

static bool slow_forwards(struct slow *slow, size_t at, size_t end, size_t key_at, size_t *ret_key_at)
{
    const char *text = slow->text;

    if (at == end) {
        *ret_key_at = key_at;
        return *ret_key_at == slow->key.len || text[end] == '*';
    }
    if (text[at] != '{')
        return key_at < slow->key.len && slow->key.ptr[key_at] == text[at] &&
               slow_forwards(slow, at + 1, end, key_at + 1, ret_key_at);
    for (size_t len = 1; key_at + len <= slow->key.len; len++) {
        if (strchr(".;", slow->key.ptr[key_at + len - 1]))
            return false;
        slow->values[gaps_before(text, at)] = (struct span){slow->key.ptr + key_at, len};
        if (slow_forwards(slow, at + strcspn(text + at, "}") + 1, end, key_at + len, ret_key_at))
            return true;
    }
    return false;
}

/* text[from..at) against what is left of the key in front of key_end. */
static bool slow_backwards(struct slow *slow, size_t from, size_t at, size_t key_from, size_t key_end)
{
    const char *text = slow->text;
    size_t open;

    if (at == from)
        return true;
    if (text[at - 1] != '}')
        return key_end > key_from && slow->key.ptr[key_end - 1] == text[at - 1] &&
               slow_backwards(slow, from, at - 1, key_from, key_end - 1);
    for (open = at - 1; text[open] != '{';)
        open--;
    for (size_t len = 1; key_from + len <= key_end; len++) {
        if (strchr(".;", slow->key.ptr[key_end - len]))
            return false;
        slow->values[gaps_before(text, open)] = (struct span){slow->key.ptr + key_end - len, len};
        if (slow_backwards(slow, from, open, key_from, key_end - len))
            return true;
    }
    return false;
}

static bool slow_match(struct slow *slow)
{
    size_t len = strlen(slow->text), star = strcspn(slow->text, "*"), key_at = 0;

    if (!slow_forwards(slow, 0, star, 0, &key_at))
        return false;
    return star == len || slow_backwards(slow, star + 1, len, key_at, slow->key.len);
}

static uint64_t dice;

static size_t roll(size_t sides)
{
    dice = dice * UINT64_C(6364136223846793005) + UINT64_C(1442695040888963407);
    return (size_t)(dice >> 33) % sides;
}

/* Few different bytes, so that many things fit in many ways. */
static size_t random_text(char *buf, size_t max)
{
    size_t len = roll(max + 1);

    for (size_t i = 0; i < len; i++)
        buf[i] = "aab.;"[roll(5)];
    buf[len] = '\0';
    return len;
}

static void random_pattern(char *buf)
{
    static const char *const gaps[] = {"{A}", "{B}", "{C}", "*"};
    size_t len = random_text(buf, 2);
    size_t star = roll(6);

    for (size_t i = 0; i < roll(4); i++) {
        len += (size_t)sprintf(buf + len, "%s", gaps[i == star ? 3 : i]);
        do
            buf[len] = '\0';
        while (random_text(buf + len, 2) == 0 && i < 2);
        len += strlen(buf + len);
    }
    if (len == 0)
        sprintf(buf, "*");
}

START_TEST(agrees_with_a_slow_and_obvious_matcher)
{
    size_t matched = 0;

    dice = 1;
    for (int i = 0; i < 300000; i++) {
        char text[64], key[16];
        struct slow slow = {.text = text};
        struct span values[PATTERN_PLACEHOLDERS_MAX];
        struct pattern *pattern;
        bool matches;

        random_pattern(text);
        slow.key = (struct span){key, random_text(key, 12)};
        pattern = must_parse(text);
        matches = pattern_match(pattern, slow.key, values);
        ck_assert_msg(matches == slow_match(&slow), "%s of %s: %d", text, key, matches);
        for (size_t j = 0; matches && j < pattern_placeholders(pattern); j++)
            ck_assert_msg(values[j].ptr == slow.values[j].ptr && values[j].len == slow.values[j].len,
                          "%s of %s: value %zu", text, key, j);
        matched += matches;
        pattern_free(pattern);
    }
    ck_assert_uint_gt(matched, 10000);
}
END_TEST

START_TEST(tells_whether_two_overlap)
{
    static const struct {
        const char *a, *b;
        bool overlap;
    } cases[] = {
        {"a", "a", true},          {"a", "b", false},         {"a.{x}", "a.b", true},
        {"a.{x}", "a.b.c", false}, {"a.{x}", "a.", false},    {"a.{x}", "a.*", true},
        {"a.{x}", "*.b", true},    {"a.{x}", "*.b.c", false}, {"{x}.b", "a.{y}", true},
        {"{x}aa", "bb{y}", true},  {"{x}.a", "{y}.b", false}, {"*", "x", true},
        {"a*b", "*c", false},      {"a*", "*c", true},        {"site.views", "site.views.*", false},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct pattern *a = must_parse(cases[i].a), *b = must_parse(cases[i].b);
        ck_assert_msg(pattern_overlaps(a, b) == cases[i].overlap, "%s and %s", cases[i].a, cases[i].b);
        ck_assert_msg(pattern_overlaps(b, a) == cases[i].overlap, "%s and %s", cases[i].b, cases[i].a);
        pattern_free(a);
        pattern_free(b);
    }
}
END_TEST

START_TEST(two_that_a_key_matches_overlap)
{
    size_t both = 0;

    dice = 2;
    for (int i = 0; i < 300000; i++) {
        char a_text[64], b_text[64], key[16];
        struct pattern *a, *b;
        struct span span;

        random_pattern(a_text);
        random_pattern(b_text);
        span = (struct span){key, random_text(key, 6)};
        a = must_parse(a_text);
        b = must_parse(b_text);
        if (pattern_match(a, span, NULL) && pattern_match(b, span, NULL)) {
            ck_assert_msg(pattern_overlaps(a, b), "%s and %s: %s", a_text, b_text, key);
            both++;
        }
        if (pattern_covers(a, b) && pattern_match(b, span, NULL))
            ck_assert_msg(pattern_match(a, span, NULL), "%s covers %s, but for %s", a_text, b_text, key);
        pattern_free(a);
        pattern_free(b);
    }
    ck_assert_uint_gt(both, 1000);
}
END_TEST

START_TEST(expands_to_a_key)
{
    struct pattern *pattern = must_parse("site.{a}.x{b}");
    struct span values[] = {span_of("1"), span_of("22")};
    char buf[32];
    size_t len;

    ck_assert(pattern_expand(pattern, values, buf, sizeof(buf), &len));
    ck_assert(span_is((struct span){buf, len}, "site.1.x22"));
    ck_assert(pattern_expand(pattern, values, buf, 10, &len));
    ck_assert(!pattern_expand(pattern, values, buf, 9, &len));
    pattern_free(pattern);
}
END_TEST

START_TEST(a_member_can_be_taken_apart)
{
    static const struct {
        const char *key;
        int64_t bucket;
        const char *member;
    } cases[] = {
        {"a", 0, "a"},
        {"a", 1, "a 1"},
        {"a.b;c=1", 1656581400, "a.b;c=1 1656581400"},
        {"1", INT64_MAX / 10, NULL},
    };
    char buf[MEMBER_LEN_MAX];
    int64_t bucket;

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct span member = {buf, member_write(span_of(cases[i].key), cases[i].bucket, buf)};
        ck_assert(!cases[i].member || span_is(member, cases[i].member));
        ck_assert(span_is(member_split(member, &bucket), cases[i].key));
        ck_assert_int_eq(bucket, cases[i].bucket);
    }
    ck_assert(span_is(member_split(span_of(""), &bucket), ""));
    ck_assert(span_is(member_split(span_of("a 0"), &bucket), "a 0"));
    ck_assert(span_is(member_split(span_of("a b"), &bucket), "a b"));
    ck_assert(
        span_is(member_split(span_of("a 99999999999999999999999"), &bucket), "a 99999999999999999999999"));
}
END_TEST

START_TEST(a_members_hash_stays_in_the_shard_and_scatters_in_the_index)
{
    static const uint32_t shards[] = {1, 2, 3, 64, 1000, SHARDS_MAX};
    static const uint64_t hashes[] = {0, 1, UINT64_MAX, INT64_MAX, (uint64_t)INT64_MAX + 1};
    static bool seen[1 << 16];
    size_t places = 0;

    for (size_t i = 0; i < ARRAY_LEN(shards); i++) {
        for (int64_t n = 0; n < 20000; n++) {
            char text[32];
            uint64_t hash = n < (int64_t)ARRAY_LEN(hashes)
                                ? hashes[n]
                                : keyspace_hash((struct span){text, (size_t)sprintf(text, "%d", (int)n)});
            uint64_t member = member_hash(hash, 60 * n + 60, shards[i]);
            ck_assert_uint_eq(keyspace_shard(member, shards[i]), keyspace_shard(hash, shards[i]));
            ck_assert_uint_eq(member_hash(hash, 0, shards[i]), hash);
        }
    }
    /* Minutes of one key, by the bits that a table places them by: as many places as dice would hit. */
    for (int64_t n = 1; n <= 32768; n++) {
        uint64_t member = member_hash(keyspace_hash(span_of("page.home")), 60 * n, 64);
        places += !seen[(member >> 32) & 0xffff];
        seen[(member >> 32) & 0xffff] = true;
    }
    ck_assert_uint_gt(places, 25000);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, matches_whole_keys_and_says_what_was_taken);
    tcase_add_test(tests, says_what_is_wrong_with_a_text);
    tcase_add_test(tests, agrees_with_a_slow_and_obvious_matcher);
    tcase_add_test(tests, tells_whether_two_overlap);
    tcase_add_test(tests, two_that_a_key_matches_overlap);
    tcase_add_test(tests, expands_to_a_key);
    tcase_add_test(tests, a_member_can_be_taken_apart);
    tcase_add_test(tests, a_members_hash_stays_in_the_shard_and_scatters_in_the_index);
}

int main(void)
{
    return unit_run("pattern", add_tests);
}
