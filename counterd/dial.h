/* dial - how a connection to Redis begins: an address is connected to, a password given, a database chosen
 *
 * Whoever dials sets the callbacks, and does with the connection what it is for.
 */
#ifndef COUNTERD_DIAL_H
#define COUNTERD_DIAL_H

#include "lib/address.h"

struct event_base;
struct redisAsyncContext;

/* Begins to connect, on the loop of `base`. Gives NULL, and why in `ret_why`, when that is known to fail at
 * once. */
struct redisAsyncContext *dial(const struct redis_address *address, struct event_base *base, char *ret_why,
                               size_t why_bytes);

/* hiredis's. */
typedef void dial_callback(struct redisAsyncContext *redis, void *reply, void *context);

/* Sends AUTH, where there is a password, and SELECT, each with its callback. Returns how many answers come.
 */
unsigned dial_introduce(struct redisAsyncContext *redis, const struct redis_address *address,
                        dial_callback *on_auth, dial_callback *on_select);

#endif
