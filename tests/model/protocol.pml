/* protocol - one shard on its way from the writers' memory, through Redis, to committed rows: exactly once
 *
 * The steps of PROTOCOL.md, each a d_step, since each is one Lua script, one transaction, or something that only its
 * own process sees. An increment is a bit, so that a set of increments is a number, and one that is counted twice
 * can be told from two. README.md says what is left out, and which code each step stands for.
 *
 * Two things keep the state space small without hiding anything:
 * - A script and its reply are one step when the reply arrives: nobody but the caller can see the time between.
 *   A reply that is lost is a message that arrives "late" (see below) and is answered to nobody.
 * - There is no "end of the run". From every state that can be reached, `settle` lets the faults cease, everybody
 *   finish, and checks the books. So a count that is late is told from one that is lost, at any moment.
 */

/* The size of the world. What it takes for a rule to be needed: two flushers, one message that is late, one
 * rollback. tests/model/run says which worlds are searched. */
#ifndef WRITERS
#define WRITERS 2
#endif
#ifndef BATCHES /* that a writer makes in its life */
#define BATCHES 2
#endif
#ifndef BATCHES_REBORN /* the same for one that comes back after a crash */
#define BATCHES_REBORN BATCHES
#endif
#ifndef FLUSHERS /* at the same time; each may be as slow as it likes, or crash, without limit */
#define FLUSHERS 2
#endif
#ifndef CRASHES /* of writers; each comes back under a fresh id, which must be counted */
#define CRASHES 0
#endif
#ifndef LATE /* messages on their way at one time whose sender has given up on them; without limit in number */
#define LATE 1
#endif
#ifndef ROLLBACKS /* of Redis, each to any earlier moment */
#define ROLLBACKS 1
#endif
#ifndef EMPTYING /* 1: the history may be too small, so that batches are emptied before they are durable */
#define EMPTYING 0
#endif

#ifdef MUTANT_GAP_NEW_ID
#define IDS (WRITERS + CRASHES + 1)
#else
#define IDS (WRITERS + CRASHES)
#endif
#if WRITERS + CRASHES + 1 > 7 || (WRITERS + CRASHES + 1) * BATCHES > 15
#error "increments are the bits of a short"
#endif

#define BIT(id, seq) (1 << ((id) * BATCHES + (seq) - 1))
#define ALL_OF(id) (((1 << BATCHES) - 1) << ((id) * BATCHES))

/* What batch `seq` of writer `id` holds. It never changes: that is a rule, and some mutants break it. */
#if defined(MUTANT_GAP_ADOPT) || defined(MUTANT_GAP_NEW_ID) || defined(MUTANT_MERGE_BACK) || \
    defined(MUTANT_HEARTBEAT_SEQ)
short twist[IDS * BATCHES];
bool retired[WRITERS]; /* makes no new batches: the mutants' numbers would not tell increments apart any more */
#define PAYLOAD(id, seq) (BIT(id, seq) ^ twist[(id) * BATCHES + (seq) - 1])
#define SET_PAYLOAD(id, seq, increments) twist[(id) * BATCHES + (seq) - 1] = BIT(id, seq) ^ (increments)
#define MAY_MAKE(w) (writer[w].newest < BATCHES && !retired[w])
#else
#define PAYLOAD(id, seq) BIT(id, seq)
#define MAY_MAKE(w) (writer[w].newest < (writer[w].id < WRITERS -> BATCHES : BATCHES_REBORN))
#endif

/* A writer's entry in open_seqs or sealed_seqs: 'lo-hi', 0 = it is not in that set. */
#define SPAN(lo, hi) ((lo) * 16 + (hi))
#define LO(span) ((span) / 16)
#define HI(span) ((span) % 16)

#define MAX(a, b) ((a) > (b) -> (a) : (b))
#define MIN(a, b) ((a) < (b) -> (a) : (b))

/* ---- Redis */

typedef Redis {
    short open, sealed;             /* the sorted sets */
    byte open_seqs[IDS], sealed_seqs[IDS];
    byte writers[IDS], durable[IDS];
    byte sealed_gen;                /* 0 = nothing is sealed */
    short aside;                    /* what reset has set aside */
#ifdef MUTANT_GEN_AT_OPEN
    byte open_gen;
#endif
#ifdef MUTANT_DIGEST
    byte prev_gen;
#endif
};
Redis redis;
Redis backup;                       /* what a rollback brings back */
bool has_backup;
byte rollbacks;

inline copy_redis(to, from)
{
    to.open = from.open;
    to.sealed = from.sealed;
    to.sealed_gen = from.sealed_gen;
    to.aside = from.aside;
#ifdef MUTANT_GEN_AT_OPEN
    to.open_gen = from.open_gen;
#endif
#ifdef MUTANT_DIGEST
    to.prev_gen = from.prev_gen;
#endif
    for (i : 0 .. IDS - 1) {
        to.open_seqs[i] = from.open_seqs[i];
        to.sealed_seqs[i] = from.sealed_seqs[i];
        to.writers[i] = from.writers[i];
        to.durable[i] = from.durable[i]
    }
}

inline clear_backup()
{
    backup.open = 0;
    backup.sealed = 0;
    backup.sealed_gen = 0;
    backup.aside = 0;
#ifdef MUTANT_GEN_AT_OPEN
    backup.open_gen = 0;
#endif
#ifdef MUTANT_DIGEST
    backup.prev_gen = 0;
#endif
    for (i : 0 .. IDS - 1) {
        backup.open_seqs[i] = 0;
        backup.sealed_seqs[i] = 0;
        backup.writers[i] = 0;
        backup.durable[i] = 0
    }
}

/* ---- Postgres */

short counted;                      /* the rows that people read */
short ledger;                       /* generations, a bit each */
byte vector[IDS];
short quarantine;
#ifdef MUTANT_RANK
short half;                         /* generations of which the first of two transactions is done */
#endif
#ifdef MUTANT_DIGEST
short digests;
byte head_gen;
#endif

/* ---- writers (counterd's workers) and what they have sent */

typedef Writer {
    byte id;                        /* fresh for each start */
    byte newest;                    /* batches made */
    byte cursor;                    /* the next to be sent */
    byte acknowledged, durable, emptied;
};
Writer writer[WRITERS];
byte ids;                           /* given out */

#define OWES(w) (writer[w].cursor <= writer[w].newest)

/* A message whose sender has timed out, reconnected or died, and which may still arrive. */
typedef Late {
    byte id, seq, known;            /* seq 0 = none */
    short increments;
};
Late late[LATE + 1];                /* (the last is never used: an array can't be empty) */

/* ---- flushers */

mtype = { IDLE, SEALED, READ, RELEASE, RESET, JUDGED, ROWS_ONLY };
typedef Flusher {
    mtype at;
    byte gen;
    byte seqs[IDS];                 /* the identity */
    short content;
    byte vector[IDS];               /* as its transaction saw it; for reset */
#ifdef MUTANT_NO_LOCK
    mtype verdict;
#endif
#ifdef MUTANT_DIGEST
    byte prev_gen;
#endif
};
Flusher flusher[FLUSHERS];

/* ---- ghosts: what only the observer knows */

short acked;                        /* acknowledged to a writer, so promised */
short dead;                         /* of writers that crashed */
short forgotten;                    /* acknowledged, and then taken by a rollback */
short reported;                     /* counted as lost by their writer (increments_lost) */
bool settled;

/* Scratch of a single step, so no part of the state. */
mtype = { OK, DUP, GAP, APPLIED, FRESH, MIXED };
hidden mtype answer, verdict;
hidden byte told, last, known, i, g, s;
hidden short increments, part;
hidden byte all_applied, all_fresh, nobody, unnamed;
hidden byte round, turn, who;           /* of settle */
hidden byte calm;
hidden byte doubled, lost, stuck, hole; /* what an assertion calls its finding */

/* ==== scripts */

inline append(id_, seq_, known_, increments_) /* -> answer, told: durable, or the last seq after GAP */
{
    last = MAX(redis.writers[id_], known_);
    told = redis.durable[id_];
    if
    :: seq_ <= last -> answer = DUP
#ifdef MUTANT_START_ANYWHERE
    :: seq_ > last + 1 && last > 0 -> answer = GAP; told = last
#else
    :: seq_ > last + 1 -> answer = GAP; told = last
#endif
    :: else ->
        answer = OK;
        /* Twice in one set is twice in Postgres: no later step could tell them apart. */
        doubled = (redis.open & increments_) != 0;
        assert(!doubled);
#ifdef MUTANT_GEN_AT_OPEN
        if
        :: redis.open == 0 && increments_ != 0 -> mint(); redis.open_gen = g
        :: else
        fi;
#endif
        redis.open = redis.open | increments_;
        redis.open_seqs[id_] = (redis.open_seqs[id_] != 0 -> SPAN(LO(redis.open_seqs[id_]), seq_) : SPAN(seq_, seq_));
        redis.writers[id_] = seq_;
        forgotten = forgotten & ~increments_
    fi;
    printf("    append(writer %d, seq %d, known_durable %d, increments 0x%x): %e\n", id_, seq_, known_, increments_, answer)
}

/* A generation's id is random and never comes again. Here there are few: one that nobody can name any more, now or
 * after a rollback, is taken back. That only renames; and the ledger may forget it, since nobody will ask. */
#define GENS (FLUSHERS + 6)
inline named(gen_) /* -> unnamed: nobody names it */
{
    unnamed = redis.sealed_gen != gen_ && backup.sealed_gen != gen_;
#ifdef MUTANT_GEN_AT_OPEN
    unnamed = unnamed && redis.open_gen != gen_ && backup.open_gen != gen_;
#endif
#ifdef MUTANT_DIGEST
    unnamed = unnamed && redis.prev_gen != gen_ && backup.prev_gen != gen_ && head_gen != gen_;
#endif
    for (i : 0 .. FLUSHERS - 1) {
        unnamed = unnamed && flusher[i].gen != gen_;
#ifdef MUTANT_DIGEST
        unnamed = unnamed && flusher[i].prev_gen != gen_;
#endif
    }
}

inline mint() /* -> g */
{
    g = 1;
    do
    :: g <= GENS -> named(g); if :: unnamed -> break :: else -> g++ fi
    :: else -> break
    od;
    assert(g <= GENS)
}

inline forget_gens()
{
    for (g : 1 .. GENS) {
        named(g);
        if
        :: unnamed ->
            ledger = ledger & ~(1 << g);
#ifdef MUTANT_RANK
            half = half & ~(1 << g);
#endif
        :: else
        fi
    }
    g = 0 /* (a d_step must not end in a loop) */
}

inline seal(f)
{
    if
    :: redis.sealed_gen == 0 && redis.open != 0 ->
#ifdef MUTANT_GEN_AT_OPEN
        redis.sealed_gen = redis.open_gen;
        redis.open_gen = 0;
#else
        mint();
        redis.sealed_gen = g;
#endif
        redis.sealed = redis.open;
        redis.open = 0;
        for (i : 0 .. IDS - 1) {
            redis.sealed_seqs[i] = redis.open_seqs[i];
            redis.open_seqs[i] = 0
        }
    :: else /* left by an earlier run; or nothing there: batches without content stay in open_seqs and wait */
    fi;
    if
    :: redis.sealed_gen != 0 ->
        flusher[f].at = SEALED;
        flusher[f].gen = redis.sealed_gen;
#ifdef MUTANT_DIGEST
        flusher[f].prev_gen = redis.prev_gen;
#endif
        for (i : 0 .. IDS - 1) {
            flusher[f].seqs[i] = redis.sealed_seqs[i]
        }
        printf("    flusher %d: seal: generation %d is sealed, increments 0x%x\n", f, redis.sealed_gen, redis.sealed)
    :: else
    fi
}

/* All pages at once: as long as sealed_gen stays, what is sealed under it does. */
inline read(f)
{
    if
#ifdef MUTANT_READ_ANY
    :: redis.sealed != 0 ->
#else
    :: redis.sealed_gen == flusher[f].gen ->
#endif
        flusher[f].content = redis.sealed;
        printf("    flusher %d: read, as generation %d: increments 0x%x\n", f, flusher[f].gen, redis.sealed);
        flusher[f].at = READ
    :: else -> drop(f)
    fi
}

inline release(f)
{
    printf("    flusher %d: release(%d) while %d is sealed\n", f, flusher[f].gen, redis.sealed_gen);
    if
#ifdef MUTANT_RELEASE_ANY
    :: redis.sealed_gen != 0 ->
#else
    :: redis.sealed_gen == flusher[f].gen ->
#endif
        for (i : 0 .. IDS - 1) {
            if
            :: redis.sealed_seqs[i] != 0 -> redis.durable[i] = HI(redis.sealed_seqs[i])
            :: else
            fi;
            redis.sealed_seqs[i] = 0
        }
#ifdef MUTANT_DIGEST
        redis.prev_gen = redis.sealed_gen;
#endif
        redis.sealed = 0;
        redis.sealed_gen = 0
    :: else
    fi
}

inline reset(f)
{
    printf("    flusher %d: reset(%d) while %d is sealed\n", f, flusher[f].gen, redis.sealed_gen);
    if
#ifdef MUTANT_RESET_ANY
    :: true ->
#else
    :: redis.sealed_gen == flusher[f].gen ->
#endif
#ifdef MUTANT_RESET_ANY
        /* What is set aside is named after the generation: a second time, it takes the place of the first. */
        if
        :: redis.sealed_gen != flusher[f].gen && (redis.open | redis.sealed) != 0 -> redis.aside = 0
        :: else
        fi;
#endif
        redis.aside = redis.aside | redis.open | redis.sealed;
        redis.open = 0;
        redis.sealed = 0;
        redis.sealed_gen = 0;
#ifdef MUTANT_GEN_AT_OPEN
        redis.open_gen = 0;
#endif
        for (i : 0 .. IDS - 1) {
            redis.open_seqs[i] = 0;
            redis.sealed_seqs[i] = 0;
            redis.writers[i] = flusher[f].vector[i];
            redis.durable[i] = flusher[f].vector[i]
        }
    :: else
    fi
}

/* ==== the writer: counterd/outbox.c */

inline acknowledge(w)
{
    if
    :: writer[w].cursor > writer[w].acknowledged ->
        writer[w].acknowledged = writer[w].cursor;
        acked = acked | PAYLOAD(writer[w].id, writer[w].cursor)
    :: else
    fi;
    writer[w].cursor++;
    writer[w].durable = MAX(writer[w].durable, MIN(told, writer[w].acknowledged));
    writer[w].cursor = MAX(writer[w].cursor, writer[w].durable + 1);
    if
    :: writer[w].emptied <= writer[w].durable -> writer[w].emptied = 0
    :: else
    fi
}

/* GAP: everything after `told` again. What the history no longer holds is told as lost, and its number is sent
 * without content. */
inline rewind(w)
{
    printf("    writer %d: learns that Redis has nothing after seq %d\n", writer[w].id, told);
#ifdef MUTANT_GAP_ADOPT
    if
    :: OWES(w) ->
        SET_PAYLOAD(writer[w].id, told + 1, PAYLOAD(writer[w].id, writer[w].cursor));
        writer[w].newest = told + 1
    :: else -> writer[w].newest = told
    fi;
    writer[w].cursor = told + 1;
    writer[w].acknowledged = told;
    retired[w] = true
#elif defined(MUTANT_GAP_NEW_ID)
    if
    :: OWES(w) -> SET_PAYLOAD(ids, 1, PAYLOAD(writer[w].id, writer[w].cursor)); writer[w].newest = 1
    :: else -> writer[w].newest = 0
    fi;
    writer[w].id = ids;
    ids++;
    writer[w].cursor = 1;
    writer[w].acknowledged = 0;
    writer[w].durable = 0;
    retired[w] = true
#else
    last = MAX(told, writer[w].durable);
    if
    :: last + 1 < writer[w].cursor ->
        writer[w].cursor = last + 1;
        for (s : last + 1 .. writer[w].emptied) {
#ifndef MUTANT_BLANK_SILENT
            reported = reported | PAYLOAD(writer[w].id, s)
#else
            skip
#endif
        }
    :: else
    fi
#endif
}

inline make(w)
{
    writer[w].newest = MAX(writer[w].newest, writer[w].cursor);
    increments = (writer[w].cursor > writer[w].emptied -> PAYLOAD(writer[w].id, writer[w].cursor) : 0);
#ifdef MUTANT_NO_KNOWN_DURABLE
    known = 0
#else
    known = writer[w].durable
#endif
}

inline send(w)
{
    make(w);
    append(writer[w].id, writer[w].cursor, known, increments);
    if
    :: answer == GAP -> rewind(w)
    :: else -> acknowledge(w)
    fi
}

/* Read-only, uses no seq: how a writer without traffic learns of a rollback. */
inline probe(w)
{
#ifdef MUTANT_NO_PROBE
    told = BATCHES;
#else
    told = MAX(redis.writers[writer[w].id], writer[w].durable);
#endif
    if
    :: writer[w].cursor > told + 1 -> rewind(w)
    :: else
    fi
}

/* The batch at the cursor goes on its way, and the writer gives up waiting. It may arrive at any time from now on, or
 * never. For the writer, it is the same as before it sent: the same batch, the same seq, again. */
inline leave_late(w, n)
{
    make(w);
    late[n].id = writer[w].id;
    late[n].seq = writer[w].cursor;
    late[n].known = known;
    late[n].increments = increments;
    printf("    writer %d gives up waiting for seq %d, which is still on its way\n", late[n].id, late[n].seq);
#ifdef MUTANT_MERGE_BACK
    /* Back into the table, and out of it again with what has come since, under the next number. */
    if
    :: writer[w].newest == writer[w].cursor && MAY_MAKE(w) ->
        SET_PAYLOAD(writer[w].id, writer[w].cursor + 1, increments | BIT(writer[w].id, writer[w].cursor + 1));
        writer[w].cursor++;
        writer[w].newest++
    :: else
    fi
#endif
}

inline clear_late(n)
{
    late[n].id = 0;
    late[n].seq = 0;
    late[n].known = 0;
    late[n].increments = 0
}

inline crash_writer(w)
{
    printf("    writer %d crashes, and comes back as %d\n", writer[w].id, ids);
    dead = dead | ALL_OF(writer[w].id);
    start_writer(w)
}

inline start_writer(w)
{
    writer[w].id = ids;
    ids++;
    writer[w].newest = 0;
    writer[w].cursor = 1;
    writer[w].acknowledged = 0;
    writer[w].durable = 0;
    writer[w].emptied = 0
}

/* ==== the flusher: flusher/flush.c */

inline drop(f) /* done, or crashed: nothing is held */
{
    flusher[f].at = IDLE;
    flusher[f].gen = 0;
    flusher[f].content = 0;
#ifdef MUTANT_NO_LOCK
    flusher[f].verdict = 0;
#endif
#ifdef MUTANT_DIGEST
    flusher[f].prev_gen = 0;
#endif
    for (i : 0 .. IDS - 1) {
        flusher[f].seqs[i] = 0;
        flusher[f].vector[i] = 0
    }
    forget_gens()
}

/* flush_judge() */
inline judge(f) /* -> verdict */
{
    all_applied = true;
    all_fresh = true;
    nobody = true;
    for (i : 0 .. IDS - 1) {
        if
        :: flusher[f].seqs[i] != 0 ->
            nobody = false;
            all_applied = all_applied && HI(flusher[f].seqs[i]) <= vector[i];
#ifdef MUTANT_START_ANYWHERE
            all_fresh = all_fresh && (vector[i] == 0 || LO(flusher[f].seqs[i]) == vector[i] + 1)
#else
            all_fresh = all_fresh && LO(flusher[f].seqs[i]) == vector[i] + 1
#endif
        :: else
        fi
    }
#ifdef MUTANT_NO_VECTOR
    all_applied = false;
    all_fresh = true;
#endif
#ifdef MUTANT_DIGEST
    /* Where Redis seems to have gone back, the values are asked whether this set has been here before. */
    count(flusher[f].content);
    all_applied = flusher[f].prev_gen != head_gen && (digests & (1 << part)) != 0;
#endif
    if
    :: ledger & (1 << flusher[f].gen) -> verdict = APPLIED
    :: else ->
        if
        :: nobody -> verdict = MIXED
        :: !nobody && all_applied -> verdict = APPLIED
        :: !nobody && !all_applied && all_fresh -> verdict = FRESH
        :: else -> verdict = MIXED
        fi
    fi;
    hole = verdict == MIXED && rollbacks == 0;
    assert(!hole); /* as long as Redis keeps its data, nothing ever mixes */
#ifdef MUTANT_MIXED_APPLIED
    if :: verdict == MIXED -> verdict = FRESH :: else fi;
#endif
#ifdef MUTANT_MIXED_SKIPPED
    if :: verdict == MIXED -> verdict = APPLIED :: else fi;
#endif
}

#ifdef MUTANT_DIGEST
inline count(increments_) /* -> part: all increments look alike but for their number */
{
    part = 0;
    for (s : 0 .. IDS * BATCHES - 1) {
        part = part + ((increments_ >> s) & 1)
    }
}
#endif

inline count_rows(increments_)
{
    doubled = (counted & (increments_)) != 0;
    printf("    Postgres has 0x%x, and counts 0x%x\n", counted, increments_);
    assert(!doubled);
    counted = counted | (increments_)
}

inline book(f)
{
    ledger = ledger | (1 << flusher[f].gen);
    for (i : 0 .. IDS - 1) {
        vector[i] = MAX(vector[i], HI(flusher[f].seqs[i]))
    }
#ifdef MUTANT_DIGEST
    count(flusher[f].content);
    digests = digests | (1 << part);
    head_gen = flusher[f].gen;
#endif
}

/* The rest of the transaction, up to its COMMIT. The lock on counterd.shards makes judge() and this one step: whoever
 * comes meanwhile waits, also for a backend whose client has died. */
inline act(f)
{
    printf("    flusher %d: transaction for generation %d, increments 0x%x: %e\n", f, flusher[f].gen, flusher[f].content, verdict);
    if
    :: verdict == APPLIED ->
        ledger = ledger | (1 << flusher[f].gen);
        flusher[f].at = RELEASE
    :: verdict == FRESH ->
#ifdef MUTANT_LEDGER_OUTSIDE
        count_rows(flusher[f].content);
        flusher[f].at = ROWS_ONLY
#elif defined(MUTANT_RANK)
        /* The first increment and the rest, a transaction each; only the generation and how far it got are kept. */
        part = flusher[f].content & -flusher[f].content;
        if
        :: half & (1 << flusher[f].gen) ->
            count_rows(flusher[f].content & ~part);
            book(f);
            flusher[f].at = RELEASE
        :: else ->
            count_rows(part);
            half = half | (1 << flusher[f].gen)
        fi
#else
        count_rows(flusher[f].content);
        book(f);
        flusher[f].at = RELEASE
#endif
    :: verdict == MIXED ->
        quarantine = quarantine | flusher[f].content;
        for (i : 0 .. IDS - 1) {
            flusher[f].vector[i] = vector[i]
        }
        flusher[f].at = RESET
    fi
}

/* Whatever the flusher does next. */
inline flush_step(f)
{
    if
    :: flusher[f].at == IDLE -> seal(f)
    :: flusher[f].at == SEALED -> read(f)
    :: flusher[f].at == READ ->
#ifdef MUTANT_RELEASE_FIRST
        release(f);
        flusher[f].at = JUDGED
#elif defined(MUTANT_NO_LOCK)
        judge(f);
        flusher[f].verdict = verdict;
        flusher[f].at = JUDGED
#else
        judge(f);
        act(f)
#endif
#ifdef MUTANT_RELEASE_FIRST
    :: flusher[f].at == JUDGED -> judge(f); act(f); drop(f)
#endif
#ifdef MUTANT_NO_LOCK
    :: flusher[f].at == JUDGED ->
        /* The ledger's primary key still refuses the same generation twice. */
        verdict = ((ledger & (1 << flusher[f].gen)) -> APPLIED : flusher[f].verdict);
        act(f)
#endif
#ifdef MUTANT_LEDGER_OUTSIDE
    :: flusher[f].at == ROWS_ONLY -> book(f); flusher[f].at = RELEASE
#endif
    :: flusher[f].at == RELEASE -> release(f); drop(f)
    :: flusher[f].at == RESET -> reset(f); drop(f)
    fi
}

/* ==== from here to the end of the world: no more faults, late messages never arrive, everybody does their work */

inline settle()
{
    for (who : 0 .. FLUSHERS - 1) {
        drop(who)
    }
    printf("    from here on no faults, and everybody does their work:\n");
    calm = false;
    round = 0;
    do
    :: !calm && round < 8 ->
        round++;
        calm = true;
        for (who : 0 .. WRITERS - 1) {
            probe(who);
            for (turn : 0 .. BATCHES) {
                if
                :: OWES(who) -> calm = false; send(who)
                :: else
                fi
            }
        }
        for (turn : 0 .. 5) { /* one generation: seal, read, apply, release; and some to spare for mutants */
            if
            :: turn == 0 || flusher[0].at != IDLE -> flush_step(0); calm = calm && flusher[0].at == IDLE
            :: else
            fi
        }
    :: else -> break
    od;
    printf("    acknowledged 0x%x, in Postgres 0x%x\n", acked, counted);
    stuck = !calm;
    assert(!stuck);
    lost = (acked & ~dead & ~(counted | reported)) != 0;
    assert(!lost);
    /* Of a writer that has died, what a rollback took is gone; all else is in Postgres, or set aside. */
    lost = (acked & dead & ~(counted | reported | forgotten | quarantine | redis.aside)) != 0;
    assert(!lost);
#ifdef MUTANT_QUARANTINE_APPLIED
    /* The operator applies a quarantined set, because a dead writer's increments are nowhere else. */
    if
    :: dead & acked & quarantine & ~counted -> count_rows(quarantine)
    :: else
    fi;
#endif
    settled = true
}

/* ==== who may do what, when */

proctype writing(byte me) provided (!settled)
{
end:
    do
    :: d_step { OWES(me) || MAY_MAKE(me) -> send(me) }
    :: d_step { !OWES(me) -> probe(me) }
#if LATE > 0
    :: d_step { (OWES(me) || MAY_MAKE(me)) && late[0].seq == 0 -> leave_late(me, 0) }
#endif
#if LATE > 1
    :: d_step { (OWES(me) || MAY_MAKE(me)) && late[0].seq != 0 && late[1].seq == 0 -> leave_late(me, 1) }
#endif
#if CRASHES > 0
    :: d_step { ids < IDS -> crash_writer(me) }
#endif
#if EMPTYING
    :: d_step { MAX(writer[me].emptied, writer[me].durable) + 1 < writer[me].cursor ->
        writer[me].emptied = MAX(writer[me].emptied, writer[me].durable) + 1 }
#endif
#ifdef MUTANT_HEARTBEAT_SEQ
    :: d_step { !OWES(me) && MAY_MAKE(me) && redis.writers[writer[me].id] + 1 == writer[me].cursor ->
        printf("    writer %d: heartbeat with seq %d\n", writer[me].id, writer[me].cursor);
        SET_PAYLOAD(writer[me].id, writer[me].cursor, 0);
        redis.writers[writer[me].id] = writer[me].cursor;
        writer[me].newest++;
        writer[me].acknowledged++;
        writer[me].cursor++ }
#endif
    od
}

proctype flushing(byte me) provided (!settled)
{
end:
    do
    :: d_step { flush_step(me) }
    :: d_step { flusher[me].at != IDLE -> printf("    flusher %d crashes\n", me); drop(me) }
    /* COMMIT ended in an error, so nobody knows: the same again, from the top. */
    :: d_step { flusher[me].at == RELEASE || flusher[me].at == RESET ->
        printf("    flusher %d: was that COMMIT or not? again\n", me);
        flusher[me].at = READ;
        for (i : 0 .. IDS - 1) {
            flusher[me].vector[i] = 0
        }
        i = 0 }
    od
}

proctype world() provided (!settled)
{
end:
    do
#if LATE > 0
    :: d_step { late[0].seq != 0 -> printf("    late:\n"); append(late[0].id, late[0].seq, late[0].known, late[0].increments); clear_late(0) }
    :: d_step { late[0].seq != 0 -> clear_late(0) }
#endif
#if LATE > 1
    :: d_step { late[1].seq != 0 -> printf("    late:\n"); append(late[1].id, late[1].seq, late[1].known, late[1].increments); clear_late(1) }
    :: d_step { late[1].seq != 0 -> clear_late(1) }
#endif
#if ROLLBACKS > 0
    :: d_step { !has_backup && rollbacks < ROLLBACKS ->
        printf("    Redis: the state that a rollback will bring back\n");
        copy_redis(backup, redis);
        has_backup = true }
    :: d_step { has_backup ->
        printf("    Redis: ROLLBACK\n");
        copy_redis(redis, backup);
        clear_backup();
        has_backup = false;
        rollbacks++;
        forgotten = forgotten | (acked & ~(redis.open | redis.sealed | redis.aside | counted | quarantine));
        forget_gens() }
#endif
#ifdef MUTANT_ENTRY_REMOVED
    :: d_step { late[0].seq != 0 ->
        printf("    writer %d's entries are removed\n", late[0].id);
        redis.writers[late[0].id] = 0;
        redis.durable[late[0].id] = 0;
        vector[late[0].id] = 0 }
#endif
    :: d_step { settle() }
    od
}

init
{
    d_step {
        for (who : 0 .. WRITERS - 1) {
            start_writer(who)
        }
        for (who : 0 .. FLUSHERS - 1) {
            flusher[who].at = IDLE
        }
        who = 0
    }
    atomic {
        run world();
        for (who : 0 .. WRITERS - 1) {
            run writing(who)
        }
        for (who : 0 .. FLUSHERS - 1) {
            run flushing(who)
        }
    }
}
