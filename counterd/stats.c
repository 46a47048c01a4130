#include "counterd/stats.h"

#include <stdio.h>

#include "lib/clock.h"

const int64_t histogram_bounds_us[HISTOGRAM_BOUNDS] = {
    250, 500, 1000, 2500, 5000, 10000, 25000, 50000, 100000, 250000, 1000000, 5000000, 15000000, 60000000};

void stats_init(struct stats *stats)
{
    memset(stats, 0, sizeof(*stats));
    pthread_mutex_init(&stats->samples.lock, NULL);
    pthread_mutex_init(&stats->moments.lock, NULL);
    pthread_mutex_init(&stats->trouble.lock, NULL);
    pthread_mutex_init(&stats->spool_trouble.lock, NULL);
}

void stats_done(struct stats *stats)
{
    pthread_mutex_destroy(&stats->trouble.lock);
    pthread_mutex_destroy(&stats->spool_trouble.lock);
    pthread_mutex_destroy(&stats->moments.lock);
    pthread_mutex_destroy(&stats->samples.lock);
}

void histogram_add(struct histogram *histogram, int64_t us)
{
    int bound = 0;

    while (bound < HISTOGRAM_BOUNDS && us > histogram_bounds_us[bound])
        bound++;
    counter_add(&histogram->counts[bound], 1);
    counter_add(&histogram->sum_us, us > 0 ? (uint64_t)us : 0);
}

void samples_add(struct samples *samples, enum reject reject, struct span line)
{
    struct sample *sample;

    pthread_mutex_lock(&samples->lock);
    sample = &samples->ring[samples->count++ % SAMPLES_MAX];
    sample->reject = reject;
    sample->unix_ms = clock_unix_ms();
    sample->len = (uint8_t)(line.len < SAMPLE_BYTES ? line.len : SAMPLE_BYTES);
    if (sample->len > 0)
        memcpy(sample->bytes, line.ptr, sample->len);
    pthread_mutex_unlock(&samples->lock);
}

size_t samples_copy(struct samples *samples, struct sample ret_samples[SAMPLES_MAX])
{
    size_t len;

    pthread_mutex_lock(&samples->lock);
    len = samples->count < SAMPLES_MAX ? samples->count : SAMPLES_MAX;
    for (unsigned i = 0; i < len; i++)
        ret_samples[i] = samples->ring[(samples->count - 1 - i) % SAMPLES_MAX];
    pthread_mutex_unlock(&samples->lock);
    return len;
}

void stats_note_moment(struct stats *stats, int64_t now_ms)
{
    struct moments *moments = &stats->moments;
    struct moment now = {
        .second = now_ms / 1000,
        .lines = counter_get(&stats->lines),
        .dropped = counter_get(&stats->dropped),
        .overflow = counter_get(&stats->overflow),
    };

    for (int i = 0; i < REJECT_COUNT; i++)
        now.rejected += counter_get(&stats->rejected[i]);
    pthread_mutex_lock(&moments->lock);
    if (moments->count == 0 || moments->ring[(moments->count - 1) % MOMENTS_MAX].second != now.second)
        moments->count++;
    moments->ring[(moments->count - 1) % MOMENTS_MAX] = now;
    pthread_mutex_unlock(&moments->lock);
}

size_t moments_copy(struct moments *moments, struct moment ret_moments[MOMENTS_MAX])
{
    size_t len;

    pthread_mutex_lock(&moments->lock);
    len = moments->count < MOMENTS_MAX ? moments->count : MOMENTS_MAX;
    for (size_t i = 0; i < len; i++)
        ret_moments[i] = moments->ring[(moments->count - len + i) % MOMENTS_MAX];
    pthread_mutex_unlock(&moments->lock);
    return len;
}

void trouble_set(struct trouble *trouble, const char *text)
{
    pthread_mutex_lock(&trouble->lock);
    snprintf(trouble->text, sizeof(trouble->text), "%s", text);
    pthread_mutex_unlock(&trouble->lock);
}

void trouble_copy(struct trouble *trouble, char ret_text[TROUBLE_BYTES])
{
    pthread_mutex_lock(&trouble->lock);
    memcpy(ret_text, trouble->text, TROUBLE_BYTES);
    pthread_mutex_unlock(&trouble->lock);
}
