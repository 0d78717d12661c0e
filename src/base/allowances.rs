//! Rates for each source, network and listed relay, over all their channels or connections.
//!
//! A bucket lasts until it is full, and so equal to a new one, however often the owner closes its channels and opens
//! others.

use std::collections::HashMap;

use super::{AddressPrefix, Deadlines, Instant, Owner, Rate, TokenBucket};

/// Cap on buckets, about 200 bytes each; at the cap, the one that is full soonest is dropped.
const MAX_BUCKETS: usize = 16_384;
/// Ratio of a network's rate to a source's.
const NETWORK_FACTOR: u64 = 4;

/// The holder of a bucket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum BucketKey {
    Owner(Owner),
    Network(AddressPrefix),
}

/// The buckets of all owners that have used their rate recently.
pub struct Allowances {
    of_source: Rate,
    of_relay: Rate,
    buckets: HashMap<BucketKey, TokenBucket>,
    /// The time from which each bucket is full.
    full_at: Deadlines<BucketKey>,
}

impl Allowances {
    /// The rate of a source and of a listed relay. A network has four times the rate of a source.
    #[must_use]
    pub fn new(of_source: Rate, of_relay: Rate) -> Self {
        Self { of_source, of_relay, buckets: HashMap::new(), full_at: Deadlines::default() }
    }

    /// Takes a token of `owner`, and of its network; `false` if there is none.
    pub fn take(&mut self, now: Instant, owner: &Owner) -> bool {
        while let Some(key) = self.full_at.pop_due(now) {
            self.buckets.remove(&key);
        }
        let Self { of_source, of_relay, .. } = *self;
        let of_network = Rate {
            per_second: of_source.per_second.saturating_mul(NETWORK_FACTOR),
            burst: of_source.burst.saturating_mul(NETWORK_FACTOR),
        };
        let (own, network) = match owner {
            Owner::Source(_, network) => (of_source, Some((BucketKey::Network(*network), of_network))),
            Owner::Relay(_) => (of_relay, None),
        };
        let due = [Some((BucketKey::Owner(*owner), own)), network].into_iter().flatten();
        if due.clone().any(|(key, rate)| self.bucket(&key).available(now, rate) == 0) {
            return false;
        }
        due.for_each(|(key, rate)| self.spend(now, key, rate));
        true
    }

    fn bucket(&self, key: &BucketKey) -> TokenBucket {
        self.buckets.get(key).copied().unwrap_or_default()
    }

    fn spend(&mut self, now: Instant, key: BucketKey, rate: Rate) {
        let mut bucket = self.bucket(&key);
        bucket.spend(now, rate, 1);
        self.full_at.set(key, bucket.available_at(rate, rate.burst));
        self.buckets.insert(key, bucket);
        if self.buckets.len() > MAX_BUCKETS
            && let Some(soonest) = self.full_at.pop_due(Instant::from_nanos(u64::MAX))
        {
            self.buckets.remove(&soonest);
        }
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use core::time::Duration;

    use super::*;
    use crate::base::RelayId;

    const SOURCE: Rate = Rate { per_second: 10, burst: 20 };
    const RELAY: Rate = Rate { per_second: 50, burst: 100 };

    fn address(block: u8, network: u8, host: u8) -> Owner {
        Owner::of_address([10, block, network, host].into())
    }

    fn taken(allowances: &mut Allowances, now: Instant, owner: Owner) -> usize {
        (0..1000).filter(|_| allowances.take(now, &owner)).count()
    }

    #[test]
    fn a_source_has_its_rate_and_its_network_four_times_that() {
        let mut allowances = Allowances::new(SOURCE, RELAY);
        let start = Instant::START;
        assert_eq!(taken(&mut allowances, start, address(0, 1, 1)), 20);
        assert_eq!((2..9).map(|host| taken(&mut allowances, start, address(0, 1, host))).sum::<usize>(), 60);
        assert_eq!(taken(&mut allowances, start, address(0, 2, 1)), 20, "another network");
        assert_eq!(taken(&mut allowances, start, Owner::Relay(RelayId::from_bytes([1; 32]))), 100);
        let later = start.after(Duration::from_secs(1));
        assert_eq!(taken(&mut allowances, later, address(0, 1, 1)), 10);
    }

    #[test]
    fn full_buckets_are_dropped_and_the_number_of_buckets_is_capped() {
        let mut allowances = Allowances::new(SOURCE, RELAY);
        let start = Instant::START;
        assert_eq!(taken(&mut allowances, start, address(255, 255, 1)), 20);
        for number in 0..10_000_u16 {
            let [network, host] = number.to_be_bytes();
            assert!(allowances.take(start, &address(network, host, 7)));
        }
        assert_eq!((allowances.buckets.len(), allowances.full_at.len()), (MAX_BUCKETS, MAX_BUCKETS));
        assert!(!allowances.take(start, &address(255, 255, 1)), "the emptiest bucket stays");
        let later = start.after(Duration::from_secs(2));
        assert!(allowances.take(later, &address(9, 9, 9)));
        assert_eq!((allowances.buckets.len(), allowances.full_at.len()), (2, 2));
    }
}
