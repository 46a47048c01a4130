/* top - `flusher top`: the whole pipeline in a terminal, live
 *
 * On a terminal it takes the alternate screen, redraws the lines that changed, follows the window's size, and
 * gives the terminal back as it was, also on SIGINT, SIGTERM, SIGHUP and SIGTSTP. Anywhere else, or when
 * told, it prints one frame.
 */
#ifndef FLUSHER_TOP_H
#define FLUSHER_TOP_H

#include "flusher/commands.h"

#define TOP_INTERVAL_MS 2000 /* unless told otherwise */

/* 0 when it was left, or when Redis and Postgres answered; else what is wrong with them. */
int command_top(const struct config *config, const struct command_options *options);

#endif
