//! Rates of submissions for each source and network, so that one sender can't use all of the authority's time.
//!
//! | prefix | submissions a second | burst |
//! |---|---|---|
//! | source, an IPv4 address or IPv6 /64 | 2 | 32 |
//! | network, a /24 or /48 | 8 | 128 |
//!
//! Addresses that aren't global have no rate: the senders are nodes of one site, or are behind a reverse proxy that isn't
//! trusted.

use core::net::IpAddr;
use std::sync::{Mutex, PoisonError};

use crate::{
    base::{Allowances, Instant, Owner, Rate},
    exit_policy::is_global,
};

/// The rate of a source. A network has four times this rate ([`Allowances`]).
const SOURCE_RATE: Rate = Rate { per_second: 2, burst: 32 };

/// The rates of all senders.
pub(super) struct SubmissionRates {
    allowances: Mutex<Allowances>,
}

impl Default for SubmissionRates {
    fn default() -> Self {
        // The identity of a sender is not known yet, so the rate of listed relays applies to no sender.
        Self { allowances: Mutex::new(Allowances::new(SOURCE_RATE, SOURCE_RATE)) }
    }
}

impl SubmissionRates {
    /// Counts a submission from `peer`; returns `false` if the submission exceeds a rate.
    pub(super) fn admit(&self, now: Instant, peer: IpAddr) -> bool {
        if !is_global(peer.to_canonical()) {
            return true;
        }
        self.allowances.lock().unwrap_or_else(PoisonError::into_inner).take(now, &Owner::of_address(peer))
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
    fn each_source_and_each_network_has_a_rate_of_submissions() {
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
}
