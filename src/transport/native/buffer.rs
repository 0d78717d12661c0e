//! A link's send buffer: how much is in it, and how full it may be.

use core::time::Duration;
use std::collections::VecDeque;

use crate::base::Instant;

/// Counts what a link has in SCTP's hands and nobody has acknowledged, against a mark: what the path has lately carried in
/// two of its round trips (up to four the longer they are, since those vary), between a floor and a ceiling. SCTP counts
/// what is under way as buffered, so a fixed mark would cap the rate of long paths.
///
/// The mark itself allows a queue, which makes round trips longer and would raise the mark further: hence the shortest
/// round trip counts, and at rest there is no queue. A path that has become longer is followed by small steps, when the
/// buffer is full, and only while the mark allows no message more than its floor does, so that the queue is small. It gets
/// there by itself, since a mark of less than a round trip's worth makes the rate smaller, and that the mark. But a path
/// can't be told from a queue there: on a short one that is always loaded it ends with one message more. A link that is
/// fast after it was slow, without a rest, keeps the queue of its slow days until it has one.
pub(super) struct SendBuffer {
    floor: usize,
    mark: usize,
    sent: u64,
    released: u64,
    /// Messages of which nothing has been acknowledged: when each was sent, and how many bytes before it. As many as the mark has
    /// room for.
    waiting: VecDeque<(Instant, u64)>,
    /// The path's own round trip; none before one has been measured.
    shortest: Option<Duration>,
    /// The last round trip.
    latest: Duration,
    period: Period,
}

/// What is measured from one adjustment of the mark to the next.
struct Period {
    since: Instant,
    released: usize,
    /// The shortest round trip in it.
    shortest: Option<Duration>,
    /// Whether the mark has held anything up.
    full: bool,
}

impl Period {
    const fn begin(since: Instant, full: bool) -> Self {
        Self { since, released: 0, shortest: None, full }
    }
}

impl SendBuffer {
    const CEILING: usize = 4 << 20;
    /// The least round trip that counts: about a turn of both programs.
    const LEAST_ROUND_TRIP: Duration = Duration::from_millis(1);
    /// How long a rate is measured at the least: acknowledgements come in bursts, which say nothing of it.
    const LEAST_PERIOD: Duration = Duration::from_millis(20);
    /// What a round trip takes on a short path; what it takes beyond counts twice.
    const SHORT: Duration = Duration::from_millis(3);

    /// An empty one with its mark at `floor`.
    pub(super) fn new(now: Instant, floor: usize) -> Self {
        let (waiting, period) = (VecDeque::new(), Period::begin(now, false));
        Self { floor, mark: floor, sent: 0, released: 0, waiting, shortest: None, latest: Duration::ZERO, period }
    }

    /// Bytes that may be sent: none if it is less than half of the floor, by default a message, for small ones fill no packets.
    pub(super) fn room(&self) -> usize {
        let room = self.mark.saturating_sub(self.held());
        if room < self.floor / 2 { 0 } else { room }
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.released == self.sent
    }

    /// A message goes to SCTP.
    pub(super) fn sent(&mut self, now: Instant, bytes: usize) {
        self.waiting.push_back((now, self.sent));
        self.sent = self.sent.saturating_add(bytes as u64);
        self.period.full |= self.room() == 0;
    }

    /// So many bytes more have been acknowledged.
    pub(super) fn released(&mut self, now: Instant, bytes: usize) {
        self.released = self.released.saturating_add(bytes as u64).min(self.sent);
        self.period.released = self.period.released.saturating_add(bytes);
        while let Some((sent, before)) = self.waiting.front()
            && *before < self.released
        {
            let round_trip = now.since(*sent).max(Self::LEAST_ROUND_TRIP);
            self.latest = round_trip;
            self.period.shortest = Some(self.period.shortest.map_or(round_trip, |shortest| shortest.min(round_trip)));
            self.waiting.pop_front();
        }
        let elapsed = now.since(self.period.since);
        // In less than a round trip a burst may come, or nothing.
        if elapsed >= self.latest.max(Self::LEAST_PERIOD) {
            self.adjust(elapsed);
            self.period = Period::begin(now, self.room() == 0);
        }
    }

    fn adjust(&mut self, elapsed: Duration) {
        let released = self.period.released;
        // Lone packets may have been acknowledged late (RFC 9260 §6.2): they say nothing of a longer path.
        let may_be_longer = self.period.full && self.mark < self.floor.saturating_add(self.floor / 2);
        self.shortest = match (self.shortest, self.period.shortest) {
            (Some(known), Some(seen)) if seen > known => {
                // By little, and not by much for one that stood still.
                let step = seen.saturating_sub(known).min(known.saturating_mul(4)).mul_f32(1.0 / 32.0);
                Some(if may_be_longer { known.saturating_add(step) } else { known })
            }
            (known, seen) => seen.or(known),
        };
        let round_trip = self.shortest.unwrap_or_default().max(Self::LEAST_ROUND_TRIP);
        let time = round_trip.saturating_add(round_trip.saturating_sub(Self::SHORT)).saturating_mul(2);
        let bytes = (released as f64) * time.as_secs_f64() / elapsed.as_secs_f64();
        self.mark = (bytes as usize).clamp(self.floor, Self::CEILING.max(self.floor));
    }

    fn held(&self) -> usize {
        usize::try_from(self.sent.saturating_sub(self.released)).unwrap_or(usize::MAX)
    }
}

#[cfg(test)]
mod tests;
