//! The volunteers of a gateway: the channels over which circuits reach them.

use core::time::Duration;
use std::collections::BTreeMap;

use crate::{
    base::Instant,
    channel::{ChannelId, Channels},
    directory::Counted,
};

/// A gateway stops reaching a volunteer that has been missing from the directory's answers for this many volunteer
/// intervals. The volunteer replaces the gateway long before.
const MAX_UNCOUNTED_INTERVALS: u32 = 10;

/// The volunteers whose channels are open.
#[derive(Default)]
pub(super) struct GatewayVolunteers {
    /// By channel, with the time since which the volunteer is missing from the directory's answers.
    volunteers: BTreeMap<ChannelId, Option<Instant>>,
    /// Whether the set of volunteers has changed since `take_changed`.
    changed: bool,
}

impl GatewayVolunteers {
    /// Handles an open channel to a volunteer.
    pub(super) fn handle_open(&mut self, channel: ChannelId) {
        self.volunteers.insert(channel, None);
        self.changed = true;
    }

    /// Handles a closed channel.
    pub(super) fn handle_closed(&mut self, channel: ChannelId) {
        self.changed |= self.volunteers.remove(&channel).is_some();
    }

    /// Handles the directory's answer to a presence, the list of volunteers that the directory accepted. Removes a
    /// volunteer that has been missing from these lists for too long. `interval` is the interval of volunteers'
    /// registrations.
    pub(super) fn handle_counted(
        &mut self,
        now: Instant,
        counted: &Counted,
        interval: Duration,
        channels: &mut Channels,
    ) {
        let limit = interval.saturating_mul(MAX_UNCOUNTED_INTERVALS);
        let Self { volunteers, changed } = self;
        volunteers.retain(|channel, since| {
            let is_counted =
                channels.peer(*channel).is_some_and(|relay| counted.volunteers.binary_search(&relay).is_ok());
            channels.set_counted(*channel, is_counted);
            // Measured from the first list without the volunteer: after an outage, the directory first needs a report
            // of the volunteer.
            *since = if is_counted { None } else { since.or(Some(now)) };
            let stays = since.is_none_or(|since| now.since(since) < limit);
            if !stays {
                channels.stop_reaching(*channel);
                *changed = true;
            }
            stays
        });
    }

    /// Whether the set of volunteers has changed since the last call.
    pub(super) fn take_changed(&mut self) -> bool {
        core::mem::take(&mut self.changed)
    }
}
