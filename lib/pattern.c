#include "lib/pattern.h"

#include <assert.h>
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>

#include "lib/text.h"

#define GAPS_MAX (PATTERN_PLACEHOLDERS_MAX + 1)
#define NO_STAR  SIZE_MAX
#define NOWHERE  SIZE_MAX

/* literals[0] gaps[0] literals[1] gaps[1] ... literals[gaps_len]; those in the middle are not empty. */
struct pattern {
    struct span literals[GAPS_MAX + 1];
    size_t gaps_len;
    size_t star; /* the gap that is "*" */
    char *names[PATTERN_PLACEHOLDERS_MAX];
    char text[];
};

static bool is_separator(char c)
{
    return c == '.' || c == ';';
}

static size_t name_len(const char *text)
{
    size_t len = 0;

    if (!isalpha((unsigned char)text[0]) && text[0] != '_')
        return 0;
    while (isalnum((unsigned char)text[len]) || text[len] == '_')
        len++;
    return len;
}

/* The gap that `at` begins with, which is added to the pattern; what is behind it, or NULL. */
static char *parse_gap(struct pattern *pattern, char *at, struct error *error)
{
    size_t named = pattern_placeholders(pattern), len;

    if (*at == '*') {
        if (pattern->star != NO_STAR) {
            error_set(error, -EINVAL, "has more than one '*'");
            return NULL;
        }
        pattern->star = pattern->gaps_len++;
        return at + 1;
    }
    len = *at == '{' ? name_len(at + 1) : 0;
    if (len == 0 || len > PATTERN_NAME_LEN_MAX || at[1 + len] != '}') {
        error_set(error, -EINVAL,
                  "'%.20s' is not a placeholder; write {name}, of letters, digits and '_', at most %d", at,
                  PATTERN_NAME_LEN_MAX);
        return NULL;
    }
    at[1 + len] = '\0';
    for (size_t i = 0; i < named; i++) {
        if (strcmp(pattern->names[i], at + 1) == 0) {
            error_set(error, -EINVAL, "'{%s}' is given twice", at + 1);
            return NULL;
        }
    }
    if (named == PATTERN_PLACEHOLDERS_MAX) {
        error_set(error, -EINVAL, "has more than %d placeholders", PATTERN_PLACEHOLDERS_MAX);
        return NULL;
    }
    pattern->names[named] = at + 1;
    pattern->gaps_len++;
    return at + len + 2;
}

static int parse(struct pattern *pattern, struct error *error)
{
    char *at = pattern->text;

    for (;;) {
        struct span *literal = &pattern->literals[pattern->gaps_len];
        *literal = (struct span){at, strcspn(at, "{}*")};
        at += literal->len;
        if (*at == '\0')
            return 0;
        if (literal->len == 0 && pattern->gaps_len > 0)
            return error_set(
                error, -EINVAL,
                "'%.20s' directly follows another placeholder; put at least one byte between them", at);
        at = parse_gap(pattern, at, error);
        if (!at)
            return -EINVAL;
    }
}

int pattern_parse(const char *text, struct pattern **ret_pattern, struct error *error)
{
    struct span span = span_of(text);
    struct pattern *pattern;
    int r;

    if (span.len == 0 || span.len > PATTERN_LEN_MAX)
        return error_set(error, -EINVAL, "has %zu bytes; it takes 1 to %d", span.len, PATTERN_LEN_MAX);
    if (text_has_forbidden(span) || !text_is_utf8(span))
        return error_set(error, -EINVAL,
                         "no key holds blanks, control characters, ':', '|' or invalid UTF-8");
    pattern = calloc(1, sizeof(*pattern) + span.len + 1);
    if (!pattern)
        return error_set(error, -ENOMEM, "out of memory");
    pattern->star = NO_STAR;
    memcpy(pattern->text, text, span.len + 1);
    r = parse(pattern, error);
    if (r < 0) {
        pattern_free(pattern);
        return r;
    }
    *ret_pattern = pattern;
    return 0;
}

void pattern_free(struct pattern *pattern)
{
    free(pattern);
}

size_t pattern_placeholders(const struct pattern *pattern)
{
    return pattern->gaps_len - (pattern->star != NO_STAR);
}

const char *pattern_placeholder(const struct pattern *pattern, size_t index)
{
    assert(index < pattern_placeholders(pattern));
    return pattern->names[index];
}

bool pattern_is_open(const struct pattern *pattern)
{
    return pattern->star != NO_STAR;
}

/* Most keys differ from most patterns in the first byte; that should not cost a call. */
static inline bool is_at(struct span key, size_t at, struct span literal)
{
    return literal.len == 0 ||
           (key.ptr[at] == literal.ptr[0] && memcmp(key.ptr + at, literal.ptr, literal.len) == 0);
}

/* What is left of the key between a placeholder's first possible byte and the last that it may take. */
struct range {
    size_t from, to;
};

/* The first place of the literal behind a placeholder that begins at range.from. There is no need to try a
 * later one: if it holds a separator, there is only one place that no separator comes before; if it holds
 * none, a gap follows, which takes what lies up to the later place as well. */
static size_t find_behind(struct span key, struct range range, struct span literal)
{
    for (size_t at = range.from + 1; at + literal.len <= range.to && !is_separator(key.ptr[at - 1]); at++)
        if (is_at(key, at, literal))
            return at;
    return NOWHERE;
}

/* The same seen from the end: the last place of the literal in front of a placeholder that ends at range.to.
 */
static size_t find_before(struct span key, struct range range, struct span literal)
{
    for (size_t at = range.to; at > range.from + literal.len && !is_separator(key.ptr[at - 1]); at--)
        if (is_at(key, at - 1 - literal.len, literal))
            return at - 1 - literal.len;
    return NOWHERE;
}

static bool is_value(struct span key, struct range range)
{
    for (size_t i = range.from; i < range.to; i++)
        if (is_separator(key.ptr[i]))
            return false;
    return range.from < range.to;
}

static void set_value(struct span *values, size_t index, struct span key, struct range range)
{
    if (values)
        values[index] = (struct span){key.ptr + range.from, range.to - range.from};
}

/* All gaps but the one that takes what is left over, "*" or else the last: from both ends to that one. */
static bool match_gaps(const struct pattern *pattern, struct span key, struct range range,
                       struct span *values)
{
    bool open = pattern_is_open(pattern);
    size_t middle = open ? pattern->star : pattern->gaps_len - 1;

    for (size_t i = 0; i < middle; i++) {
        size_t at = find_behind(key, range, pattern->literals[i + 1]);
        if (at == NOWHERE)
            return false;
        set_value(values, i, key, (struct range){range.from, at});
        range.from = at + pattern->literals[i + 1].len;
    }
    for (size_t i = pattern->gaps_len - 1; i > middle; i--) {
        size_t at = find_before(key, range, pattern->literals[i]);
        if (at == NOWHERE)
            return false;
        set_value(values, i - 1, key, (struct range){at + pattern->literals[i].len, range.to});
        range.to = at;
    }
    if (open)
        return true;
    set_value(values, middle, key, range);
    return is_value(key, range);
}

bool pattern_match(const struct pattern *pattern, struct span key, struct span *ret_values)
{
    struct span first = pattern->literals[0], last = pattern->literals[pattern->gaps_len];

    if (key.len < first.len || !is_at(key, 0, first))
        return false;
    if (pattern->gaps_len == 0)
        return key.len == first.len;
    if (key.len < first.len + last.len || !is_at(key, key.len - last.len, last))
        return false;
    return match_gaps(pattern, key, (struct range){first.len, key.len - last.len}, ret_values);
}

bool pattern_expand(const struct pattern *pattern, const struct span *values, char *buf, size_t buf_bytes,
                    size_t *ret_len)
{
    size_t len = 0;

    assert(!pattern_is_open(pattern));
    for (size_t i = 0; i <= pattern->gaps_len; i++) {
        struct span parts[] = {pattern->literals[i],
                               i < pattern->gaps_len ? values[i] : (struct span){"", 0}};
        for (size_t j = 0; j < ARRAY_LEN(parts); j++) {
            if (parts[j].len > buf_bytes - len)
                return false;
            memcpy(buf + len, parts[j].ptr, parts[j].len);
            len += parts[j].len;
        }
    }
    *ret_len = len;
    return true;
}

/* A pattern as a row of steps, each of which takes one byte, or, if it repeats, any number of them. */
struct step {
    enum { STEP_BYTE, STEP_NO_SEPARATOR, STEP_ANY } kind;
    char byte;
    bool repeats;
};

/* A placeholder is two steps: it takes at least one byte. */
#define STEPS_MAX (PATTERN_LEN_MAX + 1)

static size_t make_steps(const struct pattern *pattern, struct step *steps)
{
    size_t len = 0;

    for (size_t i = 0; i <= pattern->gaps_len; i++) {
        struct span literal = pattern->literals[i];
        for (size_t j = 0; j < literal.len; j++)
            steps[len++] = (struct step){STEP_BYTE, literal.ptr[j], false};
        if (i == pattern->gaps_len)
            break;
        if (i == pattern->star) {
            steps[len++] = (struct step){STEP_ANY, 0, true};
        } else {
            steps[len++] = (struct step){STEP_NO_SEPARATOR, 0, false};
            steps[len++] = (struct step){STEP_NO_SEPARATOR, 0, true};
        }
    }
    return len;
}

/* Whether there is a byte that both take. */
static bool share_a_byte(const struct step *a, const struct step *b)
{
    if (a->kind == STEP_BYTE && b->kind == STEP_BYTE)
        return a->byte == b->byte;
    if (b->kind == STEP_BYTE)
        return a->kind == STEP_ANY || !is_separator(b->byte);
    return a->kind != STEP_BYTE || b->kind == STEP_ANY || !is_separator(a->byte);
}

bool pattern_overlaps(const struct pattern *a, const struct pattern *b)
{
    struct step a_steps[STEPS_MAX], b_steps[STEPS_MAX];
    size_t a_len = make_steps(a, a_steps), b_len = make_steps(b, b_steps);
    /* Whether some text leads a to step i and b to step j; of two i at a time. */
    bool reached[2][STEPS_MAX + 2] = {{true}};

    for (size_t i = 0; i <= a_len; i++) {
        bool *here = reached[i % 2], *next = reached[(i + 1) % 2];
        memset(next, 0, sizeof(reached[0]));
        for (size_t j = 0; j <= b_len; j++) {
            const struct step *in_a = i < a_len ? &a_steps[i] : NULL, *in_b = j < b_len ? &b_steps[j] : NULL;
            if (!here[j])
                continue;
            if (i == a_len && j == b_len)
                return true;
            if (in_a && in_a->repeats)
                next[j] = true;
            if (in_b && in_b->repeats)
                here[j + 1] = true;
            if (!in_a || !in_b || !share_a_byte(in_a, in_b))
                continue;
            if (!in_a->repeats && in_b->repeats)
                next[j] = true;
            else if (in_a->repeats && !in_b->repeats)
                here[j + 1] = true;
            else if (!in_a->repeats)
                next[j + 1] = true;
        }
    }
    return false;
}

static bool is_alike(const struct pattern *a, const struct pattern *b)
{
    bool alike = a->gaps_len == b->gaps_len && a->star == b->star;

    for (size_t i = 0; alike && i <= a->gaps_len; i++)
        alike = span_equal(a->literals[i], b->literals[i]);
    return alike;
}

bool pattern_covers(const struct pattern *a, const struct pattern *b)
{
    struct span prefix = a->literals[0];

    if (is_alike(a, b))
        return true;
    if (a->gaps_len != 1 || a->star != 0 || a->literals[1].len > 0)
        return false;
    return b->literals[0].len >= prefix.len && memcmp(b->literals[0].ptr, prefix.ptr, prefix.len) == 0;
}
