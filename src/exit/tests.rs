mod resets;

use std::{
    collections::HashMap,
    future::poll_fn,
    net::{IpAddr, Ipv4Addr},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
    sync::oneshot,
};

use super::*;
use crate::{
    base::{Owner, RelayId},
    client::StreamFailure,
    connector::{ConnectError, Connector, Delegated, DelegatedRequest, Isolation},
    io::{
        resolver::ResolverOptions,
        testing::{Flows, ROOM, echo_server, reason_of, target_server},
    },
    ports::{
        http_proxy::{self, HttpLimits},
        socks::{self, SocksLimits},
    },
    wire::ResolvedAnswer,
};

const DEADLINE: Duration = Duration::from_secs(20);

/// The circuit of all streams, where a test names no other.
const OWNER: RequestOwner = RequestOwner { circuit_owner: Owner::Relay(RelayId::from_bytes([1; 32])), circuit: 1 };

/// A request of the client.
enum Request {
    Open(Target, oneshot::Sender<Result<Stream, ConnectError>>),
    Resolve(Host, oneshot::Sender<Result<Vec<ResolvedAnswer>, ConnectError>>),
}

/// A client connected to an exit directly through a queue, without circuits.
#[derive(Clone)]
struct ViaExit(mpsc::UnboundedSender<Request>);

impl ViaExit {
    fn new(options: ExitOptions, resolver: Resolver) -> Self {
        let (sender, requests) = mpsc::unbounded_channel();
        tokio::spawn(run(Exit::new(options, Arc::new(resolver), None), requests));
        Self(sender)
    }

    /// An exit that may connect to this machine.
    fn private() -> Self {
        let policy = Policy::parse(["reject *:9", "accept *"], true).unwrap();
        let resolver = Resolver::new(&ResolverOptions {
            servers: vec!["127.0.0.1:9".parse().unwrap()],
            private_addresses: true,
            ..ResolverOptions::default()
        });
        Self::new(ExitOptions::new(policy), resolver)
    }
}

impl Connector for ViaExit {
    async fn open(&self, target: Target, _: Isolation) -> Result<Stream, ConnectError> {
        let (sender, answer) = oneshot::channel();
        self.0.send(Request::Open(target, sender)).unwrap_or_else(|_| panic!("the core's task has ended"));
        answer.await.unwrap()
    }

    async fn resolve(&self, host: Host, _: Isolation) -> Result<Vec<ResolvedAnswer>, ConnectError> {
        let (sender, answer) = oneshot::channel();
        self.0.send(Request::Resolve(host, sender)).unwrap_or_else(|_| panic!("the core's task has ended"));
        answer.await.unwrap()
    }

    async fn delegate(&self, _: DelegatedRequest) -> Result<Delegated, ConnectError> {
        Err(EndReason::Policy.into())
    }
}

/// The core of both ends.
#[derive(Default)]
struct Core {
    /// The identifier of the newest stream or lookup.
    last: u64,
    hub: Option<Hub<u64>>,
    forward: Flows,
    backward: Flows,
    connecting: HashMap<u64, oneshot::Sender<Result<Stream, ConnectError>>>,
    resolving: HashMap<u64, oneshot::Sender<Result<Vec<ResolvedAnswer>, ConnectError>>>,
}

impl Core {
    fn hub(&mut self) -> &mut Hub<u64> {
        self.hub.as_mut().unwrap()
    }

    /// Forwards bytes in both directions as far as credit allows, and updates the room of both ends.
    fn pump(&mut self, exit: &mut Exit, stream: u64) {
        let mut end = None;
        let push = |bytes: &[u8]| {
            exit.push(ExitStream(stream), bytes);
            exit.cap_unread();
        };
        let room = self.forward.pump(stream, push, |reason| end = Some(reason));
        self.hub().set_room(stream, room);
        match end.take() {
            Some(EndReason::Done) => exit.finish(ExitStream(stream)),
            Some(reason) => {
                self.fail(stream, reason);
                return exit.close(ExitStream(stream), EndReason::Reset);
            }
            None => {}
        }
        let hub = self.hub.as_mut().unwrap();
        let room = self.backward.pump(stream, |bytes| hub.push(stream, bytes), |reason| end = Some(reason));
        exit.set_room(ExitStream(stream), room);
        match end {
            Some(EndReason::Done) => hub.finish(stream),
            Some(reason) => {
                self.fail(stream, reason);
                exit.close(ExitStream(stream), reason);
            }
            None => {}
        }
    }

    fn forget(&mut self, stream: u64) {
        self.forward.remove(stream);
        self.backward.remove(stream);
    }
}

impl Core {
    fn handle_command(&mut self, stream: u64, command: StreamCommand) {
        match command {
            StreamCommand::Connected(_) => {
                let opened = self.hub().open(stream, ROOM);
                let _ = self.connecting.remove(&stream).unwrap().send(Ok(opened));
            }
            StreamCommand::Resolved { answers, .. } => {
                let _ = self.resolving.remove(&stream).unwrap().send(Ok(answers));
            }
            StreamCommand::Write(bytes) => self.backward.write(stream, &bytes),
            StreamCommand::Consumed(bytes) => self.forward.credit(stream, bytes),
            StreamCommand::Finish => self.backward.finish(stream, EndReason::Done),
            StreamCommand::Fail(reason) => self.backward.finish(stream, reason),
            StreamCommand::Reset(reason) => self.fail(stream, reason),
        }
    }

    fn fail(&mut self, stream: u64, reason: EndReason) {
        if let Some(sender) = self.connecting.remove(&stream) {
            let _ = sender.send(Err(reason.into()));
        }
        if let Some(sender) = self.resolving.remove(&stream) {
            let _ = sender.send(Err(reason.into()));
        }
        self.hub().fail(stream, reason);
        self.forget(stream);
    }
}

async fn run(mut exit: Exit, mut requests: mpsc::UnboundedReceiver<Request>) {
    let mut core = Core { hub: Some(Hub::new()), ..Core::default() };
    loop {
        let hub = core.hub.as_mut().unwrap();
        tokio::select! {
            Some(request) = requests.recv() => {
                core.last += 1;
                let stream = core.last;
                match request {
                    Request::Open(target, answer) => {
                        core.forward.open(stream);
                        core.backward.open(stream);
                        core.connecting.insert(stream, answer);
                        exit.connect(ExitStream(stream), OWNER, target);
                    }
                    Request::Resolve(host, answer) => {
                        core.resolving.insert(stream, answer);
                        exit.resolve(ExitStream(stream), OWNER, host);
                    }
                }
            }
            (stream, command) = poll_fn(|cx| hub.poll_command(cx)) => {
                match command {
                    StreamCommand::Write(bytes) => core.forward.write(stream, &bytes),
                    StreamCommand::Finish => core.forward.finish(stream, EndReason::Done),
                    StreamCommand::Fail(reason) => core.forward.finish(stream, reason),
                    StreamCommand::Consumed(bytes) => core.backward.credit(stream, bytes),
                    StreamCommand::Reset(_) => {
                        core.forget(stream);
                        exit.close(ExitStream(stream), EndReason::Reset);
                        continue;
                    }
                    StreamCommand::Connected(_) | StreamCommand::Resolved { .. } => panic!("{command:?} of a stream"),
                }
                core.pump(&mut exit, stream);
            }
            (ExitStream(stream), command) = poll_fn(|cx| exit.poll_command(cx)) => {
                core.handle_command(stream, command);
                core.pump(&mut exit, stream);
            }
        }
    }
}

fn target(host: &str, port: u16) -> Target {
    Target { host: Host::parse(host).unwrap(), port }
}

async fn open(via: &ViaExit, host: &str, port: u16) -> Result<Stream, ConnectError> {
    timeout(DEADLINE, via.open(target(host, port), Isolation::of_listener("test"))).await.unwrap()
}

#[tokio::test]
async fn a_stream_reaches_its_target_by_name_and_address_and_half_closes() {
    let target_address = echo_server().await;
    let via = ViaExit::private();
    for host in ["localhost", "127.0.0.1", "::ffff:127.0.0.1"] {
        let mut stream = open(&via, host, target_address.port()).await.unwrap();
        stream.write_all(b"round").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = String::new();
        timeout(DEADLINE, stream.read_to_string(&mut back)).await.unwrap().unwrap();
        assert_eq!(back, "round", "{host}");
    }
}

#[tokio::test]
async fn the_other_direction_stays_open_after_the_target_has_finished() {
    let (sender, received) = oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let target_address = target_server(move |mut socket| {
        let sender = sender.lock().unwrap().take().unwrap();
        async move {
            socket.write_all(b"from the target").await.unwrap();
            socket.shutdown().await.unwrap();
            let mut text = String::new();
            socket.read_to_string(&mut text).await.unwrap();
            sender.send(text).unwrap();
        }
    })
    .await;
    let mut stream = open(&ViaExit::private(), "127.0.0.1", target_address.port()).await.unwrap();
    let mut text = String::new();
    timeout(DEADLINE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
    assert_eq!(text, "from the target");
    stream.write_all(b"from the origin").await.unwrap();
    stream.shutdown().await.unwrap();
    assert_eq!(timeout(DEADLINE, received).await.unwrap().unwrap(), "from the origin");
}

#[tokio::test]
async fn each_failure_to_connect_has_its_reason() {
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let via = ViaExit::private();
    let reason = async |host: &str, port: u16| match open(&via, host, port).await {
        Err(ConnectError::Stream(StreamFailure::Ended(reason))) => reason,
        other => panic!("{other:?}"),
    };
    assert_eq!(reason("127.0.0.1", closed.port()).await, EndReason::Refused);
    assert_eq!(reason("127.0.0.1", 9).await, EndReason::Policy);
    assert_eq!(reason("x.onion", 80).await, EndReason::NotFound);
}

#[tokio::test]
async fn the_policy_decides_on_the_addresses_of_a_name() {
    let (server, _) = crate::io::resolver::tests::name_server().await;
    let target_address = echo_server().await;
    let policy = |private| Policy::parse(["accept *"], private).unwrap();
    let options =
        |private_addresses| ResolverOptions { servers: vec![server], private_addresses, ..ResolverOptions::default() };
    let lenient = ViaExit::new(ExitOptions::new(policy(true)), Resolver::new(&options(true)));
    assert!(open(&lenient, "both.example.net", target_address.port()).await.is_ok());
    // Policy and resolver must both allow private addresses.
    for (by_policy, by_resolver) in [(false, true), (false, false), (true, false)] {
        let strict = ViaExit::new(ExitOptions::new(policy(by_policy)), Resolver::new(&options(by_resolver)));
        let refused = open(&strict, "both.example.net", target_address.port()).await.unwrap_err();
        assert_eq!(refused, EndReason::Policy.into());
    }
    let strict = ViaExit::new(ExitOptions::new(policy(false)), Resolver::new(&options(false)));
    for host in ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.0.0.1", "169.254.169.254", "0.0.0.0", "localhost"] {
        assert_eq!(open(&strict, host, target_address.port()).await.unwrap_err(), EndReason::Policy.into(), "{host}");
    }
}

#[tokio::test]
async fn another_address_is_tried_when_the_first_refuses() {
    // Only IPv6 has a listener, and IPv4 is tried first.
    let Ok(listener) = TcpListener::bind("[::1]:0").await else { return };
    let port = listener.local_addr().unwrap().port();
    if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).await.is_err() {
        return;
    }
    tokio::spawn(async move { listener.accept().await });
    assert!(open(&ViaExit::private(), "localhost", port).await.is_ok());
}

#[test]
fn the_address_families_alternate_in_any_order_of_arrival() {
    let ips = |texts: &[&str]| texts.iter().map(|ip| ip.parse().unwrap()).collect::<Vec<IpAddr>>();
    let mut waiting = connect::WaitingAddresses::default();
    ips(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "::1", "::2"]).into_iter().for_each(|ip| waiting.push(ip));
    let ordered: Vec<IpAddr> = core::iter::from_fn(|| waiting.pop()).collect();
    assert_eq!(ordered, ips(&["10.0.0.1", "::1", "10.0.0.2", "::2", "10.0.0.3"]));
    waiting.push(ips(&["::1"])[0]);
    assert_eq!(waiting.pop(), Some(ips(&["::1"])[0]));
    ips(&["::2", "10.0.0.1"]).into_iter().for_each(|ip| waiting.push(ip));
    assert_eq!(waiting.pop(), Some(ips(&["10.0.0.1"])[0]));
}

#[tokio::test]
async fn the_attempts_of_a_connect_are_capped() {
    let (server, _) = crate::io::resolver::tests::name_server().await;
    let options = ResolverOptions { servers: vec![server], private_addresses: true, ..ResolverOptions::default() };
    for (last, within) in [(5, true), (6, false)] {
        let policy = Policy::parse(["accept *"], true).unwrap();
        let via = ViaExit::new(ExitOptions::new(policy), Resolver::new(&options));
        let listener = TcpListener::bind((Ipv4Addr::new(127, 0, 0, last), 0)).await.unwrap();
        // The name has the addresses 127.0.0.2 to 127.0.0.7.
        let connected = open(&via, "six.example.net", listener.local_addr().unwrap().port()).await;
        assert_eq!(connected.is_ok(), within, "127.0.0.{last}");
    }
}

#[tokio::test]
async fn a_connect_does_not_wait_for_an_unanswered_aaaa_query() {
    let (server, _) = crate::io::resolver::tests::name_server().await;
    let target_address = echo_server().await;
    let options = ResolverOptions { servers: vec![server], private_addresses: true, ..ResolverOptions::default() };
    let policy = Policy::parse(["accept *"], true).unwrap();
    let via = ViaExit::new(ExitOptions::new(policy), Resolver::new(&options));
    let start = std::time::Instant::now();
    assert!(open(&via, "v4-only.example.net", target_address.port()).await.is_ok());
    // The unanswered query takes 6.7 s.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[tokio::test]
async fn streams_beyond_the_cap_are_refused_until_others_end() {
    let target_address = echo_server().await;
    let policy = Policy::parse(["accept *"], true).unwrap();
    let resolver = Resolver::new(&ResolverOptions { private_addresses: true, ..ResolverOptions::default() });
    let via = ViaExit::new(ExitOptions { streams: 2, ..ExitOptions::new(policy) }, resolver);
    let first = open(&via, "127.0.0.1", target_address.port()).await.unwrap();
    let _second = open(&via, "127.0.0.1", target_address.port()).await.unwrap();
    let refused = open(&via, "127.0.0.1", target_address.port()).await.unwrap_err();
    assert_eq!(refused, EndReason::ResourceLimit.into());
    drop(first);
    let reopened = async {
        while open(&via, "127.0.0.1", target_address.port()).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, reopened).await.unwrap();
}

#[tokio::test]
async fn targets_that_read_nothing_fill_the_memory_up_to_the_cap() {
    let (echo, stuck) = (echo_server().await, target_server(|_socket| core::future::pending()).await);
    let policy = Policy::parse(["accept *"], true).unwrap();
    let resolver = Resolver::new(&ResolverOptions { private_addresses: true, ..ResolverOptions::default() });
    let via = ViaExit::new(ExitOptions { unread: 64 * 1024, ..ExitOptions::new(policy) }, resolver);
    let mut honest = open(&via, "127.0.0.1", echo.port()).await.unwrap();
    let mut filling = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let mut stream = open(&via, "127.0.0.1", stuck.port()).await.unwrap();
        filling.spawn(async move {
            let block = vec![0; 64 * 1024];
            loop {
                if let Err(error) = stream.write_all(&block).await {
                    return reason_of(&error);
                }
            }
        });
    }
    // The kernel's buffers and the credit end the writes of three streams without an error.
    let first = timeout(DEADLINE, filling.join_next()).await.unwrap().unwrap().unwrap();
    assert_eq!(first, Some(EndReason::ResourceLimit));
    let mut answer = [0; 5];
    honest.write_all(b"hello").await.unwrap();
    timeout(DEADLINE, honest.read_exact(&mut answer)).await.unwrap().unwrap();
    assert_eq!(&answer, b"hello");
}

#[tokio::test]
async fn targets_that_read_nothing_keep_few_sockets_of_ended_streams() {
    let stuck = target_server(|mut socket| async move {
        socket.shutdown().await.unwrap();
        core::future::pending().await
    })
    .await;
    let policy = Policy::parse(["accept *"], true).unwrap();
    let resolver = Resolver::new(&ResolverOptions { private_addresses: true, ..ResolverOptions::default() });
    let options = ExitOptions { streams: 4, ending: 2, ..ExitOptions::new(policy) };
    let mut exit = Exit::new(options, Arc::new(resolver), None);
    let target = Target { host: Host::Ip(stuck.ip()), port: stuck.port() };
    for stream in (1..=4).map(ExitStream) {
        exit.connect(stream, OWNER, target.clone());
        exit.set_room(stream, ROOM);
        // More than the kernel's buffers of both sockets.
        exit.push(stream, &vec![0; 32 << 20]);
        exit.finish(stream);
        exit.flush();
    }
    let finishes = async {
        let mut finished = 0;
        while finished < 4 {
            let (_, command) = poll_fn(|cx| exit.poll_command(cx)).await;
            finished += usize::from(command == StreamCommand::Finish);
        }
    };
    timeout(DEADLINE, finishes).await.unwrap();
    assert_eq!(exit.shared.places.available_permits(), 0, "the targets have read all");
    (1..=4).map(ExitStream).for_each(|stream| exit.handle_ended(stream, EndKind::Finished));
    let freed = async {
        while exit.shared.places.available_permits() != 2 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, freed).await.unwrap();
    let is_kept = |stream| exit.hub.unread_of(ExitStream(stream)).is_some();
    assert!(!is_kept(2) && is_kept(3), "the oldest streams end");
}

#[tokio::test]
async fn a_reset_crosses_in_both_directions_without_a_reader() {
    let target_address = target_server(|mut socket| async move {
        socket.read_exact(&mut [0; 1]).await.unwrap();
        crate::io::stream::reset_on_close(&socket);
    })
    .await;
    let via = ViaExit::private();
    let mut stream = open(&via, "127.0.0.1", target_address.port()).await.unwrap();
    stream.write_all(b"!").await.unwrap();
    let error = timeout(DEADLINE, stream.read(&mut [0; 1])).await.unwrap().unwrap_err();
    assert_eq!(reason_of(&error), Some(EndReason::Reset));

    // The target neither reads nor writes, so that only the reset itself ends the stream.
    let (sender, ended) = oneshot::channel();
    let sender = std::sync::Mutex::new(Some(sender));
    let stuck = crate::io::testing::target_server(move |socket| {
        let sender = sender.lock().unwrap().take().unwrap();
        async move {
            let error = socket.ready(tokio::io::Interest::ERROR).await;
            sender.send(error.is_ok()).unwrap();
        }
    })
    .await;
    let mut stream = open(&via, "127.0.0.1", stuck.port()).await.unwrap();
    let block = vec![0; 64 * 1024];
    // The kernel's buffers are of unknown size. They count as full once a write waits this long; no event shows it.
    while let Ok(written) = timeout(Duration::from_millis(200), stream.write(&block)).await {
        written.unwrap();
    }
    drop(stream);
    assert!(timeout(DEADLINE, ended).await.unwrap().unwrap());
}

#[tokio::test]
async fn names_are_resolved_at_the_exit() {
    let via = ViaExit::private();
    let isolation = Isolation::of_listener("test");
    let found = via.resolve(Host::parse("localhost").unwrap(), isolation).await.unwrap();
    assert!(found.contains(&ResolvedAnswer::Ip(Ipv4Addr::LOCALHOST.into())));
    let missing = via.resolve(Host::parse("x.onion").unwrap(), isolation).await.unwrap_err();
    assert_eq!(missing, EndReason::NotFound.into());
}

#[tokio::test]
async fn an_early_answer_of_a_target_that_closes_arrives_through_both_ports() {
    const ANSWER: &[u8] = b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig";
    let target_address = target_server(|mut socket| async move {
        socket.read_exact(&mut [0; 1000]).await.unwrap();
        // Unread bytes make the kernel reset the connection at the drop.
        socket.readable().await.unwrap();
        socket.write_all(ANSWER).await.unwrap();
    })
    .await;
    let [socks, http] = {
        let mut listeners = Vec::new();
        for _ in 0..2 {
            listeners.push(TcpListener::bind("127.0.0.1:0").await.unwrap());
        }
        let addresses = [0, 1].map(|index: usize| listeners[index].local_addr().unwrap());
        tokio::spawn(http_proxy::serve(listeners.pop().unwrap(), ViaExit::private(), HttpLimits::default()));
        tokio::spawn(socks::serve(listeners.pop().unwrap(), ViaExit::private(), SocksLimits::default()));
        addresses
    };
    let [high, low] = target_address.port().to_be_bytes();
    let by_socks = [&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1][..], &[high, low]].concat();
    let by_connect = format!("CONNECT {target_address} HTTP/1.1\r\n\r\n").into_bytes();
    for (port, request, reply_len) in [(socks, by_socks, 12), (http, by_connect, 19)] {
        for _ in 0..20 {
            let mut socket = tokio::net::TcpStream::connect(port).await.unwrap();
            socket.write_all(&request).await.unwrap();
            socket.read_exact(&mut vec![0; reply_len]).await.unwrap();
            let (mut reader, mut writer) = socket.into_split();
            let sending = tokio::spawn(async move { while writer.write_all(&[b'x'; 10_000]).await.is_ok() {} });
            let mut answer = Vec::new();
            let result = timeout(DEADLINE, reader.read_to_end(&mut answer)).await.unwrap();
            assert!(answer == ANSWER && result.is_err(), "{} bytes, then {result:?}", answer.len());
            timeout(DEADLINE, sending).await.unwrap().unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_download_through_socks_and_exit_is_whole() {
    const TOTAL: usize = 32 * 1024 * 1024;
    let byte_at = |at: usize| (at ^ (at >> 8) ^ (at >> 16)) as u8;
    let target_address = target_server(move |mut socket| async move {
        let body: Vec<u8> = (0..TOTAL).map(byte_at).collect();
        socket.write_all(&body).await.unwrap();
    })
    .await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(socks::serve(listener, ViaExit::private(), SocksLimits::default()));
    let mut socket = tokio::net::TcpStream::connect(address).await.unwrap();
    let [high, low] = target_address.port().to_be_bytes();
    socket.write_all(&[5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, high, low]).await.unwrap();
    socket.read_exact(&mut [0; 12]).await.unwrap();
    let mut body = Vec::new();
    timeout(DEADLINE, socket.read_to_end(&mut body)).await.unwrap().unwrap();
    assert_eq!(body.len(), TOTAL);
    assert!(body.iter().enumerate().all(|(at, byte)| *byte == byte_at(at)));
}
