/* The second half of lib/metric.h: tags, sorted into the key. */
#include "lib/metric.h"
#include "lib/text.h"

struct tag {
    struct span name;
    struct span value; /* ptr NULL: a tag without a value */
};

/* A tag takes at least two bytes, ";a", and the key one. */
#define TAGS_MAX ((KEY_LEN_MAX - 1) / 2)

struct tag_set {
    struct tag tags[TAGS_MAX]; /* sorted by name, each name once */
    size_t len;
    bool too_many;
};

static int compare_names(struct span a, struct span b)
{
    size_t common = a.len < b.len ? a.len : b.len;
    int order = memcmp(a.ptr, b.ptr, common);

    return order ? order : (a.len > b.len) - (a.len < b.len);
}

static void put_tag(struct tag_set *set, const struct tag *tag)
{
    size_t low = 0, high = set->len;

    while (low < high) {
        size_t middle = (low + high) / 2;
        int order = compare_names(tag->name, set->tags[middle].name);
        if (order == 0) {
            set->tags[middle] = *tag;
            return;
        }
        if (order < 0)
            high = middle;
        else
            low = middle + 1;
    }
    if (set->len == TAGS_MAX) {
        set->too_many = true;
        return;
    }
    memmove(&set->tags[low + 1], &set->tags[low], (set->len - low) * sizeof(*tag));
    set->tags[low] = *tag;
    set->len++;
}

/* env:prod
 * ^^^ ^^^^   name and value, in either of which there is no ';', in the name no '=' */
static bool parse_tag(struct span text, struct tag *ret_tag)
{
    ret_tag->value = text;
    ret_tag->name = text_split(&ret_tag->value, ':');
    return ret_tag->name.len > 0 && !memchr(ret_tag->name.ptr, '=', ret_tag->name.len) &&
           !memchr(text.ptr, ';', text.len) && !text_has_forbidden(ret_tag->name) &&
           !(ret_tag->value.ptr && text_has_forbidden(ret_tag->value));
}

/* Bounded writing; once too long, it stays so. */
struct writer {
    char *buf;
    size_t len;
    bool full;
};

static void put(struct writer *writer, const char *ptr, size_t len)
{
    if (writer->full || len > KEY_LEN_MAX - writer->len) {
        writer->full = true;
        return;
    }
    if (len > 0)
        memcpy(writer->buf + writer->len, ptr, len);
    writer->len += len;
}

static enum reject any_canonical_key(const struct metric *metric, char buf[KEY_LEN_MAX], size_t *ret_len)
{
    struct writer writer = {.buf = buf};
    struct tag_set set;
    struct span rest = metric->tags;

    set.len = 0;
    set.too_many = false;
    while (rest.ptr) {
        struct span text = text_split(&rest, ',');
        struct tag tag;
        if (text.len == 0)
            continue;
        if (!parse_tag(text, &tag))
            return REJECT_KEY;
        put_tag(&set, &tag);
    }
    put(&writer, metric->key.ptr, metric->key.len);
    for (size_t i = 0; i < set.len; i++) {
        put(&writer, ";", 1);
        put(&writer, set.tags[i].name.ptr, set.tags[i].name.len);
        if (set.tags[i].value.ptr)
            put(&writer, "=", 1);
        put(&writer, set.tags[i].value.ptr, set.tags[i].value.len);
    }
    if (writer.full || set.too_many)
        return REJECT_TOO_LONG;
    /* What separates tags is ASCII, so all are valid if the whole is. */
    if (!text_is_utf8(metric->tags))
        return REJECT_UTF8;
    *ret_len = writer.len;
    return REJECT_NONE;
}

/* Where a tag stands in the text; offsets, as no key with its tags is longer than KEY_LEN_MAX. */
struct plain_tag {
    uint8_t at, end;
    uint8_t name_end; /* the colon, or `end` */
};

#define PLAIN_TAGS_MAX 16

struct plain_tags {
    struct span text;
    struct plain_tag tags[PLAIN_TAGS_MAX];
    size_t len;
    bool sorted;
};

static struct span plain_name(const struct plain_tags *tags, size_t i)
{
    const struct plain_tag *tag = &tags->tags[i];

    return (struct span){tags->text.ptr + tag->at, (size_t)(tag->name_end - tag->at)};
}

/* The tag that began behind the one before is over; false when it is not plain. */
static bool end_tag(struct plain_tags *tags, size_t at, size_t name_end, size_t end)
{
    if (at == end || tags->len == PLAIN_TAGS_MAX)
        return false;
    tags->tags[tags->len++] = (struct plain_tag){(uint8_t)at, (uint8_t)end, (uint8_t)name_end};
    if (tags->len > 1) {
        int order = compare_names(plain_name(tags, tags->len - 2), plain_name(tags, tags->len - 1));
        tags->sorted = tags->sorted && order < 0;
        return order != 0;
    }
    return true;
}

/* env:prod,host:web1
 *    ^    ^    ^       only these marks are looked at; false when there is any that is not plain */
static bool find_plain_tags(struct plain_tags *tags)
{
    size_t at = 0, name_end = 0; /* of the current tag; name_end 0: no colon yet */
    size_t len = tags->text.len;

    for (size_t block = 0; block < len; block += TEXT_BLOCK) {
        for (unsigned marks = text_marks(tags->text, block, TEXT_TAGS); marks != 0; marks &= marks - 1) {
            size_t mark = block + (unsigned)__builtin_ctz(marks);
            char c = tags->text.ptr[mark];
            if (c == ':' && name_end == 0 && mark > at) {
                name_end = mark;
            } else if (c == ',') {
                if (!end_tag(tags, at, name_end ? name_end : mark, mark))
                    return false;
                at = mark + 1;
                name_end = 0;
            } else if (c != '=' || name_end == 0) {
                return false;
            }
        }
    }
    return end_tag(tags, at, name_end ? name_end : len, len);
}

/* By insertion: there are few. False when a name is there twice. */
static bool sort_plain_tags(struct plain_tags *tags)
{
    for (size_t i = 1; i < tags->len; i++) {
        struct plain_tag tag = tags->tags[i];
        struct span name = plain_name(tags, i);
        size_t to = i;
        for (; to > 0; to--) {
            int order = compare_names(plain_name(tags, to - 1), name);
            if (order == 0)
                return false;
            if (order < 0)
                break;
            tags->tags[to] = tags->tags[to - 1];
        }
        tags->tags[to] = tag;
    }
    return true;
}

/* env:prod,host:web1
 * ;env=prod;host=web1   the same bytes in the same places, when the tags are sorted already */
static void write_plain_tags(const struct plain_tags *tags, char *at)
{
    if (tags->sorted)
        memcpy(at + 1, tags->text.ptr, tags->text.len);
    for (size_t i = 0; i < tags->len; i++) {
        const struct plain_tag *tag = &tags->tags[i];
        if (!tags->sorted)
            memcpy(at + 1, tags->text.ptr + tag->at, (size_t)(tag->end - tag->at));
        at[0] = ';';
        if (tag->name_end < tag->end)
            at[1 + tag->name_end - tag->at] = '=';
        at += 1 + tag->end - tag->at;
    }
}

/* What nearly all tags are: ASCII, correct, none of them empty or there twice. False: they are not. */
static bool plain_canonical_key(const struct metric *metric, char *buf, size_t *ret_len)
{
    struct plain_tags tags;
    size_t len = metric->key.len + 1 + metric->tags.len;

    if (metric->tags.len == 0 || len > KEY_LEN_MAX)
        return false;
    tags.text = metric->tags;
    tags.len = 0;
    tags.sorted = true;
    if (!find_plain_tags(&tags) || (!tags.sorted && !sort_plain_tags(&tags)))
        return false;
    memcpy(buf, metric->key.ptr, metric->key.len);
    write_plain_tags(&tags, buf + metric->key.len);
    *ret_len = len;
    return true;
}

enum reject metric_canonical_key(const struct metric *metric, char buf[KEY_LEN_MAX], size_t *ret_len)
{
    if (plain_canonical_key(metric, buf, ret_len))
        return REJECT_NONE;
    return any_canonical_key(metric, buf, ret_len);
}
