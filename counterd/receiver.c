#include "counterd/receiver.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>

#include "lib/clock.h"
#include "lib/config.h"
#include "lib/log.h"

#define SLOTS      64    /* datagrams per system call */
#define SLOT_BYTES 65536 /* no UDP datagram is larger; a Unix one may be, and is cut */

/* System calls per turn; then timers and the other sockets have theirs. */
#define CALLS_PER_TURN 16

/* Of UDP and Unix sockets together. */
#define LISTENERS_MAX ((size_t)2 * CONFIG_LISTEN_MAX)

#define LOG_INTERVAL_MS 10000

struct source {
    struct receiver *receiver;
    struct listener *listener;
    struct event *event;
};

struct receiver {
    struct receiver_options options;
    struct source sources[LISTENERS_MAX];
    size_t sources_len;
    uint64_t dropped_unlogged;
    int64_t dropped_logged_ms; /* 0 = never */
    struct mmsghdr messages[SLOTS];
    struct iovec slots[SLOTS];
    char *buffer; /* SLOTS * SLOT_BYTES, mapped: a page costs memory once it is used */
};

/* One system call's worth of datagrams; returns how many bytes came, -1 when there was nothing. */
static ssize_t receive_datagrams(struct receiver *receiver, struct listener *listener)
{
    int count = recvmmsg(listener->fd, receiver->messages, SLOTS, MSG_DONTWAIT, NULL);
    size_t bytes = 0;

    if (count <= 0)
        return -1;
    for (int i = 0; i < count; i++) {
        const struct mmsghdr *message = &receiver->messages[i];
        bool cut = message->msg_hdr.msg_flags & MSG_TRUNC;
        if (cut)
            counter_add(&receiver->options.stats->truncated, 1);
        ingest_lines(receiver->options.ingest, (struct span){receiver->slots[i].iov_base, message->msg_len},
                     cut);
        bytes += message->msg_len;
    }
    counter_add(&listener->datagrams, (uint64_t)count);
    counter_add(&listener->bytes, bytes);
    counter_add(&receiver->options.stats->datagrams, (uint64_t)count);
    counter_add(&receiver->options.stats->bytes, bytes);
    return (ssize_t)bytes;
}

static void turn_ends(struct receiver *receiver)
{
    ingest_publish(receiver->options.ingest);
    receiver->options.on_received(receiver->options.context);
}

static void on_datagrams(evutil_socket_t fd, short events, void *data)
{
    struct source *source = data;

    (void)fd;
    (void)events;
    for (int i = 0; i < CALLS_PER_TURN; i++)
        if (receive_datagrams(source->receiver, source->listener) < 0)
            break;
    turn_ends(source->receiver);
}

struct receiver *receiver_new(const struct receiver_options *options)
{
    struct receiver *receiver = calloc(1, sizeof(*receiver));
    void *buffer = mmap(NULL, SLOTS * SLOT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (!receiver || buffer == MAP_FAILED) {
        if (buffer != MAP_FAILED)
            munmap(buffer, SLOTS * SLOT_BYTES);
        free(receiver);
        return NULL;
    }
    receiver->options = *options;
    receiver->buffer = buffer;
    for (int i = 0; i < SLOTS; i++) {
        receiver->slots[i] = (struct iovec){receiver->buffer + (size_t)i * SLOT_BYTES, SLOT_BYTES};
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
        event_free(receiver->sources[i].event);
    munmap(receiver->buffer, SLOTS * SLOT_BYTES);
    free(receiver);
}

int receiver_listen(struct receiver *receiver, struct listener *listener)
{
    struct source *source = &receiver->sources[receiver->sources_len];

    if (receiver->sources_len == LISTENERS_MAX)
        return -ENOMEM;
    source->receiver = receiver;
    source->listener = listener;
    source->event =
        event_new(receiver->options.base, listener->fd, EV_READ | EV_PERSIST, on_datagrams, source);
    if (!source->event)
        return -ENOMEM;
    receiver->sources_len++;
    return event_add(source->event, NULL) < 0 ? -ENOMEM : 0;
}

void receiver_check_dropped(struct receiver *receiver)
{
    int64_t now = clock_monotonic_ms();

    for (size_t i = 0; i < receiver->sources_len; i++)
        receiver->dropped_unlogged += listener_read_dropped(receiver->sources[i].listener);
    if (receiver->dropped_unlogged == 0 ||
        (receiver->dropped_logged_ms != 0 && now - receiver->dropped_logged_ms < LOG_INTERVAL_MS))
        return;
    log_event(LOG_LEVEL_WARN, "kernel_dropped",
              "datagrams=%" PRIu64
              " hint=\"the receive buffer was full; raise listen.buffer_bytes, or workers\"",
              receiver->dropped_unlogged);
    receiver->dropped_unlogged = 0;
    receiver->dropped_logged_ms = now;
}

static void drain_datagrams(struct receiver *receiver, struct listener *listener)
{
    listener_shut(listener);
    /* A Unix socket that was shut gives empty datagrams without end. */
    while (receive_datagrams(receiver, listener) > 0)
        ingest_publish(receiver->options.ingest);
}

void receiver_drain(struct receiver *receiver)
{
    for (size_t i = 0; i < receiver->sources_len; i++) {
        event_del(receiver->sources[i].event);
        drain_datagrams(receiver, receiver->sources[i].listener);
    }
    receiver_check_dropped(receiver);
}
