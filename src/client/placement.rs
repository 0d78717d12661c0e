//! The placement of requests on circuits: the circuit and stream of each request, and retries at another exit.
//!
//! [`Placement`] owns the requests. [`ClientMachine`](super::ClientMachine) drives it: it places waiting requests at
//! the end of a batch of inputs, and passes the events of streams.

use std::collections::BTreeMap;

use rand::CryptoRng;

use super::{
    ClientStream, Isolation, PooledCircuitKey, StreamFailure,
    pool::{DelegatedCircuit, Pool, PoolInputs},
    requests::{Demand, Requests, StreamPosition},
};
use crate::{
    base::{Instant, StreamId},
    stream::StreamEvent,
    wire::EndReason,
};

/// The effect of a stream's event.
pub(super) enum StreamOutcome {
    /// The event is for the application, as an event of this request.
    Report(ClientStream),
    /// The request waits for another circuit.
    Retry,
    /// The event concerns no request.
    Ignore,
}

/// All requests, and the streams of each circuit with the requests that they carry.
#[derive(Default)]
pub(super) struct Placement {
    requests: Requests,
    streams: BTreeMap<PooledCircuitKey, BTreeMap<StreamId, ClientStream>>,
    /// The number of calls of [`Self::place`].
    #[cfg(test)]
    pub(super) tries: usize,
}

impl Placement {
    /// The identifier of the next request.
    pub(super) const fn next(&mut self) -> ClientStream {
        self.requests.next()
    }

    /// Adds a request that must be placed by `deadline`.
    pub(super) fn insert(&mut self, stream: ClientStream, demand: Demand, deadline: Instant) {
        self.requests.insert(stream, demand, deadline);
    }

    /// The number of requests.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// The demand of a request.
    pub(super) fn demand(&self, stream: ClientStream) -> Option<&Demand> {
        self.requests.demand(stream)
    }

    /// Waiting requests, the earliest deadline first.
    pub(super) fn waiting(&self) -> Vec<ClientStream> {
        self.requests.waiting()
    }

    /// Removes and returns the waiting requests of `isolation`, or all waiting requests if it is `None`.
    pub(super) fn remove_waiting(&mut self, isolation: Option<Isolation>) -> Vec<ClientStream> {
        self.requests.remove_waiting(isolation)
    }

    /// Removes and returns the waiting requests beyond their deadlines.
    pub(super) fn remove_overdue(&mut self, now: Instant) -> Vec<ClientStream> {
        self.requests.remove_overdue(now)
    }

    /// The earliest deadline of a waiting request.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.requests.poll_timeout()
    }

    /// The stream of a connected request.
    pub(super) fn connected(&self, stream: ClientStream) -> Option<StreamPosition> {
        self.requests.connected(stream)
    }

    /// Places a waiting request on an open circuit. If there is none, ensures that a circuit for the request is being
    /// built. For a placed delegated request, returns the circuit: unlike a stream to a target, its stream is open
    /// immediately.
    ///
    /// # Errors
    /// When there is no path, or when the cap on circuits is reached. The request is then removed.
    pub(super) fn place(
        &mut self,
        now: Instant,
        stream: ClientStream,
        pool: &mut Pool,
        inputs: &mut PoolInputs<'_>,
        rng: &mut dyn CryptoRng,
    ) -> Result<Option<DelegatedCircuit>, StreamFailure> {
        #[cfg(test)]
        crate::base::Counter::increment(&mut self.tries);
        let Some(demand) = self.requests.demand(stream) else { return Ok(None) };
        let load = |circuit| self.streams.get(&circuit).map_or(0, BTreeMap::len);
        let circuit = pool.open_circuit_for(now, demand, &inputs.relays, load);
        let placed = circuit.and_then(|circuit| Some((circuit, pool.open_stream(now, circuit, demand)?)));
        let Some((circuit, id)) = placed else {
            let build = pool.ensure_build_for(now, demand, inputs, rng);
            if build.is_err() {
                self.requests.remove(stream);
            }
            return build.map(|()| None);
        };
        self.streams.entry(circuit).or_default().insert(id, stream);
        self.requests.place(stream, StreamPosition { circuit, stream: id });
        let delegated = pool.delegated_circuit(now, circuit);
        if delegated.is_some() {
            self.requests.handle_connected(stream);
        }
        Ok(delegated)
    }

    /// Updates the request of a stream after `event`. A retried request waits for a circuit until `deadline`.
    pub(super) fn handle_event(
        &mut self,
        now: Instant,
        position: StreamPosition,
        event: &StreamEvent,
        pool: &mut Pool,
        deadline: Instant,
    ) -> StreamOutcome {
        let streams = self.streams.get(&position.circuit);
        let Some(stream) = streams.and_then(|streams| streams.get(&position.stream)).copied() else {
            return StreamOutcome::Ignore;
        };
        match event {
            StreamEvent::Data(_) | StreamEvent::Writable => {}
            StreamEvent::Finished => {
                if self.requests.handle_peer_finished(stream) {
                    self.remove(stream);
                }
            }
            StreamEvent::Connected(_) => self.requests.handle_connected(stream),
            StreamEvent::Closed(reason) if self.retry(position, stream, *reason, pool, deadline) => {
                self.detach(position);
                pool.handle_stream_ended(now, position.circuit);
                return StreamOutcome::Retry;
            }
            StreamEvent::Resolved { .. } | StreamEvent::Closed(_) => {
                self.remove(stream);
                pool.handle_stream_ended(now, position.circuit);
            }
            // An origin's streams never return these events.
            StreamEvent::Begin(_) | StreamEvent::Resolve(_) | StreamEvent::Request(_) => return StreamOutcome::Ignore,
        }
        StreamOutcome::Report(stream)
    }

    /// Makes the request of a closed stream wait for another circuit. Returns false if the request has failed: the
    /// stream was connected, the target was the cause, a second exit refused a name, or the tries are used up.
    fn retry(
        &mut self,
        position: StreamPosition,
        stream: ClientStream,
        reason: EndReason,
        pool: &Pool,
        deadline: Instant,
    ) -> bool {
        let Some(circuit) = pool.circuit(position.circuit) else { return false };
        let is_lost = !circuit.is_open();
        if !is_lost && !matches!(reason, EndReason::Policy | EndReason::ResourceLimit) {
            return false;
        }
        let Some(demand) = self.requests.opening(stream) else { return false };
        // A name is sent to at most two exits (`proto/08-paths.md` §6).
        if reason == EndReason::Policy && demand.has_name() && !demand.refused_by.is_empty() {
            return false;
        }
        match reason {
            EndReason::Policy if !is_lost => demand.refused_by.extend(circuit.exit()),
            EndReason::ResourceLimit => demand.refused_on.push(position.circuit),
            _ => {}
        }
        self.requests.retry(stream, deadline)
    }

    /// The client finishes its direction of a connected stream.
    pub(super) fn handle_finish(&mut self, stream: ClientStream) {
        if self.requests.handle_finish(stream) {
            self.remove(stream);
        }
    }

    /// Removes a request. Returns its stream, if the request is placed. The circuit still sends the stream's pending
    /// data.
    pub(super) fn remove(&mut self, stream: ClientStream) -> Option<StreamPosition> {
        let position = self.requests.remove(stream)?;
        self.detach(position);
        Some(position)
    }

    /// A circuit has ended. All its streams have been closed before.
    pub(super) fn handle_circuit_ended(&mut self, circuit: PooledCircuitKey) {
        self.streams.remove(&circuit);
    }

    /// Removes the assignment of a circuit's stream to its request.
    fn detach(&mut self, position: StreamPosition) {
        if let Some(streams) = self.streams.get_mut(&position.circuit) {
            streams.remove(&position.stream);
            if streams.is_empty() {
                self.streams.remove(&position.circuit);
            }
        }
    }

    /// The stream of a placed request.
    #[cfg(test)]
    pub(super) fn position(&self, stream: ClientStream) -> Option<StreamPosition> {
        self.requests.position(stream)
    }

    /// The circuit and the isolation of each placed request.
    #[cfg(any(test, fuzzing))]
    pub(super) fn placed(&self) -> impl Iterator<Item = (PooledCircuitKey, Isolation)> {
        self.streams.iter().flat_map(|(circuit, streams)| {
            let isolation = |stream: &ClientStream| self.demand(*stream).map(|demand| demand.isolation);
            streams.values().filter_map(isolation).map(|isolation| (*circuit, isolation))
        })
    }

    /// Whether no circuit carries a request.
    #[cfg(any(test, fuzzing))]
    pub(super) fn is_empty(&self) -> bool {
        self.requests.len() == 0 && self.streams.is_empty()
    }
}
