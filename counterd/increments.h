/* increments - POST /v1/increments: lines that are answered for once they are in Redis
 *
 * Has a table and a connection to Redis of its own, on the main thread's loop. All requests that come while
 * one append is on its way share the next one; those with an Idempotency-Key go alone
 * (counterd/idempotent.h). What can't be stored soon is turned away instead of taken: 503 while Redis is
 * away, 429 when too many wait.
 */
#ifndef COUNTERD_INCREMENTS_H
#define COUNTERD_INCREMENTS_H

#include "counterd/pipeline.h"

#define INCREMENTS_BODY_BYTES_MAX (1024 * 1024)

struct evhttp_request;
struct increments;

/* Keeps all. `on_done` tells that it has stopped. `spool_directory`: pipeline_options. Gives NULL when out of
 * memory. */
struct increments *increments_new(struct event_base *base, const struct config *config, int spool_directory,
                                  void *context, void (*on_done)(void *context));

/* After the server whose requests it answers: that ends whoever still waits. */
void increments_free(struct increments *increments);

/* Answers a POST, at once or when its lines are stored. */
void increments_post(struct increments *increments, struct evhttp_request *request);

void increments_set_limits(struct increments *increments, const struct pipeline_limits *limits);

/* Takes no more requests, stores what is there, and tells by on_done. */
void increments_stop(struct increments *increments);

/* After on_done. */
struct pipeline_rest increments_take_rest(struct increments *increments);

struct stats *increments_stats(struct increments *increments);

#endif
