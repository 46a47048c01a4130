#include "flusher/lanes.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <sysexits.h>
#include <unistd.h>

#include "lib/log.h"
#include "lib/targets.h"

/* Wrong data before what somebody has to change, before what is away, before what may be better next time. */
static int worse_code(int a, int b)
{
    static const int order[] = {EX_DATAERR, EX_CONFIG, EX_UNAVAILABLE};

    for (size_t i = 0; i < ARRAY_LEN(order); i++)
        if (a == order[i] || b == order[i])
            return order[i];
    return a == EX_OK ? b : a;
}

/* The file of another lane stands beside the first one's: counterd.prom, counterd@1a2b3c4d.prom. Gives it, to
 * be freed; NULL when out of memory. */
static char *metrics_path_of(const struct config *config, const char *path)
{
    const char *slash = strrchr(path, '/'), *dot = strrchr(path, '.');
    const char *digest = config->namespace + strlen(config->lanes[0].namespace);
    char *own;

    if (!dot || (slash && dot < slash))
        dot = path + strlen(path);
    return asprintf(&own, "%.*s%s%s", (int)(dot - path), path, digest, dot) < 0 ? NULL : own;
}

static int execute_one(const struct config *config, size_t lane, const struct command_options *options,
                       lanes_command *command)
{
    struct command_options own = *options;
    struct config config_own;
    char *metrics_path = NULL;
    int code;

    config_of_lane(config, lane, &config_own);
    if (config->lanes_len > 1) {
        log_set_namespace(config_own.namespace);
        report_set_namespace(config_own.namespace);
    }
    if (options->metrics_path) {
        own.metrics_path = metrics_path = metrics_path_of(&config_own, options->metrics_path);
        if (!metrics_path)
            log_event(LOG_LEVEL_ERROR, "metrics_file_not_written", "error=\"out of memory\"");
    }
    code = command(&config_own, &own);
    free(metrics_path);
    return code;
}

static int execute_in_turn(const struct config *config, const struct command_options *options,
                           lanes_command *command)
{
    int code = EX_OK;

    for (size_t lane = 0; lane < config->lanes_len; lane++)
        code = worse_code(code, execute_one(config, lane, options, command));
    return code;
}

/* --- at once --- */

/* Does not come back in the child. */
static pid_t start(const struct config *config, size_t lane, const struct command_options *options,
                   lanes_command *command, const sigset_t *mask)
{
    struct command_options own = *options;
    pid_t parent = getpid(), child = fork();
    int code;

    if (child != 0)
        return child;
    /* Whoever kills the parent means all. */
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent)
        _exit(EX_TEMPFAIL);
    sigprocmask(SIG_SETMASK, mask, NULL);
    own.among_lanes = true;
    code = execute_one(config, lane, &own, command);
    fflush(stdout);
    _exit(code);
}

static int code_of(const struct config *config, size_t lane, int status)
{
    if (WIFEXITED(status))
        return WEXITSTATUS(status);
    if (WTERMSIG(status) == SIGTERM || WTERMSIG(status) == SIGINT)
        return EX_TEMPFAIL;
    log_event(LOG_LEVEL_ERROR, "lane_killed", "namespace=%s signal=%d", config->lanes[lane].namespace,
              WTERMSIG(status));
    return EX_TEMPFAIL;
}

/* Takes those that have ended out of `children`; adds their codes to *code. Returns how many are left. */
static size_t reap(const struct config *config, pid_t children[LANES_MAX], int *code)
{
    size_t left = 0;
    int status;

    for (size_t lane = 0; lane < config->lanes_len; lane++) {
        if (children[lane] > 0 && waitpid(children[lane], &status, WNOHANG) == children[lane]) {
            *code = worse_code(*code, code_of(config, lane, status));
            children[lane] = 0;
        }
        left += children[lane] > 0;
    }
    return left;
}

static void pass_on(const struct config *config, const pid_t children[LANES_MAX], int signal)
{
    for (size_t lane = 0; lane < config->lanes_len; lane++)
        if (children[lane] > 0)
            kill(children[lane], signal);
}

static int execute_at_once(const struct config *config, const struct command_options *options,
                           lanes_command *command)
{
    pid_t children[LANES_MAX] = {0};
    int code = EX_OK, caught = 0;
    sigset_t signals, mask;
    size_t left;

    /* Inherited as ignored, nobody would hear of the children's ends. */
    signal(SIGCHLD, SIG_DFL);
    sigemptyset(&signals);
    sigaddset(&signals, SIGCHLD);
    sigaddset(&signals, SIGTERM);
    sigaddset(&signals, SIGINT);
    sigprocmask(SIG_BLOCK, &signals, &mask);
    fflush(stdout);
    for (size_t lane = 0; lane < config->lanes_len; lane++) {
        children[lane] = start(config, lane, options, command, &mask);
        if (children[lane] < 0) {
            log_event(LOG_LEVEL_ERROR, "lane_not_started", "namespace=%s error=\"%s\"",
                      config->lanes[lane].namespace, strerror(errno));
            code = EX_TEMPFAIL;
        }
    }
    while ((left = reap(config, children, &code)) > 0) {
        int number;
        /* One that ends by itself was to stay: whoever supervises all can start all again. */
        if (options->every_ms > 0 && left < config->lanes_len)
            pass_on(config, children, SIGTERM);
        number = sigwaitinfo(&signals, NULL);
        if (number != SIGTERM && number != SIGINT)
            continue;
        caught = number;
        pass_on(config, children, number);
    }
    sigprocmask(SIG_SETMASK, &mask, NULL);
    /* As it would have ended by itself: with --every a signal is the usual end. */
    if (caught && options->every_ms == 0)
        raise(caught);
    return code;
}

/* --- which --- */

static int refuse(const struct config *config, const char *problem)
{
    fprintf(stderr, "flusher: %s; the configuration has:\n", problem);
    for (size_t lane = 0; lane < config->lanes_len; lane++)
        fprintf(stderr, "  --namespace %s\n", config->lanes[lane].namespace);
    return EX_USAGE;
}

static size_t find_lane(const struct config *config, const char *namespace)
{
    size_t lane = 0;

    while (lane < config->lanes_len && strcmp(config->lanes[lane].namespace, namespace) != 0)
        lane++;
    return lane;
}

int lanes_execute(const struct config *config, const struct command_options *options, enum lanes_mode mode,
                  lanes_command *command)
{
    size_t lane = options->namespace ? find_lane(config, options->namespace) : 0;

    if (lane == config->lanes_len)
        return refuse(config, "no lane has the namespace that --namespace names");
    if (options->namespace || config->lanes_len == 1)
        return execute_one(config, lane, options, command);
    switch (mode) {
    case LANES_AT_ONCE:
        return execute_at_once(config, options, command);
    case LANES_OF_KEY:
        lane = targets_route(config->targets, span_of(options->key)).lane;
        return execute_one(config, lane, options, command);
    case LANES_ONE:
        return execute_one(config, 0, options, command);
    case LANES_NAMED:
        return refuse(config, "an ID is one of a database; say of which with --namespace");
    case LANES_IN_TURN:
        break;
    }
    return execute_in_turn(config, options, command);
}
