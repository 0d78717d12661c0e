//! The exit's I/O: connects to targets, resolves names and forwards bytes, for the streams of origins.
//!
//! The task that owns the core owns the [`Exit`] too. That task passes the events of the core's exit streams to the
//! exit, and applies the resulting commands to the core. Each stream or lookup waits in a separate task, so the exit
//! never blocks the core. Governed by `proto/08-paths.md` ("Exit policies"): the policy decides on each address after
//! resolution, and the exit connects to an allowed address. Threat addressed: use of an exit against its local network.
//!
//! Bounded: streams and lookups in total, time to connect, concurrent lookups, bytes of each stream by its credit and
//! room, and the unread bytes of all streams.

pub(crate) mod delegated;
mod ending;
pub(crate) mod outbound;
#[cfg(test)]
mod tests;
mod unread;

use core::{
    task::{Context, Poll},
    time::Duration,
};
use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
    time::{self, timeout},
};

use crate::{
    base::Instant,
    delegated::limits::RequestOwner,
    exit::{delegated::Delegate, ending::EndingStreams},
    exit_policy::Policy,
    io::{
        connect::{self, Connected},
        resolver::{LookupAnswers, Resolver},
        stream::{Hub, SocketEnd, Stream, splice},
    },
    relay::{ExitStream, Relay},
    stream::{StreamCommand, StreamEvent},
    wire::{EndReason, Host, Service, Target},
};

/// The policy and limits of an exit.
#[derive(Debug)]
pub struct ExitOptions {
    /// The targets that the exit may connect to.
    pub policy: Policy,
    /// Maximum concurrent streams and lookups, one socket each; usually 4,352. Beyond this, streams and
    /// lookups are refused. A socket closes shortly after its stream has ended, so this is more than [`RelayParameters::exit_streams`].
    ///
    /// [`RelayParameters::exit_streams`]: crate::relay::RelayParameters::exit_streams
    pub streams: usize,
    /// Maximum bytes of all streams from origins that their targets have not read; usually 256 MiB. Beyond it, streams
    /// end until a sixteenth of it is free: always the one with most such bytes, of the circuit with most, of the
    /// circuit owner with most.
    pub unread: usize,
    /// Maximum streams whose two directions have ended, but whose target has not read all bytes of the origin; usually
    /// 256. Beyond it, one of these ends, and the target gets a TCP reset: the one whose target reads least, of the
    /// circuit owner with most.
    pub ending: usize,
    /// Time limit for resolving and connecting together; usually 15 s, less than the origins' limit.
    pub connect_timeout: Duration,
}

impl ExitOptions {
    /// The usual limits with `policy`.
    #[must_use]
    pub const fn new(policy: Policy) -> Self {
        Self { policy, streams: 4096 + 256, unread: 256 << 20, ending: 256, connect_timeout: Duration::from_secs(15) }
    }
}

/// The running streams and lookups of an exit.
pub(crate) struct Exit {
    hub: Hub<ExitStream>,
    shared: Arc<ExitShared>,
    tasks: JoinSet<()>,
    /// Running lookups, each with a task.
    lookups: BTreeMap<ExitStream, AbortHandle>,
    /// The owners of the open streams. The core forgets the owner of a stream once both its directions have ended.
    owners: HashMap<ExitStream, RequestOwner>,
    /// Streams that the core has removed because both directions have ended. The tasks of some still write to the
    /// target.
    ending: EndingStreams,
    start: time::Instant,
    /// Results of tasks, and refusals: at most one for each stream or lookup.
    outcomes: mpsc::UnboundedReceiver<(ExitStream, StreamCommand)>,
}

struct ExitShared {
    options: ExitOptions,
    resolver: Arc<Resolver>,
    delegate: Option<Arc<Delegate>>,
    places: Arc<Semaphore>,
    outcome: mpsc::UnboundedSender<(ExitStream, StreamCommand)>,
}

impl Exit {
    /// An idle exit; `delegate` performs delegated requests, if the exit offers any.
    #[must_use]
    pub(crate) fn new(options: ExitOptions, resolver: Arc<Resolver>, delegate: Option<Arc<Delegate>>) -> Self {
        let (outcome, outcomes) = mpsc::unbounded_channel();
        let places = Arc::new(Semaphore::new(options.streams));
        let ending = EndingStreams::new(options.ending);
        let shared = Arc::new(ExitShared { options, resolver, delegate, places, outcome });
        Self {
            hub: Hub::new(),
            shared,
            tasks: JoinSet::new(),
            lookups: BTreeMap::new(),
            owners: HashMap::new(),
            ending,
            start: time::Instant::now(),
            outcomes,
        }
    }

    /// Connects to `target`. The stream opens immediately, because an origin may send before the exit has connected.
    fn connect(&mut self, id: ExitStream, owner: RequestOwner, target: Target) {
        while self.tasks.try_join_next().is_some() {}
        if let Some(place) = self.take_place(id) {
            let stream = self.open(id, owner, 0);
            self.tasks.spawn(serve_stream(Arc::clone(&self.shared), id, owner, target, stream, place));
        }
    }

    /// Opens a stream of `owner` with an initial room of `room` bytes.
    fn open(&mut self, id: ExitStream, owner: RequestOwner, room: usize) -> Stream {
        // At most as many streams are open as there are places, so this visit is rare.
        if self.owners.len() >= self.shared.options.streams.saturating_mul(2) {
            self.owners.retain(|id, _| self.hub.contains(*id));
        }
        self.owners.insert(id, owner);
        self.hub.open(id, room)
    }

    /// Starts a lookup.
    fn resolve(&mut self, id: ExitStream, owner: RequestOwner, host: Host) {
        while self.tasks.try_join_next().is_some() {}
        let Some(place) = self.take_place(id) else { return };
        let shared = Arc::clone(&self.shared);
        let lookup = self.tasks.spawn(async move {
            let outcome = match shared.resolver.resolve(Some(owner), &host).await {
                Ok(LookupAnswers { ttl, answers }) => StreamCommand::Resolved { ttl, answers },
                Err(reason) => StreamCommand::Reset(reason),
            };
            shared.send_outcome(id, outcome);
            drop(place);
        });
        self.lookups.insert(id, lookup);
    }

    /// Performs the delegated request that arrives over the stream, and writes the answer to the stream. The core has
    /// room for `room` bytes of the answer.
    fn delegate(&mut self, id: ExitStream, owner: RequestOwner, service: Service, room: usize) {
        while self.tasks.try_join_next().is_some() {}
        let Some(delegate) = self.shared.delegate.clone() else {
            self.shared.send_outcome(id, StreamCommand::Reset(EndReason::Policy));
            return;
        };
        let Some(place) = self.take_place(id) else { return };
        let stream = self.open(id, owner, room);
        let failure = stream.failure();
        self.tasks.spawn(async move {
            tokio::select! {
                () = delegate.serve(service, owner, stream) => {}
                _ = failure => {}
            }
            drop(place);
        });
    }

    /// Passes bytes from the origin to the target.
    fn push(&mut self, id: ExitStream, bytes: &[u8]) {
        self.hub.push(id, bytes);
    }

    /// Beyond the cap on unread bytes, ends streams until a sixteenth of it is free.
    fn cap_unread(&mut self) {
        let cap = self.shared.options.unread;
        if self.hub.unread() <= cap {
            return;
        }
        let streams = self.hub.unread_streams().map(|(id, bytes)| (self.owners.get(&id).copied(), bytes, id));
        for id in unread::by_fullest_owner(streams.collect()) {
            if self.hub.unread() <= (cap / 16).saturating_mul(15) {
                return;
            }
            tracing::debug!("ending a stream whose target reads too slowly");
            self.hub.discard(id, EndReason::ResourceLimit);
            self.shared.send_outcome(id, StreamCommand::Reset(EndReason::ResourceLimit));
        }
    }

    /// Handles the end of the origin's direction.
    fn finish(&mut self, id: ExitStream) {
        self.hub.finish(id);
    }

    /// Handles the end of both directions of a stream. No share of the core counts its socket any more.
    fn handle_ended(&mut self, id: ExitStream) {
        let now = Instant::START.after(self.start.elapsed());
        let Some(unread) = self.hub.unread_of(id) else { return };
        self.ending.insert(now, id, self.owners.get(&id).copied(), unread);
        while let Some(cut) = self.ending.poll_cut(now, |id| self.hub.unread_of(id)) {
            tracing::debug!("ending a stream whose target reads too slowly");
            self.hub.discard(cut, EndReason::ResourceLimit);
        }
    }

    /// Sets the number of bytes from the target for which the core has room.
    fn set_room(&mut self, id: ExitStream, room: usize) {
        self.hub.set_room(id, room);
    }

    /// Cancels a stream or lookup. A stream that makes room for another frees its socket without delay.
    fn close(&mut self, id: ExitStream, reason: EndReason) {
        if let Some(lookup) = self.lookups.remove(&id) {
            lookup.abort();
        }
        if reason == EndReason::ResourceLimit {
            self.hub.discard(id, reason);
        } else {
            self.hub.fail(id, EndReason::Reset);
        }
    }

    fn take_place(&self, id: ExitStream) -> Option<OwnedSemaphorePermit> {
        let place = Arc::clone(&self.shared.places).try_acquire_owned().ok();
        if place.is_none() {
            self.shared.send_outcome(id, StreamCommand::Reset(EndReason::ResourceLimit));
        }
        place
    }

    /// Wakes the readers of streams that `push` filled.
    pub(crate) fn flush(&mut self) {
        self.hub.flush();
    }

    /// The next command for the core.
    pub(crate) fn poll_command(&mut self, cx: &mut Context<'_>) -> Poll<(ExitStream, StreamCommand)> {
        // The outcome of a task precedes the commands of its stream.
        if let Poll::Ready(Some((id, outcome))) = self.outcomes.poll_recv(cx) {
            self.lookups.remove(&id);
            if let StreamCommand::Reset(reason) = outcome {
                self.hub.fail(id, reason);
            }
            return Poll::Ready((id, outcome));
        }
        self.hub.poll_command(cx)
    }

    /// Passes a command to the relay's core.
    pub(crate) fn handle_command(&mut self, relay: &mut Relay, id: ExitStream, command: StreamCommand) {
        let changes_room = matches!(command, StreamCommand::Connected(_) | StreamCommand::Write(_));
        let finishes = matches!(command, StreamCommand::Finish);
        relay.handle_command(id, command);
        if finishes {
            self.check_ended(relay, id);
        }
        if changes_room {
            self.set_room(id, relay.room(id));
        }
    }

    fn check_ended(&mut self, relay: &Relay, id: ExitStream) {
        if relay.request_owner(id).is_none() {
            self.handle_ended(id);
        }
    }

    /// Starts the connection, lookup or delegated request that an origin requests.
    fn serve(&mut self, id: ExitStream, owner: RequestOwner, event: StreamEvent, room: usize) {
        match event {
            StreamEvent::Begin(target) => self.connect(id, owner, target),
            StreamEvent::Resolve(host) => self.resolve(id, owner, host),
            StreamEvent::Request(service) => self.delegate(id, owner, service, room),
            _ => {}
        }
    }

    /// Handles an event of the relay's core. Never blocks.
    pub(crate) fn handle_event(&mut self, relay: &Relay, id: ExitStream, event: StreamEvent) {
        match event {
            StreamEvent::Begin(_) | StreamEvent::Resolve(_) | StreamEvent::Request(_) => {
                // A stream without an owner has already ended.
                if let Some(owner) = relay.request_owner(id) {
                    self.serve(id, owner, event, relay.room(id));
                }
            }
            StreamEvent::Data(bytes) => {
                self.push(id, &bytes);
                self.cap_unread();
            }
            StreamEvent::Finished => {
                self.finish(id);
                self.check_ended(relay, id);
            }
            StreamEvent::Writable => self.set_room(id, relay.room(id)),
            StreamEvent::Closed(reason) => self.close(id, reason),
            // Events of an origin only.
            StreamEvent::Connected(_) | StreamEvent::Resolved { .. } => {}
        }
    }
}

impl ExitShared {
    /// Queues the outcome of a task for the core.
    fn send_outcome(&self, id: ExitStream, outcome: StreamCommand) {
        // Fails only when the core's task has ended.
        let _ = self.outcome.send((id, outcome));
    }
}

/// Connects to `target`, and forwards bytes between target and `stream` until either closes.
async fn serve_stream(
    shared: Arc<ExitShared>,
    id: ExitStream,
    owner: RequestOwner,
    target: Target,
    stream: Stream,
    place: OwnedSemaphorePermit,
) {
    let connecting = timeout(
        shared.options.connect_timeout,
        connect::connect(&shared.options.policy, &shared.resolver, Some(owner), &target),
    );
    let connected = tokio::select! {
        connected = connecting => connected.unwrap_or(Err(EndReason::TimedOut)),
        // The origin has reset the stream.
        _ = stream.failure() => return,
    };
    match connected {
        Ok(Connected { socket, address, round_trip }) => {
            shared.send_outcome(id, StreamCommand::Connected(Some(address)));
            // On loopback, one segment can be longer than a limited receive window.
            let round_trip = (!address.is_loopback()).then_some(round_trip);
            if let Err(error) = splice(socket, stream, &[], SocketEnd::Target(round_trip)).await {
                tracing::debug!(kind = ?error.kind(), "a stream to a target ended early");
            }
        }
        Err(reason) => shared.send_outcome(id, StreamCommand::Reset(reason)),
    }
    drop(place);
}
