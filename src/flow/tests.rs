//! The window over a bottleneck link, in virtual time.

use super::*;
use crate::base::Instant;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

/// A path: a queue served at a fixed rate, then a fixed delay to the receiver and back.
struct Path {
    window: CongestionWindow,
    round_trip: Duration,
    cell_time: Duration,
    now: Instant,
    link_free_at: Instant,
    acknowledgements: VecDeque<(Instant, Mark)>,
    marks: u64,
    delivered: u64,
    deepest_queue: u64,
}

impl Path {
    fn new(round_trip: Duration, cells_per_second: u64) -> Self {
        Self {
            window: CongestionWindow::new(&FlowParameters::default()),
            round_trip,
            cell_time: Duration::from_nanos(1_000_000_000 / cells_per_second),
            now: Instant::START,
            link_free_at: Instant::START,
            acknowledgements: VecDeque::new(),
            marks: 0,
            delivered: 0,
            deepest_queue: 0,
        }
    }

    /// Sends all the window lets (at most `wanted` cells each time), until `duration` has passed.
    fn run(&mut self, duration: Duration, wanted: u64) {
        let end = self.now.after(duration);
        loop {
            for _ in 0..wanted {
                if !self.window.has_room() {
                    break;
                }
                self.send();
            }
            match self.acknowledgements.pop_front() {
                Some((at, mark)) if at <= end => {
                    self.now = self.now.max(at);
                    self.window.handle_sendme(self.now, &mark).expect("the mark is echoed in order");
                }
                Some(later) => {
                    self.acknowledgements.push_front(later);
                    break;
                }
                None => break,
            }
        }
        self.now = end;
    }

    fn send(&mut self) {
        self.link_free_at = self.link_free_at.max(self.now).after(self.cell_time);
        let waiting = self.link_free_at.since(self.now).as_nanos() / self.cell_time.as_nanos();
        self.deepest_queue = self.deepest_queue.max(u64::try_from(waiting).unwrap());
        self.delivered += 1;
        let mark = self.window.wants_mark().then(|| {
            self.marks += 1;
            let mark = u128::from(self.marks).to_be_bytes();
            self.acknowledgements.push_back((self.link_free_at.after(self.round_trip), mark));
            mark
        });
        self.window.handle_sent(self.now, mark);
    }

    fn queue(&self) -> u64 {
        let waiting = self.link_free_at.since(self.now).as_nanos() / self.cell_time.as_nanos();
        u64::try_from(waiting).unwrap()
    }

    /// Share of the link used while `duration` passes, in per cent.
    fn use_of_link(&mut self, duration: Duration) -> u64 {
        let before = self.delivered;
        self.run(duration, u64::MAX);
        let possible = u64::try_from(duration.as_nanos() / self.cell_time.as_nanos()).unwrap();
        (self.delivered - before) * 100 / possible
    }
}

const MILLISECOND: Duration = Duration::from_millis(1);

#[test]
fn the_window_fills_a_long_path_within_seconds_and_keeps_it_full() {
    let mut path = Path::new(200 * MILLISECOND, 10_000);
    path.run(Duration::from_secs(3), u64::MAX);
    let used = path.use_of_link(Duration::from_secs(5));
    assert!(used >= 98, "{used} %");
    assert!((2000..=2600).contains(&path.window.window()), "{}", path.window.window());
}

#[test]
fn the_queue_stays_between_its_bounds_once_settled() {
    for (round_trip, rate) in [(1, 50_000), (20, 20_000), (100, 5_000), (200, 10_000)] {
        let mut path = Path::new(round_trip * MILLISECOND, rate);
        path.run(Duration::from_secs(8), u64::MAX);
        let queue = path.queue();
        assert!((150..=560).contains(&queue), "{round_trip} ms, {rate} cells/s: {queue} cells wait");
    }
}

#[test]
fn no_queue_ever_exceeds_the_largest_window() {
    for round_trip in [1, 10, 50, 200, 500] {
        let mut path = Path::new(round_trip * MILLISECOND, 8_000);
        path.run(Duration::from_secs(60), u64::MAX);
        assert!(path.deepest_queue <= u64::from(FlowParameters::default().window_max));
    }
}

#[test]
fn the_window_follows_a_path_that_has_become_longer() {
    let mut path = Path::new(10 * MILLISECOND, 10_000);
    path.run(Duration::from_secs(5), u64::MAX);
    path.round_trip = 150 * MILLISECOND;
    path.run(Duration::from_secs(25), u64::MAX);
    let used = path.use_of_link(Duration::from_secs(5));
    assert!(used >= 95, "{used} %");
}

#[test]
fn the_own_queue_does_not_pass_for_distance_as_time_goes_on() {
    let mut path = Path::new(20 * MILLISECOND, 20_000);
    path.run(Duration::from_secs(10), u64::MAX);
    let used = path.use_of_link(Duration::from_secs(120));
    assert!(used >= 97, "{used} %");
    assert!(path.window.window() <= 400 + 600, "{}", path.window.window());
}

#[test]
fn a_sender_with_little_to_say_does_not_grow_its_window() {
    let mut path = Path::new(50 * MILLISECOND, 10_000);
    path.run(Duration::from_secs(10), 32);
    assert!(path.window.window() <= 256, "{}", path.window.window());
}

#[test]
fn a_slow_link_shrinks_the_window_but_never_below_the_floor() {
    let mut path = Path::new(MILLISECOND, 100);
    path.run(Duration::from_secs(120), u64::MAX);
    let parameters = FlowParameters::default();
    assert!(path.window.window() <= u64::from(parameters.queue_high) + 32);
    assert!(path.window.window() >= u64::from(parameters.window_min));
    assert!(path.use_of_link(Duration::from_secs(10)) >= 95);
}

#[test]
fn only_the_oldest_outstanding_mark_is_accepted() {
    let mut window = CongestionWindow::new(&FlowParameters::default());
    assert_eq!(window.handle_sendme(Instant::START, &[0; 16]), Err(FlowError::WrongMark));
    for mark in [[1; 16], [2; 16]] {
        while !window.wants_mark() {
            window.handle_sent(Instant::START, None);
        }
        window.handle_sent(Instant::START, Some(mark));
    }
    assert_eq!(window.in_flight(), 64);
    assert_eq!(window.handle_sendme(Instant::START, &[1; 16]), Ok(()));
    assert_eq!(window.in_flight(), 32);
    assert_eq!(window.handle_sendme(Instant::START, &[1; 16]), Err(FlowError::WrongMark));
}

#[test]
fn a_full_window_always_holds_a_mark() {
    let absurd =
        FlowParameters { mark_every: 1000, window_min: 0, window_initial: 1, window_max: 0, ..Default::default() };
    let mut window = CongestionWindow::new(&absurd);
    while window.has_room() {
        let mark = window.wants_mark().then_some([7; 16]);
        window.handle_sent(Instant::START, mark);
    }
    assert!(window.oldest_mark_at().is_some());
}

#[test]
fn marks_are_echoed_in_order_and_bounded() {
    let mut acknowledger = Acknowledger::default();
    for number in 0..MAX_OWED {
        acknowledger.handle_mark([u8::try_from(number % 256).unwrap(); 16]).unwrap();
    }
    assert_eq!(acknowledger.handle_mark([0; 16]), Err(FlowError::TooManyMarks));
    assert_eq!(acknowledger.poll_mark(), Some([0; 16]));
    assert_eq!(acknowledger.poll_mark(), Some([1; 16]));
}
