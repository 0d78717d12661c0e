//! Events and cells of a circuit's machine.

use core::time::Duration;

use rand::CryptoRng;

use super::{
    ClientEvent, ClientMachine, ClientStream, PooledCircuitKey,
    pooled::{Pooled, PooledStage},
};
use crate::{
    base::{ErrorClass, Instant, StreamId},
    channel::QUEUE_HIGH,
    circuit::{CircuitError, CircuitEvent},
    stream::StreamEvent,
    wire::EndReason,
};

impl ClientMachine {
    /// Handles a circuit's events and fills its channel's queue, until neither remains.
    pub(super) fn settle_circuit(&mut self, now: Instant, key: PooledCircuitKey, rng: &mut dyn CryptoRng) {
        let mut closed = None;
        loop {
            while let Some(event) = self.poll_circuit(key) {
                match event {
                    CircuitEvent::Stream(_, stream, event) => self.handle_stream(now, key, stream, event),
                    CircuitEvent::HopBuilt { elapsed, .. } => self.handle_hop_built(now, key, elapsed),
                    CircuitEvent::Gone { hop } => self.handle_gone(now, key, hop, rng),
                    CircuitEvent::Built => self.handle_built(key),
                    CircuitEvent::Closed(error) => closed = Some(error),
                }
            }
            if !self.fill(now, key, rng) {
                break;
            }
        }
        match closed {
            Some(error) => self.handle_closed(now, key, error, rng),
            None if self.circuits.get(&key).is_some_and(Pooled::is_spent) => self.close_circuit(key),
            None => self.note_timeout(key),
        }
    }

    fn poll_circuit(&mut self, key: PooledCircuitKey) -> Option<CircuitEvent> {
        match &mut self.circuits.get_mut(&key)?.stage {
            PooledStage::Connecting => None,
            PooledStage::Circuit { origin, .. } => origin.poll_event(),
        }
    }

    /// Moves cells to the channel while its queue for the circuit is short; returns whether any were moved.
    fn fill(&mut self, now: Instant, key: PooledCircuitKey, rng: &mut dyn CryptoRng) -> bool {
        let Some(Pooled { stage: PooledStage::Circuit { channel, origin }, .. }) = self.circuits.get_mut(&key) else {
            return false;
        };
        let room = QUEUE_HIGH.saturating_sub(self.channels.queued(*channel, origin.circuit()));
        for sent in 0..room {
            let Some(cell) = origin.poll_cell(now, rng) else { return sent > 0 };
            if self.channels.send(*channel, cell).is_err() {
                // The queue's cap is far above [`QUEUE_HIGH`].
                origin.close();
                return true;
            }
        }
        room > 0
    }

    fn note_timeout(&mut self, key: PooledCircuitKey) {
        let Some(pooled) = self.circuits.get(&key) else { return };
        let PooledStage::Circuit { origin, .. } = &pooled.stage else { return };
        match origin.poll_timeout() {
            Some(due) => self.timeouts.set(key, due),
            None => self.timeouts.remove(key),
        }
    }

    fn handle_hop_built(&mut self, now: Instant, key: PooledCircuitKey, elapsed: Duration) {
        let Some(pooled) = self.circuits.get_mut(&key) else { return };
        pooled.hop_times.push(elapsed);
        if let (Some(guard), [_, hop, ..], 2) = (pooled.guard(), &*pooled.path, pooled.hop_times.len())
            && pooled.volunteers.contains(&hop.identity)
        {
            self.gone.handle_answer(now, guard, false);
        }
        if pooled.hop_times.len() == 1
            && let Some(guard) = pooled.guard()
        {
            self.guards.handle_reached(&guard);
            self.builds.handle_guard_reached();
        }
    }

    fn handle_built(&mut self, key: PooledCircuitKey) {
        let Some(pooled) = self.circuits.get(&key) else { return };
        self.builds.handle_built(&pooled.hop_times);
        if let Some(guard) = pooled.guard() {
            self.guards.handle_circuit(&guard, true);
        }
        self.events.push_back(ClientEvent::CircuitBuilt {
            path: pooled.path.iter().map(|relay| relay.identity).collect(),
            channel: pooled.channel_time,
            hops: pooled.hop_times.clone(),
        });
        if !core::mem::replace(&mut self.reported_ready, true) {
            self.events.push_back(ClientEvent::Ready);
        }
        self.replan = true;
    }

    fn handle_closed(&mut self, now: Instant, key: PooledCircuitKey, error: CircuitError, rng: &mut dyn CryptoRng) {
        let Some(mut pooled) = self.remove(key) else { return };
        if let PooledStage::Circuit { channel, origin } = &mut pooled.stage {
            // DESTROY is sent however full the queue is.
            if let Some(destroy) = origin.poll_cell(now, rng) {
                let _ = self.channels.send(*channel, destroy);
            }
            self.by_channel.remove(&(*channel, origin.circuit()));
            self.channels.forget_circuit(now, *channel, origin.circuit());
        }
        let class = error.class();
        match class {
            ErrorClass::Bug => tracing::error!(%error, "a circuit has ended after an internal error"),
            _ => tracing::debug!(%error, %class, hops = pooled.hop_times.len(), "a circuit has ended"),
        }
        if pooled.hop_times.len() < pooled.path.len() {
            self.handle_build_failed(now, &pooled, error);
        } else if class != ErrorClass::Local {
            self.doubt_others(now, &pooled);
        }
        self.replan = true;
    }

    /// An open circuit was lost, so one of its relays may be unreachable. Checks all other circuits over any of its
    /// relays, before a request fails.
    fn doubt_others(&mut self, now: Instant, lost: &Pooled) {
        let mut doubted = Vec::new();
        for (key, pooled) in &mut self.circuits {
            if pooled.is_open() && pooled.path.iter().any(|relay| lost.path.contains(relay)) {
                pooled.ask(now);
                doubted.push(*key);
            }
        }
        for key in doubted {
            self.make_ready(key);
        }
    }

    /// Updates the request of a stream, and passes the event on.
    fn handle_stream(&mut self, now: Instant, key: PooledCircuitKey, id: StreamId, event: StreamEvent) {
        let Some(pooled) = self.circuits.get_mut(&key) else { return };
        let Some(stream) = pooled.streams.get(&id).copied() else { return };
        match &event {
            StreamEvent::Data(_) | StreamEvent::Writable => {}
            StreamEvent::Finished => {
                let over = self.requests.get_mut(stream).is_some_and(|request| {
                    request.peer_finished = true;
                    request.over()
                });
                if over {
                    self.forget(stream);
                }
            }
            StreamEvent::Connected(_) => {
                if let Some(request) = self.requests.get_mut(stream) {
                    request.connected = true;
                }
            }
            StreamEvent::Closed(reason) if self.retry_elsewhere(now, key, id, stream, *reason) => return,
            StreamEvent::Resolved { .. } | StreamEvent::Closed(_) => self.end(now, key, id, stream),
            // Never returned by an origin's streams.
            StreamEvent::Begin(_) | StreamEvent::Resolve(_) | StreamEvent::Request(_) => return,
        }
        self.events.push_back(ClientEvent::Stream(stream, event));
    }

    /// Returns a closed stream's request to the waiting ones, for another circuit; false if it has failed.
    fn retry_elsewhere(
        &mut self,
        now: Instant,
        key: PooledCircuitKey,
        id: StreamId,
        stream: ClientStream,
        reason: EndReason,
    ) -> bool {
        let Some(pooled) = self.circuits.get_mut(&key) else { return false };
        let (lost, exit) = (!pooled.is_open(), pooled.exit());
        let elsewhere = lost || matches!(reason, EndReason::Policy | EndReason::ResourceLimit);
        let Some(request) = self.requests.get_mut(stream).filter(|request| !request.connected && elsewhere) else {
            return false;
        };
        match reason {
            EndReason::Policy if !lost => request.refused_by.extend(exit),
            EndReason::ResourceLimit => request.refused_on.push(key),
            _ => {}
        }
        let retries = self.requests.put_back(stream, now.after(self.parameters.circuit_wait));
        if retries {
            self.detach(now, key, id);
            self.replan = true;
        }
        retries
    }

    fn end(&mut self, now: Instant, key: PooledCircuitKey, id: StreamId, stream: ClientStream) {
        self.requests.remove(stream);
        self.detach(now, key, id);
    }

    fn detach(&mut self, now: Instant, key: PooledCircuitKey, id: StreamId) {
        if let Some(pooled) = self.circuits.get_mut(&key) {
            pooled.streams.remove(&id);
            pooled.idle_since = now;
        }
    }
}
