/* Any line is parsed without harm, and what counts obeys the limits. */
#include "lib/metric.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct metric metric;
    char key[KEY_LEN_MAX];
    size_t key_len;
    struct metric plain;
    size_t taken = metric_parse_plain((struct span){(const char *)data, len}, &plain);

    /* What the short way takes for a line, the long one does too, with the same result. */
    if (taken > 0) {
        struct span line = {(const char *)data, taken};
        line.len -= line.ptr[line.len - 1] == '\n';
        line.len -= line.ptr[line.len - 1] == '\r';
        fuzz_require(metric_parse(line, &metric) == REJECT_NONE);
        fuzz_require(span_equal(plain.key, metric.key) && span_equal(plain.tags, metric.tags) &&
                     plain.micros == metric.micros && plain.fields_ignored == metric.fields_ignored);
    }
    if (len == 0 || metric_parse((struct span){(const char *)data, len}, &metric) != REJECT_NONE)
        return 0;
    fuzz_require(metric.micros >= -MICROS_MAX && metric.micros <= MICROS_MAX);
    fuzz_require(metric.key.len >= 1 && metric.key.len <= KEY_LEN_MAX);
    if (metric_canonical_key(&metric, key, &key_len) == REJECT_NONE)
        fuzz_require(key_len >= metric.key.len && key_len <= KEY_LEN_MAX &&
                     memcmp(key, metric.key.ptr, metric.key.len) == 0);
    return 0;
}
