use core::{
    net::SocketAddr,
    sync::atomic::{AtomicUsize, Ordering},
};
use std::{io::Write as _, sync::Mutex};

use http_body_util::Full;
use hyper::body::Incoming;
use tempfile::NamedTempFile;

use super::*;
use crate::{
    delegated::{Block, SearchResult, frame, limits::RequestOwner},
    exit::{
        delegated::engines::Senders,
        outbound::{
            OutboundClient, OutboundLimits, TargetPolicies,
            testing::{TestRoot, http_server, https_server},
        },
    },
    exit_policy::Policy,
    io::{
        resolver::{Resolver, ResolverOptions, tests::name_server},
        testing::{stream_pair, target_server},
        tls::Tls,
    },
};

mod description;

const DEADLINE: Duration = Duration::from_secs(20);
const RSS: &str = "application/rss+xml";
const JSON: &str = "application/json";

fn name(text: &str) -> EngineName {
    EngineName::parse(text).unwrap()
}

fn query(terms: &str) -> SearchRequest {
    SearchRequest::new(name("engine"), terms, 1, None).unwrap()
}

fn described(media: &str, template: &str) -> String {
    format!(
        r#"<OpenSearchDescription xmlns="http://a9.com/-/spec/opensearch/1.1/"><ShortName>engine</ShortName>
           <Url type="{media}" template="{}"/></OpenSearchDescription>"#,
        template.replace('&', "&amp;")
    )
}

/// A sender that may connect to this machine, for the operator's configuration, and a sender to public addresses.
/// `servers` resolve names.
fn senders(servers: Vec<SocketAddr>, tls: Tls) -> Senders {
    let policy = |private| Policy::parse(["accept *"], private).unwrap();
    let options = ResolverOptions { servers, private_addresses: true, ..ResolverOptions::default() };
    let resolver = Arc::new(Resolver::new(&options));
    let outbound = |private| {
        let policies = TargetPolicies { resolved: policy(false), literal: policy(private) };
        OutboundClient::new(policies, Arc::clone(&resolver), tls.clone(), OutboundLimits::default())
    };
    Senders { configured: outbound(true), public: outbound(false) }
}

fn no_server() -> Vec<SocketAddr> {
    vec!["127.0.0.1:9".parse().unwrap()]
}

async fn service(media: &str, template: &str) -> ExitSearch {
    service_by(media, template, senders(no_server(), Tls::default())).await
}

async fn service_by(media: &str, template: &str, senders: Senders) -> ExitSearch {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(described(media, template).as_bytes()).unwrap();
    let engines = Engines::load(&[file.path().to_str().unwrap()], senders).await.unwrap();
    let caps = SearchCaps { engine_timeout: Duration::from_millis(700), ..SearchCaps::default() };
    ExitSearch::new(engines, caps)
}

async fn service_at(address: SocketAddr) -> ExitSearch {
    service(JSON, &format!("http://{address}/search?q={{searchTerms}}&p={{startPage}}")).await
}

/// The answer to the bytes `framed`, and the outcome at the exit.
async fn exchanged(search: ExitSearch, framed: &[u8]) -> (Vec<u8>, Result<(), Refusal>) {
    let (mut near, far) = stream_pair();
    let serving = tokio::spawn(async move { search.serve(far, RequestOwner::alone(1), || Ok(())).await });
    near.write_all(framed).await.unwrap();
    near.shutdown().await.unwrap();
    let mut answer = Vec::new();
    // A stream that is dropped without an answer is reset.
    let _ = timeout(DEADLINE, near.read_to_end(&mut answer)).await.unwrap();
    (answer, timeout(DEADLINE, serving).await.unwrap().unwrap())
}

async fn searched(search: ExitSearch, request: &SearchRequest) -> SearchAnswer {
    let (answer, _) = exchanged(search, &request.encode().unwrap()).await;
    SearchAnswer::decode(&answer).unwrap()
}

async fn refused(search: ExitSearch, request: &SearchRequest) -> SearchRefusal {
    match searched(search, request).await {
        SearchAnswer::Refused(refusal) => refusal,
        SearchAnswer::Results { results, .. } => panic!("{} results", results.len()),
    }
}

/// An engine whose only result contains the request.
async fn mirror(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let echoed = format!("{} {:?}", request.uri(), request.headers());
    let result = serde_json::json!({"url": "https://example.org/?utm_source=x", "title": echoed, "content": echoed});
    let body = serde_json::json!({"results": [result], "number_of_results": 31});
    Response::builder().header("set-cookie", "id=1").body(Full::from(body.to_string())).unwrap()
}

fn only(answer: SearchAnswer) -> SearchResult {
    match answer {
        SearchAnswer::Results { mut results, .. } => results.pop().unwrap(),
        SearchAnswer::Refused(refusal) => panic!("{refusal}"),
    }
}

/// An engine that answers every request with this response.
async fn answering(status: u16, headers: &'static [(&'static str, &'static str)], body: Vec<u8>) -> SocketAddr {
    let body = Bytes::from(body);
    http_server(move |_| {
        let mut response = Response::builder().status(status);
        for (name, value) in headers {
            response = response.header(*name, *value);
        }
        let response = response.body(Full::<Bytes>::from(body.clone())).unwrap();
        async move { response }
    })
    .await
}

#[tokio::test]
async fn a_request_to_an_engine_has_the_same_fields_for_all_clients() {
    let address = http_server(mirror).await;
    let answer = searched(service_at(address).await, &query("rust ownership")).await;
    let SearchAnswer::Results { total, more, .. } = &answer else { panic!("no results") };
    assert_eq!((*total, *more), (Some(31), true));
    let result = only(answer);
    assert_eq!(result.url.as_str(), "https://example.org/");
    let echoed = result.snippet;
    assert!(echoed.starts_with("/search?q=rust%20ownership&p=1"), "{echoed}");
    let fields = [
        r#""accept": "application/json""#,
        r#""accept-encoding": "identity""#,
        r#""accept-language": "en,*;q=0.5""#,
        r#""user-agent": "Mozilla/5.0 (compatible; Umbel)""#,
    ];
    assert!(fields.iter().all(|field| echoed.contains(field)), "{echoed}");
    assert_eq!(echoed.matches("\": \"").count(), fields.len() + 1, "the host differs: {echoed}");
}

#[tokio::test]
async fn each_query_has_a_separate_connection_and_no_cookie() {
    let connections = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&connections);
    let address = target_server(move |socket| {
        counter.fetch_add(1, Ordering::Relaxed);
        async move {
            let service = hyper::service::service_fn(|request| async {
                Ok::<_, core::convert::Infallible>(mirror(request).await)
            });
            let socket = hyper_util::rt::TokioIo::new(socket);
            let _ = hyper::server::conn::http1::Builder::new().serve_connection(socket, service).await;
        }
    })
    .await;
    let search = Arc::new(service_at(address).await);
    for expected in 1..=3 {
        let (mut near, far) = stream_pair();
        let search = Arc::clone(&search);
        tokio::spawn(async move { search.serve(far, RequestOwner::alone(1), || Ok(())).await });
        near.write_all(&query("x").encode().unwrap()).await.unwrap();
        near.shutdown().await.unwrap();
        let mut answer = Vec::new();
        near.read_to_end(&mut answer).await.unwrap();
        let echoed = only(SearchAnswer::decode(&answer).unwrap()).snippet;
        assert!(!echoed.contains("cookie"), "{echoed}");
        assert_eq!(connections.load(Ordering::Relaxed), expected);
    }
}

#[tokio::test]
async fn queries_in_japanese_and_arabic_reach_the_engine_unchanged() {
    let address = http_server(|request: Request<Incoming>| async move {
        let url = Url::parse(&format!("http://engine.example{}", request.uri())).unwrap();
        let terms = url.query_pairs().next().unwrap().1.into_owned();
        let body = serde_json::json!({"results": [{"url": "https://example.org/", "title": terms}]});
        Response::new(Full::<Bytes>::from(body.to_string()))
    })
    .await;
    for terms in ["所有権とは何か", "ما هي الملكية في رست", "\"a b\" -c & <d> %41 + #e"] {
        assert_eq!(only(searched(service_at(address).await, &query(terms)).await).title, terms);
    }
}

#[tokio::test]
async fn answers_are_as_long_as_their_bucket() {
    for (results, expected) in [(0, 8 << 10), (1, 8 << 10), (20, 16 << 10), (50, 32 << 10)] {
        let result = serde_json::json!({"url": "https://example.org/", "title": "t", "content": "x".repeat(500)});
        let body = serde_json::json!({"results": vec![result; results]}).to_string();
        let address = answering(200, &[], body.into_bytes()).await;
        let (answer, _) = exchanged(service_at(address).await, &query("x").encode().unwrap()).await;
        assert_eq!(answer.len(), expected, "{results} results");
    }
}

#[tokio::test]
async fn an_invalid_query_is_refused_as_a_bad_request() {
    let address = answering(200, &[], b"{}".to_vec()).await;
    let terms = |terms: &[u8]| {
        let mut message = vec![0x0a, 6];
        message.extend(b"engine");
        message.extend([
            0x12,
            0x80 | u8::try_from(terms.len() & 0x7f).unwrap(),
            u8::try_from(terms.len() >> 7).unwrap(),
        ]);
        message.extend(terms);
        message.extend([0x18, 1]);
        message
    };
    let framed = |message: &[u8]| frame::encode(message, frame::REQUEST_BUCKETS).unwrap();
    let with_padding = {
        let mut framed = framed(&terms(b"x"));
        *framed.last_mut().unwrap() = 1;
        framed
    };
    let huge = {
        let mut huge = 10_240_u32.to_be_bytes().to_vec();
        huge.extend(vec![b'q'; 10_240]);
        huge
    };
    for bytes in [
        framed(&terms(b"")),
        framed(&terms(b"a\nb")),
        framed(&terms(b"\x1b[31m")),
        framed(&terms(b"\xff")),
        framed(&terms(&[b'q'; 2049])),
        framed(b"no message"),
        vec![0; 4096],
        vec![0xff; 1024],
        framed(&terms(b"x"))[..1000].to_vec(),
        with_padding,
        huge,
        b"GET / HTTP/1.1\r\n\r\n".to_vec(),
    ] {
        let (answer, counted) = exchanged(service_at(address).await, &bytes).await;
        assert_eq!(SearchAnswer::decode(&answer), Ok(SearchAnswer::Refused(SearchRefusal::BadRequest)));
        assert_eq!(counted, Err(Refusal::Malformed));
    }
    let (answer, counted) = exchanged(service_at(address).await, &[]).await;
    assert_eq!((answer.len(), counted), (0, Err(Refusal::ClientGone)));
}

#[tokio::test]
async fn a_query_beyond_the_limits_is_refused_with_the_reason() {
    let search = service_at(answering(200, &[], b"{}".to_vec()).await).await;
    let (mut near, far) = stream_pair();
    let serving =
        tokio::spawn(
            async move { search.serve(far, RequestOwner::alone(1), || Err::<(), _>(Refusal::RateLimited)).await },
        );
    near.write_all(&query("x").encode().unwrap()).await.unwrap();
    near.shutdown().await.unwrap();
    let mut answer = Vec::new();
    near.read_to_end(&mut answer).await.unwrap();
    assert_eq!(SearchAnswer::decode(&answer), Ok(SearchAnswer::Refused(SearchRefusal::RateLimited)));
    assert_eq!(serving.await.unwrap(), Err(Refusal::RateLimited));
}

#[tokio::test]
async fn a_client_that_sends_or_reads_slowly_holds_no_admission() {
    struct Admission(tokio::sync::mpsc::UnboundedSender<&'static str>);
    impl Drop for Admission {
        fn drop(&mut self) {
            self.0.send("released").unwrap();
        }
    }

    let search = service_at(answering(200, &[], b"{}".to_vec()).await).await;
    let (mut near, far) = stream_pair();
    let (events, mut received) = tokio::sync::mpsc::unbounded_channel();
    let admit = move || {
        events.send("admitted").unwrap();
        Ok(Admission(events))
    };
    tokio::spawn(async move { search.serve(far, RequestOwner::alone(1), admit).await });
    let query = query("x").encode().unwrap();
    near.write_all(&query).await.unwrap();
    assert!(received.try_recv().is_err(), "the body is incomplete");
    near.shutdown().await.unwrap();
    // The client doesn't read the answer here.
    for expected in ["admitted", "released"] {
        assert_eq!(timeout(DEADLINE, received.recv()).await.unwrap(), Some(expected));
    }
}

#[tokio::test]
async fn a_query_for_an_unknown_engine_is_refused() {
    let request = SearchRequest::new(name("other"), "x", 1, None).unwrap();
    let search = service_at(answering(200, &[], b"{}".to_vec()).await).await;
    assert_eq!(refused(search, &request).await, SearchRefusal::UnknownEngine);
}

#[tokio::test]
async fn an_engine_that_is_down_is_reported_as_unreachable() {
    let socket = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = socket.local_addr().unwrap();
    drop(socket);
    assert_eq!(refused(service_at(address).await, &query("x")).await, SearchRefusal::EngineUnreachable);
    let closing = target_server(|socket| async move { drop(socket) }).await;
    assert_eq!(refused(service_at(closing).await, &query("x")).await, SearchRefusal::EngineUnreachable);
}

#[tokio::test]
async fn a_slow_engine_times_out() {
    let silent = target_server(|mut socket| async move {
        let _ = socket.read_u8().await;
        core::future::pending::<()>().await;
    })
    .await;
    assert_eq!(refused(service_at(silent).await, &query("x")).await, SearchRefusal::EngineTimedOut);
    // Occasional single bytes don't extend the limit.
    let dripping = target_server(|mut socket| async move {
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n").await;
        while socket.write_all(b" ").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    assert_eq!(refused(service_at(dripping).await, &query("x")).await, SearchRefusal::EngineTimedOut);
}

#[tokio::test]
async fn concurrent_parsing_of_answers_is_capped() {
    let search = service_at(http_server(mirror).await).await;
    let parsers = Arc::clone(&search.parsers);
    let all = u32::try_from(parsers.available_permits()).unwrap();
    let _parsing = parsers.acquire_many_owned(all).await.unwrap();
    assert_eq!(refused(search, &query("x")).await, SearchRefusal::RateLimited);
}

#[tokio::test]
async fn an_answer_beyond_the_cap_is_refused() {
    let long = answering(200, &[], vec![b' '; 3 << 20]).await;
    assert_eq!(refused(service_at(long).await, &query("x")).await, SearchRefusal::EngineTooLarge);
    let endless = target_server(|mut socket| async move {
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
        while socket.write_all(&[b' '; 4096]).await.is_ok() {}
    })
    .await;
    assert_eq!(refused(service_at(endless).await, &query("x")).await, SearchRefusal::EngineTooLarge);
    let head = target_server(|mut socket| async move {
        let _ = socket.write_all(b"HTTP/1.1 200 OK\r\nx: ").await;
        while socket.write_all(&[b'x'; 4096]).await.is_ok() {}
    })
    .await;
    assert_eq!(refused(service_at(head).await, &query("x")).await, SearchRefusal::EngineTooLarge);
}

#[tokio::test]
async fn an_invalid_answer_is_reported_as_malformed() {
    for body in ["", "{", "<html>hello", "[1, 2]"] {
        let address = answering(200, &[], body.into()).await;
        assert_eq!(refused(service_at(address).await, &query("x")).await, SearchRefusal::EngineMalformed, "{body}");
    }
    let no_http = target_server(|mut socket| async move {
        let _ = socket.write_all(b"SSH-2.0-OpenSSH\r\n").await;
        let _ = socket.read_u8().await;
    })
    .await;
    assert_eq!(refused(service_at(no_http).await, &query("x")).await, SearchRefusal::EngineMalformed);
    let laughs = r#"<!DOCTYPE rss [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;&a;&a;">]>
        <rss version="2.0"><channel><item><title>&b;</title><link>http://a/</link></item></channel></rss>"#;
    let address = answering(200, &[("content-type", RSS)], laughs.into()).await;
    let search = service(RSS, &format!("http://{address}/?q={{searchTerms}}")).await;
    assert_eq!(refused(search, &query("x")).await, SearchRefusal::EngineMalformed);
}

#[tokio::test]
async fn a_compressed_answer_is_not_decompressed() {
    for encoding in ["gzip", "GZIP", "br", "deflate, gzip"] {
        // The decompressed content is irrelevant, because nothing is decompressed.
        let headers: &'static [_] = Box::leak(Box::new([("content-encoding", encoding)]));
        let address = answering(200, headers, vec![0x1f, 0x8b, 8, 0]).await;
        assert_eq!(refused(service_at(address).await, &query("x")).await, SearchRefusal::EngineMalformed);
    }
}

#[tokio::test]
async fn a_blocking_engine_and_a_failed_one_have_different_refusals() {
    let captcha = b"<html><title>Are you a robot?</title><div class='g-recaptcha'></div>";
    for (status, body, expected) in [
        (403, &b"no"[..], SearchRefusal::EngineBlocked(Block::Forbidden)),
        (429, b"later", SearchRefusal::EngineBlocked(Block::TooManyRequests)),
        (403, captcha, SearchRefusal::EngineBlocked(Block::Captcha)),
        (200, captcha, SearchRefusal::EngineBlocked(Block::Captcha)),
        (404, b"", SearchRefusal::EngineFailed),
        (500, b"broken", SearchRefusal::EngineFailed),
    ] {
        let address = answering(status, &[], body.to_vec()).await;
        assert_eq!(refused(service_at(address).await, &query("x")).await, expected, "{status}");
    }
}

/// An engine that redirects the exit to `location`; counts its requests.
async fn redirecting(
    location: impl Fn(usize) -> Option<String> + Clone + Send + Sync + 'static,
) -> (SocketAddr, Arc<AtomicUsize>) {
    let requests = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&requests);
    let address = http_server(move |request: Request<Incoming>| {
        let location = location(counter.fetch_add(1, Ordering::Relaxed));
        async move {
            match location {
                Some(location) => {
                    Response::builder().status(302).header("location", location).body(Full::default()).unwrap()
                }
                None => mirror(request).await,
            }
        }
    })
    .await;
    (address, requests)
}

#[tokio::test]
async fn redirects_are_followed_only_within_the_engines_host() {
    let (address, _) = redirecting(|requests| (requests < 3).then(|| format!("/moved/{requests}?q=x"))).await;
    let result = only(searched(service_at(address).await, &query("x")).await);
    assert!(result.title.starts_with("/moved/2?q=x"), "{}", result.title);
    let (address, requests) = redirecting(|requests| Some(format!("/round/{requests}"))).await;
    assert_eq!(refused(service_at(address).await, &query("x")).await, SearchRefusal::EngineRedirected);
    assert_eq!(requests.load(Ordering::Relaxed), 4);
}

#[tokio::test]
async fn a_redirect_to_another_host_or_a_private_address_is_not_followed() {
    let (target, target_requests) = redirecting(|_| None).await;
    for location in [
        format!("http://{target}/"),
        format!("http://localhost:{}/", target.port()),
        format!("//{target}/"),
        "http://169.254.169.254/latest/meta-data/".into(),
        "http://10.0.0.1/".into(),
        "http://[::1]/".into(),
        "https://example.org/".into(),
        "file:///etc/passwd".into(),
        "\u{fffd}".into(),
        String::new(),
    ] {
        let to = location.clone();
        let (address, requests) = redirecting(move |requests| (requests < 9).then(|| to.clone())).await;
        assert_eq!(
            refused(service_at(address).await, &query("x")).await,
            SearchRefusal::EngineRedirected,
            "{location}"
        );
        assert!(requests.load(Ordering::Relaxed) <= 4);
    }
    assert_eq!(target_requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn a_name_that_resolves_to_this_network_is_refused() {
    let (server, questions) = name_server().await;
    let (address, requests) = redirecting(|_| None).await;
    // The exit keeps no answer of an earlier lookup, so the policy applies to each (`io::resolver`).
    let template = format!("http://both.example.net:{}/?q={{searchTerms}}", address.port());
    let search = service_by(JSON, &template, senders(vec![server], Tls::default())).await;
    let (answer, counted) = exchanged(search, &query("x").encode().unwrap()).await;
    assert_eq!(SearchAnswer::decode(&answer), Ok(SearchAnswer::Refused(SearchRefusal::EngineUnreachable)));
    assert_eq!(counted, Err(Refusal::Prohibited));
    assert!(questions.load(Ordering::Relaxed) > 0);
    assert_eq!(requests.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn certificates_of_engines_are_verified() {
    let root = TestRoot::new();
    let tls = Tls::new([root.file.path()]).unwrap();
    let verified = https_server(root.server(&["localhost"]), mirror).await;
    let template = |address: SocketAddr| format!("https://localhost:{}/?q={{searchTerms}}", address.port());
    let search = service_by(JSON, &template(verified), senders(no_server(), tls.clone())).await;
    only(searched(search, &query("x")).await);
    let other = https_server(root.server(&["other.example"]), mirror).await;
    let search = service_by(JSON, &template(other), senders(no_server(), tls)).await;
    let (answer, counted) = exchanged(search, &query("x").encode().unwrap()).await;
    assert_eq!(SearchAnswer::decode(&answer), Ok(SearchAnswer::Refused(SearchRefusal::EngineUnreachable)));
    assert_eq!(counted, Err(Refusal::Certificate));
}

#[tokio::test]
async fn an_engine_without_pages_has_no_second_page() {
    let (address, requests) = redirecting(|_| None).await;
    let request = SearchRequest::new(name("engine"), "x", 2, None).unwrap();
    let search = service(JSON, &format!("http://{address}/?q={{searchTerms}}")).await;
    let expected = SearchAnswer::Results { results: Vec::new(), total: None, more: false };
    assert_eq!(searched(search, &request).await, expected);
    assert_eq!(requests.load(Ordering::Relaxed), 0);
}
