//! Requests of applications: streams and RESOLVEs, waiting or placed on a circuit.

use std::collections::BTreeMap;

use super::{ClientStream, Isolation, PooledCircuitKey};
use crate::{
    base::{Counter as _, Deadlines, Instant, RelayId, StreamId},
    delegated::Delegation,
    path::{Purpose, SpecialHost},
    wire::{Host, Target},
};

/// Cap on circuits on which a request is tried.
pub(super) const MAX_TRIES: u8 = 4;

#[derive(Clone)]
pub(super) enum Wanted {
    Stream(Target),
    Resolve(Host),
    Delegated(Delegation),
}

impl Wanted {
    /// The purpose of the exit.
    pub(super) fn purpose(&self) -> Purpose {
        match self {
            Self::Stream(target) => Purpose::Target(target.clone()),
            Self::Resolve(_) => Purpose::Streams,
            Self::Delegated(delegation) => Purpose::Delegated(delegation.clone()),
        }
    }

    /// The kind of a host that is not public.
    pub(super) fn special_host(&self) -> Option<SpecialHost> {
        match self {
            Self::Stream(target) => SpecialHost::of(&target.host),
            Self::Resolve(host) => SpecialHost::of(host),
            Self::Delegated(Delegation::Http { host }) => {
                Host::parse(host).ok().and_then(|host| SpecialHost::of(&host))
            }
            Self::Delegated(Delegation::Search(_)) => None,
        }
    }
}

pub(super) struct Request {
    pub(super) wanted: Wanted,
    pub(super) isolation: Isolation,
    pub(super) tries: u8,
    /// Exits that refused it by policy, or that the application excludes.
    pub(super) refused_by: Vec<RelayId>,
    /// Circuits without room for it; at most the number of tries.
    pub(super) refused_on: Vec<PooledCircuitKey>,
    /// The circuit and stream that carry it.
    pub(super) placed: Option<(PooledCircuitKey, StreamId)>,
    pub(super) connected: bool,
    /// This end has finished its direction, or will.
    pub(super) finished: bool,
    /// The peer has finished its direction.
    pub(super) peer_finished: bool,
}

impl Request {
    pub(super) const fn new(wanted: Wanted, isolation: Isolation, refused_by: Vec<RelayId>) -> Self {
        Self {
            wanted,
            isolation,
            tries: 0,
            refused_by,
            refused_on: Vec::new(),
            placed: None,
            connected: false,
            finished: false,
            peer_finished: false,
        }
    }

    /// Whether both directions have ended.
    pub(super) const fn over(&self) -> bool {
        self.finished && self.peer_finished
    }
}

/// All requests, and the order of the waiting ones by deadline.
#[derive(Default)]
pub(super) struct Requests {
    requests: BTreeMap<ClientStream, Request>,
    waiting: Deadlines<ClientStream>,
    last: u64,
}

impl Requests {
    /// The identifier of the next request.
    pub(super) const fn next(&mut self) -> ClientStream {
        self.last = self.last.saturating_add(1);
        ClientStream(self.last)
    }

    /// Adds a request that must be placed by `deadline`.
    pub(super) fn insert(&mut self, stream: ClientStream, request: Request, deadline: Instant) {
        self.waiting.set(stream, deadline);
        self.requests.insert(stream, request);
    }

    pub(super) fn get(&self, stream: ClientStream) -> Option<&Request> {
        self.requests.get(&stream)
    }

    pub(super) fn get_mut(&mut self, stream: ClientStream) -> Option<&mut Request> {
        self.requests.get_mut(&stream)
    }

    pub(super) fn remove(&mut self, stream: ClientStream) -> Option<Request> {
        self.waiting.remove(stream);
        self.requests.remove(&stream)
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Waiting requests, the earliest deadline first.
    pub(super) fn waiting(&self) -> Vec<ClientStream> {
        self.waiting.keys().collect()
    }

    /// Records the circuit and stream of a request.
    pub(super) fn place(&mut self, stream: ClientStream, key: PooledCircuitKey, id: StreamId) {
        if let Some(request) = self.requests.get_mut(&stream) {
            request.placed = Some((key, id));
            request.tries.increment();
            self.waiting.remove(stream);
        }
    }

    /// Returns a request to the waiting ones, for another circuit; false if its tries are used up.
    pub(super) fn put_back(&mut self, stream: ClientStream, deadline: Instant) -> bool {
        let Some(request) = self.requests.get_mut(&stream).filter(|request| request.tries < MAX_TRIES) else {
            return false;
        };
        request.placed = None;
        self.waiting.set(stream, deadline);
        true
    }

    /// Removes requests beyond their deadlines.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<ClientStream> {
        let mut overdue = Vec::new();
        while let Some(stream) = self.waiting.pop_due(now) {
            self.requests.remove(&stream);
            overdue.push(stream);
        }
        overdue
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.earliest()
    }
}
