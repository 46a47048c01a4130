#include "flusher/updates.h"

#include <errno.h>
#include <stdlib.h>

void updates_done(struct updates *updates)
{
    free(updates->items);
    free(updates->bytes);
    *updates = (struct updates){0};
}

void updates_clear(struct updates *updates)
{
    updates->len = 0;
    updates->bytes_len = 0;
    updates_begin(updates, 0);
}

void updates_begin(struct updates *updates, uint32_t cargo)
{
    updates->first = updates->len;
    updates->cargo = cargo;
}

void updates_cancel(struct updates *updates)
{
    if (updates_added(updates) > 0)
        updates->bytes_len = updates->items[updates->first].offset;
    updates->len = updates->first;
}

/* Makes room for `need` elements; false when there is no memory. */
static bool reserve(void **array, size_t *size, size_t need, size_t element_bytes)
{
    size_t larger = *size ? *size : 1024;
    void *grown;

    if (need <= *size)
        return true;
    while (larger < need)
        larger *= 2;
    grown = reallocarray(*array, larger, element_bytes);
    if (!grown)
        return false;
    *array = grown;
    *size = larger;
    return true;
}

int updates_add(struct updates *updates, struct span key, int64_t delta)
{
    void *items = updates->items, *bytes = updates->bytes;
    bool fits = reserve(&items, &updates->size, updates->len + 1, sizeof(struct update));

    updates->items = items;
    fits = fits && reserve(&bytes, &updates->bytes_size, updates->bytes_len + key.len, 1);
    updates->bytes = bytes;
    if (!fits)
        return -ENOMEM;
    updates->items[updates->len++] =
        (struct update){updates->bytes_len, (uint32_t)key.len, updates->cargo, delta};
    memcpy(updates->bytes + updates->bytes_len, key.ptr, key.len);
    updates->bytes_len += key.len;
    return 0;
}

struct span updates_key(const struct updates *updates, size_t index)
{
    const struct update *update = &updates->items[index];

    return (struct span){updates->bytes + update->offset, update->len};
}

static int compare_keys(const void *left, const void *right, void *bytes)
{
    const struct update *a = left, *b = right;
    size_t len = a->len < b->len ? a->len : b->len;
    int order = memcmp((const char *)bytes + a->offset, (const char *)bytes + b->offset, len);

    return order ? order : (a->len > b->len) - (a->len < b->len);
}

void updates_order(struct updates *updates)
{
    if (updates->len > 1)
        qsort_r(updates->items, updates->len, sizeof(struct update), compare_keys, updates->bytes);
}
