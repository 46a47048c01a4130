#include "lib/log.h"

#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <unistd.h>

#include "lib/clock.h"
#include "lib/error.h"

#define REPEAT_MS 10000

static const char *const level_names[] = {
    [LOG_LEVEL_ERROR] = "error",
    [LOG_LEVEL_WARN] = "warn",
    [LOG_LEVEL_INFO] = "info",
};

static const char *shown_namespace;

void log_hold_descriptors(void)
{
    int fd;

    do
        fd = open("/dev/null", O_RDWR);
    while (fd >= 0 && fd <= STDERR_FILENO);
    if (fd > STDERR_FILENO)
        close(fd);
}

void log_set_namespace(const char *namespace)
{
    shown_namespace = namespace;
}

void log_event(enum log_level level, const char *event, const char *format, ...)
{
    char line[2048];
    va_list args;
    int len = snprintf(line, sizeof(line), "level=%s event=%s", level_names[level], event);

    if (shown_namespace)
        len += snprintf(line + len, sizeof(line) - (size_t)len, " namespace=%s", shown_namespace);
    if (format[0] != '\0') {
        line[len++] = ' ';
        va_start(args, format);
        len += vsnprintf(line + len, sizeof(line) - (size_t)len, format, args);
        va_end(args);
    }
    if ((size_t)len > sizeof(line) - 1)
        len = sizeof(line) - 1;
    line[len++] = '\n';
    /* Nobody is left to tell when stderr is gone. */
    if (write(STDERR_FILENO, line, (size_t)len) < 0)
        return;
}

const char *log_escape(char buf[LOG_TEXT_BYTES], struct span text)
{
    char *at = buf;
    const char *end = buf + LOG_TEXT_BYTES - sizeof("\\xff\"\"");

    for (size_t i = 0; i < text.len && at < end; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        if (c == '"' || c == '\\')
            at += sprintf(at, "\\%c", c);
        else if (c < 0x20 || c >= 0x7f)
            at += sprintf(at, "\\x%02x", c);
        else
            *at++ = (char)c;
    }
    *at = '\0';
    return buf;
}

const char *log_quote(char buf[LOG_TEXT_BYTES], struct span text)
{
    size_t len = strlen(log_escape(buf, text));

    /* log_escape() leaves room for the quotes. */
    memmove(buf + 1, buf, len);
    buf[0] = '"';
    memcpy(buf + len + 1, "\"", sizeof("\""));
    return buf;
}

void log_error(enum log_level level, const char *event, const struct error *error)
{
    const char *line = error->text;
    char quoted[LOG_TEXT_BYTES];

    do {
        size_t len = strcspn(line, "\n");
        log_event(level, event, "error=%s", log_quote(quoted, (struct span){line, len}));
        line += len + (line[len] == '\n');
    } while (*line);
}

bool log_is_due(int64_t *logged_ms)
{
    int64_t now = clock_monotonic_ms();

    if (*logged_ms != 0 && now - *logged_ms < REPEAT_MS)
        return false;
    *logged_ms = now;
    return true;
}
