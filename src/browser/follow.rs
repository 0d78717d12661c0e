//! Refreshes consensus and volunteer list while they are needed.

use core::time::Duration;
use std::{rc::Rc, sync::Arc};

use super::{
    clock,
    directory::{Directories, DirectoryError},
    drive::randomness,
    failure::Failure,
};
use crate::{
    base::WallTime,
    directory::{Consensus, VolunteerList},
};

/// Time limit for the first consensus, including retries.
const FIRST_LIMIT: Duration = Duration::from_secs(30);
/// Delay between retries, first and largest.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));
/// Largest delay while there is no consensus.
const LONGEST_FIRST_RETRY: Duration = Duration::from_secs(1);

/// The first consensus: the stored one, if it is still valid, otherwise the first from a directory.
pub(super) async fn first_consensus(directories: &Directories) -> Result<Arc<Consensus>, Failure> {
    if let Some(kept) = directories.kept().await {
        return Ok(Arc::new(kept));
    }
    let mut failure = DirectoryError::Unreachable;
    let asked = clock::within(FIRST_LIMIT, async {
        let mut retry = RETRY.0;
        loop {
            match directories.fetch(None).await {
                Ok(Some(fetched)) => return Ok(Arc::new(fetched)),
                Ok(None) => {}
                // The network is starting.
                Err(DirectoryError::NoneYet) => failure = DirectoryError::NoneYet,
                Err(error) => return Err(error),
            }
            clock::sleep(retry).await;
            retry = retry.saturating_mul(2).min(LONGEST_FIRST_RETRY);
        }
    });
    let asked = asked.await;
    asked.unwrap_or(Err(failure)).map_err(Failure::from)
}

/// Passes each newer consensus than `in_use` to `take`, while `wanted` is true.
pub(super) async fn consensus(
    directories: Rc<Directories>,
    mut in_use: Arc<Consensus>,
    wanted: impl Fn() -> bool,
    take: impl Fn(Arc<Consensus>),
) {
    let Ok(mut rng) = randomness() else { return };
    let mut retry = RETRY.0;
    while wait_until(in_use.next_fetch(&mut rng), &wanted).await {
        match directories.fetch(Some(&in_use)).await {
            Ok(Some(fetched)) if wanted() => {
                in_use = Arc::new(fetched);
                take(Arc::clone(&in_use));
                retry = RETRY.0;
                continue;
            }
            Ok(_) => {}
            Err(error) => tracing::debug!(%error, "can't fetch a newer consensus"),
        }
        clock::sleep(retry).await;
        retry = retry.saturating_mul(2).min(RETRY.1);
    }
}

/// Passes each newer volunteer list than `in_use` to `take`, while `wanted` is true.
pub(super) async fn volunteers(
    directories: Rc<Directories>,
    mut in_use: Option<Arc<VolunteerList>>,
    wanted: impl Fn() -> bool,
    take: impl Fn(Arc<VolunteerList>),
) {
    let Ok(mut rng) = randomness() else { return };
    let mut retry = RETRY.0;
    while wanted() {
        if let Some(list) = &in_use
            && !wait_until(list.next_fetch(&mut rng), &wanted).await
        {
            return;
        }
        match directories.fetch_volunteers(in_use.as_ref()).await {
            Ok(Some(fetched)) => {
                let fetched = Arc::new(fetched);
                take(Arc::clone(&fetched));
                in_use = Some(fetched);
                retry = RETRY.0;
            }
            outcome => {
                if let Err(error) = outcome {
                    tracing::debug!(%error, "can't fetch a newer volunteer list");
                }
                clock::sleep(retry).await;
                retry = retry.saturating_mul(2).min(RETRY.1);
            }
        }
    }
}

/// Waits until the machine's clock reaches `due`; returns false if `wanted` becomes false. The clock may be set and a
/// device may sleep, so it checks each minute.
async fn wait_until(due: WallTime, wanted: &impl Fn() -> bool) -> bool {
    while wanted() {
        let left = due.since(clock::wall_time());
        if left.is_zero() {
            return true;
        }
        clock::sleep(left.min(RETRY.1)).await;
    }
    false
}
