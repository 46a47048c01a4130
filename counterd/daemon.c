#include "counterd/daemon.h"

#include <errno.h>
#include <event2/event.h>
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <sys/resource.h>
#include <sysexits.h>
#include <unistd.h>

#include "counterd/http.h"
#include "counterd/link.h"
#include "counterd/replay.h"
#include "counterd/systemd.h"
#include "counterd/version.h"
#include "counterd/worker.h"
#include "lib/clock.h"
#include "lib/log.h"
#include "lib/targets.h"

/* So long a start waits for Redis before it goes on without. */
#define REDIS_CHECK_MS 2000

struct daemon {
    struct config *config;
    const char *path;
    struct event_base *base;
    struct worker **workers;
    size_t workers_len;
    size_t open;     /* workers that let datagrams in */
    size_t counting; /* workers, increments and the replay that have not stopped yet */
    int done_fd;
    struct listener http_listener;
    struct increments *increments; /* NULL without HTTP */
    struct reader *reader;
    struct http *http;
    int spool_directory;   /* -1 without a spool */
    struct replay *replay; /* NULL when nothing was left to be sent */
    struct event *signals[3];
    struct event *done;
    struct event *watchdog; /* NULL when nobody asks for it */
    struct systemd_sockets sockets;
    struct status_view view;
};

static int exit_code_of(int r)
{
    switch (r) {
    case -EADDRINUSE:
    case -EHOSTUNREACH:
        return EX_UNAVAILABLE;
    case -ENOMEM:
        return EX_OSERR;
    default:
        return EX_CONFIG;
    }
}

static void log_listening(const struct listener *listener, int64_t asked)
{
    const char *kind = listener_kind_name(listener->kind);

    if (listener->kind == LISTENER_TCP) {
        log_event(LOG_LEVEL_INFO, "listening", "kind=%s address=%s", kind, listener->name);
        return;
    }
    log_event(LOG_LEVEL_INFO, "listening", "kind=%s address=%s buffer_bytes=%" PRId64, kind, listener->name,
              listener->buffer_bytes);
    if (listener->buffer_bytes < asked && listener->inherited)
        log_event(LOG_LEVEL_WARN, "buffer_clamped",
                  "kind=%s address=%s asked_bytes=%" PRId64 " got_bytes=%" PRId64
                  " hint=\"ReceiveBuffer= in the socket unit\"",
                  kind, listener->name, asked, listener->buffer_bytes);
    else if (listener->buffer_bytes < asked)
        log_event(LOG_LEVEL_WARN, "buffer_clamped",
                  "kind=%s address=%s asked_bytes=%" PRId64 " got_bytes=%" PRId64
                  " hint=\"sysctl -w net.core.rmem_max=%" PRId64 "\"",
                  kind, listener->name, asked, listener->buffer_bytes, asked);
}

/* What of the configuration a worker opens: the addresses of a kind, the same ones for every worker. */
struct opening {
    const struct config_list *list;
    enum listener_kind kind;
    bool first_only; /* can't be shared by workers */
};

/* A second process could share our addresses by SO_REUSEPORT too, and take half of the traffic without a
 * word. So when workers share one, it must be free at first. */
static int check_free(const struct listener_options *options, struct error *error)
{
    struct listener_options alone = *options;
    struct listener listener;
    int r;

    alone.shared = false;
    r = listener_open(&listener, &alone, error);
    if (r == 0)
        listener_close(&listener);
    return r;
}

/* Opens it, or takes the one that the service manager has opened. Several workers read one inherited socket,
 * if the manager has not opened one for each (ReusePort=). */
static int open_listener(struct daemon *daemon, const struct listener_options *options, bool is_sibling,
                         struct listener *listener, struct error *error)
{
    bool copied;
    int fd = systemd_take_socket(&daemon->sockets, options, is_sibling, &copied);

    if (fd >= 0) {
        listener_inherit(listener, options, fd, copied);
        return 0;
    }
    if (options->shared && !is_sibling) {
        int r = check_free(options, error);
        if (r < 0)
            return r;
    }
    return listener_open(listener, options, error);
}

/* With port 0 the first worker's socket says which port it is. */
static const char *address_of_sibling(const char *asked, const struct listener *sibling)
{
    return asked[0] == ':' ? strrchr(sibling->name, ':') : sibling->name;
}

static int open_list(struct daemon *daemon, const struct opening *opening, size_t worker,
                     struct listener *listeners, size_t *len, const struct listener *siblings,
                     struct error *error)
{
    for (size_t i = 0; i < opening->list->len; i++) {
        struct listener_options options = {
            .kind = opening->kind,
            .address = opening->list->items[i],
            .buffer_bytes = daemon->config->listen.buffer_bytes,
            .shared = daemon->workers_len > 1 && !opening->first_only,
            .sharing = (uint32_t)worker + 1,
        };
        int r;
        if (opening->first_only && worker > 0)
            continue;
        if (siblings)
            options.address = address_of_sibling(options.address, &siblings[*len]);
        r = open_listener(daemon, &options, siblings != NULL, &listeners[*len], error);
        if (r < 0)
            return r;
        if (worker == 0)
            log_listening(&listeners[*len], options.buffer_bytes);
        (*len)++;
    }
    return 0;
}

static int open_worker(struct daemon *daemon, size_t worker, struct error *error)
{
    const struct config *config = daemon->config;
    /* Unix sockets last, so that the others stand at the same place in every worker. */
    const struct opening openings[] = {
        {&config->listen.udp, LISTENER_UDP, false},
        {&config->listen.tcp, LISTENER_TCP, false},
        {&config->listen.local, LISTENER_UNIX, true},
    };
    struct worker_options options = {
        .config = config, .spool_directory = daemon->spool_directory, .done_fd = daemon->done_fd};
    const struct listener *siblings = NULL;
    size_t siblings_len;
    int r = 0;

    if (worker > 0)
        siblings = worker_listeners(daemon->workers[0], &siblings_len);
    options.listeners = calloc(ARRAY_LEN(openings) * CONFIG_LISTEN_MAX, sizeof(*options.listeners));
    if (!options.listeners)
        return error_set(error, -ENOMEM, "out of memory");
    for (size_t i = 0; i < ARRAY_LEN(openings) && r == 0; i++)
        r = open_list(daemon, &openings[i], worker, options.listeners, &options.listeners_len, siblings,
                      error);
    if (r < 0) {
        for (size_t i = 0; i < options.listeners_len; i++)
            listener_close(&options.listeners[i]);
        free(options.listeners);
        return r;
    }
    daemon->workers[worker] = worker_new(&options);
    return daemon->workers[worker] ? 0 : error_set(error, -ENOMEM, "out of memory");
}

static void one_stopped(struct daemon *daemon)
{
    if (--daemon->counting == 0)
        event_base_loopexit(daemon->base, NULL);
}

static void one_shut(struct daemon *daemon)
{
    if (--daemon->open > 0)
        return;
    for (size_t i = 0; i < daemon->workers_len; i++)
        worker_stop(daemon->workers[i]);
}

static void on_part_done(void *context)
{
    one_stopped(context);
}

static int open_http(struct daemon *daemon, struct error *error)
{
    struct listener_options options = {.kind = LISTENER_TCP, .address = daemon->config->listen.http};
    struct http_options http = {
        .base = daemon->base, .listener = &daemon->http_listener, .view = &daemon->view};
    int r;

    if (options.address[0] == '\0')
        return 0;
    r = open_listener(daemon, &options, false, &daemon->http_listener, error);
    if (r < 0)
        return error_prefix(error, r, "'listen.http'");
    log_event(LOG_LEVEL_INFO, "listening", "kind=http address=%s", daemon->http_listener.name);
    daemon->increments =
        increments_new(daemon->base, daemon->config, daemon->spool_directory, daemon, on_part_done);
    daemon->reader = reader_new(daemon->base, daemon->config);
    http.increments = daemon->increments;
    http.reader = daemon->reader;
    if (daemon->increments && daemon->reader)
        daemon->http = http_new(&http);
    return daemon->http ? 0 : error_set(error, -ENOMEM, "out of memory");
}

/* Redis away is no reason not to count; Redis that will never take our counts is. */
static int check_redis(const struct daemon *daemon, struct error *error)
{
    int r = link_check(daemon->config, REDIS_CHECK_MS, error);
    char quoted[LOG_TEXT_BYTES];

    if (r != -EHOSTUNREACH)
        return r;
    log_event(LOG_LEVEL_WARN, "redis_away", "error=%s hint=\"counting in memory until it comes\"",
              log_quote(quoted, span_of(error->text)));
    return 0;
}

static int open_spool(struct daemon *daemon, struct error *error)
{
    const struct config *config = daemon->config;

    if (config->spool_dir[0] == '\0')
        return 0;
    return spool_directory_open(config->spool_dir, config->namespace, &daemon->spool_directory, error);
}

static bool carry_fractions(void *context, const struct record *record)
{
    struct daemon *daemon = context;
    struct span key;
    int64_t micros;
    size_t at = 0;

    while (batch_next_entry(&record->batch, &at, &key, &micros))
        worker_carry(daemon->workers[0], key, micros);
    return true;
}

/* What earlier processes have left, once it is sure that this one will run. */
static int take_over_spool(struct daemon *daemon, struct error *error)
{
    const struct config *config = daemon->config;
    struct replay_options options = {.base = daemon->base,
                                     .config = config,
                                     .directory = daemon->spool_directory,
                                     .context = daemon,
                                     .on_done = on_part_done};
    struct spool_options spool = {.directory = daemon->spool_directory,
                                  .namespace = config->namespace,
                                  .shards = config_shards(config),
                                  .lanes = config_lanes_id(config)};
    struct spool_finder finder = {daemon, carry_fractions};
    int r;

    if (daemon->spool_directory < 0)
        return 0;
    r = spool_list(&spool, &options.writers, error);
    if (r == 0)
        r = spool_take_fractions(options.directory, spool.shards, &finder, error);
    if (r < 0 || options.writers.len == 0) {
        spool_writers_done(&options.writers);
        return r;
    }
    daemon->replay = replay_new(&options);
    if (!daemon->replay)
        return error_set(error, -ENOMEM, "out of memory");
    daemon->view.stats[daemon->view.stats_len++] = replay_stats(daemon->replay);
    daemon->counting++;
    return 0;
}

static void on_stop(evutil_socket_t fd, short events, void *data)
{
    struct daemon *daemon = data;

    (void)events;
    if (daemon->view.stopping)
        return;
    daemon->view.stopping = true;
    log_event(LOG_LEVEL_INFO, "stopping", "signal=%d", (int)fd);
    systemd_notify("STOPPING=1\nSTATUS=storing what is left");
    for (size_t i = 0; i < daemon->workers_len; i++)
        worker_shut(daemon->workers[i]);
    if (daemon->increments)
        increments_stop(daemon->increments);
    if (daemon->replay)
        replay_finish(daemon->replay);
}

static void reload(struct daemon *daemon)
{
    struct pipeline_limits limits;
    struct config *config;
    struct error error;
    char names[512];

    if (config_load(daemon->path, &config, &error) < 0) {
        log_error(LOG_LEVEL_ERROR, "reload_refused", &error);
        log_event(LOG_LEVEL_WARN, "reload_refused", "hint=\"the configuration stays as it was\"");
        return;
    }
    if (config_needs_restart(daemon->config, config, names, sizeof(names)))
        log_event(LOG_LEVEL_WARN, "reload_partial", "keys=\"%s\" hint=\"these change only with a restart\"",
                  names);
    if (!config_lanes_equal(daemon->config, config)) {
        targets_unref(config->targets);
        config->targets = targets_ref(daemon->config->targets);
    }
    limits = pipeline_limits_of(config);
    for (size_t i = 0; i < daemon->workers_len; i++)
        worker_set_limits(daemon->workers[i], &limits);
    if (daemon->increments)
        increments_set_limits(daemon->increments, &limits);
    daemon->config->coalesce_ms = config->coalesce_ms;
    daemon->config->keys_max = config->keys_max;
    daemon->config->history_bytes = config->history_bytes;
    targets_unref(daemon->config->targets);
    daemon->config->targets = targets_ref(config->targets);
    config_free(config);
    log_event(LOG_LEVEL_INFO, "reloaded",
              "coalesce_ms=%" PRId64 " keys_max=%zu history_bytes=%zu targets=%zu fanouts=%zu",
              limits.coalesce_ms, limits.keys_max, limits.history_bytes, limits.targets->len,
              limits.targets->fanouts_len);
}

static void on_reload(evutil_socket_t fd, short events, void *data)
{
    (void)fd;
    (void)events;
    systemd_notify("RELOADING=1");
    reload(data);
    systemd_notify("READY=1");
}

/* Only when every worker's loop turns; while they stop, they end one by one. */
static void on_watchdog(evutil_socket_t fd, short events, void *data)
{
    struct daemon *daemon = data;
    bool alive = true;

    (void)fd;
    (void)events;
    for (size_t i = 0; i < daemon->workers_len; i++)
        alive = worker_is_alive(daemon->workers[i]) && alive;
    if (alive || daemon->view.stopping)
        systemd_notify("WATCHDOG=1");
}

/* Asked three times in its interval, so that a slow turn is not taken for a dead one. */
static int feed_watchdog(struct daemon *daemon, struct error *error)
{
    int64_t ms = systemd_watchdog_ms() / 3;
    struct timeval interval = clock_timeval(ms);

    if (ms == 0)
        return 0;
    daemon->watchdog = event_new(daemon->base, -1, EV_PERSIST, on_watchdog, daemon);
    if (!daemon->watchdog || event_add(daemon->watchdog, &interval) < 0)
        return error_set(error, -ENOMEM, "out of memory");
    return 0;
}

static void on_worker_done(evutil_socket_t fd, short events, void *data)
{
    struct daemon *daemon = data;
    uint64_t count;

    (void)events;
    if (read(fd, &count, sizeof(count)) < 0)
        return;
    for (; count > 0; count--) {
        if (daemon->open > 0)
            one_shut(daemon);
        else
            one_stopped(daemon);
    }
}

static int watch_signals(struct daemon *daemon, struct error *error)
{
    const struct {
        int number;
        event_callback_fn callback;
    } watched[] = {{SIGTERM, on_stop}, {SIGINT, on_stop}, {SIGHUP, on_reload}};

    signal(SIGPIPE, SIG_IGN);
    /* A limit on files is an error of the write, and told. */
    signal(SIGXFSZ, SIG_IGN);
    for (size_t i = 0; i < ARRAY_LEN(watched); i++) {
        daemon->signals[i] = evsignal_new(daemon->base, watched[i].number, watched[i].callback, daemon);
        if (!daemon->signals[i] || event_add(daemon->signals[i], NULL) < 0)
            return error_set(error, -ENOMEM, "out of memory");
    }
    daemon->done = event_new(daemon->base, daemon->done_fd, EV_READ | EV_PERSIST, on_worker_done, daemon);
    if (!daemon->done || event_add(daemon->done, NULL) < 0)
        return error_set(error, -ENOMEM, "out of memory");
    return 0;
}

/* Connections count in file descriptors; the soft limit is for programs that use select(2). */
static void raise_file_limit(void)
{
    struct rlimit limit;

    if (getrlimit(RLIMIT_NOFILE, &limit) == 0) {
        limit.rlim_cur = limit.rlim_max;
        (void)setrlimit(RLIMIT_NOFILE, &limit);
    }
}

static int start(struct daemon *daemon, struct error *error)
{
    int64_t cores = sysconf(_SC_NPROCESSORS_ONLN);
    int r;

    daemon->workers_len = (size_t)(daemon->config->workers > 0 ? daemon->config->workers : cores);
    daemon->base = event_base_new();
    daemon->done_fd = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    daemon->workers = calloc(daemon->workers_len, sizeof(struct worker *));
    daemon->view = (struct status_view){
        .config = daemon->config,
        .workers = daemon->workers,
        .workers_len = daemon->workers_len,
        /* Beside the workers' those of increments and of the replay. */
        .stats = calloc(daemon->workers_len + 2, sizeof(struct stats *)),
        .started_ms = clock_monotonic_ms(),
        .started_unix_ms = clock_unix_ms(),
    };
    if (!daemon->base || daemon->done_fd < 0 || !daemon->workers || !daemon->view.stats)
        return error_set(error, -ENOMEM, "out of memory");
    raise_file_limit();
    systemd_find_sockets(&daemon->sockets);
    r = watch_signals(daemon, error);
    if (r == 0)
        r = open_spool(daemon, error);
    for (size_t i = 0; i < daemon->workers_len && r == 0; i++)
        r = open_worker(daemon, i, error);
    if (r == 0)
        r = open_http(daemon, error);
    if (r == 0)
        r = check_redis(daemon, error);
    if (r < 0)
        return r;
    for (size_t i = 0; i < daemon->workers_len; i++)
        daemon->view.stats[daemon->view.stats_len++] = worker_stats(daemon->workers[i]);
    if (daemon->increments) {
        daemon->view.posts = increments_stats(daemon->increments);
        daemon->view.http_listener = &daemon->http_listener;
        daemon->view.stats[daemon->view.stats_len++] = daemon->view.posts;
    }
    daemon->counting = daemon->view.stats_len;
    daemon->open = daemon->workers_len;
    r = take_over_spool(daemon, error);
    for (size_t i = 0; i < daemon->workers_len && r == 0; i++)
        r = worker_start(daemon->workers[i], error);
    systemd_tell_unused(&daemon->sockets);
    return r == 0 ? feed_watchdog(daemon, error) : r;
}

static void add_rest(struct pipeline_rest *sum, struct pipeline_rest rest)
{
    sum->spooled += rest.spooled;
    sum->events += rest.events;
    sum->missing += rest.missing;
    sum->made |= rest.made;
    sum->fraction_keys += rest.fraction_keys;
    sum->fraction_micros += rest.fraction_micros;
}

static uint64_t kernel_dropped(const struct daemon *daemon)
{
    uint64_t dropped = 0;

    for (size_t i = 0; i < daemon->workers_len; i++) {
        size_t len;
        const struct listener *listeners = worker_listeners(daemon->workers[i], &len);
        for (size_t j = 0; j < len; j++)
            dropped += counter_get(&listeners[j].dropped);
    }
    return dropped;
}

/* Says what became of everything; returns the exit code. */
static int report_end(struct daemon *daemon)
{
    const struct status_view *view = &daemon->view;
    struct pipeline_rest rest = {0};

    for (size_t i = 0; i < daemon->workers_len; i++)
        add_rest(&rest, worker_take_rest(daemon->workers[i]));
    if (daemon->increments)
        add_rest(&rest, increments_take_rest(daemon->increments));
    if (daemon->replay)
        rest.missing += replay_missing(daemon->replay);
    log_event(LOG_LEVEL_INFO, "stopped",
              "lines=%" PRIu64 " accepted=%" PRIu64 " appended=%" PRIu64 " kernel_dropped=%" PRIu64,
              status_sum(view, offsetof(struct stats, lines)),
              status_sum(view, offsetof(struct stats, accepted)),
              status_sum(view, offsetof(struct stats, appended)), kernel_dropped(daemon));
    if (rest.spooled > 0)
        log_event(LOG_LEVEL_WARN, "increments_spooled",
                  "increments=%" PRIu64 " hint=\"they wait in 'spool_dir' for the next start\"",
                  rest.spooled);
    if (rest.events > 0)
        log_event(LOG_LEVEL_ERROR, "increments_dropped",
                  "increments=%" PRIu64 " hint=\"Redis did not take them before the end\"", rest.events);
    else if (rest.made)
        log_event(LOG_LEVEL_ERROR, "fanout_dropped",
                  "hint=\"Redis did not take all that stored increments count for besides before the end\"");
    if (rest.missing > 0)
        log_event(LOG_LEVEL_ERROR, "increments_lost",
                  "increments=%" PRIu64
                  " hint=\"Redis went back, and did not take them again before the end\"",
                  rest.missing);
    if (rest.fraction_keys > 0) {
        int64_t size = rest.fraction_micros < 0 ? -rest.fraction_micros : rest.fraction_micros;
        log_event(LOG_LEVEL_ERROR, "fractions_dropped",
                  "keys=%" PRIu64 " sum=%s%" PRId64 ".%06" PRId64 " hint=\"only whole units can be stored\"",
                  rest.fraction_keys, rest.fraction_micros < 0 ? "-" : "", size / MICROS_PER_UNIT,
                  size % MICROS_PER_UNIT);
    }
    return rest.events > 0 || rest.missing > 0 || rest.made || rest.fraction_keys > 0 ? EX_TEMPFAIL : EX_OK;
}

static void done(struct daemon *daemon)
{
    reader_free(daemon->reader);
    http_free(daemon->http);
    increments_free(daemon->increments);
    replay_free(daemon->replay);
    for (size_t i = 0; daemon->workers && i < daemon->workers_len; i++)
        worker_free(daemon->workers[i]);
    free(daemon->workers);
    free(daemon->view.stats);
    for (size_t i = 0; i < ARRAY_LEN(daemon->signals); i++)
        if (daemon->signals[i])
            event_free(daemon->signals[i]);
    if (daemon->done)
        event_free(daemon->done);
    if (daemon->watchdog)
        event_free(daemon->watchdog);
    if (daemon->base)
        event_base_free(daemon->base);
    if (daemon->done_fd >= 0)
        close(daemon->done_fd);
    if (daemon->spool_directory >= 0)
        close(daemon->spool_directory);
    config_free(daemon->config);
}

int daemon_run(struct config *config, const char *path)
{
    struct daemon daemon = {
        .config = config, .path = path, .done_fd = -1, .http_listener = {.fd = -1}, .spool_directory = -1};
    struct error error;
    int code;
    int r = start(&daemon, &error);

    if (r < 0) {
        log_error(LOG_LEVEL_ERROR, "start_failed", &error);
        code = exit_code_of(r);
    } else {
        log_event(LOG_LEVEL_INFO, "ready", "version=%s namespace=%s workers=%zu", COUNTERD_VERSION,
                  config->namespace, daemon.workers_len);
        systemd_notify("READY=1\nSTATUS=counting");
        event_base_dispatch(daemon.base);
        /* Answers of the last moment are on their way out. */
        event_base_loop(daemon.base, EVLOOP_NONBLOCK);
        code = report_end(&daemon);
    }
    done(&daemon);
    return code;
}
