/* mock_answers.h - the prebuilt answers of the mock engine. */
#ifndef MOCK_ANSWERS_H
#define MOCK_ANSWERS_H
#include <stddef.h>

#define TIMESTAMP_DIGITS 16

typedef struct {
    char bytes[4096];
    size_t length;
} Text;

/* Whole answers. */
extern Text answer_json, answer_models, answer_health, answer_metrics, answer_misc, answer_error;
/* A stream: the head with its first event, one token (whose digits at timestamp_offset are overwritten), the end. */
extern Text stream_head, stream_token, stream_tail;
extern size_t timestamp_offset;

void build_answers(const char *model_name);
#endif
