#include "counterd/systemd.h"

#include <fcntl.h>
#include <systemd/sd-daemon.h>

#include "lib/log.h"

void systemd_find_sockets(struct systemd_sockets *ret_sockets)
{
    int count = sd_listen_fds(true);

    *ret_sockets = (struct systemd_sockets){.len = 0};
    for (int i = 0; i < count && ret_sockets->len < SYSTEMD_SOCKETS_MAX; i++)
        ret_sockets->fds[ret_sockets->len++] = SD_LISTEN_FDS_START + i;
}

int systemd_take_socket(struct systemd_sockets *sockets, const struct listener_options *options, bool again,
                        bool *ret_copied)
{
    int used = -1;

    *ret_copied = false;
    for (size_t i = 0; i < sockets->len; i++) {
        if (!listener_fits(sockets->fds[i], options))
            continue;
        if (!sockets->taken[i]) {
            sockets->taken[i] = true;
            return sockets->fds[i];
        }
        used = sockets->fds[i];
    }
    if (!again || used < 0)
        return -1;
    *ret_copied = true;
    return fcntl(used, F_DUPFD_CLOEXEC, 0);
}

void systemd_tell_unused(const struct systemd_sockets *sockets)
{
    for (size_t i = 0; i < sockets->len; i++) {
        char name[LISTENER_NAME_BYTES], quoted[LOG_TEXT_BYTES];
        if (sockets->taken[i])
            continue;
        listener_name(sockets->fds[i], name);
        log_event(LOG_LEVEL_WARN, "socket_unused",
                  "address=%s hint=\"the service manager passes it, but no address in 'listen' is the same; "
                  "nobody reads it\"",
                  log_quote(quoted, span_of(name)));
    }
}

void systemd_notify(const char *state)
{
    /* Fails when nobody listens. */
    (void)sd_notify(false, state);
}

int64_t systemd_watchdog_ms(void)
{
    uint64_t usec = 0;

    return sd_watchdog_enabled(false, &usec) > 0 ? (int64_t)(usec / 1000) : 0;
}
