#include "flusher/report.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#include "flusher/whole.h"
#include "lib/log.h"

#define BAR_CHARS  40
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
        snprintf(buf, LOG_TEXT_BYTES, "%" PRId64 ".%03d", field->number / 1000, (int)(field->number % 1000));
        return buf;
    case FIELD_FLAG:
        return field->number ? "true" : "false";
    }
    return "";
}

static void print_json(const struct field *fields, size_t len)
{
    cJSON *object = cJSON_CreateObject();
    char buf[LOG_TEXT_BYTES], *text;

    for (size_t i = 0; i < len; i++) {
        if (fields[i].type != FIELD_TEXT)
            cJSON_AddRawToObject(object, fields[i].name, spell(&fields[i], buf));
        else if (fields[i].text)
            cJSON_AddStringToObject(object, fields[i].name, fields[i].text);
        else
            cJSON_AddNullToObject(object, fields[i].name);
    }
    text = cJSON_PrintUnformatted(object);
    puts(text ? text : "{}");
    free(text);
    cJSON_Delete(object);
}

/* On one line, for logs and their tools: event=flush keys=12 ... */
static void print_line(const struct field *fields, size_t len)
{
    char buf[LOG_TEXT_BYTES];

    for (size_t i = 0; i < len; i++)
        if (fields[i].type != FIELD_TEXT || fields[i].text)
            printf("%s%s=%s", i > 0 ? " " : "", fields[i].name, spell(&fields[i], buf));
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
        whole_field("quarantined", flush->quarantined),
        ms_field("seconds", flush->elapsed_ms),
        /* As text it has been logged. */
        text_field("error", style == REPORT_JSON ? flush->failure : NULL),
    };

    print(style, print_line, fields, ARRAY_LEN(fields));
}

void report_dry_run(enum report_style style, const struct config *config, const struct pending *pending)
{
    struct field fields[] = {
        text_field("event", "dry_run"),
        whole_field("keys", pending->open_keys + pending->sealed_keys),
        whole_field("increments", whole_add(pending->open_total, pending->sealed_total)),
        whole_field("events", pending->events),
        whole_field("shards", config->shards),
    };

    print(style, print_line, fields, ARRAY_LEN(fields));
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
                const struct key_pending *pending)
{
    bool known = stored->known || pending->known;
    struct field fields[] = {
        text_field("key", key),
        whole_field("value", whole_add(stored->value, pending->delta)),
        whole_field("stored", stored->value),
        whole_field("pending", pending->delta),
        flag_field("known", known),
        text_field("note", known ? NULL : "no such key: nothing is stored or pending for it"),
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

void report_status(enum report_style style, const struct config *config, const struct pending *pending,
                   const struct history *history)
{
    char fresh[TIME_BYTES], applied[TIME_BYTES], started[TIME_BYTES];
    const char *outcome = history->failure[0] ? history->failure : "ok";
    struct field fields[] = {
        text_field("namespace", config->namespace),
        whole_field("shards", config->shards),
        whole_field("open_keys", pending->open_keys),
        whole_field("open_increments", pending->open_total),
        whole_field("sealed_keys", pending->sealed_keys),
        whole_field("sealed_increments", pending->sealed_total),
        ms_field("lag_seconds", pending->oldest_ms),
        text_field("fresh_until", spell_time(history->fresh_ms, fresh)),
        text_field("last_flush", spell_time(history->applied_ms, applied)),
        text_field("last_run", spell_time(history->started_ms, started)),
        ms_field("last_run_seconds", history->finished_ms - history->started_ms),
        whole_field("last_run_keys", history->keys),
        whole_field("last_run_increments", history->total),
        text_field("last_run_outcome", history->has_run ? outcome : NULL),
    };

    print(style, print_list, fields, ARRAY_LEN(fields));
}

bool report_has_terminal(void)
{
    return isatty(STDERR_FILENO);
}

void report_progress(int64_t shards_done, int64_t shards)
{
    static const char full[] = "########################################";
    int filled = (int)(shards_done * BAR_CHARS / shards);

    fprintf(stderr, "\r[%.*s%*s] %" PRId64 "/%" PRId64 " shards", filled, full, BAR_CHARS - filled, "",
            shards_done, shards);
}

void report_progress_end(void)
{
    fputs("\r\033[K", stderr);
}
