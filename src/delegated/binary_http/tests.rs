use proptest::prelude::*;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;

/// A decoded message: its head and its whole content.
type Decoded = Result<(Head, Vec<u8>), BinaryHttpError>;

/// Decodes `bytes`, passed in pieces of `size`.
fn decode_in(mut decoder: Decoder, bytes: &[u8], size: usize) -> Decoded {
    let (mut head, mut content, mut pieces) = (None, Vec::new(), bytes.chunks(size));
    let mut ended = false;
    loop {
        match decoder.poll_part(ended)? {
            Some(Part::Head(first)) => assert!(head.replace(first).is_none()),
            Some(Part::Content(piece)) => {
                assert!(!piece.is_empty());
                content.extend_from_slice(&piece);
            }
            Some(Part::End) => return Ok((head.unwrap(), content)),
            None => match pieces.next() {
                Some(piece) => decoder.buffer_mut().extend_from_slice(piece),
                None => ended = true,
            },
        }
    }
}

/// Decodes `bytes` in one piece and byte by byte, and checks that both results are equal.
fn decode(decoder: fn(u64) -> Decoder, bytes: &[u8], cap: u64) -> Decoded {
    let whole = decode_in(decoder(cap), bytes, bytes.len().max(1));
    let single = decode_in(decoder(cap), bytes, 1);
    assert!(whole == single, "{:?} is not {:?}", whole.err(), single.err());
    whole
}

fn response(bytes: &[u8], cap: u64) -> Result<(u16, Vec<Field>, Vec<u8>), BinaryHttpError> {
    decode(Decoder::response, bytes, cap).map(|(head, content)| match head {
        Head::Response { status, fields } => (status, fields, content),
        Head::Request { .. } => panic!("a request"),
    })
}

fn sealed(bytes: &[u8]) -> Decoded {
    decode(Decoder::sealed_response, bytes, u64::MAX)
}

fn field(name: &'static str, value: &'static str) -> Field {
    (Bytes::from_static(name.as_bytes()), Bytes::from_static(value.as_bytes()))
}

/// A message of `head` and one chunk of content.
fn message(head: &[u8], content: &[u8]) -> Vec<u8> {
    let mut bytes = head.to_vec();
    put_vector(content, &mut bytes);
    [bytes, TERMINATORS.to_vec()].concat()
}

#[test]
fn a_decoded_request_equals_the_encoded_one() {
    let control = ["POST", "https", "example.org:8443", "/path?query=1"];
    let head = request_head(control, [("x-twice", &b"1"[..]), ("x-twice", b"2")].into_iter()).unwrap();
    let (decoded, content) = decode(Decoder::request, &message(&head, b"body"), 4).unwrap();
    let control = control.map(|value| Bytes::from_static(value.as_bytes()));
    assert!(decoded == Head::Request { control, fields: vec![field("x-twice", "1"), field("x-twice", "2")] });
    assert_eq!(content, b"body");
}

#[test]
fn a_truncated_message_is_an_error_except_after_its_head_or_its_content() {
    let head = response_head(200, [("etag", &b"1"[..])].into_iter()).unwrap();
    let whole = message(&head, b"body");
    for length in 0..whole.len() {
        let outcome = response(&whole[..length], u64::MAX).map(|(_, _, content)| content);
        if length == head.len() {
            assert_eq!(outcome.unwrap(), b"");
        } else if length == whole.len() - 1 {
            // No trailers.
            assert_eq!(outcome.unwrap(), b"body");
        } else {
            assert_eq!(outcome, Err(BinaryHttpError::Truncated), "{length}");
        }
    }
    let longer = [whole, vec![0]].concat();
    assert!(matches!(response(&longer, u64::MAX), Err(BinaryHttpError::Malformed(_))), "bytes after its end");
}

#[test]
fn informational_responses_and_trailers_are_skipped() {
    let mut bytes = vec![3];
    for status in [103, 102, 200] {
        put_number(status, &mut bytes);
        bytes.extend([1, b'a', 1, b'b', 0]);
    }
    let trailers = [bytes.as_slice(), b"\x01x\x00\x01a\x01b\x00"].concat();
    for bytes in [bytes, trailers] {
        let (status, fields, _) = response(&bytes, 1).unwrap();
        assert_eq!((status, fields), (200, vec![field("a", "b")]));
    }
    let endless: Vec<u8> = [vec![3], [0x40, 103, 0].repeat(MAX_HEAD_LEN)].concat();
    assert_eq!(response(&endless, 0), Err(BinaryHttpError::TooLarge));
}

#[test]
fn a_length_above_its_cap_is_refused_before_its_bytes_arrive() {
    let huge = [vec![3, 0x40, 200, 1, b'a'], vec![0xff; 8]].concat();
    assert_eq!(response(&huge, 0), Err(BinaryHttpError::TooLarge));
    let many: Vec<u8> = [vec![3, 0x40, 200], [1, b'a', 1, b'b'].repeat(MAX_FIELDS + 1), vec![0]].concat();
    assert_eq!(response(&many, 0), Err(BinaryHttpError::TooLarge));
    let head = response_head(200, core::iter::empty()).unwrap();
    assert_eq!(response(&message(&head, b"more than five"), 5), Err(BinaryHttpError::TooLarge));
    let trailer = [head, vec![0, 1, b'a', 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]].concat();
    assert_eq!(response(&trailer, 5), Err(BinaryHttpError::TooLarge));
    let long = vec![b'x'; MAX_HEAD_LEN];
    assert_eq!(response_head(200, [("a", long.as_slice())].into_iter()), Err(BinaryHttpError::TooLarge));
    let many = core::iter::repeat_n(("a", &b""[..]), MAX_FIELDS + 1);
    assert_eq!(response_head(200, many), Err(BinaryHttpError::TooLarge));
}

#[test]
fn invalid_messages_are_refused() {
    for bad in [
        &b"\x00\x00"[..],
        b"\x02\x40\xc8\x00",
        b"\x01\x40\xc8\x00",
        b"\x03\x40\xc8\x01A\x01b\x00",
        b"\x03\x40\xc8\x02:a\x01b\x00",
        b"\x03\x40\xc8\x03a b\x01b\x00",
        b"\x03\x40\xc8\x01a\x03b\r\n\x00",
    ] {
        assert!(matches!(response(bad, 0), Err(BinaryHttpError::Malformed(_))), "{bad:?}");
    }
    for status in [0, 99, 600, 1 << 40] {
        let mut bytes = vec![3];
        put_number(status, &mut bytes);
        bytes.push(0);
        assert!(matches!(response(&bytes, 0), Err(BinaryHttpError::Malformed(_))), "{status}");
    }
    for status in [103, 600] {
        assert!(matches!(response_head(status, core::iter::empty()), Err(BinaryHttpError::Malformed(_))));
    }
}

#[test]
fn a_sealed_message_may_have_a_known_length_and_padding() {
    let known = b"\x01\x40\x67\x03\x01a\x00\x40\xc8\x03\x01a\x00\x02me\x03\x01b\x00".as_slice();
    let indeterminate = b"\x03\x40\x67\x01a\x00\x00\x40\xc8\x01a\x00\x00\x01m\x01e\x00\x01b\x00\x00".as_slice();
    for message in [known, indeterminate] {
        for padding in [0, 9] {
            let (head, content) = sealed(&[message, &vec![0; padding]].concat()).unwrap();
            assert!(head == Head::Response { status: 200, fields: vec![field("a", "")] });
            assert_eq!(content, b"me");
        }
    }
    // A message of known length may end after its status, its fields or its content.
    let cut = b"\x01\x40\xc8\x03\x01a\x00\x02me\x03\x01b\x00".as_slice();
    for end in 0..=cut.len() {
        assert_eq!(sealed(&cut[..end]).is_ok(), [3, 7, 10, cut.len()].contains(&end), "after {end} bytes");
    }
    for bad in [b"\x01\x40\xc8\x03\x01A\x00".as_slice(), b"\x01\x40\xc8\x01\x01a\x00", b"\x01\x40\xc8\x02\x01a\x01b"] {
        assert!(matches!(sealed(bad), Err(BinaryHttpError::Malformed(_))), "{bad:?}");
    }
}

#[test]
fn the_number_of_fields_and_informational_responses_is_capped() {
    // Fields with one-letter names and empty values, and informational responses without fields.
    let (fields, informational) =
        (b"\x01a\x00".repeat(MAX_TOTAL_FIELDS + 1), b"\x40\x67\x00".repeat(MAX_TOTAL_FIELDS + 1));
    assert_eq!(fields.len(), 0x0c03, "the length encoded below");
    let section = [&[0x4c, 0x03], fields.as_slice()].concat();
    let known = |parts: &[&[u8]]| [b"\x01".as_slice(), &parts.concat()].concat();
    let indeterminate = |parts: &[&[u8]]| [b"\x03".as_slice(), &parts.concat()].concat();
    for bad in [
        known(&[b"\x40\xc8\x00\x00", &section]),
        known(&[&informational, b"\x40\xc8"]),
        indeterminate(&[b"\x40\xc8\x00\x00", &fields, b"\x00"]),
        indeterminate(&[&informational, b"\x40\xc8\x00\x00\x00"]),
    ] {
        assert_eq!(sealed(&bad).err(), Some(BinaryHttpError::TooLarge));
    }
}

#[test]
fn integers_of_every_length_are_decoded() {
    for value in [0, 63, 64, 16_383, 16_384, (1 << 30) - 1, 1 << 30, (1 << 62) - 1] {
        let mut decoder = Decoder::response(0);
        let mut bytes = Vec::new();
        put_number(value, &mut bytes);
        decoder.buffer_mut().extend_from_slice(&bytes);
        assert_eq!(decoder.number(), Ok(Some(value)));
        assert!(decoder.buffer.is_empty());
    }
}

proptest! {
    #[test]
    fn decoders_do_not_panic_on_any_input(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        for start in [b"".as_slice(), b"\x03\x40\xc8", b"\x01\x40\xc8", b"\x02"] {
            let bytes = [start, &bytes].concat();
            let _ = sealed(&bytes);
            let _ = decode(Decoder::request, &bytes, 100);
        }
    }
}
