//! Windows of CREATEs to next relays: the number of CREATEs on each channel that may be unanswered.
//!
//! A next relay sees only this relay as the owner of its CREATEs, so it answers them in the order of their arrival. CREATEs
//! beyond the window wait at this relay, where clients and listed relays take turns (`waiting_extends`). The size of a
//! window follows the answer times, as a congestion window does: the next relay queues CREATEs of this relay for about
//! [`QUEUE_TARGET`] at most.

use core::time::Duration;
use std::collections::HashMap;

use crate::{
    base::{Counter as _, Instant, RelayId, TURN_OF_RELAY},
    channel::ChannelId,
};

/// Smallest window. The next relay answers as many CREATEs of a listed relay in one turn, so these don't wait for each
/// other. A smaller window would use a part of the turn only.
const MIN_SIZE: usize = TURN_OF_RELAY;
/// Largest window: a rate of 450 CREATEs a second over a path with an answer time of half a second.
const MAX_SIZE: usize = 256;
/// Time beyond the base after which an answer is late, so that the window shrinks.
const QUEUE_TARGET: Duration = Duration::from_millis(100);
/// Time beyond the base within which an answer is prompt, so that the window grows. Half of the target, because the
/// queue can double until the next answer.
const PROMPT: Duration = Duration::from_millis(50);
/// Interval after which a window shrinks to the largest number of unanswered CREATEs in it.
const USE_INTERVAL: Duration = Duration::from_secs(1);

/// A CREATE in a window.
#[derive(Clone, Copy)]
pub(super) struct SentCreate {
    at: Instant,
    /// The number of unanswered CREATEs at that time, without this one.
    ahead: usize,
}

/// The window of one channel.
struct CreateWindow {
    /// The relay at the other end of the channel.
    relay: RelayId,
    unanswered: usize,
    size: usize,
    /// The answer time without a queue of this relay's CREATEs: the shortest one since an answer was late with few
    /// CREATEs ahead. `None` before the first answer.
    base: Option<Duration>,
    /// The start of the current interval of [`USE_INTERVAL`], and the largest number of unanswered CREATEs in it.
    interval: (Instant, usize),
}

impl CreateWindow {
    const fn is_full(&self) -> bool {
        self.unanswered >= self.size
    }

    /// Whether at least half of the window was in use in this interval. Many answers may arrive at once, so the window
    /// need not be full at each of them.
    const fn is_in_use(&self) -> bool {
        self.size < self.interval.1.saturating_mul(2)
    }

    /// Handles the end of a wait of `waited` for an answer.
    fn measure(&mut self, waited: Duration, ahead: usize, is_answered: bool) {
        let Some(base) = self.base else {
            self.base = is_answered.then_some(waited);
            return;
        };
        let late = base.saturating_add(QUEUE_TARGET);
        if waited > late && ahead >= MIN_SIZE {
            // In the measured time, the next relay has answered the CREATEs that were ahead, and this one.
            let answered = late.as_nanos().saturating_mul(ahead.saturating_add(1) as u128);
            let in_time = answered.checked_div(waited.as_nanos()).and_then(|count| usize::try_from(count).ok());
            self.size = self.size.min(in_time.unwrap_or_default()).max(MIN_SIZE);
        } else if is_answered && self.is_in_use() && waited <= base.saturating_add(PROMPT) {
            self.size = self.size.saturating_add(1).min(MAX_SIZE);
        }
        if is_answered && (waited < base || (waited > late && ahead < MIN_SIZE)) {
            self.base = Some(waited);
        }
    }
}

/// The windows of all channels on which CREATEs were sent. At most one for each open channel.
pub(super) struct CreateWindows {
    first_size: usize,
    by_channel: HashMap<ChannelId, CreateWindow>,
}

impl CreateWindows {
    /// No window; each has `first_size` at first.
    pub(super) fn new(first_size: usize) -> Self {
        Self { first_size: first_size.max(1), by_channel: HashMap::new() }
    }

    /// Whether one more CREATE may be sent on `channel`.
    pub(super) fn has_room(&mut self, now: Instant, channel: ChannelId) -> bool {
        let first_size = self.first_size;
        self.by_channel.get_mut(&channel).is_none_or(|window| {
            let (start, largest) = window.interval;
            if now.since(start) >= USE_INTERVAL {
                // A window that stays large with fewer CREATEs would admit a burst.
                window.size = window.size.min(largest.max(first_size));
                window.interval = (now, window.unanswered);
            }
            !window.is_full()
        })
    }

    /// Adds a CREATE on `channel`, which leads to `relay`.
    pub(super) fn send(&mut self, now: Instant, channel: ChannelId, relay: RelayId) -> SentCreate {
        let size = self.first_size;
        let window = self.by_channel.entry(channel).or_insert_with(|| CreateWindow {
            relay,
            unanswered: 0,
            size,
            base: None,
            interval: (now, 0),
        });
        let ahead = window.unanswered;
        window.unanswered.increment();
        window.interval.1 = window.interval.1.max(window.unanswered);
        SentCreate { at: now, ahead }
    }

    /// Removes a CREATE on `channel` that was answered by CREATED, or whose circuit has ended. Returns the relay for which
    /// a waiting circuit may have room now.
    pub(super) fn remove(
        &mut self,
        now: Instant,
        channel: ChannelId,
        sent: SentCreate,
        is_answered: bool,
    ) -> Option<RelayId> {
        let window = self.by_channel.get_mut(&channel)?;
        window.measure(now.since(sent.at), sent.ahead, is_answered);
        window.unanswered.decrement();
        Some(window.relay)
    }

    /// Removes the window of a closed channel. Returns the relay at its other end.
    pub(super) fn remove_channel(&mut self, channel: ChannelId) -> Option<RelayId> {
        self.by_channel.remove(&channel).map(|window| window.relay)
    }

    /// The number of unanswered CREATEs on all channels.
    #[cfg(any(test, fuzzing))]
    pub(super) fn unanswered(&self) -> usize {
        self.by_channel.values().map(|window| window.unanswered).sum()
    }

    #[cfg(any(test, fuzzing))]
    pub(super) fn is_empty(&self) -> bool {
        self.by_channel.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    #[cfg(target_arch = "wasm32")]
    use wasm_bindgen_test::wasm_bindgen_test as test;

    use super::*;
    use crate::base::LinkId;

    const CHANNEL: ChannelId = ChannelId(LinkId(1));
    const FIRST_SIZE: usize = 16;

    const fn millis(millis: u64) -> Duration {
        Duration::from_millis(millis)
    }

    /// A next relay that answers CREATEs in order, at most one in each `interval`, after a path of `path`.
    struct NextRelay {
        now: Instant,
        windows: CreateWindows,
        path: Duration,
        interval: Duration,
        /// The unanswered CREATEs with the times of their answers.
        sent: VecDeque<(Instant, SentCreate)>,
        last_answer: Instant,
    }

    impl NextRelay {
        fn new(path: Duration, interval: Duration) -> Self {
            let (now, windows) = (Instant::START, CreateWindows::new(FIRST_SIZE));
            Self { now, windows, path, interval, sent: VecDeque::new(), last_answer: now }
        }

        fn relay() -> RelayId {
            RelayId::from_bytes([1; 32])
        }

        /// Sends all CREATEs for which there is room in a millisecond, but at most `demand`. Returns the times of the
        /// answers.
        fn step(&mut self, demand: usize) -> Vec<Duration> {
            self.now = self.now.after(millis(1));
            let mut answers = Vec::new();
            while let Some((_, sent)) = self.sent.pop_front_if(|(answer, _)| *answer <= self.now) {
                answers.push(self.now.since(sent.at));
                assert!(self.windows.remove(self.now, CHANNEL, sent, true) == Some(Self::relay()));
            }
            for _ in 0..demand {
                if !self.windows.has_room(self.now, CHANNEL) {
                    break;
                }
                self.last_answer = self.last_answer.after(self.interval).max(self.now.after(self.path));
                self.sent.push_back((self.last_answer, self.windows.send(self.now, CHANNEL, Self::relay())));
            }
            answers
        }

        fn steps(&mut self, steps: u64, demand: usize) -> Vec<Duration> {
            (0..steps).flat_map(|_| self.step(demand)).collect()
        }

        fn size(&self) -> usize {
            self.windows.by_channel[&CHANNEL].size
        }
    }

    #[test]
    fn the_window_grows_to_the_rate_of_a_path_with_long_answer_times() {
        let mut next = NextRelay::new(millis(200), Duration::from_micros(500));
        next.steps(2000, 10);
        let answers = next.steps(1000, 10);
        assert!(answers.len() >= 900, "{} answers in a second", answers.len());
        assert!(answers.iter().all(|answer| *answer <= millis(300)), "{answers:?}");
    }

    #[test]
    fn the_window_shrinks_until_answers_are_prompt_and_is_never_below_a_turn() {
        for (interval, smallest) in [(11, 8), (30, 4), (200, 4)] {
            let mut next = NextRelay::new(millis(20), millis(interval));
            next.steps(6000, 10);
            let answers = next.steps(3000, 10);
            assert!(next.size() >= smallest && answers.len() as u64 >= 3000 / interval - 1, "{}", next.size());
            let longest = millis(20) + QUEUE_TARGET.max(millis(10 * interval)) + millis(interval);
            assert!(answers.iter().all(|answer| *answer <= longest), "{interval}: {answers:?}");
        }
    }

    #[test]
    fn a_path_that_becomes_longer_does_not_keep_the_window_small() {
        let mut next = NextRelay::new(millis(20), millis(1));
        next.steps(1000, 10);
        next.path = millis(400);
        next.steps(6000, 10);
        let answers = next.steps(1000, 10);
        assert!(answers.len() >= 400, "{} answers in a second", answers.len());
    }

    #[test]
    fn a_window_with_few_creates_for_seconds_has_its_first_size_again() {
        let mut next = NextRelay::new(millis(100), Duration::from_micros(100));
        next.steps(1000, 100);
        assert!(next.size() > 100);
        next.steps(3000, 1);
        let in_use = next.size();
        assert!((90..=220).contains(&in_use), "about 100 CREATEs are unanswered at a time: {in_use}");
        (0..3).for_each(|_| _ = (next.steps(1000, 0), next.step(1)));
        next.step(200);
        assert_eq!(next.sent.len(), FIRST_SIZE);
    }

    #[test]
    fn unanswered_creates_shrink_the_window_and_return_their_places() {
        let mut next = NextRelay::new(millis(100), Duration::from_micros(100));
        next.steps(1000, 100);
        next.step(100);
        assert!(next.sent.len() > 100);
        let end = next.now.after(Duration::from_secs(10));
        for (_, sent) in next.sent.drain(..) {
            assert!(next.windows.remove(end, CHANNEL, sent, false).is_some());
        }
        assert_eq!((next.windows.unanswered(), next.size()), (0, MIN_SIZE));
        assert!(next.windows.has_room(end, CHANNEL));
        assert!(next.windows.remove_channel(CHANNEL).is_some() && next.windows.is_empty());
    }
}
