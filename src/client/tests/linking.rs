//! Tests of unlinkability: an event of one circuit has no effect that relays beyond the guard could observe on another
//! circuit.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::{
    base::{CircuitId, Lane, LinkId},
    wire::{Cell, Command},
};

/// A cell that a relay received.
#[derive(Clone, Copy)]
pub(super) struct Received {
    at: Instant,
    link: LinkId,
    lane: Lane,
    circuit: CircuitId,
    command: Command,
}

impl Received {
    pub(super) const fn at(&self) -> Instant {
        self.at
    }

    pub(super) fn is(&self, command: Command) -> bool {
        self.command == command
    }
}

/// The cells in a link's event.
pub(super) fn cells(at: Instant, event: &LinkEvent) -> Vec<Received> {
    let LinkEvent::Message { link, lane, message } = event else { return Vec::new() };
    let mut message = message.clone();
    let cells = message.take_full().into_iter().flatten().filter_map(|slot| Cell::decode(slot).ok());
    cells
        .filter_map(|cell| {
            Some(Received { at, link: *link, lane: *lane, circuit: cell.circuit()?, command: cell.command() })
        })
        .collect()
}

/// The number of isolations, each with a stream. The streams of even isolations send cells continuously.
const ISOLATIONS: u8 = 5;
/// The number of cells that each sending stream sends during the observation of about half a minute.
const CELLS: usize = 50;

/// The cells that relays beyond the guard receive, by the identifier of the circuit between two relays.
type Transcripts = BTreeMap<CircuitId, Vec<(NodeId, Instant, Command)>>;

/// The far side of a circuit at a relay, from which the relay receives backward cells.
type FarEnd = (NodeId, CircuitId);

/// The result of an observation.
struct Observation {
    /// The far ends of the circuits that were open at the start.
    far_ends: Vec<FarEnd>,
    transcripts: Transcripts,
}

impl Net {
    fn received(&mut self, node: NodeId) -> Vec<Received> {
        self.relay(node, |party| party.received.clone()).unwrap_or_default()
    }

    fn relay_nodes(&self) -> Vec<NodeId> {
        self.relays.values().copied().collect()
    }

    /// Delivers a DESTROY from the far end of a circuit to a relay.
    fn destroy(&mut self, (node, circuit): FarEnd) {
        let Received { link, lane, .. } = self
            .received(node)
            .into_iter()
            .find(|received| received.circuit == circuit && received.command == Command::Created)
            .unwrap();
        let message = core::iter::once(Cell::destroy(circuit).encode()).collect();
        let event = LinkEvent::Message { link, lane, message };
        self.world.with(node, |party, now, rng| {
            party.handle_link(now, event, rng);
            party.handle_batch_end(now, rng);
        });
    }

    /// Writes on one stream after the other. Simultaneous cells would delay each other on the line to the guard.
    fn write_on(&mut self, streams: &[ClientStream]) {
        for stream in streams {
            self.client(|party, _, _| party.client.write(*stream, &[1; 200]));
            self.world.run_until(Duration::from_millis(300), |_| None::<()>);
        }
    }
}

/// Observes the relays of a client with idle and sending streams and with spare circuits, for half a minute. If there
/// is a far end `destroyed`, a DESTROY arrives from it at the start.
fn observe(seed: u64, destroyed: Option<FarEnd>) -> Observation {
    let mut net = Net::ready(seed, 3);
    let guard = net.client(|party, _, _| party.built[0][0]);
    let guard = net.relays[&guard];
    let streams: Vec<_> = (1..=ISOLATIONS).map(|isolation| net.connected(isolation)).collect();
    let sending: Vec<_> = streams.into_iter().skip(1).step_by(2).collect();
    net.pass(60);
    let began = net.world.now();
    let mut far_ends = Vec::new();
    for node in net.relay_nodes() {
        let created = net.received(node).into_iter().filter(|received| received.command == Command::Created);
        far_ends.extend(created.map(|received| (node, received.circuit)));
    }
    far_ends.sort_unstable();
    far_ends.dedup();
    if let Some(far_end) = destroyed {
        net.destroy(far_end);
    }
    for _ in 0..CELLS {
        net.write_on(&sending);
    }
    let mut transcripts = Transcripts::new();
    for node in net.relay_nodes().into_iter().filter(|node| *node != guard) {
        for Received { at, circuit, command, .. } in net.received(node) {
            let seen = transcripts.entry(circuit).or_default();
            if at >= began {
                seen.push((node, at, command));
            }
        }
    }
    Observation { far_ends, transcripts }
}

#[test]
fn a_destroyed_circuit_causes_no_cell_beyond_the_guard_on_another() {
    let seed = 700;
    let Observation { far_ends, transcripts: expected } = observe(seed, None);
    let streams = usize::from(ISOLATIONS);
    assert!(far_ends.len() >= 2 * (streams + 2), "two far ends for each circuit: {}", far_ends.len());
    assert!(expected.values().filter(|cells| !cells.is_empty()).count() >= 2 * streams, "each stream causes cells");
    let mut changes = 0;
    for far_end in far_ends {
        let Observation { transcripts, .. } = observe(seed, Some(far_end));
        let changed: Vec<_> = expected.iter().filter(|(id, cells)| transcripts.get(id) != Some(cells)).collect();
        // The circuit itself has two identifiers beyond the guard.
        assert!(changed.len() <= 2, "{far_end:?} changed {} of {}", changed.len(), expected.len());
        assert!(changed.is_empty() || changed.iter().any(|(id, _)| **id == far_end.1), "{far_end:?}, another changed");
        changes += changed.len();
    }
    assert!(changes >= streams, "the end of a circuit with a stream is visible on that circuit");
}

#[test]
fn a_request_prefers_an_open_circuit_without_relays_that_its_isolation_recently_lost() {
    let mut net = Net::ready(701, 3);
    let (first, second) =
        (net.client(|party, _, _| party.built[0].clone()), net.client(|party, _, _| party.built[1].clone()));
    let only_in = |path: &[RelayId], other: &[RelayId]| path.iter().copied().find(|relay| !other.contains(relay));
    for (lost, other) in [(&first, &second), (&second, &first)] {
        let mut net = Net::ready(701, 3);
        let lost = vec![lost[0], only_in(lost, other).unwrap()];
        net.client(|party, now, _| party.client.pool.handle_lost(now, Isolation([1; 32]), lost));
        // The loss has no effect on another isolation, which uses the first circuit.
        let mut others = Net::ready(701, 3);
        let of_others = vec![first[0], only_in(&first, &second).unwrap()];
        others.client(|party, now, _| party.client.pool.handle_lost(now, Isolation([2; 32]), of_others));
        let stream = others.connected(1);
        assert_eq!(others.path_of(stream), first);
        let stream = net.connected(1);
        assert_eq!(&net.path_of(stream), other);
    }
    // After ten seconds, neither circuit is preferred for this reason.
    net.client(|party, now, _| party.client.pool.handle_lost(now, Isolation([1; 32]), first.clone()));
    net.pass(11);
    let stream = net.connected(1);
    assert_eq!(net.path_of(stream), first);
}

/// The delay until the next build after `event`, in milliseconds.
fn delay_until_build(seed: u64, event: impl FnOnce(&mut Net)) -> u128 {
    let mut net = Net::ready(seed, 3);
    net.pass(3);
    let (now, before) = net.client(|party, now, _| (now, party.client.pool.builds()));
    event(&mut net);
    net.wait(31, |party| (party.client.pool.builds() > before).then_some(()));
    net.world.now().since(now).as_millis()
}

#[test]
fn a_missing_spare_is_built_at_a_time_independent_of_the_use_or_end_of_another() {
    let destroy = |net: &mut Net| {
        net.client(|party, now, rng| {
            let (channel, circuit) = party.client.pool.circuits().next().unwrap().1.endpoint().unwrap();
            party.client.pool.handle_cell(now, channel, Cell::destroy(circuit), rng);
        });
    };
    let events: [&dyn Fn(&mut Net); 2] = [&|net| _ = net.open(1), &destroy];
    for event in events {
        let mut delays: Vec<_> = (0..100).map(|seed| delay_until_build(710 + seed, event)).collect();
        delays.sort_unstable();
        // Quantiles of an exponential distribution with a mean of 4 s: 1.2, 2.8 and 5.5 s.
        assert!((600..2000).contains(&delays[25]), "{delays:?}");
        assert!((1900..4000).contains(&delays[50]), "{delays:?}");
        assert!((4000..7500).contains(&delays[75]), "{delays:?}");
    }
}

#[test]
fn a_circuit_is_built_immediately_for_a_request_without_a_spare_one() {
    let mut net = Net::ready(811, 3);
    for isolation in 1..20 {
        let began = net.world.now();
        net.connected(isolation);
        assert!(net.world.now().since(began) < Duration::from_millis(200), "isolation {isolation}");
    }
}

/// A network in which two isolations have a circuit, the client has no spare circuit, and a third isolation, whose
/// circuits are to fail, has a request.
fn with_failing(seed: u64) -> (Net, ClientStream) {
    let mut net = Net::ready(seed, 3);
    net.client(|party, _, _| party.client.parameters.spare_circuits = 0);
    for isolation in 1..3 {
        net.connected(isolation);
    }
    let failing = net.open(3);
    (net, failing)
}

#[test]
fn builds_that_fail_for_one_isolation_delay_no_other() {
    let (mut net, failing) = with_failing(820);
    let mut others = Vec::new();
    for step in 0..2000 {
        net.client(|party, now, rng| {
            let mut endpoints = Vec::new();
            for (_, circuit) in party.client.pool.circuits() {
                if circuit.is_building() && circuit.isolation() == Some(Isolation([3; 32])) {
                    endpoints.extend(circuit.endpoint());
                }
            }
            for (channel, circuit) in endpoints {
                party.client.pool.handle_cell(now, channel, Cell::destroy(circuit), rng);
            }
        });
        if step % 50 == 0 {
            let isolation = u8::try_from(4 + step / 50).unwrap();
            others.push((net.world.now(), net.open(isolation)));
        }
        net.world.run_until(Duration::from_millis(5), |_| None::<()>);
    }
    net.client(|party, _, _| {
        assert_eq!(party.seen(failing).closed, Some(StreamFailure::NoCircuit));
        for (began, stream) in others {
            let connected = party.seen(stream).connected.expect("not connected");
            assert!(connected.since(began) < Duration::from_millis(200), "{:?}", connected.since(began));
        }
    });
}

#[test]
fn builds_of_one_isolation_wait_for_no_build_of_another() {
    let mut net = Net::ready(821, 3);
    net.client(|party, _, _| {
        (party.client.parameters.spare_circuits, party.client.parameters.max_builds) = (0, 1);
    });
    for isolation in 1..3 {
        net.connected(isolation);
    }
    let streams: Vec<_> = (3..13).map(|isolation| net.open(isolation)).collect();
    let building = net.client(|party, _, _| party.client.pool.circuits().filter(|(_, it)| it.is_building()).count());
    assert_eq!(building, streams.len());
}

#[test]
fn a_relay_that_fails_for_one_isolation_is_still_chosen_for_others() {
    let (mut net, failing) = with_failing(822);
    let mut failed = Vec::new();
    while net.client(|party, _, _| party.seen(failing).closed.is_none()) {
        net.client(|party, now, rng| {
            let of_isolation = party.client.pool.circuits().find(|(_, circuit)| {
                circuit.isolation() == Some(Isolation([3; 32]))
                    && circuit.is_building()
                    && circuit.hop_times().len() == 1
            });
            if let Some((_, circuit)) = of_isolation {
                failed.push(circuit.relays()[1]);
                let (channel, circuit) = circuit.endpoint().unwrap();
                party.client.pool.handle_cell(now, channel, Cell::destroy(circuit), rng);
            }
        });
        net.world.run_until(Duration::from_millis(2), |_| None::<()>);
    }
    assert_eq!(failed.len(), 4);
    let distinct: std::collections::BTreeSet<_> = failed.iter().copied().collect();
    assert_eq!(distinct.len(), 4, "a retry avoids the relays that failed before");
    let began = net.world.now();
    let mut chosen = std::collections::BTreeSet::new();
    for isolation in 10..50 {
        let stream = net.connected(isolation);
        chosen.extend(net.path_of(stream).into_iter().skip(1));
    }
    assert!(net.world.now().since(began) < Duration::from_secs(50), "the failures are recent");
    assert!(distinct.is_subset(&chosen), "{} of 4 relays are chosen", distinct.intersection(&chosen).count());
}

#[test]
fn spare_circuits_at_the_start_are_built_at_separate_times() {
    let mut delays = Vec::new();
    for seed in 850..900 {
        let mut net = Net::new(seed, 3);
        net.give_consensus(NOW);
        net.wait(5, |party| (party.built.len() == 1).then_some(()));
        let first = net.world.now();
        net.wait(35, |party| (party.built.len() == 2).then_some(()));
        delays.push(net.world.now().since(first).as_millis());
    }
    delays.sort_unstable();
    // The median of an exponential distribution with a mean of 4 s is 2.8 s.
    assert!((1500..4500).contains(&delays[25]), "{delays:?}");
}

// Too slow as WebAssembly.
#[cfg(not(target_arch = "wasm32"))]
#[test]
fn a_burst_of_isolations_is_not_refused_by_the_guard() {
    let mut net = Net::ready(830, 3);
    let streams: Vec<_> = (0..400_u16)
        .map(|number| {
            let [high, low] = number.to_be_bytes();
            let mut isolation = [9; 32];
            (isolation[0], isolation[1]) = (high, low);
            let target = Target { host: Host::Ip([1, 1, 1, 1].into()), port: 443 };
            net.client(|party, now, _| party.client.open(now, target, Isolation(isolation)))
        })
        .collect();
    for stream in streams {
        net.wait(15, |party| party.seen(stream).connected);
    }
}
