/* daemon - counterd as a whole: opens everything, runs the workers, obeys signals, stops truthfully */
#ifndef COUNTERD_DAEMON_H
#define COUNTERD_DAEMON_H

#include "lib/config.h"

/* Runs until SIGTERM or SIGINT and returns an exit code of sysexits(3). SIGHUP reads `path` again. Takes
 * `config`. */
int daemon_run(struct config *config, const char *path);

#endif
