/* request - one command to Redis as the bytes that are sent: its words, one after the other
 *
 * For commands of thousands of words: each is copied once, into one buffer that is kept. Pure.
 */
#ifndef COUNTERD_REQUEST_H
#define COUNTERD_REQUEST_H

#include "lib/util.h"

/* A zeroed one is fine. */
struct request {
    char *bytes; /* owned */
    size_t len, size;
    size_t words;
    bool failed; /* out of memory */
};

/* Frees its memory. */
void request_done(struct request *request);

/* Forgets the words and keeps the memory. */
void request_begin(struct request *request);

void request_add(struct request *request, struct span word);
void request_add_text(struct request *request, const char *word);
void request_add_number(struct request *request, int64_t number);

/* The whole, borrowed until the next request_begin(); its ptr is NULL when there was no memory for it. */
struct span request_end(struct request *request);

#endif
