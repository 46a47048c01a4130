/* log - one line per event on stderr: level=warn event=redis_lost attempt=3 retry_ms=800
 *
 * For the programs only: code in lib/ never logs. Not for the hot path: what can happen once per packet is
 * counted, not logged. Any thread may call it; a line is one write(2), so lines never mix.
 */
#ifndef LIB_LOG_H
#define LIB_LOG_H

#include "lib/util.h"

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO };

/* First of all, in main(): of the standard descriptors, those that are closed are opened on /dev/null. Else a
 * socket or a file of ours would become one of them, and get what is logged. */
void log_hold_descriptors(void);

/* `format` gives the fields after the event: "attempt=%d retry_ms=%d", or "" for none. */
void log_event(enum log_level level, const char *event, const char *format, ...) PRINTF(3, 4);

/* From now on every line has this as a field behind its event, for a program that logs for several; NULL =
 * none does. Borrowed. While there is one thread only. */
void log_set_namespace(const char *namespace);

#define LOG_TEXT_BYTES 1200

/* Writes `text` with all that is not printable ASCII, and \ and ", escaped. Cut when it does not fit. */
const char *log_escape(char buf[LOG_TEXT_BYTES], struct span text);

/* Writes `text` as a quoted field value into `buf` and returns it: "a \"b\"\x0a". Cut when it does not fit.
 */
const char *log_quote(char buf[LOG_TEXT_BYTES], struct span text);

/* The usual case of a failure: level, event and the error's text as error="...", a log line for each line of
 * it. */
struct error;
void log_error(enum log_level level, const char *event, const struct error *error);

/* For what happens again and again: whether it is ten seconds since this was last true. `*logged_ms` starts
 * as 0. */
bool log_is_due(int64_t *logged_ms);

#endif
