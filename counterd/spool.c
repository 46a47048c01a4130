#include "counterd/spool.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/queue.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#include "counterd/spool_file.h"

/* Large enough that few files are open, small enough that the disk is given back while a long spool is sent.
 */
#define SEGMENT_BYTES (INT64_C(16) * 1024 * 1024)

struct segment {
    uint64_t number;
    int fd;
    uint64_t bytes;     /* up to the end of the last whole record */
    uint64_t unsettled; /* batches */
    uint64_t events;    /* increments in those */
    uint64_t unread;    /* those of them that were never popped */
    bool damaged;       /* what is behind `bytes`, or could not be read: kept aside */
    STAILQ_ENTRY(segment) link;
};

struct spool {
    struct spool_options options;
    char writer[ID_LEN + 1];
    STAILQ_HEAD(, segment) segments;
    uint64_t numbers; /* of segments, given so far */
    uint64_t bytes;
    struct segment *writing;   /* NULL: the next push begins a segment */
    struct segment *reading;   /* NULL: nothing is left to be popped */
    uint64_t read_at;          /* in that one */
    struct segment *fractions; /* not in the list */
    bool unsynced;
    char *buffer; /* a record; allocated when the first is read */
};

struct spool *spool_new(const struct spool_options *options)
{
    struct spool *spool = calloc(1, sizeof(*spool));

    if (!spool)
        return NULL;
    spool->options = *options;
    snprintf(spool->writer, sizeof(spool->writer), "%s", options->writer);
    STAILQ_INIT(&spool->segments);
    return spool;
}

static void close_segment(struct segment *segment)
{
    if (!segment)
        return;
    close(segment->fd);
    free(segment);
}

void spool_free(struct spool *spool)
{
    struct segment *segment;

    if (!spool)
        return;
    while ((segment = STAILQ_FIRST(&spool->segments))) {
        STAILQ_REMOVE_HEAD(&spool->segments, link);
        close_segment(segment);
    }
    close_segment(spool->fractions);
    free(spool->buffer);
    free(spool);
}

/* By somebody else: what it holds is there only as long as this process is. */
static bool is_removed(const struct segment *segment)
{
    struct stat status;

    return fstat(segment->fd, &status) == 0 && status.st_nlink == 0;
}

static void name_segment(const struct spool *spool, uint64_t number, char ret_name[SPOOL_NAME_BYTES])
{
    spool_file_name(spool->writer, number, ret_name);
}

static int write_error(const char *name, int code, struct error *error)
{
    return error_set(error, -code, "can't write '%s' in 'spool_dir': %s", name, strerror(code));
}

/* All or nothing, at the segment's end: what a failed write has left there is written over by the next one,
 * and is cut by whoever reads the file before that. */
static int append(struct segment *segment, const struct iovec *pieces, int len)
{
    size_t bytes = 0;
    ssize_t written;

    for (int i = 0; i < len; i++)
        bytes += pieces[i].iov_len;
    do
        written = pwritev(segment->fd, pieces, len, (off_t)segment->bytes);
    while (written < 0 && errno == EINTR);
    if (written < 0)
        return -errno;
    if ((size_t)written < bytes)
        return -ENOSPC;
    segment->bytes += bytes;
    return 0;
}

static int begin_segment(struct spool *spool, uint64_t number, struct segment **ret_segment,
                         struct error *error)
{
    struct record_header header = {
        .shards = spool->options.shards, .lanes = spool->options.lanes, .segment = number};
    struct segment *segment = calloc(1, sizeof(*segment));
    char bytes[RECORD_HEADER_BYTES], name[SPOOL_NAME_BYTES];
    struct iovec piece = {bytes, sizeof(bytes)};
    int r = 0;

    if (!segment)
        return error_set(error, -ENOMEM, "out of memory");
    name_segment(spool, number, name);
    segment->number = number;
    segment->fd = openat(spool->options.directory, name, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0600);
    if (segment->fd < 0) {
        r = write_error(name, errno, error);
        free(segment);
        return r;
    }
    snprintf(header.namespace, sizeof(header.namespace), "%s", spool->options.namespace);
    memcpy(header.writer, spool->writer, sizeof(header.writer));
    record_write_header(&header, bytes);
    r = append(segment, &piece, 1);
    if (r < 0) {
        unlinkat(spool->options.directory, name, 0);
        close_segment(segment);
        return write_error(name, -r, error);
    }
    *ret_segment = segment;
    spool->bytes += segment->bytes;
    return 0;
}

static int append_record(struct spool *spool, struct segment *segment, const struct record *record,
                         struct error *error)
{
    char fixed[RECORD_FIXED_BYTES], name[SPOOL_NAME_BYTES];
    struct iovec pieces[] = {{fixed, sizeof(fixed)}, {record->batch.payload, record->batch.bytes}};
    int r;

    record_write_fixed(record, fixed);
    r = append(segment, pieces, ARRAY_LEN(pieces));
    if (r < 0) {
        name_segment(spool, segment->number, name);
        return write_error(name, -r, error);
    }
    spool->bytes += sizeof(fixed) + record->batch.bytes;
    spool->unsynced = true;
    return 0;
}

int spool_push(struct spool *spool, const struct record *record, uint64_t *ret_segment, struct error *error)
{
    int r = 0;

    if (spool->bytes + RECORD_HEADER_BYTES + RECORD_FIXED_BYTES + record->batch.bytes >
        spool->options.bytes_max)
        return error_set(error, -ENOSPC, "'spool_bytes' (%" PRIu64 ") is used up", spool->options.bytes_max);
    if (spool->writing && spool->writing->bytes >= SEGMENT_BYTES) {
        r = spool_sync(spool, error);
        if (r < 0)
            return r;
        spool->writing = NULL;
    }
    if (!spool->writing || is_removed(spool->writing)) {
        struct segment *segment;
        r = begin_segment(spool, spool->numbers + 1, &segment, error);
        if (r < 0)
            return r;
        spool->numbers++;
        STAILQ_INSERT_TAIL(&spool->segments, segment, link);
        spool->writing = segment;
    }
    r = append_record(spool, spool->writing, record, error);
    if (r < 0)
        return r;
    spool->writing->unsettled++;
    spool->writing->events += record->batch.events;
    spool->writing->unread++;
    if (!spool->reading) {
        spool->reading = spool->writing;
        spool->read_at = spool->writing->bytes - RECORD_FIXED_BYTES - record->batch.bytes;
    }
    *ret_segment = spool->writing->number;
    return 0;
}

uint64_t spool_removed_events(const struct spool *spool)
{
    const struct segment *segment;
    uint64_t events = 0;

    STAILQ_FOREACH(segment, &spool->segments, link)
    {
        if (is_removed(segment))
            events += segment->events;
    }
    return events;
}

static int check_removed(const struct spool *spool, struct error *error)
{
    uint64_t events = spool_removed_events(spool);

    if (events == 0)
        return 0;
    return error_set(error, -ENOENT,
                     "files in 'spool_dir' were removed, with %" PRIu64
                     " increments that are lost if counterd ends before Redis takes them",
                     events);
}

int spool_sync(struct spool *spool, struct error *error)
{
    struct segment *segments[] = {spool->writing, spool->fractions};

    if (!spool->unsynced)
        return check_removed(spool, error);
    for (size_t i = 0; i < ARRAY_LEN(segments); i++)
        if (segments[i] && fdatasync(segments[i]->fd) < 0)
            return error_set(error, -errno, "can't sync 'spool_dir': %s", strerror(errno));
    if (fsync(spool->options.directory) < 0)
        return error_set(error, -errno, "can't sync 'spool_dir': %s", strerror(errno));
    spool->unsynced = false;
    return check_removed(spool, error);
}

int spool_put_fractions(struct spool *spool, const struct record *record, struct error *error)
{
    if (!spool->fractions) {
        int r = begin_segment(spool, 0, &spool->fractions, error);
        if (r < 0)
            return r;
    }
    return append_record(spool, spool->fractions, record, error);
}

/* The oldest ones go while nothing of them is needed; so what is left has no hole. */
static void retire(struct spool *spool)
{
    struct segment *segment;

    while ((segment = STAILQ_FIRST(&spool->segments)) && segment->unsettled == 0) {
        char name[SPOOL_NAME_BYTES];
        STAILQ_REMOVE_HEAD(&spool->segments, link);
        if (spool->reading == segment) {
            spool->reading = STAILQ_FIRST(&spool->segments);
            spool->read_at = RECORD_HEADER_BYTES;
        }
        if (spool->writing == segment)
            spool->writing = NULL;
        name_segment(spool, segment->number, name);
        if (segment->damaged)
            spool_file_put_aside(spool->options.directory, name, "damaged");
        else
            unlinkat(spool->options.directory, name, 0);
        spool->bytes -= segment->bytes;
        close_segment(segment);
    }
}

void spool_settle(struct spool *spool, uint64_t number, uint64_t events)
{
    struct segment *segment;

    STAILQ_FOREACH(segment, &spool->segments, link)
    {
        if (segment->number == number && segment->unsettled > 0) {
            segment->unsettled--;
            segment->events -= events;
            retire(spool);
            return;
        }
    }
}

static void read_on(struct spool *spool)
{
    spool->reading = STAILQ_NEXT(spool->reading, link);
    spool->read_at = RECORD_HEADER_BYTES;
}

/* The record at read_at, which moves behind it. RECORD_SHORT: the segment ends there. */
static enum record_result read_record(struct spool *spool, struct record *ret_record)
{
    struct segment *segment = spool->reading;
    size_t bytes;
    enum record_result result;

    if (spool->read_at == segment->bytes)
        return RECORD_SHORT;
    if (!spool_file_read(segment->fd, spool->read_at, spool->buffer, RECORD_FIXED_BYTES))
        return RECORD_ALIEN;
    bytes = record_bytes_of(spool->buffer);
    if (bytes == 0 || !spool_file_read(segment->fd, spool->read_at + RECORD_FIXED_BYTES,
                                       spool->buffer + RECORD_FIXED_BYTES, bytes - RECORD_FIXED_BYTES))
        return RECORD_ALIEN;
    result = record_read((struct span){spool->buffer, bytes}, spool->options.shards, ret_record);
    if (result != RECORD_OK)
        return RECORD_ALIEN;
    spool->read_at += bytes;
    return RECORD_OK;
}

static bool have_buffer(struct spool *spool)
{
    if (!spool->buffer)
        spool->buffer = malloc(RECORD_FIXED_BYTES + RECORD_PAYLOAD_BYTES_MAX);
    return spool->buffer != NULL;
}

/* What can't be read is not waited for: the segment goes aside once the rest of it is settled. */
static int give_up_reading(struct spool *spool, struct error *error)
{
    struct segment *segment = spool->reading;
    char name[SPOOL_NAME_BYTES];

    name_segment(spool, segment->number, name);
    error_set(error, -EIO, "'%s' in 'spool_dir' can't be read from byte %" PRIu64 " on", name,
              spool->read_at);
    segment->damaged = true;
    segment->unsettled -= segment->unread < segment->unsettled ? segment->unread : segment->unsettled;
    if (segment == spool->writing)
        spool->writing = NULL;
    read_on(spool);
    retire(spool);
    return -EIO;
}

int spool_pop(struct spool *spool, uint32_t *ret_shard, struct batch **ret_batch, struct error *error)
{
    struct record record;
    struct batch *batch;
    enum record_result result = RECORD_SHORT;

    *ret_batch = NULL;
    if (!have_buffer(spool))
        return error_set(error, -ENOMEM, "out of memory");
    while (spool->reading && (result = read_record(spool, &record)) == RECORD_SHORT)
        read_on(spool);
    if (!spool->reading)
        return 0;
    if (result != RECORD_OK)
        return give_up_reading(spool, error);
    batch = batch_new(record.batch.bytes);
    if (!batch) {
        spool->read_at -= record.record_bytes;
        return error_set(error, -ENOMEM, "out of memory");
    }
    batch->seq = record.batch.seq;
    batch->events = record.batch.events;
    batch->keys = record.batch.keys;
    batch->bytes = record.batch.bytes;
    batch->segment = spool->reading->number;
    if (spool->reading->unread > 0)
        spool->reading->unread--;
    if (batch->bytes > 0)
        memcpy(batch->payload, record.batch.payload, batch->bytes);
    *ret_shard = record.shard;
    *ret_batch = batch;
    return 0;
}

uint64_t spool_bytes(const struct spool *spool)
{
    return spool->bytes;
}

bool spool_is_empty(const struct spool *spool)
{
    return STAILQ_EMPTY(&spool->segments);
}

/* Walks the whole records of a segment that was found; where they end, the segment does. */
static int survey(struct spool *spool, struct segment *segment, const struct spool_finder *finder,
                  struct error *error)
{
    struct stat status;
    struct record record;

    if (fstat(segment->fd, &status) < 0)
        return error_set(error, -errno, "can't read 'spool_dir': %s", strerror(errno));
    segment->bytes = (uint64_t)status.st_size;
    spool->reading = segment;
    spool->read_at = RECORD_HEADER_BYTES;
    while (read_record(spool, &record) == RECORD_OK) {
        if (!finder->on_found(finder->context, &record))
            continue;
        segment->unsettled++;
        segment->events += record.batch.events;
    }
    segment->unread = segment->unsettled;
    if (spool->read_at < segment->bytes) {
        char name[SPOOL_NAME_BYTES];
        name_segment(spool, segment->number, name);
        segment->damaged = !spool_file_is_torn(segment->fd, spool->read_at, segment->bytes);
        spool_file_tell_cut(name, spool->read_at, segment->bytes, segment->damaged);
        segment->bytes = spool->read_at;
    }
    spool->bytes += segment->bytes;
    return 0;
}

int spool_adopt(struct spool *spool, const struct spool_finder *finder, struct error *error)
{
    uint64_t *numbers;
    size_t len;
    int r = spool_file_numbers(spool->options.directory, spool->writer, &numbers, &len, error);

    if (r == 0 && !have_buffer(spool))
        r = error_set(error, -ENOMEM, "out of memory");
    for (size_t i = 0; r == 0 && i < len; i++) {
        struct segment *segment = calloc(1, sizeof(*segment));
        char name[SPOOL_NAME_BYTES];
        name_segment(spool, numbers[i], name);
        if (!segment) {
            r = error_set(error, -ENOMEM, "out of memory");
            break;
        }
        segment->number = spool->numbers = numbers[i];
        segment->fd = openat(spool->options.directory, name, O_RDWR | O_CLOEXEC);
        if (segment->fd < 0) {
            r = error_set(error, -errno, "can't open '%s' in 'spool_dir': %s", name, strerror(errno));
            free(segment);
            break;
        }
        STAILQ_INSERT_TAIL(&spool->segments, segment, link);
        r = survey(spool, segment, finder, error);
    }
    free(numbers);
    spool->reading = STAILQ_FIRST(&spool->segments);
    spool->read_at = RECORD_HEADER_BYTES;
    retire(spool);
    return r;
}
