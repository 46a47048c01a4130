#include <getopt.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sysexits.h>

#include "flusher/lanes.h"
#include "flusher/top.h"
#include "flusher/whole.h"
#include "lib/log.h"
#include "lib/text.h"

#define EVERY_S_MAX    86400
#define INTERVAL_S_MAX 3600

struct subcommand {
    const char *name;
    lanes_command *run;
    enum lanes_mode lanes;
    bool takes_key;
    const char *(*mistake)(const struct command_options *); /* in its words, if it takes any; or NULL */
    bool repeats;                                           /* takes --every, --dry-run, --metrics-file */
    const char *help;
};

/* The first is what no command means. */
static const struct subcommand subcommands[] = {
    {"run", command_run, LANES_AT_ONCE, false, NULL, true,
     "flush what is pending in Redis to Postgres (what no command means)"},
    {"migrate", command_migrate, LANES_IN_TURN, false, NULL, false,
     "create or upgrade the tables in Postgres"},
    {"status", command_status, LANES_IN_TURN, false, NULL, false,
     "what is pending, how old it is, and how the last run went"},
    {"top", command_top, LANES_ONE, false, NULL, false, "the whole pipeline in a terminal, live; q leaves"},
    {"get", command_get, LANES_OF_KEY, true, NULL, false, "get KEY: the key's value, stored and pending"},
    {"audit", command_audit, LANES_IN_TURN, false, NULL, false,
     "whether all that was accepted is somewhere, and once"},
    {"parked", command_parked, LANES_IN_TURN, false, command_parked_mistake, false,
     "list | retry | drop: what Postgres refused, and what becomes of it"},
    {"quarantine", command_quarantine, LANES_IN_TURN, false, command_quarantine_mistake, false,
     "list | apply ID... | drop ID...: what was not applied because Redis went back in time"},
};

static int help(void)
{
    puts("usage: flusher -c FILE [COMMAND] [OPTIONS]\n"
         "Moves counters from Redis to Postgres.\n\n"
         "commands:");
    for (size_t i = 0; i < ARRAY_LEN(subcommands); i++)
        printf("  %-10s %s\n", subcommands[i].name, subcommands[i].help);
    puts("\noptions:\n"
         "  -c, --config FILE  the configuration, the same file as counterd's\n"
         "  --namespace NAME   only of this one, where targets are in several databases\n"
         "  --every SECONDS    run: stay and repeat; SIGTERM finishes the shard in work and exits 0\n"
         "  --dry-run          run: say what would be flushed, change nothing\n"
         "  --target TABLE, --reason REASON, --older-than 1d, --match PATTERN\n"
         "                     parked: only the rows to which all of it applies\n"
         "  --metrics-file PATH\n"
         "                     run: say how it went in a file for node_exporter's textfile collector\n"
         "  --interval SECONDS top: how often to look; 2 unless told\n"
         "  --once             top: one frame of plain text; also what a pipe gets\n"
         "  --force            quarantine apply: also what counts some batches twice\n"
         "  --json             print one JSON object\n"
         "  --version, --help\n\n"
         "exit codes: 0 done, 64 usage, 65 the data say no, 69 Redis or Postgres unavailable, 75 try again "
         "later, 78 "
         "configuration");
    return EX_OK;
}

static int usage(const char *problem, const char *subject)
{
    fprintf(stderr, "flusher: %s%s%s%s; see flusher --help\n", problem, subject ? " '" : "",
            subject ? subject : "", subject ? "'" : "");
    return EX_USAGE;
}

static enum lanes_mode mode_of(const struct subcommand *subcommand, const struct command_options *options)
{
    /* A rehearsal is read by somebody, and an ID says nothing by itself. */
    if (options->dry_run)
        return LANES_IN_TURN;
    return subcommand->run == command_quarantine && options->words_len > 1 ? LANES_NAMED : subcommand->lanes;
}

static int execute(const struct subcommand *subcommand, const struct command_options *options)
{
    struct config *config;
    struct error error;
    int code;

    if (config_load(options->config_path, &config, &error) < 0) {
        log_error(LOG_LEVEL_ERROR, "config_refused", &error);
        return EX_CONFIG;
    }
    code = lanes_execute(config, options, mode_of(subcommand, options), subcommand->run);
    config_free(config);
    return code;
}

/* The command and its key, which are what getopt left. */
static int run_words(int count, char *const *words, struct command_options *options)
{
    const struct subcommand *subcommand = NULL;
    const char *name = count > 0 ? words[0] : subcommands[0].name;

    for (size_t i = 0; i < ARRAY_LEN(subcommands); i++)
        if (strcmp(name, subcommands[i].name) == 0)
            subcommand = &subcommands[i];
    if (!subcommand)
        return usage("unknown command", name);
    if (subcommand->takes_key && count < 2)
        return usage("get takes a KEY", NULL);
    if (subcommand->mistake) {
        options->words = words + 1;
        options->words_len = count - 1;
        if (subcommand->mistake(options))
            return usage(subcommand->mistake(options), NULL);
    } else if (options->force) {
        return usage("--force goes with quarantine apply only, not with", name);
    } else if (count > (subcommand->takes_key ? 2 : 1)) {
        return usage("unexpected argument", words[count - 1]);
    }
    if (subcommand->takes_key) {
        options->key = words[1];
        if (strlen(options->key) < 1 || strlen(options->key) > KEY_LEN_MAX || strchr(options->key, ' ') ||
            !text_is_utf8(span_of(options->key)))
            return usage("a key has 1 to 255 bytes of UTF-8 and no blanks; this is none:", options->key);
    }
    if (subcommand->run != command_parked && command_parked_has_filter(&options->parked))
        return usage("--target, --reason, --older-than and --match go with parked only, not with", name);
    if (!subcommand->repeats && (options->every_ms || options->dry_run || options->metrics_path))
        return usage("--every, --dry-run and --metrics-file go with run only, not with", name);
    if (options->dry_run && (options->every_ms || options->metrics_path))
        return usage("--dry-run excludes --every and --metrics-file", NULL);
    if (subcommand->run != command_top && (options->once || options->interval_ms))
        return usage("--once and --interval go with top only, not with", name);
    if (subcommand->run == command_top && options->style == REPORT_JSON)
        return usage("top is for people; status --json and audit --json have the same figures", NULL);
    if (!options->config_path)
        return usage("-c FILE is missing", NULL);
    return execute(subcommand, options);
}

static bool parse_seconds(const char *text, int64_t max, int64_t *ret_ms)
{
    int64_t seconds;

    if (!whole_parse(span_of(text), &seconds) || seconds < 1 || seconds > max)
        return false;
    *ret_ms = seconds * 1000;
    return true;
}

static const struct option long_options[] = {
    {"config", required_argument, NULL, 'c'},
    {"every", required_argument, NULL, 'e'},
    {"dry-run", no_argument, NULL, 'n'},
    {"force", no_argument, NULL, 'f'},
    {"target", required_argument, NULL, 'T'},
    {"reason", required_argument, NULL, 'R'},
    {"older-than", required_argument, NULL, 'O'},
    {"match", required_argument, NULL, 'M'},
    {"json", no_argument, NULL, 'j'},
    {"namespace", required_argument, NULL, 'N'},
    {"metrics-file", required_argument, NULL, 'm'},
    {"once", no_argument, NULL, 'o'},
    {"interval", required_argument, NULL, 'i'},
    {"help", no_argument, NULL, 'h'},
    {"version", no_argument, NULL, 'v'},
    {NULL, 0, NULL, 0},
};

int main(int argc, char *argv[])
{
    struct command_options options = {0};
    int option;

    log_hold_descriptors();
    /* A connection that the other side closed is an error of write(2), not the end of us. */
    signal(SIGPIPE, SIG_IGN);
    while ((option = getopt_long(argc, argv, "c:h", long_options, NULL)) != -1) {
        switch (option) {
        case 'c':
            options.config_path = optarg;
            break;
        case 'e':
            if (!parse_seconds(optarg, EVERY_S_MAX, &options.every_ms))
                return usage("--every takes whole seconds from 1 to 86400, not", optarg);
            break;
        case 'n':
            options.dry_run = true;
            break;
        case 'N':
            options.namespace = optarg;
            break;
        case 'm':
            options.metrics_path = optarg;
            break;
        case 'i':
            if (!parse_seconds(optarg, INTERVAL_S_MAX, &options.interval_ms))
                return usage("--interval takes whole seconds from 1 to 3600, not", optarg);
            break;
        case 'o':
            options.once = true;
            break;
        case 'f':
            options.force = true;
            break;
        case 'T':
            options.parked.target = optarg;
            break;
        case 'R':
            options.parked.reason = optarg;
            break;
        case 'O':
            options.parked.older_than = optarg;
            break;
        case 'M':
            options.parked.match = optarg;
            break;
        case 'j':
            options.style = REPORT_JSON;
            break;
        case 'v':
            puts("flusher " VERSION);
            return EX_OK;
        case 'h':
            return help();
        default:
            fputs("usage: flusher -c FILE [COMMAND] [OPTIONS]; see flusher --help\n", stderr);
            return EX_USAGE;
        }
    }
    return run_words(argc - optind, argv + optind, &options);
}
