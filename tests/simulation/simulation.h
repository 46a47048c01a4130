/* simulation - the real cores of both programs over servers in memory, by a schedule drawn from a seed
 *
 * Two daemons (lib/table.h, counterd/outbox.h, and what counterd/pipeline.c does with them), up to three
 * flushers at a time (flusher/flush.h, each call of a seam a step of its own), an auditor (flusher/audit.h),
 * and a network that loses requests and replies and delivers late what it was given by the dead. Nothing
 * depends on a clock, an address or the kernel: the same seed is the same run. After every step is checked
 * that
 * - each value in Postgres is the sum of exactly those batches that the vector says are in;
 * - Redis takes no batch twice, and the same number is always the same batch;
 * - the audit finds nothing lost or doubled, and is balanced as long as Redis keeps its data.
 * In the end the faults stop, everybody finishes, and each batch that was acknowledged has to be in Postgres:
 * those of living daemons always, those of dead ones unless Redis went back in time.
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
    unsigned steps, commits, crashes, rollbacks, quarantined, late;
};

/* One at a time. */
struct outcome simulate(const struct schedule *schedule);

#endif
