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
    struct listener *listeners; /* kept; the receiver closes them */
    size_t listeners_len;
    struct ingest *ingest; /* kept */
    struct stats *stats;   /* kept */
    void *context;
    void (*on_received)(void *context); /* after every turn in which something came */
};

/* Gives NULL when out of memory. */
struct receiver *receiver_new(const struct receiver_options *options);
void receiver_free(struct receiver *receiver);

/* Reads the kernel's counts of what it dropped, and warns of it now and then. */
void receiver_check_dropped(struct receiver *receiver);

/* Lets nothing new in, reads all that the kernel holds, and closes everything. */
void receiver_drain(struct receiver *receiver);

#endif
