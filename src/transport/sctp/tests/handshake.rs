//! Tests of the handshake with unusual and hostile peers, and with losses.

use super::{
    super::{Close, Config, packet},
    forged::{ForgedPeer, TAG, own_init, packet_for, stock_init, whole},
    in_seconds,
    path::{Pair, PathConditions},
};

/// A packet with the checksum field at zero.
fn without_checksum(mut packet: Vec<u8>) -> Vec<u8> {
    packet[8..12].fill(0);
    packet
}

#[test]
fn a_stock_peer_has_four_streams_and_our_node_sixty_four() {
    assert_eq!(ForgedPeer::stock().open_streams, Some(4));
    assert_eq!(ForgedPeer::own().open_streams, Some(64));
}

#[test]
fn fewer_streams_than_lanes_end_the_association() {
    for init in [stock_init(1), own_init(1)] {
        let mut forged = ForgedPeer::listening(&Config::new(1_195));
        forged.init(packet::INIT, 0, &packet::Init { inbound: 3, ..init });
        assert_eq!(forged.closed, Some(Close::Broken));
    }
    let mut forged = ForgedPeer::established(&Config::new(1_195), &packet::Init { inbound: 10, ..own_init(1) });
    assert_eq!(forged.open_streams, Some(10), "no more streams are offered than the peer accepts");
    forged.association.send(forged.now, 9, vec![1].into());
    assert_eq!(forged.answer(packet::DATA).body[4..6], [0, 9]);
}

#[test]
fn a_repeated_init_has_the_same_answer_and_no_effect() {
    let mut forged = ForgedPeer::stock();
    let init = stock_init(forged.tsn);
    forged.data(&whole(forged.tsn, 0, b"first"));
    forged.answers();
    forged.init(packet::INIT, 0, &init);
    let cookie = forged.cookie.clone();
    let answer = forged.answer(packet::INIT_ACK);
    forged.read_init(&answer.body);
    assert_eq!(forged.cookie, cookie);
    // A repeated COOKIE ECHO is answered too.
    forged.chunk(packet::COOKIE_ECHO, 0, &cookie);
    forged.answer(packet::COOKIE_ACK);
    forged.data(&whole(forged.tsn.wrapping_add(1), 1, b"second"));
    assert_eq!(forged.messages.len(), 2);
    assert_eq!(forged.closed, None);
}

/// Asserts that the association has ended with an ABORT under this tag.
fn assert_aborts_with(forged: &mut ForgedPeer, tag: u32) {
    assert_eq!(forged.answer(packet::ABORT).packet[4..8], tag.to_be_bytes());
}

#[test]
fn a_second_init_with_another_tag_or_tsn_ends_the_association() {
    for early in [true, false] {
        let start = || {
            if !early {
                return ForgedPeer::stock();
            }
            let mut forged = ForgedPeer::listening(&Config::new(1_195));
            forged.init(packet::INIT, 0, &stock_init(forged.tsn));
            forged
        };
        let mut forged = start();
        forged.answers();
        forged.init(packet::INIT, 0, &packet::Init { tag: TAG + 1, ..stock_init(forged.tsn) });
        assert_eq!(forged.closed, Some(Close::Broken));
        assert_aborts_with(&mut forged, TAG + 1);
        let mut forged = start();
        forged.init(packet::INIT, 0, &stock_init(forged.tsn.wrapping_add(1)));
        assert_eq!(forged.closed, Some(Close::Broken));
    }
}

#[test]
fn a_malformed_or_bundled_init_has_no_answer() {
    let good = packet_for(0, |writer| writer.init(packet::INIT, &stock_init(1)));
    let body = good[16..].to_vec();
    let zeroed = |range: core::ops::Range<usize>| {
        let mut body = body.clone();
        body[range].fill(0);
        body
    };
    let mut bodies = vec![body[..15].to_vec(), Vec::new(), zeroed(0..4), zeroed(8..10), zeroed(10..12)];
    // Parameters with a length beyond the chunk, of zero, of less than a header, and without a length field.
    for parameter in [&[0x80, 8, 0, 200, 1, 2][..], &[0x80, 8, 0, 0], &[0x80, 8, 0, 3], &[0x80, 8]] {
        bodies.push([&body[..16], parameter].concat());
    }
    for body in bodies {
        let mut forged = ForgedPeer::listening(&Config::new(1_195));
        forged.deliver(&packet_for(0, |writer| writer.chunk(packet::INIT, 0, &body)));
        assert!(forged.answers().is_empty(), "{body:?}");
    }
    let mut forged = ForgedPeer::listening(&Config::new(1_195));
    forged.deliver(&packet_for(0, |writer| {
        writer.init(packet::INIT, &stock_init(1));
        writer.chunk(packet::COOKIE_ACK, 0, &[]);
    }));
    assert!(forged.answers().is_empty());
    assert_eq!(forged.closed, None);
}

/// An INIT of a stock peer with these parameters appended.
fn init_with(parameters: &[&[u8]]) -> Vec<u8> {
    let mut body = packet_for(0, |writer| writer.init(packet::INIT, &stock_init(1)))[16..].to_vec();
    for parameter in parameters {
        body.resize(body.len().next_multiple_of(4), 0);
        body.extend(*parameter);
    }
    packet_for(0, |writer| writer.chunk(packet::INIT, 0, &body))
}

/// The values of the Unrecognized Parameter parameters in the body of INIT or INIT ACK.
fn reported(body: &[u8]) -> Vec<Vec<u8>> {
    let (mut rest, mut reported) = (&body[16..], Vec::new());
    while !rest.is_empty() {
        let length = usize::from(u16::from_be_bytes([rest[2], rest[3]]));
        if rest[..2] == [0, 8] {
            reported.push(rest[4..length].to_vec());
        }
        rest = &rest[length.next_multiple_of(4).min(rest.len())..];
    }
    reported
}

#[test]
fn unknown_parameters_of_an_init_are_reported_if_their_second_highest_bit_is_set() {
    // A parameter to skip silently, a known one, two unknown ones to report, and an unknown one that ends the list.
    let (silent, known) = ([0x80, 0x55, 0, 5, 1], [0xc0, 0, 0, 4]);
    let (one, two, last) = ([0xc0, 0x55, 0, 5, 2], [0xff, 1, 0, 4], [0x40, 1, 0, 6, 3, 4]);
    let report_of = |parameters: &[&[u8]]| {
        let mut forged = ForgedPeer::listening(&Config::new(1_195));
        let init = init_with(parameters);
        forged.deliver(&init);
        let answer = forged.answer(packet::INIT_ACK);
        forged.read_init(&answer.body);
        forged.deliver(&init);
        assert_eq!(forged.answer(packet::INIT_ACK).body, answer.body, "a repeated INIT has the same answer");
        let cookie = forged.cookie.clone();
        forged.chunk(packet::COOKIE_ECHO, 0, &cookie);
        assert_eq!(forged.open_streams, Some(4));
        reported(&answer.body)
    };
    assert_eq!(report_of(&[]), [[0_u8; 0]; 0]);
    assert_eq!(report_of(&[&silent, &known]), [[0_u8; 0]; 0]);
    assert_eq!(report_of(&[&silent, &one, &known, &two, &last, &one]), [&one[..], &two, &last]);
    assert_eq!(report_of(&[&[0, 0x55, 0, 4], &one]), [[0_u8; 0]; 0]);
    // The report has at most 256 bytes.
    let long = [&[0xc0, 0x55, 0, 252][..], &[1; 248]].concat();
    assert_eq!(report_of(&[&long]), [&long[..]]);
    let longer = [&[0xc0, 0x55, 0, 253][..], &[1; 249]].concat();
    assert_eq!(report_of(&[&longer, &one]), [&one[..]]);
    assert_eq!(report_of(&vec![&one[..]; 100]).len(), 256 / 12);
}

#[test]
fn a_cookie_of_one_kilobyte_is_echoed_and_a_longer_one_ends_the_association() {
    for (length, echoed) in [(1, true), (1_024, true), (1_025, false), (0, false)] {
        let mut forged = ForgedPeer::connecting(&Config::new(1_195));
        let cookie = vec![9; length];
        // `PacketWriter::init` has room for short cookies only.
        let mut body = packet_for(0, |writer| writer.init(packet::INIT_ACK, &stock_init(5)))[16..].to_vec();
        let parameter = [&[0, 7][..], &(length as u16 + 4).to_be_bytes(), &cookie].concat();
        body.extend(parameter);
        body.resize(body.len().next_multiple_of(4), 0);
        forged.chunk(packet::INIT_ACK, 0, &body);
        if echoed {
            // The packet is filled with data.
            forged.queue(3_000);
            let answers = forged.answers();
            assert_eq!((answers[0].kind, &answers[0].body), (packet::COOKIE_ECHO, &cookie));
            assert!(answers.iter().all(|answer| answer.packet == answers[0].packet), "one packet for each attempt");
            assert_eq!(forged.closed, None);
        } else {
            assert_eq!(forged.closed, Some(Close::Broken));
            assert_aborts_with(&mut forged, TAG);
        }
    }
}

#[test]
fn an_end_without_the_tag_of_its_peer_accepts_and_sends_no_abort_with_tag_zero() {
    for kind in [packet::ABORT, packet::SHUTDOWN_COMPLETE] {
        for mut forged in [ForgedPeer::connecting(&Config::new(1_195)), ForgedPeer::listening(&Config::new(1_195))] {
            forged.deliver(&packet_for(0, |writer| writer.chunk(kind, 1, &[])));
            assert_eq!(forged.closed, None, "kind {kind}");
        }
    }
    for kind in [packet::I_DATA, packet::SHUTDOWN] {
        let mut forged = ForgedPeer::connecting(&Config::new(1_195));
        forged.chunk(kind, 0, &[0; 4]);
        assert!(forged.closed.is_some() && forged.answers().is_empty(), "kind {kind}");
    }
}

#[test]
fn an_init_or_init_ack_with_a_window_below_1500_bytes_is_discarded() {
    for (window, accepted) in [(0, false), (1_499, false), (1_500, true)] {
        let mut forged = ForgedPeer::listening(&Config::new(1_195));
        forged.init(packet::INIT, 0, &packet::Init { window, ..stock_init(1) });
        assert_eq!(forged.answers().len(), usize::from(accepted));
        let mut forged = ForgedPeer::connecting(&Config::new(1_195));
        let init_ack = packet::Init { cookie: Some(b"c"), ..stock_init(1) };
        forged.init(packet::INIT_ACK, forged.tag, &packet::Init { window, ..init_ack });
        assert_eq!((forged.open_streams.is_some(), forged.closed), (accepted, None));
        // A later one with a larger window opens the association.
        forged.init(packet::INIT_ACK, forged.tag, &init_ack);
        assert_eq!((forged.open_streams.is_some(), forged.closed), (true, None));
    }
}

#[test]
fn a_foreign_cookie_does_not_establish_an_association() {
    let mut forged = ForgedPeer::listening(&Config::new(1_195));
    forged.init(packet::INIT, 0, &stock_init(1));
    let answer = forged.answer(packet::INIT_ACK);
    forged.read_init(&answer.body);
    for cookie in [Vec::new(), vec![0; 16], forged.cookie[..15].to_vec()] {
        forged.chunk(packet::COOKIE_ECHO, 0, &cookie);
        assert!(forged.answers().is_empty() && forged.open_streams.is_none());
    }
    // Without an INIT, the association has no peer.
    let mut forged = ForgedPeer::listening(&Config::new(1_195));
    forged.deliver(&packet_for(0, |writer| writer.chunk(packet::COOKIE_ECHO, 0, &[0; 16])));
    assert!(forged.answers().is_empty() && forged.open_streams.is_none());
}

#[test]
fn data_before_establishment_counts_as_lost() {
    let mut forged = ForgedPeer::listening(&Config::new(1_195));
    forged.init(packet::INIT, 0, &stock_init(forged.tsn));
    let answer = forged.answer(packet::INIT_ACK);
    forged.read_init(&answer.body);
    forged.data(&whole(forged.tsn, 0, b"early"));
    assert!(forged.messages.is_empty() && forged.answers().is_empty() && forged.closed.is_none());
    let cookie = forged.cookie.clone();
    forged.chunk(packet::COOKIE_ECHO, 0, &cookie);
    forged.data(&whole(forged.tsn, 0, b"early"));
    assert_eq!(forged.messages, [(0, b"early".to_vec())]);
}

#[test]
fn a_packet_without_checksum_needs_an_announcement_and_excludes_init_and_cookie_echo() {
    for announced in [true, false] {
        let config = Config { zero_checksum: announced, ..Config::new(1_195) };
        let mut forged = ForgedPeer::listening(&config);
        let init = packet_for(0, |writer| writer.init(packet::INIT, &own_init(forged.tsn)));
        forged.deliver(&without_checksum(init.clone()));
        assert!(forged.answers().is_empty());
        forged.deliver(&init);
        let answer = forged.answer(packet::INIT_ACK);
        assert_ne!(answer.packet[8..12], [0; 4], "INIT ACK has a checksum");
        assert_eq!(packet::Init::parse(&answer.body).unwrap().zero_checksum, announced);
        forged.read_init(&answer.body);
        let echo = forged.packet(|writer| writer.chunk(packet::COOKIE_ECHO, 0, &forged.cookie));
        forged.deliver(&without_checksum(echo.clone()));
        assert!(forged.answers().is_empty());
        forged.deliver(&echo);
        // An end sends packets without a checksum only if it accepts them too.
        assert_eq!(forged.answer(packet::COOKIE_ACK).packet[8..12] == [0; 4], announced);
        let data = forged.packet(|writer| writer.data(&whole(forged.tsn, 0, b"x")));
        forged.deliver(&without_checksum(data.clone()));
        assert_eq!(forged.messages.len(), usize::from(announced));
        let mut wrong = data;
        wrong[8] ^= 1;
        forged.deliver(&wrong);
        assert_eq!(forged.messages.len(), usize::from(announced), "a wrong checksum does not count as a missing one");
    }
    // Packets to a peer without the announcement always have a checksum.
    let mut forged = ForgedPeer::stock();
    forged.queue(10);
    assert_ne!(forged.answer(packet::DATA).packet[8..12], [0; 4]);
}

/// Establishes an association by one INIT or two crossing INITs. `lost` has a bit for each lost packet.
fn establish_despite_losses(both_connect: bool, lost: u8) {
    let config = Config::new(1_195);
    let mut pair = Pair::with(lost.into(), [PathConditions::new(20); 2], &[[config.clone(), config]]);
    if both_connect {
        pair.connect_both();
    }
    pair.drop_first(lost.into());
    for end in [0, 1] {
        pair.ends[end].keep = true;
        pair.ends[end].queue.extend((0..5).map(|number| (number, vec![number as u8; 3_000])));
    }
    let all = |pair: &Pair| pair.ends.iter().all(|end| end.received.len() == 5 && end.association.is_flushed());
    let done = pair.run(in_seconds(&pair, 30.0), all);
    assert!(done, "not established, lost packets {lost:#b}");
    assert!(pair.ends.iter().all(|end| end.open_streams == Some(64) && end.closed.is_none()));
}

#[test]
fn the_handshake_survives_the_loss_of_any_of_its_packets() {
    // With all eight bits set, all eight attempts at INIT would be lost.
    (0..u8::MAX).for_each(|lost| establish_despite_losses(false, lost));
}

#[test]
fn crossing_inits_make_one_association_despite_losses() {
    (0..=u8::MAX).for_each(|lost| establish_despite_losses(true, lost));
}

#[test]
fn data_of_the_listener_replaces_its_lost_cookie_ack() {
    let mut forged = ForgedPeer::connecting(&Config::new(1_195));
    forged.init(packet::INIT_ACK, forged.tag, &packet::Init { cookie: Some(b"c"), ..stock_init(1) });
    forged.answer(packet::COOKIE_ECHO);
    forged.data(&whole(1, 0, b"x"));
    assert_eq!(forged.answer_sack().0, 1);
    forged.queue(10);
    forged.answer(packet::DATA);
}

#[test]
fn an_unanswered_handshake_times_out() {
    let mut forged = ForgedPeer::connecting(&Config::new(1_195));
    forged.wait(30_000);
    assert_eq!(forged.closed, Some(Close::TimedOut));
    assert_eq!(forged.association.poll_timeout(), None);
    let mut forged = ForgedPeer::connecting(&Config::new(1_195));
    forged.init(packet::INIT_ACK, forged.tag, &packet::Init { cookie: Some(b"c"), ..stock_init(1) });
    assert_eq!(forged.open_streams, Some(4));
    forged.wait(30_000);
    assert_eq!(forged.closed, Some(Close::TimedOut));
}

#[test]
fn a_retransmitted_init_ack_gives_no_round_trip_sample() {
    let mut forged = ForgedPeer::listening(&Config::new(1_195));
    let init = stock_init(forged.tsn);
    forged.init(packet::INIT, 0, &init);
    forged.answers();
    forged.wait(500);
    forged.init(packet::INIT, 0, &init);
    let answer = forged.answer(packet::INIT_ACK);
    forged.read_init(&answer.body);
    // COOKIE ECHO answers the first INIT ACK.
    forged.wait(1);
    let cookie = forged.cookie.clone();
    forged.chunk(packet::COOKIE_ECHO, 0, &cookie);
    assert!(forged.association.statistics().min_round_trip >= core::time::Duration::from_millis(300));
}
