//! Selection of the channel for new circuits to a relay, of several to it.

use core::time::Duration;

use crate::{
    base::{Counter as _, RelayId},
    channel::{ChannelId, state::Channel},
};

use super::Channels;

/// Two channels between the same relays that open within this interval count as dialled simultaneously.
const SIMULTANEOUS_INTERVAL: Duration = Duration::from_secs(10);
/// Maximum retiring channels to one relay. At the cap this node dials no other channel to that relay: the youngest
/// retiring channel accepts new circuits until its link ends. The cap bounds the ports that a node uses for dialling.
const MAX_RETIRING: usize = 2;

impl Channels {
    /// The open channel for new circuits to `relay`. A retiring channel is returned only if it reaches a
    /// volunteer, or if the relay has [`MAX_RETIRING`] retiring channels.
    #[must_use]
    pub fn lookup(&self, relay: &RelayId) -> Option<ChannelId> {
        let channel = self.by_relay.get(relay).copied()?;
        let accepts = self.channels.get(&channel).is_some_and(Channel::accepts_circuits);
        (accepts || self.retiring.get(relay).is_some_and(|retiring| *retiring >= MAX_RETIRING)).then_some(channel)
    }

    /// Determines which of several channels to the same relay gets new circuits (`proto/02-channel.md` §6). If both
    /// ends dialled simultaneously, that is the channel that the relay with the lower identity dialled. The other
    /// channels close when they are idle.
    pub(super) fn channel_opened(&mut self, id: ChannelId) {
        self.half_open.decrement();
        let Some(new) = self.channels.get(&id) else { return };
        match new.dialled() {
            Some(relay) => _ = self.opening.remove(&relay),
            None => self.handshakes.remove(&new.owner(), (), id),
        }
        let (Some(peer), Some(new_is_ours)) = (new.peer(), new.outcome().map(|outcome| outcome.dialler)) else {
            return;
        };
        let current = self.by_relay.get(&peer).and_then(|current| self.channels.get(current));
        let reaches = new.reaches();
        let keeps_current = current
            .filter(|current| !current.is_retiring() || (current.reaches() && !reaches))
            .is_some_and(|current| {
                let current_is_ours = current.outcome().is_some_and(|outcome| outcome.dialler);
                let simultaneous = new.opened_at().since(current.opened_at()) < SIMULTANEOUS_INTERVAL;
                let prefers_ours = self.role.identity().is_some_and(|identity| identity < peer);
                let current_reaches = current.reaches() && !reaches;
                current_reaches || (simultaneous && current_is_ours != new_is_ours && current_is_ours == prefers_ours)
            });
        if keeps_current {
            return;
        }
        // The replaced channel may close when it is idle: one open channel to a volunteer is sufficient.
        if let Some(current) = self.by_relay.insert(peer, id).and_then(|current| self.channels.get_mut(&current)) {
            current.kept = false;
        }
    }

    /// Retires a channel whose link's keys are close to their limit (`proto/02-channel.md` §6).
    pub(super) fn retire(&mut self, id: ChannelId) {
        let Some(channel) = self.channels.get_mut(&id) else { return };
        if channel.is_retiring() {
            return;
        }
        if channel.is_open() {
            channel.retire();
            let Some(peer) = channel.peer() else { return };
            self.retiring.entry(peer).or_default().increment();
            if self.by_relay.get(&peer) == Some(&id) {
                self.select_channel(peer);
            }
        } else {
            // The channel is not open and carries no circuit, so it closes, and a dial fails.
            self.close(id);
        }
    }

    /// Counts the end of a retiring channel to `peer`.
    pub(super) fn count_retired(&mut self, peer: &RelayId) {
        let Some(retiring) = self.retiring.get_mut(peer) else { return };
        retiring.decrement();
        if *retiring == 0 {
            self.retiring.remove(peer);
        }
    }

    /// Selects the channel for new circuits to `peer`: the youngest that accepts circuits, else the youngest.
    pub(super) fn select_channel(&mut self, peer: RelayId) {
        let candidates = self.channels.iter().filter(|(_, other)| other.peer() == Some(peer));
        if let Some((id, _)) = candidates.max_by_key(|(id, other)| (other.accepts_circuits(), **id)) {
            let id = *id;
            self.by_relay.insert(peer, id);
        }
    }
}
