//! What a peer's SCTP packets may hold, judged before `rtc-sctp` sees them.
//!
//! `rtc-sctp` trusts its peer more than a relay can: unordered fragments are scanned whole on each chunk, empty ones use no
//! window, a TSN may lie any distance ahead, a FORWARD TSN walks it, and an error cause may reach beyond its chunk.
//! Governed by `proto/01-transport.md` §5; the threat is a peer that uses up memory or time.

use std::collections::VecDeque;

use crate::base::LinkClose;

/// Bytes of SCTP's common header.
const HEADER: usize = 12;
/// Longest packet taken, whatever we send: the datagrams of stock peers are no larger.
const LARGEST: usize = 1_500;
/// A cell makes at most two fragments, so an honest peer's hold this much or more each, on average.
const LEAST: u32 = 512;
/// Fragments of one message beyond the window's: those of the largest message, twice over.
const SLACK: usize = 256;

/// What is to be done with a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// `rtc-sctp` may have it.
    Pass,
    /// As if it had been lost.
    Drop,
    /// The link ends.
    End(LinkClose),
}

/// Follows the TSNs of one association.
pub(super) struct Inbound {
    largest: usize,
    /// How far ahead of `acked` a TSN may lie.
    ahead: usize,
    /// The peer's first TSN.
    initial: Option<u32>,
    /// The last TSN that we acknowledged together with all before it.
    acked: u32,
    /// Which of the TSNs beyond have come.
    come: VecDeque<bool>,
    /// Fragments that have come and were not read as part of a message.
    held: usize,
}

impl Inbound {
    /// For a receive window, and packets of at most `mtu` bytes of our own.
    pub(super) fn new(mtu: u16, receive_window: u32) -> Self {
        let ahead = usize::try_from(receive_window / LEAST).unwrap_or(usize::MAX).max(SLACK);
        Self { largest: usize::from(mtu).max(LARGEST), ahead, initial: None, acked: 0, come: VecDeque::new(), held: 0 }
    }

    /// Judges a packet that arrived.
    pub(super) fn judge(&mut self, packet: &[u8]) -> Verdict {
        if packet.len() > self.largest {
            return Verdict::Drop;
        }
        // All of it first, so that a packet that is dropped has changed nothing.
        let mut fragments = Vec::new();
        let mut first = None;
        for chunk in Chunks::of(packet) {
            let Some(chunk) = chunk else { return Verdict::Drop };
            let alone = chunk.whole == packet.len().saturating_sub(HEADER);
            match (chunk.kind, chunk.body) {
                (0, [a, b, c, d, _, _, _, _, _, _, _, _, _, ..]) if chunk.flags & 4 == 0 => {
                    fragments.push(u32::from_be_bytes([*a, *b, *c, *d]));
                }
                // Unordered, or empty (RFC 9260 §6.2); I-DATA, FORWARD TSN and I-FORWARD TSN, which nothing here needs.
                (0 | 64 | 192 | 194, _) => return Verdict::End(LinkClose::Broken),
                (1 | 2, body) if alone && is_init(body) => first = tsn_at(body, 12),
                (3, body) if is_sack(body) => {}
                (4, [0, 1, body @ ..]) if counted(body) == Some(body.len().saturating_add(2)) => {}
                // We reset no streams, and a link has all its lanes or none.
                (6 | 130, _) => return Verdict::End(LinkClose::ByPeer),
                (7, [_, _, _, _]) | (8 | 11 | 14, []) | (10, _) => {}
                (9, body) if are_causes(body) => {}
                _ => return Verdict::Drop,
            }
        }
        match (first, self.initial) {
            (Some(first), None) => (self.initial, self.acked) = (Some(first), first.wrapping_sub(1)),
            (Some(first), Some(initial)) if first != initial => return Verdict::End(LinkClose::Broken),
            (None, None) if !fragments.is_empty() => return Verdict::End(LinkClose::Broken),
            _ => {}
        }
        if fragments.iter().any(|tsn| self.place(*tsn).is_some_and(|place| place >= self.ahead)) {
            return Verdict::Drop;
        }
        for tsn in fragments {
            let Some(place) = self.place(tsn) else { continue };
            if self.come.len() <= place {
                self.come.resize(place.saturating_add(1), false);
            }
            if let Some(come) = self.come.get_mut(place)
                && !core::mem::replace(come, true)
            {
                self.held = self.held.saturating_add(1);
            }
        }
        // Whoever sends the fragments of a message one after the other never holds back so many.
        if self.held > self.ahead.saturating_add(SLACK) { Verdict::End(LinkClose::Broken) } else { Verdict::Pass }
    }

    /// Reads our acknowledgements off a packet of our own.
    pub(super) fn sent(&mut self, packet: &[u8]) {
        for chunk in Chunks::of(packet).flatten().filter(|chunk| chunk.kind == 3) {
            let Some(acked) = tsn_at(chunk.body, 0) else { continue };
            if let Some(place) = self.place(acked) {
                self.acked = acked;
                self.come.drain(..place.saturating_add(1).min(self.come.len()));
            }
        }
    }

    /// This many fragments were read as a message.
    pub(super) fn read(&mut self, fragments: usize) {
        self.held = self.held.saturating_sub(fragments);
    }

    /// The TSN after the last acknowledged one.
    #[cfg(test)]
    pub(super) fn next_tsn(&self) -> u32 {
        self.acked.wrapping_add(1)
    }

    /// How many TSNs lie between the last acknowledged one and this; `None` if it isn't beyond.
    fn place(&self, tsn: u32) -> Option<usize> {
        let distance = tsn.wrapping_sub(self.acked).checked_sub(1)?;
        usize::try_from(distance).ok().filter(|_| distance < 1 << 31)
    }
}

struct Chunk<'a> {
    kind: u8,
    flags: u8,
    body: &'a [u8],
    /// Length with header and padding.
    whole: usize,
}

/// The chunks of a packet; `None` for one that isn't whole, and nothing more.
struct Chunks<'a>(&'a [u8]);

impl<'a> Chunks<'a> {
    fn of(packet: &'a [u8]) -> Self {
        Self(packet.get(HEADER..).unwrap_or_default())
    }
}

impl<'a> Iterator for Chunks<'a> {
    type Item = Option<Chunk<'a>>;

    fn next(&mut self) -> Option<Self::Item> {
        let rest = core::mem::take(&mut self.0);
        let [kind, flags, high, low, ..] = *rest else { return (!rest.is_empty()).then_some(None) };
        let length = usize::from(u16::from_be_bytes([high, low]));
        let Some(body) = rest.get(4..length) else { return Some(None) };
        let whole = length.next_multiple_of(4);
        // `rtc-sctp` wants the padding to be there.
        let Some(after) = rest.get(whole..) else { return Some(None) };
        self.0 = after;
        Some(Some(Chunk { kind, flags, body, whole }))
    }
}

fn tsn_at(body: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_be_bytes(*body.get(at..)?.first_chunk()?))
}

/// The two bytes that begin `bytes`, a length.
fn counted(bytes: &[u8]) -> Option<usize> {
    Some(usize::from(u16::from_be_bytes(*bytes.first_chunk()?)))
}

/// Whether the gaps and duplicates are as many as the chunk has room for.
fn is_sack(body: &[u8]) -> bool {
    let (Some(gaps), Some(duplicates)) = (body.get(8..).and_then(counted), body.get(10..).and_then(counted)) else {
        return false;
    };
    body.len() == gaps.saturating_add(duplicates).saturating_mul(4).saturating_add(12)
}

/// Whether the parameters of an INIT or INIT ACK fill it, and are such as belong there.
fn is_init(body: &[u8]) -> bool {
    let Some(mut rest) = body.get(16..) else { return false };
    while let [high, low, counted @ ..] = rest {
        let kind = u16::from_be_bytes([*high, *low]);
        let Some(length) = self::counted(counted).filter(|length| (4..=rest.len()).contains(length)) else {
            return false;
        };
        let belongs = match kind {
            // The state cookie.
            7 => true,
            // Algorithms of two bytes each.
            0x8004 => length % 2 == 0,
            _ => kind >= 0x8000,
        };
        // `rtc-sctp` overlooks a last one without a value, and takes it for a chunk.
        if !belongs || (length == 4 && rest.len() == 4) {
            return false;
        }
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    rest.is_empty()
}

/// Whether the causes of an ERROR fill it.
fn are_causes(mut body: &[u8]) -> bool {
    while !body.is_empty() {
        let Some(length) = body.get(2..).and_then(counted).filter(|length| *length >= 4) else { return false };
        let Some(rest) = body.get(length..) else { return false };
        body = rest;
    }
    true
}
