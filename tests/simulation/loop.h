/* loop - what the programs take from outside and a simulation must have in its own hand: time, timers, ids
 *
 * Defines what lib/clock.h and lib/id.h declare, and as much of libevent's timers as pipeline, sender and
 * replay use; the linker takes these. Time stands still but for loop_fire().
 */
#ifndef TESTS_SIMULATION_LOOP_H
#define TESTS_SIMULATION_LOOP_H

#include <stdbool.h>

/* Another run begins: time and ids start again. No timer is left from the last one. */
void loop_reset(void);

/* Time goes on to the timer that is due first, which goes off. False when none is armed. */
bool loop_fire(void);

#endif
