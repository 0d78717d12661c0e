//! Invariants of a receiving half between calls.

use super::{Fragment, IncomingStream, MAX_DUPLICATES, MAX_MESSAGE, MAX_RANGES, Receiver, SLOT_LEN};

impl Receiver {
    /// Most bytes held: the largest window, an eighth of it for fragments counted in blocks, two messages (one beyond
    /// the window, and that of the next TSN), and a slot, since fragments move from blocks into slots.
    pub(in super::super) fn max_held(&self) -> usize {
        let window = self.window.max(self.max_window);
        window + window / 8 + 2 * MAX_MESSAGE + SLOT_LEN
    }

    /// Asserts the invariants.
    pub(in super::super) fn assert_invariants(&self) {
        let mut before = self.cumulative;
        for range in &self.ranges {
            assert!(range.first > before + 1 && range.last >= range.first, "ranges are in order and disjoint");
            before = range.last;
        }
        assert!(self.ranges.len() <= MAX_RANGES && self.duplicates.len() <= MAX_DUPLICATES);
        assert_eq!(self.hole_since().is_some(), !self.ranges.is_empty(), "a hole before a range has a start time");
        let held = |stream: &IncomingStream| {
            let fragments = stream.pending.values().map(|fragment| Fragment::cost(fragment.payload.len()));
            fragments.sum::<usize>() + stream.message.as_ref().map_or(0, |message| message.bytes.memory())
        };
        assert_eq!(self.held, self.streams.iter().map(held).sum::<usize>(), "bytes held are counted");
        assert_eq!(self.pending, self.streams.iter().map(|stream| stream.pending.len()).sum::<usize>());
        assert!(self.held <= self.max_held(), "{} bytes held, {} allowed", self.held, self.max_held());
        for stream in &self.streams {
            assert!(stream.pending.keys().all(|tsn| *tsn > self.cumulative), "a complete message was not delivered");
            assert!(
                stream.message.as_ref().is_none_or(|message| message.next_tsn > self.cumulative),
                "a deliverable message was not delivered"
            );
            assert!(stream.message.as_ref().is_none_or(|message| message.bytes.len() <= MAX_MESSAGE));
        }
    }
}
