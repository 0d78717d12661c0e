//! The task that drives an authority: connects its core to HTTP, the store and the prover that dials relays.

use core::{future::Future, mem, time::Duration};
use std::{collections::BTreeMap, sync::Arc};

use rand::CryptoRng;
use tokio::{
    task::{JoinError, JoinSet, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use super::{DirectoryServer, Submission, Submissions};
use crate::{
    base::{Counter as _, DialError, DialTarget, RelayId, WallTime},
    directory::{Authority, AuthorityEvent, ClockMismatch, ProofError, SignedConsensus, SteadyClock},
    directory_http::store::{AuthorityStore, Change, StoreError},
    io::clock::running_time,
};

/// Timeout of a dial, shorter than the authority's timeout of a proof, so that the authority receives the outcome.
const DIAL_TIMEOUT: Duration = Duration::from_secs(20);
/// Minimum wait for a deadline. Wall time has whole seconds, so the time to a deadline may be rounded to zero.
const MIN_WAIT: Duration = Duration::from_millis(100);
/// Maximum wait until the wall clock is read again, because the clock may be set.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Interval between two readings of a clock that is wrong at the start.
const CLOCK_CHECK_INTERVAL: Duration = Duration::from_secs(1);
/// Minimum interval between two log lines about refused submissions.
const REFUSAL_LOG_INTERVAL: Duration = Duration::from_secs(60);

/// Dials relays for an authority, to prove their addresses.
pub trait Prover: Send + Sync + 'static {
    /// Opens a new link to the target, even if there is an open one, and verifies the identity of the relay. The future
    /// is dropped at the timeout.
    fn prove(&self, target: DialTarget) -> impl Future<Output = Result<(), ProofError>> + Send;
}

/// Drives `authority`: restores the records of `store`, passes `submissions` to the authority, and publishes its
/// documents at `server`. `rng` draws the seeds of volunteers. Ends once the senders of submissions are dropped.
///
/// A jump of `clock` has no effect ([`SteadyClock`]). If `clock` doesn't match the last consensus at the start
/// ([`Authority::clock_mismatch`]), submissions are refused and nothing is signed until `clock` is corrected.
///
/// # Errors
/// When the store can't be read. A failed write is logged, and the documents are served nevertheless.
pub async fn run_authority<S: AuthorityStore, P: Prover, R: CryptoRng>(
    authority: Authority,
    (server, mut submissions): (DirectoryServer, Submissions),
    store: S,
    prover: P,
    clock: impl Fn() -> WallTime,
    rng: R,
) -> Result<(), StoreError> {
    let (store, prover) = (Arc::new(store), Arc::new(prover));
    let stored = store.load()?;
    let last = stored.consensus.as_deref().unwrap_or_default();
    if !await_clock(|| authority.clock_mismatch(clock(), last), &mut submissions).await {
        return Ok(());
    }
    let mut steady = SteadyClock::new(clock(), running_time());
    let mut clock = move || steady.read(clock(), running_time());
    let (pending, writes, refused) = (BTreeMap::new(), JoinSet::new(), (0, Instant::now()));
    let mut service =
        DirectoryService { authority, server, store, prover, rng, proofs: JoinSet::new(), pending, writes, refused };
    let records = stored.relays.iter().map(Vec::as_slice);
    service.authority.restore(clock(), records, stored.consensus.as_deref());
    service.run(submissions, clock).await;
    Ok(())
}

/// Waits while `mismatch` returns a mismatch of the clock, and refuses submissions meanwhile. Returns `false` if the
/// server was dropped.
async fn await_clock(mismatch: impl Fn() -> Option<ClockMismatch>, submissions: &mut Submissions) -> bool {
    let Some(first) = mismatch() else { return true };
    tracing::warn!(
        "{first}. The directory waits. If the clock is wrong, set the clock. If it is right, restart the directory with \
         --clock-is-right"
    );
    while mismatch().is_some() {
        tokio::select! {
            // The submission is dropped, so that its sender gets status 503.
            submission = submissions.recv() => if submission.is_none() { return false },
            () = sleep(CLOCK_CHECK_INTERVAL) => {}
        }
    }
    tracing::info!("the machine's clock matches the last consensus; the directory starts");
    true
}

/// The state of the task.
struct DirectoryService<S, P, R> {
    authority: Authority,
    server: DirectoryServer,
    store: Arc<S>,
    prover: Arc<P>,
    rng: R,
    proofs: JoinSet<(DialTarget, Result<(), ProofError>)>,
    /// Pending changes of relays' records, the last change of each relay.
    pending: BTreeMap<RelayId, Change>,
    /// The write in progress, at most one.
    writes: JoinSet<Result<(), StoreError>>,
    /// The number of submissions refused since the last log line about refusals, and the time of that line.
    refused: (u64, Instant),
}

impl<S: AuthorityStore, P: Prover, R: CryptoRng> DirectoryService<S, P, R> {
    async fn run(&mut self, mut submissions: Submissions, mut clock: impl FnMut() -> WallTime) {
        loop {
            // The deadline is checked before each submission, so that constant submissions can't delay it.
            if self.authority.poll_timeout().is_some_and(|deadline| deadline <= clock()) {
                self.authority.handle_timeout(clock());
            }
            self.drain().await;
            self.log_refusals();
            let wait = self.authority.poll_timeout().map_or(MAX_WAIT, |deadline| deadline.since(clock()));
            tokio::select! {
                submission = submissions.recv() => match submission {
                    Some(submission) => self.handle_submission(clock(), submission),
                    None => return,
                },
                Some(proof) = self.proofs.join_next() => match proof {
                    Ok((target, outcome)) => self.authority.handle_proof(clock(), &target, outcome),
                    Err(error) => tracing::error!(%error, "the dial for a proof ended without a result"),
                },
                Some(write) = self.writes.join_next() => {
                    log_failure(write);
                    self.write();
                }
                () = sleep(wait.clamp(MIN_WAIT, MAX_WAIT)) => self.authority.handle_timeout(clock()),
            }
        }
    }

    /// Passes a submission to the authority, and sends the answer. A failed send needs no action: the sender of the
    /// submission has closed its connection.
    fn handle_submission(&mut self, now: WallTime, submission: Submission) {
        match submission {
            Submission::Descriptor(bytes, publisher, sender) => {
                let outcome = self.authority.handle_descriptor(now, &bytes, publisher);
                match &outcome {
                    Ok(relay) => tracing::debug!(%relay, "accepted a descriptor"),
                    Err(error) => self.refuse(error, "refused a descriptor"),
                }
                _ = sender.send(outcome.map(|_| ()));
            }
            Submission::Volunteer(bytes, sender) => {
                let outcome = self.authority.handle_volunteer(now, &bytes, &mut self.rng);
                if let Err(error) = &outcome {
                    self.refuse(error, "refused a volunteer's registration");
                }
                _ = sender.send(outcome);
            }
            Submission::Presence(bytes, sender) => {
                let outcome = self.authority.handle_presence(now, &bytes);
                if let Err(error) = &outcome {
                    self.refuse(error, "refused a gateway's report");
                }
                _ = sender.send(outcome);
            }
        }
    }

    /// Handles the authority's events. A consensus is stored before it is served, so that a restart can't serve an
    /// older one.
    async fn drain(&mut self) {
        let mut published = None;
        while let Some(event) = self.authority.poll_event() {
            match event {
                AuthorityEvent::Prove(target) => self.prove(target),
                AuthorityEvent::StoreRecord { relay, record } => {
                    self.pending.insert(relay, Change::Put { relay, record });
                }
                AuthorityEvent::DeleteRecord(relay) => _ = self.pending.insert(relay, Change::Delete(relay)),
                AuthorityEvent::PublishVolunteers(list) => self.server.publish_volunteers(list).await,
                AuthorityEvent::Publish(consensus) => published = Some(consensus),
            }
        }
        match published {
            Some(consensus) => self.publish(consensus).await,
            None => self.write(),
        }
    }

    /// Stores a consensus with all pending changes, then serves it.
    async fn publish(&mut self, consensus: SignedConsensus) {
        while let Some(write) = self.writes.join_next().await {
            log_failure(write);
        }
        let mut changes: Vec<Change> = mem::take(&mut self.pending).into_values().collect();
        changes.push(Change::Publish(consensus.as_bytes().to_vec()));
        let store = Arc::clone(&self.store);
        log_failure(spawn_blocking(move || store.apply(&changes)).await);
        self.server.publish(consensus).await;
    }

    /// Starts a write of all pending changes, unless a write is in progress. Changes during a write are written
    /// together afterwards, so that many changes cause few writes, and no write delays a submission.
    fn write(&mut self) {
        if self.writes.is_empty() && !self.pending.is_empty() {
            let changes: Vec<Change> = mem::take(&mut self.pending).into_values().collect();
            let store = Arc::clone(&self.store);
            self.writes.spawn_blocking(move || store.apply(&changes));
        }
    }

    /// Counts and logs a refused submission.
    fn refuse(&mut self, error: &dyn core::error::Error, what: &'static str) {
        self.refused.0.increment();
        tracing::debug!(%error, "{what}");
    }

    /// Logs the number of refusals, at most once a minute.
    fn log_refusals(&mut self) {
        let (number, since) = self.refused;
        if number > 0 && since.elapsed() >= REFUSAL_LOG_INTERVAL {
            tracing::info!(number, "refused submissions");
            self.refused = (0, Instant::now());
        }
    }

    /// Starts a dial, whose outcome is passed to the authority.
    fn prove(&mut self, target: DialTarget) {
        let prover = Arc::clone(&self.prover);
        self.proofs.spawn(async move {
            let outcome = timeout(DIAL_TIMEOUT, prover.prove(target.clone())).await;
            (target, outcome.unwrap_or(Err(ProofError::Dial(DialError::TimedOut))))
        });
    }
}

/// Logs the failure of a write.
fn log_failure(write: Result<Result<(), StoreError>, JoinError>) {
    match write {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "can't store the directory's records"),
        Err(error) => tracing::error!(%error, "can't store the directory's records"),
    }
}
