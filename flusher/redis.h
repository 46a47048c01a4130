/* redis - one connection to Redis: commands and scripts out, replies or a classified failure in
 *
 * Connects when first used, and again after a connection was lost; every wait is bounded by redis.timeout_ms.
 * An error reply is a failure like any other: those of flusher/failure.h, with a text that says what to do.
 * Replies are looked at strictly: an element that is not what is asked for is never guessed at. Not
 * thread-safe; each job has its own.
 */
#ifndef FLUSHER_REDIS_H
#define FLUSHER_REDIS_H

#include "lib/config.h"
#include "lib/error.h"
#include "lib/keyspace.h"

struct redis;
struct redisReply; /* hiredis's own name for a reply: given to the caller, freed by reply_free() */

/* Borrows `config`. */
MUST_CHECK int redis_new(const struct config *config, struct redis **ret_redis, struct error *error);
void redis_free(struct redis *redis);

/* So that redis_send() may be used; everything else does it by itself. */
MUST_CHECK int redis_connect(struct redis *redis, struct error *error);

/* Which connection it is, counted from 1; 0 = none. */
uint64_t redis_connection(const struct redis *redis);

/* One command, its words up to a NULL. `ret_reply` may be NULL. */
MUST_CHECK int redis_command(struct redis *redis, const char *const *words, struct redisReply **ret_reply,
                             struct error *error);

/* The same for a command that takes up to `extra_ms` longer than others. */
MUST_CHECK int redis_command_slow(struct redis *redis, const char *const *words, int64_t extra_ms,
                                  struct redisReply **ret_reply, struct error *error);

/* A script with the keys of a shard: EVALSHA, or EVAL where the server does not know it. Gives an array. */
MUST_CHECK int redis_script(struct redis *redis, enum script_id id, uint32_t shard, const struct span *args,
                            size_t args_len, struct redisReply **ret_reply, struct error *error);

/* The same two, sent and not waited for: whoever sends takes as many replies, in order, before anything else
 * is asked of this connection. Where the server is not known to have the script, or nothing is connected yet,
 * nothing is sent and false is given. After a failure of redis_receive() nothing is owed any more. */
bool redis_send(struct redis *redis, const char *const *words);
bool redis_send_script(struct redis *redis, enum script_id id, uint32_t shard, const struct span *args,
                       size_t args_len);

/* The next reply owed, whatever it is: an error too. Fails when the connection is lost. */
MUST_CHECK int redis_receive(struct redis *redis, struct redisReply **ret_reply, struct error *error);

/* 0, or the failure that an error reply stands for. */
MUST_CHECK int reply_check(const struct redisReply *reply, struct error *error);

/* Unlike what `what` promises; nothing can be told from it. Gives the failure. */
int reply_misunderstood(const char *what, struct error *error);

size_t reply_len(const struct redisReply *reply);    /* elements; 0 when it is no array */
bool reply_is_array(const struct redisReply *reply); /* NULL is none */
bool reply_is_nil(const struct redisReply *reply);
bool reply_string(const struct redisReply *reply, struct span *ret_text); /* false when it is none */
bool reply_number(const struct redisReply *reply, int64_t *ret_number); /* an integer, or text that is one */

/* Element `index` of an array; NULL when there is none. */
const struct redisReply *reply_element(const struct redisReply *reply, size_t index);

/* Element `index` as text; false when there is none such. */
bool reply_text(const struct redisReply *reply, size_t index, struct span *ret_text);
bool reply_text_is(const struct redisReply *reply, size_t index, const char *expected);

/* The same as a whole number that may be missing: '' is 0. */
bool reply_whole(const struct redisReply *reply, size_t index, int64_t *ret_number);

void reply_free(struct redisReply *reply); /* takes NULL */

#endif
