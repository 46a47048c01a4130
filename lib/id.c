#include "lib/id.h"

#include <assert.h>
#include <string.h>
#include <sys/random.h>

#include "lib/clock.h"

#define TIME_CHARS 10

static const char alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

static void write_time(char *id, int64_t unix_ms)
{
    uint64_t time = (uint64_t)unix_ms;

    for (int i = TIME_CHARS - 1; i >= 0; i--, time >>= 5)
        id[i] = alphabet[time & 31];
}

void id_floor(int64_t unix_ms, char ret_id[ID_LEN + 1])
{
    memset(ret_id, alphabet[0], ID_LEN);
    write_time(ret_id, unix_ms);
    ret_id[ID_LEN] = '\0';
}

void id_new(char ret_id[ID_LEN + 1])
{
    uint8_t random[ID_LEN - TIME_CHARS];

    write_time(ret_id, clock_unix_ms());
    assert(getrandom(random, sizeof(random), 0) == sizeof(random));
    for (int i = 0; i < ID_LEN - TIME_CHARS; i++)
        ret_id[TIME_CHARS + i] = alphabet[random[i] & 31];
    ret_id[ID_LEN] = '\0';
}
