//! WebRTC data channels by the browser's own stack: dials relays from their descriptors alone and accepts no links.
//!
//! Each link is one `RTCPeerConnection` with four pre-negotiated lanes; [`super::sdp`] writes the answer to its
//! offer. [`BrowserEndpoint`] is driven like every transport. A callback of the browser only records its event and calls
//! [`Wake`], so the core never runs inside a callback.
//!
//! Governed by `proto/01-transport.md` §5 to §7. A page can't stop a browser from receiving, so received data that
//! the driver has not taken is capped ([`BrowserCaps::waiting`]); beyond the cap the link ends. The browser checks the
//! certificate against the answer's fingerprint; it reports a mismatch like any other failed handshake.

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
    DialError, DialTarget, Instant, LANES, Lane, LinkClose, LinkEvent, LinkId, LinkOpened, Rate, Redacted, Slots,
    TokenBucket, Transmit,
};
use peer::{Outlook, PeerConnection};

/// Most time that a link closed by the core may take to deliver its queued data.
const LINGER: Duration = Duration::from_secs(5);
/// Bytes of allowance saved before a rate-limited sender continues: one message, `MESSAGE_CELLS` cells.
const LEAST_ALLOWANCE: u64 = 17_408;
/// Least time between two reports of room by a rate-limited sender.
const REPORT_INTERVAL: Duration = Duration::from_millis(1);
/// Least time for one attempt of a dial.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// Limits and settings of an [`BrowserEndpoint`].
#[derive(Clone, Debug)]
pub struct BrowserCaps {
    /// Most links at once, dials included; browsers stop at 500. Default 128.
    pub links: usize,
    /// Most time for a dial, all attempts together. Default 10 s.
    pub opening: Duration,
    /// Bytes in a link's send buffers at which [`LinkEvent::Room`] is zero. Default 256 KiB.
    pub send_threshold: usize,
    /// Most received bytes of one link that the driver has not taken, each message counted in whole slots. Beyond it
    /// the link ends. Default 16 MiB.
    pub waiting: usize,
}

impl Default for BrowserCaps {
    fn default() -> Self {
        Self { links: 128, opening: Duration::from_secs(10), send_threshold: 256 << 10, waiting: 16 << 20 }
    }
}

/// Called when the browser has an event for an [`BrowserEndpoint`]; its driver should take it soon.
pub type Wake = Rc<dyn Fn()>;

/// Events recorded by the browser's callbacks until the driver takes them.
struct Inbox {
    wake: Wake,
    notes: RefCell<VecDeque<(LinkId, Note)>>,
}

enum Note {
    /// A message received in a lane.
    Message(Lane, Slots),
    /// A message that no relay sends: text, or too long.
    Foreign,
    /// The peer's state changed.
    Changed,
    /// The offer has been made; SHA-256 of its certificate.
    Offered([u8; 32]),
    /// The browser rejected the offer or the answer.
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

/// A dial in progress.
struct BrowserDial {
    target: DialTarget,
    /// Addresses tried.
    tried: usize,
    /// Deadline of the current attempt.
    until: Instant,
    /// Deadline of the whole dial.
    over: Instant,
    /// An attempt failed otherwise than by a timeout.
    refused: bool,
    local_certificate: Option<[u8; 32]>,
    /// Messages received before all lanes were open.
    early: Vec<(Lane, Slots)>,
}

enum BrowserLinkStage {
    Opening(Box<BrowserDial>),
    Open,
    /// Delivers the queued data.
    Closing {
        until: Instant,
    },
}

struct BrowserLink {
    stage: BrowserLinkStage,
    peer: PeerConnection,
    /// The rest of the room last reported to the core, in bytes.
    told: usize,
}

/// The links of a page.
pub struct BrowserEndpoint {
    caps: BrowserCaps,
    /// The certificate for every dial; with `None` the browser makes one for each.
    certificate: Option<RtcCertificate>,
    inbox: Rc<Inbox>,
    links: BTreeMap<LinkId, BrowserLink>,
    next_link: u64,
    events: VecDeque<LinkEvent>,
    allowance: Option<Allowance>,
}

/// The bytes that may still be sent at a limited rate. It saves up to one second's worth, since the timers of a
/// hidden page run once a second. Bytes are counted when the browser takes a message.
struct Allowance {
    rate: Rate,
    bytes: TokenBucket,
    /// The time of the last report of room.
    reported: Instant,
    /// A link was given less room than its send buffer has.
    short: bool,
}

impl Allowance {
    fn new(now: Instant, a_second: u64) -> Self {
        let rate = Rate { a_second: a_second.max(1), burst: a_second.max(LEAST_ALLOWANCE) };
        Self { rate, bytes: TokenBucket::new(), reported: now, short: true }
    }

    /// When the allowance is large enough to report room again.
    fn due(&self) -> Option<Instant> {
        let enough = self.bytes.available_at(self.rate, LEAST_ALLOWANCE);
        self.short.then(|| enough.max(self.reported.after(REPORT_INTERVAL)))
    }

    fn room(&mut self, now: Instant, wanted: usize) -> usize {
        let room = wanted.min(usize::try_from(self.bytes.available(now, self.rate)).unwrap_or(usize::MAX));
        self.reported = now;
        // A full bucket gives no more room later.
        self.short |= room < wanted.min(usize::try_from(self.rate.burst).unwrap_or(usize::MAX));
        room
    }

    /// Counts bytes that the browser has taken, also beyond the allowance.
    fn spend(&mut self, now: Instant, bytes: usize) {
        self.bytes.spend(now, self.rate, u64::try_from(bytes).unwrap_or(u64::MAX));
        self.short = true;
    }
}

impl BrowserEndpoint {
    /// An endpoint without links. All its links use `certificate`; with `None` each link uses a fresh one.
    #[must_use]
    pub fn new(caps: BrowserCaps, certificate: Option<RtcCertificate>, wake: Wake) -> Self {
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

    /// Takes the events that the browser's callbacks have recorded.
    pub fn take(&mut self, now: Instant) {
        while let Some((link, note)) = self.inbox.pop() {
            self.handle_note(now, link, note);
        }
    }

    /// Limits the sending rate to `a_second` bytes in the long run; `None` removes the limit. A relayed byte is
    /// received once and sent once, and unsent bytes hold back their source, so the limit bounds both directions.
    pub fn set_rate(&mut self, now: Instant, a_second: Option<u64>) {
        self.allowance = a_second.map(|a_second| Allowance::new(now, a_second));
        self.tell_rooms(now);
    }

    /// Reports the room of all open links to the core.
    fn tell_rooms(&mut self, now: Instant) {
        if let Some(allowance) = &mut self.allowance {
            allowance.short = false;
        }
        let open: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| matches!(link.stage, BrowserLinkStage::Open))
            .map(|(id, _)| *id)
            .collect();
        for id in open {
            self.tell_room(now, id);
        }
    }

    fn tell_room(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let mut bytes = self.caps.send_threshold.saturating_sub(link.peer.buffered());
        if let Some(allowance) = &mut self.allowance {
            bytes = allowance.room(now, bytes);
        }
        // A second report of zero would mean that data has been taken.
        if bytes == 0 && link.told == 0 {
            return;
        }
        link.told = bytes;
        self.events.push_back(LinkEvent::Room { link: id, bytes });
    }

    /// Ends all links at once, as when the page is closed.
    pub fn close_all(&mut self) {
        self.links.clear();
    }

    /// Number of links, dials included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.links.len()
    }

    /// Whether there are no links.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.links.is_empty()
    }

    fn handle_note(&mut self, now: Instant, id: LinkId, note: Note) {
        // The link may be gone already.
        let Some(link) = self.links.get_mut(&id) else { return };
        match (note, &mut link.stage) {
            (Note::Message(lane, message), BrowserLinkStage::Open) => {
                link.peer.taken(&message);
                self.events.push_back(LinkEvent::Message { link: id, lane, message });
            }
            (Note::Message(lane, message), BrowserLinkStage::Opening(dial)) => dial.early.push((lane, message)),
            (Note::Message(_, message), BrowserLinkStage::Closing { .. }) => link.peer.taken(&message),
            (Note::Foreign, _) => self.lose(now, id, LinkClose::Broken),
            (Note::Refused, _) => self.lose(now, id, LinkClose::Broken),
            (Note::Offered(fingerprint), BrowserLinkStage::Opening(dial)) => {
                dial.local_certificate = Some(fingerprint);
                self.look(now, id);
            }
            (Note::Offered(_), _) => {}
            (Note::Changed, _) => self.look(now, id),
        }
    }

    /// Handles a state change of a link.
    fn look(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.peer.looked();
        match (link.peer.outlook(), &mut link.stage) {
            (Outlook::Gone(reason), _) => self.lose(now, id, reason),
            (Outlook::Open, BrowserLinkStage::Opening(dial)) => {
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
                link.stage = BrowserLinkStage::Open;
                for (lane, message) in early {
                    link.peer.taken(&message);
                    self.events.push_back(LinkEvent::Message { link: id, lane, message });
                }
                self.tell_room(now, id);
            }
            (Outlook::Open, BrowserLinkStage::Open) => self.tell_room(now, id),
            (Outlook::Open, BrowserLinkStage::Closing { .. }) => {
                if link.peer.buffered() == 0 {
                    self.links.remove(&id);
                }
            }
            (Outlook::Opening, _) => {}
        }
    }

    /// Ends a link, or an attempt of a dial.
    fn lose(&mut self, now: Instant, id: LinkId, reason: LinkClose) {
        let Some(link) = self.links.remove(&id) else { return };
        match link.stage {
            BrowserLinkStage::Opening(mut dial) => {
                dial.refused |= reason != LinkClose::TimedOut;
                self.dial(now, dial);
            }
            BrowserLinkStage::Open => self.events.push_back(LinkEvent::Closed { link: id, reason }),
            BrowserLinkStage::Closing { .. } => {}
        }
    }

    /// Dials the next address, or fails the dial.
    fn dial(&mut self, now: Instant, mut dial: Box<BrowserDial>) {
        // A single address is tried again if the first attempt was refused, since a third party can forge a refusal.
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
            let share = dial.over.since(now).checked_div(left).unwrap_or(ATTEMPT_TIMEOUT).max(ATTEMPT_TIMEOUT);
            dial.until = now.after(share).min(dial.over);
            self.next_link = self.next_link.saturating_add(1);
            let id = LinkId(self.next_link);
            let peer =
                PeerConnection::dial(id, &dial.target, address, self.certificate.as_ref(), &self.caps, &self.inbox);
            if let Some(peer) = peer {
                dial.local_certificate = None;
                dial.early.clear();
                self.links.insert(id, BrowserLink { stage: BrowserLinkStage::Opening(dial), peer, told: 0 });
                return;
            }
        }
        let error = match &*dial {
            BrowserDial { over, .. } if *over <= now => DialError::TimedOut,
            BrowserDial { refused: true, .. } => DialError::Refused,
            BrowserDial { tried, .. } if *tried > 0 => DialError::TimedOut,
            _ => DialError::Unable,
        };
        self.events.push_back(LinkEvent::DialFailed { relay: dial.target.relay, error });
    }
}

impl Transport for BrowserEndpoint {
    fn handle_transmit(&mut self, now: Instant, transmit: Transmit) {
        match transmit {
            Transmit::Dial(target) => {
                if self.links.len() >= self.caps.links {
                    let (relay, error) = (target.relay, DialError::Unable);
                    self.events.push_back(LinkEvent::DialFailed { relay, error });
                    return;
                }
                let over = now.after(self.caps.opening);
                let dial = BrowserDial {
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
                let Some(link) = self.links.get_mut(&id).filter(|link| matches!(link.stage, BrowserLinkStage::Open))
                else {
                    return;
                };
                if !link.peer.send(lane, &message) {
                    return self.lose(now, id, LinkClose::Broken);
                }
                link.told = link.told.saturating_sub(message.len());
                if let Some(allowance) = &mut self.allowance {
                    allowance.spend(now, message.len());
                } else if link.told < self.caps.send_threshold / 2 {
                    // The browser reports when a lane's buffer falls below its threshold. A lane below the threshold
                    // gets no such event, so room is reported here. A lane above it reports in time.
                    self.tell_room(now, id);
                }
            }
            Transmit::Close(id) => {
                let Some(link) = self.links.get_mut(&id) else { return };
                if link.peer.buffered() == 0 {
                    self.links.remove(&id);
                } else {
                    link.peer.drain();
                    link.stage = BrowserLinkStage::Closing { until: now.after(LINGER) };
                }
            }
        }
    }

    fn poll_link_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    fn handle_timeout(&mut self, now: Instant) {
        let due = |link: &BrowserLink| link.deadline().is_some_and(|due| due <= now);
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
        self.links.values().filter_map(BrowserLink::deadline).chain(allowance).min()
    }
}

impl BrowserLink {
    fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            BrowserLinkStage::Opening(dial) => Some(dial.until),
            BrowserLinkStage::Closing { until } => Some(*until),
            BrowserLinkStage::Open => None,
        }
    }
}
