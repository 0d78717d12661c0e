//! Tests of the queues of circuits: order, fairness, caps.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

/// Opens links 1 to `count`, each with a channel without room.
fn stalled_links(pair: &mut Pair, count: u64) {
    for link in 1..=count {
        pair.link(link, key(2).id());
        pair.settle();
        pair.room(link, 0);
    }
}

#[test]
fn cells_of_a_circuit_arrive_in_order_and_in_its_lane() {
    let (mut pair, channel) = client_and_relay();
    let circuits: Vec<_> = (0..8).map(|_| pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap()).collect();
    for tag in 0..40 {
        for circuit in &circuits {
            pair.a.channels.send(channel, cell(*circuit, tag)).unwrap();
        }
    }
    pair.settle();
    let mut seen: BTreeMap<CircuitId, Vec<u8>> = BTreeMap::new();
    for cell in pair.b.cells() {
        seen.entry(cell.circuit().unwrap()).or_default().push(cell.body()[0]);
    }
    for circuit in circuits {
        assert_eq!(seen[&circuit], (0..40).collect::<Vec<_>>());
    }
}

#[test]
fn ended_circuits_with_one_cell_each_do_not_fill_a_channel() {
    let mut queue = FairQueue::default();
    for number in 1..=1000 {
        let circuit = CircuitId::new(number).unwrap();
        assert!(queue.admit(circuit));
        queue.push(circuit, number.into(), cell(circuit, 1), 20).unwrap();
        assert!(queue.pop().is_some());
        queue.end(circuit);
        assert!(queue.entries() <= 3, "{} entries", queue.entries());
    }
}

#[test]
fn queued_cells_are_packed_seventeen_to_a_message() {
    let (mut pair, channel) = client_and_relay();
    let circuit = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    (0..34).for_each(|tag| pair.a.channels.send(channel, cell(circuit, tag)).unwrap());
    pair.a.collect(pair.now);
    let lengths = pair.a.sent.iter().map(|transmit| match transmit {
        Transmit::Message { message, .. } => message.len(),
        _ => 0,
    });
    assert_eq!(lengths.collect::<Vec<_>>(), [17 * CELL_LEN, 17 * CELL_LEN]);
}

#[test]
fn cells_are_sent_within_room_and_in_whole_messages_if_they_fit() {
    let (mut pair, channel) = client_and_relay();
    let circuit = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    pair.room(1, 0);
    (0..200).for_each(|tag| pair.a.channels.send(channel, cell(circuit, tag)).unwrap());
    pair.a.collect(pair.now);
    assert!(pair.a.sent.is_empty());
    for (room, cells) in [(2 * MESSAGE_CELLS * CELL_LEN + 5_000, 2 * MESSAGE_CELLS), (5_000, 5), (1, 1)] {
        pair.a.sent.clear();
        let before = pair.a.channels.queued_of(channel, circuit);
        pair.room(1, room);
        assert_eq!(before - pair.a.channels.queued_of(channel, circuit), cells);
        let lengths = pair.a.sent.iter().map(|transmit| match transmit {
            Transmit::Message { message, .. } => message.len(),
            _ => 0,
        });
        assert_eq!(lengths.sum::<usize>(), cells * CELL_LEN);
    }
}

#[test]
fn a_quiet_circuit_precedes_busy_ones_and_busy_ones_share_equally() {
    let mut queue = FairQueue::default();
    let (bulk, other, quiet) = (circuit(1), circuit(2), circuit(3));
    for busy_circuit in [bulk, other] {
        queue.admit(busy_circuit);
        (0..100).for_each(|tag| queue.push(busy_circuit, 0, cell(busy_circuit, tag), 1000).unwrap());
    }
    let first: Vec<_> = (0..40).map(|_| queue.pop().unwrap().circuit).collect();
    assert_eq!(first.iter().filter(|circuit| **circuit == bulk).count(), 20);
    queue.admit(quiet);
    queue.push(quiet, 0, cell(quiet, 0), 1000).unwrap();
    assert_eq!(queue.pop().unwrap().circuit, quiet);
}

#[test]
fn a_trickling_circuit_does_not_starve_a_busy_one() {
    let mut queue = FairQueue::default();
    let (bulk, trickle) = (circuit(1), circuit(2));
    queue.admit(bulk);
    queue.admit(trickle);
    (0..200).for_each(|_| queue.push(bulk, 0, cell(bulk, 0), 1000).unwrap());
    let mut of_bulk = 0;
    for _ in 0..100 {
        if queue.queued_of(trickle) == 0 {
            queue.push(trickle, 0, cell(trickle, 0), 1000).unwrap();
        }
        of_bulk += usize::from(queue.pop().unwrap().circuit == bulk);
    }
    assert!(of_bulk >= 40, "{of_bulk}");
}

#[test]
fn a_full_circuit_queue_refuses_more_and_destroy_empties_it() {
    let parameters = ChannelParameters { circuit_queue: 5, ..ChannelParameters::default() };
    let (mut pair, channel) = client_and_relay_with(parameters, ChannelParameters::default());
    pair.room(1, 0);
    let circuit = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    for tag in 0..5 {
        assert!(pair.a.channels.send(channel, cell(circuit, tag)).is_ok());
    }
    assert_eq!(pair.a.channels.send(channel, cell(circuit, 5)), Err(QueueFull));
    pair.a.channels.send(channel, Cell::destroy(circuit)).unwrap();
    pair.a.channels.end_circuit(pair.now, channel, circuit);
    assert_eq!(pair.a.channels.queued_of(channel, circuit), 1);
    pair.room(1, ROOM);
    pair.settle();
    let cells = pair.b.cells();
    assert_eq!(cells.len(), 1);
    assert_eq!(cells[0], Cell::destroy(circuit));
}

#[test]
fn a_destroy_from_the_other_end_drops_the_queued_cells() {
    let (mut pair, channel) = client_and_relay();
    let circuit = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    assert!(pair.b.channels.admit_circuit(channel, circuit));
    pair.room(1, 0);
    (0..9).for_each(|tag| pair.a.channels.send(channel, cell(circuit, tag)).unwrap());
    let lane = lane_of(circuit, LANES).value();
    pair.a.handle(pair.now, one_message(lane, &[Cell::destroy(circuit)]), &mut pair.rng);
    assert_eq!(pair.a.channels.queued_of(channel, circuit), 0);
    pair.room(1, ROOM);
    assert!(pair.a.sent.is_empty());
}

#[test]
fn too_many_circuits_on_a_channel_are_refused() {
    let parameters = ChannelParameters { circuits_per_channel: 3, ..ChannelParameters::default() };
    let (mut pair, channel) = client_and_relay_with(parameters, ChannelParameters::default());
    for _ in 0..3 {
        assert!(pair.a.channels.allocate_circuit(channel, &mut pair.rng).is_some());
    }
    assert!(pair.a.channels.allocate_circuit(channel, &mut pair.rng).is_none());
    assert!(pair.a.channels.is_full(channel));
}

#[test]
fn queued_cells_of_ended_circuits_do_not_make_a_channel_full() {
    let parameters = ChannelParameters { circuits_per_channel: 3, ..ChannelParameters::default() };
    let (mut pair, channel) = client_and_relay_with(parameters, ChannelParameters::default());
    pair.room(1, 0);
    let standing = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    for tag in 0..5 {
        let ended = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
        pair.a.channels.send(channel, cell(ended, tag)).unwrap();
        pair.a.channels.end_circuit(pair.now, channel, ended);
    }
    assert!(pair.a.channels.allocate_circuit(channel, &mut pair.rng).is_none(), "six entries");
    assert!(!pair.a.channels.is_full(channel), "the end of a live circuit would admit no other");
    pair.room(1, ROOM);
    pair.settle();
    assert!(pair.a.channels.allocate_circuit(channel, &mut pair.rng).is_some());
    pair.a.channels.end_circuit(pair.now, channel, standing);
}

#[test]
fn unread_refusals_beyond_the_cap_close_the_channel() {
    let parameters = ChannelParameters { refusals: 8, ..ChannelParameters::default() };
    let (mut pair, channel) = client_and_relay_with(ChannelParameters::default(), parameters);
    pair.room(1, 0);
    for number in 0..9 {
        pair.b.channels.send(channel, Cell::destroy(circuit(0x8000_0000 + number))).unwrap();
    }
    pair.b.collect(pair.now);
    assert!(pair.b.sent.contains_close());
}

/// The evictions if all cells of a channel belong to the source of the other end's address.
fn evictions(node: &Node) -> Vec<Eviction> {
    node.channels.evictions(|_, _| None, |_, _| 0)
}

/// A source in the network with this number.
fn source(network: u8) -> Owner {
    Owner::of_address([198, 51, network, 1].into())
}

#[test]
fn above_the_cap_the_longest_waiting_circuit_is_evicted() {
    let parameters = ChannelParameters { queued: 10, ..ChannelParameters::default() };
    let (mut pair, channel) = client_and_relay_with(parameters, ChannelParameters::default());
    pair.room(1, 0);
    let first = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    let second = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
    (0..2).for_each(|tag| pair.a.channels.send(channel, cell(first, tag)).unwrap());
    (0..8).for_each(|tag| pair.a.channels.send(channel, cell(second, tag)).unwrap());
    assert_eq!(evictions(&pair.a), []);
    pair.a.channels.send(channel, cell(second, 9)).unwrap();
    assert_eq!(evictions(&pair.a), [Eviction::Circuit(channel, first)]);
    pair.a.channels.send(channel, Cell::destroy(second)).unwrap();
    assert_eq!(evictions(&pair.a), []);
}

#[test]
fn above_the_cap_unread_circuits_are_evicted_before_a_longer_queue_that_is_read() {
    let parameters = ChannelParameters { queued: 100, ..ChannelParameters::default() };
    let mut pair = Pair::new(Node::with(LocalRole::Client, parameters), Node::relay(2));
    stalled_links(&mut pair, 3);
    let [honest, stalled, other] = [1, 2, 3].map(|link| ChannelId(LinkId(link)));
    let [read, first, second] =
        [honest, stalled, other].map(|channel| pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap());
    (0..20).for_each(|tag| pair.a.channels.send(stalled, cell(first, tag)).unwrap());
    (0..20).for_each(|tag| pair.a.channels.send(other, cell(second, tag)).unwrap());
    (0..61).for_each(|tag| pair.a.channels.send(honest, cell(read, tag)).unwrap());
    assert_eq!(evictions(&pair.a), [Eviction::Circuit(stalled, first)]);
    pair.a.channels.send(stalled, Cell::destroy(first)).unwrap();
    (0..20).for_each(|tag| pair.a.channels.send(honest, cell(read, tag)).unwrap());
    assert_eq!(evictions(&pair.a), [Eviction::Circuit(other, second)]);
}

#[test]
fn above_the_cap_the_fullest_owner_loses_its_longest_waiting_circuits() {
    let parameters = ChannelParameters { queued: 160, ..ChannelParameters::default() };
    let (mut pair, channel) = client_and_relay_with(parameters, ChannelParameters::default());
    pair.room(1, 0);
    let circuits: Vec<_> = (0..12).map(|_| pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap()).collect();
    let (honest, hostile) = circuits.split_at(4);
    // The cells of the honest circuits have waited longest.
    for (circuits, cells) in [(honest, 8), (hostile, 16)] {
        for circuit in circuits {
            (0..cells).for_each(|tag| pair.a.channels.send(channel, cell(*circuit, tag)).unwrap());
        }
    }
    assert_eq!(evictions(&pair.a), []);
    pair.a.channels.send(channel, cell(honest[0], 9)).unwrap();
    let owner = |_, circuit: Option<CircuitId>| {
        let is_hostile = circuit.is_some_and(|circuit| hostile.contains(&circuit));
        Some(CellOwner { owner: source(u8::from(!is_hostile)), channel })
    };
    // One call frees a sixteenth of the cap, or slightly more.
    assert_eq!(pair.a.channels.evictions(owner, |_, _| 0), [Eviction::Circuit(channel, hostile[0])]);
    (0..10).for_each(|tag| pair.a.channels.send(channel, cell(honest[1], tag)).unwrap());
    let expected = [0, 1].map(|at| Eviction::Circuit(channel, hostile[at]));
    assert_eq!(pair.a.channels.evictions(owner, |_, _| 0), expected, "15 cells each, of 171");
}

/// A node with the cap `queued` on queued cells, and its stalled channels. `channels` has the number of circuits of
/// each channel, and the number of cells of each circuit.
fn stalled_channels(queued: usize, channels: &[(usize, u8)]) -> (Pair, Vec<ChannelId>) {
    let parameters = ChannelParameters { queued, ..ChannelParameters::default() };
    let mut pair = Pair::new(Node::with(LocalRole::Client, parameters), Node::relay(2));
    stalled_links(&mut pair, channels.len() as u64);
    let mut stalled = Vec::new();
    for (link, (circuits, cells)) in (1..).zip(channels) {
        let channel = ChannelId(LinkId(link));
        for _ in 0..*circuits {
            let circuit = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
            (0..*cells).for_each(|tag| pair.a.channels.send(channel, cell(circuit, tag)).unwrap());
        }
        stalled.push(channel);
    }
    (pair, stalled)
}

/// The owner of a channel's cells: a source with the number of the channel, over which it opened its circuits.
fn source_of(channel: ChannelId) -> CellOwner {
    CellOwner { owner: source(channel.0.0 as u8), channel }
}

#[test]
fn a_circuit_whose_end_frees_no_cell_is_not_evicted() {
    let (pair, channels) = stalled_channels(20, &[(8, 2), (1, 5)]);
    let owner = |channel, _: Option<CircuitId>| Some(source_of(channel));
    // The end of each circuit adds a DESTROY to another channel.
    assert_eq!(pair.a.channels.evictions(owner, |_, _| 1), [Eviction::Channel(channels[0])]);
    let oldest = pair.a.channels.evictions(owner, |_, _| 0);
    let is_of_first =
        |eviction: &Eviction| matches!(eviction, Eviction::Circuit(channel, _) if *channel == channels[0]);
    assert!(
        oldest.len() == 2 && oldest.iter().all(is_of_first),
        "without the DESTROY, the end of each circuit frees cells"
    );
}

#[test]
fn circuits_whose_ends_free_no_cells_cause_no_eviction_of_circuits_of_others() {
    // Two attackers, and an honest source with a longer queue.
    let (mut pair, channels) = stalled_channels(100, &[(21, 2), (20, 2), (1, 30)]);
    let owner = |channel, _: Option<CircuitId>| Some(source_of(channel));
    let added = |channel, _| usize::from(channel != channels[2]);
    assert_eq!(pair.a.channels.evictions(owner, added), [Eviction::Channel(channels[0])]);
    pair.a.channels.close(channels[0]);
    assert_eq!(pair.a.channels.evictions(owner, added), []);
}

#[test]
fn an_owner_without_an_eviction_that_frees_cells_is_skipped() {
    // The first channel is that of an honest relay, on which an attacker has queued the most cells, one for each
    // circuit.
    let (pair, channels) = stalled_channels(150, &[(70, 1), (30, 2), (1, 30)]);
    let owner = |channel, _: Option<CircuitId>| {
        let opened_over = if channel == channels[0] { ChannelId(LinkId(9)) } else { channel };
        Some(CellOwner { channel: opened_over, ..source_of(channel) })
    };
    let added = |channel, _| usize::from(channel == channels[1]);
    assert_eq!(pair.a.channels.evictions(owner, added), [Eviction::Channel(channels[1])]);
}

#[test]
fn the_source_of_cells_on_the_channel_of_another_loses_its_own_channel() {
    let (pair, channels) = stalled_channels(100, &[(40, 2), (1, 30)]);
    let own = ChannelId(LinkId(9));
    let owner = |channel, _: Option<CircuitId>| {
        let opened_over = if channel == channels[0] { own } else { channel };
        Some(CellOwner { channel: opened_over, ..source_of(channel) })
    };
    let added = |channel, _| usize::from(channel == channels[0]);
    assert_eq!(pair.a.channels.evictions(owner, added), [Eviction::Channel(own)]);
}

#[test]
fn single_cells_beyond_the_cap_close_the_channel_with_most_cells() {
    let parameters = ChannelParameters { queued: 10, ..ChannelParameters::default() };
    let mut pair = Pair::new(Node::with(LocalRole::Client, parameters), Node::relay(2));
    stalled_links(&mut pair, 2);
    for (link, circuits) in [(1, 3), (2, 8)] {
        let channel = ChannelId(LinkId(link));
        for _ in 0..circuits {
            let circuit = pair.a.channels.allocate_circuit(channel, &mut pair.rng).unwrap();
            pair.a.channels.send(channel, cell(circuit, 0)).unwrap();
        }
    }
    assert_eq!(evictions(&pair.a), [Eviction::Channel(ChannelId(LinkId(2)))]);
}

#[test]
fn a_channel_full_of_refusals_is_evicted() {
    let parameters = ChannelParameters { queued: 10, ..ChannelParameters::default() };
    let mut pair = Pair::new(Node::new(LocalRole::Client), Node::with(LocalRole::Relay(key(2)), parameters));
    stalled_links(&mut pair, 2);
    let [honest, hostile] = [1, 2].map(|link| ChannelId(LinkId(link)));
    let held = circuit(0x8000_0001);
    assert!(pair.b.channels.admit_circuit(honest, held));
    (0..3).for_each(|tag| pair.b.channels.send(honest, cell(held, tag)).unwrap());
    (1..=8).for_each(|number| {
        pair.b.channels.send(hostile, Cell::destroy(circuit(0x8000_0000 + number))).unwrap();
    });
    assert_eq!(evictions(&pair.b), [Eviction::Channel(hostile)]);
    pair.b.channels.close(hostile);
    assert_eq!((evictions(&pair.b), pair.b.channels.queued_of(honest, held)), (vec![], 3));
}

#[test]
fn a_channel_with_queued_cells_closes_if_its_link_accepts_none() {
    let (mut pair, channel) = client_and_relay();
    pair.room(1, 0);
    pair.advance(Duration::from_secs(15));
    pair.b.channels.send(channel, Cell::destroy(circuit(0x8000_0001))).unwrap();
    pair.room(1, 1);
    assert_eq!(pair.b.sent.len(), 1, "cells are sent while there is room");
    pair.b.channels.send(channel, Cell::destroy(circuit(0x8000_0001))).unwrap();
    for (seconds, accepts, open) in [(29, true, 1), (29, false, 1), (1, false, 0)] {
        pair.now = pair.now.after(Duration::from_secs(seconds));
        pair.b.channels.handle_timeout(pair.now);
        assert_eq!(pair.b.channels.len(), open);
        if accepts {
            // The link has accepted data and is full again.
            pair.room(1, 0);
        }
    }
}

#[test]
fn destroys_of_live_circuits_do_not_count_as_refusals() {
    let parameters = ChannelParameters { refusals: 2, ..ChannelParameters::default() };
    let (mut pair, channel) = client_and_relay_with(ChannelParameters::default(), parameters);
    pair.room(1, 0);
    for number in 1..=9 {
        let circuit = circuit(0x8000_0000 + number);
        assert!(pair.b.channels.admit_circuit(channel, circuit));
        pair.b.channels.send(channel, Cell::destroy(circuit)).unwrap();
        pair.b.channels.end_circuit(pair.now, channel, circuit);
    }
    pair.b.channels.send(channel, Cell::destroy(circuit(0x8000_0010))).unwrap();
    assert_eq!(pair.b.channels.len(), 1);
}
