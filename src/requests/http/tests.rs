use core::net::SocketAddr;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWrite};

use super::{testing::LocalExits, *};
use crate::{
    exit::outbound::testing::{TestRoot, http_server, https_server},
    io::testing::{Direct, stream_pair, target_server},
    wire::{Host, ResolvedAnswer, Target},
};

const DEADLINE: Duration = Duration::from_secs(60);

/// A connector to an exit that answers each request with these bytes.
#[derive(Clone)]
struct ScriptedExit(&'static [u8]);

impl Connector for ScriptedExit {
    async fn open(&self, _: Target, _: Isolation) -> Result<Stream, ConnectError> {
        Err(PathError::NoExit.into())
    }

    async fn resolve(&self, _: Host, _: Isolation) -> Result<Vec<ResolvedAnswer>, ConnectError> {
        Err(PathError::NoExit.into())
    }

    async fn delegate(&self, _: DelegatedRequest) -> Result<Delegated, ConnectError> {
        let (near, mut far) = stream_pair();
        let bytes = self.0;
        tokio::spawn(async move {
            far.write_all(bytes).await.unwrap();
            far.shutdown().await.unwrap();
            let _ = tokio::io::copy(&mut far, &mut tokio::io::sink()).await;
        });
        Ok(Delegated { stream: near, path: Vec::new(), shared_exit: false })
    }
}

fn get(address: impl core::fmt::Display) -> Request<Empty<Bytes>> {
    Request::get(address.to_string()).body(Empty::new()).unwrap()
}

async fn perform<C: Connector>(
    requester: &Requester<C>,
    request: Request<impl OutgoingBody<Data = Bytes>>,
) -> Result<Response<ResponseBody>, RequestError> {
    let performing = requester.perform(request, Vec::new(), requester.new_isolation());
    timeout(DEADLINE, performing).await.unwrap().map(|performed| performed.response)
}

/// Answers with the head of the request and the length of its body.
async fn mirror(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let head = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Response::builder().header("set-cookie", "id=1").body(Full::from(format!("{head} {}", body.len()))).unwrap()
}

async fn text(response: Response<ResponseBody>) -> String {
    let body = timeout(DEADLINE, response.into_body().collect()).await.unwrap().unwrap();
    String::from_utf8(body.to_bytes().to_vec()).unwrap()
}

#[tokio::test]
async fn an_exit_performs_each_request_under_a_separate_isolation() {
    let address = http_server(mirror).await;
    let overlay = LocalExits::new().await;
    let requester = overlay.clone().requester();
    let request = Request::post(format!("http://{address}/path")).header("cookie", "id=1").body(Full::from("body"));
    let response = perform(&requester, request.unwrap()).await.unwrap();
    assert!(!response.headers().contains_key("set-cookie"));
    let received = text(response).await;
    assert!(
        received.starts_with("POST /path") && received.ends_with(" 4") && !received.contains("cookie"),
        "{received}"
    );
    assert!(received.contains("\"content-length\": \"4\""), "{received}");
    perform(&requester, get(format_args!("http://{address}/"))).await.unwrap();
    let isolations = overlay.isolations();
    assert_ne!(isolations[0], isolations[1]);
}

#[tokio::test]
async fn a_refusal_of_the_exit_is_returned() {
    let requester = LocalExits::new().await.requester();
    for (address, refusal) in [
        ("http://127.0.0.1:1/", Refusal::ConnectionRefused),
        ("http://none.invalid/", Refusal::NoName),
        ("http://169.254.169.254/", Refusal::Prohibited),
    ] {
        assert_eq!(perform(&requester, get(address)).await.unwrap_err(), RequestError::Refused(refusal), "{address}");
    }
    let trace = Request::builder().method("TRACE").uri("http://127.0.0.1/").body(Empty::<Bytes>::new()).unwrap();
    assert_eq!(perform(&requester, trace).await.unwrap_err(), RequestError::Refused(Refusal::NotOffered));
    assert_eq!(perform(&requester, get("ftp://a.example/")).await.unwrap_err(), RequestError::Address);
    for _ in 0..8 {
        if perform(&requester, get("http://127.0.0.1:1/")).await.unwrap_err()
            == RequestError::Refused(Refusal::RateLimited)
        {
            return;
        }
    }
    panic!("the rate of a circuit is not limited");
}

#[tokio::test]
async fn a_request_that_no_exit_performs_has_a_separate_error() {
    let requester = Requester::new(Direct::default(), Tls::default());
    assert_eq!(perform(&requester, get("http://a.example/")).await.unwrap_err(), RequestError::NoExit);
}

#[tokio::test]
async fn truncated_and_malformed_responses_are_errors() {
    for (bytes, error) in [
        (b"".as_slice(), RequestError::Broken),
        (b"HTTP/1.1 200 OK\r\n\r\n", RequestError::NotHttp),
        (b"\x03\x40\xc8\x01a", RequestError::Broken),
        (b"\x03\x42\x58\x00\x00\x00", RequestError::NotHttp),
    ] {
        let requester = Requester::new(ScriptedExit(bytes), Tls::default());
        assert_eq!(perform(&requester, get("http://a.example/")).await.unwrap_err(), error, "{bytes:?}");
    }
    // The first response has four bytes of a ten-byte chunk. The second has a complete body and an additional byte.
    for (bytes, error) in [
        (b"\x03\x40\xc8\x00\x0ahalf".as_slice(), RequestError::Broken),
        (b"\x03\x40\xc8\x00\x04body\x00\x00\x00", RequestError::NotHttp),
    ] {
        let requester = Requester::new(ScriptedExit(bytes), Tls::default());
        let response = perform(&requester, get("http://a.example/")).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap_err(), error, "{bytes:?}");
    }
}

#[tokio::test]
async fn a_request_whose_body_fails_is_an_error() {
    let address = http_server(mirror).await;
    let requester = LocalExits::new().await.requester();
    let (pipe, body) = PipedBody::of_unknown_length();
    pipe.send(Ok(Bytes::from_static(b"half"))).await.unwrap();
    pipe.send(Err(MessageError::Source)).await.unwrap();
    let request = Request::post(format!("http://{address}/")).body(body).unwrap();
    assert_eq!(perform(&requester, request).await.unwrap_err(), RequestError::Body);
}

#[tokio::test]
async fn tls_over_a_stream_is_verified_by_the_client() {
    let root = TestRoot::new();
    let tls = Tls::new([root.file.path()]).unwrap();
    let good = https_server(root.server(&["origin.test"]), mirror).await;
    let bad = https_server(root.server(&["other.test"]), mirror).await;
    let requester = Requester::new(Direct::default(), tls);
    let send = |address: SocketAddr| {
        let request = get(format_args!("https://origin.test:{}/path", address.port()));
        requester.over_stream(request, requester.new_isolation())
    };
    assert!(text(send(good).await.unwrap()).await.starts_with("GET /path"));
    assert_eq!(send(bad).await.unwrap_err(), RequestError::Tls(TlsError::Certificate));
}

const LARGE: usize = 100 * 1024 * 1024;
/// Maximum bytes in flight between the two ends: the credit and buffer of the stream, the sockets' buffers, and queued
/// pieces.
const MAX_IN_FLIGHT: usize = 16 * 1024 * 1024;

/// Writes 100 MiB, and fails if more than [`MAX_IN_FLIGHT`] bytes are in flight.
async fn write_large(mut sink: impl AsyncWrite + Unpin, received: tokio::sync::watch::Receiver<usize>) {
    let piece = vec![7; 64 * 1024];
    let mut sent = 0;
    while sent < LARGE {
        sink.write_all(&piece).await.unwrap();
        sent += piece.len();
        let in_flight = sent - *received.borrow();
        assert!(in_flight <= MAX_IN_FLIGHT, "{in_flight} bytes are in flight");
    }
    sink.flush().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_response_takes_bounded_memory() {
    let (progress, received) = tokio::sync::watch::channel(0);
    let address = target_server(move |mut socket| {
        let received = received.clone();
        async move {
            let _ = socket.read(&mut [0; 4096]).await;
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LARGE}\r\n\r\n");
            socket.write_all(head.as_bytes()).await.unwrap();
            write_large(socket, received).await;
        }
    })
    .await;
    let requester = LocalExits::new().await.requester();
    let mut body = perform(&requester, get(format_args!("http://{address}/"))).await.unwrap().into_body();
    let mut length = 0;
    while let Some(frame) = timeout(DEADLINE, body.frame()).await.unwrap() {
        length += frame.unwrap().into_data().unwrap().len();
        progress.send_replace(length);
    }
    assert_eq!(length, LARGE);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_request_takes_bounded_memory() {
    let (progress, received) = tokio::sync::watch::channel(0);
    let address = http_server(move |request: Request<Incoming>| {
        let progress = progress.clone();
        async move {
            let mut body = request.into_body();
            let mut length = 0;
            while let Some(frame) = body.frame().await {
                length += frame.unwrap().into_data().unwrap().len();
                progress.send_replace(length);
            }
            Response::new(Full::<Bytes>::from(length.to_string()))
        }
    })
    .await;
    let requester = LocalExits::new().await.requester();
    let (pipe, body) = PipedBody::of_unknown_length();
    tokio::spawn(async move {
        let piece = Bytes::from(vec![7; 64 * 1024]);
        let mut sent = 0;
        while sent < LARGE {
            pipe.send(Ok(piece.clone())).await.unwrap();
            sent += piece.len();
            let in_flight = sent - *received.borrow();
            assert!(in_flight <= MAX_IN_FLIGHT, "{in_flight} bytes are in flight");
        }
    });
    let response = perform(&requester, Request::put(format!("http://{address}/")).body(body).unwrap()).await.unwrap();
    assert_eq!(text(response).await, LARGE.to_string());
}
