/* Any line is parsed without harm, and what counts obeys the limits. */
#include "lib/metric.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct metric metric;
    char key[KEY_LEN_MAX];
    size_t key_len;

    if (len == 0 || metric_parse((struct span){(const char *)data, len}, &metric) != REJECT_NONE)
        return 0;
    fuzz_require(metric.micros >= -MICROS_MAX && metric.micros <= MICROS_MAX);
    fuzz_require(metric.key.len >= 1 && metric.key.len <= KEY_LEN_MAX);
    if (metric_canonical_key(&metric, key, &key_len) == REJECT_NONE)
        fuzz_require(key_len >= metric.key.len && key_len <= KEY_LEN_MAX &&
                     memcmp(key, metric.key.ptr, metric.key.len) == 0);
    return 0;
}
