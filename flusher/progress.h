/* progress - a bar on the terminal while a run goes over its shards */
#ifndef FLUSHER_PROGRESS_H
#define FLUSHER_PROGRESS_H

#include <stdbool.h>
#include <stdint.h>

/* Whether somebody would see it: stderr is a terminal. */
bool progress_is_seen(void);

/* Draws the bar over the one before it; progress_end() wipes it out. */
void progress_draw(int64_t shards_done, int64_t shards);
void progress_end(void);

#endif
