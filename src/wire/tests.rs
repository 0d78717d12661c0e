//! Tests of the codecs: properties of all messages, cells and fragments, and the test vectors.

use core::net::IpAddr;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use bytes::Bytes;
use proptest::{collection::vec, prelude::*};

use crate::{
    base::{CircuitId, HopIndex, RelayId, StreamId},
    crypto::vectors::{bytes, cases, read},
};

use super::*;

fn name() -> impl Strategy<Value = String> {
    vec(prop::sample::select(b"abcXYZ019-_.".to_vec()), 1..=255)
        .prop_map(|bytes| String::from_utf8(bytes).unwrap())
        .prop_filter("not an address", |name| matches!(Host::parse(name), Ok(Host::Name(_))))
}

fn address() -> impl Strategy<Value = IpAddr> {
    prop_oneof![any::<[u8; 4]>().prop_map(IpAddr::from), any::<[u8; 16]>().prop_map(IpAddr::from)]
}

fn host() -> impl Strategy<Value = Host> {
    prop_oneof![name().prop_map(Host::Name), address().prop_map(Host::Ip)]
}

fn answer() -> impl Strategy<Value = ResolvedAnswer> {
    prop_oneof![name().prop_map(ResolvedAnswer::Name), address().prop_map(ResolvedAnswer::Ip)]
}

fn reason() -> impl Strategy<Value = EndReason> {
    use EndReason::*;
    prop::sample::select(vec![
        Done,
        Refused,
        Unreachable,
        Policy,
        TimedOut,
        NotFound,
        Reset,
        ResourceLimit,
        Failed,
        LookupFailed,
    ])
}

fn message() -> impl Strategy<Value = RelayMessage> {
    let id = || (1..=u16::MAX).prop_map(|id| StreamId::new(id).unwrap());
    let bytes = |min_len| vec(any::<u8>(), min_len..900).prop_map(Bytes::from);
    prop_oneof![
        (id(), host(), 1..=u16::MAX)
            .prop_map(|(stream, host, port)| RelayMessage::Begin { stream, target: Target { host, port } }),
        (id(), prop::option::of(address())).prop_map(|(stream, address)| RelayMessage::Connected { stream, address }),
        (id(), any::<Option<[u8; SENDME_TAG_LEN]>>(), bytes(1)).prop_map(|(stream, tag, bytes)| RelayMessage::Data {
            stream,
            tag,
            bytes
        }),
        (id(), reason()).prop_map(|(stream, reason)| RelayMessage::End { stream, reason }),
        (id(), host()).prop_map(|(stream, host)| RelayMessage::Resolve { stream, host }),
        (id(), any::<u32>(), vec(answer(), 1..=16)).prop_map(|(stream, ttl, answers)| RelayMessage::Resolved {
            stream,
            ttl,
            answers
        }),
        (id(), 1..=u32::MAX).prop_map(|(stream, bytes)| RelayMessage::Credit { stream, bytes }),
        any::<[u8; SENDME_TAG_LEN]>().prop_map(|tag| RelayMessage::SendMe { tag }),
        bytes(0).prop_map(|fragment| RelayMessage::Extend { fragment }),
        bytes(0).prop_map(|fragment| RelayMessage::Extended { fragment }),
        Just(RelayMessage::Drop),
        Just(RelayMessage::Gone),
        (id(), prop::sample::select(vec![Service::Search, Service::Http]))
            .prop_map(|(stream, service)| RelayMessage::Request { stream, service }),
    ]
}

fn encoded(message: &RelayMessage) -> Vec<u8> {
    let mut bytes = Vec::new();
    message.encode(&mut bytes).unwrap();
    bytes
}

proptest! {
    #[test]
    fn a_message_with_any_padding_decodes_to_an_equal_message(message in message(), padding in 0..64_usize) {
        let mut bytes = encoded(&message);
        bytes.resize(bytes.len() + padding, 0);
        prop_assert_eq!(RelayMessage::decode(&Bytes::from(bytes)), Ok(message));
    }

    #[test]
    fn a_truncated_message_is_refused(message in message()) {
        let bytes = Bytes::from(encoded(&message));
        for length in 0..bytes.len() {
            prop_assert!(RelayMessage::decode(&bytes.slice(..length)).is_err(), "{} bytes", length);
        }
    }

    #[test]
    fn nonzero_padding_is_refused(message in message(), at in 0..64_usize, value in 1..=u8::MAX) {
        let mut bytes = encoded(&message);
        let end = bytes.len();
        bytes.resize(end + 64, 0);
        bytes[end + at] = value;
        prop_assert_eq!(RelayMessage::decode(&Bytes::from(bytes)), Err(WireError::TrailingBytes("message")));
    }

    #[test]
    fn a_decoded_message_has_one_encoding(message in message(), changes in vec((any::<prop::sample::Index>(), any::<u8>()), 0..4)) {
        let mut bytes = encoded(&message);
        for (index, value) in changes {
            let at = index.index(bytes.len());
            bytes[at] = value;
        }
        let bytes = Bytes::from(bytes);
        if let Ok(message) = RelayMessage::decode(&bytes) {
            let again = encoded(&message);
            prop_assert_eq!(&again[..], &bytes[..again.len()]);
            prop_assert!(is_zero(&bytes[again.len()..]));
        }
    }

    #[test]
    fn arbitrary_bytes_are_decoded_without_a_panic(bytes in vec(any::<u8>(), 0..1100)) {
        let _ = RelayMessage::decode(&Bytes::from(bytes.clone()));
        if let Ok(slot) = <[u8; CELL_LEN]>::try_from(bytes.as_slice()) {
            let _ = Cell::decode(slot.into());
        }
        let _ = decode_extend(&bytes);
        let mut fragments = Fragments::new();
        for piece in bytes.chunks(97) {
            let _ = fragments.push(piece);
        }
    }

    #[test]
    fn a_decoded_cell_has_one_encoding(bytes in vec(any::<u8>(), CELL_LEN), command in 0..6_u8) {
        let mut slot = <[u8; CELL_LEN]>::try_from(bytes).unwrap();
        slot[4] = command;
        if let Ok(cell) = Cell::decode(slot.into()) {
            prop_assert_eq!(*cell.encode(), slot);
        }
    }

    #[test]
    fn bodies_are_reassembled_from_fragments_of_any_capacity(body in vec(any::<u8>(), 1..=MAX_BODY_LEN), capacity in 3..1100_usize, padded: bool) {
        let Ok(pieces) = split(&body, capacity) else {
            prop_assert!(body.len() + 2 > capacity * MAX_FRAGMENTS);
            return Ok(());
        };
        prop_assert!(pieces.len() <= MAX_FRAGMENTS);
        let mut fragments = Fragments::new();
        let mut whole = None;
        for mut piece in pieces {
            prop_assert!(piece.len() <= capacity && whole.is_none());
            if padded {
                piece.resize(capacity, 0);
            }
            whole = fragments.push(&piece).unwrap();
            prop_assert_eq!(fragments.is_partial(), whole.is_none());
        }
        prop_assert_eq!(whole, Some(body));
    }
}

#[test]
fn messages_with_invalid_fields_are_not_encoded() {
    let stream = StreamId::new(1).unwrap();
    let name = |name: &str| Host::Name(name.to_owned());
    for message in [
        RelayMessage::Begin { stream, target: Target { host: name("a"), port: 0 } },
        RelayMessage::Resolve { stream, host: name("127.0.0.1") },
        RelayMessage::Resolve { stream, host: name("") },
        RelayMessage::Resolve { stream, host: name("two words") },
        RelayMessage::Resolve { stream, host: name(&"a".repeat(256)) },
        RelayMessage::Data { stream, tag: None, bytes: Bytes::new() },
        RelayMessage::Credit { stream, bytes: 0 },
        RelayMessage::Resolved { stream, ttl: 1, answers: Vec::new() },
        RelayMessage::Resolved { stream, ttl: 1, answers: vec![ResolvedAnswer::Ip([0; 4].into()); 17] },
        RelayMessage::Extend { fragment: vec![0; 65_536].into() },
    ] {
        assert!(message.encode(&mut Vec::new()).is_err(), "{message:?}");
    }
}

#[test]
fn only_messages_of_streams_have_a_stream_identifier() {
    for message in [RelayMessage::Drop, RelayMessage::Gone] {
        let mut bytes = encoded(&message);
        bytes[2] = 1;
        assert!(RelayMessage::decode(&bytes.into()).is_err());
    }
    let mut end = encoded(&RelayMessage::End { stream: StreamId::new(1).unwrap(), reason: EndReason::Done });
    end[2] = 0;
    assert!(RelayMessage::decode(&end.into()).is_err());
}

#[test]
fn a_body_of_five_fragments_is_refused() {
    let mut fragments = Fragments::new();
    assert_eq!(fragments.push(&[0, 5, 1]), Ok(None));
    assert_eq!(fragments.push(&[2]), Ok(None));
    assert_eq!(fragments.push(&[3]), Ok(None));
    assert_eq!(fragments.push(&[4]), Err(WireError::TooLong("fragmented body")));
    assert_eq!(split(&[0; 7], 2), Err(WireError::TooLong("fragmented body")));
    assert_eq!(split(&[0; MAX_BODY_LEN + 1], 4000), Err(WireError::TooLong("fragmented body")));
    assert!(split(&[], 100).is_err());
}

#[test]
fn a_wrong_body_length_is_refused() {
    let push = |bytes: &[u8]| Fragments::new().push(bytes);
    assert_eq!(push(&[]), Err(WireError::Truncated("fragment")));
    assert_eq!(push(&[0]), Err(WireError::Truncated("fragment")));
    assert_eq!(push(&[0, 0, 0]), Err(WireError::Truncated("fragment")), "no length");
    assert_eq!(push(&[0, 1]), Err(WireError::Truncated("fragment")), "no byte of the body");
    assert_eq!(push(&[0xff, 0xff, 1]), Err(WireError::TooLong("fragmented body")), "longer than the maximum");
    assert_eq!(push(&[0, 1, 1, 1]), Err(WireError::TrailingBytes("fragment")), "longer than stated");
    assert_eq!(push(&[0, 1, 1, 0]), Ok(Some(vec![1])), "padding");
    let mut fragments = Fragments::new();
    fragments.push(&[0, 3, 1]).unwrap();
    assert_eq!(fragments.push(&[]), Err(WireError::Truncated("fragment")), "no progress");
    assert_eq!(
        fragments.push(&[2, 3, 4]),
        Err(WireError::TrailingBytes("fragment")),
        "last fragment longer than stated"
    );
}

#[test]
fn interleaved_bodies_are_never_reassembled() {
    let (first, second) = (vec![1; 40], vec![2; 40]);
    let pieces = |body: &[u8]| split(body, 21).unwrap();
    let mut fragments = Fragments::new();
    let mut bodies = Vec::new();
    for piece in pieces(&first).iter().zip(&pieces(&second)).flat_map(|(first, second)| [first, second]) {
        match fragments.push(piece) {
            Ok(None) => {}
            Ok(Some(body)) => bodies.push(body),
            Err(_) => return,
        }
    }
    assert!(!bodies.contains(&first) && !bodies.contains(&second));
}

#[test]
fn handshakes_are_reassembled_from_create_and_created_cells() {
    let (circuit, hop) = (CircuitId::new(9).unwrap(), HopIndex::new(3).unwrap());
    for length in [1, 66, 1016, 1017, 3000, MAX_BODY_LEN] {
        let request: Vec<u8> = (0..length).map(|value| value as u8).collect();
        let mut fragments = Fragments::new();
        let mut body = None;
        for cell in create_cells(circuit, hop, &request).unwrap() {
            assert_eq!((cell.circuit(), cell.command()), (Some(circuit), Command::Create));
            let (hop_number, fragment) = decode_create(cell.body()).unwrap();
            assert_eq!(hop_number, hop);
            body = fragments.push(fragment).unwrap();
        }
        assert_eq!(body.as_ref(), Some(&request));
        for cell in created_cells(circuit, &request).unwrap() {
            assert_eq!(cell.command(), Command::Created);
            body = fragments.push(cell.body()).unwrap();
        }
        assert_eq!(body, Some(request));
    }
}

#[test]
fn a_create_cell_with_an_invalid_hop_number_is_refused() {
    for hop in [0, 9, 255] {
        let mut body = [0; BODY_LEN];
        body[0] = hop;
        assert!(decode_create(&body).is_err());
    }
}

#[test]
fn an_extend_body_holds_a_relay_and_a_request() {
    let relay = RelayId::from_bytes([5; 32]);
    assert_eq!(decode_extend(&encode_extend(&relay, b"request")), Ok((relay, b"request".as_slice())));
    assert!(decode_extend(&[5; 31]).is_err());
}

#[test]
fn fragments_match_the_vectors() {
    let list = |value: &serde_json::Value| value.as_array().unwrap().iter().map(bytes).collect::<Vec<_>>();
    let vectors = read(include_str!("../../proto/vectors/fragments.json"));
    for case in cases(&vectors, "bodies") {
        let capacity = usize::try_from(case["capacity"].as_u64().unwrap()).unwrap();
        assert_eq!(split(&bytes(&case["body"]), capacity), Ok(list(&case["fragments"])));
    }
    for case in cases(&vectors, "bodies").iter().chain(cases(&vectors, "padded")) {
        let mut fragments = Fragments::new();
        let outputs: Vec<_> = list(&case["fragments"]).iter().map(|piece| fragments.push(piece).unwrap()).collect();
        let (whole, partial) = outputs.split_last().unwrap();
        assert!(partial.iter().all(Option::is_none));
        assert_eq!(whole.as_ref(), Some(&bytes(&case["body"])));
    }
    for case in cases(&vectors, "refused") {
        let mut fragments = Fragments::new();
        let outcomes: Vec<_> = list(&case["fragments"]).iter().map(|piece| fragments.push(piece)).collect();
        let (last, before) = outcomes.split_last().unwrap();
        assert!(last.is_err() && before.iter().all(|outcome| *outcome == Ok(None)), "{}", case["why"]);
    }
}
