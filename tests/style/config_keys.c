/* config_keys - prints the table of configuration keys for config_documented.py: name, type, default and
 * unit, separated by tabs */
#include "lib/config.h"

#include <stdio.h>

static const char *type_name(enum config_type type)
{
    switch (type) {
    case CONFIG_INTEGER:
        return "integer";
    case CONFIG_BOOL:
        return "bool";
    case CONFIG_TEXT:
    case CONFIG_ADDRESS:
        return "text";
    case CONFIG_ADDRESSES:
    case CONFIG_PATHS:
        return "list";
    case CONFIG_TARGETS:
    case CONFIG_FANOUT:
        return "json";
    }
    return "?";
}

int main(void)
{
    size_t len;
    const struct config_key *keys = config_keys(&len);

    for (size_t i = 0; i < len; i++)
        printf("%s\t%s\t%s\t%s\n", keys[i].name, type_name(keys[i].type), keys[i].default_value,
               keys[i].unit);
    return 0;
}
