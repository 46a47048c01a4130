/* outbox - a worker's batches: out of the draining table, to Redis, until Postgres has them
 *
 * The writer's side of PROTOCOL.md as a pure state machine: no connection, no clock. The caller sends what
 * outbox_next() gives and says what became of it. It keeps these promises:
 * - each shard numbers its batches 1, 2, 3 ..., and has at most one in flight;
 * - a batch, once it has a number, never changes and never goes back into the table; after a lost reply it is
 * sent again as it was;
 * - acknowledged batches stay in a history until Redis says that they are in Postgres, so that they can be
 * sent again when Redis turns out to have gone back in time. The history is bounded by history_bytes: beyond
 * it the oldest batches are emptied, and if it comes to that, counted as lost. Only whole units are sent; the
 * fraction that is left of a key is carried into the table that fills;
 * - what is not acknowledged may wait on disk: the caller writes what outbox_spool_next() gives, and hands it
 * back by outbox_load(), in the order in which it was written. A batch that can't be read again is replaced
 * by an empty one, and counted as lost;
 * - what the table's keys are fanned out to is sent behind them, and belongs to the table: it is drained when
 * both are.
 */
#ifndef COUNTERD_OUTBOX_H
#define COUNTERD_OUTBOX_H

#include "counterd/batch.h"
#include "counterd/fanout.h"
#include "lib/table.h"

struct outbox;

struct outbox_options {
    uint32_t shards;
    size_t batch_keys_max; /* so many that Redis is not held for more than a few ms */
    size_t history_bytes;
};

/* Gives NULL when out of memory. */
struct outbox *outbox_new(const struct outbox_options *options);
void outbox_free(struct outbox *outbox);

void outbox_set_history_bytes(struct outbox *outbox, size_t history_bytes);

/* Starts to drain `table`, whose keys are fanned out as the targets say (NULL = they are not); fractions go
 * to `carry`. All three are kept, by reference, until outbox_drained() says true and the next call of this.
 */
void outbox_drain(struct outbox *outbox, struct table *table, struct table *carry,
                  const struct targets *targets);

/* What time it is, for tables to be drained: a fraction that is left of a bucket which is over by then goes
 * on in the bucket of that time. 0, as at first: none is over. */
void outbox_set_time(struct outbox *outbox, int64_t unix_s);

/* Whether all of the table has been acknowledged, or is on disk: another table may be drained. */
bool outbox_drained(const struct outbox *outbox);

/* Whether the table is fanned out, or fractions of it wait for others, and what that makes is not there yet,
 * nor on disk. */
bool outbox_fans_out(const struct outbox *outbox);

/* Whether all that ever came is acknowledged. */
bool outbox_stored(const struct outbox *outbox);

/* The batch that the shard should send now; it is in flight from here on. NULL: nothing to send, one in
 * flight already, the next one is on disk, or no memory for a batch (then it stays in the table, and a later
 * call tries again).
 * Borrowed from the outbox until its outcome is told. */
const struct batch *outbox_next(struct outbox *outbox, uint32_t shard);

/* The highest seq of the shard that Redis has told to be in Postgres; goes along with every batch. */
uint64_t outbox_durable(const struct outbox *outbox, uint32_t shard);

/* What an answer has newly acknowledged. */
struct outbox_ack {
    uint64_t events;
    uint64_t segment; /* of the spool, which has to keep it no longer; 0 = none */
};

/* The batch in flight is in Redis (OK or DUP: both mean applied). */
struct outbox_ack outbox_acknowledge(struct outbox *outbox, uint32_t shard, uint64_t durable);

/* What the shard has sent is in Postgres up to `durable`; as outbox_acknowledge(), without a batch in flight.
 */
void outbox_note_durable(struct outbox *outbox, uint32_t shard, uint64_t durable);

/* Redis may have gone back: whether it has what it acknowledged is in doubt, shard by shard, until it has
 * answered to a batch or a probe. */
void outbox_doubt(struct outbox *outbox);

/* Whether a shard is in doubt; or Redis has gone back, and not taken again what it lacks. */
bool outbox_is_in_doubt(const struct outbox *outbox);

/* The seq that a probe should ask for; 0: none is needed, as the shard has nothing that Redis could have
 * forgotten, or a batch will tell: one in flight, or the next one if there is no doubt. */
uint64_t outbox_probe(const struct outbox *outbox, uint32_t shard);

/* What a rollback of Redis took that no history held. */
struct outbox_loss {
    uint64_t first_seq, last_seq; /* from the first to the last that is missing; 0, 0: nothing */
    uint64_t events; /* at most: those of batches already in Postgres can't be told apart any more */
};

/* Redis knows nothing after `last`: the shard goes back and sends all of it again. Returns how many batches
 * that is. */
uint64_t outbox_rewind(struct outbox *outbox, uint32_t shard, uint64_t last, struct outbox_loss *ret_loss);

/* What became of the shard's batch in flight is unknown, or Redis refused it for now: it will be sent again.
 * Returns whether one was in flight. */
bool outbox_unsend(struct outbox *outbox, uint32_t shard);

/* The shard's next batch that should be written to disk: unacknowledged, and not there yet. NULL: none, or no
 * memory. Borrowed; unless outbox_spooled() follows, it is sent from memory, or offered again. */
const struct batch *outbox_spool_next(struct outbox *outbox, uint32_t shard);

/* What outbox_spool_next() gave is on disk, in that segment; the outbox lets go of its content, unless it is
 * being sent. */
void outbox_spooled(struct outbox *outbox, uint32_t shard, uint64_t segment);

/* Whether batches that are not acknowledged are on disk. */
bool outbox_is_spooled(const struct outbox *outbox);

/* Whether some of them are only there. */
bool outbox_is_away(const struct outbox *outbox);

/* How many batches that came back from disk are not acknowledged yet. */
size_t outbox_loaded(const struct outbox *outbox);

/* A batch that came back from disk, in the order in which it was written; taken. False when it is not
 * awaited: it never left memory, or was acknowledged. */
bool outbox_load(struct outbox *outbox, uint32_t shard, struct batch *batch);

/* For an outbox that has done nothing yet: an earlier process has left this batch on disk; every one is told,
 * in the order in which they are going to be loaded. What came before the first, and between, is taken as
 * acknowledged, its content gone. False when the batch is not one that will be awaited. */
bool outbox_expect(struct outbox *outbox, uint32_t shard, const struct batch *batch, uint64_t durable);

/* Something on disk can't be read: what is missing between batches that are loaded from here on need not have
 * been acknowledged. */
void outbox_spool_broke(struct outbox *outbox);

/* The disk gives no more: empty batches take the place of what is still awaited. */
void outbox_spool_ended(struct outbox *outbox);

/* Increments in batches that the disk did not give back, since the last call. */
uint64_t outbox_take_unread(struct outbox *outbox);

/* What fanning out has lost so far. */
struct fanout_losses outbox_fanout_losses(const struct outbox *outbox);

/* Bytes held by acknowledged batches. */
size_t outbox_history_bytes(const struct outbox *outbox);

/* Increments of acknowledged batches that were emptied, and are not known to be in Postgres: at most so many
 * are in Redis only. */
uint64_t outbox_emptied_events(const struct outbox *outbox);

/* Whether a batch waits to be sent or answered; after outbox_rewind() also one that was acknowledged before.
 */
bool outbox_owes(const struct outbox *outbox);

/* Increments that had been acknowledged, but Redis has gone back, and has not taken them again. */
uint64_t outbox_missing_events(const struct outbox *outbox);

/* Increments not yet acknowledged: in the draining table and in batches. */
uint64_t outbox_pending_events(const struct outbox *outbox);

/* Those of them that are on disk. */
uint64_t outbox_spooled_events(const struct outbox *outbox);

#endif
