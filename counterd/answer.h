/* answer - what a POST of lines is told: a code, and JSON with the counts or what is wrong
 */
#ifndef COUNTERD_ANSWER_H
#define COUNTERD_ANSWER_H

#include "lib/metric.h"

struct evhttp_request;

#define ANSWER_TOO_LARGE     413
#define ANSWER_UNSUPPORTED   415
#define ANSWER_UNPROCESSABLE 422
#define ANSWER_TOO_MANY      429

/* Rejected lines that an answer names. */
#define TALLY_NAMED_MAX 10

/* The lines of a body, as they are gone through. */
struct tally {
    uint64_t line; /* number of the line that came last, from 1 */
    uint64_t accepted, rejected;
    size_t named_len;
    struct {
        uint64_t line;
        enum reject reject;
    } named[TALLY_NAMED_MAX];
};

/* The next line that is not blank, without its LF or CR LF; `*rest` moves behind it. False at the end. */
bool tally_next_line(struct tally *tally, struct span *rest, struct span *ret_line);

/* What became of that line. */
void tally_add(struct tally *tally, enum reject reject);

/* 200, with the counts. `duplicate`: all of it was stored by an earlier request. */
void answer_stored(struct evhttp_request *request, const struct tally *tally, bool duplicate);

/* Anything else; `tally` is NULL when nothing was counted. 429 and 503 ask to come again soon. */
void answer_error(struct evhttp_request *request, int code, const struct tally *tally, const char *why);

/* The body, in one piece, borrowed from the request; its ptr is NULL when out of memory. */
struct span answer_body(struct evhttp_request *request);

/* Nobody needs the body any more: a request may wait for its answer, and a megabyte should not wait with it.
 */
void answer_drop_body(struct evhttp_request *request);

#endif
