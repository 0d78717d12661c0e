//! Tests of jumps of the clock.

use super::*;

impl MemoryStore {
    /// The dates from which on the stored relays are known.
    fn known_since(&self) -> Vec<u64> {
        let memory = self.0.lock().unwrap();
        let record =
            |bytes: &Vec<u8>| <crate::directory::schema::RelayRecord as prost::Message>::decode(bytes.as_slice());
        memory.relays.values().map(|bytes| record(bytes).unwrap().known_since).collect()
    }
}

const TEN_YEARS: u64 = 10 * 365 * 24 * 60 * 60;

#[tokio::test]
async fn a_jump_of_the_clock_signs_and_drops_nothing() {
    let (store, targets) = (MemoryStore::default(), Arc::new(ReachableTargets::default()));
    let (directory, first) = TestDirectory::with_relay(&store, &targets).await;
    for jumped in [NOW.as_unix() + TEN_YEARS, NOW.as_unix() - TEN_YEARS] {
        directory.clock.store(jumped, Ordering::Relaxed);
        // Submissions make the service read the clock. A descriptor with the right date is accepted despite the jump.
        client(directory.address).publish(&descriptor(2, profile(2), NOW)).await.unwrap();
        assert!(client(directory.address).report(b"nothing").await.is_err());
        directory.clock.store(NOW.as_unix(), Ordering::Relaxed);
        let current = directory.fetch_until(|_| true).await;
        assert_eq!(current, first, "nothing was signed");
        assert_eq!(store.known_since(), [NOW.as_unix()], "nothing was dropped");
    }
    directory.stop();
}

#[tokio::test]
async fn ages_survive_a_jump_of_ten_years_and_a_restart() {
    let (store, targets) = (MemoryStore::default(), Arc::new(ReachableTargets::default()));
    let (directory, first) = TestDirectory::with_relay(&store, &targets).await;
    directory.stop();
    for jumped in [NOW.as_unix() + TEN_YEARS, NOW.as_unix() - TEN_YEARS] {
        let directory = TestDirectory::start_at(jumped, 1, &store, &targets).await;
        let sent = descriptor(1, exit_profile(1, &["accept 80"]), NOW.after(Duration::from_secs(1)));
        assert!(
            client(directory.address).publish(&sent).await.is_err(),
            "by this clock, the descriptor is stale or from the future"
        );
        directory.stop();
        assert_eq!(store.known_since(), [NOW.as_unix()]);
    }
    // The clock is wrong at the start, and corrected later.
    let directory = TestDirectory::start_at(NOW.as_unix() - TEN_YEARS, 1, &store, &targets).await;
    assert!(matches!(client(directory.address).fetch::<ConsensusBody>(NOW, None).await, Err(DirectoryError::NoneYet)));
    directory.clock.store(NOW.as_unix(), Ordering::Relaxed);
    assert_eq!(directory.fetch_until(|_| true).await, first);
    assert_eq!(store.known_since(), [NOW.as_unix()]);
    directory.stop();
}

#[tokio::test]
async fn a_directory_whose_clock_is_ahead_waits_until_the_operator_states_that_it_is_right() {
    let (store, targets) = (MemoryStore::default(), Arc::new(ReachableTargets::default()));
    let (directory, first) = TestDirectory::with_relay(&store, &targets).await;
    directory.stop();
    let now = NOW.after(Duration::from_secs(2 * 24 * 60 * 60));
    let sent = descriptor(1, profile(1), now);
    let directory = TestDirectory::start_at(now.as_unix(), 1, &store, &targets).await;
    let refusal = client(directory.address).publish(&sent).await.unwrap_err();
    assert!(matches!(refusal, DirectoryError::Refused { status: 503, .. }), "{refusal}");
    assert!(matches!(client(directory.address).fetch::<ConsensusBody>(now, None).await, Err(DirectoryError::NoneYet)));
    directory.stop();
    let interval = Duration::from_secs(1);
    let config = AuthorityConfig { clock_is_right: true, interval, ..AuthorityConfig::testnet(1) };
    let directory = TestDirectory::start_with(config, now.as_unix(), &store, &targets).await;
    let mut current = None;
    for _ in 0..50 {
        // The submission makes the service read the clock.
        client(directory.address).publish(&sent).await.unwrap();
        current = client(directory.address).fetch::<ConsensusBody>(now, None).await.ok().flatten();
        if current.is_some() {
            break;
        }
        directory.clock.fetch_add(1, Ordering::Relaxed);
    }
    assert!(current.expect("no consensus").valid_after() > first.valid_after());
    assert_eq!(store.known_since(), [NOW.as_unix()], "the relay keeps its age");
    directory.stop();
}
