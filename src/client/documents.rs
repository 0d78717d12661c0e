//! The directory's documents in use: the consensus and the volunteer list, with the times of their expiry.

use std::sync::Arc;

use crate::{
    base::{Instant, RelayId, WallTime},
    directory::{Consensus, VolunteerList},
    path::Relays,
};

/// The documents from which paths are chosen.
#[derive(Default)]
pub(super) struct Documents {
    consensus: ConsensusState,
    /// The volunteer list, and the time of its expiry.
    volunteers: Option<(Arc<VolunteerList>, Instant)>,
}

#[derive(Default)]
enum ConsensusState {
    #[default]
    Missing,
    Valid {
        consensus: Arc<Consensus>,
        expires: Instant,
    },
    /// No path is chosen from this consensus; open circuits over its relays stay.
    Expired(Arc<Consensus>),
}

impl Documents {
    /// Sets a verified consensus; `wall` is the wall-clock time at `now`. Returns whether the consensus replaces an
    /// older one.
    pub(super) fn set_consensus(&mut self, now: Instant, wall: WallTime, consensus: Arc<Consensus>) -> bool {
        let is_newer = self.consensus().is_some_and(|old| old.valid_after() < consensus.valid_after());
        let expires = now.after(consensus.valid_until().since(wall));
        self.consensus = ConsensusState::Valid { consensus, expires };
        is_newer
    }

    /// Sets a verified volunteer list; `wall` is the wall-clock time at `now`. Returns whether the list replaces an
    /// older one.
    pub(super) fn set_volunteers(&mut self, now: Instant, wall: WallTime, list: Arc<VolunteerList>) -> bool {
        let is_newer = self.volunteers.as_ref().is_some_and(|(old, _)| old.valid_after() < list.valid_after());
        let expires = now.after(list.valid_until().since(wall));
        self.volunteers = Some((list, expires));
        is_newer
    }

    /// The consensus in use, expired or not.
    pub(super) const fn consensus(&self) -> Option<&Arc<Consensus>> {
        match &self.consensus {
            ConsensusState::Missing => None,
            ConsensusState::Valid { consensus, .. } | ConsensusState::Expired(consensus) => Some(consensus),
        }
    }

    /// Whether the consensus had expired at the last [`Self::handle_expiry`].
    pub(super) const fn is_expired(&self) -> bool {
        matches!(self.consensus, ConsensusState::Expired(_))
    }

    /// Handles the expiry of the consensus. Returns true for the first call after the expiry of each consensus.
    pub(super) fn handle_expiry(&mut self, now: Instant) -> bool {
        match &self.consensus {
            ConsensusState::Valid { consensus, expires } if *expires <= now => {
                self.consensus = ConsensusState::Expired(Arc::clone(consensus));
                true
            }
            _ => false,
        }
    }

    /// The relays for path selection. `middle` is the relay behind the guard of each path, if it is fixed. Returns
    /// `None` without a consensus.
    pub(super) fn relays(&self, now: Instant, middle: Option<RelayId>) -> Option<Relays<'_>> {
        let consensus = self.consensus()?;
        let volunteers = self.volunteers.as_ref().filter(|(_, expires)| now < *expires).map(|(list, _)| &**list);
        Some(Relays { consensus, volunteers, middle, gateways_without_volunteers: &[] })
    }
}
