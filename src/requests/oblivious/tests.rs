use std::{
    io::Cursor,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use bhttp::{Message, Mode};
use hyper::body::Incoming;
use ohttp::{Server, hpke::Kem};
use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::{
    connector::{ConnectError, Delegated, DelegatedRequest, Hop, Isolation},
    exit::outbound::testing::http_server,
    io::{stream::Stream, testing::stream_pair, tls::Tls},
    requests::http::testing::LocalExits,
    wire::{EndReason, Host, ResolvedAnswer, Target},
};

fn keys(id: u8) -> KeyConfig {
    KeyConfig::new(id, Kem::X25519Sha256, SUITES.to_vec()).unwrap()
}

/// Starts a gateway with the key `key`; returns its URL. Request `n` for the keys, counted from 0, gets
/// `configurations(n)`. [`respond`] answers a sealed request.
async fn gateway(key: KeyConfig, configurations: impl Fn(usize) -> Vec<u8> + Clone + Send + Sync + 'static) -> Url {
    let server = Server::new(key).unwrap();
    let requests = Arc::new(AtomicUsize::new(0));
    let address = http_server(move |request: Request<Incoming>| {
        let (server, requests, configurations) = (server.clone(), Arc::clone(&requests), configurations.clone());
        async move {
            assert_eq!(request.uri().path(), WELL_KNOWN);
            if request.method() == Method::GET {
                assert_eq!(request.headers().get(header::ACCEPT), Some(&KEYS_TYPE));
                return answer(KEYS_TYPE, configurations(requests.fetch_add(1, Ordering::Relaxed)));
            }
            assert_eq!(request.headers().get(header::CONTENT_TYPE), Some(&REQUEST_TYPE));
            let sealed = request.into_body().collect().await.unwrap().to_bytes();
            let (message, sealer) = server.decapsulate(&sealed).unwrap();
            answer(RESPONSE_TYPE, sealer.encapsulate(&respond(&message)).unwrap())
        }
    })
    .await;
    format!("http://{address}").parse().unwrap()
}

fn answer(content_type: HeaderValue, body: Vec<u8>) -> Response<Full<Bytes>> {
    Response::builder().header(header::CONTENT_TYPE, content_type).body(Full::from(body)).unwrap()
}

/// The answer of the target behind the gateway, in Binary HTTP. The body repeats parts of the request.
fn respond(message: &[u8]) -> Vec<u8> {
    assert_eq!(message.len() % PADDING_UNIT, 0);
    let request = Message::read_bhttp(&mut Cursor::new(message)).unwrap();
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
    let control = request.control();
    let (method, authority, path) = (text(control.method()), text(control.authority()), text(control.path()));
    let cookies = request.header().get(b"cookie").is_some();
    let content = text(Some(request.content()));
    let mut response = Message::response(bhttp::StatusCode::OK);
    response.put_header("set-cookie", "id=1");
    response.write_content(format!("{method} {authority} {path} {content} {cookies}"));
    let mut bytes = Vec::new();
    response.write_bhttp(Mode::IndeterminateLength, &mut bytes).unwrap();
    bytes
}

fn request() -> Request<Full<Bytes>> {
    Request::post("https://target.example/path?q=1").header("cookie", "id=1").body(Full::from("body")).unwrap()
}

async fn send(gateway: &Url, exits: u8) -> Result<Response<Full<Bytes>>, ObliviousError> {
    LocalExits::several(exits).await.requester().oblivious(gateway, request()).await
}

#[tokio::test]
async fn a_sealed_request_reaches_the_gateway_and_its_answer_is_opened() {
    let keys = keys(1);
    let encoded = KeyConfig::encode_list(&[&keys]).unwrap();
    let gateway = gateway(keys, move |_| encoded.clone()).await;
    let response = send(&gateway, 2).await.unwrap();
    assert_eq!((response.status(), response.headers().len()), (StatusCode::OK, 0));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "POST target.example /path?q=1 body false");
}

#[tokio::test]
async fn keys_that_differ_between_exits_are_not_used() {
    let served = keys(1);
    let encoded = [&served, &keys(1)].map(|keys| KeyConfig::encode_list(&[keys]).unwrap());
    let gateway = gateway(served, move |number| encoded[number % 2].clone()).await;
    assert_eq!(send(&gateway, 2).await.unwrap_err(), ObliviousError::KeysDiffer);
}

#[tokio::test]
async fn keys_that_only_one_exit_fetched_are_not_used() {
    let keys = keys(1);
    let encoded = KeyConfig::encode_list(&[&keys]).unwrap();
    let gateway = gateway(keys, move |_| encoded.clone()).await;
    assert_eq!(send(&gateway, 1).await.unwrap_err(), ObliviousError::NoSecondExit);
}

#[tokio::test]
async fn unusable_keys_are_an_error() {
    let good = KeyConfig::encode_list(&[keys(1)]).unwrap();
    // The offset of the first of two suites, after length, identifier, KEM, key and the length of the suites.
    let suite = 2 + 1 + 2 + 32 + 2;
    let mut unknown = good.clone();
    for offset in [suite + 3, suite + 7] {
        unknown[offset] = 2;
    }
    let empty: &[u8] = &[];
    for bad in [empty, &[0, 0], &[0xff; 40], &good[..good.len() - 1], &unknown, b"<html>"] {
        assert_eq!(seal(bad, b"message").err(), Some(ObliviousError::Keys), "{bad:?}");
    }
    // A supported configuration is found after an unsupported one.
    assert!(seal(&[unknown, good].concat(), b"message").is_ok());
}

#[tokio::test]
async fn a_server_that_is_not_a_gateway_and_a_body_above_the_cap_are_errors() {
    let address = http_server(|_| async { Response::new(Full::<Bytes>::from("hello")) }).await;
    let gateway = format!("http://{address}").parse().unwrap();
    assert_eq!(send(&gateway, 2).await.unwrap_err(), ObliviousError::Gateway(StatusCode::OK));
    let large = LocalExits::several(2).await.requester();
    let request = Request::post("https://target.example/").body(Full::<Bytes>::from(vec![0; MAX_REQUEST + 1])).unwrap();
    assert_eq!(large.oblivious(&gateway, request).await.unwrap_err(), ObliviousError::TooLarge);
}

#[test]
fn a_malformed_answer_is_refused() {
    for bad in
        [b"".as_slice(), b"\x01", b"HTTP/1.1 200 OK", b"\x01\x40\xc8\x03\x01A\x00", b"\x00\x03GET\x04http\x01a\x01/"]
    {
        assert!(decode(bad.to_vec()).is_none(), "{bad:?}");
    }
    assert!(decode(b"\x01\x40\xc8".to_vec()).is_some());
}

/// A connector to exits that send the head and a part of an answer to a fetch of keys, and then stall.
#[derive(Clone)]
struct Stalling;

impl Connector for Stalling {
    async fn open(&self, _: Target, _: Isolation) -> Result<Stream, ConnectError> {
        Err(EndReason::Policy.into())
    }

    async fn resolve(&self, _: Host, _: Isolation) -> Result<Vec<ResolvedAnswer>, ConnectError> {
        Err(EndReason::Policy.into())
    }

    async fn delegate(&self, _: DelegatedRequest) -> Result<Delegated, ConnectError> {
        let (near, mut far) = stream_pair();
        tokio::spawn(async move {
            far.write_all(b"\x03\x40\xc8\x0ccontent-type\x16application/ohttp-keys\x00\x60\x00begun").await.unwrap();
            // The exit waits until the client resets the stream.
            let _ = tokio::io::copy(&mut far, &mut tokio::io::sink()).await;
            let _ = far.failure().await;
        });
        let hop = Hop { relay: RelayId::from_bytes([1; 32]), handshake_time: Duration::ZERO };
        Ok(Delegated { stream: near, path: vec![hop], shared_exit: false })
    }
}

#[tokio::test]
async fn a_stalled_fetch_of_keys_times_out() {
    let requester = Requester::new(Stalling, Tls::default());
    let gateway = "http://gateway.example/".parse().unwrap();
    // The timeout of the transfer is shorter than the permitted pause between two pieces.
    let timeouts = TransferTimeouts { keys: Duration::from_millis(200), ..TransferTimeouts::default() };
    let outcome = timeout(Duration::from_secs(20), requester.oblivious_within(&gateway, request(), timeouts));
    assert_eq!(outcome.await.unwrap().unwrap_err(), ObliviousError::Request(RequestError::TimedOut));
}
