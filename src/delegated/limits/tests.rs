use core::time::Duration;
use std::collections::VecDeque;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

fn limits(rates: Rates) -> (RequestLimits<u64>, Instant) {
    (RequestLimits::new(rates), Instant::START)
}

/// Admits a request that displaces none. Returns its number.
fn admit(limits: &mut RequestLimits<u64>, now: Instant, owner: RequestOwner) -> Result<u64, Refusal> {
    limits.admit(now, owner, owner.circuit).map(|admitted| {
        assert_eq!(admitted.displaced, None);
        admitted.number
    })
}

/// Admits a request that ends immediately.
fn admit_brief(limits: &mut RequestLimits<u64>, now: Instant, owner: RequestOwner) -> Result<(), Refusal> {
    admit(limits, now, owner).map(|number| assert!(limits.release(number).is_some()))
}

fn later(now: Instant, seconds: u64) -> Instant {
    now.after(Duration::from_secs(seconds))
}

#[test]
fn one_circuit_is_limited_and_others_are_not() {
    let (mut limits, now) = limits(Rates::default());
    (0..8).for_each(|_| admit_brief(&mut limits, now, RequestOwner::alone(1)).unwrap());
    assert_eq!(admit(&mut limits, now, RequestOwner::alone(1)), Err(Refusal::RateLimited));
    assert!(admit(&mut limits, now, RequestOwner::alone(2)).is_ok());
    assert!(admit(&mut limits, later(now, 1), RequestOwner::alone(1)).is_ok());
}

#[test]
fn all_circuits_together_are_limited() {
    let (mut limits, now) = limits(Rates { in_total: 10, ..Rates::default() });
    let owners = (0..100).map(RequestOwner::alone);
    let admitted = owners.filter(|owner| admit(&mut limits, now, *owner).is_ok()).count();
    assert_eq!(admitted, 40);
    assert!(admit(&mut limits, later(now, 1), RequestOwner::alone(200)).is_ok());
}

#[test]
fn concurrent_requests_are_limited() {
    let (mut limits, now) = limits(Rates { concurrent: 1, ..Rates::default() });
    let number = admit(&mut limits, now, RequestOwner::alone(1)).unwrap();
    assert_eq!(admit(&mut limits, now, RequestOwner::alone(2)), Err(Refusal::Busy));
    limits.release(number);
    assert!(admit(&mut limits, now, RequestOwner::alone(2)).is_ok());
}

#[test]
fn concurrent_requests_of_one_circuit_are_limited_and_others_are_admitted() {
    let (mut limits, now) = limits(Rates::default());
    let numbers = [(); 4].map(|()| admit(&mut limits, now, RequestOwner::alone(1)).unwrap());
    let later = later(now, 5);
    assert_eq!(admit(&mut limits, later, RequestOwner::alone(1)), Err(Refusal::RateLimited));
    assert!(admit(&mut limits, later, RequestOwner::alone(2)).is_ok());
    limits.release(numbers[0]);
    assert!(admit(&mut limits, later, RequestOwner::alone(1)).is_ok());
}

#[test]
fn the_number_of_stored_circuits_is_bounded() {
    let (mut limits, now) = limits(Rates { in_total: u32::MAX, per_owner: u32::MAX, ..Rates::default() });
    for circuit in 0..MAX_CIRCUITS as u64 {
        admit_brief(&mut limits, now, RequestOwner::of_source(1, circuit)).unwrap();
    }
    let running = admit(&mut limits, now, RequestOwner::of_source(1, 0)).unwrap();
    admit(&mut limits, now, RequestOwner::of_source(1, u64::MAX)).unwrap();
    assert_eq!((limits.circuits.0.len(), limits.owners.0.len()), (MAX_CIRCUITS, 1));
    assert_eq!(limits.circuits.running(&0), 1, "the circuit has a request in progress");
    assert!(limits.release(running).is_some());
    let mut is_first = |circuit| limits.circuits.of_circuit(circuit, &mut limits.forgotten_circuit).1;
    assert!(!is_first(1), "the circuit is forgotten, not new");
    assert!(is_first(u64::MAX - 1));
}

#[test]
fn tries_on_many_circuits_behind_all_relays_leave_first_tries_their_tokens() {
    let (mut limits, mut now) = limits(Rates::default());
    let (mut admitted, mut honest) = (0, 0);
    for step in 0..1200 {
        now = now.after(Duration::from_millis(50));
        // 1,200 circuits behind forty relays, each with five tries a second, and twenty new ones a second.
        let old = (0..1200).filter(|circuit| circuit % 4 == step % 4);
        for circuit in old.chain([10_000 + step]) {
            let tried = admit_brief(&mut limits, now, RequestOwner::of_source(circuit % 40, circuit));
            admitted += u32::from(tried.is_ok());
        }
        // A client with a request a second behind the same relays, each on a new circuit.
        if step % 20 == 10 {
            let tried = admit_brief(&mut limits, now, RequestOwner::of_source(step % 40, 20_000 + step));
            honest += u32::from(tried.is_ok());
        }
    }
    assert!(honest >= 58, "{honest} of 60");
    assert!(admitted > 3000, "{admitted}: the exit serves the others with the rest of the rate");
}

#[test]
fn requests_of_one_owner_leave_places_to_others() {
    let (mut limits, now) = limits(Rates { in_total: 1000, per_owner: 1000, ..Rates::default() });
    let owners = |source: u64| (0..1000).map(move |circuit| RequestOwner::of_source(source, source * 1000 + circuit));
    let numbers: Vec<u64> = owners(1).filter_map(|owner| admit(&mut limits, now, owner).ok()).collect();
    assert_eq!(numbers.len(), 64);
    assert_eq!(owners(2).filter(|owner| admit(&mut limits, now, *owner).is_ok()).count(), 64);
    limits.release(numbers[0]);
    assert!(admit(&mut limits, now, RequestOwner::of_source(1, 9000)).is_ok());
}

#[test]
fn a_client_with_many_circuits_behind_four_relays_exhausts_no_rate_of_others() {
    let (mut limits, mut now) = limits(Rates::default());
    let (mut of_others, mut behind_the_same) = (0, 0);
    for step in 0..6000 {
        now = now.after(Duration::from_millis(10));
        // 50 circuits behind each of four relays, without a pause.
        for owner in (0..200).map(|circuit| RequestOwner::of_source(circuit % 4, circuit)) {
            let _ = admit_brief(&mut limits, now, owner);
        }
        // Clients with a request a second, each on a circuit of its own.
        if step % 100 == 50 {
            let mut is_admitted = |source, circuit| {
                usize::from(admit_brief(&mut limits, now, RequestOwner::of_source(source, circuit)).is_ok())
            };
            of_others += is_admitted(100, 1000 + 2 * step);
            behind_the_same += is_admitted(1, 1001 + 2 * step);
        }
    }
    assert_eq!((of_others, behind_the_same), (60, 60));
}

#[test]
fn one_owner_may_use_its_whole_burst_and_almost_its_whole_rate() {
    let (mut limits, now) = limits(Rates::default());
    let mut circuits = 0..;
    let mut admitted = |now| {
        let owners = circuits.by_ref().take(200).map(|circuit| RequestOwner::of_source(1, circuit));
        owners.filter(|owner| admit_brief(&mut limits, now, *owner).is_ok()).count()
    };
    assert_eq!(admitted(now), 100);
    let later = (1..=100).map(|second| admitted(later(now, second))).sum::<usize>();
    assert!((2400..=2500).contains(&later), "{later} of 2500");
}

#[test]
fn the_sources_of_a_network_are_one_owner() {
    let (mut limits, now) = limits(Rates::default());
    let of_network = |host: u8| {
        let circuit_owner = Owner::of_address([192, 0, 2, host].into());
        RequestOwner { circuit_owner, circuit: host.into() }
    };
    let admitted = (0..200).filter(|host| admit_brief(&mut limits, now, of_network(*host)).is_ok()).count();
    assert_eq!(admitted, 100);
}

#[test]
fn requests_of_others_displace_slow_requests_of_four_owners() {
    let (mut limits, now) = limits(Rates::default());
    let slow = (0..256).map(|circuit| RequestOwner::of_source(circuit % 4, circuit));
    let admitted: Vec<_> = slow.map(|owner| admit(&mut limits, now, owner).unwrap()).collect();
    let mut displaced = Vec::new();
    let mut honest = Vec::new();
    for request in 0..8 {
        let admitted =
            limits.admit(later(now, 1), RequestOwner::of_source(100, 1000 + request), 1000 + request).unwrap();
        displaced.extend(admitted.displaced);
        honest.push(admitted.number);
    }
    assert_eq!(displaced.len(), 8, "a request ends for each");
    // The attacker's further requests end only requests of its own.
    for circuit in 2000..2100 {
        if let Ok(admitted) = limits.admit(later(now, 2), RequestOwner::of_source(circuit % 4, circuit), circuit) {
            assert!(admitted.displaced.is_none_or(|circuit| !(1000..1008).contains(&circuit)));
        }
    }
    assert!(honest.into_iter().all(|number| limits.release(number).is_some()));
    assert!(displaced.iter().all(|circuit| *circuit < 256));
    assert_eq!(limits.release(admitted[usize::try_from(displaced[0]).unwrap()]), None, "released before");
}

#[test]
fn of_equally_full_owners_the_one_unchanged_for_longest_loses_a_request_whatever_its_address() {
    // The numbers of sources order their identities.
    for sources in [[1, 2, 3], [3, 2, 1], [2, 3, 1]] {
        let (mut limits, now) = limits(Rates { concurrent: 6, ..Rates::default() });
        for (circuit, source) in sources.into_iter().flat_map(|source| [source; 2]).enumerate() {
            admit(&mut limits, now, RequestOwner::of_source(source, circuit as u64)).unwrap();
        }
        let displaced = [100, 101, 102]
            .map(|number| limits.admit(now, RequestOwner::of_source(number, number), number).unwrap().displaced);
        assert_eq!(displaced, [Some(0), Some(2), Some(4)], "{sources:?}");
    }
}

#[test]
fn a_request_displaces_a_slow_one_of_the_same_circuit() {
    let (mut limits, now) = limits(Rates::default());
    for number in 0..64 {
        admit(&mut limits, now, RequestOwner::of_source(1, number / 4)).unwrap();
    }
    let (of_first, of_second) = (RequestOwner::of_source(1, 0), RequestOwner::of_source(1, 1));
    assert_eq!(limits.admit(later(now, 10), of_second, 9), Err(Refusal::RateLimited), "its circuit stays at its cap");
    assert_eq!(limits.admit(later(now, 10), of_first, 9).unwrap().displaced, Some(0));
}

#[test]
fn a_request_displaces_a_slow_one_of_the_same_owner() {
    let (mut limits, now) = limits(Rates::default());
    for circuit in 0..64 {
        admit(&mut limits, now, RequestOwner::of_source(1, circuit)).unwrap();
    }
    let further = RequestOwner::of_source(1, 100);
    let before = now.after(Rates::default().slow_at_part() - Duration::from_millis(1));
    assert_eq!(limits.admit(before, further, 100), Err(Refusal::RateLimited));
    assert_eq!(limits.admit(later(now, 9), further, 100), Err(Refusal::RateLimited), "a further try");
    assert_eq!(limits.admit(later(now, 9), RequestOwner::of_source(1, 101), 101).unwrap().displaced, Some(0));
    assert_eq!(limits.admit(later(now, 10), further, 100).unwrap().displaced, Some(1));
}

/// A client that keeps all places filled with slow requests of 64 circuits behind `relays` owners, and renews each before it is
/// 9.9 s old. The places are filled evenly over that time. Returns the results of a first try in each half second, behind
/// one of these owners.
fn first_tries_beside_renewed_slow_requests(relays: u64) -> Vec<Result<(), Refusal>> {
    const RENEWED_AFTER: Duration = Duration::from_millis(9_900);
    let (mut limits, mut now) = limits(Rates::default());
    let mut slow = VecDeque::new();
    let mut circuits = (0..64).cycle();
    let mut tries = Vec::new();
    for step in 1..=3_000 {
        now = now.after(Duration::from_millis(10));
        while let Some((number, _)) =
            slow.pop_front_if(|(_, since): &mut (u64, Instant)| since.after(RENEWED_AFTER) <= now)
        {
            limits.release(number);
        }
        let due = usize::try_from((step * 10 * 256 / 9_900).min(256)).unwrap();
        for circuit in circuits.by_ref().take(64) {
            if limits.running.len() >= due {
                break;
            }
            if limits.circuits.running(&circuit) == 4 {
                continue;
            }
            let owner = RequestOwner::of_source(circuit % relays, circuit);
            if let Ok(admitted) = limits.admit(now, owner, circuit) {
                slow.push_back((admitted.number, now));
            }
        }
        if step > 1_000 && step % 50 == 0 {
            assert_eq!(limits.running.len(), 256, "step {step}");
            let honest = limits.admit(now, RequestOwner::of_source(step / 50 % relays, 1_000 + step), step);
            tries.push(honest.map(|admitted| assert!(limits.release(admitted.number).is_some())));
        }
    }
    tries
}

#[test]
fn slow_requests_that_are_renewed_fill_no_place_for_first_tries() {
    for relays in [4, 20, 64] {
        assert_eq!(first_tries_beside_renewed_slow_requests(relays), [Ok(()); 40], "behind {relays} relays");
    }
}

#[test]
fn an_owner_with_young_requests_protects_no_old_ones_of_others() {
    let rates = Rates { concurrent: 9, concurrent_of_owner: 5, per_owner: 50, ..Rates::default() };
    let (mut limits, now) = limits(rates);
    let later = later(now, 1);
    // Two and three old requests, and four young ones.
    for (source, circuits, since) in [(1, 0..2, now), (2, 2..5, now), (3, 5..9, later)] {
        circuits
            .for_each(|circuit| assert!(admit(&mut limits, since, RequestOwner::of_source(source, circuit)).is_ok()));
    }
    let displaced = limits.admit(later, RequestOwner::of_source(2, 10), 10).unwrap().displaced;
    assert_eq!(displaced, Some(2), "the oldest of the same owner");
    assert_eq!(limits.admit(later, RequestOwner::of_source(3, 11), 11), Err(Refusal::Busy));
}

#[test]
fn requests_are_slow_after_the_time_in_which_the_rate_fills_the_places() {
    let rates = Rates::default();
    assert_eq!(
        (rates.slow_at_cap(), rates.slow_at_part()),
        (Duration::from_millis(2_560), Duration::from_millis(2_560))
    );
    for in_total in [0, 1] {
        assert_eq!(rates.with_averages(in_total, 1).slow_at_cap(), SLOW_AFTER);
    }
}
