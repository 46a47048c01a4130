/* lanes - the databases that targets count in, each with a pipeline of its own
 *
 * A lane is a database: its shards in Redis and its rows in Postgres have a namespace of their own, and no
 * transaction ever spans two. The first is postgres.url under the config's own namespace; it is there also
 * when no target counts in it. The others are called "NAMESPACE@DIGEST", of the `database` as it is written:
 * nobody's namespace, as in those no '@' may be. They are in the order of their names, so that the same
 * databases make the same lanes, wherever in the file they come first. Pure.
 */
#ifndef LIB_LANES_H
#define LIB_LANES_H

#include "lib/keyspace.h"

#define LANES_MAX 16

#define LANE_DIGEST_LEN 8 /* hex digits */

struct lane {
    char *database; /* as in struct target */
    char namespace[NAMESPACE_LEN_MAX + 1];
};

struct reader;

/* Once all is read: makes the lanes of the targets. */
void finish_lanes(struct reader *reader);

#endif
