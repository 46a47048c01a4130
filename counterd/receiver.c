#include "counterd/receiver.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "lib/clock.h"
#include "lib/config.h"
#include "lib/log.h"

#define SLOTS      64    /* datagrams per system call */
#define SLOT_BYTES 65536 /* no UDP datagram is larger; a Unix one may be, and is cut */

/* The slots do not begin at multiples of a large power of two, or all would compete for the same few lines of
 * the processor's caches. */
#define SLOT_STRIDE (SLOT_BYTES + 4096 + 320)

/* A busy socket is not waited for, but looked at every millisecond: a wake-up for every few datagrams costs
 * sender and receiver more than the datagrams do. Busy or not is decided anew after so many turns: a socket
 * is when it woke us up twice as often as looking at it would, and no longer when it brought less than two
 * datagrams a look. */
#define LOOK_EVERY_US 1000
#define TURNS_JUDGED  64

/* What a full buffer holds must take so many times longer to come than the pause between two looks, at so
 * many datagrams per second and bytes of the kernel's memory for each. */
#define PAUSES_PER_BUFFER    8
#define DATAGRAMS_PER_SECOND 1000000
#define DATAGRAM_BYTES       1280

/* System calls per turn; then timers and the other sockets have theirs. */
#define CALLS_PER_TURN 16

/* Of UDP and Unix sockets together. */
#define LISTENERS_MAX ((size_t)2 * CONFIG_LISTEN_MAX)

struct source {
    struct receiver *receiver;
    struct listener *listener;
    struct event *event; /* pending unless it is looked at */
    /* For UDP: */
    int timer_fd; /* -1 = none */
    struct event *look;
    bool busy;
    unsigned turns; /* since busy or not was last decided */
    uint64_t datagrams;
    int64_t judged_ms;
};

struct receiver {
    struct receiver_options options;
    struct source sources[LISTENERS_MAX];
    size_t sources_len;
    uint64_t dropped_unlogged;
    int64_t dropped_logged_ms; /* 0 = never */
    struct mmsghdr messages[SLOTS];
    struct iovec slots[SLOTS];
    char *buffer; /* SLOTS * SLOT_STRIDE, mapped: a page costs memory once it is used */
};

/* One system call's worth of datagrams; returns how many bytes came, -1 when there was nothing. `ret_full`:
 * there may be more. Not with UDP_GRO: of datagrams that the kernel has joined and then drops, it counts only
 * one. */
static ssize_t receive_datagrams(struct receiver *receiver, struct listener *listener, bool *ret_full)
{
    int count = recvmmsg(listener->fd, receiver->messages, SLOTS, MSG_DONTWAIT, NULL);
    struct stats *stats = receiver->options.stats;
    uint64_t lines = counter_get(&stats->lines);
    size_t bytes = 0;

    if (count <= 0)
        return -1;
    for (int i = 0; i < count; i++) {
        const struct mmsghdr *message = &receiver->messages[i];
        bool cut = message->msg_hdr.msg_flags & MSG_TRUNC;
        if (cut)
            counter_add(&stats->truncated, 1);
        ingest_gather(receiver->options.ingest, (struct span){receiver->slots[i].iov_base, message->msg_len},
                      cut);
        bytes += message->msg_len;
    }
    ingest_settle(receiver->options.ingest);
    /* Before the datagrams: who sees those counted finds their lines counted too. */
    ingest_publish(receiver->options.ingest);
    counter_add(&listener->lines, counter_get(&stats->lines) - lines);
    counter_add(&listener->datagrams, (uint64_t)count);
    counter_add(&listener->bytes, bytes);
    counter_add(&stats->datagrams, (uint64_t)count);
    counter_add(&stats->bytes, bytes);
    *ret_full = count == SLOTS;
    return (ssize_t)bytes;
}

/* Between two looks; 0 when the buffer is too small to leave it alone for so long. */
static int64_t look_every_us(const struct listener *listener)
{
    /* The kernel allows twice of what it is asked for. */
    int64_t room = 2 * listener->buffer_bytes / DATAGRAM_BYTES;
    int64_t room_us = room * 1000000 / DATAGRAMS_PER_SECOND;

    return room_us >= PAUSES_PER_BUFFER * LOOK_EVERY_US ? LOOK_EVERY_US : 0;
}

static void set_busy(struct source *source, bool busy)
{
    int64_t every_us = busy ? look_every_us(source->listener) : 0;
    struct itimerspec looks = {.it_interval.tv_nsec = every_us * 1000, .it_value.tv_nsec = every_us * 1000};

    if (source->timer_fd < 0 || (busy && every_us == 0) ||
        timerfd_settime(source->timer_fd, 0, &looks, NULL) < 0)
        return;
    source->busy = busy;
    if (busy)
        event_del(source->event);
    else
        event_add(source->event, NULL);
}

/* Once in TURNS_JUDGED turns, so that it costs nothing. */
static void judge(struct source *source)
{
    int64_t now_ms = clock_monotonic_ms();

    if (source->busy) {
        if (source->datagrams < 2 * TURNS_JUDGED)
            set_busy(source, false);
    } else if ((now_ms - source->judged_ms) * 2 * 1000 < TURNS_JUDGED * LOOK_EVERY_US) {
        set_busy(source, true);
    }
    source->judged_ms = now_ms;
    source->turns = 0;
    source->datagrams = 0;
}

/* Returns whether there may be more. */
static bool take_turn(struct source *source)
{
    uint64_t before = counter_get(&source->listener->datagrams);
    bool more = true;

    for (int i = 0; i < CALLS_PER_TURN && more; i++)
        if (receive_datagrams(source->receiver, source->listener, &more) < 0)
            more = false;
    source->receiver->options.on_received(source->receiver->options.context);
    source->datagrams += counter_get(&source->listener->datagrams) - before;
    if (++source->turns == TURNS_JUDGED)
        judge(source);
    return more;
}

static void on_datagrams(evutil_socket_t fd, short events, void *data)
{
    (void)fd;
    (void)events;
    (void)take_turn(data);
}

static void on_look(evutil_socket_t fd, short events, void *data)
{
    struct source *source = data;
    uint64_t looks;

    /* Without EV_READ it is us, with more to do. */
    if ((events & EV_READ) && read(fd, &looks, sizeof(looks)) < 0)
        return;
    if (take_turn(source) && source->busy)
        event_active(source->look, EV_TIMEOUT, 0);
}

/* Without a timer the socket is waited for as any other. */
static bool add_look(struct source *source)
{
    source->timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK | TFD_CLOEXEC);
    if (source->timer_fd < 0)
        return true;
    source->look =
        event_new(source->receiver->options.base, source->timer_fd, EV_READ | EV_PERSIST, on_look, source);
    return source->look && event_add(source->look, NULL) == 0;
}

static void remove_source(struct source *source)
{
    event_free(source->event);
    if (source->look)
        event_free(source->look);
    if (source->timer_fd >= 0)
        close(source->timer_fd);
}

struct receiver *receiver_new(const struct receiver_options *options)
{
    struct receiver *receiver = calloc(1, sizeof(*receiver));
    void *buffer =
        mmap(NULL, SLOTS * SLOT_STRIDE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (!receiver || buffer == MAP_FAILED) {
        if (buffer != MAP_FAILED)
            munmap(buffer, SLOTS * SLOT_STRIDE);
        free(receiver);
        return NULL;
    }
    receiver->options = *options;
    receiver->buffer = buffer;
    for (int i = 0; i < SLOTS; i++) {
        receiver->slots[i] = (struct iovec){receiver->buffer + (size_t)i * SLOT_STRIDE, SLOT_BYTES};
        receiver->messages[i].msg_hdr.msg_iov = &receiver->slots[i];
        receiver->messages[i].msg_hdr.msg_iovlen = 1;
    }
    return receiver;
}

void receiver_free(struct receiver *receiver)
{
    if (!receiver)
        return;
    for (size_t i = 0; i < receiver->sources_len; i++)
        remove_source(&receiver->sources[i]);
    munmap(receiver->buffer, SLOTS * SLOT_STRIDE);
    free(receiver);
}

int receiver_listen(struct receiver *receiver, struct listener *listener)
{
    struct source *source = &receiver->sources[receiver->sources_len];

    if (receiver->sources_len == LISTENERS_MAX)
        return -ENOMEM;
    *source = (struct source){.receiver = receiver, .listener = listener, .timer_fd = -1};
    source->event =
        event_new(receiver->options.base, listener->fd, EV_READ | EV_PERSIST, on_datagrams, source);
    if (!source->event)
        return -ENOMEM;
    receiver->sources_len++;
    /* Unix sockets are not looked at: their senders wait once a few datagrams are there. */
    if (event_add(source->event, NULL) < 0 || (listener->kind == LISTENER_UDP && !add_look(source)))
        return -ENOMEM;
    return 0;
}

void receiver_check_dropped(struct receiver *receiver)
{
    uint64_t dropped = 0;

    for (size_t i = 0; i < receiver->sources_len; i++)
        dropped += listener_read_dropped(receiver->sources[i].listener);
    counter_add(&receiver->options.stats->dropped, dropped);
    receiver->dropped_unlogged += dropped;
    if (receiver->dropped_unlogged == 0 || !log_is_due(&receiver->dropped_logged_ms))
        return;
    log_event(LOG_LEVEL_WARN, "kernel_dropped",
              "datagrams=%" PRIu64
              " hint=\"the receive buffer was full; raise listen.buffer_bytes, or workers\"",
              receiver->dropped_unlogged);
    receiver->dropped_unlogged = 0;
}

static void drain_source(struct source *source)
{
    ssize_t bytes;
    bool more;

    do
        bytes = receive_datagrams(source->receiver, source->listener, &more);
    /* A Unix socket that was shut gives empty datagrams without end. */
    while (bytes > 0 || (bytes == 0 && source->listener->kind == LISTENER_UDP));
}

void receiver_drain(struct receiver *receiver)
{
    for (size_t i = 0; i < receiver->sources_len; i++) {
        struct source *source = &receiver->sources[i];
        event_del(source->event);
        if (source->look)
            event_del(source->look);
        if (!source->listener->inherited)
            drain_source(source);
    }
    receiver_check_dropped(receiver);
}
