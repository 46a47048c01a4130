/* record - how batches stand in a file of the spool
 *
 *     header | record | record | ...
 *
 * The header says whose file it is; each record is a batch as it was going to be sent, under a checksum.
 * Numbers are in the machine's own byte order, which the header shows: a spool is read where it was written.
 * Pure, and never reads behind what it is given, whatever that is.
 */
#ifndef COUNTERD_RECORD_H
#define COUNTERD_RECORD_H

#include "counterd/batch.h"
#include "lib/id.h"
#include "lib/keyspace.h"

#define RECORD_HEADER_BYTES 144
#define RECORD_FIXED_BYTES  48
/* More than a batch can come to. */
#define RECORD_PAYLOAD_BYTES_MAX (1024 * 1024)

struct record_header {
    uint32_t shards;
    uint32_t lanes;                        /* config_lanes_id() */
    uint64_t segment;                      /* from 1; 0: no batches, but fractions of units */
    char namespace[NAMESPACE_LEN_MAX + 1]; /* NUL-terminated */
    char writer[ID_LEN + 1];               /* NUL-terminated */
};

void record_write_header(const struct record_header *header, char ret_bytes[RECORD_HEADER_BYTES]);

enum record_result {
    RECORD_OK,
    RECORD_SHORT, /* the bytes end before the header or the record does */
    RECORD_ALIEN, /* not ours, or damaged */
    RECORD_NEWER, /* a header of another version, or of a machine with another byte order */
};

enum record_result record_read_header(struct span bytes, struct record_header *ret_header);

struct record {
    uint32_t shard;
    uint64_t durable;    /* the writer's highest batch that was known to be in Postgres by then */
    struct batch batch;  /* payload borrowed from the bytes that were read; deltas of fractions are micros */
    size_t record_bytes; /* how far it is to the next one */
};

/* What stands in front of the batch's payload. */
void record_write_fixed(const struct record *record, char ret_bytes[RECORD_FIXED_BYTES]);

/* How long the record is that begins with these bytes; 0 = alien. */
size_t record_bytes_of(const char fixed[RECORD_FIXED_BYTES]);

/* What it gives is safe to walk by batch_next_entry(), and its shard is below `shards`. */
enum record_result record_read(struct span bytes, uint32_t shards, struct record *ret_record);

#endif
