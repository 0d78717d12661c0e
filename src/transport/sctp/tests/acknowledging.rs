//! Tests of acknowledgements from unusual and hostile peers.

use core::time::Duration;

use rand::{RngExt as _, SeedableRng as _, rngs::StdRng, seq::IndexedRandom as _};

use super::{
    super::{
        Close,
        clock::Tick,
        packet::{self, Arrival},
    },
    forged::{ForgedPeer, whole},
};

/// An association with `packets` full packets of data in flight.
fn sending(packets: usize) -> ForgedPeer {
    let mut forged = ForgedPeer::own();
    forged.queue(packets * 1_164);
    assert_eq!(forged.answers().len(), packets);
    forged
}

#[test]
fn a_sack_for_unsent_data_ends_the_association() {
    for ahead in [10, 11, 1 << 20, (1 << 31) - 20] {
        let mut forged = sending(10);
        forged.sack(forged.peer_tsn.wrapping_add(ahead), 1 << 20, &[], &[]);
        assert_eq!(forged.closed, Some(Close::Broken), "{ahead} ahead");
    }
    let mut forged = sending(10);
    forged.sack(forged.peer_tsn, 1 << 20, &[(3, 10)], &[]);
    assert_eq!(forged.closed, Some(Close::Broken), "a block ends beyond the last sent TSN");
}

#[test]
fn overlapping_and_reversed_gap_blocks_end_the_association() {
    for blocks in
        [&[(0, 0)][..], &[(0, 4)], &[(1, 2)], &[(4, 3)], &[(4, 5), (2, 2)], &[(2, 3), (3, 4)], &[(2, 3), (2, 3)]]
    {
        let mut forged = sending(10);
        forged.sack(forged.peer_tsn.wrapping_sub(1), 1 << 20, blocks, &[]);
        assert_eq!(forged.closed, Some(Close::Broken), "{blocks:?}");
    }
}

#[test]
fn an_outdated_sack_is_ignored() {
    let mut forged = sending(10);
    let tsn = forged.peer_tsn;
    forged.sack(tsn.wrapping_add(4), 1 << 20, &[], &[]);
    forged.association.assert_invariants();
    let state = forged.association.sending_state();
    for old in [0, 3, 1_000, 1 << 30] {
        forged.sack(tsn.wrapping_add(4).wrapping_sub(1 + old), 0, &[(7, 9)], &[]);
    }
    forged.association.assert_invariants();
    let after = forged.association.sending_state();
    assert_eq!((after.in_flight, after.peer_window), (state.in_flight, state.peer_window));
    assert_eq!(forged.closed, None);
}

#[test]
fn a_shorter_list_of_gap_blocks_revokes_no_acknowledgement() {
    let mut forged = sending(10);
    let before = forged.peer_tsn.wrapping_sub(1);
    forged.sack(before, 1 << 20, &[(8, 10)], &[]);
    forged.association.assert_invariants();
    let state = forged.association.sending_state();
    forged.sack(before, 1 << 20, &[], &[]);
    forged.association.assert_invariants();
    assert_eq!(forged.association.sending_state().in_flight, state.in_flight);
    forged.wait(2_000);
    // A peer whose cumulative TSN stops before a reported gap ack block has reneged.
    forged.sack(before.wrapping_add(7), 1 << 20, &[], &[]);
    assert_eq!(forged.closed, Some(Close::Broken));
}

#[test]
fn premature_acknowledgements_exceed_no_bound() {
    // For 0.1 s each packet is acknowledged when it is sent.
    let mut forged = ForgedPeer::own();
    let mut acknowledged = forged.peer_tsn;
    for _ in 0..1_000 {
        let room = forged.association.room(forged.now);
        forged.queue(room.clamp(1, 17 << 10));
        let sent = forged.answers().iter().filter(|answer| answer.kind == packet::DATA).count();
        acknowledged = acknowledged.wrapping_add(sent as u32);
        if sent > 0 {
            forged.sack(acknowledged.wrapping_sub(1), u32::MAX, &[], &[]);
        }
        forged.now = forged.now.after(Duration::from_micros(100));
        forged.association.assert_invariants();
        let state = forged.association.sending_state();
        assert!(state.window <= 16 << 20 && state.unsent <= 17 << 10);
    }
    assert_eq!(forged.closed, None);
}

#[test]
fn false_arrival_times_do_not_end_the_association_and_exceed_no_bound() {
    for seed in 0..20 {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut forged = ForgedPeer::own();
        let mut acknowledged = forged.peer_tsn.wrapping_sub(1);
        for _ in 0..400 {
            let room = forged.association.room(forged.now);
            forged.queue(room.clamp(1, 17 << 10));
            let sent = forged.answers().iter().filter(|answer| answer.kind == packet::DATA).count();
            forged.now = forged.now.after(Duration::from_millis(rng.random_range(0..60)));
            for _ in 0..rng.random_range(0..3) {
                let tsn = acknowledged.wrapping_add(rng.random_range(0..4));
                let tick = Tick(*[0, 1, u32::MAX, 1 << 31, rng.random()].choose(&mut rng).unwrap());
                forged.send(|writer| writer.arrival(&Arrival { tsn, tick }));
            }
            acknowledged = acknowledged.wrapping_add(sent as u32);
            forged.sack(acknowledged, 1 << 30, &[], &[]);
            forged.association.assert_invariants();
            let state = forged.association.sending_state();
            assert!(state.window <= 16 << 20 && state.unsent <= 17 << 10);
        }
        assert_eq!(forged.closed, None);
        assert!(acknowledged.wrapping_sub(forged.peer_tsn) > 400, "seed {seed}: the sender sent only a few packets");
    }
}

#[test]
fn an_arrival_precedes_the_sack_with_the_time_of_the_newest_data() {
    let mut forged = ForgedPeer::own();
    let tsn = forged.tsn;
    let mut arrival_of = |number: u32| {
        forged.now = forged.now.after(Duration::from_millis(25));
        forged.data(&whole(tsn.wrapping_add(number), number as u16, b"x"));
        forged.now = forged.now.after(Duration::from_millis(7));
        forged.association.handle_timeout(forged.now);
        let mut arrivals = forged.answers().into_iter().filter(|answer| answer.kind == packet::ARRIVAL);
        arrivals.next().and_then(|answer| Arrival::parse(&answer.body)).unwrap()
    };
    let (first, second) = (arrival_of(0), arrival_of(1));
    assert_eq!((first.tsn, second.tsn), (tsn, tsn.wrapping_add(1)));
    assert_eq!(second.tick.0.wrapping_sub(first.tick.0), 320, "units of 100 microseconds");
}

#[test]
fn arrivals_are_neither_sent_to_nor_used_from_a_stock_peer() {
    let mut forged = ForgedPeer::stock();
    let tsn = forged.tsn;
    let mut answers_to = |number: u16, with_arrival: bool| {
        if with_arrival {
            forged.send(|writer| writer.arrival(&Arrival { tsn, tick: Tick(5) }));
        }
        forged.data(&whole(tsn.wrapping_add(u32::from(number)), number, b"x"));
        forged.now = forged.now.after(Duration::from_secs(1));
        forged.association.handle_timeout(forged.now);
        let kinds: Vec<_> = forged.answers().iter().map(|answer| answer.kind).collect();
        assert!(kinds.contains(&packet::SACK) && forged.closed.is_none(), "{kinds:?}");
        kinds
    };
    assert!(!answers_to(0, false).contains(&packet::ARRIVAL));
    assert!(!answers_to(1, true).contains(&packet::ERROR));
}

#[test]
fn a_zero_window_allows_one_packet_and_reopens() {
    let mut forged = sending(10);
    let tsn = forged.peer_tsn;
    forged.sack(tsn.wrapping_add(9), 0, &[], &[]);
    forged.queue(17 << 10);
    assert_eq!(forged.answers().len(), 1, "one packet exceeds a zero window");
    assert!(forged.answers().is_empty());
    // That packet is lost. The sender retransmits it at increasing intervals, and sends no other packet.
    let mut times = Vec::new();
    for _ in 0..2_000 {
        let due = forged.association.poll_timeout().expect("a timer runs");
        forged.now = forged.now.max(due);
        forged.association.handle_timeout(forged.now);
        let answers = forged.answers();
        assert!(answers.len() <= 1);
        if let Some(answer) = answers.first() {
            assert_eq!(answer.body[..4], tsn.wrapping_add(10).to_be_bytes());
            times.push(forged.now);
        }
        if times.len() == 8 {
            break;
        }
    }
    let pauses: Vec<_> = times.windows(2).map(|two| two[1].since(two[0])).collect();
    let longest = pauses.iter().max().unwrap();
    assert!(longest <= &Duration::from_secs(3) && longest >= &Duration::from_secs(1), "{pauses:?}");
    // The window has room for two packets.
    forged.sack(tsn.wrapping_add(10), 2_400, &[], &[]);
    assert_eq!(forged.answers().len(), 2);
    forged.sack(tsn.wrapping_add(12), 1 << 20, &[], &[]);
    assert!(forged.answers().len() > 5);
}

#[test]
fn half_a_minute_without_new_acknowledgements_ends_the_association() {
    let mut forged = sending(10);
    let start = forged.now;
    // Heartbeats keep the link open but do not count as progress.
    while forged.closed.is_none() && forged.now.since(start) < Duration::from_secs(60) {
        forged.wait(1_000);
        forged.chunk(packet::HEARTBEAT, 0, &[0, 1, 0, 4]);
        forged.sack(forged.peer_tsn.wrapping_sub(1), 1 << 20, &[], &[]);
    }
    assert_eq!(forged.closed, Some(Close::TimedOut));
    assert!(forged.now.since(start) <= Duration::from_secs(32), "{:?}", forged.now.since(start));
}

#[test]
fn an_unacknowledged_first_packet_bounds_the_number_of_tsns_sent() {
    let mut forged = ForgedPeer::own();
    let first = forged.peer_tsn;
    let mut highest = 0_u32;
    let mut max_flights = 0;
    for _ in 0..3_000 {
        let room = forged.association.room(forged.now);
        if room > 0 {
            forged.queue(room.min(17 << 10));
        }
        for answer in forged.answers() {
            if answer.kind == packet::DATA {
                let tsn = u32::from_be_bytes(*answer.body.first_chunk().unwrap());
                highest = highest.max(tsn.wrapping_sub(first));
            }
        }
        if (1..usize::from(u16::MAX)).contains(&(highest as usize)) {
            forged.sack(first.wrapping_sub(1), u32::MAX, &[(2, highest as u16 + 1)], &[]);
        }
        forged.wait(10);
        max_flights = max_flights.max(forged.association.sending_state().flights);
        if forged.closed.is_some() {
            break;
        }
    }
    assert!(max_flights <= usize::from(u16::MAX) + (16 << 20) / 1_000, "{max_flights} TSNs");
}

#[test]
fn a_probe_without_room_beside_a_sack_has_a_packet_of_its_own() {
    let mut forged = sending(10);
    // All packets except the last are acknowledged. A tail loss probe and a SACK become due at the same time.
    forged.now = forged.now.after(Duration::from_millis(50));
    forged.sack(forged.peer_tsn.wrapping_add(8), 1 << 20, &[], &[]);
    let due = forged.association.poll_timeout().unwrap();
    forged.now = due;
    forged.association.handle_timeout(due);
    let tsn = forged.tsn;
    forged.data(&super::forged::whole(tsn.wrapping_add(1), 1, b"x"));
    let answers = forged.answers();
    let kinds: Vec<_> = answers.iter().map(|answer| answer.kind).collect();
    assert_eq!(kinds, [packet::ARRIVAL, packet::SACK, packet::DATA]);
    assert_eq!(forged.association.statistics().probes, 1);
}

#[test]
fn duplicates_widen_the_reordering_window_to_at_most_a_round_trip() {
    let mut forged = sending(10);
    let tsn = forged.peer_tsn;
    for number in 0..8 {
        forged.now = forged.now.after(Duration::from_millis(50));
        forged.sack(tsn.wrapping_add(number), 1 << 20, &[], &[tsn; 20]);
    }
    // A later packet is acknowledged. The packet before it counts as lost within about two round trips.
    forged.queue(1_164 * 4);
    forged.answers();
    forged.now = forged.now.after(Duration::from_millis(50));
    forged.sack(tsn.wrapping_add(9), 1 << 20, &[(3, 4)], &[]);
    forged.wait(500);
    assert!(forged.association.statistics().lost > 0);
}

#[test]
fn packets_in_a_batch_have_many_sacks_for_a_stock_peer_and_one_for_our_node() {
    for (mut forged, sacks) in [(ForgedPeer::stock(), 63 + 68), (ForgedPeer::own(), 0)] {
        let (tsn, mut acknowledged) = (forged.tsn, Vec::new());
        for number in 0..200_u16 {
            forged.data(&whole(tsn.wrapping_add(number.into()), number, b"data"));
            acknowledged.extend(forged.sack_within_batch());
        }
        assert_eq!(acknowledged.len(), sacks);
        // Data acknowledged within the batch has no further SACK.
        let rest = forged.answers().iter().filter(|answer| answer.kind == packet::SACK).count();
        assert_eq!(rest, usize::from(sacks == 0));
    }
}
