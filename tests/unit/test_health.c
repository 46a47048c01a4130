/* What is wrong, from figures; and how the figures of the last minutes are kept. */
#include <stdio.h>
#include <stdlib.h>

#include "counterd/health.h"
#include "counterd/metrics.h"
#include "tests/unit/unit.h"

/* A good day. */
static struct figures good(void)
{
    return (struct figures){
        .namespace = "counterd",
        .shards = 8,
        .redis_ready = true,
        .lines = 1000,
        .accepted = 1000,
        .appended = 1000,
        .listeners = {{.kind = "udp", .address = "127.0.0.1:8125", .lines = 1000, .buffer_bytes = 8192}},
        .listeners_len = 1,
        .buffer_bytes_asked = 8192,
        .appended_ago_ms = 10,
        .refused_ago_ms = -1,
        .went_back_ago_ms = -1,
        .spool_error_ago_ms = -1,
        .history_bytes_max = 1000,
        .look = {.open_age_ms = -1,
                 .sealed_age_ms = -1,
                 .sealed_for_ms = -1,
                 .released_ago_ms = -1,
                 .eviction = "noeviction",
                 .appendonly = true},
        .minute = {.lines = 1000},
    };
}

/* Of the only warning that there must be. */
static struct warning only(const struct figures *figures, bool ready)
{
    struct health health;

    health_judge(figures, &health);
    ck_assert_int_eq(health.ready, ready);
    ck_assert_uint_eq(health.len, 1);
    ck_assert_str_ne(health.warnings[0].text, "");
    ck_assert_str_ne(health.warnings[0].action, "");
    return health.warnings[0];
}

static void must_be_well(const struct figures *figures)
{
    struct health health;

    health_judge(figures, &health);
    ck_assert_uint_eq(health.len, 0);
    ck_assert(health.ready);
    ck_assert_str_eq(health_reason(&health), "");
}

START_TEST(a_good_day)
{
    struct figures figures = good();

    must_be_well(&figures);
}
END_TEST

START_TEST(redis_away)
{
    struct figures figures = good();
    struct warning warning;

    figures.redis_ready = false;
    figures.pending = 1234567;
    figures.pending_age_ms = 119999;
    snprintf(figures.trouble, sizeof(figures.trouble), "refused");
    warning = only(&figures, false);
    ck_assert_int_eq(warning.code, WARNING_REDIS_AWAY);
    ck_assert_str_eq(warning.text,
                     "Redis is away. 1,234,567 increments wait in memory, the oldest for 119 seconds. "
                     "(refused)");
    figures.redis_misfit = true;
    ck_assert_int_eq(only(&figures, false).code, WARNING_REDIS_MISFIT);
}
END_TEST

START_TEST(what_waits_on_disk)
{
    struct figures figures = good();
    struct warning warning;
    struct health health;

    figures.spool_bytes_max = 1000;
    must_be_well(&figures);
    figures.redis_ready = false;
    figures.pending = figures.on_disk = 1200;
    figures.pending_age_ms = 60000;
    warning = only(&figures, false);
    ck_assert_str_eq(warning.text, "Redis is away. 1,200 increments wait on disk, the oldest for 60 seconds. "
                                   "(not connected yet)");
    ck_assert_ptr_nonnull(strstr(warning.action, "may be stopped"));
    figures.on_disk = 1000;
    figures.to_replay = 30;
    ck_assert_str_eq(only(&figures, false).text,
                     "Redis is away. 1,230 increments wait, 1,030 of them on disk, the others in memory; the "
                     "oldest for 60 seconds. (not connected yet)");
    figures.redis_misfit = true;
    ck_assert_ptr_nonnull(strstr(only(&figures, false).action, "on disk"));
    figures.redis_misfit = false;
    figures.spool_bytes_most = 900;
    health_judge(&figures, &health);
    ck_assert_uint_eq(health.len, 2);
    ck_assert_int_eq(health.warnings[1].code, WARNING_SPOOL_NEARLY_FULL);
    ck_assert_ptr_nonnull(strstr(health.warnings[1].text, "90 %"));
    /* It empties. */
    figures.redis_ready = true;
    warning = only(&figures, true);
    ck_assert_int_eq(warning.code, WARNING_SPOOL_DRAINING);
    ck_assert_int_eq(warning.severity, SEVERITY_NOTE);
    ck_assert_ptr_nonnull(strstr(warning.text, "1,030 increments are still on disk"));
}
END_TEST

START_TEST(a_spool_that_fails)
{
    struct figures figures = good();
    struct health health;

    figures.spool_bytes_max = 1000;
    figures.spool_bytes_most = 1000;
    figures.redis_ready = false;
    figures.pending = 50;
    figures.on_disk = 20;
    figures.spool_error_ago_ms = 4999;
    snprintf(figures.spool_trouble, sizeof(figures.spool_trouble), "no room");
    health_judge(&figures, &health);
    ck_assert_uint_eq(health.len, 2);
    ck_assert_int_eq(health.warnings[0].code, WARNING_REDIS_AWAY);
    ck_assert_ptr_nonnull(strstr(health.warnings[0].action, "don't stop counterd"));
    ck_assert_int_eq(health.warnings[1].code, WARNING_SPOOL_FAILED);
    ck_assert_int_eq(health.warnings[1].severity, SEVERITY_BAD);
    ck_assert_str_eq(health.warnings[1].text,
                     "The disk takes no more: 30 increments wait in memory alone, and "
                     "20 on disk. (no room)");
    figures.redis_ready = true;
    health_judge(&figures, &health);
    ck_assert_uint_eq(health.len, 2);
    ck_assert_str_eq(health.warnings[0].text, "The spool can't be read. (no room)");
    ck_assert_int_eq(health.warnings[1].code, WARNING_SPOOL_DRAINING);
    figures.redis_ready = false;
    figures.spool_error_ago_ms = 5000;
    health_judge(&figures, &health);
    ck_assert_int_eq(health.warnings[1].code, WARNING_SPOOL_NEARLY_FULL);
}
END_TEST

START_TEST(ages_and_counts_as_people_say_them)
{
    static const struct {
        uint64_t count;
        int64_t age_ms;
        const char *text;
    } cases[] = {
        {0, 0, "Redis is away. No increments wait. (not connected yet)"},
        {1, 1000, "Redis is away. 1 increment waits in memory, the oldest for 1 second. (not connected yet)"},
        {999, 120000,
         "Redis is away. 999 increments wait in memory, the oldest for 2 minutes. (not connected yet)"},
        {1000, 7200000,
         "Redis is away. 1,000 increments wait in memory, the oldest for 2 hours. (not connected yet)"},
        {10, 172800000,
         "Redis is away. 10 increments wait in memory, the oldest for 2 days. (not connected yet)"},
    };
    struct figures figures = good();

    figures.redis_ready = false;
    for (size_t i = 0; i < ARRAY_LEN(cases); i++) {
        figures.pending = cases[i].count;
        figures.pending_age_ms = cases[i].age_ms;
        ck_assert_str_eq(only(&figures, false).text, cases[i].text);
    }
}
END_TEST

START_TEST(redis_refuses)
{
    struct figures figures = good();

    figures.refused_ago_ms = 100;
    snprintf(figures.trouble, sizeof(figures.trouble), "OOM command not allowed");
    /* Some batches are taken: one shard is at its limit, and the next flush sees to it. */
    must_be_well(&figures);
    figures.appended_ago_ms = 4000;
    ck_assert_int_eq(only(&figures, false).code, WARNING_REDIS_FULL);
    snprintf(figures.trouble, sizeof(figures.trouble), "MISCONF");
    ck_assert_int_eq(only(&figures, false).code, WARNING_REDIS_REFUSES);
    figures.refused_ago_ms = 3000;
    must_be_well(&figures);
}
END_TEST

START_TEST(flushes_late)
{
    struct figures figures = good();

    figures.look.open_age_ms = FLUSH_OVERDUE_MS - 1;
    figures.look.sealed_for_ms = FLUSH_OVERDUE_MS - 1;
    must_be_well(&figures);
    figures.look.open_age_ms++;
    ck_assert_int_eq(only(&figures, true).code, WARNING_FLUSH_OVERDUE);
    figures.look.sealed_for_ms++;
    ck_assert_int_eq(only(&figures, true).code, WARNING_FLUSH_STUCK);
    /* Old news is no news. */
    snprintf(figures.look_error, sizeof(figures.look_error), "no answer");
    ck_assert_int_eq(only(&figures, true).code, WARNING_REDIS_UNREAD);
    figures.look_ago_ms = -1;
    ck_assert_int_eq(only(&figures, true).code, WARNING_REDIS_UNREAD);
}
END_TEST

START_TEST(junk_is_a_matter_of_its_share)
{
    struct figures figures = good();

    figures.minute = (struct recent){.lines = 10000, .rejected = 999};
    must_be_well(&figures);
    figures.minute.rejected = 1000;
    figures.rejected[REJECT_RATE] = 5;
    ck_assert_ptr_nonnull(strstr(only(&figures, true).text, "'rate'"));
    figures.minute = (struct recent){.lines = 99, .rejected = 99};
    must_be_well(&figures);
}
END_TEST

START_TEST(the_kernel_and_its_buffer)
{
    struct figures figures = good();

    figures.buffer_bytes_asked = 9000;
    ck_assert_int_eq(only(&figures, true).code, WARNING_BUFFER_CLAMPED);
    figures.minute.dropped = 1;
    ck_assert_int_eq(only(&figures, true).code, WARNING_KERNEL_DROPPING);
    ck_assert_ptr_nonnull(strstr(only(&figures, true).action, "net.core.rmem_max=9000"));
}
END_TEST

START_TEST(redis_can_lose_what_it_has)
{
    struct figures figures = good();
    struct warning warning;

    snprintf(figures.look.eviction, sizeof(figures.look.eviction), "allkeys-lru");
    ck_assert_int_eq(only(&figures, true).severity, SEVERITY_WARN);
    figures.look.memory_bytes_max = 1000;
    warning = only(&figures, true);
    ck_assert_int_eq(warning.code, WARNING_REDIS_EVICTS);
    ck_assert_int_eq(warning.severity, SEVERITY_BAD);
    figures = good();
    figures.look.memory_bytes_max = 1000;
    figures.look.memory_bytes = 850;
    ck_assert_int_eq(only(&figures, true).code, WARNING_REDIS_NEARLY_FULL);
    figures = good();
    figures.look.appendonly = false;
    ck_assert_int_eq(only(&figures, true).code, WARNING_REDIS_FORGETS);
    figures = good();
    figures.only_in_redis = 5;
    ck_assert_int_eq(only(&figures, true).code, WARNING_HISTORY_FULL);
    figures.history_bytes_max = 0; /* somebody wanted no history */
    must_be_well(&figures);
}
END_TEST

START_TEST(going_back_is_told_for_an_hour)
{
    struct figures figures = good();

    figures.went_back_ago_ms = 3599999;
    ck_assert_int_eq(only(&figures, true).code, WARNING_REDIS_WENT_BACK);
    figures.went_back_ago_ms++;
    must_be_well(&figures);
    figures.lost = 7;
    ck_assert_int_eq(only(&figures, true).severity, SEVERITY_BAD);
}
END_TEST

START_TEST(all_at_once_the_worst_first)
{
    struct figures figures = good();
    struct health health;

    figures.stopping = true;
    figures.redis_ready = false;
    figures.lost = figures.only_in_redis = 1;
    figures.minute = (struct recent){.lines = 1000, .rejected = 1000, .dropped = 1, .overflow = 1};
    figures.look.open_age_ms = figures.look.sealed_for_ms = FLUSH_OVERDUE_MS;
    figures.went_back_ago_ms = 0;
    figures.look.appendonly = false;
    figures.look.eviction[0] = 'x';
    figures.look.memory_bytes = figures.look.memory_bytes_max = 1000;
    health_judge(&figures, &health);
    ck_assert_uint_ge(health.len, 10);
    for (size_t i = 1; i < health.len; i++)
        ck_assert_int_ge(health.warnings[i - 1].severity, health.warnings[i].severity);
    ck_assert_int_eq(health.warnings[0].code, WARNING_REDIS_AWAY);
    ck_assert(!health.ready);
    ck_assert_str_eq(health_reason(&health), health.warnings[0].text);
    figures.redis_ready = true;
    health_judge(&figures, &health);
    ck_assert_ptr_nonnull(strstr(health_reason(&health), "stopping"));
}
END_TEST

START_TEST(labels_are_escaped)
{
    struct figures figures = good();
    struct health health;
    char *text;

    figures.listeners[0].kind = "unix";
    figures.listeners[0].address = "/a\"b\\c\nd";
    health_judge(&figures, &health);
    text = metrics_text(&figures, &health, METRICS_PROMETHEUS);
    ck_assert_ptr_nonnull(
        strstr(text, "counterd_received_lines_total{listener=\"unix:///a\\\"b\\\\c\\nd\"} 1000\n"));
    free(text);
}
END_TEST

START_TEST(a_second_is_one_moment_however_often_it_is_noted)
{
    struct moment moments[MOMENTS_MAX];
    struct stats stats;

    stats_init(&stats);
    ck_assert_uint_eq(moments_copy(&stats.moments, moments), 0);
    for (int64_t ms = 5000; ms < 7000; ms += 100) {
        counter_add(&stats.lines, 1);
        counter_add(&stats.rejected[REJECT_UTF8], 2);
        stats_note_moment(&stats, ms);
    }
    ck_assert_uint_eq(moments_copy(&stats.moments, moments), 2);
    ck_assert_int_eq(moments[0].second, 5);
    ck_assert_uint_eq(moments[0].lines, 10);
    ck_assert_uint_eq(moments[1].lines, 20);
    ck_assert_uint_eq(moments[1].rejected, 40);
    for (int64_t second = 7; second < 1000; second++)
        stats_note_moment(&stats, second * 1000);
    ck_assert_uint_eq(moments_copy(&stats.moments, moments), MOMENTS_MAX);
    ck_assert_int_eq(moments[0].second, 1000 - MOMENTS_MAX);
    ck_assert_int_eq(moments[MOMENTS_MAX - 1].second, 999);
    stats_done(&stats);
}
END_TEST

START_TEST(a_histogram_counts_up_to_and_with_its_bounds)
{
    struct histogram histogram = {0};

    histogram_add(&histogram, -5);
    histogram_add(&histogram, histogram_bounds_us[0]);
    histogram_add(&histogram, histogram_bounds_us[0] + 1);
    histogram_add(&histogram, histogram_bounds_us[HISTOGRAM_BOUNDS - 1] + 1);
    ck_assert_uint_eq(counter_get(&histogram.counts[0]), 2);
    ck_assert_uint_eq(counter_get(&histogram.counts[1]), 1);
    ck_assert_uint_eq(counter_get(&histogram.counts[HISTOGRAM_BOUNDS]), 1);
    for (int i = 1; i < HISTOGRAM_BOUNDS; i++)
        ck_assert_int_gt(histogram_bounds_us[i], histogram_bounds_us[i - 1]);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, a_good_day);
    tcase_add_test(tests, redis_away);
    tcase_add_test(tests, what_waits_on_disk);
    tcase_add_test(tests, a_spool_that_fails);
    tcase_add_test(tests, ages_and_counts_as_people_say_them);
    tcase_add_test(tests, redis_refuses);
    tcase_add_test(tests, flushes_late);
    tcase_add_test(tests, junk_is_a_matter_of_its_share);
    tcase_add_test(tests, the_kernel_and_its_buffer);
    tcase_add_test(tests, redis_can_lose_what_it_has);
    tcase_add_test(tests, going_back_is_told_for_an_hour);
    tcase_add_test(tests, all_at_once_the_worst_first);
    tcase_add_test(tests, labels_are_escaped);
    tcase_add_test(tests, a_second_is_one_moment_however_often_it_is_noted);
    tcase_add_test(tests, a_histogram_counts_up_to_and_with_its_bounds);
}

int main(void)
{
    return unit_run("health", add_tests);
}
