//! Tests of the work that many waiting requests cause.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use rand::{SeedableRng, rngs::ChaCha20Rng};

use super::*;

/// A client without a channel to a guard, in a network of `relays` relays, a third of them exits.
fn client(relays: u16, rng: &mut ChaCha20Rng) -> ClientMachine {
    let listed = (1..=relays).map(|number| {
        let rules: &[&str] = if number % 3 == 0 { &["accept 443"] } else { &[] };
        listed(exit_profile(number, rules))
    });
    let consensus = Arc::new(consensus_at(NOW, listed, &Parameters::default()).0);
    let mut client = ClientMachine::new(ClientParameters::default(), GuardSample::default());
    client.set_consensus(Instant::START, NOW, consensus, rng);
    client
}

#[test]
fn requests_beyond_the_rate_of_builds_cause_no_scan_of_circuits_or_exits() {
    const WAITING: usize = 1_000;
    let (mut rng, now) = (ChaCha20Rng::seed_from_u64(12), Instant::START);
    let mut client = client(30, &mut rng);
    // A recent delegated request, whose exit streams avoid.
    client.pool.handle_exit_used(now, key(3).id(), true);
    for number in 0..WAITING {
        let [high, low] = u16::try_from(number).unwrap().to_be_bytes();
        let mut isolation = [0; 32];
        (isolation[0], isolation[1]) = (high, low);
        let target = Target { host: Host::parse("www.example.org").unwrap(), port: 443 };
        client.open(now, target, Isolation(isolation));
    }
    client.handle_batch_end(now, &mut rng);
    let building = client.pool.circuits().count();
    let before = (client.placement.tries, client.pool.exit_scans());
    assert!((100..200).contains(&building), "the rate of builds: {building}");
    assert_eq!(client.placement.waiting().len(), WAITING);
    client.replan = true;
    client.handle_batch_end(now, &mut rng);
    let (tries, scans) = (client.placement.tries - before.0, client.pool.exit_scans() - before.1);
    assert!(tries <= building, "{tries} tries for {building} requests whose circuits are being built");
    assert!(scans <= building + 2, "{scans} scans for {building} requests whose circuits are being built");
}
