//! The programs of the attack lab (`tests/overlay/attack.rs`): an attacker that floods a relay with CREATEs or hellos, an
//! honest client that measures its own circuits, and the target of its streams. `xtask/labs/umbel-lab` measures the memory
//! of idle channels with the attacker.
//!
//! The attacker and the client use the crate's channels over data channels, so a relay can't distinguish them from nodes.
//! Each program prints lines of words, and ends with its standard input.
#![allow(
    clippy::arithmetic_side_effects,
    clippy::disallowed_methods,
    reason = "a program of a test: uses the system's clock and randomness"
)]

#[path = "flood.rs"]
mod flood;
#[path = "hellos.rs"]
mod hellos;
#[path = "party.rs"]
mod party;
#[path = "probe.rs"]
mod probe;

use std::{
    error::Error,
    net::{IpAddr, SocketAddr},
    time::{Duration, Instant},
};

use clap::{Args, Parser, Subcommand};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy},
    net::TcpListener,
    time::sleep,
};
use umbel::{
    AuthorityId,
    base::RelayId,
    directory::{Consensus, ConsensusRelay},
    directory_http::client::{DirectoryClient, DirectoryConfig},
    io::clock::wall_time,
};

type Outcome<T> = Result<T, Box<dyn Error>>;

/// Longest wait for a consensus.
const CONSENSUS_TIMEOUT: Duration = Duration::from_secs(60);

#[derive(Parser)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Opens links to a relay from many addresses, and sends CREATEs on all links as fast as the relay answers them
    Flood {
        #[command(flatten)]
        network: Network,
        /// The attacked relay
        #[arg(long, value_parser = relay)]
        relay: RelayId,
        /// A relay to which the attacker extends its circuits
        #[arg(long, value_parser = relay)]
        extend: Option<RelayId>,
        /// Source address of links; repeatable
        #[arg(long = "source")]
        sources: Vec<IpAddr>,
        /// Links from each address
        #[arg(long, default_value_t = 1)]
        links: usize,
        /// Most circuits that a link holds; the oldest ends first
        #[arg(long, default_value_t = 250)]
        hold: usize,
        /// Open no link, and send ClientHellos with valid cookies from as many ports instead
        #[arg(long, conflicts_with = "idle")]
        hellos: bool,
        /// Keep the links idle, and send no CREATE
        #[arg(long)]
        idle: bool,
    },
    /// Builds circuits over three relays, in three orders, and measures them
    Probe {
        #[command(flatten)]
        network: Network,
        /// The attacked relay and two others; repeatable
        #[arg(long = "relay", value_parser = relay)]
        relays: Vec<RelayId>,
        /// Source address
        #[arg(long)]
        source: IpAddr,
        /// Target of the streams
        #[arg(long)]
        target: SocketAddr,
        /// Time in which circuits are started
        #[arg(long)]
        seconds: u64,
    },
    /// Accepts streams, greets with one byte, and sends the received bytes back
    Target { address: SocketAddr },
}

/// A network of nodes.
#[derive(Args)]
struct Network {
    #[arg(long)]
    directory: String,
    #[arg(long)]
    authority: AuthorityId,
}

fn relay(text: &str) -> Result<RelayId, &'static str> {
    RelayId::from_base32(text).ok_or("not a relay's identity")
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Outcome<()> {
    // Each link of the attacker has a socket.
    let (_, limit) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, limit, limit)?;
    let ended = end_of_input();
    match Options::parse().command {
        Command::Flood { network, relay, sources, links, hellos: true, .. } => {
            let consensus = network.consensus().await?;
            let target = listed(&consensus, &relay)?.dial_target();
            tokio::select! {
                outcome = hellos::run(target, sources, links) => outcome,
                () = ended => Ok(()),
            }
        }
        Command::Flood { network, relay, extend, sources, links, hold, hellos: false, idle } => {
            let consensus = network.consensus().await?;
            let plan = flood::Plan::new(&consensus, relay, extend, links, hold)?;
            let plan = if idle { plan.idle() } else { plan };
            tokio::select! {
                outcome = flood::run(plan, sources) => outcome,
                () = ended => Ok(()),
            }
        }
        Command::Probe { network, relays, source, target, seconds } => {
            let consensus = network.consensus().await?;
            let relays = relays.iter().map(|relay| listed(&consensus, relay)).collect::<Outcome<Vec<_>>>()?;
            let &[attacked, first, second] = relays.as_slice() else { return Err("a probe needs three relays".into()) };
            let paths = [[attacked, first, second], [first, attacked, second], [first, second, attacked]];
            probe::run(paths, source, target, Duration::from_secs(seconds)).await
        }
        Command::Target { address } => {
            tokio::select! {
                outcome = serve(address) => outcome,
                () = ended => Ok(()),
            }
        }
    }
}

/// Waits for the end of standard input.
async fn end_of_input() {
    let mut bytes = [0; 64];
    while tokio::io::stdin().read(&mut bytes).await.is_ok_and(|read| read > 0) {}
}

impl Network {
    /// The consensus, once there is one.
    async fn consensus(self) -> Outcome<Consensus> {
        let config =
            DirectoryConfig { directories: vec![self.directory], authorities: vec![self.authority], cache: None };
        let mut client = DirectoryClient::new(config)?;
        let end = Instant::now() + CONSENSUS_TIMEOUT;
        loop {
            match client.fetch(wall_time(), None).await {
                Ok(Some(consensus)) => return Ok(consensus),
                Ok(None) => return Err("no consensus".into()),
                Err(error) if Instant::now() > end => return Err(error.into()),
                Err(_) => sleep(Duration::from_millis(200)).await,
            }
        }
    }
}

/// The entry of a relay that must be listed.
fn listed<'a>(consensus: &'a Consensus, relay: &RelayId) -> Outcome<&'a ConsensusRelay> {
    consensus.relay(relay).ok_or_else(|| "a relay isn't listed".into())
}

async fn serve(address: SocketAddr) -> Outcome<()> {
    let listener = TcpListener::bind(address).await?;
    loop {
        let (mut stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let _ = stream.set_nodelay(true);
            let (mut input, mut output) = stream.split();
            if output.write_all(b"!").await.is_ok() {
                let _ = copy(&mut input, &mut output).await;
            }
        });
    }
}
