//! The buffer over a path in virtual time: a queue before a link, a way there and back, and an end that acknowledges by turns.

use rand::{Rng as _, SeedableRng as _, rngs::ChaCha8Rng};

use super::*;

const FLOOR: usize = 34 << 10;
const MESSAGE: usize = 17 << 10;
const PACKET: usize = 1_164;
/// What three messages are, and what of one has been acknowledged in between.
const MOST: usize = 3 * MESSAGE + 2 * PACKET;
const STEP: Duration = Duration::from_micros(250);

struct Path {
    buffer: SendBuffer,
    now: Instant,
    round_trip: Duration,
    /// Up to so much is added to it, anew each 20 ms.
    jitter: Duration,
    chance: ChaCha8Rng,
    a_second: f64,
    /// The other end takes what came, and acknowledges it, so often.
    turn: Duration,
    /// When the link is done with what was sent.
    busy_until: Instant,
    on_the_way: VecDeque<(Instant, usize)>,
    most_held: usize,
}

impl Path {
    fn new(round_trip_ms: u64, a_second: f64) -> Self {
        Self {
            buffer: SendBuffer::new(Instant::START, FLOOR),
            now: Instant::START,
            round_trip: Duration::from_millis(round_trip_ms),
            jitter: Duration::ZERO,
            chance: ChaCha8Rng::seed_from_u64(1),
            a_second,
            turn: STEP,
            busy_until: Instant::START,
            on_the_way: VecDeque::new(),
            most_held: 0,
        }
    }

    fn send(&mut self, mut bytes: usize, late: Duration) {
        self.buffer.sent(self.now, bytes);
        while bytes > 0 {
            let packets = bytes.min(2 * PACKET);
            bytes -= packets;
            let sending = Duration::from_secs_f64(packets as f64 / self.a_second);
            self.busy_until = self.busy_until.max(self.now).after(sending);
            let turns = self.busy_until.as_nanos().div_ceil(self.turn.as_nanos() as u64);
            let taken = Instant::START.after(Duration::from_nanos(turns * self.turn.as_nanos() as u64));
            self.chance.set_stream(self.busy_until.as_nanos() / 20_000_000);
            self.chance.set_word_pos(0);
            let jitter = self.jitter.mul_f64(f64::from(self.chance.next_u32()) / f64::from(u32::MAX));
            let back = taken.after(self.round_trip).after(jitter).after(late);
            let before = self.on_the_way.back().map_or(back, |(at, _)| *at);
            self.on_the_way.push_back((back.max(before), packets));
        }
        self.most_held = self.most_held.max(self.buffer.held());
    }

    fn step(&mut self) -> usize {
        self.now = self.now.after(STEP);
        let mut carried = 0;
        while let Some((at, bytes)) = self.on_the_way.front().copied()
            && at <= self.now
        {
            self.on_the_way.pop_front();
            self.buffer.released(self.now, bytes);
            carried += bytes;
        }
        carried
    }

    /// Always has more to send, for so long; gives the rate of the last fifth of it, of what the link carries.
    fn load(&mut self, seconds: u64) -> f64 {
        let (from, until) = (Duration::from_secs(seconds) * 4 / 5, Duration::from_secs(seconds));
        let (began, mut carried) = (self.now, 0);
        while self.now.since(began) < until {
            while self.buffer.room() > 0 {
                self.send(MESSAGE, Duration::ZERO);
            }
            let bytes = self.step();
            carried += if self.now.since(began) > from { bytes } else { 0 };
        }
        carried as f64 / (until - from).as_secs_f64() / self.a_second
    }

    /// Sends one packet after the other, each acknowledged so late, then rests.
    fn trickle(&mut self, packets: usize, late: Duration) {
        for _ in 0..packets {
            self.send(PACKET, late);
            while !self.buffer.is_empty() {
                self.step();
            }
        }
        self.rest();
    }

    fn rest(&mut self) {
        let until = self.now.after(Duration::from_secs(1));
        while self.now < until {
            self.step();
        }
        self.most_held = 0;
    }
}

const LATE: Duration = Duration::from_millis(200);

#[test]
fn a_long_path_is_filled_within_two_seconds_whatever_was_there_before() {
    for packets in [0, 1, 60] {
        let mut path = Path::new(100, 10e6);
        path.trickle(packets, LATE);
        let rate = path.load(2);
        assert!(rate > 0.97, "{rate}");
        assert!(path.most_held <= 4_200_000, "four round trips' worth, not {}", path.most_held);
    }
}

#[test]
fn a_short_path_stays_near_the_floor_at_any_rate_and_after_late_acknowledgements() {
    for a_second in [200e3, 1e6, 3e6, 4e6, 10e6] {
        for packets in [0, 1, 60] {
            let mut path = Path::new(1, a_second);
            path.load(1);
            path.rest();
            path.trickle(packets, LATE);
            let rate = path.load(10);
            assert!(rate > 0.97, "{rate}");
            assert!(path.most_held <= MOST, "{} at {a_second} after {packets}", path.most_held);
        }
    }
}

#[test]
fn acknowledgements_that_come_in_bursts_are_no_higher_rate() {
    for turn in [1, 2, 3] {
        let mut path = Path::new(1, 10e6);
        path.turn = Duration::from_millis(turn);
        path.load(10);
        let longest = 10e6 * (path.turn + path.round_trip).as_secs_f64();
        let most = (MOST).max(2 * longest as usize);
        assert!(path.most_held <= most, "{} by turns of {turn} ms", path.most_held);
    }
}

#[test]
fn the_queue_of_the_link_itself_does_not_make_it_longer() {
    let mut path = Path::new(20, 10e6);
    path.load(2);
    let after_two = path.most_held;
    let rate = path.load(60);
    assert!(rate > 0.97, "{rate}");
    assert!(path.most_held <= after_two + MESSAGE && after_two <= 850_000, "{after_two}, then {}", path.most_held);
}

#[test]
fn a_path_that_becomes_longer_is_filled_again_and_a_shorter_one_followed_after_a_rest() {
    for a_second in [300e3, 500e3, 10e6] {
        let mut path = Path::new(10, a_second);
        path.load(2);
        path.round_trip = Duration::from_millis(150);
        let rate = path.load(15);
        assert!(rate > 0.95, "{rate} of {a_second}");
        path.round_trip = Duration::from_millis(10);
        path.rest();
        path.load(1);
        path.most_held = 0;
        path.load(2);
        assert!(path.most_held <= 450_000, "{}", path.most_held);
    }
}

#[test]
fn a_path_whose_round_trips_vary_is_filled_to_four_fifths() {
    for (least, more, a_second) in [(20, 60, 3e6), (20, 100, 600e3), (5, 20, 3e6), (50, 100, 5e6), (30, 30, 3e6)] {
        let mut path = Path::new(least, a_second);
        path.jitter = Duration::from_millis(more);
        let rate = path.load(30);
        assert!(rate > 0.8, "{rate} of {a_second} with {least} and up to {more} ms");
    }
}

#[test]
fn a_link_that_stood_still_for_a_second_does_not_pass_for_a_longer_one() {
    let mut path = Path::new(1, 10e6);
    path.load(1);
    for _ in 0..5 {
        path.busy_until = path.busy_until.after(Duration::from_secs(1));
        path.load(2);
    }
    assert!(path.most_held <= MOST, "{}", path.most_held);
}

#[test]
fn the_ceiling_holds() {
    let mut path = Path::new(1000, 100e6);
    path.load(60);
    assert!(path.most_held >= SendBuffer::CEILING - MESSAGE && path.most_held <= SendBuffer::CEILING + MESSAGE);
}

#[test]
fn less_room_than_half_of_the_floor_is_none_and_an_empty_buffer_has_all_of_it() {
    let now = Instant::START;
    let mut buffer = SendBuffer::new(now, FLOOR);
    assert_eq!(buffer.room(), FLOOR);
    buffer.sent(now, FLOOR / 2);
    assert_eq!(buffer.room(), FLOOR / 2);
    buffer.sent(now, 1);
    assert_eq!(buffer.room(), 0);
    // More than was sent, as SCTP's own messages make it.
    buffer.released(now, FLOOR);
    assert!(buffer.is_empty() && buffer.room() == FLOOR);
}
