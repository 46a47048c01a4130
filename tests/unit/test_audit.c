#include <stdio.h>

#include "flusher/audit.h"
#include "flusher/quarantine.h"
#include "tests/unit/unit.h"

/* 100 applied, 30 sealed, 7 open; each case changes one thing. */
static const struct shard_holdings holdings = {
    .accepted = 137,
    .accepted_at_seal = 130,
    .sealed_id = "g2",
    .prev_id = "g1",
    .open_members = 3,
    .sealed_members = 9,
    .open_known = true,
    .sealed_known = true,
    .open = 7,
    .sealed = 30,
};
static const struct shard_books books = {
    .head_before = "g1",
    .head_id = "g1",
    .prev_known = true,
    .prev_total = 100,
    .cumulative_total = 100,
    .head_total = 100,
    .ledger_total = 100,
};

static void must_judge(const struct shard_holdings *redis, const struct shard_books *postgres,
                       enum audit_verdict verdict, int64_t difference)
{
    struct shard_audit audit = audit_shard(redis, postgres);

    ck_assert_msg(audit.verdict == verdict, "%s: %s", audit_verdict_name(audit.verdict), audit.where);
    ck_assert_int_eq(audit.difference, difference);
    ck_assert_int_eq(verdict == AUDIT_BALANCED, audit.where[0] == '\0');
    if (verdict <= AUDIT_LATE)
        ck_assert_int_eq(audit.accepted, audit.applied + audit.open + audit.sealed + audit.parked +
                                             audit.dropped + audit.quarantined);
}

START_TEST(what_is_parked_or_dropped_is_not_applied)
{
    struct shard_books postgres = books;
    struct shard_audit audit;

    postgres.parked_total = postgres.parked_rows_total = 20;
    postgres.dropped_total = 3;
    must_judge(&holdings, &postgres, AUDIT_BALANCED, 0);
    audit = audit_shard(&holdings, &postgres);
    ck_assert_int_eq(audit.applied, 77);
    postgres.parked_rows_total = 15;
    must_judge(&holdings, &postgres, AUDIT_LOST, 5);
    postgres.parked_rows_total = 21;
    must_judge(&holdings, &postgres, AUDIT_DOUBLED, -1);
}
END_TEST

START_TEST(balances_at_any_moment_of_a_flush)
{
    struct shard_holdings redis = holdings;
    struct shard_books postgres = books;

    must_judge(&redis, &postgres, AUDIT_BALANCED, 0);
    /* Applied and not yet released; also when that was before the heads were read. */
    snprintf(postgres.head_id, sizeof(postgres.head_id), "g2");
    postgres.cumulative_total = postgres.head_total = postgres.ledger_total = 130;
    must_judge(&redis, &postgres, AUDIT_BALANCED, 0);
    snprintf(postgres.head_before, sizeof(postgres.head_before), "g2");
    must_judge(&redis, &postgres, AUDIT_BALANCED, 0);
    /* And the next one, since Redis was read. */
    snprintf(postgres.head_id, sizeof(postgres.head_id), "g3");
    postgres.cumulative_total = postgres.head_total = postgres.ledger_total = 137;
    must_judge(&redis, &postgres, AUDIT_BALANCED, 0);
}
END_TEST

START_TEST(stands_on_the_totals_where_a_set_was_too_large)
{
    struct shard_holdings redis = holdings;

    redis.open_known = redis.sealed_known = false;
    redis.open = redis.sealed = 0;
    must_judge(&redis, &books, AUDIT_BALANCED, 0);
    ck_assert_int_eq(audit_shard(&redis, &books).open, 7);
    ck_assert_int_eq(audit_shard(&redis, &books).sealed, 30);
}
END_TEST

START_TEST(finds_what_contradicts)
{
    static const struct {
        size_t offset; /* in which struct, and what is added there */
        bool in_books;
        int64_t by;
        enum audit_verdict verdict;
        int64_t difference;
    } cases[] = {
        {offsetof(struct shard_holdings, open), false, 2, AUDIT_DOUBLED, -2},
        {offsetof(struct shard_holdings, open), false, -2, AUDIT_LOST, 2},
        {offsetof(struct shard_holdings, sealed), false, 2, AUDIT_DOUBLED, -2},
        {offsetof(struct shard_holdings, accepted), false, 2, AUDIT_LOST, 2},
        {offsetof(struct shard_books, prev_total), true, 2, AUDIT_DOUBLED, -2},
        {offsetof(struct shard_books, head_total), true, -2, AUDIT_LOST, 2},
        {offsetof(struct shard_books, ledger_total), true, -2, AUDIT_LOST, 2},
        {offsetof(struct shard_books, cumulative_total), true, -2, AUDIT_DOUBLED, -2},
        {offsetof(struct shard_books, recovered_total), true, 2, AUDIT_LOST, 2},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        struct shard_holdings redis = holdings;
        struct shard_books postgres = books;
        char *base = cases[i].in_books ? (char *)&postgres : (char *)&redis;
        int64_t value;
        memcpy(&value, base + cases[i].offset, sizeof(value));
        value += cases[i].by;
        memcpy(base + cases[i].offset, &value, sizeof(value));
        must_judge(&redis, &postgres, cases[i].verdict, cases[i].difference);
    }
}
END_TEST

START_TEST(finds_a_ledger_without_what_was_released)
{
    struct shard_books postgres = books;

    postgres.prev_known = false;
    postgres.prev_total = 0;
    must_judge(&holdings, &postgres, AUDIT_LOST, 0);
}
END_TEST

START_TEST(finds_a_vector_without_what_was_released)
{
    struct shard_books postgres = books;

    postgres.vector_behind = true;
    must_judge(&holdings, &postgres, AUDIT_LOST, 0);
    postgres.ledger_total -= 7; /* how much is said first */
    must_judge(&holdings, &postgres, AUDIT_LOST, 7);
}
END_TEST

START_TEST(is_late_while_a_rollback_is_not_dealt_with)
{
    struct shard_holdings redis = {.accepted = 5, .open = 5, .open_known = true, .sealed_known = true};
    struct shard_books postgres = books;

    postgres.prev_total = 0;
    must_judge(&redis, &postgres, AUDIT_LATE, 0);
    /* Somebody has flushed meanwhile: no alarm. */
    snprintf(postgres.head_before, sizeof(postgres.head_before), "g0");
    must_judge(&redis, &postgres, AUDIT_BALANCED, 0);
}
END_TEST

START_TEST(leaves_out_of_the_balance_what_redis_forgot)
{
    struct shard_holdings redis = holdings;
    struct shard_books postgres = books;
    struct shard_audit audit;

    redis.set_aside = true;
    redis.accepted = 107;
    redis.accepted_at_seal = 100;
    must_judge(&redis, &postgres, AUDIT_LATE, 0);
    redis = holdings;
    postgres.quarantined_rows = 1;
    postgres.quarantined = 11;
    must_judge(&redis, &postgres, AUDIT_LATE, 0);
    postgres.quarantined = 0; /* 5 - 5 */
    must_judge(&redis, &postgres, AUDIT_LATE, 0);
    postgres.quarantined_rows = postgres.quarantined = 0;
    postgres.recovered_total = 11;
    postgres.ledger_total += 11;
    must_judge(&redis, &postgres, AUDIT_BALANCED, 0);
    audit = audit_shard(&redis, &postgres);
    ck_assert_int_eq(audit.applied, 111);
    ck_assert_int_eq(audit.accepted, 148);
}
END_TEST

START_TEST(the_worst_shard_is_the_verdict)
{
    struct shard_audit total = {0};
    struct shard_audit late = {.verdict = AUDIT_LATE, .accepted = 3, .open = 3, .where = "late"};
    struct shard_audit lost = {.accepted = 4, .open = 4, .where = ""};

    audit_note_counters(&lost, 2);
    audit_note_counters(&lost, -1); /* not worse */
    audit_note_counters(&lost, 5);  /* nor this */
    audit_add(&total, &lost);
    audit_add(&total, &late);
    ck_assert_int_eq(total.verdict, AUDIT_LOST);
    ck_assert_int_eq(total.difference, 2);
    ck_assert_int_eq(total.accepted, 7);
}
END_TEST

START_TEST(counts_what_only_the_quarantine_has)
{
    struct held_batches writers[] = {
        {NULL, 3, 7, 0}, {NULL, 3, 7, 2}, {NULL, 3, 7, 3}, {NULL, 3, 7, 7}, {NULL, 3, 7, 9}};
    static const struct held expected[] = {{0, 5}, {0, 5}, {1, 4}, {5, 0}, {5, 0}};
    struct quarantined all = {.writers = writers, .writers_len = ARRAY_LEN(writers)};

    for (size_t i = 0; i < ARRAY_LEN(writers); i++) {
        struct quarantined row = {.writers = &writers[i], .writers_len = 1};
        ck_assert_int_eq(quarantined_held(&row).applied, expected[i].applied);
        ck_assert_int_eq(quarantined_held(&row).only_here, expected[i].only_here);
    }
    ck_assert_int_eq(quarantined_held(&all).applied, 11);
    ck_assert_int_eq(quarantined_held(&all).only_here, 14);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, what_is_parked_or_dropped_is_not_applied);
    tcase_add_test(tests, balances_at_any_moment_of_a_flush);
    tcase_add_test(tests, stands_on_the_totals_where_a_set_was_too_large);
    tcase_add_test(tests, finds_what_contradicts);
    tcase_add_test(tests, finds_a_ledger_without_what_was_released);
    tcase_add_test(tests, finds_a_vector_without_what_was_released);
    tcase_add_test(tests, is_late_while_a_rollback_is_not_dealt_with);
    tcase_add_test(tests, leaves_out_of_the_balance_what_redis_forgot);
    tcase_add_test(tests, the_worst_shard_is_the_verdict);
    tcase_add_test(tests, counts_what_only_the_quarantine_has);
}

int main(void)
{
    return unit_run("audit", add_tests);
}
