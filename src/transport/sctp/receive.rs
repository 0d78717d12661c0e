//! The receiving half: received TSNs, the timing of acknowledgements, and the reassembly of messages.
//!
//! A TSN reported in a SACK is never dropped (no reneging), so senders may free its payload. Memory is bounded by the
//! window. An out-of-order fragment counts as whole blocks of [`BLOCK`] bytes, however short it is, and a message
//! under reassembly as its slots.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;

use super::{
    Broken, MAX_MESSAGE, Message,
    clock::ArrivalClock,
    packet::{ARRIVAL_LEN, Arrival, Data, PacketWriter, SACK_HEADER},
    serial::{expand, wire},
};
use crate::base::{Counter as _, Instant, MESSAGE_CELLS, SLOT_LEN, Slots};

#[cfg(any(test, fuzzing))]
mod check;

/// Unit in bytes in which an out-of-order fragment is charged.
const BLOCK: usize = 1_280;
/// Most ranges of TSNs beyond the first hole. A TSN that would need another is dropped, unacknowledged.
const MAX_GAPS: usize = 1_024;
/// Most duplicate TSNs reported in one SACK.
const MAX_DUPLICATES: usize = 20;
/// Longest delay of any acknowledgement.
pub(super) const ACK_DELAY: Duration = Duration::from_millis(20);

/// Acknowledgement frequency for data that doesn't request an immediate one, leaves no hole and isn't a duplicate.
/// Between our nodes, all packets of a batch share one SACK.
#[derive(Clone, Copy)]
pub(super) struct Acknowledging {
    /// Packets at the start that are acknowledged one by one.
    prompt: u32,
    /// Packets that share an acknowledgement after those.
    every: u32,
    /// Longest delay of an acknowledgement.
    delay: Duration,
    /// The clock for arrival times, if they are sent.
    clock: Option<ArrivalClock>,
}

impl Acknowledging {
    /// For stock stacks: the slow start of some counts SACKs, and RFC 9260 §6.2 requires one for every second packet.
    pub(super) const STOCK: Self = Self { prompt: 64, every: 2, delay: ACK_DELAY, clock: None };

    /// For our nodes, which count bytes: fewer SACKs, so that a slow return path carries them.
    pub(super) const fn own(clock: ArrivalClock) -> Self {
        Self { prompt: 0, every: 8, delay: Duration::from_millis(5), clock: Some(clock) }
    }
}

/// Consecutive received TSNs.
#[derive(Clone, Copy)]
struct Range {
    first: u64,
    last: u64,
    /// When the first of them arrived, which is the start of the hole before it.
    since: Instant,
}

/// The receiving half of an association.
pub(super) struct Receiver {
    /// The last TSN before the first hole.
    cumulative: u64,
    acknowledging: Acknowledging,
    gaps: Vec<Range>,
    duplicates: Vec<u32>,
    /// The TSN received last since the last SACK, and its time of arrival.
    newest: Option<(u32, Instant)>,
    streams: Vec<IncomingStream>,
    /// Fragments of all streams that wait for earlier ones.
    pending: usize,
    /// Bytes charged for fragments and messages under reassembly.
    held: usize,
    window: usize,
    window_max: usize,
    /// Most bytes that may be held, besides the bound of the window.
    limit: usize,
    /// Memory is short: the window doesn't exceed the limit.
    short: bool,
    /// Data packets since the last SACK.
    unacknowledged: u32,
    /// Data packets since the association began, up to [`Acknowledging::prompt`].
    packets: u32,
    /// A SACK is due in the next packet.
    due: bool,
    /// When a delayed SACK is due.
    deadline: Option<Instant>,
    period: Period,
}

/// Bytes received since a point in time, from which the window grows.
struct Period {
    since: Instant,
    bytes: usize,
}

impl Receiver {
    /// For a peer whose first TSN is `first`.
    pub(super) fn new(
        now: Instant,
        first: u32,
        streams: u16,
        windows: (usize, usize),
        acknowledging: Acknowledging,
    ) -> Self {
        let (window, window_max) = windows;
        let streams = (0..streams).map(|_| IncomingStream::default()).collect();
        Self {
            acknowledging,
            cumulative: wire_start(first).saturating_sub(1),
            gaps: Vec::new(),
            duplicates: Vec::new(),
            newest: None,
            streams,
            pending: 0,
            held: 0,
            window,
            window_max: window_max.max(window),
            limit: usize::MAX,
            short: false,
            unacknowledged: 0,
            packets: 0,
            due: false,
            deadline: None,
            period: Period { since: now, bytes: 0 },
        }
    }

    /// Bytes held for incomplete messages.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Bounds the bytes held, and the window too if memory is `short`.
    pub(super) const fn set_limit(&mut self, bytes: usize, short: bool) {
        (self.limit, self.short) = (bytes, short);
    }

    /// Since when the first missing TSN has been missing.
    pub(super) fn hole_since(&self) -> Option<Instant> {
        self.gaps.first().map(|gap| gap.since)
    }

    /// Sets the largest window.
    pub(super) const fn set_window_max(&mut self, bytes: usize) {
        self.window_max = bytes;
        if self.window > bytes {
            self.window = bytes;
        }
    }

    /// Takes a DATA chunk; complete messages go to `out` in the order of their stream.
    ///
    /// # Errors
    /// [`Broken`] if no honest peer sends the chunk.
    pub(super) fn handle_data(
        &mut self,
        now: Instant,
        data: &Data<'_>,
        out: &mut VecDeque<Message>,
    ) -> Result<(), Broken> {
        self.due |= data.immediate;
        let tsn = expand(self.cumulative, data.tsn);
        if tsn <= self.cumulative || self.has(tsn) {
            self.due = true;
            if self.duplicates.len() < MAX_DUPLICATES {
                self.duplicates.push(data.tsn);
            }
            return Ok(());
        }
        let stream = usize::from(data.stream);
        let cost = self.streams.get(stream).ok_or(Broken)?.cost(tsn, data);
        // Within the window the sender may count payload where this end counts blocks: an eighth more.
        let limit = self.limit.min(self.window.saturating_add(self.window / 8).saturating_add(MAX_MESSAGE));
        let in_reach = tsn.saturating_sub(self.cumulative) <= u64::from(u16::MAX);
        // The next TSN is always accepted: without it no memory would ever be freed.
        let fits = tsn == self.cumulative.saturating_add(1) || self.held.saturating_add(cost) <= limit;
        if !in_reach || !fits || !self.note(now, tsn) {
            return Ok(());
        }
        self.newest = Some((data.tsn, now));
        self.period.bytes = self.period.bytes.saturating_add(data.payload.len());
        let mut account = MemoryCounters { held: &mut self.held, pending: &mut self.pending };
        self.streams.get_mut(stream).ok_or(Broken)?.insert(tsn, data, &mut account, out)?;
        // Only a TSN that moves the first hole can leave a fragment behind it. One that continues a message and fills
        // no hole can't.
        let moved = self.cumulative >= tsn;
        if moved && (self.pending > 0 || data.begin || self.cumulative > tsn) { self.check_pending() } else { Ok(()) }
    }

    /// Ends a packet with DATA: decides when it is acknowledged. `round_trip` is the path's, as far as known.
    pub(super) fn handle_packet_end(&mut self, now: Instant, round_trip: Duration) {
        let Acknowledging { prompt, every, delay, .. } = self.acknowledging;
        self.packets = self.packets.saturating_add(1).min(prompt);
        self.unacknowledged.increment();
        if self.packets < prompt || self.unacknowledged >= every || !self.gaps.is_empty() {
            self.due = true;
        } else if self.deadline.is_none() {
            self.deadline = Some(now.after(delay));
        }
        let elapsed = now.since(self.period.since);
        if elapsed >= round_trip.max(Duration::from_millis(1)) {
            // Twice the bytes of a round trip, so that a sender that doubles its rate isn't blocked.
            let round_trips = elapsed.as_nanos().checked_div(round_trip.as_nanos().max(1_000_000)).unwrap_or(1).max(1);
            let carried = self.period.bytes.checked_div(usize::try_from(round_trips).unwrap_or(usize::MAX));
            let wanted = carried.unwrap_or_default().saturating_mul(2);
            self.window = self.window.max(wanted.min(self.window_max));
            self.period = Period { since: now, bytes: 0 };
        }
    }

    /// When a delayed SACK becomes due.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.due)
    }

    /// Whether a SACK must be sent now.
    pub(super) fn sack_due(&mut self, now: Instant) -> bool {
        self.due |= self.deadline.is_some_and(|deadline| deadline <= now);
        self.due
    }

    /// Writes a SACK, if it fits.
    pub(super) fn write_sack(&mut self, writer: &mut PacketWriter<'_>) {
        if writer.room() < SACK_HEADER {
            return;
        }
        let newest = self.newest.take();
        let length = self.gaps.len().saturating_mul(4).saturating_add(SACK_HEADER + ARRIVAL_LEN);
        if let (Some(clock), Some((tsn, at))) = (self.acknowledging.clock, newest)
            && length <= writer.room()
        {
            writer.arrival(&Arrival { tsn, tick: clock.tick(at) });
        }
        let offset = |tsn: u64| u16::try_from(tsn.saturating_sub(self.cumulative)).unwrap_or(u16::MAX);
        let blocks = self.gaps.iter().map(|gap| (offset(gap.first), offset(gap.last)));
        // A peer for which no bytes are held keeps its window: it doesn't use up memory.
        let window = if self.short && self.held > 0 { self.window.min(self.limit) } else { self.window };
        let window = u32::try_from(window.saturating_sub(self.held)).unwrap_or(u32::MAX);
        writer.sack(wire(self.cumulative), window, blocks, &self.duplicates);
        self.duplicates.clear();
        self.unacknowledged = 0;
        self.due = false;
        self.deadline = None;
    }

    fn has(&self, tsn: u64) -> bool {
        let after = self.gaps.partition_point(|gap| gap.last < tsn);
        self.gaps.get(after).is_some_and(|gap| gap.first <= tsn)
    }

    /// Records the arrival of a missing TSN; `false` if there is no room for another range.
    fn note(&mut self, now: Instant, tsn: u64) -> bool {
        if tsn == self.cumulative.saturating_add(1) {
            self.cumulative = tsn;
            if let Some(gap) = self.gaps.first().copied()
                && gap.first == tsn.saturating_add(1)
            {
                self.cumulative = gap.last;
                self.gaps.remove(0);
                self.due = true;
            }
            return true;
        }
        let at = self.gaps.partition_point(|gap| gap.last < tsn);
        let after_previous =
            at.checked_sub(1).and_then(|at| self.gaps.get(at)).is_some_and(|gap| gap.last.saturating_add(1) == tsn);
        let before_next = self.gaps.get(at).is_some_and(|gap| gap.first == tsn.saturating_add(1));
        match (after_previous, before_next) {
            (true, true) => {
                let next = self.gaps.remove(at);
                if let Some(gap) = at.checked_sub(1).and_then(|at| self.gaps.get_mut(at)) {
                    gap.last = next.last;
                    gap.since = gap.since.min(next.since);
                }
            }
            (true, false) => {
                if let Some(gap) = at.checked_sub(1).and_then(|at| self.gaps.get_mut(at)) {
                    gap.last = tsn;
                }
            }
            (false, true) => {
                if let Some(gap) = self.gaps.get_mut(at) {
                    gap.first = tsn;
                }
            }
            (false, false) if self.gaps.len() >= MAX_GAPS => return false,
            (false, false) => self.gaps.insert(at, Range { first: tsn, last: tsn, since: now }),
        }
        true
    }

    /// Detects input that can never complete a message: a pending fragment before the first hole, or a message whose
    /// next fragment would have to be received already.
    fn check_pending(&self) -> Result<(), Broken> {
        if self.held == 0 {
            return Ok(());
        }
        let stuck = |stream: &IncomingStream| {
            let fragment = stream.pending.first_key_value().map(|(tsn, _)| *tsn);
            let next = stream.message.as_ref().map(|message| message.next);
            [fragment, next].into_iter().flatten().any(|tsn| tsn <= self.cumulative)
        };
        if self.streams.iter().any(stuck) { Err(Broken) } else { Ok(()) }
    }
}

/// The 64-bit number for a peer's first TSN: far enough from zero that nothing before it is negative.
fn wire_start(first: u32) -> u64 {
    u64::from(first) | 1 << 32
}

/// Counters of the memory of all streams.
struct MemoryCounters<'a> {
    held: &'a mut usize,
    pending: &'a mut usize,
}

/// One stream's reassembly.
#[derive(Default)]
struct IncomingStream {
    /// The sequence number of the message delivered next.
    next: u16,
    message: Option<Assembly>,
    /// Fragments that wait for earlier ones, by TSN.
    pending: BTreeMap<u64, Fragment>,
}

/// The message delivered next, with its first fragments received.
struct Assembly {
    bytes: Slots,
    /// The TSN of its next fragment.
    next: u64,
    protocol: u32,
}

impl Assembly {
    /// Bytes of memory added by `length` more bytes.
    fn growth(&self, length: usize) -> usize {
        in_slots(self.bytes.len().saturating_add(length)).saturating_sub(self.bytes.memory())
    }
}

/// Bytes of the slots for a message of `length` bytes.
const fn in_slots(length: usize) -> usize {
    length.div_ceil(SLOT_LEN).saturating_mul(SLOT_LEN)
}

struct Fragment {
    sequence: u16,
    protocol: u32,
    begin: bool,
    end: bool,
    payload: Bytes,
}

impl Fragment {
    fn cost(length: usize) -> usize {
        length.div_ceil(BLOCK).saturating_mul(BLOCK)
    }
}

impl IncomingStream {
    /// Whether a fragment is the next one in sequence.
    fn continues(&self, tsn: u64, begin: bool, sequence: u16) -> bool {
        match &self.message {
            Some(message) => message.next == tsn,
            None => begin && sequence == self.next,
        }
    }

    /// Maximum bytes that the fragment adds to the bytes held.
    fn cost(&self, tsn: u64, data: &Data<'_>) -> usize {
        match &self.message {
            Some(message) if message.next == tsn => message.growth(data.payload.len()),
            None if data.begin && data.sequence == self.next => {
                if data.end {
                    0
                } else {
                    in_slots(data.payload.len())
                }
            }
            _ => Fragment::cost(data.payload.len()),
        }
    }

    fn insert(
        &mut self,
        tsn: u64,
        data: &Data<'_>,
        account: &mut MemoryCounters<'_>,
        out: &mut VecDeque<Message>,
    ) -> Result<(), Broken> {
        if !self.continues(tsn, data.begin, data.sequence) {
            let Data { sequence, protocol, begin, end, payload, .. } = *data;
            *account.held = account.held.saturating_add(Fragment::cost(payload.len()));
            account.pending.increment();
            let payload = Bytes::copy_from_slice(payload);
            self.pending.insert(tsn, Fragment { sequence, protocol, begin, end, payload });
            return Ok(());
        }
        self.take(tsn, data, account, out)?;
        while let Some((&tsn, fragment)) = self.pending.first_key_value() {
            if !self.continues(tsn, fragment.begin, fragment.sequence) {
                break;
            }
            let Some(Fragment { sequence, protocol, begin, end, payload }) = self.pending.remove(&tsn) else { break };
            *account.held = account.held.saturating_sub(Fragment::cost(payload.len()));
            account.pending.decrement();
            let data = Data { tsn: 0, stream: 0, sequence, protocol, begin, end, immediate: false, payload: &payload };
            self.take(tsn, &data, account, out)?;
        }
        Ok(())
    }

    /// Takes the next fragment in sequence.
    fn take(
        &mut self,
        tsn: u64,
        data: &Data<'_>,
        account: &mut MemoryCounters<'_>,
        out: &mut VecDeque<Message>,
    ) -> Result<(), Broken> {
        let Some(mut message) = self.message.take() else {
            if data.end {
                self.next = self.next.wrapping_add(1);
                out.push_back(Message { protocol: data.protocol, bytes: Slots::from(data.payload) });
                return Ok(());
            }
            let mut bytes = Slots::with_capacity(MESSAGE_CELLS);
            bytes.extend_from_slice(data.payload);
            *account.held = account.held.saturating_add(bytes.memory());
            self.message = Some(Assembly { bytes, next: tsn.saturating_add(1), protocol: data.protocol });
            return Ok(());
        };
        let length = message.bytes.len().saturating_add(data.payload.len());
        if data.begin || data.sequence != self.next || data.protocol != message.protocol || length > MAX_MESSAGE {
            return Err(Broken);
        }
        *account.held = account.held.saturating_sub(message.bytes.memory());
        message.bytes.extend_from_slice(data.payload);
        message.next = tsn.saturating_add(1);
        if data.end {
            self.next = self.next.wrapping_add(1);
            out.push_back(Message { protocol: message.protocol, bytes: message.bytes });
        } else {
            *account.held = account.held.saturating_add(message.bytes.memory());
            self.message = Some(message);
        }
        Ok(())
    }
}
