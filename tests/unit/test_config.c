#include "lib/config.h"
#include "tests/unit/configs.h"
#include "tests/unit/unit.h"

static void must_not_parse(const char *text, const char *message)
{
    struct config *config = NULL;
    struct error error;

    ck_assert_msg(config_parse("f", span_of(text), &config, &error) < 0, "%s", text);
    ck_assert_str_eq(error.text, message);
    ck_assert_ptr_null(config);
}

START_TEST(an_empty_object_is_all_defaults)
{
    struct config *config = must_parse("{}");

    ck_assert_str_eq(config->namespace, "counterd");
    ck_assert_int_eq(config->shards, 64);
    ck_assert_uint_eq(config->listen.udp.len, 1);
    ck_assert_str_eq(config->listen.udp.items[0], "127.0.0.1:8125");
    ck_assert_uint_eq(config->listen.local.len, 0);
    ck_assert_int_eq(config->redis.address.port, 6379);
    config_free(config);
}
END_TEST

START_TEST(reads_every_kind_of_key_between_comments)
{
    struct config *config =
        must_parse("// all\n{ \"shards\": 8, /* not\n \"shards\": 9 */ \"namespace\": \"a-b\"\n"
                   "  , \"listen\": {\"udp\": [\":1\", \"[::1]:2\"], \"http\": \"\","
                   "\"unix\": [\"/tmp//s\"]},\n"
                   "\"redis\": {\"url\": \"unix://u:p%40@/r.sock?db=3\"} } // end");

    ck_assert_int_eq(config->shards, 8);
    ck_assert_str_eq(config->namespace, "a-b");
    ck_assert_uint_eq(config->listen.udp.len, 2);
    ck_assert_str_eq(config->listen.udp.items[1], "[::1]:2");
    ck_assert_str_eq(config->listen.http, "");
    ck_assert_str_eq(config->listen.local.items[0], "/tmp//s");
    ck_assert_str_eq(config->redis.address.path, "/r.sock");
    ck_assert_uint_eq(config->redis.address.database, 3);
    config_free(config);
}
END_TEST

START_TEST(every_mistake_is_named_with_its_place)
{
    static const struct {
        const char *text, *message;
    } cases[] = {
        {"", "f: line 1, column 1: not JSON (a missing or extra comma, quote or bracket?)"},
        {"{\n  \"shards\": 8\n  \"workers\": 1\n}",
         "f: line 3, column 3: not JSON (a missing or extra comma, quote or bracket?)"},
        {"[]", "f: holds a list; it takes an object: { ... }"},
        {"{} /* ", "f: a comment /* is not closed"},
        {"{\"shard\": 8}",
         "f: 'shard' is not a key; allowed here: namespace shards workers listen coalesce_ms keys_max "
         "history_bytes spool_dir spool_bytes redis idempotency postgres flush targets fanout"},
        {"{\"idempotency\": {\"vector\": 1}}", "f: 'idempotency.vector' is a number; it takes true or false"},
        {"{\"redis\": {\"uri\": \"\"}}",
         "f: 'redis.uri' is not a key; allowed in 'redis': url password_file timeout_ms wait_replicas"},
        {"{\"shards\": \"8\"}", "f: 'shards' is a string; it takes a whole number from 1 to 1024"},
        {"{\"shards\": 0}", "f: 'shards' is 0; it takes a whole number from 1 to 1024"},
        {"{\"shards\": 1.5}", "f: 'shards' is 1.5; it takes a whole number from 1 to 1024"},
        {"{\"shards\": 1e300}", "f: 'shards' is 1e+300; it takes a whole number from 1 to 1024"},
        {"{\"redis.url\": \"redis://x\", \"redis\": {\"url\": \"redis://y\"}}",
         "f: 'redis.url' is not a key; allowed here: namespace shards workers listen coalesce_ms keys_max "
         "history_bytes spool_dir spool_bytes redis idempotency postgres flush targets fanout"},
        {"{\"shards\": 8, \"shards\": 8}", "f: 'shards' is given twice"},
        {"{\"listen\": []}", "f: 'listen' is a list; it takes an object"},
        {"{\"listen\": {\"udp\": \":1\"}}",
         "f: 'listen.udp' is a string; it takes a list of strings, [] for none"},
        {"{\"listen\": {\"udp\": [\":1\", 2]}}", "f: 'listen.udp[1]' is a number; it takes a string"},
        {"{\"listen\": {\"udp\": [\"8125\"]}}",
         "f: 'listen.udp[0]': '8125' is not an address; write host:port, "
         "[v6 address]:port, or :port for every address"},
        {"{\"listen\": {\"unix\": [\"s\"]}}",
         "f: 'listen.unix[0]': 's' is not the path of a socket; write an absolute "
         "path of at most 107 bytes"},
        {"{\"listen\": {\"udp\": [], \"tcp\": []}}",
         "f: 'listen' has no udp, tcp or unix address; counterd would hear nothing"},
        {"{\"namespace\": \"a b\"}", "f: 'namespace' is 'a b'; it takes letters, digits, '.', '_' and '-'"},
        {"{\"namespace\": \"\"}", "f: 'namespace' has 0 bytes; it takes 1 to 64"},
        {"{\"redis\": {\"url\": \"http://x\"}}",
         "f: 'redis.url': not a Redis URL; write redis://[user:password@]host[:port][/database] or "
         "unix://[user:password@]/path.sock[?db=database]"},
        {"{\"spool_dir\": \"s\"}", "f: 'spool_dir' is 's'; it takes an absolute path"},
        {"{\"shards\": 0, \"workers\": true}",
         "f: 'shards' is 0; it takes a whole number from 1 to 1024\n"
         "f: 'workers' is true or false; it takes a whole number from 0 to 64"},
    };

    for (size_t i = 0; i < ARRAY_LEN(cases); i++)
        must_not_parse(cases[i].text, cases[i].message);
}
END_TEST

START_TEST(many_mistakes_do_not_overrun_the_message)
{
    char text[20000] = "{";
    struct config *config = NULL;
    struct error error;

    for (int i = 0; i < 1000; i++)
        strcat(text, "\"mistake\": 1,");
    strcat(text, "\"last\": 1}");
    ck_assert_int_lt(config_parse("f", span_of(text), &config, &error), 0);
    ck_assert_uint_lt(strlen(error.text), sizeof(error.text));
}
END_TEST

START_TEST(a_nul_byte_is_no_end)
{
    struct config *config = NULL;
    struct error error;

    ck_assert_int_lt(config_parse("f", (struct span){"{}\0{", 4}, &config, &error), 0);
    ck_assert_str_eq(error.text, "f: holds a NUL byte; it takes JSON text");
}
END_TEST

START_TEST(tells_what_a_reload_can_not_change)
{
    struct config *old = must_parse("{}");
    struct config *same = must_parse("{\"coalesce_ms\": 5, \"keys_max\": 7}");
    struct config *other = must_parse("{\"shards\": 8, \"listen\": {\"udp\": [\":1\"]}}");
    char names[128];

    ck_assert(!config_needs_restart(old, same, names, sizeof(names)));
    ck_assert(config_needs_restart(old, other, names, sizeof(names)));
    ck_assert_str_eq(names, "shards listen.udp");
    config_free(old);
    config_free(same);
    config_free(other);
}
END_TEST

START_TEST(takes_redis_urls_apart)
{
    static const struct {
        const char *url, *name, *user, *password;
    } good[] = {
        {"redis://h", "redis://h:6379/0", "", ""},
        {"redis://h:1/2", "redis://h:1/2", "", ""},
        {"redis://[::1]:1", "redis://[::1]:1/0", "", ""},
        {"redis://:p@h/", "redis://h:6379/0", "", "p"},
        {"redis://u:p%40%2f:@h:1/15", "redis://h:1/15", "u", "p@/:"},
        {"unix:///r.sock", "unix:///r.sock?db=0", "", ""},
        {"unix://u:p@/r.sock?db=3", "unix:///r.sock?db=3", "u", "p"},
    };
    static const char *const bad[] = {"",
                                      "redis://",
                                      "redis://h:x",
                                      "redis://h:99999",
                                      "redis://h/x",
                                      "redis://u@h",
                                      "redis://:p%4@h",
                                      "unix://r.sock",
                                      "unix:///r?x=1",
                                      "unix:///r?db=",
                                      "redis://[::1:2",
                                      "rediss://h"};
    struct redis_address address;
    struct error error;
    char name[512];

    for (size_t i = 0; i < ARRAY_LEN(good); i++) {
        ck_assert_int_eq(redis_address_parse(good[i].url, &address, &error), 0);
        redis_address_format(&address, name, sizeof(name));
        ck_assert_str_eq(name, good[i].name);
        ck_assert_str_eq(address.user, good[i].user);
        ck_assert_str_eq(address.password, good[i].password);
    }
    for (size_t i = 0; i < ARRAY_LEN(bad); i++)
        ck_assert_msg(redis_address_parse(bad[i], &address, &error) < 0, "%s", bad[i]);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, an_empty_object_is_all_defaults);
    tcase_add_test(tests, reads_every_kind_of_key_between_comments);
    tcase_add_test(tests, every_mistake_is_named_with_its_place);
    tcase_add_test(tests, many_mistakes_do_not_overrun_the_message);
    tcase_add_test(tests, a_nul_byte_is_no_end);
    tcase_add_test(tests, tells_what_a_reload_can_not_change);
    tcase_add_test(tests, takes_redis_urls_apart);
}

int main(void)
{
    return unit_run("config", add_tests);
}
