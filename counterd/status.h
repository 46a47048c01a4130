/* status - every counter that counterd keeps, summed over all that count, as JSON */
#ifndef COUNTERD_STATUS_H
#define COUNTERD_STATUS_H

#include "counterd/worker.h"

/* What there is to tell about; all borrowed. */
struct status_view {
    const struct config *config;
    struct worker **workers;
    size_t workers_len;
    struct stats **stats; /* of everybody who counts: the workers, and POST /v1/increments */
    size_t stats_len;
    int64_t started_ms; /* clock_monotonic_ms() */
    bool stopping;
};

/* Whether what is received can be stored; if not, `ret_reason` is a static text that says why. */
bool status_ready(const struct status_view *view, const char **ret_reason);

/* Gives the text of /v1/status, to be freed with free(); NULL when out of memory. */
char *status_json(const struct status_view *view);

/* One counter summed over all, by its offset in struct stats. */
uint64_t status_sum(const struct status_view *view, size_t stats_offset);

#endif
