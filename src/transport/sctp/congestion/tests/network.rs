//! A flow model in virtual time: senders over one bottleneck, with ideal loss detection and an acknowledgement for each
//! packet.
//!
//! A packet reaches the bottleneck without delay. Its acknowledgement arrives after the queue, the transmission and the
//! whole round trip without queue. The sender detects a drop a quarter of that round trip later.

use core::cmp::Reverse;
use core::time::Duration;
use std::collections::BinaryHeap;

use super::super::{Ack, Algorithm, Control, Controller, ControllerSizes, Lost, RateSample, Sent};
use crate::base::Instant;

pub(super) const SEGMENT: u64 = 1200;
pub(super) const MILLISECOND: u64 = 1_000_000;
pub(super) const SECOND: u64 = 1_000_000_000;

/// Largest lead of a pacer over its schedule, in nanoseconds.
const QUANTUM: u64 = MILLISECOND;

pub(super) fn sizes() -> ControllerSizes {
    ControllerSizes {
        segment: SEGMENT,
        min_short_path_window: 256 << 10,
        short_path: Duration::from_millis(2),
        max_window: 32 << 20,
    }
}

/// SplitMix64.
pub(super) struct Random(pub(super) u64);

impl Random {
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.0;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }

    pub(super) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }

    /// A number with up to `bits` bits; small numbers are as frequent as large ones.
    pub(super) fn size(&mut self, bits: u64) -> u64 {
        let bits = self.below(bits) + 1;
        self.next() >> (64 - bits)
    }

    fn chance(&mut self, millionths: u64) -> bool {
        self.below(1_000_000) < millionths
    }
}

/// The bottleneck and the return path. Times in nanoseconds, rates in bytes a second.
#[derive(Clone, Copy, Debug)]
pub(super) struct Path {
    pub(super) rate: u64,
    /// Round trip without queue.
    pub(super) delay: u64,
    /// Largest backlog of the bottleneck, in bytes.
    pub(super) queue: u64,
    /// Random loss, in millionths of the packets.
    pub(super) loss: u64,
    /// Mean number of packets in a burst of losses.
    pub(super) burst: u64,
    /// Largest random delay of an acknowledgement.
    pub(super) jitter: u64,
    /// Acknowledgements arrive only at multiples of this.
    pub(super) grid: u64,
    /// Mean interval between pauses of the bottleneck, and length of a pause. Such a bottleneck is a receiving process
    /// that waits for a processor.
    pub(super) pauses: Option<(u64, u64)>,
    /// Rate and depth in bytes of a token bucket before the queue.
    pub(super) policer: Option<(u64, u64)>,
}

impl Path {
    /// A path of `rate` bytes a second with a round trip of `delay` and a queue of `queue` milliseconds.
    pub(super) fn new(rate: u64, delay: u64, queue: u64) -> Self {
        Self {
            rate,
            delay: delay * MILLISECOND,
            queue: (rate * queue / 1000).max(2 * SEGMENT),
            loss: 0,
            burst: 1,
            jitter: 0,
            grid: 1,
            pauses: None,
            policer: None,
        }
    }

    /// Bandwidth-delay product in bytes.
    pub(super) fn bdp(&self) -> u64 {
        self.rate * self.delay / SECOND
    }
}

/// The source of a sender's data.
#[derive(Clone, Copy)]
pub(super) enum Source {
    Endless,
    /// Bytes a second, in pieces every millisecond.
    Rate(u64),
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Packet {
    id: u64,
    sent_at: u64,
    prior_delivered: u64,
    prior_lost: u64,
    tx_in_flight: u64,
    first_sent: u64,
    delivered_at: u64,
    app_limited: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Delivered(Packet),
    Dropped(Packet),
    Wake,
}

/// A sender.
pub(super) struct Flow {
    pub(super) control: Control,
    pub(super) source: Source,
    start: u64,
    /// Bytes that the source has supplied and the sender has not sent.
    available: u64,
    /// Time of the source's next output.
    fed_until: u64,
    next_id: u64,
    next_send: u64,
    wake_at: u64,
    in_flight: u64,
    idle_since: u64,
    pub(super) delivered: u64,
    delivered_at: u64,
    first_sent: u64,
    /// Identifier of the most recently sent packet among the acknowledged ones.
    newest: u64,
    /// Packets sent before this many bytes are delivered are application-limited; zero for none.
    app_limited: u64,
    total_lost: u64,
    /// Bytes lost since [`Network::reset_statistics`].
    pub(super) lost: u64,
    /// Bytes sent since [`Network::reset_statistics`].
    pub(super) sent: u64,
    /// State changes with their times.
    pub(super) states: Vec<(u64, &'static str)>,
    /// Smallest congestion window so far, in bytes.
    pub(super) min_window: u64,
}

impl Flow {
    pub(super) fn new(algorithm: Algorithm, start: u64, source: Source, seed: u64) -> Self {
        Self {
            control: Control::new(algorithm, sizes(), Instant::from_nanos(start), seed),
            source,
            start,
            available: 0,
            fed_until: start,
            next_id: 1,
            next_send: start,
            wake_at: 0,
            in_flight: 0,
            idle_since: start,
            delivered: 0,
            delivered_at: start,
            first_sent: start,
            newest: 0,
            app_limited: 0,
            total_lost: 0,
            lost: 0,
            sent: 0,
            states: Vec::new(),
            min_window: u64::MAX,
        }
    }

    /// Adds the source's output until `now`; returns the time of its next output.
    fn feed(&mut self, now: u64) -> Option<u64> {
        let (bytes, period) = match self.source {
            Source::Endless => {
                self.available = u64::MAX;
                return None;
            }
            Source::Rate(rate) => (rate / 1000, MILLISECOND),
        };
        while self.fed_until <= now {
            self.available += bytes;
            self.fed_until += period;
        }
        Some(self.fed_until)
    }

    /// Replaces the source and discards its unsent data.
    pub(super) fn set_source(&mut self, source: Source) {
        self.source = source;
        self.available = 0;
        self.fed_until = self.delivered_at;
    }

    fn note_state(&mut self, now: u64) {
        let state = self.control.state();
        if self.states.last().is_none_or(|(_, last)| *last != state) {
            self.states.push((now, state));
        }
        self.min_window = self.min_window.min(self.control.window());
    }
}

/// Senders over one path.
pub(super) struct Network {
    pub(super) path: Path,
    pub(super) flows: Vec<Flow>,
    pub(super) now: u64,
    events: BinaryHeap<Reverse<(u64, usize, u64, Event)>>,
    order: u64,
    random: Random,
    /// Time at which the bottleneck has sent its backlog.
    busy_until: u64,
    /// Packets still to drop in the current burst of losses.
    losing: u64,
    pause_at: u64,
    paused_until: u64,
    /// Tokens of the policer in bytes, and the time at which they were counted.
    tokens: (u64, u64),
    /// Sum and number of the backlogs found by packets, in bytes.
    pub(super) backlogs: (u64, u64),
}

impl Network {
    pub(super) fn new(path: Path, flows: Vec<Flow>, seed: u64) -> Self {
        let mut network = Self {
            path,
            flows,
            now: 0,
            events: BinaryHeap::new(),
            order: 0,
            random: Random(seed),
            busy_until: 0,
            losing: 0,
            pause_at: 0,
            paused_until: 0,
            tokens: (path.policer.map_or(0, |(_, depth)| depth), 0),
            backlogs: (0, 0),
        };
        for index in 0..network.flows.len() {
            let start = network.flows[index].start;
            network.push(start, index, Event::Wake);
        }
        network
    }

    fn push(&mut self, at: u64, flow: usize, event: Event) {
        self.order += 1;
        self.events.push(Reverse((at, flow, self.order, event)));
    }

    /// Runs until `end` nanoseconds.
    pub(super) fn run(&mut self, end: u64) {
        let (mut delivered, mut dropped) = (Vec::new(), Vec::new());
        while let Some(Reverse((at, flow, _, event))) = self.events.peek().copied() {
            if at > end {
                break;
            }
            self.now = at;
            let mut event = Some(event);
            while let Some(next) = event.take() {
                self.events.pop();
                match next {
                    Event::Delivered(packet) => delivered.push(packet),
                    Event::Dropped(packet) => dropped.push(packet),
                    Event::Wake => {}
                }
                event = match self.events.peek() {
                    Some(Reverse((time, index, _, event))) if (*time, *index) == (at, flow) => Some(*event),
                    _ => None,
                };
            }
            if !delivered.is_empty() || !dropped.is_empty() {
                self.acknowledge(flow, &delivered, &dropped);
                delivered.clear();
                dropped.clear();
            }
            self.send(flow);
        }
        self.now = end;
    }

    /// Bytes delivered for each flow between now and `end`.
    pub(super) fn delivered_until(&mut self, end: u64) -> Vec<u64> {
        let before: Vec<u64> = self.flows.iter().map(|flow| flow.delivered).collect();
        self.run(end);
        self.flows.iter().zip(before).map(|(flow, before)| flow.delivered - before).collect()
    }

    /// Resets the statistics of losses and backlogs.
    pub(super) fn reset_statistics(&mut self) {
        self.backlogs = (0, 0);
        for flow in &mut self.flows {
            flow.sent = 0;
            flow.lost = 0;
        }
    }

    /// Mean backlog found by packets, in bandwidth-delay products.
    pub(super) fn backlog(&self) -> f64 {
        self.backlogs.0 as f64 / self.backlogs.1 as f64 / self.path.bdp() as f64
    }

    fn acknowledge(&mut self, index: usize, delivered: &[Packet], dropped: &[Packet]) {
        let now = self.now;
        let flow = &mut self.flows[index];
        let prior_in_flight = flow.in_flight;
        for packet in dropped {
            flow.in_flight -= SEGMENT;
            flow.lost += SEGMENT;
            flow.total_lost += SEGMENT;
            flow.control.on_lost(&Lost {
                now: Instant::from_nanos(now),
                bytes: SEGMENT,
                sent_at: Instant::from_nanos(packet.sent_at),
                prior_delivered: packet.prior_delivered,
                tx_in_flight: packet.tx_in_flight,
                prior_lost: packet.prior_lost,
                total_lost: flow.total_lost,
            });
        }
        let acked = SEGMENT * delivered.len() as u64;
        flow.in_flight -= acked;
        flow.delivered += acked;
        let newest = delivered.iter().max_by_key(|packet| packet.id).copied();
        let mut rate = None;
        if let Some(packet) = newest {
            flow.delivered_at = now;
            let acked_for = now - packet.delivered_at;
            let sent_for = packet.sent_at - packet.first_sent;
            if packet.id > flow.newest {
                flow.newest = packet.id;
                flow.first_sent = packet.sent_at;
            }
            if flow.app_limited > 0 && flow.delivered > flow.app_limited {
                flow.app_limited = 0;
            }
            rate = Some(RateSample {
                prior_delivered: packet.prior_delivered,
                prior_lost: packet.prior_lost,
                tx_in_flight: packet.tx_in_flight,
                delivered: flow.delivered - packet.prior_delivered,
                interval: Duration::from_nanos(acked_for.max(sent_for)),
                app_limited: packet.app_limited,
            });
        }
        flow.control.on_ack(&Ack {
            now: Instant::from_nanos(now),
            acked,
            lost: SEGMENT * dropped.len() as u64,
            prior_in_flight,
            in_flight: flow.in_flight,
            delivered: flow.delivered,
            total_lost: flow.total_lost,
            rtt: newest.map(|packet| Duration::from_nanos(now - packet.sent_at)),
            queueing_delay: None,
            rate,
            window_limited: prior_in_flight + SEGMENT > flow.control.window(),
        });
        if flow.in_flight == 0 {
            flow.idle_since = now;
        }
        flow.note_state(now);
    }

    fn send(&mut self, index: usize) {
        let now = self.now;
        let refill = self.flows[index].feed(now);
        loop {
            let flow = &mut self.flows[index];
            if flow.available < SEGMENT {
                if flow.in_flight < flow.control.window() {
                    flow.app_limited = (flow.delivered + flow.in_flight).max(1);
                }
                if let Some(at) = refill
                    && flow.wake_at != at
                {
                    flow.wake_at = at;
                    self.push(at, index, Event::Wake);
                }
                return;
            }
            if flow.in_flight + SEGMENT > flow.control.window() {
                return;
            }
            if flow.next_send > now + QUANTUM {
                let at = flow.next_send;
                if flow.wake_at != at {
                    flow.wake_at = at;
                    self.push(at, index, Event::Wake);
                }
                return;
            }
            self.transmit(index);
        }
    }

    fn transmit(&mut self, index: usize) {
        let now = self.now;
        let flow = &mut self.flows[index];
        if flow.in_flight == 0 {
            if flow.idle_since < now {
                flow.control.on_idle_end(Instant::from_nanos(now), Instant::from_nanos(flow.idle_since));
            }
            flow.first_sent = now;
            flow.delivered_at = now;
        }
        if let Some(rate) = flow.control.pacing_rate() {
            flow.next_send = flow.next_send.max(now) + SEGMENT * SECOND / rate;
        }
        let prior_in_flight = flow.in_flight;
        flow.available = if flow.available == u64::MAX { u64::MAX } else { flow.available - SEGMENT };
        flow.in_flight += SEGMENT;
        flow.sent += SEGMENT;
        let packet = Packet {
            id: flow.next_id,
            sent_at: now,
            prior_delivered: flow.delivered,
            prior_lost: flow.total_lost,
            tx_in_flight: flow.in_flight,
            first_sent: flow.first_sent,
            delivered_at: flow.delivered_at,
            app_limited: flow.app_limited > 0,
        };
        flow.next_id += 1;
        flow.control.on_sent(&Sent {
            now: Instant::from_nanos(now),
            bytes: SEGMENT,
            prior_in_flight,
            retransmission: false,
        });
        self.forward(index, packet);
    }

    /// Passes a packet to the bottleneck: schedules its acknowledgement, or the detection of its loss.
    fn forward(&mut self, index: usize, packet: Packet) {
        let path = self.path;
        if let Some((interval, length)) = path.pauses
            && self.now >= self.pause_at
        {
            self.busy_until = self.busy_until.max(self.now) + length;
            self.paused_until = self.now + length;
            self.pause_at = self.paused_until + self.random.below(2 * interval);
        }
        let start = self.busy_until.max(self.now);
        let backlog = (start - self.now.max(self.paused_until).min(start)) * path.rate / SECOND;
        self.backlogs = (self.backlogs.0 + backlog, self.backlogs.1 + 1);
        let mut dropped = backlog + SEGMENT > path.queue || self.is_policed();
        if self.losing > 0 {
            self.losing -= 1;
            dropped = true;
        } else if self.random.chance(path.loss / path.burst) {
            self.losing = self.random.below(2 * path.burst - 1);
            dropped = true;
        }
        let jitter = self.random.below(path.jitter + 1);
        let sent = if dropped { start } else { start + SEGMENT * SECOND / path.rate };
        let arrival = (sent + path.delay + jitter).next_multiple_of(path.grid);
        if dropped {
            self.push(arrival + path.delay / 4, index, Event::Dropped(packet));
        } else {
            self.busy_until = sent;
            self.push(arrival, index, Event::Delivered(packet));
        }
    }

    fn is_policed(&mut self) -> bool {
        let Some((rate, depth)) = self.path.policer else { return false };
        let (tokens, at) = self.tokens;
        // Only whole bytes are added. The time of the remainder counts towards the next byte.
        let gained = (self.now - at) * rate / SECOND;
        let at = at + gained * SECOND / rate;
        let tokens = (tokens + gained).min(depth);
        let policed = tokens < SEGMENT;
        self.tokens = (if policed { tokens } else { tokens - SEGMENT }, at);
        policed
    }
}
