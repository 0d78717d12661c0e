//! One link: a DTLS association with an SCTP association in it.

use core::time::Duration;
use std::{
    collections::VecDeque,
    net::{IpAddr, SocketAddr},
    time::Instant as StdInstant,
};

use rand::rngs::StdRng;

use super::{
    EndpointCaps, SocketRoute,
    datagrams::Datagrams,
    dtls::{self, Dtls, DtlsError, DtlsEvent},
    memory::{Lease, Memory},
};
use crate::{
    base::{
        DialTarget, ErrorClass, Instant, Lane, LinkClose, LinkEvent, LinkId, LinkOpened, MAX_LANES, ReadyQueue,
        Redacted, RelayId, Slots, Ticket,
    },
    transport::sctp::{self, Association, AssociationEvent, Close},
};

/// Most time that a link closed by the core may take to deliver its queued data.
const LINGER: Duration = Duration::from_secs(5);
/// Largest receive window of an accepted link, whose peer is unverified.
const STRANGERS_WINDOW: usize = 2 << 20;
/// Packets that one link sends in a turn.
const TURN: usize = 53;

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
    pub(super) segments: usize,
    /// The events for the core.
    pub(super) events: &'a mut VecDeque<LinkEvent>,
    /// The open links whose room has changed, each once.
    pub(super) rooms: &'a mut ReadyQueue<LinkId>,
}

/// A pair of values, one for each direction.
pub(super) struct LinkMemory<T> {
    pub(super) receive: T,
    pub(super) send: T,
}

/// Conversion between [`Instant`] and the standard library's clock: the time of [`Instant::START`] there.
#[derive(Clone, Copy)]
pub(super) struct StdClock(pub(super) StdInstant);

impl StdClock {
    pub(super) fn to_std(self, at: Instant) -> StdInstant {
        self.0.checked_add(Duration::from_nanos(at.as_nanos())).unwrap_or(self.0)
    }

    fn ours(self, at: StdInstant) -> Instant {
        Instant::START.after(at.saturating_duration_since(self.0))
    }
}

impl Context<'_> {
    fn std_now(&self) -> StdInstant {
        self.clock.to_std(self.now)
    }
}

/// Why a link ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The certificate is not the one dialled.
    WrongFingerprint,
    /// Any other reason.
    Closed(LinkClose),
    /// The core closed the link, and its data was delivered or its time expired.
    Done,
}

/// The role of this end.
pub(super) enum LinkRole {
    /// This node dialled.
    Dialler(Box<Dial>),
    /// The peer dialled, with this client random.
    Listener([u8; 32]),
}

/// A dial in progress, over its addresses in turn.
pub(super) struct Dial {
    pub(super) target: DialTarget,
    /// Attempts made so far; the next address follows from it.
    pub(super) next: usize,
    /// Attempts left.
    pub(super) attempts: usize,
    /// Deadline of the whole dial.
    pub(super) until: Instant,
    /// An attempt failed otherwise than by a timeout.
    pub(super) refused: bool,
    /// A peer answered with another certificate.
    pub(super) mistaken: bool,
}

impl Dial {
    /// The next address in turn, and the number of rounds completed over all addresses.
    pub(super) fn next_address(&mut self) -> Option<(SocketAddr, usize)> {
        let addresses = self.target.addresses.len();
        let address = self.target.addresses.get(self.next.checked_rem(addresses)?)?;
        let round = self.next.checked_div(addresses)?;
        self.next = self.next.saturating_add(1);
        Some((*address, round))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum LinkStage {
    Opening { until: Instant },
    Open,
    Closing { until: Instant },
    Ended(Ending),
}

/// One link.
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) role: LinkRole,
    /// SHA-256 of the certificate of this end.
    local_certificate: [u8; 32],
    /// SHA-256 of the peer's certificate; zeros before it arrives.
    peer_certificate: [u8; 32],
    /// Number of lanes, once the link is open.
    lanes: u8,
    /// Its place in the queue for [`Self::service`].
    pub(super) ready: Ticket,
    /// Its place in the queue of room events for the core.
    pub(super) rooms: Ticket,
    /// Bytes that the core may send, as last reported.
    pub(super) room: usize,
    /// Whether the link has ever been open.
    pub(super) opened: bool,
    /// Its memory leases.
    pub(super) leases: LinkMemory<Lease>,
    /// Whether a retire event was sent to the core, which then opens a second link beside it.
    pub(super) retired: bool,
    stage: LinkStage,
    dtls: Dtls,
    sctp: Option<Box<Association>>,
    heard: Instant,
    probed: Option<Instant>,
}

impl Link {
    pub(super) fn new(
        id: LinkId,
        role: LinkRole,
        dtls: Dtls,
        local_certificate: [u8; 32],
        until: Instant,
        now: Instant,
        address: IpAddr,
    ) -> Self {
        Self {
            id,
            role,
            local_certificate,
            peer_certificate: [0; 32],
            lanes: 0,
            ready: Ticket::new(),
            rooms: Ticket::new(),
            room: 0,
            opened: false,
            leases: LinkMemory { receive: Lease::new(address), send: Lease::new(address) },
            retired: false,
            stage: LinkStage::Opening { until },
            dtls,
            sctp: None,
            heard: now,
            probed: None,
        }
    }

    /// Whether the link is open to the core.
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

    /// Why the link ended, if it has. The endpoint then removes it.
    pub(super) const fn ending(&self) -> Option<Ending> {
        match self.stage {
            LinkStage::Ended(ending) => Some(ending),
            LinkStage::Opening { .. } | LinkStage::Open | LinkStage::Closing { .. } => None,
        }
    }

    /// Whether the core closed the link and it still delivers data.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.stage, LinkStage::Closing { .. })
    }

    /// Ends the link now, without waiting for delivery.
    pub(super) fn give_up(&mut self, context: &mut Context<'_>) {
        self.finish(context, Ending::Done);
    }

    /// Since when the link has made no progress with received or sent data; `None` if it leases no memory for that
    /// direction.
    pub(super) fn stands_since(&self, received: bool) -> Option<Instant> {
        let lease = if received { &self.leases.receive } else { &self.leases.send };
        let sctp = self.sctp.as_ref().filter(|_| lease.bytes() > 0)?;
        if received { sctp.hole_since() } else { sctp.stuck_since() }
    }

    /// Ends the link to free its memory.
    pub(super) fn make_way(&mut self, context: &mut Context<'_>) {
        self.finish(context, Ending::Closed(LinkClose::Overloaded));
    }

    /// Takes a datagram from the peer's address, which may be forged.
    pub(super) fn handle_datagram(&mut self, context: &mut Context<'_>, datagram: &mut [u8]) {
        if self.ending().is_some() {
            return;
        }
        let outcome = self.dtls.handle_datagram(context.std_now(), datagram);
        self.drain_dtls(context, datagram);
        self.check(context, outcome);
        self.drain_sctp(context);
        self.send_acknowledgement(context);
        self.note_retired(context);
    }

    /// Performs the work due now.
    pub(super) fn handle_timeout(&mut self, context: &mut Context<'_>) {
        let now = context.now;
        if !self.dtls.is_connected() {
            let outcome = self.dtls.handle_timeout(context.std_now());
            self.drain_dtls(context, &[]);
            self.check(context, outcome);
        }
        if let Some(sctp) = &mut self.sctp {
            sctp.handle_timeout(now);
        }
        self.drain_sctp(context);
        match self.stage {
            LinkStage::Opening { until } if until <= now => self.end(Ending::Closed(LinkClose::TimedOut)),
            LinkStage::Closing { until } if until <= now => self.finish(context, Ending::Done),
            LinkStage::Open if self.heard.after(context.caps.silence) <= now => {
                self.finish(context, Ending::Closed(LinkClose::TimedOut));
            }
            LinkStage::Open if self.probe_due(context.caps) <= now => {
                self.probed = Some(now);
                if let Some(sctp) = &mut self.sctp {
                    sctp.probe();
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

    /// Closes the link once its queued data is delivered.
    pub(super) fn close(&mut self, now: Instant) {
        if self.stage == LinkStage::Open {
            self.stage = LinkStage::Closing { until: now.after(LINGER) };
        }
    }

    /// Sends SCTP packets for one turn; returns whether it may send more.
    pub(super) fn service(&mut self, context: &mut Context<'_>) -> bool {
        let sent = self.send_packets(context);
        self.note_retired(context);
        let Some(sctp) = &mut self.sctp else { return false };
        if matches!(self.stage, LinkStage::Closing { .. }) && sctp.is_flushed() {
            self.finish(context, Ending::Done);
            return false;
        }
        let room = sctp.room(context.now);
        if self.stage == LinkStage::Open && room != self.room {
            self.room = room;
            context.rooms.push(self.id, &mut self.rooms);
        }
        sent >= TURN
    }

    /// Sends an acknowledgement at once, before the other datagrams of the batch are handled.
    fn send_acknowledgement(&mut self, context: &mut Context<'_>) {
        let Some(sctp) = &mut self.sctp else { return };
        let header = self.dtls.header_len();
        let size = context.sctp.packet.saturating_add(dtls::OVERHEAD);
        let buffer = context.out.tail(size);
        let length = sctp.poll_acknowledgement(context.now, buffer.get_mut(header..size).unwrap_or_default());
        if length == 0 {
            return;
        }
        match self.dtls.seal(buffer, length) {
            Ok(length) => context.out.commit(context.route, length, context.segments),
            Err(error) => self.check(context, Err(error)),
        }
    }

    /// Seals SCTP packets into outgoing datagrams, for one turn; returns their number.
    fn send_packets(&mut self, context: &mut Context<'_>) -> usize {
        let Some(sctp) = &mut self.sctp else { return 0 };
        let (limit, _) = context.memory.send.fit(&mut self.leases.send, sctp.held_for_sending());
        sctp.set_send_limit(limit);
        let header = self.dtls.header_len();
        for sent in 0..TURN {
            let size = context.sctp.packet.saturating_add(dtls::OVERHEAD);
            let buffer = context.out.tail(size);
            let length = sctp.poll_packet(context.now, buffer.get_mut(header..size).unwrap_or_default());
            if length == 0 {
                return sent;
            }
            match self.dtls.seal(buffer, length) {
                Ok(length) => context.out.commit(context.route, length, context.segments),
                Err(error) => {
                    self.check(context, Err(error));
                    return sent;
                }
            }
        }
        TURN
    }

    /// The deadline for [`Self::handle_timeout`].
    pub(super) fn deadline(&self, clock: StdClock, caps: &EndpointCaps) -> Option<Instant> {
        let own = match self.stage {
            LinkStage::Opening { until } | LinkStage::Closing { until } => until,
            LinkStage::Open => self.probe_due(caps).min(self.heard.after(caps.silence)),
            LinkStage::Ended(_) => return None,
        };
        let sctp = self.sctp.as_ref().and_then(|sctp| sctp.poll_timeout());
        let dtls = self.dtls.poll_timeout().map(|at| clock.ours(at));
        [dtls, sctp].into_iter().flatten().fold(own, Ord::min).into()
    }

    fn probe_due(&self, caps: &EndpointCaps) -> Instant {
        let silent = self.heard.after(caps.silence.mul_f32(0.5));
        self.probed.map_or(silent, |probed| silent.max(probed.after(caps.silence.mul_f32(1.0 / 6.0))))
    }

    /// Sends ABORT and close_notify, then ends the link.
    fn finish(&mut self, context: &mut Context<'_>, ending: Ending) {
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
        self.dtls.drain(&[], context.out, context.route, context.segments, |_| {});
        self.end(ending);
    }

    fn end(&mut self, ending: Ending) {
        self.stage = match self.stage {
            LinkStage::Ended(earlier) => LinkStage::Ended(earlier),
            LinkStage::Closing { .. } => LinkStage::Ended(Ending::Done),
            LinkStage::Opening { .. } | LinkStage::Open => LinkStage::Ended(ending),
        };
    }

    fn check(&mut self, context: &mut Context<'_>, outcome: Result<(), DtlsError>) {
        match outcome {
            Ok(()) => {}
            Err(error) => match error.class() {
                ErrorClass::Limit => self.finish(context, Ending::Closed(LinkClose::KeyLimit)),
                class => {
                    tracing::debug!(%error, %class, "closing a link");
                    self.end(Ending::Closed(LinkClose::Broken));
                }
            },
        }
    }

    /// Reports once that the keys have reached the count at which the link takes no new circuits.
    fn note_retired(&mut self, context: &mut Context<'_>) {
        if self.stage == LinkStage::Open && self.dtls.take_retired() {
            self.retired = true;
            context.events.push_back(LinkEvent::Retire { link: self.id });
        }
    }

    fn drain_dtls(&mut self, context: &mut Context<'_>, datagram: &[u8]) {
        let (mut ending, mut wrong) = (None, false);
        let Self { dtls, sctp, role, heard, probed, peer_certificate, leases, .. } = self;
        let (route, settings, now) = (context.route, context.sctp, context.now);
        let (rng, memory, lease) = (&mut *context.rng, &mut context.memory.receive, &mut leases.receive);
        dtls.drain(datagram, context.out, route, context.segments, |event| match event {
            DtlsEvent::PeerCertificate(fingerprint) => {
                *peer_certificate = fingerprint;
                wrong = matches!(role, LinkRole::Dialler(dial) if dial.target.fingerprint != fingerprint);
            }
            DtlsEvent::Connected if !wrong => {
                *heard = now;
                let mut association = match role {
                    LinkRole::Dialler(_) => Association::connect(settings, now, rng),
                    LinkRole::Listener(_) => Association::accept(settings, now, rng),
                };
                if matches!(role, LinkRole::Listener(_)) {
                    association.set_window_max(STRANGERS_WINDOW);
                }
                *sctp = Some(Box::new(association));
            }
            DtlsEvent::Packet(packet) => {
                *heard = now;
                *probed = None;
                if let Some(sctp) = sctp {
                    let (limit, refused) = memory.fit(lease, sctp.held());
                    sctp.set_receive_limit(limit, refused || memory.is_short());
                    sctp.handle_packet(now, packet);
                }
            }
            DtlsEvent::Closed => ending = Some(Ending::Closed(LinkClose::ByPeer)),
            DtlsEvent::Connected => {}
        });
        if wrong {
            ending = Some(Ending::WrongFingerprint);
        }
        if let Some(ending) = ending {
            // Messages received before the close_notify still count.
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
                        None => self.finish(context, Ending::Closed(LinkClose::Broken)),
                    }
                }
                (AssociationEvent::Closed(Close::ByPeer), _) => self.end(Ending::Closed(LinkClose::ByPeer)),
                (AssociationEvent::Closed(Close::Broken), _) => self.finish(context, Ending::Closed(LinkClose::Broken)),
                (AssociationEvent::Closed(Close::TimedOut), _) => {
                    self.finish(context, Ending::Closed(LinkClose::TimedOut))
                }
                _ => {}
            }
        }
    }
}
