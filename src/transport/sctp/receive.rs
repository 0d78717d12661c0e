//! The receiving half: received TSNs, the timing of acknowledgements, and the reassembly of messages.
//!
//! A TSN reported in a SACK is never dropped (no reneging), so senders may free its payload. The receive window bounds
//! the memory: an out-of-order fragment counts as whole blocks of 1,280 bytes, a message under reassembly as its
//! slots.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use super::{
    Broken, MAX_MESSAGE, Message,
    clock::ArrivalClock,
    packet::{ARRIVAL_LEN, Arrival, Data, PacketWriter, SACK_HEADER},
    serial::{expand, wire},
};
use crate::base::{Counter as _, Instant, MESSAGE_CELLS, SLOT_LEN, Slots};

mod block;
#[cfg(any(test, fuzzing))]
mod check;

use block::FragmentBlock;

/// Most ranges of TSNs beyond the first hole. A TSN that needs a further range is dropped, not acknowledged.
const MAX_RANGES: usize = 1_024;
/// Most duplicate TSNs reported in one SACK.
const MAX_DUPLICATES: usize = 20;
/// Longest delay of a SACK to any peer.
pub(super) const MAX_ACK_DELAY: Duration = Duration::from_millis(20);

/// Frequency of SACKs for data that arrives in order and requests no immediate SACK.
#[derive(Clone, Copy)]
pub(super) struct AckPolicy {
    /// Number of the first packet whose SACK may be delayed. Each earlier packet has its own SACK.
    first_delayed: u32,
    /// Number of packets that share a SACK from then on.
    packets_per_sack: u32,
    /// Longest delay of a SACK.
    max_delay: Duration,
    /// The clock for arrival times, if they are sent.
    clock: Option<ArrivalClock>,
}

impl AckPolicy {
    /// For stock stacks, some of which count SACKs in slow start. RFC 9260 §6.2 requires one for every second packet.
    pub(super) const STOCK: Self =
        Self { first_delayed: 64, packets_per_sack: 2, max_delay: MAX_ACK_DELAY, clock: None };

    /// For our nodes, which count bytes. Fewer SACKs suit a slow return path.
    pub(super) const fn own(clock: ArrivalClock) -> Self {
        Self { first_delayed: 0, packets_per_sack: 8, max_delay: Duration::from_millis(5), clock: Some(clock) }
    }
}

/// Consecutive received TSNs.
#[derive(Clone, Copy)]
struct Range {
    first: u64,
    last: u64,
    /// Earliest arrival time of these TSNs: the hole before them exists at least since then.
    since: Instant,
}

/// The receiving half of an association.
pub(super) struct ReceiveHalf {
    /// The last TSN before the first hole.
    cumulative: u64,
    ack_policy: AckPolicy,
    /// Ranges of received TSNs beyond the first hole, in order. An insertion moves at most half of them.
    ranges: VecDeque<Range>,
    /// Duplicate TSNs to report in the next SACK.
    duplicates: Vec<u32>,
    /// The last TSN received since the last SACK, with its arrival time.
    newest: Option<(u32, Instant)>,
    streams: Vec<IncomingStream>,
    /// Number of out-of-order fragments of all streams.
    pending: usize,
    /// The cumulative TSN has advanced so that [`Self::check_pending`] is due at the end of the packet.
    check_due: bool,
    /// Bytes charged for fragments and messages under reassembly.
    held: usize,
    window: usize,
    max_window: usize,
    /// Cap on the bytes held, besides the cap of the window.
    limit: usize,
    /// Memory is short: `limit` bounds the window too.
    memory_short: bool,
    /// Packets with DATA since the last SACK.
    unacknowledged: u32,
    /// Packets with DATA since the association began, up to [`AckPolicy::first_delayed`].
    packets: u32,
    /// A SACK is due in the next packet.
    due: bool,
    /// Deadline of a delayed SACK.
    deadline: Option<Instant>,
    period: Period,
}

/// Bytes received in the current measurement period. The window grows to twice the bytes of a round trip.
struct Period {
    since: Instant,
    bytes: usize,
}

impl ReceiveHalf {
    /// A receiving half for a peer whose first TSN is `first`. `windows`: initial and largest window, in bytes.
    pub(super) fn new(now: Instant, first: u32, streams: u16, windows: (usize, usize), ack_policy: AckPolicy) -> Self {
        let (window, max_window) = windows;
        let streams = (0..streams).map(|_| IncomingStream::default()).collect();
        Self {
            ack_policy,
            cumulative: expand_first(first).saturating_sub(1),
            ranges: VecDeque::new(),
            duplicates: Vec::new(),
            newest: None,
            streams,
            pending: 0,
            check_due: false,
            held: 0,
            window,
            max_window: max_window.max(window),
            limit: usize::MAX,
            memory_short: false,
            unacknowledged: 0,
            packets: 0,
            due: false,
            deadline: None,
            period: Period { since: now, bytes: 0 },
        }
    }

    /// Bytes held for incomplete messages and out-of-order fragments.
    pub(super) const fn held(&self) -> usize {
        self.held
    }

    /// Caps the bytes held, and the window too if `memory_short`.
    pub(super) const fn set_limit(&mut self, bytes: usize, memory_short: bool) {
        (self.limit, self.memory_short) = (bytes, memory_short);
    }

    /// Start of the hole at the first missing TSN.
    pub(super) fn hole_since(&self) -> Option<Instant> {
        self.ranges.front().map(|range| range.since)
    }

    /// Sets the largest window.
    pub(super) const fn set_max_window(&mut self, bytes: usize) {
        self.max_window = bytes;
        if self.window > bytes {
            self.window = bytes;
        }
    }

    /// Handles a DATA chunk; appends complete messages to `out` in the order of their stream.
    ///
    /// # Errors
    /// [`Broken`] if the chunk violates the protocol.
    pub(super) fn handle_data(
        &mut self,
        now: Instant,
        data: &Data<'_>,
        out: &mut VecDeque<Message>,
    ) -> Result<(), Broken> {
        self.due |= data.immediate;
        let tsn = expand(self.cumulative, data.tsn);
        if tsn <= self.cumulative || self.contains(tsn) {
            self.due = true;
            if self.duplicates.len() < MAX_DUPLICATES {
                self.duplicates.push(data.tsn);
            }
            return Ok(());
        }
        let stream = usize::from(data.stream);
        let cost = self.streams.get(stream).ok_or(Broken)?.cost(tsn, data);
        // The sender counts payload, this end counts blocks. With full packets, blocks have at most an eighth more
        // bytes.
        let limit = self.limit.min(self.window.saturating_add(self.window / 8).saturating_add(MAX_MESSAGE));
        let in_reach = tsn.saturating_sub(self.cumulative) <= u64::from(u16::MAX);
        // The next TSN is always accepted, since only its arrival frees memory.
        let fits = tsn == self.cumulative.saturating_add(1) || self.held.saturating_add(cost) <= limit;
        let before = self.cumulative;
        if !in_reach || !fits || !self.record(now, tsn) {
            return Ok(());
        }
        self.newest = Some((data.tsn, now));
        self.period.bytes = self.period.bytes.saturating_add(data.payload.len());
        let mut account = MemoryCounters { held: &mut self.held, pending: &mut self.pending };
        let stream = self.streams.get_mut(stream).ok_or(Broken)?;
        // Earlier chunks of the packet may show that the stream is broken.
        if self.check_due && stream.never_completes(before) {
            return Err(Broken);
        }
        stream.insert(tsn, data, &mut account, out)?;
        // An advance of the cumulative TSN may show that data never completes a message. An advance by one TSN that
        // continues a message doesn't.
        let advanced = self.cumulative >= tsn;
        self.check_due |= advanced && (self.pending > 0 || data.begin || self.cumulative > tsn);
        if self.check_due && stream.never_completes(self.cumulative) { Err(Broken) } else { Ok(()) }
    }

    /// Ends a packet with DATA: checks the data that waits, sets the time of the packet's SACK and adapts the window.
    /// `round_trip` is the smoothed round trip of the sending half.
    ///
    /// # Errors
    /// [`Broken`] if data can never complete a message.
    pub(super) fn handle_packet_end(&mut self, now: Instant, round_trip: Duration) -> Result<(), Broken> {
        if core::mem::take(&mut self.check_due) {
            self.check_pending()?;
        }
        let AckPolicy { first_delayed, packets_per_sack, max_delay, .. } = self.ack_policy;
        self.packets = self.packets.saturating_add(1).min(first_delayed);
        self.unacknowledged.increment();
        if self.packets < first_delayed || self.unacknowledged >= packets_per_sack || !self.ranges.is_empty() {
            self.due = true;
        } else if self.deadline.is_none() {
            self.deadline = Some(now.after(max_delay));
        }
        let elapsed = now.since(self.period.since);
        if elapsed >= round_trip.max(Duration::from_millis(1)) {
            // Twice the bytes of a round trip let the sender double its rate.
            let round_trips = elapsed.as_nanos().checked_div(round_trip.as_nanos().max(1_000_000)).unwrap_or(1).max(1);
            let per_round_trip = self.period.bytes.checked_div(usize::try_from(round_trips).unwrap_or(usize::MAX));
            let wanted = per_round_trip.unwrap_or_default().saturating_mul(2);
            self.window = self.window.max(wanted.min(self.max_window));
            self.period = Period { since: now, bytes: 0 };
        }
        Ok(())
    }

    /// Deadline of a delayed SACK.
    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline.filter(|_| !self.due)
    }

    /// Whether a SACK must be sent now.
    pub(super) fn sack_due(&mut self, now: Instant) -> bool {
        self.due |= self.deadline.is_some_and(|deadline| deadline <= now);
        self.due
    }

    /// Writes a SACK if the packet has room.
    pub(super) fn write_sack(&mut self, writer: &mut PacketWriter<'_>) {
        if writer.room() < SACK_HEADER {
            return;
        }
        let newest = self.newest.take();
        let length = self.ranges.len().saturating_mul(4).saturating_add(SACK_HEADER + ARRIVAL_LEN);
        if let (Some(clock), Some((tsn, at))) = (self.ack_policy.clock, newest)
            && length <= writer.room()
        {
            writer.arrival(&Arrival { tsn, tick: clock.tick(at) });
        }
        let offset = |tsn: u64| u16::try_from(tsn.saturating_sub(self.cumulative)).unwrap_or(u16::MAX);
        let blocks = self.ranges.iter().map(|range| (offset(range.first), offset(range.last)));
        // The memory limit does not apply to the window while no bytes are held for this peer.
        let window = if self.memory_short && self.held > 0 { self.window.min(self.limit) } else { self.window };
        let window = u32::try_from(window.saturating_sub(self.held)).unwrap_or(u32::MAX);
        writer.sack(wire(self.cumulative), window, blocks, &self.duplicates);
        self.duplicates.clear();
        self.unacknowledged = 0;
        self.due = false;
        self.deadline = None;
    }

    fn contains(&self, tsn: u64) -> bool {
        let after = self.ranges.partition_point(|range| range.last < tsn);
        self.ranges.get(after).is_some_and(|range| range.first <= tsn)
    }

    /// Records the arrival of a missing TSN; `false` if it needs a range beyond [`MAX_RANGES`].
    fn record(&mut self, now: Instant, tsn: u64) -> bool {
        if tsn == self.cumulative.saturating_add(1) {
            self.cumulative = tsn;
            if let Some(range) = self.ranges.front().copied()
                && range.first == tsn.saturating_add(1)
            {
                self.cumulative = range.last;
                self.ranges.pop_front();
                self.due = true;
            }
            return true;
        }
        let at = self.ranges.partition_point(|range| range.last < tsn);
        let after_previous = at
            .checked_sub(1)
            .and_then(|at| self.ranges.get(at))
            .is_some_and(|range| range.last.saturating_add(1) == tsn);
        let before_next = self.ranges.get(at).is_some_and(|range| range.first == tsn.saturating_add(1));
        match (after_previous, before_next) {
            (true, true) => {
                if let Some(next) = self.ranges.remove(at)
                    && let Some(range) = at.checked_sub(1).and_then(|at| self.ranges.get_mut(at))
                {
                    range.last = next.last;
                    range.since = range.since.min(next.since);
                }
            }
            (true, false) => {
                if let Some(range) = at.checked_sub(1).and_then(|at| self.ranges.get_mut(at)) {
                    range.last = tsn;
                }
            }
            (false, true) => {
                if let Some(range) = self.ranges.get_mut(at) {
                    range.first = tsn;
                }
            }
            (false, false) if self.ranges.len() >= MAX_RANGES => return false,
            (false, false) => self.ranges.insert(at, Range { first: tsn, last: tsn, since: now }),
        }
        true
    }

    /// Detects data that can never complete a message: an out-of-order fragment before the first hole, or a message
    /// whose next TSN has arrived with other data. Visits all streams, so it is called once in a packet.
    fn check_pending(&self) -> Result<(), Broken> {
        if self.held == 0 {
            return Ok(());
        }
        let broken = self.streams.iter().any(|stream| stream.never_completes(self.cumulative));
        if broken { Err(Broken) } else { Ok(()) }
    }
}

/// The 64-bit number of a peer's first TSN: at least 2³², so that no earlier TSN is negative.
fn expand_first(first: u32) -> u64 {
    u64::from(first) | 1 << 32
}

/// Counters of held bytes and out-of-order fragments of all streams.
struct MemoryCounters<'a> {
    held: &'a mut usize,
    pending: &'a mut usize,
}

/// Reassembly of one stream.
#[derive(Default)]
struct IncomingStream {
    /// Sequence number of the next message to deliver.
    next_sequence: u16,
    message: Option<Assembly>,
    /// Out-of-order fragments, by TSN.
    pending: BTreeMap<u64, Fragment>,
}

/// The next message to deliver, incomplete.
struct Assembly {
    bytes: Slots,
    /// TSN of the next fragment.
    next_tsn: u64,
    protocol: u32,
}

impl Assembly {
    /// Bytes of memory added by `length` more bytes.
    fn growth(&self, length: usize) -> usize {
        in_slots(self.bytes.len().saturating_add(length)).saturating_sub(self.bytes.memory())
    }
}

/// Bytes of the slots that a message of `length` bytes occupies.
const fn in_slots(length: usize) -> usize {
    length.div_ceil(SLOT_LEN).saturating_mul(SLOT_LEN)
}

struct Fragment {
    sequence: u16,
    protocol: u32,
    begin: bool,
    end: bool,
    payload: FragmentBlock,
}

impl IncomingStream {
    /// Whether a fragment is the next one in sequence.
    fn continues(&self, tsn: u64, begin: bool, sequence: u16) -> bool {
        match &self.message {
            Some(message) => message.next_tsn == tsn,
            None => begin && sequence == self.next_sequence,
        }
    }

    /// Whether data of the stream can never complete a message, once all TSNs up to `cumulative` have arrived.
    fn never_completes(&self, cumulative: u64) -> bool {
        let fragment = self.pending.first_key_value().map(|(tsn, _)| *tsn);
        let next = self.message.as_ref().map(|message| message.next_tsn);
        [fragment, next].into_iter().flatten().any(|tsn| tsn <= cumulative)
    }

    /// Most bytes that a fragment adds to the bytes held.
    fn cost(&self, tsn: u64, data: &Data<'_>) -> usize {
        match &self.message {
            Some(message) if message.next_tsn == tsn => message.growth(data.payload.len()),
            None if data.begin && data.sequence == self.next_sequence => {
                if data.end {
                    0
                } else {
                    in_slots(data.payload.len())
                }
            }
            _ => FragmentBlock::memory(data.payload.len()),
        }
    }

    /// Appends a fragment to its message, or stores it if it is out of order. Appends complete messages to `out`.
    fn insert(
        &mut self,
        tsn: u64,
        data: &Data<'_>,
        account: &mut MemoryCounters<'_>,
        out: &mut VecDeque<Message>,
    ) -> Result<(), Broken> {
        if !self.continues(tsn, data.begin, data.sequence) {
            let Data { sequence, protocol, begin, end, payload, .. } = *data;
            *account.held = account.held.saturating_add(FragmentBlock::memory(payload.len()));
            account.pending.increment();
            let payload = FragmentBlock::from(payload);
            self.pending.insert(tsn, Fragment { sequence, protocol, begin, end, payload });
            return Ok(());
        }
        self.append(tsn, data, account, out)?;
        while let Some((&tsn, fragment)) = self.pending.first_key_value() {
            if !self.continues(tsn, fragment.begin, fragment.sequence) {
                break;
            }
            let Some(Fragment { sequence, protocol, begin, end, payload }) = self.pending.remove(&tsn) else { break };
            *account.held = account.held.saturating_sub(FragmentBlock::memory(payload.len()));
            account.pending.decrement();
            let data = Data { tsn: 0, stream: 0, sequence, protocol, begin, end, immediate: false, payload: &payload };
            self.append(tsn, &data, account, out)?;
        }
        Ok(())
    }

    /// Appends the next fragment in sequence.
    fn append(
        &mut self,
        tsn: u64,
        data: &Data<'_>,
        account: &mut MemoryCounters<'_>,
        out: &mut VecDeque<Message>,
    ) -> Result<(), Broken> {
        let Some(mut message) = self.message.take() else {
            if data.end {
                self.next_sequence = self.next_sequence.wrapping_add(1);
                out.push_back(Message { protocol: data.protocol, bytes: Slots::from(data.payload) });
                return Ok(());
            }
            let mut bytes = Slots::with_capacity(MESSAGE_CELLS);
            bytes.extend_from_slice(data.payload);
            *account.held = account.held.saturating_add(bytes.memory());
            self.message = Some(Assembly { bytes, next_tsn: tsn.saturating_add(1), protocol: data.protocol });
            return Ok(());
        };
        let length = message.bytes.len().saturating_add(data.payload.len());
        if data.begin
            || data.sequence != self.next_sequence
            || data.protocol != message.protocol
            || length > MAX_MESSAGE
        {
            return Err(Broken);
        }
        *account.held = account.held.saturating_sub(message.bytes.memory());
        message.bytes.extend_from_slice(data.payload);
        message.next_tsn = tsn.saturating_add(1);
        if data.end {
            self.next_sequence = self.next_sequence.wrapping_add(1);
            out.push_back(Message { protocol: message.protocol, bytes: message.bytes });
        } else {
            *account.held = account.held.saturating_add(message.bytes.memory());
            self.message = Some(message);
        }
        Ok(())
    }
}
