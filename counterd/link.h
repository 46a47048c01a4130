/* link - a connection to Redis that keeps itself up
 *
 * Connects by itself, again and again with a growing pause, and introduces itself before it is ready:
 * password, database, and the number of shards, which is recorded in Redis by whoever comes first and has to
 * be the same for all. Commands are pipelined, and answered in the order in which they were sent. An answer
 * that does not come in time ends the connection. Belongs to one loop.
 */
#ifndef COUNTERD_LINK_H
#define COUNTERD_LINK_H

#include "lib/config.h"

struct event_base;
struct link;
struct redisReply;

enum link_state {
    LINK_AWAY,   /* not reached; tried again */
    LINK_MISFIT, /* reached, but it can't be used as configured; tried again all the same */
    LINK_CONNECTING,
    LINK_READY,
};

struct link_callbacks {
    void *context;
    void (*on_ready)(void *context);
    /* The connection, or the try for one, has ended; `state` is LINK_AWAY or LINK_MISFIT. Whoever was still
     * owed an answer has been told before. */
    void (*on_lost)(void *context, enum link_state state, const struct error *error);
};

/* Keeps `config` and `base`. Starts to connect at once. Gives NULL when out of memory. */
struct link *link_new(struct event_base *base, const struct config *config,
                      const struct link_callbacks *callbacks);

/* Nobody is told anything any more. */
void link_free(struct link *link);

bool link_ready(const struct link *link);

/* If it waits to connect again, it does so now. */
void link_hurry(struct link *link);

/* `reply` is borrowed; NULL: the connection has ended, and what became of the command is unknown. Nothing may
 * be sent from the call that says so. */
typedef void link_callback(void *context, void *tag, const struct redisReply *reply);

struct link_command {
    struct span bytes; /* request_end()'s */
    link_callback *callback;
    void *tag;
    int64_t patience_ms; /* it may take so much longer than redis.timeout_ms */
};

/* Copies the command, whose bytes may be none for want of memory; the link is ready. The callback is called
 * once, from the loop, with the context of the link's callbacks, unless the link is freed. False when out of
 * memory: nothing was sent, the callback is not called, and the connection will end. */
bool link_send(struct link *link, const struct link_command *command);

/* Ends the connection, from inside a link_callback; it is then made anew. */
void link_give_up(struct link *link, const char *why);

/* Connects and introduces itself once, on a loop of its own, for at most `wait_ms`. 0; -EHOSTUNREACH when
 * Redis is away; -EINVAL when it can't be used as configured. */
MUST_CHECK int link_check(const struct config *config, int64_t wait_ms, struct error *error);

#endif
