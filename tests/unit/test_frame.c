#include "counterd/frame.h"
#include "tests/unit/unit.h"

/* Everything that the sink was given: lines each ended by '\n', a line given up as '!' and '\n'. */
struct heard {
    char text[4 * LINE_LEN_MAX];
    size_t len;
};

static void listen_to(void *context, enum frame_event event, struct span bytes)
{
    struct heard *heard = context;

    if (event == FRAME_TOO_LONG) {
        heard->text[heard->len++] = '!';
        heard->text[heard->len++] = '\n';
        return;
    }
    ck_assert_uint_le(heard->len + bytes.len + 1, sizeof(heard->text));
    if (bytes.len > 0)
        memcpy(heard->text + heard->len, bytes.ptr, bytes.len);
    heard->len += bytes.len;
    if (bytes.len == 0 || bytes.ptr[bytes.len - 1] != '\n')
        heard->text[heard->len++] = '\n';
}

static void feed(struct frame *frame, struct heard *heard, struct span bytes, size_t piece)
{
    while (bytes.len > 0) {
        size_t len = bytes.len < piece ? bytes.len : piece;
        ck_assert_int_eq(frame_feed(frame, (struct span){bytes.ptr, len}, listen_to, heard), 0);
        bytes = (struct span){bytes.ptr + len, bytes.len - len};
    }
}

START_TEST(lines_are_whole_whatever_the_pieces)
{
    static const char text[] = "a:1|c\nbb:22|c\r\n\n\nccc:333|c\nd:4|c\nrest";
    static const char lines[] = "a:1|c\nbb:22|c\r\n\n\nccc:333|c\nd:4|c\n";
    struct frame frame;

    for (size_t piece = 1; piece <= strlen(text); piece++) {
        struct heard *heard = calloc(1, sizeof(*heard));
        frame_init(&frame);
        feed(&frame, heard, span_of(text), piece);
        ck_assert(span_is((struct span){heard->text, heard->len}, lines));
        ck_assert(span_is(frame_rest(&frame), "rest"));
        frame_done(&frame);
        free(heard);
    }
}
END_TEST

START_TEST(a_line_too_long_is_told_once_and_skipped)
{
    size_t lens[] = {LINE_LEN_MAX - 1, LINE_LEN_MAX, LINE_LEN_MAX + 1, 3 * LINE_LEN_MAX};

    for (size_t i = 0; i < ARRAY_LEN(lens); i++) {
        struct heard *heard = calloc(1, sizeof(*heard));
        size_t text_len = lens[i] + strlen("\nz:1|c\n");
        char *text = malloc(text_len);
        struct frame frame;

        memset(text, 'x', lens[i]);
        memcpy(text + lens[i], "\nz:1|c\n", strlen("\nz:1|c\n"));
        frame_init(&frame);
        feed(&frame, heard, (struct span){text, text_len}, 1000);
        if (lens[i] <= LINE_LEN_MAX)
            ck_assert_uint_eq(heard->len, text_len);
        else
            ck_assert(span_is((struct span){heard->text, heard->len}, "!\nz:1|c\n"));
        ck_assert_uint_eq(frame_rest(&frame).len, 0);
        frame_done(&frame);
        free(text);
        free(heard);
    }
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, lines_are_whole_whatever_the_pieces);
    tcase_add_test(tests, a_line_too_long_is_told_once_and_skipped);
}

int main(void)
{
    return unit_run("frame", add_tests);
}
