/* lanes - the databases that targets count in, and how, each with a pipeline of its own
 *
 * A lane is a database and a merge: its shards in Redis and its books in Postgres have a namespace of their
 * own, and no transaction ever spans two. The first is postgres.url and `add` under the config's own
 * namespace; it is there also when no target counts in it. The others are called "NAMESPACE@DIGEST", of the
 * `database` as it is written, "NAMESPACE@max", "NAMESPACE@DIGEST.max": nobody's namespace, as in those no
 * '@' may be. They are in the order of their names, so that the same targets make the same lanes, wherever in
 * the file they come first. Pure.
 */
#ifndef LIB_LANES_H
#define LIB_LANES_H

#include "lib/keyspace.h"
#include "lib/merge.h"

#define LANES_MAX 16

#define LANE_DIGEST_LEN 8 /* hex digits */

struct lane {
    char *database; /* as in struct target; "" = postgres.url */
    enum merge merge;
    char namespace[NAMESPACE_LEN_MAX + 1];
};

struct reader;

/* Once all is read: makes the lanes of the targets. */
void finish_lanes(struct reader *reader);

#endif
