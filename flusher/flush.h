/* flush - one shard from source to sink, once: seal, read, apply, release; or quarantine and reset
 *
 * The flusher's half of PROTOCOL.md over two seams; it knows neither Redis nor Postgres nor any clock. What
 * is decided about a generation is decided here, from what the sink said under the shard's lock. May be
 * interrupted, repeated and run next to itself at any point. Memory: one generation's updates.
 */
#ifndef FLUSHER_FLUSH_H
#define FLUSHER_FLUSH_H

#include "flusher/sink.h"
#include "flusher/source.h"

enum verdict {
    VERDICT_APPLIED, /* all of it is in the sink already */
    VERDICT_FRESH,   /* none of it is, and it follows what is there without a hole */
    VERDICT_MIXED,   /* neither: the source went back in time, or lost what it held; into quarantine */
};

/* `vector` as begin() gave it. */
enum verdict flush_judge(const struct generation *generation, const struct standing *standing,
                         const int64_t *vector);

/* What one call did; numbers of what it applied itself, and not of what it found applied. */
struct flush_result {
    int64_t keys, total, events;
    int64_t quarantined; /* generations */
    int64_t fresh_ms; /* nothing accepted before this moment was pending; 0 when the sink was told itself */
};

struct flush {
    const struct source *source;
    const struct sink *sink;
    /* Called when a generation went into quarantine; or NULL. */
    void (*on_quarantine)(uint32_t shard, const struct generation *generation, int64_t keys, int64_t total);
    struct updates updates; /* memory kept from shard to shard; starts zeroed, ended by flush_done() */
};

void flush_done(struct flush *flush);

/* Flushes what is sealed, then what is open; what must not be applied goes into quarantine, which is no
 * failure of this shard, and what its writers send again is flushed as usual. `ret_result` tells what was
 * done also when it fails. Returns 0 or a failure that names the shard; the shard is then as it was, or as
 * after any of the steps. */
MUST_CHECK int flush_shard(struct flush *flush, uint32_t shard, struct flush_result *ret_result,
                           struct error *error);

#endif
