/* listener - opening the sockets that counterd hears on
 *
 * Plain system calls; nothing is read here. A socket is opened before any thread runs, and belongs to one
 * worker then.
 */
#ifndef COUNTERD_LISTENER_H
#define COUNTERD_LISTENER_H

#include "counterd/stats.h"
#include "lib/error.h"

enum listener_kind { LISTENER_UDP, LISTENER_TCP, LISTENER_UNIX };

/* "udp", "tcp", "unix" */
const char *listener_kind_name(enum listener_kind kind);

#define LISTENER_NAME_BYTES 128

struct listener {
    enum listener_kind kind;
    int fd;                         /* -1 = closed; non-blocking */
    char name[LISTENER_NAME_BYTES]; /* "127.0.0.1:8125", with the port that it got; or the socket's path */
    int64_t buffer_bytes;           /* what the kernel gave for receiving; 0 for TCP */
    bool inherited; /* somebody else has it open too, and hands it to whoever comes after us */
    bool copied;    /* another listener of ours has the same socket, and counts its drops */
    /* Counted by the worker, read by anyone. */
    counter datagrams, bytes, lines;
    counter dropped;       /* datagrams that the kernel dropped because the buffer was full */
    uint32_t dropped_seen; /* the kernel's own 32-bit count, as last read */
};

struct listener_options {
    enum listener_kind kind;
    const char *address;  /* host:port, or a path */
    int64_t buffer_bytes; /* what to ask for */
    bool shared;          /* several workers hear on the same address, by SO_REUSEPORT */
    uint32_t sharing;     /* shared: how many of them have opened it, this one included */
};

/* Opens, binds, and for TCP listens. With port 0 the kernel picks one. Fails with -EADDRINUSE when somebody
 * else has the address, -EINVAL when it is none of this machine's, and other negative errnos. */
MUST_CHECK int listener_open(struct listener *listener, const struct listener_options *options,
                             struct error *error);

/* Whether the open socket `fd` is of the kind and has the address. */
bool listener_fits(int fd, const struct listener_options *options);

/* Takes an open socket that fits. What it had dropped before is told, and not counted as ours. */
void listener_inherit(struct listener *listener, const struct listener_options *options, int fd, bool copied);

/* The address that a socket is bound to, as text; "" when it has none. */
void listener_name(int fd, char ret_name[LISTENER_NAME_BYTES]);

/* Lets nothing new in, but leaves what the kernel holds readable, so that it can be drained. TCP: connections
 * not yet accepted are still there too. Nothing for an inherited one: what comes now is for who comes next.
 */
void listener_shut(struct listener *listener);

void listener_close(struct listener *listener);

/* Reads the kernel's count of dropped datagrams; returns how many are new. */
uint64_t listener_read_dropped(struct listener *listener);

#endif
