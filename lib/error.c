#include "lib/error.h"

#include <stdarg.h>
#include <stdio.h>

#include "lib/text.h"

static void cut(char *text)
{
    text[text_whole(span_of(text))] = '\0';
}

int error_set(struct error *error, int code, const char *format, ...)
{
    va_list args;

    va_start(args, format);
    vsnprintf(error->text, sizeof(error->text), format, args);
    va_end(args);
    cut(error->text);
    return code;
}

int error_prefix(struct error *error, int code, const char *format, ...)
{
    char context[256];
    struct error inner = *error;
    va_list args;

    va_start(args, format);
    vsnprintf(context, sizeof(context), format, args);
    va_end(args);
    cut(context);
    snprintf(error->text, sizeof(error->text), "%s: %.*s", context,
             (int)(sizeof(error->text) - sizeof(context) - 3), inner.text);
    cut(error->text);
    return code;
}
