//! Publishes the descriptor of a listening relay at an interval, and rotates its onion key.

use std::{sync::Arc, time::Duration};

use rand::rngs::StdRng;
use tokio::{sync::mpsc, time::sleep};

use crate::{
    crypto::IdentityKey,
    directory::{Descriptor, Profile},
    directory_http::client::DirectoryClient,
    exit::delegated::Delegate,
    io::{clock::wall_time, files::Folder},
    node::{Failure, drive::randomness, report::Report},
};

use super::{Progress, task::Update};

/// Time between publications of the descriptor; authorities drop a relay after 18 h.
const PUBLICATION_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Delay after a failure: the first one and the largest.
pub(super) const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));

/// The current profile of a relay, with its onion key, rotated at the end of its lifetime, and its offer.
pub(super) struct Fresh {
    pub(super) folder: Folder,
    pub(super) updates: mpsc::Sender<Update>,
    pub(super) delegate: Option<Arc<Delegate>>,
    pub(super) profile: Profile,
}

impl Fresh {
    /// The current profile.
    pub(super) async fn profile(&mut self, rng: &mut StdRng) -> &Profile {
        match self.folder.rotate_onion_key(wall_time(), rng) {
            Ok(Some(next)) => {
                self.profile.onion_key = next.public();
                let _ = self.updates.send(Update::OnionKey(next)).await;
            }
            Ok(None) => {}
            Err(error) => tracing::error!(%error, "can't rotate the onion key"),
        }
        self.profile.offer = self.delegate.as_deref().map(Delegate::offer).unwrap_or_default();
        &self.profile
    }

    /// Waits until the relay offers additional delegated services.
    pub(super) async fn offer_grown(&self) {
        match &self.delegate {
            Some(delegate) => delegate.offer_grown().await,
            None => core::future::pending().await,
        }
    }
}

/// Publishes the relay's descriptor.
pub(super) struct Upkeep {
    pub(super) identity: Arc<IdentityKey>,
    pub(super) progress: Progress,
}

impl Upkeep {
    /// Publishes until the relay ends.
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
            let signed = descriptor.sign(&self.identity).map_err(Failure::invalid("descriptor"))?;
            let wait = match publisher.publish(&signed).await {
                Ok(()) => {
                    if !registered {
                        registered = true;
                        tracing::info!("registered with the directory");
                        self.progress.send(&Report::Registered);
                    }
                    retry = RETRY.0;
                    PUBLICATION_INTERVAL
                }
                Err(error) => {
                    tracing::warn!(%error, "the directory did not accept the descriptor; retrying");
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
