mod transparency;

use std::{net::SocketAddr, sync::Arc};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    sync::Notify,
};

use super::*;
use crate::io::testing::{Direct, answering_server, echo_server, target_server};

const DEADLINE: Duration = Duration::from_secs(20);

async fn port(connector: &Direct, limits: HttpLimits) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, connector.clone(), limits));
    address
}

/// Sends `request` in a new TCP connection and returns the complete answer.
async fn exchange_raw(address: SocketAddr, request: &[u8]) -> String {
    let mut socket = TcpStream::connect(address).await.unwrap();
    socket.write_all(request).await.unwrap();
    let mut answer = Vec::new();
    timeout(DEADLINE, socket.read_to_end(&mut answer)).await.unwrap().unwrap();
    String::from_utf8(answer).unwrap()
}

async fn answer_to(request: &str) -> String {
    exchange_raw(port(&Direct::default(), HttpLimits::default()).await, request.as_bytes()).await
}

/// An origin server that returns the head of the request as the content.
async fn mirror() -> SocketAddr {
    target_server(|mut socket| async move {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(socket.read_u8().await.unwrap());
        }
        let start = format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close, X-Private\r\nX-Private: 1\r\nX-Public: 1\r\n\r\n",
            head.len()
        );
        socket.write_all(start.as_bytes()).await.unwrap();
        socket.write_all(&head).await.unwrap();
    })
    .await
}

#[tokio::test]
async fn connect_opens_a_stream_and_forwards_early_bytes() {
    let origin = echo_server().await;
    let address = port(&Direct::default(), HttpLimits::default()).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("CONNECT origin.test:{} HTTP/1.1\r\nHost: x\r\n\r\nearly ", origin.port());
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(DEADLINE, socket.read_u8()).await.unwrap().unwrap());
    }
    assert!(head.starts_with(b"HTTP/1.1 200 "));
    socket.write_all(b"and late").await.unwrap();
    socket.shutdown().await.unwrap();
    let mut back = String::new();
    timeout(DEADLINE, socket.read_to_string(&mut back)).await.unwrap().unwrap();
    assert_eq!(back, "early and late");
}

#[tokio::test]
async fn a_request_is_forwarded_without_hop_by_hop_and_proxy_fields() {
    let origin = mirror().await;
    let connector = Direct::default();
    let address = port(&connector, HttpLimits::default()).await;
    let request = format!(
        "GET http://origin.test:{}/path?query=1 HTTP/1.1\r\nHost: elsewhere.test\r\nProxy-Authorization: Basic c2VjcmV0\r\n\
         Proxy-Connection: keep-alive\r\nConnection: close, X-Hop\r\nX-Hop: 1\r\nTE: trailers\r\nX-End: 2\r\n\r\n",
        origin.port()
    );
    let answer = exchange_raw(address, request.as_bytes()).await;
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 OK"));
    assert!(head.contains("X-Public: 1") && !head.contains("X-Private"), "{head}");
    let body = body.to_ascii_lowercase();
    assert!(body.starts_with("get /path?query=1 http/1.1\r\n"), "{body}");
    assert!(body.contains(&format!("host: origin.test:{}\r\n", origin.port())), "{body}");
    assert!(body.contains("x-end: 2"), "{body}");
    assert!(body.contains("te: trailers\r\n") && body.contains("\r\nconnection: close, te\r\n"), "{body}");
    for removed in ["proxy-", "x-hop", "secret", "elsewhere"] {
        assert!(!body.contains(removed), "{removed} in {body}");
    }
    exchange_raw(address, format!("GET http://origin.test:{}/ HTTP/1.0\r\n\r\n", origin.port()).as_bytes()).await;
    let isolations = connector.isolations();
    assert_ne!(isolations[0], isolations[1], "credentials did not isolate");
}

#[tokio::test]
async fn bodies_are_forwarded_in_both_directions() {
    let origin = target_server(|mut socket| async move {
        let mut received = Vec::new();
        while !received.ends_with(b"0\r\n\r\n") && !received.ends_with(&[b'x'; 300_000]) {
            assert_ne!(socket.read_buf(&mut received).await.unwrap(), 0);
        }
        let head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n";
        socket.write_all(head).await.unwrap();
        for _ in 0..100 {
            socket.write_all(b"3e8\r\n").await.unwrap();
            socket.write_all(&[b'y'; 1000]).await.unwrap();
            socket.write_all(b"\r\n").await.unwrap();
        }
        socket.write_all(b"0\r\n\r\n").await.unwrap();
    })
    .await;
    let address = port(&Direct::default(), HttpLimits::default()).await;
    let client = reqwest::Client::builder()
        .proxy(reqwest::Proxy::http(format!("http://user:word@{address}")).unwrap())
        .build()
        .unwrap();
    for _ in 0..3 {
        let sending = client.post(format!("http://origin.test:{}/", origin.port())).body(vec![b'x'; 300_000]).send();
        let response = timeout(DEADLINE, sending).await.unwrap().unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.bytes().await.unwrap(), vec![b'y'; 100_000]);
    }
}

#[tokio::test]
async fn origin_form_is_refused_with_an_explanation() {
    for request in ["GET / HTTP/1.1\r\nHost: 127.0.0.1:9351\r\n\r\n", "OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n"] {
        let answer = answer_to(request).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
        assert!(answer.contains("not a web server") && !answer.contains("9351"), "{answer}");
        let head = answer.to_ascii_lowercase();
        assert!(!head.contains("access-control"), "{answer}");
        // Without these fields, a page of another site could detect the client by this answer.
        assert!(head.contains("cross-origin-resource-policy: same-origin"), "{answer}");
        assert!(head.contains("x-frame-options: deny"), "{answer}");
    }
}

#[tokio::test]
async fn each_failure_has_its_status_and_text_without_the_host() {
    for (name, status, words) in [
        ("refused.test", 502, "the target refused the connection"),
        ("unreachable.test", 502, "the exit can't reach the target"),
        ("notfound.test", 502, "the name has no address"),
        ("lookup.test", 502, "the exit can't resolve the name: its name server failed, refused or did not answer"),
        ("failed.test", 502, "the stream failed"),
        ("policy.test", 403, "the exit's policy does not allow this target"),
        ("timedout.test", 504, "the target did not answer in time"),
        ("limit.test", 503, "a resource limit of the exit is reached"),
        ("full.test", 503, "the client has the maximum number of streams or circuits"),
        ("notpublic.test", 403, "no exit can reach this host: it is on a local network or has a reserved name"),
        ("noexit.test", 403, "no exit of the network allows this target"),
        ("notready.test", 503, "the client has no consensus yet"),
        ("expired.test", 503, "the consensus has expired"),
        ("few.test", 503, "the network has too few unrelated relays for a path"),
        ("guard.test", 503, "no guard can be reached"),
        ("circuit.test", 503, "no circuit could be built beyond the guard"),
    ] {
        for request in [format!("CONNECT {name}:443 HTTP/1.1\r\n\r\n"), format!("GET http://{name}/ HTTP/1.1\r\n\r\n")]
        {
            let answer = answer_to(&request).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
            assert!(
                answer.contains(&format!("\r\n\r\nUmbel: {words}")) && !answer.contains(".test"),
                "{request}: {answer}"
            );
        }
    }
}

#[tokio::test]
async fn requests_that_cannot_be_forwarded_are_refused() {
    for request in [
        "CONNECT origin.test HTTP/1.1\r\n\r\n",
        "CONNECT origin.test:0 HTTP/1.1\r\n\r\n",
        "CONNECT me@origin.test:80 HTTP/1.1\r\n\r\n",
        "GET https://origin.test/ HTTP/1.1\r\n\r\n",
        "GET ftp://origin.test/ HTTP/1.1\r\n\r\n",
        "GET http://me:you@origin.test/ HTTP/1.1\r\n\r\n",
        "GET http://origin.test:0/ HTTP/1.1\r\n\r\n",
        "GET http://or%69gin.test/ HTTP/1.1\r\n\r\n",
    ] {
        assert!(answer_to(request).await.starts_with("HTTP/1.1 400 "), "{request}");
    }
}

#[tokio::test]
async fn an_origin_without_an_http_response_is_reported() {
    let nonsense = answering_server(b"what?\r\n\r\n").await;
    let answer = answer_to(&format!("GET http://origin.test:{}/ HTTP/1.1\r\n\r\n", nonsense.port())).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("the target's answer is not HTTP"), "{answer}");

    // A target that sends first and then waits, such as one of SSH.
    let greeting = target_server(|mut socket| async move {
        socket.write_all(b"SSH-2.0-OpenSSH_10.0\r\n").await.unwrap();
        while socket.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {}
    })
    .await;
    let answer = answer_to(&format!("GET http://origin.test:{}/ HTTP/1.1\r\n\r\n", greeting.port())).await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("not HTTP"), "{answer}");
}

#[tokio::test]
async fn an_invalid_body_of_a_request_is_not_the_targets_failure() {
    let origin =
        target_server(|mut socket| async move { while socket.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {} })
            .await;
    let request = format!(
        "POST http://origin.test:{}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\nnot a length\r\n",
        origin.port()
    );
    let answer = answer_to(&request).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    assert!(answer.contains("the request's body is truncated"), "{answer}");
}

#[tokio::test]
async fn a_truncated_body_is_an_error_at_the_application() {
    for head in ["HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n", "HTTP/1.0 200 OK\r\n\r\n"] {
        let half_received = Arc::new(Notify::new());
        let notifier = Arc::clone(&half_received);
        let origin = target_server(move |mut socket| {
            let half_received = Arc::clone(&half_received);
            async move {
                let _ = socket.read(&mut [0; 1024]).await;
                socket.write_all(head.as_bytes()).await.unwrap();
                socket.write_all(b"half").await.unwrap();
                half_received.notified().await;
                crate::io::stream::reset_on_close(&socket);
            }
        })
        .await;
        let address = port(&Direct::default(), HttpLimits::default()).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        // With HTTP/1.0, the end of the connection is the end of the body.
        let request = format!("GET http://origin.test:{}/ HTTP/1.0\r\n\r\n", origin.port());
        socket.write_all(request.as_bytes()).await.unwrap();
        let mut received = Vec::new();
        while !received.ends_with(b"half") {
            assert!(timeout(DEADLINE, socket.read_buf(&mut received)).await.unwrap().unwrap() > 0, "{head}");
        }
        notifier.notify_one();
        let ended = timeout(DEADLINE, socket.read_to_end(&mut received)).await.unwrap();
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::ConnectionReset, "{head}");
    }
}

#[tokio::test]
async fn slow_and_oversized_heads_end_the_connection() {
    let limits = HttpLimits { head_timeout: Duration::from_millis(100), ..HttpLimits::default() };
    let address = port(&Direct::default(), limits).await;
    let answer = exchange_raw(address, b"GET http://origin.te").await;
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("Umbel: the head of the request"), "{answer}");
    let limits = HttpLimits { max_head_bytes: 10_000, ..HttpLimits::default() };
    let address = port(&Direct::default(), limits).await;
    let many = format!("GET http://origin.test/ HTTP/1.1\r\n{}", "X-Field: 1\r\n".repeat(1000));
    let long = format!("GET http://origin.test/{}", "a".repeat(20_000));
    for (request, status, words) in [(many, 431, "the header fields"), (long, 414, "the URL of the request")] {
        let answer = exchange_raw(address, request.as_bytes()).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{answer}");
        assert!(answer.contains(&format!("\r\n\r\nUmbel: {words}")), "{answer}");
    }
}

#[tokio::test]
async fn invalid_input_closes_only_its_connection() {
    let seed = 0xfeed_u64;
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) as u8
    };
    let valid = b"CONNECT refused.test:443 HTTP/1.1\r\nHost: a\r\n\r\n";
    let address = port(&Direct::default(), HttpLimits::default()).await;
    for round in 0..300 {
        let input: Vec<u8> = if round % 2 == 0 {
            (0..usize::from(next()) * 8).map(|_| next()).collect()
        } else {
            let mut changed = valid.to_vec();
            let at = usize::from(next()) % changed.len();
            changed[at] = next();
            changed
        };
        let mut socket = TcpStream::connect(address).await.unwrap();
        let _ = socket.write_all(&input).await;
        let _ = socket.shutdown().await;
        let ended = timeout(DEADLINE, socket.read_to_end(&mut Vec::new())).await;
        assert!(ended.is_ok(), "seed {seed:#x}, round {round}: still open");
    }
}

#[tokio::test]
async fn content_length_with_transfer_encoding_is_refused() {
    let origin = mirror().await;
    let address = port(&Direct::default(), HttpLimits::default()).await;
    let request = format!(
        "POST http://origin.test:{}/ HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\
         Connection: close\r\n\r\n1\r\na\r\n0\r\n\r\n",
        origin.port()
    );
    let answer = exchange_raw(address, request.as_bytes()).await;
    assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
}

#[tokio::test]
async fn an_invalid_port_is_refused() {
    for port in ["99999", "65536", "0"] {
        let answer = answer_to(&format!("GET http://origin.test:{port}/ HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{port}: {answer}");
    }
}

#[tokio::test]
async fn an_application_beyond_the_cap_gets_an_immediate_reply() {
    let address = port(&Direct::default(), HttpLimits { max_connections: 1, ..HttpLimits::default() }).await;
    let mut first = TcpStream::connect(address).await.unwrap();
    first.write_all(b"CONNECT never.test:1 HTTP/1.1\r\n\r\n").await.unwrap();
    let answer = exchange_raw(address, b"CONNECT refused.test:443 HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    drop(first);
    let served = async {
        while !exchange_raw(address, b"CONNECT refused.test:443 HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 502 ") {}
    };
    timeout(DEADLINE, served).await.unwrap();
}

#[tokio::test]
async fn one_isolation_leaves_connections_to_others() {
    let connector = Direct::default();
    let address = port(&connector, HttpLimits { max_connections: 8, ..HttpLimits::default() }).await;
    let mut sockets = Vec::new();
    for open in 1..=6 {
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(b"CONNECT never.test:1 HTTP/1.1\r\n\r\n").await.unwrap();
        sockets.push(socket);
        let placed = async {
            while connector.isolations().len() < open {
                tokio::task::yield_now().await;
            }
        };
        timeout(DEADLINE, placed).await.unwrap();
    }
    let request = b"CONNECT refused.test:443 HTTP/1.1\r\n";
    let answer = exchange_raw(address, &[request, &b"\r\n"[..]].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("\r\nRetry-After: 1\r\n"), "{answer}");
    let answer = exchange_raw(address, &[request, &b"Proxy-Authorization: Basic YTpi\r\n\r\n"[..]].concat()).await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}
