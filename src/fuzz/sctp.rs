//! Fuzz targets: packets from the peer of an SCTP association.

use core::time::Duration;
use std::collections::{BTreeMap, VecDeque};

use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use super::{Choices, FuzzClock, FuzzTarget};
use crate::{
    base::Instant,
    transport::sctp::{Association, AssociationEvent, Config},
};

pub(super) const TARGETS: &[FuzzTarget] = &[
    FuzzTarget { name: "sctp_of_hostile_peer", run: hostile_peer, seeds: hostile_seeds },
    FuzzTarget { name: "sctp_reassembly", run: reassembly, seeds: reassembly_seeds },
];

/// Maximum length of a packet, in bytes.
pub(super) const MAX_PACKET_LEN: usize = 1_195;
/// The type of a DATA chunk.
const DATA: u8 = 0;
/// The type of a SACK chunk.
const SACK: u8 = 3;

/// An established association, and the state that the peer needs to write packets.
struct FuzzAssociation {
    association: Association,
    /// The header of the peer's packets: ports, verification tag, and a zero checksum, which was negotiated.
    header: [u8; 12],
    /// The first TSN of the peer.
    peer_tsn: u32,
    /// The first TSN of the association.
    association_tsn: u32,
}

impl FuzzAssociation {
    /// Establishes an association between two ends, and keeps the accepting end.
    fn new(now: Instant) -> Self {
        let mut rng = ChaCha8Rng::seed_from_u64(1);
        let config = Config::new(MAX_PACKET_LEN);
        let mut peer = Association::connect(&config, now, &mut rng);
        let mut association = Association::accept(&config, now, &mut rng);
        let tsn = |packet: &[u8]| u32::from_be_bytes(packet[28..32].try_into().unwrap());
        let init = packets(&mut peer, now).remove(0);
        association.handle_packet(now, &init);
        let init_ack = packets(&mut association, now).remove(0);
        peer.handle_packet(now, &init_ack);
        let echo = packets(&mut peer, now).remove(0);
        association.handle_packet(now, &echo);
        assert!(matches!(association.poll_event(), Some(AssociationEvent::Open { streams: 64 })));
        packets(&mut association, now);
        let mut header = [0; 12];
        header[..8].copy_from_slice(&echo[..8]);
        Self { association, header, peer_tsn: tsn(&init), association_tsn: tsn(&init_ack) }
    }

    /// Passes a packet with `chunks` to the association.
    fn receive(&mut self, now: Instant, chunks: &[u8]) {
        self.association.handle_packet(now, &[&self.header[..], chunks].concat());
    }

    /// The delivered messages; `None` once the association has ended.
    fn messages(&mut self) -> Option<Vec<(u16, Vec<u8>)>> {
        let mut messages = Vec::new();
        while let Some(event) = self.association.poll_event() {
            match event {
                AssociationEvent::Message { stream, message } => messages.push((stream, message.to_vec())),
                AssociationEvent::Closed(_) => return None,
                AssociationEvent::Open { .. } => unreachable!("the association is open"),
            }
        }
        Some(messages)
    }
}

/// All packets that the association can send now.
pub(super) fn packets(association: &mut Association, now: Instant) -> Vec<Vec<u8>> {
    let mut packets = Vec::new();
    let mut buffer = [0; MAX_PACKET_LEN];
    loop {
        let length = association.poll_packet(now, &mut buffer);
        if length == 0 {
            return packets;
        }
        packets.push(buffer[..length].to_vec());
        assert!(packets.len() <= 20_000, "unbounded number of packets");
    }
}

/// A DATA chunk with padding.
pub(super) fn data(flags: u8, tsn: u32, stream: u16, sequence: u16, protocol: u32, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(16 + payload.len()).unwrap();
    let mut chunk = vec![DATA, flags];
    chunk.extend(length.to_be_bytes());
    chunk.extend(tsn.to_be_bytes());
    chunk.extend(stream.to_be_bytes());
    chunk.extend(sequence.to_be_bytes());
    chunk.extend(protocol.to_be_bytes());
    chunk.extend(payload);
    chunk.resize(chunk.len().next_multiple_of(4), 0);
    chunk
}

/// A SACK chunk.
pub(super) fn sack(cumulative: u32, window: u32, blocks: &[(u16, u16)], duplicates: u16) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend(cumulative.to_be_bytes());
    body.extend(window.to_be_bytes());
    body.extend(u16::try_from(blocks.len()).unwrap().to_be_bytes());
    body.extend(duplicates.to_be_bytes());
    body.extend(blocks.iter().flat_map(|(from, to)| [from.to_be_bytes(), to.to_be_bytes()].concat()));
    body.extend((0..duplicates).flat_map(|_| cumulative.to_be_bytes()));
    let length = u16::try_from(4 + body.len()).unwrap();
    [&[SACK, 0][..], &length.to_be_bytes(), &body].concat()
}

/// Arbitrary packets of a peer cause no panic and no busy loop. Memory stays bounded and counters stay consistent.
fn hostile_peer(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut clock = FuzzClock::new();
    let mut now = clock.advance(0);
    let mut established = FuzzAssociation::new(now);
    while !choices.is_empty() {
        match choices.u8() % 8 {
            0 => established.receive(now, choices.bytes()),
            1 | 2 => {
                let (flags, distance, stream) = (choices.u8() & 0xb, choices.u16(), choices.u8() % 65);
                let (sequence, length) = (choices.u8(), usize::from(choices.u16()) % 1_168);
                let tsn = established.peer_tsn.wrapping_add(u32::from(distance)).wrapping_sub(8);
                let chunk = data(flags, tsn, stream.into(), sequence.into(), 53, &vec![9; length.max(1)]);
                established.receive(now, &chunk);
            }
            3 | 4 => {
                let cumulative = established.association_tsn.wrapping_add(choices.u8().into()).wrapping_sub(4);
                let window = u32::from(choices.u16()) << 8;
                let mut last = 0_u16;
                let blocks: Vec<_> = (0..choices.u8() % 8)
                    .map(|_| {
                        let from = last.saturating_add(choices.u8().into());
                        last = from.saturating_add(choices.u8().into());
                        (from, last)
                    })
                    .collect();
                let chunk = sack(cumulative, window, &blocks, (choices.u8() % 4).into());
                established.receive(now, &chunk);
            }
            5 => {
                let length = usize::from(choices.u16()) % (17 << 10);
                let stream = u16::from(choices.u8() % 65);
                if established.association.room(now) > 0 {
                    established.association.send(now, stream, vec![7; length].into());
                }
            }
            _ => now = clock.advance(choices.u8()),
        }
        let association = &mut established.association;
        for _ in 0..1_000 {
            if association.poll_timeout().is_none_or(|due| due > now) {
                break;
            }
            association.handle_timeout(now);
            packets(association, now);
        }
        packets(association, now);
        assert!(association.poll_timeout().is_none_or(|due| due > now), "timers expire without end");
        association.assert_sound();
        if established.messages().is_none() {
            assert_eq!(established.association.poll_timeout(), None);
            return;
        }
    }
}

fn hostile_seeds() -> Vec<Vec<u8>> {
    let write = |length: u16| [&[5][..], &length.to_be_bytes(), &[1]].concat();
    let acknowledge = |cumulative: u8, blocks: &[u8]| {
        [&[3, cumulative, 0x10, 0, u8::try_from(blocks.len() / 2).unwrap()], blocks, &[1]].concat()
    };
    let chunk = |distance: u16, sequence: u8, flags: u8, length: u16| {
        [&[1, flags][..], &(distance + 8).to_be_bytes(), &[2, sequence], &length.to_be_bytes()].concat()
    };
    let raw = |chunks: &[u8]| [&[0][..], &u16::try_from(chunks.len()).unwrap().to_be_bytes(), chunks].concat();
    // Waits of 31 ms and of 2,047 ms.
    let (short, long) = ([7, 5], [7, 11]);
    let heartbeat = [4, 0, 0, 12, 0, 1, 0, 8, 1, 2, 3, 4];
    let unknown = [0x80, 0, 0, 4, 0x41, 0, 0, 5, 1, 0, 0, 0];
    vec![
        [&write(16_000)[..], &short, &acknowledge(7, &[]), &short, &acknowledge(9, &[]), &acknowledge(17, &[])]
            .concat(),
        [&write(16_000)[..], &short, &acknowledge(5, &[2, 1, 2, 3]), &long, &acknowledge(5, &[2, 9]), &long, &long]
            .concat(),
        [&write(9_000)[..], &long, &long, &acknowledge(3, &[]), &long, &long, &long].concat(),
        [chunk(0, 0, 3, 10), chunk(1, 1, 2, 1_000), chunk(2, 1, 0, 1_000), chunk(3, 1, 1, 9)].concat(),
        [&chunk(3, 1, 3, 10)[..], &chunk(1, 0, 0, 8), &short, &chunk(2, 0, 1, 9), &chunk(0, 0, 2, 7), &short].concat(),
        [raw(&heartbeat), raw(&unknown), raw(&[6, 0, 0, 4])].concat(),
        raw(&[130, 0, 0, 20, 0, 13, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
    ]
}

/// A fragment of an honest peer's message.
#[derive(Clone)]
struct FuzzFragment {
    begin: bool,
    end: bool,
    stream: u16,
    sequence: u16,
    payload: Vec<u8>,
}

/// Messages according to the choices, split into consecutive fragments.
fn fragments(choices: &mut Choices<'_>) -> Vec<FuzzFragment> {
    let mut next = [0_u16; 64];
    let mut all = Vec::new();
    for number in 0..choices.u8() % 24 {
        let stream = u16::from(choices.u8() % 64);
        let pieces = choices.u8() % 20 + 1;
        let size = usize::from(choices.u8()) * 4 + 1;
        let sequence = next[usize::from(stream)];
        next[usize::from(stream)] += 1;
        all.extend((0..pieces).map(|piece| FuzzFragment {
            begin: piece == 0,
            end: piece + 1 == pieces,
            stream,
            sequence,
            payload: vec![number ^ piece; size],
        }));
    }
    all
}

/// A simple model of reassembly, which searches all received fragments for each message.
#[derive(Default)]
struct ReassemblyModel {
    /// Received fragments, by position.
    arrived: BTreeMap<usize, FuzzFragment>,
    /// Number of delivered messages, by stream.
    delivered: BTreeMap<u16, u16>,
}

impl ReassemblyModel {
    /// Messages that are complete and next in their stream.
    fn messages(&mut self) -> Vec<(u16, Vec<u8>)> {
        let mut messages = Vec::new();
        for (at, first) in self.arrived.iter().filter(|(_, fragment)| fragment.begin) {
            let next = self.delivered.entry(first.stream).or_default();
            if first.sequence != *next {
                continue;
            }
            let mut payload = Vec::new();
            for at in *at.. {
                let Some(fragment) = self.arrived.get(&at) else { break };
                payload.extend(&fragment.payload);
                if fragment.end {
                    messages.push((first.stream, core::mem::take(&mut payload)));
                    *next += 1;
                    break;
                }
            }
        }
        messages
    }
}

/// With an honest peer, reordering and duplication of packets, the association delivers each message at the same packet
/// as [`ReassemblyModel`], and finally all messages.
fn reassembly(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut now = FuzzClock::new().advance(0);
    let mut established = FuzzAssociation::new(now);
    let fragments = fragments(&mut choices);
    let mut unsent: VecDeque<usize> = (0..fragments.len()).collect();
    let mut model = ReassemblyModel::default();
    while let Some(at) = unsent.pop_front() {
        let choice = choices.u8();
        if choice & 3 == 3 {
            // The packet is sent after the chosen number of other packets.
            unsent.insert(usize::from(choice >> 2).min(unsent.len()), at);
            continue;
        }
        let fragment = &fragments[at];
        let flags = u8::from(fragment.begin) << 1 | u8::from(fragment.end);
        let tsn = established.peer_tsn.wrapping_add(u32::try_from(at).unwrap());
        let chunk = data(flags, tsn, fragment.stream, fragment.sequence, 53, &fragment.payload);
        established.receive(now, &chunk);
        if choice & 3 == 2 {
            established.receive(now, &chunk);
        }
        model.arrived.insert(at, fragment.clone());
        let mut messages = established.messages().expect("an honest peer doesn't end the association");
        let mut expected = model.messages();
        // The order between streams is unspecified.
        messages.sort_by_key(|message| message.0);
        expected.sort_by_key(|message| message.0);
        assert_eq!(messages, expected, "fragment {at}");
        established.association.assert_sound();
        packets(&mut established.association, now);
        now = now.after(Duration::from_millis(1));
    }
    assert_eq!(model.delivered.values().map(|number| usize::from(*number)).sum::<usize>(), {
        fragments.iter().filter(|fragment| fragment.end).count()
    });
    assert_eq!(established.association.held(), 0);
}

fn reassembly_seeds() -> Vec<Vec<u8>> {
    let all_in_order = vec![3, 1, 4, 200, 1, 0, 9, 2, 15, 255];
    let late = [&all_in_order[..], &[3 | 5 << 2, 0, 0, 2, 3 | 1 << 2, 0, 3 | 40 << 2, 0, 0, 2]].concat();
    let many: Vec<u8> = [23].into_iter().chain((0..23).flat_map(|number| [number % 5, number, 90])).collect();
    let shuffled = [&many[..], &[3 | 9 << 2, 3 | 2 << 2, 0, 3 | 30 << 2, 2, 1, 3 | 63 << 2].repeat(8)].concat();
    vec![all_in_order, late, many, shuffled]
}
