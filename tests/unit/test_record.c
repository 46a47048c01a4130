/* What a file of the spool says of itself, and that nothing else is believed. */
#include <stdlib.h>

#include "counterd/record.h"
#include "tests/unit/unit.h"

#define SHARDS 8

static const struct record_header header = {
    .shards = SHARDS, .lanes = 5, .segment = 9, .namespace = "counterd", .writer = "0123456789abcdef"};

START_TEST(a_header_is_read_as_it_was_written)
{
    char bytes[RECORD_HEADER_BYTES];
    struct record_header again;

    record_write_header(&header, bytes);
    ck_assert_int_eq(record_read_header((struct span){bytes, sizeof(bytes)}, &again), RECORD_OK);
    ck_assert_uint_eq(again.shards, header.shards);
    ck_assert_uint_eq(again.lanes, header.lanes);
    ck_assert_uint_eq(again.segment, header.segment);
    ck_assert_str_eq(again.namespace, header.namespace);
    ck_assert_str_eq(again.writer, header.writer);
    ck_assert_int_eq(record_read_header((struct span){bytes, sizeof(bytes) - 1}, &again), RECORD_SHORT);
}
END_TEST

/* Byte 16 on is the byte order, byte 20 on the version. */
START_TEST(a_header_with_any_other_byte_is_refused)
{
    char bytes[RECORD_HEADER_BYTES];
    struct record_header again;

    for (size_t i = 0; i < sizeof(bytes); i++) {
        record_write_header(&header, bytes);
        bytes[i] ^= 0x40;
        ck_assert_int_eq(record_read_header((struct span){bytes, sizeof(bytes)}, &again),
                         i >= 16 && i < 24 ? RECORD_NEWER : RECORD_ALIEN);
    }
}
END_TEST

/* A record with the payload, under a right checksum; the caller frees it. */
static struct span write_record(const char *payload, size_t payload_len, size_t keys)
{
    struct record record = {.shard = SHARDS - 1,
                            .durable = 3,
                            .batch = {.seq = 4, .events = 6, .keys = keys, .bytes = payload_len}};
    char *bytes = malloc(RECORD_FIXED_BYTES + payload_len);

    memcpy(bytes + RECORD_FIXED_BYTES, payload, payload_len);
    record.batch.payload = bytes + RECORD_FIXED_BYTES;
    record_write_fixed(&record, bytes);
    return (struct span){bytes, RECORD_FIXED_BYTES + payload_len};
}

static struct batch *one_entry(size_t key_len)
{
    struct batch *batch = batch_new(BATCH_ENTRY_BYTES_MAX + 1);
    char key[MEMBER_LEN_MAX + 1];

    memset(key, 'k', sizeof(key));
    batch_put_entry(batch, (struct span){key, key_len}, -7);
    return batch;
}

static enum record_result read_entries(size_t key_len, size_t len_more, size_t keys)
{
    struct batch *batch = one_entry(key_len);
    struct span bytes = write_record(batch->payload, batch->bytes + len_more, keys);
    struct record record;
    enum record_result result = record_read(bytes, SHARDS, &record);

    free((char *)(uintptr_t)bytes.ptr);
    free(batch);
    return result;
}

START_TEST(a_record_is_read_as_it_was_written)
{
    struct batch *batch = one_entry(MEMBER_LEN_MAX);
    struct span bytes = write_record(batch->payload, batch->bytes, 1);
    struct record record;

    ck_assert_int_eq(record_read(bytes, SHARDS, &record), RECORD_OK);
    ck_assert_uint_eq(record.shard, SHARDS - 1);
    ck_assert_uint_eq(record.durable, 3);
    ck_assert_uint_eq(record.batch.seq, 4);
    ck_assert_uint_eq(record.batch.events, 6);
    ck_assert_uint_eq(record.batch.keys, 1);
    ck_assert_uint_eq(record.record_bytes, bytes.len);
    ck_assert_mem_eq(record.batch.payload, batch->payload, batch->bytes);
    ck_assert_int_eq(record_read((struct span){bytes.ptr, bytes.len - 1}, SHARDS, &record), RECORD_SHORT);
    ck_assert_int_eq(record_read(bytes, SHARDS - 1, &record), RECORD_ALIEN);
    free((char *)(uintptr_t)bytes.ptr);
    free(batch);
}
END_TEST

START_TEST(a_record_with_any_other_byte_is_refused)
{
    struct batch *batch = one_entry(3);
    struct span bytes = write_record(batch->payload, batch->bytes, 1);
    char *damaged = malloc(bytes.len);
    struct record record;

    for (size_t i = 0; i < bytes.len; i++) {
        memcpy(damaged, bytes.ptr, bytes.len);
        damaged[i] ^= 0x40;
        ck_assert_int_ne(record_read((struct span){damaged, bytes.len}, SHARDS, &record), RECORD_OK);
    }
    free(damaged);
    free((char *)(uintptr_t)bytes.ptr);
    free(batch);
}
END_TEST

START_TEST(entries_fill_the_payload_and_are_as_many_as_it_says)
{
    ck_assert_int_eq(read_entries(1, 0, 1), RECORD_OK);
    ck_assert_int_eq(read_entries(0, 0, 1), RECORD_ALIEN);
    ck_assert_int_eq(read_entries(MEMBER_LEN_MAX + 1, 0, 1), RECORD_ALIEN);
    ck_assert_int_eq(read_entries(1, 0, 2), RECORD_ALIEN);
    ck_assert_int_eq(read_entries(1, 1, 1), RECORD_ALIEN);
    ck_assert_int_eq(read_entries(1, (size_t)-1, 1), RECORD_ALIEN);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, a_header_is_read_as_it_was_written);
    tcase_add_test(tests, a_header_with_any_other_byte_is_refused);
    tcase_add_test(tests, a_record_is_read_as_it_was_written);
    tcase_add_test(tests, a_record_with_any_other_byte_is_refused);
    tcase_add_test(tests, entries_fill_the_payload_and_are_as_many_as_it_says);
}

int main(void)
{
    return unit_run("record", add_tests);
}
