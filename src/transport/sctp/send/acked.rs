//! The TSNs acknowledged by gap ack blocks: ranges, and the holes between them.

/// Ranges of TSNs beyond the cumulative TSN ack (first and last), in order and not adjacent.
#[derive(Default)]
pub(super) struct AckedRanges {
    ranges: Vec<(u64, u64)>,
    /// Scratch space: ranges that one SACK newly acknowledges.
    pub(super) new_ranges: Vec<(u64, u64)>,
    /// Scratch space of [`Self::merge`].
    merged: Vec<(u64, u64)>,
}

impl AckedRanges {
    /// Highest TSN acknowledged by a gap ack block; zero if there is none.
    pub(super) fn highest(&self) -> u64 {
        self.ranges.last().map_or(0, |range| range.1)
    }

    /// Removes the TSNs below `first`.
    pub(super) fn remove_before(&mut self, first: u64) {
        let count = self.ranges.partition_point(|range| range.1 < first);
        self.ranges.drain(..count);
        if let Some(range) = self.ranges.first_mut() {
            range.0 = range.0.max(first);
        }
    }

    /// Appends to `new_ranges` the parts of `from..=to` that are not acknowledged yet. `at` is the index at which the
    /// search begins: 0 for the first block of a SACK. The call advances `at` for the next block.
    pub(super) fn collect_new(&self, from: u64, to: u64, at: &mut usize, new_ranges: &mut Vec<(u64, u64)>) {
        let mut from = from;
        let ranges = self.ranges.get(*at..).unwrap_or_default();
        let passed = ranges.partition_point(|range| range.1 < from);
        *at = at.saturating_add(passed);
        for (first, last) in ranges.get(passed..).unwrap_or_default() {
            if *first > to {
                break;
            }
            if from < *first {
                new_ranges.push((from, first.saturating_sub(1)));
            }
            from = last.saturating_add(1);
        }
        if from <= to {
            new_ranges.push((from, to));
        }
    }

    /// Acknowledges `new_ranges`, the output of [`Self::collect_new`] in order.
    pub(super) fn merge(&mut self, new_ranges: &mut [(u64, u64)]) {
        let Some(first) = new_ranges.first() else { return };
        // In most cases the new ranges follow all others.
        if first.0 > self.highest() {
            for next in new_ranges.iter().copied() {
                match self.ranges.last_mut() {
                    Some(last) if last.1.saturating_add(1) >= next.0 => last.1 = next.1,
                    _ => self.ranges.push(next),
                }
            }
            return;
        }
        self.merged.clear();
        let (mut old, mut new) = (self.ranges.iter().copied().peekable(), new_ranges.iter().copied().peekable());
        loop {
            let next = match (old.peek(), new.peek()) {
                (Some(a), Some(b)) if a.0 < b.0 => old.next(),
                (_, Some(_)) => new.next(),
                (_, None) => old.next(),
            };
            let Some(next) = next else { break };
            match self.merged.last_mut() {
                Some(last) if last.1.saturating_add(1) >= next.0 => last.1 = last.1.max(next.1),
                _ => self.merged.push(next),
            }
        }
        core::mem::swap(&mut self.ranges, &mut self.merged);
    }

    /// The holes: ranges of unacknowledged TSNs from `first` to the highest acknowledged TSN.
    pub(super) fn holes(&self, first: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
        let starts = core::iter::once(first).chain(self.ranges.iter().map(|range| range.1.saturating_add(1)));
        let ends = self.ranges.iter().map(|range| range.0.saturating_sub(1));
        starts.zip(ends).filter(|(start, end)| start <= end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Acknowledges `blocks`; returns the ranges that are new.
    fn acknowledge(acked: &mut AckedRanges, blocks: &[(u64, u64)]) -> Vec<(u64, u64)> {
        let mut new_ranges = Vec::new();
        let mut at = 0;
        for (from, to) in blocks {
            acked.collect_new(*from, *to, &mut at, &mut new_ranges);
        }
        acked.merge(&mut new_ranges);
        new_ranges
    }

    #[test]
    fn only_new_ranges_are_returned_and_holes_lie_between_ranges() {
        let mut acked = AckedRanges::default();
        assert_eq!(acknowledge(&mut acked, &[(12, 14), (20, 22)]), [(12, 14), (20, 22)]);
        assert_eq!(acknowledge(&mut acked, &[(12, 15), (18, 25)]), [(15, 15), (18, 19), (23, 25)]);
        assert_eq!(acked.holes(11).collect::<Vec<_>>(), [(11, 11), (16, 17)]);
        assert_eq!(acked.highest(), 25);
        // A SACK that omits blocks revokes no acknowledgement.
        assert_eq!(acknowledge(&mut acked, &[(12, 12)]), []);
        assert_eq!(acked.highest(), 25);
        acked.remove_before(17);
        assert_eq!(acked.holes(17).collect::<Vec<_>>(), [(17, 17)]);
    }

    #[test]
    fn random_sacks_acknowledge_the_same_tsns_as_a_set() {
        use std::collections::BTreeSet;

        use rand::{RngExt as _, SeedableRng as _, rngs::StdRng};

        for seed in 0..50 {
            let mut rng = StdRng::seed_from_u64(seed);
            let (mut acked, mut model, mut first) = (AckedRanges::default(), BTreeSet::new(), 1_u64);
            for _ in 0..100 {
                let mut blocks = Vec::new();
                let mut next = first + 1 + rng.random_range(0..3_000);
                while blocks.len() < 200 && rng.random_bool(0.95) {
                    let last = next + rng.random_range(0..3);
                    blocks.push((next, last));
                    next = last + 2 + rng.random_range(0..30);
                }
                let new: Vec<_> = acknowledge(&mut acked, &blocks).iter().flat_map(|(from, to)| *from..=*to).collect();
                let in_blocks = blocks.iter().flat_map(|(from, to)| *from..=*to);
                assert_eq!(new, in_blocks.filter(|tsn| model.insert(*tsn)).collect::<Vec<_>>(), "seed {seed}");
                first += rng.random_range(0..20);
                acked.remove_before(first);
                model = model.split_off(&first);
                assert_eq!(acked.highest(), model.last().copied().unwrap_or(0), "seed {seed}");
                let holes: u64 = acked.holes(first).map(|(from, to)| to + 1 - from).sum();
                let span = model.last().map_or(0, |last| last + 1 - first);
                assert_eq!(holes, span - model.len() as u64, "seed {seed}");
            }
        }
    }
}
