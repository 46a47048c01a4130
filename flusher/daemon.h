/* daemon - asks the counterd of this configuration how much it has received, over HTTP on listen.http
 *
 * One bounded GET of /v1/status: a deadline over all of it, an answer of limited size. No HTTP library,
 * because the other side is ours.
 */
#ifndef FLUSHER_DAEMON_H
#define FLUSHER_DAEMON_H

#include "lib/config.h"
#include "lib/error.h"

#define DAEMON_REASONS_MAX  16
#define DAEMON_WARNINGS_MAX 16

/* In its words, any bytes: what is wrong, and what to do. */
struct daemon_warning {
    char code[32];
    char text[400];
    char action[400];
};

struct daemon_status {
    bool ready;          /* it can store */
    char not_ready[400]; /* else why not, in its words; any bytes */
    int64_t received;    /* lines */
    int64_t accepted;    /* increments; of these: */
    int64_t pending;     /* not in Redis yet */
    int64_t on_disk;     /* of these, those that are in its spool */
    int64_t to_replay;   /* in its spool too, from an earlier process that had accepted them */
    bool has_spool;
    int64_t lost;           /* at most, when Redis forgot more than its history held */
    int64_t rejected;       /* lines, in all */
    int64_t kernel_dropped; /* datagrams */
    int64_t uptime_ms;
    struct {
        char name[32];
        int64_t lines;
    } reasons[DAEMON_REASONS_MAX]; /* why lines were rejected, without those that did not occur */
    size_t reasons_len;
    struct daemon_warning warnings[DAEMON_WARNINGS_MAX]; /* all but its notes, the worst first */
    size_t warnings_len;
};

/* A negative errno, with a text, when nobody answers or not as a counterd of this namespace does. */
MUST_CHECK int daemon_ask(const struct config *config, struct daemon_status *ret_status, struct error *error);

#endif
