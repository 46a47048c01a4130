#include "counterd/receiver.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/queue.h>
#include <sys/socket.h>
#include <unistd.h>

#include "counterd/frame.h"
#include "lib/clock.h"
#include "lib/log.h"

#define SLOTS      64    /* datagrams per system call */
#define SLOT_BYTES 65536 /* no UDP datagram is larger; a Unix one may be, and is cut */

/* System calls per turn; then timers and the other sockets have theirs. */
#define CALLS_PER_TURN   16
#define READS_PER_TURN   4
#define ACCEPTS_PER_TURN 64

#define CONNECTIONS_MAX 4096

/* After running out of file descriptors. */
#define ACCEPT_PAUSE_MS 500

#define LOG_INTERVAL_MS 10000

struct source {
    struct receiver *receiver;
    struct listener *listener;
    struct event *event;
};

struct connection {
    struct receiver *receiver;
    struct listener *listener;
    struct event *event;
    struct frame frame;
    int fd;
    LIST_ENTRY(connection) link;
};

struct receiver {
    struct receiver_options options;
    struct source *sources;
    LIST_HEAD(, connection) connections;
    size_t connections_len;
    struct event *accept_again;
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
        ingest_gather(receiver->options.ingest, (struct span){receiver->slots[i].iov_base, message->msg_len},
                      cut);
        bytes += message->msg_len;
    }
    ingest_settle(receiver->options.ingest);
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

static void connection_free(struct connection *connection)
{
    LIST_REMOVE(connection, link);
    connection->receiver->connections_len--;
    event_free(connection->event);
    frame_done(&connection->frame);
    close(connection->fd);
    free(connection);
}

static void on_frame(void *context, enum frame_event event, struct span bytes)
{
    struct connection *connection = context;

    if (event == FRAME_LINES)
        ingest_lines(connection->receiver->options.ingest, bytes, false);
    else
        ingest_reject(connection->receiver->options.ingest, REJECT_TOO_LONG, bytes);
}

/* The stream is over. A last line without LF counts if the client ended it so; else nobody knows whether it
 * is whole.
 */
static void end_connection(struct connection *connection, bool cut)
{
    struct span rest = frame_rest(&connection->frame);

    if (rest.len > 0)
        ingest_lines(connection->receiver->options.ingest, rest, cut);
    connection_free(connection);
}

/* Returns whether there may be more to read; the connection is gone otherwise unless `*ret_open`. */
static bool read_connection(struct connection *connection, bool *ret_open)
{
    struct receiver *receiver = connection->receiver;
    ssize_t len = recv(connection->fd, receiver->buffer, LINE_LEN_MAX, 0);

    *ret_open = true;
    if (len < 0 && (errno == EAGAIN || errno == EINTR))
        return false;
    if (len > 0) {
        counter_add(&connection->listener->bytes, (uint64_t)len);
        counter_add(&receiver->options.stats->bytes, (uint64_t)len);
        if (frame_feed(&connection->frame, (struct span){receiver->buffer, (size_t)len}, on_frame,
                       connection) == 0)
            return true;
    }
    *ret_open = false;
    end_connection(connection, len != 0);
    return false;
}

static void on_stream(evutil_socket_t fd, short events, void *data)
{
    struct connection *connection = data;
    struct receiver *receiver = connection->receiver;
    bool open;

    (void)fd;
    (void)events;
    for (int i = 0; i < READS_PER_TURN; i++)
        if (!read_connection(connection, &open))
            break;
    turn_ends(receiver);
}

static void connection_new(struct receiver *receiver, struct listener *listener, int fd)
{
    struct connection *connection = calloc(1, sizeof(*connection));
    struct event *event = NULL;

    if (connection)
        event = event_new(receiver->options.base, fd, EV_READ | EV_PERSIST, on_stream, connection);
    if (!event || receiver->connections_len >= CONNECTIONS_MAX) {
        counter_add(&receiver->options.stats->connections_refused, 1);
        if (event)
            event_free(event);
        free(connection);
        close(fd);
        return;
    }
    *connection = (struct connection){.receiver = receiver, .listener = listener, .event = event, .fd = fd};
    frame_init(&connection->frame);
    LIST_INSERT_HEAD(&receiver->connections, connection, link);
    receiver->connections_len++;
    counter_add(&receiver->options.stats->connections, 1);
    event_add(event, NULL);
}

static void accept_all(struct source *source)
{
    struct receiver *receiver = source->receiver;
    struct timeval pause = {.tv_usec = ACCEPT_PAUSE_MS * 1000};

    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(source->listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            connection_new(receiver, source->listener, fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            /* The connection stays in the backlog, and would wake us at once. */
            event_del(source->event);
            event_add(receiver->accept_again, &pause);
            return;
        } else if (errno == EAGAIN) {
            return;
        }
    }
}

static void on_accept(evutil_socket_t fd, short events, void *data)
{
    (void)fd;
    (void)events;
    accept_all(data);
}

static void on_accept_again(evutil_socket_t fd, short events, void *data)
{
    struct receiver *receiver = data;

    (void)fd;
    (void)events;
    for (size_t i = 0; i < receiver->options.listeners_len; i++)
        event_add(receiver->sources[i].event, NULL);
}

static bool add_source(struct receiver *receiver, size_t i)
{
    struct source *source = &receiver->sources[i];

    source->receiver = receiver;
    source->listener = &receiver->options.listeners[i];
    source->event = event_new(receiver->options.base, source->listener->fd, EV_READ | EV_PERSIST,
                              source->listener->kind == LISTENER_TCP ? on_accept : on_datagrams, source);
    return source->event && event_add(source->event, NULL) == 0;
}

struct receiver *receiver_new(const struct receiver_options *options)
{
    struct receiver *receiver = calloc(1, sizeof(*receiver));
    void *buffer = mmap(NULL, SLOTS * SLOT_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

    if (!receiver || buffer == MAP_FAILED)
        goto fail;
    receiver->options = *options;
    receiver->buffer = buffer;
    LIST_INIT(&receiver->connections);
    for (int i = 0; i < SLOTS; i++) {
        receiver->slots[i] = (struct iovec){receiver->buffer + (size_t)i * SLOT_BYTES, SLOT_BYTES};
        receiver->messages[i].msg_hdr.msg_iov = &receiver->slots[i];
        receiver->messages[i].msg_hdr.msg_iovlen = 1;
    }
    receiver->accept_again = evtimer_new(options->base, on_accept_again, receiver);
    receiver->sources = calloc(options->listeners_len, sizeof(*receiver->sources));
    if (!receiver->accept_again || !receiver->sources)
        goto fail;
    for (size_t i = 0; i < options->listeners_len; i++)
        if (!add_source(receiver, i))
            goto fail;
    return receiver;
fail:
    if (buffer != MAP_FAILED && !(receiver && receiver->buffer))
        munmap(buffer, SLOTS * SLOT_BYTES);
    receiver_free(receiver);
    return NULL;
}

void receiver_free(struct receiver *receiver)
{
    if (!receiver)
        return;
    while (!LIST_EMPTY(&receiver->connections))
        connection_free(LIST_FIRST(&receiver->connections));
    for (size_t i = 0; receiver->sources && i < receiver->options.listeners_len; i++)
        if (receiver->sources[i].event)
            event_free(receiver->sources[i].event);
    if (receiver->accept_again)
        event_free(receiver->accept_again);
    if (receiver->buffer)
        munmap(receiver->buffer, SLOTS * SLOT_BYTES);
    free(receiver->sources);
    free(receiver);
}

void receiver_check_dropped(struct receiver *receiver)
{
    int64_t now = clock_monotonic_ms();

    for (size_t i = 0; i < receiver->options.listeners_len; i++)
        receiver->dropped_unlogged += listener_read_dropped(&receiver->options.listeners[i]);
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

static void drain_connection(struct connection *connection)
{
    bool open;

    while (read_connection(connection, &open))
        ;
    if (open)
        end_connection(connection, true);
}

void receiver_drain(struct receiver *receiver)
{
    for (size_t i = 0; i < receiver->options.listeners_len; i++) {
        struct source *source = &receiver->sources[i];
        if (source->listener->kind == LISTENER_TCP)
            accept_all(source);
        else
            drain_datagrams(receiver, source->listener);
    }
    while (!LIST_EMPTY(&receiver->connections))
        drain_connection(LIST_FIRST(&receiver->connections));
    receiver_check_dropped(receiver);
    for (size_t i = 0; i < receiver->options.listeners_len; i++) {
        event_free(receiver->sources[i].event);
        receiver->sources[i].event = NULL;
        listener_close(&receiver->options.listeners[i]);
    }
    event_del(receiver->accept_again);
    ingest_publish(receiver->options.ingest);
}
