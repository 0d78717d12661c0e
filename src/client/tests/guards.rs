//! Tests of guards: outages of the client's line and of a guard.

use std::collections::BTreeSet;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

impl Net {
    /// The guard of the first circuit.
    fn first_guard(&mut self) -> RelayId {
        self.client(|party, _, _| party.built[0][0])
    }

    /// The guard of a new stream.
    fn guard_of_new_stream(&mut self, isolation: u8) -> RelayId {
        let stream = self.open(isolation);
        self.wait(10, |party| party.seen(stream).connected.map(|_| ()));
        self.path_of(stream)[0]
    }

    fn dialled(&mut self) -> BTreeSet<RelayId> {
        self.client(|party, _, _| party.dialled.iter().copied().collect())
    }

    fn guards_of_circuits(&mut self) -> BTreeSet<RelayId> {
        self.client(|party, _, _| {
            let open = party.client.pool.circuits().filter(|(_, circuit)| circuit.is_open());
            open.filter_map(|(_, circuit)| circuit.guard()).collect()
        })
    }
}

#[test]
fn a_guard_that_is_silent_for_three_seconds_is_dialled_again_first() {
    for seed in 60..70 {
        let mut net = Net::ready(seed, 2);
        let guard = net.first_guard();
        let client = net.client;
        net.world.interrupt(client, Duration::from_secs(3));
        net.pass(4);
        assert_eq!(net.guard_of_new_stream(1), guard, "seed {seed}");
        assert_eq!(net.dialled(), [guard].into(), "seed {seed}");
    }
}

#[test]
fn an_outage_of_its_line_leads_a_client_to_no_other_guard() {
    for seed in 70..80 {
        let mut net = Net::ready(seed, 2);
        let guard = net.first_guard();
        let client = net.client;
        net.world.interrupt(client, Duration::from_secs(300));
        let end = net.world.now().after(Duration::from_secs(300));
        let request = net.open(1);
        assert_eq!(net.closed(request, 60), StreamFailure::GuardUnreachable, "seed {seed}");
        net.pass(end.since(net.world.now()).as_secs());
        assert_eq!(net.dialled().len(), 3, "only the primaries are dialled; seed {seed}");
        // The line works again. Each primary is dialled at least every 15 s.
        net.pass(20);
        assert_eq!(net.guard_of_new_stream(2), guard, "seed {seed}");
        net.pass(LONGEST_END);
        assert_eq!(net.guards_of_circuits(), [guard].into(), "seed {seed}");
        assert!(net.dialled().len() <= 3, "seed {seed}");
    }
}

#[test]
fn repeated_outages_lead_a_client_to_no_guard_beyond_the_primaries() {
    for seed in 80..84 {
        let mut net = Net::ready(seed, 2);
        let guard = net.first_guard();
        let client = net.client;
        for round in 0..100 {
            net.world.interrupt(client, Duration::from_millis(3000 + round % 7 * 500));
            net.pass(10);
        }
        assert!(net.dialled().len() <= 3, "seed {seed}");
        net.pass(10);
        assert_eq!(net.guard_of_new_stream(1), guard, "seed {seed}");
    }
}

#[test]
fn a_client_returns_to_its_first_guard_when_that_answers_again() {
    for seed in 84..94 {
        let mut net = Net::ready(seed, 2);
        let guard = net.first_guard();
        let node = net.relays[&guard];
        net.world.interrupt(node, Duration::from_secs(120));
        net.pass(10);
        let second = net.guard_of_new_stream(1);
        assert_ne!(second, guard, "seed {seed}");
        assert_eq!(net.guards_of_circuits(), [second].into(), "seed {seed}");
        // The next dial of the guard is at most a minute after the outage.
        net.pass(180 + LONGEST_END);
        let used = net.client(|party, _, _| party.client.pool.circuits().filter(|(_, it)| it.is_used()).count());
        assert_eq!(used, 1);
        net.client(|party, _, _| {
            let unused = party.client.pool.circuits().filter(|(_, circuit)| !circuit.is_used());
            assert!(unused.count() == 2 && party.client.pool.circuits().all(|(_, it)| it.is_open()), "seed {seed}");
        });
        assert_eq!(net.guard_of_new_stream(2), guard, "seed {seed}");
        assert_eq!(net.dialled().len(), 2, "seed {seed}");
    }
}

#[test]
fn counts_of_circuits_are_stored_after_ten_minutes_and_at_the_end() {
    let mut net = Net::ready(95, 2);
    let changed = |net: &mut Net| net.client(|party, _, _| core::mem::take(&mut party.guards_changed));
    assert!(changed(&mut net), "the new sample is stored immediately");
    net.pass(590);
    assert!(!changed(&mut net));
    net.pass(12);
    assert!(changed(&mut net));
    net.client(|party, _, _| assert!(!party.client.take_guard_changes(), "nothing is left to store"));
    net.connected(1);
    net.pass(5);
    assert!(!changed(&mut net));
    net.client(|party, _, _| assert!(party.client.take_guard_changes(), "the owner stores the counts at the end"));
}

#[test]
fn a_circuit_that_measures_a_suspect_guard_takes_no_request_and_fails_none() {
    let mut net = Net::ready(96, 2);
    let guard = net.first_guard();
    // Unreachable relays, each in an address block of its own.
    for number in 100..130 {
        let mut relay = listed(crate::directory::fixture::profile(number));
        relay.flags = crate::directory::Flags::STABLE;
        net.listed.push(relay);
    }
    net.give_consensus(NOW);
    for number in 100..130 {
        for _ in 0..6 {
            net.client(|party, _, _| party.client.guards.handle_circuit(&guard, Some(key(number).id()), false));
        }
    }
    let stream = net.connected(1);
    assert_eq!(net.path_of(stream)[0], guard);
    net.pass(400);
    net.client(|party, _, _| {
        assert!(party.dialled.len() > 1, "another primary is dialled");
        assert_eq!(party.seen(stream).closed, None);
        let used = party.client.pool.circuits().filter(|(_, circuit)| circuit.is_used());
        assert!(used.count() == 1 && party.client.pool.circuits().count() <= 9);
    });
}
