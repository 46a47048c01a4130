#include "flusher/plan.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "flusher/failure.h"
#include "flusher/whole.h"

/* Of pg_type, fixed in Postgres. */
enum {
    OID_CHAR = 18, /* "char", of one byte */
    OID_NAME = 19,
    OID_INT8 = 20,
    OID_INT2 = 21,
    OID_INT4 = 23,
    OID_DATE = 1082,
    OID_TIMESTAMP = 1114,
    OID_TIMESTAMPTZ = 1184,
    OID_NUMERIC = 1700,
    OID_UUID = 2950
};

/* What a column is wanted for. */
enum role { ROLE_KEY, ROLE_VALUE, ROLE_TOUCH, ROLE_BUCKET };

#define WANTED_MAX (PATTERN_PLACEHOLDERS_MAX + 2)

/* A table that is being looked at, for a target or one of its rollups. */
struct look {
    struct postgres *postgres;
    const struct target *target;
    const char *written; /* the table as the configuration has it */
    bool inserts;
    const char *names[WANTED_MAX]; /* columns; the key's first */
    enum role roles[WANTED_MAX];
    size_t len;
    int64_t oid;
    int64_t numbers[WANTED_MAX]; /* of the columns */
    struct layout *layout;       /* being filled */
    struct error *error;
};

/* --- refusals --- */

static int refuse(const struct look *look, const char *format, ...) PRINTF(2, 3);

static int refuse(const struct look *look, const char *format, ...)
{
    struct error reason;
    va_list args;

    va_start(args, format);
    vsnprintf(reason.text, sizeof(reason.text), format, args);
    va_end(args);
    return error_set(look->error, FAILURE_CONFIG, "target '%s', table '%s': %s", look->target->match,
                     look->written, reason.text);
}

static int out_of_memory(const struct look *look)
{
    return error_set(look->error, -ENOMEM, "out of memory");
}

static const char *type_for(enum role role)
{
    switch (role) {
    case ROLE_KEY:
        return "text";
    case ROLE_VALUE:
        return "bigint NOT NULL DEFAULT 0";
    case ROLE_TOUCH:
    case ROLE_BUCKET:
        return "timestamptz";
    }
    return "";
}

/* --- the table --- */

static int query(const struct look *look, const char *sql, const struct parameters *parameters,
                 struct pg_result **ret_rows)
{
    int r = postgres_execute(look->postgres, sql, parameters, ret_rows, look->error);

    return r < 0 ? error_prefix(look->error, r, "target '%s', table '%s'", look->target->match, look->written)
                 : 0;
}

static int check_kind(const struct look *look, const struct pg_result *rows)
{
    const char *kind = rows_text(rows, 0, 2);

    if (strcmp(kind, "v") == 0 || strcmp(kind, "m") == 0)
        return refuse(look, "it is a view; counters are added to tables, so name the one behind it");
    if (strcmp(kind, "r") != 0 && strcmp(kind, "p") != 0)
        return refuse(look, "it is no table; counters are added to tables of this database only");
    if (rows_bigint(rows, 0, 5) && strcmp(look->written, ROLLUPS_TABLE) != 0)
        return refuse(look, "it is in the schema counterd, where only " COUNTERS_TABLE " and " ROLLUPS_TABLE
                            " can be targets, by these names; make your own tables in another schema, "
                            "and name it: public.posts, say (a role called counterd would otherwise "
                            "make and find tables in the schema counterd first)");
    if (rows_bigint(rows, 0, 3))
        return refuse(
            look,
            "it has rules, which would be carried out instead; see SELECT * FROM pg_rules, and DROP "
            "RULE ... ON %s, or name another table",
            rows_text(rows, 0, 1));
    if (rows_bigint(rows, 0, 4))
        return refuse(look, "other tables inherit from it, so that a key could have a row in each; make them "
                            "partitions, or name one of them");
    return 0;
}

static int find_table(struct look *look)
{
    static const char sql[] =
        "SELECT c.oid, format('%I.%I', n.nspname, c.relname), c.relkind,"
        " EXISTS (SELECT FROM pg_rewrite AS w WHERE w.ev_class = c.oid AND w.ev_type <> '1')::integer,"
        " (c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits AS i WHERE i.inhparent = c.oid))::integer,"
        " (n.nspname = 'counterd')::integer"
        " FROM pg_class AS c JOIN pg_namespace AS n ON n.oid = c.relnamespace WHERE c.oid = to_regclass($1)";
    struct parameters parameters = {0};
    struct pg_result *rows;
    int r;

    parameters_text(&parameters, look->written);
    r = query(look, sql, &parameters, &rows);
    if (r < 0)
        return r;
    if (rows_len(rows) == 0)
        r = refuse(
            look,
            "there is no such table, or its schema is not on the search_path of the role; for example: "
            "CREATE TABLE %s (%s text PRIMARY KEY, \"%s\" bigint NOT NULL DEFAULT 0);",
            look->written, look->names[0], look->target->value);
    else
        r = check_kind(look, rows);
    if (r == 0) {
        look->oid = rows_bigint(rows, 0, 0);
        look->layout->table = strdup(rows_text(rows, 0, 1));
        r = look->layout->table ? 0 : out_of_memory(look);
    }
    rows_free(rows);
    return r;
}

/* --- its columns --- */

/* A row of find_columns(). */
struct column {
    const char *name, *type, *type_shown, *equals;
    int64_t type_oid;
    char category;
    bool is_enum, is_generated, is_identity;
    bool selects, updates, inserts; /* the role may */
};

static struct column column_of(const struct pg_result *rows, int row)
{
    return (struct column){
        .name = rows_text(rows, row, 1),
        .type = rows_text(rows, row, 2),
        .type_shown = rows_text(rows, row, 3),
        .type_oid = rows_bigint(rows, row, 4),
        .category = rows_text(rows, row, 5)[0],
        .is_enum = rows_text(rows, row, 6)[0] == 'e',
        .is_generated = rows_bigint(rows, row, 7) == 1,
        .is_identity = rows_bigint(rows, row, 8) == 1,
        .selects = rows_bigint(rows, row, 9) == 1,
        .updates = rows_bigint(rows, row, 10) == 1,
        .inserts = rows_bigint(rows, row, 11) == 1,
        .equals = rows_text(rows, row, 12),
    };
}

/* Types that tell every two values apart that a key can: a cast to numeric(4,1), to a time or to a name,
 * which is cut after 63 bytes, would not. */
static int take_key(const struct look *look, const struct column *column)
{
    struct key_column *key = &look->layout->key[look->layout->key_len];
    bool cuts = column->type_oid == OID_NAME || column->type_oid == OID_CHAR;
    bool fits = (column->category == 'S' && !cuts) || column->category == 'B' || column->is_enum ||
                column->type_oid == OID_UUID || column->type_oid == OID_DATE;

    *key = (struct key_column){.is_integer = true};
    if (column->type_oid == OID_INT8)
        key->min = INT64_MIN, key->max = INT64_MAX;
    else if (column->type_oid == OID_INT4)
        key->min = INT32_MIN, key->max = INT32_MAX;
    else if (column->type_oid == OID_INT2)
        key->min = INT16_MIN, key->max = INT16_MAX;
    else
        key->is_integer = false;
    if (!fits && !key->is_integer)
        return refuse(look,
                      "column %s is of type %s, which a placeholder can't be: an integer, text, uuid, date, "
                      "boolean or an enum; ALTER TABLE %s ALTER COLUMN %s TYPE text;",
                      column->name, column->type_shown, look->layout->table, column->name);
    key->name = strdup(column->name);
    key->type = strdup(column->type);
    key->equals = strdup(column->equals[0] ? column->equals : "=");
    look->layout->key_len++;
    return key->name && key->type && key->equals ? 0 : out_of_memory(look);
}

static int take_value(const struct look *look, const struct column *column)
{
    if (column->type_oid != OID_INT8 && column->type_oid != OID_INT4 && column->type_oid != OID_INT2 &&
        column->type_oid != OID_NUMERIC)
        return refuse(look,
                      "column %s is of type %s, and counts are smallint, integer, bigint or numeric; ALTER "
                      "TABLE %s ALTER COLUMN %s TYPE bigint USING %s::bigint;",
                      column->name, column->type_shown, look->layout->table, column->name, column->name);
    look->layout->value = strdup(column->name);
    return look->layout->value ? 0 : out_of_memory(look);
}

static int take_time(const struct look *look, enum role role, const struct column *column)
{
    bool local = column->type_oid == OID_TIMESTAMP && role == ROLE_TOUCH;

    if (column->type_oid != OID_TIMESTAMPTZ && !local)
        return refuse(
            look,
            "column %s is of type %s, and a time is timestamptz; ALTER TABLE %s ALTER COLUMN %s TYPE "
            "timestamptz;",
            column->name, column->type_shown, look->layout->table, column->name);
    look->layout->time_use = role == ROLE_TOUCH ? TIME_TOUCH : TIME_BUCKET;
    look->layout->time_is_local = local;
    look->layout->time = strdup(column->name);
    return look->layout->time ? 0 : out_of_memory(look);
}

static int check_privileges(const struct look *look, enum role role, const struct column *column)
{
    bool changes = role == ROLE_VALUE || role == ROLE_TOUCH;

    if (column->selects && (column->updates || !changes) && (column->inserts || !look->inserts))
        return 0;
    return refuse(look,
                  "the role may not do what is needed with column %s: GRANT SELECT, UPDATE%s ON %s TO "
                  "our role;",
                  column->name, look->inserts ? ", INSERT" : "", look->layout->table);
}

static int take_column(const struct look *look, size_t at, const struct column *column)
{
    enum role role = look->roles[at];
    int r;

    if (column->name[0] == '\0')
        return refuse(look, "it has no column '%s'; ALTER TABLE %s ADD COLUMN \"%s\" %s;", look->names[at],
                      look->layout->table, look->names[at], type_for(role));
    if (column->is_generated && (role == ROLE_VALUE || role == ROLE_TOUCH || look->inserts))
        return refuse(look,
                      "column %s is generated, and can't be written; ALTER TABLE %s ALTER COLUMN %s DROP "
                      "EXPRESSION;",
                      column->name, look->layout->table, column->name);
    if (column->is_identity && look->inserts)
        return refuse(look,
                      "column %s is GENERATED ALWAYS AS IDENTITY, so a row for a key can't be made; ALTER "
                      "TABLE %s ALTER COLUMN %s SET GENERATED BY DEFAULT; or choose \"missing\": \"park\"",
                      column->name, look->layout->table, column->name);
    r = check_privileges(look, role, column);
    if (r < 0)
        return r;
    if (role == ROLE_KEY)
        return take_key(look, column);
    return role == ROLE_VALUE ? take_value(look, column) : take_time(look, role, column);
}

static int find_columns(struct look *look)
{
    static const char sql[] =
        "SELECT a.attnum, quote_ident(a.attname), quote_ident(tn.nspname) || '.' || quote_ident(t.typname),"
        " format_type(a.atttypid, a.atttypmod), t.oid, t.typcategory, t.typtype,"
        " (a.attgenerated <> '')::integer, (a.attidentity = 'a')::integer,"
        " has_column_privilege(a.attrelid, a.attnum, 'SELECT')::integer,"
        " has_column_privilege(a.attrelid, a.attnum, 'UPDATE')::integer,"
        " has_column_privilege(a.attrelid, a.attnum, 'INSERT')::integer,"
        /* What is not Postgres's own need not be on the search_path, and then = would be another type's. */
        " (SELECT format('OPERATOR(%I.%s)', n.nspname, o.oprname) FROM pg_opclass AS c JOIN pg_amop AS p"
        " ON p.amopfamily = c.opcfamily AND p.amoplefttype = t.oid AND p.amoprighttype = t.oid"
        " JOIN pg_operator AS o ON o.oid = p.amopopr JOIN pg_namespace AS n ON n.oid = o.oprnamespace"
        " WHERE c.opcintype = t.oid AND c.opcmethod = (SELECT oid FROM pg_am WHERE amname = 'btree')"
        " AND c.opcdefault AND p.amopstrategy = 3 AND n.nspname <> 'pg_catalog')"
        " FROM unnest($2::text[]) WITH ORDINALITY AS w (name, number)"
        " LEFT JOIN pg_attribute AS a"
        " ON a.attrelid = $1::oid AND a.attname = w.name AND a.attnum > 0 AND NOT a.attisdropped"
        /* Of a domain, the type under it. */
        " LEFT JOIN LATERAL (WITH RECURSIVE b AS (SELECT b.* FROM pg_type AS b WHERE b.oid = a.atttypid"
        " UNION ALL SELECT n.* FROM b JOIN pg_type AS n ON n.oid = b.typbasetype)"
        " SELECT * FROM b WHERE typtype <> 'd') AS t ON true"
        " LEFT JOIN pg_namespace AS tn ON tn.oid = t.typnamespace ORDER BY w.number";
    struct parameters parameters = {0};
    struct pgarray names = {0};
    struct pg_result *rows = NULL;
    int r;

    pgarray_begin(&names, PGARRAY_TEXT, look->len);
    for (size_t i = 0; i < look->len; i++)
        pgarray_add_text(&names, span_of(look->names[i]));
    parameters_bigint(&parameters, look->oid);
    parameters_array(&parameters, &names);
    r = pgarray_ok(&names) ? query(look, sql, &parameters, &rows) : out_of_memory(look);
    pgarray_done(&names);
    for (size_t i = 0; r == 0 && i < look->len; i++) {
        struct column column = column_of(rows, (int)i);
        look->numbers[i] = rows_bigint(rows, (int)i, 0);
        r = take_column(look, i, &column);
    }
    rows_free(rows);
    return r;
}

/* --- its key --- */

/* "team_id, user_id" */
static const char *spell_key(const struct look *look, char *buf, size_t buf_bytes)
{
    const struct layout *layout = look->layout;
    size_t len = 0;

    buf[0] = '\0';
    for (size_t i = 0; i < layout->key_len && len < buf_bytes; i++)
        len += (size_t)snprintf(buf + len, buf_bytes - len, "%s%s", i > 0 ? ", " : "", layout->key[i].name);
    if (layout->time_use == TIME_BUCKET && len < buf_bytes)
        snprintf(buf + len, buf_bytes - len, ", %s", layout->time);
    return buf;
}

/* Without a unique index on just the key's columns, a key could mean several rows; and ON CONFLICT needs one.
 * A row that is to be made needs a value in each column that must have one. */
static int check_rows(struct look *look)
{
    static const char sql[] =
        "SELECT EXISTS (SELECT FROM pg_index AS i WHERE i.indrelid = $1::oid AND i.indisunique AND "
        "i.indisvalid"
        " AND i.indimmediate AND i.indpred IS NULL AND i.indexprs IS NULL"
        " AND ARRAY(SELECT k.attnum::bigint FROM unnest(i.indkey::int2[]) WITH ORDINALITY AS k (attnum, "
        "number)"
        " WHERE k.number <= i.indnkeyatts ORDER BY 1) ="
        " ARRAY(SELECT k FROM unnest($2::bigint[]) AS k ORDER BY 1))::integer,"
        " (SELECT string_agg(quote_ident(a.attname), ', ' ORDER BY a.attnum) FROM pg_attribute AS a"
        " JOIN pg_type AS t ON t.oid = a.atttypid"
        " WHERE a.attrelid = $1::oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attnotnull"
        " AND NOT a.atthasdef AND a.attidentity = '' AND t.typdefault IS NULL"
        " AND a.attnum <> ALL ($3::bigint[]))";
    struct parameters parameters = {0};
    struct pgarray key = {0}, written = {0};
    struct pg_result *rows = NULL;
    size_t key_len = 0;
    char columns[512];
    int r;

    for (size_t i = 0; i < look->len; i++)
        key_len += look->roles[i] == ROLE_KEY || look->roles[i] == ROLE_BUCKET;
    pgarray_begin(&key, PGARRAY_BIGINT, key_len);
    pgarray_begin(&written, PGARRAY_BIGINT, look->len);
    for (size_t i = 0; i < look->len; i++) {
        if (look->roles[i] == ROLE_KEY || look->roles[i] == ROLE_BUCKET)
            pgarray_add_bigint(&key, look->numbers[i]);
        pgarray_add_bigint(&written, look->numbers[i]);
    }
    parameters_bigint(&parameters, look->oid);
    parameters_array(&parameters, &key);
    parameters_array(&parameters, &written);
    r = pgarray_ok(&key) && pgarray_ok(&written) ? query(look, sql, &parameters, &rows) : out_of_memory(look);
    pgarray_done(&key);
    pgarray_done(&written);
    if (r == 0 && rows_bigint(rows, 0, 0) == 0)
        r = refuse(look,
                   "it has no unique index on just the columns of the key (not partial, not deferrable); "
                   "CREATE UNIQUE INDEX ON %s (%s);",
                   look->layout->table, spell_key(look, columns, sizeof(columns)));
    if (r == 0 && look->inserts && rows_text(rows, 0, 1)[0] != '\0')
        r = refuse(
            look,
            "a new row needs values that no key has, in the columns %s: ALTER TABLE %s ALTER COLUMN ... "
            "SET DEFAULT ...; or choose \"missing\": \"park\"",
            rows_text(rows, 0, 1), look->layout->table);
    rows_free(rows);
    return r;
}

/* --- a target --- */

static void want(struct look *look, enum role role, const char *name)
{
    look->names[look->len] = name;
    look->roles[look->len] = role;
    look->len++;
}

/* In our own tables a key stands as it is. */
static void want_key(struct look *look)
{
    const struct pattern *pattern = look->target->pattern;

    look->layout->whole_key = target_table_is_ours(look->written);
    if (look->layout->whole_key)
        want(look, ROLE_KEY, "key");
    for (size_t i = 0; !look->layout->whole_key && i < pattern_placeholders(pattern); i++)
        want(look, ROLE_KEY, pattern_placeholder(pattern, i));
}

static int look_up(struct look *look)
{
    int r = 0;

    for (size_t i = 0; r == 0 && i < look->len; i++)
        for (size_t j = 0; r == 0 && j < i; j++)
            if (strcmp(look->names[i], look->names[j]) == 0)
                r = refuse(look, "column '%s' can't be two things at once", look->names[i]);
    if (r == 0)
        r = find_table(look);
    if (r == 0)
        r = find_columns(look);
    return r == 0 ? check_rows(look) : r;
}

/* Its layout is known, and a small flush is not to pay for looking at it. */
static int plan_counters(struct planned *planned, const struct look *look)
{
    struct layout *layout = &planned->layout;

    planned->counters = true;
    layout->table = strdup(COUNTERS_TABLE);
    layout->value = strdup("value");
    layout->whole_key = true;
    layout->key[layout->key_len++] =
        (struct key_column){.name = strdup("key"), .type = strdup("text"), .equals = strdup("=")};
    return layout->table && layout->value && layout->key[0].name && layout->key[0].type &&
                   layout->key[0].equals
               ? 0
               : out_of_memory(look);
}

static int plan_own(struct planned *planned, struct look *look)
{
    int r;

    want_key(look);
    want(look, ROLE_VALUE, planned->target->value);
    if (planned->target->touch[0])
        want(look, ROLE_TOUCH, planned->target->touch);
    r = look_up(look);
    if (r < 0)
        return r;
    planned->add = look->inserts ? statement_upsert(&planned->layout) : statement_update(&planned->layout);
    return planned->add ? 0 : out_of_memory(look);
}

static int plan_table(struct postgres *postgres, struct planned *planned, struct error *error)
{
    const struct target *target = planned->target;
    struct look look = {.postgres = postgres,
                        .target = target,
                        .written = target->table,
                        .inserts = target->missing == MISSING_INSERT,
                        .layout = &planned->layout,
                        .error = error};
    int r;

    planned->layout.merge = target->merge;
    r = strcmp(target->table, COUNTERS_TABLE) == 0 ? plan_counters(planned, &look) : plan_own(planned, &look);
    if (r < 0)
        return r;
    planned->get = statement_get(&planned->layout);
    return planned->get ? 0 : out_of_memory(&look);
}

static int plan_rollup(struct postgres *postgres, struct planned *planned, size_t index, struct error *error)
{
    const struct target_rollup *written = &planned->target->rollups[index];
    struct planned_rollup *rollup = &planned->rollups[index];
    struct look look = {.postgres = postgres,
                        .target = planned->target,
                        .written = written->table,
                        .inserts = true,
                        .layout = &rollup->layout,
                        .error = error};
    int r;

    rollup->layout.merge = planned->target->merge;
    rollup->bucket_s = written->bucket_s;
    rollup->by_day = strcmp(written->table, ROLLUPS_TABLE) == 0;
    want_key(&look);
    want(&look, ROLE_VALUE, rollup->by_day ? "value" : planned->target->value);
    want(&look, ROLE_BUCKET, "bucket");
    r = look_up(&look);
    if (r < 0)
        return r;
    rollup->add = statement_upsert(&rollup->layout);
    return rollup->add ? 0 : out_of_memory(&look);
}

int plan_make(struct postgres *postgres, const struct config *config, struct plan **ret_plan,
              struct error *error)
{
    const struct targets *targets = config->targets;
    struct plan *plan = calloc(1, sizeof(*plan));
    int r = 0;

    if (plan)
        plan->items = calloc(targets->len + 1, sizeof(*plan->items));
    if (!plan || !plan->items) {
        free(plan);
        return error_set(error, -ENOMEM, "out of memory");
    }
    plan->targets = targets;
    plan->lane = config->lane;
    plan->partitions.config = config;
    for (size_t i = 0; r == 0 && i < targets->len; i++) {
        struct planned *planned = &plan->items[i];
        planned->target = &targets->items[i];
        if (planned->target->lane != config->lane)
            continue;
        planned->shared = targets_share_rows(targets, planned->target);
        r = plan_table(postgres, planned, error);
        for (size_t j = 0; r == 0 && j < planned->target->rollups_len; j++) {
            r = plan_rollup(postgres, planned, j, error);
            plan->has_days |= planned->rollups[j].by_day;
        }
        plan->has_own_tables |= !planned->counters || planned->target->rollups_len > 0;
    }
    if (r == 0 && plan->has_days)
        r = partitions_now(postgres, &plan->partitions.now_s, error);
    if (r < 0)
        plan_free(plan);
    else
        *ret_plan = plan;
    return r;
}

void plan_free(struct plan *plan)
{
    if (!plan)
        return;
    for (size_t i = 0; i < plan->targets->len; i++) {
        struct planned *planned = &plan->items[i];
        layout_done(&planned->layout);
        free(planned->add);
        free(planned->get);
        for (size_t j = 0; j < TARGET_ROLLUPS_MAX; j++) {
            layout_done(&planned->rollups[j].layout);
            free(planned->rollups[j].add);
        }
    }
    free(plan->items);
    free(plan);
}

/* --- keys --- */

const struct planned *plan_find(const struct plan *plan, struct span key)
{
    const struct target *target = targets_find_in(plan->targets, plan->lane, key);

    return target ? &plan->items[target - plan->targets->items] : NULL;
}

void plan_values(const struct planned *planned, const struct layout *layout, struct span key,
                 struct span ret_values[PATTERN_PLACEHOLDERS_MAX])
{
    if (layout->whole_key)
        ret_values[0] = key;
    else if (!pattern_match(planned->target->pattern, key, ret_values))
        ret_values[0] = (struct span){0};
}

static enum fit fit_integer(const struct key_column *column, struct span value)
{
    int64_t number;

    for (size_t i = value.len > 1 && value.ptr[0] == '-'; i < value.len; i++)
        if (value.ptr[i] < '0' || value.ptr[i] > '9')
            return FIT_TYPE;
    return whole_parse(value, &number) && number >= column->min && number <= column->max ? FIT_GOOD
                                                                                         : FIT_RANGE;
}

enum fit plan_fit(const struct layout *layout, const struct span *values)
{
    enum fit fit = FIT_GOOD;

    for (size_t i = 0; fit == FIT_GOOD && i < layout->key_len; i++)
        if (layout->key[i].is_integer)
            fit = fit_integer(&layout->key[i], values[i]);
    return fit;
}
