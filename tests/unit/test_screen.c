#include "unit.h"

#include <stdio.h>

#include "flusher/screen.h"

/* Everything answers, and something is everywhere. */
static struct figures good_figures(void)
{
    struct figures figures = {
        .namespace = "counterd",
        .shards = 64,
        .now_ms = INT64_C(1700000100000),
        .interval_ms = 2000,
        .counterd = {.state = PART_WELL},
        .daemon = {.ready = true, .received = 1234567, .accepted = 1234565, .pending = 12, .rejected = 2},
        .received_per_s = 1000,
        .rejected_per_s = 0,
        .dropped_per_s = 0,
        .redis = {.state = PART_WELL},
        .pending_known = true,
        .pending =
            {.open_keys = 3, .open_total = 45, .sealed_keys = 1, .sealed_total = -6, .oldest_ms = 61000},
        .sealed_known = true,
        .postgres = {.state = PART_WELL},
        .overview = {.history = {.has_run = true,
                                 .fresh_ms = INT64_C(1700000090000),
                                 .started_ms = INT64_C(1700000089000),
                                 .finished_ms = INT64_C(1700000090000),
                                 .keys = 1000,
                                 .total = 998211}},
    };

    return figures;
}

/* All lines, joined by LF. */
static const char *draw(const struct figures *figures, size_t columns, size_t rows)
{
    static char text[SCREEN_LINES_MAX * (SCREEN_COLUMNS_MAX + 1) + 1];
    static struct screen screen;
    size_t len = 0;

    screen_draw(&screen, figures, columns, rows);
    for (size_t i = 0; i < screen.len; i++) {
        ck_assert_uint_le(strlen(screen.lines[i].text), screen.columns);
        len += (size_t)sprintf(text + len, "%s\n", screen.lines[i].text);
    }
    text[len] = '\0';
    for (size_t i = 0; i < len; i++)
        ck_assert_msg(text[i] == '\n' || (text[i] >= ' ' && text[i] <= '~'), "byte %02x",
                      (unsigned char)text[i]);
    return text;
}

static void must_show(const char *text, const char *part)
{
    ck_assert_msg(strstr(text, part) != NULL, "no '%s' in:\n%s", part, text);
}

static void must_not_show(const char *text, const char *part)
{
    ck_assert_msg(strstr(text, part) == NULL, "'%s' in:\n%s", part, text);
}

START_TEST(shows_where_counts_are)
{
    static const char *const parts[] = {
        "All is well.\n",
        "received    1,234,567 lines  1,000/s  1,234,565 accepted",
        "memory      12 increments not in Redis yet\n",
        "Redis open  3 keys  sum 45\n",
        "  sealed    1 key  sum -6\n",
        "  oldest    61 s\n",
        "Postgres    has all up to 2023-11-14 22:14:50, 10 s ago\n",
        "last run    10 s ago  ok  1,000 keys  sum 998,211  took 1.0 s  1,000/s\n",
        "kept apart  quarantined 0  parked 0\n",
    };
    struct figures figures = good_figures();
    const char *text = draw(&figures, 80, 0);

    for (size_t i = 0; i < ARRAY_LEN(parts); i++)
        must_show(text, parts[i]);
    must_not_show(text, "!");
}
END_TEST

START_TEST(fits_any_width_and_height)
{
    struct figures figures = good_figures();

    figures.redis = (struct part){PART_AWAY, true, 5000,
                                  "\x1b[2Jno\nanswer \xff, and a_word_that_fits_into_no_line_"
                                  "of_forty_columns_nor_of_twenty"};
    figures.daemon.kernel_dropped = INT64_MAX;
    figures.pending.open_total = INT64_MIN;
    for (size_t i = 0; i < LARGEST_MAX; i++)
        largest_add(&figures.largest, (struct span){"\x1b\x1b\x1b\x1b\x1b\x1b\x1b\x1b\x1b\x1b", i + 1},
                    INT64_MIN);
    for (size_t columns = 0; columns <= SCREEN_COLUMNS_MAX + 10; columns++) {
        const char *text = draw(&figures, columns, 0);
        must_show(text, "flusher top");
        must_show(text, "kept apart");
        for (size_t rows = 1; rows < 10; rows++) {
            size_t lines = 0;
            for (text = draw(&figures, columns, rows); *text; text++)
                lines += *text == '\n';
            ck_assert_uint_eq(lines, rows);
        }
    }
    figures.redis.state = PART_WELL;
    for (size_t columns = 0; columns <= SCREEN_COLUMNS_MAX + 10; columns++)
        draw(&figures, columns, 0);
}
END_TEST

START_TEST(wraps_at_words)
{
    struct figures figures = good_figures();

    figures.redis = (struct part){PART_AWAY, true, -1, "one two three four five six seven eight nine ten"};
    must_show(draw(&figures, 40, 0), "Redis       away: one two three four\n"
                                     "            five six seven eight nine\n"
                                     "            ten\n");
}
END_TEST

START_TEST(cuts_keys_and_escapes_them)
{
    struct figures figures = good_figures();
    char key[200];

    memset(key, 'k', sizeof(key));
    largest_add(&figures.largest, (struct span){key, sizeof(key)}, 7);
    largest_add(&figures.largest, span_of("a\xc3\xa9\x1b[31m"), 1234567);
    must_show(draw(&figures, 40, 0), "largest keys in Redis\n"
                                     " 1,234,567  a\\xc3\\xa9\\x1b[31m\n"
                                     "         7  kkkkkkkkkkkkkkkkkkkkkkkkk...\n");
}
END_TEST

START_TEST(says_who_is_away)
{
    static const struct part away = {PART_AWAY, true, 65000, "why"}, never = {PART_AWAY, true, -1, "why"},
                             refused = {PART_AWAY, false, -1, "why"}, asked = {PART_ASKED, false, -1, ""};
    struct figures figures = good_figures();
    const char *text;

    figures.counterd = figures.redis = figures.postgres = away;
    text = draw(&figures, 80, 0);
    must_show(text, "! counterd does not answer.");
    must_show(text, "! Redis does not answer: start it");
    must_show(text, "! Postgres does not answer: start it");
    must_show(text, "Postgres    away: why (what follows is 65 s old)\n");
    must_show(text, "received    1,234,567 lines");
    figures.counterd = figures.redis = figures.postgres = never;
    text = draw(&figures, 80, 0);
    must_show(text, "Redis       away: why\n");
    must_not_show(text, "received    ");
    must_not_show(text, "last run");
    figures.redis = figures.postgres = refused;
    text = draw(&figures, 80, 0);
    must_show(text, "! Redis can't be used, see below.");
    must_show(text, "! Postgres can't be used, see below.");
    figures.counterd = figures.redis = figures.postgres = asked;
    text = draw(&figures, 80, 0);
    must_show(text, "Waiting for the first answers.");
    must_show(text, "Postgres    asked, no answer yet\n");
}
END_TEST

/* Each warning by itself, and none without its reason. */
START_TEST(warns)
{
    struct figures figures;
    const char *text;

    figures = good_figures();
    figures.daemon.ready = false;
    snprintf(figures.daemon.not_ready, sizeof(figures.daemon.not_ready), "\"OOM\"");
    must_show(draw(&figures, 200, 0), "but counterd can't store, and says: \\\"OOM\\\"");
    figures.redis = (struct part){PART_AWAY, true, -1, "why"};
    text = draw(&figures, 200, 0);
    must_show(text, "counterd can't store; 12 increments wait in its memory.");
    must_show(text, "Don't stop counterd.");
    figures.daemon.has_spool = true;
    figures.daemon.on_disk = 10;
    figures.daemon.to_replay = 1000;
    text = draw(&figures, 200, 0);
    must_show(text, "counterd can't store; 1,010 increments wait on its disk, and 2 in its memory.");
    must_show(text, "memory      2 increments not in Redis yet\n  on disk   1,010 increments");
    must_not_show(text, "Don't stop counterd.");
    figures = good_figures();
    figures.daemon.warnings_len = 3;
    figures.daemon.warnings[0] = (struct daemon_warning){"junk", "Junk \x1b comes in.", "Find who sends it."};
    figures.daemon.warnings[1] = (struct daemon_warning){"flush_overdue", "No flush.", "Flush."};
    figures.daemon.warnings[2] = (struct daemon_warning){"redis_full", "It is full.", "Flush."};
    text = draw(&figures, 200, 0);
    must_show(text, "! Junk \\x1b comes in. Find who sends it.\n");
    must_not_show(text, "No flush.");
    must_not_show(text, "It is full.");
    figures = good_figures();
    figures.memory = (struct redis_memory){.used_bytes = 89000, .max_bytes = 100000};
    must_not_show(draw(&figures, 200, 0), "!");
    figures.memory.used_bytes = 91000;
    must_show(draw(&figures, 200, 0), "! Redis is nearly full: it uses 88 of 97 kB");
    figures.memory.used_bytes = 100000;
    must_show(draw(&figures, 200, 0), "! Redis is full");
    figures = good_figures();
    figures.overview.gone_back = 3;
    must_show(draw(&figures, 200, 0), "in 3 of 64 shards");
    figures = good_figures();
    figures.overview.stuck_ms = 12000;
    figures.overview.stuck_pid = 4711;
    text = draw(&figures, 200, 0);
    must_show(text, "sitting in a transaction for 12 s");
    must_show(text, "(process 4711)");
    figures = good_figures();
    snprintf(figures.overview.history.failure, RUN_ERROR_BYTES, "no \x1b luck");
    must_show(draw(&figures, 200, 0), "! The last run failed: no \\x1b luck\n");
    figures = good_figures();
    figures.overview.quarantined = 2;
    must_show(draw(&figures, 200, 0), "! 2 generations were not applied");
    figures = good_figures();
    figures.overview.history.parked_rows = PARKED_ROWS_MAX;
    figures.overview.history.parked = -7;
    text = draw(&figures, 200, 0);
    must_show(text, "! 100,000 or more rows are parked");
    must_show(text, "parked 100,000 or more  sum -7\n");
}
END_TEST

START_TEST(tells_late_from_idle)
{
    struct figures figures = good_figures();

    /* Late, but a run has just ended: it will be better with the next one, or say why not. */
    figures.pending.oldest_ms = 3600000;
    must_not_show(draw(&figures, 200, 0), "!");
    figures.overview.history.finished_ms -= 600000;
    must_show(draw(&figures, 200, 0), "! No flusher has ended a run for 10 min: is cron running?");
    /* Nothing is pending, so nobody is missed. */
    figures.pending = (struct pending){0};
    must_not_show(draw(&figures, 200, 0), "!");
    figures.pending.oldest_ms = 3600000;
    figures.overview.history.has_run = false;
    must_show(draw(&figures, 200, 0), "! No flusher has ever run here");
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, shows_where_counts_are);
    tcase_add_test(tests, fits_any_width_and_height);
    tcase_add_test(tests, wraps_at_words);
    tcase_add_test(tests, cuts_keys_and_escapes_them);
    tcase_add_test(tests, says_who_is_away);
    tcase_add_test(tests, warns);
    tcase_add_test(tests, tells_late_from_idle);
}

int main(void)
{
    return unit_run("screen", add_tests);
}
