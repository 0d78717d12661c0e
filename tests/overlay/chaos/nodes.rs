//! The processes of the network: a directory, relays and a client, each with its own state folder, so that each can be
//! killed and started again.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{Ipv4Addr, SocketAddr, TcpStream},
    path::{Path, PathBuf},
    process::{Child, Stdio},
    sync::mpsc,
    time::Instant,
};

use data_encoding::BASE32_NOPAD;
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::harness::*;

/// UDP port of each relay, at an address of its own.
const RELAY_PORT: u16 = 4443;
/// TCP port of the directory.
const DIRECTORY_PORT: u16 = 9360;

/// A node, running or not.
pub(super) struct Node {
    pub(super) name: String,
    arguments: Vec<String>,
    log: PathBuf,
    process: Option<NodeProcess>,
}

struct NodeProcess {
    child: Child,
    /// Kept open, because a node fails if its output is closed.
    reports: mpsc::Receiver<String>,
}

impl Node {
    fn new(folder: &Path, role: &str, name: &str, arguments: Vec<String>) -> Self {
        let data = format!("--data-dir={}", folder.join(name).display());
        let arguments = [role.to_owned(), "--supervised".to_owned(), data].into_iter().chain(arguments).collect();
        Self { name: name.to_owned(), arguments, log: folder.join(format!("{name}.log")), process: None }
    }

    /// Starts the process. The log of an earlier process is continued.
    pub(super) fn start(&mut self) {
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = umbel();
        command.args(&self.arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(log);
        let mut child = command.spawn().unwrap();
        let reports = read_lines(child.stdout.take().unwrap(), |_| {});
        self.process = Some(NodeProcess { child, reports });
    }

    /// The running process.
    pub(super) fn pid(&self) -> Option<Pid> {
        self.process.as_ref().map(|process| pid(&process.child))
    }

    /// Sends a signal to the running process.
    pub(super) fn signal(&self, signal: Signal) {
        kill(self.pid().expect("the node runs"), signal).unwrap();
    }

    /// Kills the process by SIGKILL, if it runs.
    pub(super) fn kill(&mut self) {
        if let Some(mut process) = self.process.take() {
            process.child.kill().unwrap();
            process.child.wait().unwrap();
        }
    }

    /// Whether the process has ended by itself or by a signal; forgets an ended process.
    pub(super) fn has_ended(&mut self) -> bool {
        let ended = self.process.as_mut().is_some_and(|process| process.child.try_wait().unwrap().is_some());
        if ended {
            self.process = None;
        }
        ended
    }

    /// The next report of the process, if there is one already.
    pub(super) fn report(&self) -> Option<serde_json::Value> {
        let line = self.process.as_ref()?.reports.try_recv().ok()?;
        serde_json::from_str(&line).ok()
    }

    /// Waits for a report that has `key`, or whose name is `key`.
    fn await_report(&self, key: &str, end: Instant) -> serde_json::Value {
        let process = self.process.as_ref().expect("the node runs");
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = process.reports.recv_timeout(left);
            let line =
                line.unwrap_or_else(|error| panic!("{}: no report {key}: {error}{}", self.name, self.log_tail()));
            let report: serde_json::Value = serde_json::from_str(&line).unwrap();
            if report["report"] == key {
                return report;
            }
        }
    }

    /// Resident memory of the process in bytes; `None` if the process doesn't run.
    pub(super) fn memory(&self) -> Option<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()?)).ok()?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
        Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
    }

    /// The last lines of the log.
    pub(super) fn log_tail(&self) -> String {
        let log = fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = log.lines().rev().take(5).collect();
        lines.iter().rev().map(|line| format!("\n  {}: {line}", self.name)).collect()
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.kill();
    }
}

/// All nodes. A drop ends them.
pub(super) struct Nodes {
    folder: PathBuf,
    pub(super) directory: Node,
    pub(super) relays: Vec<Node>,
    pub(super) client: Node,
    exits: usize,
    authority: String,
    identities: Vec<String>,
}

impl Nodes {
    /// Starts all nodes in `folder`; the last `exits` of the relays are exits. Returns the client's SOCKS5 port too.
    pub(super) fn start(folder: &Path, relays: usize, exits: usize, interval: u64) -> (Self, SocketAddr) {
        let authority = shown_key(&folder.join("directory"), "directory", "authority");
        let api = format!("{}:{DIRECTORY_PORT}", loopback(0));
        let network = [format!("--directory=http://{api}"), format!("--authority={authority}")];
        let directory = vec![
            format!("--listen={api}"),
            format!("--await-relays={relays}"),
            format!("--interval={interval}"),
            "--volunteer-interval=1".to_owned(),
            "--private-network".to_owned(),
        ];
        let relay = |number: usize| {
            let mut arguments = vec![format!("--listen={}:{RELAY_PORT}", loopback(number + 1))];
            arguments.extend_from_slice(&network);
            if number >= relays - exits {
                arguments.extend(["--exit=accept *:*", "--allow-private-targets"].map(str::to_owned));
            }
            Node::new(folder, "relay", &relay_name(number), arguments)
        };
        let mut client = vec!["--socks=127.0.0.1:0", "--http=127.0.0.1:0", "--page=127.0.0.1:0", "--log=debug"];
        client.extend(network.iter().map(String::as_str));
        let mut nodes = Self {
            folder: folder.to_owned(),
            directory: Node::new(folder, "directory", "directory", directory),
            relays: (0..relays).map(relay).collect(),
            client: Node::new(folder, "client", "client", client.into_iter().map(str::to_owned).collect()),
            exits,
            authority,
            identities: Vec::new(),
        };
        let socks = nodes.start_all();
        nodes.identities = (0..relays).map(|number| nodes.identity(number)).collect();
        (nodes, socks)
    }

    /// Starts all nodes, and waits until all relays have published their descriptors and the client accepts requests. Returns the
    /// client's SOCKS5 port.
    pub(super) fn start_all(&mut self) -> SocketAddr {
        let end = Instant::now() + TIMEOUT;
        self.directory.start();
        self.directory.await_report("directory", end);
        self.relays.iter_mut().for_each(Node::start);
        self.client.start();
        for relay in &self.relays {
            relay.await_report("published", end);
        }
        self.client.await_report("ready", end)["socks"].as_str().unwrap().parse().unwrap()
    }

    /// Kills all nodes by SIGKILL.
    pub(super) fn kill_all(&mut self) {
        let relays = self.relays.iter_mut();
        relays.chain([&mut self.directory, &mut self.client]).for_each(Node::kill);
    }

    /// The address of a relay.
    pub(super) fn address_of(&self, relay: usize) -> SocketAddr {
        (loopback(relay + 1), RELAY_PORT).into()
    }

    /// The indices of the exits.
    pub(super) fn exits(&self) -> std::ops::Range<usize> {
        self.relays.len() - self.exits..self.relays.len()
    }

    /// The state folders of the relays.
    pub(super) fn relay_folders(folder: &Path, relays: usize) -> Vec<PathBuf> {
        (0..relays).map(|number| folder.join(relay_name(number))).collect()
    }

    /// Checks that the keys of all nodes can be read and are those of the start.
    pub(super) fn check_keys(&self) {
        let authority = shown_key(&self.folder.join("directory"), "directory", "authority");
        assert_eq!(authority, self.authority, "the directory keeps its key");
        for (number, identity) in self.identities.iter().enumerate() {
            assert_eq!(self.identity(number), *identity, "{} keeps its identity", relay_name(number));
        }
    }

    /// Waits until the directory lists all relays in a consensus that was signed after this call.
    pub(super) fn await_listed(&self, end: Instant) {
        let before = self.consensus();
        let identities: Vec<Vec<u8>> = self.identities.iter().map(|identity| decode(identity)).collect();
        let mut missing = Vec::new();
        while Instant::now() < end {
            let consensus = self.consensus();
            if let Some(consensus) = consensus.filter(|consensus| before.as_ref() != Some(consensus)) {
                let listed = |identity: &Vec<u8>| consensus.windows(identity.len()).any(|part| part == identity);
                missing =
                    (0..identities.len()).filter(|number| !listed(&identities[*number])).map(relay_name).collect();
                if missing.is_empty() {
                    return;
                }
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        panic!("not all relays are listed again: {missing:?}");
    }

    /// The body of the directory's consensus, if there is one.
    fn consensus(&self) -> Option<Vec<u8>> {
        let mut stream = TcpStream::connect((loopback(0), DIRECTORY_PORT)).ok()?;
        write!(stream, "GET /v1/consensus HTTP/1.0\r\nHost: directory\r\n\r\n").ok()?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).ok()?;
        let body = answer.windows(4).position(|part| part == b"\r\n\r\n")? + 4;
        answer.starts_with(b"HTTP/1.0 200").then(|| answer.split_off(body))
    }

    fn identity(&self, relay: usize) -> String {
        identity_in(&self.folder.join(relay_name(relay)))
    }
}

fn relay_name(number: usize) -> String {
    format!("relay{}", number + 1)
}

/// A loopback address of this test process.
pub(super) fn loopback(host: usize) -> Ipv4Addr {
    let process = std::process::id();
    let octet = |value: u32| u8::try_from(value).unwrap();
    Ipv4Addr::new(127, 100 + octet(process % 100), octet(process / 100 % 256), u8::try_from(host).unwrap() + 1)
}

fn decode(identity: &str) -> Vec<u8> {
    BASE32_NOPAD.decode(identity.to_uppercase().as_bytes()).unwrap()
}
