/* spool_file - the files of a spool in their directory: names, whole reads, what is done with damage */
#ifndef COUNTERD_SPOOL_FILE_H
#define COUNTERD_SPOOL_FILE_H

#include "counterd/record.h"
#include "lib/error.h"

#define SPOOL_NAME_BYTES 96

/* WRITER.NUMBER.spool; number 0: WRITER.fractions. */
void spool_file_name(const char *writer, uint64_t number, char ret_name[SPOOL_NAME_BYTES]);

/* Reads exactly so many bytes. */
bool spool_file_read(int fd, uint64_t at, char *buf, size_t bytes);

/* Whether what stands there is the beginning of a record and no more: a write that was interrupted. */
bool spool_file_is_torn(int fd, uint64_t at, uint64_t end);

/* Says that a file's end is left out. */
void spool_file_tell_cut(const char *name, uint64_t at, uint64_t end, bool damaged);

/* Renames it to NAME.aside, and says so. */
void spool_file_put_aside(int directory, const char *name, const char *why);

/* The segments of a writer, ascending; freed by the caller. */
MUST_CHECK int spool_file_numbers(int directory, const char *writer, uint64_t **ret_numbers, size_t *ret_len,
                                  struct error *error);

#endif
