//! Tests of data and control chunks from unusual and hostile peers, and of the memory that they occupy.

use super::{
    super::{
        Close, Config, MAX_MESSAGE,
        packet::{self, Data},
    },
    forged::{ForgedPeer, own_init, stock_init, whole},
};

/// DATA_CHANNEL_OPEN of a reliable, ordered channel.
const OPEN: [u8; 12] = [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// A fragment on stream 0.
fn fragment(tsn: u32, begin: bool, end: bool, payload: &[u8]) -> Data<'_> {
    Data { begin, end, ..whole(tsn, 0, payload) }
}

/// Reason for the end of an association after one chunk; `None` if it stays open.
fn close_after(kind: u8, flags: u8, body: &[u8]) -> Option<Close> {
    let mut forged = ForgedPeer::stock();
    forged.chunk(kind, flags, body);
    let aborts = forged.answers().iter().filter(|answer| answer.kind == packet::ABORT).count();
    let is_end = [packet::ABORT, packet::SHUTDOWN_COMPLETE].contains(&kind);
    assert_eq!(aborts, usize::from(!is_end), "only an ABORT and SHUTDOWN COMPLETE are not answered with an ABORT");
    forged.closed
}

#[test]
fn invalid_data_and_unnegotiated_chunks_end_the_association() {
    let tsn = ForgedPeer::stock().tsn.to_be_bytes();
    let data = [&tsn[..], &[0, 0, 0, 0, 0, 0, 0, 53]].concat();
    let with_payload = [&data[..], b"x"].concat();
    for (kind, flags, body) in [
        (packet::DATA, 4 | 3, &with_payload[..]),
        (packet::DATA, 3, &data),
        (packet::DATA, 3, &data[..11]),
        (packet::DATA, 3, &[]),
        (packet::I_DATA, 3, &[0; 20]),
        (packet::FORWARD_TSN, 0, &[0x7f; 4]),
        (packet::I_FORWARD_TSN, 0, &[0x7f; 4]),
    ] {
        assert_eq!(close_after(kind, flags, body), Some(Close::Broken), "kind {kind}, {body:?}");
    }
}

#[test]
fn abort_reset_and_shutdown_of_the_peer_end_the_association() {
    for (kind, body) in [
        (packet::ABORT, &[][..]),
        // A cause that extends beyond its chunk.
        (packet::ABORT, &[0, 1, 0xff, 0]),
        (packet::RE_CONFIG, &[0, 13, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        (packet::SHUTDOWN, &[0; 4]),
        (packet::SHUTDOWN_ACK, &[]),
        (packet::SHUTDOWN_COMPLETE, &[]),
    ] {
        assert_eq!(close_after(kind, 0, body), Some(Close::ByPeer), "kind {kind}");
    }
}

#[test]
fn chunks_under_another_tag_are_ignored() {
    let mut forged = ForgedPeer::stock();
    let tag = forged.tag;
    for wrong in [0, tag ^ 1, super::forged::TAG] {
        forged.tag = wrong;
        forged.data(&whole(forged.tsn, 0, b"x"));
        forged.chunk(packet::ABORT, 0, &[]);
        forged.chunk(packet::HEARTBEAT, 0, &[0, 1, 0, 4]);
    }
    assert!(forged.messages.is_empty() && forged.closed.is_none() && forged.answers().is_empty());
    // An ABORT with the T bit may carry the peer's tag.
    forged.tag = super::forged::TAG;
    forged.chunk(packet::ABORT, 1, &[]);
    assert_eq!(forged.closed, Some(Close::ByPeer));
}

#[test]
fn malformed_chunks_and_the_chunks_after_them_are_ignored() {
    let mut forged = ForgedPeer::stock();
    let good = forged.packet(|writer| writer.data(&whole(forged.tsn, 0, b"x")));
    for garbage in [&[][..], &[0], &[0, 0, 0], &[0, 0, 0, 3], &[0, 0, 0, 0], &[9, 0, 0xff, 0xff]] {
        let packet = forged.packet(|writer| {
            let mut buffer = [0; 64];
            buffer[..garbage.len()].copy_from_slice(garbage);
            writer.raw(&buffer[..garbage.len()]);
            writer.raw(&good[12..]);
        });
        if garbage.is_empty() {
            continue;
        }
        forged.deliver(&packet);
        assert!(forged.messages.is_empty() && forged.closed.is_none(), "{garbage:?}");
    }
    for length in 0..12 {
        forged.deliver(&good[..length]);
    }
    // Data inside a chunk of another kind is ignored.
    forged.chunk(packet::ERROR, 0, &good[12..]);
    forged.chunk(packet::HEARTBEAT_ACK, 0, &good[12..]);
    forged.chunk(packet::HEARTBEAT, 0, &[&[0, 1, 0, 4], &good[12..]].concat());
    forged.chunk(packet::SACK, 0, &[0; 11]);
    forged.chunk(packet::SACK, 0, &[0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0]);
    forged.deliver(&[0; 1_501]);
    assert!(forged.messages.is_empty() && forged.closed.is_none() && forged.answers().is_empty());
    forged.deliver(&good);
    assert_eq!(forged.messages.len(), 1);
}

#[test]
fn unknown_chunks_are_skipped_or_end_their_packet_by_their_highest_bit() {
    for (kind, follows) in [(15, false), (0x3f, false), (0x41, false), (0x7f, false), (0x81, true), (0xff, true)] {
        let mut forged = ForgedPeer::stock();
        let tsn = forged.tsn;
        forged.send(|writer| {
            writer.data(&whole(tsn, 0, b"before"));
            writer.chunk(kind, 0, b"other");
            writer.data(&whole(tsn.wrapping_add(1), 1, b"behind"));
        });
        assert_eq!(forged.messages.len(), 1 + usize::from(follows), "kind {kind:#x}");
        assert_eq!(forged.closed, None);
    }
}

/// An ERROR chunk's body: one cause, Unrecognized Chunk Type, with these bytes.
fn unrecognized(chunk: &[u8]) -> Vec<u8> {
    [&[0, 6][..], &(chunk.len() as u16 + 4).to_be_bytes(), chunk].concat()
}

#[test]
fn unknown_chunks_are_reported_once_a_second_if_their_second_highest_bit_is_set() {
    for (kind, reported) in [(15, false), (0x3f, false), (0x41, true), (0x7f, true), (0x81, false), (0xc1, true)] {
        let mut forged = ForgedPeer::stock();
        for _ in 0..3 {
            (0..10).for_each(|_| forged.chunk(kind, 5, b"other"));
            if reported {
                let chunk = [&[kind, 5, 0, 9][..], b"other"].concat();
                assert_eq!(forged.answer(packet::ERROR).body, unrecognized(&chunk), "kind {kind:#x}");
            }
            assert!(forged.answers().is_empty(), "kind {kind:#x}");
            forged.wait(999);
            forged.chunk(kind, 5, b"too soon");
            assert!(forged.answers().is_empty(), "kind {kind:#x}");
            forged.wait(1);
        }
        assert_eq!(forged.closed, None);
    }
    // An ERROR is not answered by another, and known chunks are not reported.
    let mut forged = ForgedPeer::stock();
    forged.chunk(packet::ERROR, 0, &unrecognized(&[0xc1, 0, 0, 4]));
    forged.chunk(packet::COOKIE_ACK, 0, &[]);
    assert!(forged.answers().is_empty());
}

#[test]
fn the_report_of_a_long_chunk_is_truncated_to_the_room_in_the_packet() {
    for length in [0, 1, 4, 1_150, 1_167, 1_168, 1_169, 1_171, 1_172, 1_484] {
        let mut forged = ForgedPeer::stock();
        forged.chunk(0xc1, 0, &vec![7; length]);
        forged.association.send_heartbeat();
        let answers = forged.answers();
        let kinds: Vec<_> = answers.iter().map(|answer| answer.kind).collect();
        assert_eq!(kinds, [packet::ERROR, packet::HEARTBEAT], "{length} bytes");
        let whole = [&[0xc1, 0][..], &(length as u16 + 4).to_be_bytes(), &vec![7; length]].concat();
        let max_len = whole.len().min(1_172);
        assert!(answers[0].body == unrecognized(&whole[..max_len]), "{length} bytes");
        // A HEARTBEAT ACK before the ERROR leaves less room. Without any room, the ERROR moves to the next packet.
        for room in [0, 8, 12, 100] {
            forged.wait(1_000);
            forged.chunk(0xc1, 0, &vec![7; length]);
            let info = 1_176 - room;
            forged.chunk(
                packet::HEARTBEAT,
                0,
                &[&[0, 1][..], &(info as u16).to_be_bytes(), &vec![5; info - 4]].concat(),
            );
            let kinds: Vec<_> = forged.answers().iter().map(|answer| answer.kind).collect();
            assert_eq!(kinds, [packet::HEARTBEAT_ACK, packet::ERROR], "{length} bytes beside {info}");
        }
    }
}

#[test]
fn unknown_chunks_before_establishment_are_not_reported() {
    let mut forged = ForgedPeer::connecting(&Config::new(1_195));
    forged.chunk(0xc1, 0, &[]);
    let mut listening = ForgedPeer::listening(&Config::new(1_195));
    listening.chunk(0xc1, 0, &[]);
    assert!(forged.answers().is_empty() && listening.answers().is_empty());
}

#[test]
fn a_heartbeat_is_answered_with_its_info_if_a_packet_has_room() {
    let mut forged = ForgedPeer::stock();
    let info = |length: usize| [&[0, 1][..], &(length as u16).to_be_bytes(), &vec![5; length - 4]].concat();
    for length in [4, 5, 44, 1_170] {
        forged.chunk(packet::HEARTBEAT, 0, &info(length));
        assert_eq!(forged.answer(packet::HEARTBEAT_ACK).body, info(length));
    }
    // A HEARTBEAT longer than our packets has no answer, also while other chunks are due.
    for length in [1_180, 1_484] {
        forged.chunk(packet::HEARTBEAT, 0, &info(length));
        assert!(forged.answers().is_empty());
        forged.queue(2_000);
        forged.data(&whole(forged.tsn, 0, b"x"));
        forged.chunk(packet::HEARTBEAT, 0, &info(length));
        let answers = forged.answers();
        assert!(answers.iter().any(|answer| answer.kind == packet::DATA));
        assert!(answers.iter().all(|answer| [packet::DATA, packet::SACK].contains(&answer.kind)));
    }
    // Many heartbeats have one answer.
    (0..100).for_each(|_| forged.chunk(packet::HEARTBEAT, 0, &info(8)));
    forged.answer(packet::HEARTBEAT_ACK);
}

#[test]
fn non_binary_messages_end_the_association() {
    for protocol in [0, 51, 52, 54, 56, 57] {
        let mut forged = ForgedPeer::stock();
        forged.data(&Data { protocol, ..whole(forged.tsn, 0, b"x") });
        assert_eq!(forged.closed, Some(Close::Broken), "protocol {protocol}");
    }
}

#[test]
fn sixteen_chunks_of_a_packet_are_handled_and_further_ones_count_as_lost() {
    // 74 chunks of one byte fill a packet: whole messages, and the fragments of one message.
    for whole_messages in [true, false] {
        let mut forged = ForgedPeer::stock();
        let (first, mut next) = (forged.tsn, 0_u32);
        let chunk = |number: u32| match whole_messages {
            true => whole(first.wrapping_add(number), number as u16, b"x"),
            false => fragment(first.wrapping_add(number), number == 0, number == 199, b"x"),
        };
        while next < 200 {
            forged.send(|writer| (next..(next + 74).min(200)).for_each(|number| writer.data(&chunk(number))));
            next = (next + 16).min(200);
            let (cumulative, _, blocks) = forged.answer_sack();
            assert_eq!((cumulative, blocks), (first.wrapping_add(next - 1), Vec::new()));
            assert_eq!(forged.closed, None);
            let messages = if whole_messages { next } else { u32::from(next == 200) };
            assert_eq!(forged.messages.len(), messages as usize);
        }
    }
}

#[test]
fn data_that_completes_no_message_ends_the_association_despite_later_chunks_of_its_packet() {
    let at = |first: u32, number: u32, stream: u16, sequence: u16| Data {
        stream,
        ..whole(first.wrapping_add(number), sequence, b"x")
    };
    // The second message of stream 9 has the lower TSN. The first message follows in the same packet.
    let mut forged = ForgedPeer::own();
    let first = forged.tsn;
    forged.send(|writer| {
        writer.data(&at(first, 0, 9, 1));
        writer.data(&at(first, 1, 9, 0));
    });
    assert_eq!((forged.closed, forged.messages.len()), (Some(Close::Broken), 0));
    // The same, but the second message waits behind a hole that a chunk of another stream fills.
    for more in [true, false] {
        let mut forged = ForgedPeer::own();
        let first = forged.tsn;
        forged.data(&at(first, 1, 9, 1));
        forged.send(|writer| {
            writer.data(&at(first, 0, 3, 0));
            if more {
                writer.data(&at(first, 2, 9, 0));
            }
        });
        assert_eq!(forged.closed, Some(Close::Broken));
        assert!(forged.messages.iter().all(|(stream, _)| *stream == 3));
        assert_eq!(forged.answer(packet::ABORT).body, [0_u8; 0]);
    }
}

#[test]
fn a_stream_identifier_beyond_the_number_of_streams_ends_the_association() {
    for (mut forged, streams) in [(ForgedPeer::stock(), 4), (ForgedPeer::own(), 64)] {
        forged.data(&Data { stream: streams - 1, ..whole(forged.tsn, 0, b"x") });
        assert_eq!(forged.messages.len(), 1);
        forged.data(&Data { stream: streams, ..whole(forged.tsn.wrapping_add(1), 0, b"x") });
        assert_eq!(forged.closed, Some(Close::Broken));
    }
}

#[test]
fn a_stream_opens_in_band_once_and_other_dcep_messages_end_the_association() {
    let mut forged = ForgedPeer::stock();
    for stream in 0..4 {
        let tsn = forged.tsn.wrapping_add(u32::from(stream) * 2);
        forged.data(&Data { stream, protocol: 50, ..whole(tsn, 0, &OPEN) });
        let answer = forged.answers().into_iter().find(|answer| answer.kind == packet::DATA).unwrap();
        assert_eq!(answer.body[4..6], stream.to_be_bytes());
        assert_eq!(answer.body[8..], [0, 0, 0, 50, 2], "DATA_CHANNEL_ACK");
        forged.data(&Data { stream, protocol: 50, ..whole(tsn.wrapping_add(1), 1, &[2]) });
    }
    assert_eq!((forged.closed, forged.messages.len()), (None, 0));
    forged.data(&Data { protocol: 50, ..whole(forged.tsn.wrapping_add(8), 2, &OPEN) });
    assert_eq!(forged.closed, Some(Close::Broken), "opened twice");
    for other in [&[7][..], &[3, 0x80, 0, 0], &[3, 1], &[2, 2], &[3]] {
        let mut forged = ForgedPeer::stock();
        forged.data(&Data { protocol: 50, ..whole(forged.tsn, 0, other) });
        assert_eq!(forged.closed, Some(Close::Broken), "{other:?}");
    }
}

#[test]
fn a_message_of_64_kib_arrives_and_a_longer_one_ends_the_association() {
    for (last, arrives) in [(1_024, true), (1_025, false)] {
        let mut forged = ForgedPeer::stock();
        let tsn = forged.tsn;
        for number in 0..63 {
            forged.data(&fragment(tsn.wrapping_add(number), number == 0, false, &[1; 1_024]));
        }
        forged.data(&fragment(tsn.wrapping_add(63), false, true, &vec![1; last]));
        assert_eq!(forged.messages.len(), usize::from(arrives));
        assert_eq!(forged.closed, (!arrives).then_some(Close::Broken));
        assert!(!arrives || forged.messages[0].1.len() == MAX_MESSAGE);
    }
}

#[test]
fn inconsistent_fragments_end_the_association() {
    type Change = fn(&mut Data<'_>);
    let changes: [Change; 4] =
        [|data| data.begin = true, |data| data.sequence = 1, |data| data.protocol = 51, |data| data.stream = 1];
    for (number, change) in changes.into_iter().enumerate() {
        for late in [false, true] {
            let mut forged = ForgedPeer::stock();
            let tsn = forged.tsn;
            let mut second = fragment(tsn.wrapping_add(1), false, true, b"b");
            change(&mut second);
            if late {
                forged.data(&second);
                forged.data(&fragment(tsn, true, false, b"a"));
            } else {
                forged.data(&fragment(tsn, true, false, b"a"));
                forged.data(&second);
            }
            assert_eq!(forged.closed, Some(Close::Broken), "change {number}, late {late}");
        }
    }
    // A message without its beginning, or with a skipped sequence number.
    for data in [fragment(0, false, false, b"x"), fragment(0, false, true, b"x"), whole(0, 1, b"x")] {
        let mut forged = ForgedPeer::stock();
        forged.data(&Data { tsn: forged.tsn, ..data });
        assert_eq!(forged.closed, Some(Close::Broken));
    }
}

#[test]
fn data_of_another_stream_inside_a_message_ends_the_association() {
    // The message's next TSN has arrived with other data, so the message would be held indefinitely.
    for between in [whole(0, 0, b"x"), fragment(0, true, false, b"x")] {
        for gap in [false, true] {
            let mut forged = ForgedPeer::own();
            let tsn = forged.tsn;
            let between = Data { tsn: tsn.wrapping_add(1), stream: 9, ..between };
            if gap {
                forged.data(&between);
            }
            forged.data(&fragment(tsn, true, false, b"a"));
            if !gap {
                forged.data(&between);
            }
            assert_eq!(forged.closed, Some(Close::Broken), "gap {gap}");
        }
    }
}

#[test]
fn sixty_four_streams_with_an_incomplete_message_each_hold_no_more_than_the_bound() {
    for size in [1, 100, 1_000, 1_160] {
        for spaced in [false, true] {
            let mut forged = ForgedPeer::own();
            let payload = vec![1; size];
            let mut tsn = forged.tsn.wrapping_add(u32::from(spaced));
            'all: for stream in 0..64 {
                for number in 0..56 {
                    let data = Data { stream, ..fragment(tsn, number == 0, false, &payload) };
                    forged.data(&data);
                    tsn = tsn.wrapping_add(1);
                    if forged.closed.is_some() {
                        break 'all;
                    }
                }
                // With a hole after each message, all messages are valid.
                tsn = tsn.wrapping_add(u32::from(spaced));
            }
            assert_eq!(forged.closed.is_some(), !spaced);
        }
    }
}

#[test]
fn incomplete_messages_occupy_at_most_the_bound_of_the_window() {
    for size in [1, 500, 1_160] {
        let mut forged = ForgedPeer::own();
        let payload = vec![1; size];
        let tsn = forged.tsn;
        for number in 1..8_000 {
            forged.data(&Data { stream: (number % 64) as u16, ..whole(tsn.wrapping_add(number), 1, &payload) });
        }
        let (held, bound) = (forged.association.held(), forged.association.max_held());
        assert!(held > 1 << 20 && held <= bound, "{held} of {bound}");
        let (cumulative, window, blocks) = forged.answer_sack();
        assert_eq!((cumulative, window), (tsn.wrapping_sub(1), 0));
        // Dropped data is not acknowledged.
        assert!(blocks.len() == 1 && usize::from(blocks[0].1) < 2_000, "{blocks:?}");
        assert_eq!(forged.closed, None);
        forged.wait(31_000);
        assert_eq!(forged.closed, Some(Close::TimedOut), "a hole lasts at most half a minute");
    }
}

#[test]
fn at_most_1024_ranges_are_stored_and_further_ones_are_not_acknowledged() {
    let config = Config { initial_window: 4 << 20, ..Config::new(1_195) };
    let mut forged = ForgedPeer::established(&config, &own_init(u32::MAX - 2));
    let tsn = forged.tsn;
    for number in 1..1_500_u16 {
        let stream = number % 64;
        forged.data(&Data { stream, ..whole(tsn.wrapping_add(u32::from(number) * 2), number / 64 + 1, b"x") });
    }
    let (_, _, blocks) = forged.answer_sack();
    assert_eq!(blocks.len(), (1_195 - 28) / 4, "as many blocks as a packet holds");
    // A TSN that joins two ranges is accepted, although there is no room for a further range.
    forged.data(&Data { stream: 3, ..whole(tsn.wrapping_add(3), 9, b"x") });
    let (_, _, blocks) = forged.answer_sack();
    assert_eq!(blocks[..2], [(3, 5), (7, 7)]);
    assert_eq!(forged.closed, None);
}

#[test]
fn a_tsn_far_ahead_is_dropped_and_the_next_one_still_arrives() {
    for distance in [1 << 16, 1 << 20, (1 << 31) - 1] {
        let mut forged = ForgedPeer::stock();
        let tsn = forged.tsn;
        forged.data(&whole(tsn.wrapping_add(distance), 9, b"far"));
        assert_eq!(forged.association.held(), 0);
        assert!(forged.answer_sack().2.is_empty());
        forged.data(&whole(tsn, 0, b"near"));
        assert_eq!(forged.messages.len(), 1);
    }
}

#[test]
fn repeated_data_is_reported_as_duplicate() {
    let mut forged = ForgedPeer::stock();
    let tsn = forged.tsn;
    forged.data(&whole(tsn, 0, b"x"));
    forged.data(&whole(tsn.wrapping_add(5), 1, b"y"));
    forged.answers();
    for _ in 0..30 {
        forged.data(&whole(tsn, 0, b"x"));
        forged.data(&whole(tsn.wrapping_add(5), 1, b"y"));
        forged.data(&whole(tsn.wrapping_sub(9), 1, b"z"));
    }
    let answer = forged.answer(packet::SACK);
    assert_eq!(packet::Sack::parse(&answer.body).unwrap().duplicates, 20);
    assert_eq!(forged.messages.len(), 2);
}

#[test]
fn tsns_and_sequence_numbers_wrap() {
    let mut forged = ForgedPeer::established(&Config::new(1_195), &stock_init(u32::MAX - 1_000));
    let tsn = forged.tsn;
    for number in 0..66_000_u32 {
        forged.data(&whole(tsn.wrapping_add(number), number as u16, b"x"));
        if number % 128 == 0 {
            assert_eq!(forged.answer_sack().0, tsn.wrapping_add(number));
        }
    }
    assert_eq!(forged.messages.len(), 66_000);
    // Gaps across the wrap.
    let mut forged = ForgedPeer::established(&Config::new(1_195), &own_init(u32::MAX - 3));
    for number in [2_u32, 3, 5, 6, 8] {
        forged.data(&whole((u32::MAX - 3).wrapping_add(number), number as u16, b"x"));
    }
    assert_eq!(forged.answer_sack(), (u32::MAX - 4, (1 << 20) - 5 * 1_280, vec![(3, 4), (6, 7), (9, 9)]));
    for number in [0_u32, 1, 4, 7] {
        forged.data(&whole((u32::MAX - 3).wrapping_add(number), number as u16, b"x"));
    }
    assert_eq!(forged.answer_sack(), (4, 1 << 20, Vec::new()));
    assert_eq!(forged.messages.len(), 9);
}

#[test]
fn a_hole_ends_the_association_after_thirty_seconds_or_for_a_full_source_after_three() {
    for (short, seconds) in [(false, 30), (true, 3)] {
        let mut forged = ForgedPeer::own();
        forged.association.set_hole_timeout(short);
        forged.data(&whole(forged.tsn.wrapping_add(1), 1, b"x"));
        forged.wait(seconds * 1000 - 1);
        assert_eq!(forged.closed, None);
        forged.wait(1);
        assert_eq!(forged.closed, Some(Close::TimedOut));
    }
}
