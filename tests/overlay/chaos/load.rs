//! The load: requests through the client's SOCKS5 port, and the target server that answers them.
//!
//! Each request has a target address of its own, 127.200.0.0 and the request's number. So the target server knows the
//! request of a connection before it has a byte.

use std::{
    collections::BTreeMap,
    fs, io,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU32, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use crate::harness::*;

/// Bytes of an answer's body.
const BODY: usize = 2048;
/// Time limit of a request; beyond it, the request counts as hung.
pub(super) const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// User names, in turn: streams of different user names share no circuit.
const ISOLATIONS: u32 = 4;

/// The outcome of a request, as the application sees it.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The whole answer, and nothing else.
    Right,
    /// Other bytes than those of the answer, or a clean end before its end.
    Wrong(String),
    /// An error.
    Failed(String),
    /// Neither an answer nor an error within [`REQUEST_TIMEOUT`].
    Hung(&'static str),
}

/// A finished request.
#[derive(Debug)]
pub(super) struct Request {
    pub(super) number: u32,
    pub(super) began: Instant,
    /// The time of the SOCKS reply, if it was a success.
    pub(super) connected: Option<Instant>,
    pub(super) ended: Instant,
    pub(super) outcome: Outcome,
}

/// Makes one request. Never tries again.
pub(super) fn request(socks: SocketAddr, server: u16, number: u32) -> Request {
    let began = Instant::now();
    let mut connected = None;
    let outcome = exchange(socks, server, number, began + REQUEST_TIMEOUT, &mut connected);
    Request { number, began, connected, ended: Instant::now(), outcome }
}

fn exchange(socks: SocketAddr, server: u16, number: u32, end: Instant, connected: &mut Option<Instant>) -> Outcome {
    let failed = |stage: &'static str, error: &io::Error| match error.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Outcome::Hung(stage),
        _ => Outcome::Failed(format!("{stage}: {error}")),
    };
    let stream = TcpStream::connect_timeout(&socks, REQUEST_TIMEOUT);
    let mut stream = match stream {
        Ok(stream) => UntilDeadline { stream, end },
        Err(error) => return failed("connecting to the SOCKS port", &error),
    };
    let user = format!("user{}", number % ISOLATIONS);
    match try_socks(&mut stream, Some((&user, "x")), 1, &target(number).to_string(), server) {
        Ok(0) => *connected = Some(Instant::now()),
        Ok(code) => return Outcome::Failed(format!("SOCKS reply {code}")),
        Err(error) => return failed("before the SOCKS reply", &error),
    }
    if let Err(error) = stream.write_all(&question(number)) {
        return failed("sending the request", &error);
    }
    let expected = answer(number);
    let mut received = Vec::new();
    let ended = read_to_end(&mut stream, &mut received, expected.len() + 1);
    match ended {
        _ if !expected.starts_with(&received) => Outcome::Wrong(format!("other bytes, {} in all", received.len())),
        Ok(()) if received.len() == expected.len() => Outcome::Right,
        Ok(()) => Outcome::Wrong(format!("a clean end after {} of {} bytes", received.len(), expected.len())),
        Err(error) => failed("receiving the answer", &error),
    }
}

fn read_to_end(stream: &mut impl Read, received: &mut Vec<u8>, max: usize) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while received.len() < max {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            read => received.extend_from_slice(&buffer[..read]),
        }
    }
    Ok(())
}

/// A stream whose reads fail after a deadline.
struct UntilDeadline {
    stream: TcpStream,
    end: Instant,
}

impl Read for UntilDeadline {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.stream.set_read_timeout(Some(left))?;
        self.stream.read(buffer)
    }
}

impl Write for UntilDeadline {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }
}

/// The target address of a request.
fn target(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 200, 0, 0)) + number)
}

/// The number of the request for this target address.
fn number_of(target: IpAddr) -> Option<u32> {
    let IpAddr::V4(target) = target else { return None };
    u32::from(target).checked_sub(u32::from(Ipv4Addr::new(127, 200, 0, 0)))
}

/// The bytes of a request.
fn question(number: u32) -> Vec<u8> {
    format!("GET /{number} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", target(number)).into_bytes()
}

/// The bytes of the answer to a request: a head, and a body that depends on the request.
fn answer(number: u32) -> Vec<u8> {
    let mut bytes = format!("HTTP/1.1 200 OK\r\nContent-Length: {BODY}\r\nConnection: close\r\n\r\n").into_bytes();
    let mut random = fastrand::Rng::with_seed(u64::from(number));
    bytes.extend(std::iter::repeat_with(|| random.u8(..)).take(BODY));
    bytes
}

/// A connection of an exit to the target server.
#[derive(Clone, Copy, Debug)]
pub(super) struct Carriage {
    /// The exit; `None` if its process had ended already.
    pub(super) exit: Option<usize>,
    pub(super) at: Instant,
}

/// The state that the target server's threads share.
#[derive(Default)]
struct Shared {
    carriages: Mutex<BTreeMap<u32, Vec<Carriage>>>,
    /// The processes of the exits that run.
    exits: Mutex<Vec<(usize, i32)>>,
    wrong: AtomicU32,
}

/// The target server, on all loopback addresses. Ends with the test's process.
pub(super) struct TargetServer {
    pub(super) port: u16,
    shared: Arc<Shared>,
}

impl TargetServer {
    pub(super) fn start() -> Self {
        let listener = TcpListener::bind("0.0.0.0:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let shared = Arc::<Shared>::default();
        let own = Arc::clone(&shared);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let shared = Arc::clone(&own);
                thread::spawn(move || serve(stream, &shared));
            }
        });
        Self { port, shared }
    }

    /// Sets the processes of the exits that run.
    pub(super) fn set_exits(&self, exits: Vec<(usize, i32)>) {
        *self.shared.exits.lock().unwrap() = exits;
    }

    /// The connections that carried a request, the first one first.
    pub(super) fn carriages(&self, number: u32) -> Vec<Carriage> {
        self.shared.carriages.lock().unwrap().get(&number).cloned().unwrap_or_default()
    }

    /// The number of requests that arrived with other bytes than were sent.
    pub(super) fn wrong_requests(&self) -> u32 {
        self.shared.wrong.load(Ordering::Relaxed)
    }
}

fn serve(mut stream: TcpStream, shared: &Shared) -> Option<()> {
    let at = Instant::now();
    let (local, peer) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    let number = number_of(local.ip())?;
    let exits = shared.exits.lock().unwrap().clone();
    let exit = owner_of(peer, local, &exits);
    shared.carriages.lock().unwrap().entry(number).or_default().push(Carriage { exit, at });
    stream.set_read_timeout(Some(TIMEOUT)).ok()?;
    let expected = question(number);
    let mut received = vec![0; expected.len()];
    let mut length = 0;
    while length < expected.len() {
        let read = stream.read(&mut received[length..]).ok().filter(|read| *read > 0)?;
        length += read;
        if received[..length] != expected[..length] {
            shared.wrong.fetch_add(1, Ordering::Relaxed);
            return None;
        }
    }
    stream.write_all(&answer(number)).ok()
}

/// The exit whose process owns the socket from `peer` to `local`.
fn owner_of(peer: SocketAddr, local: SocketAddr, exits: &[(usize, i32)]) -> Option<usize> {
    let sockets = fs::read_to_string("/proc/net/tcp").ok()?;
    let wanted = format!(" {} {} ", hexadecimal(peer)?, hexadecimal(local)?);
    let line = sockets.lines().find(|line| line.contains(&wanted))?;
    let socket = format!("socket:[{}]", line.split_whitespace().nth(9)?);
    let owns = |process: i32| {
        let files = fs::read_dir(format!("/proc/{process}/fd")).ok()?;
        let mut targets = files.filter_map(|file| fs::read_link(file.ok()?.path()).ok());
        targets.any(|target| target.as_os_str() == socket.as_str()).then_some(())
    };
    exits.iter().find(|(_, process)| owns(*process).is_some()).map(|(exit, _)| *exit)
}

/// An address as in `/proc/net/tcp`.
fn hexadecimal(address: SocketAddr) -> Option<String> {
    let IpAddr::V4(ip) = address.ip() else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(ip.octets()), address.port()))
}
