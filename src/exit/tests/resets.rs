//! Streams that their origins reset while the targets have not read all bytes.

use std::collections::HashSet;

use tokio::net::TcpSocket;

use super::*;

/// A target that accepts all connections and reads nothing. With its small segments and receive buffer, the system buffers
/// few bytes of a connection.
fn stuck_target() -> (TcpListener, Target) {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket2::SockRef::from(&socket).set_tcp_mss(536).unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    // The system accepts the connections.
    let listener = socket.listen(4096).unwrap();
    let address = listener.local_addr().unwrap();
    (listener, Target { host: Host::Ip(address.ip()), port: address.port() })
}

/// An exit without a core. The test performs the core's accounting.
struct CorelessExit {
    exit: Exit,
    last: u64,
}

impl CorelessExit {
    fn next(&mut self) -> ExitStream {
        self.last += 1;
        ExitStream(self.last)
    }

    /// Opens `count` streams of `owner` to `target` and sends `bytes` on each. Waits until all are connected; fails at
    /// the first that is refused.
    async fn open(
        &mut self,
        owner: RequestOwner,
        target: &Target,
        count: usize,
        bytes: &[u8],
    ) -> Result<Vec<ExitStream>, EndReason> {
        let streams: Vec<ExitStream> = (0..count).map(|_| self.next()).collect();
        for stream in &streams {
            self.exit.connect(*stream, owner, target.clone());
            self.exit.set_room(*stream, ROOM);
            self.exit.push(*stream, bytes);
        }
        let mut connecting: HashSet<_> = streams.iter().copied().collect();
        while !connecting.is_empty() {
            let (stream, command) = self.command().await;
            match command {
                StreamCommand::Connected(_) => _ = connecting.remove(&stream),
                StreamCommand::Reset(reason) if connecting.contains(&stream) => return Err(reason),
                _ => {}
            }
        }
        Ok(streams)
    }

    async fn command(&mut self) -> (ExitStream, StreamCommand) {
        timeout(DEADLINE, poll_fn(|cx| self.exit.poll_command(cx))).await.unwrap()
    }
}

#[tokio::test]
async fn a_client_that_resets_streams_to_targets_that_read_nothing_closes_no_exit() {
    const OPEN: usize = 256;
    const ENDING: usize = 64;
    let (_listener, stuck) = stuck_target();
    let echo = echo_server().await;
    let echo = Target { host: Host::Ip(echo.ip()), port: echo.port() };
    let policy = Policy::parse(["accept *"], true).unwrap();
    let resolver = Resolver::new(&ResolverOptions { private_addresses: true, ..ResolverOptions::default() });
    let options = ExitOptions { streams: OPEN + ENDING, ending: ENDING, ..ExitOptions::new(policy) };
    let mut bench = CorelessExit { exit: Exit::new(options, Arc::new(resolver), None), last: 0 };
    // An origin's initial credit, more than the system's buffers.
    let bytes = vec![0; 128 << 10];
    let honest = RequestOwner::of_source(2, 2);
    let mut circuit = 10;
    let mut open = Vec::new();
    let mut begin = async |bench: &mut CorelessExit, count| {
        circuit += 1;
        bench.open(RequestOwner::of_source(1, circuit), &stuck, count, &bytes).await.unwrap()
    };
    for round in 0..3 {
        open.extend(begin(&mut bench, OPEN - 1 - open.len()).await);
        // The core counts a reset stream no more, and admits another one in its place.
        for _ in 0..100 {
            bench.exit.close(open.remove(0), EndReason::Reset);
            open.extend(begin(&mut bench, 1).await);
        }
        // The end of circuits resets all their streams.
        for stream in open.drain(..) {
            bench.exit.close(stream, EndReason::Reset);
        }
        open.extend(begin(&mut bench, OPEN - 1).await);
        let begun = std::time::Instant::now();
        let served = bench.open(honest, &echo, 1, b"round").await.unwrap()[0];
        assert!(begun.elapsed() < PLACE_TIMEOUT, "{round}: {:?}", begun.elapsed());
        loop {
            let (stream, command) = bench.command().await;
            if stream == served && matches!(command, StreamCommand::Write(_)) {
                assert_eq!(command, StreamCommand::Write("round".into()));
                break;
            }
        }
        bench.exit.close(served, EndReason::Reset);
    }
    assert!(bench.exit.hub.unread() >= (OPEN - 1) * 1024, "the system's buffers have taken all bytes");
}

#[tokio::test]
async fn the_bytes_and_the_place_of_a_reset_stream_are_counted_until_its_task_ends() {
    let (_listener, stuck) = stuck_target();
    let policy = Policy::parse(["accept *"], true).unwrap();
    let resolver = Resolver::new(&ResolverOptions { private_addresses: true, ..ResolverOptions::default() });
    let options = ExitOptions { ending: 1, ..ExitOptions::new(policy) };
    let places = options.streams;
    let mut bench = CorelessExit { exit: Exit::new(options, Arc::new(resolver), None), last: 0 };
    let streams = bench.open(OWNER, &stuck, 2, &vec![0; 1 << 20]).await.unwrap();
    let unread = bench.exit.hub.unread();
    bench.exit.close(streams[0], EndReason::Reset);
    assert_eq!(bench.exit.hub.unread(), unread);
    // The cap on ended streams cuts one of the two.
    bench.exit.close(streams[1], EndReason::Reset);
    assert!((1..unread).contains(&bench.exit.hub.unread()));
    // The time limit for the last bytes ends the other.
    let freed = poll_fn(|cx| {
        while bench.exit.poll_command(cx).is_ready() {}
        let is_free = bench.exit.shared.places.available_permits() == places;
        if is_free && bench.exit.hub.unread() == 0 { Poll::Ready(()) } else { Poll::Pending }
    });
    timeout(DEADLINE, freed).await.unwrap();
    assert_eq!(bench.exit.hub.len(), 0);
    bench.exit.forget_finished_tasks();
    assert!(bench.exit.owners.is_empty());
}
