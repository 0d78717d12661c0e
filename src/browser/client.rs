//! The client's core in a page, and its exchanges: one request and one answer over a stream on a separate circuit.
//!
//! The request of an exchange is complete at its start. The answer is returned whole, up to a bound given by the
//! caller. [`super::stream`] has streams that are read and written in pieces.

use core::time::Duration;
use std::collections::BTreeMap;

use super::{
    clock,
    drive::Driver,
    open_streams::OpenStreams,
    slot::{Notify, SlotSender, slot},
    store::{Store, StoreEntry},
};
use crate::{
    base::{Instant, LinkMachine, RelayId},
    client::{ClientEvent, ClientMachine, ClientStream, Isolation, StreamFailure},
    delegated::Delegation,
    stream::{StreamCommand, StreamEvent},
    transport::Driven,
    wire::EndReason,
};

/// One hop of an exchange's circuit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ExchangeHop {
    pub(super) relay: RelayId,
    /// Time to build the circuit to this hop.
    pub(super) took: Duration,
}

/// The circuit of an exchange.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExchangePath {
    /// The guard first, the exit last.
    pub(super) hops: Vec<ExchangeHop>,
    /// The exit also carries streams of this client, because no other exit offers the same service.
    pub(super) shared_exit: bool,
}

/// The result of an exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Exchanged {
    pub(super) answer: Vec<u8>,
    pub(super) path: ExchangePath,
    /// Time from sending the request to the end of the answer.
    pub(super) took: Duration,
}

/// The reason for a failed exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExchangeFailure {
    /// No circuit was available.
    NoCircuit(StreamFailure),
    /// The exit or its circuit closed, or the answer exceeds its bound.
    Broken(ExchangePath),
    /// The exit exceeded the time limit.
    Silent(ExchangePath),
    /// The client has been closed.
    Closed,
}

/// The parameters of an exchange.
pub(super) struct ExchangeParameters {
    pub(super) delegation: Delegation,
    /// Excluded exits.
    pub(super) excluded_exits: Vec<RelayId>,
    pub(super) isolation: Isolation,
    pub(super) request: Vec<u8>,
    /// Largest answer in bytes.
    pub(super) max_len: usize,
    /// Time limit of the answer, from the time at which the circuit is ready.
    pub(super) timeout: Duration,
}

struct DelegatedExchange {
    request: Vec<u8>,
    sent: usize,
    answer: Vec<u8>,
    max_len: usize,
    /// The time at which sending began, and the circuit; `None` before.
    in_flight: Option<(Instant, ExchangePath)>,
    reply: SlotSender<Result<Exchanged, ExchangeFailure>>,
    /// Completes when sending begins.
    started: SlotSender<()>,
}

/// The client's machine with the streams and exchanges of a page.
pub(super) struct DrivenPageClient {
    pub(super) client: ClientMachine,
    pub(super) streams: OpenStreams,
    exchanges: BTreeMap<ClientStream, DelegatedExchange>,
    store: Store,
    steps: Steps,
}

/// Progress of the client's start.
#[derive(Clone, Default)]
pub(super) struct Steps {
    /// Notifies at each step.
    pub(super) changed: Notify,
    /// Whether a circuit is built.
    pub(super) ready: std::rc::Rc<core::cell::Cell<bool>>,
}

impl DrivenPageClient {
    pub(super) fn new(client: ClientMachine, store: Store, steps: Steps) -> Self {
        Self { client, streams: OpenStreams::default(), exchanges: BTreeMap::new(), store, steps }
    }

    fn store_guards(&self) {
        self.store.write(StoreEntry::Guards, &self.client.guards().encode());
    }

    fn handle_event(&mut self, now: Instant, event: ClientEvent) {
        if self.streams.handle_event(&event) {
            return;
        }
        match event {
            ClientEvent::Ready => {
                self.steps.ready.set(true);
                self.steps.changed.notify();
            }
            ClientEvent::GuardsChanged => self.store_guards(),
            ClientEvent::Delegated { stream, path, hops, shared_exit } => {
                if let Some(exchange) = self.exchanges.get_mut(&stream) {
                    let hops = path.into_iter().zip(hops).map(|(relay, took)| ExchangeHop { relay, took }).collect();
                    exchange.in_flight = Some((now, ExchangePath { hops, shared_exit }));
                    exchange.started.send(());
                }
                self.send_request(stream);
            }
            ClientEvent::Stream(stream, event) => self.handle_stream(now, stream, event),
            ClientEvent::Failed(stream, failure) => self.fail(now, stream, failure),
            ClientEvent::CircuitBuilt { .. } | ClientEvent::ConsensusExpired => {}
        }
    }

    fn handle_stream(&mut self, now: Instant, stream: ClientStream, event: StreamEvent) {
        match event {
            StreamEvent::Writable => self.send_request(stream),
            StreamEvent::Data(bytes) => {
                let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
                if exchange.answer.len().saturating_add(bytes.len()) > exchange.max_len {
                    self.end(stream, |_, path, _| Err(ExchangeFailure::Broken(path)), now);
                    return self.client.handle_command(stream, StreamCommand::Reset(EndReason::ResourceLimit));
                }
                exchange.answer.extend_from_slice(&bytes);
                self.client.handle_command(stream, StreamCommand::Consumed(bytes.len()));
            }
            StreamEvent::Finished => {
                self.end(stream, |answer, path, took| Ok(Exchanged { answer, path, took }), now);
            }
            StreamEvent::Closed(reason) => self.fail(now, stream, StreamFailure::Ended(reason)),
            // Events of closed streams, and events that only exits receive.
            StreamEvent::Connected(_)
            | StreamEvent::Resolved { .. }
            | StreamEvent::Begin(_)
            | StreamEvent::Resolve(_)
            | StreamEvent::Request(_) => {}
        }
    }

    fn fail(&mut self, now: Instant, stream: ClientStream, failure: StreamFailure) {
        let in_flight = self.exchanges.get(&stream).is_some_and(|exchange| exchange.in_flight.is_some());
        self.end(
            stream,
            |_, path, _| {
                Err(if in_flight { ExchangeFailure::Broken(path) } else { ExchangeFailure::NoCircuit(failure) })
            },
            now,
        );
    }

    /// Sends as much of a request as the stream has room for.
    fn send_request(&mut self, stream: ClientStream) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        while let Some(rest) = exchange.request.get(exchange.sent..).filter(|rest| !rest.is_empty()) {
            match self.client.write(stream, rest) {
                0 => return,
                sent => exchange.sent = exchange.sent.saturating_add(sent),
            }
        }
        if !core::mem::take(&mut exchange.request).is_empty() || exchange.sent == 0 {
            self.client.handle_command(stream, StreamCommand::Finish);
        }
    }

    fn end(
        &mut self,
        stream: ClientStream,
        outcome: impl FnOnce(Vec<u8>, ExchangePath, Duration) -> Result<Exchanged, ExchangeFailure>,
        now: Instant,
    ) {
        let Some(mut exchange) = self.exchanges.remove(&stream) else { return };
        let (since, path) = exchange.in_flight.take().unwrap_or((now, ExchangePath::default()));
        exchange.reply.send(outcome(core::mem::take(&mut exchange.answer), path, now.since(since)));
    }
}

/// Performs the exchange `wanted` over a separate circuit.
pub(super) async fn exchange(
    driver: &Driver<DrivenPageClient>,
    wanted: ExchangeParameters,
) -> Result<Exchanged, ExchangeFailure> {
    let ExchangeParameters { delegation, excluded_exits, isolation, request, max_len, timeout } = wanted;
    let (reply, answer) = slot();
    let (started, start) = slot();
    let stream = driver.with(|driven, now, _| {
        let stream = driven.client.delegate(now, delegation, excluded_exits, isolation);
        let exchange =
            DelegatedExchange { request, sent: 0, answer: Vec::new(), max_len, in_flight: None, reply, started };
        driven.exchanges.insert(stream, exchange);
        stream
    });
    let Some(stream) = stream else { return Err(ExchangeFailure::Closed) };
    // Completes when the circuit is ready or has failed. The client's core limits this wait.
    start.await;
    match clock::within(timeout, answer).await {
        Some(outcome) => outcome.unwrap_or(Err(ExchangeFailure::Closed)),
        None => {
            let path = driver.with(|driven, _, _| {
                driven.client.handle_command(stream, StreamCommand::Reset(EndReason::TimedOut));
                driven.exchanges.remove(&stream).and_then(|exchange| exchange.in_flight)
            });
            Err(ExchangeFailure::Silent(path.flatten().map(|(_, path)| path).unwrap_or_default()))
        }
    }
}

impl Driven for DrivenPageClient {
    fn machine(&mut self) -> &mut impl LinkMachine {
        &mut self.client
    }

    fn deliver(&mut self, now: Instant) -> bool {
        let mut delivered = false;
        while let Some(event) = self.client.poll_event() {
            self.handle_event(now, event);
            delivered = true;
        }
        delivered
    }

    fn shut_down(&mut self, _: Instant) {
        if self.client.take_guard_changes() {
            self.store_guards();
        }
    }
}
