/* loadgen.c - bounded HTTP/1.1 load generator for OpenAI-style endpoints. One thread, epoll, keep-alive.
 *
 *   loadgen -p PORT -c CONNECTIONS -d SECONDS -w WARM_SECONDS -f BODY_FILE [-r RATE] [-n TOKENS] [-P PATH]
 *           [-m REQUESTS] [-H 'Name: value']... [-e SHARE:EXPECT:BODY_FILE]... [-x WHEN:SHARE]... [-k SHARE]
 *           [-i SECONDS]
 *
 * No -r: closed loop, every connection sends its next request when the last one was answered.
 * -r:    open loop, Poisson arrivals at RATE/s over at most CONNECTIONS connections; latency counts from the intended
 *        arrival (no coordinated omission).
 * -n N:  the answer is a stream of N tokens; each answer is checked (N tokens and [DONE]), the time to the first token
 *        and the time each chunk spent between mock and client are taken.
 * -m:    ends after so many requests.
 * -e:    that share of the requests has another body and must end in its own way: "good" like the others, with a status
 *        (404; 4 for any 4xx), with a stream cut without a false [DONE] ("cut"), or in whatever way ("any").
 * -x:    that share of the requests is left by the client: in the middle of the "body", soon after it was "sent", or
 *        after the first "token". One in two leaves with a reset, the others with an orderly close.
 * -k:    that share of the requests asks for "Connection: close".
 * -i:    prints {"ended": requests that are over} to stderr at this interval.
 * Prints one JSON object. The run is bounded whatever is asked: 60 s, or an hour with -m.
 */
#define _GNU_SOURCE
#include "calls.h"

#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

#define EVENTS 256
#define SECOND_NS 1000000000ull
#define GRACE_NS (3 * SECOND_NS) /* for calls in flight at the end */

static struct {
    double share;
    char *expect, *file;
} others[MAX_BODIES];
static int other_count;

static int parse_other(char *text) {
    char *expect = strchr(text, ':'), *file = expect ? strchr(expect + 1, ':') : NULL;
    if (!file || other_count == MAX_BODIES)
        return -1;
    *expect++ = *file++ = 0;
    others[other_count].share = atof(text);
    others[other_count].expect = expect;
    others[other_count++].file = file;
    options.is_mixed = 1;
    return 0;
}

static int parse_leave(char *text) {
    static const char *names[LEAVE_KINDS] = {[LEAVE_BODY] = "body", [LEAVE_SENT] = "sent", [LEAVE_TOKEN] = "token"};
    char *share = strchr(text, ':');
    if (!share)
        return -1;
    *share++ = 0;
    for (int i = STAY + 1; i < LEAVE_KINDS; i++)
        if (!strcmp(text, names[i])) {
            options.leave_share[i] = atof(share);
            options.is_mixed = 1;
            return 0;
        }
    return -1;
}

static int add_header(const char *header) {
    size_t used = strlen(options.headers);
    int n = snprintf(options.headers + used, sizeof options.headers - used, "%s\r\n", header);
    return n < 0 || (size_t)n >= sizeof options.headers - used ? -1 : 0;
}

static int parse_option(int option, char *value) {
    switch (option) {
    case 'p':
        options.port = atoi(value);
        return 0;
    case 'c':
        options.connections = atoi(value);
        return options.connections < 1 ? -1 : 0;
    case 'd':
        options.seconds = atof(value);
        return 0;
    case 'w':
        options.warm_seconds = atof(value);
        return 0;
    case 'r':
        options.rate = atof(value);
        return 0;
    case 'n':
        options.tokens = atoi(value);
        return 0;
    case 'P':
        options.path = value;
        return 0;
    case 'm':
        options.max_requests = atol(value);
        return 0;
    case 'H':
        return add_header(value);
    case 'e':
        return parse_other(value);
    case 'x':
        return parse_leave(value);
    case 'k':
        options.close_share = atof(value);
        options.is_mixed = 1;
        return 0;
    case 'i':
        options.progress_seconds = atof(value);
        return 0;
    default:
        return -1;
    }
}

static int parse_options(int argc, char **argv) {
    const char *body_file = NULL;
    int option, bound = 60;
    while ((option = getopt(argc, argv, "p:c:d:w:f:r:n:P:m:H:e:x:k:i:")) > 0) {
        if (option == 'f') {
            body_file = optarg;
        } else if (parse_option(option, optarg)) {
            fprintf(stderr, "loadgen: bad option -%c\n", option);
            return -1;
        }
        if (option == 'm')
            bound = 3600;
    }
    if (!body_file) {
        fprintf(stderr, "loadgen: -f BODY_FILE is missing\n");
        return -1;
    }
    options.seconds = fmin(options.seconds, bound);
    options.warm_seconds = fmin(options.warm_seconds, 30);
    if (add_request(1, NULL, body_file, options.path, options.port, options.headers))
        return -1;
    for (int i = 0; i < other_count; i++)
        if (add_request(others[i].share, others[i].expect, others[i].file, options.path, options.port, options.headers))
            return -1;
    return 0;
}

/* Lets the open loop's arrivals happen whose time has come; returns the milliseconds to the next one. */
static int let_arrive(uint64_t t, double *next_ns) {
    while (*next_ns <= (double)t && counts.sent < options.max_requests) {
        arrive((uint64_t)*next_ns);
        *next_ns += -log(1 - drand48()) / options.rate * 1e9;
    }
    double ms = (*next_ns - (double)t) / 1e6;
    return ms < 1 ? 0 : ms > 20 ? 20 : (int)ms;
}

static void print_progress(uint64_t t) {
    static uint64_t next_ns;
    if (options.progress_seconds && t >= next_ns) {
        next_ns = t + (uint64_t)(options.progress_seconds * 1e9);
        fprintf(stderr, "{\"ended\":%ld}\n", counts.ended);
        fflush(stderr);
    }
}

/* Returns the time at which the load ended. */
static uint64_t run_load(uint64_t begin_ns) {
    struct epoll_event events[EVENTS];
    double next_ns = (double)begin_ns;
    for (int i = 0; i < options.connections; i++)
        start_next(&connections[i]);
    for (;;) {
        uint64_t t = now_ns();
        int timeout_ms = 100;
        print_progress(t);
        if (options.rate && t < end_ns)
            timeout_ms = let_arrive(t, &next_ns);
        if (counts.sent >= options.max_requests && !count_busy())
            return t;
        if (t >= end_ns) {
            if (!count_busy() || t > end_ns + GRACE_NS)
                return end_ns;
            forget_queued_arrivals();
        }
        if (leave_due_calls() && timeout_ms > 1)
            timeout_ms = 1;
        int n = epoll_wait(epoll_fd, events, EVENTS, timeout_ms);
        for (int i = 0; i < n; i++)
            on_readable(events[i].data.ptr);
    }
}

static void print_report(double seconds) {
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double cpu_seconds = (double)usage.ru_utime.tv_sec + (double)usage.ru_utime.tv_usec / 1e6 +
                         (double)usage.ru_stime.tv_sec + (double)usage.ru_stime.tv_usec / 1e6;
    printf("{\"conc\":%d,\"rate\":%.1f,\"dur\":%.2f,\"done\":%ld,\"done_all\":%ld,\"sent\":%ld,\"errors\":%ld",
           options.connections, options.rate, seconds, counts.done, counts.done_all, counts.sent, counts.errors);
    printf(",\"left\":%d,\"dropped\":%ld,\"reconnects\":%ld,\"rps\":%.2f,\"tokens_per_s\":%.1f", count_busy(),
           counts.dropped, counts.reconnects, (double)counts.done / seconds, (double)counts.tokens / seconds);
    printf(",\"chunks\":%zu,\"chunks_per_s\":%.1f,\"first_error\":\"%s\",\"load_cpu\":%.3f", counts.chunk.count,
           (double)counts.chunk.count / seconds, counts.first_error, cpu_seconds);
    printf(",\"ended\":%ld,\"expected\":%ld,\"left_body\":%ld,\"left_sent\":%ld,\"left_token\":%ld", counts.ended,
           counts.expected, counts.left_by[LEAVE_BODY], counts.left_by[LEAVE_SENT], counts.left_by[LEAVE_TOKEN]);
    printf(",\"status\":{");
    const char *comma = "";
    for (int i = 0; i < 600; i++)
        if (counts.status[i]) {
            printf("%s\"%d\":%ld", comma, i, counts.status[i]);
            comma = ",";
        }
    printf("}");
    print_samples("lat_us", &counts.latency);
    print_samples("ttft_us", &counts.first_token);
    print_samples("chunk_us", &counts.chunk);
    printf("}\n");
}

int main(int argc, char **argv) {
    if (parse_options(argc, argv))
        return 1;
    signal(SIGPIPE, SIG_IGN);
    srand48(12345);
    open_connections();
    uint64_t begin_ns = now_ns();
    measure_ns = begin_ns + (uint64_t)(options.warm_seconds * 1e9);
    end_ns = measure_ns + (uint64_t)(options.seconds * 1e9);
    uint64_t ended_ns = run_load(begin_ns);
    double seconds = ((double)ended_ns - (double)measure_ns) / 1e9;
    print_report(seconds > 0 ? seconds : 1e-9);
    return 0;
}
