//! Fuzz targets: the SCTP handshake with a hostile peer, and of two honest ends over a faulty network.

use core::time::Duration;
use std::collections::VecDeque;

use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use super::{
    Choices, FuzzClock, FuzzTarget,
    sctp::{MAX_PACKET_LEN, data, packets, sack},
};
use crate::{
    base::Instant,
    transport::sctp::{Association, AssociationEvent, Close, Config},
};

pub(super) const TARGETS: &[FuzzTarget] = &[
    FuzzTarget { name: "sctp_handshake_of_hostile_peer", run: hostile_peer, seeds: hostile_seeds },
    FuzzTarget { name: "sctp_handshake_despite_faults", run: despite_faults, seeds: fault_seeds },
];

/// Types of chunks.
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const ABORT: u8 = 6;
const COOKIE_ECHO: u8 = 10;
const COOKIE_ACK: u8 = 11;
/// Number of attempts at each step of the handshake.
const ATTEMPTS: usize = 8;
/// Number of losses of a fragment after which an association ends.
const LOSSES: usize = 24;
/// Time without progress after which an established association ends.
const STALL_TIMEOUT: Duration = Duration::from_secs(30);

/// An association whose peer is hostile, and what it has done so far.
struct HandshakeWithHostilePeer {
    association: Association,
    /// The end's verification tag and first TSN, once it has sent them.
    tag: Option<u32>,
    tsn: u32,
    /// The end's State Cookie, once it has sent it.
    cookie: Option<Vec<u8>>,
    /// The tag of the end's packets other than INIT and ABORT.
    tag_of_packets: Option<u32>,
    /// The peer has sent a packet that may open the association.
    may_open: bool,
    streams: Option<u16>,
    closed: bool,
}

impl HandshakeWithHostilePeer {
    fn new(kind: u8, now: Instant) -> Self {
        let config = Config { zero_checksum: kind & 2 != 0, ..Config::new(MAX_PACKET_LEN) };
        let mut rng = ChaCha8Rng::seed_from_u64(kind.into());
        let association = if kind & 1 != 0 {
            Association::connect(&config, now, &mut rng)
        } else {
            Association::accept(&config, now, &mut rng)
        };
        Self {
            association,
            tag: None,
            tsn: 0,
            cookie: None,
            tag_of_packets: None,
            may_open: false,
            streams: None,
            closed: false,
        }
    }

    /// Passes a packet with `chunks` to the association. `tag` selects the verification tag.
    fn receive(&mut self, now: Instant, tag: u8, chunks: &[u8]) {
        let right = self.tag.unwrap_or_default();
        let tag = match tag % 8 {
            0..=5 => right,
            6 => 0,
            _ => right ^ 1,
        };
        self.association.handle_packet(now, &packet(tag, chunks));
    }

    /// Takes the output, and asserts the invariants.
    fn settle(&mut self, now: Instant) {
        for packet in packets(&mut self.association, now) {
            let tag = u32::from_be_bytes(packet[4..8].try_into().unwrap());
            let kind = packet[12];
            // An ABORT that answers another INIT has the tag of this INIT.
            if !matches!(kind, INIT | ABORT) {
                assert_eq!(*self.tag_of_packets.get_or_insert(tag), tag, "the peer's tag has changed");
            }
            if matches!(kind, INIT | INIT_ACK) {
                let sent = u32::from_be_bytes(packet[16..20].try_into().unwrap());
                assert_eq!(*self.tag.get_or_insert(sent), sent, "the own tag has changed");
                self.tsn = u32::from_be_bytes(packet[28..32].try_into().unwrap());
            }
            if kind == INIT_ACK {
                // The State Cookie is the first parameter.
                let cookie = packet[36..52].to_vec();
                assert_eq!(*self.cookie.get_or_insert(cookie.clone()), cookie, "the cookie has changed");
            }
            assert!(!self.closed || kind == ABORT, "chunk {kind} of an ended association");
        }
        self.association.assert_sound();
        while let Some(event) = self.association.poll_event() {
            assert!(!self.closed, "{event:?} of an ended association");
            match event {
                AssociationEvent::Open { streams } => {
                    assert!(self.may_open, "open without the peer's answer");
                    assert!((4..=64).contains(&streams), "{streams} streams");
                    assert_eq!(self.streams.replace(streams), None, "opened twice");
                }
                AssociationEvent::Message { stream, message } => {
                    let streams = self.streams.expect("a message before the association is open");
                    assert!(stream < streams && !message.is_empty());
                }
                AssociationEvent::Closed(_) => self.closed = true,
            }
        }
        if self.closed {
            assert_eq!(self.association.poll_timeout(), None);
        }
    }

    /// Advances to `now` by way of each timer.
    fn advance(&mut self, now: Instant) {
        for _ in 0..1_000 {
            let Some(due) = self.association.poll_timeout().filter(|due| *due <= now) else { break };
            self.association.handle_timeout(due);
            self.settle(due);
        }
        assert!(self.association.poll_timeout().is_none_or(|due| due > now), "timers expire without end");
    }
}

/// A packet with `chunks` and a checksum.
fn packet(tag: u32, chunks: &[u8]) -> Vec<u8> {
    let mut packet = [&[0x13, 0x88, 0x13, 0x88][..], &tag.to_be_bytes(), &[0; 4], chunks].concat();
    let checksum = crc32c::crc32c(&packet);
    packet[8..12].copy_from_slice(&checksum.to_le_bytes());
    packet
}

/// A chunk with padding.
fn chunk(kind: u8, flags: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + body.len()).unwrap_or(u16::MAX);
    let mut chunk = [&[kind, flags][..], &length.to_be_bytes(), body].concat();
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

/// INIT or INIT ACK of a hostile peer.
fn init(choices: &mut Choices<'_>, kind: u8, cookie: Option<&[u8]>) -> Vec<u8> {
    let choice = choices.u8();
    // Usually one peer without a change of tag, TSN or parameters.
    let (tag, tsn, streams) = match choice % 8 {
        0..=3 => (77_u32, 9_u32, 64_u16),
        4 => (78, 9, 64),
        5 => (77, u32::from(choices.u8()) << 24, 64),
        6 => (77, 9, choices.u8().into()),
        _ => (choices.u8().into(), 9, 64),
    };
    let mut body = Vec::new();
    body.extend(tag.to_be_bytes());
    body.extend((u32::from(choices.u8()) << 12).to_be_bytes());
    body.extend(streams.to_be_bytes());
    body.extend(streams.to_be_bytes());
    body.extend(tsn.to_be_bytes());
    if let Some(cookie) = cookie {
        body.extend(chunk(0, 7, cookie));
    }
    // The parameters of our nodes, and of the missing checksum.
    if choice & 8 != 0 {
        body.extend([0x9f, 0x55, 0, 8, 0, choices.u8(), 0, 25]);
    }
    if choice & 16 != 0 {
        body.extend([0x80, 0x01, 0, 8, 0, 0, 0, 1]);
    }
    if choice & 32 != 0 {
        body.extend(choices.bytes());
    }
    chunk(kind, 0, &body)
}

/// Packets of a peer in any order and with any tag cause no panic and no busy loop. Only a right cookie, or an INIT ACK
/// with the right tag, opens the association, at most once. A handshake ends within a minute.
fn hostile_peer(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut clock = FuzzClock::new();
    let mut now = clock.advance(0);
    let mut handshake = HandshakeWithHostilePeer::new(choices.u8(), now);
    handshake.settle(now);
    while !choices.is_empty() {
        let (operation, tag) = (choices.u8() % 12, choices.u8());
        match operation {
            // The tag of an INIT's packet is usually zero.
            0 | 1 => {
                let init = init(&mut choices, INIT, None);
                handshake.receive(now, if tag % 8 < 6 { 6 } else { tag }, &init);
            }
            2 => {
                let length = [0, 1, 16, 1_024, 1_025][usize::from(choices.u8() % 5)];
                let init = init(&mut choices, INIT_ACK, Some(&vec![3; length]));
                handshake.may_open |= tag % 8 < 6 && (1..=1_024).contains(&length);
                handshake.receive(now, tag, &init);
            }
            3 | 4 => {
                let mut cookie = handshake.cookie.clone().unwrap_or_default();
                let altered = choices.u8();
                if altered % 4 == 3 {
                    cookie.truncate(usize::from(altered >> 4));
                    cookie.extend(choices.bytes());
                }
                handshake.may_open |= handshake.cookie.as_ref() == Some(&cookie) && tag % 8 < 6;
                handshake.receive(now, tag, &chunk(COOKIE_ECHO, 0, &cookie));
            }
            5 => handshake.receive(now, tag, &chunk(COOKIE_ACK, choices.u8(), &[])),
            6 => {
                let tsn = 9_u32.wrapping_add(choices.u8().into()).wrapping_sub(2);
                handshake.receive(now, tag, &data(3, tsn, (choices.u8() % 65).into(), 0, 53, &[9; 10]));
            }
            7 => {
                let cumulative = handshake.tsn.wrapping_add(choices.u8().into()).wrapping_sub(2);
                handshake.receive(now, tag, &sack(cumulative, u32::from(choices.u16()) << 8, &[], 0));
            }
            8 => {
                let (kind, flags) = (choices.u8(), choices.u8());
                let chunk = chunk(kind, flags, choices.bytes());
                // An INIT ACK or a COOKIE ECHO of arbitrary bytes may be a right one.
                handshake.may_open |= tag % 8 < 6 && matches!(kind, INIT_ACK | COOKIE_ECHO);
                handshake.receive(now, tag, &chunk);
            }
            9 => {
                let association = &mut handshake.association;
                match tag {
                    0 => {
                        association.abort();
                        handshake.closed = true;
                    }
                    1 => association.send_heartbeat(),
                    _ if association.room(now) > 0 => {
                        association.send(now, (tag % 65).into(), vec![7; 1 + usize::from(tag) * 64].into());
                    }
                    _ => {}
                }
            }
            _ => {
                now = clock.advance(choices.u8());
                handshake.advance(now);
            }
        }
        handshake.settle(now);
    }
    handshake.advance(now.after(Duration::from_mins(1)));
    assert!(handshake.association.is_settled(), "a handshake without an end");
}

fn hostile_seeds() -> Vec<Vec<u8>> {
    let init = |choice: u8, more: &[u8]| [&[0, 0, choice][..], more, &[64]].concat();
    let init_ack = |length: u8, choice: u8, more: &[u8]| [&[2, 0, length, choice][..], more, &[64]].concat();
    let (echo, cookie_ack) = ([3, 0, 0], [5, 0, 0]);
    let (write, message, acknowledge) = ([9, 40], [6, 0, 2, 1], [7, 0, 4, 1, 0]);
    // A wait of 2,047 ms.
    let wait = [10, 0, 11];
    let restart = init(4, &[]);
    let raw = |kind: u8, body: &[u8]| [&[8, 0, kind, 0, 0, u8::try_from(body.len()).unwrap()][..], body].concat();
    let listener = [
        [&init(24, &[])[..], &[64], &echo, &message, &write, &acknowledge].concat(),
        [&init(0, &[])[..], &echo, &echo, &init(0, &[]), &cookie_ack, &message, &wait].concat(),
        [&echo[..], &cookie_ack, &message, &init(0, &[]), &[3, 0, 3, 0, 0], &[3, 7, 0], &echo, &restart].concat(),
        [&init(6, &[3])[..], &echo].concat(),
        [&init(0, &[])[..], &echo, &raw(6, &[]), &message].concat(),
    ];
    let dialler = [
        [&init_ack(2, 24, &[64])[..], &cookie_ack, &write, &message, &acknowledge].concat(),
        // Crossing INITs, and answers to both.
        [&init(24, &[64])[..], &init_ack(2, 24, &[64]), &echo, &cookie_ack, &message].concat(),
        [&init(0, &[])[..], &echo, &init_ack(2, 0, &[]), &message, &write].concat(),
        [&init_ack(4, 0, &[])[..], &wait].concat(),
        [&init_ack(3, 0, &[])[..], &wait.repeat(9), &cookie_ack].concat(),
        [&wait.repeat(4)[..], &init_ack(2, 0, &[]), &restart, &raw(0x41, &[]), &raw(14, &[])].concat(),
    ];
    let with = |kind: u8, seeds: &[Vec<u8>]| seeds.iter().map(|seed| [&[kind][..], seed].concat()).collect::<Vec<_>>();
    [with(2, &listener), with(3, &dialler)].concat()
}

/// The bytes of the message that each honest end sends.
const MESSAGE: [u8; 3_000] = [5; 3_000];

/// One of two honest ends.
struct HonestEnd {
    association: Association,
    streams: Option<u16>,
    received: usize,
    closed: Option<Close>,
}

impl HonestEnd {
    /// Takes the events, sends one message on the open association, and returns the packets.
    fn settle(&mut self, now: Instant) -> Vec<Vec<u8>> {
        while let Some(event) = self.association.poll_event() {
            match event {
                AssociationEvent::Open { streams } => {
                    assert_eq!(self.streams.replace(streams), None, "opened twice");
                    self.association.send(now, 3, MESSAGE.to_vec().into());
                }
                AssociationEvent::Message { stream, message } => {
                    assert_eq!((stream, message.to_vec().as_slice()), (3, &MESSAGE[..]));
                    self.received += 1;
                }
                AssociationEvent::Closed(close) => self.closed = Some(close),
            }
        }
        self.association.assert_sound();
        packets(&mut self.association, now)
    }
}

/// Two honest ends open one association and exchange a message each way, although packets of the handshake are lost,
/// repeated, reordered and delayed. Only the loss or delay of all attempts at a step, 30 s without progress, or 24
/// losses of a fragment end it.
fn despite_faults(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let (kind, start) = (choices.u8(), FuzzClock::new().advance(0));
    let mut now = start;
    let mut rng = ChaCha8Rng::seed_from_u64(u64::from(kind >> 4));
    let mut ends: Vec<HonestEnd> = [true, kind & 1 != 0]
        .into_iter()
        .zip([2, 4])
        .map(|(connects, checksum)| {
            let config = Config { zero_checksum: kind & checksum != 0, ..Config::new(MAX_PACKET_LEN) };
            let new = if connects { Association::connect } else { Association::accept };
            HonestEnd { association: new(&config, now, &mut rng), streams: None, received: 0, closed: None }
        })
        .collect();
    // The packets to each end.
    let mut in_flight = [VecDeque::new(), VecDeque::new()];
    let mut faults = 0;
    for round in 0.. {
        for (end, to) in ends.iter_mut().zip([1, 0]) {
            in_flight[to].extend(end.settle(now));
        }
        let arrived = ends.iter().all(|end| end.received == 1 && end.association.is_flushed());
        let timed_out = ends.iter().any(|end| end.closed.is_some());
        if timed_out || (choices.is_empty() && arrived) {
            break;
        }
        assert!(round < 10_000, "no end: {} packets in flight", in_flight[0].len() + in_flight[1].len());
        now = now.after(Duration::from_millis(1));
        // Without further choices the network is perfect.
        let faulty = usize::from(!choices.is_empty());
        let choice = choices.u8();
        let to = usize::from(choice >> 7);
        let to = if in_flight[to].is_empty() { 1 - to } else { to };
        let packet: Option<Vec<u8>> = in_flight[to].pop_front();
        match (choice % 8, packet) {
            (0..=3, Some(packet)) => ends[to].association.handle_packet(now, &packet),
            (4, Some(_)) => faults += faulty,
            (5, Some(packet)) => {
                in_flight[to].push_back(packet.clone());
                ends[to].association.handle_packet(now, &packet);
            }
            (6, Some(packet)) => {
                in_flight[to].push_back(packet);
                faults += faulty;
            }
            (_, packet) => {
                in_flight[to].extend(packet);
                let due = ends.iter().filter_map(|end| end.association.poll_timeout()).min();
                now = due.map_or(now, |due| due.max(now));
                faults += faulty;
            }
        }
        for end in &mut ends {
            if end.association.poll_timeout().is_some_and(|due| due <= now) {
                end.association.handle_timeout(now);
            }
        }
    }
    let open = ends.iter().all(|end| end.closed.is_none());
    let stalled = now.since(start) >= STALL_TIMEOUT;
    assert!(open || faults >= ATTEMPTS || stalled, "closed after {faults} losses and delays");
    for end in &ends {
        let allowed = end.closed.is_none_or(|close| close == Close::TimedOut) || faults >= LOSSES;
        assert!(allowed, "{:?} after {faults} losses and delays", end.closed);
        assert!(!open || (end.streams, end.received) == (Some(64), 1), "{:?}, {}", end.streams, end.received);
    }
}

fn fault_seeds() -> Vec<Vec<u8>> {
    // Losses of the first packets, repetitions, crossing packets, and waits.
    let schedules: [&[u8]; 6] = [
        &[],
        &[4, 0x84, 7, 4, 0x84, 7, 0, 0x80],
        &[5, 5, 0x85, 0x85, 5, 0x85, 0, 0x80],
        &[7, 7, 0, 0x80, 7, 0x80, 0, 4],
        &[6, 0x86, 5, 6, 0x80, 7, 0x86, 0, 0, 0x80],
        &[7, 7, 7, 7, 7, 7, 7, 7, 7, 7],
    ];
    let kinds = [6, 7, 0x13, 0x21];
    schedules
        .iter()
        .zip(kinds.iter().cycle())
        .flat_map(|(schedule, kind)| [[&[*kind][..], schedule].concat(), [&[kind ^ 1][..], schedule].concat()])
        .collect()
}
