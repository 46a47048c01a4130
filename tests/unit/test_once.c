/* Requests with an Idempotency-Key against shards in memory that lose calls and replies, and clients that try
 * again after a crash of counterd at any point. */
#include <stdio.h>

#include "counterd/once.h"
#include "lib/decimal.h"
#include "tests/unit/unit.h"

#define SHARDS  4
#define KEYS    12
#define MARKERS 64
#define TRIES   6
#define ROUNDS  400

/* A shard: its set, and the markers of the append script. */
struct shard {
    int64_t open[KEYS];
    uint64_t events;
    char marker[MARKERS][TOKEN_WRITER_LEN + TOKEN_LEN_MAX + 1];
    char value[MARKERS][DIGEST_LEN + 1];
    size_t markers;
};

static struct shard shards[SHARDS];
static struct table *table;

static void set_up(void)
{
    memset(shards, 0, sizeof(shards));
    table = table_new(SHARDS, ONCE_KEYS_MAX + 1);
}

static void tear_down(void)
{
    table_free(table);
}

static struct span name_key(char name[16], int key)
{
    snprintf(name, 16, "key.%d", key);
    return span_of(name);
}

static int number_of(struct span key)
{
    int number = 0;

    for (size_t i = strlen("key."); i < key.len; i++)
        number = number * 10 + (key.ptr[i] - '0');
    return number;
}

/* A request in which key number i counts `deltas[i]`; 0: not at all. */
static struct once *request(const char *token, const char *body, const int64_t deltas[KEYS])
{
    struct once_options options = {
        .token = token, .body = span_of(body), .table = table, .shards = SHARDS, .homes = SHARDS};
    struct once *once;

    for (int i = 0; i < KEYS; i++) {
        char name[16];
        struct table_item item = {
            .key = name_key(name, i), .micros = deltas[i] * MICROS_PER_UNIT, .events = 1};
        item.hash = keyspace_hash(item.key);
        if (deltas[i] != 0)
            ck_assert_int_eq(table_add(table, &item), TABLE_OK);
    }
    once = once_new(&options);
    ck_assert_ptr_nonnull(once);
    ck_assert_uint_eq(table_keys(table), 0);
    return once;
}

/* The append script with a marker. */
static enum once_outcome append(const struct once_part *part)
{
    struct shard *shard = &shards[part->shard];
    bool home = part == part->once->parts;
    const char *marker = home ? part->once->token : part->once->writer;
    const char *value = home ? part->once->digest : "1";

    for (size_t i = 0; i < shard->markers; i++)
        if (strcmp(shard->marker[i], marker) == 0)
            return strcmp(shard->value[i], value) == 0 ? ONCE_FOUND : ONCE_OTHER;
    ck_assert_uint_lt(shard->markers, MARKERS);
    snprintf(shard->marker[shard->markers], sizeof(shard->marker[0]), "%s", marker);
    snprintf(shard->value[shard->markers++], sizeof(shard->value[0]), "%s", value);
    for (size_t i = 0; i < part->items_len; i++) {
        int key = number_of(part->items[i].key);
        ck_assert_uint_eq(keyspace_shard(keyspace_hash(part->items[i].key), SHARDS), part->shard);
        shard->open[key] += part->items[i].delta;
    }
    shard->events += part->events;
    return ONCE_APPLIED;
}

static int64_t stored(int key)
{
    int64_t sum = 0;

    for (int i = 0; i < SHARDS; i++)
        sum += shards[i].open[key];
    return sum;
}

static void expect_stored(const int64_t deltas[KEYS], int64_t times)
{
    for (int i = 0; i < KEYS; i++)
        ck_assert_int_eq(stored(i), deltas[i] * times);
}

static const int64_t ONES[KEYS] = {1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12};

/* Without any fault; gives the verdict. */
static enum once_verdict run(const char *token, const char *body, const int64_t deltas[KEYS],
                             uint64_t *ret_counted)
{
    struct once *once = request(token, body, deltas);
    struct once_part *part;
    enum once_verdict verdict;

    *ret_counted = 0;
    while ((part = once_next(once)))
        *ret_counted += once_tell(once, part, append(part));
    ck_assert(once_is_idle(once));
    verdict = once_verdict(once);
    once_free(once);
    return verdict;
}

START_TEST(tokens)
{
    static const struct {
        const char *header, *token; /* NULL: none */
    } cases[] = {
        {"k", "k"},
        {"\"k\"", "k"},
        {"8e03978e-40d5-43dd-bc93-6894a57f9324", "8e03978e-40d5-43dd-bc93-6894a57f9324"},
        {"!~", "!~"},
        {"", NULL},
        {"\"", NULL},
        {"\"\"", NULL},
        {"a b", NULL},
        {"\"a", NULL},
        {"a\"b", NULL},
        {"a\\b", NULL},
        {"a\x7f", NULL},
        {"\xc3\xa9", NULL},
    };
    char token[TOKEN_LEN_MAX + 1], longest[TOKEN_LEN_MAX + 1], longer[TOKEN_LEN_MAX + 2];

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        ck_assert_int_eq(once_read_token(cases[i].header, token), cases[i].token != NULL);
        if (cases[i].token)
            ck_assert_str_eq(token, cases[i].token);
    }
    memset(longest, 'k', TOKEN_LEN_MAX);
    longest[TOKEN_LEN_MAX] = '\0';
    ck_assert(once_read_token(longest, token));
    snprintf(longer, sizeof(longer), "%sk", longest);
    ck_assert(!once_read_token(longer, token));
}
END_TEST

START_TEST(the_second_time_is_a_duplicate)
{
    uint64_t counted;

    ck_assert_int_eq(run("k", "body", ONES, &counted), ONCE_STORED);
    ck_assert_uint_eq(counted, KEYS);
    ck_assert_int_eq(run("k", "body", ONES, &counted), ONCE_DUPLICATE);
    ck_assert_uint_eq(counted, 0);
    expect_stored(ONES, 1);
    ck_assert_int_eq(run("l", "body", ONES, &counted), ONCE_STORED);
    expect_stored(ONES, 2);
}
END_TEST

START_TEST(another_body_changes_nothing)
{
    static const int64_t one[KEYS] = {100};
    uint64_t counted;

    ck_assert_int_eq(run("k", "body", ONES, &counted), ONCE_STORED);
    ck_assert_int_eq(run("k", "other", one, &counted), ONCE_DIFFERS);
    expect_stored(ONES, 1);
}
END_TEST

/* The home shard knows the token even when it gets none of its keys. */
START_TEST(the_home_shard_goes_first)
{
    for (int i = 0; i < 20; i++) {
        char token[16];
        struct once *once;
        struct once_part *home;
        snprintf(token, sizeof(token), "k%d", i);
        once = request(token, "body", (const int64_t[KEYS]){[0] = 1});
        home = once_next(once);
        ck_assert_ptr_eq(home, &once->parts[0]);
        ck_assert_uint_eq(home->shard, keyspace_shard(keyspace_hash(span_of(token)), SHARDS));
        ck_assert_uint_le(once->parts_len, 2);
        ck_assert_ptr_null(once_next(once));
        ck_assert_int_eq(once_verdict(once), ONCE_UNFINISHED);
        (void)once_tell(once, home, append(home));
        ck_assert_int_eq(once_next(once) == NULL, once->parts_len == 1);
        once_free(once);
    }
}
END_TEST

START_TEST(the_writer_is_of_token_and_body)
{
    struct once *a = request("k", "body", ONES), *b = request("k", "other", ONES),
                *c = request("l", "body", ONES);

    ck_assert_str_ne(a->writer, b->writer);
    ck_assert_str_ne(a->writer, c->writer);
    ck_assert_uint_eq(strlen(a->writer), TOKEN_WRITER_LEN);
    once_free(a);
    once_free(b);
    once_free(c);
}
END_TEST

START_TEST(refused_is_sent_again)
{
    struct once *once = request("k", "body", ONES);
    struct once_part *part = once_next(once);

    ck_assert_uint_eq(once_tell(once, part, ONCE_REFUSED), 0);
    ck_assert_ptr_eq(once_next(once), part);
    /* Somebody else's, since ours was refused. */
    ck_assert_uint_eq(once_tell(once, part, ONCE_FOUND), 0);
    ck_assert_ptr_nonnull(once_next(once));
    once_free(once);
}
END_TEST

/* All but one part are applied, then the connection is lost; Redis may have gone back to before it all. */
START_TEST(in_doubt_it_is_sent_again_and_counted_once)
{
    struct once *once = request("k", "body", ONES);
    struct once_part *part;
    uint64_t counted = 0;

    for (int i = 0; i < SHARDS - 1; i++) {
        part = once_next(once);
        counted += once_tell(once, part, append(part));
    }
    part = once_next(once);
    (void)once_tell(once, part, ONCE_UNKNOWN);
    if (_i == 1)
        memset(shards, 0, sizeof(shards));
    once_doubt(once);
    ck_assert_ptr_eq(once_next(once), &once->parts[0]);
    ck_assert_ptr_null(once_next(once));
    for (part = &once->parts[0]; part; part = once_next(once))
        counted += once_tell(once, part, append(part));
    ck_assert_int_eq(once_verdict(once), ONCE_STORED);
    ck_assert_uint_eq(counted, KEYS);
    expect_stored(ONES, 1);
    once_free(once);
}
END_TEST

/* Answered for the second time, because the first answer was lost: ours all the same. */
START_TEST(what_is_found_after_a_lost_answer_is_ours)
{
    struct once *once = request("k", "body", ONES);
    struct once_part *part;
    uint64_t counted = 0;

    while ((part = once_next(once))) {
        if (!part->resent)
            ck_assert_int_eq(append(part), ONCE_APPLIED);
        counted += once_tell(once, part, part->resent ? append(part) : ONCE_UNKNOWN);
    }
    ck_assert_uint_eq(counted, KEYS);
    ck_assert_int_eq(once_verdict(once), ONCE_STORED);
    once_free(once);
    expect_stored(ONES, 1);
}
END_TEST

/* What one part is told makes it no duplicate, whatever the parts behind it are told. */
START_TEST(what_was_stored_in_part_before_is_no_duplicate)
{
    struct once *once = request("k", "body", ONES);
    struct once_part *part = once_next(once);

    ck_assert_uint_gt(once->parts_len, 1);
    ck_assert_uint_gt(once_tell(once, part, ONCE_APPLIED), 0);
    while ((part = once_next(once)))
        ck_assert_uint_eq(once_tell(once, part, ONCE_FOUND), 0);
    ck_assert_int_eq(once_verdict(once), ONCE_STORED);
    once_free(once);
}
END_TEST

static unsigned seed;

static unsigned dice(unsigned sides)
{
    seed = seed * 1103515245 + 12345;
    return (seed >> 16) % sides;
}

/* One try: parts arrive or not, in any order, their replies get lost or not, and counterd may die at any
 * point. */
static enum once_verdict try(const char *body, bool ours)
{
    struct once *once = request("k", body, ONES);
    struct once_part *sent[SHARDS], *part;
    size_t sent_len = 0, at;
    enum once_outcome outcome;
    enum once_verdict verdict;

    for (unsigned step = 0; step < 40 && dice(30) > 0; step++) {
        uint64_t counted;
        while (sent_len < SHARDS && (part = once_next(once)))
            sent[sent_len++] = part;
        if (sent_len == 0)
            break;
        at = dice((unsigned)sent_len);
        outcome = ONCE_UNKNOWN;
        part = sent[at];
        sent[at] = sent[--sent_len];
        if (dice(4) > 0)
            outcome = append(part);
        else if (dice(3) == 0)
            outcome = ONCE_REFUSED;
        if (dice(4) == 0 && outcome != ONCE_REFUSED)
            outcome = ONCE_UNKNOWN;
        counted = once_tell(once, part, outcome);
        ck_assert(ours || counted == 0);
    }
    verdict = once_verdict(once);
    once_free(once);
    return verdict;
}

START_TEST(whatever_is_lost_it_counts_once)
{
    seed = (unsigned)_i * 7919 + 1;
    for (int round = 0; round < ROUNDS; round++) {
        bool answered = false;
        uint64_t events = 0;
        memset(shards, 0, sizeof(shards));
        for (int i = 0; i < TRIES && !answered; i++) {
            enum once_verdict verdict = try("body", true);
            ck_assert_int_ne(verdict, ONCE_DIFFERS);
            answered = verdict != ONCE_UNFINISHED;
            /* A mistaken client, who would be the right one if he came first. */
            if (shards[keyspace_shard(keyspace_hash(span_of("k")), SHARDS)].markers > 0)
                ck_assert_int_ne(try("other", false), ONCE_STORED);
        }
        for (int i = 0; i < KEYS; i++)
            ck_assert(stored(i) == ONES[i] || (!answered && stored(i) == 0));
        for (int i = 0; i < SHARDS; i++)
            events += shards[i].events;
        ck_assert(!answered || events == KEYS);
    }
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, tokens);
    tcase_add_test(tests, the_second_time_is_a_duplicate);
    tcase_add_test(tests, another_body_changes_nothing);
    tcase_add_test(tests, the_home_shard_goes_first);
    tcase_add_test(tests, the_writer_is_of_token_and_body);
    tcase_add_test(tests, refused_is_sent_again);
    tcase_add_loop_test(tests, in_doubt_it_is_sent_again_and_counted_once, 0, 2);
    tcase_add_test(tests, what_is_found_after_a_lost_answer_is_ours);
    tcase_add_test(tests, what_was_stored_in_part_before_is_no_duplicate);
    tcase_add_loop_test(tests, whatever_is_lost_it_counts_once, 0, 10);
}

int main(void)
{
    return unit_run("once", add_tests);
}
