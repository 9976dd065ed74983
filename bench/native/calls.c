/* calls.c - the connections of the load generator and the calls on them. */
#define _GNU_SOURCE
#include "calls.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#define IN_CAPACITY 262144
#define QUEUE_CAPACITY (1u << 20)
#define TIMESTAMP_DIGITS 16
#define TOKEN_BYTES 19 /* a quote, T, the digits and one more byte */
#define LEAVE_BODY_MS 5.0
#define LEAVE_SENT_MS 20.0

Options options = {
    .connections = 1, .seconds = 3, .warm_seconds = 1, .max_requests = 20000000, .path = "/v1/chat/completions"};
Counts counts;
Connection *connections;
uint64_t measure_ns, end_ns;
int epoll_fd, free_count;
static int *free_list, leaving, leave_toggle;
static uint64_t *queue; /* intended arrivals that found no free connection */
static size_t queue_head, queue_tail;
static struct sockaddr_in address;

uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * 1000000000ull + (uint64_t)t.tv_nsec;
}

static void *grow(void *memory, size_t size) {
    void *grown = realloc(memory, size);
    if (!grown) {
        perror("loadgen");
        exit(2);
    }
    return grown;
}

/* Counts a failure; the first one is kept with what was received, made safe for JSON. */
static void fail(const Connection *c, const char *why) {
    counts.errors++;
    if (counts.first_error[0])
        return;
    size_t n = (size_t)snprintf(counts.first_error, sizeof counts.first_error, "%s status=%d ", why, c->status);
    for (size_t i = 0; i < c->payload_length && n < sizeof counts.first_error - 1 && i < 250; i++) {
        char ch = c->payload[i];
        counts.first_error[n++] = (ch < 32 || ch == '"' || ch == '\\' || ch > 126) ? ' ' : ch;
    }
}

static void open_connection(Connection *c) {
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) {
        perror("connect");
        exit(2);
    }
    struct epoll_event e = {.events = EPOLLIN, .data.ptr = c};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, c->fd, &e);
}

static void reopen(Connection *c) {
    close(c->fd);
    if (++counts.reconnects > 200000 + 2 * counts.ended) {
        fprintf(stderr, "too many reconnects\n");
        exit(3);
    }
    open_connection(c);
    c->in_length = c->offset = 0;
}

static enum leave pick_leave(void) {
    double chance = drand48();
    for (int i = STAY + 1; i < LEAVE_KINDS; i++) {
        if (chance < options.leave_share[i])
            return (enum leave)i;
        chance -= options.leave_share[i];
    }
    return STAY;
}

static void start(Connection *c, uint64_t start_ns) {
    c->busy = 1;
    c->state = HEAD;
    c->payload_length = c->scanned = 0;
    c->tokens = c->status = c->closing = 0;
    c->start_ns = start_ns;
    c->request = &requests[0];
    c->leave = STAY;
    if (options.is_mixed) {
        c->request = pick_request(drand48());
        c->closing = drand48() < options.close_share;
        c->leave = pick_leave();
    }
    size_t length = c->request->length[c->closing];
    if (c->leave == LEAVE_BODY)
        length -= c->request->body_length / 2;
    if (c->leave == LEAVE_BODY || c->leave == LEAVE_SENT) {
        leaving++;
        c->leave_ns = now_ns() + (uint64_t)((c->leave == LEAVE_BODY ? LEAVE_BODY_MS : LEAVE_SENT_MS) * 1e6 * drand48());
    }
    counts.sent++;
    for (size_t offset = 0; offset < length;) {
        ssize_t sent = send(c->fd, c->request->bytes[c->closing] + offset, length - offset, MSG_NOSIGNAL);
        if (sent < 0) {
            reopen(c);
            offset = 0;
        } else {
            offset += (size_t)sent;
        }
    }
}

/* The connection is free: gives it its next request, if there is one. */
void start_next(Connection *c) {
    uint64_t t = now_ns();
    if (!options.rate) {
        if (t < end_ns && counts.sent < options.max_requests)
            start(c, t);
    } else if (queue_head != queue_tail) {
        start(c, queue[queue_head++ % QUEUE_CAPACITY]);
    } else {
        free_list[free_count++] = (int)(c - connections);
    }
}

/* The call is over, in whatever way. */
static void end_call(Connection *c, int reopens) {
    if (c->leave == LEAVE_BODY || c->leave == LEAVE_SENT)
        leaving--;
    c->leave = STAY;
    c->busy = 0;
    counts.ended++;
    if (reopens)
        reopen(c);
    start_next(c);
}

/* The client goes away in the middle of its call. */
static void leave_call(Connection *c) {
    struct linger now = {.l_onoff = leave_toggle ^= 1, .l_linger = 0};
    setsockopt(c->fd, SOL_SOCKET, SO_LINGER, &now, sizeof now);
    counts.left_by[c->leave]++;
    end_call(c, 1);
}

/* Counts the tokens in what has been received and how long they travelled. */
static void scan_tokens(Connection *c, uint64_t t) {
    while (c->scanned < c->payload_length) {
        char *end = c->payload + c->payload_length;
        char *token = memmem(c->payload + c->scanned, c->payload_length - c->scanned, "\"T0", 3);
        if (!token && c->payload_length - c->scanned > 2)
            c->scanned = c->payload_length - 2;
        else if (token)
            c->scanned = (size_t)(token - c->payload);
        if (!token || token + TOKEN_BYTES > end)
            return;
        uint64_t sent_ns = 0;
        for (int i = 0; i < TIMESTAMP_DIGITS; i++)
            sent_ns = sent_ns * 10 + (uint64_t)(token[2 + i] - '0');
        if (t >= measure_ns)
            add_sample(&counts.chunk, t > sent_ns ? t - sent_ns : 0);
        if (c->tokens++ == 0 && c->start_ns >= measure_ns)
            add_sample(&counts.first_token, t - c->start_ns);
        c->scanned += TOKEN_BYTES;
    }
}

static void take_payload(Connection *c, const char *bytes, size_t n, uint64_t t) {
    if (c->payload_capacity < c->payload_length + n + 1) {
        c->payload_capacity = (c->payload_length + n + 1) * 2;
        c->payload = grow(c->payload, c->payload_capacity);
    }
    memcpy(c->payload + c->payload_length, bytes, n);
    c->payload_length += n;
    if (options.tokens)
        scan_tokens(c, t);
}

static int has_done(const Connection *c) {
    size_t tail = c->payload_length < 40 ? c->payload_length : 40;
    return tail && memmem(c->payload + c->payload_length - tail, tail, "[DONE]", 6);
}

/* Why the answer is wrong; NULL when it is as it must be. */
static const char *fault_of(const Connection *c) {
    if (!is_expected_status(c->request, c->status))
        return "bad status";
    if (c->request->expect == EXPECT_CUT)
        return has_done(c) ? "false [DONE]" : NULL;
    if (c->request->expect != EXPECT_GOOD)
        return NULL;
    if (options.tokens)
        return c->tokens != options.tokens || !has_done(c) ? "bad stream" : NULL;
    return c->payload_length < 100 ? "short body" : NULL;
}

static void finish(Connection *c, uint64_t t) {
    const char *fault = fault_of(c);
    if (c->leave == LEAVE_BODY)
        c->closing = 1; /* the rest of the body was never sent */
    counts.done_all++;
    counts.status[c->status > 0 && c->status < 600 ? c->status : 0]++;
    if (fault) {
        fail(c, fault);
    } else if (c->request->expect != EXPECT_GOOD) {
        counts.expected++;
    } else if (t >= measure_ns && t <= end_ns) {
        counts.done++;
        counts.tokens += c->tokens;
        add_sample(&counts.latency, t - c->start_ns);
    }
    end_call(c, c->closing);
}

static void on_closed(Connection *c) {
    if (!c->busy) {
        reopen(c);
    } else if (c->state == UNTIL_CLOSE) {
        c->closing = 1;
        finish(c, now_ns());
    } else {
        int cut = c->request->expect == EXPECT_CUT && c->status == 200 && !has_done(c);
        if (cut || c->request->expect == EXPECT_ANY)
            counts.expected++;
        else
            fail(c, "closed");
        end_call(c, 1);
    }
}

/* Takes the head of an answer; 0 while it is not all there. */
static int parse_head(Connection *c, char *bytes, size_t n) {
    char *end = memmem(bytes, n, "\r\n\r\n", 4);
    if (!end)
        return 0;
    *end = 0;
    c->status = n > 12 ? atoi(bytes + 9) : 0;
    if (strcasestr(bytes, "\r\nconnection: close"))
        c->closing = 1;
    const char *length = strcasestr(bytes, "\r\ncontent-length:");
    c->left = length ? atol(length + 17) : 0;
    if (strcasestr(bytes, "\r\ntransfer-encoding:"))
        c->state = CHUNK_SIZE;
    else
        c->state = length ? BODY : UNTIL_CLOSE;
    c->offset += (size_t)(end - bytes) + 4;
    return 1;
}

/* Takes one piece of the input: 1 go on, 0 more bytes are needed, -1 the call is over. */
static int parse_piece(Connection *c, uint64_t t) {
    char *bytes = c->in + c->offset;
    size_t n = c->in_length - c->offset, take;
    char *line_end;
    if (c->state == HEAD) {
        if (!parse_head(c, bytes, n))
            return 0;
        return c->state == BODY && c->left == 0 ? -1 : 1;
    }
    if (!n)
        return 0;
    switch (c->state) {
    case BODY:
    case CHUNK_DATA:
        take = n < (size_t)c->left ? n : (size_t)c->left;
        take_payload(c, bytes, take, t);
        c->offset += take;
        c->left -= (long)take;
        if (c->left)
            return 1;
        if (c->state == BODY)
            return -1;
        c->state = CHUNK_END;
        return 1;
    case CHUNK_END:
        if (n < 2)
            return 0;
        c->offset += 2;
        c->state = CHUNK_SIZE;
        return 1;
    case CHUNK_SIZE:
    case TRAILER:
        if (!(line_end = memchr(bytes, '\n', n)))
            return 0;
        take = (size_t)(line_end - bytes) + 1;
        c->offset += take;
        if (c->state == TRAILER)
            return take <= 2 ? -1 : 1;
        c->left = strtol(bytes, NULL, 16);
        c->state = c->left ? CHUNK_DATA : TRAILER;
        return 1;
    default:
        take_payload(c, bytes, n, t);
        c->offset += n;
        return 0;
    }
}

void on_readable(Connection *c) {
    if (c->in_capacity - c->in_length < 65537) {
        c->in_capacity = c->in_capacity ? c->in_capacity * 2 : IN_CAPACITY;
        c->in = grow(c->in, c->in_capacity + 1);
    }
    ssize_t got = recv(c->fd, c->in + c->in_length, c->in_capacity - c->in_length - 1, MSG_DONTWAIT);
    if (got < 0 && errno == EAGAIN)
        return;
    if (got <= 0) {
        on_closed(c);
        return;
    }
    c->in_length += (size_t)got;
    c->in[c->in_length] = 0;
    uint64_t t = now_ns();
    int more = 1;
    while (more > 0 && (more = parse_piece(c, t)) > 0)
        if (c->leave == LEAVE_TOKEN && c->tokens) {
            leave_call(c);
            return;
        }
    if (more < 0)
        finish(c, t);
    if (c->offset == c->in_length) {
        c->offset = c->in_length = 0;
    } else if (c->offset > 65536) {
        memmove(c->in, c->in + c->offset, c->in_length - c->offset);
        c->in_length -= c->offset;
        c->offset = 0;
    }
}

void open_connections(void) {
    size_t n = (size_t)options.connections;
    address.sin_family = AF_INET;
    address.sin_port = htons((uint16_t)options.port);
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    connections = calloc(n, sizeof *connections);
    free_list = calloc(n, sizeof *free_list);
    queue = malloc(QUEUE_CAPACITY * sizeof *queue);
    epoll_fd = epoll_create1(0);
    if (!connections || !free_list || !queue || epoll_fd < 0) {
        perror("loadgen");
        exit(2);
    }
    for (size_t i = 0; i < n; i++)
        open_connection(&connections[i]);
}

void arrive(uint64_t intended_ns) {
    if (free_count)
        start(&connections[free_list[--free_count]], intended_ns);
    else if (queue_tail - queue_head < QUEUE_CAPACITY)
        queue[queue_tail++ % QUEUE_CAPACITY] = intended_ns;
    else
        counts.dropped++;
}

int leave_due_calls(void) {
    uint64_t t = now_ns();
    for (int i = 0; leaving && i < options.connections; i++) {
        Connection *c = &connections[i];
        if ((c->leave == LEAVE_BODY || c->leave == LEAVE_SENT) && c->leave_ns <= t)
            leave_call(c);
    }
    return leaving > 0;
}

void forget_queued_arrivals(void) {
    queue_head = queue_tail;
}

int count_busy(void) {
    int busy = 0;
    for (int i = 0; i < options.connections; i++)
        busy += connections[i].busy;
    return busy;
}
