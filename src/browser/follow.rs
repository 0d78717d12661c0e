//! Fetches newer consensuses and volunteer lists while a page needs them, at the times that `directory::follow` gives.

use core::time::Duration;
use std::{rc::Rc, sync::Arc};

use super::{
    clock,
    directory::{Directories, DocumentFetchError},
    drive::randomness,
    failure::PageFailure,
};
use crate::directory::{
    Consensus, ConsensusBody, Document,
    follow::{Followed, Schedule},
};

/// Time limit for the first consensus, including retries.
const FIRST_TIMEOUT: Duration = Duration::from_secs(30);

/// The first consensus: the stored consensus if it is still valid, otherwise the first from a directory.
pub(super) async fn first_consensus(directories: &Directories) -> Result<Arc<Consensus>, PageFailure> {
    if let Some(stored) = directories.stored().await {
        return Ok(Arc::new(stored));
    }
    let mut failure = DocumentFetchError::Unreachable;
    let first = clock::within(FIRST_TIMEOUT, async {
        let mut schedule = Schedule::default();
        while wait(&mut schedule, &|| true).await {
            match directories.fetch(None).await {
                Ok(Some(fetched)) => return Ok(Arc::new(fetched)),
                Ok(None) => {}
                // The network is starting.
                Err(DocumentFetchError::NoneYet) => failure = DocumentFetchError::NoneYet,
                Err(error) => return Err(error),
            }
            schedule.retry(ConsensusBody::max_retry_delay(None));
        }
        Err(DocumentFetchError::Unreachable)
    });
    let first = first.await;
    first.unwrap_or(Err(failure)).map_err(PageFailure::from)
}

/// Passes each document newer than the one in use to `take`, while `wanted` returns true.
pub(super) async fn follow<B: Followed>(
    directories: Rc<Directories>,
    mut in_use: Option<Arc<Document<B>>>,
    wanted: impl Fn() -> bool,
    take: impl Fn(Arc<Document<B>>),
) {
    let Ok(mut rng) = randomness() else { return };
    let mut schedule = in_use.as_ref().map_or_else(Schedule::default, |in_use| Schedule::after(in_use, &mut rng));
    while wait(&mut schedule, &wanted).await {
        let fetched = directories.fetch(in_use.as_deref()).await;
        if !wanted() {
            return;
        }
        let is_new = matches!(fetched, Ok(Some(_)));
        match fetched {
            Ok(Some(fetched)) => {
                let fetched = Arc::new(fetched);
                take(Arc::clone(&fetched));
                in_use = Some(fetched);
            }
            Ok(None) => {}
            Err(error) => tracing::debug!(%error, "can't fetch a newer {}", B::NAME),
        }
        schedule.handle_fetch(clock::wall_time(), is_new, in_use.as_deref(), &mut rng);
    }
}

/// Waits until a fetch is due. Returns false if `wanted`, called before and after each wait, returns false.
async fn wait(schedule: &mut Schedule, wanted: &impl Fn() -> bool) -> bool {
    while wanted() {
        match schedule.poll_wait(clock::wall_time()) {
            Some(delay) => clock::sleep(delay).await,
            None => return true,
        }
    }
    false
}
