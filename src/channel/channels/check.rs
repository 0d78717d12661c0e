//! Checks for tests and fuzzing: the invariants of a node's channels that hold after each drained batch of inputs.

use crate::base::RelayId;

use super::Channels;

impl Channels {
    /// Asserts that the caps hold, and that the counts and indexes agree with the channels.
    pub(crate) fn assert_sound(&self) {
        let Self { channels, parameters, .. } = self;
        assert!(self.outbox.is_empty() && self.events.is_empty(), "the channels are not drained");
        let half_open = channels.values().filter(|channel| !channel.is_open());
        assert_eq!(self.half_open, half_open.count());
        let accepted = || channels.values().filter(|channel| channel.dialled().is_none());
        let places = channels.values().filter(|channel| channel.has_volunteer_place);
        assert!(places.clone().all(|channel| channel.reaches()), "places of volunteers");
        assert_eq!(channels.values().filter(|channel| channel.reaches()).count(), places.clone().count());
        assert!(places.clone().count() <= parameters.volunteers, "volunteers");
        let opening = |relay| channels.values().any(|channel| channel.dialled() == Some(relay) && !channel.is_open());
        assert!(self.opening.iter().all(|relay| opening(*relay)), "dialled relays");
        let (accepted, handshakes) = (accepted().count(), accepted().filter(|channel| !channel.is_open()).count());
        assert!(accepted <= parameters.channels && handshakes <= parameters.handshakes, "{accepted} {handshakes}");
        let owned = [(&self.accepted, accepted), (&self.handshakes, handshakes), (&self.volunteers, places.count())];
        for (owned, expected) in owned {
            let (shares, items, _) = owned.counts();
            assert_eq!((shares, items), (expected, expected));
        }
        assert!(self.dials.len() <= parameters.dials, "dials");
        let queued: usize = channels.values().map(|channel| channel.queue().len()).sum();
        assert_eq!(self.queued, queued);
        assert!(queued <= parameters.queued, "{queued} queued cells");
        for channel in channels.values() {
            assert!(channel.queue().refusals() <= parameters.refusals, "refusals");
            assert!(channel.queue().queued_cells().all(|queued| queued.cells <= parameters.circuit_queue), "queue");
        }
        let retiring = |relay: &RelayId| {
            channels.values().filter(|channel| channel.peer() == Some(*relay) && channel.is_retiring()).count()
        };
        assert!(
            self.retiring.iter().all(|(relay, count)| *count > 0 && *count == retiring(relay)),
            "retiring channels"
        );
        let all_retiring = channels.values().filter(|channel| channel.peer().is_some() && channel.is_retiring());
        assert_eq!(self.retiring.values().sum::<usize>(), all_retiring.count());
        for (relay, id) in &self.by_relay {
            assert!(channels.get(id).is_some_and(|channel| channel.peer() == Some(*relay)), "index of channels");
        }
    }

    /// Asserts that there is neither a channel nor a dial.
    pub(crate) fn assert_closed(&self) {
        self.assert_sound();
        assert!(
            self.retiring.is_empty()
                && self.channels.is_empty()
                && self.by_relay.is_empty()
                && self.dials.is_empty()
                && self.opening.is_empty()
        );
        assert_eq!((self.queued, self.half_open), (0, 0));
    }
}
