//! A stream over three relays: fetches a page by plain HTTP, and prints it.
//!
//! A [`umbel::Stream`] takes the place of a TCP stream: it implements `AsyncRead` and `AsyncWrite`, so TLS, HTTP and
//! other libraries work over it. The first relay (guard) sees this machine's address but not the target. The last relay
//! (exit) sees the target but not the address.
//!
//! `umbel testnet` starts a network on this machine and prints the two options that identify the network. In another
//! terminal:
//!
//! ```sh
//! cargo run --example stream -- --directory URL --authority KEY example.org
//! ```

use std::{error::Error, path::PathBuf, process::ExitCode};

use clap::Parser;
use tokio::io::{AsyncWriteExt as _, copy, stdout};
use umbel::{AuthorityId, Client, ClientConfig};

/// Fetches a page over a stream through three relays
#[derive(Parser)]
struct Options {
    /// URL of a directory, which has the list of relays
    #[arg(long, value_name = "URL")]
    directory: String,
    /// Key of the authority that signs the list of relays
    #[arg(long, value_name = "KEY")]
    authority: AuthorityId,
    /// Folder for guards and the list of relays [default: none, with other guards at each start]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Name or address of the web server
    host: String,
    /// Port of the web server
    #[arg(default_value_t = 80)]
    port: u16,
    /// Path of the page
    #[arg(default_value = "/")]
    path: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("stream: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    // Fetches the list of relays and builds a first circuit. An application that starts more than once passes a
    // folder: few guards over a long time are safer than many.
    let client = Client::bootstrap(ClientConfig {
        directories: vec![options.directory],
        authorities: vec![options.authority],
        data_dir: options.data_dir,
    })
    .await?;

    // The exit resolves the name, so this machine's resolver does not see it.
    let mut stream = client.open(&options.host, options.port).await?;
    let request = format!("GET {} HTTP/1.0\r\nHost: {}\r\n\r\n", options.path, options.host);
    stream.write_all(request.as_bytes()).await?;

    // `copy` ends at a clean end of the stream only. If a relay or the target fails, `copy` returns an error, so a
    // truncated page is not mistaken for a complete page.
    let mut out = stdout();
    copy(&mut stream, &mut out).await?;
    out.flush().await?;

    // Streams of one handle may share a circuit, and then the exit can link the streams. A handle from `isolated` has
    // separate circuits: use a handle for each user, account or purpose.
    let addresses = client.isolated().resolve(&options.host).await?;
    eprintln!("\n{} has {} addresses, resolved over another circuit", options.host, addresses.len());
    Ok(())
}
