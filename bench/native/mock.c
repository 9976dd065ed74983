/* mock.c - a fast stand-in for an OpenAI-compatible engine. One thread, epoll, keep-alive, prebuilt answers.
 *
 *   mock PORT [MODEL]
 *
 * POST (any path)
 *   "stream": true -> SSE, chunked: a role chunk, "max_tokens" (default 64) token chunks, each in a send() of its own,
 *                     one finish and one usage chunk, [DONE]. "seed" is the time between token chunks in microseconds
 *                     (0: as fast as the peer takes them). Each token's content is "T" and CLOCK_MONOTONIC in
 *                     nanoseconds (16 digits), so that the load generator can tell how long the proxy held each chunk.
 *   otherwise      -> a fixed JSON answer of about 600 bytes.
 *   "mock_fault": 1 -> an answer with status 500; 2 -> the connection is reset before the first byte of an answer;
 *                 3 -> a stream is reset after half of its tokens. Soak tests send these.
 * GET /v1/models, /health, /metrics, anything else -> small fixed answers.
 */
#define _GNU_SOURCE
#include "mock_answers.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define MAX_FD 8192
#define OUT_CAPACITY 65536
#define IN_CAPACITY 65536
#define EVENTS 512

enum fault { FAULT_NONE = 0, FAULT_STATUS_500 = 1, FAULT_RESET_EARLY = 2, FAULT_RESET_MIDWAY = 3 };

typedef struct {
    int fd, used;
    char *in;
    size_t in_length, in_capacity;
    char *out; /* bytes that did not fit the socket */
    size_t out_length, out_offset;
    int streaming, active_index;
    long tokens_left, tokens_until_reset; /* the latter is -1 where the stream may end well */
    uint64_t pace_ns, due_ns;
    int watches_writable, closing;
} Connection;

static Connection connections[MAX_FD];
static int active[MAX_FD], active_count, epoll_fd;
static volatile sig_atomic_t stop;
static unsigned long long request_count, stream_count, chunk_count;

static void on_signal(int number) {
    (void)number;
    stop = 1;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void deactivate(Connection *c) {
    if (c->active_index >= 0) {
        int last = active[--active_count];
        active[c->active_index] = last;
        connections[last].active_index = c->active_index;
        c->active_index = -1;
    }
    c->streaming = 0;
}

static void drop(Connection *c) {
    deactivate(c);
    close(c->fd);
    c->used = 0;
    c->in_length = 0;
    c->out_length = c->out_offset = 0;
    c->watches_writable = 0;
    c->closing = 0;
}

/* Drops the connection the way a crashed engine does: the peer sees a reset and not a clean end. */
static void reset(Connection *c) {
    struct linger now = {.l_onoff = 1, .l_linger = 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    drop(c);
}

static void watch_writable(Connection *c, int on) {
    if (c->watches_writable == on)
        return;
    c->watches_writable = on;
    struct epoll_event e = {.events = EPOLLIN | (on ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(epoll_fd, EPOLL_CTL_MOD, c->fd, &e);
}

static int is_flushed(const Connection *c) {
    return c->out_length == c->out_offset;
}

/* Sends or queues; -1 when the connection is dead or its peer too slow. */
static int put(Connection *c, const char *bytes, size_t n) {
    if (is_flushed(c)) {
        c->out_length = c->out_offset = 0;
        ssize_t sent = send(c->fd, bytes, n, MSG_NOSIGNAL | MSG_DONTWAIT);
        if (sent < 0) {
            if (errno != EAGAIN)
                return -1;
            sent = 0;
        }
        if ((size_t)sent == n)
            return 0;
        bytes += sent;
        n -= (size_t)sent;
    }
    if (!c->out && !(c->out = malloc(OUT_CAPACITY)))
        return -1;
    if (c->out_offset) {
        memmove(c->out, c->out + c->out_offset, c->out_length - c->out_offset);
        c->out_length -= c->out_offset;
        c->out_offset = 0;
    }
    if (c->out_length + n > OUT_CAPACITY)
        return -1;
    memcpy(c->out + c->out_length, bytes, n);
    c->out_length += n;
    watch_writable(c, 1);
    return 0;
}

static int put_text(Connection *c, const Text *text) {
    return put(c, text->bytes, text->length);
}

/* Finds a field of the JSON body and skips to its value; NULL if it is not there. */
static const char *value_of(const char *body, size_t n, const char *name) {
    const char *p = memmem(body, n, name, strlen(name));
    if (!p)
        return NULL;
    p += strlen(name);
    while (*p == ' ' || *p == ':')
        p++;
    return p;
}

static long number_of(const char *body, size_t n, const char *name, long fallback) {
    const char *p = value_of(body, n, name);
    return p && *p >= '0' && *p <= '9' ? strtol(p, NULL, 10) : fallback;
}

/* Sends the next chunk of a stream, or its end; -1 when that dropped the connection. */
static int step_stream(Connection *c, uint64_t now) {
    if (!is_flushed(c))
        return 0;
    if (c->tokens_left == c->tokens_until_reset) {
        reset(c);
        return -1;
    }
    if (c->tokens_left == 0) {
        deactivate(c);
        if (put_text(c, &stream_tail) < 0) {
            drop(c);
            return -1;
        }
        return 0;
    }
    char *digit = stream_token.bytes + timestamp_offset + TIMESTAMP_DIGITS - 1;
    for (int i = 0; i < TIMESTAMP_DIGITS; i++) {
        *digit-- = (char)('0' + now % 10);
        now /= 10;
    }
    c->tokens_left--;
    chunk_count++;
    c->due_ns += c->pace_ns;
    if (put_text(c, &stream_token) < 0) {
        drop(c);
        return -1;
    }
    return 0;
}

static int start_stream(Connection *c, const char *body, size_t n, enum fault fault) {
    stream_count++;
    c->streaming = 1;
    c->tokens_left = number_of(body, n, "\"max_tokens\"", 64);
    c->tokens_until_reset = fault == FAULT_RESET_MIDWAY ? c->tokens_left / 2 : -1;
    c->pace_ns = (uint64_t)number_of(body, n, "\"seed\"", 0) * 1000;
    c->due_ns = now_ns() + c->pace_ns;
    c->active_index = active_count;
    active[active_count++] = c->fd;
    return put_text(c, &stream_head);
}

/* Answers one whole request that lies at the start of the input; -1 when that dropped the connection. */
static int answer(Connection *c, size_t head_length, size_t total) {
    int result;
    request_count++;
    if (c->in[0] == 'P') {
        const char *body = c->in + head_length;
        size_t n = total - head_length;
        const char *stream = value_of(body, n, "\"stream\"");
        enum fault fault = (enum fault)number_of(body, n, "\"mock_fault\"", FAULT_NONE);
        if (fault == FAULT_RESET_EARLY) {
            reset(c);
            return -1;
        }
        if (fault == FAULT_STATUS_500)
            result = put_text(c, &answer_error);
        else if (stream && *stream == 't')
            result = start_stream(c, body, n, fault);
        else
            result = put_text(c, &answer_json);
    } else if (!strncmp(c->in, "GET /v1/models", 14))
        result = put_text(c, &answer_models);
    else if (!strncmp(c->in, "GET /health", 11))
        result = put_text(c, &answer_health);
    else if (!strncmp(c->in, "GET /metrics", 12))
        result = put_text(c, &answer_metrics);
    else
        result = put_text(c, &answer_misc);
    if (result < 0)
        drop(c);
    return result;
}

/* The bytes of the request at the start of the input, or 0 while it is not all there. */
static size_t request_length(Connection *c, size_t *head_length) {
    char *end = memmem(c->in, c->in_length, "\r\n\r\n", 4);
    if (!end)
        return 0;
    *head_length = (size_t)(end - c->in) + 4;
    *end = 0; /* so that the searches below end with the head */
    const char *length = strcasestr(c->in, "\r\ncontent-length:");
    const char *encoding = strcasestr(c->in, "\r\ntransfer-encoding:");
    int chunked = encoding && !strncasecmp(encoding + 20 + (encoding[20] == ' '), "chunked", 7);
    if (strcasestr(c->in, "\r\nconnection: close"))
        c->closing = 1;
    size_t total = *head_length + (length ? strtoul(length + 17, NULL, 10) : 0);
    *end = '\r';
    if (chunked) {
        char *last = memmem(c->in + *head_length - 2, c->in_length - *head_length + 2, "\r\n0\r\n\r\n", 7);
        return last ? (size_t)(last - c->in) + 7 : 0;
    }
    return c->in_length < total ? 0 : total;
}

/* Answers what has arrived, up to and including the first stream. */
static void process(Connection *c) {
    while (!c->streaming && c->in_length) {
        size_t head_length, total;
        c->in[c->in_length] = 0;
        total = request_length(c, &head_length);
        if (!total || answer(c, head_length, total) < 0)
            return;
        memmove(c->in, c->in + total, c->in_length - total);
        c->in_length -= total;
        if (c->closing && !c->streaming && is_flushed(c)) {
            drop(c);
            return;
        }
    }
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        if (fd >= MAX_FD) {
            close(fd);
            continue;
        }
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        Connection *c = &connections[fd];
        c->fd = fd;
        c->used = 1;
        c->in_length = c->out_length = c->out_offset = 0;
        c->watches_writable = c->closing = c->streaming = 0;
        c->active_index = -1;
        struct epoll_event e = {.events = EPOLLIN, .data.fd = fd};
        epoll_ctl(epoll_fd, EPOLL_CTL_ADD, fd, &e);
    }
}

static void on_writable(Connection *c) {
    ssize_t sent = send(c->fd, c->out + c->out_offset, c->out_length - c->out_offset, MSG_NOSIGNAL | MSG_DONTWAIT);
    if (sent < 0 && errno != EAGAIN) {
        drop(c);
        return;
    }
    if (sent > 0)
        c->out_offset += (size_t)sent;
    if (is_flushed(c)) {
        c->out_offset = c->out_length = 0;
        watch_writable(c, 0);
    }
}

static void on_readable(Connection *c) {
    if (c->in_capacity - c->in_length < 16385) {
        size_t capacity = c->in_capacity ? c->in_capacity * 2 : IN_CAPACITY;
        char *grown = realloc(c->in, capacity + 1);
        if (!grown) {
            drop(c);
            return;
        }
        c->in = grown;
        c->in_capacity = capacity;
    }
    ssize_t got = recv(c->fd, c->in + c->in_length, c->in_capacity - c->in_length - 1, 0);
    if (got == 0 || (got < 0 && errno != EAGAIN)) {
        drop(c);
    } else if (got > 0) {
        c->in_length += (size_t)got;
        process(c);
    }
}

/* Milliseconds until the next chunk of any stream is due; -1 when none is. */
static int wait_ms(void) {
    uint64_t now = now_ns(), next = UINT64_MAX;
    for (int i = 0; i < active_count; i++) {
        const Connection *c = &connections[active[i]];
        if (is_flushed(c) && c->due_ns < next)
            next = c->due_ns;
    }
    if (!active_count || next == UINT64_MAX)
        return -1;
    if (next <= now)
        return 0;
    int ms = (int)((next - now) / 1000000);
    return ms ? ms : 1;
}

static void step_due_streams(void) {
    uint64_t now = now_ns();
    for (int i = active_count - 1; i >= 0; i--) {
        if (i >= active_count)
            continue;
        Connection *c = &connections[active[i]];
        if (c->due_ns > now || step_stream(c, now_ns()) < 0 || c->streaming)
            continue;
        if (c->closing && is_flushed(c))
            drop(c);
        else if (c->in_length)
            process(c);
    }
}

static int listen_on(int port) {
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 4096)) {
        perror("mock: bind");
        exit(1);
    }
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &e);
    return listener;
}

int main(int argc, char **argv) {
    struct rlimit files;
    struct epoll_event events[EVENTS];
    build_answers(argc > 2 ? argv[2] : "mock");
    signal(SIGPIPE, SIG_IGN);
    signal(SIGTERM, on_signal);
    signal(SIGINT, on_signal);
    if (!getrlimit(RLIMIT_NOFILE, &files)) {
        files.rlim_cur = files.rlim_max;
        setrlimit(RLIMIT_NOFILE, &files);
    }
    epoll_fd = epoll_create1(0);
    int listener = listen_on(argc > 1 ? atoi(argv[1]) : 9100);
    while (!stop) {
        int n = epoll_wait(epoll_fd, events, EVENTS, wait_ms());
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == listener) {
                accept_all(listener);
                continue;
            }
            Connection *c = &connections[events[i].data.fd];
            if (c->used && events[i].events & EPOLLOUT)
                on_writable(c);
            if (c->used && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR))
                on_readable(c);
        }
        step_due_streams();
    }
    fprintf(stderr, "mock: requests=%llu streams=%llu chunks=%llu\n", request_count, stream_count, chunk_count);
    return 0;
}
