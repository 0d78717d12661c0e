//! One circuit of the pool.

use core::time::Duration;

use rand::CryptoRng;

use super::GuardPair;
use crate::{
    base::{CircuitId, Counter as _, Instant, RelayId, StreamId, Ticket},
    channel::{ChannelId, Channels},
    circuit::{CircuitEvent, Origin},
    client::{
        Isolation,
        requests::{Demand, Wanted},
    },
    delegated::Delegation,
    directory::Consensus,
    handshake::RelayKeys,
    path::{Path, Relays, permits_target},
    stream::Streams,
    wire::Cell,
};

/// Cap on credible reports of a relay as gone during one build. The first allows another volunteer as the substitute,
/// the second only a relay of the consensus.
const MAX_GONE: u8 = 2;

/// Time after its first use in which the end of a circuit counts as a failure of its path.
const EARLY_USE: Duration = Duration::from_secs(10);

/// A circuit, from the start of its build to its end.
pub(in crate::client) struct Pooled {
    /// The relays from guard to exit; never empty.
    path: Vec<RelayKeys>,
    /// The hops that are volunteers.
    volunteers: Vec<RelayId>,
    /// The delegated request that it was built for. Such a circuit carries one request and no streams.
    delegation: Option<Delegation>,
    /// Uses an otherwise avoided exit because there was no alternative; serves only its original request.
    uses_avoided_exit: bool,
    assignment: Assignment,
    began: Instant,
    state: PooledState,
    /// Its place in the queue of circuits to settle.
    pub(super) ready: Ticket,
}

/// The requests that a circuit takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Assignment {
    /// Those of any isolation: a spare circuit.
    Spare,
    /// Those of one isolation.
    Isolation(Isolation),
    /// No further ones.
    Retired,
}

enum PooledState {
    /// The channel to the guard is being opened.
    Connecting,
    /// The hops are being built.
    Building(BuildingCircuit),
    /// All hops are built.
    Open(OpenCircuit),
}

struct BuildingCircuit {
    channel: ChannelId,
    origin: Box<Origin>,
    /// Time from the start of the build to the open channel.
    channel_time: Duration,
    hop_times: Vec<Duration>,
    /// Number of its hops that were reported as gone.
    gone: u8,
}

struct OpenCircuit {
    channel: ChannelId,
    origin: Box<Origin>,
    hop_times: Vec<Duration>,
    used: Option<PooledUse>,
}

/// The use of a circuit that carries streams, or has carried some.
struct PooledUse {
    /// The time of its first stream.
    since: Instant,
    /// The last time at which a stream ended; before that, the start of the build.
    idle_since: Instant,
}

/// A report that a hop of a circuit is gone.
pub(super) struct GoneReport {
    /// The reported relay is a volunteer.
    pub(super) of_volunteer: bool,
    /// The report is legal, so another relay takes the position.
    pub(super) credible: bool,
    /// That relay may be a volunteer.
    pub(super) volunteer_follows: bool,
}

impl Pooled {
    /// A circuit over `path` whose channel isn't open yet. Without an isolation it is a spare circuit.
    pub(super) fn new(
        now: Instant,
        path: Path,
        delegation: Option<Delegation>,
        isolation: Option<Isolation>,
        uses_avoided_exit: bool,
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
            state: PooledState::Connecting,
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

    pub(in crate::client) fn guard(&self) -> Option<RelayId> {
        self.path.first().map(|relay| relay.identity)
    }

    pub(in crate::client) fn exit(&self) -> Option<RelayId> {
        self.path.last().map(|relay| relay.identity)
    }

    /// Its guard and the relay behind it; no relay if a hop is a volunteer, because volunteers come and go.
    pub(super) fn guard_pair(&self) -> Option<GuardPair> {
        let next = self.path.get(1).map(|relay| relay.identity).filter(|_| self.volunteers.is_empty());
        Some(GuardPair { guard: self.guard()?, next })
    }

    /// Whether the channel to its guard is open.
    pub(super) fn has_channel(&self, channels: &Channels) -> bool {
        self.endpoint().is_some_and(|(channel, _)| channels.peer(channel) == self.guard())
    }

    /// Whether it is open and was first used at most [`EARLY_USE`] ago, or never.
    pub(super) fn is_unproved(&self, now: Instant) -> bool {
        match &self.state {
            PooledState::Connecting | PooledState::Building(_) => false,
            PooledState::Open(open) => open.used.as_ref().is_none_or(|used| now.since(used.since) < EARLY_USE),
        }
    }

    /// The delegated request that it was built for; `None` for streams.
    pub(super) const fn delegation(&self) -> Option<&Delegation> {
        self.delegation.as_ref()
    }

    /// Whether the relay at `position` (from 0) is a volunteer.
    pub(super) fn is_volunteer(&self, position: usize) -> bool {
        self.path.get(position).is_some_and(|relay| self.volunteers.contains(&relay.identity))
    }

    /// Whether the consensus lists all its relays, volunteers apart. The gateway of a volunteer ends the circuit when
    /// the volunteer disconnects.
    pub(super) fn is_listed(&self, consensus: &Consensus) -> bool {
        let listed = |relay: &RelayKeys| consensus.relay(&relay.identity).is_some();
        self.path.iter().all(|relay| self.volunteers.contains(&relay.identity) || listed(relay))
    }

    /// The start of its build.
    pub(super) const fn began(&self) -> Instant {
        self.began
    }

    const fn origin(&self) -> Option<&Origin> {
        match &self.state {
            PooledState::Connecting => None,
            PooledState::Building(BuildingCircuit { origin, .. }) | PooledState::Open(OpenCircuit { origin, .. }) => {
                Some(origin)
            }
        }
    }

    /// Its channel and its origin's end, once the channel is open.
    pub(super) const fn origin_mut(&mut self) -> Option<(ChannelId, &mut Origin)> {
        match &mut self.state {
            PooledState::Connecting => None,
            PooledState::Building(BuildingCircuit { channel, origin, .. })
            | PooledState::Open(OpenCircuit { channel, origin, .. }) => Some((*channel, &mut **origin)),
        }
    }

    /// Its channel and its identifier there, once the channel is open.
    pub(in crate::client) fn endpoint(&self) -> Option<(ChannelId, CircuitId)> {
        match &self.state {
            PooledState::Connecting => None,
            PooledState::Building(BuildingCircuit { channel, origin, .. })
            | PooledState::Open(OpenCircuit { channel, origin, .. }) => Some((*channel, origin.circuit())),
        }
    }

    /// Whether it waits for a channel to `relay`.
    pub(super) fn is_connecting_to(&self, relay: &RelayId) -> bool {
        matches!(self.state, PooledState::Connecting) && self.guard() == Some(*relay)
    }

    /// Whether it is being built.
    pub(in crate::client) const fn is_building(&self) -> bool {
        match &self.state {
            PooledState::Connecting => true,
            PooledState::Building(building) => building.origin.building().is_some(),
            PooledState::Open(_) => false,
        }
    }

    /// Whether all its hops are built and it has not ended.
    pub(in crate::client) const fn is_open(&self) -> bool {
        matches!(&self.state, PooledState::Open(open) if open.origin.is_open())
    }

    /// Whether it was open, if it has ended.
    pub(super) const fn was_open(&self) -> bool {
        matches!(self.state, PooledState::Open(_))
    }

    /// Whether it is open and carries no stream.
    pub(in crate::client) fn is_idle(&self) -> bool {
        matches!(&self.state, PooledState::Open(open) if open.origin.is_open() && open.origin.open_streams() == 0)
    }

    /// Whether it carries a request, or has carried one.
    pub(in crate::client) const fn is_used(&self) -> bool {
        matches!(&self.state, PooledState::Open(open) if open.used.is_some())
    }

    /// Whether it carries streams, or has carried some.
    pub(in crate::client) const fn has_carried_streams(&self) -> bool {
        self.delegation.is_none() && self.is_used()
    }

    /// Whether its one delegated request is done.
    pub(super) fn is_spent(&self) -> bool {
        self.delegation.is_some() && self.assignment == Assignment::Retired && self.is_idle()
    }

    /// The isolation whose requests it takes; `None` for a spare or retired circuit.
    pub(in crate::client) const fn isolation(&self) -> Option<Isolation> {
        match self.assignment {
            Assignment::Isolation(isolation) => Some(isolation),
            Assignment::Spare | Assignment::Retired => None,
        }
    }

    /// Whether it takes requests of any isolation.
    pub(super) fn is_spare(&self) -> bool {
        self.assignment == Assignment::Spare
    }

    /// Whether it is a spare for streams, or for this kind of delegated request.
    pub(super) fn is_spare_for(&self, delegation: Option<&Delegation>) -> bool {
        self.is_spare() && self.delegation.as_ref() == delegation
    }

    /// Whether the exits in `avoided` permit it for a request that it [takes](Self::takes).
    pub(super) fn is_permitted_by(&self, avoided: &[RelayId]) -> bool {
        self.uses_avoided_exit || self.exit().is_some_and(|exit| !avoided.contains(&exit))
    }

    /// Whether it may carry the request, once it is open.
    pub(super) fn takes(&self, demand: &Demand, relays: &Relays<'_>) -> bool {
        let Some(exit) = self.exit() else { return false };
        let assigned = match self.assignment {
            Assignment::Spare => true,
            Assignment::Isolation(isolation) => isolation == demand.isolation,
            Assignment::Retired => false,
        };
        if !assigned || demand.refused_by.contains(&exit) {
            return false;
        }
        match (&demand.wanted, &self.delegation) {
            (Wanted::Stream(target), None) => {
                relays.consensus.relay(&exit).is_some_and(|exit| permits_target(exit, target))
            }
            (Wanted::Resolve(_), None) => relays.consensus.relay(&exit).is_some(),
            (Wanted::Delegated(delegation), Some(_)) => {
                relays.hop(&exit).is_some_and(|exit| delegation.is_offered(exit.offer()))
            }
            _ => false,
        }
    }

    /// Reserves it for the requests of one isolation.
    pub(in crate::client) fn assign(&mut self, isolation: Isolation) {
        if self.assignment != Assignment::Retired {
            self.assignment = Assignment::Isolation(isolation);
        }
    }

    /// From now on it takes no requests.
    pub(super) const fn retire(&mut self) {
        self.assignment = Assignment::Retired;
    }

    pub(super) fn is_retired(&self) -> bool {
        self.assignment == Assignment::Retired
    }

    /// Whether it is too old for a further request: `used_limit` after its first one, or, without one, `unused_limit`
    /// after the start of its build.
    pub(super) fn is_too_old(&self, now: Instant, used_limit: Duration, unused_limit: Duration) -> bool {
        match &self.state {
            PooledState::Open(OpenCircuit { used: Some(used), .. }) => now.since(used.since) >= used_limit,
            _ => now.since(self.began) >= unused_limit,
        }
    }

    /// The time since which it has been idle.
    pub(super) const fn idle_since(&self) -> Instant {
        match &self.state {
            PooledState::Open(OpenCircuit { used: Some(used), .. }) => used.idle_since,
            _ => self.began,
        }
    }

    /// Whether it received a message of its last built hop after `time`.
    pub(super) fn has_received_since(&self, time: Instant) -> bool {
        self.origin().is_some_and(|origin| origin.last_message_at() > time)
    }

    /// Times of the hops built, from the first cell of each to its answer.
    pub(in crate::client) fn hop_times(&self) -> &[Duration] {
        match &self.state {
            PooledState::Connecting => &[],
            PooledState::Building(BuildingCircuit { hop_times, .. })
            | PooledState::Open(OpenCircuit { hop_times, .. }) => hop_times,
        }
    }

    /// The channel is open: the first hop is being built.
    pub(super) fn start(&mut self, now: Instant, channel: ChannelId, origin: Origin) {
        let channel_time = now.since(self.began);
        let origin = Box::new(origin);
        self.state =
            PooledState::Building(BuildingCircuit { channel, origin, channel_time, hop_times: Vec::new(), gone: 0 });
    }

    /// A hop was built; returns the number of built hops.
    pub(super) fn handle_hop_built(&mut self, elapsed: Duration) -> usize {
        if let PooledState::Building(building) = &mut self.state {
            building.hop_times.push(elapsed);
        }
        self.hop_times().len()
    }

    /// All hops are built; returns the time from the start of the build to the open channel.
    pub(super) fn handle_built(&mut self) -> Duration {
        match core::mem::replace(&mut self.state, PooledState::Connecting) {
            PooledState::Building(BuildingCircuit { channel, origin, channel_time, hop_times, .. }) => {
                self.state = PooledState::Open(OpenCircuit { channel, origin, hop_times, used: None });
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
        let of_volunteer = self.is_volunteer(position);
        let PooledState::Building(building) = &mut self.state else { return None };
        building.gone.increment();
        let credible = of_volunteer && building.gone <= MAX_GONE;
        Some(GoneReport { of_volunteer, credible, volunteer_follows: building.gone < MAX_GONE })
    }

    /// Continues the build over `path`, which has another relay at `position`.
    pub(super) fn extend_over(&mut self, now: Instant, path: Path, position: usize, rng: &mut dyn CryptoRng) {
        let (keys, volunteers) = path.into_keys();
        if let (Some(relay), PooledState::Building(building)) = (keys.get(position), &mut self.state) {
            building.origin.extend_to(now, *relay, rng);
        }
        (self.path, self.volunteers) = (keys, volunteers);
    }

    /// Opens a stream for the request. A circuit for a delegated request takes no further one.
    pub(super) fn open_stream(&mut self, now: Instant, demand: &Demand) -> Option<StreamId> {
        let PooledState::Open(open) = &mut self.state else { return None };
        let opened = match &demand.wanted {
            Wanted::Stream(target) => open.origin.open(now, target.clone()),
            Wanted::Resolve(host) => open.origin.resolve(now, host.clone()),
            Wanted::Delegated(delegation) => open.origin.request(now, delegation.service()),
        };
        let id = opened.ok()?;
        open.used.get_or_insert(PooledUse { since: now, idle_since: self.began });
        self.assignment = match self.delegation {
            Some(_) => Assignment::Retired,
            None => Assignment::Isolation(demand.isolation),
        };
        Some(id)
    }

    /// One of its streams has ended.
    pub(super) const fn handle_stream_ended(&mut self, now: Instant) {
        if let PooledState::Open(OpenCircuit { used: Some(used), .. }) = &mut self.state {
            used.idle_since = now;
        }
    }

    /// The streams at its exit, if it is open.
    pub(super) fn exit_streams(&mut self) -> Option<&mut Streams> {
        match &mut self.state {
            PooledState::Connecting | PooledState::Building(_) => None,
            PooledState::Open(open) => open.origin.exit_streams(),
        }
    }

    /// The next event of its origin's end.
    pub(super) fn poll_event(&mut self) -> Option<CircuitEvent> {
        self.origin_mut()?.1.poll_event()
    }

    pub(super) fn handle_cell(&mut self, now: Instant, cell: Cell, rng: &mut dyn CryptoRng) {
        if let Some((_, origin)) = self.origin_mut() {
            origin.handle_cell(now, cell, rng);
        }
    }

    pub(super) fn handle_channel_closed(&mut self) {
        if let Some((_, origin)) = self.origin_mut() {
            origin.handle_channel_closed();
        }
    }

    /// Ends it; a DESTROY is sent.
    pub(super) fn close(&mut self) {
        if let Some((_, origin)) = self.origin_mut() {
            origin.close();
        }
    }

    /// Sets the number of hops that were reported as gone, and whether the middle is a volunteer.
    #[cfg(test)]
    pub(in crate::client) fn set_gone(&mut self, gone: u8, volunteer: bool) {
        let middle = self.path.get(1).map(|relay| relay.identity);
        self.volunteers = middle.filter(|_| volunteer).into_iter().collect();
        if let PooledState::Building(building) = &mut self.state {
            building.gone = gone;
        }
    }
}
