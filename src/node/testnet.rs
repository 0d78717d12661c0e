//! `umbel testnet`: a complete overlay on one machine, by default on loopback, with a process for each node.
//!
//! This module has the processes, their folder, and the messages to the user. The nodes are started with the public
//! command line; they report progress through [`super::report`].

mod engine;
mod port;
mod process;

use std::{
    net::{IpAddr, SocketAddr, TcpListener},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{Instant, timeout},
};

use self::{
    engine::TestnetEngine,
    process::{NodeSpec, Nodes},
};
use super::{
    Failure, bench, control,
    drive::randomness,
    report::{HopReport, Report},
    web,
};
use crate::io::files::write_atomically;

/// Time limit of the start.
const START_TIMEOUT: Duration = Duration::from_secs(60);

/// Options of `umbel testnet`.
#[derive(Args, Clone, Debug)]
pub(crate) struct TestnetOptions {
    /// Relays to start, including exits
    #[arg(long, default_value_t = 7, value_name = "N", value_parser = clap::value_parser!(u16).range(3..=100))]
    relays: u16,
    /// Exits among the relays
    #[arg(long, default_value_t = 2, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=100))]
    exits: u16,
    /// Volunteers to start in addition: relays that don't listen and are reached over gateways
    #[arg(long, default_value_t = 0, value_name = "N", value_parser = clap::value_parser!(u16).range(0..=100))]
    volunteers: u16,
    /// IP address of this machine for the relays. At an address that is not loopback, other machines can reach the
    /// relays, but not the directory, which a client needs. Firefox needs such an address, because its pages dial no
    /// loopback address
    #[arg(long, default_value = "127.0.0.1", value_name = "IP")]
    address: IpAddr,
    /// Address of the client's SOCKS5 port
    #[arg(long, default_value = "127.0.0.1:9350", value_name = "ADDR")]
    socks: SocketAddr,
    /// Address of the client's HTTP proxy port
    #[arg(long, default_value = "127.0.0.1:9351", value_name = "ADDR")]
    http: SocketAddr,
    /// Address of the client's search page
    #[arg(long, default_value = "127.0.0.1:9352", value_name = "ADDR")]
    page: SocketAddr,
    /// ZIM file for the exits' search engine, kiwix-serve [default: the Rust book if `cargo xtask book` has made it,
    /// otherwise Umbel's own documentation]
    #[arg(long, value_name = "FILE")]
    zim: Option<PathBuf>,
    /// Additional search engine of the exits: a file or URL of its OpenSearch description; may be repeated
    #[arg(long, value_name = "FILE or URL")]
    engine: Vec<String>,
    /// Additional search engine that volunteers in browsers may query: a file of its OpenSearch description; may be
    /// repeated
    #[arg(long, value_name = "FILE")]
    web_engine: Vec<String>,
    /// Folder for keys, documents and logs; kept after the end [default: a temporary folder, removed at the end]
    #[arg(long, value_name = "PATH")]
    dir: Option<PathBuf>,
    /// Keep the temporary folder
    #[arg(long)]
    keep: bool,
    /// Make one request over three hops, compare the bytes, print the figures, and end
    #[arg(long)]
    check: bool,
    /// Log level of the nodes; their logs are in the testnet's folder
    #[arg(long, default_value = "info", value_name = "LEVEL")]
    log: String,
}

/// Runs the testnet until Ctrl-C or the end of the check.
///
/// # Errors
/// When an option is invalid, the start takes longer than a minute, a node ends during the start, the client ends, or
/// the check fails.
pub(crate) async fn run(options: TestnetOptions) -> Result<(), Failure> {
    if options.exits > options.relays {
        return Err(Failure::usage(format!("--exits {} exceeds --relays {}", options.exits, options.relays)));
    }
    port::check_address(options.address)?;
    check_free(options.socks, "--socks")?;
    check_free(options.http, "--http")?;
    check_free(options.page, "--page")?;
    let folder = TestnetFolder::make(&options)?;
    let mut nodes = Nodes::new(folder.path())?;
    if folder.is_temporary() {
        nodes.remove_folder_afterwards()?;
    }
    let ended = tokio::select! {
        ended = start_and_serve(&options, folder.path(), &mut nodes) => ended,
        stop = stop_signal() => stop,
    };
    nodes.stop().await;
    folder.finish();
    ended
}

async fn start_and_serve(options: &TestnetOptions, folder: &Path, nodes: &mut Nodes) -> Result<(), Failure> {
    let server = bench::BenchServer::start().await.map_err(Failure::system("can't start the HTTP server"))?;
    let engine = TestnetEngine::start(options.zim.as_deref()).await?;
    let ports = timeout(START_TIMEOUT, start(options, folder, &engine, nodes))
        .await
        .map_err(|_| Failure::failed(nodes.with_logs("the testnet did not start within a minute")))??;
    if options.check {
        return check(ports.socks, &server).await;
    }
    ports.show(options.address, &engine, &server);
    nodes.run("client").await
}

/// Starts all nodes and prints each step; returns the ports of client and directory.
async fn start(
    options: &TestnetOptions,
    folder: &Path,
    engine: &TestnetEngine,
    nodes: &mut Nodes,
) -> Result<Ports, Failure> {
    let start_time = Instant::now();
    let step =
        |what: &str, detail: String| println!("  {:5.2} s  {what:<14} {detail}", start_time.elapsed().as_secs_f64());
    println!("Umbel testnet: {} relays, {} of them exits, in {}", options.relays, options.exits, folder.display());
    step("search engine", engine.to_text());
    let own_engine = engine.describe(folder)?.display().to_string();
    let page_engines: Vec<String> =
        [&own_engine].into_iter().chain(&options.web_engine).map(|engine| format!("--web-engine={engine}")).collect();
    let engines: Vec<String> =
        [own_engine].iter().chain(&options.engine).map(|engine| format!("--engine={engine}")).collect();
    let directory = nodes.spawn(directory(options, folder, &page_engines))?;
    let Report::Directory { api, authority } = nodes.next_report(directory).await? else {
        return Err(Failure::failed(nodes.with_logs("the directory did not report its address")));
    };
    step("directory", format!("http://{api}"));
    let network = [format!("--directory=http://{api}"), format!("--authority={authority}")];
    for number in 1..=options.relays {
        nodes.spawn(relay(options, folder, number, &network, &engines)?)?;
    }
    for number in 1..=options.volunteers {
        nodes.spawn(volunteer(options, folder, number, &network))?;
    }
    nodes.spawn(client(options, folder, &network))?;
    let (mut published, mut reachable, mut ports) = (0_u16, 0_u16, None);
    loop {
        let (_, report) = nodes.any_report().await?;
        match report {
            Report::Reachable { .. } => {
                reachable = reachable.saturating_add(1);
                if reachable == options.volunteers {
                    step("volunteers", format!("{reachable} reachable over gateways and listed"));
                }
            }
            Report::Published => {
                published = published.saturating_add(1);
                if published == options.relays {
                    step("relays", format!("{published} have published their descriptors"));
                }
            }
            Report::Consensus { relays } => {
                step("consensus", format!("{relays} relays, each dialled and authenticated"))
            }
            Report::Circuit { channel, hops } => {
                step("channel", format!("to the guard in {:.1} ms", channel.as_secs_f64() * 1e3));
                step("circuit", path(&hops));
            }
            Report::Ready { socks, http, page } => {
                let summary = format!("SOCKS5 {socks} · HTTP proxy {http} · search page http://{page}/");
                let network = network.join(" ");
                ports = Some((Ports { socks, page, api, network }, format!("{summary} · directory http://{api}")));
            }
            Report::Directory { .. } => {}
        }
        if let Some((ports, summary)) = ports.take_if(|_| reachable >= options.volunteers) {
            step("ready", summary);
            return Ok(ports);
        }
    }
}

/// The ports shown to the user.
struct Ports {
    socks: SocketAddr,
    page: SocketAddr,
    /// The directory's port, which serves the pages for browsers.
    api: SocketAddr,
    /// The options that identify the network to other nodes and programs.
    network: String,
}

impl Ports {
    /// Prints example commands, ready to be copied.
    fn show(self, relays: IpAddr, engine: &TestnetEngine, server: &bench::BenchServer) {
        let Self { socks, page, api, network } = self;
        let umbel = std::env::args().next().unwrap_or_else(|| "umbel".to_owned());
        let control =
            if page.to_string() == control::DEFAULT_ADDRESS { String::new() } else { format!(" --control {page}") };
        println!("\nTry:   {umbel} search{control} {}", engine.example());
        println!("       http://{page}/ in a browser");
        if web::has_pages() {
            println!("       http://{api}/volunteer in a browser, which becomes a relay");
            println!("       http://{api}/search in a browser, which is a client itself");
            if relays.is_loopback() {
                println!("       (for Firefox, start with --address and a non-loopback address of this machine)");
            }
        } else {
            println!(
                "       (this program was built without the pages for browsers: run cargo xtask web, then build it again)"
            );
        }
        println!("       curl --proxy socks5h://{socks} {}", server.greeting_url());
        println!("       curl --proxy socks5h://{socks} https://www.rust-lang.org/");
        println!("Join:  {umbel} relay --no-listen --data-dir FOLDER {network}");
        println!("       cargo run --example stream -- {network} www.rust-lang.org");
        println!("Stop:  Ctrl-C");
    }
}

fn path(hops: &[HopReport]) -> String {
    let hops: Vec<_> =
        hops.iter().map(|hop| format!("{} ({:.1} ms)", hop.relay, hop.handshake_time.as_secs_f64() * 1e3)).collect();
    hops.join(" → ")
}

fn directory(options: &TestnetOptions, folder: &Path, engines: &[String]) -> NodeSpec {
    let spec = NodeSpec::new("directory", "directory", folder)
        .arg("--listen=127.0.0.1:0")
        .arg(format!("--await-relays={}", options.relays))
        .arg("--interval=60")
        .arg("--volunteer-interval=1")
        .arg("--private-network")
        .arg(format!("--log={}", options.log));
    if web::has_pages() { spec.arg("--web").args(engines) } else { spec }
}

fn relay(
    options: &TestnetOptions,
    folder: &Path,
    number: u16,
    network: &[String],
    engines: &[String],
) -> Result<NodeSpec, Failure> {
    let name = format!("relay{number}");
    let spec = NodeSpec::new("relay", &name, folder)
        .arg(format!("--listen={}", relay_address(&folder.join(format!("{name}.address")), options.address)?))
        .arg(format!("--log={}", options.log))
        .args(network);
    Ok(if number > options.relays.saturating_sub(options.exits) {
        // A high rate, so that measurements find the limits of the machine.
        let delegated = ["--delegate=open".to_owned(), "--delegated-rate=100000".to_owned()];
        spec.arg("--exit=accept *:*").arg("--allow-private-targets").args(&delegated).args(engines)
    } else {
        spec
    })
}

/// The address in `file` if its IP is `ip`, otherwise a free address at `ip`, which is written to `file`. So after a
/// restart in the same folder, the relays have the addresses in the client's stored consensus.
fn relay_address(file: &Path, ip: IpAddr) -> Result<SocketAddr, Failure> {
    if let Ok(text) = std::fs::read_to_string(file) {
        let no_address = |_| Failure::usage(format!("{}: not an address; remove the file", file.display()));
        let stored: SocketAddr = text.trim().parse().map_err(no_address)?;
        if stored.ip() == ip {
            return Ok(stored);
        }
    }
    let address = port::find_free_address(ip, &mut randomness()?)?;
    write_atomically(file, format!("{address}\n").as_bytes())?;
    Ok(address)
}

fn volunteer(options: &TestnetOptions, folder: &Path, number: u16, network: &[String]) -> NodeSpec {
    NodeSpec::new("relay", &format!("volunteer{number}"), folder)
        .arg("--no-listen")
        .arg(format!("--log={}", options.log))
        .args(network)
}

fn client(options: &TestnetOptions, folder: &Path, network: &[String]) -> NodeSpec {
    let ports = [options.socks, options.http, options.page];
    let spec = NodeSpec::new("client", "client", folder)
        .arg(format!("--socks={}", options.socks))
        .arg(format!("--http={}", options.http))
        .arg(format!("--page={}", options.page))
        .arg(format!("--log={}", options.log))
        .args(network);
    if ports.iter().all(|port| port.ip().is_loopback()) { spec } else { spec.arg("--allow-remote") }
}

async fn check(socks: SocketAddr, server: &bench::BenchServer) -> Result<(), Failure> {
    const LENGTH: u64 = 4 << 20;
    let fetched = bench::fetch(socks, server, LENGTH).await.map_err(|error| error.into_failure(socks))?;
    println!(
        "\nCheck passed: {} MiB over three hops, all bytes equal; first byte after {:.1} ms, {:.1} MiB/s",
        LENGTH >> 20,
        fetched.first_byte.as_secs_f64() * 1e3,
        fetched.rate_mib(),
    );
    Ok(())
}

/// Checks that a listener can open `port`. The error names `flag` as the option for another port.
fn check_free(port: SocketAddr, flag: &str) -> Result<(), Failure> {
    match TcpListener::bind(port) {
        Ok(_) => Ok(()),
        Err(error) => Err(Failure::system(format!(
            "can't listen on {port}; if another program uses it, choose another port with {flag} {}:{}",
            port.ip(),
            port.port().checked_add(100).unwrap_or(19_350),
        ))(error)),
    }
}

/// Waits for SIGINT (Ctrl-C), SIGTERM or SIGHUP.
async fn stop_signal() -> Result<(), Failure> {
    let listen = |kind| signal(kind).map_err(Failure::system("can't handle signals"));
    let (mut interrupt, mut terminate, mut hangup) =
        (listen(SignalKind::interrupt())?, listen(SignalKind::terminate())?, listen(SignalKind::hangup())?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    println!("\nStopping.");
    Ok(())
}

/// The folder of the nodes' files.
enum TestnetFolder {
    Temporary(tempfile::TempDir),
    Kept(PathBuf),
}

impl TestnetFolder {
    fn make(options: &TestnetOptions) -> Result<Self, Failure> {
        let failed = |error: std::io::Error| Failure::system("can't create the testnet's folder")(error);
        match (&options.dir, options.keep) {
            (Some(path), _) => {
                std::fs::create_dir_all(path).map_err(failed)?;
                Ok(Self::Kept(path.canonicalize().map_err(failed)?))
            }
            (None, keep) => {
                let folder = tempfile::Builder::new().prefix("umbel-testnet-").tempdir().map_err(failed)?;
                Ok(if keep { Self::Kept(folder.keep()) } else { Self::Temporary(folder) })
            }
        }
    }

    fn path(&self) -> &Path {
        match self {
            Self::Temporary(folder) => folder.path(),
            Self::Kept(path) => path,
        }
    }

    const fn is_temporary(&self) -> bool {
        matches!(self, Self::Temporary(_))
    }

    /// Removes a temporary folder, or prints the path of a kept folder.
    fn finish(self) {
        match self {
            Self::Temporary(folder) => drop(folder),
            Self::Kept(path) => println!("Keys, documents and logs are in {}", path.display()),
        }
    }
}
