//! Rate limits by token bucket, without a clock.

use super::Instant;

/// Parts in a token. At a rate of one token a second, a bucket gains one part each nanosecond.
const PARTS: u128 = 1_000_000_000;

/// A rate limit. The owner defines the token, such as a request or a byte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    /// Tokens gained in a second: the long-term average.
    pub per_second: u64,
    /// Tokens in a full bucket: the maximum that can be taken without a wait.
    pub burst: u64,
}

/// A token bucket, full when new. All calls on one bucket must pass the same rate.
///
/// Integer arithmetic without rounding: a bucket counts billionths of a token.
#[derive(Clone, Copy, Debug, Default)]
pub struct TokenBucket {
    /// Parts that the bucket lacked to be full at `updated_at`.
    missing_parts: u128,
    updated_at: Instant,
}

impl TokenBucket {
    /// A full bucket.
    #[must_use]
    pub const fn new() -> Self {
        Self { missing_parts: 0, updated_at: Instant::START }
    }

    /// Takes a token; `false` if the bucket holds none.
    pub fn take(&mut self, now: Instant, rate: Rate) -> bool {
        let has_token = self.available(now, rate) > 0;
        if has_token {
            self.spend(now, rate, 1);
        }
        has_token
    }

    /// Takes `tokens`. Tokens that the bucket doesn't hold become a debt, which delays later tokens.
    pub fn spend(&mut self, now: Instant, rate: Rate, tokens: u64) {
        self.missing_parts = self.missing_parts(now, rate).saturating_add(parts(tokens));
        self.updated_at = self.updated_at.max(now);
    }

    /// Whole tokens that the bucket holds.
    #[must_use]
    pub fn available(&self, now: Instant, rate: Rate) -> u64 {
        let held = parts(rate.burst).saturating_sub(self.missing_parts(now, rate)) / PARTS;
        u64::try_from(held).unwrap_or(u64::MAX)
    }

    /// The time from which the bucket holds `tokens`, or is full if `tokens` exceeds the burst. Never before the time
    /// of the last [`spend`](Self::spend).
    #[must_use]
    pub fn available_at(&self, rate: Rate, tokens: u64) -> Instant {
        let lacking = self.missing_parts.saturating_sub(parts(rate.burst.saturating_sub(tokens)));
        let nanos = lacking.div_ceil(u128::from(rate.per_second.max(1)));
        Instant::from_nanos(self.updated_at.as_nanos().saturating_add(u64::try_from(nanos).unwrap_or(u64::MAX)))
    }

    /// Whether the bucket is full, and so equal to a new one.
    #[must_use]
    pub fn is_full(&self, now: Instant, rate: Rate) -> bool {
        self.missing_parts(now, rate) == 0
    }

    /// Parts that the bucket lacks to be full at `now`.
    fn missing_parts(&self, now: Instant, rate: Rate) -> u128 {
        let gained = now.since(self.updated_at).as_nanos().saturating_mul(rate.per_second.into());
        self.missing_parts.saturating_sub(gained)
    }
}

const fn parts(tokens: u64) -> u128 {
    (tokens as u128).saturating_mul(PARTS)
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;

    const RATE: Rate = Rate { per_second: 3, burst: 6 };

    const fn at(nanos: u64) -> Instant {
        Instant::from_nanos(nanos)
    }

    fn tokens_taken(bucket: &mut TokenBucket, now: Instant) -> usize {
        (0..100).filter(|_| bucket.take(now, RATE)).count()
    }

    #[test]
    fn a_full_bucket_admits_a_burst_and_then_the_rate() {
        let mut bucket = TokenBucket::new();
        assert!(bucket.is_full(at(0), RATE));
        assert_eq!(tokens_taken(&mut bucket, at(5)), 6);
        assert!(!bucket.take(at(333_333_338), RATE));
        assert!(bucket.take(at(333_333_339), RATE));
        assert_eq!(tokens_taken(&mut bucket, at(1_000_000_005)), 2);
        assert_eq!(tokens_taken(&mut bucket, at(1_000_000_000_000)), 6);
    }

    #[test]
    fn attempts_in_every_millisecond_get_exactly_the_rate() {
        let mut bucket = TokenBucket::new();
        bucket.spend(at(0), RATE, 6);
        let taken = (1..=10_000).filter(|step| bucket.take(at(step * 1_000_000), RATE)).count();
        assert_eq!(taken, 30);
    }

    #[test]
    fn a_debt_is_paid_before_the_next_token() {
        let mut bucket = TokenBucket::new();
        bucket.spend(at(0), RATE, 9);
        assert_eq!((bucket.available(at(1_000_000_000), RATE), bucket.available(at(2_000_000_000), RATE)), (0, 3));
        assert_eq!(bucket.available_at(RATE, 1), at(1_333_333_334));
        assert_eq!(bucket.available_at(RATE, 100), at(3_000_000_000));
        assert!(!bucket.is_full(at(2_999_999_999), RATE) && bucket.is_full(at(3_000_000_000), RATE));
    }

    #[test]
    fn an_earlier_time_gains_nothing() {
        let mut bucket = TokenBucket::new();
        bucket.spend(at(2_000_000_000), RATE, 6);
        bucket.spend(at(0), RATE, 0);
        assert_eq!(bucket.available(at(2_000_000_000), RATE), 0);
    }

    #[test]
    fn the_lowest_and_the_highest_rate_do_not_overflow() {
        let (end, mut bucket) = (at(u64::MAX), TokenBucket::new());
        let lowest = Rate { per_second: 0, burst: 0 };
        assert!(!bucket.take(end, lowest) && bucket.available_at(lowest, 1) <= end);
        let highest = Rate { per_second: u64::MAX, burst: u64::MAX };
        bucket.spend(at(0), highest, u64::MAX);
        assert_eq!(bucket.available(at(0), highest), 0);
        assert_eq!(bucket.available(end, highest), u64::MAX);
    }
}
