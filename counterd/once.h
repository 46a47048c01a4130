/* once - a client's request that is applied once, however often it is sent: what came with an Idempotency-Key
 *
 * The pure core: no connection, no clock. A request becomes one part per shard; each is a batch of a writer
 * of its own, made of token and body, with seq 1, that Redis applies or recognises in one step (append.lua).
 * The part of the token's home shard goes first: its marker says which body the token stands for, so a
 * request whose body differs is refused before anything of it is applied. Only then the others go, all at
 * once. The caller sends what once_next() gives and says what became of it, in any order; whatever is not
 * known is sent again.
 *
 * What makes a retry the same request: token and body, byte for byte. Where a key goes depends on nothing
 * else but the number of shards, which is fixed for a namespace, and the key's lane; the order of adding does
 * not matter.
 */
#ifndef COUNTERD_ONCE_H
#define COUNTERD_ONCE_H

#include <sys/queue.h>

#include "lib/keyspace.h"
#include "lib/table.h"

/* Distinct keys in a request. All of one shard go to Redis in one script. */
#define ONCE_KEYS_MAX 10000

/* Takes the token out of a header's value: 1 to TOKEN_LEN_MAX visible ASCII characters other than '"' and
 * '\', with or without quotes around them. False when it is none. */
bool once_read_token(const char *header, char ret_token[TOKEN_LEN_MAX + 1]);

struct once;

struct once_item {
    struct span key;
    int64_t delta; /* whole units */
};

enum once_stage { ONCE_TO_SEND, ONCE_SENT, ONCE_DONE };

/* What goes to one shard. */
struct once_part {
    const struct once *once;
    uint32_t shard;
    uint64_t events; /* increments behind it */
    const struct once_item *items;
    size_t items_len; /* 0 in the home shard when it has no key of the request: then it is the marker alone */
    enum once_stage stage;
    bool resent;                 /* an earlier try may have been applied */
    bool counted;                /* once_tell() has said so */
    bool found;                  /* the store's: Redis had it already */
    TAILQ_ENTRY(once_part) held; /* the store's */
};

struct once {
    void *context; /* the caller's */
    char token[TOKEN_LEN_MAX + 1];
    char digest[DIGEST_LEN + 1];       /* of the body */
    char writer[TOKEN_WRITER_LEN + 1]; /* of both */
    size_t parts_len;
    struct once_part *parts; /* the home shard's first */
    struct once_item *items;
    char *keys;
    bool differs;
    bool fresh; /* some part was applied by this request */
};

struct once_options {
    const char *token;
    struct span body;
    struct table *table; /* the body's increments, whole units only; all of it is taken out */
    uint32_t shards;
    uint32_t homes; /* the first so many may be a token's home: the first lane's, which is always there */
    void *context;
};

/* Gives NULL when out of memory, and leaves the table as it is. */
struct once *once_new(const struct once_options *options);
void once_free(struct once *once);

/* A part to be sent now, which is then on its way; NULL: none, for now. */
struct once_part *once_next(struct once *once);

enum once_outcome {
    ONCE_APPLIED,
    ONCE_FOUND,   /* Redis had it already */
    ONCE_OTHER,   /* the token stands for another body */
    ONCE_REFUSED, /* not applied */
    ONCE_UNKNOWN,
};

/* What became of a part that was sent. Returns how many increments are in Redis now by this request, once for
 * each part; of one that is found after its answer was lost, that is a guess, as an earlier request may have
 * brought it. */
uint64_t once_tell(struct once *once, struct once_part *part, enum once_outcome outcome);

/* Redis may have gone back in time: what it has applied, and has not been answered for, is sent again too. */
void once_doubt(struct once *once);

/* Whether no part is on its way. */
bool once_is_idle(const struct once *once);

enum once_verdict {
    ONCE_UNFINISHED,
    ONCE_STORED,    /* all of it is in Redis */
    ONCE_DUPLICATE, /* the same, and was before this request */
    ONCE_DIFFERS,   /* nothing of it was applied: the token stands for another body */
};

enum once_verdict once_verdict(const struct once *once);

#endif
