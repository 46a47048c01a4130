/* world - what a simulation consists of; shared by its parts: network.c, daemons.c, oracle.c, simulation.c */
#ifndef TESTS_SIMULATION_WORLD_H
#define TESTS_SIMULATION_WORLD_H

#include "counterd/pipeline.h"
#include "counterd/replay.h"
#include "counterd/store.h"
#include "tests/simulation/simulation.h"
#include "tests/unit/memory_store.h"

#define SHARDS          2
#define DAEMONS         2
#define BATCHES_MAX     60 /* of a writer in a shard; when it comes near, it counts no more */
#define MESSAGES_MAX    256
#define CONNECTIONS_MAX 24
#define WAITS_MAX       3

/* A process, which has a writer of its own: the same number. */
struct process {
    enum process_state { PROCESS_RUNS, PROCESS_CRASHED, PROCESS_STOPPED } state;
    unsigned rollbacks;  /* how many there had been when the first part of it stopped */
    bool gave_up;        /* it stopped because Redis did not come in time */
    bool dropped;        /* it said that increments are nowhere */
    struct spool *spool; /* in which it writes; NULL = none */
};

/* A batch, as it was first sent or written to disk. */
struct sent {
    struct memory_deltas deltas;
    bool made, stored, acknowledged, spooled;
    bool blanked;       /* Redis has taken an empty one in its place */
    int holder;         /* the process that had it last */
    unsigned rollbacks; /* how many there had been when it was last acknowledged */
};

/* counterd/store.h's: a connection to Redis, of a worker or of a replay. */
struct store {
    int daemon; /* -1: nobody's */
    struct store_callbacks callbacks;
    enum connection_state { CONNECTION_AWAY, CONNECTION_ASKED, CONNECTION_UP } state;
    unsigned number; /* of this connection; no other ever has it */
    struct event *retry;
};

struct message {
    unsigned connection;
    int writer;
    uint32_t shard;
    bool is_probe;
    int64_t seq, known_durable;
    struct memory_deltas deltas;
    enum store_reply answer; /* of a reply, and: */
    uint64_t answer_seq;
};

struct queue {
    struct message items[MESSAGES_MAX];
    size_t len;
};

/* Somebody who wants to know when all that was counted so far is stored. */
struct asker {
    struct pipeline_wait wait;
    struct world *world;
    int daemon;
    uint64_t events; /* counted before */
    bool waits;
};

struct daemon {
    bool alive, finishing;
    int parts, stopping; /* what finishes: pipeline, and replay; how many of them have not yet */
    const struct config *config;
    int spool_directory; /* -1 = none */
    int writer;
    struct stats stats;
    struct ingest *ingest;
    struct pipeline *pipeline;
    struct replay *replay;
    int64_t finished_ms;          /* when it was told to */
    int64_t counted[MEMORY_KEYS]; /* micros, with what was carried over */
    uint64_t events;
    struct asker askers[WAITS_MAX];
};

struct world {
    const struct schedule *schedule;
    struct outcome outcome;
    uint64_t dice;
    struct memory_store stores[SHARDS];
    struct daemon daemons[DAEMONS];
    struct store connections[CONNECTIONS_MAX];
    unsigned connections_made;
    struct queue requests, replies;
    int writers; /* so far */
    struct process processes[MEMORY_WRITERS];
    struct sent sent[MEMORY_WRITERS][SHARDS][BATCHES_MAX + 1];
    bool redis_is_away, redis_refuses, disk_is_full;
    bool write_tears;  /* the next batch that goes to disk gets there in part, and its process dies */
    int torn;          /* the process that has to die of it; -1 = none */
    bool spool_writes; /* spool_push() is under way */
};

uint64_t roll(struct world *world, uint64_t sides);
void tell(const struct world *world, const char *format, ...) PRINTF(2, 3);

/* Notes the first thing that is wrong. */
void complain(struct world *world, const char *format, ...) PRINTF(2, 3);

/* --- network.c --- */

/* Connections that are made from now on are this world's. */
void network_begin(struct world *world);

/* The oldest message of a connection, or any that nobody waits for any more: the network brings it to Redis,
 * or to its daemon. False when there is none. */
bool deliver_request(struct world *world);
bool deliver_reply(struct world *world);

/* One of the connections that are asked for: comes about, or does not. False when there is none. */
bool connection_answered(struct world *world);

/* One that is up ends; all of them do. */
void connection_lost(struct world *world);
void connections_lost(struct world *world);

/* --- daemons.c --- */

/* Empty directories for spools. */
void daemons_begin(struct world *world);

/* Of daemon number `index`; each does nothing where it can't be done. */
void daemon_start(struct world *world, int index);
void daemon_crash(struct world *world, int index);
void daemon_stop(struct world *world, int index);
void daemon_count(struct world *world, int index);
void daemon_ask(struct world *world, int index);

/* Processes that have come to their end, one way or the other. After every step. */
void daemons_reap(struct world *world);

/* All that it has counted is stored, and all that earlier processes had left. */
bool daemon_is_idle(const struct world *world, int index);

/* --- oracle.c --- */

/* How many processes may still be started: each is a writer, for whom there must be room. */
int processes_left(const struct world *world);

/* Of a writer, by its name. */
int number_of(const char *writer);

/* Whether daemons have no room for much of what Redis acknowledged: they say what they lose by that. */
bool has_short_history(const struct world *world);

struct memory_deltas deltas_of(const struct batch *batch);

/* A batch goes to Redis, or to disk; `holder` is the process that has it. */
struct sent *note_batch(struct world *world, int holder, int writer, uint32_t shard,
                        const struct batch *batch);

/* Of all its batches, how many increments are acknowledged. */
uint64_t acknowledged_events(const struct world *world, int writer);

/* What was acknowledged is in Redis, or in Postgres. */
void check_stored(struct world *world, int writer);

/* What was counted is in batches, but for less than a unit of a key. */
void check_counted(struct world *world, const struct daemon *daemon);

/* Each value in Postgres is the sum of the batches that the vector says are in. */
void check_values(struct world *world, int shard);

/* Whether a batch is not in Postgres that has to be; `told`: that is wrong. */
bool lacks_anything(struct world *world, bool told);

#endif
