/* token - a client's idempotent batch (a POST with an Idempotency-Key), tried again until it is answered
 *
 * One shard, the token's home. Such a batch is a writer of its own: its id is made of token and body, its seq is 1. So
 * protocol.pml holds for it too; what is checked here is the rest: the marker, two bodies that come with the same token,
 * a worker that may die between any two calls, rollbacks, reset, and what is forgotten when. The flush is one step,
 * since protocol.pml shows that it may be thought of as one.
 */
#ifndef TRIES /* of the clients; each may be on its way at the same time as the others, and arrive in any order */
#define TRIES 3
#endif
#ifndef ROLLBACKS
#define ROLLBACKS 1
#endif
#define BODIES 2

/* Which writer a body is. */
#ifdef MUTANT_TOKEN_WITHOUT_BODY
#define WRITER(body) 0
#else
#define WRITER(body) body
#endif

typedef Redis {
    byte marker;                 /* token:TOKEN: the body that it stands for, and 1; 0: none */
    bool taken[BODIES];          /* writers[WRITER], which only a reset writes */
    byte open[BODIES];           /* how often the body is in the set */
    bool in_open_seqs[BODIES];
};
Redis redis, backup;
bool has_backup;
byte rollbacks;

byte counted[BODIES];            /* how often it is in Postgres */
bool vector[BODIES];             /* has a row for the writer */
byte tries, under_way;
bool stopped;                    /* no try is under way, and there will be no more */
bool answered[BODIES];           /* its client has a 200 */
bool forgotten[BODIES];          /* a rollback took what was there: no worker keeps a history for it */
bool set_aside[BODIES];          /* in quarantine, which is told loudly */
bool fresh, old;                 /* the flush's own */
byte doubled, lost;

#define BOTH(array) (array[0] || array[1])

inline write(body)
{
    redis.open[body]++;
#ifndef MUTANT_TOKEN_NOT_IN_VECTOR
    redis.in_open_seqs[WRITER(body)] = true
#endif
}

inline take_away(body)
{
    redis.open[body] = 0;
    redis.in_open_seqs[body] = false
}

inline apply(body)
{
    counted[body] = counted[body] + redis.open[body];
    vector[body] = vector[body] || redis.in_open_seqs[body]
}

inline quarantine(body)
{
    set_aside[body] = set_aside[body] || redis.open[body] > 0;
    redis.taken[body] = vector[body]
}

/* `others`: batches of workers make the generation mixed. */
inline flush(others)
{
    fresh = (redis.in_open_seqs[0] && !vector[0]) || (redis.in_open_seqs[1] && !vector[1]);
    old = (redis.in_open_seqs[0] && vector[0]) || (redis.in_open_seqs[1] && vector[1]);
    if
    :: others || (fresh && old) -> quarantine(0); quarantine(1)
    :: !others && old && !fresh            /* applied already */
    :: !others && !old -> apply(0); apply(1)
    fi;
    take_away(0);
    take_away(1);
    fresh = false;
    old = false
}

inline copy_body(to, from, body)
{
    to.taken[body] = from.taken[body];
    to.open[body] = from.open[body];
    to.in_open_seqs[body] = from.in_open_seqs[body]
}

inline copy_redis(to, from)
{
    to.marker = from.marker;
    copy_body(to, from, 0);
    copy_body(to, from, 1)
}

/* Before Redis goes back. */
inline forget(body)
{
    forgotten[body] = forgotten[body] ||
        (redis.open[body] > 0 && backup.open[body] + counted[body] == 0)
}

/* Answered is promised, unless Redis lost it. */
#define IS_LOST(body) (answered[body] && redis.open[body] + counted[body] == 0 && !forgotten[body] && !set_aside[body])

inline check()
{
    doubled = counted[0] > 1 || counted[1] > 1;
    assert(!doubled);
    lost = IS_LOST(0) || IS_LOST(1);
    assert(!lost);
    doubled = 0;
    lost = 0
}

/* A try, in the hands of one worker. The worker may die, or the answer be lost, after every step. */
proctype try(byte body)
{
    bool mine;
#if defined(MUTANT_TOKEN_BEFORE)
    d_step { mine = redis.marker == 0; if :: mine -> redis.marker = 1 + body :: else fi };
    if
    :: d_step { mine -> write(body) }
    :: !mine && redis.marker == 1 + body
    :: goto gone                   /* died between the two calls */
    fi;
#elif defined(MUTANT_TOKEN_AFTER)
    mine = redis.marker == 0;
    if
    :: d_step { mine -> write(body) }
    :: !mine && redis.marker == 1 + body
    :: !mine && redis.marker != 1 + body -> goto gone
    fi;
    if
    :: redis.marker = 1 + body
    :: goto gone
    fi;
#else
    d_step {
        mine = redis.marker == 0 || redis.marker == 1 + body;
        if
        :: redis.marker == 0 && !redis.taken[WRITER(body)] -> redis.marker = 1 + body; write(body)
        :: else                    /* DUP, or OTHER: then it is not `mine` */
        fi
    };
    if
    :: mine
    :: !mine -> goto gone
    fi;
#endif
    if
    :: answered[body] = true
    :: skip
    fi;
gone:
    skip;
    d_step { under_way--; mine = false }
}

active proctype world()
{
end:
    do
    :: atomic { tries < TRIES && !stopped && !answered[0] -> tries++; under_way++; run try(0) }
    :: atomic { tries < TRIES && !stopped && !answered[1] -> tries++; under_way++; run try(1) }
    :: d_step { under_way == 0 && tries > 0 && !stopped -> stopped = true }
    :: d_step { BOTH(redis.open) -> flush(false); check() }
#if ROLLBACKS > 0
    :: d_step { BOTH(redis.open) && rollbacks > 0 -> flush(true); check() }
    :: d_step { !has_backup && rollbacks < ROLLBACKS -> copy_redis(backup, redis); has_backup = true }
    :: d_step { has_backup ->
        forget(0);
        forget(1);
        copy_redis(redis, backup);
        has_backup = false;
        rollbacks++ }
#endif
    /* The marker's TTL. */
#ifdef MUTANT_TOKEN_MARKER_SHORT
    :: d_step { redis.marker > 0 && !BOTH(redis.open) -> redis.marker = 0; vector[0] = false; vector[1] = false }
#else
    :: d_step { redis.marker > 0 && stopped -> redis.marker = 0 }
#endif
    /* The row in the vector, and with it what a reset left, must outlive more than that: as long as a rollback may
     * bring the batch back. */
#ifdef MUTANT_TOKEN_ROW_PRUNED
    :: d_step { BOTH(vector) && redis.marker == 0 && !BOTH(redis.open) && stopped ->
#else
    :: d_step { BOTH(vector) && redis.marker == 0 && !BOTH(redis.open) && stopped && !has_backup ->
#endif
        redis.taken[0] = false;
        redis.taken[1] = false;
        vector[0] = false;
        vector[1] = false }
    :: d_step { !BOTH(redis.open) -> check() }
    od
}
