//! A download over links with delay and loss: real processes in network namespaces that `xtask/labs/netdelay.c` joins.

use std::{
    fs, io,
    path::Path,
    process::{Command, Output, Stdio},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use super::harness::*;

/// One-way delay of each link, in milliseconds.
const DELAY_MS: &str = "25";
/// Fraction of the packets that each link loses.
const LOSS: &str = "0.01";
/// Longest permitted time for [`PROGRESS`]: many round trips, and several consecutive timeouts of a link.
const STALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Bytes after which the download does not count as stalled: about a thousandth of what the links' loss permits, and
/// more than the 0.2 MiB a second of a link that takes each loss for congestion.
const PROGRESS: usize = 1 << 20;
/// Bytes of the download.
const LENGTH: usize = 8 << 20;

/// The machines. The target is on the exit's machine, because TCP between exit and target is not under test.
const DIRECTORY: usize = 0;
const RELAYS: [usize; 3] = [1, 2, 3];
const EXIT: usize = 3;
const CLIENT: usize = 4;
const MACHINES: usize = 5;

#[test]
#[ignore = "needs root, iproute2, curl, python3 and a C compiler: cargo xtask test runs it"]
fn a_download_over_delay_and_loss_is_complete_and_never_stalls() {
    if !may_make_namespaces() {
        return;
    }
    let scratch = tempfile::tempdir().unwrap();
    let folder = scratch.path();
    let links = Links::new(folder);
    let _nodes = start(&links, folder);
    let target = format!("http://{}", address(EXIT));

    let end = Instant::now() + TIMEOUT;
    await_true("a first fetch succeeds", end, || fetch_small(&links, &target).stdout == b"small");
    let mut body = Body::new();
    let expected: Vec<u8> = std::iter::repeat_with(|| body.chunk()).flatten().take(LENGTH).collect();
    fs::write(folder.join("www/body"), &expected).unwrap();
    download(&links, &format!("{target}/body"), &expected);
}

/// Fetches `url`, and fails if a byte is wrong or missing, or if [`PROGRESS`] bytes take longer than [`STALL_TIMEOUT`].
fn download(links: &Links, url: &str, expected: &[u8]) {
    let mut command = links.command(CLIENT, "curl");
    command.args(["-sS", "--no-buffer", "--proxy", "socks5h://127.0.0.1:9350", url]);
    let mut curl = ChildProcess(command.stdout(Stdio::piped()).spawn().unwrap());
    let chunks = chunks_of(curl.0.stdout.take().unwrap());
    let (started, mut since, mut longest) = (Instant::now(), Instant::now(), Duration::ZERO);
    let (mut received, mut received_before) = (0, 0);
    loop {
        match chunks.recv_timeout(STALL_TIMEOUT.saturating_sub(since.elapsed())) {
            Ok(chunk) => {
                assert!(expected[received..].starts_with(&chunk), "wrong bytes after {received}");
                received += chunk.len();
                if received >= received_before + PROGRESS {
                    longest = longest.max(since.elapsed());
                    (since, received_before) = (Instant::now(), received);
                }
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!(
                    "{} bytes in {STALL_TIMEOUT:?}, {:?} after the request, {received} of {LENGTH} bytes in",
                    received - received_before,
                    started.elapsed()
                )
            }
        }
    }
    eprintln!("{received} bytes in {:?}, at most {longest:?} for {PROGRESS}", started.elapsed());
    assert!(wait_for_end(&mut curl.0).success(), "curl fails after {received} of {LENGTH} bytes");
    assert_eq!(received, expected.len());
}

/// The chunks of `input`, as they are read.
fn chunks_of(mut input: impl io::Read + Send + 'static) -> mpsc::Receiver<Vec<u8>> {
    let (sender, chunks) = mpsc::channel();
    thread::spawn(move || {
        let mut buffer = vec![0; 1 << 16];
        while let Ok(length) = input.read(&mut buffer) {
            if length == 0 || sender.send(buffer[..length].to_vec()).is_err() {
                return;
            }
        }
    });
    chunks
}

/// Starts directory, relays, client and target.
fn start(links: &Links, folder: &Path) -> Vec<ChildProcess> {
    let authority = shown_key(&folder.join("directory"), "directory", "authority");
    let url = format!("http://{}:9360", address(DIRECTORY));
    let config = folder.join("directory.toml");
    let listen = format!("listen = \"{}:9360\"\nawait_relays = 3\nprivate_network = true\n", address(DIRECTORY));
    fs::write(&config, listen).unwrap();
    let mut nodes = vec![links.umbel(DIRECTORY, |command| {
        command.args(["directory", "--config"]).arg(&config).arg("--data-dir").arg(folder.join("directory"));
    })];
    let network = ["--directory", &url, "--authority", &authority];
    for relay in RELAYS {
        nodes.push(links.umbel(relay, |command| {
            command.args(["relay", "--listen", &format!("{}:4443", address(relay))]).args(network);
            command.arg("--data-dir").arg(folder.join(format!("relay{relay}")));
            if relay == EXIT {
                command.args(["--exit", "accept *:80", "--allow-private-targets"]);
            }
        }));
    }
    nodes.push(links.umbel(CLIENT, |command| {
        command.arg("client").args(network).arg("--data-dir").arg(folder.join("client"));
    }));
    fs::create_dir(folder.join("www")).unwrap();
    fs::write(folder.join("www/small"), "small").unwrap();
    nodes.push(links.spawn(EXIT, "python3", |command| {
        command.args(["-m", "http.server", "80", "--bind", &address(EXIT), "--directory"]).arg(folder.join("www"));
    }));
    nodes
}

fn fetch_small(links: &Links, target: &str) -> Output {
    let arguments = ["-sS", "--max-time", "20", "--proxy", "socks5h://127.0.0.1:9350"];
    links.command(CLIENT, "curl").args(arguments).arg(format!("{target}/small")).output().unwrap()
}

/// The address of a machine, as assigned by netdelay.
fn address(machine: usize) -> String {
    format!("10.77.0.{}", machine + 1)
}

/// Machines as network namespaces, joined by links with delay and loss. netdelay removes the namespaces when it ends.
struct Links {
    prefix: String,
    _netdelay: ChildProcess,
}

impl Links {
    fn new(folder: &Path) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("xtask/labs/netdelay.c");
        let program = folder.join("netdelay");
        let built = Command::new("cc")
            .arg("-O2")
            .arg("-o")
            .arg(&program)
            .arg(source)
            .status()
            .expect("a C compiler is installed");
        assert!(built.success());
        let prefix = format!("um{}d", std::process::id());
        let mut command = Command::new(program);
        command.args(["--prefix", &prefix, "--n", &MACHINES.to_string(), "--delay-ms", DELAY_MS, "--loss", LOSS]);
        let mut netdelay = command.stdout(Stdio::piped()).spawn().unwrap();
        let lines = lines_of(netdelay.stdout.take().unwrap());
        let links = Self { prefix, _netdelay: ChildProcess(netdelay) };
        assert_eq!(lines.recv_timeout(TIMEOUT).expect("netdelay makes namespaces (needs root)"), "ready");
        links
    }
}

impl Namespaces for Links {
    fn name(&self, machine: usize) -> String {
        format!("{}{machine}", self.prefix)
    }
}
