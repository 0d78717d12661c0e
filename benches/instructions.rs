//! Workloads for instruction counts: sealing, switching and packing a cell.
//!
//! `cargo xtask instructions` runs this program under callgrind, once for each of [`sealing`], [`switching`] and
//! [`packing`]. It compares callgrind's count within the function with the function's budget. All other code is
//! preparation. Keys, cells and times are fixed. The program prints the number of cells that each of these
//! functions has processed.
#![allow(missing_docs, clippy::unwrap_used, clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::panic)]

#[path = "switch/relay.rs"]
mod relay;

use std::{hint::black_box, time::Duration};

use rand::{SeedableRng, rngs::ChaCha20Rng};
use umbel::{
    base::{HopIndex, Instant, Lane, LinkEvent, LinkMachine, Slots, Transmit},
    onion::{OriginLayers, message_capacity},
    transport::{
        native::{CipherSuite, DirectionKey, KeyLimits, OVERHEAD, Opened, Records},
        sctp::{Association, AssociationEvent, Config},
    },
    wire::{BODY_LEN, CELL_LEN},
};

use relay::{BenchRelay, CELLS, PREVIOUS, keys};

const ROUNDS: usize = 16;
const CIRCUITS: usize = 16;
const CELLS_PER_ROUND: usize = CIRCUITS * CELLS;
const DATAGRAM: usize = 1_232;
/// One-way delay, short enough that the association doesn't pace.
const DELAY: Duration = Duration::from_micros(50);

fn main() {
    let (mut origin, mut bench, mut link) = (three_hops(), BenchRelay::new(CIRCUITS), Link::open());
    for _ in 0..ROUNDS {
        sealing(&mut origin, CELLS_PER_ROUND);
        let messages = bench.forward_messages();
        switching(&mut bench, messages);
        packing(&mut bench, &mut link);
        while !link.sender.is_flushed() {
            link.deliver();
            packing(&mut bench, &mut link);
        }
    }
    let cells = ROUNDS * CELLS_PER_ROUND;
    assert_eq!(link.received, cells * CELL_LEN, "every cell arrives");
    println!("{cells}");
}

/// A client seals cells for the third hop of its circuit.
#[inline(never)]
fn sealing(layers: &mut OriginLayers, cells: usize) {
    let hop = third();
    let (message, mut body) = ([7; BODY_LEN], [0; BODY_LEN]);
    for _ in 0..cells {
        layers.seal_message(hop, black_box(&message[..message_capacity(hop)]), black_box(&mut body)).unwrap();
    }
}

/// A relay takes cells off one channel, opens their layer and queues the cells for the next channel.
#[inline(never)]
fn switching(bench: &mut BenchRelay, messages: Vec<(Lane, Slots)>) {
    for (lane, message) in messages {
        let event = LinkEvent::Message { link: PREVIOUS, lane, message };
        bench.relay.handle_link(Instant::START, event, &mut bench.rng);
    }
}

/// The relay packs the cells of one channel into messages. Its link writes the messages into packets, and seals the
/// records.
#[inline(never)]
fn packing(bench: &mut BenchRelay, link: &mut Link) {
    while let Some(transmit) = bench.relay.poll_transmit(Instant::START, &mut bench.rng) {
        let Transmit::Message { lane, message, .. } = transmit else { panic!("{transmit:?}") };
        link.sender.send(link.now, u16::from(lane.value()), message);
    }
    link.write();
}

fn third() -> HopIndex {
    HopIndex::new(3).unwrap()
}

fn three_hops() -> OriginLayers {
    let mut layers = OriginLayers::new();
    for hop in 1..=3 {
        layers.push(keys(hop)).unwrap();
    }
    layers
}

/// Both ends of a link in memory: SCTP and DTLS records.
struct Link {
    now: Instant,
    sender: Association,
    receiver: Association,
    seal: Records,
    open: Records,
    /// Sealed datagrams towards the receiver, with their lengths.
    datagrams: Vec<(Vec<u8>, usize)>,
    spare: Vec<Vec<u8>>,
    /// Bytes of the messages delivered to the receiver.
    received: usize,
}

impl Link {
    fn open() -> Self {
        let (now, mut rng) = (Instant::START.after(DELAY), ChaCha20Rng::seed_from_u64(2));
        let config = Config::new(DATAGRAM - OVERHEAD);
        let [seal, open] = records();
        let mut link = Self {
            now,
            sender: Association::connect(&config, now, &mut rng),
            receiver: Association::accept(&config, now, &mut rng),
            seal,
            open,
            datagrams: Vec::new(),
            spare: Vec::new(),
            received: 0,
        };
        while !link.sender.is_open() {
            link.write();
            link.deliver();
        }
        link
    }

    /// Writes and seals the packets that may be sent now.
    fn write(&mut self) {
        let header = self.seal.header_len();
        loop {
            let mut datagram = self.spare.pop().unwrap_or_else(|| vec![0; DATAGRAM]);
            let length = self.sender.poll_packet(self.now, &mut datagram[header..]);
            if length == 0 {
                self.spare.push(datagram);
                return;
            }
            let sealed = self.seal.seal(&mut datagram, length).unwrap();
            self.datagrams.push((datagram, sealed));
        }
    }

    /// Passes the datagrams to the receiver, and the receiver's acknowledgements to the sender.
    fn deliver(&mut self) {
        self.now = self.now.after(DELAY);
        if self.datagrams.is_empty() {
            let timers = [self.sender.poll_timeout(), self.receiver.poll_timeout()];
            self.now = self.now.max(timers.into_iter().flatten().min().unwrap());
        }
        for (mut datagram, length) in self.datagrams.drain(..) {
            let mut packet = 0..0;
            self.open
                .open(&mut datagram[..length], |opened| {
                    if let Opened::Data(data) = opened {
                        packet = data
                    }
                })
                .unwrap();
            self.receiver.handle_packet(self.now, &datagram[packet]);
            self.spare.push(datagram);
        }
        self.receiver.handle_timeout(self.now);
        while let Some(event) = self.receiver.poll_event() {
            match event {
                AssociationEvent::Message { message, .. } => self.received += message.len(),
                AssociationEvent::Open { .. } => {}
                AssociationEvent::Closed(close) => panic!("{close:?}"),
            }
        }
        self.now = self.now.after(DELAY);
        let mut packet = [0; DATAGRAM];
        loop {
            let length = self.receiver.poll_packet(self.now, &mut packet);
            if length == 0 {
                break;
            }
            self.sender.handle_packet(self.now, &packet[..length]);
        }
        self.sender.handle_timeout(self.now);
        while self.sender.poll_event().is_some() {}
    }
}

/// The record layers of both ends, with the preferred cipher suite of links.
fn records() -> [Records; 2] {
    let suite = CipherSuite::Aes128Gcm;
    let direction = |fill| DirectionKey::new(suite, &[fill; 16], &[fill; 4]).unwrap();
    [(1, 2), (2, 1)]
        .map(|(write, read)| Records::new(suite, &direction(write), &direction(read), KeyLimits::default()).unwrap())
}
