/* Any text is a configuration or a list of mistakes. */
#include "lib/config.h"
#include "tests/fuzz/fuzz.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct config *config = NULL;
    struct error error;
    int r = config_parse("fuzz", (struct span){(const char *)data, len}, &config, &error);

    fuzz_require((r == 0) == (config != NULL));
    fuzz_require(r == 0 || strncmp(error.text, "fuzz: ", 6) == 0);
    config_free(config);
    return 0;
}
