/* commands - what `flusher` can be told to do; each prints its result and gives its exit code */
#ifndef FLUSHER_COMMANDS_H
#define FLUSHER_COMMANDS_H

#include "flusher/report.h"
#include "lib/config.h"

/* Which rows `parked` means, as written; NULL = not given. */
struct parked_options {
    const char *target, *reason, *older_than, *match;
};

struct command_options {
    const char *config_path;
    const char *namespace; /* of the one lane that is meant; NULL = not given */
    bool among_lanes;      /* other processes do the same for other lanes */
    enum report_style style;
    bool dry_run;
    int64_t every_ms; /* 0 = once */
    const char *key;
    char *const *words; /* what follows the command, and how many */
    int words_len;
    bool force;
    struct parked_options parked;
    const char *metrics_path; /* NULL = none */
    int64_t interval_ms;      /* 0 = not given */
    bool once;
};

int command_run(const struct config *config, const struct command_options *options);
int command_migrate(const struct config *config, const struct command_options *options);
int command_status(const struct config *config, const struct command_options *options);
int command_get(const struct config *config, const struct command_options *options);
int command_audit(const struct config *config, const struct command_options *options);
int command_parked(const struct config *config, const struct command_options *options);
int command_quarantine(const struct config *config, const struct command_options *options);

bool command_parked_has_filter(const struct parked_options *options);

/* What is wrong with what follows the command; NULL when nothing. */
const char *command_parked_mistake(const struct command_options *options);
const char *command_quarantine_mistake(const struct command_options *options);

#endif
