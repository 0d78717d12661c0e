use rand::{SeedableRng as _, rngs::ChaCha20Rng};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::directory::fixture::{FRESH, NOW, consensus};

const SECOND: Duration = Duration::from_secs(1);

type Outcome = Result<Option<u8>, &'static str>;

fn later(seconds: u64) -> WallTime {
    NOW.after(Duration::from_secs(seconds))
}

fn rng() -> ChaCha20Rng {
    ChaCha20Rng::seed_from_u64(1)
}

/// The waits until a fetch is due, with the clock advanced by each.
fn waits(schedule: &mut Schedule, mut now: WallTime) -> Vec<Duration> {
    let mut waits = Vec::new();
    while let Some(wait) = schedule.poll_wait(now) {
        now = now.after(wait);
        waits.push(wait);
    }
    waits
}

#[test]
fn a_round_queries_each_directory_once_from_the_last_successful_one() {
    let failed: Outcome = Err("failed");
    let mut round = FetchRound::new(3, 2);
    assert_eq!(round.index(), 2);
    assert_eq!(round.handle_outcome(failed, "old"), None);
    assert_eq!(round.index(), 0);
    assert_eq!(round.handle_outcome(Ok(Some(7)), "old"), Some(Ok(Some(7))));
    assert_eq!(round.index(), 0);
    let mut round = FetchRound::new(3, 2);
    assert_eq!(round.handle_outcome(failed, "old"), None);
    assert_eq!(round.handle_outcome(failed, "old"), None);
    assert_eq!(round.handle_outcome::<u8, _>(Err("last"), "old"), Some(Err("last")));
    assert_eq!(round.index(), 2);
}

#[test]
fn an_answer_without_a_newer_document_is_a_failure_once_the_document_in_use_is_no_longer_fresh() {
    let (in_use, nothing): (_, Outcome) = (consensus([]), Ok(None));
    let mut fresh = FetchRound::new(2, 0).newer_than(later(FRESH - 1), Some(&in_use));
    assert_eq!(fresh.handle_outcome(nothing, "old"), Some(Ok(None)));
    let mut stale = FetchRound::new(2, 0).newer_than(later(FRESH), Some(&in_use));
    assert_eq!(stale.handle_outcome(nothing, "old"), None);
    assert_eq!(stale.handle_outcome(nothing, "old"), Some(Err("old")));
}

#[test]
fn the_next_fetch_is_due_within_half_an_interval_after_freshness() {
    let in_use = consensus([]);
    let mut after = Schedule::after(&in_use, &mut rng());
    let mut fetched = Schedule::default();
    assert_eq!(fetched.poll_wait(NOW), None);
    fetched.handle_fetch(NOW, true, Some(&in_use), &mut rng());
    for schedule in [&mut after, &mut fetched] {
        let waits = waits(schedule, NOW);
        let total = waits.iter().sum::<Duration>().as_secs();
        assert!((FRESH..=FRESH + FRESH / 2).contains(&total), "{total}");
        assert!(waits.iter().all(|wait| *wait <= MAX_WAIT));
    }
    // The clock may be set.
    assert!(after.poll_wait(NOW).is_some());
    assert_eq!(after.poll_wait(later(2 * FRESH)), None);
}

#[test]
fn delays_between_retries_double_up_to_the_maximum_until_a_new_document() {
    let mut schedule = Schedule::default();
    let mut delays = Vec::new();
    for _ in 0..5 {
        schedule.handle_fetch(NOW, false, None::<&Consensus>, &mut rng());
        delays.extend(waits(&mut schedule, NOW));
    }
    assert_eq!(delays, [200, 400, 800, 1000, 1000].map(Duration::from_millis));
    let (old, now) = (consensus([]), later(2 * FRESH));
    for (is_new, delay) in
        [(false, SECOND), (false, 2 * SECOND), (true, FIRST_RETRY_DELAY), (false, 2 * FIRST_RETRY_DELAY)]
    {
        schedule.handle_fetch(now, is_new, Some(&old), &mut rng());
        assert_eq!(waits(&mut schedule, now), [delay]);
    }
}
