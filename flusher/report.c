#include "flusher/report.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "flusher/whole.h"
#include "lib/log.h"
#include "lib/targets.h"

#define TIME_BYTES 32

enum field_type { FIELD_TEXT, FIELD_WHOLE, FIELD_MS, FIELD_FLAG };

struct field {
    const char *name;
    enum field_type type;
    const char *text; /* NULL = none: null in JSON, "-" or nothing in text */
    int64_t number;   /* FIELD_MS: milliseconds, printed as seconds */
};

static struct field text_field(const char *name, const char *text)
{
    return (struct field){name, FIELD_TEXT, text, 0};
}

static struct field whole_field(const char *name, int64_t number)
{
    return (struct field){name, FIELD_WHOLE, NULL, number};
}

static struct field ms_field(const char *name, int64_t ms)
{
    return (struct field){name, FIELD_MS, NULL, ms};
}

static struct field flag_field(const char *name, bool flag)
{
    return (struct field){name, FIELD_FLAG, NULL, flag};
}

/* As it stands in text and, but for FIELD_TEXT, in JSON too: a count is never squeezed through a double. */
static const char *spell(const struct field *field, char buf[LOG_TEXT_BYTES])
{
    switch (field->type) {
    case FIELD_TEXT:
        if (!field->text || field->text[0] == '\0')
            return "-";
        if (!strpbrk(field->text, " \"\\\n\t="))
            return field->text;
        return log_quote(buf, span_of(field->text));
    case FIELD_WHOLE:
        snprintf(buf, LOG_TEXT_BYTES, "%" PRId64, field->number);
        return buf;
    case FIELD_MS:
        snprintf(buf, LOG_TEXT_BYTES, "%s%" PRId64 ".%03d", field->number < 0 ? "-" : "",
                 labs(field->number / 1000), (int)labs(field->number % 1000));
        return buf;
    case FIELD_FLAG:
        return field->number ? "true" : "false";
    }
    return "";
}

static cJSON *make_object(const struct field *fields, size_t len)
{
    cJSON *object = cJSON_CreateObject();
    char buf[LOG_TEXT_BYTES];

    for (size_t i = 0; i < len; i++) {
        if (fields[i].type != FIELD_TEXT)
            cJSON_AddRawToObject(object, fields[i].name, spell(&fields[i], buf));
        else if (fields[i].text)
            cJSON_AddStringToObject(object, fields[i].name, fields[i].text);
        else
            cJSON_AddNullToObject(object, fields[i].name);
    }
    return object;
}

static const char *shown_namespace;

void report_set_namespace(const char *namespace)
{
    shown_namespace = namespace;
}

/* Takes the object. */
static void print_object(cJSON *object)
{
    char *text;

    if (shown_namespace && !cJSON_HasObjectItem(object, "namespace"))
        cJSON_AddStringToObject(object, "namespace", shown_namespace);
    text = cJSON_PrintUnformatted(object);
    puts(text ? text : "{}");
    free(text);
    cJSON_Delete(object);
}

static void print_json(const struct field *fields, size_t len)
{
    print_object(make_object(fields, len));
}

/* On one line, for logs and their tools: event=flush keys=12 ... */
static void print_line(const struct field *fields, size_t len)
{
    char buf[LOG_TEXT_BYTES];

    for (size_t i = 0; i < len; i++)
        if (fields[i].type != FIELD_TEXT || fields[i].text)
            printf("%s%s=%s", i > 0 ? " " : "", fields[i].name, spell(&fields[i], buf));
    if (shown_namespace)
        printf(" namespace=%s", shown_namespace);
    putchar('\n');
}

/* One under the other, for people. */
static void print_list(const struct field *fields, size_t len)
{
    char buf[LOG_TEXT_BYTES];

    for (size_t i = 0; i < len; i++)
        printf("%-20s %s\n", fields[i].name, spell(&fields[i], buf));
}

static void print(enum report_style style, void (*print_text)(const struct field *, size_t),
                  const struct field *fields, size_t len)
{
    if (style == REPORT_JSON)
        print_json(fields, len);
    else
        print_text(fields, len);
    fflush(stdout);
}

/* What stands behind a list of rows; `object` has those and the sums, and is taken. */
static void print_sums(enum report_style style, const struct field *sums, size_t len, cJSON *object)
{
    if (style == REPORT_JSON)
        print_object(object);
    else
        cJSON_Delete(object);
    if (style == REPORT_TEXT)
        print_line(sums, len);
}

void report_flush(enum report_style style, const struct report_flush *flush)
{
    int64_t elapsed_ms = flush->elapsed_ms > 0 ? flush->elapsed_ms : 1;
    struct field fields[] = {
        text_field("event", "flush"),
        whole_field("keys", flush->keys),
        whole_field("increments", flush->increments),
        whole_field("events", flush->events),
        whole_field("rows_per_s", flush->keys * 1000 / elapsed_ms),
        whole_field("shards", flush->shards),
        whole_field("shards_failed", flush->shards_failed),
        whole_field("parked", flush->parked),
        whole_field("dropped", flush->dropped),
        whole_field("quarantined", flush->quarantined),
        ms_field("seconds", flush->elapsed_ms),
        /* As text it has been logged. */
        text_field("error", style == REPORT_JSON ? flush->failure : NULL),
    };

    print(style, print_line, fields, ARRAY_LEN(fields));
}

void report_dry_run(enum report_style style, const struct config *config, const struct pending *pending,
                    const struct preview *previews)
{
    const struct targets *targets = config->targets;
    struct field sums[] = {
        text_field("event", "dry_run"),
        whole_field("keys", pending->open_keys + pending->sealed_keys),
        whole_field("increments", whole_add(pending->open_total, pending->sealed_total)),
        whole_field("events", pending->events),
        whole_field("shards", config->shards),
    };
    cJSON *object = make_object(sums, ARRAY_LEN(sums)), *rows = cJSON_AddArrayToObject(object, "targets");

    for (size_t i = 0; i <= targets->len; i++) {
        const struct target *target = i < targets->len ? &targets->items[i] : NULL;
        struct field fields[] = {
            text_field("target", target ? target->match : NULL),
            text_field("table", target ? target->table : NULL),
            whole_field("keys", previews[i].keys),
            whole_field("increments", previews[i].total),
        };
        if ((!target || target->lane != config->lane) && previews[i].keys == 0)
            continue;
        if (style == REPORT_TEXT) {
            printf("event=dry_run_target ");
            print_line(fields, ARRAY_LEN(fields));
        } else {
            cJSON_AddItemToArray(rows, make_object(fields, ARRAY_LEN(fields)));
        }
    }
    print_sums(style, sums, ARRAY_LEN(sums), object);
}

void report_migrate(enum report_style style, size_t version, size_t done)
{
    struct field fields[] = {
        text_field("event", "migrate"),
        whole_field("version", (int64_t)version),
        whole_field("applied", (int64_t)done),
    };

    print(style, print_line, fields, ARRAY_LEN(fields));
}

void report_key(enum report_style style, const char *key, const struct stored *stored,
                const struct key_pending *pending, const char *note)
{
    bool known = stored->known || pending->known;
    const char *why = stored->parked
                          ? "no row took it; see 'flusher parked list'"
                          : "neither Postgres nor Redis has this key; what counterd received within the last "
                            "'coalesce_ms' may still be in its memory";
    struct field fields[] = {
        text_field("key", key),
        whole_field("value", pending->value),
        whole_field("stored", stored->value),
        whole_field("pending", pending->delta),
        whole_field("parked", stored->parked),
        flag_field("known", known),
        text_field("note", note || known ? note : why),
    };

    print(style, print_line, fields, ARRAY_LEN(fields));
}

/* ISO 8601 in UTC; NULL for 0, which is never. */
static const char *spell_time(int64_t unix_ms, char buf[TIME_BYTES])
{
    time_t seconds = (time_t)(unix_ms / 1000);
    struct tm utc;

    if (unix_ms == 0 || !gmtime_r(&seconds, &utc))
        return NULL;
    strftime(buf, TIME_BYTES, "%Y-%m-%dT%H:%M:%SZ", &utc);
    return buf;
}

static struct field whole_if(bool known, const char *name, int64_t number)
{
    return known ? whole_field(name, number) : text_field(name, NULL);
}

static struct field ms_if(bool known, const char *name, int64_t ms)
{
    return known ? ms_field(name, ms) : text_field(name, NULL);
}

/* What most needs somebody to look. */
static const char *note_status(const struct overview_view *view)
{
    if (view->redis < 0)
        return "Redis can't be asked: what is pending is not known";
    if (view->postgres < 0)
        return "Postgres can't be asked: what is sealed may be in it already";
    if (view->overview.gone_back > 0)
        return "Redis has gone back in time or was emptied: what is pending is known after the next flush";
    if (view->overview.stuck_ms > 0)
        return "a flusher sits in a transaction without going on, and keeps others out: stopped, or swapped "
               "out?";
    if (view->overview.quarantined > 0)
        return "generations wait in quarantine; see 'flusher quarantine list'";
    return view->overview.history.parked_rows > 0 ? "deltas are parked; see 'flusher parked list'" : NULL;
}

/* By which people know a lane: the address of its database may hold a password. */
static const char *first_match(const struct config *config)
{
    const struct targets *targets = config->targets;

    for (size_t i = 0; i < targets->len; i++)
        if (targets->items[i].lane == config->lane)
            return targets->items[i].match;
    return NULL;
}

void report_status(enum report_style style, const struct config *config, const struct overview_view *view)
{
    const struct pending *pending = &view->overview.pending;
    const struct history *history = &view->overview.history;
    bool redis = view->redis == 0, postgres = view->postgres == 0, run = postgres && history->has_run;
    char fresh[TIME_BYTES], applied[TIME_BYTES], started[TIME_BYTES];
    struct field fields[] = {
        text_field("namespace", config->namespace),
        whole_field("shards", config->shards),
        whole_if(redis, "open_keys", pending->open_keys),
        whole_if(redis, "open_increments", pending->open_total),
        whole_if(redis, "sealed_keys", pending->sealed_keys),
        whole_if(redis && (postgres || pending->sealed_keys == 0), "sealed_increments",
                 pending->sealed_total),
        ms_if(redis, "lag_seconds", pending->oldest_ms),
        whole_if(redis && postgres, "shards_gone_back", view->overview.gone_back),
        ms_if(postgres, "stuck_seconds", view->overview.stuck_ms),
        whole_if(postgres, "quarantined", view->overview.quarantined),
        whole_if(postgres, "parked_rows", history->parked_rows),
        whole_if(postgres, "parked_increments", history->parked),
        whole_if(postgres, "dropped_increments", history->dropped),
        text_field("fresh_until", spell_time(history->fresh_ms, fresh)),
        text_field("last_flush", spell_time(history->applied_ms, applied)),
        text_field("last_run", spell_time(history->started_ms, started)),
        ms_if(run, "last_run_seconds", history->finished_ms - history->started_ms),
        whole_if(run, "last_run_keys", history->keys),
        whole_if(run, "last_run_increments", history->total),
        text_field("last_run_outcome", run ? history->failure[0] ? history->failure : "ok" : NULL),
        text_field("note", note_status(view)),
        text_field("target", first_match(config)),
    };

    /* Only among several it says something. */
    print(style, print_list, fields, ARRAY_LEN(fields) - (config->lanes_len == 1));
}

#define AUDIT_FIELDS 12

/* `shard` is below 0 for the total. */
static size_t describe_audit(const struct shard_audit *audit, int64_t shard,
                             struct field ret_fields[AUDIT_FIELDS])
{
    size_t len = 0;

    if (shard < 0)
        ret_fields[len++] = text_field("event", "audit");
    else
        ret_fields[len++] = whole_field("shard", shard);
    ret_fields[len++] = text_field("verdict", audit_verdict_name(audit->verdict));
    ret_fields[len++] = whole_field("accepted", audit->accepted);
    ret_fields[len++] = whole_field("applied", audit->applied);
    ret_fields[len++] = whole_field("open", audit->open);
    ret_fields[len++] = whole_field("sealed", audit->sealed);
    ret_fields[len++] = whole_field("parked", audit->parked);
    ret_fields[len++] = whole_field("dropped", audit->dropped);
    ret_fields[len++] = whole_field("quarantined", audit->quarantined);
    ret_fields[len++] = whole_field("difference", audit->difference);
    ret_fields[len++] = text_field("where", audit->where[0] ? audit->where : NULL);
    if (shard < 0)
        ret_fields[len++] =
            text_field("hint", audit->verdict > AUDIT_LATE
                                   ? "what it may come from and what to do: docs/operations.md, 'The audit'"
                                   : NULL);
    return len;
}

#define DAEMON_FIELDS 7

static void describe_daemon(const struct daemon_status *status, struct field ret_fields[DAEMON_FIELDS])
{
    ret_fields[0] = flag_field("ready", status->ready);
    ret_fields[1] = whole_field("received", status->received);
    ret_fields[2] = whole_field("accepted", status->accepted);
    ret_fields[3] = whole_field("not_in_redis", status->pending);
    ret_fields[4] = whole_field("lost_at_most", status->lost);
    ret_fields[5] = whole_field("kernel_dropped", status->kernel_dropped);
    ret_fields[6] = whole_field("rejected", status->rejected);
}

static void describe_reasons(const struct daemon_status *status, struct field ret_fields[DAEMON_REASONS_MAX])
{
    for (size_t i = 0; i < status->reasons_len; i++)
        ret_fields[i] = whole_field(status->reasons[i].name, status->reasons[i].lines);
}

static void print_daemon(const struct report_audit *audit)
{
    struct field fields[DAEMON_FIELDS], reasons[DAEMON_REASONS_MAX];
    struct field absent[] = {text_field("event", "audit_counterd"),
                             text_field("absent", audit->daemon_failure)};

    if (!audit->daemon) {
        print_line(absent, ARRAY_LEN(absent));
        return;
    }
    describe_daemon(audit->daemon, fields);
    describe_reasons(audit->daemon, reasons);
    printf("event=audit_counterd ");
    print_line(fields, ARRAY_LEN(fields));
    if (audit->daemon->reasons_len > 0) {
        printf("event=audit_rejected ");
        print_line(reasons, audit->daemon->reasons_len);
    }
}

/* Shards only where something is wrong. */
static void print_audit(const struct report_audit *audit)
{
    struct field fields[AUDIT_FIELDS];
    size_t len;

    for (size_t i = 0; i < audit->shards_len; i++) {
        if (audit->shards[i].verdict == AUDIT_BALANCED)
            continue;
        len = describe_audit(&audit->shards[i], (int64_t)i, fields);
        printf("event=audit_shard ");
        print_line(fields, len);
    }
    print_daemon(audit);
    len = describe_audit(audit->total, -1, fields);
    print_line(fields, len);
}

static cJSON *make_daemon(const struct report_audit *audit)
{
    struct field fields[DAEMON_FIELDS], reasons[DAEMON_REASONS_MAX];
    struct field absent = text_field("absent", audit->daemon_failure);
    cJSON *object;

    if (!audit->daemon)
        return make_object(&absent, 1);
    describe_daemon(audit->daemon, fields);
    describe_reasons(audit->daemon, reasons);
    object = make_object(fields, ARRAY_LEN(fields));
    cJSON_AddItemToObject(object, "rejected_by_reason", make_object(reasons, audit->daemon->reasons_len));
    return object;
}

void report_audit(enum report_style style, const struct report_audit *audit)
{
    struct field fields[AUDIT_FIELDS];
    cJSON *object, *shards;
    size_t len;

    if (style == REPORT_TEXT) {
        print_audit(audit);
        return;
    }
    len = describe_audit(audit->total, -1, fields);
    object = make_object(fields, len);
    cJSON_AddItemToObject(object, "counterd", make_daemon(audit));
    shards = cJSON_AddArrayToObject(object, "by_shard");
    for (size_t i = 0; i < audit->shards_len; i++) {
        len = describe_audit(&audit->shards[i], (int64_t)i, fields);
        cJSON_AddItemToArray(shards, make_object(fields, len));
    }
    print_object(object);
}

/* "3-7", or NULL when there is nothing. */
static const char *spell_range(int64_t low, int64_t high, char buf[LOG_TEXT_BYTES])
{
    if (low > high)
        return NULL;
    snprintf(buf, LOG_TEXT_BYTES, "%" PRId64 "-%" PRId64, low, high);
    return buf;
}

#define WRITER_FIELDS 4

/* Which batches of a writer a row holds, and where else they are. `bufs` holds the texts. */
static void describe_writer(const struct held_batches *held, char bufs[3][LOG_TEXT_BYTES],
                            struct field ret_fields[WRITER_FIELDS])
{
    int64_t applied = held->applied < held->high ? held->applied : held->high;
    int64_t missing = held->applied < held->low ? held->low : held->applied + 1;

    ret_fields[0] = text_field("writer", held->writer);
    ret_fields[1] = text_field("batches", spell_range(held->low, held->high, bufs[0]));
    ret_fields[2] = text_field("in_postgres", spell_range(held->low, applied, bufs[1]));
    ret_fields[3] = text_field("only_here", spell_range(missing, held->high, bufs[2]));
}

#define ROW_FIELDS 9

static void describe_row(const struct quarantined *row, char at[TIME_BYTES],
                         struct field ret_fields[ROW_FIELDS])
{
    struct held held = quarantined_held(row);

    ret_fields[0] = whole_field("id", row->id);
    ret_fields[1] = whole_field("shard", row->shard);
    ret_fields[2] = text_field("gen", row->gen);
    ret_fields[3] = text_field("part", row->part);
    ret_fields[4] = text_field("quarantined_at", spell_time(row->unix_ms, at));
    ret_fields[5] = whole_field("keys", row->keys);
    ret_fields[6] = whole_field("increments", row->total);
    ret_fields[7] = whole_field("batches_in_postgres", held.applied);
    ret_fields[8] = whole_field("batches_only_here", held.only_here);
}

static void print_row(const struct quarantined *row)
{
    char at[TIME_BYTES], bufs[3][LOG_TEXT_BYTES];
    struct field fields[ROW_FIELDS], writer[WRITER_FIELDS];

    describe_row(row, at, fields);
    print_line(fields, ARRAY_LEN(fields));
    for (size_t i = 0; i < row->writers_len; i++) {
        describe_writer(&row->writers[i], bufs, writer);
        fputs("    ", stdout);
        print_line(writer, ARRAY_LEN(writer));
    }
}

static cJSON *make_row(const struct quarantined *row)
{
    char at[TIME_BYTES], bufs[3][LOG_TEXT_BYTES];
    struct field fields[ROW_FIELDS], writer[WRITER_FIELDS];
    cJSON *object, *writers;

    describe_row(row, at, fields);
    object = make_object(fields, ARRAY_LEN(fields));
    writers = cJSON_AddArrayToObject(object, "writers");
    for (size_t i = 0; i < row->writers_len; i++) {
        describe_writer(&row->writers[i], bufs, writer);
        cJSON_AddItemToArray(writers, make_object(writer, ARRAY_LEN(writer)));
    }
    return object;
}

void report_quarantine(enum report_style style, const struct quarantine_list *list)
{
    cJSON *object, *rows;

    if (style == REPORT_TEXT) {
        for (size_t i = 0; i < list->len; i++)
            print_row(&list->items[i]);
        if (list->len == 0)
            puts("nothing waits in quarantine");
        return;
    }
    object = cJSON_CreateObject();
    rows = cJSON_AddArrayToObject(object, "quarantine");
    for (size_t i = 0; i < list->len; i++)
        cJSON_AddItemToArray(rows, make_row(&list->items[i]));
    print_object(object);
}

void report_decisions(enum report_style style, const char *what, const struct decision *decisions, size_t len)
{
    cJSON *object = cJSON_CreateObject(), *rows = cJSON_AddArrayToObject(object, what);

    for (size_t i = 0; i < len; i++) {
        struct field fields[] = {
            text_field("event", what),
            whole_field("id", decisions[i].id),
            whole_field("shard", decisions[i].shard),
            text_field("gen", decisions[i].gen),
            whole_field("keys", decisions[i].keys),
            whole_field("increments", decisions[i].total),
            whole_field("batches_in_postgres_before", decisions[i].applied),
        };
        if (style == REPORT_TEXT)
            print_line(fields, ARRAY_LEN(fields));
        else
            cJSON_AddItemToArray(rows, make_object(fields + 1, ARRAY_LEN(fields) - 1));
    }
    if (style == REPORT_TEXT)
        cJSON_Delete(object);
    else
        print_object(object);
}

#define PARKED_FIELDS 9

static void describe_parked(const struct parked_row *row, char bucket[TIME_BYTES], char at[TIME_BYTES],
                            struct field ret_fields[PARKED_FIELDS])
{
    ret_fields[0] = whole_field("id", row->id);
    ret_fields[1] = text_field("key", row->key);
    ret_fields[2] = whole_field("increments", row->delta);
    ret_fields[3] = text_field("target", row->target[0] ? row->target : NULL);
    ret_fields[4] = text_field("reason", row->reason);
    ret_fields[5] = whole_field("shard", row->shard);
    ret_fields[6] = text_field("bucket", spell_time(row->bucket * 1000, bucket));
    ret_fields[7] = text_field("parked_at", spell_time(row->parked_ms, at));
    ret_fields[8] = text_field("detail", row->detail[0] ? row->detail : NULL);
}

void report_parked(enum report_style style, const struct parked_list *list)
{
    struct field sums[] = {
        text_field("event", "parked"),
        whole_field("rows", list->rows),
        whole_field("increments", list->total),
        whole_field("shown", (int64_t)list->len),
    };
    cJSON *object = make_object(sums, ARRAY_LEN(sums)), *rows = cJSON_AddArrayToObject(object, "parked");

    for (size_t i = 0; i < list->len; i++) {
        char bucket[TIME_BYTES], at[TIME_BYTES];
        struct field fields[PARKED_FIELDS];
        describe_parked(&list->items[i], bucket, at, fields);
        if (style == REPORT_TEXT)
            print_line(fields, ARRAY_LEN(fields));
        else
            cJSON_AddItemToArray(rows, make_object(fields, ARRAY_LEN(fields)));
    }
    print_sums(style, sums, ARRAY_LEN(sums), object);
}

void report_parked_result(enum report_style style, const char *verb, const struct parked_result *result)
{
    struct field fields[] = {
        text_field("event", "parked"),
        text_field("done", verb),
        whole_field("applied_rows", result->applied_rows),
        whole_field("applied_increments", result->applied),
        whole_field("dropped_rows", result->dropped_rows),
        whole_field("dropped_increments", result->dropped),
        whole_field("still_parked_rows", result->refused_rows),
        whole_field("still_parked_increments", result->refused),
    };

    print(style, print_line, fields, ARRAY_LEN(fields));
}
