/* counterd - statsd lines in, Redis out; see counterd(8) */
#include <getopt.h>
#include <stdio.h>
#include <stdlib.h>
#include <sysexits.h>

#include "counterd/daemon.h"
#include "counterd/version.h"
#include "lib/log.h"

static const char usage[] =
    "usage: counterd -c FILE [--check]\n"
    "       counterd --version | --help\n"
    "\n"
    "Listens for statsd counters, gathers them in memory and adds them to Redis.\n"
    "\n"
    "  -c, --config FILE  the configuration (JSON with comments), shared with flusher\n"
    "      --check        read the configuration, say what is wrong with it, and exit\n"
    "      --version      print the version and exit\n"
    "  -h, --help         print this and exit\n"
    "\n"
    "SIGTERM stores everything and ends; SIGHUP reads the configuration again.\n";

struct arguments {
    const char *path;
    bool check;
};

enum { OPTION_CHECK = 256, OPTION_VERSION };

/* Returns -1 to go on, or the exit code. */
static int parse_arguments(int argc, char **argv, struct arguments *arguments)
{
    static const struct option options[] = {
        {"config", required_argument, NULL, 'c'},
        {"check", no_argument, NULL, OPTION_CHECK},
        {"version", no_argument, NULL, OPTION_VERSION},
        {"help", no_argument, NULL, 'h'},
        {0},
    };
    int option;

    while ((option = getopt_long(argc, argv, "c:h", options, NULL)) != -1) {
        switch (option) {
        case 'c':
            arguments->path = optarg;
            break;
        case OPTION_CHECK:
            arguments->check = true;
            break;
        case OPTION_VERSION:
            puts("counterd " COUNTERD_VERSION);
            return EX_OK;
        case 'h':
            fputs(usage, stdout);
            return EX_OK;
        default:
            fputs("usage: counterd -c FILE [--check]; see counterd --help\n", stderr);
            return EX_USAGE;
        }
    }
    if (optind < argc) {
        fprintf(stderr, "counterd: unexpected argument '%s'; see counterd --help\n", argv[optind]);
        return EX_USAGE;
    }
    if (!arguments->path) {
        fputs("counterd: -c FILE is missing; see counterd --help\n", stderr);
        return EX_USAGE;
    }
    return -1;
}

int main(int argc, char **argv)
{
    struct arguments arguments = {0};
    struct config *config;
    struct error error;
    int code;

    log_hold_descriptors();
    code = parse_arguments(argc, argv, &arguments);
    if (code >= 0)
        return code;
    if (config_load(arguments.path, &config, &error) < 0) {
        fprintf(stderr, "%s\n", error.text);
        return EX_CONFIG;
    }
    if (arguments.check) {
        printf("%s: ok\n", arguments.path);
        config_free(config);
        return EX_OK;
    }
    return daemon_run(config, arguments.path);
}
