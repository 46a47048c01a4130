#include "flusher/screen.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "lib/log.h"

#define LABEL_COLUMNS 12
#define CELL_BYTES    (LOG_TEXT_BYTES + 100)

/* --- lines --- */

static size_t rows_of(const struct screen *screen)
{
    return screen->rows > 0 && screen->rows < SCREEN_LINES_MAX ? screen->rows : SCREEN_LINES_MAX;
}

/* A new last line; NULL when there is no room. */
static struct screen_line *new_line(struct screen *screen, enum screen_style style)
{
    struct screen_line *line;

    if (screen->len == rows_of(screen))
        return NULL;
    line = &screen->lines[screen->len++];
    line->text[0] = '\0';
    line->style = style;
    return line;
}

/* At most what fits. */
static void append(const struct screen *screen, struct screen_line *line, const char *text, size_t len)
{
    size_t used = strlen(line->text), room = used < screen->columns ? screen->columns - used : 0;

    if (len > room)
        len = room;
    memcpy(line->text + used, text, len);
    line->text[used + len] = '\0';
}

/* --- a flow of cells behind a label --- */

struct flow {
    struct screen *screen;
    struct screen_line *line; /* NULL = no room any more */
    size_t indent;
    enum screen_style style;
    bool begun; /* something stands in the line, so that a gap is due */
    const char *gap;
};

static void go_on(struct flow *flow)
{
    flow->line = new_line(flow->screen, flow->style);
    if (flow->line)
        snprintf(flow->line->text, sizeof(flow->line->text), "%*s", (int)flow->indent, "");
    flow->begun = false;
}

static struct flow flow_new(struct screen *screen, enum screen_style style, const char *label, size_t indent,
                            const char *gap)
{
    struct flow flow = {.screen = screen, .indent = indent, .style = style, .gap = gap};

    flow.line = new_line(screen, style);
    if (flow.line)
        snprintf(flow.line->text, sizeof(flow.line->text), "%-*s", (int)indent, label);
    return flow;
}

/* How much of a text goes into `room` columns: up to a blank, if there is one. */
static size_t piece_len(const char *text, size_t len, size_t room)
{
    size_t piece = room;

    if (len <= room)
        return len;
    while (piece > 0 && text[piece] != ' ')
        piece--;
    return piece > 0 ? piece : room;
}

/* On this line if it fits, else on the next; in pieces if it fits on none. */
static void flow_add(struct flow *flow, const char *text, size_t len)
{
    size_t gap = strlen(flow->gap), columns = flow->screen->columns;

    if (flow->line && flow->begun && strlen(flow->line->text) + gap + len > columns)
        go_on(flow);
    if (flow->line && flow->begun)
        append(flow->screen, flow->line, flow->gap, gap);
    while (flow->line) {
        size_t piece = piece_len(text, len, columns - strlen(flow->line->text));
        append(flow->screen, flow->line, text, piece);
        flow->begun = true;
        if (piece == len)
            break;
        piece += text[piece] == ' ';
        text += piece;
        len -= piece;
        go_on(flow);
    }
}

static void cell(struct flow *flow, const char *format, ...) PRINTF(2, 3);
static void cell(struct flow *flow, const char *format, ...)
{
    char text[CELL_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    flow_add(flow, text, strlen(text));
}

/* Word by word. */
static void words(struct flow *flow, const char *text)
{
    while (*text) {
        size_t len = strcspn(text, " ");
        if (len > 0)
            flow_add(flow, text, len);
        text += len + (text[len] == ' ');
    }
}

/* --- numbers --- */

#define SPELL_BYTES 48

/* 1,234,567 */
static const char *spell_count(char buf[SPELL_BYTES], int64_t number)
{
    char digits[24];
    size_t len, at = 0;

    snprintf(digits, sizeof(digits), "%" PRId64, number);
    len = strlen(digits);
    for (size_t i = 0; i < len; i++) {
        buf[at++] = digits[i];
        if (i + 1 < len && digits[i] != '-' && (len - i - 1) % 3 == 0)
            buf[at++] = ',';
    }
    buf[at] = '\0';
    return buf;
}

/* To what a glance takes in: 0.4 s, 12 s, 3 min, 2 h 5 min, 4 days. */
static const char *spell_age(char buf[SPELL_BYTES], int64_t ms)
{
    int64_t s = ms / 1000, min = s / 60, hours = min / 60;

    if (ms < 0)
        snprintf(buf, SPELL_BYTES, "0 s");
    else if (s < 10)
        snprintf(buf, SPELL_BYTES, "%" PRId64 ".%d s", s, (int)(ms % 1000 / 100));
    else if (s < 120)
        snprintf(buf, SPELL_BYTES, "%" PRId64 " s", s);
    else if (min < 120)
        snprintf(buf, SPELL_BYTES, "%" PRId64 " min", min);
    else if (hours < 48)
        snprintf(buf, SPELL_BYTES, "%" PRId64 " h %" PRId64 " min", hours, min % 60);
    else
        snprintf(buf, SPELL_BYTES, "%" PRId64 " days", hours / 24);
    return buf;
}

static const char *spell_clock(char buf[SPELL_BYTES], int64_t unix_ms)
{
    time_t seconds = (time_t)(unix_ms / 1000);
    struct tm utc;

    buf[0] = '\0';
    if (gmtime_r(&seconds, &utc))
        strftime(buf, SPELL_BYTES, "%Y-%m-%d %H:%M:%S", &utc);
    return buf;
}

static void cell_count(struct flow *flow, int64_t number, const char *unit)
{
    char buf[SPELL_BYTES];

    cell(flow, "%s %s", spell_count(buf, number), unit);
}

static void cell_rate(struct flow *flow, int64_t per_s)
{
    char buf[SPELL_BYTES];

    if (per_s != RATE_UNKNOWN)
        cell(flow, "%s/s", spell_count(buf, per_s));
}

/* --- warnings --- */

/* A flush a minute is usual; who misses two of them has stopped. */
#define LATE_MS 150000

static void warn(struct screen *screen, const char *format, ...) PRINTF(2, 3);
static void warn(struct screen *screen, const char *format, ...)
{
    struct flow flow = flow_new(screen, SCREEN_WARNING, "!", 2, " ");
    char text[CELL_BYTES];
    va_list args;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    words(&flow, text);
}

static bool is_away(const struct part *part)
{
    return part->state == PART_AWAY;
}

/* Redis and the flushes are looked at from here, and Postgres with them. */
static bool is_seen_from_here(const struct daemon_warning *warning)
{
    return strncmp(warning->code, "redis_", 6) == 0 || strncmp(warning->code, "flush_", 6) == 0;
}

static void warn_in_its_words(struct screen *screen, const struct daemon_warning *warning)
{
    struct flow flow = flow_new(screen, SCREEN_WARNING, "!", 2, " ");
    char escaped[LOG_TEXT_BYTES];

    words(&flow, log_escape(escaped, span_of(warning->text)));
    words(&flow, log_escape(escaped, span_of(warning->action)));
}

static void warn_of_storing(struct screen *screen, const struct figures *figures)
{
    const struct daemon_status *daemon = &figures->daemon;
    int64_t on_disk = daemon->on_disk + daemon->to_replay;
    char waiting[SPELL_BYTES], disk[SPELL_BYTES], escaped[LOG_TEXT_BYTES];

    if (figures->redis.state == PART_WELL && daemon->not_ready[0] != '\0')
        warn(screen, "Redis answers here, but counterd can't store, and says: %s",
             log_escape(escaped, span_of(daemon->not_ready)));
    else if (on_disk > 0)
        warn(screen, "counterd can't store; %s increments wait on its disk, and %s in its memory.",
             spell_count(disk, on_disk), spell_count(waiting, daemon->pending - daemon->on_disk));
    else
        warn(screen, "counterd can't store; %s increments wait in its memory.",
             spell_count(waiting, daemon->pending));
}

static void warn_of_counterd(struct screen *screen, const struct figures *figures)
{
    const struct daemon_status *daemon = &figures->daemon;

    if (is_away(&figures->counterd)) {
        warn(screen, "counterd does not answer. If it is stopped, nothing is received: start it, and see its "
                     "log. If it runs, see 'listen.http'.");
        return;
    }
    if (figures->counterd.state != PART_WELL)
        return;
    if (!daemon->ready)
        warn_of_storing(screen, figures);
    for (size_t i = 0; i < daemon->warnings_len; i++)
        if (!is_seen_from_here(&daemon->warnings[i]))
            warn_in_its_words(screen, &daemon->warnings[i]);
}

/* Percent of maxmemory from which on it is worth a word. */
#define NEARLY_FULL 90

static void warn_of_memory(struct screen *screen, const struct redis_memory *memory)
{
    char used[SPELL_BYTES], max[SPELL_BYTES];

    if (memory->max_bytes > 0 && memory->used_bytes / NEARLY_FULL * 100 >= memory->max_bytes)
        warn(screen,
             "Redis is %s: it uses %s of %s kB. Run flusher, which frees what it moves to Postgres, or raise "
             "maxmemory: what comes in waits in counterd when it is full.",
             memory->used_bytes >= memory->max_bytes ? "full" : "nearly full",
             spell_count(used, memory->used_bytes / 1024), spell_count(max, memory->max_bytes / 1024));
    if (memory->evicts)
        warn(screen, "Redis throws counts away when it is full: set maxmemory-policy to noeviction.");
}

static void warn_of_redis(struct screen *screen, const struct figures *figures)
{
    bool spools = figures->counterd.state == PART_WELL && figures->daemon.has_spool;

    if (is_away(&figures->redis) && !figures->redis.silent)
        warn(screen, "Redis can't be used, see below. What comes in waits in counterd's memory, and nothing "
                     "can be flushed.");
    else if (is_away(&figures->redis))
        warn(screen,
             "Redis does not answer: start it, or see 'redis.url'. What comes in waits in counterd's "
             "memory%s, "
             "and nothing can be flushed.%s",
             spools ? " and on its disk" : "", spools ? "" : " Don't stop counterd.");
    if (figures->redis.state == PART_WELL)
        warn_of_memory(screen, &figures->memory);
    if (figures->postgres.state == PART_WELL && figures->overview.gone_back > 0)
        warn(screen,
             "Redis has gone back in time or was emptied, in %" PRId64 " of %" PRId64
             " shards. The next flush sees to it; until then what is pending is not known.",
             figures->overview.gone_back, figures->shards);
}

static bool nobody_flushes(const struct figures *figures)
{
    const struct history *history = &figures->overview.history;

    return figures->postgres.state == PART_WELL && figures->pending_known &&
           figures->pending.oldest_ms > LATE_MS &&
           (!history->has_run || figures->now_ms - history->finished_ms > LATE_MS);
}

static void warn_of_flushes(struct screen *screen, const struct figures *figures)
{
    const struct overview *overview = &figures->overview;
    char buf[SPELL_BYTES], escaped[LOG_TEXT_BYTES];

    if (overview->stuck_ms > 0)
        warn(screen,
             "A flusher has been sitting in a transaction for %s and keeps others out: stopped, or swapped "
             "out? kill -CONT or kill -9 it. Postgres (process %" PRId64 ") cuts it off after 60 s.",
             spell_age(buf, overview->stuck_ms), overview->stuck_pid);
    if (nobody_flushes(figures) && overview->history.has_run)
        warn(screen,
             "No flusher has ended a run for %s: is cron running? See crontab, or run flusher by hand.",
             spell_age(buf, figures->now_ms - overview->history.finished_ms));
    else if (nobody_flushes(figures))
        warn(screen, "No flusher has ever run here: let cron run it, see examples/crontab.");
    if (overview->history.has_run && overview->history.failure[0] != '\0')
        warn(screen, "The last run failed: %s", log_escape(escaped, span_of(overview->history.failure)));
    if (overview->quarantined > 0)
        warn(screen,
             "%" PRId64 " generation%s not applied, because Redis went back in time: see 'flusher "
             "quarantine list'.",
             overview->quarantined, overview->quarantined > 1 ? "s were" : " was");
    if (overview->history.parked_rows > 0)
        warn(screen, "%s%s %s parked, because the target could not take them: see 'flusher parked list'.",
             spell_count(buf, overview->history.parked_rows),
             overview->history.parked_rows == PARKED_ROWS_MAX ? " or more" : "",
             overview->history.parked_rows == 1 ? "row is" : "rows are");
}

static void draw_warnings(struct screen *screen, const struct figures *figures)
{
    size_t before = screen->len;
    bool asked = figures->counterd.state == PART_ASKED || figures->redis.state == PART_ASKED ||
                 figures->postgres.state == PART_ASKED;
    struct flow flow;

    warn_of_redis(screen, figures);
    warn_of_counterd(screen, figures);
    if (is_away(&figures->postgres) && !figures->postgres.silent)
        warn(screen, "Postgres can't be used, see below. What comes in waits in Redis.");
    else if (is_away(&figures->postgres))
        warn(screen, "Postgres does not answer: start it, or see 'postgres.url'. What comes in waits in "
                     "Redis, and is flushed when it is back.");
    else if (figures->postgres.state == PART_WELL)
        warn_of_flushes(screen, figures);
    if (screen->len > before)
        return;
    flow = flow_new(screen, SCREEN_GOOD, "", 0, " ");
    words(&flow, asked ? "Waiting for the first answers." : "All is well.");
}

/* --- the pipeline --- */

static struct flow stage(struct screen *screen, const char *label)
{
    return flow_new(screen, SCREEN_PLAIN, label, LABEL_COLUMNS, "  ");
}

/* Whether there are figures to show; else, or beside them, says what is wrong. */
static bool tell_part(struct screen *screen, const char *label, const struct part *part)
{
    char age[SPELL_BYTES], escaped[LOG_TEXT_BYTES];
    struct flow flow;

    if (part->state == PART_WELL)
        return true;
    flow =
        flow_new(screen, part->state == PART_AWAY ? SCREEN_WARNING : SCREEN_PLAIN, label, LABEL_COLUMNS, " ");
    if (part->state == PART_ASKED) {
        words(&flow, "asked, no answer yet");
        return false;
    }
    words(&flow, "away:");
    words(&flow, log_escape(escaped, span_of(part->trouble)));
    if (part->well_ms >= 0) {
        char text[SPELL_BYTES + 64];
        snprintf(text, sizeof(text), "(what follows is %s old)", spell_age(age, part->well_ms));
        words(&flow, text);
    }
    return part->well_ms >= 0;
}

static void draw_counterd(struct screen *screen, const struct figures *figures)
{
    const struct daemon_status *daemon = &figures->daemon;
    struct flow flow;
    char escaped[LOG_TEXT_BYTES], buf[SPELL_BYTES];

    if (!tell_part(screen, "counterd", &figures->counterd))
        return;
    flow = stage(screen, "received");
    cell_count(&flow, daemon->received, "lines");
    cell_rate(&flow, figures->received_per_s);
    cell_count(&flow, daemon->accepted, "accepted");
    cell(&flow, "up %s", spell_age(buf, daemon->uptime_ms));
    flow = stage(screen, "  rejected");
    cell_count(&flow, daemon->rejected, "lines");
    if (daemon->rejected > 0)
        cell_rate(&flow, figures->rejected_per_s);
    for (size_t i = 0; i < daemon->reasons_len; i++)
        cell(&flow, "%s %s", log_escape(escaped, span_of(daemon->reasons[i].name)),
             spell_count(buf, daemon->reasons[i].lines));
    flow = stage(screen, "  kernel");
    cell_count(&flow, daemon->kernel_dropped, "datagrams dropped");
    if (daemon->kernel_dropped > 0)
        cell_rate(&flow, figures->dropped_per_s);
    flow = stage(screen, "memory");
    cell_count(&flow, daemon->pending - daemon->on_disk, "increments not in Redis yet");
    if (daemon->on_disk + daemon->to_replay == 0)
        return;
    flow = stage(screen, "  on disk");
    cell_count(&flow, daemon->on_disk + daemon->to_replay, "increments not in Redis yet");
}

static void draw_set(struct screen *screen, const char *label, int64_t keys, int64_t total, bool total_known)
{
    struct flow flow = stage(screen, label);
    char buf[SPELL_BYTES];

    cell_count(&flow, keys, keys == 1 ? "key" : "keys");
    if (total_known)
        cell(&flow, "sum %s", spell_count(buf, total));
    else
        cell(&flow, "sum known when Postgres answers");
}

static void draw_redis(struct screen *screen, const struct figures *figures)
{
    const struct pending *pending = &figures->pending;
    struct flow flow;
    char buf[SPELL_BYTES];

    if (!tell_part(screen, "Redis", &figures->redis) || !figures->pending_known)
        return;
    draw_set(screen, "Redis open", pending->open_keys, pending->open_total, true);
    draw_set(screen, "  sealed", pending->sealed_keys, pending->sealed_total, figures->sealed_known);
    flow = stage(screen, "  oldest");
    if (pending->oldest_ms > 0)
        cell(&flow, "%s", spell_age(buf, pending->oldest_ms));
    else
        cell(&flow, "nothing is pending");
}

static void draw_last_run(struct screen *screen, const struct figures *figures)
{
    const struct history *history = &figures->overview.history;
    int64_t elapsed_ms = history->finished_ms - history->started_ms;
    struct flow flow = stage(screen, "last run");
    char buf[SPELL_BYTES];

    if (!history->has_run) {
        cell(&flow, "never");
        return;
    }
    cell(&flow, "%s ago", spell_age(buf, figures->now_ms - history->finished_ms));
    cell(&flow, "%s", history->failure[0] == '\0' ? "ok" : "failed");
    cell_count(&flow, history->keys, history->keys == 1 ? "key" : "keys");
    cell(&flow, "sum %s", spell_count(buf, history->total));
    cell(&flow, "took %s", spell_age(buf, elapsed_ms));
    cell_rate(&flow, history->keys * 1000 / (elapsed_ms > 0 ? elapsed_ms : 1));
}

static void draw_postgres(struct screen *screen, const struct figures *figures)
{
    const struct overview *overview = &figures->overview;
    struct flow flow;
    char at[SPELL_BYTES], age[SPELL_BYTES];

    if (!tell_part(screen, "Postgres", &figures->postgres))
        return;
    flow = stage(screen, "Postgres");
    if (overview->history.fresh_ms > 0)
        cell(&flow, "has all up to %s, %s ago", spell_clock(at, overview->history.fresh_ms),
             spell_age(age, figures->now_ms - overview->history.fresh_ms));
    else
        cell(&flow, "not known yet how fresh: some shards have never been flushed");
    draw_last_run(screen, figures);
    flow = stage(screen, "kept apart");
    cell(&flow, "quarantined %" PRId64, overview->quarantined);
    cell(&flow, "parked %s%s", spell_count(at, overview->history.parked_rows),
         overview->history.parked_rows == PARKED_ROWS_MAX ? " or more" : "");
    if (overview->history.parked_rows > 0)
        cell(&flow, "sum %s", spell_count(at, overview->history.parked));
}

/* --- the rest --- */

static void draw_title(struct screen *screen, const struct figures *figures)
{
    struct flow flow = flow_new(screen, SCREEN_TITLE, "flusher top", 12, "  ");
    char at[SPELL_BYTES];

    cell(&flow, "%s", figures->namespace);
    cell(&flow, "%" PRId64 " shards", figures->shards);
    cell(&flow, "%s UTC", spell_clock(at, figures->now_ms));
    if (figures->interval_ms > 0)
        cell(&flow, "every %" PRId64 " s, q leaves", figures->interval_ms / 1000);
}

/* A key is cut rather than wrapped: a line each, so that the eye can run down. */
static void draw_key(struct screen *screen, struct span key, int64_t delta)
{
    struct screen_line *line = new_line(screen, SCREEN_PLAIN);
    char buf[SPELL_BYTES], escaped[LOG_TEXT_BYTES], text[CELL_BYTES];

    if (!line)
        return;
    snprintf(text, sizeof(text), "%*s  %s", screen->columns < 60 ? 10 : 16, spell_count(buf, delta),
             log_escape(escaped, key));
    append(screen, line, text, strlen(text));
    if (strlen(text) > screen->columns)
        memcpy(line->text + screen->columns - 3, "...", 3);
}

static void draw_largest(struct screen *screen, const struct figures *figures)
{
    const struct largest *largest = &figures->largest;
    struct flow flow;

    if (figures->redis.state != PART_WELL || largest->len == 0)
        return;
    new_line(screen, SCREEN_PLAIN);
    flow = flow_new(screen, SCREEN_TITLE, "", 0, " ");
    words(&flow, "largest keys in Redis");
    for (size_t i = 0; i < largest->len; i++)
        draw_key(screen, (struct span){largest->items[i].key, largest->items[i].key_len},
                 largest->items[i].delta);
}

void screen_draw(struct screen *screen, const struct figures *figures, size_t columns, size_t rows)
{
    screen->columns = columns < SCREEN_COLUMNS_MIN   ? SCREEN_COLUMNS_MIN
                      : columns > SCREEN_COLUMNS_MAX ? SCREEN_COLUMNS_MAX
                                                     : columns;
    screen->rows = rows;
    screen->len = 0;
    draw_title(screen, figures);
    new_line(screen, SCREEN_PLAIN);
    draw_warnings(screen, figures);
    new_line(screen, SCREEN_PLAIN);
    draw_counterd(screen, figures);
    draw_redis(screen, figures);
    draw_postgres(screen, figures);
    draw_largest(screen, figures);
}
