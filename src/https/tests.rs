//! Exchanges with a real TLS server in memory, and with invalid input.

use std::{
    io::{Read as _, Write as _},
    sync::Arc,
};

use rustls::{ServerConfig, ServerConnection, crypto::ring, pki_types::PrivatePkcs8KeyDer, version};

use super::*;

const HOST: &str = "site.example";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// A root certificate of the test.
struct Root {
    pem: String,
    der: Vec<u8>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Root {
    /// A root called `name`.
    fn new(name: &str) -> Self {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let certificate = params.self_signed(&key).unwrap();
        let (pem, der) = (certificate.pem(), certificate.der().to_vec());
        Self { pem, der, issuer: rcgen::Issuer::new(params, key) }
    }

    fn trust(&self) -> Trust {
        Trust::new([self.pem.as_bytes()]).unwrap()
    }

    /// A server with a certificate issued by this root.
    fn site(&self, change: impl FnOnce(&mut rcgen::CertificateParams)) -> Site {
        self.site_of(rustls::DEFAULT_VERSIONS, change)
    }

    fn site_of(
        &self,
        versions: &[&'static rustls::SupportedProtocolVersion],
        change: impl FnOnce(&mut rcgen::CertificateParams),
    ) -> Site {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::new([HOST.to_owned()]).unwrap();
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(versions)
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], PrivatePkcs8KeyDer::from(key.serialize_der()).into())
            .unwrap();
        Site { tls: ServerConnection::new(Arc::new(config)).unwrap(), heard: Vec::new() }
    }
}

/// The server's end.
struct Site {
    tls: ServerConnection,
    /// The decrypted bytes that the server received.
    heard: Vec<u8>,
}

impl Site {
    fn take(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.tls.read_tls(&mut bytes).unwrap();
            // A client that closes may send an alert.
            let _ = self.tls.process_new_packets();
            let _ = self.tls.reader().read_to_end(&mut self.heard);
        }
    }

    fn sealed(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    fn says(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in plain.chunks(16 << 10) {
            self.tls.writer().write_all(piece).unwrap();
            bytes.extend(self.sealed());
        }
        bytes
    }

    fn farewell(&mut self) -> Vec<u8> {
        self.tls.send_close_notify();
        self.sealed()
    }
}

type Head = (u16, Vec<(String, Vec<u8>)>);

/// The result of an exchange.
#[derive(Debug, Default, PartialEq, Eq)]
struct Came {
    head: Option<Head>,
    body: Vec<u8>,
    whole: bool,
    failure: Option<HttpsError>,
}

impl Came {
    /// Takes all events.
    fn take(&mut self, exchange: &mut Exchange) {
        loop {
            match exchange.poll_event() {
                Ok(Some(ExchangeEvent::Head { status, fields })) => {
                    assert!(self.head.replace((status, fields)).is_none())
                }
                Ok(Some(ExchangeEvent::Body(piece))) => self.body.extend(piece),
                Ok(Some(ExchangeEvent::End)) => self.whole = true,
                Ok(None) => return,
                Err(failure) => return self.failure = Some(failure),
            }
        }
    }
}

fn exchange(trust: &Trust, method: &str, body: &[u8]) -> Exchange {
    Exchange::new(trust, method, &format!("https://{HOST}/path?query"), [], body.to_vec()).unwrap()
}

/// Passes bytes both ways until neither side has output.
fn talk(exchange: &mut Exchange, site: &mut Site) -> Came {
    let mut came = Came::default();
    loop {
        came.take(exchange);
        let mut said = false;
        while let Some(bytes) = exchange.poll_transmit() {
            site.take(&bytes);
            said = true;
        }
        let bytes = site.sealed();
        if !bytes.is_empty() {
            exchange.handle_received(&bytes);
            said = true;
        }
        if !said {
            return came;
        }
    }
}

/// The result of a GET whose response is `plain`, encrypted; `farewell` is whether TLS's close alert follows.
fn answered(plain: &[u8], farewell: bool) -> Came {
    let root = Root::new("ours");
    let (mut exchange, mut site) = (exchange(&root.trust(), "GET", b""), root.site(|_| {}));
    let mut came = talk(&mut exchange, &mut site);
    let mut bytes = site.says(plain);
    if farewell {
        bytes.extend(site.farewell());
    }
    for piece in bytes.chunks(4096) {
        exchange.handle_received(piece);
        came.take(&mut exchange);
    }
    exchange.handle_end();
    came.take(&mut exchange);
    came
}

#[test]
fn a_request_goes_out_with_fields_that_tell_nothing_of_the_browser_and_its_answer_comes_whole() {
    for versions in [[&version::TLS13], [&version::TLS12]] {
        let root = Root::new("ours");
        let (mut exchange, mut site) =
            (exchange(&root.trust(), "POST", b"what is said"), root.site_of(&versions, |_| {}));
        assert_eq!((exchange.host(), exchange.port()), (HOST, 443));
        assert_eq!(talk(&mut exchange, &mut site), Came::default());
        assert_eq!(
            String::from_utf8_lossy(&site.heard),
            "POST /path?query HTTP/1.1\r\nhost: site.example\r\nuser-agent: Mozilla/5.0 (compatible; Umbel)\r\n\
             accept-encoding: identity\r\naccept: */*\r\naccept-language: en\r\ncontent-length: 12\r\n\r\nwhat is said"
        );
        let bytes = site.says(
            b"HTTP/1.1 201 Created\r\nset-cookie: id=1\r\nconnection: x-mine\r\nx-mine: 1\r\netag: \"1\"\r\n\
              transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        );
        exchange.handle_received(&bytes);
        let came = talk(&mut exchange, &mut site);
        assert_eq!(came.head, Some((201, vec![("etag".to_owned(), b"\"1\"".to_vec())])));
        assert_eq!((came.body.as_slice(), came.whole, came.failure), (&b"hello"[..], true, None));
    }
}

#[test]
fn bodies_of_megabytes_go_both_ways_and_wait_in_pieces() {
    let root = Root::new("ours");
    let body: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let (mut exchange, mut site) = (exchange(&root.trust(), "PUT", &body), root.site(|_| {}));
    // The waiting ciphertext is bounded by the buffer, one write of hyper and TLS's overhead.
    while let Some(bytes) = exchange.poll_transmit() {
        assert!(bytes.len() < 1 << 20, "{} bytes at once", bytes.len());
        site.take(&bytes);
        exchange.handle_received(&site.sealed());
    }
    assert!(site.heard.ends_with(&body));
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut bytes = site.says(head.as_bytes());
    bytes.extend(site.says(&body));
    let mut came = Came::default();
    for piece in bytes.chunks(60_000) {
        exchange.handle_received(piece);
        came.take(&mut exchange);
    }
    assert!(came.whole && came.body == body);
}

#[test]
fn nothing_of_a_request_is_sent_to_a_site_whose_certificate_does_not_count() {
    let (root, other, namesake) = (Root::new("ours"), Root::new("another"), Root::new("ours"));
    let past = rcgen::date_time_ymd(2020, 1, 1);
    let future = rcgen::date_time_ymd(2999, 1, 1);
    let cases = [
        (root.site(|params| params.not_after = past), HttpsError::Expired),
        (root.site(|params| params.not_before = future), HttpsError::NotYetValid),
        (
            root.site(|params| {
                params.subject_alt_names = vec![rcgen::SanType::DnsName("other.example".try_into().unwrap())]
            }),
            HttpsError::OtherName,
        ),
        (other.site(|_| {}), HttpsError::UnknownIssuer),
        (namesake.site(|_| {}), HttpsError::Certificate),
    ];
    for (mut site, expected) in cases {
        let mut exchange = exchange(&root.trust(), "POST", b"secret");
        let came = talk(&mut exchange, &mut site);
        assert_eq!(came.failure, Some(expected));
        assert_eq!(expected.kind(), "certificate");
        assert!(site.heard.is_empty(), "{expected:?}");
    }
}

#[test]
fn the_roots_of_browsers_count_without_any_anchor_and_a_test_root_does_not() {
    let mut exchange = exchange(&Trust::new([]).unwrap(), "GET", b"");
    let came = talk(&mut exchange, &mut Root::new("ours").site(|_| {}));
    assert_eq!(came.failure, Some(HttpsError::UnknownIssuer));
}

#[test]
fn anchors_count_in_pem_and_in_der_and_nothing_else_is_one() {
    let root = Root::new("ours");
    let both = format!("of two\n{}{}", Root::new("another").pem, root.pem);
    for anchor in [root.pem.as_bytes(), &root.der, both.as_bytes()] {
        let mut exchange = exchange(&Trust::new([anchor]).unwrap(), "GET", b"");
        let mut site = root.site(|_| {});
        assert_eq!(talk(&mut exchange, &mut site).failure, None);
        assert!(site.heard.starts_with(b"GET "));
    }
    for none in [&b""[..], b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"-----BEGIN "]
    {
        assert_eq!(Trust::new([none]).unwrap_err(), HttpsError::Anchor);
    }
}

#[test]
fn a_body_that_breaks_off_is_no_end_with_a_length_or_without() {
    let cases: [(&[u8], bool, bool); 8] = [
        (OK, true, true),
        // Complete by its length.
        (OK, false, true),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello", true, false),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", true, true),
        // Without TLS's close alert, an attacker may have truncated it.
        (b"HTTP/1.1 200 OK\r\n\r\nhello", false, false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", true, false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n\r\n", true, false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", true, false),
    ];
    for (plain, farewell, whole) in cases {
        let came = answered(plain, farewell);
        let words = String::from_utf8_lossy(plain);
        assert_eq!((came.body.as_slice(), came.whole), (&b"hello"[..], whole), "{words}");
        assert_eq!(came.failure, (!whole).then_some(HttpsError::Broken), "{words}");
    }
}

#[test]
fn what_is_no_answer_in_http_is_refused() {
    let endless = [b"HTTP/1.1 200 OK\r\nx: ".to_vec(), vec![b'a'; 200_000]].concat();
    let many = [b"HTTP/1.1 200 OK\r\n".to_vec(), b"x: 1\r\n".repeat(5000)].concat();
    for plain in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"HTTP/1.1 999 Odd\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nx: \0\r\n\r\n",
        &endless,
        &many,
    ] {
        let came = answered(plain, true);
        assert_eq!((came.head, came.failure), (None, Some(HttpsError::NotHttp)));
    }
    for plain in [&b""[..], b"HTTP/1.1 200 O", b"HTTP/1.1 100 Continue\r\n\r\n"] {
        let came = answered(plain, true);
        assert_eq!((came.head, came.failure), (None, Some(HttpsError::Broken)));
    }
}

#[test]
fn what_goes_before_a_head_has_an_end() {
    let hint = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n";
    let hinted = answered(&[&hint.repeat(20), OK].concat(), true);
    assert_eq!((hinted.body.as_slice(), hinted.whole), (&b"hello"[..], true));
    let endless = answered(&[&hint.repeat(10_000), OK].concat(), true);
    assert_eq!((endless.head, endless.failure), (None, Some(HttpsError::NotHttp)));
}

#[test]
fn what_is_no_tls_fails_and_gets_nothing_of_the_request() {
    let root = Root::new("ours");
    for (came, expected) in [
        (&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], HttpsError::NotTls),
        (&[0; 100], HttpsError::NotTls),
        // A fatal alert: handshake failure.
        (&[21, 3, 3, 0, 2, 2, 40], HttpsError::Alert),
        (b"", HttpsError::Broken),
        (&[22, 3, 3, 0x40, 0], HttpsError::Broken),
    ] {
        let mut exchange = exchange(&root.trust(), "POST", b"secret");
        let hello = exchange.poll_transmit().unwrap();
        assert!(!hello.windows(6).any(|window| window == b"secret"));
        exchange.handle_received(came);
        exchange.handle_end();
        let mut told = Came::default();
        told.take(&mut exchange);
        assert_eq!(told, Came { failure: Some(expected), ..Came::default() });
        // Only an unencrypted alert.
        assert!(exchange.poll_transmit().is_none_or(|bytes| bytes.len() == 7 && bytes[0] == 21));
        exchange.handle_received(came);
        told.take(&mut exchange);
        assert_eq!(told.failure, Some(expected));
    }
}

#[test]
fn a_byte_changed_on_the_way_never_changes_what_is_read() {
    let root = Root::new("ours");
    // Every seventh byte of the site's two flights in turn.
    let mut at = 0;
    loop {
        let (mut exchange, mut site) = (exchange(&root.trust(), "GET", b""), root.site(|_| {}));
        let (mut came, mut passed, mut asked) = (Came::default(), 0, false);
        while came.failure.is_none() && !came.whole {
            while let Some(bytes) = exchange.poll_transmit() {
                site.take(&bytes);
            }
            let mut bytes = site.sealed();
            if !asked && !site.heard.is_empty() {
                asked = true;
                bytes.extend(site.says(OK));
                bytes.extend(site.farewell());
            }
            if bytes.is_empty() {
                exchange.handle_end();
            }
            if let Some(byte) = usize::checked_sub(at, passed).and_then(|at| bytes.get_mut(at)) {
                *byte ^= 1;
            }
            passed += bytes.len();
            exchange.handle_received(&bytes);
            came.take(&mut exchange);
        }
        if at >= passed {
            assert!(came.whole, "the unmodified answer is complete");
            return;
        }
        assert!(came.body.is_empty() || came.body == b"hello");
        at += 7;
    }
}

#[test]
fn more_than_was_asked_for_is_not_kept() {
    let root = Root::new("ours");
    let (mut exchange, mut site) = (exchange(&root.trust(), "GET", b""), root.site(|_| {}));
    talk(&mut exchange, &mut site);
    let head = site.says(b"HTTP/1.1 200 OK\r\n\r\n");
    exchange.handle_received(&head);
    // Passed on without polling events.
    for _ in 0..200 {
        exchange.handle_received(&site.says(&[0; 16 << 10]));
    }
    let mut came = Came::default();
    came.take(&mut exchange);
    assert!(came.failure.is_some() && came.body.len() <= 2 << 20, "{} bytes", came.body.len());
}

#[test]
fn what_can_not_be_asked_is_refused_before_anything_is_sent() {
    let trust = Trust::new([]).unwrap();
    let made = |method: &str, url: &str, fields: &[(&str, &str)]| {
        let fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Exchange::new(&trust, method, url, fields, Vec::new()).err()
    };
    assert_eq!(made("GET", "http://site.example/", &[]), Some(HttpsError::Address));
    assert_eq!(made("GET", "https://user@site.example/", &[]), Some(HttpsError::Address));
    assert_eq!(made("GET", "https://site.example:0/", &[]), Some(HttpsError::Address));
    assert_eq!(made("GET", "", &[]), Some(HttpsError::Address));
    assert_eq!(made("CONNECT", "https://site.example/", &[]), Some(HttpsError::Request));
    assert_eq!(made("GET", "https://site.example/", &[("x", "a\r\nhost: b")]), Some(HttpsError::Request));
    assert_eq!(made("GET", "https://[::1]:8443/", &[]), None);
}
