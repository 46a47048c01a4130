/* fail_malloc - for LD_PRELOAD: one allocation of the program fails, or it is told how many there are
 *
 * FAIL_MALLOC_AT=n lets the n-th (from 0) since the start fail; FAIL_MALLOC_COUNT=FILE writes into FILE, at
 * the end, how many there were. glibc only, and not with a sanitizer, which brings its own malloc.
 * Allocations of hiredis itself are left alone: before its 1.0 it aborts when one fails, which is a kill like
 * any other.
 */
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *old, size_t size);

static atomic_long calls;
static long fails_at = -1;

__attribute__((constructor)) static void begin(void)
{
    const char *at = getenv("FAIL_MALLOC_AT");

    fails_at = at ? atol(at) : -1;
    atomic_store(&calls, 0);
}

__attribute__((destructor)) static void end(void)
{
    const char *path = getenv("FAIL_MALLOC_COUNT");
    FILE *file = path ? fopen(path, "w") : NULL;

    if (!file)
        return;
    fprintf(file, "%ld\n", atomic_load(&calls));
    fclose(file);
}

static int fails(const void *caller)
{
    Dl_info library;

    if (dladdr(caller, &library) && library.dli_fname && strstr(library.dli_fname, "libhiredis"))
        return 0;
    if (atomic_fetch_add(&calls, 1) != fails_at)
        return 0;
    errno = ENOMEM;
    return 1;
}

void *malloc(size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_malloc(size);
}

void *calloc(size_t count, size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_calloc(count, size);
}

void *realloc(void *old, size_t size)
{
    return fails(__builtin_return_address(0)) ? NULL : __libc_realloc(old, size);
}

char *strdup(const char *text)
{
    size_t bytes = strlen(text) + 1;
    char *copy = fails(__builtin_return_address(0)) ? NULL : __libc_malloc(bytes);

    return copy ? memcpy(copy, text, bytes) : NULL;
}
