//! A relay in memory that switches circuits between a client and a next hop, for the benchmarks.

use std::sync::Arc;

use rand::{SeedableRng, rngs::ChaCha20Rng};
use umbel::{
    base::{
        CircuitId, HopIndex, Instant, LANES, Lane, LinkEvent, LinkId, LinkMachine, LinkOpened, Rate, Redacted, RelayId,
        Slots, Transmit, WallTime,
    },
    channel::{ChannelEvent, ChannelParameters, Channels, LocalRole},
    crypto::{IdentityKey, LayerKey, OnionSecret},
    directory::{Authority, AuthorityConfig, AuthorityEvent, Consensus, Descriptor, Profile, UnverifiedConsensus},
    handshake::{ClientHandshake, HopKeys, OnionKeyring, RelayKeys},
    onion::{OriginLayers, message_capacity},
    relay::{Relay, RelayParameters},
    wire::{Cell, CellBody, Command, Fragments, RelayMessage, create_cells, encode_extend, split},
};

/// Room of each link, practically unlimited.
const ROOM: usize = usize::MAX >> 1;
/// Cells of each circuit per batch. One message holds a batch.
pub(crate) const CELLS: usize = 16;
const NOW: WallTime = WallTime::from_unix(1_800_000_000);
pub(crate) const PREVIOUS: LinkId = LinkId(1);
pub(crate) const NEXT: LinkId = LinkId(2);

pub(crate) fn second_hop() -> HopIndex {
    HopIndex::new(2).unwrap()
}

/// A relay that switches circuits between a client and a next hop.
pub(crate) struct BenchRelay {
    pub(crate) rng: ChaCha20Rng,
    pub(crate) relay: Relay,
    keys: RelayKeys,
    client: Channels,
    next: Channels,
    next_id: RelayId,
    /// The circuits: the identifier towards the client, the client's layers, the identifier towards the next hop.
    pub(crate) circuits: Vec<(CircuitId, OriginLayers, CircuitId)>,
}

fn profile(key: &IdentityKey, onion: &OnionSecret) -> Profile {
    Profile {
        identity: key.id(),
        addresses: vec!["10.0.0.1:4443".parse().unwrap()],
        ice_ufrag: "ufrag".into(),
        ice_password: "passwordpasswordpassword".into(),
        fingerprint: [1; 32],
        onion_key: onion.public(),
        family: Vec::new(),
        operator: String::new(),
        exit: Default::default(),
        offer: Default::default(),
        version: "umbel".into(),
    }
}

fn consensus(relay: &IdentityKey, onion: &OnionSecret) -> Consensus {
    let mut authority = Authority::new(IdentityKey::from_bytes(&[9; 32]), AuthorityConfig::testnet(1));
    let id = authority.id();
    let descriptor = Descriptor { profile: profile(relay, onion), published: NOW }.sign(relay).unwrap();
    authority.handle_descriptor(NOW, &descriptor, None).unwrap();
    while let Some(event) = authority.poll_event() {
        match event {
            AuthorityEvent::Prove(target) => authority.handle_proof(NOW, &target, Ok(())),
            AuthorityEvent::Publish(signed) => {
                return UnverifiedConsensus::decode(signed.as_bytes()).unwrap().verify(&[id], NOW, None).unwrap();
            }
            _ => {}
        }
    }
    panic!("no consensus");
}

fn opened(link: LinkId, dialled: Option<RelayId>) -> LinkEvent {
    let [local, peer] = if dialled.is_some() { [1, 2] } else { [2, 1] };
    let peer_address = Redacted("192.0.2.1:4443".parse().unwrap());
    let opened = LinkOpened {
        dialled,
        local_certificate: [local; 32],
        peer_certificate: [peer; 32],
        peer_address,
        lanes: LANES,
    };
    LinkEvent::Opened { link, opened }
}

pub(crate) fn message(circuit: CircuitId, bodies: impl Iterator<Item = CellBody>) -> (Lane, Slots) {
    let message = bodies.map(|body| Cell::new(circuit, Command::Relay, body).encode()).collect();
    (Lane::new((circuit.value() % u32::from(LANES)) as u8).unwrap(), message)
}

impl BenchRelay {
    pub(crate) fn new(circuits: usize) -> Self {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let (identity, next) = (IdentityKey::from_bytes(&[1; 32]), IdentityKey::from_bytes(&[2; 32]));
        let onion = OnionSecret::generate(&mut rng);
        let keys = RelayKeys { identity: identity.id(), onion_key: onion.public() };
        let list = consensus(&next, &onion);
        // The time of the benchmark stands still.
        let circuit_handshakes = Rate { per_second: 1, burst: 1_000_000 };
        let parameters = RelayParameters { circuit_handshakes, ..RelayParameters::default() };
        let mut relay = Relay::new(Arc::new(identity), OnionKeyring::new(onion, None), parameters);
        relay.set_consensus(Arc::new(list));
        let next_id = next.id();
        let mut bench = Self {
            rng,
            relay,
            keys,
            client: Channels::new(LocalRole::Client, ChannelParameters::default()),
            next: Channels::new(LocalRole::Relay(Arc::new(next)), ChannelParameters::default()),
            next_id,
            circuits: Vec::new(),
        };
        bench.open_links();
        (0..circuits).for_each(|_| bench.build());
        bench
    }

    fn open_links(&mut self) {
        let (now, rng) = (Instant::START, &mut self.rng);
        self.client.handle_link(now, opened(PREVIOUS, Some(self.keys.identity)), rng);
        self.relay.handle_link(now, opened(PREVIOUS, None), rng);
        self.relay.handle_link(now, opened(NEXT, Some(self.next_id)), rng);
        self.next.handle_link(now, opened(NEXT, None), rng);
        for link in [PREVIOUS, NEXT] {
            let room = LinkEvent::Room { link, bytes: ROOM };
            self.relay.handle_link(now, room.clone(), rng);
            let neighbour = if link == PREVIOUS { &mut self.client } else { &mut self.next };
            neighbour.handle_link(now, room, rng);
        }
        self.deliver();
    }

    /// Delivers messages in both directions until there are none.
    fn deliver(&mut self) {
        let (now, rng) = (Instant::START, &mut self.rng);
        loop {
            let mut idle = true;
            self.relay.handle_batch_end(now, rng);
            while let Some(transmit) = self.relay.poll_transmit(now, rng) {
                let Transmit::Message { link, lane, message } = transmit else { panic!("{transmit:?}") };
                let neighbour = if link == PREVIOUS { &mut self.client } else { &mut self.next };
                neighbour.handle_link(now, LinkEvent::Message { link, lane, message }, rng);
                idle = false;
            }
            for neighbour in [&mut self.client, &mut self.next] {
                while let Some(Transmit::Message { link, lane, message }) = neighbour.poll_transmit(now) {
                    self.relay.handle_link(now, LinkEvent::Message { link, lane, message }, rng);
                    idle = false;
                }
            }
            if idle {
                return;
            }
        }
    }

    fn cell_of(channels: &mut Channels) -> Cell {
        let mut events = core::iter::from_fn(|| channels.poll_event());
        events.find_map(|event| if let ChannelEvent::Cell { cell, .. } = event { Some(cell) } else { None }).unwrap()
    }

    /// Builds one circuit through the relay; the next hop returns an arbitrary answer, which the relay can't verify.
    fn build(&mut self) {
        let channel = self.client.lookup(&self.keys.identity).unwrap();
        let circuit = self.client.allocate_circuit(channel, &mut self.rng).unwrap();
        let (handshake, request) = ClientHandshake::start(&self.keys, HopIndex::FIRST, &[], &mut self.rng).unwrap();
        let cell = create_cells(circuit, HopIndex::FIRST, &request).unwrap().remove(0);
        self.client.send(channel, cell).unwrap();
        self.deliver();
        let created = Self::cell_of(&mut self.client);
        let reply = Fragments::new().push(created.body()).unwrap().unwrap();
        let mut layers = OriginLayers::new();
        layers.push(handshake.finish(&reply).unwrap().keys).unwrap();
        let fragment = split(&encode_extend(&self.next_id, &[7; 100]), 500).unwrap().remove(0);
        let (mut plain, mut body) = (Vec::new(), CellBody::zero());
        RelayMessage::Extend { fragment: fragment.into() }.encode(&mut plain).unwrap();
        layers.seal_message(HopIndex::FIRST, &plain, &mut body).unwrap();
        self.client.send(channel, Cell::new(circuit, Command::Relay, body)).unwrap();
        self.deliver();
        let next_circuit = Self::cell_of(&mut self.next).circuit().unwrap();
        let mut created = CellBody::zero();
        created[..3].copy_from_slice(&[0, 1, 7]);
        let channel = self.next.lookup(&self.keys.identity).unwrap();
        self.next.send(channel, Cell::new(next_circuit, Command::Created, created)).unwrap();
        self.deliver();
        assert_eq!(Self::cell_of(&mut self.client).command(), Command::Relay);
        layers.push(keys(2)).unwrap();
        self.circuits.push((circuit, layers, next_circuit));
    }

    pub(crate) fn forward_messages(&mut self) -> Vec<(Lane, Slots)> {
        let plain = vec![7; message_capacity(second_hop())];
        let seal = |(circuit, layers, _): &mut (CircuitId, OriginLayers, CircuitId)| {
            let bodies = (0..CELLS).map(|_| {
                let mut body = CellBody::zero();
                layers.seal_message(second_hop(), &plain, &mut body).unwrap();
                body
            });
            message(*circuit, bodies)
        };
        self.circuits.iter_mut().map(seal).collect()
    }
}

pub(crate) fn keys(hop: u8) -> HopKeys {
    HopKeys { forward: LayerKey::from_bytes([hop; 32]), backward: LayerKey::from_bytes([hop | 0x80; 32]) }
}
