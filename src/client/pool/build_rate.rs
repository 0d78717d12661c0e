//! The rate at which a client starts circuits, below the rate at which its guard refuses them.
//!
//! A guard can't tell isolations apart. Beyond its rate, it would refuse circuits of all isolations, not only those of
//! the isolation that opens many.

use crate::base::{Instant, Rate, TokenBucket};

/// Four fifths of the default rate of `ChannelParameters::creates_of_client`, and three quarters of its burst.
const BUILDS: Rate = Rate { per_second: 40, burst: 150 };

/// The starts of builds, and the time of the next one if a build waits.
#[derive(Default)]
pub(super) struct BuildRate {
    bucket: TokenBucket,
    due: Option<Instant>,
}

impl BuildRate {
    /// Whether a build may start. If not, [`Self::poll_timeout`] returns the time of the next start.
    pub(super) fn may_build(&mut self, now: Instant) -> bool {
        let may_build = self.bucket.available(now, BUILDS) > 0;
        if !may_build {
            self.due = Some(self.bucket.available_at(BUILDS, 1));
        }
        may_build
    }

    /// A build starts.
    pub(super) fn handle_build(&mut self, now: Instant) {
        self.bucket.spend(now, BUILDS, 1);
    }

    /// Returns whether builds that waited may start, once for each wait.
    pub(super) fn handle_timeout(&mut self, now: Instant) -> bool {
        self.due.take_if(|due| *due <= now).is_some()
    }

    /// The time of the next start, if a build waits.
    pub(super) const fn poll_timeout(&self) -> Option<Instant> {
        self.due
    }
}

#[cfg(test)]
mod tests {
    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;
    use crate::channel::ChannelParameters;

    #[test]
    fn builds_wait_below_the_rate_of_a_guard() {
        let guard = ChannelParameters::default().creates_of_client;
        assert!(BUILDS.per_second < guard.per_second && BUILDS.burst < guard.burst);
        let mut rate = BuildRate::default();
        let now = Instant::START;
        for _ in 0..BUILDS.burst {
            assert!(rate.may_build(now));
            rate.handle_build(now);
        }
        assert_eq!(rate.poll_timeout(), None, "no build waits");
        assert!(!rate.may_build(now));
        let due = rate.poll_timeout().unwrap();
        assert_eq!(due.since(now).as_millis(), 25);
        assert!(!rate.handle_timeout(now) && rate.handle_timeout(due) && !rate.handle_timeout(due));
        assert!(rate.may_build(due));
    }
}
