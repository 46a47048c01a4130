/* token - a client's idempotent batch (a POST with an Idempotency-Key), tried again until it is answered
 *
 * Such a batch is a writer of its own: its id is the token, its seq is 1. So protocol.pml holds for it too; what is
 * checked here is the rest: the marker, a worker that may die between any two calls, and a rollback. The flush is
 * one step, since protocol.pml shows that it may be thought of as one.
 */
#ifndef TRIES /* of the client; each may be on its way at the same time as the others, and arrive in any order */
#define TRIES 3
#endif
#ifndef ROLLBACKS
#define ROLLBACKS 1
#endif

typedef Redis {
    bool marker;            /* once:TOKEN */
    bool taken;             /* writers[TOKEN] is 1 */
    byte open;              /* how often the batch is in the set */
    bool in_open_seqs;
};
Redis redis, backup;
bool has_backup;
byte rollbacks;

byte counted;               /* how often it is in Postgres */
bool vector;                /* has a row for the token */
byte tries, under_way;
bool answered;              /* the client has its 200, and asks no more */
bool forgotten;             /* a rollback took what was there: no worker keeps a history for it */
byte doubled, lost;

/* No try is under way, and there will be no more. */
#define STOPPED (under_way == 0 && (answered || tries == TRIES))

inline write()
{
    redis.open++;
    redis.taken = true;
#ifndef MUTANT_TOKEN_NOT_IN_VECTOR
    redis.in_open_seqs = true
#endif
}

inline flush()
{
    if
    :: redis.in_open_seqs && vector -> /* applied already */
        redis.open = 0
    :: else ->
        counted = counted + redis.open;
        vector = vector || redis.in_open_seqs;
        redis.open = 0
    fi;
    redis.in_open_seqs = false
}

inline copy_redis(to, from)
{
    to.marker = from.marker;
    to.taken = from.taken;
    to.open = from.open;
    to.in_open_seqs = from.in_open_seqs
}

inline check()
{
    doubled = counted > 1;
    assert(!doubled);
    /* Answered is promised, unless Redis lost it. */
    lost = answered && redis.open + counted == 0 && !forgotten;
    assert(!lost);
    doubled = 0;
    lost = 0
}

/* A try, in the hands of one worker. The worker may die, or the answer be lost, after every step. */
proctype try()
{
    bool first;
#if defined(MUTANT_TOKEN_BEFORE)
    d_step { first = !redis.marker; redis.marker = true };
    if
    :: d_step { first -> write() }
    :: !first
    :: goto gone                   /* died between the two calls */
    fi;
#elif defined(MUTANT_TOKEN_AFTER)
    first = !redis.marker;
    if
    :: d_step { first -> write() }
    :: !first
    fi;
    if
    :: redis.marker = true
    :: goto gone
    fi;
#else
    d_step {
        if
        :: !redis.marker && !redis.taken -> redis.marker = true; write()
        :: else                     /* DUP */
        fi
    };
#endif
    if
    :: answered = true
    :: skip
    fi;
gone:
    skip;
    d_step { under_way--; first = false }
}

active proctype world()
{
end:
    do
    :: atomic { tries < TRIES && !answered -> tries++; under_way++; run try() }
    :: d_step { redis.open > 0 -> flush(); check() }
#if ROLLBACKS > 0
    :: d_step { !has_backup && rollbacks < ROLLBACKS -> copy_redis(backup, redis); has_backup = true }
    :: d_step { has_backup ->
        copy_redis(redis, backup);
        has_backup = false;
        rollbacks++;
        forgotten = forgotten || redis.open + counted == 0 }
#endif
    /* The marker's TTL, which takes the token's entry in `writers` along. */
#ifdef MUTANT_TOKEN_MARKER_SHORT
    :: d_step { redis.marker -> redis.marker = false; redis.taken = false; vector = false }
#else
    :: d_step { redis.marker && STOPPED -> redis.marker = false; redis.taken = false }
#endif
    /* The token's row in the vector must outlive more than that: as long as a rollback may bring the batch back. */
#ifdef MUTANT_TOKEN_ROW_PRUNED
    :: d_step { vector && !redis.marker && redis.open == 0 && STOPPED -> vector = false }
#else
    :: d_step { vector && !redis.marker && redis.open == 0 && STOPPED && !has_backup -> vector = false }
#endif
    :: d_step { redis.open == 0 -> check() }
    od
}
