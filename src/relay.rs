//! The relay's core: it opens circuits for neighbours, switches their cells, extends them, and speaks at their end.
//!
//! Owns the node's [`Channels`] as a relay, the table of circuits with this relay's layer of each, and the streams of
//! circuits that end here. Driven after [`LinkMachine`]; what an exit does with its targets happens outside: requests
//! come from [`Relay::poll_event`], answers go in by the `exit_…` calls, after each of which [`Relay::poll_transmit`] is
//! due. Governed by `proto/02-channel.md` §4 and §5, `proto/03-cells.md` and `proto/04-handshake.md`.
//!
//! Threats addressed: neighbours and origins that send what they may not, or too much. Whatever breaks a rule inside a
//! circuit ends that circuit, to both sides and with the same cell whatever the rule was. A circuit whose reader is
//! slow fills its own queue only.
//!
//! | cell | from the origin's side | from the next hop's side |
//! |---|---|---|
//! | CREATE | a new circuit; on one that exists: ends it | breaks the channel |
//! | CREATED | breaks the channel | answer to CREATE, once; else ends the circuit |
//! | RELAY | opened; passed on or read | layer added, if the next hop has answered; else ends the circuit |
//! | DESTROY | ends the circuit | ends the circuit |
//!
//! Cells of unknown circuits are dropped: they are late, which is normal after a DESTROY.
//!
//! | relay message | at a relay |
//! |---|---|
//! | EXTEND | once, and again after GONE, unless there is a next hop already; else ends the circuit |
//! | EXTENDED, GONE | ends the circuit |
//! | all others | as in [`stream`](crate::stream) |

mod build;
mod exit;
mod gateways;
mod switch;
mod table;
#[cfg(test)]
mod tests;

use core::time::Duration;
use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    sync::Arc,
};

use bytes::Bytes;
use rand::CryptoRng;

use crate::{
    base::{Instant, LinkEvent, LinkMachine, RelayId, StreamId, Transmit},
    channel::{ChannelEvent, ChannelId, ChannelParameters, Channels, LocalRole, Overdue},
    crypto::{IdentityKey, OnionPublic, OnionSecret},
    directory::{Consensus, Counted, KnownRelays, Registration},
    flow::FlowParameters,
    handshake::OnionKeyring,
    wire::{Host, Service, Target},
};

use build::HalfBuilt;
use gateways::Gateways;
use table::{Circuit, CircuitKey, Leg, Side, Table};

/// Fragments of one body may take so long.
const FRAGMENTS_LIMIT: Duration = Duration::from_secs(5);
/// A client's circuit that has no next hop, never had a stream and has carried no cell ends after so long.
const UNUSED_LIMIT: Duration = Duration::from_secs(600);
/// The same of a later hop, which may be the last of a circuit that a client keeps ready.
const UNUSED_LATER_LIMIT: Duration = Duration::from_secs(3600);
/// From EXTEND to the open channel; a little more than a dial and its handshake may take.
const DIAL_LIMIT: Duration = Duration::from_secs(22);
/// From CREATE to the last fragment of CREATED.
const CREATE_LIMIT: Duration = Duration::from_secs(10);
/// A volunteer that the directory doesn't count for so many of its intervals is not reached any more. It has looked for
/// another gateway long before.
const UNCOUNTED_INTERVALS: u32 = 10;

/// Limits and settings of a relay.
#[derive(Clone, Debug)]
pub struct RelayParameters {
    /// Of its channels.
    pub channel: ChannelParameters,
    /// Of the circuits that end here.
    pub flow: FlowParameters,
    /// Circuits at once; more are refused. Default 65,536 (about 1 KiB each without streams or waiting cells).
    pub circuits: usize,
    /// Circuits at once whose CREATE lacks fragments, 4 KiB each; more are refused. Default 1,024, and 64 a channel.
    pub half_built: usize,
    /// Circuits at once that wait for a channel to their next hop, 4 KiB each; more end. Default 1,024, and of a
    /// channel 256, which may wait for 16 relays.
    pub dialling: usize,
    /// Whether it serves BEGIN and RESOLVE at all. Default no.
    pub exit: bool,
    /// Whether it serves REQUEST at all. Default no.
    pub delegate: bool,
    /// How others get to it. Default directly.
    pub reach: Reach,
}

/// How others get to a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// It has a public address, is dialled, and is a gateway of volunteers.
    #[default]
    Direct,
    /// It is a volunteer: nobody can dial it, and circuits reach it over the channels that it keeps to its gateways.
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

/// A stream or a question at this relay as an exit; never used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ExitStream(pub u64);

/// What an origin wants of this relay as an exit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExitRequest {
    /// Connect to a target; answered by [`Relay::exit_connected`] or [`Relay::exit_failed`].
    Connect(Target),
    /// Ask the resolver; answered by [`Relay::exit_resolved`] or [`Relay::exit_failed`].
    Resolve(Host),
    /// Do what `service` does, with what comes as [`Self::Data`]; the answer is written like a target's. Refused by
    /// [`Relay::exit_failed`].
    Delegate {
        /// What is to be done.
        service: Service,
        /// Names the circuit it comes over for as long as that lives: what comes over one circuit has one number.
        circuit: u64,
    },
    /// Send bytes to the target; tell [`Relay::exit_consumed`] when they have gone.
    Data(Bytes),
    /// Nothing more will be sent to the target.
    Finish,
    /// [`Relay::exit_room`], having been low, is not any more.
    Writable,
    /// The stream or question is void: drop whatever it is about. Nothing follows.
    Close,
}

/// What a relay tells its node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// Work for the exit.
    Exit(ExitStream, ExitRequest),
    /// The volunteers that this relay is a gateway of have changed ([`Relay::volunteers`]).
    VolunteersChanged,
    /// The gateways of this volunteer have changed ([`Relay::gateways`]).
    GatewaysChanged,
}

/// What a relay is carrying, to be shown to its operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayFigures {
    /// Channels that are open.
    pub channels: usize,
    /// Circuits.
    pub circuits: usize,
    /// Streams and questions as an exit.
    pub exit_streams: usize,
    /// RELAY cells passed on since the start, both directions.
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
    /// Channels over which volunteers are reached, and since when the directory's answers haven't counted them.
    reached: BTreeMap<ChannelId, Option<Instant>>,
    table: Table,
    /// CREATEs that lack fragments.
    half_built: BTreeMap<Leg, HalfBuilt>,
    half_built_deadlines: BTreeSet<(Instant, Leg)>,
    /// Circuits that wait for a channel.
    dialling: BTreeMap<RelayId, BTreeSet<CircuitKey>>,
    /// No later than when each circuit has something due; an entry may come too early.
    timers: BTreeSet<(Instant, CircuitKey)>,
    /// Circuits whose streams may have something to say.
    talkative: VecDeque<CircuitKey>,
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
            half_built_deadlines: BTreeSet::new(),
            dialling: BTreeMap::new(),
            timers: BTreeSet::new(),
            talkative: VecDeque::new(),
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

    /// Makes `next` the onion key; the one before is still answered.
    pub fn rotate_onion_key(&mut self, next: OnionSecret) {
        self.onion_keys.rotate(next);
    }

    /// Takes up a consensus: circuits are extended only to relays in it or in the one before.
    pub fn set_consensus(&mut self, consensus: Arc<Consensus>) {
        self.known.update(consensus);
        self.gateways.rank(&self.identity, self.known.current());
        self.channels.set_gateways(self.gateways.ranked());
    }

    /// Of a volunteer: takes up what the directory answers to its registration: from the seed it follows which relays are to
    /// be its gateways, and those that the directory has not heard of give way to others.
    pub fn handle_registration(&mut self, now: Instant, registration: &Registration) {
        self.gateways.set_seed(&self.identity, registration.seed, self.known.current());
        self.channels.set_gateways(self.gateways.ranked());
        let interval = self.known.current().map(|consensus| consensus.parameters().volunteer_interval());
        if let Some(interval) = interval {
            self.gateways.confirm(now, &registration.gateways, interval, &mut self.channels);
        }
    }

    /// Of a volunteer: its gateways that can reach it now.
    #[must_use]
    pub fn gateways(&self) -> Vec<RelayId> {
        self.gateways.open()
    }

    /// Of a gateway: the volunteers that it can reach now.
    #[must_use]
    pub fn volunteers(&self) -> Vec<RelayId> {
        self.channels.volunteers()
    }

    /// Of a gateway: takes up whom the directory counts of the volunteers that were reported. Those that it has not counted
    /// for long leave their places to others.
    pub fn handle_presence(&mut self, now: Instant, counted: &Counted) {
        let Some(consensus) = self.known.current() else { return };
        let patience = consensus.parameters().volunteer_interval().saturating_mul(UNCOUNTED_INTERVALS);
        let before = self.reached.len();
        let Self { reached, channels, .. } = self;
        reached.retain(|channel, since| {
            let counts = channels.peer(*channel).is_some_and(|it| counted.volunteers.binary_search(&it).is_ok());
            // From the first such answer on, for a directory that was away must hear of them first.
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

    /// Takes no more circuits; those that are there go on. Channels without any close, so that a gateway says at once that
    /// this volunteer is gone, and none is opened from now on.
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

    /// Closes all channels, and opens none from now on.
    pub fn shut_down(&mut self) {
        self.channels.shut_down();
    }

    /// What the node must do next.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        self.events.pop_front()
    }

    /// What it is carrying.
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
                Some(Overdue::Circuit(channel, circuit)) => match self.table.find(Leg { channel, circuit }) {
                    Some((key, _)) => self.end(now, key),
                    None => self.refuse(now, Leg { channel, circuit }),
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
                tracing::debug!(%error, "no channel to a next hop");
                self.gateways.handle_failed(now, &relay);
                for key in self.dialling.remove(&relay).unwrap_or_default() {
                    self.end(now, key);
                }
            }
            ChannelEvent::Cell { channel, cell } => self.handle_cell(now, channel, cell, rng),
            ChannelEvent::Drained { channel, circuit } => self.handle_drained(Leg { channel, circuit }),
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
        let half_built: Vec<_> = self.half_built.range(Leg::range(channel)).map(|(leg, _)| *leg).collect();
        for leg in half_built {
            self.forget_half_built(leg);
        }
    }

    /// Looks again when `key` has something due.
    fn schedule(&mut self, key: CircuitKey) {
        let Some(circuit) = self.table.circuit_mut(key) else { return };
        let Some(due) = circuit.poll_timeout() else { return };
        if circuit.scheduled.is_none_or(|scheduled| due < scheduled) {
            if let Some(earlier) = circuit.scheduled.replace(due) {
                self.timers.remove(&(earlier, key));
            }
            self.timers.insert((due, key));
        }
    }

    fn handle_circuit_timeout(&mut self, now: Instant, key: CircuitKey) {
        let Some(circuit) = self.table.circuit_mut(key) else { return };
        circuit.scheduled = None;
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
        while let Some((due, leg)) = self.half_built_deadlines.first().copied() {
            if due > now {
                break;
            }
            self.forget_half_built(leg);
            self.refuse(now, leg);
        }
        while let Some((due, key)) = self.timers.first().copied() {
            if due > now {
                break;
            }
            self.timers.pop_first();
            self.handle_circuit_timeout(now, key);
        }
    }

    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit> {
        loop {
            self.let_talk(now, rng);
            self.gateways.plan(now, &self.known, &mut self.channels);
            if self.gateways.take_changed() {
                self.events.push_back(RelayEvent::GatewaysChanged);
            }
            let transmit = self.channels.poll_transmit(now);
            self.handle_channel_events(now, rng);
            if transmit.is_some() || self.talkative.is_empty() {
                return transmit;
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let half_built = self.half_built_deadlines.first().map(|(due, _)| *due);
        let circuits = self.timers.first().map(|(due, _)| *due);
        let gateways = self.gateways.poll_timeout();
        [self.channels.poll_timeout(), half_built, circuits, gateways].into_iter().flatten().min()
    }
}
