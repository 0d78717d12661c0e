//! A delegated request: an exit performs an HTTP request, and this program prints the response.
//!
//! The target sees the exit's address. The exit reads the request and the response, even for an `https` URL, but
//! doesn't see this machine's address. So a request must not identify its user: no cookies, no logins. If the exit must
//! not read the content, use `Client::request_over_stream` with an `https` URL.
//!
//! `umbel testnet` starts a network on this machine and prints the two options that identify the network. In another
//! terminal:
//!
//! ```sh
//! cargo run --example request -- --directory URL --authority KEY https://example.org/
//! ```

use std::{error::Error, process::ExitCode};

use bytes::Bytes;
use clap::Parser;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Request, header::ACCEPT};
use tokio::io::{AsyncWriteExt as _, stdout};
use umbel::{AuthorityId, Client, ClientConfig};

/// Prints the response to a GET request that an exit of the network performs
#[derive(Parser)]
struct Options {
    /// URL of a directory, which has the list of relays
    #[arg(long, value_name = "URL")]
    directory: String,
    /// Key of the authority that signs the list of relays
    #[arg(long, value_name = "KEY")]
    authority: AuthorityId,
    /// URL to request: http or https
    url: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("request: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let client = Client::bootstrap(ClientConfig {
        directories: vec![options.directory],
        authorities: vec![options.authority],
        // Nothing is stored, so each start chooses new guards. `examples/stream.rs` explains when to store them in a
        // folder.
        data_dir: None,
    })
    .await?;

    // Requests and responses are those of hyper. The request's body may be any `hyper::body::Body`; it is sent in
    // pieces. Redirects are returned, not followed, because the application decides on each URL.
    let request = Request::get(&options.url).header(ACCEPT, "text/html, */*").body(Empty::<Bytes>::new())?;
    let response = client.request(request).await?;
    eprintln!("{}", response.status());

    // The body arrives in pieces too. A truncated body ends with an error.
    let (mut body, mut out) = (response.into_body(), stdout());
    while let Some(frame) = body.frame().await {
        // Skips trailers, the only other kind of frame.
        if let Ok(data) = frame?.into_data() {
            out.write_all(&data).await?;
        }
    }
    out.flush().await?;
    Ok(())
}
