#include "counterd/listener.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sock_diag.h>
#include <netdb.h>
#include <netinet/in.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include "lib/address.h"

#define BACKLOG 1024

union any_address {
    struct sockaddr any;
    struct sockaddr_in v4;
    struct sockaddr_in6 v6;
    struct sockaddr_un local;
    struct sockaddr_storage room;
};

static const char *const kind_names[] = {
    [LISTENER_UDP] = "udp",
    [LISTENER_TCP] = "tcp",
    [LISTENER_UNIX] = "unix",
};

const char *listener_kind_name(enum listener_kind kind)
{
    return kind_names[kind];
}

static bool has_ipv6(void)
{
    int fd = socket(AF_INET6, SOCK_DGRAM | SOCK_CLOEXEC, 0);

    if (fd >= 0)
        close(fd);
    return fd >= 0;
}

/* A host of "" is every address: of both families where the machine has IPv6. */
static int resolve(const struct listener_options *options, union any_address *ret_address, socklen_t *ret_len,
                   struct error *error)
{
    struct addrinfo hints = {
        .ai_family = AF_UNSPEC,
        .ai_socktype = options->kind == LISTENER_TCP ? SOCK_STREAM : SOCK_DGRAM,
        .ai_flags = AI_PASSIVE | AI_NUMERICSERV,
    };
    struct addrinfo *found;
    struct address address;
    char port[8];
    int r = address_parse(options->address, &address, error);

    if (r < 0)
        return r;
    snprintf(port, sizeof(port), "%u", address.port);
    /* Asked for either, it would give that of IPv4 first. */
    if (address.host[0] == '\0')
        hints.ai_family = has_ipv6() ? AF_INET6 : AF_INET;
    r = getaddrinfo(address.host[0] != '\0' ? address.host : NULL, port, &hints, &found);
    if (r != 0)
        return error_set(error, -EINVAL, "can't resolve '%s': %s", options->address, gai_strerror(r));
    memset(ret_address, 0, sizeof(*ret_address));
    memcpy(ret_address, found->ai_addr, found->ai_addrlen);
    *ret_len = found->ai_addrlen;
    freeaddrinfo(found);
    return 0;
}

static int bind_error(const struct listener_options *options, int code, struct error *error)
{
    const char *kind = kind_names[options->kind];

    if (code == EADDRINUSE)
        return error_set(
            error, -EADDRINUSE,
            "%s address '%s' is in use by another process; stop that one (ss -lpn shows it) or set "
            "another address under 'listen'",
            kind, options->address);
    if (code == EADDRNOTAVAIL)
        return error_set(error, -EINVAL,
                         "%s address '%s' is not one of this machine's; set another under 'listen'", kind,
                         options->address);
    if (code == EACCES)
        return error_set(
            error, -EACCES,
            "no permission to listen on %s '%s': counterd's user must be allowed to use the port, or to "
            "write to the socket's directory",
            kind, options->address);
    return error_set(error, -code, "can't listen on %s '%s': %s", kind, options->address, strerror(code));
}

static void set_flag(int fd, int level, int option)
{
    int on = 1;

    /* What these ask for is an improvement, or shows when binding. */
    (void)setsockopt(fd, level, option, &on, sizeof(on));
}

/* The kernel would give all datagrams of one sending socket to the same worker. This program gives each to
 * any of them: it has the group's size, so it is set anew by every socket that joins. Which worker counts a
 * line makes no difference. */
static void spread(int fd, uint32_t sockets)
{
    struct sock_filter steps[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, (uint32_t)(SKF_AD_OFF + SKF_AD_RANDOM)),
        BPF_STMT(BPF_ALU | BPF_MOD | BPF_K, sockets),
        BPF_STMT(BPF_RET | BPF_A, 0),
    };
    struct sock_fprog program = {ARRAY_LEN(steps), steps};

    /* Without it the kernel does as it always did. */
    (void)setsockopt(fd, SOL_SOCKET, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof(program));
}

static int open_inet(struct listener *listener, const struct listener_options *options, struct error *error)
{
    bool stream = options->kind == LISTENER_TCP;
    union any_address address;
    socklen_t len = 0;
    int off = 0, on = 1;
    int r = resolve(options, &address, &len, error);

    if (r < 0)
        return r;
    listener->fd =
        socket(address.any.sa_family, (stream ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener->fd < 0)
        return bind_error(options, errno, error);
    if (address.any.sa_family == AF_INET6) {
        bool every = IN6_IS_ADDR_UNSPECIFIED(&address.v6.sin6_addr) && options->address[0] == ':';
        (void)setsockopt(listener->fd, IPPROTO_IPV6, IPV6_V6ONLY, every ? &off : &on, sizeof(int));
    }
    /* Not for UDP, where it would let a second process take the address away. */
    if (stream)
        set_flag(listener->fd, SOL_SOCKET, SO_REUSEADDR);
    if (options->shared)
        set_flag(listener->fd, SOL_SOCKET, SO_REUSEPORT);
    if (bind(listener->fd, &address.any, len) < 0 || (stream && listen(listener->fd, BACKLOG) < 0))
        return bind_error(options, errno, error);
    if (options->shared && !stream)
        spread(listener->fd, options->sharing);
    return 0;
}

/* Whether nobody hears on the socket at the path: it is left over from a process that was killed. One of
 * another kind, or that we may not write to, is somebody's. */
static bool is_dead(const union any_address *address)
{
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    bool dead = fd >= 0 && connect(fd, &address->any, sizeof(address->local)) < 0 && errno == ECONNREFUSED;

    if (fd >= 0)
        close(fd);
    return dead;
}

static int open_unix(struct listener *listener, const struct listener_options *options, struct error *error)
{
    union any_address address = {.local = {.sun_family = AF_UNIX}};
    struct stat status;

    snprintf(address.local.sun_path, sizeof(address.local.sun_path), "%s", options->address);
    listener->fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (listener->fd < 0)
        return bind_error(options, errno, error);
    if (lstat(options->address, &status) == 0 && S_ISSOCK(status.st_mode) && is_dead(&address))
        unlink(options->address);
    if (bind(listener->fd, &address.any, sizeof(address.local)) < 0)
        return bind_error(options, errno, error);
    return 0;
}

/* What the kernel holds at most; it doubles what it is given, for its own bookkeeping. */
static int64_t buffer_bytes(int fd)
{
    int bytes = 0;
    socklen_t len = sizeof(bytes);

    (void)getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &bytes, &len);
    return bytes / 2;
}

/* As large as asked for where we may (SO_RCVBUFFORCE needs CAP_NET_ADMIN), else as the sysctl allows. An
 * inherited socket is never made smaller: it may hold more already, and the manager may do what we may not.
 */
static void set_buffer(struct listener *listener, int64_t bytes)
{
    int wanted = (int)bytes;

    if (!listener->inherited || buffer_bytes(listener->fd) < bytes) {
        int r = setsockopt(listener->fd, SOL_SOCKET, SO_RCVBUFFORCE, &wanted, sizeof(wanted));
        if (r < 0 && !listener->inherited)
            (void)setsockopt(listener->fd, SOL_SOCKET, SO_RCVBUF, &wanted, sizeof(wanted));
    }
    listener->buffer_bytes = buffer_bytes(listener->fd);
}

/* host:port, with the port that the socket really has, or the path. */
void listener_name(int fd, char ret_name[LISTENER_NAME_BYTES])
{
    char host[NI_MAXHOST], port[NI_MAXSERV];
    union any_address address = {.any.sa_family = AF_UNSPEC};
    socklen_t len = sizeof(address);

    ret_name[0] = '\0';
    if (getsockname(fd, &address.any, &len) < 0)
        return;
    if (address.any.sa_family == AF_UNIX)
        snprintf(ret_name, LISTENER_NAME_BYTES, "%.*s", (int)(len - offsetof(struct sockaddr_un, sun_path)),
                 address.local.sun_path);
    else if (getnameinfo(&address.any, len, host, sizeof(host), port, sizeof(port),
                         NI_NUMERICHOST | NI_NUMERICSERV) == 0)
        snprintf(ret_name, LISTENER_NAME_BYTES, strchr(host, ':') ? "[%.100s]:%.8s" : "%.100s:%.8s", host,
                 port);
}

static bool is_of_kind(int fd, enum listener_kind kind)
{
    int type = 0, listening = 0;
    socklen_t len = sizeof(int);

    if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &len) < 0 ||
        getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listening, &len) < 0)
        return false;
    return kind == LISTENER_TCP ? type == SOCK_STREAM && listening : type == SOCK_DGRAM;
}

/* "" as a host is every address, in whatever family. */
static bool is_same_address(const union any_address *a, const union any_address *b, bool every)
{
    if (a->any.sa_family == AF_INET6) {
        bool same = memcmp(&a->v6.sin6_addr, &b->v6.sin6_addr, sizeof(a->v6.sin6_addr)) == 0;
        if (every)
            return IN6_IS_ADDR_UNSPECIFIED(&a->v6.sin6_addr);
        return b->any.sa_family == AF_INET6 && same;
    }
    if (every)
        return a->v4.sin_addr.s_addr == htonl(INADDR_ANY);
    return b->any.sa_family == AF_INET && a->v4.sin_addr.s_addr == b->v4.sin_addr.s_addr;
}

bool listener_fits(int fd, const struct listener_options *options)
{
    union any_address has = {.any.sa_family = AF_UNSPEC}, wanted;
    char name[LISTENER_NAME_BYTES];
    socklen_t len = sizeof(has);
    struct error error;

    if (!is_of_kind(fd, options->kind) || getsockname(fd, &has.any, &len) < 0)
        return false;
    if (options->kind == LISTENER_UNIX) {
        listener_name(fd, name);
        return has.any.sa_family == AF_UNIX && strcmp(name, options->address) == 0;
    }
    if ((has.any.sa_family != AF_INET && has.any.sa_family != AF_INET6) ||
        resolve(options, &wanted, &len, &error) < 0)
        return false;
    /* The port stands at the same place in both families. */
    return has.v4.sin_port == wanted.v4.sin_port &&
           is_same_address(&has, &wanted, options->address[0] == ':');
}

void listener_inherit(struct listener *listener, const struct listener_options *options, int fd, bool copied)
{
    int flags = fcntl(fd, F_GETFL);

    *listener = (struct listener){.kind = options->kind, .fd = fd, .inherited = true};
    if (flags >= 0)
        (void)fcntl(fd, F_SETFL, flags | O_NONBLOCK);
    listener_name(fd, listener->name);
    if (options->kind != LISTENER_TCP)
        set_buffer(listener, options->buffer_bytes);
    (void)listener_read_dropped(listener);
    counter_set(&listener->dropped, 0);
    listener->copied = copied;
}

int listener_open(struct listener *listener, const struct listener_options *options, struct error *error)
{
    int r;

    *listener = (struct listener){.kind = options->kind, .fd = -1};
    snprintf(listener->name, sizeof(listener->name), "%s", options->address);
    r = options->kind == LISTENER_UNIX ? open_unix(listener, options, error)
                                       : open_inet(listener, options, error);
    if (r < 0) {
        /* Not listener_close(): the path may be somebody else's. */
        if (listener->fd >= 0)
            close(listener->fd);
        listener->fd = -1;
        return r;
    }
    if (options->kind != LISTENER_UNIX)
        listener_name(listener->fd, listener->name);
    if (options->kind != LISTENER_TCP)
        set_buffer(listener, options->buffer_bytes);
    return 0;
}

/* A UDP socket that is connected takes datagrams from its peer alone; connected to itself, from nobody. What
 * is queued stays. (shutdown(2) does not do this for UDP.) */
static void connect_to_itself(int fd)
{
    /* ::ffff:127.0.0.1 */
    static const struct in6_addr loopback = {{{[10] = 0xff, [11] = 0xff, [12] = 127, [15] = 1}}};
    union any_address address;
    socklen_t len = sizeof(address);

    if (getsockname(fd, &address.any, &len) < 0 || connect(fd, &address.any, len) == 0 ||
        address.any.sa_family != AF_INET6)
        return;
    /* Of both families, where IPv6 has no loopback. */
    address.v6.sin6_addr = loopback;
    (void)connect(fd, &address.any, len);
}

void listener_shut(struct listener *listener)
{
    if (listener->inherited)
        return;
    switch (listener->kind) {
    case LISTENER_UDP:
        connect_to_itself(listener->fd);
        break;
    case LISTENER_UNIX:
        (void)shutdown(listener->fd, SHUT_RD);
        break;
    case LISTENER_TCP:
        break;
    }
}

void listener_close(struct listener *listener)
{
    if (listener->fd < 0)
        return;
    if (listener->kind == LISTENER_UNIX && !listener->inherited)
        unlink(listener->name);
    close(listener->fd);
    listener->fd = -1;
}

uint64_t listener_read_dropped(struct listener *listener)
{
    uint32_t memory[SK_MEMINFO_VARS];
    socklen_t len = sizeof(memory);
    uint32_t fresh;

    /* The same count as SO_RXQ_OVFL gives along with datagrams; but it can be read without one, and costs
     * nothing per packet. */
    if (listener->kind == LISTENER_TCP || listener->fd < 0 || listener->copied ||
        getsockopt(listener->fd, SOL_SOCKET, SO_MEMINFO, memory, &len) < 0 || len < sizeof(memory))
        return 0;
    fresh = memory[SK_MEMINFO_DROPS] - listener->dropped_seen;
    listener->dropped_seen = memory[SK_MEMINFO_DROPS];
    counter_add(&listener->dropped, fresh);
    return fresh;
}
