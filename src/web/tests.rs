//! Tests of the pages' server, and of the comparison of a server's files with a manifest.

use core::net::SocketAddr;

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::JoinHandle,
};

use super::{
    manifest::{Manifest, ManifestError},
    verify::{Difference, Mismatch, VerifyError, base_url, verify},
    *,
};
use crate::directory::fixture::key;

/// Time limit of each wait.
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

const PAGE: &[u8] = b"<!doctype html><title>Volunteer</title>";
const SCRIPT: &[u8] = b"export const a = 1;";

const fn file(name: &'static str, whole: &'static [u8]) -> File {
    File { name, whole, brotli: None, gzip: None }
}

static FILES: &[File] = &[
    File { brotli: Some(b"encoded as br"), gzip: Some(b"encoded as gzip"), ..file("assets/a-1234.js", SCRIPT) },
    file("badge.js", b"badge"),
    file("volunteer.html", PAGE),
];

/// A server on loopback, which ends when dropped.
struct Server {
    address: SocketAddr,
    task: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn start(router: Router) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    Server { address, task: tokio::spawn(serve(listener, router)) }
}

async fn start_with_files(files: &'static [File]) -> Server {
    start(router(files, PageDirectories::Here, &[key(100).id().into()], Vec::new())).await
}

impl Server {
    /// Sends `request`, and returns the answer in lower case.
    async fn lowercase_answer(&self, request: &str) -> String {
        let mut socket = TcpStream::connect(self.address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        timeout(WAIT_TIMEOUT, socket.read_to_end(&mut answer)).await.expect("no answer in time").unwrap();
        String::from_utf8_lossy(&answer).to_ascii_lowercase()
    }

    async fn get(&self, path: &str, fields: &str) -> String {
        self.lowercase_answer(&format!("GET {path} HTTP/1.1\r\nhost: here:1\r\nconnection: close\r\n{fields}\r\n"))
            .await
    }

    async fn differences(&self, manifest: &Manifest) -> Vec<Difference> {
        let base = base_url(&format!("http://{}/", self.address), manifest).unwrap();
        verify(&base, manifest, &[]).await.unwrap().differences
    }
}

/// Opens `count` connections from `source`.
async fn open_connections(source: [u8; 4], count: usize, address: SocketAddr) -> Vec<TcpStream> {
    let mut held = Vec::new();
    for _ in 0..count {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((source, 0).into()).unwrap();
        held.push(socket.connect(address).await.unwrap());
    }
    held
}

#[tokio::test]
async fn connections_of_one_address_at_its_cap_delay_no_other_visitor() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let caps = ConnectionCaps {
        all: 40,
        network: |peer| Some(crate::base::AddressPrefix::source(peer)),
        ..ConnectionCaps::default()
    };
    let router = router(FILES, PageDirectories::Here, &[key(100).id().into()], Vec::new());
    let server = Server { address, task: tokio::spawn(serve_within(listener, router, caps)) };
    let mut held = open_connections([127, 0, 0, 2], 60, address).await;
    let answer = server.get("/volunteer", "").await;
    assert!(answer.starts_with("http/1.1 200"), "{answer}");
    let mut refused = Vec::new();
    timeout(WAIT_TIMEOUT, held.pop().unwrap().read_to_end(&mut refused)).await.expect("no answer in time").unwrap();
    assert!(refused.starts_with(b"HTTP/1.1 503"), "{}", String::from_utf8_lossy(&refused));
}

#[tokio::test]
async fn a_page_is_served_under_both_names_with_its_policy() {
    let server = start_with_files(FILES).await;
    for path in ["/volunteer", "/volunteer.html"] {
        let answer = server.get(path, "").await;
        assert!(answer.starts_with("http/1.1 200"), "{answer}");
        assert!(answer.ends_with("<title>volunteer</title>"), "{answer}");
        for field in [
            "content-type: text/html; charset=utf-8",
            "content-security-policy: default-src 'none'; script-src 'self' 'wasm-unsafe-eval';",
            "frame-ancestors 'none'",
            "x-frame-options: deny",
            "x-content-type-options: nosniff",
            "referrer-policy: no-referrer",
            "cache-control: no-cache",
        ] {
            assert!(answer.contains(field), "{field} is missing in {answer}");
        }
    }
    assert!(server.get("/", "").await.contains("location: /volunteer"));
}

#[tokio::test]
async fn other_paths_and_methods_are_refused_with_the_security_header_fields() {
    let server = start_with_files(FILES).await;
    for path in
        ["/volunteer/", "/assets", "/assets/", "/assets/../badge.js", "/%2e%2e/etc/passwd", "//badge.js", "/search"]
    {
        let answer = server.get(path, "").await;
        assert!(answer.starts_with("http/1.1 404"), "{path}: {answer}");
        assert_security_fields(&answer);
    }
    let post = "POST /badge.js HTTP/1.1\r\nhost: h\r\nconnection: close\r\ncontent-length: 0\r\n\r\n";
    let answer = server.lowercase_answer(post).await;
    assert!(answer.starts_with("http/1.1 405") && answer.contains("allow: get"), "{answer}");
    assert_security_fields(&answer);
    let without_pages = start(router_without_pages("no pages")).await;
    for path in ["/volunteer", "/other"] {
        assert_security_fields(&without_pages.get(path, "").await);
    }
    assert_security_fields(&without_pages.lowercase_answer(&post.replace("/badge.js", "/volunteer")).await);
}

fn assert_security_fields(answer: &str) {
    for field in [
        "content-security-policy: default-src 'none'; frame-ancestors 'none'",
        "x-frame-options: deny",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
    ] {
        assert!(answer.contains(field), "{field} is missing in {answer}");
    }
}

#[tokio::test]
async fn a_file_is_sent_only_in_an_accepted_content_encoding() {
    let server = start_with_files(FILES).await;
    let cases = [
        ("", "export const a = 1;", None),
        ("accept-encoding: gzip, deflate, br\r\n", "encoded as br", Some("br")),
        ("accept-encoding: GZIP\r\n", "encoded as gzip", Some("gzip")),
        ("accept-encoding: br;q=0, gzip;q=0.5\r\n", "encoded as gzip", Some("gzip")),
        ("accept-encoding: br; q=0.000, gzip;q=0\r\n", "export const a = 1;", None),
        ("accept-encoding: brotli\r\n", "export const a = 1;", None),
    ];
    for (fields, body, coding) in cases {
        let answer = server.get("/assets/a-1234.js", fields).await;
        assert!(answer.ends_with(&format!("\r\n\r\n{body}")), "{fields}: {answer}");
        let found = answer.lines().find_map(|line| line.strip_prefix("content-encoding: "));
        assert_eq!(found, coding, "{fields}");
        assert!(answer.contains("vary: accept-encoding"), "{answer}");
        assert!(answer.contains("cache-control: public, max-age=31536000, immutable"), "{answer}");
        assert!(answer.contains("access-control-allow-origin: *"), "{answer}");
    }
}

#[tokio::test]
async fn a_request_for_an_unchanged_file_is_answered_with_not_modified() {
    let server = start_with_files(FILES).await;
    let answer = server.get("/badge.js", "").await;
    let tag = answer.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    let tag = tag.replace("w/", "W/");
    let second = server.get("/badge.js", &format!("if-none-match: {tag}\r\n")).await;
    assert!(second.starts_with("http/1.1 304"), "{second}");
    assert!(second.contains("content-security-policy"), "{second}");
    let other = server.get("/badge.js", "if-none-match: W/\"other\"\r\n").await;
    assert!(other.starts_with("http/1.1 200"), "{other}");
}

#[tokio::test]
async fn the_network_description_has_the_origin_of_the_request_as_directory() {
    let server = start_with_files(FILES).await;
    let authority = AuthorityId::from(key(100).id()).to_string();
    let body =
        |answer: String| serde_json::from_str::<NetworkDescription>(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    let plain = body(server.get("/umbel.json", "").await);
    assert_eq!(plain.directories, ["http://here:1"]);
    assert_eq!(plain.authorities, [authority.to_ascii_lowercase()]);
    let https = server.get("/umbel.json", "x-forwarded-proto: https\r\n").await;
    assert!(https.contains("cache-control: no-store"), "{https}");
    assert_eq!(body(https).directories, ["https://here:1"]);
    for host in ["user@host", "a b", "", "a/b"] {
        let answer = server
            .lowercase_answer(&format!("GET /umbel.json HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n"))
            .await;
        assert!(answer.starts_with("http/1.1 400"), "{host}: {answer}");
    }
}

#[tokio::test]
async fn the_network_description_has_the_configured_directories() {
    let at = PageDirectories::At(vec!["https://directory.example".to_owned()]);
    let server = start(router(FILES, at.clone(), &[], Vec::new())).await;
    let answer = server.get("/umbel.json", "").await;
    assert!(answer.ends_with("{\"directories\":[\"https://directory.example\"],\"authorities\":[]}"), "{answer}");
    let engine = PageEngine { name: "e".into(), title: "E".into(), description: "<a b=\"c\"/>".into() };
    let server = start(router(FILES, at, &[], vec![engine.clone()])).await;
    let answer = server.get("/umbel.json", "").await;
    let network: NetworkDescription = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
    assert_eq!(network.engines.len(), 1);
    assert_eq!(network.engines[0].description, "<a b=\"c\"/>");
}

#[tokio::test]
async fn files_as_in_the_manifest_have_no_difference() {
    let server = start_with_files(const { &[file("assets/a-1234.js", SCRIPT), file("volunteer.html", PAGE)] }).await;
    let manifest = Manifest::of(&[file("assets/a-1234.js", SCRIPT), file("volunteer.html", PAGE)]);
    for suffix in ["", "/", "/volunteer", "/volunteer.html?x#y"] {
        let base = base_url(&format!("http://{}{suffix}", server.address), &manifest).unwrap();
        let authority = AuthorityId::from(key(100).id()).to_string();
        let outcome = verify(&base, &manifest, &[authority]).await.unwrap();
        assert_eq!(outcome.differences, [], "{suffix}");
        assert_eq!(outcome.network.unwrap().directories, [format!("http://{}", server.address)]);
        let other = AuthorityId::from(key(101).id()).to_string();
        let outcome = verify(&base, &manifest, &[other]).await.unwrap();
        assert_eq!(outcome.differences, [Difference { path: "umbel.json".to_owned(), kind: Mismatch::Network }]);
    }
}

#[tokio::test]
async fn a_changed_or_missing_file_is_a_difference() {
    let server =
        start_with_files(const { &[file("volunteer.html", b"another page"), file("extra.js", b"not asked for")] })
            .await;
    let manifest = Manifest::of(FILES);
    let differences = server.differences(&manifest).await;
    let messages: Vec<_> = differences.iter().map(ToString::to_string).collect();
    let other = HEXLOWER.encode(&sha256(b"another page"));
    assert_eq!(
        messages,
        [
            "assets/a-1234.js: HTTP status 404 instead of the file".to_owned(),
            "badge.js: HTTP status 404 instead of the file".to_owned(),
            format!("volunteer: the contents differ; SHA-256 {other}"),
            format!("volunteer.html: the contents differ; SHA-256 {other}"),
        ]
    );
}

#[tokio::test]
async fn a_page_may_lack_one_of_its_names_but_may_not_differ_between_them() {
    let page = || async { String::from_utf8_lossy(PAGE).into_owned() };
    let manifest = Manifest::of(&[file("volunteer.html", PAGE)]);
    let server = start(Router::new().route("/volunteer", get(page))).await;
    assert_eq!(server.differences(&manifest).await, []);
    let server =
        start(Router::new().route("/volunteer", get(page)).route("/volunteer.html", get(|| async { "x" }))).await;
    assert_eq!(server.differences(&manifest).await.len(), 1);
}

#[tokio::test]
async fn a_redirect_or_loading_field_is_a_difference() {
    let manifest = Manifest::of(&[file("volunteer.html", PAGE), file("badge.js", b"badge")]);
    let loading =
        || async { ([(header::LINK, "<https://elsewhere.example/x.css>; rel=stylesheet")], PAGE).into_response() };
    let redirecting = || async { Redirect::temporary("https://elsewhere.example/").into_response() };
    let server = start(Router::new().route("/volunteer", get(loading)).route("/badge.js", get(redirecting))).await;
    let kinds: Vec<_> = server.differences(&manifest).await.into_iter().map(|difference| difference.kind).collect();
    assert_eq!(kinds, [Mismatch::Status(307), Mismatch::LoadingField("link")]);
}

#[tokio::test]
async fn a_too_long_answer_is_a_difference() {
    let manifest = Manifest::of(&[file("badge.js", b"badge")]);
    let server = start(Router::new().route("/badge.js", get(|| async { vec![b'x'; 9 << 20] }))).await;
    let kinds: Vec<_> = server.differences(&manifest).await.into_iter().map(|difference| difference.kind).collect();
    assert_eq!(kinds, [Mismatch::TooLong]);
}

#[tokio::test]
async fn verification_of_an_unreachable_server_fails() {
    let manifest = Manifest::of(FILES);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let base = base_url(&format!("http://{address}"), &manifest).unwrap();
    assert!(matches!(verify(&base, &manifest, &[]).await, Err(VerifyError::Unreachable(_))));
}

#[test]
fn only_http_urls_are_accepted() {
    let manifest = Manifest::of(FILES);
    for bad in ["", "umbel.example", "file:///x", "javascript:x"] {
        assert!(matches!(base_url(bad, &manifest), Err(VerifyError::Url(_))), "{bad}");
    }
    let base = |url| base_url(url, &manifest).unwrap().to_string();
    assert_eq!(base("https://h/pages/badge.js"), "https://h/pages/");
    assert_eq!(base("https://h/pages"), "https://h/pages/");
}

#[tokio::test]
async fn a_server_without_pages_answers_with_the_reason() {
    let server = start(router_without_pages("Run `cargo xtask web`.\n")).await;
    for path in ["/", "/volunteer", "/search", "/search.html"] {
        let answer = server.get(path, "").await;
        assert!(answer.starts_with("http/1.1 404"), "{answer}");
        assert!(answer.contains("\r\ncontent-type: text/plain; charset=utf-8\r\n"), "{answer}");
        assert!(answer.ends_with("run `cargo xtask web`.\n"), "{answer}");
    }
}

#[test]
fn a_parsed_manifest_equals_the_written_one() {
    let manifest = Manifest::of(FILES);
    let text = manifest.to_string();
    assert_eq!(text.lines().count(), 3);
    assert!(text.contains("  assets/a-1234.js\n"), "{text}");
    assert_eq!(Manifest::parse(&format!("# umbel 1\n\n{text}")).unwrap(), manifest);
}

#[test]
fn a_manifest_with_invalid_lines_is_refused() {
    let hash = "0".repeat(64);
    for name in
        ["", "/etc/passwd", "../x", "a/../b", "a//b", ".hidden", "a\\b", "a b", "http://x", "a?b", &"x".repeat(200)]
    {
        assert_eq!(Manifest::parse(&format!("{hash}  {name}")), Err(ManifestError::Line(1)), "{name}");
    }
    for line in ["x", &hash, &format!("{hash} a"), &format!("{}  a", &hash[1..]), &format!("{hash}  a\n{hash}  a")] {
        assert!(Manifest::parse(line).is_err(), "{line}");
    }
    assert_eq!(Manifest::parse(""), Err(ManifestError::Empty));
    let many: String = (0..300).map(|n| format!("{hash}  {n}\n")).collect();
    assert_eq!(Manifest::parse(&many), Err(ManifestError::TooMany));
}

#[test]
fn embedded_pages_contain_their_policy_and_no_other_host() {
    for page in embedded().iter().filter(|file| file.name.ends_with(".html")) {
        let text = core::str::from_utf8(page.whole).unwrap();
        let own = PAGE_POLICY.split("; frame-ancestors").next().unwrap();
        assert!(text.contains(own), "{}: {text}", page.name);
        for attribute in ["src=\"", "href=\""] {
            for url in text.split(attribute).skip(1) {
                assert!(url.starts_with("./"), "{}: {attribute}{}", page.name, url.get(..40).unwrap_or(url));
            }
        }
        assert!(!text.contains(" style=") && !text.contains("<style") && !text.contains(" onclick"), "{}", page.name);
    }
}
