//! Rate limits of one neighbour, and the source of a link.

use core::{
    net::{IpAddr, Ipv6Addr, SocketAddr},
    time::Duration,
};

use crate::base::Instant;

use super::Rate;

/// A token bucket; full when new.
pub(super) struct Bucket {
    /// When the bucket is full again.
    full_at: Instant,
}

impl Bucket {
    pub(super) const fn new() -> Self {
        Self { full_at: Instant::START }
    }

    /// Takes a token; `false` if there is none.
    pub(super) fn take(&mut self, now: Instant, rate: Rate) -> bool {
        let interval = Duration::from_secs(1).checked_div(rate.a_second).unwrap_or(Duration::MAX);
        let full_at = self.full_at.max(now).after(interval);
        let taken = full_at.since(now) <= interval.saturating_mul(rate.burst);
        if taken {
            self.full_at = full_at;
        }
        taken
    }
}

/// The source of a link, as far as sources can be distinguished: an IPv4 address or an IPv6 /64.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Source(IpAddr);

impl Source {
    pub(super) fn of(address: SocketAddr) -> Self {
        Self(match address.ip().to_canonical() {
            IpAddr::V4(address) => address.into(),
            IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        })
    }
}
