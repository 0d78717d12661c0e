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
    task::Update,
    upkeep::{Fresh, RETRY},
};

/// Age at which a new descriptor replaces the signed one.
const RENEWAL_INTERVAL: Duration = Duration::from_secs(6 * 60 * 60);
/// Delay from a change of the gateways to the next registration, whose answer shows the gateways' reports.
const CHANGE_DELAY: Duration = Duration::from_secs(1);
/// The volunteer counts as unreachable after more than this number of consecutive answers without a gateway.
const UNREACHABLE_AFTER: u32 = 4;

/// Registers a volunteer with the directory once per interval.
pub(super) struct Registrations {
    pub(super) identity: Arc<IdentityKey>,
    pub(super) updates: mpsc::Sender<Update>,
    /// The gateways whose channels are open.
    pub(super) gateways: watch::Receiver<Vec<RelayId>>,
    /// The time between two volunteer lists, from the consensus.
    pub(super) interval: watch::Receiver<Option<Duration>>,
    pub(super) progress: Progress,
}

/// The last signed descriptor, and the time of signing.
struct Signed {
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
    /// When the profile can't be signed.
    pub(super) async fn run(mut self, mut fresh: Fresh, publisher: DirectoryClient) -> Result<(), Failure> {
        let mut rng = randomness()?;
        let (mut signed, mut reachability, mut retry) = (None, Reachability::Waiting(0), RETRY.0);
        loop {
            // The seed in an answer ranks the relays of a consensus, so the consensus is needed first.
            let interval = self.interval.wait_for(Option::is_some).await.ok().and_then(|interval| *interval);
            let Some(interval) = interval else { return Ok(()) };
            let offered = fresh.profile(&mut rng).await;
            let profile = volunteer_profile(offered);
            let left_out = offered.offer.engines.len().saturating_sub(profile.offer.engines.len());
            let is_current = |signed: &Signed| signed.profile == profile && signed.at.elapsed() < RENEWAL_INTERVAL;
            let current = match signed.take().filter(is_current) {
                Some(current) => current,
                None => {
                    if left_out > 0 {
                        tracing::warn!(
                            left_out,
                            "some engines are not announced: the volunteer's descriptor is limited"
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
                    retry = RETRY.0;
                    self.log_figures().await;
                    tokio::select! {
                        () = self.wait(interval) => {}
                        () = fresh.offer_grown() => {}
                    }
                }
                Err(error) => {
                    // The next try signs a new descriptor, because the directory may have refused this one as outdated.
                    tracing::warn!(%error, "the directory did not accept the registration; retrying");
                    sleep(retry).await;
                    retry = retry.saturating_mul(2).min(RETRY.1).min(interval.max(RETRY.0));
                }
            }
        }
    }

    fn sign(&self, profile: VolunteerProfile) -> Result<Signed, Failure> {
        let descriptor = VolunteerDescriptor { profile: profile.clone(), published: wall_time() };
        Ok(Signed {
            profile,
            bytes: descriptor.sign(&self.identity).map_err(Failure::invalid("descriptor"))?,
            at: Instant::now(),
        })
    }

    /// Passes an answer to the core, and logs and reports a change of reachability.
    async fn handle_registration(&self, registration: Registration, before: Reachability) -> Reachability {
        let confirmed = registration.gateways.len();
        let _ = self.updates.send(Update::Registered(registration)).await;
        let now = match (confirmed, before) {
            (0, Reachability::Waiting(answers)) if answers < UNREACHABLE_AFTER => {
                Reachability::Waiting(answers.saturating_add(1))
            }
            (0, Reachability::Reachable(_)) => Reachability::Waiting(1),
            (0, _) => Reachability::Unreachable,
            (gateways, _) => Reachability::Reachable(gateways),
        };
        match now {
            Reachability::Reachable(gateways) if now != before => {
                tracing::info!(gateways, "this volunteer can be reached");
                if !matches!(before, Reachability::Reachable(_)) {
                    self.progress.send(&Report::Reachable { gateways });
                }
            }
            Reachability::Unreachable if now != before => {
                let channels = self.gateways.borrow().len();
                tracing::warn!(channels, "this volunteer can't be reached: {}", why(channels));
            }
            _ => {}
        }
        now
    }

    async fn log_figures(&self) {
        let (reply, figures) = oneshot::channel();
        let sent = self.updates.send(Update::Figures(reply)).await.is_ok();
        if let Some(figures) = if sent { figures.await.ok() } else { None } {
            tracing::debug!(circuits = figures.circuits, cells = figures.cells_switched, "traffic of others");
        }
    }

    /// Waits for the next interval. After a change of gateways, waits only until they have reported it.
    async fn wait(&mut self, interval: Duration) {
        if let Ok(Ok(())) = timeout(interval, self.gateways.changed()).await {
            sleep(CHANGE_DELAY.min(interval)).await;
        }
    }
}

/// The relay's profile without the fields that a volunteer lacks, and without engines beyond the limit.
fn volunteer_profile(profile: &Profile) -> VolunteerProfile {
    let Profile { identity, onion_key, family, operator, offer, version, .. } = profile.clone();
    let mut volunteer = VolunteerProfile { identity, onion_key, family, operator, offer, version };
    while !volunteer.fits() && volunteer.offer.engines.pop().is_some() {}
    volunteer
}

const fn why(channels: usize) -> &'static str {
    match channels {
        0 => "it has no channel to a gateway; check that UDP to the relays is allowed",
        _ => "the directory has received no gateway's report of it",
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
