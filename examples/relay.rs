//! A relay inside an application: forwards circuits of other users while the application runs.
//!
//! By default, the relay is a volunteer. A volunteer works behind NAT and needs no open port, because circuits reach it
//! over its channels to public relays. With `--listen`, the relay is public. The relay is never an exit, so this
//! machine sends no traffic to targets.
//!
//! `umbel testnet` starts a network on this machine and prints the options `--directory` and `--authority`. In
//! another terminal:
//!
//! ```sh
//! cargo run --example relay -- --directory URL --authority KEY --data-dir relay-keys
//! ```

use std::{error::Error, net::SocketAddr, path::PathBuf, pin::pin, process::ExitCode, time::Duration};

use clap::Parser;
use tokio::{signal::ctrl_c, time::interval};
use umbel::{AuthorityId, EmbeddedRelay, RelayConfig};

/// Forwards circuits of other users until Ctrl-C
#[derive(Parser)]
struct Options {
    /// URL of a directory, which has the list of relays
    #[arg(long, value_name = "URL")]
    directory: String,
    /// Key of the authority that signs the list of relays
    #[arg(long, value_name = "KEY")]
    authority: AuthorityId,
    /// Folder for the relay's keys, created if it doesn't exist
    #[arg(long, value_name = "DIR")]
    data_dir: PathBuf,
    /// UDP address of a public relay, at which other machines reach this machine [default: none; the relay is a
    /// volunteer]
    #[arg(long, value_name = "IP:PORT")]
    listen: Option<SocketAddr>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("relay: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    // Tasks of this runtime forward the circuits. The folder holds the key of the relay's identity.
    let mut relay = EmbeddedRelay::start(RelayConfig {
        directories: vec![options.directory],
        authorities: vec![options.authority],
        data_dir: options.data_dir,
        listen: options.listen,
        addresses: Vec::new(),
    })
    .await?;
    println!("relay {}", relay.identity().to_base32());

    let mut interrupted = pin!(ctrl_c());
    tokio::select! {
        ready = relay.ready() => if ready.is_err() {
            // `stop` returns the error that ended the relay.
            return Ok(relay.stop().await?);
        },
        _ = &mut interrupted => return Ok(relay.stop().await?),
    }
    // The directory has accepted the descriptor of a public relay, or a gateway reaches the volunteer.
    println!("ready");

    // The statistics of a relay are safe to show: they name no circuit and no neighbour.
    let mut report = interval(Duration::from_secs(10));
    loop {
        tokio::select! {
            _ = report.tick() => {
                let statistics = relay.statistics().await?;
                println!("{} circuits over {} channels", statistics.circuits, statistics.channels);
            }
            _ = &mut interrupted => break,
        }
    }
    println!("forwarded {} cells", relay.statistics().await?.cells_switched);

    // Closes the links, so that neighbours need not wait for a timeout.
    Ok(relay.stop().await?)
}
