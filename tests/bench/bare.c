/* bare - the limit that counterd is measured against: recvmmsg in a loop, and nothing is done with what comes
 *
 * bare [-g] [-p]: prints its port, then receives until SIGTERM, then prints what came as one line of JSON. It
 * is meant to be as good as such a loop gets: blocking, so that no other system call is needed; slots of 2
 * KiB close to each other, so that they stay in the cache. -g takes UDP GRO (and slots of 64 KiB). -p sleeps
 * for a millisecond when there is no more: what a datagram costs without wake-ups.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <inttypes.h>
#include <linux/sock_diag.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define SLOTS         64
#define SLOT_BYTES    2048
#define GRO_BYTES     65536
#define BUFFER_BYTES  (8 << 20)
#define CONTROL_BYTES CMSG_SPACE(sizeof(int))

static volatile sig_atomic_t stopping;

static void on_term(int number)
{
    (void)number;
    stopping = 1;
}

static void fail(const char *what)
{
    fprintf(stderr, "bare: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int open_socket(int gro)
{
    struct sockaddr_in address = {.sin_family = AF_INET};
    socklen_t len = sizeof(address);
    int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0), bytes = BUFFER_BYTES, on = 1;

    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (fd < 0 || bind(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ||
        getsockname(fd, (struct sockaddr *)&address, &len) < 0)
        fail("socket");
    if (setsockopt(fd, SOL_SOCKET, SO_RCVBUFFORCE, &bytes, sizeof(bytes)) < 0)
        (void)setsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, sizeof(bytes));
    if (gro && setsockopt(fd, IPPROTO_UDP, UDP_GRO, &on, sizeof(on)) < 0)
        fail("UDP_GRO");
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return fd;
}

static unsigned segments(struct mmsghdr *message)
{
    struct cmsghdr *control = CMSG_FIRSTHDR(&message->msg_hdr);
    int size;

    if (!control || control->cmsg_level != IPPROTO_UDP || control->cmsg_type != UDP_GRO)
        return 1;
    memcpy(&size, CMSG_DATA(control), sizeof(size));
    return (message->msg_len + (unsigned)size - 1) / (unsigned)size;
}

int main(int argc, char **argv)
{
    static const struct timespec pause = {.tv_nsec = 1000000};
    int gro = 0, pausing = 0, option;
    size_t slot_bytes = SLOT_BYTES;
    static struct mmsghdr messages[SLOTS];
    static struct iovec slots[SLOTS];
    static char controls[SLOTS][CONTROL_BYTES] __attribute__((aligned(8)));
    char *buffer;
    struct sigaction action = {.sa_handler = on_term};
    uint64_t datagrams = 0, bytes = 0, calls = 0;
    uint32_t memory[SK_MEMINFO_VARS] = {0};
    socklen_t len = sizeof(memory);
    struct rusage usage;
    int fd;

    while ((option = getopt(argc, argv, "gp")) >= 0) {
        if (option == 'g')
            gro = 1;
        else if (option == 'p')
            pausing = 1;
        else
            return 64;
    }
    if (gro)
        slot_bytes = GRO_BYTES;
    buffer = malloc(SLOTS * slot_bytes);
    if (!buffer)
        fail("no memory");
    sigaction(SIGTERM, &action, NULL);
    fd = open_socket(gro);
    for (int i = 0; i < SLOTS; i++) {
        slots[i] = (struct iovec){buffer + (size_t)i * slot_bytes, slot_bytes};
        messages[i].msg_hdr.msg_iov = &slots[i];
        messages[i].msg_hdr.msg_iovlen = 1;
        messages[i].msg_hdr.msg_control = gro ? controls[i] : NULL;
    }
    while (!stopping) {
        int count;
        for (int i = 0; gro && i < SLOTS; i++)
            messages[i].msg_hdr.msg_controllen = CONTROL_BYTES;
        count = recvmmsg(fd, messages, SLOTS, pausing ? MSG_DONTWAIT : MSG_WAITFORONE, NULL);
        calls++;
        for (int i = 0; i < count; i++) {
            datagrams += gro ? segments(&messages[i]) : 1;
            bytes += messages[i].msg_len;
        }
        if (pausing && count < SLOTS)
            (void)nanosleep(&pause, NULL);
    }
    (void)getsockopt(fd, SOL_SOCKET, SO_MEMINFO, memory, &len);
    getrusage(RUSAGE_SELF, &usage);
    printf("{\"datagrams\": %" PRIu64 ", \"bytes\": %" PRIu64 ", \"dropped\": %u, \"calls\": %" PRIu64
           ", \"cpu_seconds\": %.6f}\n",
           datagrams, bytes, memory[SK_MEMINFO_DROPS], calls,
           (double)(usage.ru_utime.tv_sec + usage.ru_stime.tv_sec) +
               (double)(usage.ru_utime.tv_usec + usage.ru_stime.tv_usec) / 1e6);
    free(buffer);
    return 0;
}
