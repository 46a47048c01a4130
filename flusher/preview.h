/* preview - how many keys wait for each target, by a look at Redis that changes nothing
 *
 * Goes through the members by SCAN, so not at one moment: what counterd writes meanwhile may be in it or not.
 */
#ifndef FLUSHER_PREVIEW_H
#define FLUSHER_PREVIEW_H

#include "lib/config.h"
#include "lib/error.h"

struct preview {
    int64_t keys; /* updates that the target would get: of a key that is open and sealed, two */
    int64_t total;
};

/* Fills one for each target, in their order, and one more for the keys that have none. */
MUST_CHECK int preview_read(const struct config *config, struct preview *ret_previews, struct error *error);

#endif
