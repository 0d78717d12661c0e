use proptest::prelude::*;

#[cfg(target_arch = "wasm32")]
use wasm_bindgen_test::wasm_bindgen_test as test;

use super::*;
use crate::delegated::binary_http::{MAX_FIELDS, put_number};

fn fields(fields: &[(&str, &str)]) -> Vec<(String, String)> {
    fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn get(url: &str) -> Result<HttpRequest, HttpRequestError> {
    HttpRequest::new("GET", url, fields(&[]), Vec::new())
}

fn decode(bytes: &[u8]) -> Result<HttpResponse, BinaryHttpError> {
    HttpResponse::decode(bytes.to_vec())
}

/// Encodes a response as an exit does.
fn response(status: u64, fields: &[(&str, &str)], chunks: &[&[u8]]) -> Vec<u8> {
    let mut bytes = Vec::new();
    put_number(3, &mut bytes);
    put_number(status, &mut bytes);
    for text in fields.iter().flat_map(|(name, value)| [name, value]) {
        put_vector(text.as_bytes(), &mut bytes);
    }
    bytes.push(0);
    for chunk in chunks {
        put_vector(chunk, &mut bytes);
    }
    bytes.extend_from_slice(&[0, 0]);
    bytes
}

#[test]
fn a_url_is_split_and_an_invalid_one_is_refused() {
    let request = get("https://Example.org:8443/path?query=1#part").unwrap();
    assert_eq!((request.host(), request.path.as_str()), ("example.org", "/path?query=1"));
    assert_eq!(get("http://[2001:db8::1]?a").unwrap().host(), "2001:db8::1");
    assert_eq!(get("http://[2001:db8::1]?a").unwrap().path, "/?a");
    for bad in [
        "ftp://example.org/",
        "https:example.org",
        "https://user@example.org/",
        "https://example.org:0/",
        "https://example.org:99999/",
        "https://example.org:+1/",
        "https:///path",
        "https://example.org/a b",
        "https://exa mple.org/",
    ] {
        assert_eq!(get(bad), Err(HttpRequestError::Address), "{bad}");
    }
    let long = format!("https://example.org/{}", "a".repeat(MAX_HEAD_LEN));
    assert_eq!(get(&long), Err(HttpRequestError::TooLarge));
}

#[test]
fn identifying_fields_are_removed_and_fixed_fields_are_equal_for_all_clients() {
    let given = [("Cookie", "a=1"), ("X-Forwarded-For", "192.0.2.1"), ("User-Agent", "mine"), ("TE", "trailers")];
    let request = HttpRequest::new("get", "http://a.example/", fields(&given), Vec::new()).unwrap();
    assert_eq!(request, get("http://a.example/").unwrap());
    assert_eq!(request.fields.len(), 4);
    let kept = HttpRequest::new("GET", "http://a.example/", fields(&[("Authorization", "x")]), Vec::new()).unwrap();
    assert!(kept.fields.contains(&("authorization".to_owned(), "x".to_owned())));
    for bad in [("a b", "x"), ("", "x"), ("a", "x\r\ny"), ("a\n", "x")] {
        assert_eq!(
            HttpRequest::new("GET", "http://a.example/", fields(&[bad]), Vec::new()),
            Err(HttpRequestError::Field)
        );
    }
    assert_eq!(HttpRequest::new("TRACE", "http://a.example/", fields(&[]), Vec::new()), Err(HttpRequestError::Method));
}

#[cfg(feature = "native")]
#[tokio::test]
async fn an_exit_decodes_the_request_that_the_client_encoded() {
    use crate::http_exchange::binary::read_request;

    let body = vec![7; 70_000];
    let url = "https://example.org:8443/path?query=1";
    let request = HttpRequest::new("POST", url, fields(&[("X-Twice", "1"), ("X-Twice", "2")]), body.clone()).unwrap();
    let bytes = request.encode().unwrap();
    let (read, mut content) = read_request(bytes.as_slice(), u64::MAX).await.unwrap();
    assert_eq!(read.method(), "POST");
    assert_eq!(read.uri(), url);
    assert_eq!(read.headers().get_all("x-twice").iter().count(), 2);
    assert_eq!(read.headers()["content-length"], "70000");
    let mut whole = Vec::new();
    while let Some(piece) = content.piece().await.unwrap() {
        whole.extend_from_slice(&piece);
    }
    assert_eq!(whole, body);
}

#[test]
fn a_decoded_response_is_complete_without_removed_fields() {
    let given = [("etag", "1"), ("set-cookie", "id=1"), ("connection", "x-mine"), ("x-mine", "1")];
    let mut bytes = response(200, &given, &[b"one ", &[b'x'; 5000], b" two"]);
    let read = decode(&bytes).unwrap();
    assert_eq!((read.status, read.body.len(), read.refusal), (200, 5008, None));
    assert_eq!(read.fields, [("etag".to_owned(), b"1".to_vec())]);
    bytes.push(0);
    assert!(matches!(decode(&bytes), Err(BinaryHttpError::Malformed(_))), "bytes after its end");
}

#[test]
fn informational_responses_are_dropped_and_a_response_may_consist_of_a_head() {
    let mut bytes = vec![3];
    put_number(103, &mut bytes);
    bytes.push(0);
    put_number(204, &mut bytes);
    bytes.push(0);
    assert_eq!(decode(&bytes).unwrap().status, 204);
    assert!(decode(&bytes[..bytes.len() - 1]).is_err());
}

#[test]
fn a_refusal_of_the_exit_differs_from_an_answer_of_the_target() {
    let (status, value) = Refusal::RateLimited.to_answer();
    let read = decode(&response(status.into(), &[("proxy-status", &value)], &[])).unwrap();
    assert_eq!(read.refusal, Some(Refusal::RateLimited));
    assert!(read.fields.is_empty());
    assert_eq!(decode(&response(429, &[], &[])).unwrap().refusal, None);
}

#[test]
fn a_truncated_response_is_refused() {
    let bytes = response(200, &[("etag", "1")], &[b"content"]);
    // A message may end after its head, and trailers may be missing.
    let head = bytes.len() - b"content".len() - 3;
    let complete = [head, bytes.len() - 1, bytes.len()];
    for end in 0..=bytes.len() {
        assert_eq!(decode(&bytes[..end]).is_ok(), complete.contains(&end), "after {end} bytes");
    }
}

#[test]
fn an_invalid_or_too_large_head_is_refused() {
    let many: Vec<_> = (0..=MAX_FIELDS).map(|_| ("a", "1")).collect();
    assert_eq!(decode(&response(200, &many, &[])), Err(BinaryHttpError::TooLarge));
    let long = "x".repeat(MAX_HEAD_LEN);
    assert_eq!(decode(&response(200, &[("a", &long)], &[])), Err(BinaryHttpError::TooLarge));
    for (name, value) in [("A", "1"), ("a b", "1"), ("a", "1\n")] {
        let read = decode(&response(200, &[(name, value)], &[]));
        assert!(matches!(read, Err(BinaryHttpError::Malformed(_))));
    }
    for status in [0, 99, 600, 70_000] {
        let read = decode(&response(status, &[], &[]));
        assert!(matches!(read, Err(BinaryHttpError::Malformed(_))));
    }
    assert_eq!(decode(&[3, 0xff, 0xff, 0xff, 0xff]), Err(BinaryHttpError::Truncated));
}

#[test]
fn requests_and_responses_print_redacted() {
    let request = HttpRequest::new("POST", "https://secret.example/", fields(&[]), b"secret".to_vec()).unwrap();
    let read = decode(&response(200, &[("secret", "secret")], &[b"secret"])).unwrap();
    assert!(!format!("{request:?} {read:?}").contains("secret"));
}

proptest! {
    #[test]
    fn the_decoder_does_not_panic_on_any_input(bytes in proptest::collection::vec(any::<u8>(), 0..500)) {
        let _ = decode(&bytes);
        let _ = decode(&[&[3, 0x40, 200][..], &bytes].concat());
    }
}
