/* mock_answers.c - what the mock engine says: every answer is built once, in the shape that vLLM gives it. */
#include "mock_answers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DATE_SERVER "date: Sat, 21 Nov 2026 12:00:00 GMT\r\nserver: uvicorn\r\n"
#define ID "\"id\":\"chatcmpl-0123456789abcdef0123456789abcdef\""

Text answer_json, answer_models, answer_health, answer_metrics, answer_misc, answer_error;
Text stream_head, stream_token, stream_tail;
size_t timestamp_offset;
static const char *model;

static void append(Text *text, const char *bytes) {
    size_t n = strlen(bytes);
    if (text->length + n >= sizeof text->bytes) {
        fprintf(stderr, "mock: the model's name is too long\n");
        exit(1);
    }
    memcpy(text->bytes + text->length, bytes, n + 1);
    text->length += n;
}

static void build_answer(Text *text, const char *status, const char *type, const Text *body) {
    char head[512];
    snprintf(head, sizeof head, "HTTP/1.1 %s\r\n" DATE_SERVER "content-length: %zu\r\ncontent-type: %s\r\n\r\n", status,
             body->length, type);
    append(text, head);
    append(text, body->bytes);
}

/* One SSE event of a stream as one HTTP chunk: everything after the model's name differs between the events. */
static void append_event(Text *text, const char *after_model) {
    Text event = {.length = 0};
    char size[32];
    append(&event, "data: {" ID ",\"object\":\"chat.completion.chunk\",\"created\":1763725200,\"model\":\"");
    append(&event, model);
    append(&event, after_model);
    append(&event, "}\n\n");
    snprintf(size, sizeof size, "%zx\r\n", event.length);
    append(text, size);
    append(text, event.bytes);
    append(text, "\r\n");
}

static void build_stream(void) {
    append(&stream_head, "HTTP/1.1 200 OK\r\n" DATE_SERVER
                         "content-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n");
    append_event(&stream_head, "\",\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},"
                               "\"logprobs\":null,\"finish_reason\":null}]");
    append_event(&stream_token, "\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"T0000000000000000\"},"
                                "\"logprobs\":null,\"finish_reason\":null}]");
    timestamp_offset = (size_t)(strstr(stream_token.bytes, "T0000") - stream_token.bytes) + 1;
    append_event(&stream_tail, "\",\"choices\":[{\"index\":0,\"delta\":{\"content\":\"\"},\"logprobs\":null,"
                               "\"finish_reason\":\"stop\",\"stop_reason\":null}]");
    append_event(&stream_tail, "\",\"choices\":[],\"usage\":{\"prompt_tokens\":250,\"total_tokens\":314,"
                               "\"completion_tokens\":64}");
    append(&stream_tail, "e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n");
}

static void build_whole_answers(void) {
    Text body = {.length = 0}, models = {.length = 0}, metrics = {.length = 0}, empty = {.length = 0};
    Text misc = {.length = 0}, error = {.length = 0};
    append(&body, "{" ID ",\"object\":\"chat.completion\",\"created\":1763725200,\"model\":\"");
    append(&body, model);
    append(
        &body,
        "\",\"choices\":[{\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"The quick brown fox jumps over "
        "the lazy dog. The quick brown fox jumps over the lazy dog. The quick brown fox jumps over.\",\"refusal\":"
        "null,\"annotations\":null,\"audio\":null,\"function_call\":null,\"tool_calls\":[]},\"logprobs\":null,"
        "\"finish_reason\":\"stop\",\"stop_reason\":null}],\"service_tier\":null,\"system_fingerprint\":null,\"usage\":"
        "{"
        "\"prompt_tokens\":250,\"total_tokens\":314,\"completion_tokens\":64,\"prompt_tokens_details\":null}}");
    build_answer(&answer_json, "200 OK", "application/json", &body);
    append(&models, "{\"object\":\"list\",\"data\":[{\"id\":\"");
    append(&models, model);
    append(&models, "\",\"object\":\"model\",\"created\":1763725200,\"owned_by\":\"vllm\",\"root\":\"");
    append(&models, model);
    append(&models, "\",\"parent\":null,\"max_model_len\":32768}]}");
    build_answer(&answer_models, "200 OK", "application/json", &models);
    build_answer(&answer_health, "200 OK", "text/plain", &empty);
    append(&metrics, "# TYPE vllm:num_requests_running gauge\nvllm:num_requests_running{model_name=\"mock\"} 0.0\n"
                     "# TYPE vllm:num_requests_waiting gauge\nvllm:num_requests_waiting{model_name=\"mock\"} 0.0\n"
                     "# TYPE vllm:gpu_cache_usage_perc gauge\nvllm:gpu_cache_usage_perc{model_name=\"mock\"} 0.0\n");
    build_answer(&answer_metrics, "200 OK", "text/plain; version=0.0.4", &metrics);
    append(&misc, "{}");
    build_answer(&answer_misc, "200 OK", "application/json", &misc);
    append(&error,
           "{\"error\":{\"message\":\"asked for by mock_fault\",\"type\":\"InternalServerError\",\"param\":null,"
           "\"code\":500}}");
    build_answer(&answer_error, "500 Internal Server Error", "application/json", &error);
}

void build_answers(const char *model_name) {
    model = model_name;
    build_whole_answers();
    build_stream();
}
