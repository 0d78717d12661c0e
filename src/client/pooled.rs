//! One circuit of the pool.

use core::time::Duration;
use std::collections::BTreeMap;

use rand::CryptoRng;

use super::{
    ClientStream, IsolationKey,
    requests::{Request, Wanted},
};
use crate::{
    base::{Instant, RelayId, StreamId},
    channel::ChannelId,
    circuit::Origin,
    delegated::Delegation,
    handshake::RelayKeys,
    path::{Relays, suits},
    stream::Streams,
    wire::Cell,
};

/// One circuit of the pool, from the wish for it to its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PooledId(pub(super) u64);

pub(super) enum Stage {
    /// The channel to the guard is on its way.
    Connecting,
    /// The circuit is under construction, open, or closed and about to be taken out.
    Circuit { channel: ChannelId, origin: Box<Origin> },
}

pub(super) struct Pooled {
    pub(super) stage: Stage,
    /// The guard first; never empty.
    pub(super) path: Vec<RelayKeys>,
    /// Those of them that are volunteers.
    pub(super) volunteers: Vec<RelayId>,
    /// How many of those it was to go over were gone.
    pub(super) gone: u8,
    pub(super) began: Instant,
    /// How long the channel took.
    pub(super) channel_time: Duration,
    pub(super) hop_times: Vec<Duration>,
    /// What it was built for, if that is to perform requests: it carries one, and no streams.
    pub(super) delegation: Option<Delegation>,
    /// Whose streams it carries; `None` for a spare circuit.
    pub(super) isolation: Option<IsolationKey>,
    /// Its exit is one that its purpose shuns, for no other could be had when it was built. It is for what it was built for alone.
    pub(super) is_compelled: bool,
    pub(super) first_used: Option<Instant>,
    /// Since when it carries no stream.
    pub(super) idle_since: Instant,
    /// It takes no new streams.
    pub(super) retired: bool,
    pub(super) streams: BTreeMap<StreamId, ClientStream>,
    /// It stands in the queue of those to be settled.
    pub(super) touched: bool,
    /// Its entry among the time-outs.
    pub(super) timeout: Option<Instant>,
}

impl Pooled {
    /// A circuit whose channel is to be there by `due`.
    pub(super) const fn new(
        now: Instant,
        path: Vec<RelayKeys>,
        volunteers: Vec<RelayId>,
        delegation: Option<Delegation>,
        isolation: Option<IsolationKey>,
        due: Instant,
    ) -> Self {
        Self {
            delegation,
            stage: Stage::Connecting,
            path,
            volunteers,
            gone: 0,
            began: now,
            channel_time: Duration::ZERO,
            hop_times: Vec::new(),
            isolation,
            is_compelled: false,
            first_used: None,
            idle_since: now,
            retired: false,
            streams: BTreeMap::new(),
            touched: false,
            timeout: Some(due),
        }
    }

    pub(super) fn guard(&self) -> Option<RelayId> {
        self.path.first().map(|relay| relay.identity)
    }

    pub(super) fn exit(&self) -> Option<RelayId> {
        self.path.last().map(|relay| relay.identity)
    }

    /// Whether it stands.
    pub(super) const fn is_open(&self) -> bool {
        match &self.stage {
            Stage::Connecting => false,
            Stage::Circuit { origin, .. } => origin.is_open(),
        }
    }

    /// Whether it is on its way.
    pub(super) const fn is_building(&self) -> bool {
        match &self.stage {
            Stage::Connecting => true,
            Stage::Circuit { origin, .. } => origin.building().is_some(),
        }
    }

    /// Whether nothing goes over it any more.
    pub(super) fn is_idle(&self) -> bool {
        match &self.stage {
            Stage::Connecting => false,
            Stage::Circuit { origin, .. } => origin.open_streams() == 0,
        }
    }

    /// When a cell last came over it.
    pub(super) const fn heard_at(&self) -> Option<Instant> {
        match &self.stage {
            Stage::Connecting => None,
            Stage::Circuit { origin, .. } => Some(origin.heard_at()),
        }
    }

    /// Whether it is kept for whatever comes of this kind: streams, or such requests.
    pub(super) fn is_spare(&self, delegation: Option<&Delegation>) -> bool {
        self.isolation.is_none() && !self.retired && self.delegation.as_ref() == delegation
    }

    /// Whether streams go over it, or have.
    pub(super) const fn has_carried_streams(&self) -> bool {
        self.delegation.is_none() && self.first_used.is_some()
    }

    /// Whether it has performed the one request it was for.
    pub(super) fn is_spent(&self) -> bool {
        self.delegation.is_some() && self.retired && self.is_open() && self.is_idle()
    }

    /// Whether the request may go over it, once it stands.
    pub(super) fn suits(&self, request: &Request, relays: &Relays<'_>) -> bool {
        let Some(exit) = self.exit() else { return false };
        if self.retired || self.isolation.is_some_and(|isolation| isolation != request.isolation) {
            return false;
        }
        if request.refused_by.contains(&exit) {
            return false;
        }
        match (&request.wanted, &self.delegation) {
            (Wanted::Stream(target), None) => relays.consensus.relay(&exit).is_some_and(|exit| suits(exit, target)),
            (Wanted::Answer(_), None) => relays.consensus.relay(&exit).is_some(),
            (Wanted::Delegated(delegation), Some(_)) => {
                relays.hop(&exit).is_some_and(|exit| delegation.is_offered(exit.offer()))
            }
            _ => false,
        }
    }

    pub(super) fn exit_streams(&mut self) -> Option<&mut Streams> {
        match &mut self.stage {
            Stage::Connecting => None,
            Stage::Circuit { origin, .. } => origin.exit_streams(),
        }
    }

    pub(super) fn handle_cell(&mut self, now: Instant, cell: Cell, rng: &mut dyn CryptoRng) {
        if let Stage::Circuit { origin, .. } = &mut self.stage {
            origin.handle_cell(now, cell, rng);
        }
    }

    pub(super) fn handle_channel_closed(&mut self) {
        if let Stage::Circuit { origin, .. } = &mut self.stage {
            origin.handle_channel_closed();
        }
    }

    pub(super) fn close(&mut self) {
        if let Stage::Circuit { origin, .. } = &mut self.stage {
            origin.close();
        }
    }

    /// Asks whether it still stands.
    pub(super) fn ask(&mut self, now: Instant) {
        if let Stage::Circuit { origin, .. } = &mut self.stage {
            origin.ask(now);
        }
    }
}
