//! The differences between the two documents that nodes follow: consensus and volunteer list.

use std::time::Duration;

use super::{Directory, DirectoryError, Page};
use crate::{
    base::WallTime,
    directory::{Body, Consensus, ConsensusBody, Document, VolunteerList, VolunteerListBody},
};

/// A kind of document that directories serve and nodes follow.
pub(super) trait Followed: Body + Send + Sync + 'static {
    /// Whether the document is cached on disk.
    const IS_KEPT: bool;

    fn page(directory: &mut Directory) -> &mut Page;

    /// The longest delay between retries; shorter without a document in use, for networks that are starting.
    fn longest_retry(in_use: Option<&Document<Self>>) -> Duration;

    /// Whether a failure to get a newer document than `in_use` is logged as a warning.
    fn is_alarming(error: &DirectoryError, in_use: Option<&Document<Self>>, now: WallTime) -> bool;
}

impl Followed for ConsensusBody {
    const IS_KEPT: bool = true;

    fn page(directory: &mut Directory) -> &mut Page {
        &mut directory.consensus
    }

    fn longest_retry(in_use: Option<&Consensus>) -> Duration {
        Duration::from_secs(if in_use.is_some() { 60 } else { 1 })
    }

    fn is_alarming(error: &DirectoryError, _: Option<&Consensus>, _: WallTime) -> bool {
        !matches!(error, DirectoryError::NoneYet)
    }
}

impl Followed for VolunteerListBody {
    // A volunteer list is useless after a few minutes.
    const IS_KEPT: bool = false;

    fn page(directory: &mut Directory) -> &mut Page {
        &mut directory.volunteers
    }

    fn longest_retry(in_use: Option<&VolunteerList>) -> Duration {
        let interval = |list: &VolunteerList| list.fresh_until().since(list.valid_after());
        in_use.map_or(Duration::from_secs(5), |list| {
            interval(list).clamp(Duration::from_secs(1), Duration::from_secs(60))
        })
    }

    fn is_alarming(error: &DirectoryError, in_use: Option<&VolunteerList>, now: WallTime) -> bool {
        // The fetch is due in the second in which the authority makes the list, so it is sometimes too early.
        let early = matches!(error, DirectoryError::NothingNewer) && in_use.is_some_and(|list| !list.is_expired(now));
        !matches!(error, DirectoryError::NoneYet) && !early
    }
}
