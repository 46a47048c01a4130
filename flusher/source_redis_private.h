/* source_redis_private - what the two halves of source_redis share: the seam, and the looks beside it */
#ifndef FLUSHER_SOURCE_REDIS_PRIVATE_H
#define FLUSHER_SOURCE_REDIS_PRIVATE_H

#include "flusher/source_redis.h"

struct redis;
struct redisReply;

const struct config *source_redis_config(const struct source_redis *source);

/* To be asked something only after source_redis_settle(). */
struct redis *source_redis_connection(struct source_redis *source);

/* Takes the answers to the releases that were sent. The worst that can be is that a generation stays sealed:
 * the next run finds it in the ledger. */
MUST_CHECK int source_redis_settle(struct source_redis *source, struct error *error);

/* redis_script(), settled. */
MUST_CHECK int source_redis_script(struct source_redis *source, enum script_id id, uint32_t shard,
                                   const struct span *args, size_t args_len, struct redisReply **ret_reply,
                                   struct error *error);

/* Element `index` as the id of a generation; false when it is none. */
bool source_redis_take_id(const struct redisReply *reply, size_t index,
                          char ret_id[GENERATION_ID_LEN_MAX + 1]);

#endif
