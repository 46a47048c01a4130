#include "lib/text.h"

struct span text_split(struct span *rest, char separator)
{
    const char *end = rest->len ? memchr(rest->ptr, separator, rest->len) : NULL;
    struct span part = *rest;

    if (!end) {
        *rest = (struct span){NULL, 0};
        return part;
    }
    part.len = (size_t)(end - part.ptr);
    *rest = (struct span){end + 1, rest->len - part.len - 1};
    return part;
}

/* Length of the UTF-8 sequence at `at`, 0 when it is not one: Unicode 15, table 3-7 (no overlong forms, no
 * surrogates, nothing above U+10FFFF). */
static size_t utf8_sequence(const unsigned char *at, size_t len)
{
    unsigned char low = 0x80, high = 0xbf;
    size_t tail;

    if (at[0] < 0x80)
        return 1;
    if (at[0] < 0xc2 || at[0] > 0xf4)
        return 0;
    tail = at[0] < 0xe0 ? 1 : at[0] < 0xf0 ? 2 : 3;
    if (at[0] == 0xe0)
        low = 0xa0;
    else if (at[0] == 0xed)
        high = 0x9f;
    else if (at[0] == 0xf0)
        low = 0x90;
    else if (at[0] == 0xf4)
        high = 0x8f;
    if (len <= tail || at[1] < low || at[1] > high)
        return 0;
    for (size_t i = 2; i <= tail; i++)
        if ((at[i] & 0xc0) != 0x80)
            return 0;
    return tail + 1;
}

struct span text_take_line(struct span *rest)
{
    const char *lf = rest->len > 0 ? memchr(rest->ptr, '\n', rest->len) : NULL;
    struct span line = {rest->ptr, lf ? (size_t)(lf - rest->ptr) : rest->len};
    size_t taken = line.len + (lf != NULL);

    rest->ptr += taken;
    rest->len -= taken;
    if (line.len > 0 && line.ptr[line.len - 1] == '\r')
        line.len--;
    return line;
}

bool text_is_utf8(struct span text)
{
    size_t i = 0;

    while (i < text.len) {
        size_t len = utf8_sequence((const unsigned char *)text.ptr + i, text.len - i);
        if (len == 0)
            return false;
        i += len;
    }
    return true;
}

size_t text_whole(struct span text)
{
    size_t tail = 0;

    while (tail < 3 && tail < text.len && ((unsigned char)text.ptr[text.len - tail - 1] & 0xc0) == 0x80)
        tail++;
    if (tail == text.len)
        return 0;
    tail++;
    return utf8_sequence((const unsigned char *)text.ptr + text.len - tail, tail) == tail ? text.len
                                                                                          : text.len - tail;
}

bool text_has_forbidden(struct span text)
{
    for (size_t i = 0; i < text.len; i++) {
        unsigned char c = (unsigned char)text.ptr[i];
        if (c <= 0x20 || c == ':' || c == '|')
            return true;
    }
    return false;
}
