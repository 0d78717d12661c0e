//! A simulated network of endpoints: datagrams pass through a seeded network in virtual time.

use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashMap},
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant as StdInstant},
};

use umbel::{
    base::{DialTarget, Instant, LinkEvent, RelayId, Transmit},
    transport::{
        Transport,
        native::{Certificate, Endpoint, EndpointConfig, Ice, Port, PortUse, SocketRoute},
    },
};

pub(crate) const UFRAG: &str = "umbelTest";
pub(crate) const PASSWORD: &str = "umbelumbelumbelumbelumbel";

/// Settings of a relay that accepts dials.
pub(crate) fn relay_config() -> EndpointConfig {
    let mut config = EndpointConfig::new(Certificate::generate().unwrap());
    config.accept = Some(Ice::new(UFRAG, PASSWORD).unwrap());
    config
}

/// Settings of a client.
pub(crate) fn client_config() -> EndpointConfig {
    let mut config = EndpointConfig::new(Certificate::generate().unwrap());
    config.fresh_certificate_per_dial = true;
    config
}

/// The dial target of `endpoint` at `address`.
pub(crate) fn target(endpoint: &Endpoint, address: SocketAddr) -> DialTarget {
    DialTarget {
        relay: RelayId::from_bytes([7; 32]),
        addresses: vec![address],
        ice_ufrag: UFRAG.into(),
        ice_password: PASSWORD.into(),
        fingerprint: endpoint.fingerprint(),
    }
}

/// The random number generator SplitMix64, which is sufficient for a simulated network.
pub(crate) struct SplitMix64(pub u64);

impl SplitMix64 {
    pub(crate) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Whether an event of this probability happens.
    pub(crate) fn happens(&mut self, probability: f64) -> bool {
        (self.next() >> 11) as f64 / ((1u64 << 53) as f64) < probability
    }
}

/// Fractions of the datagrams with each fault.
#[derive(Clone, Copy, Default)]
pub(crate) struct Faults {
    pub(crate) lost: f64,
    pub(crate) duplicated: f64,
    /// Delayed so that later datagrams overtake them.
    pub(crate) reordered: f64,
    /// A modified copy from the same address arrives first; the original follows.
    pub(crate) forged: f64,
}

/// A datagram in flight: arrival time, sequence number, receiving node, source address, and the receiving port followed
/// by the bytes.
type InFlight = (Instant, u64, usize, SocketAddr, Vec<u8>);

pub(crate) struct World {
    pub(crate) now: Instant,
    pub(crate) start: StdInstant,
    pub(crate) delay: Duration,
    pub(crate) faults: Faults,
    pub(crate) rng: SplitMix64,
    pub(crate) nodes: Vec<Node>,
    in_flight: BinaryHeap<Reverse<InFlight>>,
    by_address: HashMap<SocketAddr, (usize, u8)>,
    /// Number of scheduled datagrams.
    scheduled: u64,
}

pub(crate) struct Node {
    pub(crate) endpoint: Endpoint,
    pub(crate) events: Vec<LinkEvent>,
    addresses: [SocketAddr; 3],
    /// Number of sent bytes.
    pub(crate) bytes_sent: usize,
}

impl Node {
    /// The listening address.
    pub(crate) fn address(&self) -> SocketAddr {
        self.addresses[0]
    }

    /// The source address of dials.
    pub(crate) fn dial_address(&self) -> SocketAddr {
        self.addresses[1]
    }
}

impl World {
    pub(crate) fn new(seed: u64) -> Self {
        Self {
            now: Instant::START,
            start: StdInstant::now(),
            delay: Duration::from_millis(5),
            faults: Faults::default(),
            rng: SplitMix64(seed),
            nodes: Vec::new(),
            in_flight: BinaryHeap::new(),
            by_address: HashMap::new(),
            scheduled: 0,
        }
    }

    /// Adds a node that listens on one port and dials from two others.
    pub(crate) fn add(&mut self, config: EndpointConfig) -> usize {
        let host = self.nodes.len() as u8 + 1;
        self.add_at(config, [10, 0, 0, host].into())
    }

    /// Adds a node at this address, which other nodes may have too.
    pub(crate) fn add_at(&mut self, config: EndpointConfig, address: IpAddr) -> usize {
        let node = self.nodes.len();
        let addresses = [0, 1, 2].map(|port| SocketAddr::from((address, 4443 + 3 * node as u16 + port)));
        let mut endpoint = Endpoint::new(config, self.start).unwrap();
        endpoint.set_ports(
            &[
                Port { id: 0, purpose: PortUse::Listen, ipv6: false },
                Port { id: 1, purpose: PortUse::Dial, ipv6: false },
                Port { id: 2, purpose: PortUse::Dial, ipv6: false },
            ],
            64,
        );
        for (port, address) in (0..).zip(addresses) {
            self.by_address.insert(address, (node, port));
        }
        self.nodes.push(Node { endpoint, events: Vec::new(), addresses, bytes_sent: 0 });
        node
    }

    pub(crate) fn transmit(&mut self, node: usize, transmit: Transmit) {
        self.nodes[node].endpoint.handle_transmit(self.now, transmit);
        self.collect(node);
    }

    pub(crate) fn dial(&mut self, from: usize, to: usize) {
        let target = target(&self.nodes[to].endpoint, self.nodes[to].address());
        self.transmit(from, Transmit::Dial(target));
    }

    /// Injects a datagram with an arbitrary source address.
    pub(crate) fn inject(&mut self, to: usize, port: u8, from: SocketAddr, datagram: &[u8]) {
        let now = self.now;
        self.nodes[to].endpoint.handle_datagram(now, SocketRoute { port, remote: from }, &mut datagram.to_vec());
        self.collect(to);
    }

    /// Takes a node's events and output.
    fn collect(&mut self, index: usize) {
        let node = &mut self.nodes[index];
        let mut sent = Vec::new();
        while let Some(batch) = node.endpoint.poll_datagrams(self.now) {
            node.bytes_sent += batch.bytes.len();
            for datagram in batch.bytes.chunks(batch.segment) {
                assert!(datagram.len() <= 1_232, "{} bytes", datagram.len());
                let from = node.addresses[usize::from(batch.route.port)];
                sent.push((from, batch.route.remote, datagram.to_vec()));
            }
        }
        while let Some(event) = node.endpoint.poll_link_event() {
            node.events.push(event);
        }
        for (from, to, datagram) in sent {
            self.send(from, to, datagram);
        }
    }

    fn send(&mut self, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        let Some((node, _)) = self.by_address.get(&to).copied() else { return };
        let faults = self.faults;
        if self.rng.happens(faults.lost) {
            return;
        }
        let mut arrives = self.now.after(self.delay);
        if self.rng.happens(faults.forged) {
            let mut forged = datagram.clone();
            let at = (self.rng.next() as usize) % forged.len();
            forged[at] ^= 1 << (self.rng.next() % 8);
            self.schedule(arrives, node, from, to, forged);
        }
        if self.rng.happens(faults.duplicated) {
            self.schedule(arrives.after(self.delay / 2), node, from, to, datagram.clone());
        }
        if self.rng.happens(faults.reordered) {
            arrives = arrives.after(self.delay * 2);
        }
        self.schedule(arrives, node, from, to, datagram);
    }

    fn schedule(&mut self, arrives: Instant, node: usize, from: SocketAddr, to: SocketAddr, datagram: Vec<u8>) {
        self.scheduled += 1;
        let (_, port) = self.by_address[&to];
        let mut bytes = vec![port];
        bytes.extend(datagram);
        self.in_flight.push(Reverse((arrives, self.scheduled, node, from, bytes)));
    }

    /// The time of the next event, if there is one.
    fn next(&self) -> Option<Instant> {
        let timeouts = self.nodes.iter().filter_map(|node| node.endpoint.poll_timeout());
        timeouts.chain(self.in_flight.peek().map(|Reverse(datagram)| datagram.0)).min()
    }

    /// Advances time until `done` returns true; panics with `what` after `limit`.
    pub(crate) fn run_until(&mut self, limit: Duration, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now.after(limit);
        while !done(self) {
            let next = self.next().filter(|next| *next <= end);
            let Some(next) = next else { panic!("within {limit:?}: {what}") };
            self.step(next);
        }
    }

    /// Advances time by `span`.
    pub(crate) fn run_for(&mut self, span: Duration) {
        let end = self.now.after(span);
        while let Some(next) = self.next().filter(|next| *next <= end) {
            self.step(next);
        }
        self.now = end;
    }

    fn step(&mut self, next: Instant) {
        self.now = self.now.max(next);
        let mut received = vec![false; self.nodes.len()];
        while let Some(Reverse(datagram)) = self.in_flight.peek()
            && datagram.0 <= self.now
        {
            let Some(Reverse((_, _, node, from, mut bytes))) = self.in_flight.pop() else { break };
            let route = SocketRoute { port: bytes[0], remote: from };
            self.nodes[node].endpoint.handle_datagram(self.now, route, &mut bytes[1..]);
            received[node] = true;
        }
        for (index, received) in received.into_iter().enumerate() {
            let endpoint = &mut self.nodes[index].endpoint;
            let due = endpoint.poll_timeout().is_some_and(|at| at <= self.now);
            if due {
                endpoint.handle_timeout(self.now);
            }
            if due || received {
                self.collect(index);
            }
        }
    }
}
