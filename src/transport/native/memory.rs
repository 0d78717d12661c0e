//! Memory budgets that the links of an endpoint share, with a cap for each source.
//!
//! Each link has a fixed reserve. Beyond the reserve, a link leases from a budget. A source (an IPv4 address, an IPv6
//! /64) gets at most a sixteenth of the budget, and a network (/24, /48) a quarter, so no source can exclude the
//! others. While more than three quarters are leased and links request more, the endpoint evicts links, beginning with
//! the link without progress for longest.

use std::{collections::HashMap, net::IpAddr};

use crate::base::AddressPrefix;

/// Bytes that each link may hold without a lease.
const RESERVE: usize = 64 << 10;
/// Unused bytes at which a lease is reduced to the bytes in use.
const SURPLUS: usize = 128 << 10;
/// Granularity of leases in bytes.
const STEP: usize = 64 << 10;

/// One budget, for received or for sent data.
pub(super) struct Memory {
    budget: usize,
    leased: usize,
    /// Bytes leased by each source and each network.
    by_prefix: HashMap<AddressPrefix, usize>,
    /// A link requested more while memory was short.
    requested: bool,
}

/// The lease of one link.
pub(super) struct Lease {
    source: AddressPrefix,
    network: AddressPrefix,
    bytes: usize,
}

impl Lease {
    pub(super) fn new(address: IpAddr) -> Self {
        Self { source: AddressPrefix::source(address), network: AddressPrefix::network(address), bytes: 0 }
    }

    /// Bytes leased.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Memory {
    pub(super) fn new(budget: usize) -> Self {
        Self { budget, leased: 0, by_prefix: HashMap::new(), requested: false }
    }

    /// Adjusts the lease of a link that holds `held` bytes. Returns the bytes that the link may hold, and whether a
    /// request for more was refused.
    pub(super) fn adjust(&mut self, lease: &mut Lease, held: usize) -> (usize, bool) {
        // Leases half a step in advance, so that packets rarely exceed the lease.
        let wanted = held.saturating_add(STEP / 2).saturating_sub(RESERVE).next_multiple_of(STEP);
        while lease.bytes < wanted && self.grant(lease) {}
        if lease.bytes >= wanted.saturating_add(SURPLUS) {
            self.release(lease, lease.bytes.saturating_sub(wanted));
        }
        (RESERVE.saturating_add(lease.bytes), lease.bytes < wanted)
    }

    /// Ends a lease.
    pub(super) fn end(&mut self, lease: &mut Lease) {
        self.release(lease, lease.bytes);
    }

    /// Whether more than three quarters are leased.
    pub(super) const fn is_short(&self) -> bool {
        self.leased > self.budget.saturating_sub(self.budget / 4)
    }

    /// Whether a link has requested more while memory was short, since the last call.
    pub(super) const fn take_request(&mut self) -> bool {
        core::mem::replace(&mut self.requested, false)
    }

    fn grant(&mut self, lease: &mut Lease) -> bool {
        let fits = |prefix: &AddressPrefix, divisor: usize| {
            self.by_prefix.get(prefix).copied().unwrap_or_default().saturating_add(STEP)
                <= self.budget.checked_div(divisor).unwrap_or_default()
        };
        if !fits(&lease.source, 16) || !fits(&lease.network, 4) {
            return false;
        }
        self.requested |= self.is_short();
        if self.leased.saturating_add(STEP) > self.budget {
            return false;
        }
        self.leased = self.leased.saturating_add(STEP);
        lease.bytes = lease.bytes.saturating_add(STEP);
        for prefix in [lease.source, lease.network] {
            let bytes = self.by_prefix.entry(prefix).or_default();
            *bytes = bytes.saturating_add(STEP);
        }
        true
    }

    fn release(&mut self, lease: &mut Lease, bytes: usize) {
        if bytes == 0 {
            return;
        }
        lease.bytes = lease.bytes.saturating_sub(bytes);
        self.leased = self.leased.saturating_sub(bytes);
        for prefix in [lease.source, lease.network] {
            if let Some(of_prefix) = self.by_prefix.get_mut(&prefix) {
                *of_prefix = of_prefix.saturating_sub(bytes);
                if *of_prefix == 0 {
                    self.by_prefix.remove(&prefix);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
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
        assert!(memory.by_prefix.is_empty());
        assert_eq!(memory.leased, 0);
        let mut one = lease([0, 1]);
        memory.adjust(&mut one, 3 * STEP);
        assert_eq!(memory.adjust(&mut one, 0), (RESERVE, false), "the unused lease is released");
    }
}
