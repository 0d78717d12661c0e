//! Tests of a client with seven relays in a simulated network: the network, and the behaviour of its nodes.

use core::time::Duration;
use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::{
    crypto::OnionSecret,
    delegated::{Delegation, EngineName},
    directory::{
        Consensus, ConsensusRelay, Parameters, Profile,
        fixture::{NOW, VALID, consensus_at, exit_profile, key, listed},
    },
    handshake::OnionKeyring,
    path::PathError,
    relay::{ExitStream, Relay, RelayEvent, RelayParameters},
    sim::{LinkProperties, NodeId, World},
    stream::StreamEvent,
    wire::{EndReason, Host, ResolvedAnswer},
};

mod circuits;
mod delegated;
mod ends;
mod guards;
mod layer_two;
mod linking;
mod names;
mod planning;
mod streams;
mod volunteers;

const RELAYS: u16 = 7;

/// Seconds within which a retired circuit without a stream ends.
const LONGEST_END: u64 = 242;

/// The behaviour of an exit.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ExitBehaviour {
    /// Connects streams, echoes all bytes, and finishes a stream when the origin finishes it.
    Echo,
    /// Connects streams, and sends bytes continuously.
    Flood,
    /// Refuses streams with this reason.
    Refuses(EndReason),
    /// Answers no request.
    Nothing,
}

/// A relay, and the state of its streams.
struct RelayParty {
    relay: Relay,
    behaviour: ExitBehaviour,
    /// The open streams, with the bytes to echo.
    open: BTreeMap<ExitStream, Vec<u8>>,
    /// The number of received BEGINs.
    begun: usize,
    /// All cells received.
    received: Vec<linking::Received>,
}

impl RelayParty {
    fn work(&mut self) {
        while let Some(event) = self.relay.poll_event() {
            let RelayEvent::Stream(exit, event) = event else { continue };
            self.begun += usize::from(matches!(event, StreamEvent::Begin(_)));
            match event {
                StreamEvent::Begin(_) | StreamEvent::Resolve(_) if self.behaviour == ExitBehaviour::Nothing => {}
                StreamEvent::Begin(_) => match self.behaviour {
                    ExitBehaviour::Refuses(reason) => self.relay.handle_command(exit, StreamCommand::Reset(reason)),
                    _ => {
                        self.relay.handle_command(exit, StreamCommand::Connected(None));
                        self.open.insert(exit, Vec::new());
                    }
                },
                // The stream of a delegated request is open immediately.
                StreamEvent::Request(_) => drop(self.open.insert(exit, Vec::new())),
                StreamEvent::Resolve(_) => {
                    let answers = vec![ResolvedAnswer::Ip([192, 0, 2, 7].into())];
                    self.relay.handle_command(exit, StreamCommand::Resolved { ttl: 60, answers });
                }
                StreamEvent::Data(bytes) => {
                    self.relay.handle_command(exit, StreamCommand::Consumed(bytes.len()));
                    self.open.entry(exit).or_default().extend_from_slice(&bytes);
                }
                StreamEvent::Finished if self.behaviour == ExitBehaviour::Echo => {
                    self.send(exit);
                    self.relay.handle_command(exit, StreamCommand::Finish);
                }
                StreamEvent::Finished | StreamEvent::Writable => {}
                StreamEvent::Closed(_) => {
                    self.open.remove(&exit);
                }
                StreamEvent::Connected(_) | StreamEvent::Resolved { .. } => panic!("{event:?} at an exit"),
            }
        }
        for exit in self.open.keys().copied().collect::<Vec<_>>() {
            self.send(exit);
        }
    }

    fn send(&mut self, exit: ExitStream) {
        let Some(waiting) = self.open.get_mut(&exit) else { return };
        if self.behaviour == ExitBehaviour::Flood {
            let room = self.relay.room(exit);
            self.relay.write(exit, &vec![7; room]);
        } else if !waiting.is_empty() {
            let sent = self.relay.write(exit, waiting);
            waiting.drain(..sent);
        }
    }
}

/// The events of a request that the application received.
#[derive(Default)]
struct SeenEvents {
    connected: Option<Instant>,
    delegated: Option<(Vec<RelayId>, bool)>,
    bytes: Vec<u8>,
    finished: bool,
    answers: Vec<ResolvedAnswer>,
    closed: Option<StreamFailure>,
}

/// A client, and the events that it has emitted.
struct ClientParty {
    client: ClientMachine,
    streams: BTreeMap<ClientStream, SeenEvents>,
    built: Vec<Vec<RelayId>>,
    ready: usize,
    expired: bool,
    guards_changed: bool,
    dialled: Vec<RelayId>,
}

impl ClientParty {
    fn work(&mut self, now: Instant) {
        while let Some(event) = self.client.poll_event() {
            match event {
                ClientEvent::Ready => self.ready += 1,
                ClientEvent::CircuitBuilt { path, hop_times, .. } => {
                    assert_eq!(path.len(), hop_times.len());
                    self.built.push(path);
                }
                ClientEvent::GuardsChanged => self.guards_changed = true,
                ClientEvent::ConsensusExpired => self.expired = true,
                ClientEvent::Delegated { stream, path, hop_times, shared_exit } => {
                    assert_eq!(path.len(), hop_times.len());
                    let seen = self.seen(stream);
                    seen.connected = Some(now);
                    seen.delegated = Some((path, shared_exit));
                }
                ClientEvent::Stream(stream, event) => self.handle_stream(now, stream, event),
                ClientEvent::Failed(stream, failure) => self.close(stream, failure),
            }
        }
    }

    fn handle_stream(&mut self, now: Instant, stream: ClientStream, event: StreamEvent) {
        match event {
            StreamEvent::Connected(_) => self.seen(stream).connected = Some(now),
            StreamEvent::Resolved { answers, .. } => self.seen(stream).answers = answers,
            StreamEvent::Data(bytes) => {
                self.seen(stream).bytes.extend_from_slice(&bytes);
                self.client.handle_command(stream, StreamCommand::Consumed(bytes.len()));
            }
            StreamEvent::Finished => self.seen(stream).finished = true,
            StreamEvent::Writable => {}
            StreamEvent::Closed(reason) => self.close(stream, StreamFailure::Ended(reason)),
            StreamEvent::Begin(_) | StreamEvent::Resolve(_) | StreamEvent::Request(_) => {
                panic!("{event:?} at an origin")
            }
        }
    }

    fn close(&mut self, stream: ClientStream, failure: StreamFailure) {
        let seen = self.seen(stream);
        assert_eq!(seen.closed, None, "closed twice");
        seen.closed = Some(failure);
    }

    fn seen(&mut self, stream: ClientStream) -> &mut SeenEvents {
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
        if let Self::Relay(party) = self
            && party.behaviour == ExitBehaviour::Echo
        {
            party.received.extend(linking::cells(now, &event));
        }
        self.core().handle_link(now, event, rng);
    }

    fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.core().handle_timeout(now, rng);
    }

    fn handle_batch_end(&mut self, now: Instant, rng: &mut dyn CryptoRng) {
        self.core().handle_batch_end(now, rng);
    }

    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit> {
        let mut transmit = self.core().poll_transmit(now, rng);
        if transmit.is_none() {
            match self {
                Self::Client(party) => party.work(now),
                Self::Relay(party) => party.work(),
            }
            self.core().handle_batch_end(now, rng);
            transmit = self.core().poll_transmit(now, rng);
        }
        if let (Self::Client(party), Some(Transmit::Dial(target))) = (self, &transmit) {
            party.dialled.push(target.relay);
        }
        transmit
    }

    fn poll_timeout(&self) -> Option<Instant> {
        match self {
            Self::Client(party) => party.client.poll_timeout(),
            Self::Relay(party) => party.relay.poll_timeout(),
        }
    }
}

/// A simulated network of a client and relays.
struct Net {
    seed: u64,
    world: World<Party>,
    client: NodeId,
    relays: BTreeMap<RelayId, NodeId>,
    listed: Vec<ConsensusRelay>,
}

impl Net {
    /// A network with seven relays, of which the first `exits` are exits. The client has no consensus yet.
    fn new(seed: u64, exits: u16) -> Self {
        let properties = LinkProperties { delay: Duration::from_millis(5), ..LinkProperties::default() };
        let mut world = World::new(seed, properties);
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
            let open = BTreeMap::new();
            let party = RelayParty { relay, behaviour: ExitBehaviour::Echo, open, begun: 0, received: Vec::new() };
            world.place(node, Party::Relay(Box::new(party)));
        }
        let listed: Vec<_> = all.into_iter().map(|profile: Profile| listed(profile)).collect();
        let party = ClientParty {
            client: ClientMachine::new(ClientParameters::default(), GuardSample::default()),
            streams: BTreeMap::new(),
            built: Vec::new(),
            ready: 0,
            expired: false,
            guards_changed: false,
            dialled: Vec::new(),
        };
        world.place(client, Party::Client(Box::new(party)));
        let mut net = Self { seed, world, client, relays, listed };
        let consensus = net.consensus();
        for node in net.relays.values().copied().collect::<Vec<_>>() {
            net.relay(node, |party| party.relay.set_consensus(Arc::clone(&consensus)));
        }
        net
    }

    /// The network of [`Self::new`], in which the client has built its spare circuits.
    fn ready(seed: u64, exits: u16) -> Self {
        let mut net = Self::new(seed, exits);
        net.give_consensus(NOW);
        // The second one is built after a random delay.
        net.wait(35, |party| (party.built.len() == 2).then_some(()));
        net
    }

    /// The network of [`Self::ready`], in which all exits refuse streams, and a stream of isolation 1.
    fn refusing(seed: u64, exits: u16, reason: EndReason) -> (Self, ClientStream) {
        let mut net = Self::ready(seed, exits);
        net.set_behaviour(ExitBehaviour::Refuses(reason));
        let stream = net.open(1);
        (net, stream)
    }

    fn consensus(&self) -> Arc<Consensus> {
        Arc::new(consensus_at(NOW, self.listed.clone(), &Parameters::default()).0)
    }

    fn give_consensus(&mut self, wall: WallTime) {
        let consensus = self.consensus();
        self.client(|party, now, rng| party.client.set_consensus(now, wall, consensus, rng));
    }

    /// Gives the client a consensus with these parameters.
    fn set_parameters(&mut self, parameters: &Parameters) {
        let consensus = Arc::new(consensus_at(NOW, self.listed.clone(), parameters).0);
        self.client(|party, now, rng| party.client.set_consensus(now, NOW, consensus, rng));
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

    /// Sets the behaviour of all exits.
    fn set_behaviour(&mut self, behaviour: ExitBehaviour) {
        for node in self.relays.values().copied().collect::<Vec<_>>() {
            self.relay(node, |party| party.behaviour = behaviour);
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
        self.client(|party, now, _| party.client.open(now, target(443), Isolation([isolation; 32])))
    }

    /// Opens streams of further isolations until no spare circuit remains. Returns the circuit that is being built.
    fn building(&mut self) -> PooledCircuitKey {
        (200..=250)
            .find_map(|isolation| {
                self.open(isolation);
                self.client(|party, _, _| {
                    let mut circuits = party.client.pool.circuits();
                    let found = circuits.find(|(_, it)| it.is_building() && it.endpoint().is_some());
                    found.map(|(key, _)| key)
                })
            })
            .expect("a circuit is being built")
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
        let circuit = self.circuit_of(stream);
        self.client(|party, _, _| party.client.pool.circuit(circuit).unwrap().relays())
    }

    fn circuit_of(&mut self, stream: ClientStream) -> PooledCircuitKey {
        self.client(|party, _, _| party.client.placement.position(stream).unwrap().circuit)
    }
}

fn engine() -> EngineName {
    EngineName::parse("test").unwrap()
}

fn target(port: u16) -> Target {
    Target { host: Host::parse("example.org").unwrap(), port }
}

impl Net {
    fn delegate(&mut self, excluded_exits: &[RelayId], isolation: u8) -> ClientStream {
        let excluded_exits = excluded_exits.to_vec();
        self.client(|party, now, _| {
            let delegation = Delegation::Search(engine());
            party.client.delegate(now, delegation, excluded_exits, Isolation([isolation; 32]))
        })
    }

    fn offering(&self) -> Vec<RelayId> {
        self.listed.iter().filter(|relay| !relay.profile.offer.is_empty()).map(ConsensusRelay::identity).collect()
    }

    /// The exit of a delegated request, and whether the exit carries streams too.
    fn delegated(&mut self, stream: ClientStream) -> (RelayId, bool) {
        let (path, shared_exit) = self.wait(5, |party| party.seen(stream).delegated.clone());
        (path[2], shared_exit)
    }

    /// Sends a query and waits for the exit's echo.
    fn send_query(&mut self, stream: ClientStream) {
        self.client(|party, _, _| {
            assert_eq!(party.client.write(stream, b"query"), 5);
            party.client.handle_command(stream, StreamCommand::Finish);
        });
        self.wait(5, |party| {
            let seen = party.seen(stream);
            (seen.finished && seen.bytes == b"query").then_some(())
        });
    }
}
