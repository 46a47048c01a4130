/* Any text is a configuration or a list of mistakes; and of any configuration, any text is a key. */
#include "lib/config.h"
#include "lib/targets.h"
#include "tests/fuzz/fuzz.h"

static void use_as_key(const struct targets *targets, struct span key)
{
    const struct target *target = targets_find(targets, key);
    struct also_walk walk = {.targets = targets, .key = key};
    char also[KEY_LEN_MAX];
    size_t also_len;

    fuzz_require(!target || target->bucket_s == 0 ||
                 target->bucket_s % targets_route(targets, key).bucket_s == 0);
    while (also_next(&walk, also, &also_len)) {
        target = targets_find(targets, (struct span){also, also_len});
        fuzz_require(also_len <= KEY_LEN_MAX);
        if (also_len > 0 && target && target->bucket_s > 0)
            fuzz_require(target->bucket_s % targets_route(targets, key).bucket_s == 0);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct config *config = NULL;
    struct error error;
    int r = config_parse("fuzz", (struct span){(const char *)data, len}, &config, &error);

    fuzz_require((r == 0) == (config != NULL));
    fuzz_require(r == 0 || strncmp(error.text, "fuzz: ", 6) == 0);
    for (size_t i = 0; config && i < config->targets->fanouts_len; i++)
        use_as_key(config->targets, span_of(config->targets->fanouts[i].match));
    if (config)
        use_as_key(config->targets, (struct span){(const char *)data, len < KEY_LEN_MAX ? len : KEY_LEN_MAX});
    config_free(config);
    return 0;
}
