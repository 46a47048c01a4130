#include "flusher/postgres.h"

#include <assert.h>
#include <inttypes.h>
#include <libpq-fe.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>

#include "flusher/failure.h"
#include "flusher/sink.h"
#include "lib/clock.h"
#include "lib/text.h"

/* No statement of ours takes minutes; one that does waits for a server that hangs. */
#define STATEMENT_TIMEOUT_MS 300000

struct postgres {
    const struct config *config;
    PGconn *connection; /* NULL = none */
    bool in_transaction;
    char state[6]; /* of the last failure */
};

int postgres_new(const struct config *config, struct postgres **ret_postgres, struct error *error)
{
    struct postgres *postgres = calloc(1, sizeof(*postgres));

    if (!postgres)
        return error_set(error, -ENOMEM, "out of memory");
    postgres->config = config;
    *ret_postgres = postgres;
    return 0;
}

static void disconnect(struct postgres *postgres)
{
    PQfinish(postgres->connection);
    postgres->connection = NULL;
    postgres->in_transaction = false;
}

void postgres_free(struct postgres *postgres)
{
    if (!postgres)
        return;
    disconnect(postgres);
    free(postgres);
}

/* libpq's texts end in a newline and may have several lines. What is too long is cut between two characters:
 * half of one no table would keep. */
static const char *one_line(const char *message, char *buf, size_t buf_bytes)
{
    size_t len = 0;

    for (; *message && len + 3 < buf_bytes; message++) {
        if (*message != '\n' && *message != '\t')
            buf[len++] = *message;
        else if (len > 0 && message[1] && buf[len - 1] != ' ')
            buf[len++] = ' ';
    }
    len = text_whole((struct span){buf, len});
    buf[len] = '\0';
    return buf;
}

/* --- connecting --- */

/* libpq gives no SQLSTATE for a connection that failed: what kind it is, only words tell. */
static bool has_any(const char *message, const char *const *words, size_t len)
{
    for (size_t i = 0; i < len; i++)
        if (strstr(message, words[i]))
            return true;
    return false;
}

/* A server that answers and has no place for us now. The last two are PgBouncer's. */
static bool is_crowded(const char *message)
{
    static const char *const words[] = {"too many", "connection slots", "no more connections",
                                        "server_login_retry", "query_wait_timeout"};

    return has_any(message, words, ARRAY_LEN(words));
}

/* A server that was away when we came, and has answered since. */
static bool was_away(const char *message)
{
    static const char *const words[] = {"closed the connection",
                                        "the database system is",
                                        "terminating connection",
                                        "Connection re",
                                        "No such file",
                                        "could not receive data",
                                        "could not send",
                                        "timeout expired",
                                        "timed out",
                                        "Broken pipe"};

    return has_any(message, words, ARRAY_LEN(words));
}

/* None of the url's hosts is what its target_session_attrs asks for, as in the middle of a failover. */
static bool is_none_wanted(const char *message)
{
    static const char *const words[] = {"session is read-only", "server is in hot standby mode"};

    return has_any(message, words, ARRAY_LEN(words));
}

/* The texts of libpq that say what is wrong with a service, and quote nothing else. */
static bool is_about_service(const char *message)
{
    static const char *const starts[] = {"definition of service ", "service file ",
                                         "syntax error in service file ", "nested service "};

    for (size_t i = 0; i < ARRAY_LEN(starts); i++)
        if (strncmp(message, starts[i], strlen(starts[i])) == 0)
            return true;
    return false;
}

static int refuse_connection(const struct config *config, const PGconn *connection,
                             const char *const *keywords, const char *const *values, struct error *error)
{
    bool own = config->lanes[config->lane].database[0] == '\0';
    const char *place = own ? "postgres.url" : "targets[].database";
    char text[700];
    const char *message = one_line(PQerrorMessage(connection), text, sizeof(text));

    if (strstr(message, "out of memory"))
        return error_set(error, -ENOMEM, "can't connect to Postgres: %s", message);
    switch (PQpingParams(keywords, values, 1)) {
    case PQPING_OK:
        if (is_crowded(message))
            return error_set(error, FAILURE_UNAVAILABLE, "Postgres has no free connection: %s", message);
        if (was_away(message))
            return error_set(error, FAILURE_UNAVAILABLE, "Postgres was away for a moment: %s", message);
        if (is_none_wanted(message))
            return error_set(error, FAILURE_UNAVAILABLE, "no primary among the hosts of '%s': %s", place,
                             message);
        return error_set(error, FAILURE_CONFIG, "Postgres refuses us, see '%s' and %s: %s", place,
                         own ? "'postgres.password_file'" : "PGPASSFILE", message);
    case PQPING_NO_ATTEMPT:
        if (is_about_service(message))
            return error_set(error, FAILURE_CONFIG, "'%s': %s", place, message);
        /* libpq's text may quote the whole string, and with it a password. */
        return error_set(error, FAILURE_CONFIG,
                         "'%s' is not what libpq takes; write postgresql://[user@]host[:port]/database "
                         "or 'host=... dbname=...'",
                         place);
    case PQPING_REJECT:
        return error_set(error, FAILURE_UNAVAILABLE, "Postgres is starting up or shutting down: %s", message);
    case PQPING_NO_RESPONSE:
        break;
    }
    /* A setting that libpq understands no better than a server that is away: "invalid port number" */
    if (strncmp(message, "invalid ", strlen("invalid ")) == 0)
        return error_set(error, FAILURE_CONFIG, "'%s': %s", place, message);
    return error_set(error, FAILURE_UNAVAILABLE, "Postgres does not answer, is it running? %s", message);
}

/* Keys are UTF-8; a database that would convert them could refuse some, or merge two. */
static int check_encoding(const PGconn *connection, struct error *error)
{
    const char *encoding = PQparameterStatus(connection, "server_encoding");

    if (encoding && (strcmp(encoding, "UTF8") == 0 || strcmp(encoding, "SQL_ASCII") == 0))
        return 0;
    return error_set(error, FAILURE_CONFIG,
                     "the database '%s' has encoding '%s'; keys need UTF8: create one with "
                     "createdb --encoding=UTF8 --template=template0",
                     PQdb(connection), encoding ? encoding : "unknown");
}

static void ignore_notice(void *context, const PGresult *result)
{
    (void)context;
    (void)result;
}

static int ensure_connected(struct postgres *postgres, struct error *error)
{
    const struct config *config = postgres->config;
    bool has_password = config->postgres.password && config->postgres.password[0] != '\0';
    /* What stands before dbname, the URL may change; what stands after it, it may not. */
    const char *keywords[] = {"connect_timeout",
                              "keepalives_idle",
                              "tcp_user_timeout",
                              "fallback_application_name",
                              "dbname",
                              "client_encoding",
                              has_password ? "password" : NULL,
                              NULL};
    const char *values[] = {
        "10", "15", "60000", "flusher", config->postgres.url, "UTF8", config->postgres.password, NULL};
    PGconn *connection;
    int r;

    if (postgres->connection)
        return 0;
    connection = PQconnectdbParams(keywords, values, 1);
    if (!connection)
        return error_set(error, -ENOMEM, "out of memory");
    if (PQstatus(connection) != CONNECTION_OK)
        r = refuse_connection(config, connection, keywords, values, error);
    else
        r = check_encoding(connection, error);
    if (r < 0) {
        PQfinish(connection);
        return r;
    }
    PQsetNoticeReceiver(connection, ignore_notice, NULL);
    PQsetnonblocking(connection, 1);
    postgres->connection = connection;
    return 0;
}

/* --- failures --- */

struct state {
    const char *code; /* SQLSTATE, or the beginning of one */
    int failure;
    const char *advice; /* what to do next */
};

/* A table or a column that is not there. */
#define MISSING_ADVICE "; see your table, or if it is counterd's, run 'flusher -c FILE migrate'"

static const struct state states[] = {
    {"40", FAILURE_COLLISION, ""},
    {"25006", FAILURE_LATER, "; this is a standby or set read-only: the url has to lead to the primary"},
    {"28", FAILURE_CONFIG, "; see the user and the password of this database"},
    {"3D000", FAILURE_CONFIG, "; create the database"},
    {"3F000", FAILURE_CONFIG, "; run 'flusher -c FILE migrate'"},
    {"42P01", FAILURE_CONFIG, MISSING_ADVICE},
    {"42703", FAILURE_CONFIG, MISSING_ADVICE},
    {"42501", FAILURE_CONFIG, "; grant it, or connect as the owner"},
    {"42", FAILURE_CONFIG, "; the table has changed, see the next run, or is not as migrations/ makes it"},
    {"55P03", FAILURE_LATER, "; somebody holds the lock for long, see pg_stat_activity"},
    {"21", FAILURE_REFUSED, ""},
    {"22", FAILURE_REFUSED, ""},
    {"23", FAILURE_REFUSED, ""},
    {"27", FAILURE_REFUSED, ""},
    {"38", FAILURE_REFUSED, ""},
    {"39", FAILURE_REFUSED, ""},
    {"44", FAILURE_REFUSED, ""},
    {"54", FAILURE_REFUSED, ""},
    {"P0", FAILURE_REFUSED, ""},
};

/* Classes of what is wrong with the server, or with what it was told. All that is in neither list is a
 * trigger's own: RAISE takes any five characters. */
static const char server_classes[] = "08 0A 25 26 3B 53 55 57 58 72 F0 HV XX";

const char *postgres_state(const struct postgres *postgres)
{
    return postgres->state;
}

/* A policy that does not let a row in has the code of a right that is missing. */
static bool is_policy(const char *code, const PGresult *result)
{
    const char *function = PQresultErrorField(result, PG_DIAG_SOURCE_FUNCTION);

    return strcmp(code, "42501") == 0 && function && strcmp(function, "ExecWithCheckOptions") == 0;
}

static bool is_of_server(const char *code)
{
    const char class[] = {code[0], code[0] ? code[1] : '\0', '\0'};

    return strstr(server_classes, class) != NULL;
}

static int classify(struct postgres *postgres, const PGresult *result, struct error *error)
{
    const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);
    const char *primary = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
    char text[600];

    one_line(primary ? primary : PQresultErrorMessage(result), text, sizeof(text));
    code = code ? code : "";
    snprintf(postgres->state, sizeof(postgres->state), "%s", code);
    if (is_policy(code, result))
        return error_set(error, FAILURE_REFUSED, "Postgres: %s", text);
    for (size_t i = 0; i < ARRAY_LEN(states); i++) {
        if (strncmp(code, states[i].code, strlen(states[i].code)) != 0)
            continue;
        /* What we ask for ourselves has no context: it was a trigger that misses something. */
        if (states[i].failure == FAILURE_CONFIG && PQresultErrorField(result, PG_DIAG_CONTEXT))
            return error_set(error, FAILURE_REFUSED, "Postgres: %s", text);
        return error_set(error, states[i].failure, "Postgres: %s%s", text, states[i].advice);
    }
    return error_set(error, is_of_server(code) ? FAILURE_LATER : FAILURE_REFUSED,
                     "Postgres: %s (SQLSTATE %s)", text, code[0] ? code : "none");
}

static int lose_connection(struct postgres *postgres, struct error *error)
{
    char text[600];

    one_line(PQerrorMessage(postgres->connection), text, sizeof(text));
    disconnect(postgres);
    return error_set(error, FAILURE_UNAVAILABLE, "the connection to Postgres was lost: %s",
                     text[0] ? text : "no answer in time");
}

/* --- statements --- */

static struct pollfd want(const PGconn *connection, bool unsent)
{
    return (struct pollfd){PQsocket(connection), (short)(unsent ? POLLIN | POLLOUT : POLLIN), 0};
}

/* Sends what is left and waits until a result can be had without blocking; false when the connection is of no
 * more use, so also when the server hangs. */
static bool wait_result(PGconn *connection, int64_t deadline_ms)
{
    for (;;) {
        int unsent = PQflush(connection);
        struct pollfd poll_fd = want(connection, unsent > 0);
        int64_t left_ms = deadline_ms - clock_monotonic_ms();

        if (unsent < 0)
            return false;
        if (unsent == 0 && !PQisBusy(connection))
            return true;
        if (left_ms <= 0 || (poll(&poll_fd, 1, (int)left_ms) < 0 && errno != EINTR))
            return false;
        if (!PQconsumeInput(connection))
            return false;
    }
}

static bool is_error(const PGresult *result)
{
    return PQresultStatus(result) != PGRES_COMMAND_OK && PQresultStatus(result) != PGRES_TUPLES_OK;
}

/* Drains all results, so that the connection stays usable, and gives the first error, else the last one; NULL
 * when the connection was lost. */
static PGresult *collect(PGconn *connection)
{
    int64_t deadline_ms = clock_monotonic_ms() + STATEMENT_TIMEOUT_MS;
    PGresult *kept = NULL, *next = NULL;

    for (;;) {
        if (!wait_result(connection, deadline_ms)) {
            PQclear(kept);
            return NULL;
        }
        next = PQgetResult(connection);
        if (!next)
            return kept;
        if (kept && is_error(kept)) {
            PQclear(next);
        } else {
            PQclear(kept);
            kept = next;
        }
    }
}

int postgres_execute(struct postgres *postgres, const char *sql, const struct parameters *parameters,
                     struct pg_result **ret_rows, struct error *error)
{
    PGresult *result = NULL;
    const char *severity;
    int sent, r = ensure_connected(postgres, error);

    if (r < 0)
        return r;
    postgres->state[0] = '\0';
    if (parameters)
        sent = PQsendQueryParams(postgres->connection, sql, parameters->len, NULL, parameters->values,
                                 parameters->lengths, parameters->formats, 0);
    else
        sent = PQsendQuery(postgres->connection, sql);
    if (sent)
        result = collect(postgres->connection);
    if (!result)
        return lose_connection(postgres, error);
    if (is_error(result)) {
        r = classify(postgres, result, error);
        severity = PQresultErrorField(result, PG_DIAG_SEVERITY_NONLOCALIZED);
        if (PQstatus(postgres->connection) != CONNECTION_OK || (severity && strcmp(severity, "FATAL") == 0)) {
            disconnect(postgres);
            r = FAILURE_UNAVAILABLE;
        }
        PQclear(result);
        return r;
    }
    if (ret_rows)
        *ret_rows = result;
    else
        PQclear(result);
    return 0;
}

int postgres_begin(struct postgres *postgres, struct error *error)
{
    /* remote_apply is more than on, so it stays. The timeouts free others from a flusher that was stopped in
     * the middle, and us from somebody who holds a row. */
    static const char sql[] =
        "BEGIN ISOLATION LEVEL READ COMMITTED;"
        "SET LOCAL lock_timeout = '60s'; SET LOCAL idle_in_transaction_session_timeout = '60s';"
        "SELECT set_config('synchronous_commit', CASE current_setting('synchronous_commit')"
        " WHEN 'remote_apply' THEN 'remote_apply' ELSE 'on' END, true)";
    bool reused = postgres->connection != NULL;
    int r = postgres_execute(postgres, sql, NULL, NULL, error);

    if (r == FAILURE_UNAVAILABLE && reused)
        r = postgres_execute(postgres, sql, NULL, NULL, error);
    postgres->in_transaction = r == 0;
    return r;
}

/* Whether an answer to COMMIT says for certain that nothing was committed. All others leave it open: a pooler
 * may have lost its server, and 40003 says "unknown" itself. */
static bool commit_failed(const PGresult *result)
{
    const char *code = PQresultErrorField(result, PG_DIAG_SQLSTATE);

    if (!is_error(result))
        return strcmp(PQcmdStatus((PGresult *)(uintptr_t)result), "COMMIT") != 0;
    return code && (strcmp(code, "40001") == 0 || strcmp(code, "40P01") == 0 || strncmp(code, "23", 2) == 0);
}

int postgres_commit(struct postgres *postgres, struct error *error)
{
    PGresult *result = NULL;
    int r = COMMIT_UNKNOWN;

    assert(postgres->in_transaction);
    if (PQsendQuery(postgres->connection, "COMMIT"))
        result = collect(postgres->connection);
    if (result && commit_failed(result))
        r = is_error(result) ? classify(postgres, result, error)
                             : error_set(error, FAILURE_LATER, "Postgres rolled back instead of committing");
    else if (result && !is_error(result))
        r = COMMIT_DONE;
    PQclear(result);
    postgres->in_transaction = false;
    if (r == COMMIT_UNKNOWN)
        disconnect(postgres);
    return r;
}

void postgres_rollback(struct postgres *postgres)
{
    struct error ignored;

    if (postgres->in_transaction && postgres_execute(postgres, "ROLLBACK", NULL, NULL, &ignored) < 0)
        disconnect(postgres);
    postgres->in_transaction = false;
}

int postgres_end(struct postgres *postgres, int r, struct error *error)
{
    if (r == 0)
        r = postgres_commit(postgres, error);
    if (r < 0)
        postgres_rollback(postgres);
    return r;
}

/* --- parameters and rows --- */

static void add_parameter(struct parameters *parameters, const char *value, size_t len, int format)
{
    assert(parameters->len < PARAMETERS_MAX);
    parameters->values[parameters->len] = value;
    parameters->lengths[parameters->len] = (int)len;
    parameters->formats[parameters->len] = format;
    parameters->len++;
}

void parameters_text(struct parameters *parameters, const char *text)
{
    add_parameter(parameters, text, 0, 0);
}

void parameters_bigint(struct parameters *parameters, int64_t number)
{
    char *text = parameters->numbers[parameters->len];

    snprintf(text, sizeof(parameters->numbers[0]), "%" PRId64, number);
    add_parameter(parameters, text, 0, 0);
}

void parameters_array(struct parameters *parameters, const struct pgarray *array)
{
    add_parameter(parameters, array->bytes, array->len, 1);
}

int rows_len(const struct pg_result *rows)
{
    return PQntuples(rows);
}

const char *rows_text(const struct pg_result *rows, int row, int column)
{
    return PQgetvalue(rows, row, column);
}

int64_t rows_bigint(const struct pg_result *rows, int row, int column)
{
    return strtoll(PQgetvalue(rows, row, column), NULL, 10);
}

void rows_free(struct pg_result *rows)
{
    PQclear(rows);
}
