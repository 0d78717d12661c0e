//! A search by an exit: prints the results of a search engine, and the path of the query.
//!
//! The exit sends the query to the engine. The engine sees the exit's address, the exit sees the query, and neither
//! sees this machine's address.
//!
//! `umbel testnet` starts a network on this machine and prints the two options that identify the network. In another
//! terminal:
//!
//! ```sh
//! cargo run --example search -- --directory URL --authority KEY guard sample
//! ```

use std::{error::Error, process::ExitCode};

use clap::Parser;
use umbel::{AuthorityId, Client, ClientConfig, EngineName, SearchQuery};

/// Prints the results of a search that an exit of the network performs
#[derive(Parser)]
struct Options {
    /// URL of a directory, which has the list of relays
    #[arg(long, value_name = "URL")]
    directory: String,
    /// Key of the authority that signs the list of relays
    #[arg(long, value_name = "KEY")]
    authority: AuthorityId,
    /// Name of the search engine, such as wikipedia [default: the engine that most exits offer]
    #[arg(long, value_name = "NAME")]
    engine: Option<String>,
    /// Search terms
    #[arg(required = true)]
    terms: Vec<String>,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match run(Options::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("search: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn run(options: Options) -> Result<(), Box<dyn Error>> {
    let engine = match &options.engine {
        Some(name) => {
            Some(EngineName::parse(name).ok_or("--engine: a name has 1 to 32 of the letters a to z, digits and -")?)
        }
        None => None,
    };
    let client = Client::bootstrap(ClientConfig {
        directories: vec![options.directory],
        authorities: vec![options.authority],
        // Nothing is stored, so each start chooses new guards. `examples/stream.rs` explains when to store them in a
        // folder.
        data_dir: None,
    })
    .await?;

    // Each search has a separate circuit, so an exit can't link two searches. After most failures of the first exit,
    // the client sends the query to a second exit.
    let found = client.search(&SearchQuery { engine, ..SearchQuery::new(options.terms.join(" ")) }).await?;

    for (number, result) in (1..).zip(&found.results) {
        println!("{number}. {}\n   {}\n   {}", result.title, result.url, result.snippet);
    }
    let path: Vec<String> = found.route.hops.iter().map(|hop| hop.relay.to_string()).collect();
    println!(
        "{}: {} results in {} ms, path {}",
        found.engine,
        found.results.len(),
        found.route.duration.as_millis(),
        path.join(" → ")
    );
    // An exit can falsify results, and can insert a URL unique to this query. `Client::compare` sends a query to several
    // exits and shows the differences. Fetch results through the overlay: `stream.rs`, `request.rs`.
    Ok(())
}
