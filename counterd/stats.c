#include "counterd/stats.h"

#include "lib/clock.h"

void stats_init(struct stats *stats)
{
    memset(stats, 0, sizeof(*stats));
    pthread_mutex_init(&stats->samples.lock, NULL);
}

void stats_done(struct stats *stats)
{
    pthread_mutex_destroy(&stats->samples.lock);
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
