//! One link: a DTLS association with an SCTP association in it.

use core::time::Duration;
use std::{net::SocketAddr, time::Instant as StdInstant};

use bytes::Bytes;

use super::{
    Caps, Route,
    buffer::SendBuffer,
    datagrams::Datagrams,
    dtls::{self, Dtls, DtlsError, DtlsEvent},
    sctp::{RtcSctp, Sctp, SctpConfig, SctpEvent},
};
use crate::base::{DialTarget, Instant, Lane, LinkClose, LinkId};

/// How long a link that the core closed may take to deliver what was handed over.
const LINGER: Duration = Duration::from_secs(5);

/// What a link needs of its endpoint in each call.
pub(super) struct Context<'a> {
    pub(super) now: Instant,
    /// `now` on the clock of the parts beneath.
    pub(super) clock: Clock,
    pub(super) route: Route,
    pub(super) caps: &'a Caps,
    pub(super) sctp: &'a SctpConfig,
    pub(super) out: &'a mut Datagrams,
    /// Most datagrams that go to the kernel in one call.
    pub(super) segments: usize,
    pub(super) happenings: &'a mut Vec<Happening>,
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
    Message(Lane, Bytes),
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
    /// Whether it waits for [`Self::service`].
    pub(super) dirty: bool,
    /// The deadline under which the endpoint has it.
    pub(super) armed: Option<Instant>,
    /// Whether the core is going to be told of its room.
    pub(super) room_due: bool,
    /// Whether it has ever been open.
    pub(super) opened: bool,
    stage: Stage,
    dtls: Dtls,
    sctp: Option<Box<dyn Sctp>>,
    heard: Instant,
    probed: Option<Instant>,
    buffer: SendBuffer,
}

impl Link {
    pub(super) fn new(
        id: LinkId,
        role: Role,
        dtls: Dtls,
        local_certificate: [u8; 32],
        until: Instant,
        now: Instant,
        send_mark: usize,
    ) -> Self {
        Self {
            id,
            role,
            local_certificate,
            peer_certificate: [0; 32],
            dirty: false,
            armed: None,
            room_due: false,
            opened: false,
            stage: Stage::Opening { until },
            dtls,
            sctp: None,
            heard: now,
            probed: None,
            buffer: SendBuffer::new(now, send_mark),
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

    /// Bytes that the core may hand over.
    pub(super) fn room(&self) -> usize {
        self.buffer.room()
    }

    /// Takes a datagram of the other end's, or of someone who pretends to be it.
    pub(super) fn handle_datagram(&mut self, context: &mut Context<'_>, datagram: &mut [u8]) {
        let outcome = self.dtls.handle_datagram(context.std_now(), datagram);
        self.drain_dtls(context, datagram);
        self.check(context, outcome);
        self.drain_sctp(context);
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
            sctp.handle_timeout(context.clock.to_std(now));
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
    pub(super) fn send(&mut self, context: &mut Context<'_>, lane: Lane, message: &Bytes) {
        if let Some(sctp) = &mut self.sctp
            && self.stage == Stage::Open
            && !message.is_empty()
        {
            self.buffer.sent(context.now, message.len());
            sctp.send(context.clock.to_std(context.now), lane, message);
        }
    }

    /// The core wants it closed, after what it handed over.
    pub(super) fn close(&mut self, now: Instant) {
        if self.stage == Stage::Open {
            self.stage = Stage::Closing { until: now.after(LINGER) };
        }
    }

    /// Sends what SCTP may send now.
    pub(super) fn service(&mut self, context: &mut Context<'_>) {
        let mut outcome = Ok(());
        if let Some(sctp) = &mut self.sctp {
            let dtls = &mut self.dtls;
            let (out, route, segments) = (&mut *context.out, context.route, context.segments);
            sctp.poll_packets(context.clock.to_std(context.now), &mut |packet| {
                if outcome.is_ok() {
                    outcome = send(dtls, packet, out, route, segments);
                }
            });
        }
        self.check(context, outcome);
        self.note_retired(context);
        if matches!(self.stage, Stage::Closing { .. }) && self.buffer.is_empty() {
            self.finish(context, Ending::Done);
        }
    }

    /// When [`Self::handle_timeout`] is wanted.
    pub(super) fn deadline(&self, clock: Clock, caps: &Caps) -> Option<Instant> {
        let own = match self.stage {
            Stage::Opening { until } | Stage::Closing { until } => until,
            Stage::Open => self.probe_due(caps).min(self.heard.after(caps.silence)),
            Stage::Ended => return None,
        };
        let sctp = self.sctp.as_ref().and_then(|sctp| sctp.poll_timeout());
        [self.dtls.poll_timeout(), sctp].into_iter().flatten().map(|at| clock.ours(at)).fold(own, Ord::min).into()
    }

    fn probe_due(&self, caps: &Caps) -> Instant {
        let silent = self.heard.after(caps.silence.mul_f32(0.5));
        self.probed.map_or(silent, |probed| silent.max(probed.after(caps.silence.mul_f32(1.0 / 6.0))))
    }

    /// Says good-bye to the other end and ends.
    fn finish(&mut self, context: &mut Context<'_>, ending: Ending) {
        if let Some(sctp) = &mut self.sctp {
            sctp.abort();
            let (dtls, out, route, segments) = (&mut self.dtls, &mut *context.out, context.route, context.segments);
            sctp.poll_packets(context.clock.to_std(context.now), &mut |packet| {
                let _ = send(dtls, packet, out, route, segments);
            });
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
            context.happenings.push(Happening::Retired);
        }
    }

    fn drain_dtls(&mut self, context: &mut Context<'_>, datagram: &[u8]) {
        let now = context.clock.to_std(context.now);
        let (mut ending, mut wrong) = (None, false);
        let Self { dtls, sctp, role, heard, probed, peer_certificate, .. } = self;
        let (route, settings, at) = (context.route, context.sctp, context.now);
        dtls.drain(datagram, context.out, route, context.segments, |event| match event {
            DtlsEvent::PeerCertificate(fingerprint) => {
                *peer_certificate = fingerprint;
                wrong = matches!(role, Role::Dialler(dial) if dial.target.fingerprint != fingerprint);
            }
            DtlsEvent::Connected if !wrong => {
                *heard = at;
                *sctp = Some(Box::new(match role {
                    Role::Dialler(_) => RtcSctp::connect(settings, route.remote, now),
                    Role::Listener(_) => RtcSctp::accept(settings, route.remote),
                }));
            }
            DtlsEvent::Packet(packet) => {
                (*heard, *probed) = (at, None);
                if let Some(sctp) = sctp {
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
            // What came before the good-bye still counts.
            self.drain_sctp(context);
            self.end(context, ending);
        }
    }

    fn drain_sctp(&mut self, context: &mut Context<'_>) {
        while let Some(event) = self.sctp.as_mut().and_then(|sctp| sctp.poll_event()) {
            match (event, self.stage) {
                (SctpEvent::Open, Stage::Opening { .. }) => {
                    self.stage = Stage::Open;
                    self.opened = true;
                    context.happenings.extend([Happening::Opened, Happening::Room]);
                }
                (SctpEvent::Message(lane, message), Stage::Open) => {
                    context.happenings.push(Happening::Message(lane, message));
                }
                (SctpEvent::Released(bytes), _) => {
                    self.buffer.released(context.now, bytes);
                    if self.stage == Stage::Open {
                        context.happenings.push(Happening::Room);
                    }
                }
                (SctpEvent::Closed(LinkClose::Broken), _) => {
                    self.finish(context, Ending::Closed(LinkClose::Broken));
                }
                (SctpEvent::Closed(reason), _) => self.end(context, Ending::Closed(reason)),
                _ => {}
            }
        }
    }
}

/// Seals a packet into the datagrams to be sent.
fn send(dtls: &mut Dtls, packet: &[u8], out: &mut Datagrams, route: Route, segments: usize) -> Result<(), DtlsError> {
    let buffer = out.tail(packet.len().saturating_add(dtls::OVERHEAD));
    let header = dtls.header_len();
    if let Some(space) = buffer.get_mut(header..header.saturating_add(packet.len())) {
        space.copy_from_slice(packet);
    }
    let length = dtls.seal(buffer, packet.len())?;
    out.commit(route, length, segments);
    Ok(())
}
