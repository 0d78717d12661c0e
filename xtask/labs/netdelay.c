/* netdelay - network namespaces joined by links with delay, loss, jitter, reordering and a rate limit.
 *
 * For kernels without sch_netem. Needs Linux 6.2 or later, root, iproute2 and /dev/net/tun.
 * Build: cc -O2 -o netdelay netdelay.c
 *
 *   netdelay --n 8 --prefix lab --delay-ms 25 --loss 0.01
 *
 * Makes the namespaces lab0 to lab7 with the addresses 10.77.0.1 to 10.77.0.8 and loopback up, and prints "ready".
 * Run programs in the namespaces by `ip netns exec lab0 COMMAND`. netdelay ends on SIGTERM or SIGINT, or when its
 * parent process ends; then it deletes the namespaces and prints counts.
 *
 * --n N           number of namespaces, at most 64            --prefix NAME   of the namespaces: NAME0, NAME1, ...
 * --net 10.77.0   first three bytes of the addresses          --mtu 1500
 * --delay-ms 25   one way, on every packet                    --jitter-ms J   up to J ms more, order kept
 * --loss 0.01     share of packets dropped                    --reorder 0.05  share held 5 ms longer, so that later
 *                                                                             packets overtake them
 * --rate-mbit R   into each namespace; 0: no limit            --queue-ms 100  longest queue of the rate limit
 * --no-offload 1  no segmentation offload
 * --trace FILE    every 10 ms a line: milliseconds, and how long the rate limit delays a packet into each namespace
 *
 * The namespaces are joined by TUN devices with segmentation offload: a TCP or UDP super-packet, which stands for many
 * packets on the wire, passes as one, as it does with a real network card. Loss, reordering and the rate limit apply
 * to packets on the wire: a super-packet is cut where one of its segments is dropped or held.
 * Randomness is a fixed sequence, the same in every run. Only IPv4 passes.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/virtio_net.h>
#include <sched.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

/* Constants of Linux 6.2, for older headers. */
#ifndef TUN_F_USO4
#define TUN_F_USO4 0x20
#endif
#ifndef TUN_F_USO6
#define TUN_F_USO6 0x40
#endif
#ifndef VIRTIO_NET_HDR_GSO_UDP_L4
#define VIRTIO_NET_HDR_GSO_UDP_L4 5
#endif

#define MAX_NODES 64
/* Largest number of packets in a queue; a power of two. */
#define MAX_QUEUE_PACKETS (1u << 15)
#define MAX_PACKET 70000
/* Packets read from one namespace before the next one. */
#define READ_BURST 64
/* Additional delay of a packet by --reorder. */
#define HELD_LONGER_NS 5000000
#define VNET_HEADER ((int)sizeof(struct virtio_net_hdr))
#define TRACE_INTERVAL_NS 10000000
#define TIMER_EVENT 999
#define PROTOCOL_TCP 6
#define PROTOCOL_UDP 17
#define TCP_FIN_PSH 0x09

/* ---------------- options and state ---------------- */

static struct {
    int nodes, mtu;
    bool offload;
    const char *prefix, *net, *trace;
    double delay_ms, jitter_ms, queue_ms, rate_mbit, loss, reorder;
} option = {
    .nodes = 8, .mtu = 1500, .offload = true, .prefix = "lab", .net = "10.77.0", .delay_ms = 25, .queue_ms = 100};

/* A packet in flight, with its virtio header. */
struct packet {
    int64_t due;
    int length;
    unsigned char *bytes;
};

/* Packets in the order in which they are due. */
struct queue {
    struct packet packets[MAX_QUEUE_PACKETS];
    unsigned head, tail;
};

/* The link into one namespace. */
struct receiver {
    int tun;
    /* Packets in order; packets that --reorder delays further. */
    struct queue prompt, held;
    /* Time at which the last packet is due, because jitter keeps the order. */
    int64_t last_due;
    /* Time at which the rate limit has forwarded all waiting packets. */
    int64_t free_at;
};

/* A packet or super-packet as it was read. */
struct arrival {
    const unsigned char *bytes;
    int length;
    /* IP header; IP and transport header together. */
    int ip_header, headers;
    /* Payload bytes of each segment but the last; number of segments. */
    int segment, segments;
    int64_t time;
};

static struct receiver receivers[MAX_NODES];
static struct {
    unsigned long wire, super, lost, held, full;
} counts;
static volatile sig_atomic_t stopped;

static void stop(int signal) { stopped = signal; }

static int64_t now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000ll + time.tv_nsec;
}

/* The next number of a fixed sequence, in [0, 1). */
static double random_share(void) {
    static uint64_t x = 88172645463325252ull;
    x ^= x << 13;
    x ^= x >> 7;
    x ^= x << 17;
    return (x >> 11) * 0x1p-53;
}

/* ---------------- queues ---------------- */

static bool is_empty(const struct queue *queue) { return queue->head == queue->tail; }

static struct packet *first(struct queue *queue) { return &queue->packets[queue->tail % MAX_QUEUE_PACKETS]; }

static void enqueue(struct queue *queue, const unsigned char *bytes, int length, int64_t due) {
    if (queue->head - queue->tail == MAX_QUEUE_PACKETS) {
        counts.full++;
        return;
    }
    struct packet *packet = &queue->packets[queue->head++ % MAX_QUEUE_PACKETS];
    *packet = (struct packet){due, length, malloc(length)};
    memcpy(packet->bytes, bytes, length);
}

/* Queues a packet to `to`. With `hold`, later packets overtake this packet. */
static void send_packet(struct receiver *to, const unsigned char *bytes, int length, int64_t time, bool hold) {
    int64_t due = (option.rate_mbit > 0 ? to->free_at : time) + (int64_t)(option.delay_ms * 1e6);
    if (hold) {
        enqueue(&to->held, bytes, length, due + HELD_LONGER_NS);
        counts.held++;
        return;
    }
    if (option.jitter_ms > 0) due += (int64_t)(random_share() * option.jitter_ms * 1e6);
    if (due < to->last_due) due = to->last_due;
    to->last_due = due;
    enqueue(&to->prompt, bytes, length, due);
}

static int64_t earliest(int64_t due, struct queue *queue) {
    if (is_empty(queue) || (due && due <= first(queue)->due)) return due;
    return first(queue)->due;
}

/* Time at which the next packet is due; 0 if there is none. */
static int64_t next_due(void) {
    int64_t due = 0;
    for (int i = 0; i < option.nodes; i++) due = earliest(earliest(due, &receivers[i].prompt), &receivers[i].held);
    return due;
}

static void deliver(int tun, struct queue *queue, int64_t time) {
    while (!is_empty(queue) && first(queue)->due <= time) {
        struct packet *packet = first(queue);
        if (write(tun, packet->bytes, packet->length) < 0) counts.full++;
        free(packet->bytes);
        queue->tail++;
    }
}

/* ---------------- super-packets ---------------- */

static void put16(unsigned char *at, uint16_t value) {
    at[0] = value >> 8;
    at[1] = value;
}

static uint16_t get16(const unsigned char *at) { return at[0] << 8 | at[1]; }

/* The Internet checksum's sum (RFC 1071) before it is folded. */
static uint32_t sum_words(const unsigned char *bytes, int length) {
    uint32_t sum = 0;
    for (int i = 0; i + 1 < length; i += 2) sum += get16(bytes + i);
    if (length & 1) sum += bytes[length - 1] << 8;
    return sum;
}

static uint16_t fold(uint32_t sum) {
    while (sum >> 16) sum = (sum & 0xffff) + (sum >> 16);
    return sum;
}

/* Sets length, identification and checksum of the IPv4 header of a super-packet's part that begins with `segment`. */
static void set_ip_header(unsigned char *ip, int ip_header, int total, int segment) {
    put16(ip + 2, total);
    put16(ip + 4, get16(ip + 4) + segment);
    put16(ip + 10, 0);
    put16(ip + 10, ~fold(sum_words(ip, ip_header)));
}

/* Sets UDP's length, or TCP's sequence number and flags, and the checksum of the pseudo-header. The kernel adds the
 * checksum of header and payload. `offset` is the position of the part in the super-packet's payload. */
static void set_transport_header(unsigned char *ip, int ip_header, int length, int offset, bool last) {
    unsigned char *transport = ip + ip_header;
    bool udp = ip[9] == PROTOCOL_UDP;
    if (udp) {
        put16(transport + 4, length);
    } else {
        uint32_t sequence;
        memcpy(&sequence, transport + 4, 4);
        sequence = htonl(ntohl(sequence) + offset);
        memcpy(transport + 4, &sequence, 4);
        if (!last) transport[13] &= ~TCP_FIN_PSH;
    }
    int checksum = udp ? 6 : 16;
    put16(transport + checksum, fold(sum_words(ip + 12, 8) + ip[9] + length));
    struct virtio_net_hdr *virtio = (void *)(ip - VNET_HEADER);
    virtio->flags = VIRTIO_NET_HDR_F_NEEDS_CSUM;
    virtio->csum_start = ip_header;
    virtio->csum_offset = checksum;
}

/* Sends the segments `from` to `to`, both included, of a super-packet as a smaller packet. */
static void send_segments(struct receiver *receiver, const struct arrival *arrival, int from, int to, bool hold) {
    static unsigned char part[MAX_PACKET];
    int payload = arrival->length - VNET_HEADER - arrival->headers, offset = from * arrival->segment;
    bool last = to + 1 == arrival->segments;
    int length = (last ? payload : (to + 1) * arrival->segment) - offset;
    if (length <= 0) return;
    unsigned char *ip = part + VNET_HEADER;
    memcpy(part, arrival->bytes, VNET_HEADER + arrival->headers);
    memcpy(ip + arrival->headers, arrival->bytes + VNET_HEADER + arrival->headers + offset, length);
    set_ip_header(ip, arrival->ip_header, arrival->headers + length, from);
    set_transport_header(ip, arrival->ip_header, arrival->headers - arrival->ip_header + length, offset, last);
    if (from == to) {
        struct virtio_net_hdr *virtio = (void *)part;
        virtio->gso_type = VIRTIO_NET_HDR_GSO_NONE;
        virtio->gso_size = 0;
        virtio->hdr_len = 0;
    }
    send_packet(receiver, part, VNET_HEADER + arrival->headers + length, arrival->time, hold);
}

/* ---------------- the link ---------------- */

/* Whether loss or the rate limit drops the next segment. A segment that is not dropped counts for the rate limit. */
static bool drops(struct receiver *to, const struct arrival *arrival) {
    if (option.loss > 0 && random_share() < option.loss) {
        counts.lost++;
        return true;
    }
    if (option.rate_mbit <= 0) return false;
    if (to->free_at - arrival->time > option.queue_ms * 1e6) {
        counts.full++;
        return true;
    }
    to->free_at += (int64_t)((arrival->headers + arrival->segment) * 8000.0 / option.rate_mbit);
    return false;
}

/* Sends the segments `from` to `to`, both included. If these are all segments, the packet is unchanged. */
static void send_run(struct receiver *receiver, const struct arrival *arrival, int from, int to, bool hold) {
    if (from > to) return;
    if (from == 0 && to + 1 == arrival->segments) {
        send_packet(receiver, arrival->bytes, arrival->length, arrival->time, hold);
    } else {
        send_segments(receiver, arrival, from, to, hold);
    }
}

/* Forwards a packet, in runs of segments that are neither dropped nor delayed. */
static void forward(struct receiver *to, const struct arrival *arrival) {
    int from = 0;
    if (option.rate_mbit > 0 && to->free_at < arrival->time) to->free_at = arrival->time;
    if (option.loss <= 0 && option.rate_mbit <= 0 && option.reorder <= 0) {
        send_packet(to, arrival->bytes, arrival->length, arrival->time, false);
        return;
    }
    for (int segment = 0; segment < arrival->segments; segment++) {
        bool dropped = drops(to, arrival);
        bool hold = !dropped && option.reorder > 0 && random_share() < option.reorder;
        if (!dropped && !hold) continue;
        send_run(to, arrival, from, segment - 1, false);
        if (hold) send_run(to, arrival, segment, segment, true);
        from = segment + 1;
    }
    send_run(to, arrival, from, arrival->segments - 1, false);
}

/* Reads the packets of one namespace. */
static void read_node(struct receiver *node) {
    static unsigned char bytes[MAX_PACKET];
    for (int i = 0; i < READ_BURST; i++) {
        int length = read(node->tun, bytes, sizeof bytes);
        if (length <= 0) return;
        const unsigned char *ip = bytes + VNET_HEADER;
        const struct virtio_net_hdr *virtio = (void *)bytes;
        if (length < VNET_HEADER + 20 || ip[0] >> 4 != 4) continue;
        int to = ip[19] - 1;
        if (to < 0 || to >= option.nodes) continue;
        struct arrival arrival = {.bytes = bytes, .length = length, .time = now(), .segments = 1};
        arrival.ip_header = (ip[0] & 15) * 4;
        arrival.headers = arrival.ip_header + (ip[9] == PROTOCOL_TCP ? (ip[arrival.ip_header + 12] >> 4) * 4 : 8);
        int payload = length - VNET_HEADER - arrival.headers;
        arrival.segment = payload;
        if (virtio->gso_type && virtio->gso_size && payload > virtio->gso_size) {
            arrival.segment = virtio->gso_size;
            arrival.segments = (payload + arrival.segment - 1) / arrival.segment;
            counts.super++;
        }
        counts.wire += arrival.segments;
        forward(&receivers[to], &arrival);
    }
}

/* ---------------- namespaces ---------------- */

/* Runs a shell command; returns whether it succeeded. */
__attribute__((format(printf, 1, 2))) static bool shell(const char *format, ...) {
    char command[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(command, sizeof command, format, arguments);
    va_end(arguments);
    return system(command) == 0;
}

static bool complain(const char *what) {
    fprintf(stderr, "netdelay: %s: %s\n", what, strerror(errno));
    return false;
}

/* Makes a TUN device in the current namespace. */
static int open_tun(void) {
    struct ifreq request = {.ifr_flags = IFF_TUN | IFF_NO_PI | IFF_VNET_HDR, .ifr_name = "d0"};
    int tun = open("/dev/net/tun", O_RDWR | O_NONBLOCK);
    if (tun < 0 || ioctl(tun, TUNSETIFF, &request)) return complain("/dev/net/tun"), -1;
    unsigned tcp = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6, udp = TUN_F_USO4 | TUN_F_USO6;
    if (option.offload && ioctl(tun, TUNSETOFFLOAD, tcp | udp)) {
        complain("continuing without segmentation offload of UDP");
        ioctl(tun, TUNSETOFFLOAD, TUN_F_CSUM | TUN_F_TSO4);
    }
    return tun;
}

/* Makes the namespace of the node `node` with its address and device. This process remains in the namespace. */
static bool make_node(int node) {
    char path[128];
    shell("ip netns del %s%d 2>/dev/null", option.prefix, node);
    if (!shell("ip netns add %s%d", option.prefix, node)) return false;
    snprintf(path, sizeof path, "/run/netns/%s%d", option.prefix, node);
    int namespace = open(path, O_RDONLY);
    if (namespace < 0 || setns(namespace, CLONE_NEWNET)) return complain(path);
    close(namespace);
    receivers[node].tun = open_tun();
    return receivers[node].tun >= 0 &&
           shell("ip link set lo up && ip link set d0 mtu %d txqueuelen 10000 up && ip addr add %s.%d/24 dev d0",
                 option.mtu, option.net, node + 1);
}

static void remove_nodes(int count) {
    for (int i = 0; i < count; i++) shell("ip netns del %s%d 2>/dev/null", option.prefix, i);
}

/* ---------------- main ---------------- */

static void watch(int epoll, int fd, uint32_t number) {
    struct epoll_event event = {EPOLLIN, {.u32 = number}};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

/* Appends the queue before each namespace, in milliseconds, to the trace. */
static void trace_queues(FILE *trace, int64_t time) {
    static int64_t last;
    if (time - last < TRACE_INTERVAL_NS) return;
    last = time;
    fprintf(trace, "%lld", (long long)(time / 1000000));
    for (int i = 0; i < option.nodes; i++) {
        double queue_ms = (receivers[i].free_at - time) / 1e6;
        fprintf(trace, " %.1f", queue_ms > 0 ? queue_ms : 0);
    }
    fputc('\n', trace);
}

/* Forwards packets until a signal arrives. */
static void run(int epoll, int timer, FILE *trace) {
    while (!stopped) {
        struct epoll_event events[MAX_NODES];
        int64_t due = next_due();
        if (due) {
            struct itimerspec at = {.it_value = {due / 1000000000, due % 1000000000}};
            timerfd_settime(timer, TFD_TIMER_ABSTIME, &at, 0);
        }
        int ready = epoll_wait(epoll, events, MAX_NODES, 1000);
        if (ready < 0 && errno != EINTR) return;
        for (int i = 0; i < ready; i++) {
            uint64_t expirations;
            if (events[i].data.u32 != TIMER_EVENT) read_node(&receivers[events[i].data.u32]);
            else if (read(timer, &expirations, sizeof expirations) < 0) continue;
        }
        int64_t time = now();
        if (trace) trace_queues(trace, time);
        for (int i = 0; i < option.nodes; i++) {
            deliver(receivers[i].tun, &receivers[i].prompt, time);
            deliver(receivers[i].tun, &receivers[i].held, time);
        }
    }
}

/* Stores `value` for the option `name`; returns whether there is such an option. */
static bool take_option(const char *name, const char *value) {
    const struct {
        const char *name;
        double *real;
    } reals[] = {{"--delay-ms", &option.delay_ms}, {"--jitter-ms", &option.jitter_ms},
                 {"--queue-ms", &option.queue_ms}, {"--rate-mbit", &option.rate_mbit},
                 {"--loss", &option.loss},         {"--reorder", &option.reorder}};
    for (size_t i = 0; i < sizeof reals / sizeof *reals; i++) {
        if (strcmp(name, reals[i].name)) continue;
        *reals[i].real = atof(value);
        return true;
    }
    if (!strcmp(name, "--n")) option.nodes = atoi(value);
    else if (!strcmp(name, "--mtu")) option.mtu = atoi(value);
    else if (!strcmp(name, "--prefix")) option.prefix = value;
    else if (!strcmp(name, "--net")) option.net = value;
    else if (!strcmp(name, "--trace")) option.trace = value;
    else if (!strcmp(name, "--no-offload")) option.offload = !atoi(value);
    else return false;
    return true;
}

int main(int count, char **words) {
    for (int i = 1; i < count; i += 2) {
        if (i + 1 < count && take_option(words[i], words[i + 1])) continue;
        fprintf(stderr, "netdelay: unknown option %s, or no value for it; the head of netdelay.c lists options\n", words[i]);
        return 2;
    }
    if (option.nodes < 1 || option.nodes > MAX_NODES) {
        fprintf(stderr, "netdelay: --n is not from 1 to %d\n", MAX_NODES);
        return 2;
    }
    FILE *trace = option.trace ? fopen(option.trace, "w") : NULL;
    if (option.trace && !trace) return complain(option.trace), 2;
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    signal(SIGTERM, stop);
    signal(SIGINT, stop);
    int epoll = epoll_create1(0), timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    for (int i = 0; i < option.nodes; i++) {
        if (stopped || !make_node(i)) {
            remove_nodes(i + 1);
            return 2;
        }
        watch(epoll, receivers[i].tun, i);
    }
    watch(epoll, timer, TIMER_EVENT);
    puts("ready");
    fflush(stdout);
    run(epoll, timer, trace);
    if (trace) fclose(trace);
    remove_nodes(option.nodes);
    fprintf(stderr, "netdelay: %lu wire packets (%lu super), %lu lost, %lu held longer, %lu dropped full\n",
            counts.wire, counts.super, counts.lost, counts.held, counts.full);
    return 0;
}
