//! Invariants of a receiving half between calls.

use super::{FragmentBlock, IncomingStream, MAX_DUPLICATES, MAX_MESSAGE, MAX_RANGES, ReceiveHalf, SLOT_LEN};

impl ReceiveHalf {
    /// Cap on the bytes held, the sum of:
    /// - the largest window, and an eighth of it, because blocks have more bytes than the payload that the sender
    ///   counts;
    /// - one message, by which `handle_data` may exceed the window;
    /// - one message, because the next TSN is always accepted;
    /// - one slot, because a fragment that moves from a block into a message may start a slot.
    pub(in super::super) fn max_held(&self) -> usize {
        let window = self.window.max(self.max_window);
        window + window / 8 + 2 * MAX_MESSAGE + SLOT_LEN
    }

    /// Asserts the invariants.
    pub(in super::super) fn assert_invariants(&self) {
        let mut previous_last = self.cumulative;
        for range in &self.ranges {
            assert!(
                range.first > previous_last + 1 && range.last >= range.first,
                "ranges are out of order, overlap or touch"
            );
            previous_last = range.last;
        }
        assert!(self.ranges.len() <= MAX_RANGES, "{} ranges", self.ranges.len());
        assert!(self.duplicates.len() <= MAX_DUPLICATES, "{} duplicates", self.duplicates.len());
        assert_eq!(
            self.hole_since().is_some(),
            !self.ranges.is_empty(),
            "a range without the start time of the hole before it, or the reverse"
        );
        let held = |stream: &IncomingStream| {
            let fragments = stream.pending.values().map(|fragment| FragmentBlock::memory(fragment.payload.len()));
            fragments.sum::<usize>() + stream.message.as_ref().map_or(0, |message| message.bytes.memory())
        };
        assert_eq!(
            self.held,
            self.streams.iter().map(held).sum::<usize>(),
            "`held` differs from the bytes of the streams"
        );
        assert_eq!(
            self.pending,
            self.streams.iter().map(|stream| stream.pending.len()).sum::<usize>(),
            "`pending` differs from the fragments of the streams"
        );
        assert!(self.held <= self.max_held(), "{} bytes held, {} allowed", self.held, self.max_held());
        for stream in &self.streams {
            assert!(
                stream.pending.keys().all(|tsn| *tsn > self.cumulative),
                "a fragment before the first hole was not appended to its message"
            );
            assert!(
                stream.message.as_ref().is_none_or(|message| message.next_tsn > self.cumulative),
                "the next TSN of a message has arrived, but was not appended"
            );
            assert!(
                stream.message.as_ref().is_none_or(|message| message.bytes.len() <= MAX_MESSAGE),
                "a message is too long"
            );
        }
    }
}
