/* Every allocation of the pure modules fails once, in turn: nothing is lost by it, nothing leaks, nothing is
 * half made.
 *
 * The linker wraps the allocator (meson.build), so what our own code asks for counts; cJSON is given the
 * same. */
#include <assert.h>
#include <cjson/cJSON.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "counterd/ingest.h"
#include "counterd/outbox.h"
#include "lib/config.h"
#include "lib/decimal.h"
#include "tests/unit/unit.h"

#define SHARDS 3
#define KEYS   300

static long left = -1; /* allocations until one fails; -1 = none does, or one has */

void *__real_malloc(size_t size);
void *__real_calloc(size_t count, size_t size);
void *__real_realloc(void *old, size_t size);
char *__real_strdup(const char *text);
char *__real_strndup(const char *text, size_t len);

void *__wrap_malloc(size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_realloc(void *old, size_t size);
char *__wrap_strdup(const char *text);
char *__wrap_strndup(const char *text, size_t len);

static bool fails(void)
{
    if (left < 0 || left-- > 0)
        return false;
    errno = ENOMEM;
    return true;
}

void *__wrap_malloc(size_t size)
{
    return fails() ? NULL : __real_malloc(size);
}

void *__wrap_calloc(size_t count, size_t size)
{
    return fails() ? NULL : __real_calloc(count, size);
}

void *__wrap_realloc(void *old, size_t size)
{
    return fails() ? NULL : __real_realloc(old, size);
}

char *__wrap_strdup(const char *text)
{
    return fails() ? NULL : __real_strdup(text);
}

char *__wrap_strndup(const char *text, size_t len)
{
    return fails() ? NULL : __real_strndup(text, len);
}

/* Calls try(k) with the k-th allocation failing, for k = 0, 1, ... until none fails any more. */
static void sweep(void (*try)(void))
{
    bool failed = true;
    int faults = -1;

    for (long k = 0; failed; k++, faults++) {
        left = k;
        try();
        failed = left < 0;
        left = -1;
    }
    ck_assert_int_gt(faults, 3);
}

static void read_config(void)
{
    static const char text[] =
        "{ \"shards\": 8, \"listen\": {\"udp\": [\":1\", \"[::1]:2\"], \"unix\": [\"/tmp/s\"]},"
        " \"redis\": {\"url\": \"unix:///r.sock?db=3\"} }";
    struct config *config = NULL;
    struct error error;
    int r = config_parse("f", span_of(text), &config, &error);

    if (r == 0) {
        assert(config->shards == 8);
        assert(strcmp(config->listen.udp.items[1], "[::1]:2") == 0);
        config_free(config);
    } else {
        assert(!config);
        assert(strstr(error.text, "out of memory"));
    }
}

START_TEST(a_config)
{
    cJSON_InitHooks(&(cJSON_Hooks){__wrap_malloc, free});
    sweep(read_config);
    cJSON_InitHooks(NULL);
}
END_TEST

/* Each line is counted, if need be under OVERFLOW_KEY. */
static void count_lines(void)
{
    struct stats *stats = __real_calloc(1, sizeof(*stats));
    struct ingest *ingest;
    struct table *table;
    struct table_item item;
    int64_t sum = 0;
    uint64_t events = 0;

    stats_init(stats);
    ingest = ingest_new(stats);
    table = table_new(SHARDS, KEYS);
    for (int i = 0; ingest && table && i < KEYS; i++) {
        char line[32];
        snprintf(line, sizeof(line), "key.%d:2|c\n", i);
        ingest_set_table(ingest, table, NULL);
        ingest_lines(ingest, span_of(line), false);
        ingest_publish(ingest);
    }
    for (uint32_t shard = 0; ingest && table && shard < SHARDS; shard++) {
        while (table_pop(table, shard, &item)) {
            sum += item.micros;
            events += item.events;
        }
    }
    if (ingest && table) {
        assert(counter_get(&stats->accepted) == KEYS);
        assert(events == KEYS);
        assert(sum == 2 * KEYS * MICROS_PER_UNIT);
    }
    ingest_free(ingest);
    table_free(table);
    stats_done(stats);
    free(stats);
}

START_TEST(lines_into_a_table)
{
    sweep(count_lines);
}
END_TEST

/* What can't become a batch now stays in the table, and becomes one later. */
static void send_all(void)
{
    struct outbox_options options = {SHARDS, 10, SIZE_MAX};
    struct table *tables[2] = {table_new(SHARDS, KEYS), table_new(SHARDS, KEYS)};
    struct outbox *outbox = outbox_new(&options);
    struct span key;
    int64_t delta, sum = 0, sent = 0;

    for (int i = 0; tables[0] && i < KEYS; i++) {
        char name[16];
        struct table_item item = {.micros = MICROS_PER_UNIT, .events = 1};
        snprintf(name, sizeof(name), "key.%d", i);
        item.key = span_of(name);
        item.hash = keyspace_hash(item.key);
        sent += table_add(tables[0], &item) == TABLE_OK;
    }
    if (tables[0] && tables[1] && outbox) {
        outbox_drain(outbox, tables[0], tables[1], NULL);
        for (int turn = 0; turn < 4 * KEYS; turn++) {
            uint32_t shard = (uint32_t)turn % SHARDS;
            const struct batch *batch = outbox_next(outbox, shard);
            size_t at = 0;
            while (batch && batch_next_entry(batch, &at, &key, &delta))
                sum += delta;
            if (batch)
                outbox_acknowledge(outbox, shard, batch->seq);
        }
        assert(outbox_drained(outbox));
        assert(sum == sent);
    }
    outbox_free(outbox);
    table_free(tables[0]);
    table_free(tables[1]);
}

START_TEST(a_table_into_batches)
{
    sweep(send_all);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, a_config);
    tcase_add_test(tests, lines_into_a_table);
    tcase_add_test(tests, a_table_into_batches);
}

int main(void)
{
    return unit_run("memory", add_tests);
}
