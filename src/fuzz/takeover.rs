//! Fuzz target: a DTLS handshake and the takeover by our record layer, over a faulty network and with hostile ends.

use core::time::Duration;

use super::{Choices, FuzzTarget};
use crate::transport::native::{CLIENT, CipherSuite, DtlsPair, SERVER};

pub(super) const TARGETS: &[FuzzTarget] =
    &[FuzzTarget { name: "dtls_takeover", run: dtls_takeover, seeds: takeover_seeds }];

/// The content type of application data.
const DATA: u8 = 23;
/// Rounds of the network without faults at the end.
const LAST_ROUNDS: u8 = 12;
/// Time after which the handshake may fail on a network that only loses, repeats and reorders.
const PATIENCE: Duration = Duration::from_secs(20);
/// Most datagrams that an input can send again.
const MAX_OLD: usize = 256;

/// A pair of ends, and what has been sent.
struct Takeover {
    pair: DtlsPair,
    /// All datagrams, with the receiving end.
    old: Vec<(usize, Vec<u8>)>,
    /// Packets sent to each end and not received.
    unreceived: [Vec<Vec<u8>>; 2],
    /// Number of packets sent.
    sent: u32,
    /// Time skipped.
    waited: Duration,
    /// Only losses, repetitions and reordering so far: the handshake succeeds in the end.
    honest: bool,
}

impl Takeover {
    fn new(suite: CipherSuite) -> Self {
        let mut pair = DtlsPair::new(&[suite]);
        pair.dial();
        Self { pair, old: Vec::new(), unreceived: Default::default(), sent: 0, waited: Duration::ZERO, honest: true }
    }

    /// Delivers the oldest datagram to `to`; returns whether there was one.
    fn deliver_next(&mut self, to: usize) -> bool {
        let Some(datagram) = self.pair.ends[1 - to].sent.pop_front() else { return false };
        if self.old.len() < MAX_OLD {
            self.old.push((to, datagram.clone()));
        }
        self.deliver(to, datagram);
        true
    }

    /// Delivers a datagram, and checks that each packet was sent, and is received once.
    fn deliver(&mut self, to: usize, datagram: Vec<u8>) {
        self.pair.deliver(to, datagram);
        for packet in core::mem::take(&mut self.pair.ends[to].packets) {
            let at = self.unreceived[to].iter().position(|sent| *sent == packet);
            self.unreceived[to].swap_remove(at.expect("received twice, or never sent"));
        }
    }

    /// Sends a packet with a number of its own.
    fn send(&mut self, from: usize, content: &[u8]) {
        let packet = [&self.sent.to_be_bytes(), content].concat();
        if self.pair.send(from, &packet) {
            self.unreceived[1 - from].push(packet);
        }
        self.sent += 1;
    }

    /// Sends a record of this content type.
    fn send_record(&mut self, from: usize, content: u8, plaintext: &[u8]) {
        if content == DATA {
            return self.send(from, plaintext);
        }
        self.pair.send_record(from, content, plaintext);
        self.honest = false;
    }

    fn old(&self, choice: u8) -> (usize, Vec<u8>) {
        self.old.get(usize::from(choice)).cloned().unwrap_or_default()
    }

    fn advance(&mut self) {
        self.waited += self.pair.advance();
    }

    /// Delivers all datagrams in turn.
    fn deliver_all(&mut self) {
        while self.deliver_next(CLIENT) || self.deliver_next(SERVER) {}
    }
}

/// Lost, repeated, reordered, altered and hostile datagrams during a handshake and after it make no end use a nonce twice
/// (the [`DtlsPair`] checks this), and no packet is received that was not sent. If datagrams were only lost, repeated and
/// reordered, the handshake succeeds, and packets arrive in both directions.
fn dtls_takeover(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let kind = choices.u8();
    let mut takeover = Takeover::new(CipherSuite::ALL[usize::from(kind % 2)]);
    // The first datagrams of the handshake arrive.
    for round in 0..kind >> 4 {
        takeover.deliver_next(usize::from(round % 2 == 0));
    }
    while !choices.is_empty() {
        let operation = choices.u8();
        let end = usize::from(operation >> 7);
        match operation % 16 {
            0..=3 => drop(takeover.deliver_next(end)),
            4 => drop(takeover.pair.ends[end].sent.pop_front()),
            5 => {
                let sent = &mut takeover.pair.ends[end].sent;
                let first = sent.pop_front();
                sent.extend(first);
            }
            6 | 7 => {
                let (to, datagram) = takeover.old(choices.u8());
                takeover.deliver(to, datagram);
            }
            8 => {
                let (to, mut datagram) = takeover.old(choices.u8());
                let at = usize::from(choices.u16());
                datagram.iter_mut().skip(at).zip(choices.bytes()).for_each(|(byte, noise)| *byte ^= noise);
                takeover.honest = false;
                takeover.deliver(to, datagram);
            }
            9 => {
                // The records of two datagrams in one, possibly reflected to their sender.
                let (to, first) = takeover.old(choices.u8());
                let (_, second) = takeover.old(choices.u8());
                takeover.honest = false;
                takeover.deliver(to ^ end, [first, second].concat());
            }
            10 | 11 => takeover.send(end, choices.bytes()),
            12 => {
                let content = choices.u8();
                takeover.send_record(end, content, choices.bytes());
            }
            13 => {
                takeover.pair.close(end);
                takeover.honest = false;
            }
            _ => takeover.advance(),
        }
    }
    let early = takeover.waited < PATIENCE;
    for _ in 0..LAST_ROUNDS {
        takeover.deliver_all();
        takeover.advance();
    }
    if !takeover.honest || !early {
        return;
    }
    for end in [CLIENT, SERVER] {
        takeover.send(end, b"last");
    }
    takeover.deliver_all();
    let failures: Vec<_> = takeover.pair.ends.iter().map(|end| &end.failure).collect();
    assert!(takeover.pair.both_connected(), "an honest handshake fails: {failures:?}");
    for unreceived in &takeover.unreceived {
        assert!(unreceived.iter().all(|packet| packet[4..] != *b"last"), "a packet has not arrived: {failures:?}");
    }
    assert!(takeover.pair.sealed() >= 4, "a Finished and a packet of each end");
}

fn takeover_seeds() -> Vec<Vec<u8>> {
    // Deliver, drop, delay the next datagram to or of the client (0) or the server (128).
    let (to_client, to_server) = (0, 128);
    let (drop_of_client, drop_of_server) = (4, 128 | 4);
    let (delay_of_client, delay_of_server) = (5, 128 | 5);
    let wait = 15;
    let send = |end: u8| [end | 10, 0, 3, 1, 2, 3];
    let data = [send(0), send(128)].concat();
    let both = [to_client, to_server];
    let operations: [&[u8]; 7] = [
        // The client's Finished is lost twice, then the server's, while both send data.
        &[drop_of_client, wait, drop_of_client, wait, to_server, drop_of_server, wait, to_server],
        // The server's Finished is lost three times, and its data arrives first.
        &[to_server, drop_of_server, 128 | 10, 0, 1, 7, wait, to_server, drop_of_server, to_client, wait, to_server],
        // Repetitions of all datagrams so far.
        &[to_server, 6, 0, 6, 1, 6, 2, 6, 3, 6, 4, to_client, 6, 2, 6, 4, 6, 5, to_client],
        // Reordering of each flight.
        &[delay_of_client, to_server, delay_of_server, to_client, to_server, delay_of_client, wait, to_client],
        // A renewed Finished, a fatal alert and a renegotiation of hostile ends.
        &[
            to_server,
            to_client,
            12,
            22,
            0,
            4,
            20,
            0,
            0,
            12,
            128 | 12,
            22,
            0,
            1,
            0,
            to_server,
            to_client,
            12,
            21,
            0,
            2,
            2,
            40,
        ],
        // An altered copy, records of two datagrams in one, and a close.
        &[to_server, 8, 4, 0, 13, 0, 1, 128, 9, 3, 4, 128 | 9, 4, 3, to_client, 13, to_server, to_client],
        &[wait, wait, to_server, to_client, 128 | 13, wait, to_client],
    ];
    let seed = |(number, operations): (usize, &&[u8])| {
        let suite = u8::try_from(number % 2).unwrap();
        [&[4 << 4 | suite][..], operations, &data, &both, &both, &data, operations, &both].concat()
    };
    operations.iter().enumerate().map(seed).collect()
}
