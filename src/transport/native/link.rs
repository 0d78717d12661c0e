//! One link: a DTLS association with an SCTP association in it.

use core::time::Duration;
use std::{
    net::{IpAddr, SocketAddr},
    time::Instant as StdInstant,
};

use rand::rngs::StdRng;

use super::{
    Caps, Route,
    datagrams::Datagrams,
    dtls::{self, Dtls, DtlsError, DtlsEvent},
    memory::{Lease, Memory},
};
use crate::{
    base::{DialTarget, Instant, Lane, LinkClose, LinkId, MAX_LANES, Slots},
    transport::sctp::{self, Association, Close, Event},
};

/// How long a link that the core closed may take to deliver what was handed over.
const LINGER: Duration = Duration::from_secs(5);
/// Receive window at the most of a link that was accepted: nothing is known of the other end.
const STRANGERS_WINDOW: usize = 2 << 20;
/// Packets that one link sends before it is another's turn.
const TURN: usize = 53;

/// What a link needs of its endpoint in each call.
pub(super) struct Context<'a> {
    pub(super) now: Instant,
    /// `now` on the clock of the parts beneath.
    pub(super) clock: Clock,
    pub(super) route: Route,
    pub(super) caps: &'a Caps,
    pub(super) sctp: &'a sctp::Config,
    pub(super) rng: &'a mut StdRng,
    /// What all links may hold of messages that are received in part, and of data sent and not acknowledged.
    pub(super) memory: &'a mut LinkMemory<Memory>,
    pub(super) out: &'a mut Datagrams,
    /// Most datagrams that go to the kernel in one call.
    pub(super) segments: usize,
    pub(super) happenings: &'a mut Vec<Happening>,
}

/// Something for each of the two directions.
pub(super) struct LinkMemory<T> {
    pub(super) receive: T,
    pub(super) send: T,
}

/// Our clock against the one of the parts beneath: when ours stood at zero.
#[derive(Clone, Copy)]
pub(super) struct Clock(pub(super) StdInstant);

impl Clock {
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

/// What a link tells its endpoint.
pub(super) enum Happening {
    Opened,
    Message(Lane, Slots),
    /// The room in the send buffer has changed.
    Room,
    /// Its keys have protected so much that it is to take no new circuits.
    Retired,
    Ended(Ending),
}

/// Why a link is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ending {
    /// The certificate is not the one dialled.
    WrongFingerprint,
    /// For another reason.
    Closed(LinkClose),
    /// The core closed it, and all has been delivered or has had its time.
    Done,
}

/// Which end this is.
pub(super) enum Role {
    /// This node dialled.
    Dialler(Box<Dial>),
    /// The other end dialled, with this client random.
    Listener([u8; 32]),
}

/// A dial under way, over one address after the other.
pub(super) struct Dial {
    pub(super) target: DialTarget,
    /// Addresses tried.
    pub(super) next: usize,
    /// Attempts left.
    pub(super) attempts: usize,
    /// When the dial as a whole has failed.
    pub(super) until: Instant,
    /// Somebody answered, and it came to nothing.
    pub(super) refused: bool,
    /// Somebody answered with another certificate.
    pub(super) mistaken: bool,
}

impl Dial {
    /// The address whose turn it is, and how many times each has had its turn.
    pub(super) fn next_address(&mut self) -> Option<(SocketAddr, usize)> {
        let addresses = self.target.addresses.len();
        let address = self.target.addresses.get(self.next.checked_rem(addresses)?)?;
        let round = self.next.checked_div(addresses)?;
        self.next = self.next.saturating_add(1);
        Some((*address, round))
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Stage {
    Opening { until: Instant },
    Open,
    Closing { until: Instant },
    Ended,
}

/// One link.
pub(super) struct Link {
    pub(super) id: LinkId,
    pub(super) role: Role,
    /// SHA-256 of the certificate this end shows.
    pub(super) local_certificate: [u8; 32],
    /// SHA-256 of the certificate the other end shows; zeros before it has.
    pub(super) peer_certificate: [u8; 32],
    /// How many lanes it has, once it is open.
    pub(super) lanes: u8,
    /// Whether it waits for [`Self::service`].
    pub(super) dirty: bool,
    /// The deadline under which the endpoint has it.
    pub(super) armed: Option<Instant>,
    /// Whether the core is going to be told of its room.
    pub(super) room_due: bool,
    /// Bytes that the core may hand over, as it knows.
    pub(super) room: usize,
    /// Whether it has ever been open.
    pub(super) opened: bool,
    /// What it holds.
    pub(super) leases: LinkMemory<Lease>,
    /// Whether the core has been told to open a second link beside it.
    pub(super) retired: bool,
    stage: Stage,
    dtls: Dtls,
    sctp: Option<Box<Association>>,
    heard: Instant,
    probed: Option<Instant>,
}

impl Link {
    pub(super) fn new(
        id: LinkId,
        role: Role,
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
            dirty: false,
            armed: None,
            room_due: false,
            room: 0,
            opened: false,
            leases: LinkMemory { receive: Lease::new(address), send: Lease::new(address) },
            retired: false,
            stage: Stage::Opening { until },
            dtls,
            sctp: None,
            heard: now,
            probed: None,
        }
    }

    /// Whether the core hears of it.
    pub(super) fn is_open(&self) -> bool {
        self.stage == Stage::Open
    }

    /// Whether the core closed it and it still delivers.
    pub(super) fn is_closing(&self) -> bool {
        matches!(self.stage, Stage::Closing { .. })
    }

    /// Ends it now, delivered or not.
    pub(super) fn give_up(&mut self, context: &mut Context<'_>) {
        self.finish(context, Ending::Done);
    }

    /// Since when it has made no progress with what it leases memory for, received or sent; none if it leases none.
    pub(super) fn stands_since(&self, received: bool) -> Option<Instant> {
        let lease = if received { &self.leases.receive } else { &self.leases.send };
        let sctp = self.sctp.as_ref().filter(|_| lease.bytes() > 0)?;
        if received { sctp.hole_since() } else { sctp.stuck_since() }
    }

    /// Ends it, since it holds memory that others need.
    pub(super) fn make_way(&mut self, context: &mut Context<'_>) {
        self.finish(context, Ending::Closed(LinkClose::Overloaded));
    }

    /// Takes a datagram of the other end's, or of someone who pretends to be it.
    pub(super) fn handle_datagram(&mut self, context: &mut Context<'_>, datagram: &mut [u8]) {
        if self.stage == Stage::Ended {
            return;
        }
        let outcome = self.dtls.handle_datagram(context.std_now(), datagram);
        self.drain_dtls(context, datagram);
        self.check(context, outcome);
        self.drain_sctp(context);
        self.send_acknowledgement(context);
        self.note_retired(context);
    }

    /// Does what has become due.
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
            Stage::Opening { until } if until <= now => self.end(context, Ending::Closed(LinkClose::TimedOut)),
            Stage::Closing { until } if until <= now => self.finish(context, Ending::Done),
            Stage::Open if self.heard.after(context.caps.silence) <= now => {
                self.finish(context, Ending::Closed(LinkClose::TimedOut));
            }
            Stage::Open if self.probe_due(context.caps) <= now => {
                self.probed = Some(now);
                if let Some(sctp) = &mut self.sctp {
                    sctp.probe();
                }
            }
            _ => {}
        }
    }

    /// Queues a message of the core's.
    pub(super) fn send(&mut self, context: &mut Context<'_>, lane: Lane, message: Slots) {
        if let Some(sctp) = &mut self.sctp
            && self.stage == Stage::Open
            && !message.is_empty()
        {
            self.room = self.room.saturating_sub(message.len());
            sctp.send(context.now, lane.value().into(), message);
        }
    }

    /// The core wants it closed, after what it handed over.
    pub(super) fn close(&mut self, now: Instant) {
        if self.stage == Stage::Open {
            self.stage = Stage::Closing { until: now.after(LINGER) };
        }
    }

    /// Sends what SCTP may send now, for one turn; gives whether it may send more.
    pub(super) fn service(&mut self, context: &mut Context<'_>) -> bool {
        let sent = self.send_packets(context);
        self.note_retired(context);
        let Some(sctp) = &mut self.sctp else { return false };
        if matches!(self.stage, Stage::Closing { .. }) && sctp.is_flushed() {
            self.finish(context, Ending::Done);
            return false;
        }
        let room = sctp.room(context.now);
        if self.stage == Stage::Open && room != self.room {
            self.room = room;
            context.happenings.push(Happening::Room);
        }
        sent >= TURN
    }

    /// Sends an acknowledgement that can't wait for the other datagrams of its batch to be taken.
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

    /// Seals packets of SCTP's into the datagrams to be sent, for one turn; gives how many.
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

    /// When [`Self::handle_timeout`] is wanted.
    pub(super) fn deadline(&self, clock: Clock, caps: &Caps) -> Option<Instant> {
        let own = match self.stage {
            Stage::Opening { until } | Stage::Closing { until } => until,
            Stage::Open => self.probe_due(caps).min(self.heard.after(caps.silence)),
            Stage::Ended => return None,
        };
        let sctp = self.sctp.as_ref().and_then(|sctp| sctp.poll_timeout());
        let dtls = self.dtls.poll_timeout().map(|at| clock.ours(at));
        [dtls, sctp].into_iter().flatten().fold(own, Ord::min).into()
    }

    fn probe_due(&self, caps: &Caps) -> Instant {
        let silent = self.heard.after(caps.silence.mul_f32(0.5));
        self.probed.map_or(silent, |probed| silent.max(probed.after(caps.silence.mul_f32(1.0 / 6.0))))
    }

    /// Says good-bye to the other end and ends.
    fn finish(&mut self, context: &mut Context<'_>, ending: Ending) {
        if self.stage == Stage::Ended {
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
        self.end(context, ending);
    }

    fn end(&mut self, context: &mut Context<'_>, ending: Ending) {
        if self.stage != Stage::Ended {
            let ending = match self.stage {
                Stage::Closing { .. } => Ending::Done,
                _ => ending,
            };
            context.happenings.push(Happening::Ended(ending));
            self.stage = Stage::Ended;
        }
    }

    fn check(&mut self, context: &mut Context<'_>, outcome: Result<(), DtlsError>) {
        match outcome {
            Ok(()) => {}
            Err(error) if error.is_key_limit() => self.finish(context, Ending::Closed(LinkClose::KeyLimit)),
            Err(error) => {
                tracing::debug!(%error, "link broken");
                self.end(context, Ending::Closed(LinkClose::Broken));
            }
        }
    }

    /// Tells once that the keys have protected so much that the link is to take no new circuits.
    fn note_retired(&mut self, context: &mut Context<'_>) {
        if self.stage == Stage::Open && self.dtls.take_retired() {
            self.retired = true;
            context.happenings.push(Happening::Retired);
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
                wrong = matches!(role, Role::Dialler(dial) if dial.target.fingerprint != fingerprint);
            }
            DtlsEvent::Connected if !wrong => {
                *heard = now;
                let mut association = match role {
                    Role::Dialler(_) => Association::connect(settings, now, rng),
                    Role::Listener(_) => Association::accept(settings, now, rng),
                };
                if matches!(role, Role::Listener(_)) {
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
            // Messages that came before the close_notify still count.
            self.drain_sctp(context);
            self.end(context, ending);
        }
    }

    fn drain_sctp(&mut self, context: &mut Context<'_>) {
        while let Some(event) = self.sctp.as_mut().and_then(|sctp| sctp.poll_event()) {
            match (event, self.stage) {
                (Event::Open { streams }, Stage::Opening { .. }) => {
                    self.lanes = u8::try_from(streams).unwrap_or(MAX_LANES).min(MAX_LANES);
                    self.stage = Stage::Open;
                    self.opened = true;
                    context.happenings.push(Happening::Opened);
                }
                (Event::Message { stream, bytes }, Stage::Open) => {
                    match u8::try_from(stream).ok().and_then(Lane::new) {
                        Some(lane) => context.happenings.push(Happening::Message(lane, bytes)),
                        None => self.finish(context, Ending::Closed(LinkClose::Broken)),
                    }
                }
                (Event::Closed(Close::ByPeer), _) => self.end(context, Ending::Closed(LinkClose::ByPeer)),
                (Event::Closed(Close::Broken), _) => self.finish(context, Ending::Closed(LinkClose::Broken)),
                (Event::Closed(Close::TimedOut), _) => self.finish(context, Ending::Closed(LinkClose::TimedOut)),
                _ => {}
            }
        }
    }
}
