#include "lib/metric.h"

#include <assert.h>

#include "lib/text.h"

/* 9999-12-31T23:59:59Z */
#define TIME_MAX INT64_C(253402300799)

static const char *const reject_names[REJECT_COUNT] = {
    [REJECT_NONE] = "none",         [REJECT_SYNTAX] = "syntax",     [REJECT_VALUE] = "value",
    [REJECT_RATE] = "rate",         [REJECT_TYPE] = "type",         [REJECT_KEY] = "key",
    [REJECT_UTF8] = "utf8",         [REJECT_TOO_LONG] = "too_long", [REJECT_TRUNCATED] = "truncated",
    [REJECT_OVERFLOW] = "overflow", [REJECT_RANGE] = "range",       [REJECT_DENIED] = "denied",
};

const char *reject_name(enum reject reject)
{
    assert(reject < REJECT_COUNT);
    return reject_names[reject];
}

static enum reject check_key(struct span key)
{
    if (key.len == 0 || text_has_forbidden(key))
        return REJECT_KEY;
    if (key.len > KEY_LEN_MAX)
        return REJECT_TOO_LONG;
    return text_is_utf8(key) ? REJECT_NONE : REJECT_UTF8;
}

static enum reject reject_of(enum decimal_result result, enum reject malformed)
{
    switch (result) {
    case DECIMAL_OK:
        return REJECT_NONE;
    case DECIMAL_MALFORMED:
        return malformed;
    case DECIMAL_RANGE:
        return REJECT_RANGE;
    }
    return malformed;
}

/* jobs:3:4|c
 *      ^^^    the sum may leave the range here and come back: it is judged once it is whole. */
static enum reject parse_values(struct span values, __int128 *ret_sum)
{
    *ret_sum = 0;
    while (values.ptr) {
        int64_t micros;
        enum decimal_result result = decimal_parse(text_split(&values, ':'), &micros);
        if (result != DECIMAL_OK)
            return reject_of(result, REJECT_VALUE);
        *ret_sum += micros;
    }
    return REJECT_NONE;
}

/* T1656581400
 *  ^^^^^^^^^^ */
static enum reject parse_time(struct span digits, int64_t *time)
{
    int64_t seconds = 0;

    if (*time >= 0 || digits.len == 0)
        return REJECT_SYNTAX;
    for (size_t i = 0; i < digits.len; i++) {
        if (digits.ptr[i] < '0' || digits.ptr[i] > '9')
            return REJECT_SYNTAX;
        if (seconds <= TIME_MAX)
            seconds = seconds * 10 + (digits.ptr[i] - '0');
    }
    if (seconds > TIME_MAX)
        return REJECT_RANGE;
    *time = seconds;
    return REJECT_NONE;
}

/* What the fields of a line have said so far. */
struct fields {
    bool has_rate, has_tags;
    uint64_t rate;
    struct metric *metric;
};

static enum reject parse_field(struct span field, struct fields *fields)
{
    struct span body;

    if (field.len == 0)
        return REJECT_SYNTAX;
    body = (struct span){field.ptr + 1, field.len - 1};
    switch (field.ptr[0]) {
    case '@':
        if (fields->has_rate)
            return REJECT_SYNTAX;
        fields->has_rate = true;
        return reject_of(decimal_parse_rate(body, &fields->rate), REJECT_RATE);
    case '#':
        if (fields->has_tags)
            return REJECT_SYNTAX;
        fields->has_tags = true;
        fields->metric->tags = body;
        return REJECT_NONE;
    case 'T':
        return parse_time(body, &fields->metric->time);
    default:
        fields->metric->fields_ignored++;
        return REJECT_NONE;
    }
}

/* page.home:1|c|@0.1|#env:prod
 * ^^^^^^^^^ ^ ^ ^^^^^^^^^^^^^^   key, values, type, fields */
static enum reject parse_statsd(struct span line, struct metric *metric)
{
    struct fields fields = {.rate = RATE_ONE, .metric = metric};
    struct span rest = line, head, values, type;
    enum reject reject;
    __int128 sum;

    head = text_split(&rest, '|');
    values = head;
    metric->key = text_split(&values, ':');
    if (!values.ptr || !rest.ptr)
        return REJECT_SYNTAX;
    type = text_split(&rest, '|');
    if (type.len != 1 || type.ptr[0] != 'c')
        return REJECT_TYPE;
    reject = check_key(metric->key);
    if (reject == REJECT_NONE)
        reject = parse_values(values, &sum);
    while (reject == REJECT_NONE && rest.ptr)
        reject = parse_field(text_split(&rest, '|'), &fields);
    if (reject == REJECT_NONE)
        reject = reject_of(decimal_divide(sum, fields.rate, &metric->micros), REJECT_RANGE);
    return reject;
}

struct verb {
    const char *name; /* with the blank behind it */
    int sign;
    bool needs_value;
};

static const struct verb verbs[] = {
    {"INCR ", 1, false},
    {"DECR ", -1, false},
    {"INCRBY ", 1, true},
};

/* INCRBY bytes 1500
 *        ^^^^^ ^^^^   what `rest` is */
static enum reject parse_spelled_out(struct span rest, const struct verb *verb, struct metric *metric)
{
    enum reject reject;

    metric->key = text_split(&rest, ' ');
    metric->micros = MICROS_PER_UNIT;
    if (verb->needs_value && !rest.ptr)
        return REJECT_SYNTAX;
    reject = check_key(metric->key);
    if (reject == REJECT_NONE && rest.ptr)
        reject = reject_of(decimal_parse(rest, &metric->micros), REJECT_VALUE);
    metric->micros *= verb->sign;
    return reject;
}

static const struct verb *find_verb(struct span line)
{
    if (line.ptr[0] != 'I' && line.ptr[0] != 'D')
        return NULL;
    for (size_t i = 0; i < ARRAY_LEN(verbs); i++) {
        size_t len = strlen(verbs[i].name);
        if (line.len >= len && memcmp(line.ptr, verbs[i].name, len) == 0)
            return &verbs[i];
    }
    return NULL;
}

enum reject metric_parse(struct span line, struct metric *ret_metric)
{
    struct metric metric = {.line = line, .time = -1};
    const struct verb *verb;
    enum reject reject;

    assert(line.len > 0);
    verb = find_verb(line);
    if (verb) {
        size_t skip = strlen(verb->name);
        reject = parse_spelled_out((struct span){line.ptr + skip, line.len - skip}, verb, &metric);
    } else {
        reject = parse_statsd(line, &metric);
    }
    metric.hash = keyspace_hash(metric.key);
    if (reject == REJECT_NONE)
        *ret_metric = metric;
    return reject;
}

/* Of a line that is known to be right. */
static enum reject extreme_of_values(struct span values, enum merge merge, int64_t *ret_micros)
{
    for (bool first = true; values.ptr; first = false) {
        int64_t micros;
        if (decimal_parse(text_split(&values, ':'), &micros) != DECIMAL_OK || micros % MICROS_PER_UNIT != 0)
            return REJECT_VALUE;
        *ret_micros = first ? micros : merge_extreme(merge, *ret_micros, micros);
    }
    return REJECT_NONE;
}

enum reject metric_take_extreme(struct metric *metric, enum merge merge)
{
    struct span rest = metric->line, values;
    enum reject reject;
    uint64_t rate;

    if (find_verb(rest))
        return metric->micros % MICROS_PER_UNIT == 0 ? REJECT_NONE : REJECT_VALUE;
    values = text_split(&rest, '|');
    (void)text_split(&values, ':');
    (void)text_split(&rest, '|');
    reject = extreme_of_values(values, merge, &metric->micros);
    while (reject == REJECT_NONE && rest.ptr) {
        struct span field = text_split(&rest, '|');
        if (field.len > 0 && field.ptr[field.len - 1] == '\r')
            field.len--;
        if (field.len > 0 && field.ptr[0] == '@' &&
            (decimal_parse_rate((struct span){field.ptr + 1, field.len - 1}, &rate) != DECIMAL_OK ||
             rate != RATE_ONE))
            reject = REJECT_RATE;
    }
    return reject;
}

/* ":1|c" */
#define PLAIN_TAIL_MIN 4

/* A number of so many digits is in the range, and no value is longer unless it is wrong. */
#define PLAIN_DIGITS_MAX 12

static inline const char *parse_digits(const char *at, const char *end, uint64_t *ret_units)
{
    *ret_units = 0;
    for (; at < end && (unsigned char)(*at - '0') <= 9; at++)
        *ret_units = *ret_units * 10 + (unsigned char)(*at - '0');
    return at;
}

/* page.home:-12|c
 *           ^^^    what is behind the number; NULL when there is none
 *
 * A sign is looked for only where there is no digit: where the digits begin must not depend on a byte that is
 * still being loaded. */
static inline const char *parse_plain_number(const char *at, const char *end, int64_t *ret_micros)
{
    const char *first = at;
    uint64_t units;
    bool negative = false;

    at = parse_digits(first, end, &units);
    if (__builtin_expect(at == first && end - at > 1 && *at == '-', false)) {
        negative = true;
        first++;
        at = parse_digits(first, end, &units);
    }
    if (at == first || at - first > PLAIN_DIGITS_MAX)
        return NULL;
    *ret_micros = (negative ? -(int64_t)units : (int64_t)units) * MICROS_PER_UNIT;
    return at;
}

/* page.home:12|c|#env:prod
 *                 ^^^^^^^^   what is behind the tags; NULL when another field is */
static __attribute__((noinline)) const char *parse_plain_tags(const char *at, const char *end,
                                                              struct span *ret_tags)
{
    const char *lf = memchr(at, '\n', (size_t)(end - at));
    size_t len = (size_t)((lf ? lf : end) - at);

    if (memchr(at, '|', len))
        return NULL;
    if (len > 0 && at[len - 1] == '\r')
        len--;
    ret_tags->ptr = at;
    ret_tags->len = len;
    return at + len;
}

/* page.home:12|c|#env:prod
 * ^^^^^^^^^ ^^   ^^^^^^^^^   key, a number, perhaps tags; NULL when it is another kind of line
 *
 * The result is written member by member: put together elsewhere and then copied, it would be read back in
 * wider pieces than it was written in, and the processor waits for that. */
static inline const char *parse_plain_line(const char *at, const char *end, struct metric *ret_metric)
{
    struct span text = {at, (size_t)(end - at)};
    size_t key_len = text_plain_len(text);

    at += key_len;
    if (key_len - 1 >= KEY_LEN_MAX || end - at < PLAIN_TAIL_MIN || *at != ':')
        return NULL;
    at = parse_plain_number(at + 1, end, &ret_metric->micros);
    if (!at || end - at < 2 || at[0] != '|' || at[1] != 'c')
        return NULL;
    at += 2;
    ret_metric->line.ptr = text.ptr;
    ret_metric->key.ptr = text.ptr;
    ret_metric->key.len = key_len;
    ret_metric->tags.ptr = NULL;
    ret_metric->tags.len = 0;
    ret_metric->time = -1;
    ret_metric->fields_ignored = 0;
    if (at == end || *at == '\n')
        return at;
    if (end - at >= 2 && at[0] == '|' && at[1] == '#')
        at = parse_plain_tags(at + 2, end, &ret_metric->tags);
    if (at && at < end && *at == '\r')
        at++;
    return at && (at == end || *at == '\n') ? at : NULL;
}

size_t metric_parse_plain(struct span text, struct metric *ret_metrics, size_t max, size_t *ret_taken)
{
    const char *at = text.ptr, *end = text.ptr + text.len;
    size_t count;

    for (count = 0; count < max && at < end; count++) {
        const char *line_end = parse_plain_line(at, end, &ret_metrics[count]);
        if (!line_end)
            break;
        /* Here, where it runs along with finding the next line, and not where it is used. */
        ret_metrics[count].hash = keyspace_hash(ret_metrics[count].key);
        ret_metrics[count].line.len = (size_t)(line_end - at);
        at = line_end + (line_end < end);
    }
    *ret_taken = (size_t)(at - text.ptr);
    return count;
}
