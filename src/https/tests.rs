//! Tests of exchanges with a TLS server in memory, and with invalid input.

use std::{
    io::{Read as _, Write as _},
    sync::Arc,
};

use rustls::{ServerConfig, ServerConnection, crypto::ring, pki_types::PrivatePkcs8KeyDer, version};

use super::*;

const HOST: &str = "site.example";
const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

/// A root certificate for tests.
struct Root {
    pem: String,
    der: Vec<u8>,
    issuer: rcgen::Issuer<'static, rcgen::KeyPair>,
}

impl Root {
    /// A root with the common name `name`.
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

    /// A server with a certificate issued by this root. `change` changes the certificate's parameters.
    fn site(&self, change: impl FnOnce(&mut rcgen::CertificateParams)) -> Site {
        self.site_with_versions(rustls::DEFAULT_VERSIONS, change)
    }

    /// As `site`, with these versions of TLS.
    fn site_with_versions(
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
        Site { tls: ServerConnection::new(Arc::new(config)).unwrap(), received: Vec::new() }
    }
}

/// A TLS server in memory.
struct Site {
    tls: ServerConnection,
    /// The decrypted bytes that the server received.
    received: Vec<u8>,
}

impl Site {
    /// Handles ciphertext of the client.
    fn receive(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            self.tls.read_tls(&mut bytes).unwrap();
            // A client that ends the exchange may send an alert.
            let _ = self.tls.process_new_packets();
            let _ = self.tls.reader().read_to_end(&mut self.received);
        }
    }

    /// The pending ciphertext.
    fn pending(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        while self.tls.wants_write() {
            self.tls.write_tls(&mut bytes).unwrap();
        }
        bytes
    }

    /// The ciphertext of `plain`.
    fn seal(&mut self, plain: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        for piece in plain.chunks(16 << 10) {
            self.tls.writer().write_all(piece).unwrap();
            bytes.extend(self.pending());
        }
        bytes
    }

    /// The ciphertext of a close_notify alert.
    fn close_notify(&mut self) -> Vec<u8> {
        self.tls.send_close_notify();
        self.pending()
    }
}

type Head = (u16, Vec<(String, Vec<u8>)>);

/// The result of an exchange.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    head: Option<Head>,
    body: Vec<u8>,
    complete: bool,
    failure: Option<HttpsError>,
}

impl Outcome {
    /// Adds all events.
    fn drain(&mut self, exchange: &mut Exchange) {
        loop {
            match exchange.poll_event() {
                Ok(Some(ExchangeEvent::Head { status, fields })) => {
                    assert!(self.head.replace((status, fields)).is_none())
                }
                Ok(Some(ExchangeEvent::Body(piece))) => self.body.extend(piece),
                Ok(Some(ExchangeEvent::End)) => self.complete = true,
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
fn run(exchange: &mut Exchange, site: &mut Site) -> Outcome {
    let mut outcome = Outcome::default();
    loop {
        outcome.drain(exchange);
        let mut progress = false;
        while let Some(bytes) = exchange.poll_transmit() {
            site.receive(&bytes);
            progress = true;
        }
        let bytes = site.pending();
        if !bytes.is_empty() {
            exchange.handle_received(&bytes);
            progress = true;
        }
        if !progress {
            return outcome;
        }
    }
}

/// The outcome of a GET with the response `plain`, followed by a close_notify alert if `close_notify` is set.
fn outcome_of(plain: &[u8], close_notify: bool) -> Outcome {
    let root = Root::new("trusted root");
    let (mut exchange, mut site) = (exchange(&root.trust(), "GET", b""), root.site(|_| {}));
    let mut outcome = run(&mut exchange, &mut site);
    let mut bytes = site.seal(plain);
    if close_notify {
        bytes.extend(site.close_notify());
    }
    for piece in bytes.chunks(4096) {
        exchange.handle_received(piece);
        outcome.drain(&mut exchange);
    }
    exchange.handle_end();
    outcome.drain(&mut exchange);
    outcome
}

#[test]
fn a_request_has_no_identifying_fields_and_its_response_is_complete() {
    for versions in [[&version::TLS13], [&version::TLS12]] {
        let root = Root::new("trusted root");
        let (mut exchange, mut site) =
            (exchange(&root.trust(), "POST", b"request body"), root.site_with_versions(&versions, |_| {}));
        assert_eq!((exchange.host(), exchange.port()), (HOST, 443));
        assert_eq!(run(&mut exchange, &mut site), Outcome::default());
        assert_eq!(
            String::from_utf8_lossy(&site.received),
            "POST /path?query HTTP/1.1\r\nhost: site.example\r\nuser-agent: Mozilla/5.0 (compatible; Umbel)\r\n\
             accept-encoding: identity\r\naccept: */*\r\naccept-language: en\r\ncontent-length: 12\r\n\r\nrequest body"
        );
        let bytes = site.seal(
            b"HTTP/1.1 201 Created\r\nset-cookie: id=1\r\nconnection: x-mine\r\nx-mine: 1\r\netag: \"1\"\r\n\
              transfer-encoding: chunked\r\n\r\n3\r\nhel\r\n2\r\nlo\r\n0\r\n\r\n",
        );
        exchange.handle_received(&bytes);
        let outcome = run(&mut exchange, &mut site);
        assert_eq!(outcome.head, Some((201, vec![("etag".to_owned(), b"\"1\"".to_vec())])));
        assert_eq!((outcome.body.as_slice(), outcome.complete, outcome.failure), (&b"hello"[..], true, None));
    }
}

#[test]
fn bodies_of_megabytes_pass_both_ways_in_pieces() {
    let root = Root::new("trusted root");
    let body: Vec<u8> = (0..3_000_000_u32).map(|number| (number % 251) as u8).collect();
    let (mut exchange, mut site) = (exchange(&root.trust(), "PUT", &body), root.site(|_| {}));
    // The buffer, one write of hyper and the overhead of TLS bound the pending ciphertext.
    while let Some(bytes) = exchange.poll_transmit() {
        assert!(bytes.len() < 1 << 20, "{} bytes in one output", bytes.len());
        site.receive(&bytes);
        exchange.handle_received(&site.pending());
    }
    assert!(site.received.ends_with(&body));
    let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n", body.len());
    let mut bytes = site.seal(head.as_bytes());
    bytes.extend(site.seal(&body));
    let mut outcome = Outcome::default();
    for piece in bytes.chunks(60_000) {
        exchange.handle_received(piece);
        outcome.drain(&mut exchange);
    }
    assert!(outcome.complete && outcome.body == body);
}

#[test]
fn a_site_with_an_invalid_certificate_gets_no_part_of_the_request() {
    let (root, other, namesake) = (Root::new("trusted root"), Root::new("other root"), Root::new("trusted root"));
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
        let outcome = run(&mut exchange, &mut site);
        assert_eq!(outcome.failure, Some(expected));
        assert_eq!(expected.kind(), "certificate");
        assert!(site.received.is_empty(), "{expected:?}");
    }
}

#[test]
fn only_mozillas_roots_are_trusted_without_an_anchor() {
    let mut exchange = exchange(&Trust::new([]).unwrap(), "GET", b"");
    let outcome = run(&mut exchange, &mut Root::new("trusted root").site(|_| {}));
    assert_eq!(outcome.failure, Some(HttpsError::UnknownIssuer));
}

#[test]
fn anchors_are_accepted_in_pem_and_der_only() {
    let root = Root::new("trusted root");
    let both = format!("of two\n{}{}", Root::new("other root").pem, root.pem);
    for anchor in [root.pem.as_bytes(), &root.der, both.as_bytes()] {
        let mut exchange = exchange(&Trust::new([anchor]).unwrap(), "GET", b"");
        let mut site = root.site(|_| {});
        assert_eq!(run(&mut exchange, &mut site).failure, None);
        assert!(site.received.starts_with(b"GET "));
    }
    for invalid in
        [&b""[..], b"hello", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", b"-----BEGIN "]
    {
        assert_eq!(Trust::new([invalid]).unwrap_err(), HttpsError::Anchor);
    }
}

#[test]
fn a_truncated_body_is_an_error_with_and_without_a_length() {
    let cases: [(&[u8], bool, bool); 8] = [
        (OK, true, true),
        // The length shows that the body is complete.
        (OK, false, true),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nhello", true, false),
        (b"HTTP/1.1 200 OK\r\n\r\nhello", true, true),
        // Without a close_notify alert, an attacker may have truncated the body.
        (b"HTTP/1.1 200 OK\r\n\r\nhello", false, false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n", true, false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n\r\n", true, false),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello0\r\n\r\n", true, false),
    ];
    for (plain, close_notify, complete) in cases {
        let outcome = outcome_of(plain, close_notify);
        let text = String::from_utf8_lossy(plain);
        assert_eq!((outcome.body.as_slice(), outcome.complete), (&b"hello"[..], complete), "{text}");
        assert_eq!(outcome.failure, (!complete).then_some(HttpsError::Broken), "{text}");
    }
}

#[test]
fn a_response_that_is_not_http_is_rejected() {
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
        let outcome = outcome_of(plain, true);
        assert_eq!((outcome.head, outcome.failure), (None, Some(HttpsError::NotHttp)));
    }
    for plain in [&b""[..], b"HTTP/1.1 200 O", b"HTTP/1.1 100 Continue\r\n\r\n"] {
        let outcome = outcome_of(plain, true);
        assert_eq!((outcome.head, outcome.failure), (None, Some(HttpsError::Broken)));
    }
}

#[test]
fn the_bytes_before_a_head_are_capped() {
    let hint = b"HTTP/1.1 103 Early Hints\r\nlink: </style.css>\r\n\r\n";
    let hinted = outcome_of(&[&hint.repeat(20), OK].concat(), true);
    assert_eq!((hinted.body.as_slice(), hinted.complete), (&b"hello"[..], true));
    let endless = outcome_of(&[&hint.repeat(10_000), OK].concat(), true);
    assert_eq!((endless.head, endless.failure), (None, Some(HttpsError::NotHttp)));
}

#[test]
fn a_peer_without_tls_gets_no_part_of_the_request() {
    let root = Root::new("trusted root");
    for (bytes, expected) in [
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
        exchange.handle_received(bytes);
        exchange.handle_end();
        let mut outcome = Outcome::default();
        outcome.drain(&mut exchange);
        assert_eq!(outcome, Outcome { failure: Some(expected), ..Outcome::default() });
        // The only output is an unencrypted alert.
        assert!(exchange.poll_transmit().is_none_or(|bytes| bytes.len() == 7 && bytes[0] == 21));
        exchange.handle_received(bytes);
        outcome.drain(&mut exchange);
        assert_eq!(outcome.failure, Some(expected));
    }
}

#[test]
fn a_modified_byte_never_modifies_the_response() {
    let root = Root::new("trusted root");
    // Each round changes one byte of the server's output: the first, then the eighth, and so on.
    let mut at = 0;
    loop {
        let (mut exchange, mut site) = (exchange(&root.trust(), "GET", b""), root.site(|_| {}));
        let (mut outcome, mut passed, mut answered) = (Outcome::default(), 0, false);
        while outcome.failure.is_none() && !outcome.complete {
            while let Some(bytes) = exchange.poll_transmit() {
                site.receive(&bytes);
            }
            let mut bytes = site.pending();
            if !answered && !site.received.is_empty() {
                answered = true;
                bytes.extend(site.seal(OK));
                bytes.extend(site.close_notify());
            }
            if bytes.is_empty() {
                exchange.handle_end();
            }
            if let Some(byte) = usize::checked_sub(at, passed).and_then(|at| bytes.get_mut(at)) {
                *byte ^= 1;
            }
            passed += bytes.len();
            exchange.handle_received(&bytes);
            outcome.drain(&mut exchange);
        }
        if at >= passed {
            assert!(outcome.complete, "the unmodified response is complete");
            return;
        }
        assert!(outcome.body.is_empty() || outcome.body == b"hello");
        at += 7;
    }
}

#[test]
fn unread_responses_are_buffered_up_to_a_cap() {
    let root = Root::new("trusted root");
    let (mut exchange, mut site) = (exchange(&root.trust(), "GET", b""), root.site(|_| {}));
    run(&mut exchange, &mut site);
    let head = site.seal(b"HTTP/1.1 200 OK\r\n\r\n");
    exchange.handle_received(&head);
    // The caller does not poll events.
    for _ in 0..200 {
        exchange.handle_received(&site.seal(&[0; 16 << 10]));
    }
    let mut outcome = Outcome::default();
    outcome.drain(&mut exchange);
    assert!(outcome.failure.is_some() && outcome.body.len() <= 2 << 20, "{} bytes", outcome.body.len());
}

#[test]
fn an_invalid_request_is_rejected_before_any_output() {
    let trust = Trust::new([]).unwrap();
    let error_of = |method: &str, url: &str, fields: &[(&str, &str)]| {
        let fields: Vec<_> = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        Exchange::new(&trust, method, url, fields, Vec::new()).err()
    };
    assert_eq!(error_of("GET", "http://site.example/", &[]), Some(HttpsError::Address));
    assert_eq!(error_of("GET", "https://user@site.example/", &[]), Some(HttpsError::Address));
    assert_eq!(error_of("GET", "https://site.example:0/", &[]), Some(HttpsError::Address));
    assert_eq!(error_of("GET", "", &[]), Some(HttpsError::Address));
    assert_eq!(error_of("CONNECT", "https://site.example/", &[]), Some(HttpsError::Request));
    assert_eq!(error_of("GET", "https://site.example/", &[("x", "a\r\nhost: b")]), Some(HttpsError::Request));
    assert_eq!(error_of("GET", "https://[::1]:8443/", &[]), None);
}
