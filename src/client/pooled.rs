//! One circuit of the pool.

use core::time::Duration;
use std::collections::BTreeMap;

use rand::CryptoRng;

use super::{
    ClientStream, Isolation,
    requests::{Request, Wanted},
};
use crate::{
    base::{Instant, RelayId, StreamId, Ticket},
    channel::ChannelId,
    circuit::Origin,
    delegated::Delegation,
    handshake::RelayKeys,
    path::{Relays, suits},
    stream::Streams,
    wire::Cell,
};

pub(super) enum PooledStage {
    /// The channel to the guard is being opened.
    Connecting,
    /// The circuit is being built, open, or closed and about to be removed.
    Circuit { channel: ChannelId, origin: Box<Origin> },
}

pub(super) struct Pooled {
    pub(super) stage: PooledStage,
    /// The relays from guard to exit; never empty.
    pub(super) path: Vec<RelayKeys>,
    /// The hops that are volunteers.
    pub(super) volunteers: Vec<RelayId>,
    /// Number of its hops that were reported as gone.
    pub(super) gone: u8,
    pub(super) began: Instant,
    /// Time from the start of the build to the open channel.
    pub(super) channel_time: Duration,
    pub(super) hop_times: Vec<Duration>,
    /// The delegated request that it was built for. Such a circuit carries one request and no streams.
    pub(super) delegation: Option<Delegation>,
    /// The isolation of its streams; `None` for a spare circuit.
    pub(super) isolation: Option<Isolation>,
    /// Uses an otherwise avoided exit because there was no alternative; serves only its original request.
    pub(super) uses_avoided_exit: bool,
    pub(super) first_used: Option<Instant>,
    /// Time since which it carries no stream.
    pub(super) idle_since: Instant,
    /// Takes no new streams.
    pub(super) retired: bool,
    pub(super) streams: BTreeMap<StreamId, ClientStream>,
    /// Its place in the queue of circuits to settle.
    pub(super) ready: Ticket,
}

impl Pooled {
    /// A circuit whose channel isn't open yet.
    pub(super) const fn new(
        now: Instant,
        path: Vec<RelayKeys>,
        volunteers: Vec<RelayId>,
        delegation: Option<Delegation>,
        isolation: Option<Isolation>,
    ) -> Self {
        Self {
            delegation,
            stage: PooledStage::Connecting,
            path,
            volunteers,
            gone: 0,
            began: now,
            channel_time: Duration::ZERO,
            hop_times: Vec::new(),
            isolation,
            uses_avoided_exit: false,
            first_used: None,
            idle_since: now,
            retired: false,
            streams: BTreeMap::new(),
            ready: Ticket::new(),
        }
    }

    pub(super) fn guard(&self) -> Option<RelayId> {
        self.path.first().map(|relay| relay.identity)
    }

    pub(super) fn exit(&self) -> Option<RelayId> {
        self.path.last().map(|relay| relay.identity)
    }

    /// Whether it is open.
    pub(super) const fn is_open(&self) -> bool {
        match &self.stage {
            PooledStage::Connecting => false,
            PooledStage::Circuit { origin, .. } => origin.is_open(),
        }
    }

    /// Whether it is being built.
    pub(super) const fn is_building(&self) -> bool {
        match &self.stage {
            PooledStage::Connecting => true,
            PooledStage::Circuit { origin, .. } => origin.building().is_some(),
        }
    }

    /// Whether it carries no open streams.
    pub(super) fn is_idle(&self) -> bool {
        match &self.stage {
            PooledStage::Connecting => false,
            PooledStage::Circuit { origin, .. } => origin.open_streams() == 0,
        }
    }

    /// The time of the last received cell.
    pub(super) const fn heard_at(&self) -> Option<Instant> {
        match &self.stage {
            PooledStage::Connecting => None,
            PooledStage::Circuit { origin, .. } => Some(origin.last_message_at()),
        }
    }

    /// Whether it is a spare for streams, or for this kind of delegated request.
    pub(super) fn is_spare(&self, delegation: Option<&Delegation>) -> bool {
        self.isolation.is_none() && !self.retired && self.delegation.as_ref() == delegation
    }

    /// Whether it carries streams, or has carried some.
    pub(super) const fn has_carried_streams(&self) -> bool {
        self.delegation.is_none() && self.first_used.is_some()
    }

    /// Whether its one delegated request is done.
    pub(super) fn is_spent(&self) -> bool {
        self.delegation.is_some() && self.retired && self.is_open() && self.is_idle()
    }

    /// Whether it may carry the request, once it is open.
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
            (Wanted::Resolve(_), None) => relays.consensus.relay(&exit).is_some(),
            (Wanted::Delegated(delegation), Some(_)) => {
                relays.hop(&exit).is_some_and(|exit| delegation.is_offered(exit.offer()))
            }
            _ => false,
        }
    }

    pub(super) fn exit_streams(&mut self) -> Option<&mut Streams> {
        match &mut self.stage {
            PooledStage::Connecting => None,
            PooledStage::Circuit { origin, .. } => origin.exit_streams(),
        }
    }

    pub(super) fn handle_cell(&mut self, now: Instant, cell: Cell, rng: &mut dyn CryptoRng) {
        if let PooledStage::Circuit { origin, .. } = &mut self.stage {
            origin.handle_cell(now, cell, rng);
        }
    }

    pub(super) fn handle_channel_closed(&mut self) {
        if let PooledStage::Circuit { origin, .. } = &mut self.stage {
            origin.handle_channel_closed();
        }
    }

    pub(super) fn close(&mut self) {
        if let PooledStage::Circuit { origin, .. } = &mut self.stage {
            origin.close();
        }
    }

    /// Checks whether it still works.
    pub(super) fn ask(&mut self, now: Instant) {
        if let PooledStage::Circuit { origin, .. } = &mut self.stage {
            origin.request_echo(now);
        }
    }
}
