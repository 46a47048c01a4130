#include "counterd/fanout.h"

#include "lib/member.h"

/* What a rule made of the source, which has this bucket or 0: `item` with its key still to be set. */
static void add_made(const struct targets *targets, struct table *made, struct span key, int64_t bucket,
                     struct table_item *item, struct fanout_losses *losses)
{
    struct route route = targets_route(targets, key);
    uint32_t shards = table_shards(made);
    char member[MEMBER_LEN_MAX];
    enum table_result result;

    bucket = route.bucket_s > 0 ? bucket - bucket % route.bucket_s : 0;
    item->key = (struct span){member, member_write(key, bucket, member)};
    item->hash = member_hash(targets_hash(targets, route.lane, keyspace_hash(key), shards), bucket, shards);
    result = table_add(made, item);
    if (result == TABLE_OK)
        return;
    /* A maximum has no place among what adds up. */
    if (result == TABLE_FULL && route.merge == MERGE_ADD) {
        item->key = span_of(OVERFLOW_KEY);
        item->hash = targets_hash(targets, 0, keyspace_hash(item->key), shards);
        result = table_add(made, item);
    }
    if (result == TABLE_OK)
        losses->overflow += item->events;
    else
        losses->left_out += item->events;
}

void fan_out(const struct targets *targets, const struct table_item *item, struct table *made,
             struct fanout_losses *losses)
{
    struct table_item fresh = {.micros = item->micros - item->carried, .events = item->events};
    struct also_walk walk = {.targets = targets};
    char also[KEY_LEN_MAX];
    int64_t bucket;
    size_t len;

    walk.key = member_split(item->key, &bucket);
    if (item->events == 0 || span_is(walk.key, OVERFLOW_KEY))
        return;
    while (also_next(&walk, also, &len)) {
        struct span key = {also, len};
        if (len > 0)
            add_made(targets, made, key, bucket, &fresh, losses);
        else
            losses->left_out += item->events;
    }
}
