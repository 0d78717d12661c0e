//! Tests of circuits that wait for the answers to earlier CREATEs of the same next relay.

use std::collections::VecDeque;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::{
    base::LinkClose,
    onion::RelayLayer,
    relay::circuit::{Circuit, NextHop},
};

const STEP: Duration = Duration::from_millis(10);

/// A relay that extends circuits. Its own handshakes aren't part of these tests, so its circuits have no origins.
struct Guard {
    bench: Bench,
    /// The body of each EXTEND.
    extend: Vec<u8>,
    circuits: u32,
}

impl Guard {
    /// A guard whose EXTENDs lead to relay number [`NEXT`] with the CREATE `request`.
    fn new(parameters: RelayParameters, request: &[u8]) -> Self {
        let bench = Bench::limited(parameters);
        Self { bench, extend: encode_extend(&relay_id(NEXT), request), circuits: 0 }
    }

    /// A neighbour at `address`, or a listed one.
    fn join(&mut self, address: [u8; 4], relay: Option<u16>) -> LinkId {
        self.bench.address = address.into();
        let role = relay.map_or(LocalRole::Client, |number| LocalRole::Relay(Arc::new(fixture::key(number))));
        self.bench.join(role, None)
    }

    /// Adds a circuit of the neighbour on `link`, and extends it.
    fn extend(&mut self, link: LinkId) -> CircuitKey {
        self.circuits += 1;
        let (now, channel) = (self.bench.now, ChannelId(link));
        let endpoint = CircuitEndpoint { channel, circuit: upper(self.circuits) };
        let relay = &mut self.bench.relay;
        assert!(relay.channels.admit_circuit(channel, endpoint.circuit));
        let keys = HopKeys { forward: LayerKey::from_bytes([1; 32]), backward: LayerKey::from_bytes([2; 32]) };
        let owner = relay.owner(channel).unwrap();
        let layer = RelayLayer::new(HopIndex::FIRST, keys);
        let key = relay.table.insert(Circuit::new(now, HopIndex::FIRST, owner, endpoint, layer)).unwrap();
        for fragment in split(&self.extend, 900).unwrap() {
            relay.handle_extend(now, key, &fragment, &mut self.bench.rng);
        }
        key
    }

    /// Whether the next hop of a circuit has answered; `None` if the circuit has ended.
    fn is_open(&self, key: CircuitKey) -> Option<bool> {
        self.bench.relay.table.circuit(key).map(|circuit| matches!(circuit.next, NextHop::Open(_)))
    }
}

/// The honest client's circuits at a guard.
#[derive(Default)]
struct Honest {
    waiting: Vec<(CircuitKey, Instant)>,
    times: Vec<Duration>,
    failed: usize,
}

impl Honest {
    fn extend(&mut self, guard: &mut Guard, link: LinkId) {
        let key = guard.extend(link);
        self.waiting.push((key, guard.bench.now));
    }

    /// Records the circuits that are extended now.
    fn observe(&mut self, guard: &Guard) {
        let now = guard.bench.now;
        self.waiting.retain(|(key, started)| match guard.is_open(*key) {
            Some(true) => {
                self.times.push(now.since(*started));
                false
            }
            Some(false) => true,
            None => {
                self.failed += 1;
                false
            }
        });
    }

    fn percentile_95(&mut self) -> Duration {
        self.times.sort_unstable();
        self.times[self.times.len() * 95 / 100]
    }
}

#[test]
fn a_client_extends_within_a_second_while_a_24_floods_the_next_relay_through_twenty_two_guards() {
    const GUARDS: u16 = 22;
    const SECONDS: u64 = 12;
    const PATH: Duration = Duration::from_millis(20);
    // A quarter of all rates: 25 CREATEs a second of each address, and 500 handshakes a second.
    let slow = |rate: Rate| Rate { per_second: rate.per_second / 4, burst: (rate.burst / 4).max(5) };
    let parameters = RelayParameters::default();
    let mut attacked = Bench::limited(RelayParameters {
        circuit_handshakes: slow(parameters.circuit_handshakes),
        ..RelayParameters::default()
    });
    let relays = (1..=10 + GUARDS).map(|number| fixture::listed(fixture::profile(number)));
    attacked.relay.set_consensus(Arc::new(fixture::consensus(relays)));
    let (_, request) =
        ClientHandshake::start(&attacked.keys, HopIndex::new(2).unwrap(), &[], &mut attacked.rng).unwrap();
    let mut guards = Vec::new();
    for number in 0..GUARDS {
        let creates_to_relay = slow(parameters.creates_to_relay);
        let mut guard = Guard::new(RelayParameters { creates_to_relay, ..parameters.clone() }, &request);
        let next = guard.bench.next();
        let hostile = [1, 2, 3, 4].map(|host| guard.join([198, 51, 100, host], None));
        let at_attacked = attacked.join(LocalRole::Relay(Arc::new(fixture::key(11 + number))), None);
        guards.push((guard, next, hostile, at_attacked));
    }
    let link = guards[0].0.join([203, 0, 113, 1], None);
    let mut honest = Honest::default();
    let mut on_path = VecDeque::new();
    for step in 0..SECONDS * 100 {
        let now = attacked.now;
        for (number, (guard, next, hostile, at_attacked)) in guards.iter_mut().enumerate() {
            // Each address has one CREATE in four steps, 2,200 a second in all.
            for (host, link) in hostile.iter().enumerate() {
                if (step + host as u64 + number as u64).is_multiple_of(4) {
                    guard.extend(*link);
                }
            }
            if number == 0 && step % 50 == 25 {
                honest.extend(guard, link);
            }
            guard.bench.pass(STEP);
            on_path.extend(guard.bench.cells(*next).into_iter().map(|cell| (now.after(PATH), number, true, cell)));
            on_path.extend(attacked.cells(*at_attacked).into_iter().map(|cell| (now.after(PATH), number, false, cell)));
            guard.bench.neighbours.cells.clear();
        }
        while let Some((_, number, is_forward, cell)) = on_path.pop_front_if(|(time, ..)| *time <= now) {
            let (guard, next, _, at_attacked) = &mut guards[number];
            if is_forward { attacked.deliver(*at_attacked, &cell) } else { guard.bench.deliver(*next, &cell) }
        }
        attacked.pass(STEP);
        honest.observe(&guards[0].0);
    }
    let created = attacked.circuits() as u64;
    assert!(created >= 450 * SECONDS, "the attacked relay is busy: {created}");
    // The last circuit may still wait.
    assert!(honest.times.len() as u64 >= 2 * SECONDS - 1 && honest.failed == 0, "{} stand", honest.times.len());
    let last = honest.percentile_95();
    assert!(last < Duration::from_secs(1), "{last:?}");
}

/// Answers the CREATEs that a next relay has received.
fn answer(guard: &mut Guard, next: LinkId, creates: impl IntoIterator<Item = Cell>) {
    for create in creates {
        if create.command() == Command::Create {
            let mut body = CellBody::zero();
            body[..3].copy_from_slice(&[0, 1, 9]);
            guard.bench.deliver(next, &Cell::new(create.circuit().unwrap(), Command::Created, body));
        }
    }
}

#[test]
fn circuits_extend_at_the_rate_of_the_next_relay_over_a_path_of_two_hundred_milliseconds() {
    let mut guard = Guard::new(RelayParameters::default(), &[7; 100]);
    let next = guard.bench.next();
    let clients: Vec<_> = (1..=50).map(|network| guard.join([198, 51, network, 1], None)).collect();
    let mut on_path = VecDeque::new();
    let mut extended = 0;
    for step in 0..600 {
        // 900 a second.
        (0..9).for_each(|number| _ = guard.extend(clients[(9 * step + number) % clients.len()]));
        guard.bench.pass(STEP);
        let now = guard.bench.now;
        let creates: Vec<_> = guard.bench.cells(next);
        on_path.extend(creates.into_iter().map(|cell| (now.after(Duration::from_millis(200)), cell)));
        let arrived: Vec<_> = std::iter::from_fn(|| on_path.pop_front_if(|(time, _)| *time <= now)).collect();
        extended += if step >= 400 { arrived.len() } else { 0 };
        answer(&mut guard, next, arrived.into_iter().map(|(_, cell)| cell));
        guard.bench.neighbours.cells.clear();
    }
    assert!((880..=920).contains(&extended), "{extended} in two seconds");
}

#[test]
fn a_next_relay_that_never_answers_delays_no_circuit_to_another() {
    let mut guard = Guard::new(RelayParameters::default(), &[7; 100]);
    let silent = guard.bench.next();
    let other = guard.bench.join(LocalRole::Relay(Arc::new(fixture::key(4))), Some(relay_id(4)));
    let (hostile, link) = (guard.join([198, 51, 100, 1], None), guard.join([203, 0, 113, 1], None));
    let to_silent = guard.extend.clone();
    let mut keys = Vec::new();
    for number in 0..40 {
        guard.extend.clone_from(&to_silent);
        keys.extend([(); 2].map(|()| guard.extend(hostile)));
        guard.extend = encode_extend(&relay_id(4), &[7; 100]);
        let key = guard.extend(link);
        guard.bench.settle();
        let creates = guard.bench.cells(other);
        assert_eq!(creates.len(), 1, "{number}: the CREATE doesn't wait");
        answer(&mut guard, other, creates);
        assert_eq!(guard.is_open(key), Some(true));
        guard.bench.pass(STEP);
    }
    assert_eq!(guard.bench.commands(silent), [Command::Create; 16], "the first window");
    assert_eq!(guard.bench.relay.waiting_extends.len(&relay_id(NEXT)), 64);
    // The unanswered circuits end, and their places are free.
    guard.bench.pass(Duration::from_secs(10));
    let created = guard.bench.commands(silent).iter().filter(|command| **command == Command::Create).count();
    assert_eq!(created, 16, "an unanswered CREATE is no measurement before the first answer");
    guard.bench.pass(Duration::from_secs(10));
    guard.bench.pass(Duration::from_secs(10));
    assert!(keys.iter().all(|key| guard.is_open(*key).is_none()));
    assert!(guard.bench.relay.waiting_extends.is_empty() && guard.bench.relay.create_windows.unanswered() == 0);
    assert_eq!(guard.bench.circuits(), 40);
}

#[test]
fn a_place_in_the_window_is_free_after_an_answer_a_refusal_and_the_end_of_the_circuit() {
    let mut guard = Guard::new(RelayParameters { create_window: 3, ..RelayParameters::default() }, &[7; 100]);
    let next = guard.bench.next();
    let link = guard.join([203, 0, 113, 1], None);
    let keys: Vec<_> = (0..6).map(|_| guard.extend(link)).collect();
    guard.bench.settle();
    let creates = guard.bench.cells(next);
    assert_eq!(creates.len(), 3);
    answer(&mut guard, next, creates[..1].to_vec());
    guard.bench.settle();
    assert_eq!(guard.bench.commands(next), [Command::Create], "after CREATED");
    guard.bench.send(next, &Cell::destroy(creates[1].circuit().unwrap()));
    assert_eq!((guard.bench.commands(next), guard.is_open(keys[1])), (vec![Command::Create], None), "after DESTROY");
    guard.bench.send(link, &Cell::destroy(upper(3)));
    let commands = guard.bench.commands(next);
    assert!(commands.contains(&Command::Create) && commands.len() == 2, "after the end by the origin: {commands:?}");
    assert!(guard.bench.relay.waiting_extends.is_empty());
    assert_eq!(guard.bench.relay.create_windows.unanswered(), 3);
    // Circuits that wait for room are dialled again after the loss of the channel.
    let waits = guard.extend(link);
    assert_eq!(guard.bench.relay.waiting_extends.len(&relay_id(NEXT)), 1);
    let closed = LinkEvent::Closed { link: next, reason: LinkClose::ByPeer };
    guard.bench.relay.handle_link(guard.bench.now, closed, &mut guard.bench.rng);
    guard.bench.neighbours.remove(next);
    guard.bench.settle();
    assert!(guard.bench.relay.create_windows.is_empty());
    assert_eq!((guard.bench.neighbours.dials.as_slice(), guard.is_open(waits)), (&[relay_id(NEXT)][..], Some(false)));
    let next = guard.bench.next();
    let creates = guard.bench.cells(next);
    answer(&mut guard, next, creates);
    assert_eq!(guard.is_open(waits), Some(true));
}

#[test]
fn a_client_extends_in_its_turn_while_circuits_behind_many_listed_relays_wait() {
    let mut guard = Guard::new(RelayParameters { create_window: 1, ..RelayParameters::default() }, &[7; 100]);
    let next = guard.bench.next();
    let relays: Vec<_> = (3..=9).map(|number| guard.join([198, 51, 100, 1], Some(number))).collect();
    (0..8).for_each(|_| relays.iter().for_each(|link| _ = guard.extend(*link)));
    let link = guard.join([203, 0, 113, 1], None);
    let key = guard.extend(link);
    for _ in 0..3 {
        guard.bench.settle();
        let creates = guard.bench.cells(next);
        answer(&mut guard, next, creates);
    }
    assert_eq!(guard.is_open(key), Some(true));
}

#[test]
fn the_newest_circuit_behind_a_listed_relay_is_next_while_the_oldest_has_waited_long() {
    let mut guard = Guard::new(RelayParameters { create_window: 1, ..RelayParameters::default() }, &[7; 100]);
    let next = guard.bench.next();
    let link = guard.join([198, 51, 100, 1], Some(PREVIOUS));
    let backlog: Vec<_> = (0..50).map(|_| guard.extend(link)).collect();
    guard.bench.settle();
    guard.bench.pass(Duration::from_secs(1));
    let key = guard.extend(link);
    for _ in 0..2 {
        guard.bench.settle();
        let creates = guard.bench.cells(next);
        answer(&mut guard, next, creates);
    }
    assert_eq!((guard.is_open(key), guard.is_open(backlog[1])), (Some(true), Some(false)));
}

#[test]
fn a_client_extends_while_another_behind_the_same_listed_relay_floods_a_silent_relay() {
    // A listed relay has a quarter.
    let parameters = RelayParameters { waiting_extends: 256, create_window: 4, ..RelayParameters::default() };
    let mut guard = Guard::new(parameters, &[7; 100]);
    let silent = guard.bench.next();
    let other = guard.bench.join(LocalRole::Relay(Arc::new(fixture::key(4))), Some(relay_id(4)));
    let link = guard.join([198, 51, 100, 1], Some(PREVIOUS));
    let to_silent = guard.extend.clone();
    let hostile: Vec<_> = (0..100).map(|_| guard.extend(link)).collect();
    assert_eq!(guard.bench.relay.waiting_extends.len(&relay_id(NEXT)), 64);
    // Five circuits need the window of 4, and one needs a dial.
    guard.extend = encode_extend(&relay_id(4), &[7; 100]);
    let mut honest: Vec<_> = (0..5).map(|_| guard.extend(link)).collect();
    guard.extend = encode_extend(&relay_id(5), &[7; 100]);
    honest.push(guard.extend(link));
    guard.extend = to_silent;
    for _ in 0..20 {
        (0..10).for_each(|_| _ = guard.extend(link));
        guard.bench.pass(STEP);
    }
    let waits = |guard: &Guard, relay| guard.bench.relay.waiting_extends.len(&relay_id(relay));
    assert_eq!([waits(&guard, NEXT), waits(&guard, 4), waits(&guard, 5)], [62, 1, 1]);
    assert!(honest.iter().all(|key| guard.is_open(*key) == Some(false)));
    let dialled = guard.bench.join(LocalRole::Relay(Arc::new(fixture::key(5))), Some(relay_id(5)));
    for next in [other, other, dialled] {
        guard.bench.settle();
        let creates = guard.bench.cells(next);
        answer(&mut guard, next, creates);
    }
    assert!(honest.iter().all(|key| guard.is_open(*key) == Some(true)));
    assert_eq!(guard.bench.commands(silent), [Command::Create; 4]);
    assert_eq!(hostile.iter().filter(|key| guard.is_open(**key).is_some()).count(), 4, "those in the window");
}
