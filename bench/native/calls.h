/* calls.h - the connections of the load generator and the calls on them. */
#ifndef CALLS_H
#define CALLS_H
#include "requests.h"
#include "samples.h"

enum state { HEAD, BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER, UNTIL_CLOSE };
enum leave { STAY, LEAVE_BODY, LEAVE_SENT, LEAVE_TOKEN, LEAVE_KINDS };

typedef struct {
    int fd, busy, status, closing;
    enum state state;
    char *in;
    size_t in_length, in_capacity, offset;
    long left; /* bytes of the body or chunk */
    char *payload;
    size_t payload_length, payload_capacity, scanned;
    int tokens;
    uint64_t start_ns, leave_ns;
    const Request *request;
    enum leave leave;
} Connection;

typedef struct {
    int port, connections, tokens, is_mixed; /* is_mixed: not all calls are alike */
    double seconds, warm_seconds, rate, close_share, leave_share[LEAVE_KINDS], progress_seconds;
    long max_requests;
    const char *path;
    char headers[2048];
} Options;

typedef struct {
    Samples latency, first_token, chunk;
    long done, done_all, expected, errors, sent, ended, tokens, reconnects, dropped, left_by[LEAVE_KINDS], status[600];
    char first_error[400];
} Counts;

extern Options options;
extern Counts counts;
extern Connection *connections;
extern uint64_t measure_ns, end_ns; /* calls that end between the two are measured */
extern int epoll_fd, free_count;

uint64_t now_ns(void);
/* Opens all connections; exits where the port does not answer. */
void open_connections(void);
/* Sends a request on a free connection, or queues its arrival. Open loop only. */
void arrive(uint64_t intended_ns);
void start_next(Connection *connection);
void on_readable(Connection *connection);
/* Ends the calls whose client goes away about now; returns whether more will. */
int leave_due_calls(void);
void forget_queued_arrivals(void);
int count_busy(void);
#endif
