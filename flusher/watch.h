/* watch - asks counterd, Redis and Postgres again and again, each in a thread of its own, so that one that
 * hangs keeps nobody waiting: neither the other two nor who looks
 *
 * Nothing is shared: what a thread works with belongs to it from being asked until it has reported, and to
 * the caller else. Postgres is asked when Redis has reported, as pending.h wants it; where that
 * takes longer than a round, without it.
 */
#ifndef FLUSHER_WATCH_H
#define FLUSHER_WATCH_H

#include "flusher/screen.h"

struct watch;

/* Borrows `config`, and `config_path` for texts. `interval_ms` is only shown. The threads take the signal
 * mask of this moment. */
MUST_CHECK int watch_new(const struct config *config, int64_t interval_ms, const char *config_path,
                         struct watch **ret_watch, struct error *error);

/* Not while watch_waits(): who is asked works with it, and with the configuration, until it has reported, and
 * nothing can make it. Then only the program's end ends it. */
void watch_free(struct watch *watch);

/* Readable when somebody has reported. */
int watch_fd(const struct watch *watch);

/* Asks all who owe no answer. */
void watch_ask(struct watch *watch);

/* Takes the reports that are there into what watch_figures() gives. */
void watch_take(struct watch *watch);

/* Whether a report of what was asked is still to come. */
bool watch_waits(const struct watch *watch);

/* The figures as of now; who owes an answer for longer than WATCH_PATIENCE_MS is called away. Valid until the
 * next call of any of these. */
#define WATCH_PATIENCE_MS 3000
const struct figures *watch_figures(struct watch *watch);

/* 0, or the worst failure of Redis and Postgres (flusher/failure.h) by their last reports, and
 * FAILURE_UNAVAILABLE for who owes one. */
int watch_failure(const struct watch *watch);

#endif
