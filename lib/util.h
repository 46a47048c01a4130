/* util - the few macros and the borrowed string that every module uses */
#ifndef LIB_UTIL_H
#define LIB_UTIL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))

/* The result is an error or an outcome that the caller has to look at. */
#define MUST_CHECK __attribute__((warn_unused_result))
/* A rare way out of a hot function, kept apart so that the function itself stays short. */
#define RARE         __attribute__((noinline, cold))
#define PRINTF(f, a) __attribute__((format(printf, f, a)))

/* Bytes that somebody else owns; not terminated by a NUL, may hold any byte. */
struct span {
    const char *ptr;
    size_t len;
};

static inline struct span span_of(const char *text)
{
    return (struct span){text, strlen(text)};
}

static inline bool span_equal(struct span a, struct span b)
{
    return a.len == b.len && (a.len == 0 || memcmp(a.ptr, b.ptr, a.len) == 0);
}

static inline bool span_is(struct span a, const char *text)
{
    return span_equal(a, span_of(text));
}

#endif
