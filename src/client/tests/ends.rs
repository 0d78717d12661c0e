//! Tests of the ends of circuits: circuits of different isolations end at different times, and none ends because
//! another isolation needs one.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::wire::Command;

/// The number of isolations with a stream.
const ISOLATIONS: u8 = 5;

impl Net {
    /// Waits until the client has `count` circuits without requests.
    fn await_spares(&mut self, count: usize) {
        self.wait(200, |party| {
            let spare = party.client.pool.circuits().filter(|(_, circuit)| circuit.is_open() && !circuit.is_used());
            (spare.count() == count).then_some(())
        });
    }

    fn open_circuits(&mut self) -> usize {
        self.client(|party, _, _| party.client.pool.circuits().filter(|(_, circuit)| circuit.is_open()).count())
    }

    fn reset(&mut self, streams: &[ClientStream]) {
        self.client(|party, _, _| {
            for stream in streams {
                party.client.handle_command(*stream, StreamCommand::Reset(EndReason::Reset));
            }
        });
    }

    /// The times from `since` on at which relays beyond the guards saw ends of circuits. The relays of one circuit see
    /// its end within a few milliseconds, which count as one time.
    fn ends(&mut self, since: Instant) -> Vec<Instant> {
        let guards: Vec<_> = self.client(|party, _, _| party.built.iter().map(|path| path[0]).collect());
        let nodes: Vec<_> =
            self.relays.iter().filter(|(relay, _)| !guards.contains(relay)).map(|(_, node)| *node).collect();
        let mut ends = Vec::new();
        for node in nodes {
            let received = self.relay(node, |party| party.received.clone()).unwrap();
            ends.extend(received.iter().filter(|cell| cell.is(Command::Destroy)).map(linking::Received::at));
        }
        ends.retain(|at| *at >= since);
        ends.sort_unstable();
        ends.dedup_by(|at, earlier| at.since(*earlier) < Duration::from_millis(20));
        ends
    }

    /// Passes `seconds`. Asserts that exactly `count` circuits end, each at another time.
    fn assert_separate_ends(&mut self, seconds: u64, count: usize) {
        let since = self.world.now();
        self.pass(seconds);
        let ends = self.ends(since);
        assert_eq!(ends.len(), count, "{ends:?}, seed {}", self.seed);
        let spread = ends[count - 1].since(ends[0]);
        assert!(spread > Duration::from_secs(30), "{spread:?}, seed {}", self.seed);
    }
}

#[test]
fn circuits_whose_streams_end_together_end_at_separate_times() {
    // The circuits of the second client are too old for further streams.
    for (seed, open_seconds, minimum) in [(900, 1, 118), (901, 660, 0)] {
        let mut net = Net::ready(seed, 3);
        let streams: Vec<_> = (1..=ISOLATIONS).map(|isolation| net.connected(isolation)).collect();
        net.pass(open_seconds);
        net.await_spares(2);
        let since = net.world.now();
        net.reset(&streams);
        net.pass(minimum);
        assert_eq!(net.ends(since), []);
        net.assert_separate_ends(LONGEST_END + 2, ISOLATIONS.into());
    }
}

#[test]
fn spare_circuits_of_superseded_guards_end_at_separate_times() {
    let mut net = Net::ready(910, 3);
    net.client(|party, _, _| party.client.keep_ready(Delegation::Search(engine()), 3));
    net.await_spares(5);
    net.client(|party, _, _| {
        let guard = party.built[0][0];
        party.client.pool.handle_guards_superseded(&[guard]);
    });
    net.assert_separate_ends(LONGEST_END, 5);
    net.await_spares(5);
}

#[test]
fn circuits_over_an_expired_consensus_end_at_separate_times() {
    let mut net = Net::new(920, 3);
    net.give_consensus(NOW.after(Duration::from_secs(VALID - 300)));
    net.client(|party, _, _| party.client.keep_ready(Delegation::Search(engine()), 3));
    net.await_spares(5);
    net.pass(299 - net.world.now().since(Instant::START).as_secs());
    assert_eq!(net.open_circuits(), 5);
    net.assert_separate_ends(LONGEST_END + 2, 5);
    assert_eq!(net.open_circuits(), 0);
}

#[test]
fn spare_circuits_retire_at_separate_ages() {
    let mut net = Net::ready(930, 3);
    net.client(|party, _, _| party.client.keep_ready(Delegation::Search(engine()), 3));
    net.await_spares(5);
    net.client(|party, _, _| party.client.parameters.spare_circuits = 0);
    net.client(|party, _, _| party.client.keep_ready(Delegation::Search(engine()), 0));
    let since = net.world.now();
    net.pass(12 * 60);
    assert_eq!(net.ends(since), []);
    net.assert_separate_ends(18 * 60 + LONGEST_END, 5);
}

#[test]
fn at_the_cap_a_new_isolation_is_refused_and_ends_no_circuit_of_another() {
    let mut net = Net::ready(940, 3);
    net.client(|party, _, _| party.client.parameters.max_circuits = 6);
    let streams: Vec<_> = (1..=6).map(|isolation| net.connected(isolation)).collect();
    let since = net.world.now();
    net.reset(&streams);
    net.pass(1);
    assert_eq!(net.open_circuits(), 6);
    let refused = net.open(7);
    assert_eq!(net.closed(refused, 0), StreamFailure::LimitReached);
    // Isolations with a circuit continue to use it.
    let again = net.connected(1);
    net.reset(&[again]);
    net.pass(30);
    assert_eq!(net.ends(since), []);
    // A delegated request has a circuit of its own, which replaces the circuit of the same isolation.
    let request = net.delegate(&[], 1);
    net.delegated(request);
    net.pass(1);
    assert_eq!((net.ends(since).len(), net.open_circuits()), (1, 6));
    net.client(|party, _, _| {
        let of_others = party.client.pool.circuits().filter_map(|(_, circuit)| circuit.isolation());
        assert_eq!(of_others.collect::<Vec<_>>().len(), 5);
    });
    // The ends of the idle circuits don't depend on the requests that were refused.
    net.pass(6 * 60);
    net.connected(7);
}

#[test]
fn one_isolation_has_at_most_a_quarter_of_the_circuits() {
    let mut net = Net::ready(950, 3);
    net.client(|party, _, _| party.client.parameters.max_circuits = 16);
    for _ in 0..4 {
        let request = net.delegate(&[], 1);
        net.delegated(request);
    }
    let refused = net.delegate(&[], 1);
    assert_eq!(net.closed(refused, 1), StreamFailure::LimitReached);
    let request = net.delegate(&[], 2);
    net.delegated(request);
    net.connected(3);
}
