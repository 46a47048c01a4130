/* configs - configurations that a test writes as text */
#ifndef TESTS_UNIT_CONFIGS_H
#define TESTS_UNIT_CONFIGS_H

#include <check.h>

#include "lib/config.h"

/* Gives it. */
static inline struct config *must_parse(const char *text)
{
    struct config *config = NULL;
    struct error error;

    if (config_parse("f", span_of(text), &config, &error) < 0)
        ck_abort_msg("%s: %s", text, error.text);
    return config;
}

#endif
