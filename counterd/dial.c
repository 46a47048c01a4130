#include "counterd/dial.h"

#include <hiredis/hiredis.h>
#include <hiredis/async.h>
#include <hiredis/adapters/libevent.h>
#include <stdio.h>

struct redisAsyncContext *dial(const struct redis_address *address, struct event_base *base, char *ret_why,
                               size_t why_bytes)
{
    redisAsyncContext *redis = address->path[0] != '\0' ? redisAsyncConnectUnix(address->path)
                                                        : redisAsyncConnect(address->host, address->port);

    if (redis && !redis->err && redisLibeventAttach(redis, base) == REDIS_OK)
        return redis;
    snprintf(ret_why, why_bytes, "%s", redis && redis->err ? redis->errstr : "out of memory");
    if (redis)
        redisAsyncFree(redis);
    return NULL;
}

unsigned dial_introduce(struct redisAsyncContext *redis, const struct redis_address *address,
                        dial_callback *on_auth, dial_callback *on_select)
{
    bool with_user = address->user[0] != '\0', with_password = address->password[0] != '\0';

    if (with_password && with_user)
        (void)redisAsyncCommand(redis, on_auth, NULL, "AUTH %s %s", address->user, address->password);
    else if (with_password)
        (void)redisAsyncCommand(redis, on_auth, NULL, "AUTH %s", address->password);
    (void)redisAsyncCommand(redis, on_select, NULL, "SELECT %u", address->database);
    return with_password ? 2 : 1;
}
