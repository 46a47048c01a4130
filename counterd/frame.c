#include "counterd/frame.h"

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

void frame_init(struct frame *frame)
{
    *frame = (struct frame){0};
}

void frame_done(struct frame *frame)
{
    free(frame->held);
    frame_init(frame);
}

static int hold(struct frame *frame, struct span bytes)
{
    if (bytes.len == 0)
        return 0;
    if (!frame->held) {
        frame->held = malloc(LINE_LEN_MAX);
        if (!frame->held)
            return -ENOMEM;
    }
    memcpy(frame->held + frame->held_len, bytes.ptr, bytes.len);
    frame->held_len += bytes.len;
    return 0;
}

/* Adds bytes to the line that is held; gives it up when it gets too long. */
static int continue_line(struct frame *frame, struct span bytes, frame_sink sink, void *context)
{
    if (frame->skipping)
        return 0;
    if (bytes.len > LINE_LEN_MAX - frame->held_len) {
        struct span shown = frame->held_len > 0 ? frame_rest(frame) : bytes;
        frame->skipping = true;
        sink(context, FRAME_TOO_LONG, shown);
        frame->held_len = 0;
        return 0;
    }
    return hold(frame, bytes);
}

/* The line that is held ends: with what `bytes` holds of it, LF left out. */
static int end_line(struct frame *frame, struct span bytes, frame_sink sink, void *context)
{
    int r = continue_line(frame, bytes, sink, context);

    if (r < 0)
        return r;
    if (!frame->skipping)
        sink(context, FRAME_LINES, frame_rest(frame));
    frame->skipping = false;
    frame->held_len = 0;
    return 0;
}

int frame_feed(struct frame *frame, struct span bytes, frame_sink sink, void *context)
{
    const char *first_end = memchr(bytes.ptr, '\n', bytes.len);
    const char *last_end;
    struct span whole;
    int r;

    assert(bytes.len <= LINE_LEN_MAX);
    if (!first_end)
        return continue_line(frame, bytes, sink, context);
    if (frame->held_len > 0 || frame->skipping) {
        size_t len = (size_t)(first_end - bytes.ptr);
        r = end_line(frame, (struct span){bytes.ptr, len}, sink, context);
        if (r < 0)
            return r;
        bytes = (struct span){first_end + 1, bytes.len - len - 1};
    }
    last_end = memrchr(bytes.ptr, '\n', bytes.len);
    whole = (struct span){bytes.ptr, last_end ? (size_t)(last_end + 1 - bytes.ptr) : 0};
    if (whole.len > 0)
        sink(context, FRAME_LINES, whole);
    return continue_line(frame, (struct span){bytes.ptr + whole.len, bytes.len - whole.len}, sink, context);
}

struct span frame_rest(const struct frame *frame)
{
    return (struct span){frame->held, frame->held_len};
}
