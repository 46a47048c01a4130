/* idempotent - a POST with an Idempotency-Key: applied once, however often it is sent
 *
 * Parses the lines into a table of its own, which becomes a request of counterd/once.h at once, and carries
 * that to Redis over a connection of its own, past the table that fills. Nothing of a request is counted (as
 * received, accepted, appended) before it is in Redis, and never twice. A client that goes away stops
 * nothing. On the main thread's loop.
 */
#ifndef COUNTERD_IDEMPOTENT_H
#define COUNTERD_IDEMPOTENT_H

#include "counterd/stats.h"
#include "lib/config.h"

struct event_base;
struct evhttp_request;
struct idempotent;

/* Keeps all. `on_done` tells that it has stopped. Gives NULL when out of memory. */
struct idempotent *idempotent_new(struct event_base *base, const struct config *config, struct stats *stats,
                                  void *context, void (*on_done)(void *context));

/* Nobody is answered any more: after the server. */
void idempotent_free(struct idempotent *idempotent);

/* Answers a POST with this value of the header, at once or when all of it is stored. */
void idempotent_post(struct idempotent *idempotent, struct evhttp_request *request, const char *key);

/* Takes no more, finishes what is there, each within redis.timeout_ms, and tells by on_done; perhaps from
 * inside this call. */
void idempotent_stop(struct idempotent *idempotent);

#endif
