/* http - GET /healthz, /readyz and /v1/status, for people, load balancers and monitoring
 *
 * Runs on the main thread's loop, so that it never holds a worker up.
 */
#ifndef COUNTERD_HTTP_H
#define COUNTERD_HTTP_H

#include "counterd/status.h"

struct event_base;
struct http;

/* Serves on the listener's socket, which is kept; so is `view`. Gives NULL when out of memory. */
struct http *http_new(struct event_base *base, const struct listener *listener,
                      const struct status_view *view);
void http_free(struct http *http);

#endif
