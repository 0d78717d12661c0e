//! The figures of a run.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    time::{Duration, Instant},
};

use super::{
    load::{Carriage, Outcome, Request, TargetServer},
    nodes::Nodes,
    strikes::Strikes,
};

/// Cap on the resident memory of a relay.
const RELAY_MEMORY: u64 = 64 << 20;
/// Cap on the resident memory of the client.
const CLIENT_MEMORY: u64 = 64 << 20;
/// Cap on the resident memory of the directory.
const DIRECTORY_MEMORY: u64 = 64 << 20;
/// Seconds before a failure whose strikes are printed with it.
const CONTEXT: u64 = 6;

/// Counts of requests, and the largest memory of each role.
#[derive(Default)]
pub(super) struct Tally {
    pub(super) right: u32,
    /// Requests cut because their exit was killed, stopped or restarted.
    pub(super) cut: u32,
    pub(super) failed: u32,
    pub(super) wrong: u32,
    pub(super) hung: u32,
    /// Right requests that reached the target server more than once.
    repeated: u32,
    /// Right requests of each exit. Without this attribution, no request would count as cut at its exit.
    exits: BTreeMap<usize, u32>,
    /// The number of failures for each reason.
    reasons: BTreeMap<String, u32>,
    /// The durations of right requests.
    durations: Vec<Duration>,
    slowest: Duration,
    relay_memory: u64,
    client_memory: u64,
    directory_memory: u64,
    first_client_memory: u64,
}

impl Tally {
    pub(super) const fn requests(&self) -> u32 {
        self.right + self.cut + self.failed + self.wrong + self.hung
    }

    /// The fraction of right requests among those that weren't cut at their exit.
    pub(super) fn success(&self) -> f64 {
        f64::from(self.right) / f64::from((self.requests() - self.cut).max(1))
    }

    /// Right requests whose exit is known.
    pub(super) fn attributed(&self) -> u32 {
        self.exits.values().sum()
    }

    /// Counts a finished request.
    pub(super) fn add(&mut self, start: Instant, request: &Request, server: &TargetServer, strikes: &Strikes) {
        let Request { number, began, connected, ended, outcome } = request;
        let carriages = server.carriages(*number);
        let duration = *ended - *began;
        self.slowest = self.slowest.max(duration);
        let at_exit = carriages
            .iter()
            .any(|carriage| carriage.exit.is_some_and(|exit| strikes.was_down(exit, carriage.at, *ended)));
        let (class, reason) = match outcome {
            Outcome::Right => {
                self.right += 1;
                self.repeated += u32::from(carriages.len() > 1);
                if let Some(exit) = carriages.last().and_then(|carriage| carriage.exit) {
                    *self.exits.entry(exit).or_default() += 1;
                }
                return self.durations.push(duration);
            }
            Outcome::Wrong(reason) => (&mut self.wrong, format!("wrong bytes: {reason}")),
            Outcome::Failed(reason) if at_exit => (&mut self.cut, format!("cut at the exit: {reason}")),
            Outcome::Failed(reason) => (&mut self.failed, format!("failed: {reason}")),
            Outcome::Hung(stage) => (&mut self.hung, format!("hung: {stage}")),
        };
        *class += 1;
        let after = |time: Instant| format!("{:.2} s", (time - *began).as_secs_f64());
        let carried: Vec<String> = carriages
            .iter()
            .map(|Carriage { exit, at }| format!("relay{} {}", exit.map_or(0, |exit| exit + 1), after(*at)))
            .collect();
        eprintln!(
            "{:6.1} s  request {number} after {}: {reason}; connected {}; target server {carried:?}; {}",
            (*began - start).as_secs_f64(),
            after(*ended),
            connected.map_or_else(|| "never".to_owned(), after),
            strikes.before(*ended, CONTEXT + duration.as_secs()),
        );
        *self.reasons.entry(reason).or_default() += 1;
    }

    /// Takes a sample of the memory of all processes.
    pub(super) fn sample(&mut self, nodes: &Nodes) {
        let relays = nodes.relays.iter().filter_map(|relay| relay.memory()).max();
        self.relay_memory = self.relay_memory.max(relays.unwrap_or(0));
        let client = nodes.client.memory().expect("the client runs");
        self.client_memory = self.client_memory.max(client);
        if self.first_client_memory == 0 {
            self.first_client_memory = client;
        }
        self.directory_memory = self.directory_memory.max(nodes.directory.memory().unwrap_or(0));
    }

    /// One line about the run so far.
    pub(super) fn progress(&self) -> String {
        format!(
            "{} requests: {} right, {} cut at their exit, {} failed, {} wrong, {} hung; client {}, relays at most {}; load {}",
            self.requests(),
            self.right,
            self.cut,
            self.failed,
            self.wrong,
            self.hung,
            mebibytes(self.client_memory),
            mebibytes(self.relay_memory),
            load(),
        )
    }

    /// The figures as Markdown.
    pub(super) fn table(&mut self, strikes: &Strikes, datagrams: u64) -> String {
        self.durations.sort_unstable();
        let at = |permille: usize| self.durations.get(self.durations.len() * permille / 1000).copied();
        let milliseconds = |time: Option<Duration>| format!("{:.0} ms", time.unwrap_or_default().as_secs_f64() * 1e3);
        let mut text = "\n| figure | value |\n|---|---|\n".to_owned();
        let mut row = |name: &str, value: String| writeln!(text, "| {name} | {value} |").unwrap();
        row("requests", self.requests().to_string());
        row("right at the first try", self.right.to_string());
        row("cut at an exit that was killed, stopped or restarted", self.cut.to_string());
        row("failed otherwise", self.failed.to_string());
        row("wrong bytes", self.wrong.to_string());
        row("hung beyond 10 s", self.hung.to_string());
        row("right, without those cut at an exit", format!("{:.2} %", self.success() * 100.0));
        row("right, of all", format!("{:.2} %", f64::from(self.right) / f64::from(self.requests().max(1)) * 100.0));
        row("right requests that reached the target server twice", self.repeated.to_string());
        row("right requests with a known exit", format!("{} over {} exits", self.attributed(), self.exits.len()));
        row("time of right requests: median", milliseconds(at(500)));
        row("time of right requests: 99 % within", milliseconds(at(990)));
        row("time of right requests: longest", milliseconds(self.durations.last().copied()));
        row("longest request of any outcome", milliseconds(Some(self.slowest)));
        for (kind, count) in &strikes.counts {
            row(kind, count.to_string());
        }
        row("datagrams of floods", datagrams.to_string());
        row("slowest start of a relay", milliseconds(Some(strikes.slowest_start)));
        let memory = |name: &str, largest, cap| (format!("{name}: largest memory"), largest, cap);
        for (name, largest, cap) in self.memory().map(|(name, largest, cap)| memory(name, largest, cap)) {
            row(&name, format!("{} (cap {})", mebibytes(largest), mebibytes(cap)));
        }
        row("client: memory at the start", mebibytes(self.first_client_memory));
        for (reason, count) in &self.reasons {
            row(reason, count.to_string());
        }
        text
    }

    /// Fails if a process had more memory than its cap.
    pub(super) fn check_memory(&self) {
        for (name, largest, cap) in self.memory() {
            assert!(largest <= cap, "{name}: {} is above the cap of {}", mebibytes(largest), mebibytes(cap));
        }
    }

    const fn memory(&self) -> [(&'static str, u64, u64); 3] {
        [
            ("relays", self.relay_memory, RELAY_MEMORY),
            ("client", self.client_memory, CLIENT_MEMORY),
            ("directory", self.directory_memory, DIRECTORY_MEMORY),
        ]
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

/// The load of the machine in the last minute, and its number of processors.
pub(super) fn load() -> String {
    let averages = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let processors = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    format!("{} of {processors}", averages.split_whitespace().next().unwrap_or("unknown"))
}
