/* screen - what `flusher top` shows: figures in, lines of text of a given width out
 *
 * Pure: it knows neither terminals nor clocks. Lines are printable ASCII, whatever was counted. What is too
 * long for a line goes on in the next one; only a key is cut.
 */
#ifndef FLUSHER_SCREEN_H
#define FLUSHER_SCREEN_H

#include "flusher/daemon.h"
#include "flusher/overview.h"

#define SCREEN_COLUMNS_MIN 20
#define SCREEN_COLUMNS_MAX 200
#define SCREEN_LINES_MAX   100

enum part_state {
    PART_ASKED, /* no answer yet, ever */
    PART_WELL,
    PART_AWAY, /* it can't be used, or no answer comes */
};

/* Of one of the three that are asked. */
struct part {
    enum part_state state;
    bool silent;         /* away because it does not answer; else it answers, and says no */
    int64_t well_ms;     /* how long ago it last answered well; -1 = never */
    const char *trouble; /* why it is away; any bytes */
};

#define RATE_UNKNOWN (-1)

struct figures {
    const char *namespace;
    int64_t shards;
    int64_t now_ms;      /* unix time of the frame */
    int64_t interval_ms; /* 0 = only one frame */

    struct part counterd;
    struct daemon_status daemon; /* its last good answer */
    int64_t received_per_s, rejected_per_s, dropped_per_s;

    struct part redis;
    bool pending_known; /* open and sealed, by the last good answers */
    struct pending pending;
    bool sealed_known; /* the sum of what is sealed, and how old it is: only Postgres can tell */
    struct largest largest;
    struct redis_memory memory;

    struct part postgres;
    struct overview overview; /* its last good answer */
};

enum screen_style {
    SCREEN_PLAIN,
    SCREEN_TITLE,
    SCREEN_GOOD,
    SCREEN_WARNING,
};

struct screen_line {
    char text[SCREEN_COLUMNS_MAX + 1]; /* NUL-terminated */
    enum screen_style style;
};

struct screen {
    size_t columns; /* within the limits above, whatever was asked for */
    size_t rows;
    size_t len;
    struct screen_line lines[SCREEN_LINES_MAX];
};

/* Draws a frame. What does not fit into `rows` lines is left out from the end on; 0 = as many as it takes. */
void screen_draw(struct screen *screen, const struct figures *figures, size_t columns, size_t rows);

#endif
