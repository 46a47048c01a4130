#include "tests/simulation/loop.h"

#include <assert.h>
#include <event2/event.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/queue.h>

#include "lib/clock.h"
#include "lib/id.h"

#define EPOCH_US INT64_C(1700000000000000)
/* Not 0, which stands for never. */
#define START_US INT64_C(1000000000)

struct event {
    event_callback_fn callback;
    void *context;
    bool armed;
    int64_t due_us;
    uint64_t order; /* of those due together, the one that was armed first */
    LIST_ENTRY(event) link;
};

static LIST_HEAD(, event) events = LIST_HEAD_INITIALIZER(events);
static int64_t now_us = START_US;
static uint64_t armings;
static unsigned ids;

void loop_reset(void)
{
    assert(LIST_EMPTY(&events));
    now_us = START_US;
    armings = ids = 0;
}

bool loop_fire(void)
{
    struct event *first = NULL, *event;

    LIST_FOREACH(event, &events, link)
    {
        if (event->armed && (!first || event->due_us < first->due_us ||
                             (event->due_us == first->due_us && event->order < first->order)))
            first = event;
    }
    if (!first)
        return false;
    if (first->due_us > now_us)
        now_us = first->due_us;
    first->armed = false;
    first->callback(-1, EV_TIMEOUT, first->context);
    return true;
}

/* --- libevent --- */

struct event *event_new(struct event_base *base, evutil_socket_t fd, short what, event_callback_fn callback,
                        void *context)
{
    struct event *event = calloc(1, sizeof(*event));

    (void)base;
    assert(event && fd == -1 && what == 0);
    event->callback = callback;
    event->context = context;
    LIST_INSERT_HEAD(&events, event, link);
    return event;
}

void event_free(struct event *event)
{
    LIST_REMOVE(event, link);
    free(event);
}

int event_add(struct event *event, const struct timeval *wait)
{
    event->armed = true;
    event->due_us = now_us + (int64_t)wait->tv_sec * 1000000 + wait->tv_usec;
    event->order = armings++;
    return 0;
}

int event_del(struct event *event)
{
    event->armed = false;
    return 0;
}

void event_active(struct event *event, int what, short calls)
{
    const struct timeval at_once = {0};

    (void)what;
    (void)calls;
    (void)event_add(event, &at_once);
}

int event_pending(const struct event *event, short what, struct timeval *ret_due)
{
    assert(what == EV_TIMEOUT && !ret_due);
    return event->armed ? EV_TIMEOUT : 0;
}

/* --- lib/clock.h --- */

int64_t clock_monotonic_us(void)
{
    return now_us;
}

int64_t clock_monotonic_ms(void)
{
    return now_us / 1000;
}

int64_t clock_unix_ms(void)
{
    return (EPOCH_US + now_us) / 1000;
}

struct timeval clock_timeval(int64_t ms)
{
    return (struct timeval){.tv_sec = ms / 1000, .tv_usec = ms % 1000 * 1000};
}

/* --- lib/id.h --- */

/* "w", then the number of the writer, as the memory store names them. */
void id_new(char ret_id[ID_LEN + 1])
{
    snprintf(ret_id, ID_LEN + 1, "w%0*u", ID_LEN - 1, ids++);
}

void id_floor(int64_t unix_ms, char ret_id[ID_LEN + 1])
{
    (void)unix_ms;
    (void)ret_id;
    abort(); /* nobody here asks for it */
}
