//! The collection of all channels of a node.

mod admission;
#[cfg(any(test, fuzzing))]
mod check;
mod selection;

use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rand::CryptoRng;

use crate::{
    base::{
        CircuitId, Counter as _, DialError, DialTarget, Instant, LinkEvent, LinkId, LinkOpened, Owned, Owner,
        ReadyQueue, RelayId, Transmit,
    },
    wire::{Cell, Command},
};

use super::{
    CellOwner, ChannelError, ChannelEvent, ChannelId, ChannelOpenError, ChannelParameters, Eviction, LocalRole,
    QueueFull,
    eviction::Candidates,
    state::{Channel, TimeoutAction},
};

/// Interval between checks for timeouts. Timeouts last many seconds, and a check iterates over all channels.
const SWEEP_INTERVAL: Duration = Duration::from_secs(1);
/// Evictions continue until this fraction of the cap on queued cells is free: the cap divided by this number.
const FREED_DIVISOR: usize = 16;

/// All channels of a node, by link and, for channels to relays, also by identity.
///
/// The owner calls [`poll_event`](Self::poll_event) until it returns `None`: after each `handle_…`, and after each
/// [`poll_transmit`](Self::poll_transmit), which may emit [`ChannelEvent::QueueLow`].
pub struct Channels {
    role: LocalRole,
    parameters: ChannelParameters,
    channels: BTreeMap<ChannelId, Channel>,
    /// The channel for new circuits to each relay.
    by_relay: BTreeMap<RelayId, ChannelId>,
    /// The number of retiring channels to each relay that has any.
    retiring: BTreeMap<RelayId, usize>,
    /// Dials in flight, with their deadlines.
    dials: BTreeMap<RelayId, Instant>,
    /// The gateways of this volunteer: new channels that it dials to them have REACH.
    gateways: BTreeSet<RelayId>,
    /// The relays to which a dialled channel is half-open.
    opening: BTreeSet<RelayId>,
    /// The number of half-open channels, dialled or accepted.
    half_open: usize,
    /// The channels that other nodes dialled, by owner.
    accepted: Owned<(), ChannelId>,
    /// The accepted channels that are half-open.
    handshakes: Owned<(), ChannelId>,
    /// The channels over which this node reaches volunteers, or will reach them after a valid PROOF.
    volunteers: Owned<(), ChannelId>,
    /// Channels that may have a message to send, in round-robin order.
    ready: ReadyQueue<ChannelId>,
    outbox: VecDeque<Transmit>,
    events: VecDeque<ChannelEvent>,
    /// Queued cells of all channels.
    queued: usize,
    /// The serial number of the next queued cell.
    next_serial: u64,
    /// The time of the next check for timeouts; `None` without a channel or dial.
    next_sweep: Option<Instant>,
}

impl Channels {
    /// A collection without a channel.
    #[must_use]
    pub fn new(role: LocalRole, parameters: ChannelParameters) -> Self {
        Self {
            accepted: Owned::new(parameters.channels),
            handshakes: Owned::new(parameters.handshakes),
            volunteers: Owned::new(parameters.volunteers),
            role,
            parameters,
            channels: BTreeMap::new(),
            by_relay: BTreeMap::new(),
            retiring: BTreeMap::new(),
            dials: BTreeMap::new(),
            gateways: BTreeSet::new(),
            opening: BTreeSet::new(),
            half_open: 0,
            ready: ReadyQueue::new(),
            outbox: VecDeque::new(),
            events: VecDeque::new(),
            queued: 0,
            next_serial: 0,
            next_sweep: None,
        }
    }

    /// Takes an event of a link or a dial.
    pub fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng) {
        match event {
            LinkEvent::Opened { link, opened } => self.link_opened(now, link, opened, rng),
            LinkEvent::DialFailed { relay, error } => self.dial_failed(relay, error.into()),
            LinkEvent::Message { link, lane, message } => {
                let id = ChannelId(link);
                let Some(channel) = self.channels.get_mut(&id) else { return };
                let (was_open, queued_before) = (channel.is_open(), channel.queue().len());
                // Only HELLO can set REACH.
                let may_be_gateway = channel.awaits_hello() && self.volunteers.to_lose(&channel.owner()).is_ok();
                let result = channel.handle_message(now, lane, message, may_be_gateway, &mut self.events);
                channel.make_ready(&mut self.ready);
                let freed = queued_before.saturating_sub(channel.queue().len());
                self.queued = self.queued.saturating_sub(freed);
                let changes_volunteer = channel.has_volunteer_place != channel.reaches();
                if !was_open && channel.is_open() {
                    self.channel_opened(id);
                }
                if changes_volunteer {
                    self.update_volunteer(id);
                }
                if let Err(error) = result {
                    self.close_with_error(id, error);
                }
            }
            LinkEvent::Room { link, bytes } => {
                if let Some(channel) = self.channels.get_mut(&ChannelId(link)) {
                    channel.set_room(now, bytes);
                    channel.make_ready(&mut self.ready);
                }
            }
            LinkEvent::Retire { link } => self.retire(ChannelId(link)),
            LinkEvent::Closed { link, .. } => self.remove(ChannelId(link), ChannelOpenError::Closed),
        }
    }

    /// Ends channels and dials that have reached their timeout, and queues keep-alives.
    pub fn handle_timeout(&mut self, now: Instant) {
        if self.next_sweep.is_none_or(|due| now < due) {
            return;
        }
        let expired: Vec<_> =
            self.dials.iter().filter(|(_, deadline)| now >= **deadline).map(|(relay, _)| *relay).collect();
        for relay in expired {
            self.dial_failed(relay, DialError::TimedOut.into());
        }
        let ids: Vec<_> = self.channels.keys().copied().collect();
        for id in ids {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            match channel.handle_timeout(now, &self.parameters) {
                Ok(TimeoutAction::Nothing) => channel.make_ready(&mut self.ready),
                Ok(TimeoutAction::CloseIdle) => self.close(id),
                Err(error) => self.close_with_error(id, error),
            }
        }
        let idle = self.channels.is_empty() && self.dials.is_empty();
        self.next_sweep = (!idle).then(|| now.after(SWEEP_INTERVAL));
    }

    /// The deadline for [`handle_timeout`](Self::handle_timeout).
    #[must_use]
    pub const fn poll_timeout(&self) -> Option<Instant> {
        self.next_sweep
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<ChannelEvent> {
        self.events.pop_front()
    }

    /// The next output for the transport.
    pub fn poll_transmit(&mut self, now: Instant) -> Option<Transmit> {
        if let Some(transmit) = self.outbox.pop_front() {
            return Some(transmit);
        }
        while let Some(id) = self.ready.pop() {
            let Some(channel) = self.channels.get_mut(&id) else { continue };
            let queued_before = channel.queue().len();
            let message = channel.poll_message(now, &mut self.events);
            let freed = queued_before.saturating_sub(channel.queue().len());
            self.queued = self.queued.saturating_sub(freed);
            channel.make_ready(&mut self.ready);
            if let Some((lane, message)) = message {
                return Some(Transmit::Message { link: id.0, lane, message });
            }
        }
        None
    }

    /// The open channel for new circuits to `target`'s relay. Without such a channel, dials the relay unless a dial or
    /// handshake is in flight, and returns `None`; [`ChannelEvent::Open`] or [`ChannelEvent::DialFailed`] follows.
    pub fn connect(&mut self, now: Instant, target: &DialTarget) -> Option<ChannelId> {
        let relay = target.relay;
        if let Some(channel) = self.lookup(&relay) {
            return Some(channel);
        }
        if self.dials.contains_key(&relay) || self.opening.contains(&relay) {
            return None;
        }
        if self.dials.len() >= self.parameters.dials || self.role.identity() == Some(relay) {
            let error = DialError::Unable.into();
            self.events.push_back(ChannelEvent::DialFailed { relay, error });
            return None;
        }
        self.dials.insert(relay, now.after(self.parameters.dial_timeout));
        self.outbox.push_back(Transmit::Dial(target.clone()));
        self.schedule_sweep(now);
        None
    }

    /// The number of further dials that the cap admits.
    #[must_use]
    pub fn free_dials(&self) -> usize {
        self.parameters.dials.saturating_sub(self.dials.len())
    }

    /// The open channel over which this node, as a gateway, reaches a volunteer.
    #[must_use]
    pub fn channel_to_volunteer(&self, volunteer: &RelayId) -> Option<ChannelId> {
        self.lookup(volunteer).filter(|channel| self.reaches(*channel))
    }

    /// Whether `channel` is open and this node, as a gateway, reaches a volunteer over it.
    #[must_use]
    pub fn reaches(&self, channel: ChannelId) -> bool {
        self.channels.get(&channel).is_some_and(|channel| channel.is_open() && channel.reaches())
    }

    /// The volunteers that this node reaches, in ascending order.
    #[must_use]
    pub fn volunteers(&self) -> Vec<RelayId> {
        self.by_relay.iter().filter(|(_, channel)| self.reaches(**channel)).map(|(volunteer, _)| *volunteer).collect()
    }

    /// Sets the gateways of this volunteer: channels that it dials to them from now on have REACH.
    pub fn set_gateways(&mut self, gateways: BTreeSet<RelayId>) {
        self.gateways = gateways;
    }

    /// Whether `channel` is open and this end set REACH on it.
    #[must_use]
    pub fn has_requested_reach(&self, channel: ChannelId) -> bool {
        let outcome = self.channels.get(&channel).and_then(Channel::outcome);
        outcome.is_some_and(|outcome| outcome.requested_reach)
    }

    /// Sets whether the channel stays open while it carries no circuit.
    pub fn keep(&mut self, channel: ChannelId, kept: bool) {
        if let Some(channel) = self.channels.get_mut(&channel) {
            channel.kept = kept;
        }
    }

    /// Ends this node's role as a gateway over `channel`. The volunteer at the other end counts as an ordinary relay
    /// from now on.
    pub fn stop_reaching(&mut self, channel: ChannelId) {
        if let Some(state) = self.channels.get_mut(&channel) {
            state.stop_reaching();
            self.update_volunteer(channel);
        }
    }

    /// Sets whether the directory counts the volunteer at the other end.
    pub fn set_counted(&mut self, channel: ChannelId, counted: bool) {
        if let Some(channel) = self.channels.get_mut(&channel) {
            channel.counted = counted;
        }
    }

    /// The relay at the other end of a channel; `None` for a client or a closed channel.
    #[must_use]
    pub fn peer(&self, channel: ChannelId) -> Option<RelayId> {
        self.channels.get(&channel)?.peer()
    }

    /// The owner, by address, to whose caps and rates the other end of a channel counts. `None` for a closed channel.
    #[must_use]
    pub fn owner(&self, channel: ChannelId) -> Option<Owner> {
        self.channels.get(&channel).map(Channel::owner)
    }

    /// The open channels whose other end is a relay.
    #[must_use]
    pub fn relay_channels(&self) -> Vec<ChannelId> {
        let relay_channels = self.channels.iter().filter(|(_, channel)| channel.peer().is_some());
        relay_channels.map(|(id, _)| *id).collect()
    }

    /// Sets whether the relay at the other end of a channel is listed. An unlisted relay has the limits of a client,
    /// unless this end reaches it as a volunteer. Before the first call, a relay has the limits of a listed relay.
    pub fn set_listed(&mut self, channel: ChannelId, listed: bool) {
        if self.channels.get_mut(&channel).is_some_and(|channel| channel.set_listed(listed)) {
            self.outbox.push_back(Transmit::PeerListed(channel.0));
        }
    }

    /// The number of open channels.
    #[must_use]
    pub fn len(&self) -> usize {
        self.channels.len().saturating_sub(self.half_open)
    }

    /// Whether no channel is open.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An unused identifier for a circuit that this end opens on `channel`. `None` if the channel is not open or has
    /// the maximum number of circuits, or if no unused identifier was found. The circuit is live until
    /// [`Self::end_circuit`] or a DESTROY from the other end.
    pub fn allocate_circuit(&mut self, channel: ChannelId, rng: &mut dyn CryptoRng) -> Option<CircuitId> {
        self.channels.get_mut(&channel)?.allocate(&self.parameters, rng)
    }

    /// Whether `channel` is open and has the maximum number of live circuits.
    #[must_use]
    pub fn is_full(&self, channel: ChannelId) -> bool {
        let channel = self.channels.get(&channel).filter(|channel| channel.is_open());
        channel.is_some_and(|channel| channel.queue().circuits() >= channel.max_circuits(&self.parameters))
    }

    /// Whether the other end of `channel` may open one more circuit now, within the limits on number and rate. Each
    /// call below the limit on number counts towards the rate.
    pub fn may_create(&mut self, now: Instant, channel: ChannelId) -> bool {
        self.channels.get_mut(&channel).is_some_and(|channel| channel.may_create(now, &self.parameters))
    }

    /// Admits a circuit that the other end opens on `channel`; the circuit is then live. `false` if the circuit is live
    /// already or the channel has the maximum number of circuits. The circuit is live until [`Self::end_circuit`] or a
    /// DESTROY from the other end.
    pub fn admit_circuit(&mut self, channel: ChannelId, circuit: CircuitId) -> bool {
        self.channels.get_mut(&channel).is_some_and(|channel| channel.admit(&self.parameters, circuit))
    }

    /// Queues a cell. A DESTROY replaces all queued cells of its circuit. A cell for a closed channel is dropped, since
    /// [`ChannelEvent::Closed`] has ended its circuit.
    ///
    /// # Errors
    /// When the circuit's queue is at its cap: the caller ends the circuit.
    pub fn send(&mut self, channel: ChannelId, cell: Cell) -> Result<(), QueueFull> {
        let id = channel;
        let Some(channel) = self.channels.get_mut(&id).filter(|channel| channel.is_open()) else {
            return Ok(());
        };
        let queued_before = channel.queue().len();
        let is_destroy = cell.command() == Command::Destroy;
        let result = channel.send(&self.parameters, self.next_serial, cell);
        self.next_serial = self.next_serial.wrapping_add(1);
        self.queued = self.queued.saturating_sub(queued_before).saturating_add(channel.queue().len());
        match result {
            Ok(()) => channel.make_ready(&mut self.ready),
            // The other end opens circuits without reading the refusals.
            Err(QueueFull) if is_destroy => self.close(id),
            Err(QueueFull) => return Err(QueueFull),
        }
        Ok(())
    }

    /// Queued cells of a circuit on a channel.
    #[must_use]
    pub fn queued_of(&self, channel: ChannelId, circuit: CircuitId) -> usize {
        self.channels.get(&channel).map_or(0, |channel| channel.queue().queued_of(circuit))
    }

    /// Whether an expired CREATE of a channel may be refused now: fewer refusals are queued than half of the channel's
    /// cap on refusals. The other half is reserved for the immediate refusals of other CREATEs.
    #[must_use]
    pub fn has_room_for_refusal(&self, channel: ChannelId) -> bool {
        let channel = self.channels.get(&channel);
        channel.is_none_or(|channel| channel.queue().refusals() < self.parameters.refusals.div_ceil(2))
    }

    /// Ends a live circuit. Its queued cells are still sent; until then, its identifier is not allocated again.
    pub fn end_circuit(&mut self, now: Instant, channel: ChannelId, circuit: CircuitId) {
        if let Some(channel) = self.channels.get_mut(&channel) {
            channel.end(now, circuit);
        }
    }

    /// The circuits and channels that the relay must end, if more cells are queued than this node may hold; otherwise
    /// none.
    ///
    /// `owner(channel, Some(circuit))` returns the owner of a circuit's cells. `owner(channel, None)` returns the owner
    /// of the channel's cells that belong to no live circuit (refusals). If `owner` returns `None`, the cells count for
    /// the address of the channel's other end. `added` returns the number of cells that the end of a circuit on a
    /// channel adds to other channels.
    ///
    /// Each step evicts from the owner that is closest to its share:
    /// - the circuit whose first cell has waited longest; or
    /// - the channel whose close frees the most cells, if most of the owner's cells belong to no live circuit, or if
    ///   the end of no circuit of the owner frees cells.
    ///
    /// An owner without either is skipped. The steps end once a sixteenth of the cap is free. That number of new cells
    /// must be queued before the next call iterates over the circuits again.
    #[must_use]
    pub fn evictions(
        &self,
        owner: impl Fn(ChannelId, Option<CircuitId>) -> Option<CellOwner>,
        added: impl Fn(ChannelId, CircuitId) -> usize,
    ) -> Vec<Eviction> {
        let cap = self.parameters.queued;
        if self.queued <= cap {
            return Vec::new();
        }
        let mut candidates = Candidates::default();
        for (id, channel) in &self.channels {
            let neighbour = CellOwner { owner: channel.owner(), channel: *id };
            let owner_of = |circuit| owner(*id, circuit).unwrap_or(neighbour);
            let mut ended = 0_usize;
            for queued in channel.queue().queued_cells() {
                if queued.live {
                    let added = added(*id, queued.circuit);
                    candidates.add_circuit(owner_of(Some(queued.circuit)), *id, &queued, added);
                } else {
                    ended = ended.saturating_add(queued.cells);
                }
            }
            if ended > 0 {
                candidates.add_ended(owner_of(None), ended);
            }
        }
        let mut evictions = candidates.select(self.queued.saturating_sub(cap.saturating_sub(cap / FREED_DIVISOR)));
        if evictions.is_empty() {
            // Neither an end of a circuit nor a close of an owner's channel frees cells.
            let most = self.channels.iter().map(|(id, channel)| (channel.queue().len(), *id)).max();
            evictions.extend(most.map(|(_, id)| Eviction::Channel(id)));
        }
        evictions
    }

    /// Closes a channel; [`ChannelEvent::Closed`] follows if it was open.
    pub fn close(&mut self, channel: ChannelId) {
        if self.channels.contains_key(&channel) {
            self.outbox.push_back(Transmit::Close(channel.0));
            self.remove(channel, ChannelOpenError::Closed);
        }
    }

    /// Closes all channels. From now on, this node neither dials nor accepts links; dials in flight can still open
    /// channels.
    pub fn shut_down(&mut self) {
        self.close_except(|_| false);
    }

    /// Closes the channels for which `kept` is false. From now on, this node neither dials nor accepts links; dials in
    /// flight can still open channels.
    pub fn close_except(&mut self, kept: impl Fn(ChannelId) -> bool) {
        self.parameters.dials = 0;
        self.accepted.close();
        let ids: Vec<_> = self.channels.keys().copied().filter(|id| !kept(*id)).collect();
        for id in ids {
            self.close(id);
        }
    }

    fn link_opened(&mut self, now: Instant, link: LinkId, opened: LinkOpened, rng: &mut dyn CryptoRng) {
        if let Some(relay) = opened.dialled {
            self.dials.remove(&relay);
            self.opening.insert(relay);
        }
        let refused = match &self.role {
            LocalRole::Client | LocalRole::Volunteer(_) => opened.dialled.is_none(),
            LocalRole::Relay(_) => false,
        };
        // A refused link evicts no channel.
        if refused || !self.admit_link(now, &opened) {
            self.outbox.push_back(Transmit::Close(link));
            return;
        }
        let volunteer = matches!(self.role, LocalRole::Volunteer(_));
        let reach = volunteer && opened.dialled.is_some_and(|relay| self.gateways.contains(&relay));
        let channel = Channel::new(now, link, opened, self.role.clone(), reach, rng);
        if channel.dialled().is_none() {
            self.accepted.add(channel.owner(), (), ChannelId(link));
            self.handshakes.add(channel.owner(), (), ChannelId(link));
        }
        self.channels.insert(ChannelId(link), channel);
        self.half_open.increment();
        self.schedule_sweep(now);
    }

    /// Closes a channel after a breach or a timeout.
    fn close_with_error(&mut self, id: ChannelId, error: ChannelError) {
        tracing::debug!(%error, class = %error.class(), "closing a channel");
        self.outbox.push_back(Transmit::Close(id.0));
        self.remove(id, error.into());
    }

    fn remove(&mut self, id: ChannelId, error: ChannelOpenError) {
        let Some(channel) = self.channels.remove(&id) else { return };
        self.queued = self.queued.saturating_sub(channel.queue().len());
        if channel.dialled().is_none() {
            self.accepted.remove(&channel.owner(), (), id);
        }
        if channel.has_volunteer_place {
            self.volunteers.remove(&channel.owner(), (), id);
        }
        let Some(outcome) = channel.outcome() else {
            self.half_open.decrement();
            match channel.dialled() {
                Some(relay) => {
                    self.opening.remove(&relay);
                    self.dial_failed(relay, error);
                }
                None => self.handshakes.remove(&channel.owner(), (), id),
            }
            return;
        };
        if let Some(peer) = outcome.peer.filter(|_| channel.is_retiring()) {
            self.count_retired(&peer);
        }
        if let Some(peer) = outcome.peer.filter(|peer| self.by_relay.get(peer) == Some(&id)) {
            self.by_relay.remove(&peer);
            self.select_channel(peer);
        }
        self.events.push_back(ChannelEvent::Closed { channel: id });
    }

    fn dial_failed(&mut self, relay: RelayId, error: ChannelOpenError) {
        self.dials.remove(&relay);
        if self.lookup(&relay).is_none() {
            self.events.push_back(ChannelEvent::DialFailed { relay, error });
        }
    }

    fn schedule_sweep(&mut self, now: Instant) {
        if self.next_sweep.is_none() {
            self.next_sweep = Some(now.after(SWEEP_INTERVAL));
        }
    }
}
