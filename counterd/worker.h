/* worker - a thread with a loop of its own, its sockets, its table and its connection to Redis
 *
 * Workers share nothing with each other. What others may do is here: start it, hand it new limits, ask it to
 * stop, read its counters.
 */
#ifndef COUNTERD_WORKER_H
#define COUNTERD_WORKER_H

#include "counterd/listener.h"
#include "counterd/pipeline.h"
#include "counterd/stats.h"
#include "lib/config.h"

struct worker;

struct worker_options {
    const struct config *config; /* kept */
    struct listener *listeners;  /* taken, with the array (malloc); open */
    size_t listeners_len;
    int spool_directory; /* pipeline_options */
    int done_fd; /* an eventfd, which gets 1 when the worker has shut its sockets, and 1 when it has stopped;
                    kept */
};

/* Gives NULL when out of memory; the listeners are closed then too. */
struct worker *worker_new(const struct worker_options *options);

/* Waits for the thread, which must have been asked to stop if it was started. */
void worker_free(struct worker *worker);

/* Before it starts: pipeline_carry(). */
void worker_carry(struct worker *worker, struct span key, int64_t micros);

/* Starts the thread. */
MUST_CHECK int worker_start(struct worker *worker, struct error *error);

/* From another thread: takes over new limits, with a reference of its own to the targets. */
void worker_set_limits(struct worker *worker, const struct pipeline_limits *limits);

/* From another thread: lets no datagram in any more; those that are queued stay to be read. Before any worker
 * stops: as long as one of those that share an address is open, the kernel may still choose another for a
 * datagram. */
void worker_shut(struct worker *worker);

/* From another thread, after worker_shut(): read what is queued, store all, stop. done_fd tells when. */
void worker_stop(struct worker *worker);

/* From another thread: whether its loop has turned since the last call; asks for the next one. */
bool worker_is_alive(struct worker *worker);

/* What is left in memory of a worker that has stopped. */
struct pipeline_rest worker_take_rest(struct worker *worker);

struct stats *worker_stats(struct worker *worker);

const struct listener *worker_listeners(const struct worker *worker, size_t *ret_len);

#endif
