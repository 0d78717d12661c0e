//! Publishes the descriptor of a listening relay at an interval. Rotates the onion key of every relay, volunteers
//! included.

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

use super::{Progress, task::RelayCommand};

/// Time between publications of the descriptor. A descriptor is valid for 18 h.
const PUBLICATION_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Delay after the first failure. The delay doubles with each failure.
pub(super) const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
/// Maximum delay after a failure.
pub(super) const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);

/// Source of a relay's current profile. Rotates the onion key at the end of the key's lifetime, and updates the offer.
pub(super) struct ProfileSource {
    pub(super) folder: Folder,
    pub(super) commands: mpsc::Sender<RelayCommand>,
    pub(super) delegate: Option<Arc<Delegate>>,
    pub(super) profile: Profile,
}

impl ProfileSource {
    /// The current profile.
    pub(super) async fn profile(&mut self, rng: &mut StdRng) -> &Profile {
        match self.folder.rotate_onion_key(wall_time(), rng) {
            Ok(Some(next)) => {
                self.profile.onion_key = next.public();
                let _ = self.commands.send(RelayCommand::OnionKey(next)).await;
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
    /// When the system provides no randomness, or the descriptor can't be signed.
    pub(super) async fn run(self, mut profiles: ProfileSource, publisher: DirectoryClient) -> Result<(), Failure> {
        let mut rng = randomness()?;
        let mut registered = false;
        let mut retry = MIN_RETRY_DELAY;
        loop {
            let profile = profiles.profile(&mut rng).await.clone();
            let descriptor = Descriptor { profile, published: wall_time() };
            let signed = descriptor.sign(&self.identity).map_err(Failure::invalid("descriptor"))?;
            let wait = match publisher.publish(&signed).await {
                Ok(()) => {
                    if !registered {
                        registered = true;
                        tracing::info!("published the descriptor");
                        self.progress.send(&Report::Published);
                    }
                    retry = MIN_RETRY_DELAY;
                    PUBLICATION_INTERVAL
                }
                Err(error) => {
                    tracing::warn!(%error, "can't publish the descriptor; retrying");
                    let wait = retry;
                    retry = retry.saturating_mul(2).min(MAX_RETRY_DELAY);
                    wait
                }
            };
            tokio::select! {
                () = sleep(wait) => {}
                () = profiles.offer_grown() => {}
            }
        }
    }
}
