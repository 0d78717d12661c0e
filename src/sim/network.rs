//! The simulated network: links between nodes.
//!
//! A message leaves at the link's rate and arrives after the link's delay. Each lost datagram delays the message by one
//! more round trip, as its retransmission would. Messages of one lane arrive in order; messages of different lanes may
//! overtake each other.

use core::{net::SocketAddr, time::Duration};
use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap, VecDeque},
};

use rand::{Rng, RngExt as _, SeedableRng, rngs::ChaCha8Rng};

use crate::{
    base::{
        Counter as _, DialError, DialTarget, Instant, LANES, Lane, LinkClose, LinkEvent, LinkId, LinkOpened, Redacted,
        RelayId, Slots, Transmit,
    },
    transport::Transport,
};

/// Bytes in a link's send buffer at which the link has no room.
const ROOM_THRESHOLD: usize = 256 << 10;
/// Maximum bytes of a message in one datagram.
const DATAGRAM_LEN: usize = 1200;
/// Time after which a dial to an address without a listener fails.
const DIAL_TIMEOUT: Duration = Duration::from_secs(5);
/// Time without data after which a link to a crashed node closes.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(3);

/// Properties of every link of the network.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LinkProperties {
    /// Minimum one-way delay.
    pub delay: Duration,
    /// Maximum one-way addition to `delay`, uniformly distributed.
    pub jitter: Duration,
    /// Probability that a datagram is lost, 0 to 1.
    pub loss: f64,
    /// Bytes per second of each link in each direction.
    pub rate: u64,
}

impl Default for LinkProperties {
    /// A fast link: 10 ms, no jitter, no loss, 100 MB/s.
    fn default() -> Self {
        Self { delay: Duration::from_millis(10), jitter: Duration::ZERO, loss: 0.0, rate: 100_000_000 }
    }
}

/// A node of the simulation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub usize);

/// All links, and the data in flight.
pub struct Network {
    rng: ChaCha8Rng,
    properties: LinkProperties,
    interfaces: Vec<NetworkInterface>,
    ends: BTreeMap<LinkId, LinkEnd>,
    schedule: BinaryHeap<Reverse<ScheduleEntry>>,
    next_link: u64,
    next_serial: u64,
}

/// The network interface of a node.
struct NetworkInterface {
    address: SocketAddr,
    certificate: [u8; 32],
    listens: bool,
    alive: bool,
    /// The end of the last outage of the node's line.
    offline_until: Instant,
    events: VecDeque<LinkEvent>,
}

/// One end of a link.
struct LinkEnd {
    node: NodeId,
    other: LinkId,
    /// The departure time of the last message.
    sends_until: Instant,
    /// The arrival time of the last message of each lane.
    lanes_until: [Instant; LANES as usize],
    /// Bytes of messages that have not departed.
    buffered: usize,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct ScheduleEntry {
    at: Instant,
    serial: u64,
    event: ScheduledEvent,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum ScheduledEvent {
    DialResult { from: NodeId, relay: RelayId, fingerprint: [u8; 32], to: Option<NodeId> },
    Departure { link: LinkId, bytes: usize },
    Arrival { link: LinkId, lane: u8, message: Slots },
    Closure { link: LinkId, by_silence: bool },
}

impl Network {
    /// An empty network; `seed` determines all random values of the network.
    #[must_use]
    pub fn new(seed: u64, properties: LinkProperties) -> Self {
        Self {
            rng: ChaCha8Rng::seed_from_u64(seed),
            properties,
            interfaces: Vec::new(),
            ends: BTreeMap::new(),
            schedule: BinaryHeap::new(),
            next_link: 1,
            next_serial: 0,
        }
    }

    /// Adds a node at `address`. If `listens`, others can dial it.
    pub fn add_node(&mut self, address: SocketAddr, listens: bool) -> NodeId {
        let mut certificate = [0; 32];
        self.rng.fill_bytes(&mut certificate);
        let node = NodeId(self.interfaces.len());
        self.interfaces.push(NetworkInterface {
            address,
            certificate,
            listens,
            alive: true,
            offline_until: Instant::START,
            events: VecDeque::new(),
        });
        node
    }

    /// The dial target of `node`, which must authenticate as `relay`.
    #[must_use]
    pub fn dial_target(&self, node: NodeId, relay: RelayId) -> Option<DialTarget> {
        let interface = self.interfaces.get(node.0)?;
        Some(DialTarget {
            relay,
            addresses: vec![interface.address],
            ice_ufrag: "simu".to_owned(),
            ice_password: "simulatedsimulatedsimu".to_owned(),
            fingerprint: interface.certificate,
        })
    }

    /// Ends `node` without closing its links, like a loss of power.
    pub fn crash(&mut self, now: Instant, node: NodeId) {
        if let Some(interface) = self.interfaces.get_mut(node.0) {
            interface.alive = false;
            interface.events.clear();
        }
        let other_ends: Vec<_> = self.ends.values().filter(|end| end.node == node).map(|end| end.other).collect();
        for link in other_ends {
            self.schedule(now.after(SILENCE_TIMEOUT), ScheduledEvent::Closure { link, by_silence: true });
        }
    }

    /// Interrupts the line of `node` for `duration`, at least 3 s. The node's links end by silence. A dial during the
    /// outage succeeds only if the outage ends before the dial's timeout.
    pub fn interrupt(&mut self, now: Instant, node: NodeId, duration: Duration) {
        if let Some(interface) = self.interfaces.get_mut(node.0) {
            interface.offline_until = now.after(duration.max(SILENCE_TIMEOUT));
        }
        let own = self.ends.iter().filter(|(_, end)| end.node == node);
        let links: Vec<_> = own.flat_map(|(link, end)| [*link, end.other]).collect();
        for link in links {
            self.schedule(now.after(SILENCE_TIMEOUT), ScheduledEvent::Closure { link, by_silence: true });
        }
    }

    /// The time from which all `nodes` are online, at the earliest `now`.
    fn online_at(&self, now: Instant, nodes: [Option<NodeId>; 2]) -> Instant {
        let interfaces = nodes.into_iter().flatten().filter_map(|node| self.interfaces.get(node.0));
        interfaces.map(|interface| interface.offline_until).fold(now, Instant::max)
    }

    /// The network as `node`'s transport.
    pub const fn transport(&mut self, node: NodeId) -> NodeTransport<'_> {
        NodeTransport { network: self, node }
    }

    /// The time of the next scheduled event: a dial's result, a departure, an arrival or a closure.
    #[must_use]
    pub fn next_event_at(&self) -> Option<Instant> {
        self.schedule.peek().map(|Reverse(scheduled)| scheduled.at)
    }

    /// Delivers all due events, and returns the node of each event for a machine; a node may occur several times.
    pub fn deliver(&mut self, now: Instant) -> Vec<NodeId> {
        let mut affected = Vec::new();
        while let Some(Reverse(scheduled)) = self.schedule.peek() {
            if scheduled.at > now {
                break;
            }
            if let Some(Reverse(scheduled)) = self.schedule.pop() {
                self.execute(scheduled, &mut affected);
            }
        }
        affected
    }

    fn dial(&mut self, now: Instant, from: NodeId, target: &DialTarget) {
        let to = self.interfaces.iter().position(|interface| {
            interface.listens && interface.alive && target.addresses.contains(&interface.address)
        });
        let round_trips = 3;
        let outage = self.online_at(now, [Some(from), to.map(NodeId)]).since(now);
        let to = to.map(NodeId).filter(|_| outage < DIAL_TIMEOUT);
        let handshake = self.properties.delay.saturating_mul(2 * round_trips);
        let duration = if to.is_some() { outage.saturating_add(handshake) } else { DIAL_TIMEOUT };
        let event = ScheduledEvent::DialResult { from, relay: target.relay, fingerprint: target.fingerprint, to };
        self.schedule(now.after(duration), event);
    }

    fn send(&mut self, now: Instant, link: LinkId, lane: Lane, message: Slots) {
        let properties = self.properties;
        let extra_delay = self.extra_delay(message.len());
        let Some(end) = self.ends.get_mut(&link) else { return };
        end.buffered = end.buffered.saturating_add(message.len());
        let departs = end.sends_until.max(now).after(sending_time(message.len(), properties.rate));
        end.sends_until = departs;
        let (node, other) = (end.node, end.other);
        let mut arrives = departs.after(properties.delay).after(extra_delay);
        if let Some(lane_until) = end.lanes_until.get_mut(usize::from(lane.value())) {
            arrives = arrives.max(*lane_until);
            *lane_until = arrives;
        }
        let other_node = self.ends.get(&other).map(|end| end.node);
        self.schedule(departs, ScheduledEvent::Departure { link, bytes: message.len() });
        if self.online_at(now, [Some(node), other_node]) > now {
            return;
        }
        self.schedule(arrives, ScheduledEvent::Arrival { link: other, lane: lane.value(), message });
    }

    /// The delay of a message beyond the link's minimum: jitter, and one round trip for each lost datagram.
    fn extra_delay(&mut self, length: usize) -> Duration {
        let jitter = self.properties.jitter.mul_f64(self.rng.random::<f64>());
        let datagrams = length.div_ceil(DATAGRAM_LEN);
        let lost = (0..datagrams).filter(|_| self.rng.random::<f64>() < self.properties.loss).count();
        let round_trip = self.properties.delay.saturating_mul(2);
        jitter.saturating_add(round_trip.saturating_mul(u32::try_from(lost).unwrap_or(u32::MAX)))
    }

    fn close(&mut self, now: Instant, link: LinkId) {
        let Some(end) = self.ends.remove(&link) else { return };
        let last = end.lanes_until.into_iter().max().unwrap_or(now).max(now.after(self.properties.delay));
        self.schedule(last, ScheduledEvent::Closure { link: end.other, by_silence: false });
    }

    fn schedule(&mut self, at: Instant, event: ScheduledEvent) {
        let serial = self.next_serial;
        self.next_serial = serial.saturating_add(1);
        self.schedule.push(Reverse(ScheduleEntry { at, serial, event }));
    }

    fn execute(&mut self, scheduled: ScheduleEntry, affected: &mut Vec<NodeId>) {
        match scheduled.event {
            ScheduledEvent::DialResult { from, relay, fingerprint, to } => {
                self.finish_dial(scheduled.at, from, relay, fingerprint, to, affected);
            }
            ScheduledEvent::Departure { link, bytes } => {
                if let Some(end) = self.ends.get_mut(&link) {
                    end.buffered = end.buffered.saturating_sub(bytes);
                    let (node, room) = (end.node, ROOM_THRESHOLD.saturating_sub(end.buffered));
                    self.emit(node, LinkEvent::Room { link, bytes: room }, affected);
                }
            }
            ScheduledEvent::Arrival { link, lane, message } => {
                if let (Some(end), Some(lane)) = (self.ends.get(&link), Lane::new(lane)) {
                    self.emit(end.node, LinkEvent::Message { link, lane, message }, affected);
                }
            }
            ScheduledEvent::Closure { link, by_silence } => {
                if let Some(end) = self.ends.remove(&link) {
                    let reason = if by_silence { LinkClose::TimedOut } else { LinkClose::ByPeer };
                    self.emit(end.node, LinkEvent::Closed { link, reason }, affected);
                }
            }
        }
    }

    fn finish_dial(
        &mut self,
        now: Instant,
        from: NodeId,
        relay: RelayId,
        fingerprint: [u8; 32],
        to: Option<NodeId>,
        affected: &mut Vec<NodeId>,
    ) {
        let Some(dialler) = self.interfaces.get(from.0) else { return };
        let (dialler_certificate, dialler_address) = (dialler.certificate, dialler.address);
        let listener = to.and_then(|to| {
            self.interfaces.get(to.0).filter(|interface| interface.alive).map(|interface| (to, interface))
        });
        let Some((to, listener)) = listener else {
            let error = DialError::TimedOut;
            return self.emit(from, LinkEvent::DialFailed { relay, error }, affected);
        };
        let (listener_certificate, listener_address) = (listener.certificate, listener.address);
        if listener_certificate != fingerprint {
            let error = DialError::WrongFingerprint;
            return self.emit(from, LinkEvent::DialFailed { relay, error }, affected);
        }
        let (near, far) = (self.link_id(), self.link_id());
        for (link, other, node, dialled, local, peer, address) in [
            (near, far, from, Some(relay), dialler_certificate, listener_certificate, listener_address),
            (far, near, to, None, listener_certificate, dialler_certificate, dialler_address),
        ] {
            let end = LinkEnd { node, other, sends_until: now, lanes_until: [now; LANES as usize], buffered: 0 };
            self.ends.insert(link, end);
            let opened = LinkOpened {
                dialled,
                local_certificate: local,
                peer_certificate: peer,
                peer_address: Redacted(address),
                lanes: LANES,
            };
            self.emit(node, LinkEvent::Opened { link, opened }, affected);
            self.emit(node, LinkEvent::Room { link, bytes: ROOM_THRESHOLD }, affected);
        }
    }

    fn link_id(&mut self) -> LinkId {
        let link = LinkId(self.next_link);
        self.next_link.increment();
        link
    }

    fn emit(&mut self, node: NodeId, event: LinkEvent, affected: &mut Vec<NodeId>) {
        if let Some(interface) = self.interfaces.get_mut(node.0).filter(|interface| interface.alive) {
            interface.events.push_back(event);
            affected.push(node);
        }
    }
}

/// The simulated network as one node's transport.
pub struct NodeTransport<'a> {
    network: &'a mut Network,
    node: NodeId,
}

impl Transport for NodeTransport<'_> {
    fn handle_transmit(&mut self, now: Instant, transmit: Transmit) {
        match transmit {
            Transmit::Dial(target) => self.network.dial(now, self.node, &target),
            Transmit::Message { link, lane, message } => self.network.send(now, link, lane, message),
            Transmit::Close(link) => self.network.close(now, link),
            // Simulated links have no receive window.
            Transmit::PeerListed(_) => {}
        }
    }

    fn poll_link_event(&mut self) -> Option<LinkEvent> {
        self.network.interfaces.get_mut(self.node.0)?.events.pop_front()
    }

    /// Delivers the due events of all nodes. Events of other nodes stay queued until those nodes poll them.
    fn handle_timeout(&mut self, now: Instant) {
        self.network.deliver(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.network.next_event_at()
    }
}

/// The time in which a link of `rate` sends `bytes`.
fn sending_time(bytes: usize, rate: u64) -> Duration {
    let nanoseconds = u128::try_from(bytes).unwrap_or(u128::MAX).saturating_mul(1_000_000_000);
    let nanoseconds = nanoseconds.checked_div(u128::from(rate)).unwrap_or(0);
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}
