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
    directory_http::client::DirectoryClient,
    io::clock::wall_milliseconds,
};

use super::task::RelayCommand;

/// Divisor of the interval for the minimum time between two reports.
const MIN_DELAY_DIVISOR: u32 = 4;

/// Sends the reports of a gateway's volunteers: after a change, and once per interval.
pub(super) struct Presences {
    pub(super) identity: Arc<IdentityKey>,
    pub(super) directory: DirectoryClient,
    pub(super) commands: mpsc::Sender<RelayCommand>,
    pub(super) volunteers: watch::Receiver<Vec<RelayId>>,
    /// The time between two volunteer lists, from the consensus.
    pub(super) interval: watch::Receiver<Option<Duration>>,
}

impl Presences {
    /// Sends reports until the relay ends.
    pub(super) async fn run(mut self) {
        let (mut last_at_ms, mut failing) = (0, false);
        loop {
            let volunteers = self.volunteers.borrow_and_update().clone();
            let is_empty = volunteers.is_empty();
            let accepted = self.report(volunteers, &mut last_at_ms, &mut failing).await;
            let Some(interval) = self.interval().await else { return };
            let min_delay = interval.checked_div(MIN_DELAY_DIVISOR).unwrap_or_default();
            sleep(min_delay).await;
            let remaining = interval.saturating_sub(min_delay);
            let changed = match (accepted, is_empty) {
                (false, _) => continue,
                // An accepted empty report is not repeated, so the next report follows the next volunteer.
                (true, true) => self.volunteers.changed().await,
                (true, false) => timeout(remaining, self.volunteers.changed()).await.unwrap_or(Ok(())),
            };
            if changed.is_err() {
                return;
            }
        }
    }

    /// Sends one report; returns whether it was accepted.
    async fn report(&self, mut volunteers: Vec<RelayId>, last_at_ms: &mut u64, failing: &mut bool) -> bool {
        volunteers.sort_unstable();
        volunteers.dedup();
        volunteers.truncate(MAX_PRESENT);
        // An empty report only withdraws an earlier report.
        if volunteers.is_empty() && *last_at_ms == 0 {
            return true;
        }
        // The time must increase from report to report, even if the clock was set back.
        let at_ms = wall_milliseconds().max(last_at_ms.saturating_add(1));
        *last_at_ms = at_ms;
        let count = volunteers.len();
        let presence = Presence { gateway: self.identity.id(), at_ms, volunteers };
        let outcome = match presence.sign(&self.identity) {
            Ok(signed) => self.directory.report(&signed).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        match outcome {
            Ok(counted) => {
                tracing::debug!(
                    volunteers = count,
                    counted = counted.volunteers.len(),
                    "reported volunteers to the directory"
                );
                *failing = false;
                let _ = self.commands.send(RelayCommand::Counted(counted)).await;
            }
            Err(error) if *failing => {
                tracing::debug!(%error, "the directory still does not accept the report of volunteers")
            }
            Err(error) => {
                tracing::info!(%error, "the directory did not accept the report of volunteers; retrying");
                *failing = true;
            }
        }
        !*failing
    }

    /// Waits for the first consensus; returns its interval, or `None` when the relay ends.
    async fn interval(&mut self) -> Option<Duration> {
        *self.interval.wait_for(Option::is_some).await.ok()?
    }
}
