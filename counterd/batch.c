#include "counterd/batch.h"

#include <stdlib.h>
#include <string.h>

struct batch *batch_new(size_t payload_bytes)
{
    struct batch *batch = malloc(sizeof(*batch) + payload_bytes);

    if (batch)
        *batch = (struct batch){.payload = (char *)(batch + 1)};
    return batch;
}

size_t batch_size(const struct batch *batch)
{
    return sizeof(*batch) + batch->bytes;
}

void batch_put_entry(struct batch *batch, struct span key, int64_t delta)
{
    char *entry = batch->payload + batch->bytes;
    batch_entry_len len = (batch_entry_len)key.len;

    memcpy(entry, &len, sizeof(len));
    memcpy(entry + sizeof(len), key.ptr, key.len);
    memcpy(entry + sizeof(len) + key.len, &delta, sizeof(delta));
    batch->bytes += sizeof(len) + key.len + sizeof(delta);
    batch->keys++;
}

bool batch_next_entry(const struct batch *batch, size_t *at, struct span *ret_key, int64_t *ret_delta)
{
    const char *entry = batch->payload + *at;
    batch_entry_len len;

    if (*at == batch->bytes)
        return false;
    memcpy(&len, entry, sizeof(len));
    *ret_key = (struct span){entry + sizeof(len), len};
    memcpy(ret_delta, entry + sizeof(len) + len, sizeof(*ret_delta));
    *at += sizeof(len) + len + sizeof(*ret_delta);
    return true;
}
