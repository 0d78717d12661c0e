//! Separation of the exits for streams from the exits for delegated requests.
//!
//! An exit that receives a query and soon afterwards a stream from one guard could attribute both to one person. The
//! uses of exits are held in memory only, for ten minutes after the last use.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::base::{Instant, RelayId};

/// Time for which a use of an exit counts.
const USE_LIFETIME: Duration = Duration::from_secs(600);

/// The time of the last use of each exit, by traffic type.
#[derive(Default)]
pub(super) struct ExitSeparation {
    streams: BTreeMap<RelayId, Instant>,
    requests: BTreeMap<RelayId, Instant>,
}

impl ExitSeparation {
    /// Records a stream or delegated request at `exit`.
    pub(super) fn handle_used(&mut self, now: Instant, exit: RelayId, delegated: bool) {
        let used = if delegated { &mut self.requests } else { &mut self.streams };
        used.insert(exit, now);
    }

    /// The exits to avoid for delegated requests or for streams: those recently used for the other traffic type.
    pub(super) fn avoided(&self, now: Instant, delegated: bool) -> impl Iterator<Item = RelayId> {
        let other = if delegated { &self.streams } else { &self.requests };
        other.iter().filter(move |(_, at)| now.since(**at) < USE_LIFETIME).map(|(exit, _)| *exit)
    }

    /// Removes old entries.
    pub(super) fn sweep(&mut self, now: Instant) {
        for used in [&mut self.streams, &mut self.requests] {
            used.retain(|_, at| now.since(*at) < USE_LIFETIME);
        }
    }
}
