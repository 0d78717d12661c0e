//! Room for new links: the channels that close at a cap.

use crate::{
    base::{AtCap, LinkOpened, Owned, Owner},
    channel::{ChannelId, state::Channel},
};

use super::Channels;

impl Channels {
    /// Makes room for a new link, at a cap by closing another channel; `false` if the link must close. There is always
    /// room for a link that this end dialled.
    ///
    /// A link that another node dialled takes the place of the least used channel of the fullest owner, if the owner of
    /// the link stays below that owner. Otherwise the first link of an owner takes the place of the longest idle
    /// channel. So a channel with circuits never ends for an owner that is as full.
    pub(super) fn make_room(&mut self, opened: &LinkOpened) -> bool {
        if opened.dialled.is_some() {
            if self.channels.len().saturating_sub(self.accepted.len()) >= self.parameters.channels {
                self.close_longest_idle(|channel| channel.dialled().is_some());
            }
            return true;
        }
        let owner = Owner::of_address(opened.peer_address.0.ip());
        let Ok(handshake) = self.handshakes.to_evict(&owner) else { return false };
        let loser = match self.accepted.to_lose(&owner) {
            Ok(loser) => loser,
            Err(AtCap::All) if self.accepted.items_of(&owner).next().is_none() => {
                return self.close_longest_idle(|channel| channel.dialled().is_none() && !channel.has_relay_limits());
            }
            Err(_) => return false,
        };
        let least_used = || self.first_of(&self.accepted, &loser?, Channel::rank);
        if let Some(evicted) = handshake.or_else(least_used) {
            self.close(evicted);
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

    /// Whether this node may be a gateway of one more volunteer of `owner`.
    pub(super) fn takes_volunteer(&self, owner: &Owner) -> bool {
        self.volunteers.to_lose(owner).is_ok()
    }

    /// Counts a channel that has begun or ceased to reach a volunteer. At the cap of volunteers, the owner closest to its
    /// share loses a channel: its oldest volunteer that the directory doesn't count, else its oldest one.
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

    /// Of the channels that `may_close` accepts, closes the one that was idle for longest. `false` if none is idle.
    fn close_longest_idle(&mut self, may_close: impl Fn(&Channel) -> bool) -> bool {
        let idle = self.channels.iter().filter(|(_, channel)| channel.is_open() && !channel.kept && may_close(channel));
        let longest = idle.filter_map(|(id, channel)| Some((channel.idle_since()?, *id))).min();
        if let Some((_, id)) = longest {
            self.close(id);
        }
        longest.is_some()
    }
}
