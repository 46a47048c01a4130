/* ingest - received bytes into the table, every line counted as accepted or rejected by reason
 *
 * Pure: no socket, no clock but for the time of a sample. Belongs to one worker.
 */
#ifndef COUNTERD_INGEST_H
#define COUNTERD_INGEST_H

#include "counterd/stats.h"
#include "lib/table.h"

struct ingest;

/* Keeps `stats`, into which it counts. Gives NULL when out of memory. */
struct ingest *ingest_new(struct stats *stats);
void ingest_free(struct ingest *ingest);

/* Keeps the table into which lines count from now on. */
void ingest_set_table(struct ingest *ingest, struct table *table);

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
