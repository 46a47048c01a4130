/* audit - whether everything that Redis accepted is somewhere, and once; shard by shard
 *
 *     accepted = applied + open + sealed + parked + dropped + quarantined
 *
 * Right while traffic runs, by the order in which its figures are read: the ledger's heads, then each shard
 * in Redis by one script, then the books in Postgres in one statement. What is compared with Redis is the
 * ledger row of the generation that Redis released last; that row never changes, so it does not matter that
 * more is applied meanwhile. All figures of a shard are those of the moment of its script. Pure.
 *
 * Open and sealed are added up inside that script as long as they are small. Beyond that, adding up would
 * hold Redis for too long, and in pieces it would not be one moment: the running totals stand in for the set
 * that grows, and the sealed one, which nobody writes to, is read in pages. A large open set that disagrees
 * with its total is found as soon as it is sealed, and stays visible in the ledger after that.
 */
#ifndef FLUSHER_AUDIT_H
#define FLUSHER_AUDIT_H

#include "flusher/source.h"

/* A shard in Redis, at one moment. */
struct shard_holdings {
    int64_t accepted, accepted_at_seal;
    char sealed_id[GENERATION_ID_LEN_MAX + 1]; /* "" = none */
    char prev_id[GENERATION_ID_LEN_MAX + 1];   /* "" = none */
    bool set_aside;                            /* what is sealed is on its way into quarantine */
    int64_t open_members, sealed_members;
    bool open_known, sealed_known; /* whether they were added up: */
    int64_t open, sealed;
    char *durable; /* JSON, writer -> its last batch that Redis knows to be in Postgres; owned; NULL = none */
};

/* The same shard in Postgres, in one later snapshot. */
struct shard_books {
    char head_before[GENERATION_ID_LEN_MAX + 1]; /* the newest in the ledger, before Redis was read */
    char head_id[GENERATION_ID_LEN_MAX + 1];     /* and now */
    bool prev_known;    /* the ledger has prev_id, or should have it as the newest; or that is "" */
    int64_t prev_total; /* cumulative, with that row */
    int64_t cumulative_total, recovered_total;
    int64_t head_total;                  /* cumulative, as the head's row has it */
    int64_t ledger_total;                /* the sum of all rows, and of those that were pruned */
    int64_t parked_total, dropped_total; /* what the totals above hold of them */
    int64_t parked_rows_total;           /* the sum of the rows of counterd.parked */
    int64_t quarantined_rows;            /* without a decision, and with batches that Postgres lacks */
    int64_t quarantined;                 /* their total */
    bool vector_behind;                  /* the vector lacks what Redis knows to be in Postgres */
};

/* From best to worst. */
enum audit_verdict { AUDIT_BALANCED, AUDIT_LATE, AUDIT_DOUBLED, AUDIT_LOST };

/* What is parked or dropped was taken over from Redis, and so is part of the ledger's totals; it is told as
 * of the books' moment. Beside `accepted` of Redis there is what Redis forgot: what waits in quarantine, and
 * what came out of it.
 */
struct shard_audit {
    enum audit_verdict verdict;
    int64_t accepted, applied, open, sealed, parked, dropped, quarantined;
    int64_t difference; /* what is missing (lost) or too much (doubled, below zero) */
    const char *where;  /* what contradicts what, and what to do; "" = nothing */
};

const char *audit_verdict_name(enum audit_verdict verdict);

/* What the two say about the shard. */
struct shard_audit audit_shard(const struct shard_holdings *holdings, const struct shard_books *books);

/* Notes that the shard's counters hold `difference` less than the books say, if the shard is not worse off.
 */
void audit_note_counters(struct shard_audit *shard, int64_t difference);

/* Notes a verdict that no difference tells, if it is a worse one. */
void audit_note(struct shard_audit *audit, enum audit_verdict verdict, const char *where);

/* The shard's figures onto the total, whose verdict becomes the worst of all. `total` starts zeroed. */
void audit_add(struct shard_audit *total, const struct shard_audit *shard);

/* Whether Redis has gone back in time: the ledger's newest is neither what it released last nor what it has
 * sealed, though nobody has flushed since it was read. Gives no false alarm; while flushes end all the time
 * it may not see what they are about to see themselves. */
bool audit_went_back(const char *head_before, const char *head_now, const char *prev_id,
                     const char *sealed_id);

#endif
