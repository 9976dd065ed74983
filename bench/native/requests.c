/* requests.c - what the load generator sends and what must come back. */
#define _GNU_SOURCE
#include "requests.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define HEAD_CAPACITY 4096

Request requests[MAX_BODIES];
int request_kinds;

static char *read_body(const char *file, size_t *length) {
    FILE *f = fopen(file, "rb");
    long size;
    if (!f || fseek(f, 0, SEEK_END) || (size = ftell(f)) < 0) {
        perror(file);
        return NULL;
    }
    rewind(f);
    char *body = malloc((size_t)size + 1);
    *length = body ? fread(body, 1, (size_t)size, f) : 0;
    fclose(f);
    if (!body || *length != (size_t)size) {
        fprintf(stderr, "%s: could not be read\n", file);
        free(body);
        return NULL;
    }
    return body;
}

int add_request(double share, const char *expect_text, const char *body_file, const char *path, int port,
                const char *extra_headers) {
    size_t body_length;
    char *body;
    if (request_kinds == MAX_BODIES || !(body = read_body(body_file, &body_length)))
        return -1;
    Request *r = &requests[request_kinds++];
    r->share = share;
    r->body_length = body_length;
    if (!expect_text || !strcmp(expect_text, "good"))
        r->expect = EXPECT_GOOD;
    else if (!strcmp(expect_text, "cut"))
        r->expect = EXPECT_CUT;
    else if (!strcmp(expect_text, "any"))
        r->expect = EXPECT_ANY;
    else
        r->expect = EXPECT_STATUS;
    r->status = r->expect == EXPECT_STATUS ? atoi(expect_text) : 200;
    for (int close = 0; close < 2; close++) {
        r->bytes[close] = malloc(HEAD_CAPACITY + body_length);
        if (!r->bytes[close])
            return -1;
        int head =
            snprintf(r->bytes[close], HEAD_CAPACITY,
                     "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nAccept: */*\r\nContent-Type: application/json\r\n"
                     "User-Agent: loadgen\r\n%s%s%sContent-Length: %zu\r\n\r\n",
                     path, port, strcasestr(extra_headers, "authorization:") ? "" : "Authorization: Bearer sk-test\r\n",
                     extra_headers, close ? "Connection: close\r\n" : "", body_length);
        if (head < 0 || head >= HEAD_CAPACITY)
            return -1;
        memcpy(r->bytes[close] + head, body, body_length);
        r->length[close] = (size_t)head + body_length;
    }
    free(body);
    return 0;
}

const Request *pick_request(double chance) {
    for (int i = 1; i < request_kinds; i++) {
        if (chance < requests[i].share)
            return &requests[i];
        chance -= requests[i].share;
    }
    return &requests[0];
}

int is_expected_status(const Request *request, int status) {
    if (request->expect == EXPECT_ANY)
        return 1;
    return request->status < 10 ? status / 100 == request->status : status == request->status;
}
