#include "lib/config.h"

#include <cjson/cJSON.h>
#include <ctype.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "lib/config_reader.h"
#include "lib/targets.h"

#define FILE_BYTES_MAX (1024 * 1024)

#define AT(member) offsetof(struct config, member)
#define MIB        (INT64_C(1024) * 1024)

static const struct config_key keys[] = {
    {"namespace", CONFIG_TEXT, AT(namespace), "counterd", 1, NAMESPACE_LEN_MAX, false, ""},
    {"shards", CONFIG_INTEGER, AT(shards), "64", 1, SHARDS_MAX, false, ""},
    {"workers", CONFIG_INTEGER, AT(workers), "1", 0, 64, false, ""},
    {"listen.udp", CONFIG_ADDRESSES, AT(listen.udp), "127.0.0.1:8125", 0, 0, false, ""},
    {"listen.tcp", CONFIG_ADDRESSES, AT(listen.tcp), "127.0.0.1:8125", 0, 0, false, ""},
    {"listen.unix", CONFIG_PATHS, AT(listen.local), "", 0, 0, false, ""},
    {"listen.http", CONFIG_ADDRESS, AT(listen.http), "127.0.0.1:8126", 0, HOST_LEN_MAX, false, ""},
    {"listen.buffer_bytes", CONFIG_INTEGER, AT(listen.buffer_bytes), "8388608", 4096, 1024 * MIB, false,
     "bytes"},
    {"coalesce_ms", CONFIG_INTEGER, AT(coalesce_ms), "200", 1, 60000, true, "ms"},
    {"keys_max", CONFIG_INTEGER, AT(keys_max), "1000000", 1, 100000000, true, ""},
    {"history_bytes", CONFIG_INTEGER, AT(history_bytes), "67108864", 0, 1024 * 1024 * MIB, true, "bytes"},
    {"spool_dir", CONFIG_TEXT, AT(spool_dir), "", 0, 3900, false, ""},
    {"spool_bytes", CONFIG_INTEGER, AT(spool_bytes), "1073741824", MIB, 1024 * 1024 * MIB, false, "bytes"},
    {"redis.url", CONFIG_TEXT, AT(redis.url), "redis://127.0.0.1:6379/0", 1, 2048, false, ""},
    {"redis.password_file", CONFIG_TEXT, AT(redis.password_file), "", 0, 4095, false, ""},
    {"redis.timeout_ms", CONFIG_INTEGER, AT(redis.timeout_ms), "5000", 10, 600000, false, "ms"},
    {"redis.wait_replicas", CONFIG_INTEGER, AT(redis.wait_replicas), "0", 0, 100, false, ""},
    {"idempotency.ttl_s", CONFIG_INTEGER, AT(idempotency.ttl_s), "86400", 1, 31536000, false, "s"},
    {"idempotency.rollback_s", CONFIG_INTEGER, AT(idempotency.rollback_s), "604800", 0, 31536000, false, "s"},
    {"idempotency.vector", CONFIG_BOOL, AT(idempotency.vector), "true", 0, 0, false, ""},
    {"postgres.url", CONFIG_TEXT, AT(postgres.url), "postgresql:///counters", 1, 4095, false, ""},
    {"postgres.password_file", CONFIG_TEXT, AT(postgres.password_file), "", 0, 4095, false, ""},
    {"flush.jobs", CONFIG_INTEGER, AT(flush.jobs), "2", 1, 64, false, ""},
    {"flush.keys_per_transaction", CONFIG_INTEGER, AT(flush.keys_per_transaction), "250000", 1, 10000000,
     false, ""},
    {"flush.keep_days", CONFIG_INTEGER, AT(flush.keep_days), "90", 1, 36500, false, "days"},
    {"targets", CONFIG_TARGETS, AT(targets), DEFAULT_TARGETS, 0, 0, true, ""},
    {"fanout", CONFIG_FANOUT, AT(targets), "[]", 0, 0, true, ""},
};

const struct config_key *config_keys(size_t *ret_len)
{
    *ret_len = ARRAY_LEN(keys);
    return keys;
}

static void *field_of(const struct config *config, const struct config_key *key)
{
    return (char *)(uintptr_t)config + key->offset;
}

static void read_integer(struct reader *reader, const struct config_key *key, const cJSON *item)
{
    double number = cJSON_IsNumber(item) ? item->valuedouble : 0;

    if (!cJSON_IsNumber(item))
        mistake(reader, "'%s' is %s; it takes a whole number from %" PRId64 " to %" PRId64, key->name,
                json_type_name(item), key->min, key->max);
    else if (number < (double)key->min || number > (double)key->max || number != (double)(int64_t)number)
        mistake(reader, "'%s' is %.15g; it takes a whole number from %" PRId64 " to %" PRId64, key->name,
                number, key->min, key->max);
    else
        *(int64_t *)field_of(reader->config, key) = (int64_t)number;
}

static void read_bool(struct reader *reader, const struct config_key *key, const cJSON *item)
{
    if (cJSON_IsBool(item))
        *(bool *)field_of(reader->config, key) = cJSON_IsTrue(item);
    else
        mistake(reader, "'%s' is %s; it takes true or false", key->name, json_type_name(item));
}

static void read_text(struct reader *reader, const struct config_key *key, const cJSON *item)
{
    size_t len = cJSON_IsString(item) ? strlen(item->valuestring) : 0;

    if (!cJSON_IsString(item))
        mistake(reader, "'%s' is %s; it takes a string", key->name, json_type_name(item));
    else if (len < (size_t)key->min || len > (size_t)key->max)
        mistake(reader, "'%s' has %zu bytes; it takes %" PRId64 " to %" PRId64, key->name, len, key->min,
                key->max);
    else
        set_text(reader, field_of(reader->config, key), item->valuestring);
}

/* Whether `text` may stand at `key` (named `place` in messages, with its index when it is in a list). */
static bool check_listen(struct reader *reader, const struct config_key *key, const char *place,
                         const char *text)
{
    struct address address;
    struct error error;

    if (key->type == CONFIG_PATHS) {
        if (text[0] == '/' && strlen(text) <= PATH_LEN_MAX)
            return true;
        mistake(reader, "'%s': '%s' is not the path of a socket; write an absolute path of at most %d bytes",
                place, text, PATH_LEN_MAX);
        return false;
    }
    if (address_parse(text, &address, &error) == 0)
        return true;
    mistake(reader, "'%s': %s", place, error.text);
    return false;
}

static void read_list(struct reader *reader, const struct config_key *key, const cJSON *list)
{
    struct config_list *field = field_of(reader->config, key);
    const cJSON *item;
    size_t len = 0;

    if (!cJSON_IsArray(list)) {
        mistake(reader, "'%s' is %s; it takes a list of strings, [] for none", key->name,
                json_type_name(list));
        return;
    }
    for (size_t i = 0; i < field->len; i++)
        free(field->items[i]);
    *field = (struct config_list){0};
    cJSON_ArrayForEach(item, list)
    {
        char place[64];
        snprintf(place, sizeof(place), "%s[%zu]", key->name, len++);
        if (len > CONFIG_LISTEN_MAX) {
            mistake(reader, "'%s' has more than %d items", key->name, CONFIG_LISTEN_MAX);
            return;
        }
        if (!cJSON_IsString(item))
            mistake(reader, "'%s' is %s; it takes a string", place, json_type_name(item));
        else if (check_listen(reader, key, place, item->valuestring))
            set_text(reader, &field->items[field->len++], item->valuestring);
    }
}

static void read_address(struct reader *reader, const struct config_key *key, const cJSON *item)
{
    if (!cJSON_IsString(item))
        mistake(reader, "'%s' is %s; it takes a string", key->name, json_type_name(item));
    else if (item->valuestring[0] == '\0' || check_listen(reader, key, key->name, item->valuestring))
        set_text(reader, field_of(reader->config, key), item->valuestring);
}

static void read_value(struct reader *reader, const struct config_key *key, const cJSON *item)
{
    switch (key->type) {
    case CONFIG_INTEGER:
        read_integer(reader, key, item);
        break;
    case CONFIG_BOOL:
        read_bool(reader, key, item);
        break;
    case CONFIG_TEXT:
        read_text(reader, key, item);
        break;
    case CONFIG_ADDRESS:
        read_address(reader, key, item);
        break;
    case CONFIG_ADDRESSES:
    case CONFIG_PATHS:
        read_list(reader, key, item);
        break;
    case CONFIG_TARGETS:
        read_targets(reader, item);
        break;
    case CONFIG_FANOUT:
        read_fanouts(reader, item);
        break;
    }
}

/* Whether `name` is "section" of some "section.key"; the part before the dot. */
static bool is_section(const char *name)
{
    size_t len = strlen(name);

    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (strncmp(keys[i].name, name, len) == 0 && keys[i].name[len] == '.')
            return true;
    return false;
}

static const struct config_key *find_key(const char *name)
{
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (strcmp(keys[i].name, name) == 0)
            return &keys[i];
    return NULL;
}

/* The names that may stand in `section` ("" = the top), for the message about one that may not. */
static void list_allowed(const char *section, char *buf, size_t buf_bytes)
{
    size_t section_len = strlen(section), len = 0;
    const char *last = "";
    size_t last_len = 0;

    buf[0] = '\0';
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        const char *name = keys[i].name;
        size_t name_len;
        if (section_len > 0 && (strncmp(name, section, section_len) != 0 || name[section_len] != '.'))
            continue;
        name += section_len > 0 ? section_len + 1 : 0;
        name_len = strcspn(name, ".");
        if (name_len == last_len && memcmp(name, last, name_len) == 0)
            continue;
        if (len < buf_bytes)
            len +=
                (size_t)snprintf(buf + len, buf_bytes - len, "%s%.*s", len ? " " : "", (int)name_len, name);
        last = name;
        last_len = name_len;
    }
}

static void read_object(struct reader *reader, const char *section, const cJSON *object)
{
    const cJSON *item;

    cJSON_ArrayForEach(item, object)
    {
        char name[128], allowed[256];
        const struct config_key *key;

        snprintf(name, sizeof(name), "%s%s%s", section, section[0] ? "." : "", item->string);
        if (cJSON_GetObjectItemCaseSensitive(object, item->string) != item) {
            mistake(reader, "'%s' is given twice", name);
            continue;
        }
        /* The dot is how we name them, not how they are written. */
        key = strchr(item->string, '.') ? NULL : find_key(name);
        if (key) {
            read_value(reader, key, item);
        } else if (section[0] == '\0' && is_section(name)) {
            if (cJSON_IsObject(item))
                read_object(reader, name, item);
            else
                mistake(reader, "'%s' is %s; it takes an object", name, json_type_name(item));
        } else {
            list_allowed(section, allowed, sizeof(allowed));
            mistake(reader, "'%s' is not a key; allowed %s%s%s: %s", name, section[0] ? "in '" : "here",
                    section, section[0] ? "'" : "", allowed);
        }
    }
}

/* Comments become blanks, not nothing (as cJSON_Minify would have it), so that the place of a syntax error is
 * told in the lines of the file as it was written. */
static bool blank_comments(char *text, struct reader *reader)
{
    bool in_string = false;

    for (char *at = text; *at; at++) {
        if (in_string) {
            if (*at == '\\' && at[1])
                at++;
            else if (*at == '"')
                in_string = false;
        } else if (*at == '"') {
            in_string = true;
        } else if (at[0] == '/' && at[1] == '/') {
            for (; *at && *at != '\n'; at++)
                *at = ' ';
            if (!*at)
                break;
        } else if (at[0] == '/' && at[1] == '*') {
            char *end = strstr(at + 2, "*/");
            if (!end) {
                mistake(reader, "a comment /* is not closed");
                return false;
            }
            for (end += 2; at < end; at++)
                if (*at != '\n')
                    *at = ' ';
            at--;
        }
    }
    return true;
}

static void mistake_in_json(struct reader *reader, const char *text, const char *at)
{
    unsigned line = 1, column = 1;

    for (const char *c = text; c < at; c++) {
        column = *c == '\n' ? 1 : column + 1;
        line += *c == '\n';
    }
    mistake(reader, "line %u, column %u: not JSON (a missing or extra comma, quote or bracket?)", line,
            column);
}

static int set_default(struct config *config, const struct config_key *key)
{
    void *field = field_of(config, key);

    switch (key->type) {
    case CONFIG_INTEGER:
        *(int64_t *)field = strtoll(key->default_value, NULL, 10);
        return 0;
    case CONFIG_BOOL:
        *(bool *)field = strcmp(key->default_value, "true") == 0;
        return 0;
    case CONFIG_TEXT:
    case CONFIG_ADDRESS:
        *(char **)field = strdup(key->default_value);
        return *(char **)field ? 0 : -ENOMEM;
    case CONFIG_ADDRESSES:
    case CONFIG_PATHS:
        /* No default list has more than one item. */
        if (key->default_value[0] != '\0') {
            struct config_list *list = field;
            list->items[0] = strdup(key->default_value);
            if (!list->items[0])
                return -ENOMEM;
            list->len = 1;
        }
        return 0;
    case CONFIG_TARGETS:
        *(struct targets **)field = targets_new();
        return *(struct targets **)field ? 0 : -ENOMEM;
    case CONFIG_FANOUT:
        return 0;
    }
    return 0;
}

static struct config *new_default(void)
{
    struct config *config = calloc(1, sizeof(*config));

    if (!config)
        return NULL;
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        if (set_default(config, &keys[i]) < 0) {
            config_free(config);
            return NULL;
        }
    }
    return config;
}

/* What no single row can tell. */
static void check_whole(struct reader *reader)
{
    struct config *config = reader->config;
    struct error error;

    finish_targets(reader);
    if (!reader->failed)
        finish_lanes(reader);
    for (const char *c = config->namespace; *c; c++) {
        if (!isalnum((unsigned char)*c) && !strchr("._-", *c)) {
            mistake(reader, "'namespace' is '%s'; it takes letters, digits, '.', '_' and '-'",
                    config->namespace);
            break;
        }
    }
    if (config->spool_dir[0] != '\0' && config->spool_dir[0] != '/')
        mistake(reader, "'spool_dir' is '%s'; it takes an absolute path", config->spool_dir);
    if (redis_address_parse(config->redis.url, &config->redis.address, &error) < 0)
        mistake(reader, "'redis.url': %s", error.text);
    if (config->redis.password_file[0] != '\0' && config->redis.address.password[0] != '\0')
        mistake(reader,
                "'redis.password_file' is set, but 'redis.url' holds a password too; leave one of them out");
    if (config->listen.udp.len + config->listen.tcp.len + config->listen.local.len == 0)
        mistake(reader, "'listen' has no udp, tcp or unix address; counterd would hear nothing");
}

int config_parse(const char *name, struct span text, struct config **ret_config, struct error *error)
{
    struct reader reader = {.name = name, .error = error};
    cJSON *json = NULL;
    char *copy = strndup(text.ptr, text.len);
    const char *end = NULL;

    error->text[0] = '\0';
    reader.config = new_default();
    if (!copy || !reader.config) {
        mistake(&reader, "out of memory");
        goto done;
    }
    if (strlen(copy) != text.len) {
        mistake(&reader, "holds a NUL byte; it takes JSON text");
        goto done;
    }
    if (!blank_comments(copy, &reader))
        goto done;
    errno = 0;
    json = cJSON_ParseWithOpts(copy, &end, true);
    if (!json && errno == ENOMEM)
        mistake(&reader, "can't be read: out of memory");
    else if (!json)
        mistake_in_json(&reader, copy, end ? end : copy);
    else if (!cJSON_IsObject(json))
        mistake(&reader, "holds %s; it takes an object: { ... }", json_type_name(json));
    else
        read_object(&reader, "", json);
    if (json && !reader.failed)
        check_whole(&reader);
done:
    cJSON_Delete(json);
    free(copy);
    if (reader.failed) {
        config_free(reader.config);
        return -EINVAL;
    }
    *ret_config = reader.config;
    return 0;
}

/* Gives a NUL-terminated copy of the file's bytes. */
static int read_file(const char *path, char **ret_text, size_t *ret_len, struct error *error)
{
    FILE *file = fopen(path, "re");
    char *text = malloc(FILE_BYTES_MAX + 1);
    size_t len;
    int r = 0;

    if (!file)
        r = error_set(error, -errno, "can't open '%s': %s", path, strerror(errno));
    else if (!text)
        r = error_set(error, -ENOMEM, "out of memory");
    if (r < 0)
        goto fail;
    len = fread(text, 1, FILE_BYTES_MAX + 1, file);
    if (ferror(file)) {
        r = error_set(error, -EIO, "can't read '%s': %s", path, strerror(errno));
        goto fail;
    }
    if (len > FILE_BYTES_MAX) {
        r = error_set(error, -EFBIG, "'%s' is larger than %d bytes", path, FILE_BYTES_MAX);
        goto fail;
    }
    fclose(file);
    text[len] = '\0';
    *ret_text = text;
    *ret_len = len;
    return 0;
fail:
    if (file)
        fclose(file);
    free(text);
    return r;
}

/* The file's first line, without its end. */
static int read_password(const char *key, const char *path, char buf[SECRET_LEN_MAX + 1], struct error *error)
{
    char *text;
    size_t len;
    int r = read_file(path, &text, &len, error);

    if (r < 0)
        return error_prefix(error, r, "'%s'", key);
    len = strcspn(text, "\r\n");
    if (len == 0 || len > SECRET_LEN_MAX) {
        r = error_set(error, -EINVAL, "'%s': the first line of '%s' has %zu bytes; a password has 1 to %d",
                      key, path, len, SECRET_LEN_MAX);
    } else {
        memcpy(buf, text, len);
        buf[len] = '\0';
    }
    free(text);
    return r;
}

static int read_passwords(struct config *config, struct error *error)
{
    char password[SECRET_LEN_MAX + 1];
    int r;

    if (config->redis.password_file[0] != '\0') {
        r = read_password("redis.password_file", config->redis.password_file, config->redis.address.password,
                          error);
        if (r < 0)
            return r;
    }
    if (config->postgres.password_file[0] != '\0') {
        r = read_password("postgres.password_file", config->postgres.password_file, password, error);
        if (r < 0)
            return r;
        config->postgres.password = strdup(password);
        if (!config->postgres.password)
            return error_set(error, -ENOMEM, "out of memory");
    }
    return 0;
}

int config_load(const char *path, struct config **ret_config, struct error *error)
{
    struct config *config = NULL;
    char *text;
    size_t len;
    int r = read_file(path, &text, &len, error);

    if (r < 0)
        return r;
    r = config_parse(path, (struct span){text, len}, &config, error);
    free(text);
    if (r < 0)
        return r;
    r = read_passwords(config, error);
    if (r < 0) {
        config_free(config);
        return error_prefix(error, r, "%s", path);
    }
    *ret_config = config;
    return 0;
}

void config_free(struct config *config)
{
    if (!config)
        return;
    for (size_t i = 0; i < ARRAY_LEN(keys); i++) {
        void *field = field_of(config, &keys[i]);
        if (keys[i].type == CONFIG_TEXT || keys[i].type == CONFIG_ADDRESS) {
            free(*(char **)field);
        } else if (keys[i].type == CONFIG_ADDRESSES || keys[i].type == CONFIG_PATHS) {
            struct config_list *list = field;
            for (size_t j = 0; j < list->len; j++)
                free(list->items[j]);
        }
    }
    targets_unref(config->targets);
    for (size_t i = 0; i < config->lanes_len; i++)
        free(config->lanes[i].database);
    free(config->postgres.password);
    free(config);
}

static bool lists_equal(const struct config_list *a, const struct config_list *b)
{
    if (a->len != b->len)
        return false;
    for (size_t i = 0; i < a->len; i++)
        if (strcmp(a->items[i], b->items[i]) != 0)
            return false;
    return true;
}

static bool values_equal(const struct config *a, const struct config *b, const struct config_key *key)
{
    switch (key->type) {
    case CONFIG_INTEGER:
        return *(int64_t *)field_of(a, key) == *(int64_t *)field_of(b, key);
    case CONFIG_BOOL:
        return *(bool *)field_of(a, key) == *(bool *)field_of(b, key);
    case CONFIG_TEXT:
    case CONFIG_ADDRESS:
        return strcmp(*(char **)field_of(a, key), *(char **)field_of(b, key)) == 0;
    case CONFIG_ADDRESSES:
    case CONFIG_PATHS:
        return lists_equal(field_of(a, key), field_of(b, key));
    case CONFIG_TARGETS:
    case CONFIG_FANOUT:
        return true;
    }
    return true;
}

bool config_needs_restart(const struct config *old, const struct config *new, char *buf, size_t buf_bytes)
{
    size_t len = 0;

    buf[0] = '\0';
    for (size_t i = 0; i < ARRAY_LEN(keys); i++)
        if (!keys[i].reloads && !values_equal(old, new, &keys[i]) && len < buf_bytes)
            len += (size_t)snprintf(buf + len, buf_bytes - len, "%s%s", len ? " " : "", keys[i].name);
    if (!config_lanes_equal(old, new) && len < buf_bytes)
        len += (size_t)snprintf(buf + len, buf_bytes - len, "%stargets fanout", len ? " " : "");
    return len > 0;
}
