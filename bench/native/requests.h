/* requests.h - what the load generator sends and what must come back. */
#ifndef REQUESTS_H
#define REQUESTS_H
#include <stddef.h>

#define MAX_BODIES 16

/* EXPECT_GOOD: a whole answer with 200. EXPECT_STATUS: this status, or one of the class 4xx / 5xx for 4 / 5.
 * EXPECT_CUT: a stream that began and then broke, without a false [DONE]. EXPECT_ANY: whatever ends the call. */
enum expect { EXPECT_GOOD, EXPECT_STATUS, EXPECT_CUT, EXPECT_ANY };

typedef struct {
    enum expect expect;
    int status;
    double share;   /* of all requests */
    char *bytes[2]; /* the whole request: [0] keep-alive, [1] with "Connection: close" */
    size_t length[2], body_length;
} Request;

extern Request requests[MAX_BODIES];
extern int request_kinds;

/* Reads a body and adds it; `expect_text` is NULL or "good", a status, 4, 5, "cut" or "any". */
int add_request(double share, const char *expect_text, const char *body_file, const char *path, int port,
                const char *extra_headers);
/* One of the requests, by their shares; requests[0] takes what the others leave. `chance` is in 0..1. */
const Request *pick_request(double chance);
int is_expected_status(const Request *request, int status);
#endif
