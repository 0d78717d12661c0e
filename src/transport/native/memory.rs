//! Memory budgets that the links of an endpoint share, with a cap for each source.
//!
//! Each link has a fixed reserve. Beyond the reserve, a link leases from a budget. A source (an IPv4 address, an IPv6
//! /64) gets at most a sixteenth of the budget, and a network (/24, /48) a quarter, so no source can exclude the
//! others. While more than three quarters are leased and links request more, the endpoint evicts links without
//! progress, beginning with those of the source that is closest to its share. So the links of an attacker precede an
//! honest link that leases little, also if that link has made no progress for longer.

use core::{cmp::Reverse, net::IpAddr};

use crate::base::{AtCap, Instant, Owner, Shares};

/// Bytes that each link may hold without a lease.
const RESERVE: usize = 64 << 10;
/// Granularity of leases in bytes.
const STEP: usize = 64 << 10;
/// Unused steps at which a lease is reduced to the bytes in use.
const SURPLUS: usize = 2;

/// One budget, for received or for sent data.
pub(super) struct Memory {
    /// The steps of the budget.
    steps: usize,
    /// The leased steps.
    leased: Shares,
    /// A link requested more while memory was short.
    requested: bool,
}

/// The lease of one link.
pub(super) struct Lease {
    owner: Owner,
    steps: usize,
}

impl Lease {
    pub(super) fn new(address: IpAddr) -> Self {
        Self { owner: Owner::of_address(address), steps: 0 }
    }

    /// Whether nothing is leased.
    pub(super) const fn is_empty(&self) -> bool {
        self.steps == 0
    }
}

impl Memory {
    pub(super) fn new(budget: usize) -> Self {
        let steps = budget / STEP;
        Self { steps, leased: Shares::new(steps), requested: false }
    }

    /// Adjusts the lease of a link that holds `held` bytes. Returns the bytes that the link may hold, and whether a
    /// request for more was refused.
    pub(super) fn adjust(&mut self, lease: &mut Lease, held: usize) -> (usize, bool) {
        // Leases half a step in advance, so that packets rarely exceed the lease.
        let wanted = held.saturating_add(STEP / 2).saturating_sub(RESERVE).div_ceil(STEP);
        while lease.steps < wanted && self.grant(lease) {}
        if lease.steps >= wanted.saturating_add(SURPLUS) {
            self.release(lease, lease.steps.saturating_sub(wanted));
        }
        (RESERVE.saturating_add(lease.steps.saturating_mul(STEP)), lease.steps < wanted)
    }

    /// Ends a lease.
    pub(super) fn end(&mut self, lease: &mut Lease) {
        self.release(lease, lease.steps);
    }

    /// Whether more than three quarters are leased.
    pub(super) const fn is_short(&self) -> bool {
        self.leased.len() > self.steps.saturating_sub(self.steps / 4)
    }

    /// Whether memory is short and the link's source is among the fullest: at least half as close to its share as the
    /// fullest source.
    pub(super) fn is_short_for(&self, lease: &Lease) -> bool {
        if !self.is_short() || lease.is_empty() {
            return false;
        }
        self.leased.fullness(&lease.owner).0 >= self.leased.highest_fullness() / 2
    }

    /// Whether a link has requested more while memory was short, since the last call.
    pub(super) const fn take_request(&mut self) -> bool {
        core::mem::replace(&mut self.requested, false)
    }

    /// The link to evict among those without progress, each with its lease and the start of the time without progress:
    /// of the source that is closest to its share, the link without progress for longest.
    pub(super) fn to_evict<'a, K: Copy + Ord>(
        &self,
        stalled: impl Iterator<Item = (&'a Lease, Instant, K)>,
    ) -> Option<K> {
        let ranked = stalled.map(|(lease, since, key)| (self.leased.fullness(&lease.owner), Reverse((since, key))));
        ranked.max().map(|(_, Reverse((_, key)))| key)
    }

    fn grant(&mut self, lease: &mut Lease) -> bool {
        if self.leased.check(&lease.owner) == Err(AtCap::Share) {
            return false;
        }
        self.requested |= self.is_short();
        let granted = self.leased.take(&lease.owner).is_ok();
        lease.steps = lease.steps.saturating_add(usize::from(granted));
        granted
    }

    fn release(&mut self, lease: &mut Lease, steps: usize) {
        if steps > 0 {
            lease.steps = lease.steps.saturating_sub(steps);
            self.leased.subtract(&lease.owner, steps);
        }
    }
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use super::*;

    const BUDGET: usize = 64 * STEP;

    fn lease(last: [u8; 2]) -> Lease {
        Lease::new([10, 0, last[0], last[1]].into())
    }

    #[test]
    fn a_link_has_its_reserve_when_the_budget_is_leased() {
        let mut memory = Memory::new(BUDGET);
        let mut leases: Vec<_> = (0..16).map(|n| lease([n, 1])).collect();
        for lease in &mut leases {
            let (allowed, refused) = memory.adjust(lease, usize::MAX / 2);
            assert_eq!(allowed, RESERVE + 4 * STEP, "a source has a sixteenth");
            assert!(refused);
        }
        assert!(memory.is_short() && memory.take_request());
        assert!(!memory.take_request());
        let mut late = lease([99, 1]);
        assert_eq!(memory.adjust(&mut late, 10 * STEP), (RESERVE, true));
        memory.end(&mut leases[0]);
        assert_eq!(memory.adjust(&mut late, STEP), (RESERVE + STEP, false));
    }

    #[test]
    fn a_network_leases_at_most_a_quarter_and_released_memory_is_free() {
        let mut memory = Memory::new(BUDGET);
        let mut leases: Vec<_> = (0..8).map(|n| lease([0, n])).collect();
        let held: usize = leases.iter_mut().map(|lease| memory.adjust(lease, BUDGET).0 - RESERVE).sum();
        assert_eq!(held, BUDGET / 4);
        leases.iter_mut().for_each(|lease| memory.end(lease));
        assert!(memory.leased.is_empty());
        let mut one = lease([0, 1]);
        memory.adjust(&mut one, 3 * STEP);
        assert_eq!(memory.adjust(&mut one, 0), (RESERVE, false), "the unused lease is released");
    }

    /// An attacker with 13 sources in 4 networks leases more than three quarters of the budget. Its links have holes
    /// that are always younger than the hole of an honest link.
    #[test]
    fn young_holes_of_thirteen_sources_end_no_honest_lossy_link() {
        let mut memory = Memory::new(16 * BUDGET);
        let hostile: Vec<_> = (0..13).flat_map(|source| (0..8).map(move |_| [source % 4, source / 4])).collect();
        let mut hostile: Vec<_> = hostile.into_iter().map(lease).collect();
        for lease in &mut hostile {
            memory.adjust(lease, 9 * STEP);
        }
        assert!(memory.is_short());
        let mut honest: Vec<_> = (0..20).map(|source| lease([100 + source, 1])).collect();
        let since = Instant::START.after(Duration::from_secs(60));
        let mut evicted = 0;
        for _ in 0..1000 {
            let now = since.after(Duration::from_millis(evicted));
            // Each honest link holds 320 KiB beyond a hole that is older than those of the attacker.
            for lease in &mut honest {
                memory.adjust(lease, 5 * STEP);
            }
            if !memory.take_request() {
                break;
            }
            assert!(honest.iter().all(|lease| !memory.is_short_for(lease)));
            assert!(hostile.iter().any(|lease| memory.is_short_for(lease)));
            let stalled_honest = (1000..).zip(&honest).map(|(key, lease)| (lease, Instant::START, key));
            let stalled_hostile = (0..).zip(&hostile).map(|(key, lease)| (lease, now, key));
            let link = memory.to_evict(stalled_honest.chain(stalled_hostile)).unwrap();
            assert!(link < 1000, "an honest link ends");
            memory.end(&mut hostile[link]);
            evicted += 1;
            // The attacker dials again and leases all it can.
            memory.adjust(&mut hostile[link], 9 * STEP);
        }
        assert!(evicted > 0);
    }

    #[test]
    fn the_link_without_progress_for_longest_ends_among_those_of_the_fullest_source() {
        let mut memory = Memory::new(BUDGET);
        let mut leases = [lease([1, 1]), lease([1, 1]), lease([2, 1]), lease([3, 1])];
        for (lease, steps) in leases.iter_mut().zip([2, 1, 2, 1]) {
            memory.adjust(lease, steps * STEP);
        }
        let at = |seconds| Instant::START.after(Duration::from_secs(seconds));
        let stalled = |indexes: &'static [usize]| {
            let since = [3, 2, 1, 0];
            memory.to_evict(indexes.iter().map(|index| (&leases[*index], at(since[*index]), *index)))
        };
        assert_eq!(stalled(&[0, 1, 2, 3]), Some(1), "the second link of the fullest source");
        assert_eq!(stalled(&[2, 3]), Some(2), "the fullest source has progress");
        assert_eq!(stalled(&[]), None);
    }
}
