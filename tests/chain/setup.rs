//! A simulated network with a consensus of relays and an origin.

use core::time::Duration;
use std::sync::Arc;

use umbel::{
    base::{RelayId, WallTime},
    channel::{ChannelParameters, Channels, LocalRole},
    circuit::Origin,
    crypto::{IdentityKey, OnionSecret},
    directory::{Authority, AuthorityConfig, AuthorityEvent, Consensus, Descriptor, Profile, UnverifiedConsensus},
    flow::FlowParameters,
    handshake::{OnionKeyring, RelayKeys},
    relay::{Relay, RelayParameters},
    sim::{LinkProperties, NodeId, World},
    wire::{Host, Target},
};

use super::party::{OriginParty, Party, RelayParty, Tapped};

const TODAY: WallTime = WallTime::from_unix(1_800_000_000);
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// An origin and relays of one consensus.
pub(crate) struct Chain {
    pub(crate) world: World<Tapped>,
    pub(crate) origin: NodeId,
    pub(crate) relays: Vec<NodeId>,
    pub(crate) keys: Vec<RelayKeys>,
    consensus: Arc<Consensus>,
}

impl Chain {
    /// An origin and `relays` exits, without links.
    pub(crate) fn new(seed: u64, relays: usize) -> Self {
        let parameters = RelayParameters { exit: true, ..RelayParameters::default() };
        Self::with(seed, relays, &parameters)
    }

    pub(crate) fn with(seed: u64, relays: usize, parameters: &RelayParameters) -> Self {
        Self::over(seed, LinkProperties::default(), relays, parameters)
    }

    pub(crate) fn over(seed: u64, paths: LinkProperties, relays: usize, parameters: &RelayParameters) -> Self {
        let mut world = World::new(seed, paths);
        let mut authority = Authority::new(IdentityKey::from_bytes(&[99; 32]), AuthorityConfig::testnet(relays));
        let (mut nodes, mut cores, mut keys) = (Vec::new(), Vec::new(), Vec::new());
        for number in 1..=u8::try_from(relays).unwrap() {
            let node = world.add_node(format!("10.0.{number}.1:4443").parse().unwrap(), true);
            let identity = IdentityKey::from_bytes(&[number; 32]);
            let onion_secret = OnionSecret::from_bytes([number + 100; 32]);
            let profile = profile(&world, node, &identity, &onion_secret);
            keys.push(profile.keys());
            let descriptor = Descriptor { profile, published: TODAY }.sign(&identity).unwrap();
            authority.handle_descriptor(TODAY, &descriptor, None).unwrap();
            let relay = Relay::new(Arc::new(identity), OnionKeyring::new(onion_secret, None), parameters.clone());
            nodes.push(node);
            cores.push(relay);
        }
        let consensus = Arc::new(publish(&mut authority));
        for (node, mut relay) in nodes.iter().zip(cores) {
            relay.set_consensus(Arc::clone(&consensus));
            world.place(*node, Tapped::new(Party::Relay(Box::new(RelayParty::new(relay)))));
        }
        let mut chain = Self { world, origin: NodeId(0), relays: nodes, keys, consensus };
        chain.origin = chain.add_origin("10.1.0.1:5000");
        chain
    }

    /// Adds another origin.
    pub(crate) fn add_origin(&mut self, address: &str) -> NodeId {
        let node = self.world.add_node(address.parse().unwrap(), false);
        let channels = Channels::new(LocalRole::Client, ChannelParameters::default());
        self.world.place(node, Tapped::new(Party::Origin(Box::new(OriginParty::new(channels)))));
        node
    }

    /// Opens a channel from `origin` to the first relay of `path`, and starts a circuit over `path`.
    pub(crate) fn start(&mut self, origin: NodeId, path: Vec<RelayKeys>) {
        let target = self.consensus.relay(&path[0].identity).unwrap().dial_target();
        self.world.with(origin, |tapped, now, _| tapped.origin().channels.connect(now, &target));
        let channel = self.world.run_until(TIMEOUT, |world| {
            world.with(origin, |tapped, now, _| tapped.origin().channels.connect(now, &target)).flatten()
        });
        let channel = channel.expect("a channel to the first hop");
        self.world.with(origin, |tapped, now, rng| {
            let party = tapped.origin();
            let circuit = party.channels.allocate_circuit(channel, rng).unwrap();
            let parameters = FlowParameters::default();
            let origin = Origin::start(now, path, circuit, parameters, Duration::from_secs(30), rng).unwrap();
            party.origin = Some((channel, origin));
        });
    }

    /// Builds a circuit for `origin` over the first `hops` relays.
    pub(crate) fn build(&mut self, origin: NodeId, hops: usize) {
        self.start(origin, self.keys[..hops].to_vec());
        let built = self.until(|chain| chain.origin_is(origin, |party| party.built || party.closed.is_some()));
        assert!(built && self.origin_is(origin, |party| party.built), "the circuit is built");
    }

    /// Begins the stream.
    pub(crate) fn begin(&mut self, origin: NodeId) {
        self.world.with(origin, |tapped, now, _| {
            let party = tapped.origin();
            let target = Target { host: Host::parse("example.org").unwrap(), port: 443 };
            party.stream = Some(party.origin.as_mut().unwrap().1.open(now, target).unwrap());
        });
    }

    pub(crate) fn connect(&mut self, origin: NodeId) {
        self.begin(origin);
        assert!(self.until(|chain| chain.origin_is(origin, |party| party.connected)), "the stream is connected");
    }

    /// Advances the simulation until `done`; returns `false` after [`TIMEOUT`].
    pub(crate) fn until(&mut self, mut done: impl FnMut(&mut Self) -> bool) -> bool {
        let end = self.world.now().after(TIMEOUT);
        while !done(self) {
            if !self.world.step(end) {
                return done(self);
            }
        }
        true
    }

    /// Advances the simulation by `time`.
    pub(crate) fn pass(&mut self, time: Duration) {
        let end = self.world.now().after(time);
        while self.world.step(end) {}
    }

    pub(crate) fn at_origin<T>(&mut self, origin: NodeId, action: impl FnOnce(&mut OriginParty) -> T) -> T {
        self.world.with(origin, |tapped, _, _| action(tapped.origin())).unwrap()
    }

    pub(crate) fn origin_is(&mut self, origin: NodeId, test: impl FnOnce(&OriginParty) -> bool) -> bool {
        self.at_origin(origin, |party| test(party))
    }

    pub(crate) fn at_relay<T>(&mut self, number: usize, action: impl FnOnce(&mut RelayParty) -> T) -> T {
        self.world.with(self.relays[number - 1], |tapped, _, _| action(tapped.relay())).unwrap()
    }

    pub(crate) fn unlisted(&self) -> RelayKeys {
        RelayKeys { identity: RelayId::from_bytes([222; 32]), ..self.keys[0] }
    }
}

fn profile(world: &World<Tapped>, node: NodeId, identity: &IdentityKey, onion_secret: &OnionSecret) -> Profile {
    let target = world.network().dial_target(node, identity.id()).unwrap();
    Profile {
        identity: identity.id(),
        addresses: target.addresses,
        ice_ufrag: target.ice_ufrag,
        ice_password: target.ice_password,
        fingerprint: target.fingerprint,
        onion_key: onion_secret.public(),
        family: Vec::new(),
        operator: String::new(),
        exit: Default::default(),
        offer: Default::default(),
        version: "umbel".into(),
    }
}

/// Reports every relay to the authority as proved, and returns the published consensus.
fn publish(authority: &mut Authority) -> Consensus {
    let id = authority.id();
    while let Some(event) = authority.poll_event() {
        match event {
            AuthorityEvent::Prove(target) => authority.handle_proof(TODAY, &target, Ok(())),
            AuthorityEvent::Publish(signed) => {
                let unverified = UnverifiedConsensus::decode(signed.as_bytes()).unwrap();
                return unverified.verify(&[id], TODAY, None).unwrap();
            }
            AuthorityEvent::PublishVolunteers(_)
            | AuthorityEvent::StoreRecord { .. }
            | AuthorityEvent::DeleteRecord(_) => {}
        }
    }
    panic!("the authority did not publish");
}
