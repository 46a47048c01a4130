/* pattern - "post.views.{id}": which keys are meant, and which parts of them are of interest
 *
 * A pattern is literal bytes, placeholders and at most one "*". `{name}` takes one or more bytes other than
 * '.' and ';', as few as make the rest fit, so that a key's tags and a deeper key do not match by accident.
 * `*` takes any bytes, none too. Names are [A-Za-z_][A-Za-z0-9_]*, each given once. A key matches as a whole,
 * tags included: "views;post={id}" is a pattern too. Matching takes time linear in the key for each
 * placeholder and never allocates. Pure.
 */
#ifndef LIB_PATTERN_H
#define LIB_PATTERN_H

#include "lib/error.h"
#include "lib/util.h"

#define PATTERN_PLACEHOLDERS_MAX 8

struct pattern;

/* Gives a pattern, to be freed by pattern_free(). -EINVAL says what is wrong with the text and where. */
MUST_CHECK int pattern_parse(const char *text, struct pattern **ret_pattern, struct error *error);
void pattern_free(struct pattern *pattern);

size_t pattern_placeholders(const struct pattern *pattern);

/* The name of placeholder `index`, in the order of the text; borrowed from the pattern. */
const char *pattern_placeholder(const struct pattern *pattern, size_t index);

/* Whether the key matches. `ret_values`, as long as there are placeholders, is what they took, borrowed from
 * the key; NULL when nobody asks. */
bool pattern_match(const struct pattern *pattern, struct span key, struct span *ret_values);

#endif
