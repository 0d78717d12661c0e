//! Which exits carry streams of this client and which perform its requests, so that none does both while there are others.
//!
//! An exit that saw a query and soon after a stream over the same guard could take both for one person's. Kept in memory
//! only, for ten minutes after the last use.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::base::{Instant, RelayId};

const REMEMBERED: Duration = Duration::from_secs(600);

/// When each exit was last used for what.
#[derive(Default)]
pub(super) struct Apart {
    streams: BTreeMap<RelayId, Instant>,
    requests: BTreeMap<RelayId, Instant>,
}

impl Apart {
    /// `exit` is given a request or a stream.
    pub(super) fn handle_used(&mut self, now: Instant, exit: RelayId, delegated: bool) {
        let used = if delegated { &mut self.requests } else { &mut self.streams };
        used.insert(exit, now);
    }

    /// Exits that are not for what comes: those that did the other thing of late.
    pub(super) fn shunned(&self, now: Instant, delegated: bool) -> impl Iterator<Item = RelayId> {
        let other = if delegated { &self.streams } else { &self.requests };
        other.iter().filter(move |(_, at)| now.since(**at) < REMEMBERED).map(|(exit, _)| *exit)
    }

    /// Forgets what is long ago.
    pub(super) fn sweep(&mut self, now: Instant) {
        for used in [&mut self.streams, &mut self.requests] {
            used.retain(|_, at| now.since(*at) < REMEMBERED);
        }
    }
}
