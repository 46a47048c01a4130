/* parse_lines - escaped packets on stdin, the answers of lib/metric.c on stdout; what reference.py --lines is
 * to its own parser */
#include <ctype.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/metric.h"

static size_t unescape(const char *text, char *packet)
{
    size_t len = 0;

    while (*text && *text != '\n') {
        unsigned byte;
        if (*text != '\\') {
            packet[len++] = *text++;
        } else if (text[1] == 'x' && sscanf(text + 2, "%2x", &byte) == 1) {
            packet[len++] = (char)byte;
            text += 4;
        } else {
            packet[len++] = (char)(text[1] == 'n'   ? '\n'
                                   : text[1] == 'r' ? '\r'
                                   : text[1] == 't' ? '\t'
                                                    : text[1]);
            text += 2;
        }
    }
    return len;
}

static void print_escaped(struct span text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        if (c == '\\')
            fputs("\\\\", stdout);
        else if (c >= 0x20 && c < 0x7f)
            putchar(c);
        else
            printf("\\x%02x", c);
    }
}

static void print_answer(struct span line)
{
    struct metric metric;
    char key[KEY_LEN_MAX];
    size_t len;
    enum reject reject = metric_parse(line, &metric);

    if (reject == REJECT_NONE)
        reject = metric_canonical_key(&metric, key, &len);
    if (reject != REJECT_NONE) {
        printf("!%s", reject_name(reject));
        return;
    }
    print_escaped((struct span){key, len});
    printf("=%" PRId64, metric.micros);
}

static void print_answers(struct span packet)
{
    const char *at = packet.ptr, *end = packet.ptr + packet.len;
    bool first = true;

    while (at < end) {
        const char *lf = memchr(at, '\n', (size_t)(end - at));
        struct span line = {at, (size_t)((lf ? lf : end) - at)};
        at = lf ? lf + 1 : end;
        if (line.len > 0 && line.ptr[line.len - 1] == '\r')
            line.len--;
        if (line.len == 0)
            continue;
        if (!first)
            putchar(' ');
        first = false;
        print_answer(line);
    }
    puts(first ? "-" : "");
}

int main(void)
{
    char *text = NULL;
    size_t room = 0;

    while (getline(&text, &room, stdin) > 0) {
        /* Exactly as large as the packet, so that a sanitizer sees a read behind its end. */
        char *packet = malloc(room);
        size_t len = unescape(text, packet);
        char *exact = malloc(len ? len : 1);
        memcpy(exact, packet, len);
        print_answers((struct span){exact, len});
        free(exact);
        free(packet);
    }
    free(text);
    return 0;
}
