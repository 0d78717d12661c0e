//! One circuit of the pool.

use core::time::Duration;

use rand::{CryptoRng, RngExt as _};

use super::GuardPair;
use crate::{
    base::{CircuitId, Counter as _, Instant, RelayId, StreamId, Ticket},
    channel::{ChannelId, Channels},
    circuit::{CircuitEvent, Origin},
    client::{
        Isolation,
        requests::{Demand, RequestKind},
    },
    delegated::Delegation,
    directory::Consensus,
    handshake::RelayKeys,
    path::{Path, Relays, permits_target},
    stream::Streams,
    wire::Cell,
};

/// Cap on valid GONE messages during one build. After the first, another volunteer may take the position, after the
/// second only a relay of the consensus.
const MAX_GONE: u8 = 2;

/// Time from the first use of a circuit for which an end by a relay counts as a failure of the path.
const EARLY_USE: Duration = Duration::from_secs(10);

/// A circuit, from the start of its build to its end.
pub(in crate::client) struct PooledCircuit {
    /// The relays from guard to exit; never empty.
    path: Vec<RelayKeys>,
    /// The hops that are volunteers.
    volunteers: Vec<RelayId>,
    /// The delegated request for which the circuit was built. Such a circuit carries one request and no streams.
    delegation: Option<Delegation>,
    /// Whether the exit would otherwise be avoided, but there was no alternative. Such a circuit serves only the
    /// waiting request, or the streams of its isolation.
    uses_avoided_exit: bool,
    assignment: Assignment,
    began: Instant,
    /// The part of the maximum age at which the circuit is retired if it has carried no request. Circuits that were
    /// built together must not end together.
    age_fraction: f64,
    state: PooledCircuitState,
    /// The circuit's place in the queue of circuits to settle.
    pub(super) ready: Ticket,
}

/// The requests that a circuit accepts.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Assignment {
    /// Requests of any isolation: a spare circuit.
    Spare,
    /// Requests of one isolation.
    Isolation(Isolation),
    /// No further requests. The isolation is that of the circuit's requests so far.
    Retired(Option<Isolation>),
}

/// The state of a circuit.
enum PooledCircuitState {
    /// The channel to the guard is being opened.
    Connecting,
    /// The hops are being built.
    Building(BuildingCircuit),
    /// All hops are built.
    Open(OpenCircuit),
}

/// A circuit whose hops are being built.
struct BuildingCircuit {
    channel: ChannelId,
    origin: Box<Origin>,
    /// Time from the start of the build to the open channel.
    channel_time: Duration,
    hop_times: Vec<Duration>,
    /// The number of GONE messages during the build.
    gone: u8,
}

/// A circuit of which all hops are built.
struct OpenCircuit {
    channel: ChannelId,
    origin: Box<Origin>,
    hop_times: Vec<Duration>,
    /// The use, from the first request on.
    used: Option<CircuitUse>,
}

/// The use of a circuit that carries requests, or has carried some.
struct CircuitUse {
    /// The time of the first stream.
    since: Instant,
    /// The last time at which a stream ended; before that, the start of the build.
    idle_since: Instant,
}

/// A report that a hop of a circuit is gone.
pub(super) struct GoneReport {
    /// Whether the reported relay is a volunteer.
    pub(super) is_of_volunteer: bool,
    /// Whether the report is valid, so that another relay takes the position.
    pub(super) is_valid: bool,
    /// Whether that relay may be a volunteer.
    pub(super) allow_volunteer: bool,
}

impl PooledCircuit {
    /// A circuit over `path` whose channel isn't open yet. Without an isolation, the circuit is a spare one.
    pub(super) fn new(
        now: Instant,
        path: Path,
        delegation: Option<Delegation>,
        isolation: Option<Isolation>,
        uses_avoided_exit: bool,
        rng: &mut dyn CryptoRng,
    ) -> Self {
        let (path, volunteers) = path.into_keys();
        let assignment = isolation.map_or(Assignment::Spare, Assignment::Isolation);
        Self {
            path,
            volunteers,
            delegation,
            uses_avoided_exit,
            assignment,
            began: now,
            age_fraction: rng.random_range(0.5..=1.0),
            state: PooledCircuitState::Connecting,
            ready: Ticket::new(),
        }
    }

    /// The relays from guard to exit.
    pub(super) fn path(&self) -> &[RelayKeys] {
        &self.path
    }

    /// The identities of the relays from guard to exit.
    pub(in crate::client) fn relays(&self) -> Vec<RelayId> {
        self.path.iter().map(|relay| relay.identity).collect()
    }

    /// The first relay of the circuit.
    pub(in crate::client) fn guard(&self) -> Option<RelayId> {
        self.path.first().map(|relay| relay.identity)
    }

    /// The last relay of the circuit.
    pub(in crate::client) fn exit(&self) -> Option<RelayId> {
        self.path.last().map(|relay| relay.identity)
    }

    /// The guard and the relay behind it. No relay is given if a hop is a volunteer, because the end of a circuit over
    /// a volunteer isn't a failure.
    pub(super) fn guard_pair(&self) -> Option<GuardPair> {
        let next = self.path.get(1).map(|relay| relay.identity).filter(|_| self.volunteers.is_empty());
        Some(GuardPair { guard: self.guard()?, next })
    }

    /// Whether the channel to the guard is open.
    pub(super) fn has_channel(&self, channels: &Channels) -> bool {
        self.endpoint().is_some_and(|(channel, _)| channels.peer(channel) == self.guard())
    }

    /// Whether an end by a relay at `now` would count as a failure of the path: the circuit is open, and was first used
    /// less than [`EARLY_USE`] ago, or never.
    pub(super) fn is_in_early_use(&self, now: Instant) -> bool {
        match &self.state {
            PooledCircuitState::Connecting | PooledCircuitState::Building(_) => false,
            PooledCircuitState::Open(open) => open.used.as_ref().is_none_or(|used| now.since(used.since) < EARLY_USE),
        }
    }

    /// The delegated request for which the circuit was built; `None` for streams.
    pub(super) const fn delegation(&self) -> Option<&Delegation> {
        self.delegation.as_ref()
    }

    /// Whether the relay at `position` (from 0) is a volunteer.
    pub(super) fn is_volunteer(&self, position: usize) -> bool {
        self.path.get(position).is_some_and(|relay| self.volunteers.contains(&relay.identity))
    }

    /// The relay before the volunteer at `position` (from 0); `None` if that hop is the last one or not a volunteer.
    pub(super) fn gateway_of_middle(&self, position: usize) -> Option<RelayId> {
        let is_last = position.saturating_add(1) == self.path.len();
        let gateway = self.path.get(position.checked_sub(1)?)?;
        (self.is_volunteer(position) && !is_last).then_some(gateway.identity)
    }

    /// Whether the consensus lists all relays of the circuit except volunteers. The gateway of a volunteer ends the
    /// circuit when the volunteer disconnects.
    pub(super) fn is_listed(&self, consensus: &Consensus) -> bool {
        let listed = |relay: &RelayKeys| consensus.relay(&relay.identity).is_some();
        self.path.iter().all(|relay| self.volunteers.contains(&relay.identity) || listed(relay))
    }

    /// The start of the build.
    pub(super) const fn began(&self) -> Instant {
        self.began
    }

    const fn origin(&self) -> Option<&Origin> {
        match &self.state {
            PooledCircuitState::Connecting => None,
            PooledCircuitState::Building(BuildingCircuit { origin, .. })
            | PooledCircuitState::Open(OpenCircuit { origin, .. }) => Some(origin),
        }
    }

    /// The circuit's channel and its origin, once the channel is open.
    pub(super) const fn origin_mut(&mut self) -> Option<(ChannelId, &mut Origin)> {
        match &mut self.state {
            PooledCircuitState::Connecting => None,
            PooledCircuitState::Building(BuildingCircuit { channel, origin, .. })
            | PooledCircuitState::Open(OpenCircuit { channel, origin, .. }) => Some((*channel, &mut **origin)),
        }
    }

    /// The circuit's channel and its identifier there, once the channel is open.
    pub(in crate::client) fn endpoint(&self) -> Option<(ChannelId, CircuitId)> {
        match &self.state {
            PooledCircuitState::Connecting => None,
            PooledCircuitState::Building(BuildingCircuit { channel, origin, .. })
            | PooledCircuitState::Open(OpenCircuit { channel, origin, .. }) => Some((*channel, origin.circuit())),
        }
    }

    /// Whether the circuit waits for a channel to `relay`.
    pub(super) fn is_connecting_to(&self, relay: &RelayId) -> bool {
        matches!(self.state, PooledCircuitState::Connecting) && self.guard() == Some(*relay)
    }

    /// Whether the circuit is being built.
    pub(in crate::client) const fn is_building(&self) -> bool {
        match &self.state {
            PooledCircuitState::Connecting => true,
            PooledCircuitState::Building(building) => building.origin.building().is_some(),
            PooledCircuitState::Open(_) => false,
        }
    }

    /// Whether all hops are built and the circuit has not ended.
    pub(in crate::client) const fn is_open(&self) -> bool {
        matches!(&self.state, PooledCircuitState::Open(open) if open.origin.is_open())
    }

    /// Whether the circuit is open, or was open before it ended.
    pub(super) const fn was_open(&self) -> bool {
        matches!(self.state, PooledCircuitState::Open(_))
    }

    /// Whether the circuit is open and carries no stream.
    pub(in crate::client) fn is_idle(&self) -> bool {
        matches!(&self.state, PooledCircuitState::Open(open) if open.origin.is_open() && open.origin.open_streams() == 0)
    }

    /// Whether the circuit carries a request, or has carried one.
    pub(in crate::client) const fn is_used(&self) -> bool {
        matches!(&self.state, PooledCircuitState::Open(open) if open.used.is_some())
    }

    /// Whether the circuit carries streams, or has carried some.
    pub(in crate::client) const fn has_carried_streams(&self) -> bool {
        self.delegation.is_none() && self.is_used()
    }

    /// Whether the one delegated request of the circuit has ended.
    pub(super) fn is_done(&self) -> bool {
        self.delegation.is_some() && self.is_retired() && self.is_idle()
    }

    /// The isolation whose requests the circuit accepts; `None` for a spare or retired circuit.
    pub(in crate::client) const fn isolation(&self) -> Option<Isolation> {
        match self.assignment {
            Assignment::Isolation(isolation) => Some(isolation),
            Assignment::Spare | Assignment::Retired(_) => None,
        }
    }

    /// The isolation for which the circuit was built or used, also after the circuit was retired; `None` for a circuit
    /// that was a spare one throughout.
    pub(super) const fn owner(&self) -> Option<Isolation> {
        match self.assignment {
            Assignment::Isolation(isolation) => Some(isolation),
            Assignment::Retired(owner) => owner,
            Assignment::Spare => None,
        }
    }

    /// Whether the circuit accepts requests of any isolation.
    pub(super) fn is_spare(&self) -> bool {
        self.assignment == Assignment::Spare
    }

    /// Whether the circuit is a spare one for this kind of delegated request; for streams, if `delegation` is `None`.
    pub(super) fn is_spare_for(&self, delegation: Option<&Delegation>) -> bool {
        self.is_spare() && self.delegation.as_ref() == delegation
    }

    /// Whether the circuit may carry a request that it [fits](Self::fits) while builds avoid the exits in `avoided`.
    pub(super) fn is_permitted_by(&self, avoided: &[RelayId]) -> bool {
        self.uses_avoided_exit || self.exit().is_some_and(|exit| !avoided.contains(&exit))
    }

    /// Whether isolation, exit and purpose of the circuit fit the request.
    pub(super) fn fits(&self, demand: &Demand, relays: &Relays<'_>) -> bool {
        let Some(exit) = self.exit() else { return false };
        let assigned = match self.assignment {
            Assignment::Spare => true,
            Assignment::Isolation(isolation) => isolation == demand.isolation,
            Assignment::Retired(_) => false,
        };
        if !assigned || demand.refused_by.contains(&exit) {
            return false;
        }
        match (&demand.kind, &self.delegation) {
            (RequestKind::Stream(target), None) => {
                relays.consensus.relay(&exit).is_some_and(|exit| permits_target(exit, target))
            }
            (RequestKind::Resolve(_), None) => relays.consensus.relay(&exit).is_some(),
            (RequestKind::Delegated(delegation), Some(_)) => {
                relays.hop(&exit).is_some_and(|exit| delegation.is_offered(exit.offer()))
            }
            _ => false,
        }
    }

    /// Reserves the circuit for the requests of one isolation.
    pub(in crate::client) fn assign(&mut self, isolation: Isolation) {
        if !self.is_retired() {
            self.assignment = Assignment::Isolation(isolation);
        }
    }

    /// Accepts no further requests.
    pub(super) const fn retire(&mut self) {
        self.assignment = Assignment::Retired(self.owner());
    }

    /// Whether the circuit accepts no further requests.
    pub(super) const fn is_retired(&self) -> bool {
        matches!(self.assignment, Assignment::Retired(_))
    }

    /// Whether the circuit is too old for a further request. After its first request, the limit is `max_use` from that
    /// request. Without a request, it is a random part of `max_spare_age`, at least half, from the start of the build.
    pub(super) fn is_too_old(&self, now: Instant, max_use: Duration, max_spare_age: Duration) -> bool {
        match &self.state {
            PooledCircuitState::Open(OpenCircuit { used: Some(used), .. }) => now.since(used.since) >= max_use,
            _ => now.since(self.began) >= max_spare_age.mul_f64(self.age_fraction),
        }
    }

    /// The time from which on an idle circuit has carried no stream: the end of its last stream, or else the start of
    /// the build.
    pub(super) const fn idle_since(&self) -> Instant {
        match &self.state {
            PooledCircuitState::Open(OpenCircuit { used: Some(used), .. }) => used.idle_since,
            _ => self.began,
        }
    }

    /// Whether the circuit received a message of its last built hop after `time`.
    pub(super) fn has_received_since(&self, time: Instant) -> bool {
        self.origin().is_some_and(|origin| origin.last_message_at() > time)
    }

    /// The build time of each built hop, from the first cell to the answer.
    pub(in crate::client) fn hop_times(&self) -> &[Duration] {
        match &self.state {
            PooledCircuitState::Connecting => &[],
            PooledCircuitState::Building(BuildingCircuit { hop_times, .. })
            | PooledCircuitState::Open(OpenCircuit { hop_times, .. }) => hop_times,
        }
    }

    /// Starts the build of the first hop over an open channel.
    pub(super) fn start(&mut self, now: Instant, channel: ChannelId, origin: Origin) {
        let channel_time = now.since(self.began);
        let origin = Box::new(origin);
        self.state = PooledCircuitState::Building(BuildingCircuit {
            channel,
            origin,
            channel_time,
            hop_times: Vec::new(),
            gone: 0,
        });
    }

    /// A hop was built; returns the number of built hops.
    pub(super) fn handle_hop_built(&mut self, elapsed: Duration) -> usize {
        if let PooledCircuitState::Building(building) = &mut self.state {
            building.hop_times.push(elapsed);
        }
        self.hop_times().len()
    }

    /// All hops are built; returns the time from the start of the build to the open channel.
    pub(super) fn handle_built(&mut self) -> Duration {
        match core::mem::replace(&mut self.state, PooledCircuitState::Connecting) {
            PooledCircuitState::Building(BuildingCircuit { channel, origin, channel_time, hop_times, .. }) => {
                self.state = PooledCircuitState::Open(OpenCircuit { channel, origin, hop_times, used: None });
                channel_time
            }
            state => {
                self.state = state;
                Duration::ZERO
            }
        }
    }

    /// Counts a report that the relay at `position` (from 0) is gone; `None` unless the circuit is being built.
    pub(super) fn count_gone(&mut self, position: usize) -> Option<GoneReport> {
        let is_of_volunteer = self.is_volunteer(position);
        let PooledCircuitState::Building(building) = &mut self.state else { return None };
        building.gone.increment();
        let is_valid = is_of_volunteer && building.gone <= MAX_GONE;
        Some(GoneReport { is_of_volunteer, is_valid, allow_volunteer: building.gone < MAX_GONE })
    }

    /// Continues the build over `path`, which has another relay at `position`.
    pub(super) fn extend_over(&mut self, now: Instant, path: Path, position: usize, rng: &mut dyn CryptoRng) {
        let (keys, volunteers) = path.into_keys();
        if let (Some(relay), PooledCircuitState::Building(building)) = (keys.get(position), &mut self.state) {
            building.origin.extend_to(now, *relay, rng);
        }
        (self.path, self.volunteers) = (keys, volunteers);
    }

    /// Opens a stream for the request. A circuit for a delegated request accepts no further request.
    pub(super) fn open_stream(&mut self, now: Instant, demand: &Demand) -> Option<StreamId> {
        let PooledCircuitState::Open(open) = &mut self.state else { return None };
        let opened = match &demand.kind {
            RequestKind::Stream(target) => open.origin.open(now, target.clone()),
            RequestKind::Resolve(host) => open.origin.resolve(now, host.clone()),
            RequestKind::Delegated(delegation) => open.origin.request(now, delegation.service()),
        };
        let id = opened.ok()?;
        open.used.get_or_insert(CircuitUse { since: now, idle_since: self.began });
        self.assignment = match self.delegation {
            Some(_) => Assignment::Retired(Some(demand.isolation)),
            None => Assignment::Isolation(demand.isolation),
        };
        Some(id)
    }

    /// A stream of the circuit has ended.
    pub(super) const fn handle_stream_ended(&mut self, now: Instant) {
        if let PooledCircuitState::Open(OpenCircuit { used: Some(used), .. }) = &mut self.state {
            used.idle_since = now;
        }
    }

    /// The streams at the exit of an open circuit.
    pub(super) fn last_hop_streams(&mut self) -> Option<&mut Streams> {
        match &mut self.state {
            PooledCircuitState::Connecting | PooledCircuitState::Building(_) => None,
            PooledCircuitState::Open(open) => open.origin.last_hop_streams(),
        }
    }

    /// The next event of the origin.
    pub(super) fn poll_event(&mut self) -> Option<CircuitEvent> {
        self.origin_mut()?.1.poll_event()
    }

    /// Handles a cell from the circuit's channel.
    pub(super) fn handle_cell(&mut self, now: Instant, cell: Cell, rng: &mut dyn CryptoRng) {
        if let Some((_, origin)) = self.origin_mut() {
            origin.handle_cell(now, cell, rng);
        }
    }

    /// Ends the circuit, because its channel has closed.
    pub(super) fn handle_channel_closed(&mut self) {
        if let Some((_, origin)) = self.origin_mut() {
            origin.handle_channel_closed();
        }
    }

    /// Ends the circuit; a DESTROY is sent.
    pub(super) fn close(&mut self) {
        if let Some((_, origin)) = self.origin_mut() {
            origin.close();
        }
    }

    /// Sets the number of GONE messages so far, and whether the middle is a volunteer.
    #[cfg(test)]
    pub(in crate::client) fn set_gone(&mut self, gone: u8, is_volunteer: bool) {
        let middle = self.path.get(1).map(|relay| relay.identity);
        self.volunteers = middle.filter(|_| is_volunteer).into_iter().collect();
        if let PooledCircuitState::Building(building) = &mut self.state {
            building.gone = gone;
        }
    }
}
