//! The endpoint: all links of a node, as one machine without I/O.
//!
//! Routes datagrams to links, answers unverified senders without state, dials, and handles deadlines. The cost of a
//! datagram does not depend on the number of links. Only a shortage of memory causes scans of all links. Governed by
//! `proto/01-transport.md`; `docs/transport.md` lists state and output for unverified senders.

mod accept;

use core::time::Duration;
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    net::SocketAddr,
    time::Instant as StdInstant,
};

use rand::{
    SeedableRng as _,
    rngs::{StdRng, SysRng},
};

use super::{
    Batch, Certificate, EndpointConfig, EndpointError, Port, PortUse, SocketRoute,
    accepted::AcceptedLinks,
    datagrams::Datagrams,
    dtls::{self, Dtls, DtlsConfig},
    front::{ClientHello, Front, is_hello_fragment},
    hellos::WaitingHellos,
    link::{Context, Dial, Ending, Link, LinkMemory, LinkRole, StdClock},
    memory::Memory,
    stun,
};
use crate::{
    base::{Counter as _, Deadlines, DialError, Instant, LinkClose, LinkEvent, LinkId, ReadyQueue, Transmit},
    transport::{Transport, sctp},
};

#[cfg(test)]
mod tests;

/// Most attempts of a dial for each address.
const MAX_ATTEMPTS: usize = 6;
/// Timeout of an attempt in the first round over a dial's addresses. Each further round doubles it.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(2);
/// Delay of the next attempt after a failure other than a timeout or a wrong certificate, so that late datagrams of the
/// peer don't make that attempt fail. Also the interval of attempts while other links use all addresses of a dial.
const RETRY_DELAY: Duration = Duration::from_millis(150);
/// Queued bytes at which datagrams are sent before further links are serviced. Bounds the memory of the queue.
const SERVICE_THRESHOLD: usize = 64 << 10;
/// Shortest interval between two scans for a link to evict because memory is short.
const RELIEF_INTERVAL: Duration = Duration::from_millis(100);
/// Smallest datagram size, in bytes, required by the handshake.
const MIN_DATAGRAM: u16 = 600;
/// Largest datagram size, in bytes: the UDP payload of an Ethernet jumbo frame over IPv6.
const MAX_DATAGRAM: u16 = 8_952;

/// Statistics of an endpoint, for the operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counts {
    /// Links, dialled and accepted, open or not.
    pub links: usize,
    /// Half-open accepted links.
    pub half_open: usize,
    /// Dropped datagrams that belong to no link, and are neither a valid STUN check nor a ClientHello to a listening
    /// port.
    pub without_link: u64,
    /// STUN checks answered.
    pub checks_answered: u64,
    /// ClientHellos without a cookie, answered without state.
    pub hellos_answered: u64,
    /// ClientHellos with an invalid or expired cookie.
    pub cookies_refused: u64,
    /// ClientHellos with a valid cookie that a cap or a rate rejected.
    pub over_caps: u64,
    /// DTLS handshakes that diallers began.
    pub handshakes: u64,
    /// Accepted links that were evicted at a cap to make room for others.
    pub evicted: u64,
}

/// The native transport, without I/O. See [`native`](super) for the loop that drives it.
pub struct Endpoint {
    config: EndpointConfig,
    fingerprint: [u8; 32],
    dtls: DtlsConfig,
    sctp: sctp::Config,
    rng: StdRng,
    memory: LinkMemory<Memory>,
    /// Time of the last scan for a link to evict because memory is short.
    last_relief: Instant,
    clock: StdClock,
    front: Front,
    ports: Vec<Port>,
    links: HashMap<LinkId, Link>,
    /// The link of each route, for received datagrams.
    routes: HashMap<SocketRoute, LinkId>,
    accepted: AcceptedLinks,
    hellos: WaitingHellos,
    /// Number of dials with an attempt in progress.
    dials: usize,
    /// Dials between two attempts, by the time of the next attempt and a unique number.
    paused_dials: BTreeMap<(Instant, u64), Dial>,
    /// Last number given to a link or a paused dial.
    last_id: u64,
    events: VecDeque<LinkEvent>,
    /// Links whose room has changed.
    rooms: ReadyQueue<LinkId>,
    /// Links that may have packets to send.
    ready: ReadyQueue<LinkId>,
    deadlines: Deadlines<LinkId>,
    out: Datagrams,
    /// Most datagrams in a batch.
    max_segments: usize,
    counts: Counts,
}

impl Endpoint {
    /// Makes an endpoint without ports. `start` is the time of [`Instant::START`].
    ///
    /// # Errors
    /// [`EndpointError`] if the settings are invalid or the system returns no randomness.
    pub fn new(config: EndpointConfig, start: StdInstant) -> Result<Self, EndpointError> {
        if !(MIN_DATAGRAM..=MAX_DATAGRAM).contains(&config.datagram_size) {
            return Err(EndpointError::DatagramSize(config.datagram_size));
        }
        // With `retire` at zero, links would retire immediately, and each new circuit would cause a dial.
        if !config.key_limits.is_sound() {
            return Err(EndpointError::KeyLimits(config.key_limits));
        }
        let mut sctp = sctp::Config::new(usize::from(config.datagram_size).saturating_sub(dtls::OVERHEAD));
        sctp.max_window = config.receive_window;
        sctp.algorithm = config.congestion;
        Ok(Self {
            fingerprint: config.certificate.fingerprint(),
            dtls: DtlsConfig::new(
                config.datagram_size,
                config.caps.opening_timeout,
                &config.cipher_suites,
                config.key_limits,
            )?,
            sctp,
            rng: StdRng::try_from_rng(&mut SysRng).map_err(|_| EndpointError::Randomness)?,
            memory: LinkMemory { receive: Memory::new(config.receive_memory), send: Memory::new(config.send_memory) },
            last_relief: Instant::START,
            clock: StdClock(start),
            front: Front::new()?,
            ports: Vec::new(),
            links: HashMap::new(),
            routes: HashMap::new(),
            accepted: AcceptedLinks::new(&config.caps),
            hellos: WaitingHellos::new(&config.caps),
            dials: 0,
            paused_dials: BTreeMap::new(),
            last_id: 0,
            events: VecDeque::new(),
            rooms: ReadyQueue::new(),
            ready: ReadyQueue::new(),
            deadlines: Deadlines::default(),
            out: Datagrams::default(),
            max_segments: 1,
            counts: Counts::default(),
            config,
        })
    }

    /// Sets the ports, as returned by [`Sockets::ports`](super::Sockets::ports). `max_segments` is the largest
    /// number of datagrams in a batch.
    pub fn set_ports(&mut self, ports: &[Port], max_segments: usize) {
        self.ports = ports.to_vec();
        self.max_segments = max_segments.max(1);
    }

    /// SHA-256 of the long-lived certificate, for the descriptor.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 32] {
        self.fingerprint
    }

    /// The current statistics.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts { links: self.links.len(), half_open: self.accepted.half_open(), ..self.counts }
    }

    /// Handles a received datagram; opens its records in place.
    pub fn handle_datagram(&mut self, now: Instant, route: SocketRoute, datagram: &mut [u8]) {
        match datagram.first() {
            // RFC 7983 §7.
            Some(0..=3) => self.handle_check(route, datagram),
            Some(20..=63) => self.handle_dtls(now, route, datagram),
            _ => self.counts.without_link.increment(),
        }
    }

    /// Handles datagrams that were received together from one address. Each has `segment` bytes; the last may be
    /// shorter. Consecutive records of a link, except handshake records, need one look-up.
    pub fn handle_datagrams(&mut self, now: Instant, route: SocketRoute, datagrams: &mut [u8], segment: usize) {
        const HANDSHAKE: u8 = 22;
        let is_record =
            |datagram: &[u8]| matches!(datagram.first(), Some(20..=63)) && datagram.first() != Some(&HANDSHAKE);
        let segment = segment.max(1);
        let mut rest = datagrams;
        while !rest.is_empty() {
            let record_count = rest.chunks(segment).take_while(|datagram| is_record(datagram)).count();
            let (run, after) = rest.split_at_mut(record_count.max(1).saturating_mul(segment).min(rest.len()));
            rest = after;
            if record_count == 0 {
                self.handle_datagram(now, route, run);
                continue;
            }
            let has_link = self.with_link_at(now, route, |link, context| {
                run.chunks_mut(segment).for_each(|datagram| link.handle_datagram(context, datagram));
                true
            });
            if !has_link {
                self.counts.without_link = self.counts.without_link.saturating_add(record_count as u64);
            }
        }
    }

    /// The next datagrams to send: all for one destination, at most `max_segments` of [`Self::set_ports`].
    pub fn poll_datagrams(&mut self, now: Instant) -> Option<Batch<'_>> {
        while self.out.queued_bytes() < SERVICE_THRESHOLD
            && let Some(id) = self.ready.pop()
        {
            self.service(now, id);
        }
        self.out.pop()
    }

    /// Whether [`Transport::poll_link_event`] may return an event. Sending frees room, which the core can use in the
    /// same turn.
    #[must_use]
    pub fn has_link_event(&self) -> bool {
        !self.events.is_empty() || !self.rooms.is_empty()
    }

    /// The link of a route.
    fn link_at(&self, route: SocketRoute) -> Option<&Link> {
        self.links.get(self.routes.get(&route)?)
    }

    fn listens(&self, route: SocketRoute) -> bool {
        self.ports.iter().any(|port| port.id == route.port && port.purpose == PortUse::Listen)
    }

    fn handle_check(&mut self, route: SocketRoute, datagram: &[u8]) {
        let answer = self
            .config
            .accept
            .as_ref()
            .filter(|_| self.listens(route))
            .and_then(|ice| stun::answer(ice, route.remote, datagram));
        match answer {
            Some(answer) => {
                self.counts.checks_answered.increment();
                self.out.push(route, &answer, self.max_segments);
            }
            None => self.counts.without_link.increment(),
        }
    }

    fn handle_dtls(&mut self, now: Instant, route: SocketRoute, datagram: &mut [u8]) {
        let hello = if is_hello_fragment(datagram) { ClientHello::parse(datagram) } else { None };
        let has_link = self.link_at(route).is_some_and(|link| match (&link.role, &hello) {
            // The peer may have restarted: a hello with another random is handled as that of a new link.
            (LinkRole::Listener(random), Some(hello)) => *random == hello.random,
            _ => true,
        });
        if has_link {
            return self.with_link_at(now, route, |link, context| link.handle_datagram(context, datagram));
        }
        match hello {
            Some(hello) if self.config.accept.is_some() && self.listens(route) => {
                self.handle_hello(now, route, &hello, datagram);
            }
            None if is_hello_fragment(datagram) && self.hellos.push_fragment(route, datagram) => {}
            _ => self.counts.without_link.increment(),
        }
    }

    fn insert(
        &mut self,
        now: Instant,
        route: SocketRoute,
        role: LinkRole,
        dtls: Dtls,
        fingerprint: [u8; 32],
        until: Instant,
    ) -> LinkId {
        self.last_id.increment();
        let id = LinkId(self.last_id);
        let link = Link::new(id, route, role, dtls, fingerprint, until, now);
        if matches!(link.role, LinkRole::Listener(_)) {
            self.accepted.add(route, link.listed_rank);
        }
        self.routes.insert(route, id);
        self.links.insert(id, link);
        id
    }

    /// Starts a dial, or continues it at the next address.
    fn dial(&mut self, now: Instant, mut dial: Dial) {
        let mut occupied: usize = 0;
        while dial.attempts_left > 0 && now < dial.deadline {
            dial.attempts_left.decrement();
            let Some((remote, round)) = dial.next_address() else { break };
            let Some(route) = self.dial_route(remote) else { continue };
            if self.link_at(route).is_some_and(Link::is_closing) {
                self.with_link_at(now, route, Link::abort);
            }
            if self.routes.contains_key(&route) {
                dial.attempts_left.increment();
                occupied.increment();
                let addresses = dial.target.addresses.len();
                if occupied < addresses {
                    continue;
                }
                // Other links use all the addresses. They may end soon.
                dial.next_attempt = dial.next_attempt.saturating_sub(addresses);
                return self.pause_dial(now, dial);
            }
            let fresh = if self.config.fresh_certificate_per_dial { Certificate::generate().ok() } else { None };
            let certificate = fresh.as_ref().unwrap_or(&self.config.certificate);
            let Ok(dtls) = Dtls::dial(&self.dtls, certificate, self.clock.to_std(now)) else { continue };
            let fingerprint = certificate.fingerprint();
            let until = dial.deadline.min(now.after(ATTEMPT_TIMEOUT.saturating_mul(1 << round.min(8))));
            self.dials.increment();
            let id = self.insert(now, route, LinkRole::Dialler(Box::new(dial)), dtls, fingerprint, until);
            // Sends the first hello.
            return self.with_link(now, id, Link::handle_timeout);
        }
        let error = match dial {
            Dial { deadline, .. } if deadline <= now => DialError::TimedOut,
            Dial { refused: true, .. } => DialError::Refused,
            _ => DialError::Unable,
        };
        self.events.push_back(LinkEvent::DialFailed { relay: dial.target.relay, error });
    }

    /// The route of a dial to `remote`: through the first dialling port without a retired link to `remote`, otherwise
    /// through the first one. `None` without a port of the address family.
    fn dial_route(&self, remote: SocketAddr) -> Option<SocketRoute> {
        let fits = |port: &&Port| port.purpose == PortUse::Dial && port.ipv6 == remote.is_ipv6();
        let mut routes = self.ports.iter().filter(fits).map(|port| SocketRoute { port: port.id, remote });
        let first = routes.next()?;
        let retired = |route: &SocketRoute| self.link_at(*route).is_some_and(|link| link.retired);
        let other = if retired(&first) { routes.find(|route| !retired(route)) } else { None };
        Some(other.unwrap_or(first))
    }

    /// Continues a dial after [`RETRY_DELAY`].
    fn pause_dial(&mut self, now: Instant, dial: Dial) {
        self.last_id.increment();
        self.paused_dials.insert((now.after(RETRY_DELAY).min(dial.deadline), self.last_id), dial);
    }

    /// Calls `act` as [`Self::with_link`] does, on the link of `route`.
    fn with_link_at<T: Default>(
        &mut self,
        now: Instant,
        route: SocketRoute,
        act: impl FnOnce(&mut Link, &mut Context<'_>) -> T,
    ) -> T {
        match self.routes.get(&route).copied() {
            Some(id) => self.with_link(now, id, act),
            None => T::default(),
        }
    }

    /// Calls `act` on a link, queues the link for [`Self::service`], then handles the link's opening or end.
    fn with_link<T: Default>(
        &mut self,
        now: Instant,
        id: LinkId,
        act: impl FnOnce(&mut Link, &mut Context<'_>) -> T,
    ) -> T {
        self.call(now, id, |link, context, ready| {
            let outcome = act(link, context);
            ready.push(id, &mut link.service_ticket);
            outcome
        })
    }

    /// Calls `act` on a link, then handles the link's opening or end.
    fn call<T: Default>(
        &mut self,
        now: Instant,
        id: LinkId,
        act: impl FnOnce(&mut Link, &mut Context<'_>, &mut ReadyQueue<LinkId>) -> T,
    ) -> T {
        let Some(link) = self.links.get_mut(&id) else { return T::default() };
        let was_open = link.opened;
        let mut context = Context {
            now,
            clock: self.clock,
            route: link.route,
            caps: &self.config.caps,
            sctp: &self.sctp,
            rng: &mut self.rng,
            memory: &mut self.memory,
            out: &mut self.out,
            max_segments: self.max_segments,
            events: &mut self.events,
            rooms: &mut self.rooms,
        };
        let outcome = act(link, &mut context, &mut self.ready);
        let ending = link.ending();
        if link.dialled().is_some() {
            if link.opened && !was_open {
                self.dials.decrement();
            }
        } else if let Some(rank) = link.rank().filter(|rank| *rank != link.listed_rank) {
            self.accepted.set_rank(link.route, link.listed_rank, rank);
            link.listed_rank = rank;
        }
        if let Some(ending) = ending {
            self.handle_ended(now, id, ending);
        }
        outcome
    }

    /// Removes an ended link. If the link was an attempt of a dial, the dial continues.
    fn handle_ended(&mut self, now: Instant, id: LinkId, ending: Ending) {
        if let Some(dial) = self.remove(id, ending) {
            if matches!(ending, Ending::Closed(LinkClose::TimedOut) | Ending::WrongFingerprint) {
                self.dial(now, dial);
            } else {
                self.pause_dial(now, dial);
            }
        }
    }

    /// Removes a link. Reports the end of an open link to the core, unless the core has closed it. Returns the dial of
    /// a failed attempt, if the dial may continue.
    fn remove(&mut self, id: LinkId, ending: Ending) -> Option<Dial> {
        let mut link = self.links.remove(&id)?;
        self.memory.receive.end(&mut link.leases.receive);
        self.memory.send.end(&mut link.leases.send);
        self.routes.remove(&link.route);
        self.deadlines.remove(id);
        if matches!(link.role, LinkRole::Listener(_)) {
            self.accepted.remove(link.route, link.listed_rank);
        }
        match (link.role, link.opened, ending) {
            (_, true, ending) => {
                if let Ending::Closed(reason) = ending {
                    self.events.push_back(LinkEvent::Closed { link: link.id, reason });
                }
                None
            }
            (LinkRole::Listener(_), false, _) => None,
            (LinkRole::Dialler(mut dial), false, ending) => {
                self.dials.decrement();
                // Certificates are sent in plaintext, so a third party may forge one. Two wrong certificates fail the
                // dial.
                if ending == Ending::WrongFingerprint && core::mem::replace(&mut dial.wrong_certificate, true) {
                    let error = DialError::WrongFingerprint;
                    self.events.push_back(LinkEvent::DialFailed { relay: dial.target.relay, error });
                    return None;
                }
                dial.refused |= ending != Ending::Closed(LinkClose::TimedOut);
                Some(*dial)
            }
        }
    }

    /// Evicts a link if a link requested more memory while memory was short ([`Memory::to_evict`]). Evicts at most one
    /// link for each budget in each [`RELIEF_INTERVAL`], since each eviction scans all links.
    fn free_memory(&mut self, now: Instant) {
        if now.since(self.last_relief) < RELIEF_INTERVAL {
            return;
        }
        let requests = [(true, self.memory.receive.take_request()), (false, self.memory.send.take_request())];
        for (received, _) in requests.into_iter().filter(|(_, requested)| *requested) {
            self.last_relief = now;
            let memory = if received { &self.memory.receive } else { &self.memory.send };
            let stalled = self.links.iter().filter_map(|(id, link)| {
                let (lease, since) = link.stalled(received)?;
                Some((lease, since, *id))
            });
            if let Some(id) = memory.to_evict(stalled) {
                tracing::warn!("the memory for links is short; closing a link without progress of the fullest source");
                self.with_link(now, id, Link::evict);
            }
        }
    }

    /// Queues a link's pending packets. Queues the link again if it may have more, and sets its deadline otherwise.
    fn service(&mut self, now: Instant, id: LinkId) {
        let deadline = self.call(now, id, |link, context, ready| {
            if link.service(context) {
                ready.push(id, &mut link.service_ticket);
                return None;
            }
            // An ended link has no deadline.
            link.deadline(context.clock, context.caps)
        });
        if let Some(deadline) = deadline {
            // An earlier deadline stays set. After its expiry this sets the current deadline.
            self.deadlines.set_earlier(id, deadline);
        }
    }
}

impl Transport for Endpoint {
    fn handle_transmit(&mut self, now: Instant, transmit: Transmit) {
        match transmit {
            Transmit::Dial(target) => {
                if self.dials.saturating_add(self.paused_dials.len()) >= self.config.caps.dials {
                    let (relay, error) = (target.relay, DialError::Unable);
                    self.events.push_back(LinkEvent::DialFailed { relay, error });
                    return;
                }
                let attempts_left = target.addresses.len().saturating_mul(MAX_ATTEMPTS);
                let deadline = now.after(self.config.caps.opening_timeout);
                self.dial(
                    now,
                    Dial { target, next_attempt: 0, attempts_left, deadline, refused: false, wrong_certificate: false },
                );
            }
            Transmit::Message { link, lane, message } => {
                self.with_link(now, link, |link, context| link.send(context, lane, message));
            }
            Transmit::PeerListed(link) => {
                if let Some(link) = self.links.get_mut(&link) {
                    link.set_peer_listed(self.sctp.max_window);
                }
            }
            Transmit::Close(link) => self.with_link(now, link, |link, context| link.close(context.now)),
        }
    }

    fn poll_link_event(&mut self) -> Option<LinkEvent> {
        if let Some(event) = self.events.pop_front() {
            return Some(event);
        }
        while let Some(id) = self.rooms.pop() {
            if let Some(link) = self.links.get(&id).filter(|link| link.is_open()) {
                return Some(LinkEvent::Room { link: id, bytes: link.room });
            }
        }
        None
    }

    fn handle_timeout(&mut self, now: Instant) {
        self.free_memory(now);
        while let Some(id) = self.deadlines.pop_due(now) {
            self.with_link(now, id, Link::handle_timeout);
        }
        while let Some(paused) = self.paused_dials.first_entry()
            && paused.key().0 <= now
        {
            let dial = paused.remove();
            self.dial(now, dial);
        }
        self.accept_waiting(now);
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let deadline = self.deadlines.earliest();
        let paused = self.paused_dials.first_key_value().map(|((at, _), _)| *at);
        [deadline, paused, self.hellos.poll_timeout()].into_iter().flatten().min()
    }
}
