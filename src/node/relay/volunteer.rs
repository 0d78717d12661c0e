//! Keeps a volunteer registered, and reports its reachability (`proto/07-directory.md` §9, "Registration").

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, oneshot, watch},
    time::{Instant, sleep, timeout},
};

use crate::{
    base::RelayId,
    crypto::IdentityKey,
    directory::{Profile, Registration, VolunteerDescriptor, VolunteerProfile},
    directory_http::client::DirectoryClient,
    io::clock::wall_time,
    node::{Failure, drive::randomness, report::Report},
};

use super::{
    Progress,
    task::RelayCommand,
    upkeep::{MAX_RETRY_DELAY, MIN_RETRY_DELAY, ProfileSource},
};

/// Age at which a new descriptor replaces the signed descriptor.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(6 * 60 * 60);
/// Delay from a change of the gateways to the next registration. A gateway without a recent report reports the change
/// within this time. The answer to the registration then includes the report.
const CHANGE_DELAY: Duration = Duration::from_secs(1);
/// Maximum consecutive answers without a gateway. After one more, the volunteer counts as unreachable.
const MAX_ANSWERS_WITHOUT_GATEWAY: u32 = 4;

/// Registers a volunteer with the directory once per interval.
pub(super) struct Registrations {
    pub(super) identity: Arc<IdentityKey>,
    pub(super) commands: mpsc::Sender<RelayCommand>,
    /// The gateways whose channels are open.
    pub(super) gateways: watch::Receiver<Vec<RelayId>>,
    /// The time between two volunteer lists, from the consensus.
    pub(super) interval: watch::Receiver<Option<Duration>>,
    pub(super) progress: Progress,
}

/// The last signed descriptor, and the time of signing.
struct SignedDescriptor {
    profile: VolunteerProfile,
    bytes: Vec<u8>,
    at: Instant,
}

/// The reachability according to the last answers.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reachability {
    /// The number of consecutive answers without a gateway.
    Waiting(u32),
    Reachable(usize),
    Unreachable,
}

impl Registrations {
    /// Registers until the relay ends.
    ///
    /// # Errors
    /// When the system provides no randomness, or the descriptor can't be signed.
    pub(super) async fn run(mut self, mut profiles: ProfileSource, publisher: DirectoryClient) -> Result<(), Failure> {
        let mut rng = randomness()?;
        let (mut signed, mut reachability, mut retry) = (None, Reachability::Waiting(0), MIN_RETRY_DELAY);
        loop {
            // The seed in an answer ranks the relays of a consensus, so the consensus is needed first.
            let interval = self.interval.wait_for(Option::is_some).await.ok().and_then(|interval| *interval);
            let Some(interval) = interval else { return Ok(()) };
            let offered = profiles.profile(&mut rng).await;
            let profile = volunteer_profile(offered);
            let left_out = offered.offer.engines.len().saturating_sub(profile.offer.engines.len());
            let is_current =
                |signed: &SignedDescriptor| signed.profile == profile && signed.at.elapsed() < RENEWAL_INTERVAL;
            let current = match signed.take().filter(is_current) {
                Some(current) => current,
                None => {
                    if left_out > 0 {
                        tracing::warn!(
                            left_out,
                            "engines omitted: the descriptor exceeds its maximum size; configure fewer engines"
                        );
                    }
                    self.sign(profile)?
                }
            };
            self.gateways.borrow_and_update();
            match publisher.register(&current.bytes).await {
                Ok(registration) => {
                    reachability = self.handle_registration(registration, reachability).await;
                    signed = Some(current);
                    retry = MIN_RETRY_DELAY;
                    self.log_statistics().await;
                    tokio::select! {
                        () = self.wait(interval) => {}
                        () = profiles.grown() => {}
                    }
                }
                Err(error) => {
                    // The next try signs a new descriptor, because the directory may have refused this descriptor as
                    // outdated.
                    tracing::warn!(%error, "can't register with the directory; retrying");
                    sleep(retry).await;
                    retry = retry.saturating_mul(2).min(MAX_RETRY_DELAY).min(interval.max(MIN_RETRY_DELAY));
                }
            }
        }
    }

    fn sign(&self, profile: VolunteerProfile) -> Result<SignedDescriptor, Failure> {
        let descriptor = VolunteerDescriptor { profile: profile.clone(), published: wall_time() };
        Ok(SignedDescriptor {
            profile,
            bytes: descriptor.sign(&self.identity).map_err(Failure::invalid("descriptor"))?,
            at: Instant::now(),
        })
    }

    /// Passes an answer to the core, and logs a change of reachability. Reports only the change to reachable.
    async fn handle_registration(&self, registration: Registration, previous: Reachability) -> Reachability {
        let confirmed = registration.gateways.len();
        let _ = self.commands.send(RelayCommand::Registered(registration)).await;
        let reachability = match (confirmed, previous) {
            (0, Reachability::Waiting(answers)) if answers < MAX_ANSWERS_WITHOUT_GATEWAY => {
                Reachability::Waiting(answers.saturating_add(1))
            }
            (0, Reachability::Reachable(_)) => Reachability::Waiting(1),
            (0, _) => Reachability::Unreachable,
            (gateways, _) => Reachability::Reachable(gateways),
        };
        match reachability {
            Reachability::Reachable(gateways) if reachability != previous => {
                tracing::info!(gateways, "this volunteer can be reached");
                if !matches!(previous, Reachability::Reachable(_)) {
                    self.progress.send(&Report::Reachable { gateways });
                }
            }
            Reachability::Unreachable if reachability != previous => {
                let channels = self.gateways.borrow().len();
                tracing::warn!(channels, "this volunteer can't be reached: {}", unreachability_reason(channels));
            }
            _ => {}
        }
        reachability
    }

    async fn log_statistics(&self) {
        let (reply, statistics) = oneshot::channel();
        let sent = self.commands.send(RelayCommand::Statistics(reply)).await.is_ok();
        if let Some(statistics) = if sent { statistics.await.ok() } else { None } {
            tracing::debug!(
                circuits = statistics.circuits,
                cells = statistics.cells_switched,
                "circuits of other nodes"
            );
        }
    }

    /// Waits for one interval. After a change of the gateways, waits only for [`CHANGE_DELAY`].
    async fn wait(&mut self, interval: Duration) {
        if let Ok(Ok(())) = timeout(interval, self.gateways.changed()).await {
            sleep(CHANGE_DELAY.min(interval)).await;
        }
    }
}

/// The relay's profile without the fields that a volunteer lacks. Omits the last engines if the profile is too large.
fn volunteer_profile(profile: &Profile) -> VolunteerProfile {
    let Profile { identity, onion_key, family, operator, offer, version, .. } = profile.clone();
    let mut volunteer = VolunteerProfile { identity, onion_key, family, operator, offer, version };
    while !volunteer.fits() && volunteer.offer.engines.pop().is_some() {}
    volunteer
}

/// The likely reason why a volunteer with this number of channels to gateways can't be reached.
const fn unreachability_reason(channels: usize) -> &'static str {
    match channels {
        0 => "it has no channel to a gateway; check that UDP to the relays is allowed",
        _ => "no gateway has reported this volunteer to the directory",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        delegated::{EngineName, Offer},
        directory::fixture,
    };

    #[test]
    fn engines_beyond_the_size_limit_of_a_descriptor_are_omitted() {
        let engines: Vec<_> =
            (0..32).map(|number| EngineName::parse(&format!("engine-{number:02}")).unwrap()).collect();
        let offering = |count: usize| Profile {
            offer: Offer { engines: engines[..count].to_vec(), ..Offer::default() },
            ..fixture::profile(1)
        };
        assert_eq!(volunteer_profile(&offering(20)).offer, offering(20).offer);
        let named = volunteer_profile(&offering(32));
        assert!(named.fits() && named.offer.engines.len() > 20, "{}", named.offer.engines.len());
        assert_eq!(named.offer.engines, engines[..named.offer.engines.len()]);
    }
}
