//! A gateway's reports of the volunteers that have a channel to it (`proto/07-directory.md` §9, "Presence").

use std::{sync::Arc, time::Duration};

use tokio::{
    sync::{mpsc, watch},
    time::{sleep, timeout},
};

use crate::{
    base::RelayId,
    crypto::IdentityKey,
    directory::{MAX_PRESENT, Presence},
    io::{clock::wall_milliseconds, directory_client::DirectoryClient},
};

use super::task::Update;

/// Of an interval, what passes from one report to the next at the least.
const SHORTEST_SHARE: u32 = 4;

/// Reports the volunteers of a gateway, soon after they change and each interval.
pub(super) struct Presences {
    pub(super) identity: Arc<IdentityKey>,
    pub(super) directory: DirectoryClient,
    pub(super) updates: mpsc::Sender<Update>,
    pub(super) volunteers: watch::Receiver<Vec<RelayId>>,
    /// From one volunteer list to the next, once there is a consensus that says so.
    pub(super) interval: watch::Receiver<Option<Duration>>,
}

impl Presences {
    /// Goes on for ever.
    pub(super) async fn run(mut self) {
        let (mut last_at, mut failing) = (0, false);
        loop {
            let volunteers = self.volunteers.borrow_and_update().clone();
            let nobody = volunteers.is_empty();
            let taken = self.report(volunteers, &mut last_at, &mut failing).await;
            let Some(interval) = self.interval().await else { return };
            let shortest = interval.checked_div(SHORTEST_SHARE).unwrap_or_default();
            sleep(shortest).await;
            let rest = interval.saturating_sub(shortest);
            let changed = match (taken, nobody) {
                (false, _) => continue,
                // Nothing to say again until somebody comes.
                (true, true) => self.volunteers.changed().await,
                (true, false) => timeout(rest, self.volunteers.changed()).await.unwrap_or(Ok(())),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Sends one report; says whether it was taken.
    async fn report(&self, mut volunteers: Vec<RelayId>, last_at: &mut u64, failing: &mut bool) -> bool {
        volunteers.sort_unstable();
        volunteers.dedup();
        volunteers.truncate(MAX_PRESENT);
        // Nothing to take back.
        if volunteers.is_empty() && *last_at == 0 {
            return true;
        }
        // Later than the last, whatever became of the clock.
        let at_ms = wall_milliseconds().max(last_at.saturating_add(1));
        *last_at = at_ms;
        let count = volunteers.len();
        let presence = Presence { gateway: self.identity.id(), at_ms, volunteers };
        let outcome = match presence.sign(&self.identity) {
            Ok(signed) => self.directory.report(&signed).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(counted) => {
                tracing::debug!(volunteers = count, counted = counted.volunteers.len(), "volunteers are reported");
                *failing = false;
                let _ = self.updates.send(Update::Counted(counted)).await;
            }
            Err(error) if *failing => tracing::debug!(%error, "the directory still takes no report of volunteers"),
            Err(error) => {
                tracing::info!(%error, "the directory takes no report of volunteers; will try again");
                *failing = true;
            }
        }
        !*failing
    }

    /// The interval, once it is known.
    async fn interval(&mut self) -> Option<Duration> {
        *self.interval.wait_for(Option::is_some).await.ok()?
    }
}
