/* http - GET /healthz, /readyz and /v1/status for people, load balancers and monitoring, and POST
 * /v1/increments
 *
 * Runs on the main thread's loop, so that it never holds a worker up.
 */
#ifndef COUNTERD_HTTP_H
#define COUNTERD_HTTP_H

#include "counterd/increments.h"
#include "counterd/status.h"

struct event_base;
struct http;

struct http_options {
    struct event_base *base;
    const struct listener *listener; /* whose socket is taken */
    const struct status_view *view;  /* kept */
    struct increments *increments;   /* kept */
};

/* Gives NULL when out of memory. */
struct http *http_new(const struct http_options *options);
void http_free(struct http *http);

#endif
