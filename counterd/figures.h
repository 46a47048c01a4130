/* figures - all that counterd knows of itself at one moment, as plain numbers
 *
 * Taken once for each answer, so that the page, the JSON, the metrics and the warnings of one moment agree.
 * What comes later in a line's life is read first, so that traffic in between makes nothing look lost.
 */
#ifndef COUNTERD_FIGURES_H
#define COUNTERD_FIGURES_H

#include "counterd/reader.h"
#include "counterd/stats.h"

/* How far the recent past reaches. */
#define RECENT_SECONDS 300

/* Of all kinds, and HTTP. */
#define LISTENER_FIGURES_MAX (3 * CONFIG_LISTEN_MAX + 1)

/* Workers that hear on the same address are told as one. */
struct listener_figures {
    const char *kind;    /* "udp", "tcp", "unix", "http" */
    const char *address; /* borrowed */
    uint64_t lines, datagrams, bytes, dropped, buffer_bytes;
};

struct histogram_figures {
    uint64_t counts[HISTOGRAM_BOUNDS + 1]; /* not cumulative */
    uint64_t sum_us;
};

/* What came in one second, or in some. */
struct recent {
    uint64_t lines, rejected, dropped, overflow;
};

struct figures {
    const char *namespace; /* borrowed */
    uint64_t shards, workers;
    int64_t uptime_ms, started_unix_ms;
    bool stopping;

    uint64_t lines, datagrams, bytes, connections, connections_refused, truncated;
    uint64_t accepted, rejected[REJECT_COUNT], rejected_total, fields_ignored, dropped;
    struct listener_figures listeners[LISTENER_FIGURES_MAX];
    size_t listeners_len;
    uint64_t buffer_bytes_asked;

    uint64_t keys, keys_max, table_bytes, overflow;
    uint64_t keys_max_each; /* of a worker */
    uint64_t fanout_overflow, fanout_left_out;
    uint64_t pending;       /* accepted increments that are not in Redis, nor lost: in memory, or on disk */
    uint64_t spool_lost;    /* accepted, and lost by a spool that could not be read again */
    uint64_t on_disk;       /* those of them that are in the spool */
    uint64_t to_replay;     /* in the spool too, but an earlier process had accepted them */
    int64_t pending_age_ms; /* of the oldest in memory or on disk, of any process; 0 when there are none */
    int64_t memory_age_ms;  /* of the oldest in memory */
    uint64_t appended, batches, resent_batches;
    int64_t appended_ago_ms; /* -1 = never */
    uint64_t history_bytes, history_bytes_max;
    uint64_t only_in_redis; /* increments that the history had no room for */
    uint64_t spooled, spooled_batches, replayed, replayed_batches, spool_bytes, spool_errors;
    uint64_t spool_bytes_most, spool_bytes_max; /* of the fullest worker; what each may use, 0 = no spool */
    int64_t spool_error_ago_ms;                 /* -1 = never */
    char spool_trouble[TROUBLE_BYTES];
    struct histogram_figures append, gather;

    bool redis_ready, redis_misfit;
    int64_t refused_ago_ms; /* -1 = never */
    char trouble[TROUBLE_BYTES];
    uint64_t redis_lost, redis_errors, went_back, lost, unreplicated;
    uint64_t idempotent_duplicates, idempotent_conflicts;
    int64_t went_back_ago_ms; /* -1 = never */
    struct reader_look look;
    int64_t look_ago_ms;  /* -1 = never */
    char look_error[256]; /* "" = none */

    struct recent minute;                 /* the last 60 seconds */
    struct recent recent[RECENT_SECONDS]; /* oldest first; the last one is the last whole second */
    uint64_t rss_bytes;
    double cpu_seconds;
};

/* What there is to tell about; all borrowed. */
struct status_view {
    const struct config *config;
    struct worker **workers;
    size_t workers_len;
    struct stats **stats; /* of everybody who counts: the workers, and POST /v1/increments */
    size_t stats_len;
    struct stats *posts;                  /* that of POST /v1/increments; NULL without HTTP */
    const struct listener *http_listener; /* NULL without HTTP */
    int64_t started_ms;                   /* clock_monotonic_ms() */
    int64_t started_unix_ms;
    bool stopping;
};

/* One counter summed over all, by its offset in struct stats. */
uint64_t status_sum(const struct status_view *view, size_t stats_offset);

/* `look` and its error as the reader gave them. */
void figures_take(const struct status_view *view, const struct reader_look *look, const char *look_error,
                  struct figures *ret_figures);

#endif
