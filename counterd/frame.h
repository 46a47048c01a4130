/* frame - lines out of a stream of bytes that arrives in any pieces
 *
 * Holds the beginning of a line until its end comes, at most LINE_LEN_MAX bytes; a longer line is given up,
 * told once, and skipped up to its LF. Pure: no socket.
 */
#ifndef COUNTERD_FRAME_H
#define COUNTERD_FRAME_H

#include "lib/util.h"

#define LINE_LEN_MAX 65535

struct frame {
    char *held; /* beginning of a line; NULL until one is cut */
    size_t held_len;
    bool skipping; /* in a line that was too long */
};

enum frame_event {
    FRAME_LINES,    /* one or more whole lines, each ended by LF, the last one perhaps not */
    FRAME_TOO_LONG, /* the beginning of a line that is not going to be read further */
};

/* `bytes` is borrowed for the call. */
typedef void (*frame_sink)(void *context, enum frame_event event, struct span bytes);

void frame_init(struct frame *frame);
void frame_done(struct frame *frame);

/* Takes in the next bytes, at most LINE_LEN_MAX, and calls `sink` with what became whole. -ENOMEM when the
 * rest of a line can't be held; the stream should be closed then. */
MUST_CHECK int frame_feed(struct frame *frame, struct span bytes, frame_sink sink, void *context);

/* What is held of a line without an end. */
struct span frame_rest(const struct frame *frame);

#endif
