//! What an exit does for origins: connects, resolves, and moves bytes, as the relay's core asks.
//!
//! [`Exit`] belongs to the task that owns the core. It takes the core's requests and gives back what the core is to be
//! told; everything that waits runs in tasks of its own, one per stream or question, so nothing here ever blocks the
//! core. Governed by `proto/08-paths.md` ("Exit policies"): the policy is asked about each address after resolution, and
//! what was asked about is what is connected to. It keeps an exit from being turned against its own network.
//!
//! Bounded: streams and questions in all, time to connect, questions at a time, and bytes of each stream by its credit
//! and room.

pub(super) mod connect;
mod relay;
#[cfg(test)]
mod tests;

use core::{net::IpAddr, time::Duration};
use std::{collections::BTreeMap, sync::Arc};

use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore, mpsc},
    task::{AbortHandle, JoinSet},
    time::timeout,
};

use crate::{
    base::Instant,
    exit::Policy,
    wire::{Answer, EndReason, Host, Service, Target},
};

use super::{
    delegated::Delegate,
    resolver::{Found, Resolver},
    stream::{Hub, Stream, StreamCommand, StreamKey, splice},
};

/// What an exit may do.
#[derive(Debug)]
pub struct ExitOptions {
    /// Where it connects to.
    pub policy: Policy,
    /// Streams and questions at a time, a socket each; 4,096. What comes beyond is refused.
    pub streams: usize,
    /// For resolving and connecting together; 15 s, less than origins wait.
    pub connect: Duration,
}

impl ExitOptions {
    /// The usual limits with `policy`.
    #[must_use]
    pub const fn new(policy: Policy) -> Self {
        Self { policy, streams: 4096, connect: Duration::from_secs(15) }
    }
}

/// What an exit tells the core, whatever core it is.
pub(crate) trait ExitCore {
    /// The target is connected.
    fn connected(&mut self, now: Instant, key: StreamKey, address: IpAddr);
    /// The resolver has answered.
    fn resolved(&mut self, key: StreamKey, ttl: u32, answers: Vec<Answer>);
    /// The stream or question has failed.
    fn failed(&mut self, key: StreamKey, reason: EndReason);
    /// Takes what the target sent, never more than [`Self::room`] was.
    fn write(&mut self, now: Instant, key: StreamKey, bytes: &[u8]);
    /// Bytes it takes now.
    fn room(&mut self, key: StreamKey) -> usize;
    /// The target has sent all it had.
    fn finish(&mut self, key: StreamKey);
    /// Bytes have gone to the target.
    fn consumed(&mut self, key: StreamKey, bytes: usize);
}

/// What the core is to be told; see [`Exit::apply`].
#[derive(Debug)]
pub(crate) enum ExitCommand {
    /// The target is connected.
    Connected { key: StreamKey, address: IpAddr },
    /// The question is answered.
    Resolved { key: StreamKey, ttl: u32, answers: Vec<Answer> },
    /// Neither.
    Failed { key: StreamKey, reason: EndReason },
    /// A stream has something to say.
    Stream(StreamCommand),
}

/// All that an exit is doing.
pub(crate) struct Exit {
    hub: Hub,
    shared: Arc<Shared>,
    tasks: JoinSet<()>,
    /// What asks the resolver, so as many as there are tasks at the most.
    questions: BTreeMap<StreamKey, AbortHandle>,
    /// One command a task, so as many as there are tasks.
    outcomes: mpsc::UnboundedReceiver<ExitCommand>,
}

struct Shared {
    options: ExitOptions,
    resolver: Arc<Resolver>,
    delegate: Option<Arc<Delegate>>,
    permits: Arc<Semaphore>,
    outcome: mpsc::UnboundedSender<ExitCommand>,
}

impl Exit {
    /// An exit that does nothing yet; `delegate` performs requests, if it does.
    #[must_use]
    pub(crate) fn new(options: ExitOptions, resolver: Arc<Resolver>, delegate: Option<Arc<Delegate>>) -> Self {
        let (outcome, outcomes) = mpsc::unbounded_channel();
        let permits = Arc::new(Semaphore::new(options.streams));
        let shared = Arc::new(Shared { options, resolver, delegate, permits, outcome });
        Self { hub: Hub::new(), shared, tasks: JoinSet::new(), questions: BTreeMap::new(), outcomes }
    }

    /// Connects to `target`. The stream is open at once, since an origin may send before it knows of the connection.
    pub(crate) fn connect(&mut self, key: StreamKey, target: Target) {
        while self.tasks.try_join_next().is_some() {}
        if let Some(permit) = self.permit(key) {
            let stream = self.hub.open(key, 0);
            self.tasks.spawn(serve_stream(Arc::clone(&self.shared), key, target, stream, permit));
        }
    }

    /// Asks the resolver.
    pub(crate) fn resolve(&mut self, key: StreamKey, host: Host) {
        while self.tasks.try_join_next().is_some() {}
        let Some(permit) = self.permit(key) else { return };
        let shared = Arc::clone(&self.shared);
        let asking = self.tasks.spawn(async move {
            shared.tell(match shared.resolver.resolve(&host).await {
                Ok(Found { ttl, answers }) => ExitCommand::Resolved { key, ttl, answers },
                Err(reason) => ExitCommand::Failed { key, reason },
            });
            drop(permit);
        });
        self.questions.insert(key, asking);
    }

    /// Performs what comes as the stream's bytes, and writes the answer there; the core takes `room` bytes of it at once.
    pub(crate) fn delegate(&mut self, key: StreamKey, service: Service, circuit: u64, room: usize) {
        while self.tasks.try_join_next().is_some() {}
        let Some(delegate) = self.shared.delegate.clone() else {
            self.shared.tell(ExitCommand::Failed { key, reason: EndReason::Policy });
            return;
        };
        let Some(permit) = self.permit(key) else { return };
        let stream = self.hub.open(key, room);
        let given_up = stream.failure();
        self.tasks.spawn(async move {
            tokio::select! {
                () = delegate.serve(service, circuit, stream) => {}
                _ = given_up => {}
            }
            drop(permit);
        });
    }

    /// Bytes for the target.
    pub(crate) fn push(&mut self, key: StreamKey, bytes: &[u8]) {
        self.hub.push(key, bytes);
    }

    /// The origin has sent all it had.
    pub(crate) fn finish(&mut self, key: StreamKey) {
        self.hub.finish(key);
    }

    /// The core takes `room` bytes of what the target sends.
    pub(crate) fn set_room(&mut self, key: StreamKey, room: usize) {
        self.hub.set_room(key, room);
    }

    /// The stream or question is void.
    pub(crate) fn close(&mut self, key: StreamKey) {
        if let Some(asking) = self.questions.remove(&key) {
            asking.abort();
        }
        self.hub.fail(key, EndReason::Reset);
    }

    fn permit(&self, key: StreamKey) -> Option<OwnedSemaphorePermit> {
        let permit = Arc::clone(&self.shared.permits).try_acquire_owned().ok();
        if permit.is_none() {
            self.shared.tell(ExitCommand::Failed { key, reason: EndReason::ResourceLimit });
        }
        permit
    }

    /// Wakes who reads what was pushed.
    pub(crate) fn flush(&mut self) {
        self.hub.flush();
    }

    /// Tells the core what `command` says.
    pub(crate) fn apply(&mut self, now: Instant, core: &mut impl ExitCore, command: ExitCommand) {
        match command {
            ExitCommand::Connected { key, address } => {
                core.connected(now, key, address);
                self.hub.set_room(key, core.room(key));
            }
            ExitCommand::Resolved { key, ttl, answers } => {
                self.questions.remove(&key);
                core.resolved(key, ttl, answers);
            }
            ExitCommand::Failed { key, reason } => {
                self.questions.remove(&key);
                self.hub.fail(key, reason);
                core.failed(key, reason);
            }
            ExitCommand::Stream(StreamCommand::Write { key, bytes }) => {
                core.write(now, key, &bytes);
                self.hub.set_room(key, core.room(key));
            }
            ExitCommand::Stream(StreamCommand::Consumed { key, bytes }) => core.consumed(key, bytes),
            ExitCommand::Stream(StreamCommand::Finish { key }) => core.finish(key),
            ExitCommand::Stream(StreamCommand::Reset { key, reason }) => core.failed(key, reason),
        }
    }

    /// The next command, when there is one. Nothing is lost when the future is dropped.
    pub(crate) async fn command(&mut self) -> ExitCommand {
        tokio::select! {
            // What became of a stream before what it says.
            biased;
            Some(outcome) = self.outcomes.recv() => outcome,
            command = self.hub.command() => ExitCommand::Stream(command),
        }
    }
}

impl Shared {
    fn tell(&self, command: ExitCommand) {
        // Fails only when the core's task is gone, and then no one cares.
        let _ = self.outcome.send(command);
    }
}

async fn serve_stream(
    shared: Arc<Shared>,
    key: StreamKey,
    target: Target,
    stream: Stream,
    permit: OwnedSemaphorePermit,
) {
    let connecting =
        timeout(shared.options.connect, connect::connect(&shared.options.policy, &shared.resolver, &target));
    let connected = tokio::select! {
        connected = connecting => connected.unwrap_or(Err(EndReason::TimedOut)),
        // The origin has given up.
        _ = stream.failure() => return,
    };
    match connected {
        Ok(connect::Connected { socket, address, round_trip }) => {
            shared.tell(ExitCommand::Connected { key, address });
            if let Err(error) = splice(socket, stream, &[], Some(round_trip)).await {
                tracing::debug!(kind = ?error.kind(), "a stream to a target ended early");
            }
        }
        Err(reason) => shared.tell(ExitCommand::Failed { key, reason }),
    }
    drop(permit);
}
