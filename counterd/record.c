#include "counterd/record.h"

#include <stdio.h>
#include <xxhash.h>

#define MAGIC           "counterd spool\n" /* 16 bytes with its NUL */
#define BYTE_ORDER_MARK UINT32_C(0x01020304)
#define VERSION         1

/* As they stand in the file. */
struct header_bytes {
    char magic[16];
    uint32_t byte_order;
    uint32_t version;
    uint32_t shards;
    uint32_t lanes; /* 0 = one, as before there were more */
    uint64_t segment;
    char namespace[64]; /* padded with NULs */
    char writer[32];    /* the same */
    uint64_t checksum;  /* of all before it */
};

struct fixed_bytes {
    uint64_t checksum; /* of what is behind it, and the payload */
    uint64_t seq;
    uint64_t durable;
    uint64_t events;
    uint32_t payload_bytes;
    uint32_t keys;
    uint32_t shard;
    uint32_t unused;
};

_Static_assert(sizeof(struct header_bytes) == RECORD_HEADER_BYTES, "no padding");
_Static_assert(sizeof(struct fixed_bytes) == RECORD_FIXED_BYTES, "no padding");
_Static_assert(NAMESPACE_LEN_MAX <= 64 && ID_LEN < 32 && sizeof(MAGIC) == 16, "they fit");

static uint64_t checksum_of_header(const struct header_bytes *raw)
{
    return XXH3_64bits(raw, offsetof(struct header_bytes, checksum));
}

static uint64_t checksum_of(const struct fixed_bytes *raw, const char *payload)
{
    uint64_t fixed = XXH3_64bits(&raw->seq, sizeof(*raw) - offsetof(struct fixed_bytes, seq));

    return XXH3_64bits_withSeed(payload, raw->payload_bytes, fixed);
}

void record_write_header(const struct record_header *header, char ret_bytes[RECORD_HEADER_BYTES])
{
    struct header_bytes raw = {
        .magic = MAGIC,
        .byte_order = BYTE_ORDER_MARK,
        .version = VERSION,
        .shards = header->shards,
        .lanes = header->lanes,
        .segment = header->segment,
    };

    memcpy(raw.namespace, header->namespace, strlen(header->namespace));
    memcpy(raw.writer, header->writer, strlen(header->writer));
    raw.checksum = checksum_of_header(&raw);
    memcpy(ret_bytes, &raw, sizeof(raw));
}

enum record_result record_read_header(struct span bytes, struct record_header *ret_header)
{
    struct header_bytes raw;

    if (bytes.len < sizeof(raw))
        return RECORD_SHORT;
    memcpy(&raw, bytes.ptr, sizeof(raw));
    if (memcmp(raw.magic, MAGIC, sizeof(raw.magic)) != 0)
        return RECORD_ALIEN;
    if (raw.byte_order != BYTE_ORDER_MARK || raw.version != VERSION)
        return RECORD_NEWER;
    if (raw.checksum != checksum_of_header(&raw) || raw.shards < 1 || raw.shards > SHARDS_MAX)
        return RECORD_ALIEN;
    *ret_header = (struct record_header){.shards = raw.shards, .lanes = raw.lanes, .segment = raw.segment};
    memcpy(ret_header->namespace, raw.namespace, sizeof(raw.namespace));
    snprintf(ret_header->writer, sizeof(ret_header->writer), "%.*s", ID_LEN, raw.writer);
    return RECORD_OK;
}

void record_write_fixed(const struct record *record, char ret_bytes[RECORD_FIXED_BYTES])
{
    struct fixed_bytes raw = {
        .seq = record->batch.seq,
        .durable = record->durable,
        .events = record->batch.events,
        .payload_bytes = (uint32_t)record->batch.bytes,
        .keys = (uint32_t)record->batch.keys,
        .shard = record->shard,
    };

    raw.checksum = checksum_of(&raw, record->batch.payload);
    memcpy(ret_bytes, &raw, sizeof(raw));
}

size_t record_bytes_of(const char fixed[RECORD_FIXED_BYTES])
{
    struct fixed_bytes raw;

    memcpy(&raw, fixed, sizeof(raw));
    return raw.payload_bytes <= RECORD_PAYLOAD_BYTES_MAX ? sizeof(raw) + raw.payload_bytes : 0;
}

uint64_t record_events_of(const char fixed[RECORD_FIXED_BYTES])
{
    struct fixed_bytes raw;

    memcpy(&raw, fixed, sizeof(raw));
    return raw.events;
}

/* A length, the member, eight bytes; again and again, to the very end. */
static bool are_entries(struct span payload, uint32_t keys)
{
    size_t at = 0, count = 0;

    while (at < payload.len) {
        size_t fixed_bytes = sizeof(batch_entry_len) + sizeof(int64_t), left = payload.len - at;
        batch_entry_len len;
        if (left < fixed_bytes)
            return false;
        memcpy(&len, payload.ptr + at, sizeof(len));
        if (len == 0 || len > MEMBER_LEN_MAX || len > left - fixed_bytes)
            return false;
        at += fixed_bytes + len;
        count++;
    }
    return count == keys;
}

enum record_result record_read(struct span bytes, uint32_t shards, struct record *ret_record)
{
    struct fixed_bytes raw;
    struct span payload;

    if (bytes.len < sizeof(raw))
        return RECORD_SHORT;
    memcpy(&raw, bytes.ptr, sizeof(raw));
    if (raw.payload_bytes > RECORD_PAYLOAD_BYTES_MAX)
        return RECORD_ALIEN;
    payload = (struct span){bytes.ptr + sizeof(raw), raw.payload_bytes};
    if (bytes.len - sizeof(raw) < payload.len)
        return RECORD_SHORT;
    if (raw.checksum != checksum_of(&raw, payload.ptr) || raw.shard >= shards || raw.unused != 0 ||
        !are_entries(payload, raw.keys))
        return RECORD_ALIEN;
    *ret_record = (struct record){
        .shard = raw.shard,
        .durable = raw.durable,
        .batch = {.seq = raw.seq,
                  .events = raw.events,
                  .keys = raw.keys,
                  .bytes = payload.len,
                  .payload = (char *)(uintptr_t)payload.ptr},
        .record_bytes = sizeof(raw) + payload.len,
    };
    return RECORD_OK;
}
