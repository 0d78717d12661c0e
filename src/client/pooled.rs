//! One circuit of the pool.

use core::time::Duration;
use std::collections::BTreeMap;

use rand::CryptoRng;

use super::{ClientStream, IsolationKey, requests::Request};
use crate::{
    base::{Instant, RelayId, StreamId},
    channel::ChannelId,
    circuit::Origin,
    directory::Consensus,
    handshake::RelayKeys,
    path::suits,
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
    pub(super) began: Instant,
    /// How long the channel took.
    pub(super) channel_time: Duration,
    pub(super) hop_times: Vec<Duration>,
    /// Whose streams it carries; `None` for a spare circuit.
    pub(super) isolation: Option<IsolationKey>,
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
    pub(super) const fn new(now: Instant, path: Vec<RelayKeys>, isolation: Option<IsolationKey>, due: Instant) -> Self {
        Self {
            stage: Stage::Connecting,
            path,
            began: now,
            channel_time: Duration::ZERO,
            hop_times: Vec::new(),
            isolation,
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

    pub(super) const fn is_spare(&self) -> bool {
        self.isolation.is_none() && !self.retired
    }

    /// Whether the request may go over it, once it stands.
    pub(super) fn suits(&self, request: &Request, consensus: &Consensus) -> bool {
        let Some(exit) = self.exit() else { return false };
        if self.retired || self.isolation.is_some_and(|isolation| isolation != request.isolation) {
            return false;
        }
        if request.refused_by.contains(&exit) {
            return false;
        }
        match (consensus.relay(&exit), request.wanted.target()) {
            (Some(relay), Some(target)) => suits(relay, target),
            (Some(_), None) => true,
            (None, _) => false,
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
