/* failure - the kinds of failure that the flusher tells apart, and the exit code that each becomes
 *
 * Each is an errno, so that it travels up like any other; what is none of them (no memory, say) counts as
 * FAILURE_LATER. Exit codes follow sysexits(3).
 */
#ifndef FLUSHER_FAILURE_H
#define FLUSHER_FAILURE_H

#include <errno.h>
#include <sysexits.h>

#define FAILURE_UNAVAILABLE (-ENOTCONN) /* Redis or Postgres does not answer */
#define FAILURE_CONFIG      (-EINVAL)   /* somebody has to change something before it can work */
#define FAILURE_LATER       (-EAGAIN)   /* this shard is left as it is; a later run may do better */

#define FAILURE_DATA (-EBADMSG) /* what is there contradicts what was asked, or itself */

/* Rolled back only because of what others did at the same time: the same again may work at once. */
#define FAILURE_COLLISION (-EDEADLK)

/* Postgres refuses a row for what it holds: a cast, a constraint, a range, a trigger. */
#define FAILURE_REFUSED (-EDOM)

/* `r` is 0 or a negative errno. */
static inline int failure_exit_code(int r)
{
    if (r == 0)
        return EX_OK;
    if (r == FAILURE_UNAVAILABLE)
        return EX_UNAVAILABLE;
    if (r == FAILURE_DATA)
        return EX_DATAERR;
    return r == FAILURE_CONFIG ? EX_CONFIG : EX_TEMPFAIL;
}

/* Which of two results a run with both ends with: configuration before availability before the rest. */
static inline int failure_worse(int a, int b)
{
    if (a == FAILURE_CONFIG || b == 0)
        return a;
    if (b == FAILURE_CONFIG || a == 0)
        return b;
    return a == FAILURE_UNAVAILABLE ? a : b;
}

#endif
