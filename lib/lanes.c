#include "lib/lanes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/config_reader.h"
#include "lib/targets.h"

/* The targets' databases, each once, in front the one of all who name none. Borrowed. */
static size_t list_databases(struct reader *reader, const char *databases[LANES_MAX])
{
    const struct targets *targets = reader->config->targets;
    size_t len = 1;

    databases[0] = "";
    for (size_t i = 0; i < targets->len; i++) {
        const char *database = targets->items[i].database;
        size_t at = 0;
        while (at < len && strcmp(databases[at], database) != 0)
            at++;
        if (at < len || strcmp(database, reader->config->postgres.url) == 0)
            continue;
        if (len == LANES_MAX) {
            mistake(reader, "'targets[%zu].database': there may be %d databases besides 'postgres.url'", i,
                    LANES_MAX - 1);
            return 1;
        }
        databases[len++] = database;
    }
    return len;
}

static void name_lane(struct reader *reader, struct lane *lane, const char *database)
{
    uint32_t digest = (uint32_t)(keyspace_hash(span_of(database)) >> 32);
    const char *namespace = reader->config->namespace;
    int len = snprintf(lane->namespace, sizeof(lane->namespace), "%s", namespace);

    set_text(reader, &lane->database, database);
    if (database[0] != '\0')
        len = snprintf(lane->namespace, sizeof(lane->namespace), "%s@%0*" PRIx32, namespace, LANE_DIGEST_LEN,
                       digest);
    if (len > NAMESPACE_LEN_MAX)
        mistake(reader,
                "'namespace' has %zu bytes; with a 'database' in 'targets', for whose digest there has to be "
                "room, it takes %d",
                strlen(namespace), NAMESPACE_LEN_MAX - LANE_DIGEST_LEN - 1);
}

/* The config's own is the shortest, and the beginning of all others. */
static int by_namespace(const void *a, const void *b)
{
    return strcmp(((const struct lane *)a)->namespace, ((const struct lane *)b)->namespace);
}

static uint8_t lane_of(const struct config *config, const char *database)
{
    for (uint8_t lane = 1; lane < config->lanes_len; lane++)
        if (strcmp(config->lanes[lane].database, database) == 0)
            return lane;
    return 0;
}

void finish_lanes(struct reader *reader)
{
    struct config *config = reader->config;
    const char *databases[LANES_MAX];
    size_t len = list_databases(reader, databases);

    for (config->lanes_len = 0; config->lanes_len < len; config->lanes_len++)
        name_lane(reader, &config->lanes[config->lanes_len], databases[config->lanes_len]);
    if (reader->failed)
        return;
    if (config->shards * (int64_t)len > SHARDS_MAX)
        mistake(reader,
                "'shards' is %" PRId64
                " and 'targets' name %zu databases besides 'postgres.url', which makes "
                "%" PRId64 " shards; %d are the most",
                config->shards, len - 1, config->shards * (int64_t)len, SHARDS_MAX);
    qsort(config->lanes, len, sizeof(config->lanes[0]), by_namespace);
    for (size_t i = 1; i < len; i++)
        if (strcmp(config->lanes[i - 1].namespace, config->lanes[i].namespace) == 0)
            /* Not the texts: they may hold a password. */
            mistake(reader,
                    "'targets': two texts of 'database' have the same digest, '%s'; write one otherwise",
                    config->lanes[i].namespace);
    config->targets->lanes = (uint32_t)len;
    for (size_t i = 0; i < config->targets->len; i++)
        config->targets->items[i].lane = lane_of(config, config->targets->items[i].database);
}

void config_of_lane(const struct config *config, size_t lane, struct config *ret_config)
{
    *ret_config = *config;
    ret_config->lane = lane;
    if (lane == 0)
        return;
    ret_config->namespace = ret_config->lanes[lane].namespace;
    ret_config->postgres.url = ret_config->lanes[lane].database;
    ret_config->postgres.password = NULL;
}

bool config_lanes_equal(const struct config *a, const struct config *b)
{
    if (a->lanes_len != b->lanes_len)
        return false;
    for (size_t i = 0; i < a->lanes_len; i++)
        if (strcmp(a->lanes[i].database, b->lanes[i].database) != 0)
            return false;
    return true;
}

uint32_t config_lanes_id(const struct config *config)
{
    uint64_t id = 0;

    for (size_t i = 1; i < config->lanes_len; i++)
        id = id * 31 + keyspace_hash(span_of(config->lanes[i].namespace));
    return (uint32_t)(id >> 32) | (config->lanes_len > 1);
}
