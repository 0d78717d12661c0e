//! Invariants of a sending half between calls.

use super::{ChunkState, Flight, SendHalf};

/// State that limits sending.
#[derive(Clone, Copy, Debug)]
pub(in super::super) struct SendingState {
    pub(in super::super) in_flight: u64,
    /// Congestion window.
    pub(in super::super) window: u64,
    pub(in super::super) peer_window: u64,
    /// Number of sent TSNs that the cumulative TSN ack has not passed.
    pub(in super::super) flights: usize,
    pub(in super::super) next_tsn: u64,
    pub(in super::super) first_tsn: u64,
    /// A tail loss probe may leave regardless of the window.
    pub(in super::super) probe_due: bool,
    pub(in super::super) unsent: usize,
}

impl SendHalf {
    /// The current state.
    pub(in super::super) fn sending_state(&self) -> SendingState {
        SendingState {
            in_flight: self.in_flight,
            window: self.window(),
            peer_window: self.peer_window,
            flights: self.flights.len(),
            next_tsn: self.next_tsn(),
            first_tsn: self.first,
            probe_due: self.probe_due,
            unsent: self.unsent(),
        }
    }

    /// Asserts the invariants.
    pub(in super::super) fn assert_invariants(&self) {
        let in_flight = self.flights.iter().filter(|flight| flight.state == ChunkState::InFlight);
        assert_eq!(self.in_flight, in_flight.map(Flight::bytes).sum::<u64>(), "bytes in flight are counted");
        assert_eq!(
            self.span,
            self.flights.iter().map(Flight::bytes).sum::<u64>(),
            "the bytes of all sent TSNs are counted"
        );
        let in_state = |state| {
            let flights = (self.first..).zip(&self.flights);
            flights.filter(move |(_, flight)| flight.state == state).map(|(tsn, _)| tsn)
        };
        assert!(in_state(ChunkState::Lost).eq(self.lost.iter().copied()), "each lost chunk is in the list");
        let holes = self.acked.holes(self.first).flat_map(|(from, to)| from..=to);
        let highest = in_state(ChunkState::Acked).last();
        assert_eq!(self.acked.highest(), highest.unwrap_or_default());
        let before = highest.unwrap_or_default();
        let open = (self.first..).zip(&self.flights).take_while(|(tsn, _)| *tsn < before);
        let open = open.filter(|(_, flight)| flight.state != ChunkState::Acked).map(|(tsn, _)| tsn);
        assert!(holes.eq(open), "the holes are the unacknowledged chunks");
        let unacknowledged = self.flights.iter().filter(|flight| flight.state != ChunkState::Acked);
        self.messages.assert_invariants(unacknowledged.map(|flight| &flight.part));
        let needs_timer = self.in_flight > 0 || !self.lost.is_empty();
        assert!(!needs_timer || self.timer().is_some(), "chunks in flight have a timer");
    }
}
