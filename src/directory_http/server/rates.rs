//! Rates of submissions of each source and network, so that one sender leaves the authority's time to others.
//!
//! | prefix | a second | at once |
//! |---|---|---|
//! | source, an IPv4 address or IPv6 /64 | 2 | 32 |
//! | network, a /24 or /48 | 8 | 128 |
//!
//! Addresses that aren't global have no rate: they are those of one site, or of a reverse proxy.

use core::net::IpAddr;
use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
};

use crate::{
    base::{AddressPrefix, Instant, Rate, TokenBucket},
    exit_policy::is_global,
};

type Prefix = fn(IpAddr) -> AddressPrefix;
const RATES: [(Prefix, Rate); 2] = [
    (AddressPrefix::source, Rate { a_second: 2, burst: 32 }),
    (AddressPrefix::network, Rate { a_second: 8, burst: 128 }),
];
/// Cap on stored buckets. Full ones are dropped at it, or all if none is full.
const MAX_BUCKETS: usize = 65_536;

/// The rates of all senders.
#[derive(Default)]
pub(super) struct SubmissionRates {
    buckets: Mutex<HashMap<AddressPrefix, TokenBucket>>,
}

impl SubmissionRates {
    /// Counts a submission from `peer`; `false` if it exceeds a rate.
    pub(super) fn admit(&self, now: Instant, peer: IpAddr) -> bool {
        let peer = peer.to_canonical();
        if !is_global(peer) {
            return true;
        }
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        if buckets.len() >= MAX_BUCKETS {
            buckets.retain(|_, bucket| RATES.iter().any(|(_, rate)| !bucket.is_full(now, *rate)));
            if buckets.len() >= MAX_BUCKETS {
                buckets.clear();
            }
        }
        RATES.iter().all(|(prefix, rate)| buckets.entry(prefix(peer)).or_default().take(now, *rate))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn admitted(rates: &SubmissionRates, seconds: u64, addresses: impl Fn(u16) -> String) -> usize {
        let now = Instant::from_nanos(seconds * 1_000_000_000);
        (0..1_000).filter(|number| rates.admit(now, addresses(*number).parse().unwrap())).count()
    }

    #[test]
    fn submissions_of_a_source_and_of_a_network_have_a_rate_and_others_theirs() {
        let rates = SubmissionRates::default();
        assert_eq!(admitted(&rates, 0, |_| "20.0.0.1".into()), 32);
        assert_eq!(admitted(&rates, 1, |_| "::ffff:20.0.0.1".into()), 2);
        let network = admitted(&rates, 1, |number| format!("20.0.0.{}", number % 256));
        assert!((90..=110).contains(&network), "{network}");
        assert_eq!(admitted(&rates, 1, |_| "20.0.1.1".into()), 32);
        assert_eq!(admitted(&rates, 1, |number| format!("2606:4700::{number:x}")), 32);
        assert_eq!(admitted(&rates, 1, |number| format!("2606:4700:1:{number:x}::1")), 128);
        assert_eq!(admitted(&rates, 1, |_| "127.0.0.1".into()), 1_000, "a reverse proxy, or a testnet's nodes");
    }

    #[test]
    fn senders_of_any_number_occupy_bounded_memory() {
        let rates = SubmissionRates::default();
        for number in 0..70_000_u32 {
            let [_, a, b, c] = number.to_be_bytes();
            rates.admit(Instant::START, IpAddr::from([20 + a, b, c, 1]));
        }
        assert!(rates.buckets.lock().unwrap().len() <= MAX_BUCKETS + 2);
    }
}
