/* model_steps - random steps of one shard in the memory store, for a comparison with the scripts in a real
 * Redis
 *
 *     model_steps SEED STEPS [MUTANT]
 *
 * A line for each: JSON with the script, its arguments, the reply that is expected (null: not compared), and
 * the shard after it. */
#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "tests/unit/memory_store.h"

#define WRITERS 3

static struct memory_store store;

static int64_t below(int64_t sides)
{
    return random() % sides;
}

static void print_set(const char *name, const struct memory_set *set)
{
    const char *comma = "";

    printf("\"%s\": {", name);
    for (int key = 0; key < MEMORY_KEYS; key++) {
        if (!set->there[key])
            continue;
        printf("%s\"k%d\": %" PRId64, comma, key, set->score[key]);
        comma = ", ";
    }
    printf("}, \"%s_seqs\": {", name);
    comma = "";
    for (int writer = 0; writer < WRITERS; writer++) {
        if (set->low[writer] == 0)
            continue;
        printf("%s\"w%d\": \"%" PRId64 "-%" PRId64 "\"", comma, writer, set->low[writer], set->high[writer]);
        comma = ", ";
    }
    printf("}, ");
}

static void print_seqs(const char *name, const int64_t *seqs)
{
    printf("\"%s\": [%" PRId64 ", %" PRId64 ", %" PRId64 "], ", name, seqs[0], seqs[1], seqs[2]);
}

/* The end of each line. */
static void print_state(void)
{
    const struct memory_redis *redis = &store.redis;

    printf(", \"state\": {");
    print_set("open", &redis->open);
    print_set("sealed", &redis->sealed);
    print_seqs("writers", redis->writers);
    print_seqs("durable", redis->durable);
    printf("\"sealed_gen\": \"%s\", \"prev_gen\": \"%s\", \"set_aside\": \"%s\", ", redis->sealed_id,
           redis->prev_id, redis->set_aside ? "1" : "");
    printf("\"accepted\": %" PRId64 ", \"events\": %" PRId64 ", \"accepted_at_seal\": %" PRId64
           ", \"events_at_seal\": %" PRId64 "}}\n",
           redis->accepted, redis->events, redis->accepted_at_seal, redis->events_at_seal);
}

static const char *word_of(enum memory_append answer)
{
    return (const char *[]){"OK", "DUP", "GAP"}[answer];
}

static void append(void)
{
    int writer = (int)below(WRITERS);
    int64_t seq = store.redis.writers[writer] + below(4), known = below(2) * below(6), answer_seq;
    struct memory_deltas deltas = {.events = below(5)};
    enum memory_append answer;

    seq += seq == 0;
    printf("{\"script\": \"append\", \"args\": [\"w%d\", %" PRId64 ", %" PRId64 ", %" PRId64, writer, seq,
           known, deltas.events);
    for (int key = 0; key < MEMORY_KEYS; key++) {
        if (below(3) > 0)
            continue;
        deltas.there[key] = true;
        deltas.delta[key] = below(20) - 6;
        printf(", \"k%d\", %" PRId64, key, deltas.delta[key]);
    }
    answer = memory_append(&store.redis, writer, seq, known, &deltas, &answer_seq);
    printf("], \"reply\": [\"%s\", \"%" PRId64 "\"]", word_of(answer), answer_seq);
}

static void probe(void)
{
    int writer = (int)below(WRITERS);
    int64_t seq = store.redis.writers[writer] + below(4), known = below(2) * below(6), answer_seq;
    enum memory_append answer = memory_probe(&store.redis, writer, seq, known, &answer_seq);

    printf("{\"script\": \"probe\", \"args\": [\"w%d\", %" PRId64 ", %" PRId64
           "], \"reply\": [\"%s\", \"%" PRId64 "\"]",
           writer, seq, known, word_of(answer), answer_seq);
}

static void seal(const struct source *source)
{
    struct generation generation = {0};
    struct error error;
    int outcome;

    printf("{\"script\": \"seal\", \"args\": [\"g%u\"], ", store.ids + 1);
    outcome = source->seal(source->context, 0, &generation, &error);
    if (outcome == SEAL_NONE)
        printf("\"reply\": [\"NONE\", null]");
    else
        printf("\"reply\": [\"SEALED\", null, \"%s\", \"%s\", \"%s\", null, null, null, \"%" PRId64
               "\", \"%" PRId64 "\", \"%zu\"]",
               generation.id, generation.set_aside ? "ASIDE" : (generation.recovered ? "0" : "1"),
               generation.prev_id, generation.accepted_at_seal, generation.events_at_seal,
               generation.members);
    generation_done(&generation);
}

/* The generation that is sealed, or another one. */
static const char *some_id(void)
{
    return below(4) == 0 || store.redis.sealed_id[0] == '\0' ? "another" : store.redis.sealed_id;
}

static const char *reply_for(const char *id, const char *done)
{
    return strcmp(id, store.redis.sealed_id) == 0 ? done : "GONE";
}

static void release(const struct source *source)
{
    struct correction correction = {below(3) * below(9) - 4, below(9)};
    const char *id = some_id();
    struct error error;
    int r;

    printf("{\"script\": \"release\", \"args\": [\"%s\", %" PRId64 ", %" PRId64 "], \"reply\": [\"%s\"]", id,
           correction.total, correction.events, reply_for(id, "RELEASED"));
    r = source->release(source->context, 0, id, &correction, &error);
    assert(r == 0);
}

static void reset(const struct source *source)
{
    struct position vector[] = {{(char[]){"w0"}, below(5)}, {(char[]){"w2"}, below(5)}};
    struct reset to = {"head", below(100) - 50, below(100), vector, ARRAY_LEN(vector)};
    const char *id = store.redis.set_aside ? "another" : some_id();
    struct error error;
    int r;

    printf("{\"script\": \"reset\", \"args\": [\"%s\", \"g%u\", \"%s\", %" PRId64 ", %" PRId64
           ", \"w0\", %" PRId64 ", \"w2\", %" PRId64 "], \"reply\": [\"%s\"]",
           id, store.ids + 1, to.head_id, to.accepted, to.events, vector[0].seq, vector[1].seq,
           reply_for(id, "RESET"));
    r = source->reset(source->context, 0, id, &to, &error);
    assert(r == 0);
}

int main(int argc, char **argv)
{
    struct memory_flusher flusher = {.store = &store};
    struct source source = memory_source(&flusher);

    assert(argc == 3 || argc == 4);
    srandom((unsigned)atoi(argv[1]));
    memory_mutant = argc == 4 ? (enum memory_mutant)atoi(argv[3]) : MUTANT_NONE;
    for (int step = atoi(argv[2]); step > 0; step--) {
        switch (below(10)) {
        case 0:
            probe();
            break;
        case 1:
        case 2:
            seal(&source);
            break;
        case 3:
            release(&source);
            break;
        case 4:
            reset(&source);
            break;
        default:
            append();
            break;
        }
        print_state();
    }
    return 0;
}
