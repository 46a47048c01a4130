/* sink_postgres - the ledger of one namespace and the tables of its targets as a sink
 *
 * The SQL of the protocol is here; that of the targets in flusher/apply.c and flusher/statements.c.
 */
#ifndef FLUSHER_SINK_POSTGRES_H
#define FLUSHER_SINK_POSTGRES_H

#include "flusher/plan.h"
#include "flusher/sink.h"

struct sink_postgres;

/* Borrows all three. */
MUST_CHECK int sink_postgres_new(struct postgres *postgres, const struct config *config,
                                 const struct plan *plan, struct sink_postgres **ret_sink,
                                 struct error *error);
void sink_postgres_free(struct sink_postgres *sink);

/* The seam; its context is the sink, so it lives as long. */
struct sink sink_postgres_seam(struct sink_postgres *sink);

#endif
