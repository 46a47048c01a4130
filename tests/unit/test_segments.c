/* Batches in segments on a real disk: none of 16 MiB has to be sent through a daemon for it. */
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "counterd/spool.h"
#include "counterd/spool_file.h"
#include "tests/unit/unit.h"

#define WRITER "01234567890123456789012345"

/* Some 16 of them fill a segment. */
#define BATCH_BYTES (1024 * 1000)
#define BATCHES     40
#define SEGMENTS    3

static char path[] = "/tmp/counterd-test-spool.XXXXXX";
static int directory;
static struct batch *batch;
static uint64_t segments[BATCHES + 1]; /* of each seq */

static struct spool *open_spool(void)
{
    struct spool_options options = {
        .directory = directory, .namespace = "n", .writer = WRITER, .shards = 1, .bytes_max = UINT64_MAX};
    struct spool *spool = spool_new(&options);

    ck_assert_ptr_nonnull(spool);
    return spool;
}

static void push(struct spool *spool, uint64_t seq)
{
    struct record record = {.batch = *batch};
    struct error error;

    record.batch.seq = seq;
    ck_assert_int_eq(spool_push(spool, &record, &segments[seq], &error), 0);
}

static struct spool *fill(void)
{
    struct spool *spool = open_spool();

    for (uint64_t seq = 1; seq <= BATCHES; seq++)
        push(spool, seq);
    ck_assert_uint_eq(segments[1], 1);
    ck_assert_uint_eq(segments[BATCHES], SEGMENTS);
    return spool;
}

/* Gives the next one's seq; 0: there is none. */
static uint64_t pop(struct spool *spool)
{
    struct batch *popped;
    struct error error;
    uint32_t shard;
    uint64_t seq = 0;

    ck_assert_int_eq(spool_pop(spool, &shard, &popped, &error), 0);
    if (popped)
        seq = popped->seq;
    free(popped);
    return seq;
}

static bool has_file(uint64_t segment)
{
    char name[SPOOL_NAME_BYTES];

    spool_file_name(WRITER, segment, name);
    return faccessat(directory, name, F_OK, 0) == 0;
}

static void set_up(void)
{
    char key[KEY_LEN_MAX];

    snprintf(path, sizeof(path), "/tmp/counterd-test-spool.XXXXXX");
    ck_assert_ptr_nonnull(mkdtemp(path));
    directory = open(path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    memset(key, 'k', sizeof(key));
    batch = batch_new(BATCH_BYTES);
    while (batch->bytes + BATCH_ENTRY_BYTES_MAX <= BATCH_BYTES)
        batch_put_entry(batch, (struct span){key, sizeof(key)}, 1);
    batch->events = 7;
}

static void tear_down(void)
{
    for (uint64_t segment = 0; segment <= SEGMENTS + 1; segment++) {
        char name[SPOOL_NAME_BYTES + sizeof(".aside")];
        spool_file_name(WRITER, segment, name);
        (void)unlinkat(directory, name, 0);
        memcpy(name + strlen(name), ".aside", sizeof(".aside"));
        (void)unlinkat(directory, name, 0);
    }
    close(directory);
    ck_assert_int_eq(rmdir(path), 0);
    free(batch);
}

START_TEST(what_is_on_disk_comes_back_in_order)
{
    struct spool *spool = fill();

    for (uint64_t seq = 1; seq <= BATCHES; seq++)
        ck_assert_uint_eq(pop(spool), seq);
    ck_assert_uint_eq(pop(spool), 0);
    push(spool, BATCHES);
    ck_assert_uint_eq(pop(spool), BATCHES);
    spool_free(spool);
}
END_TEST

START_TEST(segments_go_oldest_first_and_not_before_all_of_them_is_settled)
{
    struct spool *spool = fill();
    uint64_t first = 1;

    while (segments[first] == 1)
        first++;
    for (uint64_t seq = first; seq <= BATCHES; seq++)
        spool_settle(spool, segments[seq], batch->events);
    for (uint64_t seq = 1; seq < first; seq++) {
        for (uint64_t segment = 1; segment <= SEGMENTS; segment++)
            ck_assert(has_file(segment));
        spool_settle(spool, 1, batch->events);
    }
    for (uint64_t segment = 1; segment <= SEGMENTS; segment++)
        ck_assert(!has_file(segment));
    ck_assert(spool_is_empty(spool));
    ck_assert_uint_eq(spool_bytes(spool), 0);
    spool_free(spool);
}
END_TEST

static bool expect_next(void *context, const struct record *record)
{
    uint64_t *seq = context;

    ck_assert_uint_eq(record->batch.seq, ++*seq);
    ck_assert_uint_eq(record->batch.events, 7);
    return true;
}

START_TEST(another_process_finds_them_in_order_and_goes_on_behind_them)
{
    struct spool_options options = {.directory = directory, .namespace = "n", .shards = 1};
    struct spool_writers writers;
    uint64_t found = 0;
    struct spool_finder finder = {&found, expect_next};
    struct spool *spool = fill();
    struct error error;
    uint64_t bytes = spool_bytes(spool);

    spool_free(spool);
    ck_assert_int_eq(spool_list(&options, &writers, &error), 0);
    ck_assert_uint_eq(writers.len, 1);
    ck_assert_str_eq(writers.ids[0], WRITER);
    spool_writers_done(&writers);
    spool = open_spool();
    ck_assert_int_eq(spool_adopt(spool, &finder, &error), 0);
    ck_assert_uint_eq(found, BATCHES);
    ck_assert_uint_eq(spool_bytes(spool), bytes);
    for (uint64_t seq = 1; seq <= BATCHES; seq++)
        ck_assert_uint_eq(pop(spool), seq);
    push(spool, BATCHES);
    ck_assert_uint_eq(segments[BATCHES], SEGMENTS + 1);
    spool_free(spool);
}
END_TEST

static bool refuse(void *context, const struct record *record)
{
    (void)context;
    (void)record;
    return false;
}

START_TEST(what_nobody_awaits_is_removed)
{
    struct spool_finder finder = {NULL, refuse};
    struct spool *spool = fill();
    struct error error;

    spool_free(spool);
    spool = open_spool();
    ck_assert_int_eq(spool_adopt(spool, &finder, &error), 0);
    ck_assert(spool_is_empty(spool));
    ck_assert(!has_file(1) && !has_file(SEGMENTS));
    spool_free(spool);
}
END_TEST

START_TEST(no_more_is_written_than_may_be)
{
    struct spool_options options = {.directory = directory,
                                    .namespace = "n",
                                    .writer = WRITER,
                                    .shards = 1,
                                    .bytes_max = RECORD_HEADER_BYTES + RECORD_FIXED_BYTES + batch->bytes};
    struct spool *spool = spool_new(&options);
    struct record record = {.batch = *batch};
    struct error error;

    ck_assert_int_eq(spool_push(spool, &record, &segments[1], &error), 0);
    ck_assert_int_eq(spool_push(spool, &record, &segments[1], &error), -ENOSPC);
    ck_assert_uint_eq(spool_bytes(spool), options.bytes_max);
    spool_free(spool);
}
END_TEST

/* Whoever reads the file later stops where it is damaged; what was read of it before is waited for. */
START_TEST(nothing_is_written_behind_what_can_not_be_read)
{
    struct spool *spool = open_spool();
    struct batch *popped;
    struct error error;
    char name[SPOOL_NAME_BYTES], aside[SPOOL_NAME_BYTES + sizeof(".aside")];
    uint32_t shard;
    int fd;

    push(spool, 1);
    ck_assert_uint_eq(pop(spool), 1);
    spool_file_name(WRITER, 1, name);
    fd = openat(directory, name, O_WRONLY | O_CLOEXEC);
    push(spool, 2);
    ck_assert_int_eq(pwrite(fd, "?", 1, (off_t)spool_bytes(spool) - 1), 1);
    close(fd);
    ck_assert_int_eq(spool_pop(spool, &shard, &popped, &error), -EIO);
    ck_assert_ptr_null(popped);
    ck_assert(has_file(1));
    push(spool, 3);
    ck_assert_uint_eq(segments[3], 2);
    ck_assert_uint_eq(pop(spool), 3);
    spool_settle(spool, 2, batch->events);
    ck_assert(has_file(1));
    spool_settle(spool, 1, batch->events);
    snprintf(aside, sizeof(aside), "%s.aside", name);
    ck_assert(!has_file(1) && faccessat(directory, aside, F_OK, 0) == 0);
    ck_assert(spool_is_empty(spool));
    spool_free(spool);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_checked_fixture(tests, set_up, tear_down);
    tcase_add_test(tests, what_is_on_disk_comes_back_in_order);
    tcase_add_test(tests, segments_go_oldest_first_and_not_before_all_of_them_is_settled);
    tcase_add_test(tests, another_process_finds_them_in_order_and_goes_on_behind_them);
    tcase_add_test(tests, what_nobody_awaits_is_removed);
    tcase_add_test(tests, no_more_is_written_than_may_be);
    tcase_add_test(tests, nothing_is_written_behind_what_can_not_be_read);
}

int main(void)
{
    return unit_run("segments", add_tests);
}
