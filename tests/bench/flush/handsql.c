/* handsql - the same rows as a flush, by hand-written SQL: what the flusher is measured against
 *
 *   handsql CONNINFO METHOD KEYS [TRANSACTIONS [CHUNK [CONNECTIONS]]]
 *
 * The keys are in memory, sorted, before the clock starts; it stops after the last COMMIT. With more than one
 * transaction they are divided as shards are, by their hash; with one each connection has a range. Nothing is
 * checked, recorded or locked besides the rows themselves. Methods:
 *
 *   upsert    INSERT .. SELECT FROM unnest ORDER BY ON CONFLICT DO UPDATE, CHUNK keys a statement
 *   updates   one prepared UPDATE per key, pipelined            (rows that are missing stay missing)
 *   updfrom   UPDATE .. FROM unnest                             (the same)
 *   copyup    COPY into a temporary table, then one upsert from there
 *   copyupd   COPY into a temporary table, then UPDATE .. FROM  (missing rows stay missing)
 *   insert    INSERT .. SELECT FROM unnest, no ON CONFLICT      (fails where a row exists)
 */
#include <assert.h>
#include <endian.h>
#include <libpq-fe.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "flusher/pgarray.h"
#include "lib/keyspace.h"
#include "tests/bench/flush/keys.h"

struct row {
    char key[KEY_BYTES];
    int64_t delta;
};

struct part {
    struct row *rows;
    size_t len;
};

static const char *conninfo, *method;
static struct part *parts;
static size_t parts_len, chunk = 10000;
static atomic_size_t next_part;

#define TIMES "to_timestamp(1700000000), to_timestamp(1700000000)"
#define MERGE                                                                                                \
    " ON CONFLICT (key) DO UPDATE SET value = c.value + EXCLUDED.value,"                                     \
    " last_seen = GREATEST(c.last_seen, EXCLUDED.last_seen)"
#define SET " SET value = c.value + u.delta, last_seen = GREATEST(c.last_seen, to_timestamp(1700000000))"

static double now(void)
{
    struct timespec time;

    clock_gettime(CLOCK_MONOTONIC, &time);
    return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void check(PGconn *connection, PGresult *result)
{
    ExecStatusType status = PQresultStatus(result);

    if (status != PGRES_COMMAND_OK && status != PGRES_TUPLES_OK && status != PGRES_COPY_IN &&
        status != PGRES_PIPELINE_SYNC) {
        fprintf(stderr, "handsql: %s\n", PQerrorMessage(connection));
        exit(1);
    }
    PQclear(result);
}

static void run(PGconn *connection, const char *sql)
{
    check(connection, PQexec(connection, sql));
}

/* --- methods --- */

static void by_arrays(PGconn *connection, const struct part *part, const char *sql)
{
    struct pgarray keys = {0}, deltas = {0};

    for (size_t from = 0; from < part->len; from += chunk) {
        size_t count = part->len - from < chunk ? part->len - from : chunk;
        pgarray_begin(&keys, PGARRAY_TEXT, count);
        pgarray_begin(&deltas, PGARRAY_BIGINT, count);
        for (size_t i = from; i < from + count; i++) {
            pgarray_add_text(&keys, (struct span){part->rows[i].key, KEY_LEN});
            pgarray_add_bigint(&deltas, part->rows[i].delta);
        }
        check(connection, PQexecParams(connection, sql, 2, NULL, (const char *[]){keys.bytes, deltas.bytes},
                                       (int[]){(int)keys.len, (int)deltas.len}, (int[]){1, 1}, 0));
    }
    pgarray_done(&keys);
    pgarray_done(&deltas);
}

static void take_results(PGconn *connection, size_t count)
{
    for (size_t i = 0; i < count; i++) {
        check(connection, PQgetResult(connection));
        assert(PQgetResult(connection) == NULL);
    }
}

static void by_updates(PGconn *connection, const struct part *part)
{
    for (size_t from = 0; from < part->len; from += chunk) {
        size_t count = part->len - from < chunk ? part->len - from : chunk;
        assert(PQenterPipelineMode(connection));
        for (size_t i = from; i < from + count; i++) {
            int64_t wire = (int64_t)htobe64((uint64_t)part->rows[i].delta);
            assert(PQsendQueryPrepared(connection, "u", 2,
                                       (const char *[]){part->rows[i].key, (const char *)&wire},
                                       (int[]){KEY_LEN, sizeof(wire)}, (int[]){0, 1}, 0));
        }
        assert(PQpipelineSync(connection));
        take_results(connection, count);
        check(connection, PQgetResult(connection));
        assert(PQexitPipelineMode(connection));
    }
}

static void by_copy(PGconn *connection, const struct part *part, const char *sql)
{
    static const char header[] = "PGCOPY\n\377\r\n\0\0\0\0\0\0\0\0";
    size_t size = sizeof(header) + 64 + part->len * (2 + 4 + KEY_LEN + 4 + 8), len = 0;
    char *bytes = malloc(size);
    uint16_t fields = htobe16(2), end = 0xffff;
    uint32_t key_len = htobe32(KEY_LEN), delta_len = htobe32(8);

#define PUT(from, n) (memcpy(bytes + len, from, n), len += (n))
    assert(bytes);
    PUT(header, 19);
    for (size_t i = 0; i < part->len; i++) {
        uint64_t wire = htobe64((uint64_t)part->rows[i].delta);
        PUT(&fields, 2);
        PUT(&key_len, 4);
        PUT(part->rows[i].key, KEY_LEN);
        PUT(&delta_len, 4);
        PUT(&wire, 8);
    }
    PUT(&end, 2);
    run(connection,
        "CREATE TEMP TABLE IF NOT EXISTS u (key text COLLATE \"C\", delta bigint) ON COMMIT DELETE ROWS");
    run(connection, "COPY u FROM STDIN BINARY");
    assert(PQputCopyData(connection, bytes, (int)len) == 1 && PQputCopyEnd(connection, NULL) == 1);
    check(connection, PQgetResult(connection));
    assert(PQgetResult(connection) == NULL);
    run(connection, sql);
    free(bytes);
}

static void flush_part(PGconn *connection, const struct part *part)
{
    static const char unnest[] =
        "SELECT key, delta, " TIMES
        " FROM unnest($1::text[], $2::bigint[]) WITH ORDINALITY AS u (key, delta, n) ORDER BY n";
    char sql[1000];

    snprintf(sql, sizeof(sql), "INSERT INTO counterd.counters AS c (key, value, first_seen, last_seen) %s",
             unnest);
    if (strcmp(method, "insert") == 0) {
        by_arrays(connection, part, sql);
    } else if (strcmp(method, "upsert") == 0) {
        strcat(sql, MERGE);
        by_arrays(connection, part, sql);
    } else if (strcmp(method, "updfrom") == 0) {
        by_arrays(connection, part,
                  "UPDATE counterd.counters AS c" SET
                  " FROM unnest($1::text[], $2::bigint[]) AS u (key, delta) WHERE c.key = u.key");
    } else if (strcmp(method, "updates") == 0) {
        by_updates(connection, part);
    } else if (strcmp(method, "copyup") == 0) {
        by_copy(
            connection, part,
            "INSERT INTO counterd.counters AS c (key, value, first_seen, last_seen) SELECT key, delta, " TIMES
            " FROM u" MERGE);
    } else if (strcmp(method, "copyupd") == 0) {
        by_copy(connection, part, "UPDATE counterd.counters AS c" SET " FROM u WHERE c.key = u.key");
    } else {
        fprintf(stderr, "handsql: no method '%s'\n", method);
        exit(64);
    }
}

static void *connection_main(void *unused)
{
    PGconn *connection = PQconnectdb(conninfo);
    size_t i;

    if (PQstatus(connection) != CONNECTION_OK) {
        fprintf(stderr, "handsql: %s\n", PQerrorMessage(connection));
        exit(1);
    }
    run(connection, "PREPARE u (text, bigint) AS UPDATE counterd.counters AS c SET value = value + $2,"
                    " last_seen = GREATEST(last_seen, to_timestamp(1700000000)) WHERE key = $1");
    while ((i = atomic_fetch_add(&next_part, 1)) < parts_len) {
        if (parts[i].len == 0)
            continue;
        run(connection, "BEGIN");
        flush_part(connection, &parts[i]);
        run(connection, "COMMIT");
    }
    PQfinish(connection);
    return unused;
}

/* --- the data --- */

static int compare_rows(const void *left, const void *right)
{
    return memcmp(left, right, KEY_LEN);
}

static void make_parts(size_t keys, size_t transactions, size_t connections)
{
    struct row *rows = calloc(keys + 1, sizeof(*rows));
    size_t from = 0;

    assert(rows);
    for (size_t i = 0; i < keys; i++) {
        key_of((uint32_t)i, rows[i].key);
        rows[i].delta = 1 + (int64_t)i % 9;
    }
    parts_len = transactions > 1 ? transactions : connections;
    parts = calloc(parts_len, sizeof(*parts));
    assert(parts);
    if (transactions == 1) {
        qsort(rows, keys, sizeof(*rows), compare_rows);
        for (size_t i = 0; i < parts_len; i++, from += parts[i - 1].len)
            parts[i] = (struct part){rows + from, (i + 1) * keys / parts_len - from};
        return;
    }
    for (size_t i = 0; i < parts_len; i++)
        parts[i].rows = calloc(keys / parts_len * 2 + 1000, sizeof(*rows));
    for (size_t i = 0; i < keys; i++) {
        struct part *part = &parts[keyspace_shard(keyspace_hash((struct span){rows[i].key, KEY_LEN}),
                                                  (uint32_t)transactions)];
        part->rows[part->len++] = rows[i];
    }
    for (size_t i = 0; i < parts_len; i++)
        qsort(parts[i].rows, parts[i].len, sizeof(*rows), compare_rows);
}

int main(int argc, char **argv)
{
    size_t connections = argc > 6 ? (size_t)atoi(argv[6]) : 1;
    pthread_t threads[64];
    double from, seconds;

    if (argc < 4 || connections < 1 || connections > 64) {
        fprintf(stderr, "usage: handsql CONNINFO METHOD KEYS [TRANSACTIONS [CHUNK [CONNECTIONS]]]\n");
        return 64;
    }
    conninfo = argv[1];
    method = argv[2];
    chunk = argc > 5 ? (size_t)atol(argv[5]) : chunk;
    make_parts((size_t)atol(argv[3]), argc > 4 ? (size_t)atol(argv[4]) : 1, connections);
    from = now();
    for (size_t i = 0; i < connections; i++)
        assert(pthread_create(&threads[i], NULL, connection_main, NULL) == 0);
    for (size_t i = 0; i < connections; i++)
        pthread_join(threads[i], NULL);
    seconds = now() - from;
    printf("{\"seconds\": %.6f}\n", seconds);
    return 0;
}
