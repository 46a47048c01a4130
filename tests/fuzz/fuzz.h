/* fuzz - what the fuzz targets share: the entry that libFuzzer calls, and a check that no build leaves out */
#ifndef TESTS_FUZZ_H
#define TESTS_FUZZ_H

#include <stdint.h>
#include <stdlib.h>

#include "lib/util.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len);

static inline void fuzz_require(bool holds)
{
    if (!holds)
        abort();
}

#endif
