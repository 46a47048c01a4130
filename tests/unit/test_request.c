#include "counterd/request.h"

#include <inttypes.h>
#include <stdio.h>

#include "tests/unit/unit.h"

static void must_be(struct request *request, const char *bytes, size_t len)
{
    struct span whole = request_end(request);

    ck_assert_uint_eq(whole.len, len);
    ck_assert_mem_eq(whole.ptr, bytes, len);
}

START_TEST(words)
{
    struct request request = {0};

    request_begin(&request);
    request_add_text(&request, "SET");
    request_add(&request, (struct span){"a\0b\r\n", 5});
    request_add_text(&request, "");
    must_be(&request, "*3\r\n$3\r\nSET\r\n$5\r\na\0b\r\n\r\n$0\r\n\r\n", 30);
    request_begin(&request);
    request_add_text(&request, "PING");
    must_be(&request, "*1\r\n$4\r\nPING\r\n", 14);
    request_done(&request);
}
END_TEST

START_TEST(numbers)
{
    static const int64_t values[] = {0, 7, -1, 10, -10, 9007199254740992, INT64_MAX, INT64_MIN};
    struct request request = {0};
    char expected[64], digits[32];

    for (size_t i = 0; i < ARRAY_LEN(values); i++) {
        int len = snprintf(digits, sizeof(digits), "%" PRId64, values[i]);
        int all = snprintf(expected, sizeof(expected), "*1\r\n$%d\r\n%s\r\n", len, digits);
        request_begin(&request);
        request_add_number(&request, values[i]);
        must_be(&request, expected, (size_t)all);
    }
    request_done(&request);
}
END_TEST

/* More than its first memory holds, in the middle of words of every length. */
START_TEST(grows)
{
    struct request request = {0};
    char word[300];
    struct span whole;
    const char *at;

    memset(word, 'x', sizeof(word));
    for (int round = 0; round < 2; round++) {
        request_begin(&request);
        for (size_t len = 0; len < sizeof(word); len++)
            request_add(&request, (struct span){word, len});
        whole = request_end(&request);
        at = whole.ptr + strlen("*300\r\n");
        ck_assert_mem_eq(whole.ptr, "*300\r\n", 6);
        for (size_t len = 0; len < sizeof(word); len++) {
            char *end;
            ck_assert_int_eq(*at, '$');
            ck_assert_uint_eq(strtoul(at + 1, &end, 10), len);
            ck_assert_mem_eq(end, "\r\n", 2);
            ck_assert_mem_eq(end + 2, word, len);
            ck_assert_mem_eq(end + 2 + len, "\r\n", 2);
            at = end + 2 + len + 2;
        }
        ck_assert_ptr_eq(at, whole.ptr + whole.len);
    }
    request_done(&request);
}
END_TEST

START_TEST(none)
{
    struct request request = {0};

    request_begin(&request);
    ck_assert_ptr_null(request_end(&request).ptr);
    request_done(&request);
}
END_TEST

static void add_tests(TCase *tests)
{
    tcase_add_test(tests, words);
    tcase_add_test(tests, numbers);
    tcase_add_test(tests, grows);
    tcase_add_test(tests, none);
}

int main(void)
{
    return unit_run("request", add_tests);
}
