//! WebRTC data channels by the browser's own stack: dials relays from their descriptors alone, listens to nobody.
//!
//! Each link is one `RTCPeerConnection` with the four lanes negotiated beforehand; the answer to its offer is written
//! here ([`super::sdp`]). [`Endpoint`] is driven like every transport; what the browser calls back is only noted, and the driver woken
//! by [`Wake`], so that nothing of the core runs inside a callback.
//!
//! Governed by `proto/01-transport.md` §5 to §7. A browser can't be kept from receiving, so what has arrived and not been taken is
//! capped ([`Caps::waiting`]); beyond it the link ends. A browser checks the certificate against the answer's fingerprint
//! itself; it reports one that differs like any other failed handshake.

mod peer;

use core::time::Duration;
use std::{
    cell::RefCell,
    collections::{BTreeMap, VecDeque},
    rc::Rc,
};

use web_sys::RtcCertificate;

use super::Transport;
use crate::base::{
    DialError, DialTarget, Instant, LANES, Lane, LinkClose, LinkEvent, LinkId, LinkOpened, Redacted, Slots, Transmit,
};
use peer::{Outlook, Peer};

/// How long a link that the core closed may take to deliver what was handed over.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes that a limited sender saves up before it goes on: one message, `MESSAGE_CELLS` cells.
const LEAST_ALLOWANCE: f64 = 17_408.0;
/// The least time for one attempt of a dial.
const PATIENCE: Duration = Duration::from_secs(3);

/// Limits and settings of an [`Endpoint`].
#[derive(Clone, Debug)]
pub struct Caps {
    /// Links at once, dials included; browsers stop at 500. Default 128.
    pub links: usize,
    /// How long a dial may take in all. Default 10 s.
    pub opening: Duration,
    /// Bytes in a link's send buffers at which [`LinkEvent::Room`] is zero. Default 256 KiB.
    pub send_mark: usize,
    /// Bytes of one link that have arrived and that the driver has not taken, each message counted in whole slots. Default 16 MiB;
    /// beyond it the link ends.
    pub waiting: usize,
}

impl Default for Caps {
    fn default() -> Self {
        Self { links: 128, opening: Duration::from_secs(10), send_mark: 256 << 10, waiting: 16 << 20 }
    }
}

/// Called when the browser has something for an [`Endpoint`]: its driver is to take it soon.
pub type Wake = Rc<dyn Fn()>;

/// What the browser called back, until the driver takes it.
struct Inbox {
    wake: Wake,
    notes: RefCell<VecDeque<(LinkId, Note)>>,
}

enum Note {
    /// A message came in a lane.
    Message(Lane, Slots),
    /// A message came that no relay sends: text, or too long.
    Foreign,
    /// Something changed: see the peer.
    Changed,
    /// The offer is made; SHA-256 of the certificate in it.
    Offered([u8; 32]),
    /// The browser refused the offer or the answer.
    Refused,
}

impl Inbox {
    fn push(&self, link: LinkId, note: Note) {
        if let Ok(mut notes) = self.notes.try_borrow_mut() {
            notes.push_back((link, note));
        }
        (self.wake)();
    }

    fn pop(&self) -> Option<(LinkId, Note)> {
        self.notes.try_borrow_mut().ok()?.pop_front()
    }
}

/// A dial under way.
struct Dial {
    target: DialTarget,
    /// Addresses tried.
    tried: usize,
    /// When the attempt has failed.
    until: Instant,
    /// When the dial as a whole has failed.
    over: Instant,
    /// The browser gave an attempt up before its time.
    refused: bool,
    local_certificate: Option<[u8; 32]>,
    /// What came before all lanes were open.
    early: Vec<(Lane, Slots)>,
}

enum Stage {
    Opening(Box<Dial>),
    Open,
    /// Delivers what was handed over.
    Closing {
        until: Instant,
    },
}

struct Link {
    stage: Stage,
    peer: Peer,
    /// What is left of the room that the core was told of.
    told: usize,
}

/// The links of a page.
pub struct Endpoint {
    caps: Caps,
    /// Shown on every dial; `None` has the browser make one for each.
    certificate: Option<RtcCertificate>,
    inbox: Rc<Inbox>,
    links: BTreeMap<LinkId, Link>,
    next_link: u64,
    events: VecDeque<LinkEvent>,
    allowance: Option<Allowance>,
}

/// What may still be sent, at a limited rate. Up to one second's worth is saved up, since the timers of a hidden page
/// come once a second. Counted when the browser takes a message.
struct Allowance {
    a_second: f64,
    bytes: f64,
    since: Instant,
    /// Somebody was told less room than there is.
    short: bool,
}

impl Allowance {
    fn refill(&mut self, now: Instant) {
        let gained = now.since(self.since).as_secs_f64() * self.a_second;
        self.bytes = (self.bytes + gained).min(self.a_second.max(LEAST_ALLOWANCE));
        self.since = now;
    }

    /// When enough has been saved up to be worth telling.
    fn due(&self) -> Option<Instant> {
        let missing = (LEAST_ALLOWANCE - self.bytes).max(0.0) / self.a_second;
        self.short.then(|| self.since.after(Duration::from_secs_f64(missing.clamp(0.001, 3600.0))))
    }

    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "saturates, and a debt is no room")]
    fn room(&mut self, wanted: usize) -> usize {
        let room = wanted.min(self.bytes.max(0.0) as usize);
        self.short |= room < wanted;
        room
    }
}

impl Endpoint {
    /// An endpoint without links. With `certificate` all its links show that one, else each a fresh one.
    #[must_use]
    pub fn new(caps: Caps, certificate: Option<RtcCertificate>, wake: Wake) -> Self {
        let inbox = Rc::new(Inbox { wake, notes: RefCell::default() });
        Self {
            caps,
            certificate,
            inbox,
            links: BTreeMap::new(),
            next_link: 0,
            events: VecDeque::new(),
            allowance: None,
        }
    }

    /// Takes what the browser has called back since the last time.
    pub fn take(&mut self, now: Instant) {
        while let Some((link, note)) = self.inbox.pop() {
            self.handle_note(now, link, note);
        }
    }

    /// Sends no more than `a_second` bytes in the long run, or as much as there is. Whatever is relayed is received once and
    /// sent once, and what isn't sent holds up its source, so this bounds both directions.
    pub fn set_rate(&mut self, now: Instant, a_second: Option<u64>) {
        #[expect(clippy::cast_precision_loss, reason = "no rate needs so many digits")]
        let a_second = a_second.map(|a_second| a_second.max(1) as f64);
        self.allowance = a_second.map(|a_second| Allowance { a_second, bytes: a_second, since: now, short: true });
        self.tell_rooms(now);
    }

    /// Tells all links what room there is.
    fn tell_rooms(&mut self, now: Instant) {
        if let Some(allowance) = &mut self.allowance {
            allowance.refill(now);
            allowance.short = false;
        }
        let open: Vec<_> =
            self.links.iter().filter(|(_, link)| matches!(link.stage, Stage::Open)).map(|(id, _)| *id).collect();
        for id in open {
            self.tell_room(now, id);
        }
    }

    fn tell_room(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let mut bytes = self.caps.send_mark.saturating_sub(link.peer.buffered());
        if let Some(allowance) = &mut self.allowance {
            allowance.refill(now);
            bytes = allowance.room(bytes);
        }
        // Told again, it would mean that something has been taken.
        if bytes == 0 && link.told == 0 {
            return;
        }
        link.told = bytes;
        self.events.push_back(LinkEvent::Room { link: id, bytes });
    }

    /// Ends all links at once, as when the page goes.
    pub fn close_all(&mut self) {
        self.links.clear();
    }

    /// How many links there are, dials included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    fn handle_note(&mut self, now: Instant, id: LinkId, note: Note) {
        // Of a link that is gone.
        let Some(link) = self.links.get_mut(&id) else { return };
        match (note, &mut link.stage) {
            (Note::Message(lane, message), Stage::Open) => {
                link.peer.taken(&message);
                self.events.push_back(LinkEvent::Message { link: id, lane, message });
            }
            (Note::Message(lane, message), Stage::Opening(dial)) => dial.early.push((lane, message)),
            (Note::Message(_, message), Stage::Closing { .. }) => link.peer.taken(&message),
            (Note::Foreign, _) => self.lose(now, id, LinkClose::Broken),
            (Note::Refused, _) => self.lose(now, id, LinkClose::Broken),
            (Note::Offered(fingerprint), Stage::Opening(dial)) => {
                dial.local_certificate = Some(fingerprint);
                self.look(now, id);
            }
            (Note::Offered(_), _) => {}
            (Note::Changed, _) => self.look(now, id),
        }
    }

    /// Deals with what has become of a link.
    fn look(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.peer.looked();
        match (link.peer.outlook(), &mut link.stage) {
            (Outlook::Gone(reason), _) => self.lose(now, id, reason),
            (Outlook::Open, Stage::Opening(dial)) => {
                let Some(local_certificate) = dial.local_certificate else { return };
                let Some(address) = dial.tried.checked_sub(1).and_then(|last| dial.target.addresses.get(last)) else {
                    return;
                };
                let opened = LinkOpened {
                    dialled: Some(dial.target.relay),
                    local_certificate,
                    peer_certificate: dial.target.fingerprint,
                    peer_address: Redacted(*address),
                    lanes: LANES,
                };
                let early = core::mem::take(&mut dial.early);
                self.events.push_back(LinkEvent::Opened { link: id, opened });
                link.stage = Stage::Open;
                for (lane, message) in early {
                    link.peer.taken(&message);
                    self.events.push_back(LinkEvent::Message { link: id, lane, message });
                }
                self.tell_room(now, id);
            }
            (Outlook::Open, Stage::Open) => self.tell_room(now, id),
            (Outlook::Open, Stage::Closing { .. }) => {
                if link.peer.buffered() == 0 {
                    self.links.remove(&id);
                }
            }
            (Outlook::Opening, _) => {}
        }
    }

    /// A link is gone, or an attempt of a dial has failed.
    fn lose(&mut self, now: Instant, id: LinkId, reason: LinkClose) {
        let Some(link) = self.links.remove(&id) else { return };
        match link.stage {
            Stage::Opening(mut dial) => {
                dial.refused |= reason != LinkClose::TimedOut;
                self.dial(now, dial);
            }
            Stage::Open => self.events.push_back(LinkEvent::Closed { link: id, reason }),
            Stage::Closing { .. } => {}
        }
    }

    /// Dials the next address, or gives the dial up.
    fn dial(&mut self, now: Instant, mut dial: Box<Dial>) {
        // One address is tried a second time when the first attempt was refused, for a third party can forge that.
        let addresses = dial.target.addresses.len();
        if addresses == 1 && dial.tried == 1 && dial.refused {
            dial.tried = 0;
            dial.target.addresses.extend_from_within(..);
        }
        while let Some(address) = dial.target.addresses.get(dial.tried).copied()
            && now < dial.over
        {
            let left = u32::try_from(dial.target.addresses.len().saturating_sub(dial.tried)).unwrap_or(u32::MAX);
            dial.tried = dial.tried.saturating_add(1);
            let share = dial.over.since(now).checked_div(left).unwrap_or(PATIENCE).max(PATIENCE);
            dial.until = now.after(share).min(dial.over);
            self.next_link = self.next_link.saturating_add(1);
            let id = LinkId(self.next_link);
            let peer = Peer::dial(id, &dial.target, address, self.certificate.as_ref(), &self.caps, &self.inbox);
            if let Some(peer) = peer {
                dial.local_certificate = None;
                dial.early.clear();
                self.links.insert(id, Link { stage: Stage::Opening(dial), peer, told: 0 });
                return;
            }
        }
        let error = match &*dial {
            Dial { over, .. } if *over <= now => DialError::TimedOut,
            Dial { refused: true, .. } => DialError::Refused,
            Dial { tried, .. } if *tried > 0 => DialError::TimedOut,
            _ => DialError::Unable,
        };
        self.events.push_back(LinkEvent::DialFailed { relay: dial.target.relay, error });
    }
}

impl Transport for Endpoint {
    fn handle_transmit(&mut self, now: Instant, transmit: Transmit) {
        match transmit {
            Transmit::Dial(target) => {
                if self.links.len() >= self.caps.links {
                    let (relay, error) = (target.relay, DialError::Unable);
                    self.events.push_back(LinkEvent::DialFailed { relay, error });
                    return;
                }
                let over = now.after(self.caps.opening);
                let dial = Dial {
                    target,
                    tried: 0,
                    until: over,
                    over,
                    refused: false,
                    local_certificate: None,
                    early: Vec::new(),
                };
                self.dial(now, Box::new(dial));
            }
            Transmit::Message { link: id, lane, message } => {
                let Some(link) = self.links.get_mut(&id).filter(|link| matches!(link.stage, Stage::Open)) else {
                    return;
                };
                if !link.peer.send(lane, &message) {
                    return self.lose(now, id, LinkClose::Broken);
                }
                link.told = link.told.saturating_sub(message.len());
                if let Some(allowance) = &mut self.allowance {
                    #[expect(clippy::cast_precision_loss, reason = "messages are short")]
                    let sent = message.len() as f64;
                    allowance.bytes -= sent;
                    allowance.short = true;
                } else if link.told < self.caps.send_mark / 2 {
                    // The browser tells when a lane falls below its threshold. One that never rose above it has taken all
                    // of this without a word; if one is above it, that tells in time.
                    self.tell_room(now, id);
                }
            }
            Transmit::Close(id) => {
                let Some(link) = self.links.get_mut(&id) else { return };
                if link.peer.buffered() == 0 {
                    self.links.remove(&id);
                } else {
                    link.peer.drain();
                    link.stage = Stage::Closing { until: now.after(LINGER) };
                }
            }
        }
    }

    fn poll_link_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    fn handle_timeout(&mut self, now: Instant) {
        let due = |link: &Link| link.deadline().is_some_and(|due| due <= now);
        let late: Vec<_> = self.links.iter().filter(|(_, link)| due(link)).map(|(id, _)| *id).collect();
        for id in late {
            self.lose(now, id, LinkClose::TimedOut);
        }
        if self.allowance.as_ref().and_then(Allowance::due).is_some_and(|due| due <= now) {
            self.tell_rooms(now);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let allowance = self.allowance.as_ref().and_then(Allowance::due);
        self.links.values().filter_map(Link::deadline).chain(allowance).min()
    }
}

impl Link {
    fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Opening(dial) => Some(dial.until),
            Stage::Closing { until } => Some(*until),
            Stage::Open => None,
        }
    }
}
