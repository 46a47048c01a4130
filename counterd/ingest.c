#include "counterd/ingest.h"

#include <stdlib.h>

#include "lib/clock.h"
#include "lib/member.h"
#include "lib/text.h"

/* A flood of junk must not spend its time on the samples' lock. */
#define SAMPLES_PER_TURN 2

/* So many lines are gathered before they go to the table in one go: enough cache misses to run side by side,
 * and few enough that what they load is still there when it is their turn. */
#define GATHERED_MAX 64

/* So far ahead of the clock a |T may be. */
#define TIME_AHEAD_MAX_S 86400

/* A bucket that was lately counted in: most lines of a turn are of the same few. */
struct recent_bucket {
    int64_t bucket_s, start;
    char text[MEMBER_BUCKET_LEN_MAX]; /* as behind the key in a member */
    uint8_t text_len;
};

#define RECENT_BUCKETS 8 /* a power of two */

struct ingest {
    struct table *table;
    const struct targets *targets;
    bool routes; /* some keys have a bucket, or are not of the first lane */
    struct stats *stats;
    int64_t (*unix_ms)(void);
    int64_t now_s; /* of this turn; 0 = not asked yet */
    struct recent_bucket recent[RECENT_BUCKETS];
    struct metric metrics[GATHERED_MAX];
    size_t gathered;
    char members[GATHERED_MAX * MEMBER_LEN_MAX]; /* with tags or a bucket, one behind the other */
    size_t members_len;
    unsigned samples_left;
    /* What has been counted since the last ingest_publish(). */
    uint64_t lines, accepted, fields_ignored, overflow;
    uint64_t rejected[REJECT_COUNT];
};

struct ingest *ingest_new(struct stats *stats)
{
    struct ingest *ingest = calloc(1, sizeof(*ingest));

    if (!ingest)
        return NULL;
    ingest->stats = stats;
    ingest->unix_ms = clock_unix_ms;
    ingest->samples_left = SAMPLES_PER_TURN;
    return ingest;
}

void ingest_free(struct ingest *ingest)
{
    free(ingest);
}

void ingest_set_table(struct ingest *ingest, struct table *table, const struct targets *targets)
{
    ingest->table = table;
    ingest->targets = targets;
    ingest->routes = targets_routes(targets);
}

void ingest_set_clock(struct ingest *ingest, int64_t (*unix_ms)(void))
{
    ingest->unix_ms = unix_ms;
}

/* No room for a new key: it counts where all such do, so that totals hold. */
static enum reject add_to_overflow(struct ingest *ingest, int64_t micros)
{
    struct table_item item = {.key = span_of(OVERFLOW_KEY), .micros = micros, .events = 1};

    item.hash = targets_hash(ingest->targets, 0, keyspace_hash(item.key), table_shards(ingest->table));
    switch (table_add(ingest->table, &item)) {
    case TABLE_OK:
        ingest->overflow++;
        return REJECT_NONE;
    case TABLE_RANGE:
        return REJECT_RANGE;
    case TABLE_FULL:
        return REJECT_OVERFLOW;
    }
    return REJECT_OVERFLOW;
}

static RARE void reject_gathered(struct ingest *ingest, const struct metric *metric, enum reject reject)
{
    ingest->fields_ignored -= metric->fields_ignored;
    ingest_reject(ingest, reject, metric->line);
}

/* What the table did not take as it was. */
static RARE enum reject settle_refused(struct ingest *ingest, const struct metric *metric,
                                       enum table_result result)
{
    enum reject reject = result == TABLE_RANGE ? REJECT_RANGE : REJECT_OVERFLOW;

    /* A maximum has no place among what adds up. */
    if (result == TABLE_FULL && table_merge(ingest->table, metric->hash) == MERGE_ADD)
        reject = add_to_overflow(ingest, metric->micros);

    if (reject == REJECT_NONE) {
        ingest->lines++;
        ingest->accepted++;
    } else {
        reject_gathered(ingest, metric, reject);
    }
    return reject;
}

static bool add_tags(struct ingest *ingest, struct metric *metric, enum reject *ret_reject)
{
    char *room = ingest->members + ingest->members_len;

    *ret_reject = metric_canonical_key(metric, room, &metric->key.len);
    if (*ret_reject != REJECT_NONE)
        return false;
    metric->key.ptr = room;
    metric->hash = keyspace_hash(metric->key);
    ingest->members_len += metric->key.len;
    return true;
}

static RARE void set_recent(struct recent_bucket *recent, int64_t bucket_s, int64_t time_s)
{
    recent->bucket_s = bucket_s;
    recent->start = time_s - time_s % bucket_s;
    recent->text_len = (uint8_t)member_write_bucket(recent->start, recent->text);
}

static int64_t now_of_turn(struct ingest *ingest)
{
    /* A clock that was never set may stand in front of 1970. */
    if (ingest->now_s <= 0)
        ingest->now_s = ingest->unix_ms() / 1000;
    if (ingest->now_s <= 0)
        ingest->now_s = 1;
    return ingest->now_s;
}

/* Turns the key into its member in a bucket. */
static bool add_bucket(struct ingest *ingest, struct metric *metric, int64_t bucket_s,
                       enum reject *ret_reject)
{
    int64_t time_s = now_of_turn(ingest);
    struct recent_bucket *recent;
    char *room = ingest->members + ingest->members_len;

    if (metric->time >= 0) {
        *ret_reject = REJECT_RANGE;
        /* The first bucket of all would be none, see member.h. */
        if (metric->time > time_s + TIME_AHEAD_MAX_S || metric->time < bucket_s)
            return false;
        time_s = metric->time;
    }
    recent = &ingest->recent[(uint64_t)bucket_s * UINT64_C(0x9e3779b97f4a7c15) >> 61];
    if (recent->bucket_s != bucket_s || time_s < recent->start || time_s - recent->start >= bucket_s)
        set_recent(recent, bucket_s, time_s);
    /* With tags, it is the last of the members already. */
    if (metric->key.ptr + metric->key.len != room) {
        memcpy(room, metric->key.ptr, metric->key.len);
        metric->key.ptr = room;
        room += metric->key.len;
    }
    memcpy(room, recent->text, sizeof(recent->text));
    metric->key.len += recent->text_len;
    metric->hash = member_hash(metric->hash, recent->start, table_shards(ingest->table));
    ingest->members_len = (size_t)(room + recent->text_len - ingest->members);
    return true;
}

/* To the lane of the key's target and, where time matters to it, into a bucket. */
static bool add_route(struct ingest *ingest, struct metric *metric, enum reject *ret_reject)
{
    struct route route = targets_route(ingest->targets, metric->key);

    if (ingest->targets->lanes > 1)
        metric->hash = targets_hash(ingest->targets, route.lane, metric->hash, table_shards(ingest->table));
    if (route.merge != MERGE_ADD)
        *ret_reject = metric_take_extreme(metric, route.merge);
    if (*ret_reject != REJECT_NONE)
        return false;
    return route.bucket_s == 0 || add_bucket(ingest, metric, route.bucket_s, ret_reject);
}

/* Turns the metric's key into the member that it counts under, or rejects it. */
static enum reject make_member(struct ingest *ingest, struct metric *metric)
{
    enum reject reject = REJECT_NONE;

    if ((metric->tags.len > 0 && !add_tags(ingest, metric, &reject)) ||
        (ingest->routes && !add_route(ingest, metric, &reject))) {
        reject_gathered(ingest, metric, reject);
        return reject;
    }
    table_prefetch(ingest->table, metric->hash);
    return REJECT_NONE;
}

/* Member by member, for the reason given at parse_plain_line(). */
static inline void set_item(struct table_item *item, const struct metric *metric)
{
    item->key.ptr = metric->key.ptr;
    item->key.len = metric->key.len;
    item->hash = metric->hash;
    item->micros = metric->micros;
    item->events = 1;
}

/* Leaves out the metrics whose tags or time are wrong; `ret_from` says which one an item comes from. */
static size_t make_items(struct ingest *ingest, struct table_item *ret_items, uint8_t *ret_from)
{
    size_t len = 0;

    for (size_t i = 0; i < ingest->gathered; i++) {
        struct metric *metric = &ingest->metrics[i];
        if ((metric->tags.len > 0 || ingest->routes) && make_member(ingest, metric) != REJECT_NONE)
            continue;
        set_item(&ret_items[len], metric);
        ret_from[len++] = (uint8_t)i;
    }
    ingest->gathered = ingest->members_len = 0;
    return len;
}

void ingest_settle(struct ingest *ingest)
{
    struct table_item items[GATHERED_MAX];
    uint8_t from[GATHERED_MAX];
    size_t len = make_items(ingest, items, from), done = 0;

    while (done < len) {
        enum table_result result;
        size_t added = table_add_all(ingest->table, items + done, len - done, &result);
        ingest->lines += added;
        ingest->accepted += added;
        done += added;
        if (result != TABLE_OK)
            (void)settle_refused(ingest, &ingest->metrics[from[done++]], result);
    }
}

enum reject ingest_line(struct ingest *ingest, struct span line)
{
    struct metric *metric = &ingest->metrics[0];
    struct table_item item;
    enum table_result result;
    enum reject reject = metric_parse(line, metric);

    if (reject != REJECT_NONE) {
        ingest_reject(ingest, reject, line);
        return reject;
    }
    ingest->fields_ignored += metric->fields_ignored;
    if (metric->tags.len > 0 || ingest->routes)
        reject = make_member(ingest, metric);
    ingest->members_len = 0;
    if (reject != REJECT_NONE)
        return reject;
    set_item(&item, metric);
    result = table_add(ingest->table, &item);
    if (result != TABLE_OK)
        return settle_refused(ingest, metric, result);
    ingest->lines++;
    ingest->accepted++;
    return REJECT_NONE;
}

/* The first line of `text`, of whatever kind; returns how many bytes it takes. */
static size_t gather_any(struct ingest *ingest, struct span text)
{
    struct span rest = text, line = text_take_line(&rest);
    size_t taken = text.len - rest.len;
    struct metric *metric = &ingest->metrics[ingest->gathered];
    enum reject reject;

    if (line.len == 0)
        return taken;
    reject = metric_parse(line, metric);
    if (reject == REJECT_NONE) {
        ingest->fields_ignored += metric->fields_ignored;
        ingest->gathered++;
    } else {
        ingest_reject(ingest, reject, line);
    }
    return taken;
}

/* All up to the last LF. */
static struct span whole_lines(struct span lines)
{
    const char *lf = lines.len > 0 ? memrchr(lines.ptr, '\n', lines.len) : NULL;

    return (struct span){lines.ptr, lf ? (size_t)(lf - lines.ptr) + 1 : 0};
}

void ingest_gather(struct ingest *ingest, struct span lines, bool cut)
{
    struct span rest = cut ? whole_lines(lines) : lines;
    struct span beginning = {lines.ptr + rest.len, lines.len - rest.len};

    while (rest.len > 0) {
        struct metric *metrics = &ingest->metrics[ingest->gathered];
        size_t taken;
        size_t len = metric_parse_plain(rest, metrics, GATHERED_MAX - ingest->gathered, &taken);
        /* In a bucket or a lane it is going to be another hash. */
        for (size_t i = 0; i < len && !ingest->routes; i++)
            table_prefetch(ingest->table, metrics[i].hash);
        ingest->gathered += len;
        if (taken == 0)
            taken = gather_any(ingest, rest);
        if (ingest->gathered == GATHERED_MAX)
            ingest_settle(ingest);
        rest.ptr += taken;
        rest.len -= taken;
    }
    if (cut)
        ingest_reject(ingest, REJECT_TRUNCATED, beginning);
}

void ingest_reject(struct ingest *ingest, enum reject reject, struct span line)
{
    ingest->lines++;
    ingest->rejected[reject]++;
    if (ingest->samples_left > 0) {
        ingest->samples_left--;
        samples_add(&ingest->stats->samples, reject, line);
    }
}

void ingest_lines(struct ingest *ingest, struct span lines, bool cut)
{
    ingest_gather(ingest, lines, cut);
    ingest_settle(ingest);
}

void ingest_publish(struct ingest *ingest)
{
    struct stats *stats = ingest->stats;

    counter_add(&stats->lines, ingest->lines);
    counter_add(&stats->accepted, ingest->accepted);
    counter_add(&stats->fields_ignored, ingest->fields_ignored);
    counter_add(&stats->overflow, ingest->overflow);
    for (int i = 0; i < REJECT_COUNT; i++)
        if (ingest->rejected[i] > 0)
            counter_add(&stats->rejected[i], ingest->rejected[i]);
    ingest->lines = ingest->accepted = ingest->fields_ignored = ingest->overflow = 0;
    memset(ingest->rejected, 0, sizeof(ingest->rejected));
    ingest->samples_left = SAMPLES_PER_TURN;
    ingest->now_s = 0;
}
