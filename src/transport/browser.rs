//! The transport of a page: WebRTC data channels of the browser's own stack. It dials relays from their descriptors
//! alone and accepts no links.
//!
//! Each link is one `RTCPeerConnection` with four pre-negotiated lanes; [`super::sdp`] writes the answer to its offer.
//! [`BrowserEndpoint`] is driven like every transport. A callback of the browser only records an event and calls
//! [`Wake`], so the core does not run inside a callback.
//!
//! Governed by `proto/01-transport.md` §5 to §7. A page can't stop a browser from receiving, so received data that the
//! driver has not taken is capped ([`BrowserCaps::max_waiting`]); beyond the cap the link ends. The browser checks the
//! certificate against the answer's fingerprint, and reports a mismatch like any other failed handshake.

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
    Counter as _, DialError, DialTarget, Instant, LANES, Lane, LinkClose, LinkEvent, LinkId, LinkOpened, Rate,
    Redacted, Slots, TokenBucket, Transmit,
};
use peer::{PeerConnection, PeerStatus};

/// Timeout of the delivery of queued data after the core has closed a link.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// Smallest allowance at which a rate-limited sender continues, in bytes: one message of `MESSAGE_CELLS` cells.
const MIN_ALLOWANCE: u64 = 17_408;
/// Shortest interval between two reports of room by a rate-limited sender.
const REPORT_INTERVAL: Duration = Duration::from_millis(1);
/// Smallest timeout of one attempt of a dial, unless the dial itself ends earlier.
const MIN_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(3);

/// Limits and settings of a [`BrowserEndpoint`].
#[derive(Clone, Debug)]
pub struct BrowserCaps {
    /// Most concurrent links, including dials; browsers allow 500. Default 128.
    pub links: usize,
    /// Timeout of a dial with all its attempts. Default 10 s.
    pub opening_timeout: Duration,
    /// Bytes in the send buffers of a link at which its [`LinkEvent::Room`] is zero. Default 256 KiB.
    pub send_threshold: usize,
    /// Most received bytes of a link that the driver has not taken; each message counts in whole slots. Beyond the cap
    /// the link ends. Default 16 MiB.
    pub max_waiting: usize,
}

impl Default for BrowserCaps {
    fn default() -> Self {
        Self { links: 128, opening_timeout: Duration::from_secs(10), send_threshold: 256 << 10, max_waiting: 16 << 20 }
    }
}

/// Callback for a new event of the browser, which the driver must take by [`BrowserEndpoint::take`].
pub type Wake = Rc<dyn Fn()>;

/// The queue of events that the browser's callbacks have recorded.
struct Inbox {
    wake: Wake,
    events: RefCell<VecDeque<(LinkId, PeerEvent)>>,
}

/// An event of a peer connection.
enum PeerEvent {
    /// A message received in a lane.
    Message(Lane, Slots),
    /// A message that ends the link: text, too long, or beyond [`BrowserCaps::max_waiting`].
    Unacceptable,
    /// The state of the peer connection or of a lane has changed.
    Changed,
    /// Offer and answer are set. Contains SHA-256 of the certificate in the offer.
    Negotiated([u8; 32]),
    /// Offer or answer is invalid, or the browser rejected it.
    NegotiationFailed,
}

impl Inbox {
    fn push(&self, link: LinkId, event: PeerEvent) {
        if let Ok(mut events) = self.events.try_borrow_mut() {
            events.push_back((link, event));
        }
        (self.wake)();
    }

    fn pop(&self) -> Option<(LinkId, PeerEvent)> {
        self.events.try_borrow_mut().ok()?.pop_front()
    }
}

/// A dial in progress.
struct BrowserDial {
    target: DialTarget,
    /// Number of addresses tried.
    tried: usize,
    /// Deadline of the current attempt.
    attempt_deadline: Instant,
    /// Deadline of the whole dial.
    deadline: Instant,
    /// An attempt failed for a reason other than a timeout.
    refused: bool,
    local_certificate: Option<[u8; 32]>,
    /// Messages received before all lanes were open.
    early_messages: Vec<(Lane, Slots)>,
}

enum BrowserLinkStage {
    Opening(Box<BrowserDial>),
    Open,
    /// The core has closed the link; queued data remains.
    Closing {
        until: Instant,
    },
}

struct BrowserLink {
    stage: BrowserLinkStage,
    peer: PeerConnection,
    /// Room last reported to the core less the bytes sent since.
    room: usize,
}

/// The links of a page.
pub struct BrowserEndpoint {
    caps: BrowserCaps,
    /// The certificate for all dials; with `None` the browser generates one for each dial.
    certificate: Option<RtcCertificate>,
    inbox: Rc<Inbox>,
    links: BTreeMap<LinkId, BrowserLink>,
    next_link: u64,
    events: VecDeque<LinkEvent>,
    allowance: Option<Allowance>,
}

/// The token bucket of a rate-limited sender. Its burst is the bytes of a second, at least one message, since the
/// timers of a hidden page run once a second. Bytes are counted when the browser accepts a message.
struct Allowance {
    rate: Rate,
    bytes: TokenBucket,
    /// The time of the last report of room.
    reported_at: Instant,
    /// The allowance has limited a report of room.
    limited_room: bool,
}

impl Allowance {
    fn new(now: Instant, bytes_per_second: u64) -> Self {
        let rate = Rate { per_second: bytes_per_second.max(1), burst: bytes_per_second.max(MIN_ALLOWANCE) };
        Self { rate, bytes: TokenBucket::new(), reported_at: now, limited_room: true }
    }

    /// Time of the next report of room, if the allowance limited the last report.
    fn next_report(&self) -> Option<Instant> {
        let refilled_at = self.bytes.available_at(self.rate, MIN_ALLOWANCE);
        self.limited_room.then(|| refilled_at.max(self.reported_at.after(REPORT_INTERVAL)))
    }

    fn room(&mut self, now: Instant, wanted: usize) -> usize {
        let room = wanted.min(usize::try_from(self.bytes.available(now, self.rate)).unwrap_or(usize::MAX));
        self.reported_at = now;
        // A full bucket allows no more room later.
        self.limited_room |= room < wanted.min(usize::try_from(self.rate.burst).unwrap_or(usize::MAX));
        room
    }

    /// Counts bytes that the browser has accepted, also beyond the allowance.
    fn spend(&mut self, now: Instant, bytes: usize) {
        self.bytes.spend(now, self.rate, u64::try_from(bytes).unwrap_or(u64::MAX));
        self.limited_room = true;
    }
}

impl BrowserEndpoint {
    /// An endpoint without links. All its links use `certificate`; with `None` each link uses a fresh one.
    #[must_use]
    pub fn new(caps: BrowserCaps, certificate: Option<RtcCertificate>, wake: Wake) -> Self {
        let inbox = Rc::new(Inbox { wake, events: RefCell::default() });
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
        while let Some((link, event)) = self.inbox.pop() {
            self.handle_peer_event(now, link, event);
        }
    }

    /// Limits the mean sending rate to `bytes_per_second`; `None` removes the limit. A relay sends each byte that
    /// it receives, and unsent bytes cause backpressure on their source, so the limit applies to both directions.
    pub fn set_rate(&mut self, now: Instant, bytes_per_second: Option<u64>) {
        self.allowance = bytes_per_second.map(|bytes_per_second| Allowance::new(now, bytes_per_second));
        self.report_rooms(now);
    }

    /// Reports the room of all open links to the core.
    fn report_rooms(&mut self, now: Instant) {
        if let Some(allowance) = &mut self.allowance {
            allowance.limited_room = false;
        }
        let open: Vec<_> = self
            .links
            .iter()
            .filter(|(_, link)| matches!(link.stage, BrowserLinkStage::Open))
            .map(|(id, _)| *id)
            .collect();
        for id in open {
            self.report_room(now, id);
        }
    }

    /// Reports the room of a link to the core.
    fn report_room(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        let mut bytes = self.caps.send_threshold.saturating_sub(link.peer.buffered());
        if let Some(allowance) = &mut self.allowance {
            bytes = allowance.room(now, bytes);
        }
        // To the core, a report means that the link has accepted data. So zero is not reported twice.
        if bytes == 0 && link.room == 0 {
            return;
        }
        link.room = bytes;
        self.events.push_back(LinkEvent::Room { link: id, bytes });
    }

    /// Ends all links immediately, for the end of the page.
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

    fn handle_peer_event(&mut self, now: Instant, id: LinkId, event: PeerEvent) {
        // The link may have ended since the event was recorded.
        let Some(link) = self.links.get_mut(&id) else { return };
        match (event, &mut link.stage) {
            (PeerEvent::Message(lane, message), BrowserLinkStage::Open) => {
                link.peer.handle_taken(&message);
                self.events.push_back(LinkEvent::Message { link: id, lane, message });
            }
            (PeerEvent::Message(lane, message), BrowserLinkStage::Opening(dial)) => {
                dial.early_messages.push((lane, message))
            }
            (PeerEvent::Message(_, message), BrowserLinkStage::Closing { .. }) => link.peer.handle_taken(&message),
            (PeerEvent::Unacceptable, _) => self.end(now, id, LinkClose::Broken),
            (PeerEvent::NegotiationFailed, _) => self.end(now, id, LinkClose::Broken),
            (PeerEvent::Negotiated(fingerprint), BrowserLinkStage::Opening(dial)) => {
                dial.local_certificate = Some(fingerprint);
                self.handle_change(now, id);
            }
            (PeerEvent::Negotiated(_), _) => {}
            (PeerEvent::Changed, _) => self.handle_change(now, id),
        }
    }

    /// Handles a state change of a link.
    fn handle_change(&mut self, now: Instant, id: LinkId) {
        let Some(link) = self.links.get_mut(&id) else { return };
        link.peer.clear_change();
        match (link.peer.status(), &mut link.stage) {
            (PeerStatus::Ended(reason), _) => self.end(now, id, reason),
            (PeerStatus::Open, BrowserLinkStage::Opening(dial)) => {
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
                let early = core::mem::take(&mut dial.early_messages);
                self.events.push_back(LinkEvent::Opened { link: id, opened });
                link.stage = BrowserLinkStage::Open;
                for (lane, message) in early {
                    link.peer.handle_taken(&message);
                    self.events.push_back(LinkEvent::Message { link: id, lane, message });
                }
                self.report_room(now, id);
            }
            (PeerStatus::Open, BrowserLinkStage::Open) => self.report_room(now, id),
            (PeerStatus::Open, BrowserLinkStage::Closing { .. }) => {
                if link.peer.buffered() == 0 {
                    self.links.remove(&id);
                }
            }
            (PeerStatus::Opening, _) => {}
        }
    }

    /// Ends a link, or an attempt of a dial.
    fn end(&mut self, now: Instant, id: LinkId, reason: LinkClose) {
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
            && now < dial.deadline
        {
            let left = u32::try_from(dial.target.addresses.len().saturating_sub(dial.tried)).unwrap_or(u32::MAX);
            dial.tried.increment();
            let share =
                dial.deadline.since(now).checked_div(left).unwrap_or(MIN_ATTEMPT_TIMEOUT).max(MIN_ATTEMPT_TIMEOUT);
            dial.attempt_deadline = now.after(share).min(dial.deadline);
            self.next_link.increment();
            let id = LinkId(self.next_link);
            let peer =
                PeerConnection::dial(id, &dial.target, address, self.certificate.as_ref(), &self.caps, &self.inbox);
            if let Some(peer) = peer {
                dial.local_certificate = None;
                dial.early_messages.clear();
                self.links.insert(id, BrowserLink { stage: BrowserLinkStage::Opening(dial), peer, room: 0 });
                return;
            }
        }
        let error = match &*dial {
            BrowserDial { deadline, .. } if *deadline <= now => DialError::TimedOut,
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
                let deadline = now.after(self.caps.opening_timeout);
                let dial = BrowserDial {
                    target,
                    tried: 0,
                    attempt_deadline: deadline,
                    deadline,
                    refused: false,
                    local_certificate: None,
                    early_messages: Vec::new(),
                };
                self.dial(now, Box::new(dial));
            }
            Transmit::Message { link: id, lane, message } => {
                let Some(link) = self.links.get_mut(&id).filter(|link| matches!(link.stage, BrowserLinkStage::Open))
                else {
                    return;
                };
                if !link.peer.send(lane, &message) {
                    return self.end(now, id, LinkClose::Broken);
                }
                link.room = link.room.saturating_sub(message.len());
                if let Some(allowance) = &mut self.allowance {
                    allowance.spend(now, message.len());
                } else if link.room < self.caps.send_threshold / 2 {
                    // When a lane's buffer falls to its threshold, an event of the browser causes a report of room. A
                    // lane that stays below its threshold has no such event, so room is reported here.
                    self.report_room(now, id);
                }
            }
            // A page accepts no links.
            Transmit::PeerListed(_) => {}
            Transmit::Close(id) => {
                let Some(link) = self.links.get_mut(&id) else { return };
                if link.peer.buffered() == 0 {
                    self.links.remove(&id);
                } else {
                    link.peer.notify_when_sent();
                    link.stage = BrowserLinkStage::Closing { until: now.after(CLOSE_TIMEOUT) };
                }
            }
        }
    }

    fn poll_link_event(&mut self) -> Option<LinkEvent> {
        self.events.pop_front()
    }

    fn handle_timeout(&mut self, now: Instant) {
        let due = |link: &BrowserLink| link.deadline().is_some_and(|due| due <= now);
        let expired: Vec<_> = self.links.iter().filter(|(_, link)| due(link)).map(|(id, _)| *id).collect();
        for id in expired {
            self.end(now, id, LinkClose::TimedOut);
        }
        if self.allowance.as_ref().and_then(Allowance::next_report).is_some_and(|due| due <= now) {
            self.report_rooms(now);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let allowance = self.allowance.as_ref().and_then(Allowance::next_report);
        self.links.values().filter_map(BrowserLink::deadline).chain(allowance).min()
    }
}

impl BrowserLink {
    fn deadline(&self) -> Option<Instant> {
        match &self.stage {
            BrowserLinkStage::Opening(dial) => Some(dial.attempt_deadline),
            BrowserLinkStage::Closing { until } => Some(*until),
            BrowserLinkStage::Open => None,
        }
    }
}
