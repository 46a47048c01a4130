/* flush - shards from source to sink: seal, read, apply, release; or quarantine and reset
 *
 * The flusher's half of PROTOCOL.md over two seams; it knows neither Redis nor Postgres nor any clock. What
 * is decided about a generation is decided here, from what the sink said under the shard's lock. May be
 * interrupted, repeated and run next to itself at any point.
 *
 * A shard can be flushed by itself, or its generation can be gathered with those of others that go to the
 * sink in one transaction: 64 shards with a dozen keys each cost one commit then, and not 64. Gathering is
 * for the ordinary case only; whatever is out of the ordinary, flush_shard() sorts out, shard by shard.
 * A generation is never divided. Memory: one generation's updates, and what was gathered before it, which is
 * less than `gather_keys`.
 */
#ifndef FLUSHER_FLUSH_H
#define FLUSHER_FLUSH_H

#include "flusher/sink.h"
#include "flusher/source.h"

#define FLUSH_CARGO_MAX 256 /* generations in one transaction */

/* `vector` as begin() gave it. */
enum verdict flush_judge(const struct generation *generation, const struct standing *standing,
                         const int64_t *vector);

/* What one call did; numbers of what it applied itself, and not of what it found applied. */
struct flush_result {
    int64_t keys, total, events;
    int64_t parked, dropped; /* keys of those */
    int64_t quarantined;     /* generations */
    bool mixed;              /* some had to go into quarantine: what they held may be sent again */
    int64_t fresh_ms; /* unless it is mixed, nothing accepted before this moment was pending; 0 when the sink
                       * was told itself */
};

struct flush {
    const struct source *source;
    const struct sink *sink;
    /* Keys that make a transaction large enough. A shard's keys are strewn over the whole table, so the more
     * shards share a transaction, the fewer times each page is visited (docs/performance-flush.md); and the
     * longer it holds its rows. */
    size_t gather_keys;
    /* Called when a generation went into quarantine, and when one that the ledger does not know turned out to
     * be applied, because the source has gone back in time; or NULL. */
    void (*on_quarantine)(uint32_t shard, const struct generation *generation, int64_t keys, int64_t total);
    void (*on_applied_before)(uint32_t shard, const struct generation *generation, int64_t keys,
                              int64_t total);
    struct updates updates; /* memory kept; starts zeroed, ended by flush_done() */
    struct cargo *cargo;    /* loaded, shards ascending; the same */
    size_t cargo_len;
    bool gathering; /* what is loaded came by flush_gather() */
};

void flush_done(struct flush *flush);

/* Flushes what is sealed, then what is open; what must not be applied goes into quarantine, which is no
 * failure of this shard, and what its writers send again is flushed as usual. Nothing may be gathered.
 * `ret_result` tells what was done also when it fails. Returns 0 or a failure that names the shard; the shard
 * is then as it was, or as after any of the steps. */
MUST_CHECK int flush_shard(struct flush *flush, uint32_t shard, struct flush_result *ret_result,
                           struct error *error);

enum gathered {
    GATHERED_NOTHING, /* nothing is there: the shard is done */
    GATHERED_MORE,    /* to be applied by flush_gathered() */
    GATHERED_FULL,    /* the same, and it is time to */
    GATHERED_ALONE,   /* not gathered: it wants flush_shard() */
};

/* A gathered, or a failure, after which the shard is not gathered either. Shards have to come in ascending
 * order. */
MUST_CHECK int flush_gather(struct flush *flush, uint32_t shard, struct flush_result *ret_result,
                            struct error *error);

/* All that was gathered, and forgets it. After a failure each of those shards wants flush_shard();
 * `ret_result` tells what was applied in any case. */
MUST_CHECK int flush_gathered(struct flush *flush, struct flush_result *ret_result, struct error *error);

#endif
