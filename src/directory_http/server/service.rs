//! The task that drives an authority: connects its core to HTTP, the store and the prover that dials relays.

use core::{future::Future, time::Duration};
use std::sync::Arc;

use rand::CryptoRng;
use tokio::{
    sync::mpsc,
    task::{JoinSet, spawn_blocking},
    time::{sleep, timeout},
};

use super::{DirectoryServer, Submission};
use crate::{
    base::{DialError, DialTarget, WallTime},
    directory::{Authority, AuthorityEvent, ProofError},
    directory_http::store::{AuthorityStore, Change, StoreError},
};

/// Shorter than the authority's timeout, so that the authority gets the outcome.
const PROOF_TIMEOUT: Duration = Duration::from_secs(20);
/// Shortest wait. Wall time has whole seconds, so a deadline within the current second is checked again after this
/// time.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
/// Longest wait before the wall clock is read again, since the clock may be set.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Proves relays for an authority by dialling them.
pub trait Prover: Send + Sync + 'static {
    /// Opens a new link to the target, regardless of existing ones, and verifies that the relay there has the
    /// expected identity. Dropped at the timeout.
    fn prove(&self, target: DialTarget) -> impl Future<Output = Result<(), ProofError>> + Send;
}

/// Drives `authority`: takes `submissions`, lets `server` serve the documents, restores the records of `store`, and
/// uses `rng` for randomness. Ends when the server and all its clones are dropped.
///
/// # Errors
/// When the store can't be read. A failed write is logged, and the documents are served all the same.
pub async fn run_authority<S: AuthorityStore, P: Prover, R: CryptoRng>(
    authority: Authority,
    (server, submissions): (DirectoryServer, mpsc::Receiver<Submission>),
    store: S,
    prover: P,
    clock: impl Fn() -> WallTime,
    rng: R,
) -> Result<(), StoreError> {
    let (store, prover) = (Arc::new(store), Arc::new(prover));
    let mut service = DirectoryService { authority, server, store, prover, rng, proofs: JoinSet::new() };
    let kept = service.store.load()?;
    let records = kept.relays.iter().map(Vec::as_slice);
    service.authority.restore(clock(), records, kept.consensus.as_deref());
    service.run(submissions, clock).await;
    Ok(())
}

struct DirectoryService<S, P, R> {
    authority: Authority,
    server: DirectoryServer,
    store: Arc<S>,
    prover: Arc<P>,
    rng: R,
    proofs: JoinSet<(DialTarget, Result<(), ProofError>)>,
}

impl<S: AuthorityStore, P: Prover, R: CryptoRng> DirectoryService<S, P, R> {
    async fn run(&mut self, mut submissions: mpsc::Receiver<Submission>, clock: impl Fn() -> WallTime) {
        loop {
            // Checked here too, because a constant flow of submissions must not delay the deadline.
            if self.authority.poll_timeout().is_some_and(|deadline| deadline <= clock()) {
                self.authority.handle_timeout(clock());
            }
            self.drain().await;
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
                    Err(error) => tracing::info!(%error, "refused a descriptor"),
                }
                _ = answer.send(verdict.map(|_| ()));
            }
            Submission::Volunteer(bytes, answer) => {
                let verdict = self.authority.handle_volunteer(now, &bytes, &mut self.rng);
                if let Err(error) = &verdict {
                    tracing::info!(%error, "refused a volunteer's registration");
                }
                _ = answer.send(verdict);
            }
            Submission::Presence(bytes, answer) => {
                let verdict = self.authority.handle_presence(now, &bytes);
                if let Err(error) = &verdict {
                    tracing::info!(%error, "refused a gateway's report");
                }
                _ = answer.send(verdict);
            }
        }
    }

    /// Handles the authority's events. A consensus is stored before it is served, so that a restart can't serve an
    /// older one.
    async fn drain(&mut self) {
        let (mut changes, mut published) = (Vec::new(), None);
        while let Some(event) = self.authority.poll_event() {
            match event {
                AuthorityEvent::Prove(target) => self.prove(target),
                AuthorityEvent::Remember { relay, record } => changes.push(Change::Remember { relay, record }),
                AuthorityEvent::Forget(relay) => changes.push(Change::Forget(relay)),
                AuthorityEvent::PublishVolunteers(list) => self.server.publish_volunteers(list).await,
                AuthorityEvent::Publish(consensus) => {
                    changes.push(Change::Publish(consensus.as_bytes().to_vec()));
                    published = Some(consensus);
                }
            }
        }
        if !changes.is_empty() {
            let store = Arc::clone(&self.store);
            match spawn_blocking(move || store.apply(&changes)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::error!(%error, "can't store the directory's records"),
                Err(error) => tracing::error!(%error, "can't store the directory's records"),
            }
        }
        if let Some(consensus) = published {
            self.server.publish(consensus).await;
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
