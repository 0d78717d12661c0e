//! The client's core in a page, and the exchanges of the page. An exchange is one request and one answer on a stream,
//! over a circuit that carries nothing else.
//!
//! The caller passes the whole request at the start, and gets the whole answer, at most `max_len` bytes.
//! [`super::stream`] has streams that are read and written in pieces.

use core::time::Duration;
use std::collections::BTreeMap;

use super::{
    clock,
    drive::PageDrive,
    open_streams::OpenStreams,
    store::{Store, StoreEntry},
    sync::{Notify, OneshotSender, oneshot},
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
    /// The time of the handshake with this hop, from its first cell to the answer.
    pub(super) handshake_time: Duration,
}

/// The circuit of an exchange.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct ExchangePath {
    /// The guard first, the exit last.
    pub(super) hops: Vec<ExchangeHop>,
    /// Whether the exit also carries streams of this client, or did so recently, because no other exit was suitable.
    pub(super) shared_exit: bool,
}

/// The result of a successful exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct CompletedExchange {
    pub(super) answer: Vec<u8>,
    pub(super) path: ExchangePath,
    /// The time from the sending of the request to the end of the answer.
    pub(super) duration: Duration,
}

/// The reason for a failed exchange.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ExchangeFailure {
    /// No circuit was available.
    NoCircuit(StreamFailure),
    /// The exit ended the stream with an error, the circuit failed, or the answer exceeds `max_len`.
    Broken(ExchangePath),
    /// The whole answer did not arrive within the time limit.
    TimedOut(ExchangePath),
    /// The client has been closed.
    Closed,
}

/// The parameters of an exchange.
pub(super) struct ExchangeParameters {
    pub(super) delegation: Delegation,
    /// Exits at which the request is not placed.
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
    /// Bytes of the request that the stream has accepted.
    sent: usize,
    answer: Vec<u8>,
    max_len: usize,
    /// The time at which sending began, and the circuit; `None` before.
    begun: Option<(Instant, ExchangePath)>,
    outcome: OneshotSender<Result<CompletedExchange, ExchangeFailure>>,
    /// Sends a value when sending of the request begins.
    started: OneshotSender<()>,
}

/// The client's machine with the streams and exchanges of a page.
pub(super) struct DrivenPageClient {
    pub(super) client: ClientMachine,
    pub(super) streams: OpenStreams,
    exchanges: BTreeMap<ClientStream, DelegatedExchange>,
    store: Store,
    readiness: Readiness,
}

/// Whether the client is ready, with a notification.
#[derive(Clone, Default)]
pub(super) struct Readiness {
    /// Notifies when `ready` is set.
    pub(super) changed: Notify,
    /// Whether the first circuit has been built.
    pub(super) ready: std::rc::Rc<core::cell::Cell<bool>>,
}

impl DrivenPageClient {
    pub(super) fn new(client: ClientMachine, store: Store, readiness: Readiness) -> Self {
        Self { client, streams: OpenStreams::default(), exchanges: BTreeMap::new(), store, readiness }
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
                self.readiness.ready.set(true);
                self.readiness.changed.notify();
            }
            ClientEvent::GuardsChanged => self.store_guards(),
            ClientEvent::Delegated { stream, path, hop_times, shared_exit } => {
                if let Some(exchange) = self.exchanges.get_mut(&stream) {
                    let hops = path
                        .into_iter()
                        .zip(hop_times)
                        .map(|(relay, time)| ExchangeHop { relay, handshake_time: time })
                        .collect();
                    exchange.begun = Some((now, ExchangePath { hops, shared_exit }));
                    exchange.started.send(());
                }
                self.send_request(stream);
            }
            ClientEvent::Stream(stream, event) => self.handle_stream_event(now, stream, event),
            ClientEvent::Failed(stream, failure) => self.fail(now, stream, failure),
            ClientEvent::CircuitBuilt { .. } | ClientEvent::ConsensusExpired => {}
        }
    }

    fn handle_stream_event(&mut self, now: Instant, stream: ClientStream, event: StreamEvent) {
        match event {
            StreamEvent::Writable => self.send_request(stream),
            StreamEvent::Data(bytes) => {
                let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
                if exchange.answer.len().saturating_add(bytes.len()) > exchange.max_len {
                    self.complete(stream, |_, path, _| Err(ExchangeFailure::Broken(path)), now);
                    return self.client.handle_command(stream, StreamCommand::Reset(EndReason::ResourceLimit));
                }
                exchange.answer.extend_from_slice(&bytes);
                self.client.handle_command(stream, StreamCommand::Consumed(bytes.len()));
            }
            StreamEvent::Finished => {
                self.complete(stream, |answer, path, duration| Ok(CompletedExchange { answer, path, duration }), now);
            }
            StreamEvent::Closed(reason) => self.fail(now, stream, StreamFailure::Ended(reason)),
            // An exchange causes no `Connected` and no `Resolved`; only exits receive the others.
            StreamEvent::Connected(_)
            | StreamEvent::Resolved { .. }
            | StreamEvent::Begin(_)
            | StreamEvent::Resolve(_)
            | StreamEvent::Request(_) => {}
        }
    }

    fn fail(&mut self, now: Instant, stream: ClientStream, failure: StreamFailure) {
        let has_begun = self.exchanges.get(&stream).is_some_and(|exchange| exchange.begun.is_some());
        self.complete(
            stream,
            |_, path, _| {
                Err(if has_begun { ExchangeFailure::Broken(path) } else { ExchangeFailure::NoCircuit(failure) })
            },
            now,
        );
    }

    /// Writes as much of the request as the stream has room for; finishes the direction after the last byte.
    fn send_request(&mut self, stream: ClientStream) {
        let Some(exchange) = self.exchanges.get_mut(&stream) else { return };
        while let Some(rest) = exchange.request.get(exchange.sent..).filter(|rest| !rest.is_empty()) {
            match self.client.write(stream, rest) {
                0 => return,
                sent => exchange.sent = exchange.sent.saturating_add(sent),
            }
        }
        exchange.request = Vec::new();
        // A repeated `Finish` has no effect.
        self.client.handle_command(stream, StreamCommand::Finish);
    }

    /// Removes an exchange and sends its outcome to the caller.
    fn complete(
        &mut self,
        stream: ClientStream,
        outcome: impl FnOnce(Vec<u8>, ExchangePath, Duration) -> Result<CompletedExchange, ExchangeFailure>,
        now: Instant,
    ) {
        let Some(mut exchange) = self.exchanges.remove(&stream) else { return };
        let (since, path) = exchange.begun.take().unwrap_or((now, ExchangePath::default()));
        exchange.outcome.send(outcome(core::mem::take(&mut exchange.answer), path, now.since(since)));
    }
}

/// Performs an exchange over a separate circuit.
pub(super) async fn exchange(
    drive: &PageDrive<DrivenPageClient>,
    parameters: ExchangeParameters,
) -> Result<CompletedExchange, ExchangeFailure> {
    let ExchangeParameters { delegation, excluded_exits, isolation, request, max_len, timeout } = parameters;
    let (outcome_sender, outcome) = oneshot();
    let (started_sender, started) = oneshot();
    let stream = drive.with(|driven, now, _| {
        let stream = driven.client.delegate(now, delegation, excluded_exits, isolation);
        let exchange = DelegatedExchange {
            request,
            sent: 0,
            answer: Vec::new(),
            max_len,
            begun: None,
            outcome: outcome_sender,
            started: started_sender,
        };
        driven.exchanges.insert(stream, exchange);
        stream
    });
    let Some(stream) = stream else { return Err(ExchangeFailure::Closed) };
    // Completes when the circuit is ready or has failed. The client's core limits this wait.
    started.await;
    match clock::within(timeout, outcome).await {
        Some(outcome) => outcome.unwrap_or(Err(ExchangeFailure::Closed)),
        None => {
            let path = drive.with(|driven, _, _| {
                driven.client.handle_command(stream, StreamCommand::Reset(EndReason::TimedOut));
                driven.exchanges.remove(&stream).and_then(|exchange| exchange.begun)
            });
            Err(ExchangeFailure::TimedOut(path.flatten().map(|(_, path)| path).unwrap_or_default()))
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
