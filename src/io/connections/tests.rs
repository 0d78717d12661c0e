use super::*;

fn caps(all: usize, of_network: usize) -> ConnectionCaps {
    ConnectionCaps { all, of_network, network: network_of, slow_reader_timeout: Duration::from_secs(5) }
}

fn peer(address: &str) -> Option<IpAddr> {
    Some(address.parse().unwrap())
}

/// Whether the connection of this place was evicted.
fn is_evicted(place: &mut HttpConnectionPlace) -> bool {
    place.evicted.try_recv() == Err(oneshot::error::TryRecvError::Closed)
}

#[test]
fn each_network_gets_its_share_of_the_connections() {
    let (connections, now) = (Connections::new(caps(100, 3)), Instant::now());
    let admit = |address: &str| connections.admit(now, peer(address));
    let mut places: Vec<_> = (1..=3).map(|host| admit(&format!("20.0.0.{host}")).unwrap()).collect();
    assert!(
        admit("20.0.0.4").is_none() && admit("::ffff:20.0.0.4").is_none(),
        "no connection is old enough to be slow"
    );
    let others = ["20.0.1.1", "2606:4700::1", "2606:4700::2", "2606:4700::3"].map(|address| admit(address).unwrap());
    assert!(admit("2606:4700:0:1::4").is_none() && admit("2606:4700:1::1").is_some());
    drop(places.pop());
    places.push(admit("20.0.0.5").expect("a closed connection frees its place"));
    drop((places, others));
    assert!(connections.table().open.is_empty() && connections.table().by_network.is_empty());
}

#[test]
fn peers_of_one_machine_or_site_share_all_connections() {
    let (connections, now) = (Connections::new(caps(40, 1)), Instant::now());
    let places: Vec<_> = (0..40)
        .map(|host| connections.admit(now, peer(["127.0.0.1", "10.0.0.1", "::1", "fd00::1"][host % 4])).unwrap())
        .collect();
    assert!(connections.admit(now, peer("20.0.0.1")).is_none());
    drop(places);
}

#[test]
fn connections_of_a_proxy_count_for_the_networks_of_its_clients() {
    let (connections, now) = (Connections::new(caps(100, 3)), Instant::now());
    let places: Vec<_> = (0..8).map(|_| connections.admit(now, None).unwrap()).collect();
    let take = |place: &HttpConnectionPlace, client: &str| place.share().take(now, peer(client).unwrap());
    let admitted = places.iter().take(5).filter(|place| take(place, "20.0.0.1")).count();
    assert_eq!(admitted, 3, "no connection is old enough to be slow");
    assert!(connections.admit(now, peer("20.0.0.2")).is_none(), "the network has no further place");
    assert!(take(&places[0], "20.0.0.2"), "a further request of the same network");
    assert!(take(&places[0], "20.0.1.1") && take(&places[5], "20.0.0.1"), "a request of another client");
    assert!(take(&places[6], "127.0.0.1") && take(&places[7], "127.0.0.1"));
    drop(places);
    assert!(connections.table().open.is_empty() && connections.table().by_network.is_empty());
}

#[test]
fn at_a_cap_the_slowest_peer_is_evicted_and_no_fast_one() {
    for (connections, network) in [(caps(4, 100), "20.0.1.1"), (caps(100, 4), "20.0.0.1")] {
        let (connections, now) = (Connections::new(connections), Instant::now());
        let mut places: Vec<_> = (0..4).map(|_| connections.admit(now, peer("20.0.0.1")).unwrap()).collect();
        let now = now + Duration::from_secs(10);
        let fast = usize::try_from(MIN_BYTES_PER_SECOND).unwrap() * 10;
        for (place, bytes) in places.iter().zip([fast, 900, 800, 1_000]) {
            place.meter.add(bytes);
        }
        let mut newest = connections.admit(now, peer(network)).unwrap();
        assert_eq!(places.iter_mut().map(is_evicted).collect::<Vec<_>>(), [false, false, true, false]);
        for place in &places {
            place.meter.add(fast);
        }
        assert!(connections.admit(now, peer(network)).is_none(), "all connections are fast enough, or too new");
        let now = now + MIN_RATED_AGE;
        let _next = connections.admit(now, peer(network)).unwrap();
        assert!(is_evicted(&mut newest));
    }
}

#[tokio::test]
async fn the_connection_of_a_slow_reader_ends_and_that_of_a_waiting_peer_stays() {
    assert!(
        ConnectionCaps::default().slow_reader_timeout <= Duration::from_secs(5),
        "a slow reader costs a socket for seconds"
    );
    let slow_reader_timeout = Duration::from_millis(20);
    let connections = Connections::new(ConnectionCaps { slow_reader_timeout, ..caps(4, 4) });
    let mut place = connections.admit(Instant::now(), peer("20.0.0.1")).unwrap();
    assert!(
        tokio::time::timeout(slow_reader_timeout * 10, place.wait_for_end()).await.is_err(),
        "no bytes wait for the peer"
    );
    place.meter.set_blocked();
    tokio::time::timeout(Duration::from_secs(20), place.wait_for_end())
        .await
        .expect("the connection of the slow reader stays open");
}
