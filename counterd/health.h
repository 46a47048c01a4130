/* health - what is wrong, in words, from the figures of one moment
 *
 * The one place that decides it: the page, /v1/status, /readyz and the metrics all show this list. Pure: no
 * clock, no connection; what it knows stands in struct figures.
 */
#ifndef COUNTERD_HEALTH_H
#define COUNTERD_HEALTH_H

#include "counterd/figures.h"

enum severity {
    SEVERITY_NOTE, /* worth knowing */
    SEVERITY_WARN, /* counts are late, or would be lost if something else went wrong too */
    SEVERITY_BAD,  /* counts can't be stored, or are being lost or misfiled now */
};

/* A row each in docs/operations.md, and the value of `code` in metrics and alerts. */
enum warning_code {
    WARNING_STOPPING,
    WARNING_REDIS_AWAY,
    WARNING_REDIS_MISFIT,
    WARNING_REDIS_FULL,
    WARNING_REDIS_REFUSES, /* up to here: not ready */
    WARNING_SPOOL_FAILED,
    WARNING_INCREMENTS_LOST,
    WARNING_KERNEL_DROPPING,
    WARNING_KEYS_OVER_LIMIT,
    WARNING_JUNK,
    WARNING_FLUSH_STUCK,
    WARNING_FLUSH_OVERDUE,
    WARNING_REDIS_WENT_BACK,
    WARNING_SPOOL_NEARLY_FULL,
    WARNING_HISTORY_FULL,
    WARNING_REDIS_EVICTS,
    WARNING_REDIS_NEARLY_FULL,
    WARNING_SPOOL_DRAINING,
    WARNING_REDIS_FORGETS,
    WARNING_REDIS_UNREAD,
    WARNING_BUFFER_CLAMPED,
    WARNING_COUNT
};

struct warning {
    enum warning_code code;
    enum severity severity;
    char text[400];   /* what is wrong, and where the counts are meanwhile */
    char action[400]; /* what to do */
};

struct health {
    bool ready; /* what is received can be stored */
    size_t len;
    struct warning warnings[WARNING_COUNT]; /* the worst first */
};

/* What has been open or sealed for so long is overdue; cron comes every minute. */
#define FLUSH_OVERDUE_MS 180000

void health_judge(const struct figures *figures, struct health *ret_health);

/* The text of the warning for which it is not ready; "" when it is. Borrowed from `health`. */
const char *health_reason(const struct health *health);

/* "redis_away" and so on. */
const char *warning_name(enum warning_code code);

/* "note", "warn", "bad" */
const char *severity_name(enum severity severity);

#endif
