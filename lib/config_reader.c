#include "lib/config_reader.h"

#include <cjson/cJSON.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

void mistake(struct reader *reader, const char *format, ...)
{
    char text[512];
    va_list args;
    size_t room = sizeof(reader->error->text) - reader->error_len;
    int len;

    va_start(args, format);
    vsnprintf(text, sizeof(text), format, args);
    va_end(args);
    len = snprintf(reader->error->text + reader->error_len, room, "%s%s: %s", reader->failed ? "\n" : "",
                   reader->name, text);
    reader->error_len += (size_t)len < room ? (size_t)len : room - 1;
    reader->failed = true;
}

const char *json_type_name(const cJSON *item)
{
    if (cJSON_IsString(item))
        return "a string";
    if (cJSON_IsNumber(item))
        return "a number";
    if (cJSON_IsArray(item))
        return "a list";
    if (cJSON_IsObject(item))
        return "an object";
    return cJSON_IsNull(item) ? "null" : "true or false";
}

void set_text(struct reader *reader, char **field, const char *text)
{
    free(*field);
    *field = strdup(text);
    if (!*field)
        mistake(reader, "out of memory");
}
