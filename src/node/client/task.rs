//! The task that owns a client's core and its streams.

use core::{
    task::{Context, Poll},
    time::Duration,
};
use std::{collections::BTreeMap, sync::Arc};

use rand::rngs::StdRng;
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    base::{Instant, LinkMachine, RelayId},
    client::{ClientEvent, ClientMachine, ClientParameters, ClientStream, StreamFailure},
    connector::{ConnectError, Delegated, DelegatedRequest, Hop, Isolation},
    delegated::{Delegation, Offer},
    directory::{Consensus, VolunteerList},
    io::{
        clock::wall_time,
        files::Folder,
        stream::{Hub, Stream},
    },
    node::{
        Failure,
        drive::{Clock, Drive, TaskDriven, randomness},
        network,
        report::{HopReport, Report, Reporter},
    },
    path::GuardSample,
    requests::search::{Offers, engines},
    stream::{StreamCommand, StreamEvent},
    transport::{
        Driven,
        native::{Certificate, Sockets},
    },
    wire::{EndReason, Host, ResolvedAnswer, Target},
};

/// Maximum commands of handles, and maximum commands of streams, that the task takes before it drains the core.
const COMMANDS_PER_TURN: usize = 256;
/// Spare circuits for searches: for a query, its second try at another exit, and the next query.
const SPARE_SEARCHES: usize = 3;

use super::SearchSettings;

type ReplySender<T> = oneshot::Sender<Result<T, ConnectError>>;

/// Commands of the handles to the task.
pub(super) enum ClientCommand {
    /// Opens a stream to `target`.
    Open {
        /// The target.
        target: Target,
        /// The isolation of the stream's circuit.
        isolation: Isolation,
        /// Takes the outcome.
        reply: ReplySender<Stream>,
    },
    /// Resolves `host`.
    Resolve {
        /// The name or address.
        host: Host,
        /// The isolation of the stream's circuit.
        isolation: Isolation,
        /// Takes the outcome.
        reply: ReplySender<Vec<ResolvedAnswer>>,
    },
    /// Delegates a request to an exit that offers its service.
    Delegate {
        /// The request.
        request: DelegatedRequest,
        /// Takes the outcome.
        reply: ReplySender<Delegated>,
    },
    /// A newer consensus.
    Consensus(Arc<Consensus>),
    /// A newer list of volunteers.
    Volunteers(Arc<VolunteerList>),
}

/// A client's core joined with a transport; commands of handles arrive over `commands`.
pub(super) fn drive(
    folder: Option<Folder>,
    commands: mpsc::Receiver<ClientCommand>,
    parameters: ClientParameters,
    searches: SearchSettings,
    observers: ClientObservers,
) -> Result<Drive<DrivenClient>, Failure> {
    let guards = match &folder {
        Some(folder) => folder.guards()?,
        None => GuardSample::default(),
    };
    let driven = DrivenClient {
        client: ClientMachine::new(parameters, guards),
        hub: Hub::new(),
        commands,
        waiting: BTreeMap::new(),
        folder,
        searches,
        current_offers: CurrentOffers::default(),
        observers,
        reported: Reported::default(),
    };
    // Never presented, because each dial creates a fresh certificate.
    let certificate = Certificate::generate()?;
    let sockets = Sockets::bind(&[], true)?;
    Drive::new(Clock::start(), sockets, network::endpoint(certificate, None), driven, randomness()?)
}

/// The client's machine with its edges.
pub(super) struct DrivenClient {
    client: ClientMachine,
    hub: Hub<ClientStream>,
    commands: mpsc::Receiver<ClientCommand>,
    waiting: BTreeMap<ClientStream, WaitingRequester>,
    folder: Option<Folder>,
    searches: SearchSettings,
    current_offers: CurrentOffers,
    observers: ClientObservers,
    reported: Reported,
}

/// The current offers of delegated services.
#[derive(Default)]
struct CurrentOffers {
    /// The offers of relays in the consensus; `None` before the first consensus.
    listed: Option<Vec<(RelayId, Offer)>>,
    /// The offers of volunteers in the volunteer list.
    volunteers: Vec<(RelayId, Offer)>,
}

/// The relays that offer a service, with their offers.
fn with_offer<'a>(relays: impl Iterator<Item = (RelayId, &'a Offer)>) -> Vec<(RelayId, Offer)> {
    relays.filter(|(_, offer)| !offer.is_empty()).map(|(relay, offer)| (relay, offer.clone())).collect()
}

/// Recipients of the task's events.
pub(super) struct ClientObservers {
    /// Set when the first circuit is built.
    pub(super) ready: watch::Sender<bool>,
    /// The current offers of relays and volunteers.
    pub(super) offers: watch::Sender<Offers>,
    /// The supervisor, for the steps of the start.
    pub(super) reporter: Reporter,
}

/// The recipient of a stream or an answer that a requester waits for.
enum WaitingRequester {
    Stream(ReplySender<Stream>),
    Answer(ReplySender<Vec<ResolvedAnswer>>),
    Delegated(ReplySender<Delegated>),
}

/// Steps of the start that were already reported.
#[derive(Default)]
struct Reported {
    consensus: bool,
    circuit: bool,
}

impl DrivenClient {
    fn handle_client_command(&mut self, now: Instant, command: ClientCommand, rng: &mut StdRng) {
        match command {
            ClientCommand::Open { target, isolation, reply } => {
                let stream = self.client.open(now, target, isolation);
                self.waiting.insert(stream, WaitingRequester::Stream(reply));
            }
            ClientCommand::Resolve { host, isolation, reply } => {
                let stream = self.client.resolve(now, host, isolation);
                self.waiting.insert(stream, WaitingRequester::Answer(reply));
            }
            ClientCommand::Delegate { request, reply } => {
                let DelegatedRequest { delegation, excluded_exits, isolation } = request;
                if let Delegation::Search(_) = delegation {
                    // More searches are likely after the first.
                    self.client.keep_ready(delegation.clone(), SPARE_SEARCHES);
                }
                let stream = self.client.delegate(now, delegation, excluded_exits, isolation);
                self.waiting.insert(stream, WaitingRequester::Delegated(reply));
            }
            ClientCommand::Consensus(consensus) => {
                if !self.reported.consensus {
                    self.reported.consensus = true;
                    self.observers.reporter.send(&Report::Consensus { relays: consensus.relays().len() });
                }
                let listed = consensus.relays().iter().map(|relay| (relay.identity(), &relay.profile.offer));
                self.current_offers.listed = Some(with_offer(listed));
                self.update_offers();
                self.client.set_consensus(now, wall_time(), consensus, rng);
            }
            ClientCommand::Volunteers(list) => {
                let listed = list.volunteers().iter().map(|volunteer| (volunteer.identity(), &volunteer.profile.offer));
                self.current_offers.volunteers = with_offer(listed);
                self.update_offers();
                self.client.set_volunteers(now, wall_time(), list);
            }
        }
    }

    /// Publishes changed offers. At the first offers with an engine, keeps circuits ready for searches if configured.
    fn update_offers(&mut self) {
        let CurrentOffers { listed: Some(listed), volunteers } = &self.current_offers else { return };
        let offers: Offers = Some(listed.iter().chain(volunteers).cloned().collect());
        if *self.observers.offers.borrow() == offers {
            return;
        }
        if core::mem::take(&mut self.searches.prebuilt) {
            let engine = engines(&offers, self.searches.engine.as_ref()).into_iter().next();
            match engine {
                Some(engine) => self.client.keep_ready(Delegation::Search(engine), SPARE_SEARCHES),
                None => self.searches.prebuilt = true,
            }
        }
        self.observers.offers.send_replace(offers);
    }

    fn handle_command(&mut self, stream: ClientStream, command: StreamCommand) {
        let changes_room = matches!(command, StreamCommand::Write(_));
        self.client.handle_command(stream, command);
        if changes_room {
            self.hub.set_room(stream, self.client.room(stream));
        }
    }

    fn handle_event(&mut self, event: ClientEvent) {
        match event {
            ClientEvent::Ready => _ = self.observers.ready.send_replace(true),
            ClientEvent::CircuitBuilt { path, channel_time, hop_times } => {
                self.report_circuit(&path, channel_time, &hop_times);
            }
            ClientEvent::GuardsChanged => self.store_guards(),
            ClientEvent::ConsensusExpired => {
                tracing::error!("the consensus has expired; requests fail until a directory has a newer consensus");
            }
            ClientEvent::Delegated { stream, path, hop_times, shared_exit } => {
                if let Some(WaitingRequester::Delegated(reply)) = self.waiting.remove(&stream) {
                    let hops = path
                        .into_iter()
                        .zip(hop_times)
                        .map(|(relay, time)| Hop { relay, handshake_time: time })
                        .collect();
                    let opened = self.hub.open(stream, self.client.room(stream));
                    let _ = reply.send(Ok(Delegated { stream: opened, path: hops, shared_exit }));
                }
            }
            ClientEvent::Stream(stream, event) => self.handle_stream(stream, event),
            ClientEvent::Failed(stream, failure) => self.close(stream, failure),
        }
    }

    fn handle_stream(&mut self, stream: ClientStream, event: StreamEvent) {
        match event {
            StreamEvent::Connected(_) => {
                if let Some(WaitingRequester::Stream(reply)) = self.waiting.remove(&stream) {
                    // If the requester no longer waits, `send` drops the stream, and a dropped stream is reset.
                    let _ = reply.send(Ok(self.hub.open(stream, self.client.room(stream))));
                }
            }
            StreamEvent::Resolved { answers, .. } => {
                if let Some(WaitingRequester::Answer(reply)) = self.waiting.remove(&stream) {
                    let _ = reply.send(Ok(answers));
                }
            }
            StreamEvent::Data(bytes) => self.hub.push(stream, &bytes),
            StreamEvent::Finished => self.hub.finish(stream),
            StreamEvent::Writable => self.hub.set_room(stream, self.client.room(stream)),
            StreamEvent::Closed(reason) => self.close(stream, StreamFailure::Ended(reason)),
            // Events that only exits receive.
            StreamEvent::Begin(_) | StreamEvent::Resolve(_) | StreamEvent::Request(_) => {}
        }
    }

    /// Ends a stream, or the wait for it.
    fn close(&mut self, stream: ClientStream, failure: StreamFailure) {
        match self.waiting.remove(&stream) {
            Some(WaitingRequester::Stream(reply)) => _ = reply.send(Err(failure.into())),
            Some(WaitingRequester::Answer(reply)) => _ = reply.send(Err(failure.into())),
            Some(WaitingRequester::Delegated(reply)) => _ = reply.send(Err(failure.into())),
            None => self.hub.fail(stream, end_reason(failure)),
        }
    }

    fn report_circuit(&mut self, path: &[RelayId], channel_time: Duration, hop_times: &[Duration]) {
        let total: Duration = hop_times.iter().sum();
        tracing::debug!(hops = hop_times.len(), microseconds = total.as_micros(), "a circuit is built");
        if !self.reported.circuit {
            self.reported.circuit = true;
            let hops = path
                .iter()
                .zip(hop_times)
                .map(|(relay, time)| HopReport { relay: relay.to_string(), handshake_time: *time });
            self.observers.reporter.send(&Report::Circuit { channel: channel_time, hops: hops.collect() });
        }
    }

    fn store_guards(&self) {
        if let Some(folder) = &self.folder
            && let Err(error) = folder.store_guards(self.client.guards())
        {
            tracing::error!(%error, "can't store the guards; the next start will choose others");
        }
    }
}

impl Drop for DrivenClient {
    /// Stores changed guards, because the task ends by a drop of its future.
    fn drop(&mut self) {
        if self.client.take_guard_changes() {
            self.store_guards();
        }
    }
}

const fn end_reason(failure: StreamFailure) -> EndReason {
    match failure {
        StreamFailure::Ended(reason) => reason,
        _ => EndReason::Failed,
    }
}

impl TaskDriven for DrivenClient {
    fn poll_outside(&mut self, now: Instant, rng: &mut StdRng, cx: &mut Context<'_>) -> Poll<()> {
        let mut progress = Poll::Pending;
        for _ in 0..COMMANDS_PER_TURN {
            let Poll::Ready(Some(command)) = self.commands.poll_recv(cx) else { break };
            self.handle_client_command(now, command, rng);
            progress = Poll::Ready(());
        }
        for _ in 0..COMMANDS_PER_TURN {
            let Poll::Ready((stream, command)) = self.hub.poll_command(cx) else { break };
            self.handle_command(stream, command);
            progress = Poll::Ready(());
        }
        progress
    }
}

impl Driven for DrivenClient {
    fn machine(&mut self) -> &mut impl LinkMachine {
        &mut self.client
    }

    fn deliver(&mut self, _: Instant) -> bool {
        let mut delivered = false;
        while let Some(event) = self.client.poll_event() {
            self.handle_event(event);
            delivered = true;
        }
        self.hub.flush();
        delivered
    }
}
