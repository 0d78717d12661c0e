//! The exit's I/O: connects to targets, resolves names and forwards bytes, for the streams of origins.
//!
//! The task that owns the core owns the [`Exit`] too. That task passes the events of the core's exit streams to the
//! exit, and applies the resulting commands to the core. Each stream or lookup waits in a separate task, so the exit
//! never blocks the core. Governed by `proto/08-paths.md` ("Exit policies"): the policy decides on each address after
//! resolution, and the exit connects to an allowed address. Threat addressed: use of an exit against its local network.
//!
//! Bounded: sockets in total, streams that the core has removed, time to connect, concurrent lookups, bytes of each
//! stream by its credit and room, and the unread bytes of all streams. The core's cap bounds the streams and lookups that
//! wait for a place.

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
    exit::{
        delegated::Delegate,
        ending::{EndKind, EndingStreams},
    },
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
    /// Maximum concurrent streams and lookups, one socket each; usually 4,352, the sum of [`Self::ending`] and
    /// [`RelayParameters::exit_streams`]. Beyond this, streams and lookups wait for a place for a second, then they are
    /// refused.
    ///
    /// [`RelayParameters::exit_streams`]: crate::relay::RelayParameters::exit_streams
    pub streams: usize,
    /// Maximum bytes of all streams from origins that their targets have not read; usually 256 MiB. Beyond it, streams
    /// end until a sixteenth of it is free: always the one with most such bytes, of the circuit with most, of the
    /// circuit owner with most.
    pub unread: usize,
    /// Maximum streams that have ended, but whose target has not read all bytes of the origin; usually 256. Beyond it, one
    /// of these is cut, and the target gets a TCP reset: the one whose target reads least, of the circuit owner closest
    /// to its share. Streams that the origin has reset, or whose circuit has ended, are cut first.
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

/// Time for which a stream or lookup waits for a place. There are places for the streams of the core and for those of
/// [`ExitOptions::ending`], so one is free as soon as the task of an ended stream has run.
const PLACE_TIMEOUT: Duration = Duration::from_secs(1);

/// The running streams and lookups of an exit.
pub(crate) struct Exit {
    hub: Hub<ExitStream>,
    shared: Arc<ExitShared>,
    tasks: JoinSet<ExitStream>,
    /// Running lookups, each with a task.
    lookups: BTreeMap<ExitStream, AbortHandle>,
    /// The owners of the streams with a task. The core forgets the owner of a stream at its end.
    owners: HashMap<ExitStream, RequestOwner>,
    /// Streams that the core has removed. The tasks of some still write to the target.
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
        let stream = self.open(id, owner, 0);
        let shared = Arc::clone(&self.shared);
        self.tasks.spawn(async move {
            serve_stream(shared, id, owner, target, stream).await;
            id
        });
    }

    /// Opens a stream of `owner` with an initial room of `room` bytes.
    fn open(&mut self, id: ExitStream, owner: RequestOwner, room: usize) -> Stream {
        self.forget_finished_tasks();
        self.owners.insert(id, owner);
        self.hub.open(id, room)
    }

    /// Forgets the streams and lookups whose tasks have ended.
    fn forget_finished_tasks(&mut self) {
        while let Some(finished) = self.tasks.try_join_next() {
            if let Ok(id) = finished {
                self.owners.remove(&id);
                self.ending.remove(id);
            }
        }
    }

    /// Starts a lookup.
    fn resolve(&mut self, id: ExitStream, owner: RequestOwner, host: Host) {
        self.forget_finished_tasks();
        let shared = Arc::clone(&self.shared);
        let lookup = self.tasks.spawn(async move {
            let Some(place) = shared.take_place(id).await else { return id };
            let outcome = match shared.resolver.resolve(Some(owner), &host).await {
                Ok(LookupAnswers { ttl, answers }) => StreamCommand::Resolved { ttl, answers },
                Err(reason) => StreamCommand::Reset(reason),
            };
            shared.send_outcome(id, outcome);
            drop(place);
            id
        });
        self.lookups.insert(id, lookup);
    }

    /// Performs the delegated request that arrives over the stream, and writes the answer to the stream. The core has
    /// room for `room` bytes of the answer.
    fn delegate(&mut self, id: ExitStream, owner: RequestOwner, service: Service, room: usize) {
        let Some(delegate) = self.shared.delegate.clone() else {
            self.shared.send_outcome(id, StreamCommand::Reset(EndReason::Policy));
            return;
        };
        let stream = self.open(id, owner, room);
        let failure = stream.failure();
        let shared = Arc::clone(&self.shared);
        let serving = async move {
            if let Some(_place) = shared.take_place(id).await {
                delegate.serve(service, owner, stream).await;
            }
        };
        self.tasks.spawn(async move {
            tokio::select! {
                () = serving => {}
                _ = failure => {}
            }
            id
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

    /// Handles the end of a stream: no share of the core counts its socket any more.
    fn handle_ended(&mut self, id: ExitStream, kind: EndKind) {
        self.forget_finished_tasks();
        let now = Instant::START.after(self.start.elapsed());
        let (Some(unread), Some(owner)) = (self.hub.unread_of(id), self.owners.get(&id)) else { return };
        self.ending.insert(now, id, *owner, kind, unread);
        while let Some(cut) = self.ending.poll_cut(now, |id| self.hub.unread_of(id)) {
            tracing::debug!("ending a stream whose target reads too slowly");
            self.hub.discard(cut, EndReason::ResourceLimit);
        }
    }

    /// Sets the number of bytes from the target for which the core has room.
    fn set_room(&mut self, id: ExitStream, room: usize) {
        self.hub.set_room(id, room);
    }

    /// Cancels a stream or lookup. An evicted stream frees its socket without delay.
    fn close(&mut self, id: ExitStream, reason: EndReason) {
        if let Some(lookup) = self.lookups.remove(&id) {
            lookup.abort();
        }
        if reason == EndReason::ResourceLimit {
            self.hub.discard(id, reason);
        } else {
            self.hub.end(id, EndReason::Reset);
            self.handle_ended(id, EndKind::Failed);
        }
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
            self.handle_ended(id, EndKind::Finished);
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
    /// Waits for a place. Beyond [`PLACE_TIMEOUT`], refuses the stream or lookup.
    async fn take_place(&self, id: ExitStream) -> Option<OwnedSemaphorePermit> {
        let place = timeout(PLACE_TIMEOUT, Arc::clone(&self.places).acquire_owned()).await.ok().and_then(Result::ok);
        if place.is_none() {
            self.send_outcome(id, StreamCommand::Reset(EndReason::ResourceLimit));
        }
        place
    }

    /// Queues the outcome of a task for the core.
    fn send_outcome(&self, id: ExitStream, outcome: StreamCommand) {
        // Fails only when the core's task has ended.
        let _ = self.outcome.send((id, outcome));
    }
}

/// Connects to `target`, and forwards bytes between target and `stream` until either closes.
async fn serve_stream(shared: Arc<ExitShared>, id: ExitStream, owner: RequestOwner, target: Target, stream: Stream) {
    let connecting = async {
        let place = shared.take_place(id).await?;
        let connecting = connect::connect(&shared.options.policy, &shared.resolver, Some(owner), &target);
        Some((place, timeout(shared.options.connect_timeout, connecting).await.unwrap_or(Err(EndReason::TimedOut))))
    };
    let connected = tokio::select! {
        connected = connecting => connected,
        // The origin has reset the stream.
        _ = stream.failure() => None,
    };
    let Some((place, connected)) = connected else { return };
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
