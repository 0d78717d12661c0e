//! Room for new links: the channels that close at a cap.

use crate::{
    base::{AtCap, LinkOpened, Owner},
    channel::{ChannelId, state::Channel},
};

use super::Channels;

impl Channels {
    /// Makes room for a new link, at a cap by closing another channel; `false` if the link must close. There is always
    /// room for a link that this end dialled.
    pub(super) fn make_room(&mut self, opened: &LinkOpened) -> bool {
        if opened.dialled.is_some() {
            if self.channels.len().saturating_sub(self.accepted.len()) >= self.parameters.channels {
                self.close_longest_idle();
            }
            return true;
        }
        let owner = Owner::of_address(opened.peer_address.0.ip());
        let Ok(handshake) = self.handshakes.to_evict(&owner) else { return false };
        let at_cap = match self.accepted.check(&owner) {
            Ok(()) => false,
            Err(AtCap::All) if self.accepted.is_below_fullest(&owner) => true,
            Err(_) => return false,
        };
        let evicted = handshake.or_else(|| self.least_used().filter(|_| at_cap));
        if let Some(evicted) = evicted {
            self.close(evicted);
        }
        true
    }

    /// Of the owner closest to its share, the least used channel that another node dialled.
    fn least_used(&self) -> Option<ChannelId> {
        let owner = self.accepted.fullest()?;
        self.accepted.items_of(&owner).min_by_key(|id| self.channels.get(id).map(Channel::rank))
    }

    /// Closes the channel that was idle for longest, of those that this end dialled.
    fn close_longest_idle(&mut self) {
        let dialled = self.channels.iter().filter(|(_, channel)| channel.dialled().is_some());
        let idle = dialled.filter(|(_, channel)| channel.is_open() && !channel.kept);
        let idle = idle.filter_map(|(id, channel)| Some((channel.idle_since()?, *id))).min();
        if let Some((_, id)) = idle {
            self.close(id);
        }
    }
}
