/* books - what an audit reads in Postgres; SQL only, judged in flusher/audit.h
 *
 * Adds up the whole ledger, a row per shard and run: seconds at some millions of rows, and no lock.
 */
#ifndef FLUSHER_BOOKS_H
#define FLUSHER_BOOKS_H

#include "flusher/audit.h"
#include "flusher/postgres.h"

/* The newest generation of each shard: head_before of `ret_books`, one per shard, zeroed before. To be read
 * before Redis is. */
MUST_CHECK int books_heads(struct postgres *postgres, const struct config *config,
                           struct shard_books *ret_books, struct error *error);

/* The rest of them, in one snapshot; after Redis, whose `holdings` say which rows matter. */
MUST_CHECK int books_read(struct postgres *postgres, const struct config *config,
                          const struct shard_holdings *holdings, struct shard_books *ret_books,
                          struct error *error);

/* What counterd.counters lacks (below zero: has too much) of what the books say is in it, in one snapshot:
 * in all, and when that is not 0, for each shard, unless other namespaces count in the same table. 0 when
 * only others do. */
MUST_CHECK int books_counters(struct postgres *postgres, const struct config *config, int64_t *ret_total,
                              int64_t *ret_shards, struct error *error);

#endif
