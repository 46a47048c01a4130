/* error - the text of a failure, owned by the caller and given context on its way up
 *
 * A function that can fail returns 0 or a negative errno and takes a `struct error *` last; it fills the text
 * only when it fails. Texts are for operators: lowercase, values in single quotes, and what to do when that
 * is known. A text too long is cut, between two characters.
 */
#ifndef LIB_ERROR_H
#define LIB_ERROR_H

#include "lib/util.h"

struct error {
    char text[1024]; /* NUL-terminated; meaningless unless the call failed */
};

/* Sets the text and returns `code` (a negative errno), so that a failing function ends in one line. */
int error_set(struct error *error, int code, const char *format, ...) PRINTF(3, 4);

/* Puts "context: " before the text and returns `code`. */
int error_prefix(struct error *error, int code, const char *format, ...) PRINTF(3, 4);

#endif
