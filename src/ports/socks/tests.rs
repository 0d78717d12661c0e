use std::net::SocketAddr;

use tokio::net::TcpStream;

use super::*;
use crate::io::testing::{Direct, echo_server, target_server};

const DEADLINE: Duration = Duration::from_secs(20);

/// Runs the SOCKS port with `connector`.
async fn port(connector: &Direct, limits: SocksLimits) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, connector.clone(), limits));
    address
}

async fn dial() -> (TcpStream, Direct) {
    let connector = Direct::default();
    let address = port(&connector, SocksLimits::default()).await;
    (TcpStream::connect(address).await.unwrap(), connector)
}

/// Sends `request` and returns the complete answer.
async fn exchange(request: &[u8]) -> Vec<u8> {
    let (mut socket, _) = dial().await;
    socket.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, socket.read_to_end(&mut answer)).await.unwrap().unwrap();
    answer
}

const NO_AUTH: &[u8] = &[5, 1, 0];

fn request_to_name(command: u8, name: &str, port: u16) -> Vec<u8> {
    let mut bytes = vec![5, command, 0, 3, name.len() as u8];
    bytes.extend_from_slice(name.as_bytes());
    bytes.extend_from_slice(&port.to_be_bytes());
    bytes
}

async fn reply_to(request: &[u8]) -> Vec<u8> {
    let answer = exchange(&[NO_AUTH, request].concat()).await;
    assert_eq!(answer.get(..2), Some(&[5, 0][..]));
    answer[2..].to_vec()
}

async fn read(socket: &mut TcpStream, length: usize) -> Vec<u8> {
    let mut bytes = vec![0; length];
    timeout(DEADLINE, socket.read_exact(&mut bytes)).await.unwrap().unwrap();
    bytes
}

#[tokio::test]
async fn connect_by_name_ipv4_and_ipv6_forwards_bytes_and_a_half_close() {
    let origin = echo_server().await;
    let mut by_ipv4 = vec![5, 1, 0, 1, 127, 0, 0, 1];
    by_ipv4.extend_from_slice(&origin.port().to_be_bytes());
    let mut by_ipv6 = vec![5, 1, 0, 4];
    by_ipv6.extend_from_slice(&std::net::Ipv4Addr::LOCALHOST.to_ipv6_mapped().octets());
    by_ipv6.extend_from_slice(&origin.port().to_be_bytes());
    for request in [request_to_name(1, "origin.test", origin.port()), by_ipv4, by_ipv6] {
        let (mut socket, _) = dial().await;
        // The request is sent byte by byte, as by a slow application.
        for byte in [NO_AUTH, &request].concat() {
            socket.write_all(&[byte]).await.unwrap();
        }
        assert_eq!(read(&mut socket, 4).await, [5, 0, 5, 0]);
        let address_and_port_len = if request[3] == 4 { 18 } else { 6 };
        read(&mut socket, 2 + address_and_port_len).await;
        socket.write_all(b"the echo differs").await.unwrap();
        socket.shutdown().await.unwrap();
        let mut back = Vec::new();
        timeout(DEADLINE, socket.read_to_end(&mut back)).await.unwrap().unwrap();
        assert_eq!(back, b"the echo differs");
    }
}

#[tokio::test]
async fn bytes_sent_before_the_reply_are_forwarded() {
    let origin = echo_server().await;
    let (mut socket, _) = dial().await;
    let request = request_to_name(1, "origin.test", origin.port());
    socket.write_all(&[NO_AUTH, &request, b"eager"].concat()).await.unwrap();
    read(&mut socket, 12).await;
    assert_eq!(read(&mut socket, 5).await, b"eager");
}

#[tokio::test]
async fn each_failure_has_its_reply() {
    for (name, code) in [
        ("refused.test", 5),
        ("unreachable.test", 4),
        ("policy.test", 2),
        ("timedout.test", 6),
        ("notfound.test", 4),
        ("lookup.test", 4),
        ("limit.test", 1),
        ("failed.test", 1),
        ("full.test", 1),
        ("noexit.test", 2),
        ("notpublic.test", 2),
        ("notready.test", 3),
        ("expired.test", 3),
        ("few.test", 3),
        ("guard.test", 3),
        ("circuit.test", 3),
        ("not a name", 1),
    ] {
        assert_eq!(reply_to(&request_to_name(1, name, 80)).await, [5, code, 0, 1, 0, 0, 0, 0, 0, 0], "{name}");
    }
}

#[tokio::test]
async fn an_open_past_the_time_limit_is_a_timeout() {
    let connector = Direct::default();
    let limits = SocksLimits { open_timeout: Duration::from_millis(50), ..SocksLimits::default() };
    let mut socket = TcpStream::connect(port(&connector, limits).await).await.unwrap();
    socket.write_all(&[NO_AUTH, &request_to_name(1, "never.test", 80)].concat()).await.unwrap();
    assert_eq!(read(&mut socket, 4).await, [5, 0, 5, 6]);
}

#[tokio::test]
async fn names_and_addresses_are_resolved() {
    assert_eq!(reply_to(&request_to_name(0xF0, "origin.test", 0)).await, [5, 0, 0, 1, 127, 0, 0, 1, 0, 0]);
    assert_eq!(reply_to(&[5, 0xF0, 0, 1, 10, 1, 2, 3, 0, 0]).await, [5, 0, 0, 1, 10, 1, 2, 3, 0, 0]);
    for failing in ["notfound.test", "lookup.test"] {
        assert_eq!(reply_to(&request_to_name(0xF0, failing, 0)).await[1], 4, "{failing}");
    }
    let pointer = reply_to(&[5, 0xF1, 0, 1, 127, 0, 0, 1, 0, 0]).await;
    assert_eq!(pointer, [&[5, 0, 0, 3, 11], &b"origin.test"[..], &[0, 0]].concat());
    assert_eq!(reply_to(&request_to_name(0xF1, "origin.test", 0)).await[1], 8);
}

#[tokio::test]
async fn unsupported_requests_have_their_reply_codes() {
    assert_eq!(reply_to(&[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).await[..2], [5, 7], "UDP ASSOCIATE");
    assert_eq!(reply_to(&[5, 2, 0, 1, 127, 0, 0, 1, 0, 80]).await[..2], [5, 7], "BIND");
    assert_eq!(reply_to(&[5, 1, 0, 9, 127, 0, 0, 1, 0, 80]).await[..2], [5, 8], "an unknown kind of address");
    assert_eq!(reply_to(&request_to_name(1, "origin.test", 0)).await[..2], [5, 1], "port zero");
    assert_eq!(exchange(&[5, 1, 0x80]).await, [5, 0xFF], "an unknown method");
    let page = String::from_utf8(exchange(b"GET / HTTP/1.1\r\n\r\n").await).unwrap();
    assert!(page.starts_with("HTTP/1.0 501 "), "{page}");
    // Without these fields, a page of another site could detect the client by this answer.
    assert!(
        page.contains("Cross-Origin-Resource-Policy: same-origin") && page.contains("X-Frame-Options: DENY"),
        "{page}"
    );
}

#[tokio::test]
async fn socks_4_and_4a_have_their_own_replies() {
    let origin = echo_server().await;
    let [high, low] = origin.port().to_be_bytes();
    let by_address = [4, 1, high, low, 127, 0, 0, 1, b'm', b'e', 0];
    let by_name = [&[4, 1, high, low, 0, 0, 0, 1, 0], &b"origin.test\0"[..]].concat();
    for request in [&by_address[..], &by_name] {
        let (mut socket, _) = dial().await;
        socket.write_all(request).await.unwrap();
        assert_eq!(read(&mut socket, 8).await[..2], [0, 0x5A]);
        socket.write_all(b"old").await.unwrap();
        assert_eq!(read(&mut socket, 3).await, b"old");
    }
    assert_eq!(exchange(&[4, 2, 0, 80, 127, 0, 0, 1, 0]).await[..2], [0, 0x5B]);
}

#[tokio::test]
async fn any_credentials_are_accepted_and_select_the_isolation() {
    let origin = echo_server().await;
    let connector = Direct::default();
    let address = port(&connector, SocksLimits::default()).await;
    let request = request_to_name(1, "origin.test", origin.port());
    for (user, password) in [("a", "b"), ("a", "b"), ("ab", ""), ("", "ab")] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(&[5, 2, 0, 2]).await.unwrap();
        assert_eq!(read(&mut socket, 2).await, [5, 2]);
        let mut sent = vec![1, user.len() as u8];
        sent.extend_from_slice(user.as_bytes());
        sent.push(password.len() as u8);
        sent.extend_from_slice(password.as_bytes());
        socket.write_all(&sent).await.unwrap();
        assert_eq!(read(&mut socket, 2).await, [1, 0]);
        socket.write_all(&request).await.unwrap();
        assert_eq!(read(&mut socket, 10).await[1], 0);
    }
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(&[NO_AUTH, &request].concat()).await.unwrap();
    read(&mut socket, 12).await;
    let isolations = connector.isolations();
    assert_eq!(isolations[0], isolations[1]);
    for (first, second) in [(1, 2), (2, 3), (3, 4), (0, 4)] {
        assert_ne!(isolations[first], isolations[second]);
    }
}

#[tokio::test]
async fn a_failed_stream_is_a_reset_at_the_application() {
    let origin = target_server(|mut socket| async move {
        socket.write_all(b"half of ").await.unwrap();
        // The application sends one byte after it has received all bytes. So the error after it is the reset's.
        socket.read_exact(&mut [0; 1]).await.unwrap();
        crate::io::stream::reset_on_close(&socket);
    })
    .await;
    let (mut socket, _) = dial().await;
    socket.write_all(&[NO_AUTH, &request_to_name(1, "origin.test", origin.port())].concat()).await.unwrap();
    read(&mut socket, 12).await;
    assert_eq!(read(&mut socket, 8).await, b"half of ");
    socket.write_all(b"!").await.unwrap();
    let error = timeout(DEADLINE, socket.read(&mut [0; 1])).await.unwrap().unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_slow_handshake_is_ended_and_frees_its_place() {
    let origin = echo_server().await;
    let connector = Direct::default();
    let limits =
        SocksLimits { handshake_timeout: Duration::from_millis(100), max_connections: 1, ..SocksLimits::default() };
    let address = port(&connector, limits).await;
    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(&[5]).await.unwrap();
    let ended = timeout(DEADLINE, slow.read(&mut [0; 1])).await.unwrap();
    assert!(matches!(ended, Ok(0) | Err(_)), "the slow application is still served");
    let mut next = TcpStream::connect(address).await.unwrap();
    next.write_all(&[NO_AUTH, &request_to_name(1, "origin.test", origin.port())].concat()).await.unwrap();
    assert_eq!(read(&mut next, 4).await, [5, 0, 5, 0]);
}

#[tokio::test]
async fn invalid_and_truncated_handshakes_close_only_their_connection() {
    let seed = 0x5eed_u64;
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let connector = Direct::default();
    let address = port(&connector, SocksLimits::default()).await;
    let valid = [NO_AUTH, &request_to_name(1, "refused.test", 80)].concat();
    let mut inputs: Vec<Vec<u8>> = (0..valid.len()).map(|cut| valid[..cut].to_vec()).collect();
    inputs.extend((0..200).map(|_| (0..usize::from(next()) * 16).map(|_| next()).collect()));
    inputs.extend((0..200).map(|_| {
        let mut changed = valid.clone();
        let at = usize::from(next()) % changed.len();
        changed[at] = next();
        changed
    }));
    // A SOCKS 4 user name without terminator, longer than any handshake.
    inputs.push([&[4, 1, 0, 80, 1, 2, 3, 4][..], &[b'a'; 100_000]].concat());
    for input in inputs {
        let mut socket = TcpStream::connect(address).await.unwrap();
        let _ = socket.write_all(&input).await;
        let _ = socket.shutdown().await;
        let mut answer = Vec::new();
        let ended = timeout(DEADLINE, socket.read_to_end(&mut answer)).await;
        assert!(ended.is_ok(), "seed {seed:#x}: still open after {input:?}");
    }
}

#[tokio::test]
async fn curl_downloads_the_exact_bytes() {
    let Ok(version) = tokio::process::Command::new("curl").arg("--version").output().await else { return };
    assert!(version.status.success());
    let body: Vec<u8> = (0..5_000_000_u32).map(|at| (at ^ (at >> 7)) as u8).collect();
    let served = body.clone();
    let origin = target_server(move |mut socket| {
        let served = served.clone();
        async move {
            let _ = socket.read(&mut [0; 4096]).await.unwrap();
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", served.len());
            socket.write_all(head.as_bytes()).await.unwrap();
            socket.write_all(&served).await.unwrap();
        }
    })
    .await;
    let address = port(&Direct::default(), SocksLimits::default()).await;
    let output = tokio::process::Command::new("curl")
        .args(["--silent", "--show-error", "--max-time", "20", "--proxy"])
        .arg(format!("socks5h://user:secret@{address}"))
        .arg(format!("http://origin.test:{}/", origin.port()))
        .output()
        .await
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.stdout == body);
}

#[tokio::test]
async fn an_application_beyond_the_cap_gets_an_immediate_reply() {
    let address = port(&Direct::default(), SocksLimits { max_connections: 1, ..SocksLimits::default() }).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(NO_AUTH).await.unwrap();
    assert_eq!(read(&mut first, 2).await, [5, 0]);
    let request = request_to_name(1, "origin.test", 80);
    let with_socks_4 = [&[4, 1, 0, 80, 127, 0, 0, 1][..], b"user\0"].concat();
    for (request, expected) in [
        ([NO_AUTH, &request].concat(), vec![5, 0, 5, 1, 0, 1, 0, 0, 0, 0, 0, 0]),
        (with_socks_4, vec![0, 0x5B, 0, 0, 0, 0, 0, 0]),
    ] {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(&request).await.unwrap();
        let mut answer = Vec::new();
        timeout(DEADLINE, socket.read_to_end(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, expected);
    }
    first.write_all(&request_to_name(1, "refused.test", 80)).await.unwrap();
    assert_eq!(read(&mut first, 2).await, [5, 5], "the first connection is served");
}

#[tokio::test]
async fn one_isolation_leaves_connections_to_others() {
    let connector = Direct::default();
    let address = port(&connector, SocksLimits { max_connections: 8, ..SocksLimits::default() }).await;
    let waiting = [NO_AUTH, &request_to_name(1, "never.test", 80)].concat();
    let mut sockets = Vec::new();
    while connector.isolations().len() < 6 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(&waiting).await.unwrap();
        read(&mut socket, 2).await;
        sockets.push(socket);
        let open = sockets.len();
        let placed = async {
            while connector.isolations().len() < open {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, placed).await.unwrap();
    }
    let mut refused = TcpStream::connect(address).await.unwrap();
    refused.write_all(&waiting).await.unwrap();
    assert_eq!(read(&mut refused, 4).await, [5, 0, 5, 1]);
    let mut other = TcpStream::connect(address).await.unwrap();
    let credentials = [&[5, 1, 2][..], b"\x01\x01a\x01b", &request_to_name(1, "refused.test", 80)].concat();
    other.write_all(&credentials).await.unwrap();
    assert_eq!(read(&mut other, 6).await, [5, 2, 1, 0, 5, 5]);
}
