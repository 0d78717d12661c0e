//! A link in memory, with SCTP and DTLS records at both ends, for the benchmarks and the test of allocations.

use std::time::Duration;

use rand::{SeedableRng, rngs::ChaCha20Rng};
use umbel::{
    base::{Instant, Lane, Slots},
    transport::{
        native::{CipherSuite, DirectionKey, KeyLimits, OVERHEAD, Opened, Records},
        sctp::{Association, AssociationEvent, Config},
    },
};

const DATAGRAM: usize = 1_232;
/// One-way delay, short enough that the association doesn't pace.
const DELAY: Duration = Duration::from_micros(50);

/// Both ends of a link. Data flows from the sender to the receiver.
pub(crate) struct Link {
    now: Instant,
    sender: Association,
    receiver: Association,
    seal: Records,
    open: Records,
    /// Sealed datagrams towards the receiver, with their lengths.
    datagrams: Vec<(Vec<u8>, usize)>,
    spare: Vec<Vec<u8>>,
}

impl Link {
    pub(crate) fn open() -> Self {
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
        };
        while !link.sender.is_open() {
            link.write();
            link.travel();
            link.receive(|_, _| {});
            link.acknowledge();
        }
        link
    }

    /// Whether all data has been acknowledged.
    pub(crate) fn is_flushed(&self) -> bool {
        self.sender.is_flushed()
    }

    /// Queues a message.
    pub(crate) fn send(&mut self, lane: Lane, message: Slots) {
        self.sender.send(self.now, lane.value().into(), message);
    }

    /// Writes and seals the packets that may be sent now.
    pub(crate) fn write(&mut self) {
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

    /// Advances the time to the arrival of the datagrams. Without datagrams, advances it to the next deadline, if any.
    pub(crate) fn travel(&mut self) {
        self.now = self.now.after(DELAY);
        if self.datagrams.is_empty() {
            let timers = [self.sender.poll_timeout(), self.receiver.poll_timeout()];
            self.now = timers.into_iter().flatten().min().map_or(self.now, |due| due.max(self.now));
        }
    }

    /// Delays the first datagram, so that it arrives last. Returns the number of the other datagrams.
    pub(crate) fn reorder(&mut self) -> usize {
        let datagrams = self.datagrams.len();
        self.datagrams.rotate_left(datagrams.min(1));
        datagrams.saturating_sub(1)
    }

    /// Opens the datagrams at the receiver and passes the reassembled messages, with their lanes, to `take`.
    pub(crate) fn receive(&mut self, mut take: impl FnMut(Lane, Slots)) {
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
                AssociationEvent::Message { stream, message } => take(Lane::new(stream as u8).unwrap(), message),
                AssociationEvent::Open { .. } => {}
                AssociationEvent::Closed(close) => panic!("{close:?}"),
            }
        }
    }

    /// Passes the receiver's acknowledgements to the sender.
    pub(crate) fn acknowledge(&mut self) {
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
