#include "flusher/migrate.h"

#include <inttypes.h>

#include "flusher/failure.h"
#include "flusher/sink.h"

/* What the database says it has: the newest version and how many there are of those that we know alike. */
struct schema {
    int64_t newest;
    size_t alike; /* leading migrations that are recorded with our text */
};

static int read_schema(struct postgres *postgres, struct schema *ret_schema, struct error *error)
{
    struct schema schema = {0};
    struct pg_result *rows;
    int r = postgres_execute(postgres, "SELECT version, sha1 FROM counterd.migrations ORDER BY version", NULL,
                             &rows, error);

    if (r < 0)
        return r;
    for (int i = 0; i < rows_len(rows); i++) {
        schema.newest = rows_bigint(rows, i, 0);
        if (schema.alike < migrations_len && schema.newest == (int64_t)schema.alike + 1 &&
            strcmp(rows_text(rows, i, 1), migrations[schema.alike].sha1) == 0)
            schema.alike++;
    }
    rows_free(rows);
    *ret_schema = schema;
    return 0;
}

/* Whether what is recorded is ours from the first to the newest. */
static int check_history(const struct schema *schema, struct error *error)
{
    if (schema->newest > (int64_t)migrations_len)
        return error_set(error, FAILURE_CONFIG,
                         "the schema is at version %" PRId64 ", this flusher knows %zu: it is older than the "
                         "one that migrated; install that one",
                         schema->newest, migrations_len);
    if (schema->newest != (int64_t)schema->alike)
        return error_set(error, FAILURE_CONFIG,
                         "migration %zu in counterd.migrations is not the '%s' of this flusher: another "
                         "version made this schema; install that one",
                         schema->alike + 1, migrations[schema->alike].name);
    return 0;
}

int migrate_check(struct postgres *postgres, const char *config_path, struct error *error)
{
    struct schema schema;
    struct pg_result *rows;
    bool exists;
    int r = postgres_execute(postgres, "SELECT (to_regclass('counterd.migrations') IS NOT NULL)::integer",
                             NULL, &rows, error);

    if (r < 0)
        return r;
    exists = rows_bigint(rows, 0, 0) == 1;
    rows_free(rows);
    if (!exists)
        return error_set(error, FAILURE_CONFIG,
                         "this database has no counterd tables yet: run 'flusher -c %s migrate'",
                         config_path);
    r = read_schema(postgres, &schema, error);
    if (r == 0)
        r = check_history(&schema, error);
    if (r == 0 && schema.alike < migrations_len)
        r = error_set(error, FAILURE_CONFIG,
                      "the schema is at version %zu, this flusher needs %zu: run 'flusher -c %s migrate'",
                      schema.alike, migrations_len, config_path);
    return r;
}

static int prepare(struct postgres *postgres, struct error *error)
{
    struct pg_result *rows;
    /* The number is arbitrary, but ours: it keeps two migrations apart before there is a table to lock. */
    int r = postgres_execute(postgres,
                             "SELECT pg_advisory_xact_lock(7165890124411);"
                             "SELECT (to_regnamespace('counterd') IS NULL)::integer",
                             NULL, &rows, error);

    if (r < 0)
        return r;
    /* IF NOT EXISTS would want the right to make one, also where there is one. */
    if (rows_bigint(rows, 0, 0) == 1)
        r = postgres_execute(postgres, "CREATE SCHEMA counterd", NULL, NULL, error);
    rows_free(rows);
    if (r < 0)
        return r;
    return postgres_execute(postgres,
                            "CREATE TABLE IF NOT EXISTS counterd.migrations ("
                            " version integer PRIMARY KEY, name text NOT NULL, sha1 text NOT NULL,"
                            " applied_at timestamptz NOT NULL DEFAULT now())",
                            NULL, NULL, error);
}

static int apply_migration(struct postgres *postgres, size_t index, struct error *error)
{
    struct parameters parameters = {0};
    int r = postgres_execute(postgres, migrations[index].text, NULL, NULL, error);

    if (r < 0)
        return error_prefix(error, r, "migration '%s'", migrations[index].name);
    parameters_bigint(&parameters, (int64_t)index + 1);
    parameters_text(&parameters, migrations[index].name);
    parameters_text(&parameters, migrations[index].sha1);
    return postgres_execute(
        postgres, "INSERT INTO counterd.migrations (version, name, sha1) VALUES ($1::integer, $2, $3)",
        &parameters, NULL, error);
}

/* One transaction. `ret_done` is whether it applied one; if not, there is none left. */
static int migrate_once(struct postgres *postgres, bool *ret_done, struct error *error)
{
    struct schema schema;
    int r = postgres_begin(postgres, error);

    if (r == 0)
        r = prepare(postgres, error);
    if (r == 0)
        r = read_schema(postgres, &schema, error);
    if (r == 0)
        r = check_history(&schema, error);
    *ret_done = r == 0 && schema.alike < migrations_len;
    if (*ret_done)
        r = apply_migration(postgres, schema.alike, error);
    r = postgres_end(postgres, r, error);
    if (r == COMMIT_UNKNOWN)
        r = error_set(error, FAILURE_UNAVAILABLE,
                      "no answer to COMMIT; run migrate again, it does what is left");
    return r;
}

int migrate(struct postgres *postgres, size_t *ret_done, struct error *error)
{
    bool done = true;
    int r = 0;

    *ret_done = 0;
    while (r == 0 && done) {
        r = migrate_once(postgres, &done, error);
        *ret_done += r == 0 && done;
    }
    return r;
}
