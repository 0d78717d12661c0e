//! The differences between fetches of the consensus and of the volunteer list.

use reqwest::Url;

use super::{Directory, DirectoryError};
use crate::{
    base::WallTime,
    directory::{Consensus, ConsensusBody, Document, VolunteerList, VolunteerListBody, follow::Followed},
};

/// A kind of document that [`super::DirectoryClient`] fetches.
pub(super) trait FetchedBody: Followed + Send + Sync + 'static {
    /// The URL of this document at a directory.
    fn url(directory: &Directory) -> &Url;

    /// Whether a failure to fetch a newer document than `in_use` is logged as a warning.
    fn is_unexpected(error: &DirectoryError, in_use: Option<&Document<Self>>, now: WallTime) -> bool;
}

impl FetchedBody for ConsensusBody {
    fn url(directory: &Directory) -> &Url {
        &directory.consensus
    }

    fn is_unexpected(error: &DirectoryError, _: Option<&Consensus>, _: WallTime) -> bool {
        !matches!(error, DirectoryError::NoneYet)
    }
}

impl FetchedBody for VolunteerListBody {
    fn url(directory: &Directory) -> &Url {
        &directory.volunteers
    }

    fn is_unexpected(error: &DirectoryError, in_use: Option<&VolunteerList>, now: WallTime) -> bool {
        // A fetch can be due in the second in which the authority signs the next list, and precede the new list.
        let is_early =
            matches!(error, DirectoryError::NothingNewer) && in_use.is_some_and(|list| !list.is_expired(now));
        !matches!(error, DirectoryError::NoneYet) && !is_early
    }
}
