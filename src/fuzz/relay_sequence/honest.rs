//! The honest circuit: an origin, the relay as the first hop, and the next hop.

use bytes::Bytes;

use crate::{
    base::{CircuitId, HopIndex, LinkId, RelayId},
    channel::{ChannelId, LocalRole},
    crypto::OnionSecret,
    handshake::{ClientHandshake, OnionKeyring, RelayKeys, respond},
    onion::{ForwardContent, OriginLayers, RelayLayer},
    wire::{
        Cell, CellBody, Command, Fragments, RelayMessage, create_cells, created_cells, decode_create, encode_extend,
        split,
    },
};

use super::{NEXT, RelayWorld, encode, hop, id, relay_role};

/// The honest circuit: its endpoints on both channels, and the keys of both ends.
pub(super) struct HonestCircuit {
    origin: LinkId,
    at_origin: CircuitId,
    layers: OriginLayers,
    next: LinkId,
    at_next: CircuitId,
    layer: RelayLayer,
    /// The number of messages sent, from which the next message is made.
    sent: u8,
}

impl RelayWorld {
    /// Opens a link with an honest neighbour.
    fn open_honest(&mut self, role: LocalRole, dialled: Option<RelayId>, address: [u8; 4]) -> LinkId {
        let link = self.open(role, dialled, address, false);
        self.honest_links.push(link);
        self.settle();
        link
    }

    /// Sends a cell of an honest neighbour.
    fn send_honest(&mut self, link: LinkId, cell: Cell) {
        let channels = self.neighbours.channels(link).expect("an honest neighbour stays");
        channels.send(ChannelId(link), cell).expect("the queue is short");
    }

    /// Cells from the relay to an honest neighbour on a circuit since the last call.
    fn honest_cells(&mut self, link: LinkId, circuit: CircuitId) -> Vec<Cell> {
        let mut cells = self.neighbours.take_cells(link);
        cells.retain(|cell| cell.circuit() == Some(circuit));
        cells
    }

    /// Builds the honest circuit: the relay is the first hop, relay 2 the second.
    pub(super) fn build(&mut self) -> HonestCircuit {
        let origin = self.open_honest(LocalRole::Client, None, [192, 0, 2, 1]);
        let channels = self.neighbours.channels(origin).unwrap();
        let at_origin = channels.allocate_circuit(ChannelId(origin), &mut self.rng).unwrap();
        let mut layers = OriginLayers::new();
        let (handshake, request) = ClientHandshake::start(&self.keys, HopIndex::FIRST, &[], &mut self.rng).unwrap();
        for cell in create_cells(at_origin, HopIndex::FIRST, &request).unwrap() {
            self.send_honest(origin, cell);
        }
        self.settle();
        let created = self.honest_cells(origin, at_origin).remove(0);
        let reply = Fragments::new().push(created.body()).unwrap().unwrap();
        layers.push(handshake.finish(&reply).unwrap().keys).unwrap();

        let keyring = OnionKeyring::new(OnionSecret::from_bytes([4; 32]), None);
        let keys = RelayKeys { identity: id(NEXT), onion_key: keyring.public() };
        let (handshake, request) = ClientHandshake::start(&keys, hop(2), &[], &mut self.rng).unwrap();
        for fragment in split(&encode_extend(&id(NEXT), &request), 900).unwrap() {
            let message = encode(&RelayMessage::Extend { fragment: fragment.into() });
            let mut sealed = CellBody::zero();
            layers.seal_message(HopIndex::FIRST, &message, &mut sealed).unwrap();
            self.send_honest(origin, Cell::new(at_origin, Command::Relay, sealed));
        }
        self.settle();
        assert_eq!(core::mem::take(&mut self.neighbours.dials), [id(NEXT)]);
        let next = self.open_honest(relay_role(NEXT), Some(id(NEXT)), [198, 51, 100, 1]);
        let created = self.neighbours.take_cells(next);
        let at_next = created[0].circuit().unwrap();
        let mut fragments = Fragments::new();
        let request = created.iter().find_map(|cell| fragments.push(decode_create(cell.body()).unwrap().1).unwrap());
        let answer = respond(&id(NEXT), &keyring, hop(2), &request.unwrap(), &mut self.rng).unwrap();
        self.neighbours.channels(next).unwrap().admit_circuit(ChannelId(next), at_next);
        for cell in created_cells(at_next, &answer.reply).unwrap() {
            self.send_honest(next, cell);
        }
        self.settle();
        let mut fragments = Fragments::new();
        let mut reply = None;
        for cell in self.honest_cells(origin, at_origin) {
            let mut sealed = cell.into_body();
            let (from, length) = layers.open_backward(&mut sealed).unwrap();
            let message = RelayMessage::decode(&Bytes::copy_from_slice(&sealed[..length])).unwrap();
            let RelayMessage::Extended { fragment } = message else { panic!("no EXTENDED from {from:?}") };
            reply = fragments.push(&fragment).unwrap();
        }
        layers.push(handshake.finish(&reply.unwrap()).unwrap().keys).unwrap();
        HonestCircuit { origin, at_origin, layers, next, at_next, layer: RelayLayer::new(hop(2), answer.keys), sent: 0 }
    }

    /// Sends a message in each direction of the honest circuit. Each must arrive unaltered.
    pub(super) fn use_honest(&mut self, honest: &mut HonestCircuit) {
        honest.sent = honest.sent.wrapping_add(1);
        let message = [honest.sent; 64];
        let mut sealed = CellBody::zero();
        honest.layers.seal_message(hop(2), &message, &mut sealed).unwrap();
        self.send_honest(honest.origin, Cell::new(honest.at_origin, Command::Relay, sealed));
        self.settle();
        let arrived = self.honest_cells(honest.next, honest.at_next);
        assert_eq!(arrived.iter().map(Cell::command).collect::<Vec<_>>(), [Command::Relay], "forward");
        let mut opened = arrived.into_iter().next().unwrap().into_body();
        assert!(honest.layer.open_forward(&mut opened) == Ok(ForwardContent::Message));
        assert_eq!(opened[..message.len()], message);

        let mut sealed = CellBody::zero();
        honest.layer.seal_message(&message, &mut sealed).unwrap();
        self.send_honest(honest.next, Cell::new(honest.at_next, Command::Relay, sealed));
        self.settle();
        let arrived = self.honest_cells(honest.origin, honest.at_origin);
        assert_eq!(arrived.iter().map(Cell::command).collect::<Vec<_>>(), [Command::Relay], "backward");
        let mut opened = arrived.into_iter().next().unwrap().into_body();
        assert_eq!(honest.layers.open_backward(&mut opened).unwrap().0, hop(2));
        assert_eq!(opened[..message.len()], message);
    }
}
