//! The differences between the two documents that nodes fetch: consensus and volunteer list.

use std::time::Duration;

use rand::CryptoRng;

use super::{Directory, DirectoryError, Page};
use crate::{
    base::WallTime,
    directory::{
        AuthorityId, Consensus, MAX_CONSENSUS_LEN, MAX_VOLUNTEER_LIST_LEN, UnverifiedConsensus,
        UnverifiedVolunteerList, VolunteerList,
    },
};

/// A document that directories serve and nodes follow.
pub(super) trait Document: Sized + Send + Sync + 'static {
    /// The name in the log.
    const NAME: &'static str;
    /// Maximum bytes.
    const MAX_LEN: usize;
    /// Whether the document is cached on disk.
    const IS_KEPT: bool;

    fn page(directory: &mut Directory) -> &mut Page;

    fn verify(
        bytes: &[u8],
        authorities: &[AuthorityId],
        now: WallTime,
        in_use: Option<&Self>,
    ) -> Result<Self, DirectoryError>;

    fn digest(&self) -> &[u8; 32];

    fn fresh_until(&self) -> WallTime;

    fn next_fetch<R: CryptoRng>(&self, rng: &mut R) -> WallTime;

    /// The longest delay between retries; shorter without a document in use, for networks that are starting.
    fn longest_retry(in_use: Option<&Self>) -> Duration;

    /// Whether a failure to get a newer document than `in_use` is logged as a warning.
    fn is_alarming(error: &DirectoryError, in_use: Option<&Self>, now: WallTime) -> bool;
}

impl Document for Consensus {
    const NAME: &'static str = "consensus";
    const MAX_LEN: usize = MAX_CONSENSUS_LEN;
    const IS_KEPT: bool = true;

    fn page(directory: &mut Directory) -> &mut Page {
        &mut directory.consensus
    }

    fn verify(
        bytes: &[u8],
        authorities: &[AuthorityId],
        now: WallTime,
        in_use: Option<&Self>,
    ) -> Result<Self, DirectoryError> {
        Ok(UnverifiedConsensus::decode(bytes)?.verify(authorities, now, in_use)?)
    }

    fn digest(&self) -> &[u8; 32] {
        self.digest()
    }

    fn fresh_until(&self) -> WallTime {
        self.fresh_until()
    }

    fn next_fetch<R: CryptoRng>(&self, rng: &mut R) -> WallTime {
        self.next_fetch(rng)
    }

    fn longest_retry(in_use: Option<&Self>) -> Duration {
        Duration::from_secs(if in_use.is_some() { 60 } else { 1 })
    }

    fn is_alarming(error: &DirectoryError, _: Option<&Self>, _: WallTime) -> bool {
        !matches!(error, DirectoryError::NoneYet)
    }
}

impl Document for VolunteerList {
    const NAME: &'static str = "volunteer list";
    const MAX_LEN: usize = MAX_VOLUNTEER_LIST_LEN;
    // A volunteer list is useless after a few minutes.
    const IS_KEPT: bool = false;

    fn page(directory: &mut Directory) -> &mut Page {
        &mut directory.volunteers
    }

    fn verify(
        bytes: &[u8],
        authorities: &[AuthorityId],
        now: WallTime,
        in_use: Option<&Self>,
    ) -> Result<Self, DirectoryError> {
        Ok(UnverifiedVolunteerList::decode(bytes)?.verify(authorities, now, in_use)?)
    }

    fn digest(&self) -> &[u8; 32] {
        self.digest()
    }

    fn fresh_until(&self) -> WallTime {
        self.fresh_until()
    }

    fn next_fetch<R: CryptoRng>(&self, rng: &mut R) -> WallTime {
        self.next_fetch(rng)
    }

    fn longest_retry(in_use: Option<&Self>) -> Duration {
        let interval = |list: &Self| list.fresh_until().since(list.valid_after());
        in_use.map_or(Duration::from_secs(5), |list| {
            interval(list).clamp(Duration::from_secs(1), Duration::from_secs(60))
        })
    }

    fn is_alarming(error: &DirectoryError, in_use: Option<&Self>, now: WallTime) -> bool {
        // The fetch is due in the second in which the authority makes the list, so it is sometimes too early.
        let early = matches!(error, DirectoryError::NothingNewer) && in_use.is_some_and(|list| !list.is_expired(now));
        !matches!(error, DirectoryError::NoneYet) && !early
    }
}
