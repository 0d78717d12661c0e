//! Tests of both ends of a circuit, joined in memory.

use proptest::prelude::*;
use rand::{SeedableRng, rngs::ChaCha8Rng};

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

mod credit;

/// Maximum bytes of a message, with its header.
const CAPACITY: usize = 968;

fn rng() -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(7)
}

fn target() -> Target {
    Target { host: Host::parse("umbel.test").unwrap(), port: 443 }
}

/// Origin and exit, with immediate delivery of all messages.
struct Pair {
    origin: Streams,
    exit: Streams,
    now: Instant,
    rng: ChaCha8Rng,
}

impl Pair {
    fn new() -> Self {
        Self::with(FlowParameters::default())
    }

    fn with(parameters: FlowParameters) -> Self {
        Self {
            origin: Streams::new(StreamRole::Origin, parameters.clone()),
            exit: Streams::new(StreamRole::Exit, parameters),
            now: Instant::START,
            rng: rng(),
        }
    }

    /// Delivers messages until neither end has any.
    fn settle(&mut self) {
        loop {
            self.now = self.now.after(Duration::from_millis(1));
            let mut moved = false;
            while let Some(message) = self.origin.poll_message(self.now, CAPACITY, &mut self.rng) {
                self.exit.handle_message(self.now, message).expect("legal at the exit");
                moved = true;
            }
            while let Some(message) = self.exit.poll_message(self.now, CAPACITY, &mut self.rng) {
                self.origin.handle_message(self.now, message).expect("legal at the origin");
                moved = true;
            }
            if !moved {
                return;
            }
        }
    }

    /// Opens a stream from the origin and connects it.
    fn stream(&mut self) -> StreamId {
        let id = self.origin.open(self.now, target()).unwrap();
        self.settle();
        assert_eq!(self.exit.poll_event(), Some((id, StreamEvent::Begin(target()))));
        self.exit.handle_command(id, StreamCommand::Connected(None));
        self.settle();
        assert_eq!(self.origin.poll_event(), Some((id, StreamEvent::Connected(None))));
        id
    }
}

fn events(streams: &mut Streams) -> Vec<(StreamId, StreamEvent)> {
    core::iter::from_fn(|| streams.poll_event()).collect()
}

/// Takes all events. Returns the received bytes, and reports them as consumed.
fn read(streams: &mut Streams) -> Vec<u8> {
    let mut all = Vec::new();
    while let Some(event) = streams.poll_event() {
        if let (stream, StreamEvent::Data(bytes)) = event {
            all.extend_from_slice(&bytes);
            streams.handle_command(stream, StreamCommand::Consumed(bytes.len()));
        }
    }
    all
}

#[test]
fn bytes_beyond_the_initial_credit_arrive_unchanged() {
    let mut pair = Pair::new();
    let id = pair.stream();
    let sent: Vec<u8> = (0..3_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let mut left = sent.as_slice();
    let mut received_bytes = Vec::new();
    while received_bytes.len() < sent.len() {
        let written = pair.origin.write(id, left);
        left = &left[written..];
        pair.settle();
        received_bytes.extend(read(&mut pair.exit));
    }
    assert_eq!(received_bytes, sent);
}

#[test]
fn a_half_closed_stream_continues_in_the_other_direction() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.origin.write(id, b"question");
    pair.origin.handle_command(id, StreamCommand::Finish);
    assert_eq!(pair.origin.write(id, b"more"), 0);
    pair.settle();
    let received = events(&mut pair.exit);
    assert_eq!(received.last(), Some(&(id, StreamEvent::Finished)));
    assert_eq!(pair.exit.write(id, b"answer"), 6);
    pair.exit.handle_command(id, StreamCommand::Finish);
    pair.settle();
    let received = events(&mut pair.origin);
    assert_eq!(received[0], (id, StreamEvent::Data(Bytes::from_static(b"answer"))));
    assert_eq!(received[1], (id, StreamEvent::Finished));
    assert!(pair.origin.is_empty() && pair.exit.is_empty());
}

#[test]
fn written_bytes_precede_the_end_of_a_failed_stream() {
    for finishes_first in [false, true] {
        let mut pair = Pair::new();
        let id = pair.stream();
        // More bytes than the initial credit of the peer.
        let (first, second) = (vec![1; SEND_BUFFER], vec![2; SEND_BUFFER]);
        assert_eq!(pair.exit.write(id, &first), first.len());
        pair.settle();
        assert_eq!(pair.exit.write(id, &second), second.len());
        if finishes_first {
            pair.exit.handle_command(id, StreamCommand::Finish);
        }
        pair.exit.handle_command(id, StreamCommand::Fail(EndReason::Reset));
        pair.settle();
        assert_eq!(pair.exit.write(id, b"more"), 0);
        let is_closed = |event: &(StreamId, StreamEvent)| matches!(event.1, StreamEvent::Closed(_));
        assert!(!events(&mut pair.exit).iter().any(is_closed), "the stream ended before its bytes were sent");
        let mut received = read(&mut pair.origin);
        pair.settle();
        let closed = Some((id, StreamEvent::Closed(EndReason::Reset)));
        let mut last = None;
        for (_, event) in events(&mut pair.origin) {
            match event {
                StreamEvent::Data(bytes) => received.extend_from_slice(&bytes),
                event => last = Some((id, event)),
            }
        }
        assert!(received == [first, second].concat());
        assert_eq!((last, events(&mut pair.exit).pop()), (closed.clone(), closed));
        assert!(pair.origin.is_empty() && pair.exit.is_empty());
    }
}

#[test]
fn bytes_written_before_connected_are_sent_after_it() {
    let mut pair = Pair::new();
    let id = pair.origin.open(pair.now, target()).unwrap();
    pair.origin.write(id, b"early");
    pair.origin.handle_command(id, StreamCommand::Finish);
    pair.settle();
    assert_eq!(events(&mut pair.exit).len(), 1);
    pair.exit.handle_command(id, StreamCommand::Connected(None));
    pair.settle();
    let data = (id, StreamEvent::Data(Bytes::from_static(b"early")));
    assert_eq!(events(&mut pair.exit), [data, (id, StreamEvent::Finished)]);
}

#[test]
fn bytes_received_before_the_exit_has_connected_are_delivered_and_cause_no_credit() {
    let mut pair = Pair::new();
    let id = StreamId::new(9).unwrap();
    pair.exit.handle_message(pair.now, RelayMessage::Begin { stream: id, target: target() }).unwrap();
    let bytes = Bytes::from(vec![7; INITIAL_CREDIT as usize / 2]);
    pair.exit.handle_message(pair.now, RelayMessage::Data { stream: id, tag: None, bytes: bytes.clone() }).unwrap();
    assert_eq!(events(&mut pair.exit)[1..], [(id, StreamEvent::Data(bytes.clone()))]);
    pair.exit.handle_command(id, StreamCommand::Consumed(bytes.len()));
    assert!(!pair.exit.has_message(), "an exit sends no CREDIT before CONNECTED");
    pair.exit.handle_command(id, StreamCommand::Connected(None));
    let mut next = || pair.exit.poll_message(pair.now, CAPACITY, &mut pair.rng);
    assert!(matches!(next(), Some(RelayMessage::Connected { .. })));
    assert!(matches!(next(), Some(RelayMessage::Credit { .. })));
    pair.exit.handle_message(pair.now, RelayMessage::End { stream: id, reason: EndReason::Done }).unwrap();
    assert_eq!(events(&mut pair.exit), [(id, StreamEvent::Finished)]);
}

#[test]
fn a_resolve_is_answered_once() {
    let mut pair = Pair::new();
    let host = Host::parse("umbel.test").unwrap();
    let id = pair.origin.resolve(pair.now, host.clone()).unwrap();
    pair.settle();
    assert_eq!(events(&mut pair.exit), [(id, StreamEvent::Resolve(host))]);
    let answers = vec![ResolvedAnswer::Ip([192, 0, 2, 1].into())];
    pair.exit.handle_command(id, StreamCommand::Resolved { ttl: 60, answers: answers.clone() });
    pair.settle();
    assert_eq!(events(&mut pair.origin), [(id, StreamEvent::Resolved { ttl: 60, answers: answers.clone() })]);
    assert!(pair.origin.is_empty() && pair.exit.is_empty());
    let again = RelayMessage::Resolved { stream: id, ttl: 60, answers };
    assert!(pair.origin.handle_message(pair.now, again).is_err());
}

#[test]
fn an_echo_is_answered_without_the_application() {
    let mut pair = Pair::new();
    pair.origin.echo();
    let Some(message) = pair.origin.poll_message(pair.now, CAPACITY, &mut pair.rng) else { panic!("no request") };
    pair.exit.handle_message(pair.now, message).unwrap();
    assert!(pair.exit.has_message() && pair.exit.is_empty());
    pair.settle();
    assert_eq!((events(&mut pair.origin), events(&mut pair.exit)), (vec![], vec![]));
    assert!(pair.origin.is_empty());
}

#[test]
fn at_most_one_echo_request_is_outstanding_and_it_does_not_count_as_a_stream() {
    let mut pair = Pair::with(FlowParameters { max_streams: 1, ..FlowParameters::default() });
    for _ in 0..3 {
        pair.origin.echo();
        pair.origin.echo();
        assert_eq!((pair.origin.len(), pair.origin.is_empty()), (0, true));
        let request = pair.origin.poll_message(pair.now, CAPACITY, &mut pair.rng).unwrap();
        assert!(!pair.origin.has_message());
        pair.exit.handle_message(pair.now, request).unwrap();
        pair.settle();
    }
    pair.origin.echo();
    pair.origin.open(pair.now, target()).unwrap();
    // A refusal also ends the echo request.
    let Some(RelayMessage::Resolve { stream, .. }) = pair.origin.poll_message(pair.now, CAPACITY, &mut pair.rng) else {
        panic!("no request")
    };
    let refusal = RelayMessage::End { stream, reason: EndReason::Policy };
    pair.origin.handle_message(pair.now, refusal.clone()).unwrap();
    assert_eq!(events(&mut pair.origin), []);
    assert!(pair.origin.handle_message(pair.now, refusal).is_err());
}

#[test]
fn a_reset_ends_both_directions_and_late_messages_are_legal() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.exit.write(id, &[1; 50_000]);
    pair.origin.handle_command(id, StreamCommand::Reset(EndReason::Reset));
    // The exit's bytes and the origin's END are in flight at the same time.
    let mut in_flight = Vec::new();
    while let Some(message) = pair.exit.poll_message(pair.now, CAPACITY, &mut pair.rng) {
        in_flight.push(message);
    }
    assert!(in_flight.len() > 50);
    for message in in_flight {
        pair.origin.handle_message(pair.now, message).unwrap();
    }
    pair.settle();
    assert_eq!(events(&mut pair.exit), [(id, StreamEvent::Closed(EndReason::Reset))]);
    assert_eq!(events(&mut pair.origin), []);
    // END was the exit's last message on the stream.
    let message = RelayMessage::Data { stream: id, tag: None, bytes: Bytes::from_static(b"x") };
    assert_eq!(pair.origin.handle_message(pair.now, message), Err(StreamError::Illegal(MessageKind::Data)));
}

#[test]
fn late_bytes_are_bounded_by_the_remaining_credit() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.origin.handle_command(id, StreamCommand::Reset(EndReason::Reset));
    let bytes = Bytes::from(vec![0; 1024]);
    let data = RelayMessage::Data { stream: id, tag: None, bytes };
    for _ in 0..INITIAL_CREDIT / 1024 {
        pair.origin.handle_message(pair.now, data.clone()).unwrap();
    }
    assert!(pair.origin.handle_message(pair.now, data).is_err());
}

#[test]
fn a_late_message_that_arrives_twice_is_a_breach() {
    let mut pair = Pair::new();
    let connected = |stream| RelayMessage::Connected { stream, address: None };
    let resolved = |stream| RelayMessage::Resolved { stream, ttl: 1, answers: vec![ResolvedAnswer::Name("a".into())] };
    let end = |stream, reason| RelayMessage::End { stream, reason };

    let begin_stream = pair.origin.open(pair.now, target()).unwrap();
    while pair.origin.poll_message(pair.now, CAPACITY, &mut pair.rng).is_some() {}
    pair.origin.handle_command(begin_stream, StreamCommand::Reset(EndReason::Reset));
    assert!(pair.origin.handle_message(pair.now, resolved(begin_stream)).is_err(), "RESOLVED for a BEGIN");
    for message in [connected(begin_stream), end(begin_stream, EndReason::Done)] {
        pair.origin.handle_message(pair.now, message.clone()).unwrap();
        assert!(pair.origin.handle_message(pair.now, message.clone()).is_err(), "{message:?}");
    }
    let data = RelayMessage::Data { stream: begin_stream, tag: None, bytes: Bytes::from_static(b"x") };
    assert!(pair.origin.handle_message(pair.now, data).is_err(), "DATA after END(Done)");
    pair.origin.handle_message(pair.now, end(begin_stream, EndReason::Reset)).unwrap();
    assert!(pair.origin.handle_message(pair.now, end(begin_stream, EndReason::Reset)).is_err());

    let resolve_stream = pair.origin.resolve(pair.now, Host::parse("umbel.test").unwrap()).unwrap();
    while pair.origin.poll_message(pair.now, CAPACITY, &mut pair.rng).is_some() {}
    pair.origin.handle_command(resolve_stream, StreamCommand::Reset(EndReason::Reset));
    for message in [connected(resolve_stream), end(resolve_stream, EndReason::Done)] {
        assert!(pair.origin.handle_message(pair.now, message.clone()).is_err(), "{message:?} for a RESOLVE");
    }
    pair.origin.handle_message(pair.now, resolved(resolve_stream)).unwrap();
    assert!(pair.origin.handle_message(pair.now, resolved(resolve_stream)).is_err());
}

#[test]
fn crossing_resets_end_the_stream_at_both_ends() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.origin.handle_command(id, StreamCommand::Reset(EndReason::Failed));
    pair.exit.handle_command(id, StreamCommand::Reset(EndReason::Failed));
    pair.settle();
    assert!(pair.origin.is_empty() && pair.exit.is_empty());
    assert!(!pair.origin.has_message() && !pair.exit.has_message());
}

#[test]
fn a_message_of_an_unknown_stream_is_a_breach() {
    let id = StreamId::new(3).unwrap();
    let messages = [
        RelayMessage::Data { stream: id, tag: None, bytes: Bytes::from_static(b"x") },
        RelayMessage::Connected { stream: id, address: None },
        RelayMessage::Resolved { stream: id, ttl: 1, answers: vec![ResolvedAnswer::Name("a".into())] },
        RelayMessage::Credit { stream: id, bytes: 1 },
        RelayMessage::End { stream: id, reason: EndReason::Done },
        RelayMessage::End { stream: id, reason: EndReason::Failed },
        RelayMessage::SendMe { tag: [0; 16] },
        RelayMessage::Extend { fragment: Bytes::new() },
        RelayMessage::Extended { fragment: Bytes::new() },
    ];
    for message in messages {
        for role in [StreamRole::Origin, StreamRole::Exit] {
            let mut streams = Streams::new(role, FlowParameters::default());
            assert!(streams.handle_message(Instant::START, message.clone()).is_err(), "{role:?} {message:?}");
        }
    }
}

#[test]
fn a_message_of_the_other_role_is_a_breach() {
    let mut pair = Pair::new();
    let id = pair.stream();
    assert!(pair.origin.handle_message(pair.now, RelayMessage::Begin { stream: id, target: target() }).is_err());
    assert!(pair.exit.handle_message(pair.now, RelayMessage::Connected { stream: id, address: None }).is_err());
    assert!(pair.origin.handle_message(pair.now, RelayMessage::Connected { stream: id, address: None }).is_err());
    assert!(pair.exit.handle_message(pair.now, RelayMessage::Begin { stream: id, target: target() }).is_err());
    for end in [&mut pair.origin, &mut pair.exit] {
        assert_eq!(end.handle_message(pair.now, RelayMessage::Drop), Err(StreamError::Illegal(MessageKind::Drop)));
    }
}

#[test]
fn data_after_end_is_a_breach() {
    let mut pair = Pair::new();
    let id = pair.stream();
    let end = RelayMessage::End { stream: id, reason: EndReason::Done };
    pair.exit.handle_message(pair.now, end.clone()).unwrap();
    let data = RelayMessage::Data { stream: id, tag: None, bytes: Bytes::from_static(b"x") };
    assert!(pair.exit.handle_message(pair.now, data).is_err());
    assert!(pair.exit.handle_message(pair.now, end).is_err());
}

#[test]
fn acknowledgements_and_credit_precede_data() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.exit.write(id, &[1; 40_000]);
    while let Some(message) = pair.exit.poll_message(pair.now, CAPACITY, &mut pair.rng) {
        pair.origin.handle_message(pair.now, message).unwrap();
    }
    pair.origin.write(id, &[2; 10_000]);
    read(&mut pair.origin);
    let kinds: Vec<_> = core::iter::from_fn(|| pair.origin.poll_message(pair.now, CAPACITY, &mut pair.rng))
        .map(|message| message.kind())
        .collect();
    assert_eq!(kinds[..3], [MessageKind::SendMe, MessageKind::Credit, MessageKind::Data]);
}

#[test]
fn streams_send_in_turn() {
    let mut pair = Pair::new();
    let ids = [pair.stream(), pair.stream(), pair.stream()];
    for id in ids {
        pair.exit.write(id, &[1; 10_000]);
    }
    let order: Vec<_> =
        (0..6).map(|_| pair.exit.poll_message(pair.now, CAPACITY, &mut pair.rng).unwrap().stream().unwrap()).collect();
    assert_eq!(order, [ids, ids].concat());
}

#[test]
fn an_unacknowledged_window_stops_data_and_then_times_out() {
    let mut pair = Pair::new();
    let id = pair.stream();
    let mut sent = 0;
    loop {
        pair.exit.write(id, &[1; SEND_BUFFER]);
        match pair.exit.poll_message(pair.now, CAPACITY, &mut pair.rng) {
            Some(_) => sent += 1,
            None => break,
        }
    }
    assert_eq!(sent, 128);
    assert!(!pair.exit.has_message());
    let at = pair.exit.poll_timeout().unwrap();
    assert_eq!(pair.exit.handle_timeout(at), Err(StreamError::Stalled));
}

#[test]
fn an_unanswered_begin_times_out_at_either_end() {
    let mut pair = Pair::new();
    let id = pair.origin.open(pair.now, target()).unwrap();
    pair.settle();
    events(&mut pair.exit);
    let at = pair.exit.poll_timeout().unwrap();
    let closed = [(id, StreamEvent::Closed(EndReason::TimedOut))];
    pair.exit.handle_timeout(at).unwrap();
    assert_eq!(events(&mut pair.exit), closed);
    let at = pair.origin.poll_timeout().unwrap();
    pair.origin.handle_timeout(at).unwrap();
    assert_eq!(events(&mut pair.origin), closed);
    pair.settle();
    assert_eq!(pair.origin.poll_timeout(), None);
}

#[test]
fn streams_beyond_the_cap_are_refused() {
    let mut pair = Pair::with(FlowParameters { max_streams: 2, ..Default::default() });
    pair.stream();
    pair.stream();
    assert_eq!(pair.origin.open(pair.now, target()), Err(StreamError::Full));
    let third = StreamId::new(77).unwrap();
    pair.exit.handle_message(pair.now, RelayMessage::Begin { stream: third, target: target() }).unwrap();
    let answer = pair.exit.poll_message(pair.now, CAPACITY, &mut pair.rng);
    assert_eq!(answer, Some(RelayMessage::End { stream: third, reason: EndReason::ResourceLimit }));
    assert_eq!(pair.exit.poll_event(), None);
}

#[test]
fn queued_answers_beyond_the_cap_end_the_circuit() {
    let mut exit = Streams::new(StreamRole::Exit, FlowParameters::default());
    let mut failed = None;
    for number in 1..=5000 {
        let stream = StreamId::new(number).unwrap();
        if let Err(error) = exit.handle_message(Instant::START, RelayMessage::Begin { stream, target: target() }) {
            failed = Some(error);
            break;
        }
        exit.handle_command(stream, StreamCommand::Reset(EndReason::Policy));
    }
    assert_eq!(failed, Some(StreamError::TooManyAnswers));
}

#[test]
fn the_end_of_the_circuit_closes_every_stream_with_an_error() {
    let mut pair = Pair::new();
    let id = pair.stream();
    pair.origin.abort(EndReason::Failed);
    assert_eq!(events(&mut pair.origin), [(id, StreamEvent::Closed(EndReason::Failed))]);
    assert!(!pair.origin.has_message());
}

#[test]
fn writable_is_emitted_when_half_the_buffer_is_free() {
    let mut pair = Pair::new();
    let id = pair.stream();
    assert_eq!(pair.origin.write(id, &[0; SEND_BUFFER + 1]), SEND_BUFFER);
    assert_eq!(pair.origin.room(id), 0);
    pair.settle();
    assert_eq!(events(&mut pair.origin), [(id, StreamEvent::Writable)]);
}

/// An action of one of the two applications, or a delivery of messages. A `bool` selects the end: the exit if true.
/// Except in `Deliver`, the first number selects a stream, counted from the last.
#[derive(Clone, Debug)]
enum Action {
    Open,
    Connect(usize),
    /// Writes a number of bytes.
    Write(bool, usize, usize),
    Finish(bool, usize),
    Reset(bool, usize),
    Read(bool),
    /// Delivers a number of messages from the selected end.
    Deliver(bool, usize),
}

fn action() -> impl Strategy<Value = Action> {
    prop_oneof![
        Just(Action::Open),
        (0..4_usize).prop_map(Action::Connect),
        (any::<bool>(), 0..4_usize, 1..200_000_usize)
            .prop_map(|(at_exit, stream, bytes)| Action::Write(at_exit, stream, bytes)),
        (any::<bool>(), 0..4_usize).prop_map(|(at_exit, stream)| Action::Finish(at_exit, stream)),
        (any::<bool>(), 0..4_usize).prop_map(|(at_exit, stream)| Action::Reset(at_exit, stream)),
        any::<bool>().prop_map(Action::Read),
        (any::<bool>(), 1..300_usize).prop_map(|(at_exit, messages)| Action::Deliver(at_exit, messages)),
    ]
}

proptest! {
    #[test]
    fn honest_actions_in_any_order_cause_no_breach_and_leave_no_stream(actions in prop::collection::vec(action(), 1..120)) {
        let mut pair = Pair::new();
        let mut ids = Vec::new();
        let pick = |ids: &Vec<StreamId>, at: usize| ids.iter().rev().nth(at).copied();
        for action in actions {
            let now = pair.now;
            match action {
                Action::Open => ids.extend(pair.origin.open(now, target())),
                Action::Connect(at) => if let Some(id) = pick(&ids, at) { pair.exit.handle_command(id, StreamCommand::Connected(None)) },
                Action::Write(at_exit, at, bytes) => if let Some(id) = pick(&ids, at) {
                    let streams = if at_exit { &mut pair.exit } else { &mut pair.origin };
                    streams.write(id, &vec![0; bytes]);
                },
                Action::Finish(at_exit, at) => if let Some(id) = pick(&ids, at) {
                    if at_exit { pair.exit.handle_command(id, StreamCommand::Finish) } else { pair.origin.handle_command(id, StreamCommand::Finish) }
                },
                Action::Reset(at_exit, at) => if let Some(id) = pick(&ids, at) {
                    if at_exit { pair.exit.handle_command(id, StreamCommand::Reset(EndReason::Failed)) } else { pair.origin.handle_command(id, StreamCommand::Reset(EndReason::Failed)) }
                },
                Action::Read(at_exit) => { read(if at_exit { &mut pair.exit } else { &mut pair.origin }); }
                Action::Deliver(at_exit, messages) => for _ in 0..messages {
                    let (from, to) = if at_exit { (&mut pair.exit, &mut pair.origin) } else { (&mut pair.origin, &mut pair.exit) };
                    let has = from.has_message();
                    let message = from.poll_message(now, CAPACITY, &mut pair.rng);
                    prop_assert_eq!(has, message.is_some());
                    let Some(message) = message else { break };
                    let outcome = to.handle_message(now, message);
                    prop_assert!(outcome.is_ok(), "{:?}", outcome);
                },
            }
        }
        for id in ids {
            pair.origin.handle_command(id, StreamCommand::Reset(EndReason::Reset));
        }
        pair.settle();
        prop_assert!(pair.origin.is_empty() && pair.exit.is_empty());
        prop_assert_eq!((pair.origin.extra_credit, pair.exit.extra_credit), (0, 0));
    }

    #[test]
    fn arbitrary_messages_of_a_peer_cause_no_panic(messages in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..60), exit in any::<bool>()) {
        let role = if exit { StreamRole::Exit } else { StreamRole::Origin };
        let mut streams = Streams::new(role, FlowParameters::default());
        let _ = streams.open(Instant::START, target());
        for bytes in messages {
            if let Ok(message) = RelayMessage::decode(&Bytes::from(bytes)) {
                let _ = streams.handle_message(Instant::START, message);
            }
        }
    }
}

#[test]
fn a_stream_to_a_service_is_open_at_both_ends_without_an_answer() {
    let mut pair = Pair::new();
    let stream = pair.origin.request(pair.now, Service::Search).unwrap();
    assert_eq!(pair.origin.write(stream, b"query"), 5);
    pair.origin.handle_command(stream, StreamCommand::Finish);
    pair.settle();
    assert_eq!(pair.exit.poll_event(), Some((stream, StreamEvent::Request(Service::Search))));
    assert_eq!(pair.exit.poll_event(), Some((stream, StreamEvent::Data(Bytes::from_static(b"query")))));
    assert_eq!(pair.exit.poll_event(), Some((stream, StreamEvent::Finished)));
    assert_eq!(pair.exit.write(stream, b"answer"), 6);
    pair.exit.handle_command(stream, StreamCommand::Finish);
    pair.settle();
    assert_eq!(pair.origin.poll_event(), Some((stream, StreamEvent::Data(Bytes::from_static(b"answer")))));
    assert_eq!(pair.origin.poll_event(), Some((stream, StreamEvent::Finished)));
    assert!(pair.origin.is_empty() && pair.exit.is_empty());
    assert_eq!((pair.origin.poll_timeout(), pair.exit.poll_timeout()), (None, None));
}

#[test]
fn the_refusal_of_a_service_ends_only_its_stream() {
    let mut pair = Pair::new();
    let other = pair.stream();
    let stream = pair.origin.request(pair.now, Service::Http).unwrap();
    pair.origin.write(stream, b"request");
    pair.settle();
    pair.exit.handle_command(stream, StreamCommand::Reset(EndReason::Policy));
    pair.settle();
    assert_eq!(pair.origin.poll_event(), Some((stream, StreamEvent::Closed(EndReason::Policy))));
    assert_eq!(pair.origin.write(other, b"stays open"), 10);
    pair.settle();
}

#[test]
fn a_request_from_a_hop_is_a_breach() {
    let mut pair = Pair::new();
    let stream = StreamId::new(1).unwrap();
    let request = RelayMessage::Request { stream, service: Service::Search };
    assert_eq!(pair.origin.handle_message(pair.now, request), Err(StreamError::Illegal(MessageKind::Request)));
}
