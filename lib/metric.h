/* metric - the line protocol: one line of bytes into one increment, or the reason why not
 *
 * The grammar, its limits and the order in which faults are looked for: docs/line-protocol.md. Total: every
 * input gives an answer. Pure: never allocates, never writes into its input, needs no NUL.
 */
#ifndef LIB_METRIC_H
#define LIB_METRIC_H

#include "lib/decimal.h"
#include "lib/keyspace.h"
#include "lib/merge.h"

/* Why a line is not counted. REJECT_NONE is no reason: the line counts. */
enum reject {
    REJECT_NONE,
    REJECT_SYNTAX,
    REJECT_VALUE,
    REJECT_RATE,
    REJECT_TYPE,
    REJECT_KEY,
    REJECT_UTF8,
    REJECT_TOO_LONG,
    REJECT_TRUNCATED,
    REJECT_OVERFLOW,
    REJECT_RANGE,
    REJECT_DENIED,
    REJECT_COUNT
};

/* "syntax", "value", ...; "none" for REJECT_NONE. */
const char *reject_name(enum reject reject);

struct metric {
    struct span line;        /* borrowed, all of it, perhaps with its CR */
    struct span key;         /* borrowed from the line */
    uint64_t hash;           /* keyspace_hash(key) */
    struct span tags;        /* what follows '#', not looked into yet; len 0 = none */
    int64_t micros;          /* sum of the values divided by the rate; within +-MICROS_MAX */
    int64_t time;            /* unix seconds of the T field; -1 = none */
    uint32_t fields_ignored; /* fields of kinds that we do not know */
};

/* Parses one line, without its LF or CR LF, not blank. `ret_metric` holds something only on REJECT_NONE. */
MUST_CHECK enum reject metric_parse(struct span line, struct metric *ret_metric);

/* The same for lines of the kind that nearly all are: an ASCII key, one whole number, type c, and at most
 * tags. Parses the first `max` lines of `text` into `ret_metrics`, but stops in front of one that is of
 * another kind, or wrong, or blank: that is for metric_parse() to judge. Returns how many there were, and how
 * many bytes they take with their LFs. Reads nothing behind `text`; what it writes behind the metrics that it
 * returns is rubbish. */
MUST_CHECK size_t metric_parse_plain(struct span text, struct metric *ret_metrics, size_t max,
                                     size_t *ret_taken);

/* Of a metric whose key does not add up: makes `micros` the greatest or least of the line's values. Fractions
 * and rates are rejected: what is left over of a value can't be carried, and a sampled maximum not be scaled.
 */
MUST_CHECK enum reject metric_take_extreme(struct metric *metric, enum merge merge);

/* Writes the key with its tags in canonical form into `buf` and its length into `ret_len`. */
MUST_CHECK enum reject metric_canonical_key(const struct metric *metric, char buf[KEY_LEN_MAX],
                                            size_t *ret_len);

#endif
