/* source - the seam to where generations come from: PROTOCOL.md's steps seal, read, release and reset
 *
 * Each function returns a negative failure (flusher/failure.h) with a text, or one of its outcomes. A failure
 * says nothing about whether the step was done: its reply may have been lost. All steps may be repeated.
 */
#ifndef FLUSHER_SOURCE_H
#define FLUSHER_SOURCE_H

#include "flusher/updates.h"
#include "lib/error.h"

#define GENERATION_ID_LEN_MAX 63

/* Which batches of a writer are in a generation. */
struct batches {
    char *writer;      /* NUL-terminated, owned */
    int64_t low, high; /* seqs, both included, without a hole */
};

struct generation {
    char id[GENERATION_ID_LEN_MAX + 1];
    char prev_id[GENERATION_ID_LEN_MAX + 1]; /* the one released before it; "" = none */
    bool recovered;                          /* sealed by an earlier call, not by this one */
    bool set_aside;                          /* by a reset; it belongs into quarantine, and nowhere else */
    int64_t now_ms;                          /* the source's clock at this call */
    int64_t opened_ms, sealed_ms, last_append_ms;
    int64_t accepted_at_seal, events_at_seal; /* running totals of the shard */
    size_t members;
    struct batches *batches; /* its identity */
    size_t batches_len;
};

/* Frees what it owns, not itself. A zeroed one is fine. */
void generation_done(struct generation *generation);

/* What the running totals of the source are off by when it has gone back in time: what it forgot is in the
 * sink all the same. Both 0 otherwise. */
struct correction {
    int64_t total, events;
};

/* What a writer has in the sink. */
struct position {
    char *writer; /* NUL-terminated, owned */
    int64_t seq;  /* its last batch there */
};

/* Where a shard stands in the sink, as a whole: what a source that went back in time is set to. */
struct reset {
    char head_id[GENERATION_ID_LEN_MAX + 1]; /* the newest generation in the ledger; "" = none */
    int64_t accepted, events;                /* its running totals */
    struct position *vector;
    size_t vector_len;
};

/* Frees what it owns, not itself. A zeroed one is fine. */
void reset_done(struct reset *reset);

enum seal_outcome { SEAL_NONE, SEAL_SEALED };
enum read_outcome { READ_PAGE, READ_GONE };

/* Shards that a source is told of ahead, at most. */
#define SOURCE_AHEAD_MAX 16

struct source {
    void *context;

    /* Seals what is open under a fresh id, or finds what was sealed before. Fills `ret_generation` (now_ms
     * only on SEAL_NONE), to be done by the caller. */
    int (*seal)(void *context, uint32_t shard, struct generation *ret_generation, struct error *error);

    /* Adds the page that begins at member number updates_added(); READ_GONE when `id` is not what is sealed.
     */
    int (*read)(void *context, uint32_t shard, const char *id, struct updates *updates, struct error *error);

    /* Frees the generation if it is the sealed one, and corrects the running totals; else nothing, as
     * somebody else did. Its batches are durable from then on, unless it was set aside. Whether it went well
     * may be known only after settle(). */
    int (*release)(void *context, uint32_t shard, const char *id, const struct correction *correction,
                   struct error *error);

    /* The generation is in quarantine: if it is the sealed one, it is freed, what is open takes its place as
     * a generation set aside, and the shard goes on from `reset`. */
    int (*reset)(void *context, uint32_t shard, const char *id, const struct reset *reset,
                 struct error *error);

    /* Waits until all releases are done; the first failure of one of them. NULL where release() waits itself.
     */
    int (*settle)(void *context, struct error *error);

    /* Says early that these shards are going to be sealed next, in order, so that the source may ask for
     * several at once. No promise: what it does not do, or fails to, seal() does. NULL where it would bring
     * nothing. */
    void (*expect)(void *context, uint32_t first, uint32_t len);
};

#endif
