//! The exit side of a relay: streams of circuits that end here, as requests to and answers of the node's exit.

use core::net::IpAddr;
use std::collections::BTreeMap;

use rand::CryptoRng;

use crate::{
    base::{Instant, StreamId},
    channel::QUEUE_HIGH,
    flow::FlowParameters,
    onion::message_capacity,
    stream::{Role, StreamEvent, Streams},
    wire::{Answer, EndReason, RelayMessage},
};

use super::{CircuitEndpoint, CircuitKey, ExitRequest, ExitStream, Relay, RelayEvent, table::Side};

/// The streams of a circuit that ends here.
pub(super) struct ExitSide {
    pub(super) streams: Streams,
    open: BTreeMap<StreamId, Open>,
}

/// A stream or RESOLVE that the node has open.
struct Open {
    exit: ExitStream,
    /// The origin has finished its direction.
    origin_finished: bool,
    /// The target has finished its direction.
    target_finished: bool,
}

impl ExitSide {
    fn new(parameters: FlowParameters) -> Self {
        Self { streams: Streams::new(Role::Exit, parameters), open: BTreeMap::new() }
    }
}

impl Relay {
    /// Handles a stream message of an origin.
    pub(super) fn handle_message(&mut self, now: Instant, key: CircuitKey, message: RelayMessage) {
        let Some(circuit) = self.table.circuit_mut(key) else { return };
        let exit_side = circuit.exit_side.get_or_insert_with(|| Box::new(ExitSide::new(self.parameters.flow.clone())));
        if let Err(error) = exit_side.streams.handle_message(now, message) {
            tracing::debug!(%error, class = %error.class(), "ending a circuit after an illegal message");
            return self.end(now, key);
        }
        self.after_streams(key);
    }

    /// Collects events and messages of a circuit's streams after a change.
    pub(super) fn after_streams(&mut self, key: CircuitKey) {
        self.collect_exit_events(key);
        self.note_messages(key);
        self.schedule(key);
    }

    /// Turns stream events of a circuit into requests to the exit.
    fn collect_exit_events(&mut self, key: CircuitKey) {
        let Some(exit_side) = self.table.circuit_mut(key).and_then(|circuit| circuit.exit_side.as_mut()) else {
            return;
        };
        while let Some(event) = exit_side.streams.poll_event() {
            let (stream, request) = match event {
                StreamEvent::Begin { stream, target } => (stream, ExitRequest::Connect(target)),
                StreamEvent::Resolve { stream, host } => (stream, ExitRequest::Resolve(host)),
                StreamEvent::Request { stream, service } => {
                    (stream, ExitRequest::Delegate { service, circuit: key.number() })
                }
                StreamEvent::Data { stream, bytes } => (stream, ExitRequest::Data(bytes)),
                StreamEvent::Finished { stream } => (stream, ExitRequest::Finish),
                StreamEvent::Writable { stream } => (stream, ExitRequest::Writable),
                StreamEvent::Closed { stream, .. } => (stream, ExitRequest::Close),
                // Never returned by an exit's streams.
                StreamEvent::Connected { .. } | StreamEvent::Resolved { .. } => continue,
            };
            let forwarded = matches!(request, ExitRequest::Connect(_) | ExitRequest::Resolve(_));
            let delegated = matches!(request, ExitRequest::Delegate { .. });
            if forwarded || delegated {
                if (forwarded && !self.parameters.exit) || (delegated && !self.parameters.delegate) {
                    exit_side.streams.reset(stream, EndReason::Policy);
                    continue;
                }
                let exit = ExitStream(self.next_exit);
                self.next_exit = self.next_exit.saturating_add(1);
                exit_side.open.insert(stream, Open { exit, origin_finished: false, target_finished: false });
                self.exits.insert(exit, (key, stream));
            }
            let Some(open) = exit_side.open.get_mut(&stream) else { continue };
            let exit = open.exit;
            open.origin_finished |= request == ExitRequest::Finish;
            let over = request == ExitRequest::Close || (open.origin_finished && open.target_finished);
            self.events.push_back(RelayEvent::Exit(exit, request));
            if over {
                exit_side.open.remove(&stream);
                self.exits.remove(&exit);
            }
        }
    }

    /// The target is connected, at `address` if the exit discloses it.
    pub fn exit_connected(&mut self, now: Instant, exit: ExitStream, address: Option<IpAddr>) {
        self.with_stream(exit, |streams, stream| streams.connected(now, stream, address));
    }

    /// Takes the resolver's answers.
    pub fn exit_resolved(&mut self, exit: ExitStream, ttl: u32, answers: Vec<Answer>) {
        self.with_stream(exit, |streams, stream| streams.resolved(stream, ttl, answers));
        self.forget_exit(exit);
    }

    /// The stream or RESOLVE has failed, or the target reset the stream. Nothing follows.
    pub fn exit_failed(&mut self, exit: ExitStream, reason: EndReason) {
        self.with_stream(exit, |streams, stream| streams.reset(stream, reason));
        self.forget_exit(exit);
    }

    /// Takes bytes from the target, up to [`Self::exit_room`], and returns how many.
    pub fn exit_write(&mut self, now: Instant, exit: ExitStream, bytes: &[u8]) -> usize {
        self.with_stream(exit, |streams, stream| streams.write(now, stream, bytes)).unwrap_or(0)
    }

    /// Bytes that [`Self::exit_write`] takes now. [`ExitRequest::Writable`] reports growth.
    #[must_use]
    pub fn exit_room(&self, exit: ExitStream) -> usize {
        let Some((key, stream)) = self.exits.get(&exit) else { return 0 };
        let exit_side = self.table.circuit(*key).and_then(|circuit| circuit.exit_side.as_ref());
        exit_side.map_or(0, |exit_side| exit_side.streams.room(*stream))
    }

    /// The target has finished its direction; the other direction goes on.
    pub fn exit_finish(&mut self, exit: ExitStream) {
        self.with_stream(exit, Streams::finish);
        let Some((key, stream)) = self.exits.get(&exit).copied() else { return };
        let exit_side = self.table.circuit_mut(key).and_then(|circuit| circuit.exit_side.as_mut());
        let Some(open) = exit_side.and_then(|exit_side| exit_side.open.get_mut(&stream)) else { return };
        open.target_finished = true;
        if open.origin_finished {
            self.forget_exit(exit);
        }
    }

    /// `bytes` from the origin have been sent to the target: grants credit to the origin.
    pub fn exit_consumed(&mut self, exit: ExitStream, bytes: usize) {
        self.with_stream(exit, |streams, stream| streams.consumed(stream, bytes));
    }

    fn with_stream<T>(&mut self, exit: ExitStream, act: impl FnOnce(&mut Streams, StreamId) -> T) -> Option<T> {
        let (key, stream) = *self.exits.get(&exit)?;
        let exit_side = self.table.circuit_mut(key)?.exit_side.as_mut()?;
        let outcome = act(&mut exit_side.streams, stream);
        self.after_streams(key);
        Some(outcome)
    }

    fn forget_exit(&mut self, exit: ExitStream) {
        let Some((key, stream)) = self.exits.remove(&exit) else { return };
        if let Some(exit_side) = self.table.circuit_mut(key).and_then(|circuit| circuit.exit_side.as_mut()) {
            exit_side.open.remove(&stream);
        }
    }

    /// Closes the exit streams of a circuit that has ended.
    pub(super) fn close_exits(&mut self, exit_side: Option<Box<ExitSide>>) {
        for open in exit_side.into_iter().flat_map(|exit_side| exit_side.open.into_values()) {
            self.exits.remove(&open.exit);
            self.events.push_back(RelayEvent::Exit(open.exit, ExitRequest::Close));
        }
    }

    /// A circuit's queue has run low: its streams may send again.
    pub(super) fn handle_drained(&mut self, endpoint: CircuitEndpoint) {
        if let Some((key, Side::Previous)) = self.table.find(endpoint) {
            self.note_messages(key);
        }
    }

    fn note_messages(&mut self, key: CircuitKey) {
        if let Some(circuit) = self.table.circuit_mut(key)
            && !circuit.listed
            && circuit.exit_side.as_ref().is_some_and(|exit_side| exit_side.streams.has_message())
        {
            circuit.listed = true;
            self.with_messages.push_back(key);
        }
    }

    /// Sends pending stream messages while the circuit's queue has room.
    pub(super) fn send_messages(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        while let Some(key) = self.with_messages.pop_front() {
            let Some(circuit) = self.table.circuit_mut(key) else { continue };
            circuit.listed = false;
            let (previous, capacity) = (circuit.previous, message_capacity(circuit.hop));
            while self.channels.queued(previous.channel, previous.circuit) < QUEUE_HIGH {
                let exit_side = self.table.circuit_mut(key).and_then(|circuit| circuit.exit_side.as_mut());
                let Some(message) = exit_side.and_then(|exit_side| exit_side.streams.poll_message(now, capacity, rng))
                else {
                    break;
                };
                if !self.say(key, &message) {
                    self.end(now, key);
                    break;
                }
            }
            // Sending makes room in send buffers.
            self.collect_exit_events(key);
            self.schedule(key);
        }
    }
}
