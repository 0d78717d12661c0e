//! The task that drives an authority: joins its core to HTTP, the store and whoever dials relays for it.

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
    io::store::{Change, Store, StoreError},
};

/// Shorter than the authority's own patience, so that it is told.
const PROOF_TIMEOUT: Duration = Duration::from_secs(20);
/// Wall time has whole seconds; a deadline within this one is looked at again so much later.
const SHORTEST_WAIT: Duration = Duration::from_millis(100);
/// The wall clock may be set, so it is looked at again at least so often.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// Dials relays for an authority.
pub trait Prover: Send + Sync + 'static {
    /// Opens a link of its own to the target, whatever links there are, and sees whether who answers proves to be that
    /// relay. Dropped when it takes too long.
    fn prove(&self, target: DialTarget) -> impl Future<Output = Result<(), ProofError>> + Send;
}

/// Drives `authority`, whose submissions come from `submissions` and whose documents `server` serves, with what `store`
/// kept to begin with and `rng` for its randomness. Ends when the server and all its clones are gone.
///
/// # Errors
/// When the store can't be read. A failure to write is logged and waited out: what is served counts for more.
pub async fn run_authority<S: Store, P: Prover, R: CryptoRng>(
    authority: Authority,
    (server, submissions): (DirectoryServer, mpsc::Receiver<Submission>),
    store: S,
    prover: P,
    clock: impl Fn() -> WallTime,
    rng: R,
) -> Result<(), StoreError> {
    let (store, prover) = (Arc::new(store), Arc::new(prover));
    let mut service = Service { authority, server, store, prover, rng, proofs: JoinSet::new() };
    let kept = service.store.load()?;
    let records = kept.relays.iter().map(Vec::as_slice);
    service.authority.restore(clock(), records, kept.consensus.as_deref());
    service.run(submissions, clock).await;
    Ok(())
}

struct Service<S, P, R> {
    authority: Authority,
    server: DirectoryServer,
    store: Arc<S>,
    prover: Arc<P>,
    rng: R,
    proofs: JoinSet<(DialTarget, Result<(), ProofError>)>,
}

impl<S: Store, P: Prover, R: CryptoRng> Service<S, P, R> {
    async fn run(&mut self, mut submissions: mpsc::Receiver<Submission>, clock: impl Fn() -> WallTime) {
        loop {
            // Here and not below alone: what comes all the time must not keep it from what is due.
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
                    Err(error) => tracing::error!(%error, "a proof ended without outcome"),
                },
                () = sleep(wait.clamp(SHORTEST_WAIT, LONGEST_WAIT)) => self.authority.handle_timeout(clock()),
            }
        }
    }

    /// Has the authority judge what came. Who has gone away needs no answer.
    fn take(&mut self, now: WallTime, submission: Submission) {
        match submission {
            Submission::Descriptor(bytes, answer) => {
                let verdict = self.authority.handle_descriptor(now, &bytes);
                match &verdict {
                    Ok(relay) => tracing::debug!(%relay, "a descriptor is accepted"),
                    Err(error) => tracing::info!(%error, "a descriptor is refused"),
                }
                _ = answer.send(verdict.map(|_| ()));
            }
            Submission::Volunteer(bytes, answer) => {
                let verdict = self.authority.handle_volunteer(now, &bytes, &mut self.rng);
                if let Err(error) = &verdict {
                    tracing::info!(%error, "a volunteer is refused");
                }
                _ = answer.send(verdict);
            }
            Submission::Presence(bytes, answer) => {
                let verdict = self.authority.handle_presence(now, &bytes);
                if let Err(error) = &verdict {
                    tracing::info!(%error, "a gateway's report is refused");
                }
                _ = answer.send(verdict);
            }
        }
    }

    /// Does what the authority asks. A consensus is kept before it is served, so that none can come back older.
    async fn drain(&mut self) {
        let (mut changes, mut published) = (Vec::new(), None);
        while let Some(event) = self.authority.poll_event() {
            match event {
                AuthorityEvent::Prove(target) => self.prove(target),
                AuthorityEvent::Remember { relay, record } => changes.push(Change::Remember { relay, record }),
                AuthorityEvent::Forget(relay) => changes.push(Change::Forget(relay)),
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
                Ok(Err(error)) => tracing::error!(%error, "the directory's records are not kept"),
                Err(error) => tracing::error!(%error, "the directory's records are not kept"),
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
