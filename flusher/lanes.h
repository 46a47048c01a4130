/* lanes - a command is carried out for each lane of the configuration (lib/lanes.h)
 *
 * A lane is a whole configuration to a command: it knows of no other. All that is printed and logged names
 * the lane's namespace when there are several, and the exit code is the worst of theirs.
 *
 * `run` has a process for each lane, at the same time: a Postgres that is away, hangs or is slow keeps nobody
 * else's counts waiting, whatever the call is in which it does. All other commands take the lanes in turn.
 */
#ifndef FLUSHER_LANES_H
#define FLUSHER_LANES_H

#include "flusher/commands.h"

enum lanes_mode {
    LANES_IN_TURN,
    LANES_AT_ONCE,
    LANES_OF_KEY, /* only the lane in which options->key counts */
    LANES_ONE,    /* the first, unless options->namespace names another */
    LANES_NAMED,  /* where there are several, options->namespace has to say which */
};

typedef int lanes_command(const struct config *config, const struct command_options *options);

/* Gives the exit code. */
int lanes_execute(const struct config *config, const struct command_options *options, enum lanes_mode mode,
                  lanes_command *command);

#endif
