//! Fuzz targets: the streams between an origin and one hop, by sequences of operations of either end.

use bytes::Bytes;
use rand::{SeedableRng as _, rngs::ChaCha8Rng};

use super::{
    Choices, FuzzClock, FuzzTarget,
    wire::{encode, messages},
};
use crate::{
    base::StreamId,
    flow::FlowParameters,
    stream::{StreamCommand, StreamEvent, StreamRole, Streams},
    wire::{EndReason, Host, RelayMessage, Service, Target},
};

pub(super) const TARGETS: &[FuzzTarget] = &[
    FuzzTarget { name: "streams_of_hostile_peer", run: hostile, seeds: hostile_seeds },
    FuzzTarget { name: "streams_end_to_end", run: end_to_end, seeds: end_to_end_seeds },
];

/// Maximum length of a relay message at the third hop, with its header, in bytes.
const CAPACITY: usize = 968;

fn parameters() -> FlowParameters {
    FlowParameters { max_streams: 8, ..FlowParameters::default() }
}

fn target() -> Target {
    Target { host: Host::parse("example.org").unwrap(), port: 443 }
}

/// Messages of a peer in any order are accepted or end the circuit.
fn hostile(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let role = if choices.u8() & 1 == 0 { StreamRole::Origin } else { StreamRole::Exit };
    let mut streams = Streams::new(role, parameters());
    let (mut clock, mut rng) = (FuzzClock::new(), ChaCha8Rng::seed_from_u64(1));
    while !choices.is_empty() {
        let now = clock.advance(choices.u8());
        let outcome = match choices.u8() % 4 {
            0 => {
                perform(&mut streams, role, now, &mut choices);
                Ok(())
            }
            1 => streams.handle_timeout(now),
            _ => match RelayMessage::decode(&Bytes::copy_from_slice(choices.bytes())) {
                Ok(message) => streams.handle_message(now, message),
                Err(_) => return,
            },
        };
        if outcome.is_err() {
            return streams.abort(EndReason::Failed);
        }
        while streams.poll_event().is_some() {}
        while let Some(message) = streams.poll_message(now, CAPACITY, &mut rng) {
            assert!(encode(&message).len() <= CAPACITY);
        }
        assert!(streams.len() <= 8);
    }
}

/// Performs an operation of the local application, or of the exit.
fn perform(streams: &mut Streams, role: StreamRole, now: crate::base::Instant, choices: &mut Choices<'_>) {
    let Some(id) = StreamId::new(u16::from(choices.u8() % 10)) else { return };
    match choices.u8() % 10 {
        9 => streams.handle_command(id, StreamCommand::Fail(EndReason::Reset)),
        8 if role == StreamRole::Origin => drop(streams.request(now, Service::Search)),
        0 if role == StreamRole::Origin => drop(streams.open(now, target())),
        1 if role == StreamRole::Origin => drop(streams.resolve(now, target().host)),
        0 => streams.handle_command(id, StreamCommand::Connected(None)),
        1 => streams.handle_command(id, StreamCommand::Resolved { ttl: 60, answers: Vec::new() }),
        2 => streams.handle_command(id, StreamCommand::Finish),
        3 => streams.handle_command(id, StreamCommand::Reset(EndReason::Reset)),
        4 => streams.handle_command(id, StreamCommand::Consumed(usize::from(choices.u16()))),
        _ => {
            let bytes = choices.bytes();
            let room = streams.room(id);
            assert_eq!(streams.write(id, bytes), bytes.len().min(room));
        }
    }
}

fn hostile_seeds() -> Vec<Vec<u8>> {
    let messages_for = |role: u8| {
        let mut input = vec![role];
        for message in messages() {
            let encoded = encode(&message);
            // The application opens a stream or answers one, then the peer sends.
            input.extend([3, 0, 1, 0, 3, 2]);
            input.extend(u16::try_from(encoded.len()).unwrap().to_be_bytes());
            input.extend(encoded);
        }
        input
    };
    vec![messages_for(0), messages_for(1)]
}

/// Two honest ends with arbitrary operations and delays violate no rule of the protocol. Each received piece has
/// consecutive bytes, and no end receives more bytes than the other wrote.
fn end_to_end(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut ends = [StreamRole::Origin, StreamRole::Exit].map(|role| Streams::new(role, parameters()));
    // Bytes written and read, by end and stream. The n-th byte that an end writes to a stream is n mod 256.
    let mut written = [[0_usize; 16]; 2];
    let mut read = [[0_usize; 16]; 2];
    let (mut clock, mut rng) = (FuzzClock::new(), ChaCha8Rng::seed_from_u64(2));
    while !choices.is_empty() {
        let now = clock.advance(choices.u8() % 8);
        let which = usize::from(choices.u8() % 2);
        let id = StreamId::new(u16::from(choices.u8() % 15) + 1).unwrap();
        let slot = usize::from(id.value());
        match choices.u8() % 10 {
            9 => ends[which].handle_command(id, StreamCommand::Fail(EndReason::Reset)),
            8 => drop(ends[0].request(now, Service::Http)),
            0 if which == 0 => drop(ends[0].open(now, target())),
            0 => ends[1].handle_command(id, StreamCommand::Connected(None)),
            1 => ends[which].handle_command(id, StreamCommand::Finish),
            2 => ends[which].handle_command(id, StreamCommand::Reset(EndReason::Reset)),
            3 => ends[which].handle_command(id, StreamCommand::Consumed(usize::from(choices.u16()))),
            4 => {
                let length = usize::from(choices.u16());
                let piece: Vec<u8> = (0..length).map(|index| byte_at(written[which][slot] + index)).collect();
                written[which][slot] += ends[which].write(id, &piece);
            }
            _ => {
                for _ in 0..choices.u8() {
                    let Some(message) = ends[which].poll_message(now, CAPACITY, &mut rng) else { break };
                    ends[1 - which].handle_message(now, message).expect("an honest end violates no rule");
                }
            }
        }
        for end in [0, 1] {
            while let Some(event) = ends[end].poll_event() {
                let (stream, StreamEvent::Data(bytes)) = event else { continue };
                // An identifier is reused after the end of its stream, so only the bytes within each piece are
                // compared.
                let slot = usize::from(stream.value()).min(15);
                let first = usize::from(bytes[0]);
                assert!(bytes.iter().enumerate().all(|(index, byte)| *byte == byte_at(first + index)));
                read[end][slot] += bytes.len();
                assert!(read[end][slot] <= written[1 - end][slot], "more bytes received than sent");
            }
        }
    }
}

fn byte_at(index: usize) -> u8 {
    u8::try_from(index % 256).unwrap()
}

fn end_to_end_seeds() -> Vec<Vec<u8>> {
    // An operation: time, end, stream identifier minus one, operation code, arguments.
    let begin = [0, 0, 0, 0];
    let deliver = |end: u8| [0, end, 0, 5, 255];
    let write = |end: u8| [0, end, 0, 4, 0x20, 0];
    let consumed = |end: u8| [0, end, 0, 3, 0x20, 0];
    let mut input = begin.to_vec();
    input.extend(deliver(0));
    input.extend([0, 1, 0, 0]);
    input.extend(deliver(1));
    for _ in 0..8 {
        for end in [0, 1] {
            input.extend(write(end));
            input.extend(deliver(end));
            input.extend(consumed(1 - end));
        }
    }
    input.extend([0, 0, 0, 1]);
    input.extend(deliver(0));
    input.extend([0, 1, 0, 2]);
    input.extend(deliver(1));
    vec![input]
}
