/* simulation - the real cores of both programs over servers in memory, by a schedule drawn from a seed
 *
 * Two daemons (counterd/ingest.h, pipeline.h, replay.h and all that is behind them but the connection, with
 * spools on the real disk) that are killed, stopped and started again; up to three flushers at a time
 * (flusher/flush.h, each call of a seam a step of its own), an auditor (flusher/audit.h); a Redis that is
 * away, refuses, and goes back in time; a disk that is full; and a network that loses requests and replies
 * and delivers late what it was given by the dead. Nothing depends on a clock, an address or the kernel: the
 * same seed is the same run. After every step is checked that
 * - each value in Postgres is the sum of exactly those batches that the vector says are in;
 * - Redis takes no batch twice, and the same number is always the same batch;
 * - what Redis lacks and nobody has is told as lost;
 * - who is told that its increments are stored has them all acknowledged, and nothing of that is forgotten;
 * - the audit finds nothing lost or doubled, and is balanced as long as Redis keeps its data.
 * In the end the faults stop, everybody starts again and finishes, and each batch has to be in Postgres:
 * - of a daemon that lives, whatever happened to Redis, as far as its history reaches, or it told a loss;
 * - of one that was stopped, unless it said that it has dropped some: what Redis acknowledged, if Redis has
 *   not gone back since; what it did not, from the disk;
 * - of one that was killed: what was acknowledged, if Redis has not gone back since, and what was on disk.
 */
#ifndef TESTS_SIMULATION_H
#define TESTS_SIMULATION_H

#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>

struct schedule {
    uint64_t seed;
    bool rollbacks; /* Redis may go back to any earlier state */
    FILE *trace;    /* each event goes here; or NULL */
};

struct outcome {
    bool wrong;
    char text[256]; /* what is wrong, and at which step */
    unsigned steps, commits, crashes, rollbacks, quarantined;
    unsigned stops;   /* that were clean: Redis, or the disk, has all */
    unsigned spooled; /* batches that went to disk */
    unsigned answers; /* to those who wait until all is stored */
    unsigned losses;  /* that were told */
};

/* Around all runs: the directory in which they have their spools. */
void simulation_begin(void);
void simulation_end(void);

/* One at a time. */
struct outcome simulate(const struct schedule *schedule);

#endif
