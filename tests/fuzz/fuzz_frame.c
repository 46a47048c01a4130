/* A stream in any pieces comes to the same lines as in one piece. The first byte says how long pieces are. */
#include <stdlib.h>

#include "counterd/frame.h"
#include "tests/fuzz/fuzz.h"

struct heard {
    char *text;
    size_t len;
};

static void listen_to(void *context, enum frame_event event, struct span bytes)
{
    struct heard *heard = context;

    fuzz_require(event == FRAME_LINES);
    if (bytes.len > 0)
        memcpy(heard->text + heard->len, bytes.ptr, bytes.len);
    heard->len += bytes.len;
    if (bytes.len == 0 || bytes.ptr[bytes.len - 1] != '\n')
        heard->text[heard->len++] = '\n';
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t len)
{
    struct heard heard = {.text = malloc(2 * len + 1)};
    struct frame frame;
    size_t piece = len > 0 ? data[0] + 1U : 1;
    struct span rest;

    if (len > 0)
        data++, len--;
    len = len < LINE_LEN_MAX ? len : LINE_LEN_MAX;
    frame_init(&frame);
    for (size_t at = 0; at < len; at += piece)
        fuzz_require(frame_feed(&frame,
                                (struct span){(const char *)data + at, len - at < piece ? len - at : piece},
                                listen_to, &heard) == 0);
    rest = frame_rest(&frame);
    fuzz_require(heard.len + rest.len == len);
    fuzz_require(heard.len == 0 || memcmp(heard.text, data, heard.len) == 0);
    fuzz_require(rest.len == 0 || memcmp(rest.ptr, data + heard.len, rest.len) == 0);
    frame_done(&frame);
    free(heard.text);
    return 0;
}
