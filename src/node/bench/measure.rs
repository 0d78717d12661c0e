//! The load of a measurement, and the statistics of its samples.

use core::{net::SocketAddr, time::Duration};
use std::{fmt::Write, sync::Arc, time::Instant};

use bytesize::ByteSize;
use clap::ValueEnum;
use serde::Serialize;
use tokio::task::JoinSet;

use super::{
    process::Processes,
    server::BenchServer,
    stream::{BenchError, BenchStream, Fetched, MIB, rate_mib},
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
    /// Searches: sequential, then --streams concurrently; the same queries are also sent to the engine directly
    Search,
}

/// The requests that a measurement sends.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Load {
    pub(super) mode: Mode,
    pub(super) socks: SocketAddr,
    /// Concurrent streams, at least one.
    pub(super) streams: u32,
    /// Isolations over which the streams are spread, at least one.
    pub(super) circuits: u32,
    /// Bytes of each answer.
    pub(super) bytes: u64,
    /// Total requests of each phase.
    pub(super) requests: u32,
}

impl Load {
    /// Sends one small request on each circuit, so that the measurement excludes the building of circuits. Returns the
    /// elapsed time.
    pub(super) async fn warm_up(&self, origin: &BenchServer) -> Result<Duration, BenchError> {
        let circuits = self.circuits.min(self.streams);
        let load = Self { streams: circuits, requests: circuits, bytes: 1, ..*self };
        Ok(load.run(origin, false).await?.elapsed)
    }

    /// Runs all phases of the mode.
    pub(super) async fn measure(&self, origin: &BenchServer) -> Result<Vec<PhaseResult>, BenchError> {
        let mut phases = vec![PhaseResult::new("one stream per request", self.run(origin, false).await?)];
        if self.mode == Mode::Requests {
            phases.push(PhaseResult::new("persistent streams", self.run(origin, true).await?));
        }
        Ok(phases)
    }

    /// Runs all requests, spread evenly over the streams, which are persistent or new for each request.
    async fn run(&self, origin: &BenchServer, persistent: bool) -> Result<Samples, BenchError> {
        let start = Instant::now();
        let mut workers = JoinSet::new();
        for worker in 0..self.streams {
            let quota = (worker..self.requests).step_by(usize::try_from(self.streams.max(1)).unwrap_or(1)).count();
            workers.spawn(self.work(worker, quota, origin.address(), Arc::clone(origin.shared()), persistent));
        }
        let mut fetched = Vec::new();
        while let Some(worked) = workers.join_next().await {
            fetched.extend(worked.map_err(|error| BenchError::Broken(error.into()))??);
        }
        Ok(Samples { fetched, elapsed: start.elapsed() })
    }

    fn work(
        &self,
        worker: u32,
        quota: usize,
        target: SocketAddr,
        origin: Arc<super::server::TargetState>,
        persistent: bool,
    ) -> impl Future<Output = Result<Vec<Fetched>, BenchError>> + use<> {
        let load = *self;
        let isolation = worker.checked_rem(load.circuits).unwrap_or(0);
        async move {
            let mut fetched = Vec::new();
            let mut open = None;
            while fetched.len() < quota {
                let mut stream = match open.take() {
                    Some(stream) => stream,
                    None => BenchStream::open(load.socks, target, Arc::clone(&origin), isolation).await?,
                };
                // Each answer is a different part of the body, so that an answer to another request is detected.
                let position = u64::from(worker).saturating_mul(104_729).saturating_add(fetched.len() as u64);
                fetched.push(stream.request(load.bytes, position).await?);
                if persistent {
                    open = Some(stream);
                }
            }
            Ok(fetched)
        }
    }
}

struct Samples {
    fetched: Vec<Fetched>,
    elapsed: Duration,
}

/// Median and 99th percentile, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(super) struct Spread {
    pub(super) p50_ms: f64,
    pub(super) p99_ms: f64,
}

impl Spread {
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
    /// Time to open a stream; reused streams are excluded.
    connect: Spread,
    /// Time from a request to the first byte of its answer.
    first_byte: Spread,
    /// Time from a request to the last byte of its answer.
    whole: Spread,
    slowest_mib_per_second: f64,
    fastest_mib_per_second: f64,
}

impl PhaseResult {
    fn new(name: &'static str, Samples { fetched, elapsed }: Samples) -> Self {
        let bytes = fetched.iter().map(|sample| sample.bytes).sum();
        let rates = || fetched.iter().map(Fetched::rate_mib);
        Self {
            name,
            requests: fetched.len(),
            bytes,
            seconds: elapsed.as_secs_f64(),
            mib_per_second: rate_mib(bytes, elapsed),
            requests_per_second: fetched.len() as f64 / elapsed.as_secs_f64().max(f64::MIN_POSITIVE),
            connect: Spread::of(fetched.iter().map(|sample| sample.connect).filter(|connect| !connect.is_zero())),
            first_byte: Spread::of(fetched.iter().map(|sample| sample.first_byte)),
            whole: Spread::of(fetched.iter().map(|sample| sample.whole)),
            slowest_mib_per_second: rates().fold(f64::INFINITY, f64::min),
            fastest_mib_per_second: rates().fold(0.0, f64::max),
        }
    }
}

/// The result of a measurement.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Measurement {
    load: Load,
    /// Time until each circuit has carried one request and its answer.
    warm_up_ms: f64,
    phases: Vec<PhaseResult>,
    /// Processor seconds of the watched processes per GiB.
    cpu_seconds_per_gib: Option<f64>,
    processes: Option<Processes>,
}

impl Measurement {
    pub(super) fn new(load: Load, warm_up: Duration, phases: Vec<PhaseResult>, processes: Option<Processes>) -> Self {
        let gib = phases.iter().map(|phase| phase.bytes).sum::<u64>() as f64 / GIB;
        let cpu_seconds_per_gib = processes.map(|processes| processes.cpu_seconds / gib);
        Self { load, warm_up_ms: warm_up.as_secs_f64() * 1e3, phases, cpu_seconds_per_gib, processes }
    }

    pub(super) fn to_text(&self) -> String {
        let Load { mode, socks, streams, circuits, bytes, .. } = self.load;
        let mut text = format!(
            "{mode:?} through {socks}: {streams} concurrent on {circuits} circuit(s), {} each, all bytes compared",
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
                "\n  processor     {:.2} s in {} processes, {each}\
                 \n  memory        {} in all, {} the largest",
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
        let spread = |spread: Spread| format!("p50 {:.2} ms   p99 {:.2} ms", spread.p50_ms, spread.p99_ms);
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
        let _ = write!(text, "\n  connect       {}", spread(self.connect));
        let _ = write!(text, "\n  first byte    {}", spread(self.first_byte));
        text
    }
}
