#include "flusher/top.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sysexits.h>
#include <termios.h>
#include <unistd.h>

#include "flusher/failure.h"
#include "flusher/watch.h"
#include "flusher/whole.h"
#include "lib/clock.h"
#include "lib/log.h"

#define COLUMNS_USUAL 80
#define ROWS_USUAL    24

/* One frame waits this long for whoever does not answer. */
#define ONCE_MS 10000

/* A frame is drawn at least this often, because ages grow without a report. */
#define DRAW_MS 1000

/* xterm's control sequences, which every terminal of these days knows. */
#define ENTER_SCREEN "\033[?1049h\033[?25l"
#define LEAVE_SCREEN "\033[0m\033[?25h\033[?1049l"
#define CLEAR_SCREEN "\033[2J"
#define CLEAR_REST   "\033[K"

static const char *const style_sequences[] = {
    [SCREEN_PLAIN] = "\033[0m",
    [SCREEN_TITLE] = "\033[0;1m",
    [SCREEN_GOOD] = "\033[0;32m",
    [SCREEN_WARNING] = "\033[0;1;31m",
};

/* The longest frame, each line with its place and style. */
#define FRAME_BYTES (SCREEN_LINES_MAX * (SCREEN_COLUMNS_MAX + 40))

struct top {
    struct watch *watch;
    int signals; /* signalfd */
    bool keys;   /* somebody may type */
    struct termios termios;
    int64_t interval_ms, next_ask_ms, next_draw_ms;
    struct screen screen, shown;
    char frame[FRAME_BYTES];
    bool over;
};

/* --- the terminal --- */

static void put(const char *bytes, size_t len)
{
    while (len > 0) {
        ssize_t n = write(STDOUT_FILENO, bytes, len);
        if (n < 0 && errno != EINTR)
            return;
        if (n > 0) {
            bytes += n;
            len -= (size_t)n;
        }
    }
}

static void enter_terminal(struct top *top)
{
    struct termios raw = top->termios;

    if (top->keys) {
        raw.c_lflag &= (tcflag_t) ~(ICANON | ECHO);
        tcsetattr(STDIN_FILENO, TCSADRAIN, &raw);
    }
    put(ENTER_SCREEN, strlen(ENTER_SCREEN));
    top->shown.columns = 0; /* nothing that was shown counts */
}

static void leave_terminal(struct top *top)
{
    put(LEAVE_SCREEN, strlen(LEAVE_SCREEN));
    if (top->keys)
        tcsetattr(STDIN_FILENO, TCSADRAIN, &top->termios);
}

static void take_size(size_t *ret_columns, size_t *ret_rows)
{
    struct winsize size;
    bool known = ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 && size.ws_row > 0;

    *ret_columns = known ? size.ws_col : COLUMNS_USUAL;
    *ret_rows = known ? size.ws_row : ROWS_USUAL;
}

/* Only what differs from what is shown, in one write, so that nothing flickers. */
static void draw(struct top *top)
{
    size_t columns, rows, len = 0, lines;
    bool anew;

    take_size(&columns, &rows);
    screen_draw(&top->screen, watch_figures(top->watch), columns, rows);
    anew = top->screen.columns != top->shown.columns || top->screen.rows != top->shown.rows;
    if (anew)
        len += (size_t)snprintf(top->frame, FRAME_BYTES, "%s%s", style_sequences[SCREEN_PLAIN], CLEAR_SCREEN);
    lines = top->screen.len > top->shown.len ? top->screen.len : top->shown.len;
    for (size_t i = 0; i < lines; i++) {
        const struct screen_line *line = &top->screen.lines[i], *before = &top->shown.lines[i];
        bool is = i < top->screen.len, was = i < top->shown.len && !anew;
        if (is == was && (!is || (line->style == before->style && strcmp(line->text, before->text) == 0)))
            continue;
        len += (size_t)snprintf(top->frame + len, FRAME_BYTES - len, "\033[%zu;1H%s%s%s", i + 1,
                                style_sequences[is ? line->style : SCREEN_PLAIN], is ? line->text : "",
                                is && strlen(line->text) == columns ? "" : CLEAR_REST);
    }
    put(top->frame, len);
    top->shown = top->screen;
    top->next_draw_ms = clock_monotonic_ms() + DRAW_MS;
}

/* --- the loop --- */

static sigset_t signals_taken(void)
{
    sigset_t signals;

    sigemptyset(&signals);
    sigaddset(&signals, SIGINT);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGHUP);
    sigaddset(&signals, SIGTSTP);
    sigaddset(&signals, SIGWINCH);
    return signals;
}

static void take_signal(struct top *top)
{
    struct signalfd_siginfo info;

    if (read(top->signals, &info, sizeof(info)) != sizeof(info) || info.ssi_signo == SIGWINCH)
        return;
    if (info.ssi_signo == SIGTSTP) {
        leave_terminal(top);
        raise(SIGSTOP);
        enter_terminal(top);
    } else {
        top->over = true;
    }
}

/* The end of the input is no reason to leave: a terminal that is gone says so by SIGHUP. */
static void take_keys(struct top *top)
{
    char keys[64];
    ssize_t len = read(STDIN_FILENO, keys, sizeof(keys));

    if (len <= 0)
        top->keys = len < 0 && errno == EINTR;
    for (ssize_t i = 0; i < len; i++)
        if (keys[i] == 'q' || keys[i] == 'Q')
            top->over = true;
}

/* Until something happens that may change the screen. */
static void wait_turn(struct top *top)
{
    int64_t now_ms = clock_monotonic_ms();
    int64_t until_ms = top->next_ask_ms < top->next_draw_ms ? top->next_ask_ms : top->next_draw_ms;
    struct pollfd fds[] = {{watch_fd(top->watch), POLLIN, 0},
                           {top->signals, POLLIN, 0},
                           {top->keys ? STDIN_FILENO : -1, POLLIN, 0}};

    if (poll(fds, ARRAY_LEN(fds), until_ms > now_ms ? (int)(until_ms - now_ms) : 0) <= 0)
        return;
    if (fds[0].revents)
        watch_take(top->watch);
    if (fds[1].revents)
        take_signal(top);
    if (fds[2].revents)
        take_keys(top);
}

static void run(struct top *top)
{
    enter_terminal(top);
    while (!top->over) {
        if (clock_monotonic_ms() >= top->next_ask_ms) {
            watch_ask(top->watch);
            top->next_ask_ms = clock_monotonic_ms() + top->interval_ms;
        }
        draw(top);
        wait_turn(top);
    }
    leave_terminal(top);
}

/* --- one frame --- */

static void await_reports(struct watch *watch, int64_t deadline_ms)
{
    struct pollfd fd = {watch_fd(watch), POLLIN, 0};
    int64_t left_ms;

    while (watch_waits(watch) && (left_ms = deadline_ms - clock_monotonic_ms()) > 0)
        if (poll(&fd, 1, (int)left_ms) > 0)
            watch_take(watch);
}

static size_t columns_told(void)
{
    const char *text = getenv("COLUMNS");
    int64_t columns;

    return text && whole_parse(span_of(text), &columns) && columns > 0 ? (size_t)columns : COLUMNS_USUAL;
}

static int print_once(struct top *top)
{
    int64_t deadline_ms = clock_monotonic_ms() + ONCE_MS;
    int failure = 0;

    /* Twice, because only what moved in between shows whether Redis has gone back in time. */
    for (int i = 0; i < 2 && failure == 0; i++) {
        watch_ask(top->watch);
        await_reports(top->watch, deadline_ms);
        failure = watch_failure(top->watch);
    }
    screen_draw(&top->screen, watch_figures(top->watch), columns_told(), 0);
    for (size_t i = 0; i < top->screen.len; i++)
        puts(top->screen.lines[i].text);
    return failure_exit_code(failure);
}

static int show(struct top *top, bool once)
{
    if (once)
        return print_once(top);
    top->keys = tcgetattr(STDIN_FILENO, &top->termios) == 0;
    run(top);
    return EX_OK;
}

int command_top(const struct config *config, const struct command_options *options)
{
    bool once = options->once || !isatty(STDOUT_FILENO);
    struct top *top = calloc(1, sizeof(*top));
    sigset_t signals = signals_taken();
    struct error error;
    int code, r = top ? 0 : error_set(&error, -ENOMEM, "out of memory");

    if (r == 0) {
        top->interval_ms = options->interval_ms ? options->interval_ms : TOP_INTERVAL_MS;
        top->signals = -1;
        /* Before there are threads, so that none of them takes a signal. One frame ends as any program. */
        if (!once) {
            sigprocmask(SIG_BLOCK, &signals, NULL);
            top->signals = signalfd(-1, &signals, SFD_CLOEXEC | SFD_NONBLOCK);
        }
        r = watch_new(config, once ? 0 : top->interval_ms, options->config_path, &top->watch, &error);
    }
    if (r < 0) {
        free(top);
        log_error(LOG_LEVEL_ERROR, "top_failed", &error);
        return failure_exit_code(r);
    }
    code = show(top, once);
    /* Who hangs works with the configuration still. */
    if (watch_waits(top->watch)) {
        fflush(stdout);
        _exit(code);
    }
    watch_free(top->watch);
    if (top->signals >= 0)
        close(top->signals);
    free(top);
    return code;
}
