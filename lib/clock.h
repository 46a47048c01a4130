/* clock - what time it is; a module that must be testable takes the time as an argument instead */
#ifndef LIB_CLOCK_H
#define LIB_CLOCK_H

#include <stdint.h>
#include <sys/time.h>

/* Milliseconds that never go back; only differences mean anything. */
int64_t clock_monotonic_ms(void);

/* The same clock, finer. */
int64_t clock_monotonic_us(void);

/* Milliseconds since 1970, UTC; may jump. */
int64_t clock_unix_ms(void);

/* So many milliseconds as libevent and hiredis take them. */
struct timeval clock_timeval(int64_t ms);

#endif
