//! Switching of cells from channel to channel, decoding of relay messages for this relay, and the ends of circuits.

use bytes::Bytes;
use rand::CryptoRng;

use crate::{
    base::Instant,
    channel::{ChannelId, QUEUE_HIGH},
    onion::{ForwardContent, message_capacity},
    wire::{Cell, CellBody, Command, RelayMessage},
};

use super::{
    Relay,
    circuit::{CircuitEndpoint, NextHop, Side},
    table::CircuitKey,
};

impl Relay {
    /// Handles a cell of a neighbour (tables in [`super`]).
    pub(super) fn handle_cell(&mut self, now: Instant, channel: ChannelId, cell: Cell, rng: &mut dyn CryptoRng) {
        let Some(circuit) = cell.circuit() else { return };
        let endpoint = CircuitEndpoint { channel, circuit };
        let found = self.table.find_for_cell(endpoint);
        match (cell.command(), found) {
            (Command::Relay, Some((key, Side::Previous))) => self.handle_forward(now, key, cell.into_body(), rng),
            (Command::Relay, Some((key, Side::Next))) => self.handle_backward(now, key, cell.into_body()),
            // A waiting CREATE has no keys, so no RELAY cell can be valid, and its identifier is in use.
            (Command::Create | Command::Relay, None) if self.waiting_creates.remove(endpoint).is_some() => {
                self.refuse(now, endpoint);
            }
            (Command::Create, None) => self.handle_create(now, endpoint, cell.body()),
            (Command::Created, Some((key, Side::Next))) => self.handle_created(now, key, cell.body()),
            (Command::Create | Command::Created, Some((key, _))) => self.end(now, key),
            (Command::Destroy, Some((key, _))) => self.end_except(now, key, Some(endpoint)),
            (Command::Destroy, None) => {
                self.partial_creates.remove(endpoint);
                self.waiting_creates.remove(endpoint);
            }
            // A late cell of a circuit that has ended.
            (Command::Relay | Command::Created, None) | (Command::Padding, _) => {}
        }
    }

    fn handle_forward(&mut self, now: Instant, key: CircuitKey, mut body: CellBody, rng: &mut dyn CryptoRng) {
        let Some(circuit) = self.table.circuit_mut(key) else { return };
        circuit.last_cell = now;
        match (circuit.layer.open_forward(&mut body), &circuit.next) {
            (Ok(ForwardContent::Pass), NextHop::Open(next)) => {
                let next = *next;
                self.switch(now, key, next, body);
            }
            (Ok(ForwardContent::Message), _) => {
                let capacity = message_capacity(circuit.hop);
                let plaintext = Bytes::from(body).slice(..capacity);
                match RelayMessage::decode(&plaintext) {
                    Ok(RelayMessage::Extend { fragment }) => self.handle_extend(now, key, &fragment, rng),
                    Ok(message) => self.handle_message(now, key, message),
                    Err(error) => {
                        tracing::debug!(%error, "ending a circuit after a malformed message");
                        self.end(now, key);
                    }
                }
            }
            (Ok(ForwardContent::Pass) | Err(_), _) => self.end(now, key),
        }
    }

    fn handle_backward(&mut self, now: Instant, key: CircuitKey, mut body: CellBody) {
        let Some(circuit) = self.table.circuit_mut(key) else { return };
        let has_answered = matches!(circuit.next, NextHop::Open(_));
        if !has_answered || circuit.layer.seal_backward(&mut body).is_err() {
            return self.end(now, key);
        }
        let previous = circuit.previous;
        self.switch(now, key, previous, body);
    }

    /// Queues a RELAY cell for a neighbour. A queue at its cap ends the circuit.
    fn switch(&mut self, now: Instant, key: CircuitKey, to: CircuitEndpoint, body: CellBody) {
        self.cells_switched = self.cells_switched.wrapping_add(1);
        if self.channels.send(to.channel, Cell::new(to.circuit, Command::Relay, body)).is_err() {
            tracing::debug!("ending a circuit whose queue is full");
            self.end(now, key);
        }
    }

    /// Handles a stream message of an origin.
    fn handle_message(&mut self, now: Instant, key: CircuitKey, message: RelayMessage) {
        let Some(circuit) = self.table.circuit(key) else { return };
        if let Err(error) = self.streams.handle_message(now, key, circuit, message) {
            tracing::debug!(%error, class = %error.class(), "ending a circuit after an illegal message");
            self.end(now, key);
        }
    }

    /// Handles a circuit's queue that is low.
    pub(super) fn handle_queue_low(&mut self, endpoint: CircuitEndpoint) {
        if let Some((key, Side::Previous)) = self.table.find(endpoint) {
            self.streams.handle_queue_low(key);
        }
    }

    /// Sends pending stream messages to origins while the queues of their circuits have room.
    pub(super) fn send_messages(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        while let Some(key) = self.streams.poll_ready() {
            let Some(circuit) = self.table.circuit(key) else { continue };
            let (previous, capacity) = (circuit.previous, message_capacity(circuit.hop));
            while self.channels.queued_of(previous.channel, previous.circuit) < QUEUE_HIGH {
                let Some(message) = self.streams.poll_message(now, key, capacity, rng) else { break };
                if !self.send_message(key, &message) {
                    self.end(now, key);
                    break;
                }
            }
            self.streams.handle_sent(key);
        }
    }

    /// Sends a relay message of this relay to the origin. Returns false if the circuit must end.
    pub(super) fn send_message(&mut self, key: CircuitKey, message: &RelayMessage) -> bool {
        let Some(circuit) = self.table.circuit_mut(key) else { return true };
        self.scratch.clear();
        let mut body = CellBody::zero();
        if message.encode(&mut self.scratch).is_err() || circuit.layer.seal_message(&self.scratch, &mut body).is_err() {
            return false;
        }
        let previous = circuit.previous;
        self.channels.send(previous.channel, Cell::new(previous.circuit, Command::Relay, body)).is_ok()
    }

    /// Ends a circuit, with DESTROY to both sides.
    pub(super) fn end(&mut self, now: Instant, key: CircuitKey) {
        self.end_except(now, key, None);
    }

    /// Ends a circuit, with DESTROY to both sides except `except`, from which a DESTROY came.
    fn end_except(&mut self, now: Instant, key: CircuitKey, except: Option<CircuitEndpoint>) {
        let Some(circuit) = self.table.remove(key) else { return };
        if let NextHop::Waiting(relay) = &circuit.next {
            self.waiting_extends.remove(relay, key);
        }
        if let Some((channel, sent)) = circuit.next.sent_create() {
            self.handle_create_end(now, channel, sent, false);
        }
        for endpoint in [Some(circuit.previous), circuit.next.endpoint()].into_iter().flatten() {
            if Some(endpoint) != except {
                self.destroy(now, endpoint);
            }
        }
        self.streams.handle_closed(key);
    }

    /// Sends DESTROY to a neighbour.
    pub(super) fn destroy(&mut self, now: Instant, endpoint: CircuitEndpoint) {
        // A DESTROY returns no error: at the channel's cap, the channel closes.
        let _ = self.channels.send(endpoint.channel, Cell::destroy(endpoint.circuit));
        self.channels.end_circuit(now, endpoint.channel, endpoint.circuit);
    }
}
