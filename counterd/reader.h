/* reader - what is pending in Redis, for people who look
 *
 * On the main thread's loop, over a connection of its own, so that a question never delays an append. It is
 * made when somebody asks and closed when nobody does any more: unwatched, it costs nothing. Every question
 * is answered once, also when Redis does not: within READER_TIMEOUT_MS, and before the asking call returns
 * where the answer is known by then. Numbers are what Redis has; what is in counterd's memory is not in them.
 */
#ifndef COUNTERD_READER_H
#define COUNTERD_READER_H

#include "lib/config.h"

#define READER_TIMEOUT_MS 1000

/* Of reader_top(). */
#define READER_TOP_MAX 100

struct event_base;
struct reader;

/* All shards together. Ages by Redis's clock, in ms; -1 = there is no such thing. */
struct reader_look {
    int64_t taken_ms; /* monotonic; 0 = never */
    uint64_t open_keys, sealed_keys;
    int64_t open_total, sealed_total;
    bool sealed_total_known; /* it is for small generations only */
    int64_t open_age_ms;     /* of the oldest that is open */
    int64_t sealed_age_ms;   /* of the oldest in what is sealed */
    int64_t sealed_for_ms;   /* since the first of them was sealed */
    int64_t released_ago_ms; /* since a flusher last finished a shard */
    uint64_t sealed_shards;
    uint64_t memory_bytes, memory_bytes_max; /* max 0 = no limit */
    char eviction[32];                       /* maxmemory-policy; "" = not told */
    bool appendonly;                         /* true also when not told */
};

struct reader_pending {
    int64_t open, sealed; /* 0 when the key is not there */
    int64_t all;          /* what both come to */
    bool known;           /* the key is there */
    bool whole; /* false: the shard has too many keys to look for those of its members that have a time bucket
                 */
};

struct reader_top_key {
    char key[KEY_LEN_MAX + 1];
    int64_t pending;
};

/* `error` is NULL when Redis has answered. What is given is borrowed for the call. */
typedef void reader_on_look(void *context, const struct reader_look *look, const char *error);
typedef void reader_on_pending(void *context, const struct reader_pending *pending, const char *error);
typedef void reader_on_top(void *context, const struct reader_top_key *keys, size_t len, const char *error);

/* Keeps both. Gives NULL when out of memory. */
struct reader *reader_new(struct event_base *base, const struct config *config);

/* Answers what is still asked. */
void reader_free(struct reader *reader);

/* The look gives the last one again while that is no older than `age_ms_max`, while the next is under way,
 * and (with its error) after a question that Redis did not answer, for a second. */
void reader_ask_look(struct reader *reader, int64_t age_ms_max, reader_on_look *on_look, void *context);

void reader_ask_pending(struct reader *reader, struct span key, reader_on_pending *on_pending, void *context);

/* The `n` keys with most pending, largest first; those that are among the n first of a shard's open or sealed
 * set.
 */
void reader_ask_top(struct reader *reader, size_t n, reader_on_top *on_top, void *context);

#endif
