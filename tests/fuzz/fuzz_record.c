/* A spool's file, whatever it holds: the header first, then records as long as there are whole ones. What is
 * accepted is safe to walk, and written again it is the same bytes. */
#include "counterd/record.h"
#include "tests/fuzz/fuzz.h"

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

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct span rest = {(const char *)data, len};
    char header_again[RECORD_HEADER_BYTES], again[RECORD_FIXED_BYTES];
    struct record_header header;
    struct record record;

    if (record_read_header(rest, &header) != RECORD_OK)
        return 0;
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
    return 0;
}
