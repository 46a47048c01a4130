/* blast - sends statsd lines over UDP as fast as one core can, or at a given rate
 *
 * blast PORT [-s SECONDS] [-k KEYS] [-l LINES_PER_DATAGRAM] [-r DATAGRAMS_PER_SECOND] [-n DATAGRAMS]
 * [-t] [-g SEGMENTS]
 *
 * All datagrams are made in advance, every key as often as any other and in a shuffled order, so that the
 * time goes into the system calls. -t writes tags, which are part of the key. -g lets the kernel cut them
 * (UDP GSO): so many in one pass through its network stack. Prints what it sent as one line of JSON. SIGTERM
 * ends it early, after one more batch.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "tests/bench/pool.h"

#define BATCH        64
#define PACKET_MAX   65000 /* of all segments together */
#define NS_PER_S     UINT64_C(1000000000)
#define SLEEP_NS_MIN 60000 /* a shorter pause is not worth a sleep */

struct options {
    uint16_t port;
    double seconds;
    struct pool_options pool;
    uint32_t segments;
    uint64_t rate;          /* datagrams per second; 0 = as fast as it goes */
    uint64_t datagrams_max; /* stop after so many, or a batch more; 0 = by time alone */
};

static volatile sig_atomic_t told_to_end;

static void on_term(int number)
{
    (void)number;
    told_to_end = 1;
}

static void fail(const char *what)
{
    fprintf(stderr, "blast: %s: %s\n", what, strerror(errno));
    exit(1);
}

static uint64_t now_ns(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * NS_PER_S + (uint64_t)time.tv_nsec;
}

static int open_socket(const struct options *options, size_t datagram_bytes)
{
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(options->port)};
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    int segment = (int)datagram_bytes;

    to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || connect(fd, (struct sockaddr *)&to, sizeof(to)) < 0)
        fail("socket");
    if (options->segments > 1 && setsockopt(fd, IPPROTO_UDP, UDP_SEGMENT, &segment, sizeof(segment)) < 0)
        fail("UDP_SEGMENT");
    return fd;
}

/* Waits until so many datagrams are due. */
static void pace(const struct options *options, uint64_t start_ns, uint64_t sent)
{
    uint64_t due_ns, now;

    if (options->rate == 0)
        return;
    due_ns = start_ns + sent * NS_PER_S / options->rate;
    while ((now = now_ns()) < due_ns) {
        struct timespec pause = {.tv_nsec = (long)(due_ns - now)};
        if (due_ns - now >= SLEEP_NS_MIN && due_ns - now < NS_PER_S)
            nanosleep(&pause, NULL);
    }
}

static void point_batch(struct iovec *slots, const struct pool *pool, size_t first,
                        const struct options *options)
{
    for (size_t i = 0; i < BATCH; i++) {
        slots[i].iov_base =
            pool->bytes + (first + i * options->segments) % pool->datagrams * pool->datagram_bytes;
        slots[i].iov_len = pool->datagram_bytes * options->segments;
    }
}

/* `ret_refused`: of those sent, how many found nobody listening. On loopback each of them is told before the
 * next one goes out, and nothing else cuts a batch short; the kernel gives the error or the shorter count,
 * not both. */
static uint64_t blast(const struct options *options, const struct pool *pool, int fd, uint64_t *ret_ns,
                      uint64_t *ret_refused)
{
    struct mmsghdr messages[BATCH] = {0};
    struct iovec slots[BATCH];
    uint64_t start = now_ns(), end = start + (uint64_t)(options->seconds * (double)NS_PER_S), sent = 0;
    int pending = 0;
    socklen_t pending_len = sizeof(pending);
    /* At a slow pace small batches, or they would come in lumps. */
    uint64_t batch = options->rate == 0 || options->rate > 200000 ? BATCH : 1 + options->rate / 4000;

    for (size_t i = 0; i < BATCH; i++) {
        messages[i].msg_hdr.msg_iov = &slots[i];
        messages[i].msg_hdr.msg_iovlen = 1;
    }
    batch = batch > BATCH ? BATCH : batch;
    while (now_ns() < end && (options->datagrams_max == 0 || sent < options->datagrams_max)) {
        bool last = told_to_end;
        int done;
        point_batch(slots, pool, sent % pool->datagrams, options);
        done = sendmmsg(fd, messages, (unsigned)batch, 0);
        /* Refused: nobody listened for a moment. */
        if (done < 0 && errno != ECONNREFUSED && errno != ENOBUFS && errno != EINTR)
            fail("sendmmsg");
        *ret_refused += done < 0 ? errno == ECONNREFUSED : done < (int)batch;
        sent += done > 0 ? (uint64_t)done * options->segments : 0;
        if (last)
            break;
        pace(options, start, sent);
    }
    if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &pending, &pending_len) == 0 && pending == ECONNREFUSED)
        (*ret_refused)++;
    *ret_ns = now_ns() - start;
    return sent;
}

static struct options read_options(int argc, char **argv)
{
    struct options options = {.seconds = 2, .pool = {.keys = 10000, .lines = 1}, .segments = 1};
    int option;

    while ((option = getopt(argc, argv, "s:k:l:r:n:tg:")) >= 0) {
        if (option == 's')
            options.seconds = strtod(optarg, NULL);
        else if (option == 'k')
            options.pool.keys = (uint32_t)strtoul(optarg, NULL, 10);
        else if (option == 'l')
            options.pool.lines = (uint32_t)strtoul(optarg, NULL, 10);
        else if (option == 'r')
            options.rate = strtoull(optarg, NULL, 10);
        else if (option == 'n')
            options.datagrams_max = strtoull(optarg, NULL, 10);
        else if (option == 't')
            options.pool.tags = 1;
        else if (option == 'g')
            options.segments = (uint32_t)strtoul(optarg, NULL, 10);
        else
            exit(64);
    }
    if (optind + 1 != argc || options.pool.keys < 1 || options.pool.lines < 1 || options.segments < 1 ||
        options.segments > 64) {
        fputs("usage: blast PORT [-s SECONDS] [-k KEYS] [-l LINES] [-r RATE] [-n DATAGRAMS] [-t] [-g "
              "SEGMENTS]\n",
              stderr);
        exit(64);
    }
    options.port = (uint16_t)strtoul(argv[optind], NULL, 10);
    return options;
}

int main(int argc, char **argv)
{
    struct options options = read_options(argc, argv);
    struct pool pool = pool_new(&options.pool);
    struct rusage before, after;
    uint64_t ns, sent, refused = 0;
    double cpu;
    int fd;

    if (!pool.bytes)
        fail("no memory");
    if (pool.datagram_bytes * options.segments > PACKET_MAX)
        options.segments = (uint32_t)(PACKET_MAX / pool.datagram_bytes);
    /* A packet of segments must not run over the end of the pool. */
    pool.datagrams = pool.datagrams / options.segments * options.segments;
    signal(SIGTERM, on_term);
    fd = open_socket(&options, pool.datagram_bytes);
    getrusage(RUSAGE_SELF, &before);
    sent = blast(&options, &pool, fd, &ns, &refused);
    getrusage(RUSAGE_SELF, &after);
    cpu = (double)(after.ru_utime.tv_sec - before.ru_utime.tv_sec + after.ru_stime.tv_sec -
                   before.ru_stime.tv_sec) +
          (double)(after.ru_utime.tv_usec - before.ru_utime.tv_usec + after.ru_stime.tv_usec -
                   before.ru_stime.tv_usec) /
              1e6;
    printf("{\"datagrams\": %" PRIu64 ", \"lines\": %" PRIu64 ", \"datagram_bytes\": %zu, \"seconds\": %.6f, "
           "\"cpu_seconds\": %.6f, \"refused\": %" PRIu64 "}\n",
           sent, sent * options.pool.lines, pool.datagram_bytes, (double)ns / 1e9, cpu, refused);
    free(pool.bytes);
    close(fd);
    return 0;
}
