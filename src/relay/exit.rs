//! The exit side of a relay: streams of circuits that end here, between their origins and the node's exit.

use rand::CryptoRng;

use crate::{
    base::{HopIndex, Instant, RelayId, StreamId},
    channel::QUEUE_HIGH,
    onion::message_capacity,
    stream::{StreamCommand, StreamEvent, Streams},
    wire::{EndReason, RelayMessage},
};

use super::{
    CircuitEndpoint, CircuitKey, ExitStream, Relay, RelayEvent,
    exit_side::{ExitSide, Open},
    table::Side,
};

/// The circuit that a stream belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExitOwner {
    /// The relay before the exit.
    pub neighbour: RelayId,
    /// The circuit's number ([`Relay::exit_circuit`]).
    pub circuit: u64,
}

impl Relay {
    /// Handles a stream message of an origin.
    pub(super) fn handle_message(&mut self, now: Instant, key: CircuitKey, message: RelayMessage) {
        let Some(circuit) = self.table.circuit_mut(key) else { return };
        let exit_side =
            circuit.exit_side.get_or_insert_with(|| Box::new(ExitSide::new(now, self.parameters.flow.clone())));
        exit_side.received_at = now;
        if let Err(error) = exit_side.streams.handle_message(now, message) {
            tracing::debug!(%error, class = %error.class(), "ending a circuit after an illegal message");
            return self.end(now, key);
        }
        self.after_streams(key);
    }

    /// Collects events and messages of a circuit's streams after a change.
    pub(super) fn after_streams(&mut self, key: CircuitKey) {
        self.collect_exit_events(key);
        self.make_ready(key);
        self.schedule(key);
    }

    /// Passes stream events of a circuit to the exit; refuses streams that this relay does not serve.
    fn collect_exit_events(&mut self, key: CircuitKey) {
        let Some(circuit) = self.table.circuit_mut(key) else { return };
        // A first hop knows the origin's address; an exit there would know both ends (`proto/08-paths.md` §6).
        let is_first = circuit.hop == HopIndex::FIRST;
        let Some(exit_side) = circuit.exit_side.as_mut() else { return };
        while let Some((stream, event)) = exit_side.streams.poll_event() {
            let serves = match event {
                StreamEvent::Begin(_) | StreamEvent::Resolve(_) => Some(self.parameters.exit && !is_first),
                StreamEvent::Request(_) => Some(self.parameters.delegate && !is_first),
                _ => None,
            };
            match serves {
                Some(true) if !exit_side.takes(matches!(event, StreamEvent::Resolve(_))) => {
                    exit_side.streams.handle_command(stream, StreamCommand::Reset(EndReason::ResourceLimit));
                    continue;
                }
                Some(true) => {
                    let exit = ExitStream(self.next_exit);
                    self.next_exit = self.next_exit.saturating_add(1);
                    exit_side.open.insert(stream, Open { exit, origin_finished: false, target_finished: false });
                    self.exits.insert(exit, (key, stream));
                }
                Some(false) => {
                    exit_side.streams.handle_command(stream, StreamCommand::Reset(EndReason::Policy));
                    continue;
                }
                None => {}
            }
            let Some(open) = exit_side.open.get_mut(&stream) else { continue };
            let exit = open.exit;
            open.origin_finished |= matches!(event, StreamEvent::Finished);
            let over = matches!(event, StreamEvent::Closed(_)) || (open.origin_finished && open.target_finished);
            self.events.push_back(RelayEvent::Stream(exit, event));
            if over {
                exit_side.open.remove(&stream);
                self.exits.remove(&exit);
            }
        }
    }

    /// Carries out a command of the exit for a stream or RESOLVE.
    pub fn handle_command(&mut self, exit: ExitStream, command: StreamCommand) {
        let ends = matches!(command, StreamCommand::Resolved { .. } | StreamCommand::Reset(_));
        let finishes = matches!(command, StreamCommand::Finish);
        self.with_stream(exit, |streams, stream| streams.handle_command(stream, command));
        if ends || (finishes && self.note_target_finished(exit)) {
            self.forget_exit(exit);
        }
    }

    /// Takes bytes from the target, up to [`Self::room`], and returns how many.
    pub fn write(&mut self, exit: ExitStream, bytes: &[u8]) -> usize {
        self.with_stream(exit, |streams, stream| streams.write(stream, bytes)).unwrap_or(0)
    }

    /// Bytes that [`Self::write`] takes now. [`StreamEvent::Writable`] reports growth.
    #[must_use]
    pub fn room(&self, exit: ExitStream) -> usize {
        let Some((key, stream)) = self.exits.get(&exit) else { return 0 };
        let exit_side = self.table.circuit(*key).and_then(|circuit| circuit.exit_side.as_ref());
        exit_side.map_or(0, |exit_side| exit_side.streams.room(*stream))
    }

    /// Number of the stream's circuit: the same for all streams of a circuit, unique among this relay's circuits.
    /// `None` if the stream has closed; its [`StreamEvent::Closed`] is to be taken then.
    #[must_use]
    pub fn exit_circuit(&self, exit: ExitStream) -> Option<u64> {
        self.exits.get(&exit).map(|(key, _)| key.number())
    }

    /// The circuit of a stream and its neighbour, for the exit's shares. `None` if the stream has closed.
    #[must_use]
    pub fn exit_owner(&self, exit: ExitStream) -> Option<ExitOwner> {
        let (key, _) = self.exits.get(&exit)?;
        let neighbour = self.channels.peer(self.table.circuit(*key)?.previous.channel)?;
        Some(ExitOwner { neighbour, circuit: key.number() })
    }

    /// Records that the target has finished its direction; returns whether the origin has too.
    fn note_target_finished(&mut self, exit: ExitStream) -> bool {
        let Some((key, stream)) = self.exits.get(&exit).copied() else { return false };
        let exit_side = self.table.circuit_mut(key).and_then(|circuit| circuit.exit_side.as_mut());
        let Some(open) = exit_side.and_then(|exit_side| exit_side.open.get_mut(&stream)) else { return false };
        open.target_finished = true;
        open.origin_finished
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
            self.events.push_back(RelayEvent::Stream(open.exit, StreamEvent::Closed(EndReason::Reset)));
        }
    }

    /// A circuit's queue has run low: its streams may send again.
    pub(super) fn handle_drained(&mut self, endpoint: CircuitEndpoint) {
        if let Some((key, Side::Previous)) = self.table.find(endpoint) {
            self.make_ready(key);
        }
    }

    fn make_ready(&mut self, key: CircuitKey) {
        if let Some(circuit) = self.table.circuit_mut(key)
            && circuit.exit_side.as_ref().is_some_and(|exit_side| exit_side.streams.has_message())
        {
            self.ready.push(key, &mut circuit.ready);
        }
    }

    /// Sends pending stream messages while the circuit's queue has room.
    pub(super) fn send_messages(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        while let Some(key) = self.ready.pop() {
            let Some(circuit) = self.table.circuit(key) else { continue };
            let (previous, capacity) = (circuit.previous, message_capacity(circuit.hop));
            while self.channels.queued(previous.channel, previous.circuit) < QUEUE_HIGH {
                let exit_side = self.table.circuit_mut(key).and_then(|circuit| circuit.exit_side.as_mut());
                let Some(message) = exit_side.and_then(|exit_side| exit_side.streams.poll_message(now, capacity, rng))
                else {
                    break;
                };
                if !self.send_message(key, &message) {
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
