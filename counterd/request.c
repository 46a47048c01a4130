#include "counterd/request.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

/* "*" words CR LF: written last, when the number is known, so that it ends where the words begin. */
#define HEAD_BYTES 24

/* What stands around a word: "$" length CR LF ... CR LF. */
#define FRAME_BYTES 28

#define NUMBER_BYTES 20

void request_done(struct request *request)
{
    free(request->bytes);
    *request = (struct request){0};
}

void request_begin(struct request *request)
{
    request->len = HEAD_BYTES;
    request->words = 0;
    request->failed = false;
}

static bool make_room(struct request *request, size_t more)
{
    size_t size = request->size > 0 ? request->size : 4096;
    char *bytes;

    if (request->size - request->len >= more && request->size > 0)
        return true;
    while (size - request->len < more)
        size *= 2;
    bytes = realloc(request->bytes, size);
    if (!bytes) {
        request->failed = true;
        return false;
    }
    request->bytes = bytes;
    request->size = size;
    return true;
}

/* Writes the digits so that they end in front of `end`; returns where they begin. */
static char *write_digits(char *end, uint64_t number)
{
    do
        *--end = (char)('0' + number % 10);
    while ((number /= 10) > 0);
    return end;
}

static char *put(char *at, const char *bytes, size_t len)
{
    memcpy(at, bytes, len);
    return at + len;
}

void request_add(struct request *request, struct span word)
{
    char digits[NUMBER_BYTES], *end = digits + sizeof(digits), *first = write_digits(end, word.len), *at;

    if (!make_room(request, FRAME_BYTES + word.len))
        return;
    at = request->bytes + request->len;
    *at++ = '$';
    at = put(at, first, (size_t)(end - first));
    at = put(at, "\r\n", 2);
    at = put(at, word.ptr, word.len);
    at = put(at, "\r\n", 2);
    request->len = (size_t)(at - request->bytes);
    request->words++;
}

void request_add_text(struct request *request, const char *word)
{
    request_add(request, span_of(word));
}

void request_add_number(struct request *request, int64_t number)
{
    char digits[NUMBER_BYTES], *end = digits + sizeof(digits);
    char *first = write_digits(end, number < 0 ? -(uint64_t)number : (uint64_t)number);

    if (number < 0)
        *--first = '-';
    request_add(request, (struct span){first, (size_t)(end - first)});
}

struct span request_end(struct request *request)
{
    char head[HEAD_BYTES];
    int len = snprintf(head, sizeof(head), "*%zu\r\n", request->words);
    char *first;

    if (request->failed || request->words == 0)
        return (struct span){0};
    first = request->bytes + HEAD_BYTES - len;
    memcpy(first, head, (size_t)len);
    return (struct span){first, request->len - (size_t)(first - request->bytes)};
}
