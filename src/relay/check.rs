//! Checks for tests and fuzzing: the invariants of a relay that hold after each drained batch of inputs.

use super::{Relay, RelayParameters};

impl Relay {
    /// Asserts that the caps of `parameters` hold, and that each table agrees with its indexes and shares.
    pub(crate) fn assert_sound(&self, parameters: &RelayParameters) {
        self.channels.assert_sound();
        let circuits = self.table.len();
        assert!(circuits <= parameters.circuits, "{circuits} circuits");
        assert!(self.table.deadlines() <= circuits);
        let (shares, ranks, _) = self.table.owners().counts();
        assert_eq!((shares, ranks), (circuits, circuits));
        let (partial, deadlines) = self.partial_creates.len();
        assert!(partial == deadlines && partial <= parameters.partial_creates, "{partial} partial CREATEs");
        let (waiting, deadlines, turns, order) = self.waiting_creates.len();
        assert_eq!((waiting, turns), (deadlines, order));
        assert!(waiting <= parameters.waiting_creates, "{waiting} waiting CREATEs");
        let creating = |key: &_| self.table.circuit(*key).is_some_and(|circuit| circuit.next.sent_create().is_some());
        let creating = self.table.keys().iter().filter(|key| creating(key)).count();
        assert_eq!(self.create_windows.unanswered(), creating);
        let waiting = self.waiting_extends.total();
        assert!(waiting <= parameters.waiting_extends, "{waiting} circuits wait for their next relay");
        let streams = self.streams.len();
        assert!(streams <= parameters.exit_streams, "{streams} exit streams");
        let (shares, ranks, _) = self.streams.shares().counts();
        assert_eq!((shares, ranks), (streams, streams));
        let (records, held) = self.streams.records();
        assert_eq!(records.len(), (held, held));
        assert!(held <= parameters.stream_records, "{held} records of streams");
    }

    /// Asserts that no state of a neighbour is left.
    pub(crate) fn assert_without_neighbours(&self) {
        self.channels.assert_closed();
        assert_eq!((self.table.len(), self.table.deadlines(), self.table.owners().counts()), (0, 0, (0, 0, 0)));
        assert_eq!((self.partial_creates.len(), self.waiting_creates.len()), ((0, 0), (0, 0, 0, 0)));
        assert!(self.waiting_extends.is_empty() && self.create_windows.is_empty());
        assert_eq!((self.streams.len(), self.streams.shares().counts()), (0, (0, 0, 0)));
        assert_eq!(self.streams.records().0.len(), (0, 0));
        assert_eq!(self.streams.poll_timeout(), None);
    }
}
