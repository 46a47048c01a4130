/* config_reader - what the parts that read the configuration share: the mistakes found so far
 *
 * For lib/config.c and lib/targets_read.c. Reading goes on after a mistake, so that all of them are told.
 */
#ifndef LIB_CONFIG_READER_H
#define LIB_CONFIG_READER_H

#include "lib/config.h"

struct cJSON;

#define DEFAULT_TARGETS "[{\"match\": \"*\", \"table\": \"counterd.counters\"}]"

struct reader {
    const char *name; /* of the file */
    struct config *config;
    struct error *error; /* a line per mistake; what does not fit is cut */
    size_t error_len;
    bool failed;
};

void mistake(struct reader *reader, const char *format, ...) PRINTF(2, 3);

/* "a string", "a list", ... */
const char *json_type_name(const struct cJSON *item);

/* Replaces *field by a copy of `text`; a mistake when there is no memory for it. */
void set_text(struct reader *reader, char **field, const char *text);

/* The keys "targets" and "fanout" into reader->config->targets, each at most once. */
void read_targets(struct reader *reader, const struct cJSON *list);
void read_fanouts(struct reader *reader, const struct cJSON *list);

/* Once both are read: the default where "targets" was not given, and what neither can tell alone. */
void finish_targets(struct reader *reader);

#endif
