#include "lib/member.h"

#include <assert.h>

struct span member_split(struct span member, int64_t *ret_bucket)
{
    const char *blank = member.len > 0 ? memrchr(member.ptr, ' ', member.len) : NULL;
    int64_t bucket = 0;

    *ret_bucket = 0;
    if (!blank)
        return member;
    for (const char *at = blank + 1; at < member.ptr + member.len; at++) {
        if (*at < '0' || *at > '9' || bucket > (INT64_MAX - 9) / 10)
            return member;
        bucket = bucket * 10 + (*at - '0');
    }
    *ret_bucket = bucket;
    return bucket > 0 ? (struct span){member.ptr, (size_t)(blank - member.ptr)} : member;
}

size_t member_write_bucket(int64_t bucket, char buf[MEMBER_BUCKET_LEN_MAX])
{
    char digits[MEMBER_BUCKET_LEN_MAX];
    size_t at = sizeof(digits), len;

    assert(bucket >= 0);
    if (bucket == 0)
        return 0;
    for (; bucket > 0; bucket /= 10)
        digits[--at] = (char)('0' + bucket % 10);
    digits[--at] = ' ';
    len = sizeof(digits) - at;
    memcpy(buf, digits + at, len);
    return len;
}

size_t member_write(struct span key, int64_t bucket, char buf[MEMBER_LEN_MAX])
{
    memcpy(buf, key.ptr, key.len);
    return key.len + member_write_bucket(bucket, buf + key.len);
}

size_t member_glob(struct span key, char glob[MEMBER_GLOB_LEN_MAX])
{
    size_t len = 0;

    for (size_t i = 0; i < key.len; i++) {
        if (strchr("*?[]^\\", key.ptr[i]))
            glob[len++] = '\\';
        glob[len++] = key.ptr[i];
    }
    glob[len++] = ' ';
    glob[len++] = '*';
    return len;
}

uint64_t member_hash_of(struct span member, uint32_t shard, uint32_t shards)
{
    int64_t bucket;
    struct span key = member_split(member, &bucket);

    return member_hash(shard_hash(keyspace_hash(key), shard, shards), bucket, shards);
}
