use core::net::SocketAddr;
use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::{
    Router,
    body::Body,
    extract::State,
    response::IntoResponse,
    routing::{get, post},
};
use rand::{SeedableRng, rngs::ChaCha20Rng};
use tokio::{net::TcpListener, time::timeout};

use super::*;
use crate::directory::{
    ConsensusBody, MAX_CONSENSUS_LEN, MAX_RELAYS, MAX_VOLUNTEER_LIST_LEN, NotCounted, UnverifiedConsensus,
    VolunteerList, VolunteerListBody,
    fixture::{FRESH, LIST_FRESH, LIST_VALID, NOW, VALID, key, signed_by, volunteers_signed_by},
};

const DEADLINE: Duration = Duration::from_secs(20);

/// A directory that answers every request with one body; with 404 if it has no body.
#[derive(Clone, Default)]
struct FakeDirectory {
    body: Arc<Mutex<Option<Vec<u8>>>>,
    /// The number of requests.
    requests: Arc<AtomicUsize>,
}

impl FakeDirectory {
    fn with(body: Vec<u8>) -> Self {
        Self { body: Arc::new(Mutex::new(Some(body))), requests: Arc::default() }
    }

    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |State(fake): State<Self>| async move {
            fake.requests.fetch_add(1, Ordering::Relaxed);
            match fake.body.lock().unwrap().clone() {
                Some(body) => Body::from(body).into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let router = Router::new().route("/v1/consensus", get(answer)).route("/v1/volunteers", get(answer));
        let router = router.route("/v1/volunteer", post(answer)).with_state(self.clone());
        let router = router.layer(tower_http::compression::CompressionLayer::new());
        tokio::spawn(async move { axum::serve(listener, router).await });
        address
    }
}

fn config(directories: &[SocketAddr], cache: Option<PathBuf>) -> DirectoryConfig {
    let directories = directories.iter().map(|address| format!("http://{address}/")).collect();
    DirectoryConfig { directories, authorities: vec![key(100).id().into()], cache }
}

fn client(directories: &[SocketAddr]) -> DirectoryClient {
    DirectoryClient::new(config(directories, None)).unwrap()
}

fn later(seconds: u64) -> WallTime {
    NOW.after(Duration::from_secs(seconds))
}

/// An address without a listener.
async fn unused_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn an_invalid_consensus_is_refused_with_the_reason() {
    let older = signed_by(&[100], NOW.before(Duration::from_secs(60)));
    let in_use = UnverifiedConsensus::decode(signed_by(&[100], NOW).as_bytes()).unwrap();
    let in_use = in_use.verify(&[key(100).id().into()], NOW, None).unwrap();
    let fetch = async |body: Vec<u8>, now: WallTime| {
        let address = FakeDirectory::with(body).start().await;
        client(&[address]).fetch(now, Some(&in_use)).await
    };
    let signed = |at| signed_by(&[100], at).into_bytes();
    assert!(matches!(fetch(signed(later(1)), NOW).await, Ok(Some(_))));
    assert!(matches!(fetch(signed(NOW), NOW).await, Ok(None)), "the consensus in use is not reported again");
    let error = async |body, now| match fetch(body, now).await {
        Err(DirectoryError::Document { name: "consensus", error }) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(error(older.into_bytes(), NOW).await, DocumentError::NotCounted(NotCounted::Older));
    assert_eq!(error(signed(later(1)), later(VALID + 1)).await, DocumentError::NotCounted(NotCounted::Expired));
    assert_eq!(error(signed(later(9_000)), NOW).await, DocumentError::NotCounted(NotCounted::NotYetValid));
    assert!(matches!(
        error(signed_by(&[101], later(1)).into_bytes(), NOW).await,
        DocumentError::NotCounted(NotCounted::TooFewSignatures { signed: 0, configured: 1 })
    ));
    assert!(matches!(error(b"nonsense".to_vec(), NOW).await, DocumentError::Malformed(_)));
    assert!(matches!(
        error([0x2a, 0].repeat(MAX_RELAYS + 1), NOW).await,
        DocumentError::NotCounted(NotCounted::TooFewSignatures { .. })
    ));
}

#[tokio::test]
async fn an_answer_is_refused_above_the_cap_on_decompressed_bytes() {
    let address = FakeDirectory::with(vec![0; MAX_CONSENSUS_LEN + 1]).start().await;
    assert!(matches!(client(&[address]).fetch::<ConsensusBody>(NOW, None).await, Err(DirectoryError::TooLong)));
}

#[tokio::test]
async fn after_a_failed_or_invalid_answer_the_next_directory_is_queried() {
    let good = FakeDirectory::with(signed_by(&[100], NOW).into_bytes()).start().await;
    let forged = FakeDirectory::with(signed_by(&[101], NOW).into_bytes()).start().await;
    let down = unused_address().await;
    assert!(matches!(client(&[down, forged, good]).fetch::<ConsensusBody>(NOW, None).await, Ok(Some(_))));
    let error = client(&[forged, down]).fetch::<ConsensusBody>(NOW, None).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Unreachable(_)));
    assert!(!error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn an_outdated_directory_is_skipped_once_the_consensus_is_no_longer_fresh() {
    let outdated = FakeDirectory::with(signed_by(&[100], NOW).into_bytes()).start().await;
    let current = FakeDirectory::with(signed_by(&[100], later(FRESH)).into_bytes()).start().await;
    let mut client = client(&[outdated, current]);
    let in_use = client.fetch::<ConsensusBody>(NOW, None).await.unwrap().unwrap();
    assert!(matches!(client.fetch(later(FRESH - 1), Some(&in_use)).await, Ok(None)), "still fresh");
    let next = client.fetch(later(FRESH), Some(&in_use)).await.unwrap().unwrap();
    assert_eq!(next.valid_after(), later(FRESH));
    let mut single = super::DirectoryClient::new(config(&[outdated], None)).unwrap();
    assert!(matches!(single.fetch(later(FRESH), Some(&in_use)).await, Err(DirectoryError::NothingNewer)));
}

#[tokio::test]
async fn a_not_modified_answer_to_an_unconditional_request_is_a_failure() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let faulty = listener.local_addr().unwrap();
    let router = Router::new().route("/v1/consensus", get(async || StatusCode::NOT_MODIFIED));
    tokio::spawn(async move { axum::serve(listener, router).await });
    assert!(matches!(
        client(&[faulty]).fetch::<ConsensusBody>(NOW, None).await,
        Err(DirectoryError::UnexpectedNotModified)
    ));
    let good = FakeDirectory::with(signed_by(&[100], NOW).into_bytes()).start().await;
    assert!(matches!(client(&[faulty, good]).fetch::<ConsensusBody>(NOW, None).await, Ok(Some(_))));
}

/// Serves `signed` with another tag in each answer, and records the received tags.
async fn serve_with_tags(signed: Vec<u8>, received: Arc<Mutex<Vec<String>>>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let answer = move |headers: header::HeaderMap| {
        let (signed, received) = (signed.clone(), Arc::clone(&received));
        async move { tagged(&headers, signed, &received) }
    };
    let router = Router::new().route("/v1/consensus", get(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    address
}

/// The answer `signed` with a tag that no other answer has.
fn tagged(headers: &header::HeaderMap, signed: Vec<u8>, received: &Mutex<Vec<String>>) -> axum::response::Response {
    let mut received = received.lock().unwrap();
    received.extend(headers.get_all(header::IF_NONE_MATCH).iter().map(|tag| tag.to_str().unwrap().to_owned()));
    ([(header::ETAG, format!("\"visitor-{}\"", received.len()))], signed).into_response()
}

#[tokio::test]
async fn a_client_returns_no_entity_tag_that_a_directory_chose() {
    let received = Arc::new(Mutex::new(Vec::new()));
    let mut client = client(&[serve_with_tags(signed_by(&[100], NOW).into_bytes(), Arc::clone(&received)).await]);
    let first = client.fetch::<ConsensusBody>(NOW, None).await.unwrap().unwrap();
    assert!(received.lock().unwrap().is_empty(), "the first fetch has no tag");
    for _ in 0..3 {
        assert!(matches!(client.fetch(NOW, Some(&first)).await, Ok(None)));
    }
    let digest = format!("W/\"{}\"", data_encoding::HEXLOWER.encode(first.digest()));
    assert_eq!(*received.lock().unwrap(), vec![digest; 3], "the tag depends only on the document");
}

#[tokio::test]
async fn a_cached_consensus_is_used_without_a_directory_until_it_expires() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("consensus");
    let up = FakeDirectory::with(signed_by(&[100], NOW).into_bytes()).start().await;
    let mut first = DirectoryClient::new(config(&[up], Some(cache.clone()))).unwrap();
    assert!(first.cached::<ConsensusBody>(NOW).is_none());
    let fetched = first.fetch::<ConsensusBody>(NOW, None).await.unwrap().unwrap();

    let after_restart = DirectoryClient::new(config(&[unused_address().await], Some(cache.clone()))).unwrap();
    assert_eq!(after_restart.cached(later(VALID - 1)), Some(fetched.clone()));
    assert_eq!(after_restart.cached::<ConsensusBody>(later(VALID)), None);

    let (sender, mut receiver) = watch::channel(None);
    let rng = ChaCha20Rng::seed_from_u64(1);
    tokio::spawn(after_restart.follow::<ConsensusBody, _>(sender, || later(FRESH + 5), rng));
    timeout(DEADLINE, receiver.changed()).await.expect("the cache was not used").unwrap();
    assert_eq!(receiver.borrow().as_deref(), Some(&fetched));

    std::fs::write(&cache, b"nonsense").unwrap();
    let damaged = DirectoryClient::new(config(&[unused_address().await], Some(cache))).unwrap();
    assert_eq!(damaged.cached::<ConsensusBody>(NOW), None);
}

#[tokio::test]
async fn follow_sends_the_first_consensus_and_each_later_one() {
    let fake = FakeDirectory::default();
    let address = fake.start().await;
    let (sender, mut receiver) = watch::channel(None);
    let task = tokio::spawn(client(&[address]).follow::<ConsensusBody, _>(
        sender,
        || later(2 * FRESH),
        ChaCha20Rng::seed_from_u64(1),
    ));
    // The directory has no consensus before the first request.
    let first_request = async {
        while fake.requests.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, first_request).await.expect("no request in time");
    for at in [0, 1, 2] {
        *fake.body.lock().unwrap() = Some(signed_by(&[100], later(at)).into_bytes());
        timeout(DEADLINE, receiver.changed()).await.expect("no consensus in time").unwrap();
        assert_eq!(receiver.borrow_and_update().as_ref().unwrap().valid_after(), later(at));
    }
    drop(receiver);
    timeout(DEADLINE, task).await.expect("following ends without a receiver").unwrap();
}

#[tokio::test]
async fn a_volunteer_list_is_fetched_by_the_rules_of_a_consensus() {
    let signed = |by: u16, at| volunteers_signed_by(&[by], at).into_bytes();
    let fetch = async |body: Vec<u8>, now, in_use: Option<&VolunteerList>| {
        let address = FakeDirectory::with(body).start().await;
        client(&[address]).fetch(now, in_use).await
    };
    let first = fetch(signed(100, NOW), NOW, None).await.unwrap().unwrap();
    assert_eq!(first.volunteers().len(), 2);
    assert!(matches!(fetch(signed(100, later(1)), NOW, Some(&first)).await, Ok(Some(_))));
    assert!(matches!(fetch(signed(100, NOW), NOW, Some(&first)).await, Ok(None)));
    let stale = fetch(signed(100, NOW), later(LIST_FRESH), Some(&first)).await;
    assert!(matches!(stale, Err(DirectoryError::NothingNewer)));
    let reason = async |body, now| match fetch(body, now, Some(&first)).await {
        Err(DirectoryError::Document { name: "volunteer list", error: DocumentError::NotCounted(reason) }) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason(signed(100, NOW.before(Duration::from_secs(1))), NOW).await, NotCounted::Older);
    assert_eq!(reason(signed(100, later(1)), later(1 + LIST_VALID)).await, NotCounted::Expired);
    let too_few = NotCounted::TooFewSignatures { signed: 0, configured: 1 };
    assert_eq!(reason(signed(101, later(1)), NOW).await, too_few);
    assert_eq!(reason(signed_by(&[100], NOW).into_bytes(), NOW).await, too_few, "a consensus is not a volunteer list");
    let too_long = fetch(vec![0; MAX_VOLUNTEER_LIST_LEN + 1], NOW, None).await;
    assert!(matches!(too_long, Err(DirectoryError::TooLong)));
}

#[tokio::test]
async fn a_followed_volunteer_list_is_not_written_to_the_cache_file() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("consensus");
    let fake = FakeDirectory::with(volunteers_signed_by(&[100], NOW).into_bytes());
    let follower = DirectoryClient::new(config(&[fake.start().await], Some(cache.clone()))).unwrap();
    let (sender, mut receiver) = watch::channel(None);
    let task =
        tokio::spawn(follower.follow::<VolunteerListBody, _>(sender, || later(2), ChaCha20Rng::seed_from_u64(1)));
    timeout(DEADLINE, receiver.changed()).await.expect("no list in time").unwrap();
    assert_eq!(receiver.borrow_and_update().as_ref().unwrap().valid_after(), NOW);
    assert!(!cache.exists());
    drop(receiver);
    timeout(DEADLINE, task).await.expect("following ends without a receiver").unwrap();
}

#[tokio::test]
async fn an_invalid_answer_to_a_registration_is_refused() {
    let register =
        async |body: Vec<u8>| client(&[FakeDirectory::with(body).start().await]).register(b"a volunteer").await;
    let good = Registration { seed: [7; 32], gateways: vec![key(1).id()] };
    assert_eq!(register(good.encode()).await.unwrap(), good);
    assert!(matches!(register(b"nonsense".to_vec()).await, Err(DirectoryError::Registration(_))));
    assert!(matches!(register(vec![0; 1 << 20]).await, Err(DirectoryError::TooLong)));
    let second = FakeDirectory::with(good.encode()).start().await;
    assert_eq!(client(&[unused_address().await, second]).register(b"a volunteer").await.unwrap(), good);
}

#[test]
fn an_invalid_directory_url_is_refused_with_the_url() {
    for url in ["", "192.0.2.1:9360", "ftp://192.0.2.1", "directory"] {
        let directories = vec![url.to_owned()];
        let error = DirectoryClient::new(DirectoryConfig { directories, authorities: Vec::new(), cache: None }).err();
        assert!(matches!(&error, Some(DirectoryError::Url(named)) if named == url), "{url}: {error:?}");
    }
    let none = DirectoryConfig { directories: Vec::new(), authorities: Vec::new(), cache: None };
    assert!(matches!(DirectoryClient::new(none), Err(DirectoryError::Url(_))));
}
