/* report - what the flusher prints on stdout, as text or as one JSON object, and the progress bar on stderr
 */
#ifndef FLUSHER_REPORT_H
#define FLUSHER_REPORT_H

#include "flusher/audit.h"
#include "flusher/daemon.h"
#include "flusher/overview.h"
#include "flusher/parked.h"
#include "flusher/pending.h"
#include "flusher/preview.h"
#include "flusher/quarantine.h"
#include "flusher/records.h"
#include "lib/config.h"

enum report_style {
    REPORT_TEXT,
    REPORT_JSON,
};

struct report_flush {
    int64_t keys, increments, events;
    int64_t shards, shards_failed;
    int64_t parked, dropped; /* keys of those */
    int64_t quarantined;     /* generations */
    int64_t elapsed_ms;
    const char *failure; /* NULL = none */
};

/* From now on all that is printed names this namespace, as that of others is printed too. Borrowed; NULL =
 * nothing does. */
void report_set_namespace(const char *namespace);

void report_flush(enum report_style style, const struct report_flush *flush);

/* What a run would flush now; `previews` as preview_read() fills them. */
void report_dry_run(enum report_style style, const struct config *config, const struct pending *pending,
                    const struct preview *previews);

void report_migrate(enum report_style style, size_t version, size_t done);

/* With a note, what is pending is not known for certain; NULL = it is. */
void report_key(enum report_style style, const char *key, const struct stored *stored,
                const struct key_pending *pending, const char *note);

/* What nobody could tell is null. */
void report_status(enum report_style style, const struct config *config, const struct overview_view *view);

struct report_audit {
    const struct shard_audit *total, *shards; /* the daemon's part is in the total's verdict */
    size_t shards_len;
    const struct daemon_status *daemon; /* NULL = it did not answer, and then: */
    const char *daemon_failure;
};

void report_audit(enum report_style style, const struct report_audit *audit);

void report_quarantine(enum report_style style, const struct quarantine_list *list);

/* `what` was done: "applied" or "dropped". */
void report_decisions(enum report_style style, const char *what, const struct decision *decisions,
                      size_t len);

void report_parked(enum report_style style, const struct parked_list *list);

/* `verb`: "retry" or "drop". */
void report_parked_result(enum report_style style, const char *verb, const struct parked_result *result);

#endif
