/* migrate - brings the database's schema to what this program knows, and tells whether it is there
 *
 * Migrations are the files of migrations/, embedded by the build: forward only, each in one transaction of
 * its own and recorded in counterd.migrations. Several at the same time wait for each other; one that was
 * done is not done again.
 */
#ifndef FLUSHER_MIGRATE_H
#define FLUSHER_MIGRATE_H

#include "flusher/postgres.h"

struct migration {
    const char *name; /* "0001_core": its version and what it is about */
    const char *sha1; /* of the text; what was applied must not have been another one */
    const char *text;
};

extern const struct migration migrations[]; /* in order of their versions, which count from 1 */
extern const size_t migrations_len;

/* Applies what is missing; `ret_done` says how many that were: the last ones of `migrations`. FAILURE_CONFIG
 * when the database knows a migration that this program does not. */
MUST_CHECK int migrate(struct postgres *postgres, size_t *ret_done, struct error *error);

/* FAILURE_CONFIG unless the schema is exactly what this program needs; the text says what to do, naming the
 * program's configuration file. */
MUST_CHECK int migrate_check(struct postgres *postgres, const char *config_path, struct error *error);

#endif
