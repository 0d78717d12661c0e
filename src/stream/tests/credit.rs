//! Tests of credit: grants, limits and breaches.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

#[test]
fn a_stalled_reader_blocks_only_its_own_stream() {
    let mut pair = Pair::new();
    let (stalled, active) = (pair.stream(), pair.stream());
    let mut received = 0;
    for _ in 0..100 {
        pair.exit.write(stalled, &[1; SEND_BUFFER]);
        pair.exit.write(active, &[2; SEND_BUFFER]);
        pair.settle();
        for event in events(&mut pair.origin) {
            if let (stream, StreamEvent::Data(bytes)) = event
                && stream == active
            {
                received += bytes.len();
                pair.origin.handle_command(active, StreamCommand::Consumed(bytes.len()));
            }
        }
        events(&mut pair.exit);
    }
    assert_eq!(pair.exit.room(stalled), 0);
    assert!(received > 99 * SEND_BUFFER, "{received}");
}

#[test]
fn credit_grows_while_the_reader_keeps_up_and_stays_within_the_circuits_maximum() {
    let parameters = FlowParameters { stream_credit_max: 1 << 20, circuit_credit_max: 1 << 20, ..Default::default() };
    let mut pair = Pair::with(parameters);
    let (first, second) = (pair.stream(), pair.stream());
    for _ in 0..200 {
        for id in [first, second] {
            pair.exit.write(id, &[1; SEND_BUFFER]);
        }
        pair.settle();
        read(&mut pair.origin);
        events(&mut pair.exit);
    }
    pair.settle();
    let credit_left: u64 = pair.origin.streams.values().map(StreamState::credit_left).sum();
    let extra = pair.origin.extra_credit;
    assert!((9 << 16..=1 << 20).contains(&extra), "{extra}");
    assert!(credit_left <= (1 << 20) + 2 * u64::from(INITIAL_CREDIT), "{credit_left}");
    pair.origin.handle_command(first, StreamCommand::Reset(EndReason::Reset));
    pair.origin.handle_command(second, StreamCommand::Reset(EndReason::Reset));
    assert_eq!(pair.origin.extra_credit, 0);
}

#[test]
fn one_stream_fills_the_window_at_a_round_trip_of_800_ms() {
    let mut pair = Pair::new();
    let id = pair.stream();
    let one_way = Duration::from_millis(400);
    let (mut forward, mut backward) = (VecDeque::new(), VecDeque::new());
    let (mut received, mut peak) = (0, 0);
    for _ in 0..900 {
        pair.now = pair.now.after(Duration::from_millis(10));
        loop {
            while pair.exit.write(id, &[1; SEND_BUFFER]) > 0 {}
            let Some(message) = pair.exit.poll_message(pair.now, CAPACITY, &mut pair.rng) else { break };
            backward.push_back((pair.now.after(one_way), message));
        }
        peak = peak.max(pair.exit.window().in_flight());
        while let Some(message) = pair.origin.poll_message(pair.now, CAPACITY, &mut pair.rng) {
            forward.push_back((pair.now.after(one_way), message));
        }
        while let Some((_, message)) = backward.pop_front_if(|(at, _)| *at <= pair.now) {
            pair.origin.handle_message(pair.now, message).expect("legal at the origin");
        }
        received += read(&mut pair.origin).len();
        while let Some((_, message)) = forward.pop_front_if(|(at, _)| *at <= pair.now) {
            pair.exit.handle_message(pair.now, message).expect("legal at the exit");
        }
        events(&mut pair.exit);
    }
    assert!(peak >= 16_000, "{peak} cells in flight, {received} bytes received");
}

#[test]
fn a_second_stream_gets_credit_beside_one_at_its_maximum() {
    let mut pair = Pair::new();
    let (first, second) = (pair.stream(), pair.stream());
    for (id, rounds) in [(first, 600), (second, 200)] {
        for _ in 0..rounds {
            pair.exit.write(id, &[1; SEND_BUFFER]);
            pair.settle();
            read(&mut pair.origin);
            events(&mut pair.exit);
        }
    }
    let extra = |id| pair.origin.streams[&id].extra_credit();
    assert!(extra(first) >= 15 << 20 && extra(first) <= 16 << 20, "{}", extra(first));
    assert!(extra(second) >= 2 << 20, "{}", extra(second));
}

#[test]
fn bytes_beyond_the_credit_are_a_breach() {
    let mut pair = Pair::new();
    let id = pair.stream();
    let data = RelayMessage::Data { stream: id, tag: None, bytes: Bytes::from(vec![0; 1024]) };
    for _ in 0..INITIAL_CREDIT / 1024 {
        pair.origin.handle_message(pair.now, data.clone()).unwrap();
    }
    assert_eq!(pair.origin.handle_message(pair.now, data), Err(StreamError::BeyondCredit));
}

/// A pair with a connected stream, on which the origin has sent `bytes` bytes. The exit has read none of them.
fn pair_with_sent(bytes: usize) -> (Pair, StreamId) {
    let mut pair = Pair::new();
    let id = pair.stream();
    assert_eq!(pair.origin.write(id, &vec![1; bytes]), bytes);
    pair.settle();
    (pair, id)
}

#[test]
fn more_than_one_credit_message_for_32_kib_of_sent_bytes_is_a_breach() {
    for (bytes, legal) in [(0, 0), (32_767, 0), (32_768, 1), (100_000, 3), (131_072, 4)] {
        for is_reset in [false, true] {
            let (mut pair, stream) = pair_with_sent(bytes);
            if is_reset {
                pair.origin.handle_command(stream, StreamCommand::Reset(EndReason::Reset));
            }
            let credit = RelayMessage::Credit { stream, bytes: 1 };
            for _ in 0..legal {
                pair.origin.handle_message(pair.now, credit.clone()).unwrap();
            }
            assert_eq!(pair.origin.handle_message(pair.now, credit), Err(StreamError::SurplusCredit), "{bytes}");
        }
    }
}

#[test]
fn credit_far_beyond_the_sent_bytes_is_a_breach() {
    let credit = |stream, bytes| RelayMessage::Credit { stream, bytes };
    let (mut pair, id) = pair_with_sent(65_536);
    pair.origin.handle_message(pair.now, credit(id, 16 << 20)).unwrap();
    pair.origin.handle_message(pair.now, credit(id, 65_536)).unwrap();
    let (mut pair, id) = pair_with_sent(65_536);
    let surplus = credit(id, (16 << 20) + 65_537);
    assert_eq!(pair.origin.handle_message(pair.now, surplus), Err(StreamError::SurplusCredit));
}
