/* stream - lines over TCP: connections, their framing, and SYNC
 *
 * `SYNC token` on a line of its own is answered `SYNCED token` when all that came before it on that
 * connection is in Redis. Nobody reads from connections while they are paused: TCP then holds the clients
 * back, before memory runs out. Belongs to one worker's loop.
 */
#ifndef COUNTERD_STREAM_H
#define COUNTERD_STREAM_H

#include "counterd/ingest.h"
#include "counterd/listener.h"
#include "counterd/pipeline.h"

struct event_base;
struct streams;

struct streams_options {
    struct event_base *base;
    struct ingest *ingest;     /* kept */
    struct pipeline *pipeline; /* kept */
    struct stats *stats;       /* kept */
    void *context;
    void (*on_received)(void *context); /* after every turn in which something came */
};

/* Gives NULL when out of memory. */
struct streams *streams_new(const struct streams_options *options);
void streams_free(struct streams *streams);

/* Keeps the listener, of which connections are accepted from now on. -ENOMEM. */
MUST_CHECK int streams_listen(struct streams *streams, struct listener *listener);

void streams_pause(struct streams *streams, bool paused);

/* Accepts and reads all that the kernel holds and no more, of all connections in turn, for some seconds at
 * most; connections that wait at an inherited listener are left for who comes next. What waits for SYNCED
 * stays until it is answered or streams_free(). */
void streams_drain(struct streams *streams);

#endif
