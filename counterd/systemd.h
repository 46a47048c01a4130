/* systemd - what a service manager gives us and wants to hear: sockets that it has opened, and how we are
 *
 * Without a manager there are no sockets and nobody listens; then all of this does nothing.
 */
#ifndef COUNTERD_SYSTEMD_H
#define COUNTERD_SYSTEMD_H

#include "counterd/listener.h"

#define SYSTEMD_SOCKETS_MAX 128

/* Sockets by LISTEN_FDS. They stay open in the manager when we end: what comes meanwhile waits in them. */
struct systemd_sockets {
    int fds[SYSTEMD_SOCKETS_MAX];
    bool taken[SYSTEMD_SOCKETS_MAX];
    size_t len;
};

void systemd_find_sockets(struct systemd_sockets *ret_sockets);

/* The socket that fits, and was not taken yet; given. With `again`, a second descriptor for one that was,
 * when no other fits: `ret_copied`. -1 = none. */
int systemd_take_socket(struct systemd_sockets *sockets, const struct listener_options *options, bool again,
                        bool *ret_copied);

/* Says which nobody took. */
void systemd_tell_unused(const struct systemd_sockets *sockets);

/* "READY=1" and the like; see sd_notify(3). */
void systemd_notify(const char *state);

/* How often it wants to hear "WATCHDOG=1" at least; 0 = never. */
int64_t systemd_watchdog_ms(void);

#endif
