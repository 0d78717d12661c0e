//! The parties of a chain: an origin, relays with exits, and a tap on the output of each.

use std::collections::{BTreeMap, VecDeque};

use rand::CryptoRng;
use umbel::{
    base::{HopIndex, Instant, LinkEvent, LinkId, LinkMachine, Slot, StreamId, Transmit},
    channel::{ChannelEvent, ChannelId, Channels, QUEUE_HIGH},
    circuit::{CircuitError, CircuitEvent, Origin},
    relay::{ExitStream, Relay, RelayEvent},
    stream::{StreamCommand, StreamEvent},
    wire::{CELL_LEN, Cell, EndReason},
};

/// Byte `at` of every sent stream.
pub(crate) fn pattern(at: usize) -> u8 {
    (at.wrapping_mul(31) ^ (at >> 8).wrapping_mul(7)) as u8
}

pub(crate) fn is_pattern(bytes: &[u8]) -> bool {
    bytes.iter().enumerate().all(|(at, byte)| *byte == pattern(at))
}

fn patterned(from: usize, length: usize) -> Vec<u8> {
    (from..from + length).map(pattern).collect()
}

/// A client with one circuit and one stream.
pub(crate) struct OriginParty {
    pub(crate) channels: Channels,
    pub(crate) origin: Option<(ChannelId, Origin)>,
    pub(crate) hops_built: Vec<HopIndex>,
    pub(crate) built: bool,
    /// The reason for which the circuit has closed.
    pub(crate) closed: Option<CircuitError>,
    /// A hop has reported the next hop as gone.
    pub(crate) gone: bool,
    pub(crate) stream: Option<StreamId>,
    pub(crate) connected: bool,
    /// Bytes to send.
    pub(crate) to_send: usize,
    /// Bytes sent.
    pub(crate) sent: usize,
    pub(crate) received: Vec<u8>,
    /// The reader is stalled: received bytes are not reported as consumed.
    pub(crate) stalled: bool,
    /// The exit has finished the stream.
    pub(crate) finished: bool,
    /// The reason for which the stream has closed.
    pub(crate) ended: Option<EndReason>,
    /// Events of the channels other than cells and closes of the circuit's channel.
    pub(crate) channel_events: Vec<ChannelEvent>,
}

impl OriginParty {
    pub(crate) fn new(channels: Channels) -> Self {
        Self {
            channels,
            origin: None,
            hops_built: Vec::new(),
            built: false,
            closed: None,
            gone: false,
            stream: None,
            connected: false,
            to_send: 0,
            sent: 0,
            received: Vec::new(),
            stalled: false,
            finished: false,
            ended: None,
            channel_events: Vec::new(),
        }
    }

    fn settle(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        while let Some(event) = self.channels.poll_event() {
            match (event, &mut self.origin) {
                (ChannelEvent::Cell { channel, cell }, Some((own, origin))) => {
                    if channel == *own && cell.circuit() == Some(origin.circuit()) {
                        origin.handle_cell(now, cell, rng);
                    }
                }
                (ChannelEvent::Closed { channel }, Some((own, origin))) if channel == *own => {
                    origin.handle_channel_closed();
                }
                (event, _) => self.channel_events.push(event),
            }
        }
        let Some((channel, origin)) = &mut self.origin else { return };
        if let Some(stream) = self.stream.filter(|_| self.sent < self.to_send)
            && let Some(streams) = origin.last_hop_streams()
        {
            let part = streams.room(stream).min(self.to_send - self.sent);
            self.sent += streams.write(stream, &patterned(self.sent, part));
            if self.sent == self.to_send {
                streams.handle_command(stream, StreamCommand::Finish);
            }
        }
        while let Some(event) = origin.poll_event() {
            match event {
                CircuitEvent::HopBuilt { hop, .. } => self.hops_built.push(hop),
                CircuitEvent::Built => self.built = true,
                CircuitEvent::Gone { .. } => self.gone = true,
                CircuitEvent::Closed(error) => self.closed = Some(error),
                CircuitEvent::Stream(_, _, StreamEvent::Connected(_)) => self.connected = true,
                CircuitEvent::Stream(_, stream, StreamEvent::Data(bytes)) => {
                    self.received.extend_from_slice(&bytes);
                    if !self.stalled
                        && let Some(streams) = origin.last_hop_streams()
                    {
                        streams.handle_command(stream, StreamCommand::Consumed(bytes.len()));
                    }
                }
                CircuitEvent::Stream(_, _, StreamEvent::Finished) => self.finished = true,
                CircuitEvent::Stream(_, _, StreamEvent::Closed(reason)) => self.ended = Some(reason),
                CircuitEvent::Stream(..) => {}
            }
        }
        while self.channels.queued_of(*channel, origin.circuit()) < QUEUE_HIGH {
            let Some(cell) = origin.poll_cell(now, rng) else { break };
            self.channels.send(*channel, cell).unwrap();
        }
    }
}

/// A relay, with the state of its exit streams.
pub(crate) struct RelayParty {
    pub(crate) relay: Relay,
    /// Bytes that the target sends on each stream before the target finishes the stream.
    pub(crate) serves: usize,
    /// Bytes sent on each open stream.
    pub(crate) sent: BTreeMap<ExitStream, usize>,
    pub(crate) received: Vec<u8>,
    /// The origin has finished a stream.
    pub(crate) finished: bool,
    /// Number of streams that have closed.
    pub(crate) closed: usize,
}

impl RelayParty {
    pub(crate) fn new(relay: Relay) -> Self {
        Self { relay, serves: 0, sent: BTreeMap::new(), received: Vec::new(), finished: false, closed: 0 }
    }

    fn settle(&mut self) {
        while let Some(event) = self.relay.poll_event() {
            let RelayEvent::Stream(exit, event) = event else { continue };
            match event {
                StreamEvent::Begin(_) => {
                    self.relay.handle_command(exit, StreamCommand::Connected(None));
                    self.sent.insert(exit, 0);
                }
                StreamEvent::Request(_) => self.relay.handle_command(exit, StreamCommand::Reset(EndReason::Policy)),
                StreamEvent::Resolve(_) => self.relay.handle_command(exit, StreamCommand::Reset(EndReason::NotFound)),
                StreamEvent::Data(bytes) => {
                    self.received.extend_from_slice(&bytes);
                    self.relay.handle_command(exit, StreamCommand::Consumed(bytes.len()));
                }
                StreamEvent::Finished => self.finished = true,
                StreamEvent::Writable => {}
                StreamEvent::Closed(_) => {
                    self.closed += 1;
                    self.sent.remove(&exit);
                }
                StreamEvent::Connected(_) | StreamEvent::Resolved { .. } => panic!("{event:?} at an exit"),
            }
        }
        for (exit, sent) in &mut self.sent {
            if *sent < self.serves {
                let part = self.relay.room(*exit).min(self.serves - *sent);
                *sent += self.relay.write(*exit, &patterned(*sent, part));
                if *sent == self.serves {
                    self.relay.handle_command(*exit, StreamCommand::Finish);
                }
            }
        }
    }
}

pub(crate) enum Party {
    Origin(Box<OriginParty>),
    Relay(Box<RelayParty>),
}

/// The direction of a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Forward,
    Backward,
}

/// The tampering of a hostile node with one of its sent cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tamper {
    /// Flips a bit of this byte of the body.
    Alter(usize),
    Drop,
    Replay,
    /// Sends the cell after the next cell.
    Reorder,
}

/// A tap between a party and the network. It counts the sent cells and tampers with one of them on request.
pub(crate) struct Tap {
    pub(crate) party: Party,
    links: BTreeMap<LinkId, Direction>,
    /// The pending tampering: direction and command code of the cells, number of cells to skip, kind.
    pub(crate) tamper: Option<(Direction, u8, usize, Tamper)>,
    /// The cell that [`Tamper::Reorder`] holds back until the next cell.
    held: Option<[u8; CELL_LEN]>,
    outbox: VecDeque<Transmit>,
    /// The time of the first sent DESTROY.
    pub(crate) destroyed_at: Option<Instant>,
    /// Number of sent cells by command code.
    pub(crate) sent_cells: BTreeMap<u8, usize>,
}

const RELAY: u8 = 3;
const DESTROY: u8 = 4;

impl Tap {
    pub(crate) fn new(party: Party) -> Self {
        Self {
            party,
            links: BTreeMap::new(),
            tamper: None,
            held: None,
            outbox: VecDeque::new(),
            destroyed_at: None,
            sent_cells: BTreeMap::new(),
        }
    }

    pub(crate) fn origin(&mut self) -> &mut OriginParty {
        match &mut self.party {
            Party::Origin(origin) => origin,
            Party::Relay(_) => panic!("a relay, not the origin"),
        }
    }

    pub(crate) fn relay(&mut self) -> &mut RelayParty {
        match &mut self.party {
            Party::Relay(relay) => relay,
            Party::Origin(_) => panic!("the origin, not a relay"),
        }
    }

    /// Whether the requested tampering is complete.
    pub(crate) fn has_tampered(&self) -> bool {
        self.tamper.is_none() && self.held.is_none()
    }

    fn machine(&mut self) -> &mut dyn LinkMachine {
        match &mut self.party {
            Party::Origin(origin) => &mut **origin,
            Party::Relay(relay) => &mut relay.relay,
        }
    }

    fn settle(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        match &mut self.party {
            Party::Origin(origin) => origin.settle(now, rng),
            Party::Relay(relay) => relay.settle(),
        }
    }

    /// Queues an output of the party. Cells are counted, and may be tampered with.
    fn record(&mut self, now: Instant, transmit: Transmit) {
        let Transmit::Message { link, lane, mut message } = transmit else { return self.outbox.push_back(transmit) };
        if message.len() % CELL_LEN != 0 {
            return self.outbox.push_back(Transmit::Message { link, lane, message });
        }
        let direction = self.links[&link];
        let mut cells: Vec<[u8; CELL_LEN]> = Vec::new();
        for cell in message.take_full().unwrap().map(|slot| *slot) {
            if cell[4] == DESTROY {
                assert!(
                    Cell::decode(cell.into()).unwrap().body().iter().all(|byte| *byte == 0),
                    "DESTROY has no reason"
                );
                self.destroyed_at.get_or_insert(now);
            }
            *self.sent_cells.entry(cell[4]).or_default() += 1;
            self.tamper_with(direction, cell, &mut cells);
        }
        for part in cells.chunks(16) {
            let message = part.iter().map(|cell| Slot::from(*cell)).collect();
            self.outbox.push_back(Transmit::Message { link, lane, message });
        }
    }

    fn tamper_with(&mut self, direction: Direction, mut cell: [u8; CELL_LEN], cells: &mut Vec<[u8; CELL_LEN]>) {
        if cell[4] == RELAY && self.held.is_some() {
            cells.push(cell);
            cells.extend(self.held.take());
            return;
        }
        match &mut self.tamper {
            Some((which, command, skip, kind)) if *which == direction && *command == cell[4] => {
                if *skip > 0 {
                    *skip -= 1;
                    return cells.push(cell);
                }
                match kind {
                    Tamper::Alter(at) => {
                        cell[5 + *at] ^= 0x10;
                        cells.push(cell);
                    }
                    Tamper::Drop => {}
                    Tamper::Replay => cells.extend([cell, cell]),
                    Tamper::Reorder => self.held = Some(cell),
                }
                self.tamper = None;
            }
            _ => cells.push(cell),
        }
    }
}

impl LinkMachine for OriginParty {
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng) {
        self.channels.handle_link(now, event, rng);
    }

    fn handle_timeout(&mut self, now: Instant, _: &mut dyn CryptoRng) {
        self.channels.handle_timeout(now);
        if let Some((_, origin)) = &mut self.origin {
            origin.handle_timeout(now);
        }
    }

    fn handle_batch_end(&mut self, _: Instant, _: &mut dyn CryptoRng) {}

    fn poll_transmit(&mut self, now: Instant, _: &mut dyn CryptoRng) -> Option<Transmit> {
        self.channels.poll_transmit(now)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let origin = self.origin.as_ref().and_then(|(_, origin)| origin.poll_timeout());
        [self.channels.poll_timeout(), origin].into_iter().flatten().min()
    }
}

impl LinkMachine for Tap {
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng) {
        if let LinkEvent::Opened { link, opened } = &event {
            let direction = if opened.dialled.is_some() { Direction::Forward } else { Direction::Backward };
            self.links.insert(*link, direction);
        }
        self.machine().handle_link(now, event, rng);
        self.settle(now, rng);
    }

    fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.machine().handle_timeout(now, rng);
        self.settle(now, rng);
    }

    fn handle_batch_end(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.machine().handle_batch_end(now, rng);
    }

    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit> {
        loop {
            if let Some(transmit) = self.outbox.pop_front() {
                return Some(transmit);
            }
            self.settle(now, rng);
            let transmit = self.machine().poll_transmit(now, rng)?;
            self.record(now, transmit);
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match &self.party {
            Party::Origin(origin) => origin.poll_timeout(),
            Party::Relay(relay) => relay.relay.poll_timeout(),
        }
    }
}
