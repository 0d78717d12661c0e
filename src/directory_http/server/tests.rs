//! Tests of the directory over HTTP.

mod clock;
mod sources;

use core::net::SocketAddr;
use std::{
    collections::HashMap,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use rand::{SeedableRng as _, rngs::ChaCha20Rng};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    task::{JoinHandle, JoinSet},
};

use super::{submissions::MAX_SUBMISSIONS, *};
use crate::{
    base::{DialError, DialTarget, RelayId, WallTime},
    directory::{
        Authority, AuthorityConfig, Consensus, ConsensusBody, Presence, ProofError, VolunteerList,
        fixture::{
            NOW, descriptor, exit_profile, key, profile, signed_by, volunteer, volunteer_profile, volunteers_signed_by,
        },
    },
    directory_http::{
        client::{DirectoryClient, DirectoryConfig, DirectoryError},
        store::{AuthorityStore, Change, StoreError, StoredRecords},
    },
};

/// Timeout of each wait.
const DEADLINE: Duration = Duration::from_secs(20);

async fn listen() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

fn client(address: SocketAddr) -> DirectoryClient {
    let authorities = vec![key(100).id().into()];
    let directories = vec![format!("http://{address}")];
    DirectoryClient::new(DirectoryConfig { directories, authorities, cache: None }).unwrap()
}

/// The answer to a raw HTTP request.
async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    // TCP sends a reset after the answer if the server closes the socket with unread bytes.
    _ = timeout(DEADLINE, socket.read_to_end(&mut answer)).await.expect("no answer in time");
    String::from_utf8_lossy(&answer).into_owned()
}

fn get_consensus(headers: &str) -> Vec<u8> {
    format!("GET /v1/consensus HTTP/1.1\r\nhost: directory\r\nconnection: close\r\n{headers}\r\n").into_bytes()
}

/// A server with a consensus.
async fn server() -> (DirectoryServer, Submissions) {
    let (server, submissions) = DirectoryServer::new();
    server.publish(signed_by(&[100], NOW)).await;
    (server, submissions)
}

/// A directory that refuses every descriptor with `error`, and every report.
async fn serve_refusals(error: DescriptorError) -> SocketAddr {
    let (server, mut submissions) = server().await;
    let (listener, address) = listen().await;
    tokio::spawn(server.serve(listener));
    tokio::spawn(async move {
        while let Some(submission) = submissions.recv().await {
            match submission {
                Submission::Descriptor(_, _, answer) => _ = answer.send(Err(error)),
                Submission::Volunteer(_, answer) => _ = answer.send(Err(error)),
                Submission::Presence(_, answer) => _ = answer.send(Err(PresenceError::NotListed)),
            }
        }
    });
    address
}

#[tokio::test]
async fn the_consensus_has_an_entity_tag_and_is_compressed_on_request() {
    let (server, _submissions) = server().await;
    let (listener, address) = listen().await;
    tokio::spawn(server.serve(listener));
    let plain = exchange(address, &get_consensus("")).await;
    assert!(plain.starts_with("HTTP/1.1 200"), "{plain}");
    let etag = plain.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap();
    let consensus = client(address).fetch::<ConsensusBody>(NOW, None).await.unwrap().unwrap();
    assert_eq!(
        etag,
        format!("W/\"{}\"", data_encoding::HEXLOWER.encode(consensus.digest())),
        "the tag a client computes"
    );
    assert!(matches!(client(address).fetch(NOW, Some(&consensus)).await, Ok(None)));
    for (headers, expected) in [
        (format!("if-none-match: {etag}\r\n"), "HTTP/1.1 304"),
        (format!("if-none-match: \"x\", {}\r\n", etag.trim_start_matches("W/")), "HTTP/1.1 304"),
        ("if-none-match: *\r\n".to_owned(), "HTTP/1.1 304"),
        ("if-none-match: \"x\"\r\n".to_owned(), "HTTP/1.1 200"),
        ("accept-encoding: zstd\r\n".to_owned(), "content-encoding: zstd"),
        ("accept-encoding: gzip\r\n".to_owned(), "content-encoding: gzip"),
    ] {
        let answer = exchange(address, &get_consensus(&headers)).await;
        assert!(answer.contains(expected), "{headers}: {answer}");
    }
}

#[tokio::test]
async fn a_document_is_compressed_once_however_often_it_is_fetched() {
    let (server, _submissions) = server().await;
    let body = async |coding: &'static str| {
        let headers = HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(coding))]);
        let answer = server.consensus.answer(&headers, "none");
        assert_eq!(answer.headers()[header::VARY], "accept-encoding");
        axum::body::to_bytes(answer.into_body(), usize::MAX).await.unwrap()
    };
    for coding in ["zstd", "gzip", "identity"] {
        let (one, other) = (body(coding).await, body(coding).await);
        assert_eq!(one.as_ptr(), other.as_ptr(), "{coding}: both answers are the same bytes in memory");
    }
    assert!(body("zstd").await.len() < body("identity").await.len());
}

#[tokio::test]
async fn a_request_before_the_first_consensus_is_answered_with_not_found() {
    let (server, _submissions) = DirectoryServer::new();
    let (listener, address) = listen().await;
    tokio::spawn(server.serve(listener));
    let answer = exchange(address, &get_consensus("")).await;
    assert!(answer.starts_with("HTTP/1.1 404") && answer.contains("no consensus yet"), "{answer}");
    assert!(matches!(client(address).fetch::<ConsensusBody>(NOW, None).await, Err(DirectoryError::NoneYet)));
}

#[tokio::test]
async fn pages_at_a_directory_do_not_change_its_own_answers() {
    let (server, _submissions) = server().await;
    let (listener, address) = listen().await;
    let pages = Router::new().route("/volunteer", get(|| async { "a page" }));
    tokio::spawn(server.with_web(pages).serve(listener));
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").into_bytes();
    let answer = exchange(address, &get("/volunteer")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("a page"), "{answer}");
    let answer = exchange(address, &get_consensus("origin: https://elsewhere.example\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("access-control-allow-origin: *"), "{answer}");
    assert!(exchange(address, &get("/other")).await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn invalid_requests_are_answered_with_an_error_status() {
    let address = serve_refusals(DescriptorError::Stale).await;
    let post = |len: usize, body: &[u8]| {
        let head =
            format!("POST /v1/descriptor HTTP/1.1\r\nhost: a\r\nconnection: close\r\ncontent-length: {len}\r\n\r\n");
        [head.as_bytes(), body].concat()
    };
    for (request, expected) in [
        (post(3, b"abc"), "HTTP/1.1 400"),
        (post(70_000, &[0; 70_000]), "HTTP/1.1 413"),
        (post(1 << 40, b"abc"), "HTTP/1.1 413"),
        (b"GET /v1/descriptor HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_vec(), "HTTP/1.1 405"),
        (b"GET /other HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n".to_vec(), "HTTP/1.1 404"),
        (b"\x16\x03\x01garbage\r\n\r\n".to_vec(), "HTTP/1.1 400"),
        ([b"GET / HTTP/1.1\r\na: ".to_vec(), vec![b'a'; 100_000]].concat(), "HTTP/1.1 431"),
    ] {
        let answer = exchange(address, &request).await;
        assert!(answer.starts_with(expected), "{expected}: {answer}");
    }
    let error = client(address).publish(b"abc").await.unwrap_err();
    assert!(error.to_string().contains("too long ago"), "the answer contains the reason: {error}");
}

#[tokio::test]
async fn descriptors_above_the_cap_are_answered_with_busy() {
    let (server, submissions) = server().await;
    let (listener, address) = listen().await;
    tokio::spawn(server.serve(listener));
    let mut senders = JoinSet::new();
    for _ in 0..MAX_SUBMISSIONS + 10 {
        senders.spawn(async move { client(address).publish(b"abc").await.unwrap_err().to_string() });
    }
    // There is no authority. Submissions above the cap are answered immediately, the others once the receiver is
    // dropped.
    for _ in 0..10 {
        let reason = timeout(DEADLINE, senders.join_next()).await.expect("the flood was not answered");
        let reason = reason.unwrap().unwrap();
        assert!(reason.contains("busy"), "{reason}");
    }
    drop(submissions);
    let reasons = senders.join_all().await;
    assert_eq!(reasons.len(), MAX_SUBMISSIONS);
    for reason in reasons {
        assert!(reason.contains("busy"), "{reason}");
    }
}

/// A prover whose dials succeed only for the targets in the map.
#[derive(Default)]
struct ReachableTargets(Mutex<HashMap<RelayId, DialTarget>>);

impl Prover for Arc<ReachableTargets> {
    async fn prove(&self, target: DialTarget) -> Result<(), ProofError> {
        match self.0.lock().unwrap().get(&target.relay) {
            Some(known) if *known == target => Ok(()),
            Some(_) => Err(ProofError::Identity),
            None => Err(ProofError::Dial(DialError::TimedOut)),
        }
    }
}

/// A store in memory.
#[derive(Clone, Default)]
struct MemoryStore(Arc<Mutex<Memory>>);

#[derive(Default)]
struct Memory {
    relays: HashMap<RelayId, Vec<u8>>,
    consensus: Option<Vec<u8>>,
    writes: usize,
    /// Whether writes wait.
    is_blocked: Arc<AtomicBool>,
}

impl AuthorityStore for MemoryStore {
    fn load(&self) -> Result<StoredRecords, StoreError> {
        let memory = self.0.lock().unwrap();
        Ok(StoredRecords { relays: memory.relays.values().cloned().collect(), consensus: memory.consensus.clone() })
    }

    fn apply(&self, changes: &[Change]) -> Result<(), StoreError> {
        let is_blocked = Arc::clone(&self.0.lock().unwrap().is_blocked);
        while is_blocked.load(Ordering::Relaxed) {
            std::thread::yield_now();
        }
        let mut memory = self.0.lock().unwrap();
        memory.writes += 1;
        for change in changes.iter().cloned() {
            match change {
                Change::Put { relay, record } => _ = memory.relays.insert(relay, record),
                Change::Delete(relay) => _ = memory.relays.remove(&relay),
                Change::Publish(consensus) => memory.consensus = Some(consensus),
            }
        }
        Ok(())
    }
}

/// A directory of an authority and a server, with a clock that the test sets.
struct TestDirectory {
    address: SocketAddr,
    clock: Arc<AtomicU64>,
    tasks: Vec<JoinHandle<()>>,
}

impl TestDirectory {
    async fn start(relays: usize, store: &MemoryStore, targets: &Arc<ReachableTargets>) -> Self {
        Self::start_at(NOW.as_unix(), relays, store, targets).await
    }

    async fn start_at(now: u64, relays: usize, store: &MemoryStore, targets: &Arc<ReachableTargets>) -> Self {
        Self::start_with(AuthorityConfig::testnet(relays), now, store, targets).await
    }

    async fn start_with(
        config: AuthorityConfig,
        now: u64,
        store: &MemoryStore,
        targets: &Arc<ReachableTargets>,
    ) -> Self {
        let (server, submissions) = DirectoryServer::new();
        let (listener, address) = listen().await;
        let clock = Arc::new(AtomicU64::new(now));
        let authority = Authority::new(key(100), config);
        let shared = Arc::clone(&clock);
        let time = move || WallTime::from_unix(shared.load(Ordering::Relaxed));
        let (store, targets, served) = (store.clone(), Arc::clone(targets), server.clone());
        let tasks = vec![
            tokio::spawn(async move { _ = served.serve(listener).await }),
            tokio::spawn(async move {
                let rng = ChaCha20Rng::seed_from_u64(1);
                run_authority(authority, (server, submissions), store, targets, time, rng).await.unwrap();
            }),
        ];
        Self { address, clock, tasks }
    }

    /// A directory with relay 1, and its first consensus.
    async fn with_relay(store: &MemoryStore, targets: &Arc<ReachableTargets>) -> (Self, Consensus) {
        let directory = Self::start(1, store, targets).await;
        targets.0.lock().unwrap().insert(key(1).id(), profile(1).dial_target());
        client(directory.address).publish(&descriptor(1, profile(1), NOW)).await.unwrap();
        let first = directory.fetch_until(|_| true).await;
        (directory, first)
    }

    /// Fetches until the consensus satisfies `condition`.
    async fn fetch_until(&self, condition: impl Fn(&Consensus) -> bool) -> Consensus {
        let fetch = async {
            loop {
                let now = WallTime::from_unix(self.clock.load(Ordering::Relaxed));
                match client(self.address).fetch(now, None).await {
                    Ok(Some(consensus)) if condition(&consensus) => return consensus,
                    Ok(_) | Err(DirectoryError::NoneYet) => tokio::task::yield_now().await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        timeout(DEADLINE, fetch).await.expect("no such consensus in time")
    }

    /// Advances the clock by a second, and fetches until the volunteer list satisfies `condition`.
    async fn volunteers_until(&self, condition: impl Fn(&VolunteerList) -> bool) -> VolunteerList {
        let now = WallTime::from_unix(self.clock.fetch_add(1, Ordering::Relaxed) + 1);
        let fetch = async {
            loop {
                match client(self.address).fetch(now, None).await {
                    Ok(Some(list)) if condition(&list) => return list,
                    // A submission makes the service read the clock.
                    Ok(_) | Err(DirectoryError::NoneYet) => _ = client(self.address).report(b"nothing").await,
                    Err(error) => panic!("{error}"),
                }
            }
        };
        timeout(DEADLINE, fetch).await.expect("no such list in time")
    }

    fn stop(self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

#[tokio::test]
async fn proved_relays_are_listed_before_and_after_a_restart() {
    let (store, targets) = (MemoryStore::default(), Arc::new(ReachableTargets::default()));
    let directory = TestDirectory::start(3, &store, &targets).await;
    for number in 1..=3 {
        let profile = if number == 3 { exit_profile(3, &["accept *"]) } else { profile(number) };
        targets.0.lock().unwrap().insert(profile.identity, profile.dial_target());
        client(directory.address).publish(&descriptor(number, profile, NOW)).await.unwrap();
    }
    let first = directory.fetch_until(|_| true).await;
    assert_eq!(first.relays().len(), 3);
    directory.stop();

    let directory = TestDirectory::start(3, &store, &targets).await;
    let restored = directory.fetch_until(|_| true).await;
    assert_eq!(restored, first, "the last consensus is served again");
    directory.clock.fetch_add(20, Ordering::Relaxed);
    // A submission makes the service read the clock.
    client(directory.address).publish(&descriptor(1, profile(1), NOW)).await.unwrap();
    let next = directory.fetch_until(|consensus| *consensus != first).await;
    assert!(next.valid_after() > first.valid_after());
    assert_eq!(next.relays().len(), 3);
    directory.stop();
}

#[tokio::test]
async fn a_reported_volunteer_is_listed_and_receives_its_gateways() {
    let (store, targets) = (MemoryStore::default(), Arc::new(ReachableTargets::default()));
    let directory = TestDirectory::start(1, &store, &targets).await;
    targets.0.lock().unwrap().insert(key(1).id(), profile(1).dial_target());
    let client = client(directory.address);
    client.publish(&descriptor(1, profile(1), NOW)).await.unwrap();
    directory.fetch_until(|_| true).await;
    let signed = volunteer(21, volunteer_profile(21), NOW);
    let registration = client.register(&signed).await.unwrap();
    assert!(registration.gateways.is_empty());
    let volunteers = vec![key(21).id()];
    let at_ms = directory.clock.load(Ordering::Relaxed) * 1000;
    let presence = Presence { gateway: key(1).id(), at_ms, volunteers }.sign(&key(1)).unwrap();
    assert_eq!(client.report(&presence).await.unwrap().volunteers, [key(21).id()]);
    let again = client.report(&presence).await.unwrap_err().to_string();
    assert!(again.contains("not newer"), "{again}");
    let updated = client.register(&signed).await.unwrap();
    assert_eq!((updated.seed, updated.gateways), (registration.seed, vec![key(1).id()]));
    let list = directory.volunteers_until(|list| !list.volunteers().is_empty()).await;
    assert_eq!(list.volunteer(&key(21).id()).unwrap().gateways, [key(1).id()]);
    directory.stop();
}

#[tokio::test]
async fn a_registration_at_the_cap_is_answered_with_503_and_the_reason() {
    let address = serve_refusals(DescriptorError::Full).await;
    let refusal = client(address).register(b"anything").await.unwrap_err();
    assert!(
        matches!(&refusal, DirectoryError::Refused { status: 503, reason } if reason.contains("is full")),
        "{refusal}"
    );
}

#[tokio::test]
async fn pages_of_any_origin_may_send_all_requests() {
    let (server, mut submissions) = server().await;
    server.publish_volunteers(volunteers_signed_by(&[100], NOW)).await;
    let (listener, address) = listen().await;
    tokio::spawn(server.serve(listener));
    tokio::spawn(async move {
        while let Some(submission) = submissions.recv().await {
            if let Submission::Volunteer(_, answer) = submission {
                _ = answer.send(Ok(Registration { seed: [7; 32], gateways: Vec::new() }));
            }
        }
    });
    let request = async |line: &str, more: &str| {
        let request = format!("{line} HTTP/1.1\r\nhost: a\r\norigin: https://example.org\r\n{more}\r\n");
        exchange(address, request.as_bytes()).await
    };
    for path in ["consensus", "volunteers"] {
        let answer = request(&format!("GET /v1/{path}"), "").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for expected in ["access-control-allow-origin: *", "access-control-expose-headers: etag", "connection: close"] {
            assert!(answer.contains(expected), "{path}: {expected}: {answer}");
        }
        let preflight = "access-control-request-method: GET\r\naccess-control-request-headers: if-none-match\r\n";
        let answer = request(&format!("OPTIONS /v1/{path}"), preflight).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("access-control-allow-headers: *"), "{answer}");
    }
    for path in ["descriptor", "volunteer", "presence"] {
        let preflight = "access-control-request-method: POST\r\naccess-control-request-headers: content-type\r\n";
        let answer = request(&format!("OPTIONS /v1/{path}"), preflight).await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        for expected in ["access-control-allow-origin: *", "access-control-allow-methods: GET,POST"] {
            assert!(answer.contains(expected), "{path}: {expected}: {answer}");
        }
    }
    let answer = request("POST /v1/volunteer", "content-length: 0\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("access-control-allow-origin: *"), "{answer}");
}

#[tokio::test]
async fn a_relay_with_the_address_of_another_is_not_listed() {
    let (store, targets) = (MemoryStore::default(), Arc::new(ReachableTargets::default()));
    let directory = TestDirectory::start(1, &store, &targets).await;
    let honest = profile(1);
    targets.0.lock().unwrap().insert(honest.identity, honest.dial_target());
    // The second relay claims the address and the certificate of the first.
    let impostor = crate::directory::Profile { identity: key(2).id(), ..honest.clone() };
    client(directory.address).publish(&descriptor(2, impostor, NOW)).await.unwrap();
    client(directory.address).publish(&descriptor(1, honest, NOW)).await.unwrap();
    let consensus = directory.fetch_until(|_| true).await;
    assert!(consensus.relay(&key(1).id()).is_some());
    assert!(consensus.relay(&key(2).id()).is_none());
    directory.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_disk_delays_no_answer_and_pending_changes_are_written_together() {
    let (store, targets) = (MemoryStore::default(), Arc::new(ReachableTargets::default()));
    // Fewer relays register than the first consensus requires. A consensus would wait for the disk.
    let directory = TestDirectory::start(20, &store, &targets).await;
    let is_blocked = Arc::clone(&store.0.lock().unwrap().is_blocked);
    is_blocked.store(true, Ordering::Relaxed);
    let publish = async {
        for number in 1..=10 {
            targets.0.lock().unwrap().insert(key(number).id(), profile(number).dial_target());
            client(directory.address).publish(&descriptor(number, profile(number), NOW)).await.unwrap();
        }
    };
    let published = timeout(DEADLINE, publish).await;
    is_blocked.store(false, Ordering::Relaxed);
    published.expect("the disk delays answers");
    let written = async {
        while store.0.lock().unwrap().relays.len() < 10 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, written).await.expect("the changes are not written");
    assert!(store.0.lock().unwrap().writes <= 5, "{}", store.0.lock().unwrap().writes);
    directory.stop();
}
