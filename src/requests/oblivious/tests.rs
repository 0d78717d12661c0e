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
    connector::{ConnectError, Delegated, Hop, Isolation},
    delegated::Delegation,
    exit::outbound::testing::http_origin,
    io::{stream::Stream, testing::stream_pair, tls::Tls},
    requests::http::testing::OneExit,
    wire::{EndReason, Host, ResolvedAnswer, Target},
};

fn keys(id: u8) -> KeyConfig {
    KeyConfig::new(id, Kem::X25519Sha256, SUITES.to_vec()).unwrap()
}

/// A gateway that returns the keys `of(n)` to the `n`th request for keys, and answers a sealed request with its
/// content.
async fn gateway(served: KeyConfig, of: impl Fn(usize) -> Vec<u8> + Clone + Send + Sync + 'static) -> Url {
    let server = Server::new(served).unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let address = http_origin(move |request: Request<Incoming>| {
        let (server, asked, of) = (server.clone(), Arc::clone(&asked), of.clone());
        async move {
            assert_eq!(request.uri().path(), WELL_KNOWN);
            if request.method() == Method::GET {
                assert_eq!(request.headers().get(header::ACCEPT), Some(&KEYS));
                return answer(KEYS, of(asked.fetch_add(1, Ordering::Relaxed)));
            }
            assert_eq!(request.headers().get(header::CONTENT_TYPE), Some(&REQUEST));
            let sealed = request.into_body().collect().await.unwrap().to_bytes();
            let (message, sealer) = server.decapsulate(&sealed).unwrap();
            answer(RESPONSE, sealer.encapsulate(&respond(&message)).unwrap())
        }
    })
    .await;
    format!("http://{address}").parse().unwrap()
}

fn answer(kind: HeaderValue, body: Vec<u8>) -> Response<Full<Bytes>> {
    Response::builder().header(header::CONTENT_TYPE, kind).body(Full::from(body)).unwrap()
}

/// The answer of a target behind the gateway.
fn respond(message: &[u8]) -> Vec<u8> {
    assert_eq!(message.len() % BUCKET, 0);
    let asked = Message::read_bhttp(&mut Cursor::new(message)).unwrap();
    let text = |bytes: Option<&[u8]>| String::from_utf8(bytes.unwrap().to_vec()).unwrap();
    let control = asked.control();
    let (method, authority, path) = (text(control.method()), text(control.authority()), text(control.path()));
    let cookies = asked.header().get(b"cookie").is_some();
    let content = text(Some(asked.content()));
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
    OneExit::several(exits).await.requester().oblivious(gateway, request()).await
}

#[tokio::test]
async fn a_gateway_opens_what_no_exit_can_read_and_its_answer_comes_back() {
    let keys = keys(1);
    let encoded = KeyConfig::encode_list(&[&keys]).unwrap();
    let gateway = gateway(keys, move |_| encoded.clone()).await;
    let response = send(&gateway, 2).await.unwrap();
    assert_eq!((response.status(), response.headers().len()), (StatusCode::OK, 0));
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(body, "POST target.example /path?q=1 body false");
}

#[tokio::test]
async fn keys_that_differ_from_exit_to_exit_are_not_used() {
    let served = keys(1);
    let encoded = [&served, &keys(1)].map(|keys| KeyConfig::encode_list(&[keys]).unwrap());
    let gateway = gateway(served, move |asked| encoded[asked % 2].clone()).await;
    assert_eq!(send(&gateway, 2).await.unwrap_err(), ObliviousError::KeysDiffer);
}

#[tokio::test]
async fn one_exit_alone_is_not_believed() {
    let keys = keys(1);
    let encoded = KeyConfig::encode_list(&[&keys]).unwrap();
    let gateway = gateway(keys, move |_| encoded.clone()).await;
    assert_eq!(send(&gateway, 1).await.unwrap_err(), ObliviousError::NoSecondExit);
}

#[tokio::test]
async fn keys_that_can_not_be_used_are_an_error_and_no_panic() {
    let good = KeyConfig::encode_list(&[keys(1)]).unwrap();
    // The offset of the configuration's only suite, after length, identifier, KEM and key.
    let suite = 2 + 1 + 2 + 32 + 2;
    let mut unknown = good.clone();
    for place in [suite + 3, suite + 7] {
        unknown[place] = 2;
    }
    let empty: &[u8] = &[];
    for bad in [empty, &[0, 0], &[0xff; 40], &good[..good.len() - 1], &unknown, b"<html>"] {
        assert_eq!(seal(bad, b"message").err(), Some(ObliviousError::Keys), "{bad:?}");
    }
    // A supported configuration is found after an unsupported one.
    assert!(seal(&[unknown, good].concat(), b"message").is_ok());
}

#[tokio::test]
async fn what_is_no_gateway_is_told() {
    let address = http_origin(|_| async { Response::new(Full::<Bytes>::from("hello")) }).await;
    let gateway = format!("http://{address}").parse().unwrap();
    assert_eq!(send(&gateway, 2).await.unwrap_err(), ObliviousError::Gateway(StatusCode::OK));
    let large = OneExit::several(2).await.requester();
    let request = Request::post("https://target.example/").body(Full::<Bytes>::from(vec![0; MAX_REQUEST + 1])).unwrap();
    assert_eq!(large.oblivious(&gateway, request).await.unwrap_err(), ObliviousError::TooLarge);
}

#[test]
fn an_answer_that_is_none_is_refused() {
    for bad in
        [b"".as_slice(), b"\x01", b"HTTP/1.1 200 OK", b"\x01\x40\xc8\x03\x01A\x00", b"\x00\x03GET\x04http\x01a\x01/"]
    {
        assert!(decode(bad.to_vec()).is_none(), "{bad:?}");
    }
    assert!(decode(b"\x01\x40\xc8".to_vec()).is_some());
}

/// An overlay whose exits begin an answer with keys and then stall.
#[derive(Clone)]
struct Stalling;

impl Connector for Stalling {
    async fn open(&self, _: Target, _: Isolation) -> Result<Stream, ConnectError> {
        Err(EndReason::Policy.into())
    }

    async fn resolve(&self, _: Host, _: Isolation) -> Result<Vec<ResolvedAnswer>, ConnectError> {
        Err(EndReason::Policy.into())
    }

    async fn delegate(&self, _: Delegation, _: Vec<RelayId>, _: Isolation) -> Result<Delegated, ConnectError> {
        let (near, mut far) = stream_pair();
        tokio::spawn(async move {
            far.write_all(b"\x03\x40\xc8\x0ccontent-type\x16application/ohttp-keys\x00\x60\x00begun").await.unwrap();
            // Until the client resets the stream.
            let _ = tokio::io::copy(&mut far, &mut tokio::io::sink()).await;
            let _ = far.failure().await;
        });
        let hop = Hop { relay: RelayId::from_bytes([1; 32]), took: Duration::ZERO };
        Ok(Delegated { stream: near, path: vec![hop], shared_exit: false })
    }
}

#[tokio::test]
async fn keys_that_never_come_whole_are_not_waited_for() {
    let requester = Requester::new(Stalling, Tls::default());
    let gateway = "http://gateway.example/".parse().unwrap();
    // Less than the permitted pause between two pieces.
    let limits = TransferTimeouts { keys: Duration::from_millis(200), ..TransferTimeouts::default() };
    let asked = timeout(Duration::from_secs(20), requester.oblivious_within(&gateway, request(), limits));
    assert_eq!(asked.await.unwrap().unwrap_err(), ObliviousError::Request(RequestError::Silent));
}
