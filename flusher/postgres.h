/* postgres - one connection to Postgres: statements in, rows or a classified failure out
 *
 * Not a general client: it knows nothing of counterd's tables, takes parameters as text or binary arrays,
 * gives results as text, and keeps no state on the server between transactions, so that PgBouncer in
 * transaction mode may stand between. It connects when first used, and again after a connection was lost.
 * Failures are those of flusher/failure.h. Not thread-safe; each job has its own.
 */
#ifndef FLUSHER_POSTGRES_H
#define FLUSHER_POSTGRES_H

#include "flusher/pgarray.h"
#include "lib/config.h"
#include "lib/error.h"

struct postgres;
struct pg_result; /* libpq's own name for a result: given to the caller, freed by rows_free() */

/* Borrows `config`. */
MUST_CHECK int postgres_new(const struct config *config, struct postgres **ret_postgres, struct error *error);
void postgres_free(struct postgres *postgres);

#define PARAMETERS_MAX 20

/* Of one statement, $1 first; borrows what is added until the statement was executed. Starts zeroed, and must
 * not be copied: values point into numbers. */
struct parameters {
    const char *values[PARAMETERS_MAX];
    int lengths[PARAMETERS_MAX];
    int formats[PARAMETERS_MAX];
    char numbers[PARAMETERS_MAX][24]; /* where numbers are spelled out */
    int len;
};

void parameters_text(struct parameters *parameters, const char *text); /* NULL is NULL */
void parameters_bigint(struct parameters *parameters, int64_t number);
void parameters_array(struct parameters *parameters, const struct pgarray *array);

/* Executes one statement, or several when `parameters` is NULL. `ret_rows` may be NULL. */
MUST_CHECK int postgres_execute(struct postgres *postgres, const char *sql,
                                const struct parameters *parameters, struct pg_result **ret_rows,
                                struct error *error);

/* The SQLSTATE of the last statement that failed; "" when it was none of Postgres's own. */
const char *postgres_state(const struct postgres *postgres);

/* READ COMMITTED and durable whatever the server's defaults are. A connection that was cut while it idled is
 * replaced without a failure. */
MUST_CHECK int postgres_begin(struct postgres *postgres, struct error *error);

/* A commit_outcome (flusher/sink.h), or a failure when certainly nothing was committed. */
MUST_CHECK int postgres_commit(struct postgres *postgres, struct error *error);

/* Ends a transaction by how it went so far: commits when `r` is 0, else rolls back and gives `r` again. */
MUST_CHECK int postgres_end(struct postgres *postgres, int r, struct error *error);

/* Does nothing when no transaction is open. */
void postgres_rollback(struct postgres *postgres);

int rows_len(const struct pg_result *rows);
const char *rows_text(const struct pg_result *rows, int row, int column); /* NULL is "" */
int64_t rows_bigint(const struct pg_result *rows, int row, int column);   /* NULL is 0 */
void rows_free(struct pg_result *rows);                                   /* takes NULL */

#endif
