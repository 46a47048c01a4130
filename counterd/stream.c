#include "counterd/stream.h"

#include <errno.h>
#include <event2/event.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include "counterd/frame.h"
#include "lib/clock.h"

#define CONNECTIONS_MAX 4096
#define LISTENERS_MAX   CONFIG_LISTEN_MAX

/* One in so many file descriptors is not for them: Redis, the disk and HTTP need some, and a client may keep
 * its own for ever. */
#define DESCRIPTORS_KEPT 4

/* System calls per turn; then timers and the other sockets have theirs. */
#define READS_PER_TURN   4
#define ACCEPTS_PER_TURN 64

/* After running out of file descriptors. */
#define ACCEPT_PAUSE_MS 500

/* Of one connection, not answered yet; then it is not read until some are. */
#define SYNCS_MAX 64

/* At the end, of one connection: more than the kernels hold of it on both sides. Who sends more than that is
 * still sending, and would keep us here; so would very many, or a slow machine, hence the time for all of
 * them. */
#define DRAIN_BYTES_MAX (16 * 1024 * 1024)
#define DRAIN_MS_MAX    5000

/* A client that is gone without a word would hold its place for ever. */
#define KEEPALIVE_IDLE_S 300

#define SYNC_WORD "SYNC "

struct source {
    struct streams *streams;
    struct listener *listener;
    struct event *event;
};

struct connection {
    struct streams *streams;
    struct listener *listener;
    struct event *event;
    struct frame frame;
    int fd;
    bool ended;       /* the client sends no more */
    bool reading;     /* the event is added */
    uint64_t drained; /* bytes, since the end began */
    size_t syncs_len;
    LIST_HEAD(, sync) syncs;
    LIST_ENTRY(connection) link;
};

/* A SYNC that waits for its answer. */
struct sync {
    struct connection *connection;
    struct pipeline_wait wait;
    LIST_ENTRY(sync) link;
    char token[]; /* NUL-terminated */
};

struct streams {
    struct streams_options options;
    struct source sources[LISTENERS_MAX];
    size_t sources_len;
    LIST_HEAD(, connection) connections;
    size_t connections_len;
    struct event *accept_again;
    bool paused, draining;
    char buffer[LINE_LEN_MAX];
};

static void sync_free(struct sync *sync)
{
    LIST_REMOVE(sync, link);
    sync->connection->syncs_len--;
    free(sync);
}

static void connection_free(struct connection *connection)
{
    struct sync *sync;

    while ((sync = LIST_FIRST(&connection->syncs))) {
        pipeline_cancel(connection->streams->options.pipeline, &sync->wait);
        sync_free(sync);
    }
    LIST_REMOVE(connection, link);
    connection->streams->connections_len--;
    event_free(connection->event);
    frame_done(&connection->frame);
    close(connection->fd);
    free(connection);
}

/* The one place that decides whether a connection is read. */
static void update_reading(struct connection *connection)
{
    const struct streams *streams = connection->streams;
    bool reading =
        !connection->ended && !streams->paused && !streams->draining && connection->syncs_len < SYNCS_MAX;

    if (reading == connection->reading)
        return;
    connection->reading = reading;
    if (reading)
        event_add(connection->event, NULL);
    else
        event_del(connection->event);
}

/* Whoever sends SYNC reads the answers: what does not fit into the socket's buffer ends the connection. */
static bool send_answer(const struct connection *connection, const char *token)
{
    char line[sizeof("SYNCED \n") + KEY_LEN_MAX];
    int len = snprintf(line, sizeof(line), "SYNCED %s\n", token);

    return send(connection->fd, line, (size_t)len, MSG_NOSIGNAL | MSG_DONTWAIT) == len;
}

static void on_stored(void *context)
{
    struct sync *sync = context;
    struct connection *connection = sync->connection;
    bool sent = send_answer(connection, sync->token);

    sync_free(sync);
    if (!sent || (connection->ended && connection->syncs_len == 0))
        connection_free(connection);
    else
        update_reading(connection);
}

static bool is_token(struct span text)
{
    for (size_t i = 0; i < text.len; i++)
        if ((unsigned char)text.ptr[i] <= 0x20)
            return false;
    return text.len >= 1 && text.len <= KEY_LEN_MAX;
}

/* SYNC token
 *      ^^^^^ */
static void take_sync(struct connection *connection, struct span line)
{
    struct streams *streams = connection->streams;
    struct span token = {line.ptr + strlen(SYNC_WORD), line.len - strlen(SYNC_WORD)};
    struct sync *sync;

    if (token.len > 0 && token.ptr[token.len - 1] == '\r')
        token.len--;
    sync = is_token(token) ? calloc(1, sizeof(*sync) + token.len + 1) : NULL;
    if (!sync) {
        ingest_reject(streams->options.ingest, REJECT_SYNTAX, line);
        return;
    }
    sync->connection = connection;
    memcpy(sync->token, token.ptr, token.len);
    sync->wait = (struct pipeline_wait){.context = sync, .on_stored = on_stored};
    LIST_INSERT_HEAD(&connection->syncs, sync, link);
    connection->syncs_len++;
    pipeline_wait(streams->options.pipeline, &sync->wait);
}

/* The first line that begins with SYNC; NULL when there is none. */
static const char *find_sync(struct span lines)
{
    const char *from = lines.ptr, *end = lines.ptr + lines.len, *at;

    while (from < end && (at = memmem(from, (size_t)(end - from), SYNC_WORD, strlen(SYNC_WORD)))) {
        if (at == lines.ptr || at[-1] == '\n')
            return at;
        from = at + 1;
    }
    return NULL;
}

static void take_lines(struct connection *connection, struct span lines)
{
    struct ingest *ingest = connection->streams->options.ingest;
    const char *end = lines.ptr + lines.len, *at;

    while ((at = find_sync(lines))) {
        const char *lf = memchr(at, '\n', (size_t)(end - at));
        const char *line_end = lf ? lf : end;
        ingest_lines(ingest, (struct span){lines.ptr, (size_t)(at - lines.ptr)}, false);
        take_sync(connection, (struct span){at, (size_t)(line_end - at)});
        lines.ptr = lf ? lf + 1 : end;
        lines.len = (size_t)(end - lines.ptr);
    }
    ingest_lines(ingest, lines, false);
}

static void on_frame(void *context, enum frame_event event, struct span bytes)
{
    struct connection *connection = context;

    if (event == FRAME_LINES)
        take_lines(connection, bytes);
    else
        ingest_reject(connection->streams->options.ingest, REJECT_TOO_LONG, bytes);
}

/* The client's side has ended: in order, and then a last line without LF counts, or broken off, and then
 * nobody knows whether that line is whole. */
static void end_connection(struct connection *connection, bool broken)
{
    struct span rest = frame_rest(&connection->frame);

    connection->ended = true;
    if (rest.len > 0 && broken)
        ingest_lines(connection->streams->options.ingest, rest, true);
    else if (rest.len > 0)
        take_lines(connection, rest);
    if (broken || connection->syncs_len == 0)
        connection_free(connection);
    else
        update_reading(connection);
}

enum read_result { READ_SOME, READ_NOTHING, READ_END };

/* On READ_END the connection may be gone. */
static enum read_result read_connection(struct connection *connection)
{
    struct streams *streams = connection->streams;
    ssize_t len = recv(connection->fd, streams->buffer, sizeof(streams->buffer), 0);

    if (len < 0 && (errno == EAGAIN || errno == EINTR))
        return READ_NOTHING;
    if (len > 0) {
        counter_add(&connection->listener->bytes, (uint64_t)len);
        counter_add(&streams->options.stats->bytes, (uint64_t)len);
        if (frame_feed(&connection->frame, (struct span){streams->buffer, (size_t)len}, on_frame,
                       connection) == 0)
            return READ_SOME;
    }
    end_connection(connection, len != 0);
    return READ_END;
}

/* What was read came from one listener. */
static void publish(struct streams *streams, struct listener *listener)
{
    const counter *lines = &streams->options.stats->lines;
    uint64_t before = counter_get(lines);

    ingest_publish(streams->options.ingest);
    counter_add(&listener->lines, counter_get(lines) - before);
}

static void turn_ends(struct streams *streams, struct listener *listener)
{
    publish(streams, listener);
    streams->options.on_received(streams->options.context);
}

static void on_readable(evutil_socket_t fd, short events, void *data)
{
    struct connection *connection = data;
    struct streams *streams = connection->streams;
    struct listener *listener = connection->listener;
    enum read_result result = READ_SOME;

    (void)fd;
    (void)events;
    for (int i = 0; i < READS_PER_TURN && result == READ_SOME && connection->syncs_len < SYNCS_MAX; i++)
        result = read_connection(connection);
    if (result != READ_END)
        update_reading(connection);
    turn_ends(streams, listener);
}

static void keep_alive(int fd)
{
    int on = 1, idle_s = KEEPALIVE_IDLE_S;

    (void)setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
    (void)setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle_s, sizeof(idle_s));
}

/* The kernel gives the lowest number that is free. */
static bool is_full(const struct streams *streams, int fd)
{
    struct rlimit limit;

    return streams->connections_len >= CONNECTIONS_MAX ||
           (getrlimit(RLIMIT_NOFILE, &limit) == 0 &&
            (rlim_t)fd >= limit.rlim_cur - limit.rlim_cur / DESCRIPTORS_KEPT);
}

static void connection_new(struct streams *streams, struct listener *listener, int fd)
{
    struct connection *connection = calloc(1, sizeof(*connection));
    struct event *event = NULL;

    if (connection)
        event = event_new(streams->options.base, fd, EV_READ | EV_PERSIST, on_readable, connection);
    if (!event || is_full(streams, fd)) {
        counter_add(&streams->options.stats->connections_refused, 1);
        if (event)
            event_free(event);
        free(connection);
        close(fd);
        return;
    }
    keep_alive(fd);
    *connection = (struct connection){.streams = streams, .listener = listener, .event = event, .fd = fd};
    frame_init(&connection->frame);
    LIST_INIT(&connection->syncs);
    LIST_INSERT_HEAD(&streams->connections, connection, link);
    streams->connections_len++;
    counter_add(&streams->options.stats->connections, 1);
    update_reading(connection);
}

/* Returns whether there may be more to accept at once. */
static bool accept_some(struct source *source)
{
    struct timeval pause = clock_timeval(ACCEPT_PAUSE_MS);
    bool some = false;

    for (int i = 0; i < ACCEPTS_PER_TURN; i++) {
        int fd = accept4(source->listener->fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            some = true;
            connection_new(source->streams, source->listener, fd);
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            /* The connection stays in the backlog, and would wake us at once. */
            event_del(source->event);
            event_add(source->streams->accept_again, &pause);
            return false;
        } else if (errno == EAGAIN) {
            return false;
        }
    }
    /* Any other error is that of one connection; nothing but such errors is not worth another turn. */
    return some;
}

static void on_accept(evutil_socket_t fd, short events, void *data)
{
    (void)fd;
    (void)events;
    (void)accept_some(data);
}

static void on_accept_again(evutil_socket_t fd, short events, void *data)
{
    struct streams *streams = data;

    (void)fd;
    (void)events;
    for (size_t i = 0; i < streams->sources_len; i++)
        event_add(streams->sources[i].event, NULL);
}

struct streams *streams_new(const struct streams_options *options)
{
    struct streams *streams = calloc(1, sizeof(*streams));

    if (!streams)
        return NULL;
    streams->options = *options;
    LIST_INIT(&streams->connections);
    streams->accept_again = evtimer_new(options->base, on_accept_again, streams);
    if (!streams->accept_again) {
        streams_free(streams);
        return NULL;
    }
    return streams;
}

void streams_free(struct streams *streams)
{
    if (!streams)
        return;
    while (!LIST_EMPTY(&streams->connections))
        connection_free(LIST_FIRST(&streams->connections));
    for (size_t i = 0; i < streams->sources_len; i++)
        if (streams->sources[i].event)
            event_free(streams->sources[i].event);
    if (streams->accept_again)
        event_free(streams->accept_again);
    free(streams);
}

int streams_listen(struct streams *streams, struct listener *listener)
{
    struct source *source = &streams->sources[streams->sources_len];

    if (streams->sources_len == LISTENERS_MAX)
        return -ENOMEM;
    source->streams = streams;
    source->listener = listener;
    source->event = event_new(streams->options.base, listener->fd, EV_READ | EV_PERSIST, on_accept, source);
    if (!source->event || event_add(source->event, NULL) < 0)
        return -ENOMEM;
    streams->sources_len++;
    return 0;
}

void streams_pause(struct streams *streams, bool paused)
{
    struct connection *connection;

    if (streams->paused == paused)
        return;
    streams->paused = paused;
    LIST_FOREACH(connection, &streams->connections, link)
    {
        update_reading(connection);
    }
}

/* Some of what the client has sent so far; false when that was all, or more than it may be. The line that it
 * is in the middle of is cut. */
static bool drain_connection(struct connection *connection, int64_t end_ms)
{
    const counter *bytes = &connection->listener->bytes;
    uint64_t before = counter_get(bytes);
    enum read_result result = READ_SOME;
    struct span rest;

    for (int i = 0; i < READS_PER_TURN && result == READ_SOME; i++)
        result = read_connection(connection);
    if (result == READ_END)
        return false;
    connection->drained += counter_get(bytes) - before;
    if (result == READ_SOME && connection->drained < DRAIN_BYTES_MAX && clock_monotonic_ms() < end_ms)
        return true;
    rest = frame_rest(&connection->frame);
    if (rest.len > 0)
        ingest_lines(connection->streams->options.ingest, rest, true);
    connection->ended = true;
    if (connection->syncs_len == 0)
        connection_free(connection);
    return false;
}

/* A turn for each, so that one that never stops sending takes no time from the others. */
static bool drain_connections(struct streams *streams, int64_t end_ms)
{
    struct connection *connection, *next;
    bool more = false;

    for (connection = LIST_FIRST(&streams->connections); connection; connection = next) {
        struct listener *listener = connection->listener;
        next = LIST_NEXT(connection, link);
        update_reading(connection);
        if (!connection->ended && drain_connection(connection, end_ms))
            more = true;
        publish(streams, listener);
    }
    return more;
}

void streams_drain(struct streams *streams)
{
    int64_t end_ms = clock_monotonic_ms() + DRAIN_MS_MAX;

    for (size_t i = 0; i < streams->sources_len; i++) {
        while (!streams->sources[i].listener->inherited && accept_some(&streams->sources[i]) &&
               clock_monotonic_ms() < end_ms)
            ;
        event_free(streams->sources[i].event);
        streams->sources[i].event = NULL;
    }
    event_del(streams->accept_again);
    streams->draining = true;
    while (drain_connections(streams, end_ms))
        ;
}
