//! Tests of the shares of sources, with and without a trusted proxy.

use super::*;

/// Opens a connection from `source`, and requests the consensus.
async fn request_from(source: [u8; 4], address: SocketAddr) -> TcpStream {
    request_for("", source, address).await
}

/// As [`request_from`], with further `headers`.
async fn request_for(headers: &str, source: [u8; 4], address: SocketAddr) -> TcpStream {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((source, 0).into()).unwrap();
    let mut socket = socket.connect(address).await.unwrap();
    socket.write_all(&get_consensus(headers)).await.unwrap();
    socket
}

/// The address of a trusted proxy.
const PROXY: [u8; 4] = [127, 0, 0, 9];

fn trusted_proxy() -> TrustedProxies {
    TrustedProxies::parse(["127.0.0.9"]).unwrap()
}

/// Serves a consensus that exceeds the buffers of a socket, with these caps on the connections of each address.
async fn serve_long(caps: ConnectionCaps) -> (SocketAddr, Submissions) {
    let (mut server, submissions) = DirectoryServer::new();
    server.caps = ConnectionCaps { network: |peer| Some(crate::base::AddressPrefix::source(peer)), ..caps };
    server.proxies = trusted_proxy();
    let mut long = vec![0; 8 << 20];
    rand::Rng::fill_bytes(&mut ChaCha20Rng::seed_from_u64(1), &mut long);
    server.publish(SignedConsensus::from_bytes(long)).await;
    let (listener, address) = listen().await;
    tokio::spawn(server.serve(listener));
    (address, submissions)
}

#[tokio::test]
async fn slow_readers_of_one_source_delay_no_fetch() {
    let caps = ConnectionCaps { all: 4_096, ..ConnectionCaps::default() };
    let (address, _submissions) = serve_long(caps).await;
    let mut slow = JoinSet::new();
    for _ in 0..300 {
        slow.spawn(request_from([127, 0, 0, 2], address));
    }
    let _slow = timeout(DEADLINE, slow.join_all()).await.expect("connections wait");
    // The bound is for an idle machine. Other tests run simultaneously, so the fastest of several fetches counts.
    let mut fastest = DEADLINE;
    for _ in 0..5 {
        let began = std::time::Instant::now();
        let answer = exchange(address, &get_consensus("if-none-match: *\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 304"), "{answer}");
        fastest = fastest.min(began.elapsed());
    }
    assert!(fastest < Duration::from_millis(100), "{fastest:?}");
}

#[tokio::test]
async fn a_source_beyond_its_share_gets_503_until_a_slow_reader_is_evicted() {
    let slow_reader_timeout = Duration::from_millis(200);
    let (address, _submissions) =
        serve_long(ConnectionCaps { of_network: 2, slow_reader_timeout, ..ConnectionCaps::default() }).await;
    let source = [127, 0, 0, 2];
    let (mut slow, mut slower) = (request_from(source, address).await, request_from(source, address).await);
    let mut head = [0; 12];
    for socket in [&mut slow, &mut slower] {
        socket.read_exact(&mut head).await.unwrap();
        assert_eq!(&head, b"HTTP/1.1 200");
    }
    let mut refused = Vec::new();
    request_from(source, address).await.read_to_end(&mut refused).await.unwrap();
    let refused = String::from_utf8(refused).unwrap();
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after: 5"), "{refused}");
    let (head, body) = refused.split_once("\r\n\r\n").unwrap();
    assert!(head.contains(&format!("content-length: {}", body.len())), "{refused}");
    let served = async {
        let mut answer = [0; 12];
        while request_from(source, address).await.read_exact(&mut answer).await.is_err() || answer != *b"HTTP/1.1 200" {
        }
    };
    timeout(DEADLINE, served).await.expect("slow readers are not evicted");
}

#[tokio::test]
async fn a_client_of_a_trusted_proxy_beyond_its_share_gets_503_and_other_clients_are_served() {
    let (address, _submissions) = serve_long(ConnectionCaps { of_network: 2, ..ConnectionCaps::default() }).await;
    let request = async |client: &str| {
        let headers = format!("x-forwarded-for: 40.0.0.1, {client}\r\n");
        let mut socket = request_for(&headers, PROXY, address).await;
        let mut status = [0; 12];
        socket.read_exact(&mut status).await.unwrap();
        (String::from_utf8(status.to_vec()).unwrap(), socket)
    };
    let first = [request("20.0.0.1").await, request("20.0.0.1").await];
    assert!(first.iter().all(|(status, _)| status == "HTTP/1.1 200"));
    let (status, mut refused) = request("20.0.0.1").await;
    assert_eq!(status, "HTTP/1.1 503");
    let mut rest = String::new();
    refused.read_to_string(&mut rest).await.unwrap();
    assert!(rest.contains("retry-after: 5") && rest.contains("access-control-allow-origin: *"), "{rest}");
    assert_eq!(request("20.0.0.2").await.0, "HTTP/1.1 200");
}

#[tokio::test]
async fn descriptors_over_a_trusted_proxy_count_for_the_addresses_of_its_clients() {
    let (server, mut submissions) = server().await;
    let (listener, address) = listen().await;
    tokio::spawn(server.with_proxies(trusted_proxy()).serve(listener));
    let (sender, mut publishers) = tokio::sync::mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Some(Submission::Descriptor(_, publisher, answer)) = submissions.recv().await {
            _ = sender.send(publisher);
            _ = answer.send(Ok(()));
        }
    });
    let post = async |from: [u8; 4], client: &str| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind((from, 0).into()).unwrap();
        let mut socket = socket.connect(address).await.unwrap();
        let request = format!(
            "POST /v1/descriptor HTTP/1.1\r\nhost: a\r\nx-forwarded-for: {client}\r\ncontent-length: 1\r\n\r\nx"
        );
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut status = [0; 12];
        socket.read_exact(&mut status).await.unwrap();
        status.ends_with(b"202")
    };
    let publisher = |address: [u8; 4]| Publisher::at(address.into());
    let mut refused = false;
    for _ in 0..500 {
        refused = !post(PROXY, "20.0.0.1").await;
        if refused {
            break;
        }
        assert_eq!(publishers.recv().await.unwrap(), publisher([20, 0, 0, 1]));
    }
    assert!(refused, "the client has no rate of its own");
    assert!(post(PROXY, "20.0.1.1").await, "another client of the proxy");
    assert_eq!(publishers.recv().await.unwrap(), publisher([20, 0, 1, 1]));
    assert!(post([127, 0, 0, 2], "20.0.0.1").await, "the field of any other peer is ignored");
    assert_eq!(publishers.recv().await.unwrap(), None);
}
