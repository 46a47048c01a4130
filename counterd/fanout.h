/* fanout - one event, several counters: what a key has gathered, added to the keys that count it too
 *
 * Done once per distinct member when its table is drained, not per line. What is made counts the same micros
 * and, where time matters, in the bucket of its own target that holds the source's. Pure.
 */
#ifndef COUNTERD_FANOUT_H
#define COUNTERD_FANOUT_H

#include "lib/table.h"
#include "lib/targets.h"

/* What did not come to its own key, in increments of the source. */
struct fanout_losses {
    uint64_t overflow; /* counted under OVERFLOW_KEY instead: `made` is full */
    uint64_t left_out; /* counted nowhere: the key would be too long, or its sum out of the range */
};

/* Adds to `made` what the rules make of the item, of what is new in it: a fraction that was carried over was
 * fanned out before. OVERFLOW_KEY is not fanned out. Adds to the losses. */
void fan_out(const struct targets *targets, const struct table_item *item, struct table *made,
             struct fanout_losses *losses);

#endif
