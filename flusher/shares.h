/* shares - ordered updates dealt out to the targets that their keys count in
 *
 * A key's members (itself, and itself in each time bucket) are neighbours once the updates are in the order
 * of their bytes, as a bucket follows a blank and a key holds none; together they are a share: one row of the
 * target. Two shares may still mean the same row: "post.views.7" and "post.views.07". Pure; not thread-safe.
 * A zeroed struct is an empty one.
 */
#ifndef FLUSHER_SHARES_H
#define FLUSHER_SHARES_H

#include "flusher/updates.h"
#include "lib/targets.h"

struct share {
    size_t first, len; /* its updates */
    uint32_t target;   /* index in the targets; their number when none matches, or one of another lane */
};

struct shares {
    struct share *items; /* by target, and within one in the order of the updates */
    size_t len, size;
    struct share *scratch;
    size_t scratch_size;
};

void shares_done(struct shares *shares);

/* Deals all updates of a lane out, which updates_order() has put in order. -ENOMEM. */
MUST_CHECK int shares_deal(struct shares *shares, const struct updates *updates,
                           const struct targets *targets, size_t lane);

/* Borrowed from the updates. */
struct span share_key(const struct share *share, const struct updates *updates);

/* What its updates come to. False when the sum leaves the range. */
MUST_CHECK bool share_delta(const struct share *share, const struct updates *updates, enum merge merge,
                            int64_t *ret_delta);

/* The start of the bucket of `bucket_s` seconds, of UTC, that holds the moment. */
int64_t bucket_of(int64_t unix_s, int64_t bucket_s);

/* When the last event of an update may have been: what is known of the whole batch, or the end of the
 * member's bucket when that is earlier. `bucket` 0 = none. */
int64_t bucket_seen_ms(int64_t bucket, int64_t bucket_s, int64_t seen_ms);

#endif
