//! Requests and responses that arrive as they would over CONNECT.

use std::sync::Mutex;

use tokio::net::tcp::OwnedWriteHalf;

use super::*;

/// Reads a head with its empty line.
async fn read_head(socket: &mut (impl tokio::io::AsyncRead + Unpin)) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(timeout(DEADLINE, socket.read_u8()).await.unwrap().unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// The heads that a target has received.
type Heads = Arc<Mutex<Vec<String>>>;

/// A target that answers the head of each connection's first request with `answer`, and closes.
async fn target_with(answer: impl Into<Vec<u8>>) -> (SocketAddr, Heads) {
    let (heads, answer) = (Heads::default(), Arc::new(answer.into()));
    let received = Arc::clone(&heads);
    let address = target_server(move |mut socket| {
        let (received, answer) = (Arc::clone(&received), Arc::clone(&answer));
        async move {
            let head = read_head(&mut socket).await;
            received.lock().unwrap().push(head);
            socket.write_all(&answer).await.unwrap();
        }
    })
    .await;
    (address, heads)
}

/// The answer to a GET for the root of `target`, with these field lines.
async fn get(target: SocketAddr, fields: &str) -> String {
    answer_to(&format!("GET http://origin.test:{}/ HTTP/1.1\r\n{fields}\r\n", target.port())).await
}

#[tokio::test]
async fn the_case_order_and_form_of_fields_are_kept_in_both_directions() {
    let (target, heads) = target_with(
        "HTTP/1.1 299 Well done\r\nX-aNsWeR:  1\r\nset-COOKIE: a\r\nContent-Length: 2\r\nSet-Cookie: b\r\n\r\nok",
    )
    .await;
    let host = format!("origin.test:{}", target.port());
    let fields = format!("X-CaSe:spaceless\r\nUSER-agent: t\r\nhOsT: {host}\r\nX-case: 2\r\n");
    let (mut reader, _writer) = send(&format!("GET http://{host}/ HTTP/1.1\r\n{fields}\r\n")).await;
    let answer = read_head(&mut reader).await;
    assert_eq!(heads.lock().unwrap()[0], format!("GET / HTTP/1.1\r\n{fields}\r\n"));
    assert_eq!(
        answer,
        "HTTP/1.1 299 Well done\r\nX-aNsWeR:  1\r\nset-COOKIE: a\r\nContent-Length: 2\r\nSet-Cookie: b\r\n\r\n"
    );
}

#[tokio::test]
async fn urls_are_forwarded_as_the_application_sends_them() {
    for (url, expected) in [
        (r#"/a"b<c>d|e\f^g`h{i}"#, r#"/a"b<c>d|e\f^g`h{i}"#),
        ("/ü/日本?q=ß", "/ü/日本?q=ß"),
        ("/%7e/../x;y=%zz", "/%7e/../x;y=%zz"),
        ("?only=query", "/?only=query"),
        ("", "/"),
        ("//twice", "//twice"),
        ("/path#fragment", "/path"),
    ] {
        let (target, heads) = target_with("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").await;
        let request = format!("GET http://origin.test:{}{url} HTTP/1.1\r\n\r\n", target.port());
        let address = port(&Direct::default(), HttpLimits::default()).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        assert!(read_head(&mut socket).await.starts_with("HTTP/1.1 200 "), "{url}");
        assert!(heads.lock().unwrap()[0].starts_with(&format!("GET {expected} HTTP/1.1\r\nHost: ")), "{url}");
    }
}

#[tokio::test]
async fn a_websocket_opens_by_upgrade_with_either_scheme() {
    for scheme in ["http", "ws", "WS"] {
        let target = target_server(|mut socket| async move {
            let head = read_head(&mut socket).await;
            assert!(head.starts_with("GET /chat HTTP/1.1\r\n"), "{head}");
            for field in ["Upgrade: websocket", "Connection: keep-alive, Upgrade", "Sec-WebSocket-Key: x"] {
                assert!(head.contains(&format!("\r\n{field}\r\n")), "{head}");
            }
            let answer = "HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nConnection: Upgrade\r\n\r\nhello ";
            socket.write_all(answer.as_bytes()).await.unwrap();
            let (mut reader, mut writer) = socket.split();
            tokio::io::copy(&mut reader, &mut writer).await.unwrap();
        })
        .await;
        let request = format!(
            "GET {scheme}://origin.test:{}/chat HTTP/1.1\r\nUpgrade: websocket\r\nProxy-Connection: keep-alive\r\n\
             Connection: keep-alive, Upgrade\r\nSec-WebSocket-Key: x\r\n\r\n",
            target.port()
        );
        let mut socket = TcpStream::connect(port(&Direct::default(), HttpLimits::default()).await).await.unwrap();
        socket.write_all(request.as_bytes()).await.unwrap();
        let head = read_head(&mut socket).await;
        assert!(head.starts_with("HTTP/1.1 101 Switching Protocols\r\n"), "{head}");
        assert!(head.contains("\r\nupgrade: websocket\r\n"), "{head}");
        assert!(head.contains("\r\nConnection: Upgrade\r\n"), "{head}");
        socket.write_all(b"there").await.unwrap();
        socket.shutdown().await.unwrap();
        let mut bytes = String::new();
        timeout(DEADLINE, socket.read_to_string(&mut bytes)).await.unwrap().unwrap();
        assert_eq!(bytes, "hello there");
    }
}

#[tokio::test]
async fn a_switch_of_protocols_that_was_not_requested_is_refused() {
    let (target, _) = target_with("HTTP/1.1 101 Switching Protocols\r\n\r\n").await;
    assert!(get(target, "").await.starts_with("HTTP/1.1 502 "));
}

#[tokio::test]
async fn many_fields_and_long_ones_arrive() {
    let cookies: String = (0..200).map(|number| format!("Set-Cookie: c{number}={}\r\n", "x".repeat(1500))).collect();
    let (target, heads) = target_with(format!("HTTP/1.1 200 OK\r\n{cookies}Content-Length: 2\r\n\r\nok")).await;
    let fields: String = (0..300).map(|number| format!("X-Field-{number}: {number}\r\n")).collect();
    let address = port(&Direct::default(), HttpLimits::default()).await;
    let mut socket = TcpStream::connect(address).await.unwrap();
    let request = format!("GET http://origin.test:{}/ HTTP/1.1\r\n{fields}\r\n", target.port());
    socket.write_all(request.as_bytes()).await.unwrap();
    assert!(read_head(&mut socket).await.contains(&cookies));
    assert!(heads.lock().unwrap()[0].contains(&fields));
}

#[tokio::test]
async fn inexact_responses_are_forwarded_with_an_exact_end_and_end_the_connection() {
    for (sent, expected) in [
        ("X: a \r\n   b\r\n\tc\r\nContent-Length: 2\r\n\r\nok", "X: a b\tc\r\nContent-Length: 2\r\n"),
        ("Content-Length : 2\r\nY: 1\r\n\r\nok", "Content-Length: 2\r\nY: 1\r\n"),
        (": nameless\r\nContent-Length: 2\r\n\r\nok", "Content-Length: 2\r\n"),
        (
            "X: a\rContent-Length: 9\rY: b\r\nContent-Length: 2\r\n\r\nok",
            "X: a Content-Length: 9 Y: b\r\nContent-Length: 2\r\n",
        ),
        ("no colon\r\nContent-Length: 2\r\n\r\nok", "Content-Length: 2\r\n"),
        ("b@d name: 1\r\nContent-Length: 2\r\n\r\nok", "b@d name: 1\r\nContent-Length: 2\r\n"),
        ("X: \u{1}\r\nContent-Length: 2\r\n\r\nok", "X: \u{1}\r\nContent-Length: 2\r\n"),
        ("Content-Length: 2\nX: 1\n\nok", "Content-Length: 2\r\nX: 1\r\n"),
        ("Content-Length: 2, 2\r\nContent-Length: 2\r\n\r\nok", "Content-Length: 2\r\n"),
        ("Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n2\nok\n0\n\n", "Transfer-Encoding: chunked\r\n"),
        ("Transfer-Encoding : chunked\r\n\r\n2 ;x\r\nok\r\n0\r\n\r\n", "Transfer-Encoding: chunked\r\n"),
        ("Transfer-Encoding: identity\r\nContent-Length: 2\r\n\r\nok", "Content-Length: 2\r\n"),
    ] {
        let (target, _) = target_with(format!("HTTP/1.1 200 OK\r\n{sent}")).await;
        let body = if expected.contains("chunked") { "2\r\nok\r\n0\r\n\r\n" } else { "ok" };
        let is_exact = expected == "Content-Length: 2\r\n" && sent.starts_with("Transfer-Encoding: identity");
        let closes = if is_exact { "" } else { "Connection: close\r\n" };
        let fields = if is_exact { "Connection: x\r\n" } else { "" };
        let address = port(&Direct::default(), HttpLimits::default()).await;
        let mut socket = TcpStream::connect(address).await.unwrap();
        let request = format!("GET http://origin.test:{}/ HTTP/1.1\r\n{fields}\r\n", target.port());
        socket.write_all(request.as_bytes()).await.unwrap();
        if is_exact {
            socket.shutdown().await.unwrap();
        }
        let mut answer = String::new();
        timeout(DEADLINE, socket.read_to_string(&mut answer)).await.unwrap().unwrap();
        assert_eq!(answer, format!("HTTP/1.1 200 OK\r\n{closes}{expected}\r\n{body}"), "{sent}");
    }
}

#[tokio::test]
async fn responses_without_one_certain_end_or_with_a_nul_are_refused() {
    for sent in [
        "Content-Length: 2\r\nContent-Length: 3\r\n\r\nok",
        "Content-Length: 2, 3\r\n\r\nok",
        "Content-Length: -2\r\n\r\nok",
        "Content-Length: two\r\n\r\nok",
        "X: a\0b\r\n\r\nok",
    ] {
        let (target, _) = target_with(format!("HTTP/1.1 200 OK\r\n{sent}")).await;
        let answer = get(target, "").await;
        assert!(answer.starts_with("HTTP/1.1 502 ") && answer.contains("\r\n\r\nUmbel: "), "{sent}: {answer}");
    }
}

#[tokio::test]
async fn inexact_requests_are_refused_with_words() {
    for (request, words) in [
        ("GET http://a.test/ HTTP/1.1\nHost: a\n\n", "CR LF"),
        ("GET http://a.test/ HTTP/1.1\r\nX: a\rb\r\n\r\n", "CR LF"),
        ("GET http://a.test/ HTTP/1.1\r\nX: a\r\n b\r\n\r\n", "invalid name"),
        ("GET http://a.test/ HTTP/1.1\r\nContent-Length : 2\r\n\r\nok", "invalid name"),
        ("GET http://a.test/ HTTP/1.1\r\n: x\r\n\r\n", "invalid name"),
        ("GET http://a.test/ HTTP/1.1\r\nno colon\r\n\r\n", "invalid name"),
        ("GET http://a.test/ HTTP/1.1\r\nX: \0\r\n\r\n", "control character"),
        ("GET http://a.test/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", "several Host"),
        ("GET http://a.test/a b HTTP/1.1\r\n\r\n", "request line"),
        ("GET  http://a.test/ HTTP/1.1\r\n\r\n", "request line"),
        ("GET http://a.test/\x07 HTTP/1.1\r\n\r\n", "control character"),
        ("GET http://a.test/\r\n\r\n", "request line"),
        ("G(T http://a.test/ HTTP/1.1\r\n\r\n", "method"),
        ("POST http://a.test/ HTTP/1.1\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nok", "Content-Length"),
        ("POST http://a.test/ HTTP/1.1\r\nContent-Length: 2, 2\r\n\r\nok", "Content-Length"),
        ("POST http://a.test/ HTTP/1.1\r\nContent-Length: +2\r\n\r\nok", "Content-Length"),
        ("POST http://a.test/ HTTP/1.1\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n", "both"),
        ("POST http://a.test/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "HTTP/1.0"),
        ("POST http://a.test/ HTTP/1.1\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "Transfer-Encoding"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "HTTP/1.1 and HTTP/1.0 only"),
    ] {
        let answer = answer_to(request).await;
        let status = if words == "Transfer-Encoding" {
            501
        } else if words.ends_with("only") {
            505
        } else {
            400
        };
        assert!(answer.starts_with(&format!("HTTP/1.1 {status} ")), "{request}: {answer}");
        assert!(answer.contains("\r\n\r\nUmbel: ") && answer.contains(words), "{request}: {answer}");
        assert!(answer.contains("\r\nCross-Origin-Resource-Policy: same-origin\r\n"), "{answer}");
    }
}

#[tokio::test]
async fn chunks_of_a_request_that_a_target_could_read_otherwise_are_refused() {
    for chunks in [
        "2;a\nb\r\nok\r\n0\r\n\r\n",
        "2\nok\r\n0\r\n\r\n",
        "0x2\r\nok\r\n0\r\n\r\n",
        "2\r\nok0\r\n\r\n",
        "\r\n",
        "-1\r\n",
    ] {
        let target =
            target_server(|mut socket| async move { while socket.read(&mut [0; 1024]).await.is_ok_and(|n| n > 0) {} })
                .await;
        let answer = answer_to(&format!(
            "POST http://origin.test:{}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n{chunks}",
            target.port()
        ))
        .await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{chunks}: {answer}");
    }
}

#[tokio::test]
async fn continue_and_trailers_arrive() {
    let sent = "HTTP/1.1 100 Continue\r\n\r\n\
                HTTP/1.1 200 OK\r\nConnection: close\r\nTransfer-Encoding: chunked\r\nTrailer: X-Sum\r\n\r\n";
    let body = "2\r\nok\r\n0\r\nX-Sum: 1\r\nx-OTHER: 2\r\n";
    let (target, heads) = target_with(format!("{sent}{body}Content-Length: 7\r\n\r\n")).await;
    let answer = get(target, "TE: trailers\r\nConnection: TE, close\r\n").await;
    assert!(heads.lock().unwrap()[0].contains("\r\nTE: trailers\r\n"));
    assert_eq!(answer, format!("{sent}{body}\r\n"));
}

#[tokio::test]
async fn interim_responses_that_clients_take_as_final_do_not_arrive() {
    let interim = "HTTP/1.1 102 Processing\r\n\r\nHTTP/1.1 103 Early Hints\r\n\r\n";
    let response = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok";
    let (target, _) = target_with(format!("{interim}{response}")).await;
    assert_eq!(get(target, "Connection: close\r\n").await, response);
    for interim in ["HTTP/1.1 103 Early\u{1}\r\n\r\n", "HTTP/1.1 1001 x\r\n\r\n", "HTTP/1.1 103 x\n\n"] {
        let (target, _) = target_with(format!("{interim}HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")).await;
        let answer = get(target, "").await;
        assert!(answer.starts_with("HTTP/1.1 502 "), "{interim}: {answer}");
    }
}

#[tokio::test]
async fn a_head_of_too_many_lines_is_refused() {
    let (target, _) = target_with(format!("HTTP/1.1 200 OK\r\n{}\r\n", "a\n".repeat(6000))).await;
    let answer = get(target, "").await;
    assert!(answer.starts_with("HTTP/1.1 502 "), "{answer}");
}

#[tokio::test]
async fn the_bytes_before_a_truncation_arrive() {
    let (target, _) = target_with(format!("HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{}", "x".repeat(50))).await;
    let mut socket = TcpStream::connect(port(&Direct::default(), HttpLimits::default()).await).await.unwrap();
    let request = format!("GET http://origin.test:{}/ HTTP/1.1\r\nConnection: close\r\n\r\n", target.port());
    socket.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    assert!(
        timeout(DEADLINE, socket.read_to_end(&mut answer)).await.unwrap().is_err(),
        "a truncated answer ends cleanly"
    );
    assert!(answer.ends_with(&[b'x'; 50]), "{}", String::from_utf8_lossy(&answer));
}

#[tokio::test]
async fn trailers_of_a_request_arrive_without_proxy_fields() {
    let received = Arc::new(Mutex::new(String::new()));
    let body = Arc::clone(&received);
    let target = target_server(move |mut socket| {
        let body = Arc::clone(&body);
        async move {
            read_head(&mut socket).await;
            let trailer = read_head(&mut socket).await;
            body.lock().unwrap().push_str(&trailer);
            socket.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        }
    })
    .await;
    let answer = answer_to(&format!(
        "POST http://origin.test:{}/ HTTP/1.1\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\n\
         002;x=y\r\nok\r\n0\r\nX-Sum: 1\r\nProxy-Authorization: secret\r\n\r\n",
        target.port()
    ))
    .await;
    assert!(answer.starts_with("HTTP/1.1 204 No Content\r\n"), "{answer}");
    assert_eq!(*received.lock().unwrap(), "2\r\nok\r\n0\r\nX-Sum: 1\r\n\r\n");
}

/// A connection to the port, whose first request has been sent.
async fn send(request: &str) -> (tokio::net::tcp::OwnedReadHalf, OwnedWriteHalf) {
    let mut socket = TcpStream::connect(port(&Direct::default(), HttpLimits::default()).await).await.unwrap();
    socket.write_all(request.as_bytes()).await.unwrap();
    socket.into_split()
}

#[tokio::test]
async fn only_the_target_says_continue() {
    let may_continue = Arc::new(Notify::new());
    let notified = Arc::clone(&may_continue);
    let target = target_server(move |mut socket| {
        let notified = Arc::clone(&notified);
        async move {
            let head = read_head(&mut socket).await;
            assert!(head.contains("\r\nExpect: 100-continue\r\n"), "{head}");
            notified.notified().await;
            socket.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
            socket.read_exact(&mut [0; 2]).await.unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
        }
    })
    .await;
    let request = format!(
        "POST http://origin.test:{}/ HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 2\r\n\r\n",
        target.port()
    );
    let (mut reader, mut writer) = send(&request).await;
    let early = timeout(Duration::from_millis(200), reader.read_u8()).await;
    assert!(early.is_err(), "an answer before the target's");
    may_continue.notify_one();
    assert_eq!(read_head(&mut reader).await, "HTTP/1.1 100 Continue\r\n\r\n");
    writer.write_all(b"in").await.unwrap();
    assert!(read_head(&mut reader).await.starts_with("HTTP/1.1 200 OK\r\n"));

    // After a refusal, no body is awaited.
    let (target, _) = target_with("HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno").await;
    let answer = get(target, "Expect: 100-continue\r\nContent-Length: 12000000\r\n").await;
    assert_eq!(answer, "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 2\r\n\r\nno");
}

#[tokio::test]
async fn an_early_answer_arrives_while_the_application_still_sends() {
    const ANSWER: &str = "HTTP/1.1 413 Too Large\r\nConnection: close\r\nContent-Length: 3\r\n\r\nbig";
    let target = target_server(|mut socket| async move {
        socket.read_exact(&mut [0; 1000]).await.unwrap();
        // Unread bytes make the kernel reset the connection at the drop.
        socket.readable().await.unwrap();
        socket.write_all(ANSWER.as_bytes()).await.unwrap();
    })
    .await;
    for _ in 0..20 {
        let request =
            format!("POST http://origin.test:{}/ HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n", target.port());
        let (mut reader, mut writer) = send(&request).await;
        let sending = tokio::spawn(async move { while writer.write_all(&[b'x'; 10_000]).await.is_ok() {} });
        let mut answer = Vec::new();
        let _ = timeout(DEADLINE, reader.read_to_end(&mut answer)).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&answer), ANSWER);
        timeout(DEADLINE, sending).await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_request_is_received_whole_after_its_response() {
    let received = Arc::new(Notify::new());
    let notifier = Arc::clone(&received);
    let target = target_server(move |mut socket| {
        let notifier = Arc::clone(&notifier);
        async move {
            read_head(&mut socket).await;
            socket.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            socket.read_exact(&mut vec![0; 1_000_000]).await.unwrap();
            notifier.notify_one();
        }
    })
    .await;
    let request = format!("POST http://origin.test:{}/ HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n", target.port());
    let (mut reader, mut writer) = send(&request).await;
    assert!(read_head(&mut reader).await.contains("\r\nConnection: close\r\n"));
    assert_eq!(reader.read_u16().await.unwrap(), u16::from_be_bytes(*b"ok"));
    writer.write_all(&vec![0; 1_000_000]).await.unwrap();
    timeout(DEADLINE, received.notified()).await.unwrap();
    assert_eq!(timeout(DEADLINE, reader.read(&mut [0])).await.unwrap().unwrap(), 0);
}

/// A target that answers requests with the number of the connection, and records how each connection ends.
async fn counting_target(
    requests_each: usize,
) -> (SocketAddr, tokio::sync::mpsc::UnboundedReceiver<io::Result<usize>>) {
    let (ends, ended) = tokio::sync::mpsc::unbounded_channel();
    let connections = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let address = target_server(move |mut socket| {
        let (ends, number) = (ends.clone(), connections.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        async move {
            for _ in 0..requests_each {
                let mut byte = [0];
                match socket.read(&mut byte).await {
                    Ok(1) => {}
                    end => return ends.send(end).unwrap(),
                }
                read_head(&mut socket).await;
                let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{number}");
                socket.write_all(answer.as_bytes()).await.unwrap();
            }
        }
    })
    .await;
    (address, ended)
}

#[tokio::test]
async fn requests_of_one_connection_and_isolation_share_a_connection_to_the_target_that_ends_cleanly() {
    let (target, mut ended) = counting_target(usize::MAX).await;
    let connector = Direct::default();
    let mut socket = TcpStream::connect(port(&connector, HttpLimits::default()).await).await.unwrap();
    for (credentials, number) in [("", b'0'), ("", b'0'), ("Basic YTpi", b'1'), ("Basic YTpi", b'1'), ("", b'0')] {
        let field =
            if credentials.is_empty() { String::new() } else { format!("Proxy-Authorization: {credentials}\r\n") };
        let request = format!("GET http://origin.test:{}/ HTTP/1.1\r\n{field}\r\n", target.port());
        socket.write_all(request.as_bytes()).await.unwrap();
        assert!(!read_head(&mut socket).await.contains("Connection"));
        assert_eq!(socket.read_u8().await.unwrap(), number, "{credentials}");
    }
    assert_eq!(connector.isolations().len(), 2);
    drop(socket);
    for _ in 0..2 {
        let end = timeout(DEADLINE, ended.recv()).await.unwrap().unwrap();
        assert_eq!(end.unwrap(), 0, "a connection to the target was reset");
    }
}

#[tokio::test]
async fn a_request_over_a_connection_that_the_target_has_closed_opens_another() {
    let (target, _ended) = counting_target(1).await;
    let mut socket = TcpStream::connect(port(&Direct::default(), HttpLimits::default()).await).await.unwrap();
    for (number, method) in ["GET", "GET", "DELETE", "GET"].into_iter().enumerate() {
        let request = format!("{method} http://origin.test:{}/ HTTP/1.1\r\n\r\n", target.port());
        socket.write_all(request.as_bytes()).await.unwrap();
        read_head(&mut socket).await;
        assert_eq!(usize::from(socket.read_u8().await.unwrap() - b'0'), number);
    }
}

#[tokio::test]
async fn a_complete_answer_of_a_target_that_closes_ends_the_connection_to_it_without_a_reset() {
    for answer in ["HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok", "HTTP/1.0 200 OK\r\n\r\nok"] {
        let (ends, mut ended) = tokio::sync::mpsc::unbounded_channel();
        let target = target_server(move |mut socket| {
            let ends = ends.clone();
            async move {
                read_head(&mut socket).await;
                socket.write_all(answer.as_bytes()).await.unwrap();
                socket.shutdown().await.unwrap();
                ends.send(socket.read(&mut [0]).await).unwrap();
            }
        })
        .await;
        assert!(get(target, "Connection: close\r\n").await.ends_with("\r\n\r\nok"));
        let end = timeout(DEADLINE, ended.recv()).await.unwrap().unwrap();
        assert_eq!(end.unwrap(), 0, "the connection to the target was reset");
    }
}

#[tokio::test]
async fn bytes_of_other_protocols_are_named_in_the_refusal() {
    for (bytes, words) in [
        (&[5, 1, 0][..], "these bytes are SOCKS"),
        (&[4, 1, 0, 80, 127, 0, 0, 1, 0], "these bytes are SOCKS"),
        (&[0x16, 3, 1, 2, 0, 1], "these bytes are TLS"),
    ] {
        let answer = exchange_raw(port(&Direct::default(), HttpLimits::default()).await, bytes).await;
        assert!(answer.starts_with("HTTP/1.1 400 ") && answer.contains(words), "{answer}");
    }
}

#[tokio::test]
async fn answers_to_head_and_without_content_have_no_body() {
    let (target, _) = target_with("HTTP/1.1 200 OK\r\nContent-Length: 100\r\nConnection: close\r\n\r\n").await;
    let request =
        |method: &str| format!("{method} http://origin.test:{}/ HTTP/1.1\r\nConnection: close\r\n\r\n", target.port());
    let answer = answer_to(&request("HEAD")).await;
    assert_eq!(answer, "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 100\r\n\r\n");
    let answer = answer_to("HEAD http://refused.test/ HTTP/1.1\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 502 ") && answer.ends_with("\r\n\r\n"), "{answer}");
}
