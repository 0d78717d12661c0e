use core::net::SocketAddr;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;

use super::*;
use crate::{
    delegated::limits::RequestOwner,
    exit::outbound::{
        TargetPolicies,
        testing::{TestRoot, http_server, https_server, outbound_client},
    },
    exit_policy::Policy,
    http_exchange::binary::{read_response, request_head},
    io::{
        stream::Stream,
        testing::{answering_server, stream_pair, target_server},
        tls::Tls,
    },
};

const DEADLINE: Duration = Duration::from_secs(20);

fn outbound(private: bool, tls: Tls) -> OutboundClient {
    let policy = Policy::parse(["accept *"], private).unwrap();
    let policies = TargetPolicies { resolved: policy.clone(), literal: policy };
    outbound_client(policies, tls, Duration::from_millis(500))
}

fn open() -> Http {
    Http::new(HttpPolicy::Open(outbound(true, Tls::default())), HttpCaps::default())
}

fn get(address: impl core::fmt::Display) -> Request<Full<Bytes>> {
    Request::get(address.to_string()).body(Full::default()).unwrap()
}

/// The response that the client receives to `request`, and the outcome at the exit.
async fn performed(
    http: Http,
    request: Request<Full<Bytes>>,
) -> (Response<Result<Vec<u8>, MessageError>>, Result<(), Refusal>) {
    let head = request_head(&request).unwrap();
    let (stream, serving) = serve(http);
    let (reader, mut writer) = tokio::io::split(stream);
    let sending = tokio::spawn(async move {
        let _ = writer.write_all(&head).await;
        let _ = write_content(&mut writer, request.into_body(), u64::MAX, DEADLINE).await;
        let _ = writer.shutdown().await;
    });
    let (response, mut content) = match timeout(DEADLINE, read_response(reader, u64::MAX)).await.unwrap() {
        Ok(read) => read,
        // A reset stream may lose the answer in flight.
        Err(error) => return (Response::new(Err(error)), timeout(DEADLINE, serving).await.unwrap().unwrap()),
    };
    let mut whole = Vec::new();
    let body = loop {
        match timeout(DEADLINE, content.piece()).await.unwrap() {
            Ok(Some(piece)) => whole.extend_from_slice(&piece),
            Ok(None) => break Ok(whole),
            Err(error) => break Err(error),
        }
    };
    sending.await.unwrap();
    drop(content);
    (response.map(|()| body), timeout(DEADLINE, serving).await.unwrap().unwrap())
}

fn serve(http: Http) -> (Stream, tokio::task::JoinHandle<Result<(), Refusal>>) {
    let (near, far) = stream_pair();
    (near, tokio::spawn(async move { http.serve(far, RequestOwner::alone(1), || Ok(())).await }))
}

async fn refused(http: Http, request: Request<Full<Bytes>>) -> Refusal {
    let (response, served) = performed(http, request).await;
    let refusal = Refusal::from_response(response.status(), response.headers());
    assert_eq!(served, Err(refusal.unwrap()));
    assert_eq!(response.into_body().unwrap(), b"");
    refusal.unwrap()
}

async fn mirror(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let head = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    let answer = Full::from(format!("{head} {}", body.len()));
    Response::builder().header("set-cookie", "id=1").header("proxy-status", "umbel; error=x").body(answer).unwrap()
}

#[tokio::test]
async fn a_request_is_performed_without_fields_that_identify_the_client() {
    let address = http_server(mirror).await;
    let request = Request::post(format!("http://{address}/path?query"))
        .header("cookie", "id=1")
        .header("user-agent", "this one")
        .header("x-forwarded-for", "192.0.2.1")
        .header("content-length", "100000")
        .header("authorization", "Bearer token")
        .body(Full::from(vec![1; 100_000]))
        .unwrap();
    let (response, served) = performed(open(), request).await;
    assert_eq!((response.status().as_u16(), served), (200, Ok(())));
    assert!(!response.headers().contains_key("set-cookie") && !response.headers().contains_key("proxy-status"));
    let echoed = String::from_utf8(response.into_body().unwrap()).unwrap();
    assert!(echoed.starts_with("POST /path?query") && echoed.ends_with(" 100000"), "{echoed}");
    assert!(echoed.contains("Bearer token") && echoed.contains("compatible; Umbel"), "{echoed}");
    assert!(echoed.contains("\"content-length\": \"100000\"") && !echoed.contains("transfer-encoding"), "{echoed}");
    for removed in ["cookie", "this one", "192.0.2.1"] {
        assert!(!echoed.contains(removed), "{removed}: {echoed}");
    }
}

#[tokio::test]
async fn the_exit_verifies_certificates() {
    let root = TestRoot::new();
    let good = https_server(root.server(&["localhost"]), mirror).await;
    let bad = https_server(root.server(&["other.example"]), mirror).await;
    let http = |address: SocketAddr| {
        let tls = Tls::new([root.file.path()]).unwrap();
        let request = get(format_args!("https://localhost:{}/", address.port()));
        (Http::new(HttpPolicy::Open(outbound(true, tls)), HttpCaps::default()), request)
    };
    let (service, request) = http(good);
    assert_eq!(performed(service, request).await.0.status(), 200);
    let (service, request) = http(bad);
    assert_eq!(refused(service, request).await, Refusal::Certificate);
}

#[tokio::test]
async fn methods_hosts_ports_and_bodies_that_are_not_offered_are_refused() {
    let address = http_server(mirror).await;
    let listed = || {
        let list = AllowRule::parse_all([format!("GET,POST http://{address}")]).unwrap();
        Http::new(HttpPolicy::Listed(list, outbound(true, Tls::default())), HttpCaps::default())
    };
    let (response, _) = performed(listed(), get(format_args!("http://{address}/any/path"))).await;
    assert_eq!(response.status(), 200);
    let request =
        |method: &str, address: String| Request::builder().method(method).uri(address).body(Full::default()).unwrap();
    for (method, url) in [
        ("PUT", format!("http://{address}/")),
        ("GET", format!("https://{address}/")),
        ("GET", format!("http://localhost:{}/", address.port())),
        ("GET", format!("http://{}:1/", address.ip())),
        ("GET", "http://a.example/".to_owned()),
    ] {
        assert_eq!(refused(listed(), request(method, url.clone())).await, Refusal::NotOffered, "{method} {url}");
    }
    for method in ["CONNECT", "TRACE", "PROPFIND", "get"] {
        assert_eq!(
            refused(open(), request(method, format!("http://{address}/"))).await,
            Refusal::NotOffered,
            "{method}"
        );
    }
    let none = Http::new(HttpPolicy::None, HttpCaps::default());
    assert_eq!(refused(none, get(format_args!("http://{address}/"))).await, Refusal::NotOffered);
    let with_body = get(format_args!("http://{address}/")).map(|_| Full::from("body"));
    assert_eq!(refused(open(), with_body).await, Refusal::Malformed);
    for url in ["ftp://a.example/", "http://me@a.example/", "http://a.example:0/"] {
        assert_eq!(refused(open(), get(url)).await, Refusal::Malformed, "{url}");
    }
}

#[tokio::test]
async fn private_and_metadata_addresses_are_refused() {
    let address = http_server(mirror).await;
    let strict = || Http::new(HttpPolicy::Open(outbound(false, Tls::default())), HttpCaps::default());
    for url in [format!("http://{address}/"), "http://localhost/".to_owned(), "http://[::1]/".to_owned()] {
        assert_eq!(refused(strict(), get(url)).await, Refusal::Prohibited);
    }
    assert_eq!(refused(open(), get("http://169.254.169.254/latest/meta-data")).await, Refusal::Prohibited);
}

#[tokio::test]
async fn an_invalid_request_is_refused_with_a_response() {
    for bytes in [b"GET / HTTP/1.1\r\n\r\n".as_slice(), b"\x02", b"", &[0xff; 100]] {
        let (mut stream, serving) = serve(open());
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let (response, _) = timeout(DEADLINE, read_response(&mut stream, 0)).await.unwrap().unwrap();
        let refusal = Refusal::from_response(response.status(), response.headers()).unwrap();
        assert!(matches!(refusal, Refusal::Malformed | Refusal::RequestTooLarge), "{bytes:?}: {refusal:?}");
        assert_eq!(serving.await.unwrap(), Err(refusal));
    }
}

#[tokio::test]
async fn bodies_beyond_the_cap_are_refused_in_both_directions() {
    let address = http_server(mirror).await;
    let small = || {
        let caps = HttpCaps { max_body_len: 1000, ..HttpCaps::default() };
        Http::new(HttpPolicy::Open(outbound(true, Tls::default())), caps)
    };
    let large = Request::post(format!("http://{address}/")).body(Full::from(vec![0; 1001])).unwrap();
    assert_eq!(refused(small(), large).await, Refusal::RequestTooLarge);
    let known_length = http_server(|_| async { Response::new(Full::<Bytes>::from(vec![0; 1001])) }).await;
    assert_eq!(refused(small(), get(format_args!("http://{known_length}/"))).await, Refusal::AnswerTooLarge);
    // A body of unknown length is truncated with an error, and doesn't look complete.
    let unknown_length = target_server(|mut socket| async move {
        let _ = socket.read(&mut [0; 1024]).await;
        let _ = socket.write_all(b"HTTP/1.0 200 OK\r\n\r\n").await;
        let _ = socket.write_all(&[0; 1001]).await;
    })
    .await;
    let (response, served) = performed(small(), get(format_args!("http://{unknown_length}/"))).await;
    assert_eq!((response.into_body(), served), (Err(MessageError::Broken), Err(Refusal::AnswerTooLarge)));
}

#[tokio::test]
async fn a_truncated_answer_does_not_look_complete() {
    let address = answering_server(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    let (response, served) = performed(open(), get(format_args!("http://{address}/"))).await;
    assert_eq!((response.into_body(), served), (Err(MessageError::Broken), Err(Refusal::Broken)));
}

#[tokio::test]
async fn a_silent_closed_or_unknown_target_has_its_own_refusal() {
    let silent = target_server(|socket| async move {
        core::future::pending::<()>().await;
        drop(socket);
    })
    .await;
    assert_eq!(refused(open(), get(format_args!("http://{silent}/"))).await, Refusal::ResponseTimedOut);
    assert_eq!(refused(open(), get("http://127.0.0.1:1/")).await, Refusal::ConnectionRefused);
    assert_eq!(refused(open(), get("http://none.invalid/")).await, Refusal::NoName);
}

#[tokio::test]
async fn a_client_that_reads_nothing_times_out() {
    let address = http_server(|_| async { Response::new(Full::<Bytes>::from(vec![0; 4 << 20])) }).await;
    let caps = HttpCaps { stall_timeout: Duration::from_millis(50), ..HttpCaps::default() };
    let (mut stream, serving) = serve(Http::new(HttpPolicy::Open(outbound(true, Tls::default())), caps));
    stream.write_all(&request_head(&get(format_args!("http://{address}/"))).unwrap()).await.unwrap();
    stream.write_all(&[0, 0]).await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(timeout(DEADLINE, serving).await.unwrap().unwrap(), Err(Refusal::ClientGone));
}

#[tokio::test]
async fn an_answered_request_is_released_before_its_client_has_finished() {
    // The target answers before it has the request's body.
    let address = http_server(|_| async { Response::new(Full::<Bytes>::from("no need")) }).await;
    let (mut near, far) = stream_pair();
    let (admitted, released) = tokio::sync::oneshot::channel::<()>();
    tokio::spawn(async move { open().serve(far, RequestOwner::alone(1), || Ok(admitted)).await });
    let request = Request::post(format!("http://{address}/")).body(()).unwrap();
    near.write_all(&request_head(&request).unwrap()).await.unwrap();
    near.write_all(b"\x04body").await.unwrap();
    let (response, _) = timeout(DEADLINE, read_response(&mut near, 0)).await.unwrap().unwrap();
    assert_eq!(response.status(), 200);
    // The channel is closed, because the admission was dropped.
    assert!(timeout(DEADLINE, released).await.unwrap().is_err());
}

#[tokio::test]
async fn a_request_slower_than_allowed_is_refused() {
    let caps = HttpCaps { head_timeout: Duration::from_millis(50), ..HttpCaps::default() };
    let (mut stream, serving) = serve(Http::new(HttpPolicy::Open(outbound(true, Tls::default())), caps));
    stream.write_all(&[2, 3, b'G']).await.unwrap();
    let (response, _) = timeout(DEADLINE, read_response(&mut stream, 0)).await.unwrap().unwrap();
    assert_eq!(response.status(), 400);
    drop(stream);
    assert_eq!(timeout(DEADLINE, serving).await.unwrap().unwrap(), Err(Refusal::Malformed));
}
