//! The core of a relay: creates and extends circuits, switches their cells, and serves the streams whose exit is this
//! relay.
//!
//! Driven as a [`LinkMachine`]. The sockets to targets belong to the node's exit code: [`Relay::poll_event`] returns
//! events of streams for it, and [`Relay::handle_command`] takes its commands. After a batch of calls, the owner calls
//! [`LinkMachine::handle_batch_end`] once. That call dials gateways, performs handshakes and sends stream messages.
//!
//! | part | owned by |
//! |---|---|
//! | channels to neighbours | [`Channels`] |
//! | circuits, with this relay's layer and their deadlines | `table::Table` |
//! | rates of CREATE for each owner | `base::Allowances` |
//! | CREATEs that lack fragments | `partial_creates::PartialCreates` |
//! | CREATEs that wait for their handshake | `waiting_creates::WaitingCreates` |
//! | circuits that wait for a channel to the next hop, for its rate or its window | `waiting_extends::WaitingExtends` |
//! | numbers of unanswered CREATEs to each next relay | `create_windows::CreateWindows` |
//! | turns of the owners of waiting CREATEs and circuits | `base::OwnerTurns` |
//! | each owner's share of circuits, partial CREATEs, waiting circuits and exit streams | `base::Owned` |
//! | streams whose exit is this relay | `streams::ExitStreams` |
//! | each owner's share of records of streams | `stream_records::StreamRecords` |
//! | of a volunteer: its gateways | `gateways::Gateways` |
//! | of a gateway: its volunteers | `volunteers::GatewayVolunteers` |
//!
//! `switch` and `build` handle cells: the first switches and reads them, the second builds circuits.
//! Governed by `proto/02-channel.md` §4 and §5, `proto/03-cells.md` and `proto/04-handshake.md`.
//!
//! Handshakes run in the core's task. [`RelayParameters::circuit_handshakes`] caps their rate, and their number in a
//! batch. CREATEs above the rate wait. They are selected in turn by network, or by listed relay.
//!
//! Threats addressed: neighbours and origins that send illegal messages, or too many. A breach in a circuit ends that
//! circuit. Both sides get the same DESTROY, whichever rule was breached. A slow reader of a circuit fills only that
//! circuit's queue.
//!
//! | cell | from the origin's side | from the next hop's side |
//! |---|---|---|
//! | CREATE | creates a circuit, after its handshake; for a circuit that exists or waits: ends the circuit | breach: closes the channel |
//! | CREATED | breach: closes the channel | answer to CREATE, once; else ends the circuit |
//! | RELAY | opened; forwarded or decoded; for a circuit that waits for its handshake: ends the circuit | layer added, if the next hop has answered; else ends the circuit |
//! | DESTROY | ends the circuit, also one that waits | ends the circuit |
//!
//! Cells of unknown circuits are dropped. Late cells are normal after a DESTROY.
//!
//! | relay message | at a relay |
//! |---|---|
//! | EXTEND | extends the circuit, or answers GONE; ends the circuit if it has a next hop or an EXTEND in progress |
//! | EXTENDED, GONE | ends the circuit |
//! | all others | as in [`stream`](crate::stream) |
//!
//! GONE answers an EXTEND to a relay that is neither in the last two consensuses nor a reachable volunteer of this
//! gateway. It also answers an EXTEND to a volunteer whose channel closes before CREATED.

mod build;
#[cfg(any(test, fuzzing))]
mod check;
mod circuit;
mod create_windows;
mod gateways;
mod parameters;
mod partial_creates;
mod stream_records;
mod streams;
mod switch;
mod table;
#[cfg(test)]
mod tests;
mod volunteers;
mod waiting_creates;
mod waiting_extends;

use std::sync::Arc;

use rand::CryptoRng;

use crate::{
    base::{Allowances, CircuitId, Instant, LinkEvent, LinkMachine, Owner, Rate, RelayId, TokenBucket, Transmit},
    channel::{CellOwner, ChannelEvent, ChannelId, Channels, Eviction, LocalRole},
    crypto::{IdentityKey, OnionPublic, OnionSecret},
    delegated::limits::RequestOwner,
    directory::{Consensus, Counted, KnownRelays, Registration},
    handshake::OnionKeyring,
    stream::{StreamCommand, StreamEvent},
};

use self::{
    circuit::{CircuitEndpoint, Side},
    create_windows::CreateWindows,
    gateways::Gateways,
    partial_creates::PartialCreates,
    streams::ExitStreams,
    table::{CircuitKey, Table},
    volunteers::GatewayVolunteers,
    waiting_creates::WaitingCreates,
    waiting_extends::WaitingExtends,
};
pub use self::{
    parameters::{Reach, RelayParameters},
    streams::ExitStream,
};

/// An event for the relay's node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayEvent {
    /// An event of a stream or RESOLVE, for the exit.
    Stream(ExitStream, StreamEvent),
    /// The volunteers of this gateway have changed ([`Relay::volunteers`]).
    VolunteersChanged,
    /// The gateways of this volunteer have changed ([`Relay::gateways`]).
    GatewaysChanged,
}

/// A relay's statistics, for its operator.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RelayStatistics {
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
    known: KnownRelays,
    channels: Channels,
    gateways: Gateways,
    volunteers: GatewayVolunteers,
    table: Table,
    partial_creates: PartialCreates,
    waiting_creates: WaitingCreates,
    handshake_rate: Rate,
    handshake_tokens: TokenBucket,
    allowances: Allowances,
    waiting_extends: WaitingExtends,
    create_windows: CreateWindows,
    streams: ExitStreams,
    cells_switched: u64,
    /// The buffer in which a relay message is encoded.
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
            known: KnownRelays::default(),
            gateways: Gateways::default(),
            volunteers: GatewayVolunteers::default(),
            table: Table::new(parameters.circuits),
            partial_creates: PartialCreates::new(parameters.partial_creates),
            waiting_creates: WaitingCreates::new(parameters.waiting_creates),
            handshake_rate: parameters.circuit_handshakes,
            handshake_tokens: TokenBucket::new(),
            allowances: Allowances::new(parameters.creates_of_source, parameters.channel.creates_of_relay),
            waiting_extends: WaitingExtends::new(parameters.waiting_extends, parameters.creates_to_relay),
            create_windows: CreateWindows::new(parameters.create_window),
            streams: ExitStreams::new(&parameters),
            channels: Channels::new(role, parameters.channel),
            cells_switched: 0,
            scratch: Vec::new(),
        }
    }

    /// This relay's identity.
    #[must_use]
    pub const fn identity(&self) -> RelayId {
        self.identity
    }

    /// The current onion key, for the descriptor.
    #[must_use]
    pub fn onion_key(&self) -> OnionPublic {
        self.onion_keys.public()
    }

    /// Makes `next` the current onion key. Handshakes with the previous key still succeed.
    pub fn rotate_onion_key(&mut self, next: OnionSecret) {
        self.onion_keys.rotate(next);
    }

    /// Sets the consensus. The relay dials only relays in the current or the previous consensus.
    pub fn set_consensus(&mut self, consensus: Arc<Consensus>) {
        self.known.update(consensus);
        for channel in self.channels.relay_channels() {
            self.update_limits(channel);
        }
        self.gateways.rank(&self.identity, self.known.current());
        self.channels.set_gateways(self.gateways.ranked());
    }

    /// For a volunteer: handles the directory's answer to its registration. The seed determines the ranking of
    /// gateways. Replaces gateways that the directory has not confirmed for several volunteer intervals.
    pub fn handle_registration(&mut self, now: Instant, registration: &Registration) {
        self.gateways.set_seed(&self.identity, registration.seed, self.known.current());
        self.channels.set_gateways(self.gateways.ranked());
        let interval = self.known.current().map(|consensus| consensus.parameters().volunteer_interval());
        if let Some(interval) = interval {
            self.gateways.confirm(now, &registration.gateways, interval, &mut self.channels);
        }
    }

    /// For a volunteer: the gateways whose channels are open, in ascending order of identity.
    #[must_use]
    pub fn gateways(&self) -> Vec<RelayId> {
        self.gateways.open()
    }

    /// For a gateway: the volunteers that this relay can reach now.
    #[must_use]
    pub fn volunteers(&self) -> Vec<RelayId> {
        self.channels.volunteers()
    }

    /// For a gateway: handles the directory's answer to a presence, the list of volunteers that the directory accepted.
    /// Removes a volunteer that has been missing from these lists for too long, so that another can take its place.
    pub fn handle_counted(&mut self, now: Instant, counted: &Counted) {
        if let Some(consensus) = self.known.current() {
            let interval = consensus.parameters().volunteer_interval();
            self.volunteers.handle_counted(now, counted, interval, &mut self.channels);
        }
    }

    /// Accepts no more circuits; existing circuits remain. Channels without circuits close, so that a gateway on such a
    /// channel reports the loss of this volunteer. From now on, neither dials nor accepts links; dials in flight can
    /// still open channels.
    pub fn drain(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.table.close();
        let Self { channels, table, .. } = self;
        channels.close_except(|channel| table.is_on(channel));
        self.handle_channel_events(now, rng);
    }

    /// Ends all circuits, with DESTROY to both sides of each.
    pub fn end_circuits(&mut self, now: Instant) {
        for key in self.table.keys() {
            self.end(now, key);
        }
    }

    /// Closes all channels. From now on, neither dials nor accepts links; dials in flight can still open channels.
    pub fn shut_down(&mut self) {
        self.channels.shut_down();
    }

    /// Handles a command of the exit for a stream or RESOLVE.
    pub fn handle_command(&mut self, stream: ExitStream, command: StreamCommand) {
        self.streams.handle_command(stream, command);
    }

    /// Queues bytes of the target for the origin, up to [`Self::room`]. Returns the number of queued bytes.
    pub fn write(&mut self, stream: ExitStream, bytes: &[u8]) -> usize {
        self.streams.write(stream, bytes)
    }

    /// The number of bytes that [`Self::write`] accepts now. [`StreamEvent::Writable`] reports growth.
    #[must_use]
    pub fn room(&self, stream: ExitStream) -> usize {
        self.streams.room(stream)
    }

    /// The circuit of a stream's request and the circuit's owner, to whose limits the request counts. `None` if the
    /// stream has ended.
    #[must_use]
    pub fn request_owner(&self, stream: ExitStream) -> Option<RequestOwner> {
        let key = self.streams.circuit(stream)?;
        let channel = self.table.circuit(key)?.previous.channel;
        let circuit_owner = self.owner(channel)?;
        Some(RequestOwner { circuit_owner, circuit: key.number() })
    }

    /// The owner of the circuits over a channel: a listed relay, or else the source of the neighbour's address. Anyone
    /// can generate identities, so an unlisted identity is not an owner.
    fn owner(&self, channel: ChannelId) -> Option<Owner> {
        let listed = self.channels.peer(channel).filter(|relay| self.known.relay(relay).is_some());
        listed.map(Owner::Relay).or_else(|| self.channels.owner(channel))
    }

    /// The next event for the node.
    pub fn poll_event(&mut self) -> Option<RelayEvent> {
        if self.volunteers.take_changed() {
            return Some(RelayEvent::VolunteersChanged);
        }
        if self.gateways.take_changed() {
            return Some(RelayEvent::GatewaysChanged);
        }
        self.streams.poll_event().map(|(stream, event)| RelayEvent::Stream(stream, event))
    }

    /// The current statistics.
    #[must_use]
    pub fn statistics(&self) -> RelayStatistics {
        RelayStatistics {
            channels: self.channels.len(),
            circuits: self.table.len(),
            exit_streams: self.streams.len(),
            cells_switched: self.cells_switched,
        }
    }

    fn handle_channel_events(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        loop {
            while let Some(event) = self.channels.poll_event() {
                self.handle_channel_event(now, event, rng);
            }
            let owner = |channel, circuit| self.owner_of_cells(channel, circuit);
            let added = |channel, circuit| self.cells_of_an_end(CircuitEndpoint { channel, circuit });
            let evictions = self.channels.evictions(owner, added);
            if evictions.is_empty() {
                return;
            }
            for eviction in evictions {
                match eviction {
                    Eviction::Circuit(channel, circuit) => {
                        match self.table.find(CircuitEndpoint { channel, circuit }) {
                            Some((key, _)) => self.end(now, key),
                            None => self.destroy(now, CircuitEndpoint { channel, circuit }),
                        }
                    }
                    Eviction::Channel(channel) => self.channels.close(channel),
                }
            }
        }
    }

    /// The owner of queued cells on a channel: the owner that opened the circuit. Cells without a circuit of this relay
    /// belong to the neighbour at the other end of the channel. The channel that may close is that of a source, over
    /// which it opened the circuit. Of a listed relay, it is the channel on which the cells wait, because the channel of
    /// a relay carries circuits of many clients.
    fn owner_of_cells(&self, channel: ChannelId, circuit: Option<CircuitId>) -> Option<CellOwner> {
        let found = circuit.and_then(|circuit| self.table.find(CircuitEndpoint { channel, circuit }));
        let circuit = found.and_then(|(key, _)| self.table.circuit(key));
        match circuit {
            Some(circuit) if matches!(circuit.owner, Owner::Source(..)) => {
                Some(CellOwner { owner: circuit.owner, channel: circuit.previous.channel })
            }
            Some(circuit) => Some(CellOwner { owner: circuit.owner, channel }),
            None => Some(CellOwner { owner: self.owner(channel)?, channel }),
        }
    }

    /// The number of cells that the end of the circuit with this endpoint adds to the queue of its other endpoint: a
    /// DESTROY, unless the DESTROY replaces cells there.
    fn cells_of_an_end(&self, endpoint: CircuitEndpoint) -> usize {
        let Some((key, side)) = self.table.find(endpoint) else { return 0 };
        let other = self.table.circuit(key).and_then(|circuit| match side {
            Side::Previous => circuit.next.endpoint(),
            Side::Next => Some(circuit.previous),
        });
        usize::from(other.is_some_and(|other| self.channels.queued_of(other.channel, other.circuit) == 0))
    }

    fn handle_channel_event(&mut self, now: Instant, event: ChannelEvent, rng: &mut dyn CryptoRng) {
        match event {
            ChannelEvent::Open { channel, peer: Some(relay), reaches_volunteer, .. } => {
                // Data may flow before the first CREATE of a listed neighbour, over circuits that this relay extends.
                self.update_limits(channel);
                self.gateways.handle_open(&relay);
                if reaches_volunteer {
                    self.volunteers.handle_open(channel);
                }
                self.create_waiting(now, relay, rng);
            }
            ChannelEvent::Open { peer: None, .. } => {}
            ChannelEvent::DialFailed { relay, error } => {
                tracing::debug!(%error, class = %error.class(), "can't open a channel to a relay");
                self.gateways.handle_failed(now, &relay);
                for key in self.waiting_extends.take(&relay) {
                    self.end(now, key);
                }
            }
            ChannelEvent::Cell { channel, cell } => self.handle_cell(now, channel, cell, rng),
            ChannelEvent::QueueLow { channel, circuit } => self.handle_queue_low(CircuitEndpoint { channel, circuit }),
            ChannelEvent::Closed { channel } => self.handle_closed(now, channel),
        }
    }

    /// The next circuit that must end because of a deadline.
    fn poll_expired(&mut self, now: Instant) -> Option<CircuitKey> {
        let Self { table, streams, .. } = self;
        table.poll_expired(now, |key| streams.last_use(now, key)).or_else(|| streams.handle_timeout(now))
    }

    fn handle_closed(&mut self, now: Instant, channel: ChannelId) {
        self.gateways.handle_closed(now, channel);
        self.volunteers.handle_closed(channel);
        for (key, side) in self.table.on_channel(channel) {
            match side {
                Side::Previous => self.end(now, key),
                Side::Next => self.handle_next_closed(now, key),
            }
        }
        if let Some(relay) = self.create_windows.remove_channel(channel) {
            self.waiting_extends.schedule(relay);
        }
        self.partial_creates.remove_channel(channel);
        self.waiting_creates.remove_channel(channel);
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
        while let Some(endpoint) = self.partial_creates.pop_expired(now) {
            self.destroy(now, endpoint);
        }
        while let Some(endpoint) =
            self.waiting_creates.pop_expired(now, |channel| self.channels.has_room_for_refusal(channel))
        {
            self.refuse(now, endpoint);
        }
        while let Some(key) = self.poll_expired(now) {
            self.end(now, key);
        }
    }

    fn handle_batch_end(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.gateways.plan(now, &self.known, &mut self.channels);
        self.perform_handshakes(now, rng);
        while let Some(relay) = self.waiting_extends.poll_due(now) {
            self.create_waiting(now, relay, rng);
        }
        self.send_messages(now, rng);
    }

    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit> {
        loop {
            let transmit = self.channels.poll_transmit(now);
            self.handle_channel_events(now, rng);
            let had_ready = self.streams.has_ready();
            // Sends more messages to queues that this transmit has shortened.
            self.send_messages(now, rng);
            if transmit.is_some() || !had_ready {
                return transmit;
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        let circuits = [self.table.poll_timeout(), self.partial_creates.poll_timeout(), self.streams.poll_timeout()];
        let neighbours = [self.channels.poll_timeout(), self.gateways.poll_timeout()];
        let extends = self.waiting_extends.poll_timeout();
        let creates = [self.waiting_creates.poll_timeout(), self.next_handshake(), extends];
        circuits.into_iter().chain(creates).chain(neighbours).flatten().min()
    }
}
