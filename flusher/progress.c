#include "flusher/progress.h"

#include <inttypes.h>
#include <stdio.h>
#include <unistd.h>

#define BAR_CHARS 40

bool progress_is_seen(void)
{
    return isatty(STDERR_FILENO);
}

void progress_draw(int64_t shards_done, int64_t shards)
{
    static const char full[] = "########################################";
    int filled = (int)(shards_done * BAR_CHARS / shards);

    fprintf(stderr, "\r[%.*s%*s] %" PRId64 "/%" PRId64 " shards", filled, full, BAR_CHARS - filled, "",
            shards_done, shards);
}

void progress_end(void)
{
    fputs("\r\033[K", stderr);
}
