#include "lib/config_reader.h"

#include <cjson/cJSON.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/targets.h"

#define MINUTE_S INT64_C(60)
#define DAY_S    INT64_C(86400)
#define YEARS_S  (100 * 366 * DAY_S) /* no time in the file is longer */

#define SQL_NAME_LEN_MAX    256 /* of a table or column as written */
#define DATABASE_LEN_MAX    4095
#define ROLLUPS_RETENTION_S (90 * DAY_S)

/* "targets[2].rollup[1]" */
#define PLACE_BYTES  64
#define PLACES_BYTES (PLACE_BYTES + 32) /* with what is inside of it */

/* The string `name` of an object at `place`, of min to max bytes; NULL when it is not there or wrong. */
static const char *text_of(struct reader *reader, const cJSON *object, const char *place, const char *name,
                           size_t max)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    size_t len;

    if (!item)
        return NULL;
    if (!cJSON_IsString(item)) {
        mistake(reader, "'%s.%s' is %s; it takes a string", place, name, json_type_name(item));
        return NULL;
    }
    len = strlen(item->valuestring);
    if (len == 0 || len > max) {
        mistake(reader, "'%s.%s' has %zu bytes; it takes 1 to %zu", place, name, len, max);
        return NULL;
    }
    return item->valuestring;
}

static bool is_word_of(const char *words, const char *word)
{
    size_t len = strlen(word);

    for (const char *at = words; *at; at += strspn(at, " ")) {
        size_t at_len = strcspn(at, " ");
        if (at_len == len && memcmp(at, word, len) == 0)
            return true;
        at += at_len;
    }
    return false;
}

/* Whether `object` is one, of which each name is allowed and given once. */
static bool is_object_of(struct reader *reader, const cJSON *object, const char *place, const char *allowed)
{
    const cJSON *item;
    bool good = true;

    if (!cJSON_IsObject(object)) {
        mistake(reader, "'%s' is %s; it takes an object", place, json_type_name(object));
        return false;
    }
    cJSON_ArrayForEach(item, object)
    {
        if (!is_word_of(allowed, item->string))
            mistake(reader, "'%s.%s' is not a key; allowed in '%s': %s", place, item->string, place, allowed);
        else if (cJSON_GetObjectItemCaseSensitive(object, item->string) != item)
            mistake(reader, "'%s.%s' is given twice", place, item->string);
        else
            continue;
        good = false;
    }
    return good;
}

/* "90s" "1m" "6h" "30d"; 0 when it is none of them. */
static int64_t parse_period(const char *text)
{
    static const struct {
        char unit;
        int64_t seconds;
    } units[] = {{'s', 1}, {'m', MINUTE_S}, {'h', 60 * MINUTE_S}, {'d', DAY_S}};
    int64_t number = 0;

    for (; *text >= '0' && *text <= '9' && number <= YEARS_S; text++)
        number = number * 10 + (*text - '0');
    for (size_t i = 0; i < ARRAY_LEN(units); i++)
        if (text[0] == units[i].unit && text[1] == '\0' && number <= YEARS_S / units[i].seconds)
            return number * units[i].seconds;
    return 0;
}

/* A day is a whole number of buckets, or a bucket of days: so each begins when a clock of UTC would say so.
 */
static void read_bucket(struct reader *reader, const cJSON *object, const char *place,
                        struct target_rollup *rollup)
{
    const char *text = text_of(reader, object, place, "bucket", 16);

    if (!text) {
        if (!cJSON_GetObjectItemCaseSensitive(object, "bucket"))
            mistake(reader, "'%s.bucket' is missing; write \"1m\", \"1h\", \"1d\" or the like", place);
        return;
    }
    rollup->bucket_s = parse_period(text);
    if (rollup->bucket_s == 0 || (DAY_S % rollup->bucket_s != 0 && rollup->bucket_s % DAY_S != 0))
        mistake(reader,
                "'%s.bucket' is '%s'; it takes a number of s, m or h that divides a day, as in 15m, or whole "
                "days, as in 7d",
                place, text);
}

static void read_retention(struct reader *reader, const cJSON *object, const char *place,
                           struct target_rollup *rollup)
{
    const char *text = text_of(reader, object, place, "retention", 16);

    if (strcmp(rollup->table, ROLLUPS_TABLE) != 0) {
        if (text)
            mistake(reader, "'%s.retention': only " ROLLUPS_TABLE " is cleared by the flusher; leave it out",
                    place);
        return;
    }
    rollup->retention_s = ROLLUPS_RETENTION_S;
    if (!text)
        return;
    rollup->retention_s = strcmp(text, "none") == 0 ? 0 : parse_period(text);
    if (strcmp(text, "none") != 0 && (rollup->retention_s == 0 || rollup->retention_s % DAY_S != 0))
        mistake(reader, "'%s.retention' is '%s'; it takes whole days, as in \"30d\", or \"none\"", place,
                text);
}

static void read_rollup(struct reader *reader, const cJSON *object, const char *place, struct target *target)
{
    struct target_rollup *rollup = &target->rollups[target->rollups_len];
    const char *table = ROLLUPS_TABLE;

    if (!is_object_of(reader, object, place, "table bucket retention"))
        return;
    if (cJSON_GetObjectItemCaseSensitive(object, "table"))
        table = text_of(reader, object, place, "table", SQL_NAME_LEN_MAX);
    if (!table)
        return;
    set_text(reader, &rollup->table, table);
    if (!rollup->table)
        return;
    for (size_t i = 0; i < target->rollups_len; i++)
        if (strcmp(target->rollups[i].table, table) == 0)
            mistake(reader, "'%s.table': '%s' is in the list already; each bucket needs a table of its own",
                    place, table);
    target->rollups_len++;
    read_bucket(reader, object, place, rollup);
    read_retention(reader, object, place, rollup);
    if (rollup->retention_s > 0 && rollup->retention_s < rollup->bucket_s)
        mistake(reader,
                "'%s.retention' is %" PRId64 " days, shorter than its bucket, which would go before it ends",
                place, rollup->retention_s / DAY_S);
}

static void read_rollups(struct reader *reader, const cJSON *rollups, const char *place,
                         struct target *target)
{
    const cJSON *item;
    char at[PLACES_BYTES];
    size_t i = 0;

    snprintf(at, sizeof(at), "%s.rollup", place);
    if (!cJSON_IsArray(rollups)) {
        read_rollup(reader, rollups, at, target);
        return;
    }
    cJSON_ArrayForEach(item, rollups)
    {
        if (i == TARGET_ROLLUPS_MAX) {
            mistake(reader, "'%s.rollup' has more than %d items", place, TARGET_ROLLUPS_MAX);
            return;
        }
        snprintf(at, sizeof(at), "%s.rollup[%zu]", place, i++);
        read_rollup(reader, item, at, target);
    }
}

/* Sets bucket_s, once all rollups are read. */
static void check_buckets(struct reader *reader, const char *place, struct target *target)
{
    for (size_t i = 0; i < target->rollups_len; i++)
        if (target->bucket_s == 0 || target->rollups[i].bucket_s < target->bucket_s)
            target->bucket_s = target->rollups[i].bucket_s;
    for (size_t i = 0; i < target->rollups_len && target->bucket_s > 0; i++)
        if (target->rollups[i].bucket_s % target->bucket_s != 0)
            mistake(reader, "'%s.rollup': a bucket of %" PRId64 " s is not made of buckets of %" PRId64 " s",
                    place, target->rollups[i].bucket_s, target->bucket_s);
}

static void read_missing(struct reader *reader, const cJSON *object, const char *place, struct target *target)
{
    static const char *const names[] = {
        [MISSING_INSERT] = "insert", [MISSING_PARK] = "park", [MISSING_DROP] = "drop"};
    const char *text = text_of(reader, object, place, "missing", 16);

    if (!text)
        return;
    for (size_t i = 0; i < ARRAY_LEN(names); i++) {
        if (strcmp(text, names[i]) == 0) {
            target->missing = (enum target_missing)i;
            return;
        }
    }
    mistake(reader, "'%s.missing' is '%s'; it takes insert, park or drop", place, text);
}

/* How a delta and its row become one. */
static void read_merge(struct reader *reader, const cJSON *object, const char *place, struct target *target)
{
    const char *text = text_of(reader, object, place, "merge", 16);
    enum merge merge = MERGE_ADD;

    while (text && merge < MERGE_COUNT && strcmp(text, merge_name(merge)) != 0)
        merge++;
    if (merge == MERGE_COUNT)
        mistake(reader, "'%s.merge' is '%s'; it takes add, max or min", place, text);
    else if (merge != MERGE_ADD && strcmp(target->table, COUNTERS_TABLE) == 0)
        mistake(reader,
                "'%s.merge' is '%s'; " COUNTERS_TABLE
                " holds sums, which the audit compares: a table of your own can take it",
                place, text);
    else
        target->merge = merge;
}

/* Reads the column `name` into *field. In our own table the column is the one it has, `fixed`. */
static void read_column(struct reader *reader, const cJSON *object, const char *place, const char *name,
                        const char *fixed, char **field)
{
    const char *text = text_of(reader, object, place, name, SQL_NAME_LEN_MAX);

    if (text && fixed && strcmp(text, fixed) != 0)
        mistake(reader, "'%s.%s' is '%s'; in " COUNTERS_TABLE " it is '%s'", place, name, text, fixed);
    set_text(reader, field, fixed ? fixed : text ? text : "");
}

/* What only a table of the application's own needs. */
static void check_own_table(struct reader *reader, const cJSON *object, const char *place,
                            const struct target *target)
{
    if (!cJSON_GetObjectItemCaseSensitive(object, "value"))
        mistake(reader, "'%s.value' is missing; name the column of '%s' that counts", place, target->table);
    if (!target->pattern)
        return;
    if (pattern_placeholders(target->pattern) == 0)
        mistake(reader,
                "'%s.match': '%s' has no placeholder; each is a column that says which row of '%s' is meant",
                place, target->match, target->table);
    for (size_t i = 0; i < pattern_placeholders(target->pattern); i++) {
        const char *name = pattern_placeholder(target->pattern, i);
        if (target->value && strcmp(name, target->value) == 0)
            mistake(reader, "'%s.value': '%s' is a column of the row's key too", place, name);
        if (target->touch && strcmp(name, target->touch) == 0)
            mistake(reader, "'%s.touch': '%s' is a column of the row's key too", place, name);
    }
}

/* The pattern and its text at `place`.match. */
static void read_match(struct reader *reader, const cJSON *object, const char *place, char **match,
                       struct pattern **pattern)
{
    const char *text = text_of(reader, object, place, "match", PATTERN_LEN_MAX);
    struct error error;

    if (!text) {
        if (!cJSON_GetObjectItemCaseSensitive(object, "match"))
            mistake(reader, "'%s.match' is missing; write which keys are meant, \"*\" for all", place);
        return;
    }
    set_text(reader, match, text);
    if (pattern_parse(text, pattern, &error) < 0)
        mistake(reader, "'%s.match': %s", place, error.text);
}

static void read_target(struct reader *reader, const cJSON *object, const char *place, struct target *target)
{
    const char *table, *database;
    const cJSON *rollups;
    bool ours;

    if (!is_object_of(reader, object, place, "match table value touch missing rollup merge database"))
        return;
    read_match(reader, object, place, &target->match, &target->pattern);
    table = text_of(reader, object, place, "table", SQL_NAME_LEN_MAX);
    if (!table) {
        if (!cJSON_GetObjectItemCaseSensitive(object, "table"))
            mistake(reader, "'%s.table' is missing; write \"" COUNTERS_TABLE "\" or a table of your own",
                    place);
        return;
    }
    ours = strcmp(table, COUNTERS_TABLE) == 0;
    set_text(reader, &target->table, table);
    read_column(reader, object, place, "value", ours ? "value" : NULL, &target->value);
    read_column(reader, object, place, "touch", ours ? "last_seen" : NULL, &target->touch);
    database = text_of(reader, object, place, "database", DATABASE_LEN_MAX);
    set_text(reader, &target->database, database ? database : "");
    read_merge(reader, object, place, target);
    target->missing = ours ? MISSING_INSERT : MISSING_PARK;
    read_missing(reader, object, place, target);
    if (ours && target->missing != MISSING_INSERT)
        mistake(reader, "'%s.missing': " COUNTERS_TABLE " takes every key; it is always insert there", place);
    if (!ours)
        check_own_table(reader, object, place, target);
    rollups = cJSON_GetObjectItemCaseSensitive(object, "rollup");
    if (rollups)
        read_rollups(reader, rollups, place, target);
    check_buckets(reader, place, target);
}

/* How many items a list of 0 to max has; -1 when it is none. */
static int64_t list_len(struct reader *reader, const cJSON *list, const char *place, int max)
{
    if (!cJSON_IsArray(list)) {
        mistake(reader, "'%s' is %s; it takes a list", place, json_type_name(list));
        return -1;
    }
    if (cJSON_GetArraySize(list) > max) {
        mistake(reader, "'%s' has more than %d items", place, max);
        return -1;
    }
    return cJSON_GetArraySize(list);
}

void read_targets(struct reader *reader, const cJSON *list)
{
    struct targets *targets = reader->config->targets;
    int64_t len = list_len(reader, list, "targets", TARGETS_MAX);
    const cJSON *item;

    if (len == 0)
        mistake(reader, "'targets' is empty; every key would be parked. Leave it out for " COUNTERS_TABLE);
    if (len <= 0)
        return;
    targets->items = calloc((size_t)len, sizeof(*targets->items));
    if (!targets->items) {
        mistake(reader, "out of memory");
        return;
    }
    cJSON_ArrayForEach(item, list)
    {
        char place[PLACE_BYTES];
        snprintf(place, sizeof(place), "targets[%zu]", targets->len);
        read_target(reader, item, place, &targets->items[targets->len++]);
    }
}

/* The placeholder of `match` that has this name; how many it has when there is none. */
static size_t place_of(const struct pattern *match, const char *name)
{
    size_t i;

    for (i = 0; i < pattern_placeholders(match); i++)
        if (strcmp(pattern_placeholder(match, i), name) == 0)
            break;
    return i;
}

/* The text of `fanout->also[...]` at `place`. */
static void read_also(struct reader *reader, const cJSON *item, const char *place, struct fanout *fanout)
{
    struct pattern **also = &fanout->also[fanout->also_len];
    struct error error;

    if (!cJSON_IsString(item)) {
        mistake(reader, "'%s' is %s; it takes a string", place, json_type_name(item));
        return;
    }
    if (pattern_parse(item->valuestring, also, &error) < 0) {
        mistake(reader, "'%s': %s", place, error.text);
        return;
    }
    fanout->also_len++;
    if (pattern_is_open(*also))
        mistake(reader, "'%s': '%s' has a '*', but it is one key that is made", place, item->valuestring);
    for (size_t i = 0; fanout->pattern && i < pattern_placeholders(*also); i++) {
        const char *name = pattern_placeholder(*also, i);
        size_t found = place_of(fanout->pattern, name);
        if (found == pattern_placeholders(fanout->pattern))
            mistake(reader, "'%s': '{%s}' is not in the rule's match '%s'", place, name, fanout->match);
        fanout->places[fanout->also_len - 1][i] = (uint8_t)found;
    }
}

static void read_fanout(struct reader *reader, const cJSON *object, const char *place, struct fanout *fanout)
{
    const cJSON *list, *item;
    char at[PLACES_BYTES];
    int64_t len;
    size_t i = 0;

    if (!is_object_of(reader, object, place, "match also"))
        return;
    read_match(reader, object, place, &fanout->match, &fanout->pattern);
    list = cJSON_GetObjectItemCaseSensitive(object, "also");
    snprintf(at, sizeof(at), "%s.also", place);
    len = list ? list_len(reader, list, at, FANOUT_ALSO_MAX) : 0;
    if (len == 0)
        mistake(reader, "'%s' is missing or empty; write the keys that are counted too", at);
    if (len <= 0)
        return;
    cJSON_ArrayForEach(item, list)
    {
        snprintf(at, sizeof(at), "%s.also[%zu]", place, i++);
        read_also(reader, item, at, fanout);
    }
}

void read_fanouts(struct reader *reader, const cJSON *list)
{
    struct targets *targets = reader->config->targets;
    int64_t len = list_len(reader, list, "fanout", FANOUTS_MAX);
    const cJSON *item;

    if (len <= 0)
        return;
    targets->fanouts = calloc((size_t)len, sizeof(*targets->fanouts));
    if (!targets->fanouts) {
        mistake(reader, "out of memory");
        return;
    }
    cJSON_ArrayForEach(item, list)
    {
        char place[PLACE_BYTES];
        snprintf(place, sizeof(place), "fanout[%zu]", targets->fanouts_len);
        read_fanout(reader, item, place, &targets->fanouts[targets->fanouts_len++]);
    }
}

/* A target that no key can reach is a mistake of order. */
static void check_reachable(struct reader *reader, const struct targets *targets)
{
    for (size_t i = 1; i < targets->len; i++) {
        const struct target *target = &targets->items[i];
        for (size_t j = 0; j < i; j++) {
            const struct target *before = &targets->items[j];
            if (!pattern_covers(before->pattern, target->pattern))
                continue;
            mistake(reader,
                    "'targets[%zu].match': '%s' is never reached, as 'targets[%zu]' ('%s') comes first", i,
                    target->match, j, before->match);
            break;
        }
    }
}

/* What a rule makes must not be what a rule matches: each event is fanned out once, so it would not be what
 * one expects of a chain, and a loop has no sense at all. */
static void check_loops(struct reader *reader, const struct targets *targets, size_t index)
{
    const struct fanout *fanout = &targets->fanouts[index];

    for (size_t i = 0; i < fanout->also_len; i++)
        for (size_t j = 0; j < targets->fanouts_len; j++)
            if (pattern_overlaps(fanout->also[i], targets->fanouts[j].pattern))
                mistake(reader,
                        "'fanout[%zu].also[%zu]' makes keys that 'fanout[%zu].match' ('%s') may match, which "
                        "would "
                        "be a loop or a chain; narrow the match, and name all keys in one 'also'",
                        index, i, j, targets->fanouts[j].match);
}

/* The merge that all keys of the pattern have. Those without a target are parked in the first lane. False
 * when they may have several. */
static bool merge_of_keys(const struct targets *targets, const struct pattern *keys, enum merge *ret_merge)
{
    bool is_one = pattern_placeholders(keys) == 0 && !pattern_is_open(keys), all = false;
    unsigned merges = 0;

    for (size_t i = 0; i < targets->len && !all; i++) {
        const struct target *target = &targets->items[i];
        if (!pattern_overlaps(keys, target->pattern))
            continue;
        merges |= 1u << target->merge;
        all = is_one || pattern_covers(target->pattern, keys);
    }
    if (!all)
        merges |= 1u << MERGE_ADD;
    *ret_merge = merges & 1u << MERGE_MAX ? MERGE_MAX : merges & 1u << MERGE_MIN ? MERGE_MIN : MERGE_ADD;
    return merges == 1u << *ret_merge;
}

/* What is made of a sum is no maximum of its events, nor the other way round. */
static void check_merges(struct reader *reader, const struct targets *targets, size_t index)
{
    const struct fanout *fanout = &targets->fanouts[index];
    enum merge merge, also;
    bool one = merge_of_keys(targets, fanout->pattern, &merge);

    for (size_t i = 0; i < fanout->also_len; i++)
        if (!merge_of_keys(targets, fanout->also[i], &also) || !one || also != merge)
            mistake(
                reader,
                "'fanout[%zu].also[%zu]': the rule's match '%s' and the keys it makes may be of targets with "
                "different 'merge'; narrow the match, or the targets'",
                index, i, fanout->match);
}

/* How fine a bucket those keys may need that the rule makes. */
static int64_t bucket_of_also(const struct targets *targets, const struct fanout *fanout)
{
    int64_t bucket_s = 0;

    for (size_t i = 0; i < fanout->also_len; i++) {
        for (size_t j = 0; j < targets->len; j++) {
            if (!pattern_overlaps(fanout->also[i], targets->items[j].pattern))
                continue;
            bucket_s = bucket_divisor(bucket_s, targets->items[j].bucket_s);
            /* A key without placeholders has the one target. */
            if (pattern_placeholders(fanout->also[i]) == 0)
                break;
        }
    }
    return bucket_s;
}

void finish_targets(struct reader *reader)
{
    struct targets *targets = reader->config->targets;

    if (targets->len == 0) {
        cJSON *list = cJSON_Parse(DEFAULT_TARGETS);
        if (list)
            read_targets(reader, list);
        else
            mistake(reader, "out of memory");
        cJSON_Delete(list);
    }
    check_reachable(reader, targets);
    for (size_t i = 0; i < targets->fanouts_len; i++)
        check_loops(reader, targets, i);
    for (size_t i = 0; i < targets->fanouts_len && !reader->failed; i++)
        check_merges(reader, targets, i);
    for (size_t i = 0; i < targets->len; i++)
        targets->bucket_s = bucket_divisor(targets->bucket_s, targets->items[i].bucket_s);
    for (size_t i = 0; i < targets->fanouts_len && !reader->failed; i++)
        targets->fanouts[i].bucket_s = bucket_of_also(targets, &targets->fanouts[i]);
}
