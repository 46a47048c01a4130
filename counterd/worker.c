#include "counterd/worker.h"

#include <event2/event.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "counterd/receiver.h"
#include "counterd/stream.h"
#include "lib/clock.h"
#include "lib/targets.h"

struct worker {
    struct worker_options options;
    struct event_base *base;
    struct stats stats;
    struct ingest *ingest;
    struct pipeline *pipeline;
    struct receiver *receiver;
    struct streams *streams;
    pthread_t thread;
    bool started;
    /* What other threads ask for; wake_fd says that there is something. */
    int wake_fd;
    struct event *wake;
    pthread_mutex_t lock;
    struct pipeline_limits limits; /* holds a reference to its targets */
    bool shut, stop;
    bool is_shut, is_stopping; /* the worker's own: it has done so */
    _Atomic bool asked;        /* whether it is alive */
};

static void on_received(void *context)
{
    struct worker *worker = context;

    pipeline_poke(worker->pipeline);
    /* TCP can be held back, so it is, before its keys come to count as overflow. */
    if (pipeline_is_crowded(worker->pipeline))
        streams_pause(worker->streams, true);
}

static void on_room(void *context)
{
    struct worker *worker = context;

    streams_pause(worker->streams, false);
}

static void on_tick(void *context)
{
    struct worker *worker = context;

    receiver_check_dropped(worker->receiver);
    stats_note_moment(&worker->stats, clock_monotonic_ms());
}

static void on_done(void *context)
{
    struct worker *worker = context;

    event_base_loopbreak(worker->base);
}

static void tell(int fd)
{
    uint64_t one = 1;

    /* Fails only when the count would overflow, and then the reader is told already. */
    if (write(fd, &one, sizeof(one)) < 0)
        return;
}

static void close_listeners(const struct worker_options *options)
{
    for (size_t i = 0; i < options->listeners_len; i++)
        listener_close(&options->listeners[i]);
}

static void on_wake(evutil_socket_t fd, short events, void *data)
{
    struct worker *worker = data;
    struct pipeline_limits limits;
    uint64_t count;
    bool shut, stop;

    (void)events;
    if (read(fd, &count, sizeof(count)) < 0)
        return;
    atomic_store(&worker->asked, false);
    pthread_mutex_lock(&worker->lock);
    limits = worker->limits;
    targets_ref(limits.targets);
    shut = worker->shut;
    stop = worker->stop;
    pthread_mutex_unlock(&worker->lock);
    pipeline_set_limits(worker->pipeline, &limits);
    targets_unref(limits.targets);
    if (shut && !worker->is_shut) {
        for (size_t i = 0; i < worker->options.listeners_len; i++)
            listener_shut(&worker->options.listeners[i]);
        worker->is_shut = true;
        tell(worker->options.done_fd);
    }
    if (stop && !worker->is_stopping) {
        worker->is_stopping = true;
        receiver_drain(worker->receiver);
        streams_drain(worker->streams);
        close_listeners(&worker->options);
        /* That may have taken long; what is given time from here on must not lose it. */
        (void)event_base_update_cache_time(worker->base);
        pipeline_finish(worker->pipeline);
    }
}

static bool set_up_pipeline(struct worker *worker)
{
    struct pipeline_options options = {
        .base = worker->base,
        .config = worker->options.config,
        .ingest = worker->ingest,
        .stats = &worker->stats,
        .spool_directory = worker->options.spool_directory,
        .context = worker,
        .on_tick = on_tick,
        .on_room = on_room,
        .on_done = on_done,
    };

    worker->pipeline = pipeline_new(&options);
    return worker->pipeline != NULL;
}

static bool set_up_sockets(struct worker *worker)
{
    struct receiver_options receiver = {worker->base, worker->ingest, &worker->stats, worker, on_received};
    struct streams_options streams = {worker->base,   worker->ingest, worker->pipeline,
                                      &worker->stats, worker,         on_received};
    int r = 0;

    worker->receiver = receiver_new(&receiver);
    worker->streams = streams_new(&streams);
    if (!worker->receiver || !worker->streams)
        return false;
    for (size_t i = 0; i < worker->options.listeners_len && r == 0; i++) {
        struct listener *listener = &worker->options.listeners[i];
        r = listener->kind == LISTENER_TCP ? streams_listen(worker->streams, listener)
                                           : receiver_listen(worker->receiver, listener);
    }
    return r == 0;
}

static bool set_up(struct worker *worker)
{
    worker->base = event_base_new();
    worker->ingest = ingest_new(&worker->stats);
    worker->wake_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    if (!worker->base || !worker->ingest || worker->wake_fd < 0)
        return false;
    worker->wake = event_new(worker->base, worker->wake_fd, EV_READ | EV_PERSIST, on_wake, worker);
    return worker->wake && event_add(worker->wake, NULL) == 0 && set_up_pipeline(worker) &&
           set_up_sockets(worker);
}

struct worker *worker_new(const struct worker_options *options)
{
    struct worker *worker = calloc(1, sizeof(*worker));

    if (!worker) {
        close_listeners(options);
        free(options->listeners);
        return NULL;
    }
    worker->options = *options;
    worker->limits = pipeline_limits_of(options->config);
    targets_ref(worker->limits.targets);
    pthread_mutex_init(&worker->lock, NULL);
    stats_init(&worker->stats);
    if (!set_up(worker)) {
        worker_free(worker);
        return NULL;
    }
    return worker;
}

void worker_free(struct worker *worker)
{
    if (!worker)
        return;
    if (worker->started)
        pthread_join(worker->thread, NULL);
    streams_free(worker->streams);
    receiver_free(worker->receiver);
    pipeline_free(worker->pipeline);
    ingest_free(worker->ingest);
    close_listeners(&worker->options);
    free(worker->options.listeners);
    if (worker->wake)
        event_free(worker->wake);
    if (worker->wake_fd >= 0)
        close(worker->wake_fd);
    if (worker->base)
        event_base_free(worker->base);
    stats_done(&worker->stats);
    targets_unref(worker->limits.targets);
    pthread_mutex_destroy(&worker->lock);
    free(worker);
}

static void *run(void *data)
{
    struct worker *worker = data;

    event_base_dispatch(worker->base);
    tell(worker->options.done_fd);
    return NULL;
}

void worker_carry(struct worker *worker, struct span key, int64_t micros)
{
    pipeline_carry(worker->pipeline, key, micros);
}

int worker_start(struct worker *worker, struct error *error)
{
    sigset_t all, before;
    int r;

    /* Signals are the main thread's. */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    r = pthread_create(&worker->thread, NULL, run, worker);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (r != 0)
        return error_set(error, -r, "can't start a worker thread: %s", strerror(r));
    worker->started = true;
    return 0;
}

void worker_set_limits(struct worker *worker, const struct pipeline_limits *limits)
{
    targets_ref(limits->targets);
    pthread_mutex_lock(&worker->lock);
    targets_unref(worker->limits.targets);
    worker->limits = *limits;
    pthread_mutex_unlock(&worker->lock);
    tell(worker->wake_fd);
}

void worker_shut(struct worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    worker->shut = true;
    pthread_mutex_unlock(&worker->lock);
    tell(worker->wake_fd);
}

void worker_stop(struct worker *worker)
{
    pthread_mutex_lock(&worker->lock);
    worker->stop = true;
    pthread_mutex_unlock(&worker->lock);
    tell(worker->wake_fd);
}

bool worker_is_alive(struct worker *worker)
{
    bool alive = !atomic_exchange(&worker->asked, true);

    tell(worker->wake_fd);
    return alive;
}

struct pipeline_rest worker_take_rest(struct worker *worker)
{
    if (worker->started)
        pthread_join(worker->thread, NULL);
    worker->started = false;
    return pipeline_take_rest(worker->pipeline);
}

struct stats *worker_stats(struct worker *worker)
{
    return &worker->stats;
}

const struct listener *worker_listeners(const struct worker *worker, size_t *ret_len)
{
    *ret_len = worker->options.listeners_len;
    return worker->options.listeners;
}
