/* memory_store - shards in a Redis and a Postgres of a few plain structs, with the protocol's semantics
 *
 * For tests of the flush core and for simulations: keys and writers are small numbers, a copy of `struct
 * memory_redis` is a snapshot of Redis, and every seam call first asks a hook what is to go wrong with it.
 */
#ifndef TESTS_UNIT_MEMORY_STORE_H
#define TESTS_UNIT_MEMORY_STORE_H

#include "flusher/flush.h"

#define MEMORY_KEYS       6
#define MEMORY_WRITERS    12
#define MEMORY_LEDGER     128
#define MEMORY_QUARANTINE 32
#define MEMORY_SHARDS     3

struct memory_set {
    bool there[MEMORY_KEYS]; /* the keys are called "k0", "k1", ... */
    int64_t score[MEMORY_KEYS];
    int64_t low[MEMORY_WRITERS]; /* the writers "w0", "w1", ...; 0 = nothing of theirs is in it */
    int64_t high[MEMORY_WRITERS];
    uint64_t blanks[MEMORY_WRITERS]; /* a bit for each batch below 64 that came without any key */
};

struct memory_redis {
    struct memory_set open, sealed;
    int64_t writers[MEMORY_WRITERS], durable[MEMORY_WRITERS];
    char sealed_id[GENERATION_ID_LEN_MAX + 1]; /* "" = nothing is sealed */
    char prev_id[GENERATION_ID_LEN_MAX + 1];
    bool set_aside; /* what is sealed, by a reset */
    int64_t accepted, events, accepted_at_seal, events_at_seal;
    unsigned seals; /* MUTANT_ID_FROM_REDIS */
};

struct memory_row {
    char id[GENERATION_ID_LEN_MAX + 1];
    struct entry entry;
};

/* A generation in quarantine. */
struct memory_quarantine {
    char id[GENERATION_ID_LEN_MAX + 1];
    bool set_aside;
    int64_t total;
    int low[MEMORY_WRITERS], high[MEMORY_WRITERS];
    uint64_t blanks[MEMORY_WRITERS];
};

struct memory_postgres {
    int64_t value[MEMORY_KEYS];
    int64_t vector[MEMORY_WRITERS];
    uint64_t blanks[MEMORY_WRITERS]; /* of the batches that are applied */
    struct memory_row ledger[MEMORY_LEDGER];
    size_t ledger_len;
    struct memory_quarantine quarantine[MEMORY_QUARANTINE];
    size_t quarantine_len;
    struct entry head;
};

/* A shard. */
struct memory_store {
    struct memory_redis redis;
    struct memory_postgres postgres;
    const void *locked_by; /* the flusher that holds the shard's row; NULL = none */
    unsigned ids;          /* handed out so far */
};

enum memory_fault {
    FAULT_NONE,
    FAULT_LOST_CALL,  /* it never arrives, and the caller sees a failure (at COMMIT: no answer) */
    FAULT_LOST_REPLY, /* it is done, and the caller sees the same */
    FAULT_REFUSED,    /* the server says no */
    FAULT_COLLISION,  /* Postgres rolled back because of others */
    FAULT_CRASH,      /* the flusher dies before it */
    FAULT_CRASH_AFTER,
    FAULT_COUNT
};

/* One flusher process. */
struct memory_flusher {
    struct memory_store *store;                         /* an array of them when `shards` says so */
    size_t shards;                                      /* 0 = one */
    struct memory_postgres transactions[MEMORY_SHARDS]; /* what it would commit, while it holds the lock */
    /* MUTANT_STALE_VECTOR: what it saw at its last seal. */
    struct standing seen[MEMORY_SHARDS];
    int64_t seen_vector[MEMORY_SHARDS][MEMORY_WRITERS];
    uint64_t blanks[MEMORY_SHARDS][MEMORY_WRITERS]; /* of what it has sealed, or found so */
    bool dead;
    enum memory_fault (*hook)(void *context, struct memory_flusher *flusher); /* before each call; or NULL */
    void (*after)(void *context, struct memory_flusher *flusher);             /* after each call; or NULL */
    void *context;
};

/* A rule of the protocol that the servers, or those who use them, do without: to see that a test notices. */
enum memory_mutant {
    MUTANT_NONE,
    MUTANT_NO_SEQ_CHECK,      /* append: applies whatever comes */
    MUTANT_ANY_FIRST_SEQ,     /* append: a writer that Redis does not know may begin at any number */
    MUTANT_READ_ANY,          /* read: not tied to the generation */
    MUTANT_RELEASE_ANY,       /* release: neither */
    MUTANT_RELEASE_EARLY,     /* release: before COMMIT */
    MUTANT_ID_FROM_REDIS,     /* seal: ids are counted in Redis, so a rollback turns them back */
    MUTANT_NO_VECTOR,         /* begin: the ledger alone tells what is applied */
    MUTANT_STALE_VECTOR,      /* begin: decides on what it read before it had the lock */
    MUTANT_LEDGER_OUTSIDE,    /* record: outside the transaction */
    MUTANT_UNKNOWN_IS_DONE,   /* commit: no answer is taken for done */
    MUTANT_UNKNOWN_IS_FAILED, /* a sent batch whose answer is lost goes back into the table */
    MUTANT_GAP_ADOPTED,       /* GAP: the writer goes on as if Redis had all that it was sent */
    MUTANT_NO_PROBE,          /* an idle writer does not ask */
    MUTANT_COUNT,
};
extern enum memory_mutant memory_mutant;

enum memory_append { MEMORY_OK, MEMORY_DUP, MEMORY_GAP };

/* What a batch adds. */
struct memory_deltas {
    bool there[MEMORY_KEYS];
    int64_t delta[MEMORY_KEYS];
    int64_t events;
};

/* Whether it adds nothing: a batch that stands in for one whose content is lost. */
bool memory_is_blank(const struct memory_deltas *deltas);

/* The step append. `ret_seq`: the writer's durable seq, or, with MEMORY_GAP, the last one that is here. */
enum memory_append memory_append(struct memory_redis *redis, int writer, int64_t seq, int64_t known_durable,
                                 const struct memory_deltas *deltas, int64_t *ret_seq);

/* The step probe: MEMORY_OK or MEMORY_GAP, and `ret_seq` as of an append. */
enum memory_append memory_probe(const struct memory_redis *redis, int writer, int64_t seq,
                                int64_t known_durable, int64_t *ret_seq);

struct source memory_source(struct memory_flusher *flusher);
struct sink memory_sink(struct memory_flusher *flusher);

#endif
