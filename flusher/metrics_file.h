/* metrics_file - what one run did and left, for node_exporter's textfile collector
 *
 * The file is always whole: it is written beside its place and renamed into it, mode 0644. Every metric is
 * labelled with the namespace, and those that nobody could find out are not there. What must outlive the run,
 * the time of the last success, is taken over from the file that is replaced.
 */
#ifndef FLUSHER_METRICS_FILE_H
#define FLUSHER_METRICS_FILE_H

#include "flusher/overview.h"

struct run_metrics {
    int64_t finished_ms; /* unix time */
    int64_t elapsed_ms;
    int exit_code;
    int64_t shards, shards_failed;
    int64_t keys, increments, events;
    int64_t parked, dropped;         /* keys of those */
    int64_t quarantined;             /* generations, by this run */
    const struct overview *overview; /* after the run; NULL = Postgres did not answer */
};

/* Writes `path`. A negative errno, with a text, when that failed; the old file then stays as it was. */
MUST_CHECK int metrics_file_write(const char *path, const struct config *config,
                                  const struct run_metrics *metrics, struct error *error);

#endif
