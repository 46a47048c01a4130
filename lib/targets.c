#include "lib/targets.h"

#include <stdatomic.h>
#include <stdlib.h>

struct targets *targets_new(void)
{
    struct targets *targets = calloc(1, sizeof(*targets));

    if (targets) {
        targets->references = 1;
        targets->lanes = 1;
    }
    return targets;
}

struct targets *targets_ref(struct targets *targets)
{
    atomic_fetch_add(&targets->references, 1);
    return targets;
}

static void free_target(struct target *target)
{
    pattern_free(target->pattern);
    for (size_t i = 0; i < target->rollups_len; i++)
        free(target->rollups[i].table);
    free(target->match);
    free(target->table);
    free(target->value);
    free(target->touch);
    free(target->database);
}

static void free_fanout(struct fanout *fanout)
{
    pattern_free(fanout->pattern);
    for (size_t i = 0; i < fanout->also_len; i++)
        pattern_free(fanout->also[i]);
    free(fanout->match);
}

void targets_unref(struct targets *targets)
{
    if (!targets || atomic_fetch_sub(&targets->references, 1) > 1)
        return;
    for (size_t i = 0; i < targets->len; i++)
        free_target(&targets->items[i]);
    for (size_t i = 0; i < targets->fanouts_len; i++)
        free_fanout(&targets->fanouts[i]);
    free(targets->items);
    free(targets->fanouts);
    free(targets);
}

const struct target *targets_find(const struct targets *targets, struct span key)
{
    for (size_t i = 0; i < targets->len; i++)
        if (pattern_match(targets->items[i].pattern, key, NULL))
            return &targets->items[i];
    return NULL;
}

const struct target *targets_find_in(const struct targets *targets, size_t lane, struct span key)
{
    const struct target *target = targets_find(targets, key);

    return target && target->lane == lane ? target : NULL;
}

bool target_table_is_ours(const char *table)
{
    return strcmp(table, COUNTERS_TABLE) == 0 || strcmp(table, ROLLUPS_TABLE) == 0;
}

/* How often targets name it. */
static size_t count_uses(const struct targets *targets, const char *table)
{
    size_t uses = 0;

    for (size_t i = 0; i < targets->len; i++) {
        uses += strcmp(targets->items[i].table, table) == 0;
        for (size_t j = 0; j < targets->items[i].rollups_len; j++)
            uses += strcmp(targets->items[i].rollups[j].table, table) == 0;
    }
    return uses;
}

bool targets_share_rows(const struct targets *targets, const struct target *target)
{
    bool open = pattern_is_open(target->pattern);
    bool shared = !target_table_is_ours(target->table) && (open || count_uses(targets, target->table) > 1);

    for (size_t i = 0; i < target->rollups_len; i++)
        shared |= !target_table_is_ours(target->rollups[i].table) &&
                  (open || count_uses(targets, target->rollups[i].table) > 1);
    return shared;
}

int64_t bucket_divisor(int64_t a, int64_t b)
{
    while (b != 0) {
        int64_t rest = a % b;
        a = b;
        b = rest;
    }
    return a;
}

struct route targets_route(const struct targets *targets, struct span key)
{
    struct route route = {0};
    const struct target *target = targets_routes(targets) ? targets_find(targets, key) : NULL;

    if (target)
        route = (struct route){span_is(key, OVERFLOW_KEY) ? 0 : target->lane, target->bucket_s, MERGE_ADD};
    route.merge = targets->merges[route.lane];
    for (size_t i = 0; targets->bucket_s > 0 && i < targets->fanouts_len; i++) {
        const struct fanout *fanout = &targets->fanouts[i];
        if (fanout->bucket_s != 0 && fanout->bucket_s != route.bucket_s &&
            pattern_match(fanout->pattern, key, NULL))
            route.bucket_s = bucket_divisor(fanout->bucket_s, route.bucket_s);
    }
    return route;
}

struct span targets_member_at(const struct targets *targets, struct span member, int64_t unix_s,
                              char buf[MEMBER_LEN_MAX])
{
    int64_t bucket, bucket_s;
    struct span key = member_split(member, &bucket);

    if (bucket == 0 || bucket + targets->bucket_s > unix_s)
        return member;
    bucket_s = targets_route(targets, key).bucket_s;
    if (bucket + bucket_s > unix_s)
        return member;
    bucket = bucket_s > 0 ? unix_s - unix_s % bucket_s : 0;
    return (struct span){buf, member_write(key, bucket, buf)};
}

/* Whatever the rules make of the key, some of it perhaps twice, or the key itself. */
static bool next_of_rules(struct also_walk *walk, char buf[KEY_LEN_MAX], size_t *ret_len)
{
    for (; walk->fanout < walk->targets->fanouts_len; walk->fanout++) {
        const struct fanout *fanout = &walk->targets->fanouts[walk->fanout];
        struct span values[PATTERN_PLACEHOLDERS_MAX];
        const struct pattern *also;
        if (!walk->matched)
            walk->matched = pattern_match(fanout->pattern, walk->key, walk->values);
        if (!walk->matched || walk->also == fanout->also_len) {
            walk->matched = false;
            walk->also = 0;
            continue;
        }
        also = fanout->also[walk->also];
        for (size_t i = 0; i < pattern_placeholders(also); i++)
            values[i] = walk->values[fanout->places[walk->also][i]];
        walk->also++;
        if (!pattern_expand(also, values, buf, KEY_LEN_MAX, ret_len))
            *ret_len = 0;
        return true;
    }
    return false;
}

/* Whether the walk, which stands behind the key, came by it before. */
static bool came_before(const struct also_walk *walk, struct span key)
{
    struct also_walk again = {.targets = walk->targets, .key = walk->key};
    char buf[KEY_LEN_MAX];
    size_t len;

    while (next_of_rules(&again, buf, &len)) {
        if (again.fanout == walk->fanout && again.also == walk->also)
            return false;
        if (len > 0 && span_equal(key, (struct span){buf, len}))
            return true;
    }
    return false;
}

bool also_next(struct also_walk *walk, char buf[KEY_LEN_MAX], size_t *ret_len)
{
    while (next_of_rules(walk, buf, ret_len))
        if (*ret_len == 0 || !came_before(walk, (struct span){buf, *ret_len}))
            return true;
    return false;
}
