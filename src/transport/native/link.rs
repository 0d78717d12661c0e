//! One link: a DTLS association with an SCTP association in it.

use core::{cmp::Reverse, ops::ControlFlow, time::Duration};
use std::{collections::VecDeque, net::SocketAddr, time::Instant as StdInstant};

use rand::rngs::StdRng;

use super::{
    EndpointCaps, SocketRoute,
    accepted::LinkRank,
    datagrams::Datagrams,
    dtls::{self, Dtls, DtlsError, DtlsEvent},
    memory::{Lease, Memory},
};
use crate::{
    base::{
        Counter as _, DialTarget, ErrorClass, Instant, Lane, LinkClose, LinkEvent, LinkId, LinkOpened, MAX_LANES,
        ReadyQueue, Redacted, RelayId, Slots, Ticket,
    },
    transport::sctp::{self, Association, AssociationEvent, Close},
};

#[cfg(test)]
mod tests;

/// Timeout of the delivery of queued data after the core has closed a link.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Largest receive window of an accepted link, in bytes, until the core has stated that the peer is a listed relay.
/// Anyone may open such a link.
const MAX_ACCEPTED_WINDOW: usize = 2 << 20;
/// Most packets that a link sends in one turn.
const MAX_PACKETS_PER_TURN: usize = 53;

/// The endpoint's state that a link uses in a call.
pub(super) struct Context<'a> {
    pub(super) now: Instant,
    /// Conversion of `now` to the clock of `dimpl`.
    pub(super) clock: StdClock,
    pub(super) route: SocketRoute,
    pub(super) caps: &'a EndpointCaps,
    pub(super) sctp: &'a sctp::Config,
    pub(super) rng: &'a mut StdRng,
    /// The budgets of all links for partly received messages, and for data sent and not acknowledged.
    pub(super) memory: &'a mut LinkMemory<Memory>,
    pub(super) out: &'a mut Datagrams,
    /// Most datagrams in one system call.
    pub(super) max_segments: usize,
    /// The events for the core.
    pub(super) events: &'a mut VecDeque<LinkEvent>,
    /// The open links whose room has changed, each once.
    pub(super) rooms: &'a mut ReadyQueue<LinkId>,
}

/// A value for each direction: the budgets of the endpoint, or the leases of a link.
pub(super) struct LinkMemory<T> {
    pub(super) receive: T,
    pub(super) send: T,
}

/// Conversion between [`Instant`] and the standard library's clock. The value is the time of [`Instant::START`] on that
/// clock.
#[derive(Clone, Copy)]
pub(super) struct StdClock(pub(super) StdInstant);

impl StdClock {
    pub(super) fn to_std(self, at: Instant) -> StdInstant {
        self.0.checked_add(Duration::from_nanos(at.as_nanos())).unwrap_or(self.0)
    }

    fn instant_at(self, at: StdInstant) -> Instant {
        Instant::START.after(at.saturating_duration_since(self.0))
    }
}

impl Context<'_> {
    fn std_now(&self) -> StdInstant {
        self.clock.to_std(self.now)
    }
}

/// Reason for the end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The certificate does not match the fingerprint of the dial.
    WrongFingerprint,
    /// Any other reason.
    Closed(LinkClose),
    /// The core closed the link. Its data was delivered, its time expired, or a new dial replaced it.
    Done,
}

/// The role of this end.
pub(super) enum LinkRole {
    /// This node dialled.
    Dialler(Box<Dial>),
    /// The peer dialled with this client random.
    Listener([u8; 32]),
}

/// A dial in progress. Its attempts use the addresses in turn.
pub(super) struct Dial {
    pub(super) target: DialTarget,
    /// Number of the next attempt, over all rounds. It determines the address.
    pub(super) next_attempt: usize,
    /// Remaining attempts.
    pub(super) attempts_left: usize,
    /// Deadline of the whole dial.
    pub(super) deadline: Instant,
    /// An attempt failed for a reason other than a timeout.
    pub(super) refused: bool,
    /// An attempt ended with a wrong certificate.
    pub(super) wrong_certificate: bool,
}

impl Dial {
    /// The next address in turn, and the number of completed rounds over all addresses.
    pub(super) fn next_address(&mut self) -> Option<(SocketAddr, usize)> {
        let addresses = self.target.addresses.len();
        let address = self.target.addresses.get(self.next_attempt.checked_rem(addresses)?)?;
        let round = self.next_attempt.checked_div(addresses)?;
        self.next_attempt.increment();
        Some((*address, round))
    }
}

/// The stage of a link, with its deadline.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LinkStage {
    /// DTLS or SCTP is not open yet.
    Opening {
        until: Instant,
    },
    Open,
    /// The core has closed the link; queued data remains.
    Closing {
        until: Instant,
    },
    Ended(Ending),
}

/// One link.
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) route: SocketRoute,
    pub(super) role: LinkRole,
    /// SHA-256 of the certificate of this end.
    local_certificate: [u8; 32],
    /// SHA-256 of the peer's certificate; zeros before it arrives.
    peer_certificate: [u8; 32],
    /// Number of lanes, once the link is open.
    lanes: u8,
    /// Place in the queue for [`Self::service`].
    pub(super) service_ticket: Ticket,
    /// Place in the queue of room events for the core.
    pub(super) room_ticket: Ticket,
    /// Bytes that the core may send: the room of the last [`Self::service`] less the bytes sent since.
    pub(super) room: usize,
    /// Whether the link has ever been open.
    pub(super) opened: bool,
    /// Time of the link's creation.
    pub(super) created: Instant,
    /// Whether the core has stated that the peer is a listed relay.
    peer_listed: bool,
    /// Whether the link has replaced a half-open one that had begun shortly before.
    pub(super) is_replacement: bool,
    /// Of an accepted link: its rank in [`AcceptedLinks`](super::accepted::AcceptedLinks).
    pub(super) listed_rank: LinkRank,
    /// Memory leases.
    pub(super) leases: LinkMemory<Lease>,
    /// Whether [`LinkEvent::Retire`] has been reported to the core, which then opens a second link.
    pub(super) retired: bool,
    stage: LinkStage,
    dtls: Dtls,
    sctp: Option<Box<Association>>,
    /// Time of arrival of the last authenticated packet; before the first, of the link's creation.
    last_received: Instant,
    /// Time of the last keep-alive since [`Self::last_received`].
    last_keep_alive: Option<Instant>,
}

impl Link {
    pub(super) fn new(
        id: LinkId,
        route: SocketRoute,
        role: LinkRole,
        dtls: Dtls,
        local_certificate: [u8; 32],
        until: Instant,
        now: Instant,
    ) -> Self {
        let address = route.remote.ip();
        Self {
            id,
            route,
            role,
            local_certificate,
            peer_certificate: [0; 32],
            lanes: 0,
            service_ticket: Ticket::new(),
            room_ticket: Ticket::new(),
            room: 0,
            opened: false,
            created: now,
            peer_listed: false,
            is_replacement: false,
            listed_rank: LinkRank::HalfOpen(id),
            leases: LinkMemory { receive: Lease::new(address), send: Lease::new(address) },
            retired: false,
            stage: LinkStage::Opening { until },
            dtls,
            sctp: None,
            last_received: now,
            last_keep_alive: None,
        }
    }

    /// Whether the core may send on the link.
    pub(super) fn is_open(&self) -> bool {
        self.stage == LinkStage::Open
    }

    /// The relay that this node dialled; `None` if the peer dialled.
    pub(super) fn dialled(&self) -> Option<RelayId> {
        match &self.role {
            LinkRole::Dialler(dial) => Some(dial.target.relay),
            LinkRole::Listener(_) => None,
        }
    }

    /// The rank of an accepted link; `None` if the link has ended.
    pub(super) const fn rank(&self) -> Option<LinkRank> {
        match self.stage {
            LinkStage::Opening { .. } => Some(LinkRank::HalfOpen(self.id)),
            LinkStage::Open if self.peer_listed => Some(LinkRank::OpenListed(Reverse(self.id))),
            LinkStage::Open => Some(LinkRank::Open(Reverse(self.id))),
            LinkStage::Closing { .. } => Some(LinkRank::Closing(self.id)),
            LinkStage::Ended(_) => None,
        }
    }

    /// The reason if the link has ended. The endpoint then removes the link.
    pub(super) const fn ending(&self) -> Option<Ending> {
        match self.stage {
            LinkStage::Ended(ending) => Some(ending),
            LinkStage::Opening { .. } | LinkStage::Open | LinkStage::Closing { .. } => None,
        }
    }

    /// Whether the core has closed the link and queued data remains.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.stage, LinkStage::Closing { .. })
    }

    /// Ends the link immediately, without delivery of queued data.
    pub(super) fn abort(&mut self, context: &mut Context<'_>) {
        self.shut_down(context, Ending::Done);
    }

    /// The lease of received or sent data, and the start of the current period without progress of that data. `None` if
    /// there is progress, or nothing is leased.
    pub(super) fn stalled(&self, received: bool) -> Option<(&Lease, Instant)> {
        let lease = if received { &self.leases.receive } else { &self.leases.send };
        let sctp = self.sctp.as_ref().filter(|_| !lease.is_empty())?;
        let since = if received { sctp.hole_since() } else { sctp.stalled_since() };
        Some((lease, since?))
    }

    /// Bytes of received or sent data that count towards the lease.
    #[cfg(test)]
    pub(super) fn held(&self, received: bool) -> usize {
        let held = |sctp: &Association| if received { sctp.held() } else { sctp.held_for_sending() };
        self.sctp.as_deref().map_or(0, held)
    }

    /// Ends the link to free its memory or its place.
    pub(super) fn evict(&mut self, context: &mut Context<'_>) {
        self.shut_down(context, Ending::Closed(LinkClose::Overloaded));
    }

    /// Handles a datagram from the peer's address. The datagram may be forged.
    pub(super) fn handle_datagram(&mut self, context: &mut Context<'_>, datagram: &mut [u8]) {
        if self.ending().is_some() {
            return;
        }
        let outcome = self.dtls.handle_datagram(context.std_now(), datagram);
        self.drain_dtls(context, datagram);
        self.end_on_error(context, outcome);
        if self.ending().is_some() {
            return;
        }
        self.drain_sctp(context);
        self.send_acknowledgement(context);
        self.report_retired(context);
    }

    /// Performs the work due now.
    pub(super) fn handle_timeout(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        if !self.dtls.is_connected() {
            let outcome = self.dtls.handle_timeout(context.std_now());
            self.drain_dtls(context, &[]);
            self.end_on_error(context, outcome);
        }
        if let Some(sctp) = &mut self.sctp {
            sctp.handle_timeout(now);
        }
        self.drain_sctp(context);
        match self.stage {
            LinkStage::Opening { until } if until <= now => self.end(Ending::Closed(LinkClose::TimedOut)),
            LinkStage::Closing { until } if until <= now => self.shut_down(context, Ending::Done),
            LinkStage::Open if self.last_received.after(context.caps.silence_timeout) <= now => {
                self.shut_down(context, Ending::Closed(LinkClose::TimedOut));
            }
            LinkStage::Open if self.next_keep_alive(context.caps) <= now => {
                self.last_keep_alive = Some(now);
                if let Some(sctp) = &mut self.sctp {
                    sctp.send_heartbeat();
                }
            }
            _ => {}
        }
    }

    /// Queues a message of the core.
    pub(super) fn send(&mut self, context: &mut Context<'_>, lane: Lane, message: Slots) {
        if let Some(sctp) = &mut self.sctp
            && self.stage == LinkStage::Open
            && !message.is_empty()
        {
            self.room = self.room.saturating_sub(message.len());
            sctp.send(context.now, lane.value().into(), message);
        }
    }

    /// Records that the peer is a listed relay, and sets the largest receive window, in bytes.
    pub(super) fn set_peer_listed(&mut self, bytes: usize) {
        self.peer_listed = true;
        if let Some(sctp) = &mut self.sctp {
            sctp.set_max_window(bytes);
        }
    }

    /// Closes the link once its queued data is delivered.
    pub(super) fn close(&mut self, now: Instant) {
        if self.stage == LinkStage::Open {
            self.stage = LinkStage::Closing { until: now.after(CLOSE_TIMEOUT) };
        }
    }

    /// Queues SCTP packets for one turn; returns whether the link may have more packets.
    pub(super) fn service(&mut self, context: &mut Context<'_>) -> bool {
        let sent = self.send_packets(context);
        self.report_retired(context);
        let Some(sctp) = &mut self.sctp else { return false };
        if matches!(self.stage, LinkStage::Closing { .. }) && sctp.is_flushed() {
            self.shut_down(context, Ending::Done);
            return false;
        }
        let room = sctp.room(context.now);
        if self.stage == LinkStage::Open && room != self.room {
            self.room = room;
            context.rooms.push(self.id, &mut self.room_ticket);
        }
        sent >= MAX_PACKETS_PER_TURN
    }

    /// Sends the SACK that is due to a stock peer, before the other datagrams of the batch are handled.
    fn send_acknowledgement(&mut self, context: &mut Context<'_>) {
        let Some(sctp) = &mut self.sctp else { return };
        let header = self.dtls.header_len();
        let size = context.sctp.max_packet.saturating_add(dtls::OVERHEAD);
        let buffer = context.out.tail(size);
        let length = sctp.poll_acknowledgement(context.now, buffer.get_mut(header..size).unwrap_or_default());
        if length == 0 {
            return;
        }
        match self.dtls.seal(buffer, length) {
            Ok(length) => context.out.commit(context.route, length, context.max_segments),
            Err(error) => self.end_on_error(context, Err(error)),
        }
    }

    /// Seals SCTP packets into outgoing datagrams, for one turn; returns their number.
    fn send_packets(&mut self, context: &mut Context<'_>) -> usize {
        let Some(sctp) = &mut self.sctp else { return 0 };
        let (limit, _) = context.memory.send.adjust(&mut self.leases.send, sctp.held_for_sending());
        sctp.set_send_limit(limit);
        let header = self.dtls.header_len();
        for sent in 0..MAX_PACKETS_PER_TURN {
            let size = context.sctp.max_packet.saturating_add(dtls::OVERHEAD);
            let buffer = context.out.tail(size);
            let length = sctp.poll_packet(context.now, buffer.get_mut(header..size).unwrap_or_default());
            if length == 0 {
                return sent;
            }
            match self.dtls.seal(buffer, length) {
                Ok(length) => context.out.commit(context.route, length, context.max_segments),
                Err(error) => {
                    self.end_on_error(context, Err(error));
                    return sent;
                }
            }
        }
        MAX_PACKETS_PER_TURN
    }

    /// The deadline for [`Self::handle_timeout`].
    pub(super) fn deadline(&self, clock: StdClock, caps: &EndpointCaps) -> Option<Instant> {
        let own = match self.stage {
            LinkStage::Opening { until } | LinkStage::Closing { until } => until,
            LinkStage::Open => self.next_keep_alive(caps).min(self.last_received.after(caps.silence_timeout)),
            LinkStage::Ended(_) => return None,
        };
        let sctp = self.sctp.as_ref().and_then(|sctp| sctp.poll_timeout());
        let dtls = self.dtls.poll_timeout().map(|at| clock.instant_at(at));
        [dtls, sctp].into_iter().flatten().fold(own, Ord::min).into()
    }

    /// Time of the next keep-alive if no packet arrives.
    fn next_keep_alive(&self, caps: &EndpointCaps) -> Instant {
        let silent = self.last_received.after(caps.silence_timeout.mul_f32(0.5));
        self.last_keep_alive.map_or(silent, |last_keep_alive| {
            silent.max(last_keep_alive.after(caps.silence_timeout.mul_f32(1.0 / 6.0)))
        })
    }

    /// Sends ABORT and close_notify, then ends the link.
    fn shut_down(&mut self, context: &mut Context<'_>, ending: Ending) {
        if self.ending().is_some() {
            return;
        }
        if let Some(sctp) = &mut self.sctp {
            sctp.abort();
        }
        if self.dtls.is_connected() {
            self.send_packets(context);
        }
        self.dtls.close();
        self.dtls.drain(&[], context.out, context.route, context.max_segments, |_| ControlFlow::Continue(()));
        self.end(ending);
    }

    /// Marks the link as ended. A link that the core has closed ends as [`Ending::Done`].
    fn end(&mut self, ending: Ending) {
        self.stage = match self.stage {
            LinkStage::Ended(earlier) => LinkStage::Ended(earlier),
            LinkStage::Closing { .. } => LinkStage::Ended(Ending::Done),
            LinkStage::Opening { .. } | LinkStage::Open => LinkStage::Ended(ending),
        };
    }

    /// Ends the link after an error of DTLS.
    fn end_on_error(&mut self, context: &mut Context<'_>, outcome: Result<(), DtlsError>) {
        match outcome {
            Ok(()) => {}
            Err(error) => match error.class() {
                ErrorClass::Limit => self.shut_down(context, Ending::Closed(LinkClose::KeyLimit)),
                class => {
                    tracing::debug!(%error, %class, "closing a link");
                    self.end(Ending::Closed(LinkClose::Broken));
                }
            },
        }
    }

    /// Reports, once, that the keys have reached [`KeyLimits::retire`](super::KeyLimits::retire).
    fn report_retired(&mut self, context: &mut Context<'_>) {
        if self.stage == LinkStage::Open && self.dtls.take_retired() {
            self.retired = true;
            context.events.push_back(LinkEvent::Retire { link: self.id });
        }
    }

    fn drain_dtls(&mut self, context: &mut Context<'_>, datagram: &[u8]) {
        let mut ending = None;
        let Self { dtls, sctp, role, last_received, last_keep_alive, peer_certificate, leases, .. } = self;
        let (route, settings, now) = (context.route, context.sctp, context.now);
        let (rng, memory, lease) = (&mut *context.rng, &mut context.memory.receive, &mut leases.receive);
        dtls.drain(datagram, context.out, route, context.max_segments, |event| {
            match event {
                DtlsEvent::PeerCertificate(fingerprint) => {
                    *peer_certificate = fingerprint.unwrap_or_default();
                    ending = match role {
                        LinkRole::Dialler(dial) if Some(dial.target.fingerprint) != fingerprint => {
                            Some(Ending::WrongFingerprint)
                        }
                        _ => fingerprint.is_none().then_some(Ending::Closed(LinkClose::Broken)),
                    };
                    // No further datagram leaves.
                    return if ending.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
                }
                DtlsEvent::Connected => {
                    *last_received = now;
                    let mut association = match role {
                        LinkRole::Dialler(_) => Association::connect(settings, now, rng),
                        LinkRole::Listener(_) => Association::accept(settings, now, rng),
                    };
                    if matches!(role, LinkRole::Listener(_)) {
                        association.set_max_window(settings.max_window.min(MAX_ACCEPTED_WINDOW));
                    }
                    *sctp = Some(Box::new(association));
                }
                DtlsEvent::Packet(packet) => {
                    *last_received = now;
                    *last_keep_alive = None;
                    if let Some(sctp) = sctp {
                        let (limit, refused) = memory.adjust(lease, sctp.held());
                        sctp.set_receive_limit(limit, refused || memory.is_short());
                        sctp.set_hole_timeout(memory.is_short_for(lease));
                        sctp.handle_packet(now, packet);
                    }
                }
                DtlsEvent::Closed => ending = Some(Ending::Closed(LinkClose::ByPeer)),
            }
            ControlFlow::Continue(())
        });
        if let Some(ending) = ending {
            // Messages received before the close_notify are delivered.
            self.drain_sctp(context);
            self.end(ending);
        }
    }

    fn properties(&self, route: SocketRoute) -> LinkOpened {
        LinkOpened {
            dialled: self.dialled(),
            local_certificate: self.local_certificate,
            peer_certificate: self.peer_certificate,
            peer_address: Redacted(route.remote),
            lanes: self.lanes,
        }
    }

    fn drain_sctp(&mut self, context: &mut Context<'_>) {
        while let Some(event) = self.sctp.as_mut().and_then(|sctp| sctp.poll_event()) {
            match (event, self.stage) {
                (AssociationEvent::Open { streams }, LinkStage::Opening { .. }) => {
                    self.lanes = u8::try_from(streams).unwrap_or(MAX_LANES).min(MAX_LANES);
                    self.stage = LinkStage::Open;
                    self.opened = true;
                    let opened = self.properties(context.route);
                    context.events.push_back(LinkEvent::Opened { link: self.id, opened });
                }
                (AssociationEvent::Message { stream, message }, LinkStage::Open) => {
                    match u8::try_from(stream).ok().and_then(Lane::new) {
                        Some(lane) => {
                            context.events.push_back(LinkEvent::Message { link: self.id, lane, message });
                        }
                        None => self.shut_down(context, Ending::Closed(LinkClose::Broken)),
                    }
                }
                (AssociationEvent::Closed(close), _) => {
                    let reason = match close {
                        Close::ByPeer => LinkClose::ByPeer,
                        Close::Broken => LinkClose::Broken,
                        Close::TimedOut => LinkClose::TimedOut,
                    };
                    self.shut_down(context, Ending::Closed(reason));
                }
                _ => {}
            }
        }
    }
}
