#include "lib/id.h"

#include <assert.h>
#include <stdint.h>
#include <sys/random.h>

#include "lib/clock.h"

#define TIME_CHARS 10

static const char alphabet[] = "0123456789ABCDEFGHJKMNPQRSTVWXYZ";

void id_new(char ret_id[ID_LEN + 1])
{
    uint8_t random[ID_LEN - TIME_CHARS];
    uint64_t time = (uint64_t)clock_unix_ms();

    for (int i = TIME_CHARS - 1; i >= 0; i--, time >>= 5)
        ret_id[i] = alphabet[time & 31];
    assert(getrandom(random, sizeof(random), 0) == sizeof(random));
    for (int i = 0; i < ID_LEN - TIME_CHARS; i++)
        ret_id[TIME_CHARS + i] = alphabet[random[i] & 31];
    ret_id[ID_LEN] = '\0';
}
