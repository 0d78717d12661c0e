use core::net::SocketAddr;
use std::sync::{
    Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::{Router, body::Body, extract::State, response::IntoResponse, routing::get};
use rand::{SeedableRng, rngs::ChaCha20Rng};
use tokio::{net::TcpListener, time::timeout};

use super::*;
use crate::directory::{
    MAX_RELAYS, NotCounted,
    fixture::{FRESH, NOW, VALID, key, signed_by},
};

const PATIENCE: Duration = Duration::from_secs(20);

/// A directory that answers with whatever the test says.
#[derive(Clone, Default)]
struct Fake {
    body: Arc<Mutex<Option<Vec<u8>>>>,
    asked: Arc<AtomicUsize>,
}

impl Fake {
    fn with(body: Vec<u8>) -> Self {
        Self { body: Arc::new(Mutex::new(Some(body))), asked: Arc::default() }
    }

    async fn start(&self) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let answer = |State(fake): State<Self>| async move {
            fake.asked.fetch_add(1, Ordering::Relaxed);
            match fake.body.lock().unwrap().clone() {
                Some(body) => Body::from(body).into_response(),
                None => StatusCode::NOT_FOUND.into_response(),
            }
        };
        let router = Router::new().route("/v1/consensus", get(answer)).with_state(self.clone());
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

/// An address where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn a_consensus_that_does_not_count_is_refused_with_its_own_error() {
    let older = signed_by(&[100], NOW.before(Duration::from_secs(60)));
    let in_use = UnverifiedConsensus::decode(signed_by(&[100], NOW).as_bytes()).unwrap();
    let in_use = in_use.verify(&[key(100).id().into()], NOW, None).unwrap();
    let fetch = async |body: Vec<u8>, now: WallTime| {
        let address = Fake::with(body).start().await;
        client(&[address]).fetch(now, Some(&in_use)).await
    };
    let signed = |at| signed_by(&[100], at).into_bytes();
    assert!(matches!(fetch(signed(later(1)), NOW).await, Ok(Some(_))));
    assert!(matches!(fetch(signed(NOW), NOW).await, Ok(None)), "the one in use is no news");
    let error = async |body, now| match fetch(body, now).await {
        Err(DirectoryError::Consensus(error)) => error,
        other => panic!("{other:?}"),
    };
    assert_eq!(error(older.into_bytes(), NOW).await, ConsensusError::NotCounted(NotCounted::Older));
    assert_eq!(error(signed(later(1)), later(VALID + 1)).await, ConsensusError::NotCounted(NotCounted::Expired));
    assert_eq!(error(signed(later(9_000)), NOW).await, ConsensusError::NotCounted(NotCounted::NotYetValid));
    assert!(matches!(
        error(signed_by(&[101], later(1)).into_bytes(), NOW).await,
        ConsensusError::NotCounted(NotCounted::TooFewSignatures { signed: 0, configured: 1 })
    ));
    assert!(matches!(error(b"nonsense".to_vec(), NOW).await, ConsensusError::Malformed(_)));
    assert!(matches!(
        error([0x2a, 0].repeat(MAX_RELAYS + 1), NOW).await,
        ConsensusError::NotCounted(NotCounted::TooFewSignatures { .. })
    ));
}

#[tokio::test]
async fn an_answer_that_swells_when_decompressed_is_dropped_at_the_cap() {
    let address = Fake::with(vec![0; MAX_CONSENSUS_LEN + 1]).start().await;
    assert!(matches!(client(&[address]).fetch(NOW, None).await, Err(DirectoryError::TooLong)));
}

#[tokio::test]
async fn when_one_directory_is_down_or_lies_the_next_is_asked() {
    let good = Fake::with(signed_by(&[100], NOW).into_bytes()).start().await;
    let lying = Fake::with(signed_by(&[101], NOW).into_bytes()).start().await;
    let down = nobody().await;
    assert!(matches!(client(&[down, lying, good]).fetch(NOW, None).await, Ok(Some(_))));
    let error = client(&[lying, down]).fetch(NOW, None).await.unwrap_err();
    assert!(matches!(error, DirectoryError::Unreachable(_)));
    assert!(!error.to_string().contains("127.0.0.1"), "{error}");
}

#[tokio::test]
async fn a_directory_that_stands_still_does_not_hold_its_clients_to_an_old_consensus() {
    let frozen = Fake::with(signed_by(&[100], NOW).into_bytes()).start().await;
    let alive = Fake::with(signed_by(&[100], later(FRESH)).into_bytes()).start().await;
    let mut client = client(&[frozen, alive]);
    let in_use = client.fetch(NOW, None).await.unwrap().unwrap();
    assert!(matches!(client.fetch(later(FRESH - 1), Some(&in_use)).await, Ok(None)), "still fresh");
    let next = client.fetch(later(FRESH), Some(&in_use)).await.unwrap().unwrap();
    assert_eq!(next.valid_after(), later(FRESH));
    let mut pinned = super::DirectoryClient::new(config(&[frozen], None)).unwrap();
    assert!(matches!(pinned.fetch(later(FRESH), Some(&in_use)).await, Err(DirectoryError::NothingNewer)));
}

#[tokio::test]
async fn a_directory_that_says_not_modified_unasked_is_passed_over() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lazy = listener.local_addr().unwrap();
    let router = Router::new().route("/v1/consensus", get(async || StatusCode::NOT_MODIFIED));
    tokio::spawn(async move { axum::serve(listener, router).await });
    assert!(matches!(client(&[lazy]).fetch(NOW, None).await, Err(DirectoryError::NotAsked)));
    let good = Fake::with(signed_by(&[100], NOW).into_bytes()).start().await;
    assert!(matches!(client(&[lazy, good]).fetch(NOW, None).await, Ok(Some(_))));
}

#[tokio::test]
async fn a_client_uses_what_is_on_disk_while_the_directory_is_down_until_it_expires() {
    let folder = tempfile::tempdir().unwrap();
    let cache = folder.path().join("consensus");
    let up = Fake::with(signed_by(&[100], NOW).into_bytes()).start().await;
    let mut first = DirectoryClient::new(config(&[up], Some(cache.clone()))).unwrap();
    assert!(first.cached(NOW).is_none());
    let fetched = first.fetch(NOW, None).await.unwrap().unwrap();

    let after_restart = DirectoryClient::new(config(&[nobody().await], Some(cache.clone()))).unwrap();
    assert_eq!(after_restart.cached(later(VALID - 1)), Some(fetched.clone()));
    assert_eq!(after_restart.cached(later(VALID)), None);

    let (sender, mut receiver) = watch::channel(None);
    let rng = ChaCha20Rng::seed_from_u64(1);
    tokio::spawn(after_restart.follow(sender, || later(FRESH + 5), rng));
    timeout(PATIENCE, receiver.changed()).await.expect("the cache was not used").unwrap();
    assert_eq!(receiver.borrow().as_deref(), Some(&fetched));

    std::fs::write(&cache, b"nonsense").unwrap();
    let damaged = DirectoryClient::new(config(&[nobody().await], Some(cache))).unwrap();
    assert_eq!(damaged.cached(NOW), None);
}

#[tokio::test]
async fn a_client_that_follows_gets_the_first_consensus_soon_and_each_next_one() {
    let fake = Fake::default();
    let address = fake.start().await;
    let (sender, mut receiver) = watch::channel(None);
    let task = tokio::spawn(client(&[address]).follow(sender, || later(2 * FRESH), ChaCha20Rng::seed_from_u64(1)));
    // Only once it has been turned away may the directory have one.
    let asked = async {
        while fake.asked.load(Ordering::Relaxed) == 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, asked).await.expect("never asked");
    for at in [0, 1, 2] {
        *fake.body.lock().unwrap() = Some(signed_by(&[100], later(at)).into_bytes());
        timeout(PATIENCE, receiver.changed()).await.expect("no consensus in time").unwrap();
        assert_eq!(receiver.borrow_and_update().as_ref().unwrap().valid_after(), later(at));
    }
    drop(receiver);
    timeout(PATIENCE, task).await.expect("it goes on though nobody listens").unwrap();
}

#[test]
fn what_is_no_url_of_a_directory_is_refused_by_name() {
    for url in ["", "192.0.2.1:9360", "ftp://192.0.2.1", "directory"] {
        let directories = vec![url.to_owned()];
        let error = DirectoryClient::new(DirectoryConfig { directories, authorities: Vec::new(), cache: None }).err();
        assert!(matches!(&error, Some(DirectoryError::Url(named)) if named == url), "{url}: {error:?}");
    }
    let none = DirectoryConfig { directories: Vec::new(), authorities: Vec::new(), cache: None };
    assert!(matches!(DirectoryClient::new(none), Err(DirectoryError::Url(_))));
}
