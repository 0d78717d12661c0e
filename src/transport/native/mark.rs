//! How full a link's send buffer may be.

use core::time::Duration;

use crate::base::Instant;

/// What the path has lately carried in two of its round trips, between a floor and a ceiling. SCTP counts what is under way as
/// buffered, so a fixed mark would cap the rate of long paths.
///
/// Round trips that are measured have the link's own queue in them, which the mark itself allows: hence the shortest counts. It
/// follows a path that has become longer only while the mark is hardly above its floor, where the queue is small; and it gets there
/// by itself, since a mark of less than a round trip's worth makes the rate smaller, and that the mark.
pub(super) struct Mark {
    floor: usize,
    bytes: usize,
    since: Instant,
    released: usize,
    /// The path's own round trip; none before one has been measured.
    shortest: Option<Duration>,
}

impl Mark {
    const CEILING: usize = 4 << 20;
    /// The least that SCTP tells apart.
    const SHORTEST: Duration = Duration::from_millis(1);
    /// How long a rate is measured at the least: acknowledgements come in bursts, which say nothing of it.
    const PERIOD: Duration = Duration::from_millis(20);
    /// How much of the way to a longer round trip is gone in one period: little, since some of it is the floor's queue.
    const STEP: f32 = 1.0 / 32.0;

    /// One at its floor.
    pub(super) const fn new(now: Instant, floor: usize) -> Self {
        Self { floor, bytes: floor, since: now, released: 0, shortest: None }
    }

    /// The mark, in bytes.
    pub(super) const fn bytes(&self) -> usize {
        self.bytes
    }

    /// The least it can be.
    pub(super) const fn floor(&self) -> usize {
        self.floor
    }

    /// This many bytes more have been acknowledged; round trips take so long now.
    pub(super) fn released(&mut self, now: Instant, round_trip: Duration, bytes: usize) {
        self.released = self.released.saturating_add(bytes);
        let round_trip = round_trip.max(Self::SHORTEST);
        let elapsed = now.since(self.since);
        if elapsed < round_trip.max(Self::PERIOD) {
            return;
        }
        let mut shortest = self.shortest.unwrap_or(round_trip).min(round_trip);
        if self.bytes <= self.floor.saturating_add(self.floor / 16) {
            shortest = shortest.saturating_add(round_trip.saturating_sub(shortest).mul_f32(Self::STEP));
        }
        let in_two = (self.released as f64) * 2.0 * shortest.as_secs_f64() / elapsed.as_secs_f64();
        self.bytes = (in_two as usize).clamp(self.floor, Self::CEILING.max(self.floor));
        (self.since, self.released, self.shortest) = (now, 0, Some(shortest));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLOOR: usize = 51 << 10;

    /// A path with so much time there and back, and a link that carries so many bytes a second, always asked for more.
    struct Path {
        mark: Mark,
        now: Instant,
        round_trip: Duration,
        a_second: usize,
    }

    impl Path {
        /// One that has carried a handshake.
        fn new(milliseconds: u64, a_second: usize) -> Self {
            let round_trip = Duration::from_millis(milliseconds);
            let now = Instant::START.after(Duration::from_secs(1));
            let mut mark = Mark::new(Instant::START, FLOOR);
            mark.released(now, round_trip, 1_000);
            Self { mark, now, round_trip, a_second }
        }

        /// What the mark is after so long, and what the path carried in the last tenth of a second, per second.
        fn run(&mut self, seconds: u64) -> (usize, usize) {
            let step = Duration::from_millis(1);
            let mut lately = 0;
            for ahead in (0..seconds * 1000).rev() {
                self.now = self.now.after(step);
                // A full buffer is all under way: what the path doesn't hold waits before the link.
                let queued = Duration::from_secs_f64(self.mark.bytes() as f64 / self.a_second as f64);
                let round_trip = self.round_trip.max(queued);
                let carried = (self.mark.bytes() as f64 * step.as_secs_f64() / round_trip.as_secs_f64()) as usize;
                self.mark.released(self.now, round_trip, carried);
                lately += if ahead < 100 { carried } else { 0 };
            }
            (self.mark.bytes(), lately * 10)
        }
    }

    #[test]
    fn a_long_path_is_filled_within_two_seconds() {
        let (mark, rate) = Path::new(100, 10_000_000).run(2);
        assert!(rate > 9_900_000, "{rate} bytes a second");
        assert!(mark <= 2_000_000, "two round trips' worth, not {mark} bytes");
    }

    #[test]
    fn the_queue_of_the_link_itself_does_not_make_it_longer() {
        let mut path = Path::new(20, 10_000_000);
        let (after_two, _) = path.run(2);
        let (after_a_minute, rate) = path.run(60);
        assert_eq!(after_two, after_a_minute);
        assert!(after_two <= 2 * 200_000 && rate > 9_900_000, "{after_two} bytes, {rate} a second");
    }

    #[test]
    fn a_short_path_stays_near_the_floor_however_slow_the_other_end() {
        for a_second in [1_000_000, 10_000_000] {
            let (mark, rate) = Path::new(1, a_second).run(10);
            assert!(mark <= FLOOR + FLOOR / 8, "{mark} bytes");
            assert!(rate > a_second / 100 * 99, "{rate} bytes a second");
        }
    }

    #[test]
    fn a_path_that_becomes_longer_is_filled_again_and_a_shorter_one_followed_once_a_queue_is_gone() {
        let mut path = Path::new(10, 10_000_000);
        path.run(2);
        path.round_trip = Duration::from_millis(150);
        let (_, rate) = path.run(12);
        assert!(rate > 9_500_000, "{rate} bytes a second");
        path.round_trip = Duration::from_millis(10);
        path.now = path.now.after(Duration::from_secs(1));
        path.mark.released(path.now, path.round_trip, 1_000);
        let (mark, _) = path.run(2);
        assert!(mark <= 1_000_000 / 5, "{mark} bytes");
    }

    #[test]
    fn the_ceiling_holds() {
        let (mark, _) = Path::new(1000, 100_000_000).run(60);
        assert_eq!(mark, Mark::CEILING);
    }
}
