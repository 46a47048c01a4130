#include "counterd/ingest.h"

#include <stdlib.h>

#include "lib/keyspace.h"

/* A flood of junk must not spend its time on the samples' lock. */
#define SAMPLES_PER_TURN 2

/* So many lines are gathered before they go to the table in one go: enough cache misses to run side by side,
 * and few enough that what they load is still there when it is their turn. */
#define GATHERED_MAX 64

struct ingest {
    struct table *table;
    struct stats *stats;
    struct metric metrics[GATHERED_MAX];
    struct span lines_of[GATHERED_MAX]; /* where the metrics come from */
    size_t gathered;
    char canonical[GATHERED_MAX * KEY_LEN_MAX]; /* keys of metrics with tags, one behind the other */
    size_t canonical_len;
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
    ingest->samples_left = SAMPLES_PER_TURN;
    return ingest;
}

void ingest_free(struct ingest *ingest)
{
    free(ingest);
}

void ingest_set_table(struct ingest *ingest, struct table *table)
{
    ingest->table = table;
}

/* No room for a new key: it counts where all such do, so that totals hold. */
static enum reject add_to_overflow(struct ingest *ingest, int64_t micros)
{
    struct table_item item = {.key = span_of(OVERFLOW_KEY), .micros = micros, .events = 1};

    item.hash = keyspace_hash(item.key);
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

/* What the table did not take as it was. */
static RARE enum reject settle_refused(struct ingest *ingest, const struct table_item *item,
                                       enum table_result result, struct span line)
{
    enum reject reject = result == TABLE_RANGE ? REJECT_RANGE : add_to_overflow(ingest, item->micros);

    if (reject == REJECT_NONE) {
        ingest->lines++;
        ingest->accepted++;
    } else {
        ingest_reject(ingest, reject, line);
    }
    return reject;
}

static inline struct table_item item_of(const struct metric *metric)
{
    return (struct table_item){metric->key, keyspace_hash(metric->key), metric->micros, 1};
}

void ingest_settle(struct ingest *ingest)
{
    struct table_item items[GATHERED_MAX];
    size_t len = ingest->gathered, done = 0;

    for (size_t i = 0; i < len; i++)
        items[i] = item_of(&ingest->metrics[i]);
    while (done < len) {
        enum table_result result;
        size_t added = table_add_all(ingest->table, items + done, len - done, &result);
        ingest->lines += added;
        ingest->accepted += added;
        done += added;
        if (result != TABLE_OK) {
            (void)settle_refused(ingest, &items[done], result, ingest->lines_of[done]);
            done++;
        }
    }
    ingest->gathered = ingest->canonical_len = 0;
}

/* Turns the metric's key into the one with its tags; false when that is wrong. */
static __attribute__((noinline)) bool canonicalise(struct ingest *ingest, struct metric *metric,
                                                   struct span line)
{
    char *room = ingest->canonical + ingest->canonical_len;
    size_t key_len;
    enum reject reject = metric_canonical_key(metric, room, &key_len);

    if (reject != REJECT_NONE) {
        ingest_reject(ingest, reject, line);
        return false;
    }
    metric->key = (struct span){room, key_len};
    ingest->canonical_len += key_len;
    return true;
}

/* Keeps the metric at metrics[gathered]. */
static inline void gather(struct ingest *ingest, struct span line)
{
    struct metric *metric = &ingest->metrics[ingest->gathered];

    if (metric->tags.len > 0 && !canonicalise(ingest, metric, line))
        return;
    ingest->fields_ignored += metric->fields_ignored;
    ingest->lines_of[ingest->gathered++] = line;
    if (ingest->gathered == GATHERED_MAX)
        ingest_settle(ingest);
}

/* The first line of `text`, of whatever kind; returns how many bytes it takes. */
static size_t gather_any(struct ingest *ingest, struct span text)
{
    const char *lf = memchr(text.ptr, '\n', text.len);
    struct span line = {text.ptr, lf ? (size_t)(lf - text.ptr) : text.len};
    size_t taken = line.len + (lf != NULL);
    enum reject reject;

    if (line.len > 0 && line.ptr[line.len - 1] == '\r')
        line.len--;
    if (line.len == 0)
        return taken;
    reject = metric_parse(line, &ingest->metrics[ingest->gathered]);
    if (reject == REJECT_NONE)
        gather(ingest, line);
    else
        ingest_reject(ingest, reject, line);
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
        size_t taken = metric_parse_plain(rest, &ingest->metrics[ingest->gathered]);
        if (taken > 0)
            gather(ingest, (struct span){rest.ptr, taken});
        else
            taken = gather_any(ingest, rest);
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

enum reject ingest_line(struct ingest *ingest, struct span line)
{
    char canonical[KEY_LEN_MAX];
    struct metric metric;
    struct table_item item;
    enum table_result result;
    enum reject reject = metric_parse(line, &metric);

    if (reject == REJECT_NONE && metric.tags.len > 0) {
        reject = metric_canonical_key(&metric, canonical, &metric.key.len);
        metric.key.ptr = canonical;
    }
    if (reject != REJECT_NONE) {
        ingest_reject(ingest, reject, line);
        return reject;
    }
    ingest->fields_ignored += metric.fields_ignored;
    item = item_of(&metric);
    result = table_add(ingest->table, &item);
    if (result != TABLE_OK)
        return settle_refused(ingest, &item, result, line);
    ingest->lines++;
    ingest->accepted++;
    return REJECT_NONE;
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
}
