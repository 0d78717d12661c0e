//! The core of a relay: creates circuits for neighbours, switches their cells, extends them, and terminates their
//! streams.
//!
//! Owns the relay's [`Channels`], the table of circuits with this relay's layer of each, and the streams of circuits
//! that end here. Driven as a [`LinkMachine`]. The exit's input and output are outside: [`Relay::poll_event`] returns
//! the streams' events, and [`Relay::handle_command`] takes the answers. [`Relay::poll_transmit`] is due after each of
//! those calls.
//! Governed by `proto/02-channel.md` §4 and §5, `proto/03-cells.md` and `proto/04-handshake.md`.
//!
//! Threats addressed: neighbours and origins that send illegal messages, or too many. A violation inside a circuit
//! ends that circuit, to both sides, with the same cell for every rule. A slow reader of a circuit fills only that
//! circuit's queue.
//!
//! | cell | from the origin's side | from the next hop's side |
//! |---|---|---|
//! | CREATE | a new circuit; on one that exists: ends it | breaks the channel |
//! | CREATED | breaks the channel | answer to CREATE, once; else ends the circuit |
//! | RELAY | opened; forwarded or decoded | layer added, if the next hop has answered; else ends the circuit |
//! | DESTROY | ends the circuit | ends the circuit |
//!
//! Cells of unknown circuits are dropped. Late cells are normal after a DESTROY.
//!
//! | relay message | at a relay |
//! |---|---|
//! | EXTEND | once, and again after GONE, unless there is a next hop already; else ends the circuit |
//! | EXTENDED, GONE | ends the circuit |
//! | all others | as in [`stream`](crate::stream) |

mod build;
mod exit;
mod exit_side;
mod gateways;
mod switch;
mod table;
#[cfg(test)]
mod tests;

pub use exit::ExitOwner;

use core::time::Duration;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use rand::CryptoRng;

use crate::{
    base::{Deadlines, Instant, LinkEvent, LinkMachine, ReadyQueue, RelayId, StreamId, Transmit},
    channel::{ChannelEvent, ChannelId, ChannelParameters, Channels, LocalRole, Overdue},
    crypto::{IdentityKey, OnionPublic, OnionSecret},
    directory::{Consensus, Counted, KnownRelays, Registration},
    flow::FlowParameters,
    handshake::OnionKeyring,
    stream::StreamEvent,
};

use build::HalfBuilt;
use gateways::Gateways;
use table::{Circuit, CircuitEndpoint, CircuitKey, Side, Table};

/// Time limit from the first to the last fragment of one body.
const FRAGMENTS_LIMIT: Duration = Duration::from_secs(5);
/// Time without a cell after which a client's circuit ends that has no next hop and never had a stream.
const UNUSED_LIMIT: Duration = Duration::from_secs(600);
/// The same for a later hop, which may be the last of a circuit that a client keeps ready.
const UNUSED_LATER_LIMIT: Duration = Duration::from_secs(3600);
/// Time limit from EXTEND to the open channel: slightly more than the limit of a dial and its handshake.
const DIAL_LIMIT: Duration = Duration::from_secs(22);
/// Time limit from CREATE to the last fragment of CREATED.
const CREATE_LIMIT: Duration = Duration::from_secs(10);
/// A gateway stops reaching a volunteer that the directory has not counted for this many volunteer intervals. The
/// volunteer replaces the gateway long before.
const UNCOUNTED_INTERVALS: u32 = 10;

/// Limits and settings of a relay.
#[derive(Clone, Debug)]
pub struct RelayParameters {
    /// Parameters of its channels.
    pub channel: ChannelParameters,
    /// Congestion control of the circuits that end here.
    pub flow: FlowParameters,
    /// Cap on circuits; more are refused. Default 65,536 (about 1 KiB each without streams or waiting cells).
    pub circuits: usize,
    /// Cap on circuits whose CREATE lacks fragments, 4 KiB each; more are refused. Default 1,024, and 64 per channel.
    pub half_built: usize,
    /// Cap on circuits that wait for a channel to their next hop, 4 KiB each; beyond it, the circuit that extends
    /// ends. Default 1,024, and 256 per channel, for at most 16 relays.
    pub dialling: usize,
    /// Whether it serves BEGIN and RESOLVE. Default no.
    pub exit: bool,
    /// Whether it serves REQUEST. Default no.
    pub delegate: bool,
    /// How circuits reach it. Default directly.
    pub reach: Reach,
}

/// How circuits reach a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// It has a public address, accepts dials, and is a gateway of volunteers.
    #[default]
    Direct,
    /// It is a volunteer: it can't be dialled, and circuits reach it over the channels that it keeps to its gateways.
    Gateways,
}

impl Default for RelayParameters {
    fn default() -> Self {
        Self {
            channel: ChannelParameters::default(),
            flow: FlowParameters::default(),
            circuits: 65_536,
            half_built: 1024,
            dialling: 1024,
            exit: false,
            delegate: false,
            reach: Reach::Direct,
        }
    }
}

/// A stream or RESOLVE at this relay as an exit; never reused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExitStream(pub u64);

/// An event for the relay's node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// An event of a stream or RESOLVE, for the exit.
    Stream(ExitStream, StreamEvent),
    /// The volunteers that this relay is a gateway of have changed ([`Relay::volunteers`]).
    VolunteersChanged,
    /// The gateways of this volunteer have changed ([`Relay::gateways`]).
    GatewaysChanged,
}

/// A relay's load, for its operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayFigures {
    /// Open channels.
    pub channels: usize,
    /// Circuits.
    pub circuits: usize,
    /// Streams and RESOLVEs as an exit.
    pub exit_streams: usize,
    /// RELAY cells switched since the start, in both directions.
    pub cells_switched: u64,
}

/// A relay's core.
pub struct Relay {
    identity: RelayId,
    onion_keys: OnionKeyring,
    parameters: RelayParameters,
    known: KnownRelays,
    channels: Channels,
    gateways: Gateways,
    /// Channels over which volunteers are reached, and since when the directory has not counted the volunteer.
    reached: BTreeMap<ChannelId, Option<Instant>>,
    table: Table,
    /// CREATEs that lack fragments.
    half_built: BTreeMap<CircuitEndpoint, HalfBuilt>,
    half_built_deadlines: Deadlines<CircuitEndpoint>,
    /// Circuits that wait for a channel.
    dialling: BTreeMap<RelayId, BTreeSet<CircuitKey>>,
    /// Deadlines of circuits; an entry may be earlier than the deadline.
    deadlines: Deadlines<CircuitKey>,
    /// Circuits whose streams may have pending messages.
    ready: ReadyQueue<CircuitKey>,
    exits: BTreeMap<ExitStream, (CircuitKey, StreamId)>,
    next_exit: u64,
    events: VecDeque<RelayEvent>,
    cells_switched: u64,
    scratch: Vec<u8>,
}

impl Relay {
    /// A relay without neighbours.
    #[must_use]
    pub fn new(identity: Arc<IdentityKey>, onion_keys: OnionKeyring, parameters: RelayParameters) -> Self {
        let own = identity.id();
        let role = match parameters.reach {
            Reach::Direct => LocalRole::Relay(identity),
            Reach::Gateways => LocalRole::Volunteer(identity),
        };
        Self {
            identity: own,
            onion_keys,
            channels: Channels::new(role, parameters.channel.clone()),
            gateways: Gateways::default(),
            reached: BTreeMap::new(),
            parameters,
            known: KnownRelays::default(),
            table: Table::default(),
            half_built: BTreeMap::new(),
            half_built_deadlines: Deadlines::default(),
            dialling: BTreeMap::new(),
            deadlines: Deadlines::default(),
            ready: ReadyQueue::new(),
            exits: BTreeMap::new(),
            next_exit: 1,
            events: VecDeque::new(),
            cells_switched: 0,
            scratch: Vec::new(),
        }
    }

    /// This relay's identity.
    #[must_use]
    pub const fn identity(&self) -> RelayId {
        self.identity
    }

    /// The onion key to publish.
    #[must_use]
    pub fn onion_key(&self) -> OnionPublic {
        self.onion_keys.public()
    }

    /// Makes `next` the onion key. The previous key still answers.
    pub fn rotate_onion_key(&mut self, next: OnionSecret) {
        self.onion_keys.rotate(next);
    }

    /// Sets the consensus. Circuits are extended only to relays in it or in the previous one.
    pub fn set_consensus(&mut self, consensus: Arc<Consensus>) {
        self.known.update(consensus);
        self.gateways.rank(&self.identity, self.known.current());
        self.channels.set_gateways(self.gateways.ranked());
    }

    /// For a volunteer: handles the directory's answer to its registration. The seed determines the ranking of
    /// gateways. Gateways without the directory's confirmation are replaced.
    pub fn handle_registration(&mut self, now: Instant, registration: &Registration) {
        self.gateways.set_seed(&self.identity, registration.seed, self.known.current());
        self.channels.set_gateways(self.gateways.ranked());
        let interval = self.known.current().map(|consensus| consensus.parameters().volunteer_interval());
        if let Some(interval) = interval {
            self.gateways.confirm(now, &registration.gateways, interval, &mut self.channels);
        }
    }

    /// For a volunteer: its gateways that can reach it now, ascending.
    #[must_use]
    pub fn gateways(&self) -> Vec<RelayId> {
        self.gateways.open()
    }

    /// For a gateway: the volunteers that it can reach now.
    #[must_use]
    pub fn volunteers(&self) -> Vec<RelayId> {
        self.channels.volunteers()
    }

    /// For a gateway: handles the directory's list of the reported volunteers that it counts. Volunteers that have
    /// not been counted for long are dropped, so that others can take their places.
    pub fn handle_presence(&mut self, now: Instant, counted: &Counted) {
        let Some(consensus) = self.known.current() else { return };
        let patience = consensus.parameters().volunteer_interval().saturating_mul(UNCOUNTED_INTERVALS);
        let before = self.reached.len();
        let Self { reached, channels, .. } = self;
        reached.retain(|channel, since| {
            let counts = channels.peer(*channel).is_some_and(|it| counted.volunteers.binary_search(&it).is_ok());
            // Measured from the first such answer: after an outage, the directory first needs a report of them.
            *since = if counts { None } else { since.or(Some(now)) };
            let stays = since.is_none_or(|since| now.since(since) < patience);
            if !stays {
                channels.stop_reaching(*channel);
            }
            stays
        });
        if self.reached.len() < before {
            self.events.push_back(RelayEvent::VolunteersChanged);
        }
    }

    /// Accepts no more circuits; existing circuits go on. Channels without circuits close, so that a gateway reports
    /// at once that this volunteer is gone. No channel is opened from now on.
    pub fn drain(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.parameters.circuits = 0;
        let Self { channels, table, .. } = self;
        channels.wind_down(|channel| table.is_on(channel));
        self.handle_channel_events(now, rng);
    }

    /// Ends all circuits, to both sides of each.
    pub fn end_circuits(&mut self, now: Instant) {
        for key in self.table.keys() {
            self.end(now, key);
        }
    }

    /// Closes all channels and opens none from now on.
    pub fn shut_down(&mut self) {
        self.channels.shut_down();
    }

    /// The next event for the node.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// The current load.
    #[must_use]
    pub fn figures(&self) -> RelayFigures {
        RelayFigures {
            channels: self.channels.len(),
            circuits: self.table.len(),
            exit_streams: self.exits.len(),
            cells_switched: self.cells_switched,
        }
    }

    fn handle_channel_events(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        loop {
            while let Some(event) = self.channels.poll_event() {
                self.handle_channel_event(now, event, rng);
            }
            match self.channels.overdue() {
                Some(Overdue::Circuit(channel, circuit)) => match self.table.find(CircuitEndpoint { channel, circuit })
                {
                    Some((key, _)) => self.end(now, key),
                    None => self.destroy(now, CircuitEndpoint { channel, circuit }),
                },
                Some(Overdue::Channel(channel)) => self.channels.close(channel),
                None => return,
            }
        }
    }

    fn handle_channel_event(&mut self, now: Instant, event: ChannelEvent, rng: &mut dyn CryptoRng) {
        match event {
            ChannelEvent::Open { channel, peer: Some(relay), reach, .. } => {
                self.gateways.handle_open(&relay);
                if reach {
                    self.reached.insert(channel, None);
                    self.events.push_back(RelayEvent::VolunteersChanged);
                }
                self.create_waiting(now, relay, channel, rng);
            }
            ChannelEvent::Open { peer: None, .. } => {}
            ChannelEvent::DialFailed { relay, error } => {
                tracing::debug!(%error, class = %error.class(), "can't open a channel to the next hop");
                self.gateways.handle_failed(now, &relay);
                for key in self.dialling.remove(&relay).unwrap_or_default() {
                    self.end(now, key);
                }
            }
            ChannelEvent::Cell { channel, cell } => self.handle_cell(now, channel, cell, rng),
            ChannelEvent::Drained { channel, circuit } => self.handle_drained(CircuitEndpoint { channel, circuit }),
            ChannelEvent::Closed { channel } => self.handle_closed(now, channel),
        }
    }

    fn handle_closed(&mut self, now: Instant, channel: ChannelId) {
        self.gateways.handle_closed(now, channel);
        if self.reached.remove(&channel).is_some() {
            self.events.push_back(RelayEvent::VolunteersChanged);
        }
        for (key, side) in self.table.on_channel(channel) {
            match side {
                Side::Previous => self.end(now, key),
                Side::Next => self.handle_next_closed(now, key),
            }
        }
        let half_built: Vec<_> =
            self.half_built.range(CircuitEndpoint::range(channel)).map(|(endpoint, _)| *endpoint).collect();
        for endpoint in half_built {
            self.forget_half_built(endpoint);
        }
    }

    /// Moves the timer of `key` to its next deadline, if that is earlier.
    fn schedule(&mut self, key: CircuitKey) {
        let Some(due) = self.table.circuit(key).and_then(Circuit::poll_timeout) else { return };
        self.deadlines.set_earlier(key, due);
    }

    fn handle_circuit_timeout(&mut self, now: Instant, key: CircuitKey) {
        let Some(circuit) = self.table.circuit_mut(key) else { return };
        if circuit.handle_timeout(now).is_err() {
            return self.end(now, key);
        }
        self.after_streams(key);
    }
}

impl LinkMachine for Relay {
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng) {
        self.channels.handle_link(now, event, rng);
        self.handle_channel_events(now, rng);
    }

    fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.channels.handle_timeout(now);
        self.handle_channel_events(now, rng);
        while let Some(endpoint) = self.half_built_deadlines.pop_due(now) {
            self.forget_half_built(endpoint);
            self.destroy(now, endpoint);
        }
        while let Some(key) = self.deadlines.pop_due(now) {
            self.handle_circuit_timeout(now, key);
        }
    }

    fn handle_batch_end(&mut self, now: Instant, _: &mut dyn CryptoRng) {
        self.gateways.plan(now, &self.known, &mut self.channels);
        if self.gateways.take_changed() {
            self.events.push_back(RelayEvent::GatewaysChanged);
        }
    }

    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit> {
        loop {
            self.send_messages(now, rng);
            let transmit = self.channels.poll_transmit(now);
            self.handle_channel_events(now, rng);
            if transmit.is_some() || self.ready.is_empty() {
                return transmit;
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let half_built = self.half_built_deadlines.earliest();
        let circuits = self.deadlines.earliest();
        let gateways = self.gateways.poll_timeout();
        [self.channels.poll_timeout(), half_built, circuits, gateways].into_iter().flatten().min()
    }
}
