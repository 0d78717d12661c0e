//! Requests through the two ports of a client.

use std::{
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    thread,
};

use super::harness::*;

const CONNECT: u8 = 1;
const UDP_ASSOCIATE: u8 = 3;
const RESOLVE: u8 = 0xF0;

#[test]
fn the_ports_of_a_client_work() {
    // One testnet serves all parts; each part is a function, identified by its name in a failure's backtrace.
    let testnet = &Testnet::start(&[]);
    bodies_arrive_unchanged(testnet);
    each_direction_closes_separately(testnet);
    host_names_and_ipv6_addresses_are_reached(testnet);
    failures_have_their_reply_codes(testnet);
    unsupported_commands_are_refused(testnet);
    names_are_resolved_by_the_exit(testnet);
    logins_are_accepted(testnet);
    the_http_port_forwards_and_refuses(testnet);
    concurrent_streams_arrive_unchanged(testnet);
    a_stalled_reader_delays_no_other_stream(testnet);
}

fn bodies_arrive_unchanged(testnet: &Testnet) {
    let target = TargetServer::start();
    for length in [0, 1, 963, 964, 5 << 20] {
        let mut stream = connect(testnet.socks, target.address);
        request(&mut stream, length);
        assert!(is_body(&mut stream, length).unwrap());
    }
}

fn each_direction_closes_separately(testnet: &Testnet) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut received = Vec::new();
        stream.read_to_end(&mut received).unwrap();
        stream.write_all(&received).unwrap();
    });
    let mut stream = connect(testnet.socks, address);
    let sent = vec![42; 300_000];
    stream.write_all(&sent).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut received = Vec::new();
    stream.read_to_end(&mut received).unwrap();
    assert_eq!(received, sent);
    server.join().unwrap();
}

fn host_names_and_ipv6_addresses_are_reached(testnet: &Testnet) {
    let target = TargetServer::start();
    let (code, mut stream) = socks(testnet.socks, None, CONNECT, "localhost", target.address.port());
    assert_eq!(code, 0);
    request(&mut stream, 1000);
    assert!(is_body(&mut stream, 1000).unwrap());
    if let Ok(listener) = TcpListener::bind("[::1]:0") {
        let port = listener.local_addr().unwrap().port();
        assert_eq!(socks(testnet.socks, None, CONNECT, "::1", port).0, 0);
        listener.accept().unwrap();
    }
}

fn failures_have_their_reply_codes(testnet: &Testnet) {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    assert_eq!(socks(testnet.socks, None, CONNECT, "127.0.0.1", unused.port()).0, 5, "refused");
    assert_eq!(socks(testnet.socks, None, CONNECT, "no-such-name.invalid", 80).0, 2, "a reserved name");
}

fn unsupported_commands_are_refused(testnet: &Testnet) {
    assert_eq!(socks(testnet.socks, None, UDP_ASSOCIATE, "127.0.0.1", 53).0, 7);
}

fn names_are_resolved_by_the_exit(testnet: &Testnet) {
    let (code, mut stream) = socks(testnet.socks, None, RESOLVE, "localhost", 0);
    assert_eq!(code, 0);
    assert_eq!(read::<4>(&mut stream), [127, 0, 0, 1]);
}

fn logins_are_accepted(testnet: &Testnet) {
    let target = TargetServer::start();
    let (host, port) = (target.address.ip().to_string(), target.address.port());
    let (code, mut stream) = socks(testnet.socks, Some(("alice", "one")), CONNECT, &host, port);
    assert_eq!(code, 0);
    request(&mut stream, 10);
    assert!(is_body(&mut stream, 10).unwrap());
}

fn the_http_port_forwards_and_refuses(testnet: &Testnet) {
    let target = TargetServer::start();
    let mut stream = TcpStream::connect(testnet.http).unwrap();
    write!(stream, "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", target.url(5), target.address).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer));
    assert!(answer.ends_with(&Body::new().chunk()[..5]));

    let mut stream = TcpStream::connect(testnet.http).unwrap();
    write!(stream, "CONNECT {} HTTP/1.1\r\nHost: {0}\r\n\r\n", target.address).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend_from_slice(&read::<1>(&mut stream));
    }
    assert!(head.starts_with(b"HTTP/1.1 200"));
    request(&mut stream, 100_000);
    assert!(is_body(&mut stream, 100_000).unwrap());

    let mut stream = TcpStream::connect(testnet.http).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", testnet.http).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 4"), "{}", String::from_utf8_lossy(&answer));

    let mut stream = TcpStream::connect(testnet.http).unwrap();
    write!(stream, "GET http://umbel.onion/ HTTP/1.1\r\nHost: umbel.onion\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 403") && answer.contains("has a reserved name"), "{answer}");
}

fn concurrent_streams_arrive_unchanged(testnet: &Testnet) {
    let target = TargetServer::start();
    let fetchers: Vec<_> = (0..32_u64)
        .map(|number| {
            let (socks, address) = (testnet.socks, target.address);
            thread::spawn(move || {
                let mut stream = connect(socks, address);
                let length = 10_000 * (number + 1);
                request(&mut stream, length);
                is_body(&mut stream, length).unwrap()
            })
        })
        .collect();
    assert!(fetchers.into_iter().all(|fetcher| fetcher.join().unwrap()));
}

fn a_stalled_reader_delays_no_other_stream(testnet: &Testnet) {
    let target = TargetServer::start();
    let mut stalled: Vec<_> = (0..4)
        .map(|_| {
            let mut stream = connect(testnet.socks, target.address);
            request(&mut stream, 20 << 20);
            stream
        })
        .collect();
    let mut stream = connect(testnet.socks, target.address);
    request(&mut stream, 1 << 20);
    assert!(is_body(&mut stream, 1 << 20).unwrap());
    assert!(is_body(&mut stalled[0], 20 << 20).unwrap(), "the stalled stream is complete");
}
