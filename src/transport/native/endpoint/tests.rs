//! The memory budgets of all links together, in virtual time. Hostile links of one source and of many make the relay
//! hold as much as they can, while an honest link transfers data over a lossy path.

use core::ops::ControlFlow;
use std::net::IpAddr;

use rand::RngExt as _;

use super::*;
use crate::{
    base::{DialTarget, Lane, RelayId, Slots},
    transport::{
        native::{Ice, dtls::DtlsEvent},
        sctp::{Association, AssociationEvent},
    },
};

/// One budget: 64 steps. A source leases at most 4 of them, a network 16.
const BUDGET: usize = 4 << 20;
/// Most bytes that the links of a source lease.
const SHARE: usize = BUDGET / 16;
/// Bytes that each link may hold without a lease.
const RESERVE: usize = 64 << 10;
/// Most unsent bytes of a link, with a fragment: they don't count against reserve and lease.
const UNSENT: usize = 19 << 10;
/// Most bytes of the message to which the next TSN belongs. Only the honest link has one.
const NEXT_MESSAGE: usize = 64 << 10;
/// Number of fragments with which a link leases three steps.
const THREE_STEPS: u32 = 170;
/// Payload of a fragment.
const FRAGMENT: usize = 1_164;
/// Bytes that the honest end sends in each millisecond, and in all.
const HONEST_RATE: usize = 2 << 10;
const HONEST_BYTES: usize = 4 << 20;
/// Number of links of the fullest source. The other sources have one each.
const LINKS_OF_FULLEST: usize = 10;

const RELAY: [u8; 4] = [192, 0, 2, 1];
const HONEST: [u8; 4] = [198, 51, 100, 1];
const FULLEST: [u8; 4] = [203, 0, 113, 1];

/// The data that hostile links make the relay hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Attack {
    /// Fragments of messages whose first fragment never arrives.
    Unfinished,
    /// Data whose first fragment they never acknowledge.
    Unacknowledged,
}

/// The network and the clock.
struct Network {
    now: Instant,
    clock: StdClock,
    rng: StdRng,
    /// Datagrams by time of arrival and number: source, destination and bytes.
    in_flight: BTreeMap<(Instant, u64), (SocketAddr, SocketAddr, Vec<u8>)>,
    sent: u64,
}

impl Network {
    /// Carries a datagram: 10 ms and 2 % of losses to and from the honest end, 50 ms for hostile links.
    fn send(&mut self, from: SocketAddr, to: SocketAddr, datagram: &[u8]) {
        let honest = [from, to].iter().any(|address| address.ip() == IpAddr::from(HONEST));
        if honest && self.rng.random_bool(0.02) {
            return;
        }
        let due = self.now.after(Duration::from_millis(if honest { 10 } else { 50 }));
        self.sent += 1;
        self.in_flight.insert((due, self.sent), (from, to, datagram.to_vec()));
    }

    /// Sends the output of an endpoint at `from`.
    fn send_output(&mut self, from: SocketAddr, endpoint: &mut Endpoint) {
        while let Some(batch) = endpoint.poll_datagrams(self.now) {
            let to = batch.route.remote;
            batch.bytes.chunks(batch.segment).for_each(|datagram| self.send(from, to, datagram));
        }
    }
}

fn relay_address() -> SocketAddr {
    (RELAY, 4443).into()
}

fn honest_address() -> SocketAddr {
    (HONEST, 5000).into()
}

/// A hostile peer: an honest handshake, then forged packets.
struct Hostile {
    address: SocketAddr,
    /// Most fragments that it sends or receives.
    quota: u32,
    /// Fragments that it has sent or received.
    fragments: u32,
    dtls: Dtls,
    out: Datagrams,
    association: Option<Association>,
    is_open: bool,
    /// Ports and verification tag of its packets.
    header: [u8; 8],
    /// Its first TSN, and the relay's.
    first_tsns: [u32; 2],
    /// Distance of the highest TSN received from the relay's first.
    highest: u32,
}

impl Hostile {
    fn new(network: &Network, config: &DtlsConfig, address: SocketAddr, quota: u32) -> Self {
        let certificate = Certificate::generate().unwrap();
        Self {
            address,
            quota,
            fragments: 0,
            dtls: Dtls::dial(config, &certificate, network.clock.to_std(network.now)).unwrap(),
            out: Datagrams::default(),
            association: None,
            is_open: false,
            header: [0; 8],
            first_tsns: [0; 2],
            highest: 0,
        }
    }

    fn handle_datagram(&mut self, network: &mut Network, datagram: &mut [u8]) {
        // The relay may have ended the association.
        let _ = self.dtls.handle_datagram(network.clock.to_std(network.now), datagram);
        self.send_output(network, datagram);
    }

    /// Handles and sends the output of DTLS after `datagram`, and of SCTP.
    fn send_output(&mut self, network: &mut Network, datagram: &[u8]) {
        let (mut connected, mut packets) = (false, Vec::new());
        self.dtls.drain(datagram, &mut self.out, route(), 1, |event| {
            match event {
                DtlsEvent::Connected => connected = true,
                DtlsEvent::Packet(packet) => packets.push(packet.to_vec()),
                DtlsEvent::PeerCertificate(_) | DtlsEvent::Closed => {}
            }
            ControlFlow::Continue(())
        });
        if connected {
            let config = sctp::Config::new(1_195);
            self.association = Some(Association::connect(&config, network.now, &mut network.rng));
        }
        packets.iter().for_each(|packet| self.handle_packet(network.now, packet));
        if let Some(mut association) = self.association.take() {
            let mut buffer = [0; 1_195];
            loop {
                let length = association.poll_packet(network.now, &mut buffer);
                let packet = &buffer[..length];
                match packet.get(12) {
                    // INIT.
                    Some(1) => self.first_tsns[0] = read_u32(packet, 28),
                    Some(_) => self.header = packet[..8].try_into().unwrap(),
                    None => break,
                }
                self.seal(packet);
            }
            let mut events = core::iter::from_fn(|| association.poll_event());
            self.is_open = events.any(|event| matches!(event, AssociationEvent::Open { .. }));
            self.association = Some(association).filter(|_| !self.is_open);
        }
        while let Some(batch) = self.out.pop() {
            network.send(self.address, relay_address(), batch.bytes);
        }
    }

    fn handle_packet(&mut self, now: Instant, packet: &[u8]) {
        if let Some(association) = &mut self.association {
            // INIT ACK.
            if packet[12] == 2 {
                self.first_tsns[1] = read_u32(packet, 28);
            }
            return association.handle_packet(now, packet);
        }
        let mut chunks = &packet[12..];
        while let [kind, _, high, low, body @ ..] = chunks {
            if *kind == 0 {
                self.highest = self.highest.max(read_u32(body, 0).wrapping_sub(self.first_tsns[1]));
            }
            let length = usize::from(u16::from_be_bytes([*high, *low])).max(4).next_multiple_of(4);
            chunks = &chunks[length.min(chunks.len())..];
        }
    }

    /// Seals a packet of less than 1,200 bytes.
    fn seal(&mut self, packet: &[u8]) {
        let header = self.dtls.header_len();
        let buffer = self.out.tail(1_300);
        buffer[header..header + packet.len()].copy_from_slice(packet);
        let length = self.dtls.seal(buffer, packet.len()).unwrap();
        self.out.commit(route(), length, 1);
    }

    /// Sends a packet with one chunk, without a checksum.
    fn send_chunk(&mut self, network: &mut Network, kind: u8, body: &[u8]) {
        let length = u16::try_from(body.len() + 4).unwrap().to_be_bytes();
        self.seal(&[&self.header[..], &[0; 4], &[kind, 0], &length, body].concat());
        self.send_output(network, &[]);
    }

    /// Sends the next fragment of a message whose first fragment is missing.
    fn send_fragment(&mut self, network: &mut Network) {
        self.fragments += 1;
        let tsn = self.first_tsns[0].wrapping_add(self.fragments).to_be_bytes();
        self.send_chunk(network, 0, &[&tsn[..], &[0, 0, 0, 0, 0, 0, 0, 53], &[1; FRAGMENT]].concat());
    }

    /// Acknowledges all data up to the highest TSN received, except the first fragment.
    fn acknowledge(&mut self, network: &mut Network) {
        let cumulative = self.first_tsns[1].wrapping_sub(1).to_be_bytes();
        let window = (16_u32 << 20).to_be_bytes();
        let last = u16::try_from(self.highest + 1).unwrap().to_be_bytes();
        self.send_chunk(network, 3, &[&cumulative[..], &window, &[0, 1, 0, 0, 0, 2], &last].concat());
    }
}

fn read_u32(bytes: &[u8], at: usize) -> u32 {
    u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
}

/// The route of a hostile peer, which has one.
fn route() -> SocketRoute {
    SocketRoute { port: 0, remote: relay_address() }
}

/// A relay, an honest end and hostile peers.
struct Bench {
    attack: Attack,
    network: Network,
    relay: Endpoint,
    honest: Endpoint,
    hostiles: HashMap<SocketAddr, Hostile>,
    /// The other end of each link of the relay, and the room that the link has reported.
    links: BTreeMap<LinkId, (SocketAddr, usize)>,
    /// Links that have ended, in order.
    ended: Vec<(SocketAddr, LinkClose)>,
    /// The link of the honest end, its room, and the bytes sent and received over it.
    honest_link: Option<LinkId>,
    honest_room: usize,
    honest_sent: usize,
    honest_received: usize,
    /// Most bytes that the relay has held.
    most_held: usize,
}

impl Bench {
    /// 16 sources in 4 networks, each with one link of at most three steps, and one source with several links.
    fn new(attack: Attack, seed: u64) -> Self {
        let start = StdInstant::now();
        let mut config = EndpointConfig::new(Certificate::generate().unwrap());
        config.accept = Some(Ice::new("umbelTest", "umbelumbelumbelumbelumbel").unwrap());
        config.receive_memory = BUDGET;
        config.send_memory = BUDGET;
        let mut relay = Endpoint::new(config, start).unwrap();
        relay.set_ports(&[Port { id: 0, purpose: PortUse::Listen, ipv6: false }], 64);
        let mut honest = Endpoint::new(EndpointConfig::new(Certificate::generate().unwrap()), start).unwrap();
        honest.set_ports(&[Port { id: 0, purpose: PortUse::Dial, ipv6: false }], 64);
        let network = Network {
            now: Instant::START,
            clock: StdClock(start),
            rng: StdRng::seed_from_u64(seed),
            in_flight: BTreeMap::new(),
            sent: 0,
        };
        let mut bench = Self {
            attack,
            network,
            relay,
            honest,
            hostiles: HashMap::new(),
            links: BTreeMap::new(),
            ended: Vec::new(),
            honest_link: None,
            honest_room: 0,
            honest_sent: 0,
            honest_received: 0,
            most_held: 0,
        };
        bench.add_sources(0..4, THREE_STEPS);
        for port in (1..).take(LINKS_OF_FULLEST) {
            bench.add((FULLEST, port).into(), u32::MAX);
        }
        bench
    }

    /// Adds four sources in each of these networks, with one link each.
    fn add_sources(&mut self, networks: core::ops::Range<u8>, quota: u32) {
        for network in networks {
            (1..=4).for_each(|host| self.add(([10, 0, network, host], 1).into(), quota));
        }
    }

    fn add(&mut self, address: SocketAddr, quota: u32) {
        let mut hostile = Hostile::new(&self.network, &self.relay.dtls, address, quota);
        hostile.send_output(&mut self.network, &[]);
        self.hostiles.insert(address, hostile);
    }

    fn dial_honest(&mut self) {
        let target = DialTarget {
            relay: RelayId::from_bytes([7; 32]),
            addresses: vec![relay_address()],
            ice_ufrag: "umbelTest".into(),
            ice_password: "umbelumbelumbelumbelumbel".into(),
            fingerprint: self.relay.fingerprint(),
        };
        self.honest.handle_transmit(self.network.now, Transmit::Dial(target));
    }

    /// Advances time until `done` holds.
    fn run_until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let until = self.network.now.after(Duration::from_secs(5));
        while !done(self) {
            assert!(self.network.now < until, "not within 5 s: {what}; ended {:?}", self.ended);
            self.step();
            self.assert_bounds();
        }
    }

    /// Advances time by a millisecond.
    fn step(&mut self) {
        self.network.now = self.network.now.after(Duration::from_millis(1));
        let now = self.network.now;
        while let Some(first) = self.network.in_flight.first_entry().filter(|first| first.key().0 <= now) {
            let (from, to, mut datagram) = first.remove();
            let route = SocketRoute { port: 0, remote: from };
            if to == relay_address() {
                self.relay.handle_datagram(now, route, &mut datagram);
            } else if to == honest_address() {
                self.honest.handle_datagram(now, route, &mut datagram);
            } else if let Some(hostile) = self.hostiles.get_mut(&to) {
                hostile.handle_datagram(&mut self.network, &mut datagram);
            }
        }
        for endpoint in [&mut self.relay, &mut self.honest] {
            if endpoint.poll_timeout().is_some_and(|due| due <= now) {
                endpoint.handle_timeout(now);
            }
        }
        self.handle_events();
        self.send_honest();
        self.send_hostile();
        self.network.send_output(relay_address(), &mut self.relay);
        self.network.send_output(honest_address(), &mut self.honest);
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.relay.poll_link_event() {
            match event {
                LinkEvent::Opened { link, opened } => {
                    self.links.insert(link, (opened.peer_address.0, 0));
                }
                LinkEvent::Room { link, bytes } => self.links.get_mut(&link).unwrap().1 = bytes,
                LinkEvent::Message { message, .. } => self.honest_received += message.len(),
                LinkEvent::Closed { link, reason } => self.ended.push((self.links.remove(&link).unwrap().0, reason)),
                other => panic!("{other:?}"),
            }
        }
        while let Some(event) = self.honest.poll_link_event() {
            match event {
                LinkEvent::Opened { link, .. } => self.honest_link = Some(link),
                LinkEvent::Room { bytes, .. } => self.honest_room = bytes,
                LinkEvent::Message { message, .. } => self.honest_received += message.len(),
                other => panic!("the honest link: {other:?}"),
            }
        }
    }

    /// The sender of the honest link sends data, if its link has room.
    fn send_honest(&mut self) {
        let message = Slots::from(vec![7; HONEST_RATE]);
        let relay_link = self.links.iter_mut().find(|(_, (address, _))| *address == honest_address());
        let (Some(at_honest), Some((at_relay, (_, room_at_relay)))) = (self.honest_link, relay_link) else { return };
        let (sender, link, room) = match self.attack {
            Attack::Unfinished => (&mut self.honest, at_honest, &mut self.honest_room),
            Attack::Unacknowledged => (&mut self.relay, *at_relay, room_at_relay),
        };
        if *room > 0 && self.honest_sent < HONEST_BYTES {
            *room = room.saturating_sub(message.len());
            self.honest_sent += message.len();
            sender.handle_transmit(self.network.now, Transmit::Message { link, lane: Lane::FIRST, message });
        }
    }

    /// The hostile links send a fragment each, or the relay sends to them what their links accept.
    fn send_hostile(&mut self) {
        let ended: Vec<_> = self.ended.iter().map(|(address, _)| *address).collect();
        self.hostiles.retain(|address, _| !ended.contains(address));
        match self.attack {
            Attack::Unfinished => {
                for hostile in self.hostiles.values_mut() {
                    if hostile.is_open && hostile.fragments < hostile.quota {
                        hostile.send_fragment(&mut self.network);
                    }
                }
            }
            Attack::Unacknowledged => {
                for (link, (address, room)) in &mut self.links {
                    let Some(hostile) = self.hostiles.get_mut(address) else { continue };
                    while *room > 0 && hostile.fragments < hostile.quota {
                        *room = room.saturating_sub(FRAGMENT);
                        hostile.fragments += 1;
                        let message = Slots::from(vec![1; FRAGMENT]);
                        let transmit = Transmit::Message { link: *link, lane: Lane::FIRST, message };
                        self.relay.handle_transmit(self.network.now, transmit);
                    }
                }
                let hostiles = self.hostiles.values_mut().filter(|hostile| hostile.highest > 0);
                if self.network.now.as_nanos().is_multiple_of(20_000_000) {
                    hostiles.for_each(|hostile| hostile.acknowledge(&mut self.network));
                }
            }
        }
    }

    /// Asserts that all links together, and those of each source, hold no more than their budget or share.
    fn assert_bounds(&mut self) {
        let mut sources = HashMap::<IpAddr, (usize, usize)>::new();
        for link in self.relay.links.values() {
            let (held, links) = sources.entry(link.route.remote.ip()).or_default();
            *held += link.held(self.attack == Attack::Unfinished);
            *links += 1;
        }
        let of_links = |links| links * (RESERVE + UNSENT) + NEXT_MESSAGE;
        for (address, (held, links)) in &sources {
            assert!(*held <= SHARE + of_links(*links), "{address} holds {held} bytes over {links} links");
        }
        let (held, links) = sources.values().fold((0, 0), |sum, source| (sum.0 + source.0, sum.1 + source.1));
        assert!(held <= BUDGET + of_links(links), "{held} bytes over {links} links");
        self.most_held = self.most_held.max(held);
    }
}

fn assert_honest_link_survives(attack: Attack) {
    let mut bench = Bench::new(attack, 9);
    let links = bench.hostiles.len();
    bench.run_until("all hostile links are open", |bench| bench.links.len() == links);
    bench.dial_honest();
    bench.run_until("five links have ended", |bench| bench.ended.len() >= LINKS_OF_FULLEST / 2);
    let fullest = |(address, close): &(SocketAddr, LinkClose)| {
        address.ip() == IpAddr::from(FULLEST) && *close == LinkClose::Overloaded
    };
    assert!(bench.ended.iter().all(fullest), "the links of the fullest source end first: {:?}", bench.ended);
    // Now all sources hold as much as they can, and further ones join.
    bench.hostiles.values_mut().for_each(|hostile| hostile.quota = u32::MAX);
    bench.add_sources(4..8, u32::MAX);
    bench.run_until("the honest transfer is complete", |bench| bench.honest_received == HONEST_BYTES);
    assert!(bench.ended.iter().all(|(address, _)| *address != honest_address()));
    assert!(bench.most_held > BUDGET, "the budget was exhausted: {} bytes", bench.most_held);
}

#[test]
fn links_with_unfinished_messages_hold_no_more_than_the_budget_and_end_before_an_honest_lossy_link() {
    assert_honest_link_survives(Attack::Unfinished);
}

#[test]
fn links_that_acknowledge_nothing_hold_no_more_than_the_budget_and_end_before_an_honest_lossy_link() {
    assert_honest_link_survives(Attack::Unacknowledged);
}
