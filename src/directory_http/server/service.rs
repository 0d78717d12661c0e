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

/// Time limit of a dial; shorter than the authority's timeout of a proof, so that the authority receives the outcome.
const PROOF_TIMEOUT: Duration = Duration::from_secs(20);
/// Minimum wait for a deadline. Wall time has whole seconds, so the time to a deadline may be rounded to zero.
const MIN_WAIT: Duration = Duration::from_millis(100);
/// Maximum wait until the wall clock is read again, because the clock may be set.
const MAX_WAIT: Duration = Duration::from_secs(60);

/// Checks for an authority that a relay is at its address.
pub trait Prover: Send + Sync + 'static {
    /// Opens a new link to the target, even if there is an open one, and verifies the identity of the relay. The future
    /// is dropped at the timeout.
    fn prove(&self, target: DialTarget) -> impl Future<Output = Result<(), ProofError>> + Send;
}

/// Drives `authority`: restores the records of `store`, passes `submissions` to the authority, and publishes its
/// documents at `server`. `rng` draws the seeds of volunteers. Ends when the submissions end.
///
/// # Errors
/// When the store can't be read. A failed write is logged, and the documents are served nevertheless.
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
    let stored = service.store.load()?;
    let records = stored.relays.iter().map(Vec::as_slice);
    service.authority.restore(clock(), records, stored.consensus.as_deref());
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
            // The deadline is checked before each submission, so that constant submissions can't delay it.
            if self.authority.poll_timeout().is_some_and(|deadline| deadline <= clock()) {
                self.authority.handle_timeout(clock());
            }
            self.drain().await;
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
                () = sleep(wait.clamp(MIN_WAIT, MAX_WAIT)) => self.authority.handle_timeout(clock()),
            }
        }
    }

    /// Passes a submission to the authority, and sends the answer. A failed send needs no action: the client has closed
    /// its connection.
    fn handle_submission(&mut self, now: WallTime, submission: Submission) {
        match submission {
            Submission::Descriptor(bytes, sender) => {
                let outcome = self.authority.handle_descriptor(now, &bytes);
                match &outcome {
                    Ok(relay) => tracing::debug!(%relay, "accepted a descriptor"),
                    Err(error) => tracing::info!(%error, "refused a descriptor"),
                }
                _ = sender.send(outcome.map(|_| ()));
            }
            Submission::Volunteer(bytes, sender) => {
                let outcome = self.authority.handle_volunteer(now, &bytes, &mut self.rng);
                if let Err(error) = &outcome {
                    tracing::info!(%error, "refused a volunteer's registration");
                }
                _ = sender.send(outcome);
            }
            Submission::Presence(bytes, sender) => {
                let outcome = self.authority.handle_presence(now, &bytes);
                if let Err(error) = &outcome {
                    tracing::info!(%error, "refused a gateway's report");
                }
                _ = sender.send(outcome);
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
                AuthorityEvent::StoreRecord { relay, record } => changes.push(Change::Put { relay, record }),
                AuthorityEvent::DeleteRecord(relay) => changes.push(Change::Delete(relay)),
                AuthorityEvent::PublishVolunteers(list) => self.server.publish_volunteers(&list),
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
            self.server.publish(&consensus);
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
