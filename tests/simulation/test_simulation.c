/* Schedules by the thousand, and the proof that they would notice: with each rule of the protocol taken away
 * in turn, some schedule fails.
 *
 * SIMULATION_SEED=n SIMULATION_SCHEDULES=n SIMULATION_TRACE=1: where to begin, how many, and to tell every
 * event on stderr. */
#include "flusher/audit.h"
#include "tests/simulation/simulation.h"
#include "tests/unit/memory_store.h"
#include "tests/unit/unit.h"

#define SCHEDULES        4000
#define SCHEDULES_MUTANT 2000

static uint64_t number_from(const char *name, uint64_t otherwise)
{
    const char *text = getenv(name);

    return text ? strtoull(text, NULL, 10) : otherwise;
}

static struct schedule schedule_of(uint64_t seed)
{
    return (struct schedule){seed, seed % 2, getenv("SIMULATION_TRACE") ? stderr : NULL};
}

START_TEST(conservation_whatever_the_schedule)
{
    uint64_t first = number_from("SIMULATION_SEED", 1);
    uint64_t schedules = number_from("SIMULATION_SCHEDULES", SCHEDULES);
    struct outcome sum = {0};

    for (uint64_t seed = first; seed < first + schedules; seed++) {
        struct schedule schedule = schedule_of(seed);
        struct outcome outcome = simulate(&schedule);
        ck_assert_msg(!outcome.wrong,
                      "%s\nSIMULATION_SEED=%llu SIMULATION_SCHEDULES=1 SIMULATION_TRACE=1 shows it again",
                      outcome.text, (unsigned long long)seed);
        sum.commits += outcome.commits;
        sum.crashes += outcome.crashes;
        sum.rollbacks += outcome.rollbacks;
        sum.quarantined += outcome.quarantined;
        sum.stops += outcome.stops;
        sum.spooled += outcome.spooled;
        sum.answers += outcome.answers;
        sum.losses += outcome.losses;
    }
    /* Else the schedules proved nothing. */
    if (schedules >= 1000)
        ck_assert(sum.commits > schedules && sum.crashes > schedules && sum.rollbacks > schedules / 2 &&
                  sum.quarantined > schedules / 10 && sum.stops > schedules / 2 && sum.spooled > schedules &&
                  sum.answers > schedules && sum.losses > schedules / 50);
}
END_TEST

START_TEST(the_same_seed_is_the_same_run)
{
    for (uint64_t seed = 1; seed <= 20; seed++) {
        struct schedule schedule = schedule_of(seed);
        struct outcome first = simulate(&schedule), second = simulate(&schedule);
        ck_assert_mem_eq(&first, &second, sizeof(first));
    }
}
END_TEST

START_TEST(a_rule_less_is_noticed)
{
    struct outcome outcome = {0};
    uint64_t seed = 0;

    memory_mutant = (enum memory_mutant)_i;
    while (!outcome.wrong && ++seed <= SCHEDULES_MUTANT) {
        struct schedule schedule = schedule_of(seed);
        outcome = simulate(&schedule);
    }
    memory_mutant = MUTANT_NONE;
    ck_assert_msg(outcome.wrong, "mutant %d was not noticed in %d schedules", _i, SCHEDULES_MUTANT);
    if (getenv("SIMULATION_TELL"))
        fprintf(stderr, "mutant %d: seed %llu, %s\n", _i, (unsigned long long)seed, outcome.text);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, conservation_whatever_the_schedule);
    tcase_add_test(tests, the_same_seed_is_the_same_run);
    tcase_add_loop_test(tests, a_rule_less_is_noticed, MUTANT_NONE + 1, MUTANT_COUNT);
}

int main(void)
{
    int r;

    simulation_begin();
    r = unit_run("simulation", add_tests);
    simulation_end();
    return r;
}
