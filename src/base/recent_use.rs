//! The recent use of a rate that several holders share, so that holders of much leave tokens to holders of little.

use core::time::Duration;

use super::{Instant, Rate};

/// The recent use of one token; a fraction of it remains for as many periods as it has bits.
const USE: u64 = 1 << 8;
/// Periods after which no use of a single token remains.
const PERIODS: u32 = 9;

/// The tokens that one holder has taken recently, halved in each period. A period is the time in which the holder's own
/// bucket fills.
#[derive(Clone, Copy, Debug, Default)]
pub struct RecentUse {
    /// The use at the time `period`.
    used: u64,
    period: u64,
}

impl RecentUse {
    /// The time after which no use of a single token remains.
    pub(super) fn lifetime(own: Rate) -> Duration {
        Duration::from_secs(seconds(own)).saturating_mul(PERIODS)
    }

    /// Counts a token of a holder with the rate `own`.
    pub fn add(&mut self, now: Instant, own: Rate) {
        self.used = self.used(now, own).saturating_add(USE);
        self.period = period(now, own);
    }

    /// The tokens that the holder may take while `available` tokens of a `shared` bucket are left. None are left once it
    /// has used twice as large a part of its `own` burst as is left of the shared one.
    #[must_use]
    pub fn tokens_left(&self, now: Instant, own: Rate, available: u64, shared: Rate) -> u64 {
        let used = self.used(now, own);
        let product = |factors: [u64; 3]| factors.into_iter().map(u128::from).fold(1, u128::saturating_mul);
        let unused = product([available, own.burst, 2 * USE]).saturating_sub(product([used, shared.burst, 1]));
        let part = product([shared.burst, USE, 1]).max(1);
        u64::try_from(unused.div_ceil(part)).unwrap_or(u64::MAX)
    }

    fn used(&self, now: Instant, own: Rate) -> u64 {
        let periods = period(now, own).saturating_sub(self.period);
        u32::try_from(periods).ok().and_then(|periods| self.used.checked_shr(periods)).unwrap_or(0)
    }
}

/// The length of a period.
fn seconds(own: Rate) -> u64 {
    own.burst.checked_div(own.per_second).unwrap_or(1).max(1)
}

fn period(now: Instant, own: Rate) -> u64 {
    now.since(Instant::START).as_secs().checked_div(seconds(own)).unwrap_or(0)
}
