/* overview - where the counts are, as far as Redis and Postgres tell: what `status`, `top` and the metrics
 * file are made of
 *
 * In two halves, because one may be away while the other answers: Redis first, then Postgres, as pending.h
 * asks for. Read-only, and light: a script per shard (two with the largest keys, for those
 * that hold any), four statements.
 */
#ifndef FLUSHER_OVERVIEW_H
#define FLUSHER_OVERVIEW_H

#include "flusher/books.h"
#include "flusher/records.h"
#include "flusher/redis.h"
#include "flusher/source_redis.h"

struct overview {
    bool pending_known;
    struct pending pending; /* when Redis could say */
    int64_t gone_back;      /* shards in which Redis has gone back in time, and no flush has seen to it yet */
    struct history history;
    int64_t quarantined; /* generations that nobody has decided about */
    int64_t stuck_ms;    /* how long a flusher has been sitting in a transaction; 0 = none does */
    int64_t stuck_pid;   /* its server process in Postgres */
};

/* Fills one state per shard. */
MUST_CHECK int overview_redis(struct source_redis *source, const struct config *config,
                              struct shard_state *ret_states, struct error *error);

/* What is largest in the shards that hold anything by their `states`. */
MUST_CHECK int overview_largest(struct redis *redis, const struct config *config,
                                const struct shard_state *states, struct largest *ret_largest,
                                struct error *error);

struct redis_memory {
    int64_t used_bytes;
    int64_t max_bytes; /* 0 = no limit, or it does not tell */
    bool evicts;       /* its policy lets it throw counts away when it is full */
};

/* Fails only when Redis is away; one that lets us not ask tells nothing. */
MUST_CHECK int overview_memory(struct redis *redis, struct redis_memory *ret_memory, struct error *error);

/* What Redis says alone: as if nothing that is sealed were in Postgres, and without the sum of it. */
void overview_redis_alone(const struct config *config, const struct shard_state *states,
                          struct pending *ret_pending);

/* Whether this is a Postgres that can be asked, with the tables and shards of this configuration. */
MUST_CHECK int overview_check(struct postgres *postgres, const struct config *config, const char *config_path,
                              struct error *error);

/* `states` may be NULL: Redis did not answer. `heads`, one per shard, is what books_heads() said before Redis
 * was looked at; NULL = it was not asked, and then nothing is known to have gone back. */
MUST_CHECK int overview_postgres(struct postgres *postgres, const struct config *config,
                                 const struct shard_state *states, const struct shard_books *heads,
                                 struct overview *ret_overview, struct error *error);

/* Whether somebody has to look, though both answer: what is late won't come by itself. */
bool overview_is_worrying(const struct overview *overview);

/* All of it in one go, as far as there are answers. */
struct overview_view {
    int redis, postgres; /* 0, or the failure, and then: */
    struct error redis_error, postgres_error;
    struct overview overview; /* without Postgres only `pending`, by Redis alone */
};

void overview_view(struct source_redis *source, struct postgres *postgres, const struct config *config,
                   const char *config_path, struct overview_view *ret_view);

#endif
