/* replay - runs a fuzz target over the files given, or the files in the directories given; for builds without
 * libFuzzer
 */
#include <dirent.h>
#include <stdio.h>

#include "tests/fuzz/fuzz.h"

static int replay(const char *path)
{
    FILE *file = fopen(path, "rb");
    size_t room = 1 << 20;
    uint8_t *data = malloc(room), *exact;
    size_t len;

    if (!file || !data) {
        perror(path);
        return 1;
    }
    len = fread(data, 1, room, file);
    fclose(file);
    /* No byte more than the input, so that a sanitizer sees a read behind its end. */
    exact = malloc(len ? len : 1);
    memcpy(exact, data, len);
    LLVMFuzzerTestOneInput(exact, len);
    free(exact);
    free(data);
    return 0;
}

int main(int argc, char **argv)
{
    int failed = 0, count = 0;

    for (int i = 1; i < argc; i++) {
        DIR *dir = opendir(argv[i]);
        struct dirent *entry;
        while (dir && (entry = readdir(dir))) {
            char path[4096];
            if (entry->d_name[0] == '.')
                continue;
            snprintf(path, sizeof(path), "%s/%s", argv[i], entry->d_name);
            failed |= replay(path);
            count++;
        }
        if (dir)
            closedir(dir);
        else
            failed |= replay(argv[i]), count++;
    }
    printf("%d inputs\n", count);
    return failed || count == 0;
}
