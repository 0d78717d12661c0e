//! A path between two associations in virtual time: delay, jitter, loss, reordering, duplication, a rate and its queue.

use core::time::Duration;
use std::{
    cmp::Reverse,
    collections::{BinaryHeap, VecDeque},
};

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

use super::super::{Association, Close, Config, Event};
use crate::base::Instant;

/// One direction of a path.
#[derive(Clone, Copy, Debug)]
pub(super) struct Line {
    /// One way.
    pub(super) delay: Duration,
    /// Uniform, added to the delay without reordering.
    pub(super) jitter: Duration,
    /// Share of packets that are lost.
    pub(super) loss: f64,
    /// Mean number of packets lost in a row, at least 1.
    pub(super) burst: f64,
    /// Share of packets that come late, so that others overtake them.
    pub(super) late: f64,
    /// By how much.
    pub(super) lateness: Duration,
    /// Share of packets that come twice.
    pub(super) doubled: f64,
    /// Bytes a second; none for no limit.
    pub(super) rate: Option<u64>,
    /// Longest queue before the bottleneck; what comes beyond it is lost.
    pub(super) queue: Duration,
}

impl Line {
    pub(super) const fn new(delay_ms: u64) -> Self {
        Self {
            delay: Duration::from_millis(delay_ms),
            jitter: Duration::ZERO,
            loss: 0.0,
            burst: 1.0,
            late: 0.0,
            lateness: Duration::ZERO,
            doubled: 0.0,
            rate: None,
            queue: Duration::from_millis(100),
        }
    }
}

/// A line with what is on it.
struct Direction {
    line: Line,
    free_at: Instant,
    last_due: Instant,
    losing: bool,
}

/// One end: the association and what came out of it.
pub(super) struct End {
    pub(super) association: Association,
    pub(super) open: Option<u16>,
    pub(super) closed: Option<Close>,
    /// Messages that arrived, with their stream and when.
    pub(super) received: Vec<(u16, Vec<u8>)>,
    /// Bytes that arrived.
    pub(super) bytes: u64,
    /// What [`Pair::run`] hands over as the association has room; [`End::bulk`] makes more when it is empty.
    pub(super) queue: VecDeque<(u16, Vec<u8>)>,
    /// Bytes to send besides, in messages of 17 cells over all streams.
    pub(super) bulk: u64,
    /// Bytes of bulk handed over.
    pub(super) handed: u64,
    /// Longest time without a message arriving while the other end had something to send.
    pub(super) keep: bool,
    pub(super) packets_out: u64,
    pub(super) last_arrival: Instant,
    pub(super) longest_gap: Duration,
}

/// Two ends and the lines between them.
pub(super) struct Pair {
    pub(super) now: Instant,
    pub(super) ends: [End; 2],
    lines: [Direction; 2],
    in_flight: BinaryHeap<Reverse<(Instant, u64, usize, Vec<u8>)>>,
    serial: u64,
    rng: StdRng,
    /// Packets that the lines lost, queue drops included.
    pub(super) lost: u64,
    pub(super) dropped: u64,
}

impl Pair {
    /// Two ends of ours over the same line both ways.
    pub(super) fn new(seed: u64, line: Line) -> Self {
        Self::with(seed, [line, line], &Config::new(1_195), &Config::new(1_195))
    }

    pub(super) fn with(seed: u64, lines: [Line; 2], a: &Config, b: &Config) -> Self {
        let mut rng = StdRng::seed_from_u64(seed);
        let now = Instant::from_nanos(1_000_000_000);
        let ends =
            [Association::connect(a, now, &mut rng), Association::accept(b, now, &mut rng)].map(|association| End {
                association,
                open: None,
                closed: None,
                received: Vec::new(),
                bytes: 0,
                queue: VecDeque::new(),
                bulk: 0,
                handed: 0,
                keep: false,
                packets_out: 0,
                last_arrival: now,
                longest_gap: Duration::ZERO,
            });
        let lines = lines.map(|line| Direction { line, free_at: now, last_due: now, losing: false });
        Self { now, ends, lines, in_flight: BinaryHeap::new(), serial: 0, rng, lost: 0, dropped: 0 }
    }

    /// Changes the line that leads away from `end`.
    pub(super) fn set_line(&mut self, end: usize, line: Line) {
        self.lines[end].line = line;
    }

    /// A packet of `from` sets out.
    fn carry(&mut self, from: usize, packet: Vec<u8>) {
        let now = self.now;
        let direction = &mut self.lines[from];
        let line = direction.line;
        // Gilbert's model: stays in the losing state for `burst` packets on average.
        if line.loss > 0.0 {
            let leave = 1.0 / line.burst;
            let enter = line.loss * leave / (1.0 - line.loss);
            direction.losing = self.rng.random_bool(if direction.losing { 1.0 - leave } else { enter.min(1.0) });
            if direction.losing {
                self.lost += 1;
                return;
            }
        }
        let mut at = now;
        if let Some(rate) = line.rate {
            direction.free_at = direction.free_at.max(now);
            if direction.free_at.since(now) > line.queue {
                self.dropped += 1;
                return;
            }
            let bytes = packet.len() as u64 + 65;
            direction.free_at = direction.free_at.after(Duration::from_nanos(bytes * 1_000_000_000 / rate));
            at = direction.free_at;
        }
        let jitter = line.jitter.mul_f64(self.rng.random());
        let mut due = at.after(line.delay).after(jitter).max(direction.last_due);
        direction.last_due = due;
        if line.late > 0.0 && self.rng.random_bool(line.late) {
            due = due.after(line.lateness);
        }
        if line.doubled > 0.0 && self.rng.random_bool(line.doubled) {
            self.put(due.after(Duration::from_micros(300)), 1 - from, packet.clone());
        }
        self.put(due, 1 - from, packet);
    }

    fn put(&mut self, due: Instant, to: usize, packet: Vec<u8>) {
        self.serial += 1;
        self.in_flight.push(Reverse((due, self.serial, to, packet)));
    }

    /// Lets an end take what it can and send what it may.
    fn drain(&mut self, at: usize) {
        loop {
            let now = self.now;
            let end = &mut self.ends[at];
            while let Some(event) = end.association.poll_event() {
                match event {
                    Event::Open { streams } => end.open = Some(streams),
                    Event::Message { stream, bytes } => {
                        end.longest_gap = end.longest_gap.max(now.since(end.last_arrival));
                        end.last_arrival = now;
                        end.bytes += bytes.len() as u64;
                        if end.keep {
                            end.received.push((stream, bytes.to_vec()));
                        }
                    }
                    Event::Closed(close) => end.closed = Some(close),
                }
            }
            let mut said = false;
            let mut room = end.association.room(now);
            while room > 0 {
                let Some((stream, message)) = end.next_message() else { break };
                room = room.saturating_sub(message.len());
                end.association.send(now, stream, message.into());
                said = true;
            }
            let mut buffer = [0; 1_500];
            let mut packets = Vec::new();
            while packets.len() < 53 {
                let length = end.association.poll_packet(now, &mut buffer);
                if length == 0 {
                    break;
                }
                assert!(length <= 1_195);
                packets.push(buffer[..length].to_vec());
            }
            end.packets_out += packets.len() as u64;
            said |= !packets.is_empty();
            for packet in packets {
                self.carry(at, packet);
            }
            if !said {
                return;
            }
        }
    }

    /// Runs until `until`, or until `done` holds; gives whether it did.
    pub(super) fn run(&mut self, until: Instant, mut done: impl FnMut(&Self) -> bool) -> bool {
        self.drain(0);
        self.drain(1);
        while !done(self) {
            let due = self.in_flight.peek().map(|packet| packet.0.0);
            let timers = self.ends.iter().filter_map(|end| end.association.poll_timeout());
            let Some(next) = timers.chain(due).min().filter(|next| *next <= until) else { return false };
            self.now = self.now.max(next);
            let mut woken = [false; 2];
            while let Some(Reverse((due, ..))) = self.in_flight.peek()
                && *due <= self.now
            {
                let Some(Reverse((_, _, to, packet))) = self.in_flight.pop() else { break };
                self.ends[to].association.handle_packet(self.now, &packet);
                woken[to] = true;
            }
            for at in [0, 1] {
                let due = self.ends[at].association.poll_timeout().is_some_and(|due| due <= self.now);
                if due {
                    self.ends[at].association.handle_timeout(self.now);
                }
                if due || woken[at] {
                    self.drain(at);
                }
            }
        }
        true
    }

    /// Runs for `seconds`, and gives bytes a second that arrived at `at` in that time.
    pub(super) fn rate(&mut self, at: usize, seconds: f64) -> f64 {
        let before = self.ends[at].bytes;
        let until = self.now.after(Duration::from_secs_f64(seconds));
        self.run(until, |_| false);
        (self.ends[at].bytes - before) as f64 / seconds
    }
}

impl End {
    fn next_message(&mut self) -> Option<(u16, Vec<u8>)> {
        self.open?;
        if let Some(message) = self.queue.pop_front() {
            return Some(message);
        }
        if self.bulk == 0 {
            return None;
        }
        let length = self.bulk.min(17 << 10);
        self.bulk -= length;
        self.handed += length;
        let stream = (self.handed / (17 << 10) % u64::from(self.open.unwrap_or(1))) as u16;
        Some((stream, vec![7; length as usize]))
    }
}
