/* world - what a simulation consists of; shared by its halves, daemons.c and simulation.c */
#ifndef TESTS_SIMULATION_WORLD_H
#define TESTS_SIMULATION_WORLD_H

#include "counterd/outbox.h"
#include "tests/simulation/simulation.h"
#include "tests/unit/memory_store.h"

#define SHARDS       2
#define DAEMONS      2
#define BATCHES_MAX  48 /* of a writer in a shard; then it counts no more */
#define MESSAGES_MAX 256

/* A batch as it was first sent. */
struct sent {
    struct memory_deltas deltas;
    bool made, stored, acknowledged;
};

struct message {
    int daemon;
    unsigned connection; /* of the daemon, by which it came */
    int writer;
    uint32_t shard;
    bool is_probe, late; /* late: nobody waits for it any more */
    int64_t seq, known_durable;
    struct memory_deltas deltas;
    enum memory_append answer; /* of a reply, and: */
    int64_t answer_seq;
};

struct queue {
    struct message items[MESSAGES_MAX];
    size_t len;
};

struct daemon {
    bool alive, connected;
    int writer;
    unsigned connection;
    struct outbox *outbox;
    struct table *tables[2];
    unsigned filling;
    int64_t counted[MEMORY_KEYS]; /* micros */
};

struct world {
    const struct schedule *schedule;
    struct outcome outcome;
    uint64_t dice;
    struct memory_store stores[SHARDS];
    struct daemon daemons[DAEMONS];
    struct queue requests, replies;
    int writers; /* so far */
    struct sent sent[MEMORY_WRITERS][SHARDS][BATCHES_MAX + 1];
};

uint64_t roll(struct world *world, uint64_t sides);
void tell(const struct world *world, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Notes the first thing that is wrong. */
void complain(struct world *world, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Of daemon number `index`; each does nothing where it can't be done. */
void daemon_start(struct world *world, int index);
void daemon_crash(struct world *world, int index);
void daemon_count(struct world *world, int index);
void daemon_swap(struct world *world, int index);
void daemon_send(struct world *world, int index, uint32_t shard);
void daemon_probe(struct world *world, int index);
void daemon_connect(struct world *world, int index);
void daemon_disconnect(struct world *world, int index);
void daemon_free(struct daemon *daemon);

/* The oldest message of a connection, or any late one: the network brings it to Redis, or to its daemon.
 * False when there is none. */
bool deliver_request(struct world *world);
bool deliver_reply(struct world *world);

/* Nothing is on its way, and the daemon has nothing to send. */
bool daemon_is_idle(const struct world *world, int index);

/* What was counted is in batches, but for less than a unit of a key. Takes the tables' content. */
void daemon_check(struct world *world, int index);

#endif
