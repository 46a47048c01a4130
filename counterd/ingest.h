/* ingest - received bytes into the table, every line counted as accepted or rejected by reason
 *
 * Where time matters to a key's target, an increment counts in the bucket of its |T, or else of the moment; a
 * |T more than a day ahead of the clock is `range`. Pure: no socket, and no clock but for that moment, once
 * per turn, and for the time of a sample. Belongs to one worker.
 */
#ifndef COUNTERD_INGEST_H
#define COUNTERD_INGEST_H

#include "counterd/stats.h"
#include "lib/table.h"
#include "lib/targets.h"

struct ingest;

/* Keeps `stats`, into which it counts. Gives NULL when out of memory. */
struct ingest *ingest_new(struct stats *stats);
void ingest_free(struct ingest *ingest);

/* Keeps the table into which lines count from now on, and the rules by which they get a bucket;
 * NULL = none do. */
void ingest_set_table(struct ingest *ingest, struct table *table, const struct targets *targets);

/* What tells the time in unix milliseconds: clock_unix_ms(), unless a test needs another. */
void ingest_set_clock(struct ingest *ingest, int64_t (*unix_ms)(void));

/* Lines separated by LF, borrowed for the call. `cut`: the last one is not whole, and is rejected as
 * truncated. */
void ingest_lines(struct ingest *ingest, struct span lines, bool cut);

/* The same in less time for many small pieces: they are borrowed, and may not be counted yet, until
 * ingest_settle(). Nothing else may be called in between. */
void ingest_gather(struct ingest *ingest, struct span lines, bool cut);
void ingest_settle(struct ingest *ingest);

/* One line, not blank, without its LF or CR LF; tells what became of it. */
enum reject ingest_line(struct ingest *ingest, struct span line);

/* A line of which no more than its beginning is there, for a reason that its bytes don't tell. */
void ingest_reject(struct ingest *ingest, enum reject reject, struct span line);

/* Makes the counts visible to readers, and lets a few more samples be taken; once per turn of the loop. */
void ingest_publish(struct ingest *ingest);

#endif
