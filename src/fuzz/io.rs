//! Fuzz targets: ports for applications, HTTP requests for exits and gateways, and key files.

use core::time::Duration;
use std::{fs, os::unix::fs::PermissionsExt as _};

use rand::{SeedableRng as _, rngs::ChaCha8Rng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    time::timeout,
};

use super::FuzzTarget;
use crate::{
    base::WallTime,
    connector::{ConnectError, Connector, Delegated, DelegatedRequest, Isolation},
    http_exchange::binary::{Content, read_request, read_response, request_head, response_head},
    io::{files::Folder, stream::Stream},
    page::cleaned_page,
    path::PathError,
    ports::{
        http_proxy::{self, HttpLimits},
        socks::{self, SocksLimits},
    },
    requests::oblivious,
    wire::{EndReason, Host, ResolvedAnswer, Target},
};

pub(super) const TARGETS: &[FuzzTarget] = &[
    FuzzTarget { name: "socks_port", run: socks_port, seeds: socks_seeds },
    FuzzTarget { name: "http_port", run: http_port, seeds: http_seeds },
    FuzzTarget { name: "binary_http", run: binary_http, seeds: binary_http_seeds },
    FuzzTarget { name: "oblivious", run: oblivious_http, seeds: oblivious_seeds },
    FuzzTarget { name: "reader_page", run: reader_page, seeds: reader_seeds },
    FuzzTarget { name: "key_files", run: key_files, seeds: key_seeds },
];

/// An overlay in which no target can be reached.
#[derive(Clone)]
struct UnreachableOverlay;

impl Connector for UnreachableOverlay {
    async fn open(&self, _: Target, _: Isolation) -> Result<Stream, ConnectError> {
        Err(EndReason::Refused.into())
    }

    async fn resolve(&self, _: Host, _: Isolation) -> Result<Vec<ResolvedAnswer>, ConnectError> {
        Ok(vec![ResolvedAnswer::Ip("192.0.2.7".parse().unwrap()), ResolvedAnswer::Name("example.org".to_owned())])
    }

    async fn delegate(&self, _: DelegatedRequest) -> Result<Delegated, ConnectError> {
        Err(PathError::NotOffered.into())
    }
}

/// The reader view of any page loads no resource and runs no script. Each URL in the view leads to the reader view or
/// into the page.
fn reader_page(bytes: &[u8]) {
    const TYPES: [&str; 4] = ["text/html", "text/html; charset=utf-16le", "text/html; charset=iso-2022-jp", ""];
    let Some((index, body)) = bytes.split_first() else { return };
    let url = "https://site.example/folder/page".parse().unwrap();
    let Some((_, shown)) = cleaned_page(TYPES[usize::from(*index) % TYPES.len()], body, &url) else { return };
    // Parses the page as a browser does.
    let page = scraper::Html::parse_fragment(&shown);
    for element in page.tree.values().filter_map(scraper::Node::as_element) {
        let name = element.name();
        let bad = [
            "script", "style", "img", "iframe", "object", "embed", "form", "input", "link", "meta", "base", "svg",
            "math",
        ];
        assert!(!bad.contains(&name), "<{name}>");
        for (attribute, value) in element.attrs() {
            let known =
                ["href", "rel", "id", "lang", "dir", "start", "span", "colspan", "rowspan"].contains(&attribute);
            let is_local = attribute != "href" || value.starts_with("/read?url=") || value.starts_with("#page-");
            assert!(known && is_local, "<{name} {attribute}={value}>");
        }
    }
}

fn reader_seeds() -> Vec<Vec<u8>> {
    let pages = [
        "<title>T</title><base href=//other.example/><main><p id=a>x<a href=#a>a</a><a href='y?utm_source=z#b'>b</a></main>",
        "<svg><a href=javascript:x><style><img src=x onerror=y></style></a></svg><math><mtext><table><mglyph><style><!--</style>",
        "<table><a href=x><tr><td><form><input></table><select><option><b><p><b><p></b></select><noscript><p title=\"</noscript>",
        "<p><b><i><font color=1><p><p></b></i><plaintext><script>",
    ];
    let page = |(index, page): (usize, &str)| [&[u8::try_from(index).unwrap()], page.as_bytes()].concat();
    pages.into_iter().enumerate().map(page).chain([b"\x00<meta charset=shift_jis>\x83\x65".to_vec()]).collect()
}

/// For any input of an application, the port closes the application's socket within a bounded time, and keeps serving.
fn with_port<F: Future<Output = ()> + Send + 'static>(serve: impl FnOnce(TcpListener) -> F, bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener));
        let mut application = TcpStream::connect(address).await.unwrap();
        // The port may close before all bytes are written.
        let _ = application.write_all(bytes).await;
        let _ = application.shutdown().await;
        let mut answer = Vec::new();
        let read = timeout(Duration::from_secs(20), application.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "the port did not close the connection in time");
        assert!(!serving.is_finished(), "the port has ended");
    });
}

fn socks_port(bytes: &[u8]) {
    with_port(|listener| socks::serve(listener, UnreachableOverlay, SocksLimits::default()), bytes);
}

fn socks_seeds() -> Vec<Vec<u8>> {
    let hello: &[u8] = &[5, 1, 0];
    let with_user: &[u8] = &[5, 1, 2, 1, 4, b'u', b's', b'e', b'r', 2, b'p', b'w'];
    let name = |command: u8| [&[5, command, 0, 3, 11], b"example.org".as_slice(), &[1, 0xbb]].concat();
    let v4: &[u8] = &[5, 1, 0, 1, 192, 0, 2, 7, 1, 0xbb];
    let v6 = [&[5, 0xf1, 0, 4], [0x20; 16].as_slice(), &[1, 0xbb]].concat();
    let socks4a = [&[4, 1, 1, 0xbb, 0, 0, 0, 1], b"user\0example.org\0".as_slice()].concat();
    let requests = [name(1), name(2), name(3), name(0xf0), name(0xf1), v4.to_vec(), v6];
    let socks5 = requests.iter().flat_map(|request| [hello, with_user].map(|greeting| [greeting, request].concat()));
    socks5.chain([socks4a, b"GET / HTTP/1.1\r\n\r\n".to_vec()]).collect()
}

fn http_port(bytes: &[u8]) {
    with_port(|listener| http_proxy::serve(listener, UnreachableOverlay, HttpLimits::default()), bytes);
}

fn http_seeds() -> Vec<Vec<u8>> {
    let requests = [
        "CONNECT example.org:443 HTTP/1.1\r\nHost: example.org:443\r\n\r\n",
        "CONNECT [2001:db8::1]:443 HTTP/1.1\r\nProxy-Authorization: Basic dXNlcjpwdw==\r\n\r\n",
        "GET http://example.org/path?query HTTP/1.1\r\nHost: example.org\r\nConnection: keep-alive\r\n\r\n",
        "POST http://example.org/ HTTP/1.1\r\nHost: example.org\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: 127.0.0.1:9351\r\n\r\n",
        "OPTIONS * HTTP/1.1\r\nHost: example.org\r\n\r\n",
    ];
    requests.map(|request| request.as_bytes().to_vec()).to_vec()
}

/// The head of a decoded message, if it can be encoded, decodes to an equal head. The content is within the cap.
fn binary_http(bytes: &[u8]) {
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        if let Ok((request, content)) = read_request(bytes, MAX_CONTENT_LEN).await {
            read_content(content).await;
            if let Ok(head) = request_head(&request) {
                let (decoded, _) = read_request(head.as_slice(), 0).await.unwrap();
                assert_eq!((decoded.method(), decoded.uri()), (request.method(), request.uri()));
                assert_eq!(decoded.headers(), request.headers());
            }
        }
        if let Ok((response, content)) = read_response(bytes, MAX_CONTENT_LEN).await {
            read_content(content).await;
            if let Ok(head) = response_head(&response) {
                let (decoded, _) = read_response(head.as_slice(), 0).await.unwrap();
                assert_eq!((decoded.status(), decoded.headers()), (response.status(), response.headers()));
            }
        }
    });
}

/// Maximum length of a message's content, in bytes.
const MAX_CONTENT_LEN: u64 = 1000;

/// Reads the content to its end or to an error.
async fn read_content(mut content: Content<&[u8]>) {
    let mut length = 0;
    while let Ok(Some(piece)) = content.piece().await {
        assert!(!piece.is_empty());
        length += piece.len() as u64;
    }
    assert!(length <= MAX_CONTENT_LEN);
}

fn binary_http_seeds() -> Vec<Vec<u8>> {
    let request = hyper::Request::post("https://example.org:8443/path?query").header("accept", "*/*").body(()).unwrap();
    let response = hyper::Response::builder().status(404).header("etag", "1").body(()).unwrap();
    let (request, response) = (request_head(&request).unwrap(), response_head(&response).unwrap());
    let content: &[u8] = b"\x04body\x00";
    let trailers: &[u8] = b"\x01a\x01b\x00";
    let early: &[u8] = b"\x03\x40\x67\x04link\x01a\x00\x40\xc8\x00";
    vec![
        request.clone(),
        [request.as_slice(), content, b"\0"].concat(),
        [request.as_slice(), content, trailers].concat(),
        response.clone(),
        [response.as_slice(), content, b"\0"].concat(),
        [early, content, trailers].concat(),
    ]
}

/// A gateway's keys and answers cause no panic.
fn oblivious_http(bytes: &[u8]) {
    let _ = oblivious::seal(bytes, b"message");
    let _ = oblivious::decode(bytes.to_vec());
}

fn oblivious_seeds() -> Vec<Vec<u8>> {
    // The identifier, X25519, the key, and two cipher suites.
    let keys = [&[1, 0, 0x20], [9; 32].as_slice(), &[0, 8, 0, 1, 0, 1, 0, 1, 0, 3]].concat();
    let listed = [&[0, 45], keys.as_slice()].concat();
    let known: &[u8] = b"\x01\x40\xc8\x08\x04etag\x021!\x04body\x00";
    let indeterminate: &[u8] = b"\x03\x40\xc8\x04etag\x011\x00\x04body\x00\x00";
    vec![listed.clone(), [listed.clone(), listed].concat(), known.to_vec(), indeterminate.to_vec()]
}

const KEY_FILES: [&str; 2] = ["identity.key", "onion.key"];

/// A key file that can't be decoded is left unchanged.
fn key_files(bytes: &[u8]) {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for name in KEY_FILES {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let folder = Folder::open(folder.path()).unwrap();
    let refused = [folder.identity(&mut rng).is_err(), folder.onion_keys(WallTime::from_unix(0), &mut rng).is_err()];
    for (name, refused) in KEY_FILES.into_iter().zip(refused) {
        assert!(!refused || fs::read(folder.path().join(name)).unwrap() == bytes, "{name} was overwritten");
    }
}

fn key_seeds() -> Vec<Vec<u8>> {
    let folder = tempfile::tempdir().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let created = Folder::open(folder.path()).unwrap();
    created.identity(&mut rng).unwrap();
    created.onion_keys(WallTime::from_unix(0), &mut rng).unwrap();
    KEY_FILES.map(|name| fs::read(folder.path().join(name)).unwrap()).to_vec()
}
