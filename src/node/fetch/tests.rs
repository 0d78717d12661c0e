//! Tests of `umbel fetch` with the API of a client whose exits are in this process.

use core::time::Duration;

use clap::Parser;
use http_body_util::Full;
use rand::{SeedableRng as _, rngs::StdRng};
use tokio::{net::TcpListener, sync::watch, time::timeout};

use super::*;
use crate::{
    exit::outbound::testing::http_server,
    io::testing::answering_server,
    page::{self, PageReader, SearchPage, check::ProxyCheck},
    requests::{
        http::testing::LocalExits,
        search::{Exits, Searcher},
    },
};

/// Time limit of one fetch.
const FETCH_TIMEOUT: Duration = Duration::from_secs(20);

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    options: FetchOptions,
}

/// A client's local API port.
async fn client() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let overlay = LocalExits::new().await;
    let (_, offers) = watch::channel(None);
    let page = SearchPage {
        searcher: Searcher::new(overlay.clone(), Exits::new(offers, None)),
        reader: PageReader::new(overlay.clone().requester()),
        requester: overlay.requester(),
        check: ProxyCheck::new(&mut StdRng::seed_from_u64(1)),
        socks: "127.0.0.1:9350".parse().unwrap(),
    };
    tokio::spawn(page::serve(listener, page, page::MAX_CONNECTIONS));
    address
}

/// Runs the command; returns the outcome, and the content of the output file.
async fn fetch(control: SocketAddr, arguments: &[&str]) -> (Result<(), String>, Option<String>) {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("body");
    let (control, output) = (control.to_string(), file.to_str().unwrap().to_owned());
    let common = ["fetch", "--control", &control, "--output", &output];
    let options = Command::try_parse_from(common.iter().chain(arguments)).unwrap().options;
    let outcome = timeout(FETCH_TIMEOUT, run(options)).await.unwrap();
    let written = std::fs::read_to_string(&file).ok();
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), usize::from(written.is_some()));
    (outcome.map_err(|failure| failure.to_string()), written)
}

/// Answers with the method, URI, header fields and body of the request.
async fn mirror(request: Request<Incoming>) -> Response<Full<Bytes>> {
    let head = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
    let body = request.into_body().collect().await.unwrap().to_bytes();
    Response::new(Full::from(format!("{head} {}", String::from_utf8_lossy(&body))))
}

#[tokio::test]
async fn a_body_is_fetched_by_an_exit_or_over_a_stream() {
    let (control, target) = (client().await, http_server(mirror).await);
    let address = format!("http://{target}/a%20path?query#part");
    for via in ["request", "stream"] {
        let (outcome, written) = fetch(control, &["--via", via, "--header", "X-Mine: 1", &address]).await;
        outcome.unwrap();
        let body = written.unwrap();
        assert!(body.starts_with("GET /a%20path?query {") && body.contains("\"x-mine\": \"1\""), "{via}: {body}");
    }
}

#[tokio::test]
async fn method_and_data_are_sent_without_identifying_fields() {
    let (control, target) = (client().await, http_server(mirror).await);
    let address = format!("http://{target}/");
    let body = fetch(control, &["--data", "text=1", &address]).await.1.unwrap();
    assert!(body.starts_with("POST / ") && body.contains("\"content-length\": \"6\""), "{body}");
    assert!(body.ends_with(" text=1"), "{body}");
    let mut file = tempfile::NamedTempFile::new().unwrap();
    std::io::Write::write_all(&mut file, b"from a file").unwrap();
    let named = format!("@{}", file.path().display());
    let body = fetch(control, &["-X", "PUT", "-H", "cookie: id=1", "--data", &named, &address]).await.1.unwrap();
    assert!(body.starts_with("PUT / ") && body.ends_with(" from a file"), "{body}");
    assert!(body.contains("\"content-length\": \"11\"") && !body.contains("cookie"), "{body}");
}

#[tokio::test]
async fn a_truncated_answer_is_an_error_and_leaves_no_file() {
    let target = answering_server(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf").await;
    let control = client().await;
    for via in ["request", "stream"] {
        let (outcome, written) = fetch(control, &["--via", via, &format!("http://{target}/")]).await;
        assert!(outcome.unwrap_err().contains("truncated"), "{via}");
        assert_eq!(written, None, "{via}");
    }
}

#[tokio::test]
async fn the_error_for_a_failure_status_names_the_status() {
    let control = client().await;
    let target = http_server(|request| async move {
        let mut response = Response::new(Full::<Bytes>::from("not this"));
        if request.uri().path() == "/moved" {
            *response.status_mut() = StatusCode::FOUND;
            response.headers_mut().insert(header::LOCATION, HeaderValue::from_static("/to';reboot;'"));
        } else {
            *response.status_mut() = StatusCode::NOT_FOUND;
        }
        response
    })
    .await;
    let (outcome, written) = fetch(control, &[&format!("http://{target}/none")]).await;
    assert!(outcome.unwrap_err().contains("404") && written.is_none());
    let (outcome, _) = fetch(control, &[&format!("http://{target}/moved")]).await;
    let failure = outcome.unwrap_err();
    assert!(failure.ends_with(&format!("umbel fetch 'http://{target}/to%27;reboot;%27'")), "{failure}");
}

#[tokio::test]
async fn the_error_for_an_impossible_request_states_the_reason() {
    let control = client().await;
    for (arguments, words) in [
        (["--header", "nonsense", "http://a.example/"].as_slice(), "--header"),
        (&["ftp://a.example/"], "http or https"),
        (&["http://me:you@a.example/"], "user name"),
        (&["--data", "@/nonexistent", "http://a.example/"], "/nonexistent"),
        (&["http://127.0.0.1:1/"], "refused the connection"),
        (&["--method", "TRACE", "http://127.0.0.1/"], "does not offer"),
        (&["--via", "stream", "http://refused.test/"], "refused the connection"),
    ] {
        let failure = fetch(control, arguments).await.0.unwrap_err();
        assert!(failure.contains(words), "{arguments:?}: {failure}");
    }
    let no_client = fetch("127.0.0.1:1".parse().unwrap(), &["http://a.example/"]).await.0.unwrap_err();
    assert!(no_client.contains("umbel client"), "{no_client}");
    let other_server = http_server(|_| async { Response::new(Full::<Bytes>::from("hello")) }).await;
    let other_server = fetch(other_server, &["http://a.example/"]).await.0.unwrap_err();
    assert!(other_server.contains("invalid or incomplete answer"), "{other_server}");
}
