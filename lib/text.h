/* text - what the line protocol's bytes are checked for and cut at
 *
 * Pure, and never reads behind what it is given.
 */
#ifndef LIB_TEXT_H
#define LIB_TEXT_H

#ifdef __SSE2__
#include <emmintrin.h>
#endif

#include "lib/util.h"

/* What is in front of the next `separator`, or all of it; `*rest` moves behind the separator, and its ptr is
 * NULL when there is none: "a|" has two parts, "a" one. */
struct span text_split(struct span *rest, char separator);

/* The first line, without its LF or CR LF; `*rest` moves behind it. */
struct span text_take_line(struct span *rest);

bool text_is_utf8(struct span text);

/* How long a text that was cut anywhere is without the character that the cut went through. */
size_t text_whole(struct span text);

/* Whether it holds what may stand neither in a key nor in the name or value of a tag. */
bool text_has_forbidden(struct span text);

/* Marks end a plain key: what it must not hold, and all that is not ASCII. Of tags, ',' ';' '=' are marks
 * too. Inline, because every byte that comes in goes through here. */
#define TEXT_BLOCK 16

enum text_kind { TEXT_KEY, TEXT_TAGS };

static inline bool text_is_mark(char c, enum text_kind kind)
{
    /* As signed numbers, bytes from 0x80 on are below the blank too. */
    return (signed char)c <= 0x20 || c == ':' || c == '|' ||
           (kind == TEXT_TAGS && (c == ',' || c == ';' || c == '='));
}

/* The same for 16 bytes at once. */
static inline unsigned text_marks_of_block(const char *at, enum text_kind kind)
{
#ifdef __SSE2__
    __m128i bytes = _mm_loadu_si128((const __m128i *)(const void *)at);
    __m128i marks = _mm_cmplt_epi8(bytes, _mm_set1_epi8(0x21));

    marks = _mm_or_si128(marks, _mm_cmpeq_epi8(bytes, _mm_set1_epi8(':')));
    marks = _mm_or_si128(marks, _mm_cmpeq_epi8(bytes, _mm_set1_epi8('|')));
    if (kind == TEXT_TAGS) {
        marks = _mm_or_si128(marks, _mm_cmpeq_epi8(bytes, _mm_set1_epi8(',')));
        marks = _mm_or_si128(marks, _mm_cmpeq_epi8(bytes, _mm_set1_epi8(';')));
        marks = _mm_or_si128(marks, _mm_cmpeq_epi8(bytes, _mm_set1_epi8('=')));
    }
    return (unsigned)_mm_movemask_epi8(marks);
#else
    unsigned marks = 0;

    for (unsigned i = 0; i < TEXT_BLOCK; i++)
        marks |= (unsigned)text_is_mark(at[i], kind) << i;
    return marks;
#endif
}

/* Which of the up to 16 bytes from `at` on, up to the end of `text`, are marks; bit i stands for byte at + i.
 */
static inline unsigned text_marks(struct span text, size_t at, enum text_kind kind)
{
    unsigned marks = 0;

    if (text.len - at >= TEXT_BLOCK)
        return text_marks_of_block(text.ptr + at, kind);
    /* The last block ends where the text does; what it has of the one before is shifted out. */
    if (text.len >= TEXT_BLOCK)
        return text_marks_of_block(text.ptr + text.len - TEXT_BLOCK, kind) >> (TEXT_BLOCK - (text.len - at));
    for (unsigned i = 0; i < text.len - at; i++)
        marks |= (unsigned)text_is_mark(text.ptr[at + i], kind) << i;
    return marks;
}

/* How many bytes at the front of `text` are no marks. */
static inline size_t text_plain_len(struct span text)
{
    for (size_t at = 0; at < text.len; at += TEXT_BLOCK) {
        unsigned marks = text_marks(text, at, TEXT_KEY);
        if (marks != 0)
            return at + (unsigned)__builtin_ctz(marks);
    }
    return text.len;
}

#endif
