//! Requests of applications: streams, RESOLVEs and delegated requests, waiting for a circuit or placed on one.

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

/// The kind of a request, with its target.
#[derive(Clone)]
pub(super) enum RequestKind {
    /// A stream to the target.
    Stream(Target),
    /// A RESOLVE of the host.
    Resolve(Host),
    /// A delegated request.
    Delegated(Delegation),
}

impl RequestKind {
    /// The kind of the request's host; `None` for a public one.
    fn special_host(&self) -> Option<SpecialHost> {
        match self {
            Self::Stream(Target { host, .. }) | Self::Resolve(host) => SpecialHost::of(host),
            Self::Delegated(Delegation::Http { host }) => SpecialHost::of(&Host::parse(host).ok()?),
            Self::Delegated(Delegation::Search(_)) => None,
        }
    }
}

/// The properties of a request that determine its circuit.
pub(super) struct Demand {
    pub(super) kind: RequestKind,
    pub(super) isolation: Isolation,
    /// Exits that refused the request by policy, or that the application excludes.
    pub(super) refused_by: Vec<RelayId>,
    /// Circuits that refused the request for a limit; at most the number of tries.
    pub(super) refused_on: Vec<PooledCircuitKey>,
    /// The kind of the request's host; `None` for a public one.
    pub(super) special_host: Option<SpecialHost>,
}

impl Demand {
    pub(super) fn new(kind: RequestKind, isolation: Isolation, refused_by: Vec<RelayId>) -> Self {
        let special_host = kind.special_host();
        Self { kind, isolation, refused_by, refused_on: Vec::new(), special_host }
    }

    /// The purpose of the exit.
    pub(super) fn purpose(&self) -> Purpose {
        match &self.kind {
            RequestKind::Stream(target) => Purpose::Target(target.clone()),
            RequestKind::Resolve(_) => Purpose::Streams,
            RequestKind::Delegated(delegation) => Purpose::Delegated(delegation.clone()),
        }
    }

    /// Whether the stream or RESOLVE sends a name to the exit.
    pub(super) const fn has_name(&self) -> bool {
        matches!(
            &self.kind,
            RequestKind::Stream(Target { host: Host::Name(_), .. }) | RequestKind::Resolve(Host::Name(_))
        )
    }
}

/// A stream's circuit, and the stream's identifier on it.
#[derive(Clone, Copy)]
pub(super) struct StreamPosition {
    pub(super) circuit: PooledCircuitKey,
    pub(super) stream: StreamId,
}

/// The state of one request.
struct Request {
    demand: Demand,
    /// The number of circuits on which the request was placed.
    tries: u8,
    state: RequestState,
}

enum RequestState {
    /// The request waits for a circuit, until its deadline.
    Waiting,
    /// The request is placed on a circuit, and the exit has not answered yet.
    Opening(StreamPosition),
    /// The stream is connected.
    Connected {
        position: StreamPosition,
        /// The client has finished its direction, or will after the pending data.
        finished: bool,
        /// The peer has finished its direction.
        peer_finished: bool,
    },
}

impl RequestState {
    const fn position(&self) -> Option<StreamPosition> {
        match self {
            Self::Waiting => None,
            Self::Opening(position) | Self::Connected { position, .. } => Some(*position),
        }
    }
}

/// All requests, and the deadlines of the waiting ones.
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
    pub(super) fn insert(&mut self, stream: ClientStream, demand: Demand, deadline: Instant) {
        self.waiting.set(stream, deadline);
        self.requests.insert(stream, Request { demand, tries: 0, state: RequestState::Waiting });
    }

    /// The demand of a request.
    pub(super) fn demand(&self, stream: ClientStream) -> Option<&Demand> {
        self.requests.get(&stream).map(|request| &request.demand)
    }

    /// The demand of a request that is placed but not connected.
    pub(super) fn opening(&mut self, stream: ClientStream) -> Option<&mut Demand> {
        let request = self.requests.get_mut(&stream)?;
        matches!(request.state, RequestState::Opening(_)).then_some(&mut request.demand)
    }

    /// The stream of a connected request.
    pub(super) fn connected(&self, stream: ClientStream) -> Option<StreamPosition> {
        match self.requests.get(&stream)?.state {
            RequestState::Connected { position, .. } => Some(position),
            RequestState::Waiting | RequestState::Opening(_) => None,
        }
    }

    /// Removes a request; returns its stream, if it is placed.
    pub(super) fn remove(&mut self, stream: ClientStream) -> Option<StreamPosition> {
        self.waiting.remove(stream);
        self.requests.remove(&stream)?.state.position()
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Waiting requests, the earliest deadline first.
    pub(super) fn waiting(&self) -> Vec<ClientStream> {
        self.waiting.keys().collect()
    }

    /// Records the stream of a waiting request.
    pub(super) fn place(&mut self, stream: ClientStream, position: StreamPosition) {
        if let Some(request) = self.requests.get_mut(&stream) {
            request.state = RequestState::Opening(position);
            request.tries.increment();
            self.waiting.remove(stream);
        }
    }

    /// The stream of a placed request is connected.
    pub(super) fn handle_connected(&mut self, stream: ClientStream) {
        if let Some(request) = self.requests.get_mut(&stream)
            && let RequestState::Opening(position) = request.state
        {
            request.state = RequestState::Connected { position, finished: false, peer_finished: false };
        }
    }

    /// The client finishes its direction of a connected stream. Returns whether both directions have now ended.
    pub(super) fn handle_finish(&mut self, stream: ClientStream) -> bool {
        match self.requests.get_mut(&stream).map(|request| &mut request.state) {
            Some(RequestState::Connected { finished, peer_finished, .. }) => {
                *finished = true;
                *peer_finished
            }
            _ => false,
        }
    }

    /// The peer has finished its direction of a connected stream. Returns whether both directions have now ended.
    pub(super) fn handle_peer_finished(&mut self, stream: ClientStream) -> bool {
        match self.requests.get_mut(&stream).map(|request| &mut request.state) {
            Some(RequestState::Connected { finished, peer_finished, .. }) => {
                *peer_finished = true;
                *finished
            }
            _ => false,
        }
    }

    /// Makes a placed request wait for another circuit. Returns false if the tries of the request are used up.
    pub(super) fn retry(&mut self, stream: ClientStream, deadline: Instant) -> bool {
        let Some(request) = self.requests.get_mut(&stream).filter(|request| request.tries < MAX_TRIES) else {
            return false;
        };
        request.state = RequestState::Waiting;
        self.waiting.set(stream, deadline);
        true
    }

    /// Removes and returns the waiting requests of `isolation`, or all waiting requests if it is `None`.
    pub(super) fn remove_waiting(&mut self, isolation: Option<Isolation>) -> Vec<ClientStream> {
        let mut waiting = self.waiting();
        waiting.retain(|stream| {
            isolation.is_none_or(|isolation| self.demand(*stream).is_some_and(|demand| demand.isolation == isolation))
        });
        for stream in &waiting {
            self.remove(*stream);
        }
        waiting
    }

    /// Removes and returns the waiting requests beyond their deadlines.
    pub(super) fn remove_overdue(&mut self, now: Instant) -> Vec<ClientStream> {
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

    /// The stream of a placed request.
    #[cfg(test)]
    pub(super) fn position(&self, stream: ClientStream) -> Option<StreamPosition> {
        self.requests.get(&stream)?.state.position()
    }
}
