use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::{Bytes, Incoming};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::{
    testing::{TestRoot, http_server, https_server, outbound_client},
    *,
};
use crate::{
    http_exchange::http1::read_whole,
    io::{
        resolver::{ResolverOptions, tests::name_server},
        testing::target_server,
    },
};

const DEADLINE: Duration = Duration::from_secs(20);

fn policy(private: bool) -> Policy {
    Policy::parse(["accept *"], private).unwrap()
}

/// Connects to this machine by its address or `localhost`, and to public addresses otherwise.
fn outbound(tls: Tls) -> OutboundClient {
    let policies = TargetPolicies { resolved: policy(false), literal: policy(true) };
    outbound_client(policies, tls, Duration::from_millis(300))
}

fn get(address: impl core::fmt::Display) -> Request<Empty<Bytes>> {
    Request::get(address.to_string()).body(Empty::new()).unwrap()
}

async fn mirror(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let head = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Response::new(Full::from(format!("{head} {}", body.len())))
}

async fn body(response: Response<StreamedBody>) -> String {
    String::from_utf8(read_whole(response.into_body(), 1 << 20).await.unwrap()).unwrap()
}

async fn failing(outbound: &OutboundClient, address: impl core::fmt::Display) -> OutboundError {
    timeout(DEADLINE, outbound.send(None, get(address))).await.unwrap().unwrap_err()
}

#[tokio::test]
async fn a_request_reaches_a_server_and_its_answer_comes_back() {
    let address = http_server(mirror).await;
    let request = Request::post(format!("http://{address}/path?query"))
        .header("connection", "x-hop")
        .header("x-hop", "1")
        .header("accept-encoding", "gzip")
        .body(Full::<Bytes>::from(vec![0_u8; 1000]))
        .unwrap();
    let response_body = body(outbound(Tls::default()).send(None, request).await.unwrap()).await;
    assert!(response_body.starts_with("POST /path?query"), "{response_body}");
    assert!(response_body.contains(&format!("\"host\": \"{address}\"")), "{response_body}");
    assert!(
        response_body.contains("\"accept-encoding\": \"identity\"") && !response_body.contains("x-hop"),
        "{response_body}"
    );
    assert!(response_body.ends_with(" 1000"), "{response_body}");
}

#[tokio::test]
async fn https_needs_a_certificate_for_the_name() {
    let root = TestRoot::new();
    let tls = Tls::new([root.file.path()]).unwrap();
    let verified = https_server(root.server(&["localhost"]), mirror).await;
    let response =
        outbound(tls.clone()).send(None, get(format_args!("https://localhost:{}/", verified.port()))).await.unwrap();
    assert!(body(response).await.starts_with("GET /"));
    let other = https_server(root.server(&["other.example"]), mirror).await;
    let unverified = OutboundError::Tls(TlsError::Certificate);
    assert_eq!(failing(&outbound(tls.clone()), format_args!("https://localhost:{}/", other.port())).await, unverified);
    // A certificate of an untrusted root fails too.
    let untrusted = Tls::new([TestRoot::new().file.path()]).unwrap();
    assert_eq!(failing(&outbound(untrusted), format_args!("https://localhost:{}/", verified.port())).await, unverified);
    let plain = http_server(mirror).await;
    let error = failing(&outbound(tls), format_args!("https://localhost:{}/", plain.port())).await;
    assert!(matches!(error, OutboundError::Tls(TlsError::Handshake | TlsError::Broken)), "{error}");
}

#[tokio::test]
async fn a_file_of_roots_without_certificates_is_an_error() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Tls::new([file.path()]).unwrap_err().to_string();
    assert!(error.contains(&*file.path().to_string_lossy()), "{error}");
}

#[tokio::test]
async fn a_resolved_name_reaches_no_private_address() {
    let (server, _) = name_server().await;
    let address = http_server(mirror).await;
    let resolver = |private_addresses| {
        Arc::new(Resolver::new(&ResolverOptions {
            servers: vec![server],
            private_addresses,
            ..ResolverOptions::default()
        }))
    };
    let policies = |private| TargetPolicies { resolved: policy(private), literal: policy(true) };
    let limits = OutboundLimits::default();
    let url = format!("http://both.example.net:{}/", address.port());
    let allowed = OutboundClient::new(policies(true), resolver(true), Tls::default(), limits);
    assert!(allowed.send(None, get(&url)).await.is_ok());
    // The resolver drops private addresses. Without that, the policy still decides on the connected address.
    for private_answers in [false, true] {
        let refusing = OutboundClient::new(policies(false), resolver(private_answers), Tls::default(), limits);
        assert_eq!(failing(&refusing, &url).await, OutboundError::Connect(EndReason::Policy));
    }
}

#[tokio::test]
async fn the_policy_decides_on_address_literals() {
    let address = http_server(mirror).await;
    let mut outbound = outbound(Tls::default());
    for metadata in ["http://169.254.169.254/", "http://[fd00:ec2::254]/", "http://[::ffff:169.254.169.254]/"] {
        assert_eq!(failing(&outbound, metadata).await, OutboundError::Connect(EndReason::Policy), "{metadata}");
    }
    outbound.policies = Arc::new(TargetPolicies { resolved: policy(false), literal: policy(false) });
    for own in [format!("http://{address}/"), format!("http://localhost:{}/", address.port())] {
        assert_eq!(failing(&outbound, own).await, OutboundError::Connect(EndReason::Policy));
    }
}

#[tokio::test]
async fn a_url_that_is_not_http_or_https_is_refused() {
    let outbound = outbound(Tls::default());
    for address in
        ["ftp://a.test/", "/path", "http://me@a.test/", "http://a.test:0/", "http://a.test:99999/", "http://a~b/"]
    {
        assert_eq!(failing(&outbound, address).await, OutboundError::Address, "{address}");
    }
}

#[tokio::test]
async fn a_silent_slow_or_non_http_target_has_its_own_error() {
    let outbound = outbound(Tls::default());
    for (bytes, error) in [
        ("", ExchangeError::TimedOut),
        ("what?\r\n\r\n", ExchangeError::NotHttp),
        ("HTTP/1.1 200 OK\r\nX: 1", ExchangeError::TimedOut),
    ] {
        let address = target_server(move |mut socket| async move {
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(bytes.as_bytes()).await;
            core::future::pending::<()>().await;
        })
        .await;
        assert_eq!(
            failing(&outbound, format_args!("http://{address}/")).await,
            OutboundError::Exchange(error),
            "{bytes}"
        );
    }
    let flood = target_server(|mut socket| async move {
        let _ = socket.read(&mut [0; 1024]).await;
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n").await;
        while socket.write_all(b"X-Filler: xxxxxxxxxxxxxxxxxxxxxxxxxxxxx\r\n").await.is_ok() {}
    })
    .await;
    let error = failing(&outbound, format_args!("http://{flood}/")).await;
    assert_eq!(error, OutboundError::Exchange(ExchangeError::TooLarge));
}

#[tokio::test]
async fn a_truncated_stalled_or_oversized_body_is_an_error() {
    let outbound = outbound(Tls::default());
    for (bytes, ends, error) in [
        ("Content-Length: 10\r\n\r\nhalf", true, ExchangeError::Broken),
        ("Content-Length: 10\r\n\r\nhalf", false, ExchangeError::TimedOut),
        ("Transfer-Encoding: chunked\r\n\r\n4\r\nhalf\r\n", true, ExchangeError::Broken),
        ("Content-Length: 100000000000\r\n\r\nhalf", false, ExchangeError::TooLarge),
        ("Transfer-Encoding: chunked\r\n\r\n15\r\naaaaaaaaaaaaaaaaaaaaa\r\n", false, ExchangeError::TooLarge),
    ] {
        let address = target_server(move |mut socket| async move {
            let _ = socket.read(&mut [0; 1024]).await;
            let _ = socket.write_all(format!("HTTP/1.1 200 OK\r\n{bytes}").as_bytes()).await;
            if !ends {
                core::future::pending::<()>().await;
            }
        })
        .await;
        let response = outbound.send(None, get(format_args!("http://{address}/"))).await.unwrap();
        assert_eq!(timeout(DEADLINE, read_whole(response.into_body(), 20)).await.unwrap(), Err(error), "{bytes}");
    }
}

#[tokio::test]
async fn a_redirect_is_returned_and_not_followed() {
    let address = http_server(|_| async {
        Response::builder()
            .status(302)
            .header("location", "http://127.0.0.1:1/")
            .body(Full::<Bytes>::default())
            .unwrap()
    })
    .await;
    let response = outbound(Tls::default()).send(None, get(format_args!("http://{address}/"))).await.unwrap();
    assert_eq!(response.status(), 302);
}
