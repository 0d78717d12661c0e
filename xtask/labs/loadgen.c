/* loadgen - load generator and origin that measures a SOCKS5 overlay, or a direct path.
 *
 * Build: cc -O2 -o loadgen loadgen.c        one file, Linux, no dependencies
 * Numbers in brackets are the defaults of the options.
 *
 *   loadgen origin --listen 127.0.0.1:8080
 *       serves GET /N with N bytes, and checks the body of each POST
 *   loadgen bulk --target HOST:PORT --socks HOST:PORT|direct [--streams 1] [--secs 8] [--ramp 0] [--mib N] [--up]
 *       throughput of parallel streams over --secs, measured from --ramp seconds after the start
 *       --mib N ends each stream after N MiB; --up uploads --mib (default 32), timed until the origin's reply
 *       SIGTERM ends the measurement early; its figures are still printed
 *   loadgen ttfb --target .. --socks .. [--n 100] [--size 64] [--gap SECS]
 *       time to first byte: for each request a new stream (SOCKS connect, then GET)
 *   loadgen echo --target .. --socks .. [--n 100]
 *       round trip time: sequential requests on one persistent stream
 *   loadgen rps --target .. --socks .. [--conc 64] [--secs 8] [--size 2048] [--keepalive]
 *       requests per second, each on a new stream, or on persistent streams (--keepalive)
 *   loadgen hold --target .. --socks .. [--streams 1] [--secs 2]
 *       opens streams, sends one GET on each and keeps the streams open; memory of --pids before and after
 *   loadgen cpu|rss --pids A,B,C
 *       processor time or resident memory of the processes of --pids
 *
 * --circuits K   log in to SOCKS5 with K user names in turn: overlays put different user names on different
 *                circuits. 0, the default: no login.
 * --iso-base I   number of the first user name, so that two loadgens share no circuit
 * --pids A,B,C   processes whose processor time is counted in the figures
 * --prefix S     prefix of the name of every figure
 *
 * Output: lines of "name value unit". Bodies are one pseudo-random pattern; the receiver compares every byte.
 * The exit code is 1 if a request failed or a byte was wrong.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define MIB 1048576.0
#define GIB 1073741824.0
/* The pattern repeats after this many bytes. */
#define PATTERN (1u << 20)
/* Largest size of one read or write. */
#define CHUNK (256u << 10)
#define MAX_EVENTS 256
/* Timeout of epoll_wait, after which a loop checks the clock. */
#define TICK_MS 20
#define BULK_LIMIT_S 120
#define LATENCY_LIMIT_S 60
#define HOLD_LIMIT_S 60
#define REQUEST_LIMIT_S 20
#define MAX_ERRORS 100000
#define MAX_PIDS 256
#define MAX_LATENCIES (1 << 20)
#define DEFAULT_SECS 8
#define DEFAULT_UPLOAD_MIB 32

/* ---------------- options ---------------- */

static struct {
    const char *socks, *target, *listen, *pids, *prefix;
    int streams, requests, concurrency, circuits, first_user;
    bool keep_alive, up;
    long mib, size;
    double secs, ramp, gap;
} option = {
    .socks = "direct", .listen = "127.0.0.1:8080", .prefix = "", .streams = 1, .requests = 100, .concurrency = 64};

/* ---------------- basics ---------------- */

/* The pattern, followed by its beginning, so that a chunk from any offset is contiguous. */
static unsigned char pattern[PATTERN + CHUNK];
static unsigned char chunk[CHUNK];
static volatile sig_atomic_t stopped;

static void stop(int signal) { stopped = signal; }

static double now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec + time.tv_nsec * 1e-9;
}

static void die(const char *what) {
    fprintf(stderr, "loadgen: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void fill_pattern(void) {
    uint64_t x = 88172645463325252ull;
    for (unsigned i = 0; i < PATTERN; i += 8) {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        memcpy(pattern + i, &x, 8);
    }
    memcpy(pattern + PATTERN, pattern, CHUNK);
}

/* Whether `length` bytes equal the pattern from `offset` on; `length` is at most CHUNK. */
static bool is_pattern(const void *bytes, uint64_t offset, size_t length) {
    return !memcmp(bytes, pattern + offset % PATTERN, length);
}

/* Parses HOST:PORT; a host that is no IPv4 address gives INADDR_NONE. */
static struct sockaddr_in parse_address(const char *text) {
    char host[128];
    struct sockaddr_in address = {.sin_family = AF_INET};
    const char *colon = strrchr(text, ':');
    if (!colon || colon - text > 100) {
        fprintf(stderr, "loadgen: %s is not HOST:PORT\n", text);
        exit(2);
    }
    memcpy(host, text, colon - text);
    host[colon - text] = 0;
    address.sin_port = htons(atoi(colon + 1));
    if (!inet_aton(host, &address.sin_addr)) address.sin_addr.s_addr = INADDR_NONE;
    return address;
}

static void set_nonblocking(int fd) {
    int on = 1;
    fcntl(fd, F_SETFL, O_NONBLOCK | fcntl(fd, F_GETFL));
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void watch(int epoll, int operation, int fd, void *owner, uint32_t events) {
    struct epoll_event event = {events, {.ptr = owner}};
    epoll_ctl(epoll, operation, fd, &event);
}

/* ---------------- figures ---------------- */

static int pid_count, pids[MAX_PIDS];

static void print(const char *name, double value, const char *unit) {
    printf("%s%s %.6g %s\n", option.prefix, name, value, unit);
    fflush(stdout);
}

static double cpu_of(int pid) {
    char path[64], stat[1024];
    snprintf(path, sizeof path, "/proc/%d/stat", pid);
    FILE *file = fopen(path, "r");
    if (!file) return 0;
    size_t length = fread(stat, 1, sizeof stat - 1, file);
    fclose(file);
    stat[length] = 0;
    unsigned long user = 0, kernel = 0;
    char *after_name = strrchr(stat, ')');
    if (after_name) sscanf(after_name + 2, "%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu", &user, &kernel);
    return (double)(user + kernel) / sysconf(_SC_CLK_TCK);
}

static double cpu_of_all(void) {
    double sum = 0;
    for (int i = 0; i < pid_count; i++) sum += cpu_of(pids[i]);
    return sum;
}

static double own_cpu(void) {
    struct rusage use;
    getrusage(RUSAGE_SELF, &use);
    return use.ru_utime.tv_sec + use.ru_stime.tv_sec + 1e-6 * (use.ru_utime.tv_usec + use.ru_stime.tv_usec);
}

/* Resident memory in KiB; -1 if there is no such process. */
static long rss_of(int pid) {
    char path[64], line[256];
    long kib = -1;
    snprintf(path, sizeof path, "/proc/%d/status", pid);
    FILE *file = fopen(path, "r");
    if (!file) return -1;
    while (fgets(line, sizeof line, file) && sscanf(line, "VmRSS: %ld", &kib) != 1) {
    }
    fclose(file);
    return kib;
}

static void print_rss(const char *tag) {
    char name[64];
    double sum = 0;
    for (int i = 0; i < pid_count; i++) {
        long kib = rss_of(pids[i]);
        sum += kib;
        snprintf(name, sizeof name, "rss%s_pid%d", tag, pids[i]);
        print(name, kib / 1024., "MiB");
    }
    snprintf(name, sizeof name, "rss%s_sum", tag);
    print(name, sum / 1024, "MiB");
}

static int compare_doubles(const void *left, const void *right) {
    double a = *(const double *)left, b = *(const double *)right;
    return a < b ? -1 : a > b;
}

/* Sorts `count` times, in seconds, and prints their quantiles in milliseconds. */
static void print_quantiles(const char *name, double *times, int count) {
    static const struct {
        const char *name;
        double share;
    } quantiles[] = {{"min", 0}, {"p50", .5}, {"p95", .95}, {"p99", .99}, {"max", 1}};
    char full[64];
    if (!count) return;
    qsort(times, count, sizeof *times, compare_doubles);
    for (size_t i = 0; i < sizeof quantiles / sizeof *quantiles; i++) {
        snprintf(full, sizeof full, "%s_%s", name, quantiles[i].name);
        print(full, 1e3 * times[(int)(quantiles[i].share * (count - 1) + .5)], "ms");
    }
}

/* Processor time at the start of a measurement. */
struct mark {
    double time, cpu, own;
};

static struct mark mark_now(void) { return (struct mark){now(), cpu_of_all(), own_cpu()}; }

/* ---------------- origin ---------------- */

/* A client's socket at the origin. */
struct origin_client {
    int fd;
    char request[2048];
    int request_length;
    /* The answer: head, then body_left bytes of the pattern. */
    char head[256];
    int head_length, head_sent;
    uint64_t body_left, body_offset;
    /* The missing part of the body of a POST. */
    uint64_t upload_left, upload_offset;
    bool upload_wrong, close_after, wants_write;
};

static void want_write(int epoll, struct origin_client *client, bool wanted) {
    if (client->wants_write == wanted) return;
    watch(epoll, EPOLL_CTL_MOD, client->fd, client, wanted ? EPOLLIN | EPOLLOUT : EPOLLIN);
    client->wants_write = wanted;
}

/* Sends the rest of the answer; returns 1 if all is sent, 0 if the socket is full, -1 if the socket must be closed. */
static int send_answer(int epoll, struct origin_client *client) {
    while (client->head_sent < client->head_length || client->body_left) {
        struct iovec parts[2];
        int count = 0;
        size_t head = client->head_length - client->head_sent;
        size_t body = client->body_left < CHUNK ? client->body_left : CHUNK;
        if (head) parts[count++] = (struct iovec){client->head + client->head_sent, head};
        if (body) parts[count++] = (struct iovec){pattern + client->body_offset % PATTERN, body};
        ssize_t written = writev(client->fd, parts, count);
        if (written < 0) {
            if (errno != EAGAIN) return -1;
            want_write(epoll, client, true);
            return 0;
        }
        if ((size_t)written < head) head = written;
        client->head_sent += head;
        client->body_left -= written - head;
        client->body_offset += written - head;
    }
    want_write(epoll, client, false);
    return client->close_after ? -1 : 1;
}

static void answer_upload(struct origin_client *client) {
    client->head_length = snprintf(client->head, sizeof client->head, "HTTP/1.1 %s\r\nContent-Length: 0\r\n\r\n",
                                   client->upload_wrong ? "400 Bad" : "200 OK");
    client->head_sent = 0;
}

static void take_upload(struct origin_client *client, const void *bytes, size_t length) {
    if (!is_pattern(bytes, client->upload_offset, length)) client->upload_wrong = true;
    client->upload_left -= length;
    client->upload_offset += length;
    if (!client->upload_left) answer_upload(client);
}

/* Parses the head of a request, which ends with a zero byte, and prepares the answer to a GET. */
static void begin_answer(struct origin_client *client) {
    client->close_after = strcasestr(client->request, "connection: close");
    if (!strncmp(client->request, "POST", 4)) {
        char *length = strcasestr(client->request, "content-length:");
        client->upload_left = length ? strtoull(length + strlen("content-length:"), 0, 10) : 0;
        client->upload_offset = 0;
        client->upload_wrong = false;
        return;
    }
    char *path = strchr(client->request, '/');
    uint64_t length = path ? strtoull(path + 1, 0, 10) : 0;
    client->head_length =
        snprintf(client->head, sizeof client->head,
                 "HTTP/1.1 200 OK\r\nContent-Length: %" PRIu64 "\r\nContent-Type: application/octet-stream\r\n%s\r\n",
                 length, client->close_after ? "Connection: close\r\n" : "");
    client->head_sent = 0;
    client->body_left = length;
    client->body_offset = 0;
}

/* Answers the requests that were read; returns -1 if the socket must be closed. */
static int serve_requests(int epoll, struct origin_client *client) {
    for (;;) {
        if (client->head_length != client->head_sent || client->body_left) {
            int sent = send_answer(epoll, client);
            if (sent <= 0) return sent;
        }
        if (client->upload_left) return 0;
        char *end = memmem(client->request, client->request_length, "\r\n\r\n", 4);
        if (!end) return client->request_length == sizeof client->request ? -1 : 0;
        *end = 0;
        int used = end + 4 - client->request;
        begin_answer(client);
        uint64_t rest = client->request_length - used;
        if (client->upload_left) {
            uint64_t body = rest < client->upload_left ? rest : client->upload_left;
            take_upload(client, client->request + used, body);
            used += body;
            rest -= body;
        }
        memmove(client->request, client->request + used, rest);
        client->request_length = rest;
    }
}

/* Reads from a client; returns -1 if the socket must be closed. */
static int read_client(int epoll, struct origin_client *client) {
    ssize_t length;
    if (client->upload_left) {
        length = recv(client->fd, chunk, client->upload_left < CHUNK ? client->upload_left : CHUNK, 0);
        if (length > 0) {
            take_upload(client, chunk, length);
            return client->upload_left ? 0 : serve_requests(epoll, client);
        }
    } else {
        length = recv(client->fd, client->request + client->request_length,
                      sizeof client->request - client->request_length, 0);
        if (length > 0) {
            client->request_length += length;
            return serve_requests(epoll, client);
        }
    }
    return !length || errno != EAGAIN ? -1 : 0;
}

static void accept_clients(int epoll, int listener) {
    int fd;
    while ((fd = accept(listener, 0, 0)) >= 0) {
        struct origin_client *client = calloc(1, sizeof *client);
        set_nonblocking(fd);
        client->fd = fd;
        watch(epoll, EPOLL_CTL_ADD, fd, client, EPOLLIN);
    }
}

/* Serves until it is killed. */
static void run_origin(void) {
    struct sockaddr_in address = parse_address(option.listen);
    int on = 1, listener = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (void *)&address, sizeof address) || listen(listener, 4096)) die("bind origin");
    set_nonblocking(listener);
    /* The listener is the event that has no client. */
    watch(epoll, EPOLL_CTL_ADD, listener, 0, EPOLLIN);
    fprintf(stderr, "loadgen: origin on %s\n", option.listen);
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int count = epoll_wait(epoll, events, MAX_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct origin_client *client = events[i].data.ptr;
            if (!client) {
                accept_clients(epoll, listener);
                continue;
            }
            int outcome = 0;
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) outcome = read_client(epoll, client);
            if (outcome >= 0 && events[i].events & EPOLLOUT) outcome = serve_requests(epoll, client);
            if (outcome < 0) {
                close(client->fd);
                free(client);
            }
        }
    }
}

/* ---------------- client ---------------- */

enum state { CONNECTING, GREETING, LOGGING_IN, REQUESTING, AWAITING_HEAD, READING_BODY, UPLOADING, IDLE };

/* The result of a step of a stream. */
enum outcome { FAILED = -1, MORE = 0, FINISHED = 1 };

/* A stream through the overlay, and the request on it. */
struct stream {
    int fd;
    enum state state;
    /* Selects the user name, and thus the circuit. */
    int number;
    /* Received bytes of the SOCKS handshake, then of the answer's head. */
    char input[1024];
    int input_length;
    /* Times of the events; 0 before the event. */
    double started, connected, requested, first_byte, finished;
    /* Length of the request's body, and the number of bytes sent or received. */
    uint64_t length, offset;
    /* Body bytes of all requests. */
    uint64_t received;
};

static int client_epoll;
static struct sockaddr_in proxy, target;
static bool direct;
static long errors, corrupt;
static char last_error[128];

static enum outcome fail(const char *what, int number) {
    snprintf(last_error, sizeof last_error, "%s (%d)", what, number);
    return FAILED;
}

/* The result for a recv() of `length` <= 0. */
static enum outcome nothing_read(ssize_t length, const char *what, int number) {
    return length < 0 && errno == EAGAIN ? MORE : fail(what, number);
}

static void start_stream(struct stream *stream) {
    struct sockaddr_in *to = direct ? &target : &proxy;
    stream->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (stream->fd < 0) die("socket");
    set_nonblocking(stream->fd);
    stream->started = now();
    stream->state = CONNECTING;
    stream->input_length = 0;
    stream->first_byte = stream->connected = 0;
    if (connect(stream->fd, (void *)to, sizeof *to) && errno != EINPROGRESS) die("connect");
    watch(client_epoll, EPOLL_CTL_ADD, stream->fd, stream, EPOLLOUT);
}

static void close_stream(struct stream *stream) {
    if (stream->fd >= 0) close(stream->fd);
    stream->fd = -1;
}

/* Sends a short message, which fits into an empty socket buffer. */
static bool sends(struct stream *stream, const void *bytes, size_t length) {
    return send(stream->fd, bytes, length, MSG_NOSIGNAL) == (ssize_t)length;
}

static enum outcome send_request(struct stream *stream) {
    static const char *const get = "GET /%" PRIu64 " HTTP/1.1\r\nHost: origin\r\n\r\n";
    static const char *const post = "POST / HTTP/1.1\r\nHost: origin\r\nContent-Length: %" PRIu64 "\r\n\r\n";
    char request[512];
    int length = snprintf(request, sizeof request, option.up ? post : get, stream->length);
    stream->requested = now();
    stream->input_length = 0;
    stream->offset = 0;
    stream->first_byte = 0;
    if (!sends(stream, request, length)) return fail("send", errno);
    stream->state = option.up ? UPLOADING : AWAITING_HEAD;
    watch(client_epoll, EPOLL_CTL_MOD, stream->fd, stream, option.up ? EPOLLIN | EPOLLOUT : EPOLLIN);
    return MORE;
}

static enum outcome on_tcp_connected(struct stream *stream) {
    int error = 0;
    socklen_t length = sizeof error;
    getsockopt(stream->fd, SOL_SOCKET, SO_ERROR, &error, &length);
    if (error) return fail("connect", error);
    if (direct) {
        stream->connected = now();
        return send_request(stream);
    }
    /* Version 5, one method: user name and password (2), or none (0). */
    if (!sends(stream, option.circuits ? "\5\1\2" : "\5\1\0", 3)) return fail("send", errno);
    stream->state = GREETING;
    watch(client_epoll, EPOLL_CTL_MOD, stream->fd, stream, EPOLLIN);
    return MORE;
}

static enum outcome send_login(struct stream *stream) {
    char login[64] = {1};
    int circuits = option.circuits ? option.circuits : 1;
    int length = snprintf(login + 2, 40, "c%d", option.first_user + stream->number % circuits);
    login[1] = length;
    login[2 + length] = 1;
    login[3 + length] = 'x';
    if (!sends(stream, login, 4 + length)) return fail("send", errno);
    stream->state = LOGGING_IN;
    stream->input_length = 0;
    return MORE;
}

static enum outcome send_socks_connect(struct stream *stream) {
    char request[300] = {5, 1, 0, 1};
    int length = 4;
    if (target.sin_addr.s_addr != INADDR_NONE) {
        memcpy(request + length, &target.sin_addr, 4);
        length += 4;
    } else {
        int host = strrchr(option.target, ':') - option.target;
        request[3] = 3;
        request[4] = host;
        memcpy(request + 5, option.target, host);
        length = 5 + host;
    }
    memcpy(request + length, &target.sin_port, 2);
    if (!sends(stream, request, length + 2)) return fail("send", errno);
    stream->state = REQUESTING;
    stream->input_length = 0;
    return MORE;
}

static enum outcome on_socks_input(struct stream *stream) {
    const unsigned char *input = (void *)stream->input;
    ssize_t length =
        recv(stream->fd, stream->input + stream->input_length, sizeof stream->input - stream->input_length, 0);
    if (length <= 0) return nothing_read(length, "proxy closed, state", stream->state);
    stream->input_length += length;
    if (stream->state == GREETING && stream->input_length >= 2) {
        if (input[1] == 0xff) return fail("no auth method", 255);
        return input[1] == 2 ? send_login(stream) : send_socks_connect(stream);
    }
    if (stream->state == LOGGING_IN && stream->input_length >= 2) {
        return input[1] ? fail("auth refused", input[1]) : send_socks_connect(stream);
    }
    if (stream->state == REQUESTING && stream->input_length >= 5) {
        if (input[1]) return fail("SOCKS reply", input[1]);
        /* The reply ends with an IPv4 address, an IPv6 address or a name, and a port. */
        int reply = input[3] == 1 ? 10 : input[3] == 4 ? 22 : 7 + input[4];
        if (stream->input_length < reply) return MORE;
        stream->connected = now();
        return send_request(stream);
    }
    return MORE;
}

static enum outcome finish_request(struct stream *stream) {
    stream->finished = now();
    stream->state = IDLE;
    return FINISHED;
}

static enum outcome on_upload(struct stream *stream, uint32_t events) {
    while (events & EPOLLOUT && stream->offset < stream->length) {
        uint64_t left = stream->length - stream->offset, length = left < CHUNK ? left : CHUNK;
        ssize_t sent = send(stream->fd, pattern + stream->offset % PATTERN, length, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno == EAGAIN) break;
            return fail("send", errno);
        }
        stream->offset += sent;
        if ((uint64_t)sent < length) break;
    }
    if (stream->offset == stream->length) {
        watch(client_epoll, EPOLL_CTL_MOD, stream->fd, stream, EPOLLIN);
        stream->state = AWAITING_HEAD;
    }
    return MORE;
}

static enum outcome on_head(struct stream *stream) {
    ssize_t length =
        recv(stream->fd, stream->input + stream->input_length, sizeof stream->input - stream->input_length, 0);
    if (length <= 0) return nothing_read(length, "closed before header", 0);
    if (!stream->first_byte) stream->first_byte = now();
    stream->input_length += length;
    char *end = memmem(stream->input, stream->input_length, "\r\n\r\n", 4);
    if (!end) return stream->input_length == sizeof stream->input ? fail("header too long", 0) : MORE;
    if (memcmp(stream->input, "HTTP/1.1 200", 12)) return fail("not 200", 0);
    if (option.up) return finish_request(stream);
    int body = stream->input_length - (end + 4 - stream->input);
    if (!is_pattern(end + 4, 0, body)) corrupt++;
    stream->offset = body;
    stream->received += body;
    stream->state = READING_BODY;
    return stream->offset == stream->length ? finish_request(stream) : MORE;
}

static enum outcome on_body(struct stream *stream) {
    ssize_t length = recv(stream->fd, chunk, CHUNK, 0);
    if (length <= 0) return nothing_read(length, "closed in body", 0);
    if (stream->offset + length > stream->length || !is_pattern(chunk, stream->offset, length)) corrupt++;
    stream->offset += length;
    stream->received += length;
    return stream->offset >= stream->length ? finish_request(stream) : MORE;
}

/* Performs the next step of a stream whose socket is ready. */
static enum outcome step(struct stream *stream, uint32_t events) {
    switch (stream->state) {
    case CONNECTING: return on_tcp_connected(stream);
    case GREETING:
    case LOGGING_IN:
    case REQUESTING: return on_socks_input(stream);
    case AWAITING_HEAD: return on_head(stream);
    case READING_BODY: return on_body(stream);
    case UPLOADING: return on_upload(stream, events);
    case IDLE: break;
    }
    return nothing_read(recv(stream->fd, chunk, CHUNK, 0), "closed while idle", 0);
}

static struct stream *start_streams(int count, uint64_t length) {
    struct stream *streams = calloc(count, sizeof *streams);
    for (int i = 0; i < count; i++) {
        streams[i].number = i;
        streams[i].length = length;
        start_stream(&streams[i]);
    }
    return streams;
}

/* Prints the last figures of every mode with requests: processor time since `from`, and errors. */
static void print_cost(struct mark from, double gib, double wall) {
    if (pid_count) {
        double cpu = cpu_of_all() - from.cpu;
        print("cpu", cpu, "s");
        if (gib > 0) print("cpu_per_gib", cpu / gib, "s/GiB");
        print("cores_used", cpu / wall, "cores");
    }
    print("loadgen_cores", (own_cpu() - from.own) / wall, "cores");
    print("errors", errors, "count");
    print("corrupt", corrupt, "count");
    if (errors) fprintf(stderr, "loadgen: last error: %s\n", last_error);
}

/* ---------------- modes ---------------- */

static uint64_t moved(const struct stream *stream) { return option.up ? stream->offset : stream->received; }

/* Prints the throughput of all streams, of the slowest, of the fastest and of each, and Jain's fairness index (Jain,
 * Chiu, Hawe 1984), which is 1 if all are equal and 1/n if one has all. Returns the sum of the bytes. */
static double print_throughput(const struct stream *streams, const uint64_t *before, int count, double wall) {
    double total = 0, squares = 0, slowest = 1e18, fastest = 0;
    for (int i = 0; i < count; i++) {
        double bytes = moved(&streams[i]) - before[i];
        total += bytes;
        squares += bytes * bytes;
        if (bytes < slowest) slowest = bytes;
        if (bytes > fastest) fastest = bytes;
    }
    print("streams", count, "count");
    print("seconds", wall, "s");
    print("bytes", total, "B");
    print("throughput", total / wall / MIB, "MiB/s");
    print("stream_min", slowest / wall / MIB, "MiB/s");
    print("stream_max", fastest / wall / MIB, "MiB/s");
    if (count > 1 && squares > 0) print("jain", total * total / count / squares, "index");
    for (int i = 0; count > 1 && i < count; i++) {
        char name[32];
        snprintf(name, sizeof name, "stream_%d", i);
        print(name, (moved(&streams[i]) - before[i]) / wall / MIB, "MiB/s");
    }
    return total;
}

/* Whether any of the streams has received a byte or is uploading. */
static bool any_is_active(const struct stream *streams, int count) {
    for (int i = 0; i < count; i++) {
        if (streams[i].first_byte || streams[i].state == UPLOADING) return true;
    }
    return false;
}

static void run_bulk(void) {
    int count = option.streams, live = count;
    if (option.up) {
        /* A count of the bytes passed to the kernel would measure socket buffers, and the buffered bytes would disturb
         * the next measurement. So an upload has a size, and ends with the reply. */
        option.secs = option.ramp = 0;
        if (!option.mib) option.mib = DEFAULT_UPLOAD_MIB;
    } else if (!option.mib && !option.secs) {
        option.secs = DEFAULT_SECS;
    }
    uint64_t length = option.mib ? (uint64_t)option.mib << 20 : 1ull << 42;
    uint64_t *before = calloc(count, sizeof *before);
    double last_end = 0;
    struct mark from = mark_now();
    double started = from.time;
    bool measuring = false;
    struct stream *streams = start_streams(count, length);
    while (live && !stopped) {
        struct epoll_event events[MAX_EVENTS];
        int ready = epoll_wait(client_epoll, events, MAX_EVENTS, TICK_MS);
        double time = now();
        if (!measuring && time - started >= option.ramp && any_is_active(streams, count)) {
            measuring = true;
            from = mark_now();
            for (int i = 0; i < count; i++) before[i] = moved(&streams[i]);
        }
        if ((option.secs && measuring && time - from.time >= option.secs) || time - started > BULK_LIMIT_S) break;
        for (int i = 0; i < ready; i++) {
            struct stream *stream = events[i].data.ptr;
            enum outcome outcome = stream->fd < 0 ? MORE : step(stream, events[i].events);
            if (outcome == MORE) continue;
            if (outcome == FAILED) errors++;
            else last_end = now();
            close_stream(stream);
            live--;
        }
    }
    if (option.up && live) {
        errors += live;
        fail("upload unfinished", live);
    }
    double wall = (live || !last_end ? now() : last_end) - from.time;
    double bytes = print_throughput(streams, before, count, wall);
    print_cost(from, bytes / GIB, wall);
}

/* Performs one request on `stream`, until the request ends or times out. */
static enum outcome request_once(struct stream *stream, bool fresh) {
    enum outcome outcome = MORE;
    double deadline = now() + REQUEST_LIMIT_S;
    if (fresh) start_stream(stream);
    else if (send_request(stream) == FAILED) return FAILED;
    while (outcome == MORE && now() < deadline) {
        struct epoll_event events[8];
        int ready = epoll_wait(client_epoll, events, 8, 1000);
        for (int i = 0; i < ready && outcome == MORE; i++) outcome = step(stream, events[i].events);
    }
    return outcome == MORE ? fail("timeout", REQUEST_LIMIT_S) : outcome;
}

/* Measures the latency of sequential requests: each on a new stream, or all on one persistent stream. */
static void run_latency(bool keep) {
    double *connects = calloc(option.requests, sizeof(double)), *answers = calloc(option.requests, sizeof(double));
    double *totals = calloc(option.requests, sizeof(double));
    int samples = 0;
    struct stream stream = {.fd = -1};
    struct mark from = mark_now();
    for (int i = 0; i < option.requests && now() - from.time < LATENCY_LIMIT_S; i++) {
        stream.number = option.circuits ? i : 0;
        stream.length = option.size;
        if (request_once(&stream, !keep || stream.fd < 0) == FAILED) {
            errors++;
            close_stream(&stream);
            continue;
        }
        /* The first request of a persistent stream includes the opening of the stream. */
        if (!keep || i) {
            connects[samples] = stream.connected - stream.started;
            answers[samples] = stream.first_byte - stream.requested;
            totals[samples] = stream.first_byte - stream.started;
            samples++;
        }
        if (!keep) close_stream(&stream);
        if (option.gap) usleep(option.gap * 1e6);
    }
    print("samples", samples, "count");
    if (keep) {
        print_quantiles("echo_rtt", answers, samples);
    } else {
        print_quantiles("socks_connect", connects, samples);
        print_quantiles("ttfb_after_connect", answers, samples);
        print_quantiles("ttfb_total", totals, samples);
    }
    print_cost(from, 0, now() - from.time);
}

static void run_requests(void) {
    int count = option.concurrency, next = count, samples = 0;
    double *latencies = calloc(MAX_LATENCIES, sizeof *latencies);
    long done = 0;
    double started = now(), secs = option.secs ? option.secs : DEFAULT_SECS;
    struct mark from = {0};
    start_streams(count, option.size);
    for (;;) {
        struct epoll_event events[MAX_EVENTS];
        int ready = epoll_wait(client_epoll, events, MAX_EVENTS, TICK_MS);
        double time = now();
        if (!from.time && time - started >= option.ramp) from = mark_now();
        if (from.time && time - from.time >= secs) break;
        for (int i = 0; i < ready; i++) {
            struct stream *stream = events[i].data.ptr;
            enum outcome outcome = stream->fd < 0 ? MORE : step(stream, events[i].events);
            if (outcome == MORE) continue;
            if (outcome == FINISHED && from.time) {
                done++;
                double since = option.keep_alive ? stream->requested : stream->started;
                if (samples < MAX_LATENCIES) latencies[samples++] = stream->finished - since;
            }
            if (outcome == FINISHED && option.keep_alive && send_request(stream) != FAILED) continue;
            if (outcome == FAILED || option.keep_alive) errors++;
            if (errors > MAX_ERRORS) die("too many errors");
            close_stream(stream);
            stream->number = next++;
            start_stream(stream);
        }
    }
    double wall = now() - from.time;
    print("concurrency", count, "count");
    print("rate", done / wall, "req/s");
    print_quantiles("latency", latencies, samples);
    if (pid_count) print("cpu_per_request", 1e3 * (cpu_of_all() - from.cpu) / (done ? done : 1), "ms");
    print_cost(from, 0, wall);
}

static void run_hold(void) {
    int count = option.streams, open = 0, left = count;
    struct mark from = mark_now();
    print_rss("_before");
    start_streams(count, option.size);
    while (left && now() - from.time < HOLD_LIMIT_S) {
        struct epoll_event events[MAX_EVENTS];
        int ready = epoll_wait(client_epoll, events, MAX_EVENTS, TICK_MS);
        for (int i = 0; i < ready; i++) {
            struct stream *stream = events[i].data.ptr;
            if (stream->fd < 0 || stream->state == IDLE) continue;
            enum outcome outcome = step(stream, events[i].events);
            if (outcome == MORE) continue;
            left--;
            if (outcome == FINISHED) {
                open++;
            } else {
                errors++;
                close_stream(stream);
            }
        }
    }
    double took = now() - from.time;
    print("open_streams", open, "count");
    print("open_time", took, "s");
    print("open_rate", open / took, "streams/s");
    if (pid_count) print("open_cpu_per_stream", 1e3 * (cpu_of_all() - from.cpu) / (open ? open : 1), "ms");
    usleep((option.secs ? option.secs : 2) * 1e6);
    print_rss("_held");
    print_cost(from, 0, now() - from.time);
}

/* ---------------- command line ---------------- */

static int usage(const char *problem, const char *word) {
    fprintf(stderr, "loadgen: %s %s; the head of loadgen.c lists modes and options\n", problem, word);
    return 2;
}

/* Stores `value` for the option `name`; returns whether there is such an option. */
static bool take_option(const char *name, const char *value) {
    const struct {
        const char *name;
        const char **text;
        int *number;
        long *size;
        double *real;
    } options[] = {
        {"--socks", .text = &option.socks},
        {"--target", .text = &option.target},
        {"--listen", .text = &option.listen},
        {"--pids", .text = &option.pids},
        {"--prefix", .text = &option.prefix},
        {"--streams", .number = &option.streams},
        {"--n", .number = &option.requests},
        {"--conc", .number = &option.concurrency},
        {"--circuits", .number = &option.circuits},
        {"--iso-base", .number = &option.first_user},
        {"--mib", .size = &option.mib},
        {"--size", .size = &option.size},
        {"--secs", .real = &option.secs},
        {"--ramp", .real = &option.ramp},
        {"--gap", .real = &option.gap},
    };
    for (size_t i = 0; i < sizeof options / sizeof *options; i++) {
        if (strcmp(name, options[i].name)) continue;
        if (options[i].text) *options[i].text = value;
        if (options[i].number) *options[i].number = atoi(value);
        if (options[i].size) *options[i].size = atol(value);
        if (options[i].real) *options[i].real = atof(value);
        return true;
    }
    return false;
}

static void raise_file_limit(void) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = limit.rlim_max;
    setrlimit(RLIMIT_NOFILE, &limit);
}

static void parse_pids(void) {
    if (!option.pids) return;
    char *list = strdup(option.pids), *word;
    while ((word = strsep(&list, ",")) && pid_count < MAX_PIDS) {
        if (*word) pids[pid_count++] = atoi(word);
    }
}

/* Runs a mode that sends requests; returns false if there is no such mode. */
static bool run_client(const char *mode) {
    if (!strcmp(mode, "bulk")) run_bulk();
    else if (!strcmp(mode, "ttfb")) run_latency(false);
    else if (!strcmp(mode, "echo")) run_latency(true);
    else if (!strcmp(mode, "rps")) run_requests();
    else if (!strcmp(mode, "hold")) run_hold();
    else return false;
    return true;
}

int main(int count, char **words) {
    if (count < 2) return usage("the mode is missing, for example", "bulk");
    const char *mode = words[1];
    option.size = strcmp(mode, "rps") ? 64 : 2048;
    for (int i = 2; i < count; i++) {
        if (!strcmp(words[i], "--keepalive")) option.keep_alive = true;
        else if (!strcmp(words[i], "--up")) option.up = true;
        else if (i + 1 >= count) return usage("no value after", words[i]);
        else if (!take_option(words[i], words[i + 1])) return usage("unknown option", words[i]);
        else i++;
    }
    signal(SIGPIPE, SIG_IGN);
    raise_file_limit();
    parse_pids();
    fill_pattern();
    if (!strcmp(mode, "origin")) run_origin();
    if (!strcmp(mode, "rss")) return print_rss(""), 0;
    if (!strcmp(mode, "cpu")) return print("cpu", cpu_of_all(), "s"), 0;
    if (!option.target) return usage("missing option", "--target HOST:PORT");
    direct = !strcmp(option.socks, "direct");
    target = parse_address(option.target);
    if (!direct) proxy = parse_address(option.socks);
    client_epoll = epoll_create1(0);
    if (!strcmp(mode, "bulk")) signal(SIGTERM, stop);
    if (!run_client(mode)) return usage("unknown mode", mode);
    return errors || corrupt ? 1 : 0;
}
