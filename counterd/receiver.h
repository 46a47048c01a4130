/* receiver - reading what comes in on a worker's sockets, in bounded turns
 *
 * Datagrams by recvmmsg, streams by a read per turn, so that timers and other sockets are served under any
 * load. Belongs to one worker's loop.
 */
#ifndef COUNTERD_RECEIVER_H
#define COUNTERD_RECEIVER_H

#include "counterd/ingest.h"
#include "counterd/listener.h"

struct event_base;
struct receiver;

struct receiver_options {
    struct event_base *base;
    struct ingest *ingest; /* kept */
    struct stats *stats;   /* kept */
    void *context;
    void (*on_received)(void *context); /* after every turn in which something came */
};

/* Gives NULL when out of memory. */
struct receiver *receiver_new(const struct receiver_options *options);
void receiver_free(struct receiver *receiver);

/* Keeps the listener, UDP or Unix, and reads from it from now on. -ENOMEM. */
MUST_CHECK int receiver_listen(struct receiver *receiver, struct listener *listener);

/* Reads the kernel's counts of what it dropped, and warns of it now and then. */
void receiver_check_dropped(struct receiver *receiver);

/* Reads no more; but first all that the kernel holds of listeners that were shut. */
void receiver_drain(struct receiver *receiver);

#endif
