//! Keeps the descriptor of a relay that listens published, and the onion key young.

use std::{sync::Arc, time::Duration};

use rand::rngs::StdRng;
use tokio::{sync::mpsc, time::sleep};

use crate::{
    crypto::IdentityKey,
    directory::{Descriptor, Profile},
    io::{clock::wall_time, delegated::Delegate, directory_client::DirectoryClient, files::Folder},
    node::{
        Failure,
        drive::randomness,
        report::{Report, Reporter},
    },
};

use super::task::Update;

/// From one publication of the descriptor to the next; authorities forget a relay after 18 h.
const PUBLISH_EVERY: Duration = Duration::from_secs(60 * 60);
/// After a failure, at first and at most.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// What a relay says of itself, kept up to date: a new onion key when the last has served its time, and what it offers by
/// now.
pub(super) struct Fresh {
    pub(super) folder: Folder,
    pub(super) updates: mpsc::Sender<Update>,
    pub(super) delegate: Option<Arc<Delegate>>,
    pub(super) profile: Profile,
}

impl Fresh {
    /// What it says now.
    pub(super) async fn profile(&mut self, rng: &mut StdRng) -> &Profile {
        match self.folder.rotate_onion_key(wall_time(), rng) {
            Ok(Some(next)) => {
                self.profile.onion_key = next.public();
                let _ = self.updates.send(Update::OnionKey(next)).await;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "the onion key is not rotated"),
        }
        self.profile.offer = self.delegate.as_deref().map(Delegate::offer).unwrap_or_default();
        &self.profile
    }

    /// Waits until more is done for clients than before.
    pub(super) async fn offer_grown(&self) {
        match &self.delegate {
            Some(delegate) => delegate.offer_grown().await,
            None => core::future::pending().await,
        }
    }
}

/// Publishes what the relay says of itself.
pub(super) struct Upkeep {
    pub(super) identity: Arc<IdentityKey>,
    pub(super) reporter: Reporter,
}

impl Upkeep {
    /// Goes on for ever.
    ///
    /// # Errors
    /// When the profile can't be signed.
    pub(super) async fn run(self, mut fresh: Fresh, publisher: DirectoryClient) -> Result<(), Failure> {
        let mut rng = randomness()?;
        let mut registered = false;
        let mut retry = RETRY.0;
        loop {
            let profile = fresh.profile(&mut rng).await.clone();
            let descriptor = Descriptor { profile, published: wall_time() };
            let signed = descriptor.sign(&self.identity).map_err(Failure::usage)?;
            let wait = match publisher.publish(&signed).await {
                Ok(()) => {
                    if !registered {
                        registered = true;
                        tracing::info!("registered with the directory");
                        self.reporter.tell(&Report::Registered);
                    }
                    retry = RETRY.0;
                    PUBLISH_EVERY
                }
                Err(error) => {
                    tracing::warn!(%error, "the descriptor was not taken; will try again");
                    let wait = retry;
                    retry = retry.saturating_mul(2).min(RETRY.1);
                    wait
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = fresh.offer_grown() => {}
            }
        }
    }
}
