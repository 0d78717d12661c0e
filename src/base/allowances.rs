//! Rate limits for each source, network and listed relay, over all their channels or connections.
//!
//! A bucket is kept until it is full and its holder's recent use is forgotten. Then it is equal to a new one, so an owner
//! gains no tokens by closing its channels and opening others.
//!
//! The more of its burst a source has used recently, the more of the network's burst must be left for its next token. So
//! sources that take all they can leave tokens to the other sources of their network.

use std::collections::HashMap;

use super::{AddressPrefix, Deadlines, Instant, Owner, Rate, RecentUse, TokenBucket};

/// Cap on the buckets of listed relays, and on those of sources and networks, about 220 bytes each. At the cap, the
/// bucket that is full first is dropped. So no number of sources displaces the bucket of a listed relay.
const MAX_BUCKETS: usize = 16_384;
/// Ratio of a network's rate to a source's.
const NETWORK_FACTOR: u64 = 4;

/// The holder of a bucket.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum BucketKey {
    Owner(Owner),
    Network(AddressPrefix),
}

/// The tokens of an owner or a network.
#[derive(Clone, Copy, Default)]
struct Bucket {
    tokens: TokenBucket,
    recent: RecentUse,
}

/// The buckets of all owners and networks that have taken tokens recently.
pub struct Allowances {
    source_rate: Rate,
    relay_rate: Rate,
    relays: Buckets,
    /// Those of sources and networks.
    sources: Buckets,
}

#[derive(Default)]
struct Buckets {
    by_key: HashMap<BucketKey, Bucket>,
    /// The time from which each bucket is equal to a new one.
    unused_at: Deadlines<BucketKey>,
}

impl Buckets {
    fn get(&self, key: &BucketKey) -> Bucket {
        self.by_key.get(key).copied().unwrap_or_default()
    }

    fn spend(&mut self, now: Instant, key: BucketKey, rate: Rate) {
        let mut bucket = self.get(&key);
        bucket.tokens.spend(now, rate, 1);
        bucket.recent.add(now, rate);
        let full_at = bucket.tokens.available_at(rate, rate.burst);
        self.unused_at.set(key, full_at.after(RecentUse::lifetime(rate)));
        self.by_key.insert(key, bucket);
        if self.by_key.len() > MAX_BUCKETS
            && let Some(first_unused) = self.unused_at.pop_due(Instant::from_nanos(u64::MAX))
        {
            self.by_key.remove(&first_unused);
        }
    }

    fn remove_unused(&mut self, now: Instant) {
        while let Some(key) = self.unused_at.pop_due(now) {
            self.by_key.remove(&key);
        }
    }
}

impl Allowances {
    /// Allowances with the rate of each source and that of each listed relay. A network has four times the rate of a
    /// source.
    #[must_use]
    pub fn new(source_rate: Rate, relay_rate: Rate) -> Self {
        Self { source_rate, relay_rate, relays: Buckets::default(), sources: Buckets::default() }
    }

    /// Takes a token of `owner` and a token of its network. Returns `false`, and takes no token, if either has no token
    /// for it.
    pub fn take(&mut self, now: Instant, owner: &Owner) -> bool {
        self.relays.remove_unused(now);
        self.sources.remove_unused(now);
        let Self { source_rate, relay_rate, .. } = *self;
        let network_rate = Rate {
            per_second: source_rate.per_second.saturating_mul(NETWORK_FACTOR),
            burst: source_rate.burst.saturating_mul(NETWORK_FACTOR),
        };
        let (owner_rate, network, buckets) = match owner {
            Owner::Source(_, network) => (source_rate, Some(BucketKey::Network(*network)), &mut self.sources),
            Owner::Relay(_) => (relay_rate, None, &mut self.relays),
        };
        let of_owner = buckets.get(&BucketKey::Owner(*owner));
        if of_owner.tokens.available(now, owner_rate) == 0 {
            return false;
        }
        if let Some(network) = network {
            let left = buckets.get(&network).tokens.available(now, network_rate);
            if of_owner.recent.tokens_left(now, owner_rate, left, network_rate) == 0 {
                return false;
            }
            buckets.spend(now, network, network_rate);
        }
        buckets.spend(now, BucketKey::Owner(*owner), owner_rate);
        true
    }

    /// The time from which [`Self::take`] can succeed for `owner`, as far as the rate of the owner itself permits.
    #[must_use]
    pub fn available_at(&self, owner: &Owner) -> Instant {
        let (rate, buckets) = match owner {
            Owner::Source(..) => (self.source_rate, &self.sources),
            Owner::Relay(_) => (self.relay_rate, &self.relays),
        };
        buckets.get(&BucketKey::Owner(*owner)).tokens.available_at(rate, 1)
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

    fn source(block: u8, network: u8, host: u8) -> Owner {
        Owner::of_address([10, block, network, host].into())
    }

    fn lengths(buckets: &Buckets) -> (usize, usize) {
        (buckets.by_key.len(), buckets.unused_at.len())
    }

    fn tokens_taken(allowances: &mut Allowances, now: Instant, owner: Owner) -> usize {
        (0..1000).filter(|_| allowances.take(now, &owner)).count()
    }

    #[test]
    fn a_source_has_its_rate_and_its_network_four_times_that() {
        let mut allowances = Allowances::new(SOURCE, RELAY);
        let start = Instant::START;
        assert_eq!(tokens_taken(&mut allowances, start, source(0, 1, 1)), 20);
        let others: usize = (2..9).map(|host| tokens_taken(&mut allowances, start, source(0, 1, host))).sum();
        assert!((50..60).contains(&others), "{others}");
        assert!(allowances.take(start, &source(0, 1, 9)), "a token is left for a source that has used none");
        assert_eq!(tokens_taken(&mut allowances, start, source(0, 2, 1)), 20, "another network");
        assert_eq!(tokens_taken(&mut allowances, start, Owner::Relay(RelayId::from_bytes([1; 32]))), 100);
        let later = start.after(Duration::from_secs(1));
        assert_eq!(tokens_taken(&mut allowances, later, source(0, 2, 1)), 10);
    }

    #[test]
    fn sources_that_take_all_they_can_leave_tokens_to_another_of_their_network() {
        let mut allowances = Allowances::new(SOURCE, RELAY);
        let mut now = Instant::START;
        let mut honest = Vec::new();
        for step in 0..600_u32 {
            now = now.after(Duration::from_millis(100));
            for host in 1..=30 {
                tokens_taken(&mut allowances, now, source(0, 1, host));
            }
            if step % 10 == 5 {
                honest.push(allowances.take(now, &source(0, 1, 200)));
            }
            for host in 1..=30 {
                tokens_taken(&mut allowances, now, source(0, 1, host));
            }
        }
        let served = honest.iter().filter(|taken| **taken).count();
        assert!(served >= 57, "{served} of {}", honest.len());
    }

    #[test]
    fn full_buckets_are_dropped_and_the_number_of_buckets_is_capped() {
        let mut allowances = Allowances::new(SOURCE, RELAY);
        let start = Instant::START;
        assert_eq!(tokens_taken(&mut allowances, start, source(255, 255, 1)), 20);
        for number in 0..10_000_u16 {
            let [network, host] = number.to_be_bytes();
            assert!(allowances.take(start, &source(network, host, 7)));
        }
        assert_eq!(lengths(&allowances.sources), (MAX_BUCKETS, MAX_BUCKETS));
        assert!(!allowances.take(start, &source(255, 255, 1)), "the emptiest bucket stays");
        let later = start.after(Duration::from_secs(20));
        assert!(allowances.take(later, &source(9, 9, 9)));
        assert_eq!(lengths(&allowances.sources), (2, 2));
    }

    #[test]
    fn sources_displace_no_bucket_of_a_listed_relay() {
        let mut allowances = Allowances::new(SOURCE, RELAY);
        let start = Instant::START;
        let relay = Owner::Relay(RelayId::from_bytes([1; 32]));
        assert_eq!(tokens_taken(&mut allowances, start, relay), 100);
        // The relay's bucket is full before those of the sources.
        let later = start.after(Duration::from_millis(1990));
        for number in 0..10_000_u16 {
            let [network, host] = number.to_be_bytes();
            assert!(allowances.take(later, &source(network, host, 7)));
        }
        assert_eq!(lengths(&allowances.sources), (MAX_BUCKETS, MAX_BUCKETS));
        assert_eq!(tokens_taken(&mut allowances, later, relay), 99, "two seconds of its rate");
        assert!(allowances.take(later.after(Duration::from_secs(60)), &source(9, 9, 9)));
        assert_eq!(lengths(&allowances.relays), (0, 0));
    }
}
