/* fill - puts keys into Redis as counterd would: fill SOCKET NAMESPACE SHARDS KEYS [WRITER]
 *
 * Each key once, with delta 1 to 9, by the append script in batches of 1000, a new writer at each start.
 * Prints one line when all of it is acknowledged.
 */
#include <assert.h>
#include <hiredis/hiredis.h>
#include <stdlib.h>
#include <string.h>

#include "lib/keyspace.h"
#include "tests/bench/flush/keys.h"

#define BATCH      1000
#define FIXED_ARGS (3 + SHARD_KEY_COUNT + 4)

struct batch {
    char keys[BATCH][KEY_BYTES];
    char deltas[BATCH][4];
    int len;
    int64_t seq;
};

static const char *writer;
static int unanswered;

static void take_reply(redisContext *redis)
{
    redisReply *reply = NULL;

    if (redisGetReply(redis, (void **)&reply) != REDIS_OK || reply->type != REDIS_REPLY_ARRAY ||
        strcmp(reply->element[0]->str, "OK") != 0) {
        fprintf(stderr, "fill: %s\n", reply && reply->str ? reply->str : redis->errstr);
        exit(1);
    }
    freeReplyObject(reply);
    unanswered--;
}

static void send_batch(redisContext *redis, const char *namespace, uint32_t shard, struct batch *batch)
{
    const char *argv[FIXED_ARGS + 2 * BATCH] = {"EVALSHA", scripts[SCRIPT_APPEND].sha1, "7"};
    struct shard_keys keys;
    char seq[24], events[24];
    int argc = 3;

    if (batch->len == 0)
        return;
    keyspace_shard_keys(&keys, namespace, shard);
    snprintf(seq, sizeof(seq), "%lld", (long long)++batch->seq);
    snprintf(events, sizeof(events), "%d", batch->len);
    for (int i = 0; i < SHARD_KEY_COUNT; i++)
        argv[argc++] = keys.name[i];
    argv[argc++] = writer;
    argv[argc++] = seq;
    argv[argc++] = "0";
    argv[argc++] = events;
    for (int i = 0; i < batch->len; i++) {
        argv[argc++] = batch->keys[i];
        argv[argc++] = batch->deltas[i];
    }
    assert(redisAppendCommandArgv(redis, argc, argv, NULL) == REDIS_OK);
    batch->len = 0;
    if (++unanswered > 16)
        take_reply(redis);
}

int main(int argc, char **argv)
{
    redisContext *redis = argc >= 5 ? redisConnectUnix(argv[1]) : NULL;
    uint32_t shards = argc >= 5 ? (uint32_t)atoi(argv[3]) : 0, keys = argc >= 5 ? (uint32_t)atol(argv[4]) : 0;
    struct batch *batches = calloc(shards + 1, sizeof(*batches));

    if (!redis || redis->err || shards == 0) {
        fprintf(stderr, "fill: usage, or no Redis: %s\n", redis ? redis->errstr : "");
        return 64;
    }
    writer = argc > 5 ? argv[5] : "fill";
    freeReplyObject(redisCommand(redis, "SCRIPT LOAD %s", scripts[SCRIPT_APPEND].text));
    for (uint32_t i = 0; i < keys; i++) {
        char key[KEY_BYTES];
        key_of(i, key);
        uint32_t shard = keyspace_shard(keyspace_hash((struct span){key, KEY_LEN}), shards);
        struct batch *batch = &batches[shard];
        memcpy(batch->keys[batch->len], key, KEY_BYTES);
        snprintf(batch->deltas[batch->len], sizeof(batch->deltas[0]), "%u", 1 + i % 9);
        if (++batch->len == BATCH)
            send_batch(redis, argv[2], shard, batch);
    }
    for (uint32_t shard = 0; shard < shards; shard++)
        send_batch(redis, argv[2], shard, &batches[shard]);
    while (unanswered > 0)
        take_reply(redis);
    printf("{\"keys\": %u}\n", keys);
    free(batches);
    redisFree(redis);
    return 0;
}
