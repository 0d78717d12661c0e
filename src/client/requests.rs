//! What applications asked for: streams and answers, waiting or placed on a circuit.

use std::collections::{BTreeMap, BTreeSet};

use super::{ClientStream, IsolationKey, PooledId};
use crate::{
    base::{Instant, RelayId, StreamId},
    delegated::Delegation,
    path::Purpose,
    wire::{Host, Target},
};

/// Circuits on which a request is tried at the most.
pub(super) const MAX_TRIES: u8 = 4;

#[derive(Clone)]
pub(super) enum Wanted {
    Stream(Target),
    Answer(Host),
    Delegated(Delegation),
}

impl Wanted {
    /// What the exit must do.
    pub(super) fn purpose(&self) -> Purpose {
        match self {
            Self::Stream(target) => Purpose::Target(target.clone()),
            Self::Answer(_) => Purpose::Streams,
            Self::Delegated(delegation) => Purpose::Delegated(delegation.clone()),
        }
    }
}

pub(super) struct Request {
    pub(super) wanted: Wanted,
    pub(super) isolation: IsolationKey,
    pub(super) tries: u8,
    /// Exits that refused it by policy, or that it is not to go to.
    pub(super) refused_by: Vec<RelayId>,
    /// Circuits that had no room for it; at most as many as it was tried on.
    pub(super) refused_on: Vec<PooledId>,
    /// The circuit and stream that carry it.
    pub(super) placed: Option<(PooledId, StreamId)>,
    pub(super) connected: bool,
    /// This end has sent all it had, or will.
    pub(super) finished: bool,
    /// The peer has.
    pub(super) peer_finished: bool,
    /// When it fails unless it is placed by then.
    deadline: Instant,
}

impl Request {
    pub(super) const fn new(
        wanted: Wanted,
        isolation: IsolationKey,
        refused_by: Vec<RelayId>,
        deadline: Instant,
    ) -> Self {
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
            deadline,
        }
    }

    /// Whether both directions have ended.
    pub(super) const fn over(&self) -> bool {
        self.finished && self.peer_finished
    }
}

/// All requests; those that wait for a circuit in order of their deadlines.
#[derive(Default)]
pub(super) struct Requests {
    requests: BTreeMap<ClientStream, Request>,
    waiting: BTreeSet<(Instant, ClientStream)>,
    last: u64,
}

impl Requests {
    /// A name for the next request.
    pub(super) const fn next(&mut self) -> ClientStream {
        self.last = self.last.saturating_add(1);
        ClientStream(self.last)
    }

    pub(super) fn insert(&mut self, stream: ClientStream, request: Request) {
        self.waiting.insert((request.deadline, stream));
        self.requests.insert(stream, request);
    }

    pub(super) fn get(&self, stream: ClientStream) -> Option<&Request> {
        self.requests.get(&stream)
    }

    pub(super) fn get_mut(&mut self, stream: ClientStream) -> Option<&mut Request> {
        self.requests.get_mut(&stream)
    }

    pub(super) fn remove(&mut self, stream: ClientStream) -> Option<Request> {
        let request = self.requests.remove(&stream)?;
        self.waiting.remove(&(request.deadline, stream));
        Some(request)
    }

    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// Those that wait for a circuit, the most pressing first.
    pub(super) fn waiting(&self) -> Vec<ClientStream> {
        self.waiting.iter().map(|(_, stream)| *stream).collect()
    }

    /// The request is on a circuit.
    pub(super) fn place(&mut self, stream: ClientStream, circuit: PooledId, id: StreamId) {
        if let Some(request) = self.requests.get_mut(&stream) {
            request.placed = Some((circuit, id));
            request.tries = request.tries.saturating_add(1);
            self.waiting.remove(&(request.deadline, stream));
        }
    }

    /// The request must be tried on another circuit; false if it has been tried often enough.
    pub(super) fn put_back(&mut self, stream: ClientStream, deadline: Instant) -> bool {
        let Some(request) = self.requests.get_mut(&stream).filter(|request| request.tries < MAX_TRIES) else {
            return false;
        };
        request.placed = None;
        request.deadline = deadline;
        self.waiting.insert((deadline, stream));
        true
    }

    /// Takes out those that have waited too long.
    pub(super) fn overdue(&mut self, now: Instant) -> Vec<ClientStream> {
        let mut overdue = Vec::new();
        while let Some((deadline, stream)) = self.waiting.first().copied() {
            if deadline > now {
                break;
            }
            self.remove(stream);
            overdue.push(stream);
        }
        overdue
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.waiting.first().map(|(deadline, _)| *deadline)
    }
}
