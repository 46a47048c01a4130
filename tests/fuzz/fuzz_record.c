/* A spool's file, whatever it holds: the header first, then records as long as there are whole ones. What is
 * accepted is safe to walk, and written again it is the same bytes. Once as it is, once with right checksums.
 */
#include "counterd/record.h"
#include "tests/fuzz/fuzz.h"

#include <stdlib.h>
#include <xxhash.h>

static void walk(const struct record *record)
{
    struct span key;
    int64_t delta;
    size_t at = 0, keys = 0;

    while (batch_next_entry(&record->batch, &at, &key, &delta)) {
        fuzz_require(key.len >= 1 && key.len <= MEMBER_LEN_MAX);
        keys++;
    }
    fuzz_require(at == record->batch.bytes && keys == record->batch.keys);
}

static void read_file(struct span rest)
{
    char header_again[RECORD_HEADER_BYTES], again[RECORD_FIXED_BYTES];
    struct record_header header;
    struct record record;

    if (record_read_header(rest, &header) != RECORD_OK)
        return;
    fuzz_require(header.shards >= 1 && header.shards <= SHARDS_MAX);
    record_write_header(&header, header_again);
    rest.ptr += RECORD_HEADER_BYTES;
    rest.len -= RECORD_HEADER_BYTES;
    while (record_read(rest, header.shards, &record) == RECORD_OK) {
        fuzz_require(record.shard < header.shards && record.record_bytes <= rest.len);
        fuzz_require(record.record_bytes == record_bytes_of(rest.ptr));
        walk(&record);
        record_write_fixed(&record, again);
        fuzz_require(memcmp(again, rest.ptr, sizeof(again)) == 0);
        rest.ptr += record.record_bytes;
        rest.len -= record.record_bytes;
    }
}

static void put_checksum(char *at, uint64_t checksum)
{
    memcpy(at, &checksum, sizeof(checksum));
}

/* No mutation finds a right checksum, and without one it would never come to what stands behind it. */
static void put_checksums_right(char *bytes, size_t len)
{
    size_t at = RECORD_HEADER_BYTES, record_bytes, sum_bytes = sizeof(uint64_t);

    if (len < RECORD_HEADER_BYTES)
        return;
    put_checksum(bytes + at - sum_bytes, XXH3_64bits(bytes, at - sum_bytes));
    while (len - at >= RECORD_FIXED_BYTES) {
        record_bytes = record_bytes_of(bytes + at);
        if (record_bytes == 0 || record_bytes > len - at)
            return;
        put_checksum(bytes + at, XXH3_64bits_withSeed(
                                     bytes + at + RECORD_FIXED_BYTES, record_bytes - RECORD_FIXED_BYTES,
                                     XXH3_64bits(bytes + at + sum_bytes, RECORD_FIXED_BYTES - sum_bytes)));
        at += record_bytes;
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    char *bytes = malloc(len > 0 ? len : 1);

    fuzz_require(bytes);
    if (len > 0)
        memcpy(bytes, data, len);
    read_file((struct span){bytes, len});
    put_checksums_right(bytes, len);
    read_file((struct span){bytes, len});
    free(bytes);
    return 0;
}
