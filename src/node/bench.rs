//! `umbel bench`: measures throughput, latency and request rate of a network through a SOCKS5 port, or its searches.
//!
//! The command works with any SOCKS5 port. It sends requests to an HTTP server that it starts on loopback, and verifies
//! every byte of the responses. So the network's exits must run on this machine and allow private targets, as a
//! testnet's exits do. Searches use a client's API ([`search`]). Streams, bytes, requests and time are bounded.

mod measure;
mod process;
mod search;
mod server;
mod stream;
#[cfg(test)]
mod tests;

use core::{convert::Infallible, net::SocketAddr, time::Duration};
use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
};

use bytesize::ByteSize;
use clap::Args;
use serde::Serialize;
use tokio::time::{interval, timeout};

use super::Failure;

pub(crate) use self::{server::BenchServer, stream::fetch};
use measure::{Load, Measurement, Mode};
use process::ProcessUsage;
use stream::BenchError;

/// Options of `umbel bench`.
#[derive(Args, Clone, Debug)]
pub(crate) struct BenchOptions {
    /// SOCKS5 port to measure
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9350")]
    socks: SocketAddr,
    /// Quantity to measure
    #[arg(long, value_enum, default_value_t = Mode::Bulk)]
    mode: Mode,
    /// Concurrent streams (bulk, requests) or searches (search)
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=512))]
    streams: u16,
    /// Number of SOCKS5 user names for the streams; each user name has separate circuits
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=64))]
    circuits: u16,
    /// Bytes per stream (bulk) or per request (ttfb, requests) [default: 64MiB, or 2KiB]
    #[arg(long, value_name = "SIZE", value_parser = size)]
    bytes: Option<ByteSize>,
    /// Total requests of each phase (ttfb, search, requests) [default: 100, 100, or 2000]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    requests: Option<u32>,
    /// Address of the client's page and API (search)
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9352")]
    control: SocketAddr,
    /// OpenSearch description of the engine, the same file that the exits use (search); a testnet stores the file in
    /// its folder
    #[arg(long, value_name = "FILE")]
    description: Option<PathBuf>,
    /// Time limit in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 120, value_parser = clap::value_parser!(u64).range(1..=3600))]
    limit: u64,
    /// Process whose CPU time to count, with its descendants, such as a testnet; may be repeated
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// Print one JSON object instead of text
    #[arg(long)]
    json: bool,
}

fn size(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    let allowed = 1..=ByteSize::gib(16).as_u64();
    if allowed.contains(&size.as_u64()) { Ok(size) } else { Err("must be from 1 byte to 16 GiB".to_owned()) }
}

impl BenchOptions {
    fn load(&self) -> Load {
        let streams = u32::from(self.streams);
        let (bytes, requests) = match self.mode {
            Mode::Bulk => (ByteSize::mib(64), streams),
            Mode::Ttfb => (ByteSize::kib(2), self.requests.unwrap_or(100)),
            Mode::Search => (ByteSize::b(0), self.requests.unwrap_or(100)),
            Mode::Requests => (ByteSize::kib(2), self.requests.unwrap_or(2000)),
        };
        Load {
            mode: self.mode,
            socks: self.socks,
            streams: if self.mode == Mode::Ttfb { 1 } else { streams },
            isolations: u32::from(self.circuits),
            bytes: self.bytes.unwrap_or(bytes).as_u64(),
            requests,
        }
    }
}

/// Runs the measurement and prints the result.
///
/// # Errors
/// When the port doesn't answer, a stream or search fails, bytes differ, or the time limit is reached.
pub(crate) async fn run(options: BenchOptions) -> Result<(), Failure> {
    if options.mode == Mode::Search {
        let limit = Duration::from_secs(options.limit);
        let timed_out = |_| Failure::failed(BenchError::TimedOut(options.limit));
        let report = timeout(limit, search::measure(&options)).await.map_err(timed_out)??;
        return print(&options, &report, report.to_text());
    }
    let server = BenchServer::start().await.map_err(Failure::system("can't start the HTTP server"))?;
    let measured = tokio::select! {
        measured = timeout(Duration::from_secs(options.limit), measure(&options, &server)) => {
            measured.unwrap_or(Err(BenchError::TimedOut(options.limit)))
        }
        never = show_progress(&server) => match never {},
    };
    let report = measured.map_err(|error| error.into_failure(options.socks))?;
    print(&options, &report, report.to_text())
}

fn print(options: &BenchOptions, report: &impl Serialize, text: String) -> Result<(), Failure> {
    let text = if options.json { serde_json::to_string_pretty(report).map_err(Failure::failed)? } else { text };
    writeln!(io::stdout(), "{text}").map_err(Failure::system("can't write to standard output"))
}

async fn measure(options: &BenchOptions, server: &BenchServer) -> Result<Measurement, BenchError> {
    let load = options.load();
    let warm_up = load.warm_up(server).await?;
    let before = ProcessUsage::now(&options.pid);
    let phases = load.measure(server).await?;
    let processes = ProcessUsage::now(&options.pid).since(&before);
    Ok(Measurement::new(load, warm_up, phases, processes))
}

/// Shows the progress on standard error, if that is a terminal.
async fn show_progress(server: &BenchServer) -> Infallible {
    let mut stderr = io::stderr();
    if !stderr.is_terminal() {
        return core::future::pending().await;
    }
    let mut ticks = interval(Duration::from_millis(500));
    loop {
        ticks.tick().await;
        let (bytes, responses) = server.verified();
        // A write error of the terminal doesn't affect the measurement.
        let _ = write!(stderr, "\r{} verified, {responses} responses \r", ByteSize(bytes).display().iec());
        let _ = stderr.flush();
    }
}
