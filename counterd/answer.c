#include "counterd/answer.h"

#include <cjson/cJSON.h>
#include <event2/buffer.h>
#include <event2/http.h>
#include <stdlib.h>

#include "lib/text.h"

static const char *reason_of(int code)
{
    switch (code) {
    case HTTP_OK:
        return "OK";
    case HTTP_BADREQUEST:
        return "Bad Request";
    case ANSWER_TOO_LARGE:
        return "Content Too Large";
    case ANSWER_UNSUPPORTED:
        return "Unsupported Media Type";
    case ANSWER_UNPROCESSABLE:
        return "Unprocessable Content";
    case ANSWER_TOO_MANY:
        return "Too Many Requests";
    default:
        return "Service Unavailable";
    }
}

bool tally_next_line(struct tally *tally, struct span *rest, struct span *ret_line)
{
    while (rest->len > 0) {
        *ret_line = text_take_line(rest);
        tally->line++;
        if (ret_line->len > 0)
            return true;
    }
    return false;
}

void tally_add(struct tally *tally, enum reject reject)
{
    if (reject == REJECT_NONE) {
        tally->accepted++;
        return;
    }
    tally->rejected++;
    if (tally->named_len == TALLY_NAMED_MAX)
        return;
    tally->named[tally->named_len].line = tally->line;
    tally->named[tally->named_len++].reject = reject;
}

static void add_counts(cJSON *json, const struct tally *tally)
{
    cJSON *list;

    cJSON_AddNumberToObject(json, "accepted", (double)tally->accepted);
    cJSON_AddNumberToObject(json, "rejected", (double)tally->rejected);
    list = cJSON_AddArrayToObject(json, "rejects");
    for (size_t i = 0; i < tally->named_len; i++) {
        cJSON *item = cJSON_CreateObject();
        cJSON_AddNumberToObject(item, "line", (double)tally->named[i].line);
        cJSON_AddStringToObject(item, "reason", reject_name(tally->named[i].reject));
        cJSON_AddItemToArray(list, item);
    }
}

static void send_json(struct evhttp_request *request, int code, cJSON *json)
{
    struct evkeyvalq *headers = evhttp_request_get_output_headers(request);
    struct evbuffer *body = evbuffer_new();
    char *text = cJSON_PrintUnformatted(json);

    if (body && text)
        evbuffer_add_printf(body, "%s\n", text);
    evhttp_add_header(headers, "Content-Type", "application/json");
    if (code == HTTP_SERVUNAVAIL || code == ANSWER_TOO_MANY)
        evhttp_add_header(headers, "Retry-After", "1");
    evhttp_send_reply(request, code, reason_of(code), body);
    if (body)
        evbuffer_free(body);
    free(text);
    cJSON_Delete(json);
}

void answer_stored(struct evhttp_request *request, const struct tally *tally, bool duplicate)
{
    cJSON *json = cJSON_CreateObject();

    add_counts(json, tally);
    if (duplicate)
        cJSON_AddTrueToObject(json, "duplicate");
    send_json(request, HTTP_OK, json);
}

void answer_error(struct evhttp_request *request, int code, const struct tally *tally, const char *why)
{
    cJSON *json = cJSON_CreateObject();

    if (tally)
        add_counts(json, tally);
    cJSON_AddStringToObject(json, "error", why);
    send_json(request, code, json);
}

struct span answer_body(struct evhttp_request *request)
{
    struct evbuffer *body = evhttp_request_get_input_buffer(request);
    size_t len = evbuffer_get_length(body);

    return (struct span){len > 0 ? (const char *)evbuffer_pullup(body, -1) : "", len};
}

void answer_drop_body(struct evhttp_request *request)
{
    struct evbuffer *body = evhttp_request_get_input_buffer(request);

    evbuffer_drain(body, evbuffer_get_length(body));
}
