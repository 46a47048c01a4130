/* What a process of counterd is to its increments: ingest, pipeline and replay, put together as worker.c and
 * daemon.c do it, over the spool's real files. */
#include <dirent.h>
#include <limits.h>
#include <malloc.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "lib/clock.h"
#include "lib/decimal.h"
#include "lib/log.h"
#include "tests/simulation/world.h"

#define REDIS_TIMEOUT_MS 20000

/* A few batches; more than there will be. */
#define SHORT_HISTORY_BYTES 400
#define LONG_HISTORY_BYTES  INT_MAX

/* The daemon whose events of k0 count for k5 too. */
#define FANS_OUT 1

static struct world *world;
static struct config *configs[DAEMONS];
static char directory[64];

void simulation_begin(void)
{
    struct error error;

    snprintf(directory, sizeof(directory), "%s/counterd-simulation-XXXXXX",
             access("/dev/shm", W_OK) == 0 ? "/dev/shm" : "/tmp");
    if (!mkdtemp(directory))
        abort();
    /* Tables come and go with every process: their memory need not go back to the kernel each time. */
    mallopt(M_MMAP_THRESHOLD, INT_MAX);
    mallopt(M_TRIM_THRESHOLD, INT_MAX);
    for (int i = 0; i < DAEMONS; i++) {
        char text[256];
        snprintf(text, sizeof(text),
                 "{\"namespace\": \"d%d\", \"shards\": %d, \"coalesce_ms\": %d, \"keys_max\": %d,"
                 " \"redis\": {\"timeout_ms\": %d}%s}",
                 i, SHARDS, i == 0 ? 100 : 700, i == 0 ? MEMORY_KEYS + 2 : 1000, REDIS_TIMEOUT_MS,
                 i == 0 ? "" : ", \"fanout\": [{\"match\": \"k0\", \"also\": [\"k5\"]}]");
        if (config_parse("simulation", span_of(text), &configs[i], &error) < 0)
            abort();
    }
}

static void remove_spool(int index, bool with_directory)
{
    char path[sizeof(directory) + 16];
    struct dirent *entry;
    DIR *listing;

    snprintf(path, sizeof(path), "%s/d%d", directory, index);
    listing = opendir(path);
    if (!listing)
        return;
    while ((entry = readdir(listing)))
        if (entry->d_name[0] != '.' || with_directory)
            (void)unlinkat(dirfd(listing), entry->d_name, 0);
    closedir(listing);
    if (with_directory)
        rmdir(path);
}

void simulation_end(void)
{
    for (int i = 0; i < DAEMONS; i++) {
        remove_spool(i, true);
        config_free(configs[i]);
    }
    rmdir(directory);
}

void daemons_begin(struct world *of)
{
    world = of;
    world->torn = -1;
    for (int i = 0; i < DAEMONS; i++) {
        remove_spool(i, false);
        configs[i]->history_bytes = has_short_history(world) ? SHORT_HISTORY_BYTES : LONG_HISTORY_BYTES;
        world->daemons[i].config = configs[i];
        world->daemons[i].spool_directory = -1;
    }
}

/* --- what the linker puts in the place of the disk and the log --- */

ssize_t __wrap_pwritev(int fd, const struct iovec *pieces, int len, off_t at);
int __wrap_fdatasync(int fd);
int __wrap_fsync(int fd);
int __real_spool_push(struct spool *spool, const struct record *record, uint64_t *ret_segment,
                      struct error *error);
int __wrap_spool_push(struct spool *spool, const struct record *record, uint64_t *ret_segment,
                      struct error *error);
struct spool *__real_spool_new(const struct spool_options *options);
struct spool *__wrap_spool_new(const struct spool_options *options);
void __wrap_log_event(enum log_level level, const char *event, const char *format, ...) PRINTF(3, 4);
void __wrap_log_error(enum log_level level, const char *event, const struct error *error);

/* A full disk takes a part, and a process may die when a part is written. */
ssize_t __wrap_pwritev(int fd, const struct iovec *pieces, int len, off_t at)
{
    char whole[4096];
    size_t bytes = 0;

    for (int i = 0; i < len; i++) {
        if (bytes + pieces[i].iov_len > sizeof(whole))
            abort();
        memcpy(whole + bytes, pieces[i].iov_base, pieces[i].iov_len);
        bytes += pieces[i].iov_len;
    }
    if (world->disk_is_full || (world->spool_writes && world->write_tears))
        return pwrite(fd, whole, roll(world, bytes), at);
    return pwrite(fd, whole, bytes, at);
}

/* kill -9 loses nothing that was written, and the machine stays up. */
int __wrap_fdatasync(int fd)
{
    (void)fd;
    return 0;
}

int __wrap_fsync(int fd)
{
    (void)fd;
    return 0;
}

struct spool *__wrap_spool_new(const struct spool_options *options)
{
    struct spool *spool = __real_spool_new(options);
    int writer = number_of(options->writer);

    if (writer < world->writers && world->processes[writer].state == PROCESS_RUNS)
        world->processes[writer].spool = spool;
    return spool;
}

static int writer_of(const struct spool *spool)
{
    for (int writer = 0; writer < world->writers; writer++)
        if (world->processes[writer].state == PROCESS_RUNS && world->processes[writer].spool == spool)
            return writer;
    abort(); /* a replay does not write */
}

int __wrap_spool_push(struct spool *spool, const struct record *record, uint64_t *ret_segment,
                      struct error *error)
{
    int writer = writer_of(spool);
    int r;

    world->spool_writes = true;
    r = __real_spool_push(spool, record, ret_segment, error);
    world->spool_writes = false;
    if (r < 0) {
        if (world->write_tears && !world->disk_is_full)
            world->torn = writer;
        world->write_tears = false;
        return r;
    }
    note_batch(world, writer, writer, record->shard, &record->batch)->spooled = true;
    world->outcome.spooled++;
    tell(world, "w%d/%u batch %d goes to disk", writer, record->shard, (int)record->batch.seq);
    return 0;
}

void __wrap_log_event(enum log_level level, const char *event, const char *format, ...)
{
    char text[LOG_TEXT_BYTES];
    va_list args;

    (void)level;
    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    tell(world, "    %s %s", event, text);
    if (strcmp(event, "increments_lost") != 0)
        return;
    world->outcome.losses++;
    if (!world->schedule->rollbacks)
        complain(world, "something is said to be lost: %s", text);
}

void __wrap_log_error(enum log_level level, const char *event, const struct error *error)
{
    (void)level;
    tell(world, "    %s %s", event, error->text);
}

/* --- a process --- */

static void on_tick(void *context)
{
    (void)context;
}

static void on_done(void *context)
{
    struct daemon *daemon = context;

    /* The first of its parts watches no longer from here on. */
    if (daemon->stopping-- == daemon->parts)
        world->processes[daemon->writer].rollbacks = world->outcome.rollbacks;
}

static bool carry_fractions(void *context, const struct record *record)
{
    struct daemon *daemon = context;
    struct span key;
    int64_t micros;
    size_t at = 0;

    while (batch_next_entry(&record->batch, &at, &key, &micros)) {
        daemon->counted[key.ptr[1] - '0'] += micros;
        pipeline_carry(daemon->pipeline, key, micros);
    }
    return true;
}

static void take_over_spool(struct daemon *daemon)
{
    struct replay_options options = {.config = daemon->config,
                                     .directory = daemon->spool_directory,
                                     .context = daemon,
                                     .on_done = on_done};
    struct spool_options spool = {.directory = daemon->spool_directory,
                                  .namespace = daemon->config->namespace,
                                  .shards = SHARDS,
                                  .lanes = config_lanes_id(daemon->config)};
    struct spool_finder finder = {daemon, carry_fractions};
    struct error error;

    if (spool_list(&spool, &options.writers, &error) < 0 ||
        spool_take_fractions(daemon->spool_directory, SHARDS, &finder, &error) < 0)
        complain(world, "the spool can't be taken over: %s", error.text);
    if (options.writers.len > 0)
        daemon->replay = replay_new(&options);
}

void daemon_start(struct world *of, int index)
{
    struct daemon *daemon = &world->daemons[index];
    struct pipeline_options options = {.config = daemon->config,
                                       .context = daemon,
                                       .on_tick = on_tick,
                                       .on_room = on_tick,
                                       .on_done = on_done};
    struct error error;

    if (daemon->alive || of->writers == MEMORY_WRITERS)
        return;
    *daemon = (struct daemon){.alive = true, .config = daemon->config, .spool_directory = -1};
    daemon->writer = world->writers++;
    tell(world, "daemon %d starts as w%d", index, daemon->writer);
    if ((index == 0 || world->schedule->seed & 2) &&
        spool_directory_open(directory, daemon->config->namespace, &daemon->spool_directory, &error) < 0)
        complain(world, "%s", error.text);
    stats_init(&daemon->stats);
    daemon->ingest = ingest_new(&daemon->stats);
    options.ingest = daemon->ingest;
    options.stats = &daemon->stats;
    options.spool_directory = daemon->spool_directory;
    daemon->pipeline = pipeline_new(&options);
    if (daemon->spool_directory >= 0)
        take_over_spool(daemon);
}

static void end(struct daemon *daemon, enum process_state state)
{
    struct process *process = &world->processes[daemon->writer];

    replay_free(daemon->replay);
    pipeline_free(daemon->pipeline);
    ingest_free(daemon->ingest);
    stats_done(&daemon->stats);
    if (daemon->spool_directory >= 0)
        close(daemon->spool_directory);
    daemon->alive = false;
    process->state = state;
}

void daemon_crash(struct world *of, int index)
{
    struct daemon *daemon = &of->daemons[index];

    if (!daemon->alive)
        return;
    tell(of, "daemon %d, w%d, dies", index, daemon->writer);
    of->outcome.crashes++;
    end(daemon, PROCESS_CRASHED);
}

void daemon_stop(struct world *of, int index)
{
    struct daemon *daemon = &of->daemons[index];

    if (!daemon->alive || daemon->finishing)
        return;
    tell(of, "daemon %d, w%d, is told to stop", index, daemon->writer);
    daemon->finishing = true;
    daemon->finished_ms = clock_monotonic_ms();
    daemon->stopping = daemon->parts = 1 + (daemon->replay != NULL);
    pipeline_finish(daemon->pipeline);
    if (daemon->replay)
        replay_finish(daemon->replay);
}

static void stopped(struct daemon *daemon)
{
    struct process *process = &world->processes[daemon->writer];
    struct pipeline_rest rest = pipeline_take_rest(daemon->pipeline);

    process->gave_up = clock_monotonic_ms() - daemon->finished_ms >= REDIS_TIMEOUT_MS;
    process->dropped = rest.events > 0 || rest.made;
    tell(world, "w%d has stopped%s%s, %d on disk", daemon->writer,
         process->gave_up ? ", without waiting longer" : "", process->dropped ? ", with a loss" : "",
         (int)rest.spooled);
    if (process->dropped && daemon->spool_directory >= 0 && !world->disk_is_full)
        complain(world, "w%d, which has a disk, has dropped %d", daemon->writer, (int)rest.events);
    if (!process->dropped)
        check_counted(world, daemon);
    world->outcome.stops += !process->gave_up && !process->dropped;
    end(daemon, PROCESS_STOPPED);
}

void daemons_reap(struct world *of)
{
    for (int i = 0; i < DAEMONS; i++) {
        struct daemon *daemon = &of->daemons[i];
        if (daemon->alive && of->torn == daemon->writer)
            daemon_crash(of, i);
        else if (daemon->alive && daemon->finishing && daemon->stopping == 0)
            stopped(daemon);
    }
    of->torn = -1;
}

/* --- what it is asked to do --- */

/* Batches are numbers of this memory, of which there are not so many. */
static bool has_room(const struct daemon *daemon)
{
    for (uint32_t shard = 0; shard < SHARDS; shard++)
        if (world->sent[daemon->writer][shard][BATCHES_MAX - 10].made)
            return false;
    return true;
}

void daemon_count(struct world *of, int index)
{
    struct daemon *daemon = &of->daemons[index];
    int key = (int)roll(of, MEMORY_KEYS);
    int64_t quarters = ((int64_t)roll(of, 12) - 3) * (roll(of, 4) == 0 ? 1 : 4);
    uint64_t accepted = counter_get(&daemon->stats.accepted);
    char line[48];

    if (!daemon->alive || daemon->finishing || !has_room(daemon))
        return;
    snprintf(line, sizeof(line), "k%d:%s%d.%02d|c", key, quarters < 0 ? "-" : "",
             (int)(quarters < 0 ? -quarters : quarters) / 4, abs((int)(quarters % 4)) * 25);
    tell(of, "w%d counts %s", daemon->writer, line);
    ingest_lines(daemon->ingest, span_of(line), false);
    ingest_publish(daemon->ingest);
    if (counter_get(&daemon->stats.accepted) != accepted + 1)
        complain(of, "'%s' was not accepted", line);
    daemon->events++;
    daemon->counted[key] += quarters * MICROS_PER_UNIT / 4;
    if (key == 0 && index == FANS_OUT)
        daemon->counted[5] += quarters * MICROS_PER_UNIT / 4;
    pipeline_poke(daemon->pipeline);
}

static void on_stored(void *context)
{
    struct asker *asker = context;
    int writer = asker->world->daemons[asker->daemon].writer;
    uint64_t acknowledged = acknowledged_events(asker->world, writer);

    asker->waits = false;
    asker->world->outcome.answers++;
    check_stored(asker->world, writer);
    if (acknowledged < asker->events)
        complain(asker->world, "w%d says that %d increments are stored, and Redis has acknowledged %d",
                 writer, (int)asker->events, (int)acknowledged);
}

void daemon_ask(struct world *of, int index)
{
    struct daemon *daemon = &of->daemons[index];

    if (!daemon->alive || daemon->finishing)
        return;
    for (int i = 0; i < WAITS_MAX; i++) {
        struct asker *asker = &daemon->askers[i];
        if (asker->waits)
            continue;
        *asker = (struct asker){{.context = asker, .on_stored = on_stored}, of, index, daemon->events, true};
        pipeline_wait(daemon->pipeline, &asker->wait);
        return;
    }
}

bool daemon_is_idle(const struct world *of, int index)
{
    const struct daemon *daemon = &of->daemons[index];
    struct stats *replay = daemon->replay ? replay_stats(daemon->replay) : NULL;

    return daemon->alive && acknowledged_events(of, daemon->writer) == daemon->events &&
           (!replay || counter_get(&replay->replay_waiting) + counter_get(&replay->replay_left) == 0);
}
