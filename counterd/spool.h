/* spool - a writer's batches on disk, while Redis can't take them
 *
 * A queue in files: spool_push() at its end, spool_pop() at its front. The files of a namespace stand in a
 * directory of its own, which one process has to itself; each writer has a series of them,
 * WRITER.NUMBER.spool, called segments. A segment is removed when each of its batches is acknowledged
 * (spool_settle), the oldest first. What is popped stays on disk until then, so that whatever ends the
 * process, the next one finds all that is not acknowledged. Damage is told, never fatal: what can't be read
 * is left in the directory under the name NAME.aside.
 *
 * Nothing is opened or written before the first push. Blocks while the disk does. Belongs to one thread.
 */
#ifndef COUNTERD_SPOOL_H
#define COUNTERD_SPOOL_H

#include "counterd/batch.h"
#include "counterd/record.h"
#include "lib/error.h"

struct spool;

struct spool_options {
    int directory;         /* kept: spool_directory_open() */
    const char *namespace; /* kept */
    const char *writer;    /* copied */
    uint32_t shards;
    uint32_t lanes; /* config_lanes_id() */
    uint64_t bytes_max;
};

/* Gives NULL when out of memory. */
struct spool *spool_new(const struct spool_options *options);

/* Leaves the files as they are. */
void spool_free(struct spool *spool);

/* Puts a batch at the end. `ret_segment` says where it is, for spool_settle(). -ENOSPC when bytes_max is
 * reached, or what the disk says; the queue is as it was then. */
MUST_CHECK int spool_push(struct spool *spool, const struct record *record, uint64_t *ret_segment,
                          struct error *error);

/* Makes sure that what was pushed outlives a power cut. -ENOENT when somebody has removed some of it. */
MUST_CHECK int spool_sync(struct spool *spool, struct error *error);

/* Takes the front one: `ret_batch` is given (free()), with its segment; NULL when there is none. On failure
 * the rest of a segment is unreadable and is passed over; the next call goes on behind it. */
MUST_CHECK int spool_pop(struct spool *spool, uint32_t *ret_shard, struct batch **ret_batch,
                         struct error *error);

/* One batch of the segment, with so many increments, need not be kept any more. */
void spool_settle(struct spool *spool, uint64_t segment, uint64_t events);

/* Increments in batches that are still to be kept, of which somebody has removed the files. They can be
 * popped, but no later process finds them. */
uint64_t spool_removed_events(const struct spool *spool);

/* On disk, headers included. */
uint64_t spool_bytes(const struct spool *spool);

/* Whether no file is left. */
bool spool_is_empty(const struct spool *spool);

/* Takes over what an earlier process has left of this spool's writer. Each batch that is found is told to
 * on_found, which answers whether it will be awaited: the others count as settled. To be called before
 * anything else; -EINVAL when the files belong to another number of shards or version. */
struct spool_finder {
    void *context;
    bool (*on_found)(void *context, const struct record *record);
};
MUST_CHECK int spool_adopt(struct spool *spool, const struct spool_finder *finder, struct error *error);

/* What lies on disk of an earlier process's writer, by what its records say of themselves: nothing is
 * checked, or told. */
struct spool_left {
    uint64_t events, bytes;
};
struct spool_left spool_measure(int directory, const char *writer);

/* Opens the namespace's directory in `path`, making it if it is missing, and takes its lock. The file
 * descriptor holds both; close(2) ends it. -EADDRINUSE when another process has it. */
MUST_CHECK int spool_directory_open(const char *path, const char *namespace, int *ret_directory,
                                    struct error *error);

struct spool_writers {
    char (*ids)[ID_LEN + 1]; /* the oldest first */
    size_t len;
};

/* Whose segments lie in the directory; to be freed by spool_writers_done(), on failure too. Checks that they
 * are of this namespace, these lanes and so many shards, and puts aside what is no spool's file. Of the
 * options, it looks at these four. */
MUST_CHECK int spool_list(const struct spool_options *options, struct spool_writers *ret_writers,
                          struct error *error);
void spool_writers_done(struct spool_writers *writers);

/* Keeps what is less than a unit, of keys whose process ends now: entries hold micros. It goes to a file of
 * its own. */
MUST_CHECK int spool_put_fractions(struct spool *spool, const struct record *record, struct error *error);

/* Tells all fractions that earlier processes have left, each after its file has been removed: they may get
 * lost, but never come twice. */
MUST_CHECK int spool_take_fractions(int directory, uint32_t shards, const struct spool_finder *finder,
                                    struct error *error);

#endif
