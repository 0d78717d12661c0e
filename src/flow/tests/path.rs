//! Simulation of circuits over a path of links, in virtual time, from a seed.
//!
//! Each link serves circuits fairly, as a channel's queue does, at a rate. A lost datagram delays its circuit until
//! its retransmission. Nodes handle received messages in batches. Cells of a circuit stay in order and none is lost,
//! so a queue is a range of cell numbers. Every `tag_every`-th cell has a tag, which is its number.

use core::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};

use super::super::*;
use crate::base::Instant;

/// Cells of one message.
const MESSAGE: u64 = 16;
/// Cells that a link takes from a circuit in one turn.
const QUANTUM: u64 = 4;
/// A sender pauses while this many cells of its circuit are queued at its link.
const SENDER_QUEUE: u64 = 32;

/// One link, and the batching of the node at its far end.
#[derive(Clone, Copy)]
pub(super) struct Link {
    /// The delay one way.
    pub(super) delay: Duration,
    /// Cells a second.
    pub(super) rate: u64,
    /// Probability that a datagram is lost.
    pub(super) loss: f64,
    /// The longest pause of the node at the far end before it handles a batch.
    pub(super) pause: Duration,
}

impl Link {
    pub(super) const fn new(delay_ms: u64, rate: u64) -> Self {
        Self { delay: Duration::from_millis(delay_ms), rate, loss: 0.0, pause: Duration::ZERO }
    }
}

/// The state of a link.
struct Hop {
    link: Link,
    queues: Vec<Queue>,
    /// Circuits whose queue was empty before; served first.
    quiet: VecDeque<usize>,
    busy: VecDeque<usize>,
    serving: bool,
    /// The time at which the node at the far end handles its next batch.
    wakes_at: Instant,
}

/// The queued cells `first + 1` to `end` of one circuit.
#[derive(Clone, Copy)]
struct Queue {
    first: u64,
    /// The last cell that has left with a message.
    served: u64,
    end: u64,
    /// Cells left of the circuit's turn.
    turn: u64,
    listed: bool,
    /// The arrival of the last message; later messages arrive after it.
    lane_until: Instant,
    /// The arrival of the last SENDME at the near end; later ones arrive after it.
    back_until: Instant,
}

/// One circuit's sender and receiver.
pub(super) struct Circuit {
    pub(super) window: CongestionWindow,
    /// Number of cells that are still to be sent.
    pub(super) wanted: u64,
    sent: u64,
    /// Cells that have been delivered.
    pub(super) delivered: u64,
    sent_at: VecDeque<(u64, Instant)>,
    /// The longest delivery time of a cell sent alone.
    pub(super) slowest: Duration,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    ServiceEnds { hop: usize },
    Arrival { hop: usize, circuit: usize, end: u64 },
    Acknowledgement { circuit: usize, tag: u64 },
    Send { circuit: usize },
}

pub(super) struct Path {
    pub(super) now: Instant,
    parameters: FlowParameters,
    rng: ChaCha8Rng,
    hops: Vec<Hop>,
    pub(super) circuits: Vec<Circuit>,
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    serial: u64,
    /// Maximum cells of one circuit that were queued at one link.
    pub(super) longest_queue: u64,
}

impl Path {
    pub(super) fn new(seed: u64, links: &[Link], circuits: usize) -> Self {
        let parameters = FlowParameters::default();
        let queue = Queue {
            first: 0,
            served: 0,
            end: 0,
            turn: 0,
            listed: false,
            lane_until: Instant::START,
            back_until: Instant::START,
        };
        let hop = |link: &Link| Hop {
            link: *link,
            queues: vec![queue; circuits],
            quiet: VecDeque::new(),
            busy: VecDeque::new(),
            serving: false,
            wakes_at: Instant::START,
        };
        let circuit = || Circuit {
            window: CongestionWindow::new(&parameters),
            wanted: u64::MAX,
            sent: 0,
            delivered: 0,
            sent_at: VecDeque::new(),
            slowest: Duration::ZERO,
        };
        let circuits = (0..circuits).map(|_| circuit()).collect();
        let mut path = Self {
            now: Instant::START,
            rng: ChaCha8Rng::seed_from_u64(seed),
            hops: links.iter().map(hop).collect(),
            circuits,
            events: BinaryHeap::new(),
            serial: 0,
            longest_queue: 0,
            parameters,
        };
        for circuit in 0..path.circuits.len() {
            path.schedule(Instant::START, Event::Send { circuit });
        }
        path
    }

    pub(super) fn set(&mut self, hop: usize, change: impl FnOnce(&mut Link)) {
        change(&mut self.hops[hop].link);
    }

    /// Sets the number of cells that a circuit sends from now on.
    pub(super) fn set_wanted(&mut self, circuit: usize, cells: u64) {
        self.circuits[circuit].wanted = cells;
        self.schedule(self.now, Event::Send { circuit });
    }

    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Some(Reverse((at, _, event))) = self.events.pop() else { break };
            self.now = at;
            match event {
                Event::ServiceEnds { hop } => {
                    self.hops[hop].serving = false;
                    self.serve(hop);
                }
                Event::Arrival { hop, circuit, end } => self.arrive(hop, circuit, end),
                Event::Acknowledgement { circuit, tag } => {
                    let tag = u128::from(tag).to_be_bytes();
                    self.circuits[circuit].window.handle_sendme(at, &tag).expect("tags are echoed in order");
                    self.send(circuit);
                }
                Event::Send { circuit } => self.send(circuit),
            }
        }
        self.now = end;
    }

    /// The delivery rate of each circuit during `duration`, in cells a second.
    pub(super) fn rates(&mut self, duration: Duration) -> Vec<f64> {
        let before: Vec<_> = self.circuits.iter().map(|circuit| circuit.delivered).collect();
        self.run(duration);
        let after = self.circuits.iter().map(|circuit| circuit.delivered);
        after.zip(before).map(|(after, before)| (after - before) as f64 / duration.as_secs_f64()).collect()
    }

    pub(super) fn rate(&mut self, duration: Duration) -> f64 {
        self.rates(duration).into_iter().sum()
    }

    /// Cells of a circuit queued at all links.
    pub(super) fn queued(&self, circuit: usize) -> u64 {
        self.hops.iter().map(|hop| hop.queues[circuit].end - hop.queues[circuit].first).sum()
    }

    fn schedule(&mut self, at: Instant, event: Event) {
        self.serial += 1;
        self.events.push(Reverse((at, self.serial, event)));
    }

    fn send(&mut self, circuit: usize) {
        let every = u64::from(self.parameters.tag_every);
        let state = &mut self.circuits[circuit];
        let queue = &self.hops[0].queues[circuit];
        let room = SENDER_QUEUE.saturating_sub(queue.end - queue.first);
        let mut end = state.sent;
        while state.wanted > 0 && end < state.sent + room && state.window.has_room() {
            end += 1;
            state.wanted -= 1;
            assert_eq!(state.window.wants_tag(), end.is_multiple_of(every));
            let tag = end.is_multiple_of(every).then(|| u128::from(end).to_be_bytes());
            state.window.handle_sent(self.now, tag);
        }
        if end > state.sent {
            if end == state.sent + 1 {
                state.sent_at.push_back((end, self.now));
            }
            state.sent = end;
            self.enqueue(0, circuit, end);
        }
    }

    fn enqueue(&mut self, hop: usize, circuit: usize, end: u64) {
        let state = &mut self.hops[hop];
        let queue = &mut state.queues[circuit];
        queue.end = end;
        self.longest_queue = self.longest_queue.max(queue.end - queue.first);
        if !queue.listed {
            queue.listed = true;
            queue.turn = QUANTUM;
            state.quiet.push_back(circuit);
        }
        self.serve(hop);
    }

    /// Sends a message of cells, which the circuits add in turn.
    fn serve(&mut self, hop: usize) {
        if self.hops[hop].serving {
            return;
        }
        let mut served: Vec<(usize, u64)> = Vec::new();
        let mut cells = 0;
        let state = &mut self.hops[hop];
        while cells < MESSAGE {
            let from_quiet = !state.quiet.is_empty();
            let list = if from_quiet { &mut state.quiet } else { &mut state.busy };
            let Some(&circuit) = list.front() else { break };
            let queue = &mut state.queues[circuit];
            let taken = queue.turn.min(queue.end - queue.first).min(MESSAGE - cells);
            if taken == 0 {
                list.pop_front();
                if queue.first < queue.end || from_quiet {
                    queue.turn = QUANTUM;
                    state.busy.push_back(circuit);
                } else {
                    queue.listed = false;
                }
                continue;
            }
            queue.turn -= taken;
            queue.first += taken;
            cells += taken;
            match served.iter_mut().find(|(other, _)| *other == circuit) {
                Some((_, end)) => *end = queue.first,
                None => served.push((circuit, queue.first)),
            }
        }
        if cells == 0 {
            return;
        }
        state.serving = true;
        let departs = self.now.after(Duration::from_nanos(1_000_000_000 / state.link.rate * cells));
        self.schedule(departs, Event::ServiceEnds { hop });
        for (circuit, end) in served {
            let cells = end - self.hops[hop].queues[circuit].served;
            let loss_delay = self.loss_delay(hop, cells);
            let state = &mut self.hops[hop];
            let arrives = departs.after(state.link.delay).after(loss_delay);
            let queue = &mut state.queues[circuit];
            queue.served = end;
            queue.lane_until = queue.lane_until.max(arrives);
            let arrives = queue.lane_until;
            if !state.link.pause.is_zero() && arrives > state.wakes_at {
                state.wakes_at = arrives.after(state.link.pause.mul_f64(self.rng.random::<f64>()));
            }
            let at = arrives.max(state.wakes_at);
            self.schedule(at, Event::Arrival { hop, circuit, end });
            if hop == 0 {
                self.schedule(departs, Event::Send { circuit });
            }
        }
    }

    /// The delay by losses for cells that leave together, in about as many datagrams: five quarters of a round trip for
    /// each loss of a datagram.
    fn loss_delay(&mut self, hop: usize, cells: u64) -> Duration {
        let link = self.hops[hop].link;
        if link.loss == 0.0 {
            return Duration::ZERO;
        }
        let datagrams = i32::try_from(cells).unwrap();
        let mut lost = 0;
        let mut chance = 1.0 - (1.0 - link.loss).powi(datagrams);
        while self.rng.random::<f64>() < chance {
            lost += 1;
            chance = link.loss;
        }
        link.delay * 5 / 2 * lost
    }

    fn arrive(&mut self, hop: usize, circuit: usize, end: u64) {
        if hop + 1 < self.hops.len() {
            return self.enqueue(hop + 1, circuit, end);
        }
        let every = u64::from(self.parameters.tag_every);
        let state = &mut self.circuits[circuit];
        let mut tag = (state.delivered / every + 1) * every;
        state.delivered = end;
        while state.sent_at.front().is_some_and(|(number, _)| *number <= end) {
            if let Some((number, at)) = state.sent_at.pop_front()
                && number == end
            {
                state.slowest = state.slowest.max(self.now.since(at));
            }
        }
        while tag <= end {
            let at = self.sendme_arrival(circuit);
            self.schedule(at, Event::Acknowledgement { circuit, tag });
            tag += every;
        }
    }

    /// The arrival time of a SENDME sent now, over all links, in order on each.
    fn sendme_arrival(&mut self, circuit: usize) -> Instant {
        let mut at = self.now;
        for hop in (0..self.hops.len()).rev() {
            let Link { delay, loss, pause, .. } = self.hops[hop].link;
            let mut arrives = at.after(delay).after(pause.mul_f64(self.rng.random::<f64>()));
            if loss > 0.0 {
                while self.rng.random::<f64>() < loss {
                    arrives = arrives.after(delay * 5 / 2);
                }
            }
            let until = &mut self.hops[hop].queues[circuit].back_until;
            *until = (*until).max(arrives);
            at = *until;
        }
        at
    }
}

/// Jain's index of fairness: 1 when all rates are equal.
pub(super) fn fairness(rates: &[f64]) -> f64 {
    let sum: f64 = rates.iter().sum();
    let squares: f64 = rates.iter().map(|rate| rate * rate).sum();
    sum * sum / squares / rates.len() as f64
}
