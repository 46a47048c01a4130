/* config - the one file that counterd and flusher share: JSON with comments
 *
 * Every key is a row of one table (config_keys), which holds its type, default, range and meaning; reading,
 * checking and the test that each key is documented all follow from it. A file is read whole or not at all:
 * an unknown key, a wrong type, a value out of range or a key given twice is a mistake, and every mistake in
 * the file is named, a line each, with its place.
 */
#ifndef LIB_CONFIG_H
#define LIB_CONFIG_H

#include "lib/address.h"
#include "lib/error.h"
#include "lib/lanes.h"

#define CONFIG_LISTEN_MAX 16

struct targets;

struct config_list {
    char *items[CONFIG_LISTEN_MAX];
    size_t len;
};

struct config {
    char *namespace;
    int64_t shards;  /* of each lane */
    int64_t workers; /* 0 = one per core */
    struct {
        struct config_list udp;   /* host:port, checked */
        struct config_list tcp;   /* host:port, checked */
        struct config_list local; /* paths of datagram sockets */
        char *http;               /* host:port, checked; "" = none */
        int64_t buffer_bytes;     /* what SO_RCVBUF is asked for */
    } listen;
    int64_t coalesce_ms;
    int64_t keys_max;      /* per worker */
    int64_t history_bytes; /* per worker */
    char *spool_dir;       /* "" = none */
    int64_t spool_bytes;   /* per worker */
    struct {
        char *url;
        char *password_file;
        int64_t timeout_ms;
        int64_t wait_replicas;        /* how many must have what is acknowledged, or sealed */
        struct redis_address address; /* url taken apart, with the password of password_file */
    } redis;
    struct {
        int64_t ttl_s;      /* how long a token is remembered in Redis */
        int64_t rollback_s; /* and so much longer in Postgres */
        bool vector;        /* whether at all in Postgres */
    } idempotency;
    struct {
        char *url;
        char *password_file;
        char *password; /* "" = none given; libpq then looks in PGPASSFILE and the like */
    } postgres;
    struct {
        int64_t jobs;
        int64_t keys_per_transaction;
        int64_t keep_days; /* of rows of the ledger and of runs */
    } flush;
    struct targets *targets; /* with a reference; lib/targets.h */
    struct lane lanes[LANES_MAX];
    size_t lanes_len;
    size_t lane; /* whose config this is: 0 as it was read, see config_of_lane() */
};

enum config_type {
    CONFIG_INTEGER,   /* int64_t */
    CONFIG_BOOL,      /* bool */
    CONFIG_TEXT,      /* char * */
    CONFIG_ADDRESS,   /* char *, host:port or "" */
    CONFIG_ADDRESSES, /* struct config_list of host:port */
    CONFIG_PATHS,     /* struct config_list of absolute paths */
    CONFIG_TARGETS,   /* struct targets *, the targets of it */
    CONFIG_FANOUT,    /* the rest of the same */
};

struct config_key {
    const char *name; /* as in the file, sections joined by a dot: "listen.udp" */
    enum config_type type;
    size_t offset;             /* in struct config */
    const char *default_value; /* a list: separated by blanks; from CONFIG_TARGETS on: JSON */
    int64_t min, max;          /* integer: value; text: length in bytes */
    bool reloads;              /* SIGHUP takes it over; else it waits for a restart */
    const char *unit;          /* integers: "ms", "s", "bytes", "" */
};

/* The table, ordered by section as in the file. */
const struct config_key *config_keys(size_t *ret_len);

/* Reads `path` and the password files that it names. Gives a config to be freed with config_free(). On
 * failure the error's text has one line per mistake, each starting with the file's name. */
MUST_CHECK int config_load(const char *path, struct config **ret_config, struct error *error);

/* The same for text already in memory; `name` stands for the file's name. Password files are not read: pure.
 */
MUST_CHECK int config_parse(const char *name, struct span text, struct config **ret_config,
                            struct error *error);

void config_free(struct config *config);

/* The same with the namespace and the database of one lane, as the flusher takes it. It borrows from `config`
 * and is not to be freed. */
void config_of_lane(const struct config *config, size_t lane, struct config *ret_config);

/* Whether their databases and merges are the same, and so their lanes. */
bool config_lanes_equal(const struct config *a, const struct config *b);

/* All lanes' shards are numbered through: this is how many there are, */
static inline uint32_t config_shards(const struct config *config)
{
    return (uint32_t)config->shards * (uint32_t)config->lanes_len;
}

/* of which namespace one is, */
static inline const char *config_shard_namespace(const struct config *config, uint32_t shard)
{
    return config->lanes[shard / (uint32_t)config->shards].namespace;
}

/* how its members merge, */
static inline enum merge config_shard_merge(const struct config *config, uint32_t shard)
{
    return config->lanes[shard / (uint32_t)config->shards].merge;
}

/* which one of that lane it is, */
static inline uint32_t config_shard_number(const struct config *config, uint32_t shard)
{
    return shard % (uint32_t)config->shards;
}

/* and a number that tells these lanes from others; 0 when there is one only. */
uint32_t config_lanes_id(const struct config *config);

/* Writes the names of the keys that differ but can't be reloaded into `buf`, joined by blanks; false when
 * there are none. */
bool config_needs_restart(const struct config *old, const struct config *new, char *buf, size_t buf_bytes);

#endif
