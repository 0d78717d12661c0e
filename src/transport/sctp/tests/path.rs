//! Associations over a path in virtual time: delay, jitter, loss, reordering, duplication, a bottleneck with its
//! queue, and a policer. The invariants of the associations are checked at intervals.

use core::time::Duration;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, HashSet, VecDeque},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::super::{
    Association, AssociationEvent, Close, Config,
    packet::{self, HEADER, Packet},
};
use crate::base::Instant;

/// Overhead of DTLS, UDP and IP for each packet, in bytes.
const OVERHEAD: u64 = 65;
/// Time without packets after which a burst of losses ends.
const BURST_TIMEOUT: Duration = Duration::from_millis(100);
/// Number of steps between two checks of the invariants.
const INVARIANT_CHECK_INTERVAL: u64 = 31;

/// The conditions of one direction of a network path.
#[derive(Clone, Copy, Debug)]
pub(super) struct PathConditions {
    /// One-way delay.
    pub(super) delay: Duration,
    /// Upper bound of a uniform additional delay. It does not reorder packets.
    pub(super) jitter: Duration,
    /// Share of packets that are lost.
    pub(super) loss: f64,
    /// Mean number of packets lost in a row, at least 1.
    pub(super) burst: f64,
    /// Share of packets that are reordered: delayed by [`Self::reorder_delay`] more than the others.
    pub(super) reordered: f64,
    /// Additional delay of reordered packets.
    pub(super) reorder_delay: Duration,
    /// Share of packets that are duplicated.
    pub(super) duplicated: f64,
    /// Bytes a second; `None` for no limit.
    pub(super) rate: Option<u64>,
    /// Longest queue at the bottleneck. Packets beyond it are dropped.
    pub(super) queue: Duration,
    /// Rate (bytes a second) and burst (bytes) of a policer, which drops packets beyond them.
    pub(super) policer: Option<(u64, u64)>,
}

impl PathConditions {
    pub(super) const fn new(delay_ms: u64) -> Self {
        Self {
            delay: Duration::from_millis(delay_ms),
            jitter: Duration::ZERO,
            loss: 0.0,
            burst: 1.0,
            reordered: 0.0,
            reorder_delay: Duration::ZERO,
            duplicated: 0.0,
            rate: None,
            queue: Duration::from_millis(100),
            policer: None,
        }
    }
}

/// A packet in flight: time of arrival, sequence, receiving end, and its bytes.
type Flight = (Instant, u64, usize, Vec<u8>);

/// One direction of the path and its state. All links share the two directions.
struct Direction {
    conditions: PathConditions,
    /// Time at which the bottleneck has sent its queue.
    free_at: Instant,
    /// Latest time of arrival so far, except of reordered packets.
    last_due: Instant,
    /// The loss model is in its losing state.
    losing: bool,
    /// Time of the last packet.
    carried_at: Instant,
    /// Bytes that the policer allows, and the time at which they were counted.
    allowed: (f64, Instant),
}

/// One end: the association, its traffic and its statistics.
pub(super) struct End {
    pub(super) association: Association,
    pub(super) open_streams: Option<u16>,
    pub(super) closed: Option<Close>,
    /// Received messages with their streams, if [`Self::keep`] is set.
    pub(super) received: Vec<(u16, Vec<u8>)>,
    /// Whether to store received messages.
    pub(super) keep: bool,
    /// Bytes received.
    pub(super) bytes: u64,
    /// Messages to send. [`Self::bulk`] follows when the queue is empty.
    pub(super) queue: VecDeque<(u16, Vec<u8>)>,
    /// Further bytes to send, in messages of 17 KiB over all streams.
    pub(super) bulk: u64,
    /// Bulk bytes passed to the association.
    bulk_sent: u64,
    /// Packets sent.
    pub(super) packets: u64,
    /// TSNs in flight to the other end or received there.
    carried: HashSet<u32>,
    /// Retransmissions of TSNs of which an earlier copy arrives.
    pub(super) spurious: u64,
    /// Longest time with data in flight and no advance of the cumulative TSN ack.
    pub(super) longest_stall: Duration,
    first_tsn: u64,
    progress_at: Instant,
}

/// Pairs of ends and the two directions of the path between them. Even ends connect to the odd ends after them.
pub(super) struct Pair {
    pub(super) seed: u64,
    pub(super) now: Instant,
    pub(super) ends: Vec<End>,
    directions: [Direction; 2],
    in_flight: BinaryHeap<Reverse<Flight>>,
    serial: u64,
    steps: u64,
    rng: StdRng,
    /// Bits of [`Self::drop_first`] for the next packets.
    to_drop: u128,
    /// Interval between arrivals, in ticks, that odd ends report instead of the true one.
    pub(super) false_ticks: Option<u32>,
    last_false_tick: u32,
    /// Packets lost at random on the path.
    pub(super) lost: u64,
    /// Packets dropped by a full queue or a policer.
    pub(super) dropped: u64,
}

impl Pair {
    /// Two of our ends, with `conditions` in both directions.
    pub(super) fn new(seed: u64, conditions: PathConditions) -> Self {
        Self::with(seed, [conditions, conditions], &[[Config::new(1_195), Config::new(1_195)]])
    }

    /// A pair of ends for each pair of settings. `conditions`: from even ends, from odd ends.
    pub(super) fn with(seed: u64, conditions: [PathConditions; 2], links: &[[Config; 2]]) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let now = Instant::from_nanos(1_000_000_000);
        let mut ends = Vec::new();
        for [dialler, listener] in links {
            ends.push(End::new(Association::connect(dialler, now, &mut rng), now));
            ends.push(End::new(Association::accept(listener, now, &mut rng), now));
        }
        let directions = conditions.map(|conditions| Direction {
            conditions,
            free_at: now,
            last_due: now,
            losing: false,
            carried_at: now,
            allowed: (conditions.policer.map_or(0.0, |(_, burst)| burst as f64), now),
        });
        let in_flight = BinaryHeap::new();
        Self {
            seed,
            now,
            ends,
            directions,
            in_flight,
            serial: 0,
            steps: 0,
            rng,
            to_drop: 0,
            false_ticks: None,
            last_false_tick: 0,
            lost: 0,
            dropped: 0,
        }
    }

    /// Changes the conditions of the direction from even (0) or odd (1) ends.
    pub(super) fn set_conditions(&mut self, direction: usize, conditions: PathConditions) {
        self.directions[direction].conditions = conditions;
    }

    /// Makes both ends of the first link send an INIT.
    pub(super) fn connect_both(&mut self) {
        self.ends[1].association = Association::connect(&Config::new(1_195), self.now, &mut self.rng);
    }

    /// Drops the first packets whose bit is set in `bits`.
    pub(super) fn drop_first(&mut self, bits: u128) {
        self.to_drop = bits;
    }

    /// Carries a packet from `from`; returns whether it will arrive.
    fn carry(&mut self, from: usize, mut packet: Vec<u8>) -> bool {
        let now = self.now;
        if let Some(ticks) = self.false_ticks.filter(|_| from % 2 == 1)
            && packet.get(HEADER) == Some(&packet::ARRIVAL)
        {
            self.last_false_tick = self.last_false_tick.wrapping_add(ticks);
            packet[HEADER + 8..HEADER + 12].copy_from_slice(&self.last_false_tick.to_be_bytes());
        }
        let is_lost = self.to_drop & 1 == 1;
        self.to_drop >>= 1;
        if is_lost {
            return false;
        }
        let direction = &mut self.directions[from % 2];
        let conditions = direction.conditions;
        // Gilbert's loss model, with `burst` packets in the losing state on average.
        if conditions.loss > 0.0 {
            if now.since(direction.carried_at) > BURST_TIMEOUT {
                direction.losing = false;
            }
            direction.carried_at = now;
            let leave = 1.0 / conditions.burst;
            let enter = conditions.loss * leave / (1.0 - conditions.loss);
            let enter = if enter.is_finite() { enter.min(1.0) } else { 1.0 };
            direction.losing = self.rng.random_bool(if direction.losing { 1.0 - leave } else { enter });
            if direction.losing {
                self.lost += 1;
                return false;
            }
        }
        let bytes = packet.len() as u64 + OVERHEAD;
        let mut at = now;
        if let Some((rate, burst)) = conditions.policer {
            let (allowed, counted) = direction.allowed;
            let allowed = (allowed + now.since(counted).as_secs_f64() * rate as f64).min(burst as f64);
            let passes = allowed >= bytes as f64;
            direction.allowed = (if passes { allowed - bytes as f64 } else { allowed }, now);
            if !passes {
                self.dropped += 1;
                return false;
            }
        }
        if let Some(rate) = conditions.rate {
            direction.free_at = direction.free_at.max(now);
            if direction.free_at.since(now) > conditions.queue {
                self.dropped += 1;
                return false;
            }
            direction.free_at = direction.free_at.after(Duration::from_nanos(bytes * 1_000_000_000 / rate));
            at = direction.free_at;
        }
        let jitter = conditions.jitter.mul_f64(self.rng.random());
        let mut due = at.after(conditions.delay).after(jitter).max(direction.last_due);
        direction.last_due = due;
        if conditions.reordered > 0.0 && self.rng.random_bool(conditions.reordered) {
            due = due.after(conditions.reorder_delay);
        }
        if conditions.duplicated > 0.0 && self.rng.random_bool(conditions.duplicated) {
            self.put(due.after(Duration::from_micros(300)), from ^ 1, packet.clone());
        }
        self.put(due, from ^ 1, packet);
        true
    }

    fn put(&mut self, due: Instant, to: usize, packet: Vec<u8>) {
        self.serial += 1;
        self.in_flight.push(Reverse((due, self.serial, to, packet)));
    }

    /// Drains an end: handles its events, queues messages and carries its packets.
    fn drain(&mut self, at: usize) {
        loop {
            let now = self.now;
            let end = &mut self.ends[at];
            end.handle_events();
            let mut progress = false;
            let mut room = end.association.room(now);
            while room > 0 {
                let Some((stream, message)) = end.next_message() else { break };
                room = room.saturating_sub(message.len());
                end.association.send(now, stream, message.into());
                progress = true;
            }
            let mut buffer = [0; 1_195];
            for _ in 0..53 {
                let length = self.ends[at].poll_packet(self.seed, now, &mut buffer);
                if length == 0 {
                    break;
                }
                progress = true;
                let packet = buffer[..length].to_vec();
                let tsns = tsns(&packet);
                self.ends[at].packets += 1;
                let arrives = self.carry(at, packet);
                self.ends[at].note_carried(&tsns, arrives);
            }
            if !progress {
                break;
            }
        }
        self.steps += 1;
        let now = self.now;
        let end = &mut self.ends[at];
        if self.steps.is_multiple_of(INVARIANT_CHECK_INTERVAL) {
            end.association.assert_invariants();
        }
        end.note_progress(now);
    }

    /// Runs until `done` holds, at most until `until`; returns whether it holds.
    pub(super) fn run(&mut self, until: Instant, mut done: impl FnMut(&Self) -> bool) -> bool {
        (0..self.ends.len()).for_each(|at| self.drain(at));
        let mut woken = vec![false; self.ends.len()];
        while !done(self) {
            let due = self.in_flight.peek().map(|packet| packet.0.0);
            let timers = self.ends.iter().filter_map(|end| end.association.poll_timeout());
            let Some(next) = timers.chain(due).min().filter(|next| *next <= until) else { return false };
            self.now = self.now.max(next);
            while let Some(Reverse((due, ..))) = self.in_flight.peek()
                && *due <= self.now
            {
                let Some(Reverse((_, _, to, packet))) = self.in_flight.pop() else { break };
                self.ends[to].association.handle_packet(self.now, &packet);
                woken[to] = true;
            }
            for (at, woken) in woken.iter_mut().enumerate() {
                let due = self.ends[at].association.poll_timeout().is_some_and(|due| due <= self.now);
                if due {
                    self.ends[at].association.handle_timeout(self.now);
                }
                if core::mem::take(woken) || due {
                    self.drain(at);
                }
            }
        }
        true
    }

    /// Runs for `seconds`.
    pub(super) fn run_for(&mut self, seconds: f64) {
        let until = self.now.after(Duration::from_secs_f64(seconds));
        self.run(until, |_| false);
    }

    /// Runs for `seconds`; returns the mean rate of arrival at end `at`, in bytes a second.
    pub(super) fn run_and_measure(&mut self, at: usize, seconds: f64) -> f64 {
        let before = self.ends[at].bytes;
        self.run_for(seconds);
        (self.ends[at].bytes - before) as f64 / seconds
    }
}

impl End {
    fn new(association: Association, now: Instant) -> Self {
        Self {
            association,
            open_streams: None,
            closed: None,
            received: Vec::new(),
            keep: false,
            bytes: 0,
            queue: VecDeque::new(),
            bulk: 0,
            bulk_sent: 0,
            packets: 0,
            carried: HashSet::new(),
            spurious: 0,
            longest_stall: Duration::ZERO,
            first_tsn: 0,
            progress_at: now,
        }
    }

    fn handle_events(&mut self) {
        while let Some(event) = self.association.poll_event() {
            assert!(self.closed.is_none(), "no event follows the end");
            match event {
                AssociationEvent::Open { streams } => {
                    assert!(self.open_streams.replace(streams).is_none(), "open twice")
                }
                AssociationEvent::Message { stream, message } => {
                    self.bytes += message.len() as u64;
                    if self.keep {
                        self.received.push((stream, message.to_vec()));
                    }
                }
                AssociationEvent::Closed(close) => self.closed = Some(close),
            }
        }
    }

    /// Polls a packet; asserts that the windows allow it.
    fn poll_packet(&mut self, seed: u64, now: Instant, buffer: &mut [u8]) -> usize {
        let before = self.association.sending_state();
        let length = self.association.poll_packet(now, buffer);
        let after = self.association.sending_state();
        let packet = buffer.len() as u64;
        if after.in_flight > before.in_flight {
            // A tail loss probe may exceed the window.
            let allowed = if before.probe_due { before.window.max(before.in_flight + 1) } else { before.window };
            assert!(
                after.in_flight < allowed + packet,
                "beyond the congestion window (seed {seed}): {before:?}, {after:?}"
            );
        }
        if after.next_tsn > before.next_tsn && before.in_flight > 0 {
            assert!(
                after.in_flight <= after.peer_window,
                "beyond the peer's window (seed {seed}): {before:?}, {after:?}"
            );
        }
        length
    }

    fn note_carried(&mut self, tsns: &[u32], arrives: bool) {
        for tsn in tsns {
            let spurious = if arrives { !self.carried.insert(*tsn) } else { self.carried.contains(tsn) };
            self.spurious += u64::from(spurious);
        }
    }

    fn note_progress(&mut self, now: Instant) {
        let state = self.association.sending_state();
        if state.first_tsn != self.first_tsn || state.flights == 0 {
            self.first_tsn = state.first_tsn;
            self.progress_at = now;
        }
        self.longest_stall = self.longest_stall.max(now.since(self.progress_at));
    }

    fn next_message(&mut self) -> Option<(u16, Vec<u8>)> {
        let streams = self.open_streams?;
        if let Some(message) = self.queue.pop_front() {
            return Some(message);
        }
        if self.bulk == 0 {
            return None;
        }
        let length = self.bulk.min(17 << 10);
        self.bulk -= length;
        self.bulk_sent += length;
        let stream = self.bulk_sent / (17 << 10) % u64::from(streams);
        Some((u16::try_from(stream).unwrap(), vec![7; usize::try_from(length).unwrap()]))
    }
}

/// The TSNs in a packet.
fn tsns(packet: &[u8]) -> Vec<u32> {
    let packet = Packet::parse(packet, true).expect("a packet of ours is well-formed");
    let chunks = packet.chunks().map(|chunk| chunk.expect("a chunk of ours is well-formed"));
    chunks
        .filter(|chunk| chunk.kind == packet::DATA)
        .map(|chunk| packet::Data::parse(&chunk).expect("data of ours is well-formed").tsn)
        .collect()
}
