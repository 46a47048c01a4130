#include <stdlib.h>
#include <sysexits.h>

#include "flusher/commands.h"
#include "flusher/failure.h"
#include "flusher/migrate.h"
#include "flusher/parked.h"
#include "flusher/records.h"
#include "flusher/whole.h"
#include "lib/log.h"

#define OLDEST_S (INT64_C(100) * 366 * 86400)

/* "90s" "15m" "6h" "1d" */
static bool parse_age(const char *text, int64_t *ret_s)
{
    static const struct {
        char unit;
        int64_t seconds;
    } units[] = {{'s', 1}, {'m', 60}, {'h', 3600}, {'d', 86400}};
    size_t len = strlen(text);
    int64_t number;

    for (size_t i = 0; i < ARRAY_LEN(units); i++) {
        if (len < 2 || text[len - 1] != units[i].unit ||
            !whole_parse((struct span){text, len - 1}, &number) || number < 1 ||
            number > OLDEST_S / units[i].seconds)
            continue;
        *ret_s = number * units[i].seconds;
        return true;
    }
    return false;
}

/* Fills `ret_filter`, whose pattern is to be freed; or gives what is wrong. */
static const char *read_filter(const struct parked_options *options, struct parked_filter *ret_filter,
                               struct pattern **ret_pattern)
{
    struct error error;
    enum reason reason;

    *ret_filter = (struct parked_filter){.target = options->target, .reason = options->reason};
    *ret_pattern = NULL;
    if (options->reason && !reason_parse(options->reason, &reason))
        return "--reason takes one of: no_target missing type range check foreign_key not_null unique "
               "refused";
    if (options->older_than && !parse_age(options->older_than, &ret_filter->older_than_s))
        return "--older-than takes a number of s, m, h or d, as in 1d";
    if (options->match && pattern_parse(options->match, ret_pattern, &error) < 0)
        return "--match takes a pattern, as 'match' of a target does: 'post.views.*'";
    ret_filter->match = *ret_pattern;
    return NULL;
}

bool command_parked_has_filter(const struct parked_options *options)
{
    return options->target || options->reason || options->older_than || options->match;
}

const char *command_parked_mistake(const struct command_options *options)
{
    const char *verb = options->words_len == 1 ? options->words[0] : "", *mistake;
    struct parked_filter filter;
    struct pattern *pattern;
    bool drops = strcmp(verb, "drop") == 0;

    if (!drops && strcmp(verb, "list") != 0 && strcmp(verb, "retry") != 0)
        return "parked takes one of: list, retry, drop";
    if (options->force)
        return "--force goes with quarantine apply only";
    if (drops && !command_parked_has_filter(&options->parked))
        return "parked drop wants to know which: --target, --reason, --older-than or --match ('*' is all)";
    mistake = read_filter(&options->parked, &filter, &pattern);
    pattern_free(pattern);
    return mistake;
}

static int list(struct postgres *postgres, const struct config *config, const struct parked_filter *filter,
                enum report_style style, struct error *error)
{
    struct parked_list rows = {0};
    int r = parked_read(postgres, config, filter, &rows, error);

    if (r == 0)
        report_parked(style, &rows);
    parked_list_done(&rows);
    return r;
}

static int decide(struct postgres *postgres, const struct config *config, const struct parked_filter *filter,
                  const struct command_options *options, struct error *error)
{
    struct parked_result result = {0};
    bool retries = strcmp(options->words[0], "retry") == 0;
    int r = retries ? parked_retry(postgres, config, filter, &result, error)
                    : parked_drop(postgres, config, filter, &result, error);

    if (r == 0 || result.applied_rows > 0 || result.dropped_rows > 0)
        report_parked_result(options->style, options->words[0], &result);
    return r;
}

/* Redis has no part in it, and may be away. */
int command_parked(const struct config *config, const struct command_options *options)
{
    struct postgres *postgres = NULL;
    struct parked_filter filter;
    struct pattern *pattern;
    struct error error;
    const char *mistake = read_filter(&options->parked, &filter, &pattern);
    int r = mistake ? error_set(&error, FAILURE_CONFIG, "%s", mistake) : 0;

    if (r == 0)
        r = postgres_new(config, &postgres, &error);
    if (r == 0)
        r = migrate_check(postgres, options->config_path, &error);
    if (r == 0)
        r = records_check_shards(postgres, config, false, &error);
    if (r == 0)
        r = strcmp(options->words[0], "list") == 0 ? list(postgres, config, &filter, options->style, &error)
                                                   : decide(postgres, config, &filter, options, &error);
    if (r < 0)
        log_error(LOG_LEVEL_ERROR, "parked_failed", &error);
    postgres_free(postgres);
    pattern_free(pattern);
    return failure_exit_code(r);
}
