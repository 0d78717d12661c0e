//! Admission of new links: evictions of channels at the caps.

use core::time::Duration;

use crate::{
    base::{AtCap, Instant, LinkOpened, Owned, Owner},
    channel::{ChannelId, state::Channel},
};

use super::Channels;

/// Idle time after which a channel may be evicted for one of an owner that is as full. A client needs a few round trips
/// from the opening of its channel to its first circuit.
const MIN_IDLE: Duration = Duration::from_secs(10);

impl Channels {
    /// Whether a new link is admitted. At a cap, this evicts another channel. A link that this end dialled is always
    /// admitted.
    ///
    /// A link that another node dialled replaces the least used channel of the fullest owner, if the owner of the link
    /// stays below that owner. Otherwise the first link of an owner replaces the longest idle channel of an owner that
    /// is as full. So a used channel never ends for an owner that is as full.
    pub(super) fn admit_link(&mut self, now: Instant, opened: &LinkOpened) -> bool {
        if opened.dialled.is_some() {
            if self.channels.len().saturating_sub(self.accepted.len()) >= self.parameters.channels
                && let Some(idle) = self.longest_idle(|channel| channel.dialled().is_some())
            {
                self.close(idle);
            }
            return true;
        }
        let owner = Owner::of_address(opened.peer_address.0.ip());
        let Ok(handshake) = self.handshakes.to_evict(&owner) else { return false };
        if let Some(handshake) = handshake
            && self.accepted.check(&owner) != Err(AtCap::Share)
        {
            self.close(handshake);
            return true;
        }
        let evicted = match self.accepted.to_lose(&owner) {
            Ok(loser) => loser.and_then(|loser| self.first_of(&self.accepted, &loser, Channel::rank)),
            Err(AtCap::All) if self.accepted.items_of(&owner).next().is_none() => {
                let may_close = |channel: &Channel| {
                    channel.dialled().is_none()
                        && !channel.has_relay_limits()
                        && channel.idle_since().is_some_and(|since| since.after(MIN_IDLE) <= now)
                        && self.accepted.compare(&owner, &channel.owner()).is_le()
                };
                let Some(idle) = self.longest_idle(may_close) else { return false };
                Some(idle)
            }
            Err(_) => return false,
        };
        for channel in handshake.into_iter().chain(evicted) {
            self.close(channel);
        }
        true
    }

    /// The channel of `owner` with the lowest rank.
    fn first_of<R: Ord>(
        &self,
        owned: &Owned<(), ChannelId>,
        owner: &Owner,
        rank: impl Fn(&Channel) -> R,
    ) -> Option<ChannelId> {
        owned.items_of(owner).min_by_key(|id| self.channels.get(id).map(&rank))
    }

    /// Updates the count of channels that reach volunteers, if `id` has begun or stopped to reach one. At the cap of
    /// volunteers, the owner closest to its share loses a channel: its oldest volunteer that the directory doesn't
    /// count, else its oldest one.
    pub(super) fn update_volunteer(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        let (owner, reaches) = (channel.owner(), channel.reaches());
        if core::mem::replace(&mut channel.has_volunteer_place, reaches) == reaches {
            return;
        }
        if !reaches {
            return self.volunteers.remove(&owner, (), id);
        }
        if let Ok(Some(loser)) = self.volunteers.to_lose(&owner)
            && let Some(evicted) = self.first_of(&self.volunteers, &loser, |channel| channel.counted)
        {
            self.close(evicted);
        }
        self.volunteers.add(owner, (), id);
    }

    /// Of the channels that `may_close` accepts, the one that was idle for longest.
    fn longest_idle(&self, may_close: impl Fn(&Channel) -> bool) -> Option<ChannelId> {
        let idle = self.channels.iter().filter(|(_, channel)| channel.is_open() && !channel.kept && may_close(channel));
        idle.filter_map(|(id, channel)| Some((channel.idle_since()?, *id))).min().map(|(_, id)| id)
    }
}
