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
    exit_policy::Summary,
    io::{clock::wall_time, files::Folder, resolver::Resolver},
    node::{Failure, drive::randomness, report::Report},
};

use super::{Progress, task::RelayCommand};

/// Time between publications of the descriptor. A descriptor is valid for 18 h.
const PUBLICATION_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Delay after the first failure. The delay doubles with each failure.
pub(super) const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
/// Maximum delay after a failure.
pub(super) const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);

/// The ports of an exit, which are those of its policy unless its resolver keeps IPv6 closed.
pub(super) struct ExitPorts {
    pub(super) policy: Summary,
    pub(super) resolver: Arc<Resolver>,
}

impl ExitPorts {
    /// The ports that the exit accepts now.
    fn current(&self) -> Summary {
        let policy = self.policy.clone();
        if self.resolver.is_ipv6_closed() { policy.without_ipv6() } else { policy }
    }
}

/// Source of a relay's current profile. Rotates the onion key at the end of the key's lifetime, and updates the offer and
/// the exit's ports.
pub(super) struct ProfileSource {
    pub(super) folder: Folder,
    pub(super) commands: mpsc::Sender<RelayCommand>,
    pub(super) delegate: Option<Arc<Delegate>>,
    pub(super) ports: Option<ExitPorts>,
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
        self.profile.exit = self.ports.as_ref().map(ExitPorts::current).unwrap_or_default();
        &self.profile
    }

    /// Waits until the relay offers additional delegated services, or accepts more ports than the last profile lists.
    pub(super) async fn grown(&self) {
        let offer_grown = async {
            match &self.delegate {
                Some(delegate) => delegate.offer_grown().await,
                None => core::future::pending().await,
            }
        };
        let ports_grown = async {
            match &self.ports {
                Some(ports) if self.profile.exit != ports.policy => ports.resolver.ipv6_opened().await,
                _ => core::future::pending().await,
            }
        };
        tokio::select! {
            () = offer_grown => {}
            () = ports_grown => {}
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
                () = profiles.grown() => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use rand::SeedableRng;
    use tokio::time::timeout;

    use super::*;
    use crate::{
        directory::fixture,
        exit_policy::Policy,
        io::resolver::{Nat64Queries, ResolverOptions, tests::name_server},
    };

    #[tokio::test]
    async fn an_exit_lists_ipv6_ports_once_its_name_server_has_answered() {
        let folder = tempfile::tempdir().unwrap();
        let folder = Folder::open(&folder.path().join("relay")).unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        folder.onion_keys(wall_time(), &mut rng).unwrap();
        let (server, _) = name_server().await;
        let options = ResolverOptions { servers: vec![server], await_nat64: true, ..ResolverOptions::default() };
        let resolver = Arc::new(Resolver::new(&options));
        let policy = Policy::parse(["accept *:443"], false).unwrap().summary();
        let (commands, _receiver) = mpsc::channel(8);
        let ports = Some(ExitPorts { policy, resolver: Arc::clone(&resolver) });
        let mut profiles = ProfileSource { folder, commands, delegate: None, ports, profile: fixture::profile(1) };
        let addresses: [IpAddr; 2] = ["1.1.1.1".parse().unwrap(), "2606:4700::1".parse().unwrap()];

        let listed = profiles.profile(&mut rng).await.exit.clone();
        assert_eq!(addresses.map(|ip| listed.may_allow(ip, 443)), [true, false]);
        assert!(timeout(Duration::ZERO, profiles.grown()).await.is_err());

        Nat64Queries::start(resolver).await;
        assert!(timeout(Duration::from_secs(10), profiles.grown()).await.is_ok(), "the profile is published again");
        let listed = profiles.profile(&mut rng).await.exit.clone();
        assert_eq!(addresses.map(|ip| listed.may_allow(ip, 443)), [true, true]);
        assert!(timeout(Duration::ZERO, profiles.grown()).await.is_err(), "once");
    }
}
