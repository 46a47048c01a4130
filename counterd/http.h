/* http - what counterd answers to people, load balancers, monitoring and browsers; and POST /v1/increments
 *
 *     GET /                   the status page
 *     GET /healthz /readyz    alive; can store
 *     GET /metrics            for Prometheus
 *     GET /v1/status          every figure as JSON; ?recent: with the last minutes, second by second
 *     GET /v1/counters/KEY    what one key has pending in Redis
 *     GET /v1/top?n=          the keys that have most pending there
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
    struct reader *reader;           /* kept; freed before this, so that whoever waits is answered */
};

/* Gives NULL when out of memory. */
struct http *http_new(const struct http_options *options);
void http_free(struct http *http);

#endif
