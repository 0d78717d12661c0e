//! Starts, checks and ends a testnet.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use nix::sys::signal::{Signal, kill};

use super::{
    engines::{Scripted, describe, ok, status},
    harness::*,
};

#[test]
fn the_check_passes_and_reports_it() {
    let output = umbel()
        .args(["testnet", "--check", "--socks=127.0.0.1:0", "--http=127.0.0.1:0", "--page=127.0.0.1:0"])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("Check passed"), "{text}");
    let circuit = text.lines().find(|line| line.contains(" circuit ")).expect("the first circuit is shown");
    assert_eq!(circuit.matches("ms)").count(), 3, "three hops, each with its time: {circuit}");
}

#[test]
fn the_error_for_a_taken_port_names_the_port_and_the_option() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = format!("--socks={}", taken.local_addr().unwrap());
    let output = umbel().args(["testnet", &port, "--http=127.0.0.1:0", "--page=127.0.0.1:0"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1));
    assert!(text.contains(&taken.local_addr().unwrap().to_string()) && text.contains("--socks"), "{text}");
}

#[test]
fn ctrl_c_leaves_no_process_behind() {
    let testnet = Testnet::start(&["--relays=3", "--exits=1"]);
    let folder = testnet.folder.path().display().to_string();
    assert!(testnet.stop());
    assert_eq!(processes_with(&folder), 0);
}

#[test]
fn a_testnet_killed_at_any_moment_of_its_start_leaves_no_process_and_no_folder() {
    for milliseconds in [20, 200, 500, 900, 1500] {
        let temporary = tempfile::tempdir().unwrap();
        let mut process = umbel()
            .args(["testnet", "--socks=127.0.0.1:0", "--http=127.0.0.1:0", "--page=127.0.0.1:0", "--relays=4"])
            .env("TMPDIR", temporary.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        // The delay is the input: it varies the time of the kill. It waits for no event.
        std::thread::sleep(Duration::from_millis(milliseconds));
        kill(pid(&process), Signal::SIGKILL).unwrap();
        process.wait().unwrap();
        let name = temporary.path().display().to_string();
        let end = Instant::now() + TIMEOUT;
        await_true("no process is left", end, || processes_with(&name) == 0);
        await_true("no folder is left", end, || temporary.path().read_dir().unwrap().next().is_none());
    }
}

fn processes_with(folder: &str) -> usize {
    processes().iter().filter(|(_, arguments)| arguments.iter().any(|argument| argument.contains(folder))).count()
}

#[test]
fn more_exits_than_relays_are_a_usage_error() {
    let output = umbel().args(["testnet", "--relays=3", "--exits=4"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_port_for_other_machines_needs_an_option() {
    let output = umbel()
        .args(["client", "--socks=0.0.0.0:0", "--directory=http://127.0.0.1:1", "--authority"])
        .arg("a".repeat(52))
        .args(["--data-dir"])
        .arg(tempfile::tempdir().unwrap().path())
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    assert!(text.contains("--allow-remote"), "{text}");
}

/// A single node; a drop ends it.
struct Node(Child);

impl Node {
    fn start(arguments: &[&str], folder: &Path, log: &Path) -> Self {
        let log = File::create(log).unwrap();
        let data = format!("--data-dir={}", folder.display());
        Self(umbel().args(arguments).arg(data).stdout(Stdio::null()).stderr(log).spawn().unwrap())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_relay_offers_an_engine_as_soon_as_its_description_can_be_fetched() {
    let scratch = tempfile::tempdir().unwrap();
    let (folder, log) = (scratch.path(), scratch.path().join("relay.log"));
    let available = Arc::new(AtomicBool::new(false));
    let (is_available, text) =
        (Arc::clone(&available), fs::read(describe("latecomer", "https://engine.example/?q={searchTerms}", folder)));
    let text = String::from_utf8(text.unwrap()).unwrap();
    let site = Scripted::start(move |_| match is_available.load(Ordering::Relaxed) {
        true => ok("application/opensearchdescription+xml", &text),
        false => status("503 Service Unavailable"),
    });
    let authority = authority_in(&folder.join("directory"));
    let directory = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (listen, api) = (format!("--listen={directory}"), format!("--directory=http://{directory}"));
    let network = ["directory", &listen, "--await-relays=1", "--interval=1", "--private-network"];
    let _directory = Node::start(&network, &folder.join("directory"), &folder.join("directory.log"));
    let (authority, engine) =
        (format!("--authority={authority}"), format!("--engine=http://{}/description.xml", site.address));
    let relay = ["relay", "--listen=127.0.0.1:0", &api, &authority, "--delegate=search", &engine, "--log=trace"];
    let _relay = Node::start(&relay, &folder.join("relay"), &log);

    let offered = || consensus(directory).map(|list| list.windows(9).any(|part| part == b"latecomer"));
    await_true("the relay is listed", Instant::now() + TIMEOUT, || offered().is_some());
    assert_eq!(offered(), Some(false));
    available.store(true, Ordering::Relaxed);
    await_true("the engine is offered", Instant::now() + TIMEOUT, || offered() == Some(true));
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("can't offer an engine yet") && text.contains("status 503"), "{text}");
    for secret in ["127.0.0.1", "description.xml", "engine.example"] {
        assert!(!text.contains(secret), "the log holds {secret}: {text}");
    }
}

/// The consensus of the directory at `address`, if there is one yet.
fn consensus(address: SocketAddr) -> Option<Vec<u8>> {
    let mut stream = TcpStream::connect(address).ok()?;
    write!(stream, "GET /v1/consensus HTTP/1.0\r\nHost: {address}\r\n\r\n").ok()?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).ok()?;
    answer.windows(5).take(12).any(|part| part == b" 200 ").then_some(answer)
}

fn authority_in(folder: &Path) -> String {
    let output = umbel().args(["keys", "directory", "--data-dir"]).arg(folder).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let line = text.lines().find(|line| line.starts_with("authority")).expect("keys shows the authority");
    line.split_whitespace().last().unwrap().to_owned()
}

#[test]
fn a_failed_command_does_not_wait_for_its_input() {
    let unused = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let control = format!("--control={unused}");
    let mut fetch = umbel()
        .args(["fetch", &control, "--data=@-", "http://target.example/"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    // Its standard input stays open.
    let input = fetch.stdin.take();
    assert_eq!(wait_for_end(&mut fetch).code(), Some(1));
    drop(input);
}
