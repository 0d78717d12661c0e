//! Simulation of circuits over a path of links, in virtual time, from a seed.
//!
//! Each link has a fixed rate, and serves circuits in turn like the queue of a channel. A lost datagram delays the
//! cells of its circuit until the datagram is retransmitted. Nodes handle received messages in batches. Cells of a
//! circuit stay in order and none is lost, so a queue is a range of cell numbers. Every `tag_interval`-th cell has a
//! tag: the number of the cell.

use core::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use rand::{RngExt as _, SeedableRng as _, rngs::ChaCha8Rng};

use super::super::*;
use crate::base::Instant;

/// Maximum cells of a message.
const MESSAGE_CELLS: u64 = crate::base::MESSAGE_CELLS as u64;
/// Maximum cells that a link takes from a circuit in one turn (round robin).
const QUANTUM: u64 = 4;
/// Cap of a circuit's queue at the first link. The sender stops at the cap.
const MAX_SENDER_QUEUE: u64 = 32;

/// Properties of one link, and of the node at the link's far end.
#[derive(Clone, Copy)]
pub(super) struct Link {
    /// One-way delay.
    pub(super) delay: Duration,
    /// Cells a second.
    pub(super) rate: u64,
    /// Probability that a datagram is lost.
    pub(super) loss: f64,
    /// Longest pause of the node at the far end before it handles a batch.
    pub(super) pause: Duration,
}

impl Link {
    pub(super) const fn new(delay_ms: u64, rate: u64) -> Self {
        Self { delay: Duration::from_millis(delay_ms), rate, loss: 0.0, pause: Duration::ZERO }
    }
}

/// The state of a link.
struct LinkState {
    properties: Link,
    /// The queue of each circuit.
    queues: Vec<Queue>,
    /// Circuits in their first turn since their queue was empty; served first.
    new: VecDeque<usize>,
    /// The other circuits with queued cells.
    old: VecDeque<usize>,
    /// Whether a message is being sent.
    sending: bool,
    /// The time at which the node at the far end handles its next batch.
    wakes_at: Instant,
}

/// One circuit's queue at a link: the cells `dequeued + 1` to `end`.
#[derive(Clone, Copy)]
struct Queue {
    /// The last cell that the link took from the queue.
    dequeued: u64,
    /// The last cell that was sent with a message.
    sent: u64,
    /// The last queued cell.
    end: u64,
    /// Cells that the link may still take in the circuit's current turn.
    left_in_turn: u64,
    /// Whether the circuit is in `new` or `old`.
    listed: bool,
    /// The arrival time of the last message. Later messages do not arrive before that time.
    last_arrival: Instant,
    /// The arrival time of the last SENDME at the near end. Later SENDMEs do not arrive before that time.
    last_sendme_arrival: Instant,
}

/// One circuit's sender and receiver.
pub(super) struct Circuit {
    pub(super) window: CongestionWindow,
    /// Number of cells that the sender still has to send.
    pub(super) remaining: u64,
    /// Number of sent cells.
    sent: u64,
    /// Number of delivered cells.
    pub(super) delivered: u64,
    /// Number and send time of each undelivered cell that the sender sent alone.
    lone_cells: VecDeque<(u64, Instant)>,
    /// Longest time from sending to delivery of a cell that was sent alone and was the last of its message.
    pub(super) longest_delivery: Duration,
}

#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    ServiceEnds { link: usize },
    Arrival { link: usize, circuit: usize, end: u64 },
    Acknowledgement { circuit: usize, tag: u64 },
    Send { circuit: usize },
}

/// A simulation of circuits over one path of links.
pub(super) struct PathSimulation {
    pub(super) now: Instant,
    parameters: FlowParameters,
    rng: ChaCha8Rng,
    links: Vec<LinkState>,
    pub(super) circuits: Vec<Circuit>,
    /// Events by time, and by serial number at equal times.
    events: BinaryHeap<Reverse<(Instant, u64, Event)>>,
    last_serial: u64,
    /// Maximum cells of one circuit that were queued at one link.
    pub(super) longest_queue: u64,
}

impl PathSimulation {
    pub(super) fn new(seed: u64, links: &[Link], circuits: usize) -> Self {
        let parameters = FlowParameters::default();
        let queue = Queue {
            dequeued: 0,
            sent: 0,
            end: 0,
            left_in_turn: 0,
            listed: false,
            last_arrival: Instant::START,
            last_sendme_arrival: Instant::START,
        };
        let link_state = |link: &Link| LinkState {
            properties: *link,
            queues: vec![queue; circuits],
            new: VecDeque::new(),
            old: VecDeque::new(),
            sending: false,
            wakes_at: Instant::START,
        };
        let circuit = || Circuit {
            window: CongestionWindow::new(&parameters),
            remaining: u64::MAX,
            sent: 0,
            delivered: 0,
            lone_cells: VecDeque::new(),
            longest_delivery: Duration::ZERO,
        };
        let circuits = (0..circuits).map(|_| circuit()).collect();
        let mut path = Self {
            now: Instant::START,
            rng: ChaCha8Rng::seed_from_u64(seed),
            links: links.iter().map(link_state).collect(),
            circuits,
            events: BinaryHeap::new(),
            last_serial: 0,
            longest_queue: 0,
            parameters,
        };
        for circuit in 0..path.circuits.len() {
            path.schedule(Instant::START, Event::Send { circuit });
        }
        path
    }

    /// Changes the properties of a link; messages in flight keep their arrival times.
    pub(super) fn change_link(&mut self, link: usize, change: impl FnOnce(&mut Link)) {
        change(&mut self.links[link].properties);
    }

    /// Sets the number of cells that a circuit still sends.
    pub(super) fn set_remaining(&mut self, circuit: usize, cells: u64) {
        self.circuits[circuit].remaining = cells;
        self.schedule(self.now, Event::Send { circuit });
    }

    /// Runs the simulation for `duration`.
    pub(super) fn run(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        while self.events.peek().is_some_and(|Reverse((at, ..))| *at <= end) {
            let Some(Reverse((at, _, event))) = self.events.pop() else { break };
            self.now = at;
            match event {
                Event::ServiceEnds { link } => {
                    self.links[link].sending = false;
                    self.serve(link);
                }
                Event::Arrival { link, circuit, end } => self.arrive(link, circuit, end),
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

    /// The delivery rate of all circuits together during `duration`, in cells a second.
    pub(super) fn rate(&mut self, duration: Duration) -> f64 {
        self.rates(duration).into_iter().sum()
    }

    /// Cells of a circuit queued at all links.
    pub(super) fn queued(&self, circuit: usize) -> u64 {
        self.links.iter().map(|link| link.queues[circuit].end - link.queues[circuit].dequeued).sum()
    }

    fn schedule(&mut self, at: Instant, event: Event) {
        self.last_serial += 1;
        self.events.push(Reverse((at, self.last_serial, event)));
    }

    fn send(&mut self, circuit: usize) {
        let every = u64::from(self.parameters.tag_interval);
        let state = &mut self.circuits[circuit];
        let queue = &self.links[0].queues[circuit];
        let room = MAX_SENDER_QUEUE.saturating_sub(queue.end - queue.dequeued);
        let mut end = state.sent;
        while state.remaining > 0 && end < state.sent + room && state.window.has_room() {
            end += 1;
            state.remaining -= 1;
            assert_eq!(state.window.needs_tag(), end.is_multiple_of(every));
            let tag = end.is_multiple_of(every).then(|| u128::from(end).to_be_bytes());
            state.window.handle_sent(self.now, tag);
        }
        if end > state.sent {
            if end == state.sent + 1 {
                state.lone_cells.push_back((end, self.now));
            }
            state.sent = end;
            self.enqueue(0, circuit, end);
        }
    }

    fn enqueue(&mut self, link: usize, circuit: usize, end: u64) {
        let state = &mut self.links[link];
        let queue = &mut state.queues[circuit];
        queue.end = end;
        self.longest_queue = self.longest_queue.max(queue.end - queue.dequeued);
        if !queue.listed {
            queue.listed = true;
            queue.left_in_turn = QUANTUM;
            state.new.push_back(circuit);
        }
        self.serve(link);
    }

    /// Sends one message with cells of the circuits in turn, unless a message is being sent.
    fn serve(&mut self, link: usize) {
        if self.links[link].sending {
            return;
        }
        let mut served: Vec<(usize, u64)> = Vec::new();
        let mut cells = 0;
        let state = &mut self.links[link];
        while cells < MESSAGE_CELLS {
            let from_new = !state.new.is_empty();
            let list = if from_new { &mut state.new } else { &mut state.old };
            let Some(&circuit) = list.front() else { break };
            let queue = &mut state.queues[circuit];
            let count = queue.left_in_turn.min(queue.end - queue.dequeued).min(MESSAGE_CELLS - cells);
            if count == 0 {
                list.pop_front();
                if queue.dequeued < queue.end || from_new {
                    queue.left_in_turn = QUANTUM;
                    state.old.push_back(circuit);
                } else {
                    queue.listed = false;
                }
                continue;
            }
            queue.left_in_turn -= count;
            queue.dequeued += count;
            cells += count;
            match served.iter_mut().find(|(other, _)| *other == circuit) {
                Some((_, end)) => *end = queue.dequeued,
                None => served.push((circuit, queue.dequeued)),
            }
        }
        if cells == 0 {
            return;
        }
        state.sending = true;
        let departs = self.now.after(Duration::from_nanos(1_000_000_000 / state.properties.rate * cells));
        self.schedule(departs, Event::ServiceEnds { link });
        for (circuit, end) in served {
            let cells = end - self.links[link].queues[circuit].sent;
            let loss_delay = self.loss_delay(link, cells);
            let state = &mut self.links[link];
            let arrives = departs.after(state.properties.delay).after(loss_delay);
            let queue = &mut state.queues[circuit];
            queue.sent = end;
            queue.last_arrival = queue.last_arrival.max(arrives);
            let arrives = queue.last_arrival;
            if !state.properties.pause.is_zero() && arrives > state.wakes_at {
                state.wakes_at = arrives.after(state.properties.pause.mul_f64(self.rng.random::<f64>()));
            }
            let at = arrives.max(state.wakes_at);
            self.schedule(at, Event::Arrival { link, circuit, end });
            if link == 0 {
                self.schedule(departs, Event::Send { circuit });
            }
        }
    }

    /// The delay that losses add to cells sent together, with one datagram per cell. The first loss and each lost
    /// retransmission add five quarters of the link's round trip.
    fn loss_delay(&mut self, link: usize, cells: u64) -> Duration {
        let properties = self.links[link].properties;
        if properties.loss == 0.0 {
            return Duration::ZERO;
        }
        let datagrams = i32::try_from(cells).unwrap();
        let mut lost = 0;
        let mut chance = 1.0 - (1.0 - properties.loss).powi(datagrams);
        while self.rng.random::<f64>() < chance {
            lost += 1;
            chance = properties.loss;
        }
        properties.delay * 5 / 2 * lost
    }

    fn arrive(&mut self, link: usize, circuit: usize, end: u64) {
        if link + 1 < self.links.len() {
            return self.enqueue(link + 1, circuit, end);
        }
        let every = u64::from(self.parameters.tag_interval);
        let state = &mut self.circuits[circuit];
        let mut tag = (state.delivered / every + 1) * every;
        state.delivered = end;
        while state.lone_cells.front().is_some_and(|(number, _)| *number <= end) {
            if let Some((number, at)) = state.lone_cells.pop_front()
                && number == end
            {
                state.longest_delivery = state.longest_delivery.max(self.now.since(at));
            }
        }
        while tag <= end {
            let at = self.sendme_arrival(circuit);
            self.schedule(at, Event::Acknowledgement { circuit, tag });
            tag += every;
        }
    }

    /// The arrival time, at the origin, of a SENDME sent now. A SENDME does not overtake an earlier one on a link.
    fn sendme_arrival(&mut self, circuit: usize) -> Instant {
        let mut at = self.now;
        for link in (0..self.links.len()).rev() {
            let Link { delay, loss, pause, .. } = self.links[link].properties;
            let mut arrives = at.after(delay).after(pause.mul_f64(self.rng.random::<f64>()));
            if loss > 0.0 {
                while self.rng.random::<f64>() < loss {
                    arrives = arrives.after(delay * 5 / 2);
                }
            }
            let until = &mut self.links[link].queues[circuit].last_sendme_arrival;
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
