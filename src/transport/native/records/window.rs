//! The replay window of a record layer (RFC 6347 §4.1.2.6).

/// Width of the window, in sequence numbers up to the newest. Older records are dropped.
pub(super) const WINDOW: u64 = 1_024;

/// Words of the ring: one more than the window fills, since the word of the newest number is partly used.
const WORDS: usize = 17;

/// The received sequence numbers, in a ring of bits.
#[derive(Default)]
pub(super) struct ReplayWindow {
    /// The number after the newest; 0 before the first record.
    end: u64,
    words: [u64; WORDS],
}

impl ReplayWindow {
    /// Whether a record of this number may be opened: in the window or ahead of it, and not received yet.
    pub(super) fn is_new(&self, sequence: u64) -> bool {
        if sequence >= self.end {
            return true;
        }
        let (word, bit) = place(sequence);
        let received = self.words.get(word).is_none_or(|word| word & bit != 0);
        self.end.saturating_sub(sequence) <= WINDOW && !received
    }

    /// Marks an authenticated record that [`Self::is_new`] accepted.
    pub(super) fn mark(&mut self, sequence: u64) {
        if sequence >= self.end {
            // The words after that of the newest number, up to that of this number, hold numbers outside the window.
            let last = self.end.checked_sub(1).map_or(0, |newest| newest >> 6);
            let new_words = (sequence >> 6).saturating_sub(last);
            for step in 1..=new_words.min(WORDS as u64) {
                if let Some(word) = self.words.get_mut(place(last.saturating_add(step) << 6).0) {
                    *word = 0;
                }
            }
            self.end = sequence.saturating_add(1);
        }
        let (word, bit) = place(sequence);
        if let Some(word) = self.words.get_mut(word) {
            *word |= bit;
        }
    }
}

/// The word of a number, and the number's bit in it.
fn place(sequence: u64) -> (usize, u64) {
    let word = (sequence >> 6).checked_rem(WORDS as u64).unwrap_or_default();
    (usize::try_from(word).unwrap_or_default(), 1 << (sequence & 63))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_window_agrees_with_a_set_of_all_numbers(steps in proptest::collection::vec((any::<bool>(), 0u64..3_000), 1..300)) {
            let (mut window, mut seen, mut newest) = (ReplayWindow::default(), BTreeSet::new(), None::<u64>);
            for (ahead, distance) in steps {
                let base = newest.unwrap_or_default();
                let sequence = if ahead { base + distance } else { base.saturating_sub(distance) };
                let old = newest.is_some_and(|newest| newest >= sequence + WINDOW);
                let expected = !old && !seen.contains(&sequence);
                prop_assert_eq!(window.is_new(sequence), expected, "{} behind {:?}", sequence, newest);
                if expected {
                    window.mark(sequence);
                    seen.insert(sequence);
                    newest = newest.max(Some(sequence));
                }
            }
        }
    }

    #[test]
    fn the_window_has_1024_records_and_accepts_the_largest_number() {
        let mut window = ReplayWindow::default();
        window.mark(5_000);
        assert!(window.is_new(5_000 - 1_023) && !window.is_new(5_000 - 1_024) && !window.is_new(5_000));
        window.mark((1 << 48) - 1);
        assert!(!window.is_new((1 << 48) - 1) && window.is_new((1 << 48) - 2) && !window.is_new(5_001));
    }
}
