//! The task that drives an authority: connects its core to HTTP, the store and the prover that dials relays.

use core::{future::Future, mem, time::Duration};
use std::{collections::BTreeMap, sync::Arc};

use rand::CryptoRng;
use tokio::{
    sync::mpsc,
    task::{JoinError, JoinSet, spawn_blocking},
    time::{Instant, sleep, timeout},
};

use super::{DirectoryServer, Submission};
use crate::{
    base::{Counter as _, DialError, DialTarget, RelayId, WallTime},
    directory::{Authority, AuthorityEvent, ProofError, SignedConsensus, SteadyClock},
    directory_http::store::{AuthorityStore, Change, StoreError},
    io::clock::running_time,
};

/// Shorter than the authority's timeout, so that the authority gets the outcome.
const PROOF_TIMEOUT: Duration = Duration::from_secs(20);
/// Shortest wait. Wall time has whole seconds, so a deadline within the current second is checked again after this
/// time.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait before the wall clock is read again, since the clock may be set.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Interval between two looks at a clock that is wrong at the start.
const CLOCK_WAIT: Duration = Duration::from_secs(1);
/// Interval between two reports of refused submissions.
const REFUSALS_LOGGED_EVERY: Duration = Duration::from_secs(60);

/// Proves relays for an authority by dialling them.
pub trait Prover: Send + Sync + 'static {
    /// Opens a new link to the target, regardless of existing ones, and verifies that the relay there has the
    /// expected identity. Dropped at the timeout.
    fn prove(&self, target: DialTarget) -> impl Future<Output = Result<(), ProofError>> + Send;
}

/// Drives `authority`: takes `submissions`, lets `server` serve the documents, restores the records of `store`, and
/// uses `rng` for randomness. Ends when the server and all its clones are dropped.
///
/// A jump of `clock` has no effect ([`SteadyClock`]). If `clock` is before the last consensus at the start, submissions
/// are refused and nothing is signed until it is right.
///
/// # Errors
/// When the store can't be read. A failed write is logged, and the documents are served all the same.
pub async fn run_authority<S: AuthorityStore, P: Prover, R: CryptoRng>(
    authority: Authority,
    (server, mut submissions): (DirectoryServer, mpsc::Receiver<Submission>),
    store: S,
    prover: P,
    clock: impl Fn() -> WallTime,
    rng: R,
) -> Result<(), StoreError> {
    let (store, prover) = (Arc::new(store), Arc::new(prover));
    let kept = store.load()?;
    let last = kept.consensus.as_deref().unwrap_or_default();
    if !await_clock(|| authority.has_signed_after(clock(), last), &mut submissions).await {
        return Ok(());
    }
    let mut steady = SteadyClock::new(clock(), running_time());
    let mut clock = move || steady.read(clock(), running_time());
    let (pending, writes, refused) = (BTreeMap::new(), JoinSet::new(), (0, Instant::now()));
    let mut service =
        DirectoryService { authority, server, store, prover, rng, proofs: JoinSet::new(), pending, writes, refused };
    let records = kept.relays.iter().map(Vec::as_slice);
    service.authority.restore(clock(), records, kept.consensus.as_deref());
    service.run(submissions, clock).await;
    Ok(())
}

/// Waits while the clock `is_wrong`, and refuses submissions meanwhile; `false` if the server was dropped.
async fn await_clock(is_wrong: impl Fn() -> bool, submissions: &mut mpsc::Receiver<Submission>) -> bool {
    if is_wrong() {
        tracing::warn!(
            "the machine's clock is before the last consensus; set the clock. The directory waits until then"
        );
    }
    while is_wrong() {
        tokio::select! {
            // Dropped: the sender gets status 503.
            submission = submissions.recv() => if submission.is_none() { return false },
            () = sleep(CLOCK_WAIT) => {}
        }
    }
    true
}

struct DirectoryService<S, P, R> {
    authority: Authority,
    server: DirectoryServer,
    store: Arc<S>,
    prover: Arc<P>,
    rng: R,
    proofs: JoinSet<(DialTarget, Result<(), ProofError>)>,
    /// Changes of relays' records to write, the last of each relay.
    pending: BTreeMap<RelayId, Change>,
    /// The write in progress, at most one.
    writes: JoinSet<Result<(), StoreError>>,
    /// Submissions refused since the last report of them, and its time.
    refused: (u64, Instant),
}

impl<S: AuthorityStore, P: Prover, R: CryptoRng> DirectoryService<S, P, R> {
    async fn run(&mut self, mut submissions: mpsc::Receiver<Submission>, mut clock: impl FnMut() -> WallTime) {
        loop {
            // Checked here too, because a constant flow of submissions must not delay the deadline.
            if self.authority.poll_timeout().is_some_and(|deadline| deadline <= clock()) {
                self.authority.handle_timeout(clock());
            }
            self.drain().await;
            self.report_refusals();
            let wait = self.authority.poll_timeout().map_or(LONGEST_WAIT, |deadline| deadline.since(clock()));
            tokio::select! {
                submission = submissions.recv() => match submission {
                    Some(submission) => self.take(clock(), submission),
                    None => return,
                },
                Some(proof) = self.proofs.join_next() => match proof {
                    Ok((target, outcome)) => self.authority.handle_proof(clock(), &target, outcome),
                    Err(error) => tracing::error!(%error, "the dial for a proof ended without a result"),
                },
                Some(write) = self.writes.join_next() => {
                    report(write);
                    self.write();
                }
                () = sleep(wait.clamp(SHORTEST_WAIT, LONGEST_WAIT)) => self.authority.handle_timeout(clock()),
            }
        }
    }

    /// Passes a submission to the authority and returns its answer. A failed return means that the client is gone.
    fn take(&mut self, now: WallTime, submission: Submission) {
        match submission {
            Submission::Descriptor(bytes, publisher, answer) => {
                let verdict = self.authority.handle_descriptor(now, &bytes, publisher);
                match &verdict {
                    Ok(relay) => tracing::debug!(%relay, "accepted a descriptor"),
                    Err(error) => self.refuse(error, "refused a descriptor"),
                }
                _ = answer.send(verdict.map(|_| ()));
            }
            Submission::Volunteer(bytes, answer) => {
                let verdict = self.authority.handle_volunteer(now, &bytes, &mut self.rng);
                if let Err(error) = &verdict {
                    self.refuse(error, "refused a volunteer's registration");
                }
                _ = answer.send(verdict);
            }
            Submission::Presence(bytes, answer) => {
                let verdict = self.authority.handle_presence(now, &bytes);
                if let Err(error) = &verdict {
                    self.refuse(error, "refused a gateway's report");
                }
                _ = answer.send(verdict);
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
                AuthorityEvent::Remember { relay, record } => {
                    self.pending.insert(relay, Change::Remember { relay, record });
                }
                AuthorityEvent::Forget(relay) => _ = self.pending.insert(relay, Change::Forget(relay)),
                AuthorityEvent::PublishVolunteers(list) => self.server.publish_volunteers(list).await,
                AuthorityEvent::Publish(consensus) => published = Some(consensus),
            }
        }
        match published {
            Some(consensus) => self.publish(consensus).await,
            None => self.write(),
        }
    }

    async fn publish(&mut self, consensus: SignedConsensus) {
        while let Some(write) = self.writes.join_next().await {
            report(write);
        }
        let mut changes: Vec<Change> = mem::take(&mut self.pending).into_values().collect();
        changes.push(Change::Publish(consensus.as_bytes().to_vec()));
        let store = Arc::clone(&self.store);
        report(spawn_blocking(move || store.apply(&changes)).await);
        self.server.publish(consensus).await;
    }

    /// Writes the pending changes unless a write is in progress. Then they are written together after it, so that many
    /// changes cause few writes, and none delays a submission.
    fn write(&mut self) {
        if self.writes.is_empty() && !self.pending.is_empty() {
            let changes: Vec<Change> = mem::take(&mut self.pending).into_values().collect();
            let store = Arc::clone(&self.store);
            self.writes.spawn_blocking(move || store.apply(&changes));
        }
    }

    fn refuse(&mut self, error: &dyn core::error::Error, what: &'static str) {
        self.refused.0.increment();
        tracing::debug!(%error, "{what}");
    }

    /// Logs the number of refusals, once a minute however many there are.
    fn report_refusals(&mut self) {
        let (number, since) = self.refused;
        if number > 0 && since.elapsed() >= REFUSALS_LOGGED_EVERY {
            tracing::info!(number, "refused submissions");
            self.refused = (0, Instant::now());
        }
    }

    fn prove(&mut self, target: DialTarget) {
        let prover = Arc::clone(&self.prover);
        self.proofs.spawn(async move {
            let outcome = timeout(PROOF_TIMEOUT, prover.prove(target.clone())).await;
            (target, outcome.unwrap_or(Err(ProofError::Dial(DialError::TimedOut))))
        });
    }
}

fn report(write: Result<Result<(), StoreError>, JoinError>) {
    match write {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::error!(%error, "can't store the directory's records"),
        Err(error) => tracing::error!(%error, "can't store the directory's records"),
    }
}
