/* source - the seam to where generations come from: PROTOCOL.md's steps seal, read and release
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
    int64_t now_ms;                          /* the source's clock at this call */
    int64_t opened_ms, sealed_ms, last_append_ms;
    int64_t accepted_at_seal, events_at_seal; /* running totals of the shard */
    size_t members;
    struct batches *batches; /* its identity */
    size_t batches_len;
};

/* Frees what it owns, not itself. A zeroed one is fine. */
void generation_done(struct generation *generation);

enum seal_outcome { SEAL_NONE, SEAL_SEALED };
enum read_outcome { READ_PAGE, READ_GONE };

struct source {
    void *context;

    /* Seals what is open under a fresh id, or finds what was sealed before. Fills `ret_generation` (now_ms
     * only on SEAL_NONE), to be done by the caller. */
    int (*seal)(void *context, uint32_t shard, struct generation *ret_generation, struct error *error);

    /* Adds the page that begins at member number updates_added(); READ_GONE when `id` is not what is sealed.
     */
    int (*read)(void *context, uint32_t shard, const char *id, struct updates *updates, struct error *error);

    /* Frees the generation if it is the sealed one; else nothing, as somebody else did. */
    int (*release)(void *context, uint32_t shard, const char *id, struct error *error);
};

#endif
