//! Fuzz targets: the codecs of cells, relay messages, fragments and hosts.

use bytes::Bytes;

use super::{Choices, FuzzTarget};
use crate::{
    base::{CircuitId, HopIndex, RelayId, SLOT_LEN, StreamId},
    wire::{
        BODY_LEN, Cell, CellBody, EndReason, Fragments, Host, RelayMessage, ResolvedAnswer, Service, create_cells,
        decode_create, decode_extend, encode_extend, split,
    },
};

pub(super) const TARGETS: &[FuzzTarget] = &[
    FuzzTarget { name: "cell", run: cell, seeds: cell_seeds },
    FuzzTarget { name: "relay_message", run: relay_message, seeds: message_seeds },
    FuzzTarget { name: "fragments", run: fragments, seeds: fragment_seeds },
    FuzzTarget {
        name: "host",
        run: host,
        seeds: || ["example.org", "192.0.2.7", "[2001:db8::1]"].map(Into::into).to_vec(),
    },
];

/// A decoded cell encodes to the same bytes.
fn cell(bytes: &[u8]) {
    let slot: Option<[u8; SLOT_LEN]> = bytes.try_into().ok();
    let Some(cell) = slot.and_then(|slot| Cell::decode(slot.into()).ok()) else { return };
    let _ = decode_create(cell.body());
    assert_eq!(*cell.encode(), *bytes);
}

fn cell_seeds() -> Vec<Vec<u8>> {
    let circuit = CircuitId::new(0x8000_0001).unwrap();
    let cells = create_cells(circuit, HopIndex::FIRST, &[7; 1500]).unwrap();
    let cells = cells.into_iter().chain([Cell::padding(), Cell::destroy(circuit)]);
    cells.map(|cell| cell.encode().to_vec()).collect()
}

/// A decoded message encodes to the same bytes, without the padding.
fn relay_message(bytes: &[u8]) {
    let Ok(message) = RelayMessage::decode(&Bytes::copy_from_slice(bytes)) else { return };
    assert!(bytes.starts_with(&encode(&message)), "{message:?}");
    if let RelayMessage::Extend { fragment } | RelayMessage::Extended { fragment } = message {
        fragments(&fragment);
    }
}

fn message_seeds() -> Vec<Vec<u8>> {
    messages().iter().map(|message| [&encode(message)[..], &[0; 9]].concat()).collect()
}

/// The body of a cell that starts with `bytes`, as far as they fit.
pub(super) fn body(bytes: &[u8]) -> CellBody {
    let mut body = CellBody::zero();
    let length = bytes.len().min(BODY_LEN);
    body[..length].copy_from_slice(&bytes[..length]);
    body
}

/// The encoding of a valid message.
pub(super) fn encode(message: &RelayMessage) -> Vec<u8> {
    let mut encoded = Vec::new();
    message.encode(&mut encoded).expect("the message can be encoded");
    encoded
}

/// One message of each kind.
pub(super) fn messages() -> Vec<RelayMessage> {
    let stream = StreamId::new(1).unwrap();
    let name = Host::parse("example.org").unwrap();
    let [v4, v6] = ["192.0.2.7", "2001:db8::1"].map(|address| address.parse().unwrap());
    let bytes = Bytes::from_static(b"bytes");
    vec![
        RelayMessage::Begin { stream, target: crate::wire::Target { host: name.clone(), port: 443 } },
        RelayMessage::Begin { stream, target: crate::wire::Target { host: Host::Ip(v6), port: 80 } },
        RelayMessage::Connected { stream, address: Some(v4) },
        RelayMessage::Connected { stream, address: None },
        RelayMessage::Data { stream, tag: None, bytes: bytes.clone() },
        RelayMessage::Data { stream, tag: Some([9; 16]), bytes: bytes.clone() },
        RelayMessage::End { stream, reason: EndReason::Done },
        RelayMessage::End { stream, reason: EndReason::Reset },
        RelayMessage::Resolve { stream, host: name },
        RelayMessage::Resolved {
            stream,
            ttl: 60,
            answers: vec![
                ResolvedAnswer::Ip(v4),
                ResolvedAnswer::Ip(v6),
                ResolvedAnswer::Name("example.org".to_owned()),
            ],
        },
        RelayMessage::Credit { stream, bytes: 4096 },
        RelayMessage::SendMe { tag: [9; 16] },
        RelayMessage::Extend { fragment: bytes.clone() },
        RelayMessage::Extended { fragment: bytes },
        RelayMessage::Drop,
        RelayMessage::Gone,
        RelayMessage::Request { stream, service: Service::Search },
    ]
}

/// A reassembled body is within the length limit. Fragments of the body reassemble to the same body.
fn fragments(bytes: &[u8]) {
    let mut choices = Choices::new(bytes);
    let mut fragments = Fragments::new();
    while !choices.is_empty() {
        let Ok(complete) = fragments.push(choices.bytes()) else { return };
        let Some(body) = complete else { continue };
        assert!(body.len() <= 4 * BODY_LEN);
        if let Ok((relay, request)) = decode_extend(&body) {
            assert_eq!(encode_extend(&relay, request), body);
        }
        let mut second = Fragments::new();
        let parts = split(&body, BODY_LEN).expect("the body fits the maximum number of fragments");
        let mut reassembled = None;
        for part in parts {
            reassembled = second.push(&part).expect("a fragment from split");
        }
        assert_eq!(reassembled, Some(body));
    }
}

fn fragment_seeds() -> Vec<Vec<u8>> {
    let body = encode_extend(&RelayId::from_bytes([7; 32]), &[5; 1200]);
    [900, 1000, 1300]
        .map(|capacity| {
            let prefixed = |part: Vec<u8>| [&u16::try_from(part.len()).unwrap().to_be_bytes(), &*part].concat();
            split(&body, capacity).unwrap().into_iter().flat_map(prefixed).collect()
        })
        .to_vec()
}

/// A valid host prints to text that parses to an equal host.
fn host(bytes: &[u8]) {
    let Ok(text) = core::str::from_utf8(bytes) else { return };
    let Ok(host) = Host::parse(text) else { return };
    assert_eq!(Host::parse(&host.to_text()), Ok(host));
}
