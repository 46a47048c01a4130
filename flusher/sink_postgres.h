/* sink_postgres - the ledger and the counters of one namespace as a sink; all SQL of a flush is here */
#ifndef FLUSHER_SINK_POSTGRES_H
#define FLUSHER_SINK_POSTGRES_H

#include "flusher/postgres.h"
#include "flusher/sink.h"

struct sink_postgres;

/* Borrows both. */
MUST_CHECK int sink_postgres_new(struct postgres *postgres, const struct config *config,
                                 struct sink_postgres **ret_sink, struct error *error);
void sink_postgres_free(struct sink_postgres *sink);

/* The seam; its context is the sink, so it lives as long. */
struct sink sink_postgres_seam(struct sink_postgres *sink);

#endif
