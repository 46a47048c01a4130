#include "counterd/ingest.h"

#include <stdlib.h>

#include "lib/spelling.h"

/* A flood of junk must not spend its time on the samples' lock. */
#define SAMPLES_PER_TURN 2

struct ingest {
    struct table *table;
    struct stats *stats;
    struct spelling_cache *spellings;
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
    ingest->spellings = spelling_cache_new();
    if (!ingest->spellings) {
        ingest_free(ingest);
        return NULL;
    }
    return ingest;
}

void ingest_free(struct ingest *ingest)
{
    if (!ingest)
        return;
    spelling_cache_free(ingest->spellings);
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

static enum reject add(struct ingest *ingest, const struct table_item *item)
{
    switch (table_add(ingest->table, item)) {
    case TABLE_OK:
        return REJECT_NONE;
    case TABLE_RANGE:
        return REJECT_RANGE;
    case TABLE_FULL:
        return add_to_overflow(ingest, item->micros);
    }
    return REJECT_OVERFLOW;
}

static enum reject count_line(struct ingest *ingest, struct span line)
{
    struct metric metric;
    struct table_item item;
    enum reject reject = metric_parse(line, &metric);

    if (reject != REJECT_NONE)
        return reject;
    item = (struct table_item){.key = metric.key, .micros = metric.micros, .events = 1};
    if (metric.tags.len > 0) {
        reject = spelling_resolve(ingest->spellings, &metric, &item.key, &item.hash);
        if (reject != REJECT_NONE)
            return reject;
    } else {
        item.hash = keyspace_hash(item.key);
    }
    reject = add(ingest, &item);
    if (reject == REJECT_NONE) {
        ingest->accepted++;
        ingest->fields_ignored += metric.fields_ignored;
    }
    return reject;
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
    enum reject reject = count_line(ingest, line);

    if (reject == REJECT_NONE)
        ingest->lines++;
    else
        ingest_reject(ingest, reject, line);
    return reject;
}

void ingest_lines(struct ingest *ingest, struct span lines, bool cut)
{
    const char *at = lines.ptr, *end = at + lines.len;

    while (at < end) {
        const char *lf = memchr(at, '\n', (size_t)(end - at));
        struct span line = {at, (size_t)((lf ? lf : end) - at)};

        at = lf ? lf + 1 : end;
        if (!lf && cut) {
            ingest_reject(ingest, REJECT_TRUNCATED, line);
            return;
        }
        if (line.len > 0 && line.ptr[line.len - 1] == '\r')
            line.len--;
        if (line.len > 0)
            (void)ingest_line(ingest, line);
    }
    if (cut)
        ingest_reject(ingest, REJECT_TRUNCATED, (struct span){at, 0});
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
