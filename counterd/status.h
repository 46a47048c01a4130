/* status - what counterd answers in JSON: itself, and what is pending in Redis
 *
 * All texts are given: to be freed with free(); NULL when out of memory.
 */
#ifndef COUNTERD_STATUS_H
#define COUNTERD_STATUS_H

#include "counterd/figures.h"
#include "counterd/health.h"

/* GET /v1/status. `recent`: with the last minutes, second by second. */
char *status_json(const struct status_view *view, const struct figures *figures, const struct health *health,
                  bool recent);

/* GET /v1/counters/KEY */
char *status_pending_json(const char *key, const struct reader_pending *pending);

/* GET /v1/top */
char *status_top_json(const struct reader_top_key *keys, size_t len);

/* {"error": ...} */
char *status_error_json(const char *text);

#endif
