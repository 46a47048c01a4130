#include "counterd/fanout.h"

#include "lib/member.h"

/* What a rule made of the source: `item` with its key still to be set. */
static void add_made(struct table *made, struct span key, int64_t bucket, struct table_item *item,
                     struct fanout_losses *losses)
{
    char member[MEMBER_LEN_MAX];
    enum table_result result;

    item->key = (struct span){member, member_write(key, bucket, member)};
    item->hash = member_hash(keyspace_hash(key), bucket, table_shards(made));
    result = table_add(made, item);
    if (result == TABLE_OK)
        return;
    if (result == TABLE_FULL) {
        item->key = span_of(OVERFLOW_KEY);
        item->hash = keyspace_hash(item->key);
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
        int64_t bucket_s;
        if (len == 0) {
            losses->left_out += item->events;
            continue;
        }
        bucket_s = bucket > 0 ? targets_bucket_s(targets, key) : 0;
        add_made(made, key, bucket_s > 0 ? bucket - bucket % bucket_s : 0, &fresh, losses);
    }
}
