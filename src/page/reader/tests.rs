//! Tests of the reader's caps.

use std::{sync::mpsc, time::Instant};

use tokio::runtime::Builder;

use super::*;
use crate::io::{
    testing::{Direct, answering_server},
    tls::Tls,
};

/// Time limit of each wait.
const DEADLINE: Duration = Duration::from_secs(20);

/// Yields to the runtime until `condition` is true.
async fn until(description: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < DEADLINE, "not in time: {description}");
        tokio::task::yield_now().await;
    }
}

/// A site with one small page.
async fn site() -> Url {
    let site = answering_server(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 4\r\n\r\nPage").await;
    format!("http://{site}/").parse().unwrap()
}

#[test]
fn pages_for_a_disconnected_browser_count_towards_the_cap_until_their_cleaning_ends() {
    // The only blocking thread is occupied, so that the cleaning waits.
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (release, busy) = mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || busy.recv());
        let url = site().await;
        let reader = PageReader::new(Requester::new(Direct::default(), Tls::default()));
        let reading = reader.clone();
        let browser = tokio::spawn(async move { reading.read(url).await.is_ok() });
        until("the page is fetched", || reader.cleaning.available_permits() < MAX_CLEANING).await;
        browser.abort();
        assert!(browser.await.unwrap_err().is_cancelled());
        assert_eq!(reader.cleaning.available_permits(), MAX_CLEANING - 1);
        drop(release);
        let _ = busy.await.unwrap();
        until("the page is cleaned", || reader.cleaning.available_permits() == MAX_CLEANING).await;
    });
}

#[test]
fn pages_that_wait_to_be_cleaned_hold_little_memory() {
    let runtime = Builder::new_current_thread().enable_all().max_blocking_threads(1).build().unwrap();
    runtime.block_on(async {
        let (release, busy) = mpsc::channel::<()>();
        let busy = tokio::task::spawn_blocking(move || busy.recv());
        let url = site().await;
        let mut reader = PageReader::new(Requester::new(Direct::default(), Tls::default()));
        reader.place_timeout = Duration::from_millis(50);
        let read = || {
            let (reader, url) = (reader.clone(), url.clone());
            tokio::spawn(async move { reader.read(url).await.map(|_| ()) })
        };
        let waiting: Vec<_> = (0..MAX_BODIES).map(|_| read()).collect();
        until("the bodies are in memory", || reader.bodies.available_permits() == 0).await;
        for beyond in [read(), read()] {
            assert_eq!(timeout(DEADLINE, beyond).await.unwrap().unwrap(), Err(ReadError::Busy));
        }
        drop(release);
        let _ = busy.await.unwrap();
        for page in waiting {
            assert_eq!(timeout(DEADLINE, page).await.unwrap().unwrap(), Ok(()));
        }
        assert_eq!(timeout(DEADLINE, read()).await.unwrap().unwrap(), Ok(()));
        assert_eq!(reader.bodies.available_permits(), MAX_BODIES);
    });
}
