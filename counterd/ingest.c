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

static RARE void reject_gathered(struct ingest *ingest, const struct metric *metric, enum reject reject)
{
    ingest->fields_ignored -= metric->fields_ignored;
    ingest_reject(ingest, reject, metric->line);
}

/* What the table did not take as it was. */
static RARE enum reject settle_refused(struct ingest *ingest, const struct metric *metric,
                                       enum table_result result)
{
    enum reject reject = result == TABLE_RANGE ? REJECT_RANGE : add_to_overflow(ingest, metric->micros);

    if (reject == REJECT_NONE) {
        ingest->lines++;
        ingest->accepted++;
    } else {
        reject_gathered(ingest, metric, reject);
    }
    return reject;
}

/* Turns the metric's key into the one with its tags, or rejects it. */
static enum reject add_tags(struct ingest *ingest, struct metric *metric)
{
    char *room = ingest->canonical + ingest->canonical_len;
    enum reject reject = metric_canonical_key(metric, room, &metric->key.len);

    if (reject != REJECT_NONE) {
        reject_gathered(ingest, metric, reject);
        return reject;
    }
    metric->key.ptr = room;
    metric->hash = keyspace_hash(metric->key);
    table_prefetch(ingest->table, metric->hash);
    ingest->canonical_len += metric->key.len;
    return REJECT_NONE;
}

static inline struct table_item item_of(const struct metric *metric)
{
    return (struct table_item){metric->key, metric->hash, metric->micros, 1};
}

/* Leaves out the metrics whose tags are wrong; `ret_from` says which one an item comes from. */
static size_t make_items(struct ingest *ingest, struct table_item *ret_items, uint8_t *ret_from)
{
    size_t len = 0;

    for (size_t i = 0; i < ingest->gathered; i++) {
        struct metric *metric = &ingest->metrics[i];
        if (metric->tags.len > 0 && add_tags(ingest, metric) != REJECT_NONE)
            continue;
        ret_items[len] = item_of(metric);
        ret_from[len++] = (uint8_t)i;
    }
    ingest->gathered = ingest->canonical_len = 0;
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
    if (metric->tags.len > 0)
        reject = add_tags(ingest, metric);
    ingest->canonical_len = 0;
    if (reject != REJECT_NONE)
        return reject;
    item = item_of(metric);
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
    const char *lf = memchr(text.ptr, '\n', text.len);
    struct span line = {text.ptr, lf ? (size_t)(lf - text.ptr) : text.len};
    size_t taken = line.len + (lf != NULL);
    struct metric *metric = &ingest->metrics[ingest->gathered];
    enum reject reject;

    if (line.len > 0 && line.ptr[line.len - 1] == '\r')
        line.len--;
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
        for (size_t i = 0; i < len; i++)
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
}
