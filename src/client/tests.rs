//! Tests of a client with seven relays in a simulated network.

use std::collections::BTreeMap;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::{
    crypto::OnionSecret,
    delegated::EngineName,
    directory::{
        ConsensusRelay, Parameters, Profile,
        fixture::{NOW, VALID, consensus_at, exit_profile, key, listed},
    },
    handshake::OnionKeyring,
    relay::{ExitRequest, ExitStream, Relay, RelayEvent, RelayParameters},
    sim::{NodeId, PathProfile, World},
    wire::Host,
};

mod volunteers;

const RELAYS: u16 = 7;

/// The behaviour of an exit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Serves {
    /// Connects, echoes all bytes, and finishes when the origin does.
    Echo,
    /// Connects and sends without end.
    Flood,
    Refuses(EndReason),
    /// Answers no request.
    Nothing,
}

struct RelayParty {
    relay: Relay,
    serves: Serves,
    open: BTreeMap<ExitStream, Vec<u8>>,
}

impl RelayParty {
    fn work(&mut self, now: Instant) {
        while let Some(event) = self.relay.poll_event() {
            let RelayEvent::Exit(exit, request) = event else { continue };
            match request {
                ExitRequest::Connect(_) | ExitRequest::Resolve(_) if self.serves == Serves::Nothing => {}
                ExitRequest::Connect(_) => match self.serves {
                    Serves::Refuses(reason) => self.relay.exit_failed(exit, reason),
                    _ => {
                        self.relay.exit_connected(now, exit, None);
                        self.open.insert(exit, Vec::new());
                    }
                },
                // Open at once; echoes all bytes.
                ExitRequest::Delegate { .. } => drop(self.open.insert(exit, Vec::new())),
                ExitRequest::Resolve(_) => {
                    self.relay.exit_resolved(exit, 60, vec![Answer::Ip([192, 0, 2, 7].into())]);
                }
                ExitRequest::Data(bytes) => {
                    self.relay.exit_consumed(exit, bytes.len());
                    self.open.entry(exit).or_default().extend_from_slice(&bytes);
                }
                ExitRequest::Finish if self.serves == Serves::Echo => {
                    self.send(now, exit);
                    self.relay.exit_finish(exit);
                }
                ExitRequest::Finish | ExitRequest::Writable => {}
                ExitRequest::Close => {
                    self.open.remove(&exit);
                }
            }
        }
        for exit in self.open.keys().copied().collect::<Vec<_>>() {
            self.send(now, exit);
        }
    }

    fn send(&mut self, now: Instant, exit: ExitStream) {
        let Some(waiting) = self.open.get_mut(&exit) else { return };
        if self.serves == Serves::Flood {
            let room = self.relay.exit_room(exit);
            self.relay.exit_write(now, exit, &vec![7; room]);
        } else if !waiting.is_empty() {
            let sent = self.relay.exit_write(now, exit, waiting);
            waiting.drain(..sent);
        }
    }
}

/// The events of a stream that the application received.
#[derive(Default)]
struct Seen {
    connected: Option<Instant>,
    delegated: Option<(Vec<RelayId>, bool)>,
    bytes: Vec<u8>,
    finished: bool,
    answers: Vec<Answer>,
    closed: Option<StreamFailure>,
}

struct ClientParty {
    client: Client,
    streams: BTreeMap<ClientStream, Seen>,
    built: Vec<Vec<RelayId>>,
    ready: usize,
    expired: bool,
    guards_changed: bool,
}

impl ClientParty {
    fn work(&mut self, now: Instant) {
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Ready => self.ready += 1,
                ClientEvent::CircuitBuilt { path, hops, .. } => {
                    assert_eq!(path.len(), hops.len());
                    self.built.push(path);
                }
                ClientEvent::GuardsChanged => self.guards_changed = true,
                ClientEvent::ConsensusExpired => self.expired = true,
                ClientEvent::Connected { stream, .. } => self.seen(stream).connected = Some(now),
                ClientEvent::Delegated { stream, path, hops, shared_exit } => {
                    assert_eq!(path.len(), hops.len());
                    let seen = self.seen(stream);
                    seen.connected = Some(now);
                    seen.delegated = Some((path, shared_exit));
                }
                ClientEvent::Resolved { stream, answers, .. } => self.seen(stream).answers = answers,
                ClientEvent::Data { stream, bytes } => {
                    self.seen(stream).bytes.extend_from_slice(&bytes);
                    self.client.consumed(stream, bytes.len());
                }
                ClientEvent::Finished { stream } => self.seen(stream).finished = true,
                ClientEvent::Writable { .. } => {}
                ClientEvent::Closed { stream, reason } => {
                    let seen = self.seen(stream);
                    assert_eq!(seen.closed, None, "closed twice");
                    seen.closed = Some(reason);
                }
            }
        }
    }

    fn seen(&mut self, stream: ClientStream) -> &mut Seen {
        self.streams.entry(stream).or_default()
    }
}

enum Party {
    Client(Box<ClientParty>),
    Relay(Box<RelayParty>),
}

impl Party {
    fn core(&mut self) -> &mut dyn LinkMachine {
        match self {
            Self::Client(party) => &mut party.client,
            Self::Relay(party) => &mut party.relay,
        }
    }
}

impl LinkMachine for Party {
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng) {
        self.core().handle_link(now, event, rng);
    }

    fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.core().handle_timeout(now, rng);
    }

    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit> {
        let transmit = self.core().poll_transmit(now, rng);
        if transmit.is_some() {
            return transmit;
        }
        match self {
            Self::Client(party) => party.work(now),
            Self::Relay(party) => party.work(now),
        }
        self.core().poll_transmit(now, rng)
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Client(party) => party.client.poll_timeout(),
            Self::Relay(party) => party.relay.poll_timeout(),
        }
    }
}

struct Net {
    seed: u64,
    world: World<Party>,
    client: NodeId,
    relays: BTreeMap<RelayId, NodeId>,
    listed: Vec<ConsensusRelay>,
}

impl Net {
    /// Seven relays, the first `exits` of them exits; the client has no consensus yet.
    fn new(seed: u64, exits: u16) -> Self {
        let profile = PathProfile { delay: Duration::from_millis(5), ..PathProfile::default() };
        let mut world = World::new(seed, profile);
        let client = world.add_node("10.9.9.9:9".parse().unwrap(), false);
        let mut relays = BTreeMap::new();
        let mut all = Vec::new();
        for number in 1..=RELAYS {
            let rules: &[&str] = if number <= exits { &["accept 443", "accept 25"] } else { &[] };
            let mut profile = exit_profile(number, rules);
            let node = world.add_node(profile.addresses[0], true);
            profile.fingerprint = world.network().dial_target(node, profile.identity).unwrap().fingerprint;
            let keyring = OnionKeyring::new(OnionSecret::generate(world.rng()), None);
            if number <= exits {
                profile.offer.engines = vec![engine()];
            }
            let exit = number <= exits;
            let parameters = RelayParameters { exit, delegate: exit, ..RelayParameters::default() };
            let relay = Relay::new(Arc::new(key(number)), keyring, parameters);
            profile.onion_key = relay.onion_key();
            relays.insert(profile.identity, node);
            all.push(profile);
            world
                .place(node, Party::Relay(Box::new(RelayParty { relay, serves: Serves::Echo, open: BTreeMap::new() })));
        }
        let listed: Vec<_> = all.into_iter().map(|profile: Profile| listed(profile)).collect();
        let party = ClientParty {
            client: Client::new(ClientParameters::default(), GuardSample::default()),
            streams: BTreeMap::new(),
            built: Vec::new(),
            ready: 0,
            expired: false,
            guards_changed: false,
        };
        world.place(client, Party::Client(Box::new(party)));
        let mut net = Self { seed, world, client, relays, listed };
        let consensus = net.consensus();
        for node in net.relays.values().copied().collect::<Vec<_>>() {
            net.relay(node, |party| party.relay.set_consensus(Arc::clone(&consensus)));
        }
        net
    }

    /// As [`Self::new`], with the client's circuits built.
    fn ready(seed: u64, exits: u16) -> Self {
        let mut net = Self::new(seed, exits);
        net.give_consensus(NOW);
        net.wait(5, |party| (party.built.len() == 2).then_some(()));
        net
    }

    fn consensus(&self) -> Arc<Consensus> {
        Arc::new(consensus_at(NOW, self.listed.clone(), &Parameters::default()).0)
    }

    fn give_consensus(&mut self, wall: WallTime) {
        let consensus = self.consensus();
        self.client(|party, now, rng| party.client.set_consensus(now, wall, consensus, rng));
    }

    fn client<T>(&mut self, act: impl FnOnce(&mut ClientParty, Instant, &mut rand::rngs::ChaCha20Rng) -> T) -> T {
        let act = |party: &mut Party, now, rng: &mut _| match party {
            Party::Client(party) => act(party, now, rng),
            Party::Relay(_) => panic!("a relay"),
        };
        self.world.with(self.client, act).expect("the client exists")
    }

    fn relay<T>(&mut self, node: NodeId, act: impl FnOnce(&mut RelayParty) -> T) -> Option<T> {
        self.world.with(node, |party, _, _| match party {
            Party::Relay(party) => act(party),
            Party::Client(_) => panic!("the client"),
        })
    }

    fn serve(&mut self, serves: Serves) {
        for node in self.relays.values().copied().collect::<Vec<_>>() {
            self.relay(node, |party| party.serves = serves);
        }
    }

    /// Runs until `done` returns a value for the client.
    fn wait<T>(&mut self, seconds: u64, mut done: impl FnMut(&mut ClientParty) -> Option<T>) -> T {
        let client = self.client;
        let found = self.world.run_until(Duration::from_secs(seconds), |world| {
            let done = |party: &mut Party, _: Instant, _: &mut _| match party {
                Party::Client(party) => done(party),
                Party::Relay(_) => None,
            };
            world.with(client, done)?
        });
        found.unwrap_or_else(|| panic!("not within {seconds} s; seed {}", self.seed))
    }

    /// Advances time by `seconds`.
    fn pass(&mut self, seconds: u64) {
        self.world.run_until(Duration::from_secs(seconds), |_| None::<()>);
    }

    fn open(&mut self, isolation: u8) -> ClientStream {
        self.client(|party, now, _| party.client.open(now, target(443), IsolationKey([isolation; 32])))
    }

    fn connected(&mut self, isolation: u8) -> ClientStream {
        let stream = self.open(isolation);
        self.wait(5, |party| party.seen(stream).connected.map(|_| ()));
        stream
    }

    fn closed(&mut self, stream: ClientStream, seconds: u64) -> StreamFailure {
        self.wait(seconds, |party| party.seen(stream).closed)
    }

    /// The path of the circuit that carries a stream.
    fn path_of(&mut self, stream: ClientStream) -> Vec<RelayId> {
        self.client(|party, _, _| {
            let (circuit, _) = party.client.requests.get(stream).unwrap().placed.unwrap();
            party.client.circuits[&circuit].path.iter().map(|relay| relay.identity).collect()
        })
    }

    fn circuit_of(&mut self, stream: ClientStream) -> PooledId {
        self.client(|party, _, _| party.client.requests.get(stream).unwrap().placed.unwrap().0)
    }
}

fn engine() -> EngineName {
    EngineName::parse("test").unwrap()
}

fn target(port: u16) -> Target {
    Target { host: Host::parse("umbel.test").unwrap(), port }
}

#[test]
fn the_client_is_ready_with_two_spare_circuits_of_three_hops() {
    let mut net = Net::new(1, 2);
    net.give_consensus(NOW);
    net.wait(5, |party| (party.ready == 1).then_some(()));
    net.pass(5);
    net.client(|party, _, _| {
        assert_eq!((party.ready, party.built.len()), (1, 2));
        assert!(party.guards_changed);
        assert!(party.built.iter().all(|path| path.len() == 3));
    });
}

#[test]
fn a_stream_carries_bytes_both_ways_and_leaves_nothing_behind() {
    let mut net = Net::ready(2, 2);
    let stream = net.connected(1);
    let sent: Vec<u8> = (0..300_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let mut left = sent.clone();
    while !left.is_empty() {
        let taken = net.client(|party, now, _| party.client.write(now, stream, &left));
        left.drain(..taken);
        net.world.step(Instant::from_nanos(u64::MAX));
    }
    net.client(|party, _, _| party.client.finish(stream));
    net.wait(20, |party| party.seen(stream).finished.then_some(()));
    net.pass(1);
    net.client(|party, _, _| {
        assert!(party.seen(stream).bytes == sent);
        assert_eq!(party.client.requests.len(), 0);
        assert!(party.client.circuits.values().all(|circuit| circuit.streams.is_empty() && circuit.is_idle()));
    });
}

#[test]
fn a_question_is_answered() {
    let mut net = Net::ready(3, 2);
    let host = Host::parse("umbel.test").unwrap();
    let stream = net.client(|party, now, _| party.client.resolve(now, host, IsolationKey([1; 32])));
    let answers = net.wait(5, |party| Some(core::mem::take(&mut party.seen(stream).answers)).filter(|a| !a.is_empty()));
    assert_eq!(answers, [Answer::Ip([192, 0, 2, 7].into())]);
    net.client(|party, _, _| assert_eq!(party.client.requests.len(), 0));
}

#[test]
fn streams_share_a_circuit_if_and_only_if_they_share_their_isolation() {
    let mut net = Net::ready(4, 2);
    let streams: Vec<_> = [1, 1, 2, 3, 3, 2, 1].into_iter().map(|key| (key, net.connected(key))).collect();
    for (key, stream) in &streams {
        for (other_key, other) in &streams {
            assert_eq!(net.circuit_of(*stream) == net.circuit_of(*other), key == other_key);
        }
    }
    // Two more circuits are spare.
    net.pass(5);
    net.client(|party, _, _| {
        assert_eq!(party.client.circuits.values().filter(|circuit| circuit.is_open()).count(), 5);
    });
}

#[test]
fn a_request_before_there_is_a_circuit_waits_for_one() {
    let mut net = Net::new(5, 2);
    let stream = net.open(1);
    net.pass(2);
    net.give_consensus(NOW);
    net.wait(5, |party| party.seen(stream).connected);
}

#[test]
fn without_a_consensus_a_request_fails_in_time() {
    let mut net = Net::new(6, 2);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 31), StreamFailure::NoConsensus);
}

#[test]
fn an_expired_consensus_fails_requests_until_there_is_a_newer_one() {
    let mut net = Net::ready(7, 2);
    let before = net.connected(1);
    net.pass(VALID);
    let waiting = net.open(2);
    assert_eq!(net.closed(waiting, 2), StreamFailure::ConsensusExpired);
    net.client(|party, _, _| {
        assert!(party.expired);
        assert_eq!(party.client.circuits.len(), 1, "only the circuit with a stream stays open");
        assert_eq!(party.seen(before).closed, None);
    });
    net.give_consensus(NOW);
    net.connected(2);
}

#[test]
fn what_one_exit_forbids_is_tried_at_another() {
    let mut net = Net::ready(8, 2);
    let first = net.relays[&key(1).id()];
    net.relay(first, |party| party.serves = Serves::Refuses(EndReason::Policy));
    for isolation in 0..8 {
        let stream = net.connected(isolation);
        assert_eq!(net.path_of(stream)[2], key(2).id());
    }
}

#[test]
fn what_every_exit_forbids_has_no_exit() {
    let mut net = Net::ready(9, 2);
    net.serve(Serves::Refuses(EndReason::Policy));
    let no_exit = StreamFailure::NoPath(PathError::NoExit);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 10), no_exit);
    let stream = net.client(|party, now, _| party.client.open(now, target(7), IsolationKey([1; 32])));
    assert_eq!(net.closed(stream, 1), no_exit);
}

#[test]
fn what_the_target_refuses_is_not_tried_elsewhere() {
    let mut net = Net::ready(10, 2);
    net.serve(Serves::Refuses(EndReason::Refused));
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 1), StreamFailure::Ended(EndReason::Refused));
}

#[test]
fn a_target_that_does_not_answer_times_out_while_its_circuit_lives() {
    let mut net = Net::ready(11, 2);
    net.serve(Serves::Nothing);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 21), StreamFailure::Ended(EndReason::TimedOut));
    net.client(|party, _, _| assert_eq!(party.built.len(), 3, "one circuit was used and one more built ahead"));
}

#[test]
fn when_any_relay_vanishes_the_download_fails_and_the_next_request_succeeds_within_five_seconds() {
    for seed in 100..190 {
        let mut net = Net::ready(seed, 3);
        net.serve(Serves::Flood);
        let stream = net.connected(1);
        net.wait(5, |party| (party.seen(stream).bytes.len() > 100_000).then_some(()));
        let hop = usize::try_from(seed % 3).unwrap();
        let victim = net.path_of(stream)[hop];
        let node = net.relays[&victim];
        net.world.vanish(node);
        // Before and after detection of the loss.
        if seed % 2 == 0 {
            net.closed(stream, 25);
        }
        let began = net.world.now();
        let next = net.open(1);
        let connected = net.wait(30, |party| party.seen(next).connected);
        let took = connected.since(began);
        assert!(took <= Duration::from_secs(5), "{took:?}, hop {hop}, seed {seed}");
        assert!(!net.path_of(next).contains(&victim), "seed {seed}");
        if seed % 2 == 1 {
            assert_eq!(net.closed(stream, 25), StreamFailure::Ended(EndReason::Reset), "seed {seed}");
        }
        net.client(|party, _, _| assert!(!party.seen(stream).finished, "never a clean end"));
    }
}

#[test]
fn a_circuit_takes_no_new_streams_ten_minutes_after_its_first() {
    let mut net = Net::ready(12, 2);
    let first = net.connected(1);
    net.pass(590);
    let second = net.connected(1);
    assert_eq!(net.circuit_of(first), net.circuit_of(second));
    net.pass(12);
    let third = net.connected(1);
    assert_ne!(net.circuit_of(first), net.circuit_of(third));
    // The old circuit stays only while it carries streams.
    let old = net.circuit_of(first);
    net.pass(60);
    for stream in [first, second] {
        net.client(|party, _, _| {
            assert!(party.client.circuits.contains_key(&old));
            party.client.reset(stream, EndReason::Reset);
        });
        net.pass(2);
    }
    net.client(|party, _, _| assert!(!party.client.circuits.contains_key(&old)));
}

#[test]
fn builds_that_fail_are_tried_four_times_and_then_given_up() {
    let mut net = Net::ready(13, 1);
    net.client(|party, _, _| {
        let circuits: Vec<_> = party.client.circuits.keys().copied().collect();
        for circuit in circuits {
            party.client.circuits.get_mut(&circuit).unwrap().close();
            party.client.touch(circuit);
        }
    });
    // The only exit has vanished, so no circuit can be built.
    let exit = net.relays[&key(1).id()];
    net.world.vanish(exit);
    let before = net.client(|party, _, _| party.client.next_circuit);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 30), StreamFailure::NoCircuit);
    let begun = net.client(|party, _, _| party.client.next_circuit) - before;
    assert!(begun <= 4 * 3, "{begun} circuits were begun");
}

#[test]
fn a_request_whose_guards_are_all_unreachable_fails_with_that_reason() {
    let mut net = Net::new(42, 2);
    for relay in net.relays.values().copied().collect::<Vec<_>>() {
        net.world.vanish(relay);
    }
    net.give_consensus(NOW);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 31), StreamFailure::GuardUnreachable);
}

#[test]
fn a_network_with_too_few_relays_is_not_reported_as_a_policy() {
    let mut net = Net::new(43, 2);
    net.listed.truncate(2);
    net.give_consensus(NOW);
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 1), StreamFailure::NoPath(PathError::TooFewRelays));
}

#[test]
fn the_guard_stays_when_circuits_fail_beyond_it() {
    let mut net = Net::ready(14, 1);
    let guard = net.client(|party, _, _| party.built[0][0]);
    let exit = net.relays[&key(1).id()];
    if guard == key(1).id() {
        return;
    }
    net.world.vanish(exit);
    let stream = net.open(1);
    net.closed(stream, 60);
    net.client(|party, _, _| {
        assert!(party.client.circuits.values().all(|circuit| circuit.guard() == Some(guard)));
    });
}

#[test]
fn more_requests_than_fit_are_refused_at_once() {
    let mut net = Net::new(15, 2);
    let most = net.client(|party, _, _| party.client.parameters.streams);
    let last = net.client(|party, now, _| {
        (0..=most).map(|_| party.client.open(now, target(443), IsolationKey([1; 32]))).last().unwrap()
    });
    assert_eq!(net.closed(last, 1), StreamFailure::LimitReached);
}

#[test]
fn a_hundred_streams_at_once_are_all_served() {
    let mut net = Net::ready(16, 2);
    let streams: Vec<_> = (0..100).map(|number| net.open(number % 8)).collect();
    net.wait(10, |party| {
        streams
            .iter()
            .all(|stream| party.streams.get(stream).is_some_and(|seen| seen.connected.is_some()))
            .then_some(())
    });
}

#[test]
fn a_pause_between_builds_is_over_though_nothing_can_be_built() {
    let mut net = Net::new(17, 2);
    net.client(|party, _, _| party.client.parameters.building = 0);
    net.give_consensus(NOW);
    net.open(1);
    net.client(|party, now, _| {
        party.client.attempts.handle_failed(now, now, None);
        assert!(party.client.poll_timeout().unwrap() <= now.after(Duration::from_millis(50)));
    });
    net.pass(1);
    net.client(|party, now, _| assert!(party.client.poll_timeout().unwrap() > now));
}

#[test]
fn a_guard_that_destroys_circuits_over_an_open_channel_stays_the_guard() {
    let mut net = Net::ready(18, 2);
    let guard = net.client(|party, _, _| party.built[0][0]);
    for isolation in 0..3 {
        net.open(isolation);
        let destroyed = net.client(|party, now, rng| {
            let building: Vec<_> =
                party.client.circuits.iter().filter(|(_, pooled)| pooled.is_building()).map(|(id, _)| *id).collect();
            for id in &building {
                let pooled = party.client.circuits.get_mut(id).unwrap();
                let Stage::Circuit { origin, .. } = &pooled.stage else { panic!("the channel is open") };
                assert_eq!(pooled.hop_times.len(), 0);
                let destroy = crate::wire::Cell::destroy(origin.circuit());
                pooled.handle_cell(now, destroy, rng);
                party.client.touch(*id);
            }
            building.len()
        });
        assert!(destroyed > 0, "seed {}", net.seed);
        net.pass(5);
    }
    net.client(|party, _, _| {
        assert!(party.built.len() > 2);
        assert!(party.built.iter().all(|path| path[0] == guard));
    });
}

#[test]
fn a_first_hop_that_is_built_shows_the_guard_to_be_reachable() {
    let mut net = Net::ready(19, 2);
    let guard = net.client(|party, _, _| party.built[0][0]);
    net.open(1);
    net.client(|party, now, _| {
        assert!(party.client.circuits.values().any(Pooled::is_building));
        party.client.guards.handle_unreachable(now, &guard);
    });
    net.wait(5, |party| (party.built.len() == 3).then_some(()));
    net.open(2);
    let next = net.wait(5, |party| party.built.get(3).cloned());
    assert_eq!(next[0], guard);
}

#[test]
fn a_circuit_never_used_ends_when_it_is_old_whatever_it_was_made_for() {
    let mut net = Net::ready(20, 2);
    let made = net.client(|party, _, _| {
        party.client.parameters.spare_age = Duration::from_secs(10);
        let (id, pooled) = party.client.circuits.iter_mut().next().unwrap();
        pooled.isolation = Some(IsolationKey([1; 32]));
        *id
    });
    net.pass(12);
    net.client(|party, _, _| assert!(!party.client.circuits.contains_key(&made)));
}

#[test]
fn a_circuit_over_a_relay_no_longer_listed_takes_no_new_stream() {
    let mut net = Net::ready(21, 3);
    let before = net.connected(1);
    let (circuit, middle) = (net.circuit_of(before), net.path_of(before)[1]);
    net.listed.retain(|relay| relay.identity() != middle);
    net.give_consensus(NOW);
    net.pass(2);
    let after = net.connected(1);
    assert_ne!(net.circuit_of(after), circuit);
    assert!(!net.path_of(after).contains(&middle));
    net.client(|party, _, _| assert_eq!(party.seen(before).closed, None));
}

#[test]
fn a_circuit_that_had_no_room_for_a_request_is_not_asked_again() {
    let mut net = Net::ready(22, 2);
    net.serve(Serves::Refuses(EndReason::ResourceLimit));
    let stream = net.open(1);
    assert_eq!(net.closed(stream, 10), StreamFailure::Ended(EndReason::ResourceLimit));
    let used =
        net.client(|party, _, _| party.client.circuits.values().filter(|pooled| pooled.first_used.is_some()).count());
    assert_eq!(used, usize::from(requests::MAX_TRIES));
}

impl Net {
    fn delegate(&mut self, not_by: &[RelayId], isolation: u8) -> ClientStream {
        let not_by = not_by.to_vec();
        self.client(|party, now, _| {
            let delegation = Delegation::Search(engine());
            party.client.delegate(now, delegation, not_by, IsolationKey([isolation; 32]))
        })
    }

    fn offering(&self) -> Vec<RelayId> {
        self.listed.iter().filter(|relay| !relay.profile.offer.is_empty()).map(ConsensusRelay::identity).collect()
    }

    /// The exit of a delegated request, and whether it carries streams too.
    fn delegated(&mut self, stream: ClientStream) -> (RelayId, bool) {
        let (path, shared_exit) = self.wait(5, |party| party.seen(stream).delegated.clone());
        (path[2], shared_exit)
    }

    /// Sends a query and receives the exit's echo.
    fn ask(&mut self, stream: ClientStream) {
        self.client(|party, now, _| {
            assert_eq!(party.client.write(now, stream, b"query"), 5);
            party.client.finish(stream);
        });
        self.wait(5, |party| {
            let seen = party.seen(stream);
            (seen.finished && seen.bytes == b"query").then_some(())
        });
    }
}

#[test]
fn a_request_goes_over_a_circuit_of_its_own_that_ends_with_it() {
    let mut net = Net::ready(31, 2);
    let first = net.delegate(&[], 1);
    net.delegated(first);
    let circuit = net.circuit_of(first);
    let second = net.delegate(&[], 1);
    net.delegated(second);
    assert_ne!(net.circuit_of(second), circuit, "the same isolation, another circuit");
    let stream = net.connected(1);
    assert_ne!(net.circuit_of(stream), circuit);
    net.ask(first);
    net.ask(second);
    net.wait(5, |party| (!party.client.circuits.contains_key(&circuit)).then_some(()));
}

#[test]
fn a_request_avoids_exits_that_carry_streams_while_there_is_another() {
    let mut net = Net::ready(32, 2);
    let stream = net.connected(1);
    let busy = net.path_of(stream)[2];
    for isolation in 2..8 {
        let request = net.delegate(&[], isolation);
        let (exit, shared_exit) = net.delegated(request);
        assert_ne!(exit, busy);
        assert!(!shared_exit);
        net.ask(request);
    }
    // The other exit is excluded, so this one is the only choice.
    let other = net.offering().into_iter().find(|relay| *relay != busy).unwrap();
    let request = net.delegate(&[other], 9);
    assert_eq!(net.delegated(request), (busy, true));
}

#[test]
fn a_request_that_no_other_exit_offers_fails_at_once() {
    let mut net = Net::ready(33, 2);
    let both = net.offering();
    assert_eq!(both.len(), 2);
    let request = net.delegate(&both, 1);
    assert_eq!(net.closed(request, 1), StreamFailure::NoPath(PathError::NotOffered));
}

#[test]
fn circuits_for_requests_are_kept_ready_and_carry_no_streams() {
    let mut net = Net::ready(34, 2);
    net.client(|party, _, _| party.client.keep_ready(Delegation::Search(engine()), 3));
    net.wait(5, |party| (party.built.len() == 5).then_some(()));
    for isolation in 1..4 {
        net.connected(isolation);
    }
    let request = net.delegate(&[], 9);
    let asked = net.client(|_, now, _| now);
    net.delegated(request);
    assert_eq!(net.client(|_, now, _| now), asked, "a circuit was ready");
}

#[test]
fn if_only_the_guard_is_not_avoided_no_circuit_is_kept_ready_and_a_request_has_its_own() {
    let mut net = Net::ready(36, RELAYS);
    let carrying = |net: &mut Net| {
        net.client(|party, _, _| {
            let circuits = party.client.circuits.values();
            circuits.filter(|pooled| pooled.has_carried_streams()).filter_map(Pooled::exit).collect::<Vec<_>>()
        })
    };
    let guard = net.client(|party, _, _| party.built[0][0]);
    let others: Vec<_> = net.offering().into_iter().filter(|relay| *relay != guard).collect();
    let mut isolation = 0;
    while !others.iter().all(|exit| carrying(&mut net).contains(exit)) {
        isolation += 1;
        net.connected(isolation);
    }
    assert!(!carrying(&mut net).contains(&guard));
    let before = net.client(|party, _, _| party.built.len());
    net.client(|party, _, _| party.client.keep_ready(Delegation::Search(engine()), 3));
    net.pass(20);
    let built = net.client(|party, _, _| party.built.len());
    assert!(built <= before + 2, "{} circuits that no request would use", built - before);
    let request = net.delegate(&[], 200);
    let (exit, shared_exit) = net.delegated(request);
    assert!(exit != guard && shared_exit);
    net.ask(request);
}

#[test]
fn a_stream_avoids_exits_that_performed_requests_while_there_is_another() {
    let mut net = Net::ready(35, 2);
    let request = net.delegate(&[], 1);
    let (asked, shared_exit) = net.delegated(request);
    assert!(!shared_exit);
    net.ask(request);
    for isolation in 2..8 {
        let stream = net.connected(isolation);
        assert_ne!(net.path_of(stream)[2], asked);
    }
    // The exits are separated now, and stay so.
    let request = net.delegate(&[], 9);
    assert_eq!(net.delegated(request), (asked, false));
}
