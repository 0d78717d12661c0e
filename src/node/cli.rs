//! The command line.

use std::{path::PathBuf, process::ExitCode};

use clap::{Args, Parser, Subcommand};

use super::{
    Failure, bench, client, descriptors, directory, fetch, keys, logging,
    options::{self, ClientOptions, DirectoryOptions, RelayOptions},
    relay,
    report::Reporter,
    search, supervised, testnet, web,
};

const EXIT_STATUS: &str = "\
Exit status: 0 success, 1 failure, 2 invalid usage or configuration, 3 the network can't be reached.";

const FETCH_HELP: &str = "\
What each party sees:
  --via request  An exit performs the request. The target sees the exit's address. The exit reads the whole request and the
                 whole answer, also with https, but not your address. So send nothing that identifies you.
  --via stream   A stream to the target carries the request. With https, TLS ends in this program: the exit sees the host,
                 the port and the amount of data. With http, the exit reads everything. The target sees the exit's address
                 and this program's TLS and HTTP.
  --gateway URL  An exit forwards the request, encrypted for an Oblivious HTTP gateway. The exit sees the gateway and the
                 amount of data. The gateway sees the exit's address, the request and the answer. The target sees the
                 gateway's address.

Example, beside a running client:
  umbel fetch https://example.org/
  umbel fetch --output page.html http://example.org/
  umbel fetch --via request --header \"Accept: application/json\" --data @query.json https://example.org/api

Redirects are not followed. If the target answers with a failure status, the exit status is 1 and nothing is written.";

/// An anonymising relay overlay: circuits of several hops over WebRTC data channels, one onion layer for each hop
#[derive(Parser)]
#[command(name = "umbel", version, after_help = EXIT_STATUS, max_term_width = 110)]
struct Cli {
    #[command(subcommand)]
    command: CliCommand,
}

#[derive(Subcommand)]
enum CliCommand {
    /// Start a test network on this machine: directory, relays and client
    #[command(
        after_help = "Example:\n  umbel testnet\n  umbel testnet --check\n  umbel testnet --zim wikipedia.zim\n  \
        umbel testnet --volunteers 3\n  umbel testnet --address 192.168.1.20\n  \
        umbel testnet --relays 12 --exits 3 --socks 127.0.0.1:9450 --http 127.0.0.1:9451 --page 127.0.0.1:9452"
    )]
    Testnet(testnet::TestnetOptions),
    /// Run a relay
    #[command(after_help = "Example, a relay that is no exit:\n  umbel relay --address 203.0.113.5:4443 \
        --directory http://203.0.113.1:9360 --authority KEY\n\nExample, an exit to the web:\n  umbel relay --config \
        /etc/umbel/exit.toml --exit \"accept *:80\" --exit \"accept *:443\"\n\nExample, a relay that performs searches \
        only:\n  umbel relay --config /etc/umbel/relay.toml --delegate search --engine \
        /etc/umbel/engines/wikipedia.xml\n\nExample, a volunteer behind NAT, without port forwarding:\n  umbel relay --no-listen \
        --directory http://203.0.113.1:9360 --authority KEY")]
    Relay(NodeArguments<RelayOptions>),
    /// Run a client: a SOCKS5 port and an HTTP proxy port whose streams have three hops, and a search page
    #[command(after_help = "Example:\n  umbel client --directory http://203.0.113.1:9360 --authority KEY\n  \
        curl --proxy socks5h://127.0.0.1:9350 https://example.org/\n\nEach pair \
        of user name and password has separate circuits.")]
    Client(NodeArguments<ClientOptions>),
    /// Run a directory, which tests relays and signs the consensus for all clients
    #[command(after_help = "Example:\n  umbel directory --listen 203.0.113.1:9360 --await-relays 3\n\nExample, a \
        directory that also serves the volunteer and search pages, at http://203.0.113.1:9360/volunteer and /search:\n  umbel directory \
        --listen 203.0.113.1:9360 --web")]
    Directory(NodeArguments<DirectoryOptions>),
    /// Create or show a node's keys
    #[command(
        after_help = "Example, the key for the --authority option of relays and clients:\n  umbel keys directory\n\n\
        A node's first start creates its keys too. This command creates them earlier, for use in configurations."
    )]
    Keys(keys::KeysOptions),
    /// Search through the overlay: neither the engine nor the exit sees the client's address
    #[command(
        after_help = "Example, beside a running client:\n  umbel search rust ownership\n  umbel search --engine \
        wikipedia --language de Zwiebel\n  umbel search --exits 3 rust ownership\n  umbel search --open 1 rust ownership"
    )]
    Search(search::SearchOptions),
    /// Fetch a URL through the overlay, or send any other HTTP request
    #[command(after_help = FETCH_HELP)]
    Fetch(fetch::FetchOptions),
    /// Measure a network through a client's SOCKS5 port or search page
    #[command(after_help = "Example, beside a running testnet:\n  umbel bench --streams 4 --circuits 2\n\nBeside a \
        testnet that was started with --dir FOLDER:\n  umbel bench --mode search --streams 64 --description FOLDER/umbel.xml")]
    Bench(bench::BenchOptions),
    /// Compare a server's pages for browsers with the pages of this program or with a manifest, or print hashes
    #[command(after_help = "Example:\n  umbel web verify https://umbel.example/\n  umbel web manifest")]
    Web(web::WebOptions),
    /// Remove a testnet's folder after the testnet has ended
    #[command(hide = true)]
    TestnetRemove {
        /// The folder
        folder: PathBuf,
    },
}

#[derive(Args)]
struct NodeArguments<O: Args> {
    /// TOML file with any of the options below, with `_` for `-` in their names; flags take precedence
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// End when standard input ends, and write reports to standard output
    #[arg(long, hide = true)]
    supervised: bool,
    #[command(flatten)]
    options: O,
}

/// Runs the command given by the process's arguments; returns its exit status.
#[must_use]
pub fn run() -> ExitCode {
    // clap itself ends the process: with status 2 for invalid usage, 0 for --help.
    let cli = Cli::parse();
    descriptors::raise();
    match dispatch(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("umbel: {failure}");
            ExitCode::from(failure.status())
        }
    }
}

fn dispatch(command: CliCommand) -> Result<(), Failure> {
    match command {
        CliCommand::Testnet(options) => block_on(testnet::run(options)),
        CliCommand::Relay(node) => {
            let (options, reporter) = prepare(&node, |options| options.log.as_deref())?;
            block_on(relay::run(options, reporter))
        }
        CliCommand::Client(node) => {
            let (options, reporter) = prepare(&node, |options| options.log.as_deref())?;
            block_on(client::run(options, reporter))
        }
        CliCommand::Directory(node) => {
            let (options, reporter) = prepare(&node, |options| options.log.as_deref())?;
            block_on(directory::run(options, reporter))
        }
        CliCommand::Keys(options) => keys::run(&options),
        CliCommand::Search(options) => block_on(search::run(options)),
        CliCommand::Fetch(options) => block_on(fetch::run(options)),
        CliCommand::Bench(options) => block_on(bench::run(options)),
        CliCommand::Web(options) => block_on(web::run(options)),
        CliCommand::TestnetRemove { folder } => {
            supervised::remove_after_supervisor(&folder);
            Ok(())
        }
    }
}

/// Loads the options and starts logging: the first steps of every long-running node.
fn prepare<O>(node: &NodeArguments<O>, log: impl Fn(&O) -> Option<&str>) -> Result<(O, Reporter), Failure>
where
    O: Args + serde::Serialize + serde::de::DeserializeOwned,
{
    let options = options::load(&node.options, node.config.as_deref())?;
    logging::start(log(&options))?;
    descriptors::warn_if_few();
    if node.supervised {
        supervised::end_with_supervisor();
    }
    Ok((options, Reporter::new(node.supervised)))
}

/// Runs `task` on one thread. A node's core is one task, and the other tasks mostly wait.
fn block_on(task: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Failure::system("can't start the runtime"))?;
    let outcome = runtime.block_on(task);
    // Does not wait for a thread that still reads standard input, because that input may never end.
    runtime.shutdown_background();
    outcome
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_help_of_each_command_has_an_example() {
        let mut cli = Cli::command();
        cli.build();
        cli.clone().debug_assert();
        for command in
            cli.get_subcommands_mut().filter(|command| !command.is_hide_set() && command.get_name() != "help")
        {
            let help = command.render_long_help().to_string();
            assert!(help.contains("Example"), "{}: {help}", command.get_name());
        }
    }
}
