//! The load of a measurement, and the statistics of its samples.

use core::{net::SocketAddr, time::Duration};
use std::{fmt::Write, sync::Arc, time::Instant};

use bytesize::ByteSize;
use clap::ValueEnum;
use serde::Serialize;
use tokio::task::JoinSet;

use super::{
    process::ProcessTotals,
    server::{BenchServer, ServerState},
    stream::{BenchError, BenchStream, FetchSample, MIB, rate_mib},
};

const GIB: f64 = 1024.0 * MIB;

/// The quantity to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Mode {
    /// Throughput: each stream downloads once
    Bulk,
    /// Time to the first byte: sequential requests, each on a separate stream
    Ttfb,
    /// Requests per second: first with a stream for each request, then over persistent streams
    Requests,
    /// Searches: sequential, then concurrent (--streams at a time); also sent to the engine directly, to compare
    Search,
}

impl Mode {
    /// The measured quantity, as the report names it.
    const fn quantity(self) -> &'static str {
        match self {
            Self::Bulk => "throughput",
            Self::Ttfb => "time to the first byte",
            Self::Requests => "request rate",
            Self::Search => "search time",
        }
    }
}

/// The requests that a measurement sends.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Load {
    pub(super) mode: Mode,
    pub(super) socks: SocketAddr,
    /// Number of concurrent streams, at least one.
    pub(super) streams: u32,
    /// Number of isolations over which the streams are spread, at least one.
    pub(super) isolations: u32,
    /// Length of each response body.
    pub(super) bytes: u64,
    /// Number of requests in each phase.
    pub(super) requests: u32,
}

impl Load {
    /// Sends one small request with each isolation, so that the measurement excludes the building of circuits. Returns
    /// the elapsed time.
    pub(super) async fn warm_up(&self, server: &BenchServer) -> Result<Duration, BenchError> {
        let isolations = self.isolations.min(self.streams);
        let load = Self { streams: isolations, requests: isolations, bytes: 1, ..*self };
        Ok(load.run(server, false).await?.elapsed)
    }

    /// Runs all phases of the mode.
    pub(super) async fn measure(&self, server: &BenchServer) -> Result<Vec<PhaseResult>, BenchError> {
        let mut phases = vec![PhaseResult::new("one stream per request", self.run(server, false).await?)];
        if self.mode == Mode::Requests {
            phases.push(PhaseResult::new("persistent streams", self.run(server, true).await?));
        }
        Ok(phases)
    }

    /// Spreads the requests evenly over `streams` workers. A worker uses one persistent stream, or a new stream for
    /// each request.
    async fn run(&self, server: &BenchServer, persistent: bool) -> Result<PhaseSamples, BenchError> {
        let start = Instant::now();
        let mut workers = JoinSet::new();
        for worker in 0..self.streams {
            let quota = (worker..self.requests).step_by(usize::try_from(self.streams.max(1)).unwrap_or(1)).count();
            workers.spawn(self.work(worker, quota, server.address(), Arc::clone(server.state()), persistent));
        }
        let mut samples = Vec::new();
        while let Some(worked) = workers.join_next().await {
            samples.extend(worked.map_err(|error| BenchError::Broken(error.into()))??);
        }
        Ok(PhaseSamples { samples, elapsed: start.elapsed() })
    }

    fn work(
        &self,
        worker: u32,
        quota: usize,
        server_address: SocketAddr,
        server_state: Arc<ServerState>,
        persistent: bool,
    ) -> impl Future<Output = Result<Vec<FetchSample>, BenchError>> + use<> {
        let load = *self;
        let isolation = worker.checked_rem(load.isolations).unwrap_or(0);
        async move {
            let mut samples = Vec::new();
            let mut open = None;
            while samples.len() < quota {
                let mut stream = match open.take() {
                    Some(stream) => stream,
                    None => BenchStream::open(load.socks, server_address, Arc::clone(&server_state), isolation).await?,
                };
                // Each response starts at a different position of the body, so that a response to another request is
                // detected.
                let position = u64::from(worker).saturating_mul(104_729).saturating_add(samples.len() as u64);
                samples.push(stream.request(load.bytes, position).await?);
                if persistent {
                    open = Some(stream);
                }
            }
            Ok(samples)
        }
    }
}

/// The samples of one phase.
struct PhaseSamples {
    samples: Vec<FetchSample>,
    elapsed: Duration,
}

/// Median and 99th percentile, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Percentiles {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Percentiles {
    pub(super) fn of(samples: impl Iterator<Item = Duration>) -> Self {
        let mut sorted: Vec<Duration> = samples.collect();
        sorted.sort_unstable();
        let at = |percent: usize| {
            // The nearest rank, counted from one.
            let rank = sorted.len().saturating_mul(percent).div_ceil(100).max(1);
            sorted.get(rank.saturating_sub(1)).map_or(0.0, |sample| sample.as_secs_f64() * 1e3)
        };
        Self { p50_ms: at(50), p99_ms: at(99) }
    }
}

/// The result of one phase.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PhaseResult {
    name: &'static str,
    requests: usize,
    bytes: u64,
    seconds: f64,
    mib_per_second: f64,
    requests_per_second: f64,
    /// Time to open a stream; requests on an open stream don't count.
    connect: Percentiles,
    /// Time from a request to the complete head of the response.
    first_byte: Percentiles,
    /// Time from a request to the last byte of the response.
    last_byte: Percentiles,
    slowest_mib_per_second: f64,
    fastest_mib_per_second: f64,
}

impl PhaseResult {
    fn new(name: &'static str, PhaseSamples { samples, elapsed }: PhaseSamples) -> Self {
        let bytes = samples.iter().map(|sample| sample.bytes).sum();
        let rates = || samples.iter().map(FetchSample::rate_mib);
        Self {
            name,
            requests: samples.len(),
            bytes,
            seconds: elapsed.as_secs_f64(),
            mib_per_second: rate_mib(bytes, elapsed),
            requests_per_second: samples.len() as f64 / elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            connect: Percentiles::of(samples.iter().map(|sample| sample.connect).filter(|connect| !connect.is_zero())),
            first_byte: Percentiles::of(samples.iter().map(|sample| sample.first_byte)),
            last_byte: Percentiles::of(samples.iter().map(|sample| sample.last_byte)),
            slowest_mib_per_second: rates().fold(f64::INFINITY, f64::min),
            fastest_mib_per_second: rates().fold(0.0, f64::max),
        }
    }
}

/// The result of a measurement.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measurement {
    load: Load,
    /// Time until one request with each isolation is complete.
    warm_up_ms: f64,
    phases: Vec<PhaseResult>,
    /// CPU seconds of the watched processes per GiB.
    cpu_seconds_per_gib: Option<f64>,
    processes: Option<ProcessTotals>,
}

impl Measurement {
    pub(super) fn new(
        load: Load,
        warm_up: Duration,
        phases: Vec<PhaseResult>,
        processes: Option<ProcessTotals>,
    ) -> Self {
        let gib = phases.iter().map(|phase| phase.bytes).sum::<u64>() as f64 / GIB;
        let cpu_seconds_per_gib = processes.map(|processes| processes.cpu_seconds / gib);
        Self { load, warm_up_ms: warm_up.as_secs_f64() * 1e3, phases, cpu_seconds_per_gib, processes }
    }

    pub(super) fn to_text(&self) -> String {
        let Load { mode, socks, streams, isolations, bytes, .. } = self.load;
        let mut text = format!(
            "{} through {socks}: {streams} concurrent streams, {isolations} isolation(s), {} per response, all bytes verified",
            mode.quantity(),
            ByteSize(bytes).display().iec()
        );
        // Writing to a string can't fail.
        let _ = write!(text, "\n  warm-up       {:.1} ms", self.warm_up_ms);
        for phase in &self.phases {
            let _ = write!(text, "{}", phase.to_text(mode));
        }
        if let (Some(processes), Some(per_gib)) = (&self.processes, self.cpu_seconds_per_gib) {
            let resident = |bytes| ByteSize(bytes).display().iec();
            let requests: usize = self.phases.iter().map(|phase| phase.requests).sum();
            let each = match mode {
                Mode::Bulk => format!("{per_gib:.1} s per GiB"),
                Mode::Ttfb | Mode::Requests | Mode::Search => {
                    format!("{:.2} ms per request", processes.cpu_seconds * 1e3 / requests as f64)
                }
            };
            let _ = write!(
                text,
                "\n  CPU time      {:.2} s in {} processes, {each}\
                 \n  memory        {} total, {} largest process",
                processes.cpu_seconds,
                processes.count,
                resident(processes.resident),
                resident(processes.largest_resident),
            );
        }
        text
    }
}

impl PhaseResult {
    fn to_text(&self, mode: Mode) -> String {
        let percentiles = |times: Percentiles| format!("p50 {:.2} ms   p99 {:.2} ms", times.p50_ms, times.p99_ms);
        let mut text = String::new();
        if mode == Mode::Bulk {
            let _ = write!(
                text,
                "\n  throughput    {:.1} MiB/s ({} in {:.2} s; slowest stream {:.1}, fastest {:.1})",
                self.mib_per_second,
                ByteSize(self.bytes).display().iec(),
                self.seconds,
                self.slowest_mib_per_second,
                self.fastest_mib_per_second,
            );
        } else {
            let _ = write!(text, "\n {}:", self.name);
            let _ = write!(text, "\n  requests      {:.0} per second ({})", self.requests_per_second, self.requests);
        }
        let _ = write!(text, "\n  connect       {}", percentiles(self.connect));
        let _ = write!(text, "\n  first byte    {}", percentiles(self.first_byte));
        text
    }
}
