#include "flusher/pgarray.h"

#include <endian.h>
#include <stdlib.h>

void pgarray_done(struct pgarray *array)
{
    free(array->bytes);
    *array = (struct pgarray){0};
}

static void append(struct pgarray *array, const void *bytes, size_t len)
{
    if (array->len + len > array->size) {
        size_t size = (array->len + len) * 2;
        char *grown = realloc(array->bytes, size);
        if (!grown) {
            array->failed = true;
            return;
        }
        array->bytes = grown;
        array->size = size;
    }
    memcpy(array->bytes + array->len, bytes, len);
    array->len += len;
}

static void append_int(struct pgarray *array, uint32_t number)
{
    uint32_t wire = htobe32(number);

    append(array, &wire, sizeof(wire));
}

/*  | dimensions 1 | has NULLs 0 | element oid | elements | first index 1 | then per element: length, bytes */
void pgarray_begin(struct pgarray *array, enum pgarray_type type, size_t count)
{
    array->len = 0;
    array->failed = false;
    append_int(array, 1);
    append_int(array, 0);
    append_int(array, (uint32_t)type);
    append_int(array, (uint32_t)count);
    append_int(array, 1);
}

void pgarray_add_text(struct pgarray *array, struct span text)
{
    append_int(array, (uint32_t)text.len);
    append(array, text.ptr, text.len);
}

void pgarray_add_bigint(struct pgarray *array, int64_t number)
{
    uint64_t wire = htobe64((uint64_t)number);

    append_int(array, sizeof(wire));
    append(array, &wire, sizeof(wire));
}

/* Microseconds since 2000. What does not fit becomes a number that Postgres refuses. */
void pgarray_add_timestamptz(struct pgarray *array, int64_t unix_ms)
{
    int64_t wire;

    if (__builtin_sub_overflow(unix_ms, INT64_C(946684800000), &wire) ||
        __builtin_mul_overflow(wire, 1000, &wire))
        wire = INT64_MAX - 1;
    pgarray_add_bigint(array, wire);
}

bool pgarray_ok(const struct pgarray *array)
{
    return !array->failed;
}
