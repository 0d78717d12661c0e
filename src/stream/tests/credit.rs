//! Tests of credit: what it grants, and breaches of it.

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

#[test]
fn a_stalled_reader_holds_up_its_own_stream_only() {
    let mut pair = Pair::new();
    let (stalled, lively) = (pair.stream(), pair.stream());
    let mut got = 0;
    for _ in 0..100 {
        pair.exit.write(stalled, &[1; SEND_BUFFER]);
        pair.exit.write(lively, &[2; SEND_BUFFER]);
        pair.settle();
        for event in events(&mut pair.origin) {
            if let (stream, StreamEvent::Data(bytes)) = event
                && stream == lively
            {
                got += bytes.len();
                pair.origin.handle_command(lively, StreamCommand::Consumed(bytes.len()));
            }
        }
        events(&mut pair.exit);
    }
    assert_eq!(pair.exit.room(stalled), 0);
    assert!(got > 99 * SEND_BUFFER, "{got}");
}

#[test]
fn credit_grows_while_the_reader_keeps_up_and_stays_within_the_circuits() {
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
    let open: u64 = pair.origin.streams.values().map(StreamState::credit_left).sum();
    let extra = pair.origin.extra_credit;
    assert!((9 << 16..=1 << 20).contains(&extra), "{extra}");
    assert!(open <= (1 << 20) + 2 * u64::from(INITIAL_CREDIT), "{open}");
    pair.origin.handle_command(first, StreamCommand::Reset(EndReason::Reset));
    pair.origin.handle_command(second, StreamCommand::Reset(EndReason::Reset));
    assert_eq!(pair.origin.extra_credit, 0);
}

#[test]
fn one_stream_fills_the_window_of_a_path_of_eight_tenths_of_a_second() {
    let mut pair = Pair::new();
    let id = pair.stream();
    let one_way = Duration::from_millis(400);
    let (mut forward, mut backward) = (VecDeque::new(), VecDeque::new());
    let (mut got, mut most) = (0, 0);
    for _ in 0..900 {
        pair.now = pair.now.after(Duration::from_millis(10));
        loop {
            while pair.exit.write(id, &[1; SEND_BUFFER]) > 0 {}
            let Some(message) = pair.exit.poll_message(pair.now, CAPACITY, &mut pair.rng) else { break };
            backward.push_back((pair.now.after(one_way), message));
        }
        most = most.max(pair.exit.window().in_flight());
        while let Some(message) = pair.origin.poll_message(pair.now, CAPACITY, &mut pair.rng) {
            forward.push_back((pair.now.after(one_way), message));
        }
        while let Some((_, message)) = backward.pop_front_if(|(at, _)| *at <= pair.now) {
            pair.origin.handle_message(pair.now, message).expect("legal at the origin");
        }
        got += read(&mut pair.origin).len();
        while let Some((_, message)) = forward.pop_front_if(|(at, _)| *at <= pair.now) {
            pair.exit.handle_message(pair.now, message).expect("legal at the exit");
        }
        events(&mut pair.exit);
    }
    assert!(most >= 16_000, "{most} cells in flight of {got} bytes");
}

#[test]
fn a_second_stream_finds_credit_beside_one_that_has_taken_its_most() {
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
