//! Keeps documents up to date, for as long as somebody wants them.

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

/// For a first consensus, tries included.
const FIRST_LIMIT: Duration = Duration::from_secs(30);
/// Between tries of a directory, at first and at most.
const RETRY: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(60));
/// While there is no consensus at all.
const LONGEST_FIRST_RETRY: Duration = Duration::from_secs(1);

/// A consensus: the one that was kept, if it still counts, or the first that a directory gives.
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
                // A network that is only starting.
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

/// Hands each newer consensus than `in_use` to `take`, while `wanted`.
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
            Err(error) => tracing::debug!(%error, "no new consensus"),
        }
        clock::sleep(retry).await;
        retry = retry.saturating_mul(2).min(RETRY.1);
    }
}

/// Hands each newer volunteer list than `in_use` to `take`, while `wanted`.
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
                    tracing::debug!(%error, "no new volunteer list");
                }
                clock::sleep(retry).await;
                retry = retry.saturating_mul(2).min(RETRY.1);
            }
        }
    }
}

/// Waits until the machine's clock says `due`; false if nobody wants it any more. That clock may be set and a device may
/// sleep, so it is looked at each minute.
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
