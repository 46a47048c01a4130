#include "lib/metric.h"

#include <assert.h>

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

/* Length of the UTF-8 sequence at `at`, 0 when it is not one: Unicode 15, table 3-7 (no overlong forms, no
 * surrogates, nothing above U+10FFFF). */
static size_t utf8_sequence(const unsigned char *at, size_t len)
{
    unsigned char low = 0x80, high = 0xbf;
    size_t tail;

    if (at[0] < 0x80)
        return 1;
    if (at[0] < 0xc2 || at[0] > 0xf4)
        return 0;
    tail = at[0] < 0xe0 ? 1 : at[0] < 0xf0 ? 2 : 3;
    if (at[0] == 0xe0)
        low = 0xa0;
    else if (at[0] == 0xed)
        high = 0x9f;
    else if (at[0] == 0xf0)
        low = 0x90;
    else if (at[0] == 0xf4)
        high = 0x8f;
    if (len <= tail || at[1] < low || at[1] > high)
        return 0;
    for (size_t i = 2; i <= tail; i++)
        if ((at[i] & 0xc0) != 0x80)
            return 0;
    return tail + 1;
}

static bool utf8_valid(struct span text)
{
    size_t i = 0;

    while (i < text.len) {
        size_t len = utf8_sequence((const unsigned char *)text.ptr + i, text.len - i);
        if (len == 0)
            return false;
        i += len;
    }
    return true;
}

/* What may stand neither in a key nor in the name or value of a tag. */
static bool has_forbidden(struct span text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        if (c <= 0x20 || c == ':' || c == '|')
            return true;
    }
    return false;
}

static enum reject check_key(struct span key)
{
    if (key.len == 0 || has_forbidden(key))
        return REJECT_KEY;
    if (key.len > KEY_LEN_MAX)
        return REJECT_TOO_LONG;
    return utf8_valid(key) ? REJECT_NONE : REJECT_UTF8;
}

/* What is in front of the next `separator`, or all of it; `*rest` moves behind the separator, and its ptr is
 * NULL when there is none: "a|" has two parts, "a" one. */
static struct span split(struct span *rest, char separator)
{
    const char *end = rest->len ? memchr(rest->ptr, separator, rest->len) : NULL;
    struct span part = *rest;

    if (!end) {
        *rest = (struct span){NULL, 0};
        return part;
    }
    part.len = (size_t)(end - part.ptr);
    *rest = (struct span){end + 1, rest->len - part.len - 1};
    return part;
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
        enum decimal_result result = decimal_parse(split(&values, ':'), &micros);
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

    head = split(&rest, '|');
    values = head;
    metric->key = split(&values, ':');
    if (!values.ptr || !rest.ptr)
        return REJECT_SYNTAX;
    type = split(&rest, '|');
    if (type.len != 1 || type.ptr[0] != 'c')
        return REJECT_TYPE;
    reject = check_key(metric->key);
    if (reject == REJECT_NONE)
        reject = parse_values(values, &sum);
    while (reject == REJECT_NONE && rest.ptr)
        reject = parse_field(split(&rest, '|'), &fields);
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

    metric->key = split(&rest, ' ');
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
    struct metric metric = {.time = -1};
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
    if (reject == REJECT_NONE)
        *ret_metric = metric;
    return reject;
}

struct tag {
    struct span name;
    struct span value; /* ptr NULL: a tag without a value */
};

/* A tag takes at least two bytes, ";a", and the key one. */
#define TAGS_MAX ((KEY_LEN_MAX - 1) / 2)

struct tag_set {
    struct tag tags[TAGS_MAX]; /* sorted by name, each name once */
    size_t len;
    bool too_many;
};

static int compare_names(struct span a, struct span b)
{
    size_t common = a.len < b.len ? a.len : b.len;
    int order = memcmp(a.ptr, b.ptr, common);

    return order ? order : (a.len > b.len) - (a.len < b.len);
}

static void put_tag(struct tag_set *set, const struct tag *tag)
{
    size_t low = 0, high = set->len;

    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = compare_names(tag->name, set->tags[middle].name);
        if (order == 0) {
            set->tags[middle] = *tag;
            return;
        }
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    if (set->len == TAGS_MAX) {
        set->too_many = true;
        return;
    }
    memmove(&set->tags[low + 1], &set->tags[low], (set->len - low) * sizeof(*tag));
    set->tags[low] = *tag;
    set->len++;
}

/* env:prod
 * ^^^ ^^^^   name and value, in either of which there is no ';', in the name no '=' */
static bool parse_tag(struct span text, struct tag *ret_tag)
{
    ret_tag->value = text;
    ret_tag->name = split(&ret_tag->value, ':');
    return ret_tag->name.len > 0 && !memchr(ret_tag->name.ptr, '=', ret_tag->name.len) &&
           !memchr(text.ptr, ';', text.len) && !has_forbidden(ret_tag->name) &&
           !(ret_tag->value.ptr && has_forbidden(ret_tag->value));
}

/* Bounded writing; once too long, it stays so. */
struct writer {
    char *buf;
    size_t len;
    bool full;
};

static void put(struct writer *writer, const char *ptr, size_t len)
{
    if (writer->full || len > KEY_LEN_MAX - writer->len) {
        writer->full = true;
        return;
    }
    if (len > 0)
        memcpy(writer->buf + writer->len, ptr, len);
    writer->len += len;
}

enum reject metric_canonical_key(const struct metric *metric, char buf[KEY_LEN_MAX], size_t *ret_len)
{
    struct writer writer = {.buf = buf};
    struct tag_set set;
    struct span rest = metric->tags;

    set.len = 0;
    set.too_many = false;
    while (rest.ptr) {
        struct span text = split(&rest, ',');
        struct tag tag;
        if (text.len == 0)
            continue;
        if (!parse_tag(text, &tag))
            return REJECT_KEY;
        put_tag(&set, &tag);
    }
    put(&writer, metric->key.ptr, metric->key.len);
    for (size_t i = 0; i < set.len; i++) {
        put(&writer, ";", 1);
        put(&writer, set.tags[i].name.ptr, set.tags[i].name.len);
        if (set.tags[i].value.ptr)
            put(&writer, "=", 1);
        put(&writer, set.tags[i].value.ptr, set.tags[i].value.len);
    }
    if (writer.full || set.too_many)
        return REJECT_TOO_LONG;
    /* What separates tags is ASCII, so all are valid if the whole is. */
    if (!utf8_valid(metric->tags))
        return REJECT_UTF8;
    *ret_len = writer.len;
    return REJECT_NONE;
}
