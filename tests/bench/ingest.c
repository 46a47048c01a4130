/* ingest - what a line costs from the received bytes into the table, without a socket and without Redis
 *
 * ingest [-s SECONDS] [-k KEYS] [-l LINES_PER_DATAGRAM] [-t] [-r]: for deciding between two ways of doing it,
 * also under valgrind --tool=callgrind, where -n LINES bounds the work. The table is drained when it has
 * taken in DRAIN_LINES, as a tick would. -r: with a rollup per minute, behind three other targets.
 */
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "counterd/ingest.h"
#include "lib/config.h"
#include "tests/bench/pool.h"

#define SHARDS      64
#define KEYS_MAX    2000000
#define DRAIN_LINES 2000000
#define BATCH       64

static const char rollups[] =
    "{\"targets\": [{\"match\": \"post.views.{id}\", \"table\": \"posts\", \"value\": \"n\"},"
    "{\"match\": \"api.{customer}.calls\", \"table\": \"usage\", \"value\": \"n\"},"
    "{\"match\": \"team.{t}.user.{u}.points\", \"table\": \"scores\", \"value\": \"n\"},"
    "{\"match\": \"*\", \"table\": \"counterd.counters\", \"rollup\": {\"bucket\": \"1m\"}}]}";

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void drain(struct table *table)
{
    struct table_item item;

    for (uint32_t shard = 0; shard < SHARDS; shard++)
        while (table_pop(table, shard, &item))
            ;
}

int main(int argc, char **argv)
{
    struct pool_options options = {.keys = 10000, .lines = 20};
    uint64_t lines = 0, fresh = 0, lines_max = UINT64_MAX, popped = 0;
    double seconds = 2, start, gathering = 0, draining = 0;
    struct stats stats;
    struct ingest *ingest;
    struct table *table;
    struct pool pool;
    struct config *config = NULL;
    struct error error;
    char *received;
    int option;

    while ((option = getopt(argc, argv, "s:k:l:n:tr")) >= 0) {
        if (option == 's')
            seconds = strtod(optarg, NULL);
        else if (option == 'k')
            options.keys = (uint32_t)strtoul(optarg, NULL, 10);
        else if (option == 'l')
            options.lines = (uint32_t)strtoul(optarg, NULL, 10);
        else if (option == 'n')
            lines_max = strtoull(optarg, NULL, 10);
        else if (option == 't')
            options.tags = 1;
        else if (option == 'r' && config_parse("rollups", span_of(rollups), &config, &error) < 0)
            return 1;
        else if (option != 'r')
            return 64;
    }
    pool = pool_new(&options);
    received = malloc(BATCH * pool.datagram_bytes);
    stats_init(&stats);
    ingest = ingest_new(&stats);
    table = table_new(SHARDS, KEYS_MAX);
    if (!pool.bytes || !received || !ingest || !table)
        return 1;
    ingest_set_table(ingest, table, config ? config->targets : NULL);
    for (size_t i = 0; gathering + draining < seconds && lines < lines_max;
         i = (i + BATCH) % pool.datagrams) {
        /* As the kernel does: what is read has been written just before. */
        memcpy(received, pool.bytes + i * pool.datagram_bytes, BATCH * pool.datagram_bytes);
        start = now();
        for (size_t j = 0; j < BATCH; j++)
            ingest_gather(ingest, (struct span){received + j * pool.datagram_bytes, pool.datagram_bytes},
                          false);
        ingest_settle(ingest);
        gathering += now() - start;
        lines += BATCH * options.lines;
        fresh += BATCH * options.lines;
        if (fresh >= DRAIN_LINES) {
            start = now();
            popped += table_keys(table);
            drain(table);
            draining += now() - start;
            fresh = 0;
        }
    }
    ingest_publish(ingest);
    printf("{\"lines\": %" PRIu64 ", \"accepted\": %" PRIu64 ", \"ns_per_line\": %.2f, \"ns_per_pop\": %.2f, "
           "\"table_bytes\": %zu}\n",
           lines, counter_get(&stats.accepted), gathering / (double)lines * 1e9,
           draining / (double)popped * 1e9, table_bytes(table));
    table_free(table);
    ingest_free(ingest);
    stats_done(&stats);
    free(received);
    free(pool.bytes);
    config_free(config);
    return 0;
}
