#include "counterd/spool_file.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "counterd/spool.h"
#include "lib/log.h"

#define LOCK_NAME        "lock"
#define SEGMENT_SUFFIX   ".spool"
#define FRACTIONS_SUFFIX ".fractions"
#define ASIDE_SUFFIX     ".aside"

void spool_file_name(const char *writer, uint64_t number, char ret_name[SPOOL_NAME_BYTES])
{
    if (number == 0)
        snprintf(ret_name, SPOOL_NAME_BYTES, "%s" FRACTIONS_SUFFIX, writer);
    else
        snprintf(ret_name, SPOOL_NAME_BYTES, "%s.%08" PRIu64 SEGMENT_SUFFIX, writer, number);
}

bool spool_file_read(int fd, uint64_t at, char *buf, size_t bytes)
{
    size_t done = 0;

    while (done < bytes) {
        ssize_t r = pread(fd, buf + done, bytes - done, (off_t)(at + done));
        if (r == 0 || (r < 0 && errno != EINTR))
            return false;
        done += r > 0 ? (size_t)r : 0;
    }
    return true;
}

bool spool_file_is_torn(int fd, uint64_t at, uint64_t end)
{
    char fixed[RECORD_FIXED_BYTES];
    size_t bytes;

    if (end - at < sizeof(fixed))
        return true;
    if (!spool_file_read(fd, at, fixed, sizeof(fixed)))
        return false;
    bytes = record_bytes_of(fixed);
    return bytes > end - at;
}

void spool_file_tell_cut(const char *name, uint64_t at, uint64_t end, bool damaged)
{
    if (damaged)
        log_event(LOG_LEVEL_ERROR, "spool_damaged",
                  "file=%s from_byte=%" PRIu64 " bytes=%" PRIu64
                  " hint=\"what stands before it is stored, then the file is put aside\"",
                  name, at, end - at);
    else
        log_event(LOG_LEVEL_WARN, "spool_torn",
                  "file=%s from_byte=%" PRIu64 " bytes=%" PRIu64
                  " hint=\"the batch that was being written when the process ended; it is cut\"",
                  name, at, end - at);
}

void spool_file_put_aside(int directory, const char *name, const char *why)
{
    char aside[2 * SPOOL_NAME_BYTES + 256], quoted[LOG_TEXT_BYTES];

    snprintf(aside, sizeof(aside), "%s" ASIDE_SUFFIX, name);
    (void)renameat(directory, name, directory, aside);
    log_event(LOG_LEVEL_ERROR, "spool_put_aside",
              "file=%s reason=\"%s\" hint=\"it is kept in 'spool_dir' under its name with " ASIDE_SUFFIX
              "; nothing reads it any more\"",
              log_quote(quoted, span_of(name)), why);
}

/* Whose file it is, by its name; false when it is none of ours. */
static bool read_name(const char *name, char ret_writer[ID_LEN + 1], uint64_t *ret_number)
{
    char again[SPOOL_NAME_BYTES];
    size_t len = strcspn(name, ".");

    if (len != ID_LEN)
        return false;
    memcpy(ret_writer, name, ID_LEN);
    ret_writer[ID_LEN] = '\0';
    *ret_number = 0;
    if (strcmp(name + len, FRACTIONS_SUFFIX) != 0)
        *ret_number = strtoull(name + len + 1, NULL, 10);
    spool_file_name(ret_writer, *ret_number, again);
    return strcmp(name, again) == 0;
}

/* A listing that starts anew, whoever has read the directory before. */
static DIR *open_listing(int directory, struct error *error)
{
    int fd = openat(directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    DIR *listing = fd >= 0 ? fdopendir(fd) : NULL;

    if (!listing) {
        error_set(error, -errno, "can't list 'spool_dir': %s", strerror(errno));
        if (fd >= 0)
            close(fd);
    }
    return listing;
}

static int compare_numbers(const void *a, const void *b)
{
    uint64_t left = *(const uint64_t *)a, right = *(const uint64_t *)b;

    return left < right ? -1 : left > right;
}

int spool_file_numbers(int directory, const char *writer, uint64_t **ret_numbers, size_t *ret_len,
                       struct error *error)
{
    DIR *listing = open_listing(directory, error);
    const struct dirent *entry;

    *ret_numbers = NULL;
    *ret_len = 0;
    if (!listing)
        return -EIO;
    while ((entry = readdir(listing))) {
        char id[ID_LEN + 1];
        uint64_t number, *larger;
        if (!read_name(entry->d_name, id, &number) || number == 0 || strcmp(id, writer) != 0)
            continue;
        larger = realloc(*ret_numbers, (*ret_len + 1) * sizeof(*larger));
        if (!larger) {
            closedir(listing);
            return error_set(error, -ENOMEM, "out of memory");
        }
        *ret_numbers = larger;
        larger[(*ret_len)++] = number;
    }
    closedir(listing);
    if (*ret_len > 0)
        qsort(*ret_numbers, *ret_len, sizeof(**ret_numbers), compare_numbers);
    return 0;
}

static void measure_file(int fd, struct spool_left *sum)
{
    char fixed[RECORD_FIXED_BYTES];
    uint64_t at = RECORD_HEADER_BYTES, end;
    struct stat status;

    if (fstat(fd, &status) < 0)
        return;
    end = (uint64_t)status.st_size;
    while (spool_file_read(fd, at, fixed, sizeof(fixed))) {
        size_t bytes = record_bytes_of(fixed);
        if (bytes == 0 || bytes > end - at)
            break;
        sum->events += record_events_of(fixed);
        at += bytes;
    }
    sum->bytes += at;
}

struct spool_left spool_measure(int directory, const char *writer)
{
    struct spool_left sum = {0};
    struct error error;
    uint64_t *numbers;
    size_t len;

    if (spool_file_numbers(directory, writer, &numbers, &len, &error) < 0)
        len = 0;
    for (size_t i = 0; i < len; i++) {
        char name[SPOOL_NAME_BYTES];
        int fd;
        spool_file_name(writer, numbers[i], name);
        fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        measure_file(fd, &sum);
        close(fd);
    }
    free(numbers);
    return sum;
}

int spool_directory_open(const char *path, const char *namespace, int *ret_directory, struct error *error)
{
    char name[4096 + NAMESPACE_LEN_MAX + 2];
    int directory, lock;

    snprintf(name, sizeof(name), "%s/%s", path, namespace);
    if (mkdir(name, 0700) < 0 && errno != EEXIST)
        return error_set(
            error, -errno,
            "'spool_dir': can't make '%s': %s; '%s' must exist and be writable by counterd's user", name,
            strerror(errno), path);
    directory = open(name, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    if (directory < 0)
        return error_set(error, -errno, "'spool_dir': can't open '%s': %s", name, strerror(errno));
    lock = openat(directory, LOCK_NAME, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    if (lock < 0) {
        int code = errno;
        close(directory);
        return error_set(error, -code, "'spool_dir': can't write in '%s': %s", name, strerror(code));
    }
    close(lock);
    /* On the directory itself, so that one descriptor is enough; the file above shows whether it can be
     * written to. */
    if (flock(directory, LOCK_EX | LOCK_NB) < 0) {
        close(directory);
        return error_set(error, -EADDRINUSE,
                         "'spool_dir': '%s' is in use by another counterd; stop that one, or give this one a "
                         "directory of its own",
                         name);
    }
    *ret_directory = directory;
    return 0;
}

/* Reads a file's header and judges it: 0, or -EINVAL when it is ours and does not fit, or -EBADMSG when it is
 * nothing of ours, or -ENODATA when the process ended before it had written all of it. */
static int check_header(int fd, const char *name, const struct spool_options *options, struct error *error)
{
    struct record_header header;
    char bytes[RECORD_HEADER_BYTES];
    struct stat status;

    if (fstat(fd, &status) == 0 && status.st_size < RECORD_HEADER_BYTES)
        return -ENODATA;
    if (!spool_file_read(fd, 0, bytes, sizeof(bytes)))
        return -EBADMSG;
    switch (record_read_header((struct span){bytes, sizeof(bytes)}, &header)) {
    case RECORD_OK:
        break;
    case RECORD_NEWER:
        return error_set(error, -EINVAL,
                         "'%s' in 'spool_dir' was written by another version of counterd, or on a machine of "
                         "another kind; let that one store it, or move it away",
                         name);
    case RECORD_SHORT:
    case RECORD_ALIEN:
        return -EBADMSG;
    }
    if (strcmp(header.namespace, options->namespace) != 0)
        return error_set(error, -EINVAL, "'%s' in 'spool_dir' is of namespace '%s', not '%s'; move it there",
                         name, header.namespace, options->namespace);
    if (header.lanes != options->lanes)
        return error_set(
            error, -EINVAL,
            "'%s' in 'spool_dir' was written with other databases or merges in 'targets'; set them to what "
            "they were until it is stored",
            name);
    if (header.shards != options->shards)
        return error_set(error, -EINVAL,
                         "'shards' is %" PRIu32 " here, but '%s' in 'spool_dir' was written with %" PRIu32
                         "; set 'shards' to that",
                         options->shards, name, header.shards);
    return 0;
}

static int check_file(const char *name, const struct spool_options *options, struct error *error)
{
    int fd = openat(options->directory, name, O_RDONLY | O_CLOEXEC);
    int r;

    if (fd < 0)
        return error_set(error, -errno, "can't open '%s' in 'spool_dir': %s", name, strerror(errno));
    r = check_header(fd, name, options, error);
    close(fd);
    return r;
}

static int add_writer(struct spool_writers *writers, const char *id, struct error *error)
{
    char(*larger)[ID_LEN + 1];

    for (size_t i = 0; i < writers->len; i++)
        if (strcmp(writers->ids[i], id) == 0)
            return 0;
    larger = realloc(writers->ids, (writers->len + 1) * sizeof(*larger));
    if (!larger)
        return error_set(error, -ENOMEM, "out of memory");
    writers->ids = larger;
    memcpy(writers->ids[writers->len++], id, ID_LEN + 1);
    return 0;
}

void spool_writers_done(struct spool_writers *writers)
{
    free(writers->ids);
    *writers = (struct spool_writers){0};
}

static int compare_ids(const void *a, const void *b)
{
    return strcmp(a, b);
}

static bool ends_with(const char *name, const char *suffix)
{
    size_t len = strlen(name), suffix_len = strlen(suffix);

    return len >= suffix_len && strcmp(name + len - suffix_len, suffix) == 0;
}

int spool_list(const struct spool_options *options, struct spool_writers *ret_writers, struct error *error)
{
    DIR *listing = open_listing(options->directory, error);
    const struct dirent *entry;
    int r = 0;

    *ret_writers = (struct spool_writers){0};
    if (!listing)
        return -EIO;
    while (r == 0 && (entry = readdir(listing))) {
        const char *name = entry->d_name;
        char id[ID_LEN + 1];
        uint64_t number;
        if (entry->d_type == DT_DIR || strcmp(name, LOCK_NAME) == 0 || ends_with(name, ASIDE_SUFFIX))
            continue;
        r = read_name(name, id, &number) ? check_file(name, options, error) : -EBADMSG;
        if (r == -EBADMSG) {
            spool_file_put_aside(options->directory, name, "not a file of counterd's");
            r = 0;
        } else if (r == -ENODATA) {
            log_event(LOG_LEVEL_INFO, "spool_empty", "file=%s hint=\"it was being begun; it is removed\"",
                      name);
            r = unlinkat(options->directory, name, 0) == 0
                    ? 0
                    : error_set(error, -errno, "can't remove '%s' in 'spool_dir': %s", name, strerror(errno));
        } else if (r == 0 && number > 0) {
            r = add_writer(ret_writers, id, error);
        }
    }
    closedir(listing);
    if (ret_writers->len > 0)
        qsort(ret_writers->ids, ret_writers->len, sizeof(ret_writers->ids[0]), compare_ids);
    return r;
}

/* The file is gone before anybody counts what it held. */
static int take_fractions_of(int directory, const char *name, uint32_t shards,
                             const struct spool_finder *finder, struct error *error)
{
    int fd = openat(directory, name, O_RDONLY | O_CLOEXEC);
    size_t bytes, at = RECORD_HEADER_BYTES;
    struct stat status;
    struct record record;
    char *content;
    int r = 0;

    if (fd < 0 || fstat(fd, &status) < 0) {
        if (fd >= 0)
            close(fd);
        return error_set(error, -EIO, "can't read '%s' in 'spool_dir'", name);
    }
    bytes = (size_t)status.st_size;
    content = malloc(bytes);
    if (!content || !spool_file_read(fd, 0, content, bytes))
        r = error_set(error, -EIO, "can't read '%s' in 'spool_dir'", name);
    else if (unlinkat(directory, name, 0) < 0 || fsync(directory) < 0)
        r = error_set(error, -errno, "can't remove '%s' in 'spool_dir': %s", name, strerror(errno));
    close(fd);
    while (r == 0 && at < bytes &&
           record_read((struct span){content + at, bytes - at}, shards, &record) == RECORD_OK) {
        (void)finder->on_found(finder->context, &record);
        at += record.record_bytes;
    }
    if (r == 0 && at < bytes)
        spool_file_tell_cut(name, at, bytes, false);
    free(content);
    return r;
}

int spool_take_fractions(int directory, uint32_t shards, const struct spool_finder *finder,
                         struct error *error)
{
    DIR *listing = open_listing(directory, error);
    const struct dirent *entry;
    int r = 0;

    if (!listing)
        return -EIO;
    while (r == 0 && (entry = readdir(listing))) {
        char id[ID_LEN + 1];
        uint64_t number;
        if (read_name(entry->d_name, id, &number) && number == 0)
            r = take_fractions_of(directory, entry->d_name, shards, finder, error);
    }
    closedir(listing);
    return r;
}
