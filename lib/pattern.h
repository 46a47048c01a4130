/* pattern - "post.views.{id}": which keys are meant, and which parts of them are of interest
 *
 * A pattern is literal bytes, placeholders and at most one "*". `{name}` takes one or more bytes other than
 * '.' and ';', as few as make the rest fit (counted from the key's end for those behind a "*"), so that a
 * key's tags and a deeper key do not match by accident. `*` takes any bytes, none too. Names are
 * [A-Za-z_][A-Za-z0-9_]*, each given once. Between two of them stands at least one literal byte, or nobody
 * could tell where one ends. A key matches as a whole, tags included: "views;post={id}" is a pattern too.
 * Matching never goes back, and never allocates. Pure.
 */
#ifndef LIB_PATTERN_H
#define LIB_PATTERN_H

#include "lib/error.h"
#include "lib/util.h"

#define PATTERN_PLACEHOLDERS_MAX 8
#define PATTERN_LEN_MAX          512 /* of the text */
#define PATTERN_NAME_LEN_MAX     63  /* of a placeholder, as of a column */

struct pattern;

/* Gives a pattern, to be freed by pattern_free(). -EINVAL says what is wrong with the text and where. */
MUST_CHECK int pattern_parse(const char *text, struct pattern **ret_pattern, struct error *error);
void pattern_free(struct pattern *pattern);

size_t pattern_placeholders(const struct pattern *pattern);

/* The name of placeholder `index`, in the order of the text; borrowed from the pattern. */
const char *pattern_placeholder(const struct pattern *pattern, size_t index);

/* Whether it has a "*". */
bool pattern_is_open(const struct pattern *pattern);

/* Whether the key matches. `ret_values`, as long as there are placeholders, is what they took, borrowed from
 * the key; NULL when nobody asks. */
bool pattern_match(const struct pattern *pattern, struct span key, struct span *ret_values);

/* Puts the values in the place of the placeholders. False when that is longer than `buf_bytes`. The pattern
 * has no "*". */
bool pattern_expand(const struct pattern *pattern, const struct span *values, char *buf, size_t buf_bytes,
                    size_t *ret_len);

/* Whether there is a text that matches both. */
bool pattern_overlaps(const struct pattern *a, const struct pattern *b);

/* Whether `a` is seen to match all that `b` does: when it is literal bytes and a "*" at the end, or the same
 * but for the names of its placeholders. */
bool pattern_covers(const struct pattern *a, const struct pattern *b);

#endif
