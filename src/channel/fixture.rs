//! The neighbours of a machine without a network between them, for tests and fuzz targets.

use core::net::SocketAddr;
use std::collections::{BTreeMap, BTreeSet};

use rand::CryptoRng;

use super::{ChannelEvent, Channels, state::lane_of};
use crate::{
    base::{Instant, LANES, Lane, LinkEvent, LinkId, LinkMachine, LinkOpened, Redacted, RelayId, Slots, Transmit},
    wire::Cell,
};

/// The properties of a link from 192.0.2.9, with certificates of the repeated bytes `local` and `peer`.
pub(crate) fn opened(dialled: Option<RelayId>, local: u8, peer: u8) -> LinkOpened {
    LinkOpened {
        dialled,
        local_certificate: [local; 32],
        peer_certificate: [peer; 32],
        peer_address: Redacted(SocketAddr::from(([192, 0, 2, 9], 999))),
        lanes: LANES,
    }
}

/// The event of a message with only `cell`, in the lane of its circuit.
pub(crate) fn message(link: LinkId, cell: Cell) -> LinkEvent {
    let lane = cell.circuit().map_or(Lane::FIRST, |circuit| lane_of(circuit, LANES));
    LinkEvent::Message { link, lane, message: Slots::from_iter([cell.encode()]) }
}

/// A link to open.
pub(crate) struct NewLink {
    /// The relay that the machine dials; `None` if the neighbour dials the machine.
    pub(crate) dialled: Option<RelayId>,
    /// The address of the neighbour.
    pub(crate) address: SocketAddr,
    /// The bytes that each end may send.
    pub(crate) room: usize,
    /// Whether the neighbour sends nothing.
    pub(crate) is_silent: bool,
}

/// The other ends of a machine's links.
pub(crate) struct Neighbours {
    /// The machine, if it is a relay.
    machine: Option<RelayId>,
    channels: BTreeMap<LinkId, Channels>,
    last_link: u64,
    /// The relays that the machine has dialled.
    pub(crate) dials: Vec<RelayId>,
    /// The links that the machine has closed.
    pub(crate) closed: BTreeSet<LinkId>,
    /// The links whose other ends the machine has reported as listed, in order.
    pub(crate) listed: Vec<LinkId>,
    /// The cells that each neighbour has received.
    pub(crate) cells: BTreeMap<LinkId, Vec<Cell>>,
}

impl Neighbours {
    /// No neighbours of the relay `machine`, or of a client.
    pub(crate) const fn new(machine: Option<RelayId>) -> Self {
        Self {
            machine,
            channels: BTreeMap::new(),
            last_link: 0,
            dials: Vec::new(),
            closed: BTreeSet::new(),
            listed: Vec::new(),
            cells: BTreeMap::new(),
        }
    }

    /// Opens a link between the machine and a neighbour without channels.
    pub(crate) fn open(
        &mut self,
        now: Instant,
        machine: &mut impl LinkMachine,
        mut channels: Channels,
        link: &NewLink,
        rng: &mut dyn CryptoRng,
    ) -> LinkId {
        self.last_link += 1;
        let id = LinkId(self.last_link);
        let room = LinkEvent::Room { link: id, bytes: link.room };
        let here = LinkOpened { peer_address: Redacted(link.address), ..opened(link.dialled, 2, 1) };
        machine.handle_link(now, LinkEvent::Opened { link: id, opened: here }, rng);
        machine.handle_link(now, room.clone(), rng);
        if !link.is_silent {
            let dialled = if link.dialled.is_none() { self.machine } else { None };
            let there = opened(dialled, 1, 2);
            channels.handle_link(now, LinkEvent::Opened { link: id, opened: there }, rng);
            channels.handle_link(now, room, rng);
        }
        self.channels.insert(id, channels);
        id
    }

    /// Passes the machine's messages to the neighbours, and then their messages to the machine. Returns false if there
    /// was no output.
    pub(crate) fn exchange(&mut self, now: Instant, machine: &mut impl LinkMachine, rng: &mut dyn CryptoRng) -> bool {
        let mut has_output = false;
        machine.handle_batch_end(now, rng);
        while let Some(transmit) = machine.poll_transmit(now, rng) {
            has_output = true;
            match transmit {
                Transmit::Dial(target) => self.dials.push(target.relay),
                Transmit::PeerListed(link) => self.listed.push(link),
                Transmit::Close(link) => {
                    self.closed.insert(link);
                    self.remove(link);
                }
                Transmit::Message { link, lane, message } => {
                    let Some(channels) = self.channels.get_mut(&link) else { continue };
                    channels.handle_link(now, LinkEvent::Message { link, lane, message }, rng);
                    while let Some(event) = channels.poll_event() {
                        if let ChannelEvent::Cell { cell, .. } = event {
                            self.cells.entry(link).or_default().push(cell);
                        }
                    }
                }
            }
        }
        for channels in self.channels.values_mut() {
            while let Some(transmit) = channels.poll_transmit(now) {
                let Transmit::Message { link, lane, message } = transmit else { continue };
                has_output = true;
                machine.handle_link(now, LinkEvent::Message { link, lane, message }, rng);
            }
        }
        has_output
    }

    /// The links with a neighbour.
    pub(crate) fn links(&self) -> impl Iterator<Item = LinkId> {
        self.channels.keys().copied()
    }

    /// The neighbour's channels, unless the link has closed.
    pub(crate) fn channels(&mut self, link: LinkId) -> Option<&mut Channels> {
        self.channels.get_mut(&link)
    }

    /// The cells that a neighbour has received since the last call.
    pub(crate) fn take_cells(&mut self, link: LinkId) -> Vec<Cell> {
        self.cells.remove(&link).unwrap_or_default()
    }

    /// Removes a neighbour, which sends and receives nothing more.
    pub(crate) fn remove(&mut self, link: LinkId) {
        self.channels.remove(&link);
    }
}
