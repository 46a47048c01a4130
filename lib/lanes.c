#include "lib/lanes.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/config_reader.h"
#include "lib/targets.h"

static const char *database_of(const struct config *config, const struct target *target)
{
    return strcmp(target->database, config->postgres.url) == 0 ? "" : target->database;
}

/* How many there are when there is none for it. */
static size_t lane_of(const struct config *config, const struct target *target)
{
    size_t lane = 0;

    while (lane < config->lanes_len &&
           (config->lanes[lane].merge != target->merge ||
            strcmp(config->lanes[lane].database, database_of(config, target)) != 0))
        lane++;
    return lane;
}

static void add_lane(struct reader *reader, const char *database, enum merge merge)
{
    uint32_t digest = (uint32_t)(keyspace_hash(span_of(database)) >> 32);
    const char *namespace = reader->config->namespace;
    struct lane *lane = &reader->config->lanes[reader->config->lanes_len++];
    char behind[1 + LANE_DIGEST_LEN + 5] = "";
    int len = 0;

    if (database[0] != '\0')
        len = snprintf(behind, sizeof(behind), "@%0*" PRIx32, LANE_DIGEST_LEN, digest);
    if (merge != MERGE_ADD)
        snprintf(behind + len, sizeof(behind) - (size_t)len, "%c%s", len > 0 ? '.' : '@', merge_name(merge));
    set_text(reader, &lane->database, database);
    lane->merge = merge;
    len = snprintf(lane->namespace, sizeof(lane->namespace), "%s%s", namespace, behind);
    if (len > NAMESPACE_LEN_MAX)
        mistake(reader, "'namespace' has %zu bytes; with '%s' behind it, as 'targets' ask for, it takes %zu",
                strlen(namespace), behind, NAMESPACE_LEN_MAX - strlen(behind));
}

/* In front the one of all who name no database. */
static void list_lanes(struct reader *reader)
{
    struct config *config = reader->config;

    config->lanes_len = 0;
    add_lane(reader, "", MERGE_ADD);
    for (size_t i = 0; i < config->targets->len && !reader->failed; i++) {
        const struct target *target = &config->targets->items[i];
        if (lane_of(config, target) < config->lanes_len)
            continue;
        if (config->lanes_len == LANES_MAX) {
            mistake(
                reader,
                "'targets[%zu]': there may be %d lanes, one for each 'database' with each 'merge', besides "
                "that of 'postgres.url'",
                i, LANES_MAX - 1);
            return;
        }
        add_lane(reader, database_of(config, target), target->merge);
    }
}

/* The config's own is the shortest, and the beginning of all others. */
static int by_namespace(const void *a, const void *b)
{
    return strcmp(((const struct lane *)a)->namespace, ((const struct lane *)b)->namespace);
}

void finish_lanes(struct reader *reader)
{
    struct config *config = reader->config;
    size_t len;

    list_lanes(reader);
    if (reader->failed)
        return;
    len = config->lanes_len;
    if (config->shards * (int64_t)len > SHARDS_MAX)
        mistake(reader,
                "'shards' is %" PRId64
                " and 'targets' make %zu lanes besides that of 'postgres.url', which makes "
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
    for (size_t i = 0; i < len; i++)
        config->targets->merges[i] = config->lanes[i].merge;
    for (size_t i = 0; i < config->targets->len; i++)
        config->targets->items[i].lane = (uint8_t)lane_of(config, &config->targets->items[i]);
}

void config_of_lane(const struct config *config, size_t lane, struct config *ret_config)
{
    *ret_config = *config;
    ret_config->lane = lane;
    if (lane == 0)
        return;
    ret_config->namespace = ret_config->lanes[lane].namespace;
    if (config->lanes[lane].database[0] == '\0')
        return;
    ret_config->postgres.url = ret_config->lanes[lane].database;
    ret_config->postgres.password = NULL;
}

bool config_lanes_equal(const struct config *a, const struct config *b)
{
    if (a->lanes_len != b->lanes_len)
        return false;
    for (size_t i = 0; i < a->lanes_len; i++)
        if (a->lanes[i].merge != b->lanes[i].merge || strcmp(a->lanes[i].database, b->lanes[i].database) != 0)
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
