//! A running testnet, an HTTP server as a target, and a minimal SOCKS5 client.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, Uid},
};

/// Timeout of a wait, after which the test fails.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// A testnet of processes, which end on drop.
pub(crate) struct Testnet {
    process: Child,
    /// Kept open, because a testnet fails if its output is closed.
    _lines: mpsc::Receiver<String>,
    /// The client's SOCKS5 port.
    pub(crate) socks: SocketAddr,
    /// The client's HTTP proxy port.
    pub(crate) http: SocketAddr,
    /// The client's search page.
    pub(crate) page: SocketAddr,
    /// The directory's URL.
    pub(crate) directory: String,
    /// The folder of all nodes.
    pub(crate) folder: tempfile::TempDir,
    /// The shortened identities of the relays of the first circuit.
    pub(crate) first_path: Vec<String>,
}

impl Testnet {
    /// Starts a testnet on free ports and waits until it accepts requests.
    pub(crate) fn start(arguments: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut process = umbel()
            .args(["testnet", "--socks=127.0.0.1:0", "--http=127.0.0.1:0", "--page=127.0.0.1:0", "--dir"])
            .arg(folder.path())
            .args(arguments)
            // Without a Rust book, independent of the machine's cache.
            .env("XDG_CACHE_HOME", folder.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = lines_of(process.stdout.take().unwrap());
        let (mut socks, mut http, mut page, mut directory, mut first_path) = (None, None, None, None, Vec::new());
        let end = Instant::now() + TIMEOUT;
        while page.is_none() {
            let line = lines.recv_timeout(end.saturating_duration_since(Instant::now())).expect("the testnet starts");
            let mut words = line.split_whitespace();
            if line.contains(" circuit ") {
                first_path = line.split("circuit").nth(1).unwrap().split('→').map(first_word).collect();
            }
            if line.contains(" ready ") {
                let mut after = |word: &str| words.by_ref().skip_while(|other| *other != word).nth(1).unwrap();
                socks = Some(after("SOCKS5").parse().unwrap());
                http = Some(after("proxy").parse().unwrap());
                page = Some(after("page").trim_start_matches("http://").trim_end_matches('/').parse().unwrap());
                directory = Some(after("directory").to_owned());
            }
        }
        let (socks, http, page, directory) = (socks.unwrap(), http.unwrap(), page.unwrap(), directory.unwrap());
        Self { process, _lines: lines, socks, http, page, directory, folder, first_path }
    }

    /// Starts another client of the testnet with these options, and waits until it accepts requests.
    pub(crate) fn client(&self, arguments: &[&str]) -> SecondClient {
        let mut process = umbel()
            .args(["client", "--supervised", "--socks=127.0.0.1:0", "--http=127.0.0.1:0", "--page=127.0.0.1:0"])
            .args(self.network())
            .arg("--data-dir")
            .arg(self.folder.path().join("second-client"))
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = lines_of(process.stdout.take().unwrap());
        let mut client = SecondClient { process, lines, socks: self.socks };
        let end = Instant::now() + TIMEOUT;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = client.lines.recv_timeout(left).expect("the client is ready");
            let report: serde_json::Value = serde_json::from_str(&line).unwrap();
            if let Some(socks) = report["socks"].as_str() {
                client.socks = socks.parse().unwrap();
                return client;
            }
        }
    }

    /// The options by which another node or an example uses this network.
    pub(crate) fn network(&self) -> [String; 2] {
        let authority = shown_key(&self.folder.path().join("directory"), "directory", "authority");
        [format!("--directory={}", self.directory), format!("--authority={authority}")]
    }

    /// The identity of the relay or volunteer whose folder is `name`.
    pub(crate) fn identity_of(&self, name: &str) -> String {
        identity_in(&self.folder.path().join(name))
    }

    /// The process of the node whose folder is `name`.
    pub(crate) fn pid_of(&self, name: &str) -> Pid {
        let wanted = format!("--data-dir={}", self.folder.path().join(name).display());
        processes().into_iter().find(|(_, arguments)| arguments.contains(&wanted)).expect("the node runs").0
    }

    /// The folder of the relay with the shortened identity `short`.
    pub(crate) fn relay_folder(&self, short: &str) -> String {
        let relays = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap().path());
        let relay = relays.filter(|path| path.is_dir()).find(|path| {
            path.file_name().unwrap().to_string_lossy().starts_with("relay") && identity_in(path).starts_with(short)
        });
        relay.expect("a relay of that name").file_name().unwrap().to_string_lossy().into_owned()
    }

    /// Each node's peak resident memory, in bytes.
    pub(crate) fn peak_memory(&self) -> Vec<(String, u64)> {
        let folders = fs::read_dir(self.folder.path()).unwrap().map(|entry| entry.unwrap());
        let folders = folders.filter(|entry| entry.path().is_dir()).map(|entry| entry.file_name());
        let peak = |name: &str| {
            let status = fs::read_to_string(format!("/proc/{}/status", self.pid_of(name))).unwrap();
            let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
            line.split_whitespace().next().unwrap().parse::<u64>().unwrap() << 10
        };
        let names = folders.map(|name| name.into_string().unwrap());
        names.map(|name| (name.clone(), peak(&name))).collect()
    }

    /// Kills the node whose folder is `name` by SIGKILL.
    pub(crate) fn kill(&self, name: &str) {
        kill(self.pid_of(name), Signal::SIGKILL).unwrap();
    }

    /// Sends SIGINT and waits for the end; returns whether the exit status is a success.
    pub(crate) fn stop(mut self) -> bool {
        kill(pid(&self.process), Signal::SIGINT).unwrap();
        wait_for_end(&mut self.process).success()
    }
}

impl Drop for Testnet {
    fn drop(&mut self) {
        let _ = kill(pid(&self.process), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// A client in addition to that of the testnet; a drop ends the process.
pub(crate) struct SecondClient {
    process: Child,
    /// Kept open, because a client fails if its output is closed.
    lines: mpsc::Receiver<String>,
    /// The SOCKS5 port.
    pub(crate) socks: SocketAddr,
}

impl Drop for SecondClient {
    fn drop(&mut self) {
        let _ = kill(pid(&self.process), Signal::SIGTERM);
        let _ = self.process.wait();
    }
}

/// A child process, which ends on drop.
pub(crate) struct ChildProcess(pub(crate) Child);

impl Drop for ChildProcess {
    fn drop(&mut self) {
        let _ = kill(pid(&self.0), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// Whether the test may make network namespaces. Otherwise prints that the test is skipped.
pub(crate) fn may_make_namespaces() -> bool {
    let is_root = Uid::effective().is_root();
    if !is_root {
        eprintln!("skipped: network namespaces need root");
    }
    is_root
}

/// Machines as network namespaces, by number.
pub(crate) trait Namespaces {
    /// The namespace's name.
    fn name(&self, machine: usize) -> String;

    /// A command that runs `program` on a machine.
    fn command(&self, machine: usize, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name(machine), program]);
        command
    }

    /// Starts `program` on a machine; `configure` completes the command.
    fn spawn(&self, machine: usize, program: &str, configure: impl FnOnce(&mut Command)) -> ChildProcess {
        let mut command = self.command(machine, program);
        configure(&mut command);
        ChildProcess(command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Starts the binary under test on a machine.
    fn umbel(&self, machine: usize, configure: impl FnOnce(&mut Command)) -> ChildProcess {
        self.spawn(machine, env!("CARGO_BIN_EXE_umbel"), configure)
    }
}

/// The program under test: that of `UMBEL_TEST_PROGRAM`, by default the binary that Cargo built for the tests.
pub(crate) fn umbel() -> Command {
    Command::new(std::env::var_os("UMBEL_TEST_PROGRAM").unwrap_or_else(|| env!("CARGO_BIN_EXE_umbel").into()))
}

/// The program of an example.
pub(crate) fn example(name: &str) -> Command {
    let program = examples_folder().join(name);
    assert!(program.is_file(), "no {}: cargo build --examples", program.display());
    Command::new(program)
}

/// The folder of the examples. Cargo and nextest build examples beside the folder of the tests' programs.
pub(crate) fn examples_folder() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    test.parent().and_then(Path::parent).unwrap().join("examples")
}

pub(crate) fn pid(process: &Child) -> Pid {
    Pid::from_raw(i32::try_from(process.id()).unwrap())
}

/// The lines of `output`, as they are written. Also prints them.
pub(crate) fn lines_of(output: impl io::Read + Send + 'static) -> mpsc::Receiver<String> {
    read_lines(output, |line| eprintln!("| {line}"))
}

/// The lines of `output`, as they are written; calls `show` with each.
pub(crate) fn read_lines(
    output: impl io::Read + Send + 'static,
    show: impl Fn(&str) + Send + 'static,
) -> mpsc::Receiver<String> {
    let (sender, lines) = mpsc::channel();
    thread::spawn(move || {
        for line in BufReader::new(output).lines() {
            let Ok(line) = line else { return };
            show(&line);
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    lines
}

/// Waits for the end of a process, and fails the test after [`TIMEOUT`].
pub(crate) fn wait_for_end(process: &mut Child) -> std::process::ExitStatus {
    let end = Instant::now() + TIMEOUT;
    await_true("the process ends", end, || process.try_wait().unwrap().is_some());
    process.wait().unwrap()
}

/// Polls until `holds` returns true, and fails the test after `end`.
pub(crate) fn await_true(what: &str, end: Instant, mut holds: impl FnMut() -> bool) {
    while !holds() {
        assert!(Instant::now() < end, "not in time: {what}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// All processes with their arguments.
pub(crate) fn processes() -> Vec<(Pid, Vec<String>)> {
    let entries = fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let path = entry.ok()?.path();
        let pid = path.file_name()?.to_str()?.parse().ok()?;
        let arguments = fs::read(path.join("cmdline")).ok()?;
        let arguments = arguments.split(|byte| *byte == 0).map(|word| String::from_utf8_lossy(word).into_owned());
        Some((Pid::from_raw(pid), arguments.collect()))
    });
    entries.collect()
}

pub(crate) fn identity_in(folder: &Path) -> String {
    shown_key(folder, "relay", "identity")
}

/// The value in the output of `umbel keys` on the line that begins with `label`.
pub(crate) fn shown_key(folder: &Path, role: &str, label: &str) -> String {
    let output = umbel().args(["keys", role, "--data-dir"]).arg(folder).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with(label)).expect("the output of `umbel keys` has this label");
    line.split_whitespace().last().unwrap().to_owned()
}

pub(crate) fn first_word(text: &str) -> String {
    text.split_whitespace().next().unwrap_or_default().to_owned()
}

/// An HTTP server on loopback, as a target of streams. The length of a body determines its bytes.
pub(crate) struct TargetServer {
    /// The address of the server.
    pub(crate) address: SocketAddr,
}

impl TargetServer {
    /// Starts the server, which ends with the test's process.
    pub(crate) fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                thread::spawn(move || serve(stream));
            }
        });
        Self { address }
    }

    /// The URL of `length` bytes.
    pub(crate) fn url(&self, length: u64) -> String {
        format!("http://{}/{length}", self.address)
    }
}

/// Answers each request for `/N` with N bytes, until the peer closes.
fn serve(stream: TcpStream) -> Option<()> {
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut stream = stream;
    loop {
        let mut request = String::new();
        reader.read_line(&mut request).ok().filter(|read| *read > 0)?;
        let mut header = String::new();
        while reader.read_line(&mut header).ok()? > 2 {
            header.clear();
        }
        let path = request.split_whitespace().nth(1)?;
        let length: u64 = path.trim_start_matches('/').parse().ok()?;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\n\r\n").ok()?;
        let mut body = Body::new();
        let mut left = length;
        while left > 0 {
            let chunk = body.chunk();
            let take = usize::try_from(left.min(chunk.len() as u64)).unwrap();
            stream.write_all(&chunk[..take]).ok()?;
            left -= take as u64;
        }
    }
}

/// The bytes of every body: a xorshift sequence with a long period.
pub(crate) struct Body(u64);

impl Body {
    pub(crate) const fn new() -> Self {
        Self(0x9E37_79B9_7F4A_7C15)
    }

    /// The next 64 KiB.
    pub(crate) fn chunk(&mut self) -> Vec<u8> {
        let mut chunk = Vec::with_capacity(1 << 16);
        while chunk.len() < 1 << 16 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            chunk.extend_from_slice(&self.0.to_le_bytes());
        }
        chunk
    }
}

/// Whether the next `length` bytes of `input` are the first bytes of a body.
pub(crate) fn is_body(input: &mut impl io::Read, length: u64) -> io::Result<bool> {
    let mut body = Body::new();
    let mut left = length;
    let mut received = vec![0; 1 << 16];
    while left > 0 {
        let chunk = body.chunk();
        let take = usize::try_from(left.min(chunk.len() as u64)).unwrap();
        input.read_exact(&mut received[..take])?;
        if received[..take] != chunk[..take] {
            return Ok(false);
        }
        left -= take as u64;
    }
    Ok(true)
}

/// Sends `command` for `host` to a SOCKS5 port; returns the reply code and the open stream.
pub(crate) fn socks(
    port: SocketAddr,
    login: Option<(&str, &str)>,
    command: u8,
    host: &str,
    target_port: u16,
) -> (u8, TcpStream) {
    let mut stream = TcpStream::connect(port).unwrap();
    stream.set_read_timeout(Some(TIMEOUT)).unwrap();
    let code = try_socks(&mut stream, login, command, host, target_port).unwrap();
    (code, stream)
}

/// Sends `command` for `host` over `stream`, a stream to a SOCKS5 port; returns the reply code. For CONNECT, reads the
/// whole reply. For RESOLVE, the caller reads the reply from the address on.
pub(crate) fn try_socks(
    stream: &mut (impl io::Read + io::Write),
    login: Option<(&str, &str)>,
    command: u8,
    host: &str,
    target_port: u16,
) -> io::Result<u8> {
    let method = if login.is_some() { 2 } else { 0 };
    stream.write_all(&[5, 1, method])?;
    expect_bytes(stream, [5, method])?;
    if let Some((user, password)) = login {
        let mut request = vec![1, u8::try_from(user.len()).unwrap()];
        request.extend_from_slice(user.as_bytes());
        request.push(u8::try_from(password.len()).unwrap());
        request.extend_from_slice(password.as_bytes());
        stream.write_all(&request)?;
        expect_bytes(stream, [1, 0])?;
    }
    let mut request = vec![5, command, 0];
    match host.parse() {
        Ok(std::net::IpAddr::V4(ip)) => {
            request.push(1);
            request.extend_from_slice(&ip.octets());
        }
        Ok(std::net::IpAddr::V6(ip)) => {
            request.push(4);
            request.extend_from_slice(&ip.octets());
        }
        Err(_) => {
            request.extend_from_slice(&[3, u8::try_from(host.len()).unwrap()]);
            request.extend_from_slice(host.as_bytes());
        }
    }
    request.extend_from_slice(&target_port.to_be_bytes());
    stream.write_all(&request)?;
    let [_, code, _, family] = try_read::<4>(stream)?;
    if command == 1 {
        let length = if family == 4 { 18 } else { 6 };
        let mut skipped = vec![0; length];
        stream.read_exact(&mut skipped)?;
    }
    Ok(code)
}

/// A stream to `to` through the overlay.
pub(crate) fn connect(port: SocketAddr, to: SocketAddr) -> TcpStream {
    let (code, stream) = socks(port, None, 1, &to.ip().to_string(), to.port());
    assert_eq!(code, 0, "CONNECT succeeds");
    stream
}

/// Sends a request for `length` bytes and reads the answer's head.
pub(crate) fn request(stream: &mut TcpStream, length: u64) {
    write!(stream, "GET /{length} HTTP/1.1\r\nHost: target\r\n\r\n").unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend_from_slice(&read::<1>(stream));
    }
    assert!(head.starts_with(b"HTTP/1.1 200"));
}

pub(crate) fn read<const N: usize>(stream: &mut TcpStream) -> [u8; N] {
    try_read(stream).unwrap()
}

fn expect_bytes<const N: usize>(stream: &mut impl io::Read, expected: [u8; N]) -> io::Result<()> {
    let received = try_read(stream)?;
    if received == expected { Ok(()) } else { Err(io::Error::other(format!("{received:?} instead of {expected:?}"))) }
}

fn try_read<const N: usize>(stream: &mut impl io::Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    stream.read_exact(&mut bytes)?;
    Ok(bytes)
}
