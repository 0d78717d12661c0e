//! The stored state of one target, and its rounds.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Child, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use super::{corpus, libfuzzer};
use crate::run::Failure;

/// The length of a round, by the clock.
pub(super) const ROUND_SECONDS: u64 = 60;
/// Interval at which the processor time of a round is read.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(200);
/// Milliseconds of a unit of processor time in `/proc`, which Linux reports in hundredths of a second.
const TICK_MILLISECONDS: u64 = 10;
/// The least cap on the length of an input; larger if the corpus has a larger one.
const MAX_LEN: u64 = 4096;
/// The start of the name of a file that libFuzzer writes for an input that is slow, but within the time limit.
const SLOW: &str = "slow-unit-";
/// The start of the name of a file that libFuzzer writes for an input that exceeds the time limit.
const TIMEOUT: &str = "timeout-";
/// libFuzzer's exit status after such an input.
const TIMEOUT_STATUS: i32 = 70;

/// The sums over all rounds of a target, and the coverage after the last one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Totals {
    /// Processor time. With a low priority on a busy machine, it is much less than the time by the clock.
    pub(super) milliseconds: u64,
    pub(super) executions: u64,
    /// Edges of the control flow.
    pub(super) coverage: u64,
    /// Edges with their counts, as libFuzzer groups them.
    pub(super) features: u64,
}

impl Totals {
    fn encode(&self) -> String {
        let Self { milliseconds, executions, coverage, features } = self;
        format!("milliseconds {milliseconds}\nexecutions {executions}\ncoverage {coverage}\nfeatures {features}\n")
    }

    fn decode(text: &str) -> Self {
        let value = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
            line.and_then(|value| value.parse().ok()).unwrap_or_default()
        };
        Self {
            milliseconds: value("milliseconds"),
            executions: value("executions"),
            coverage: value("coverage"),
            features: value("features"),
        }
    }

    /// Adds a round.
    fn add(&mut self, round: &Round) {
        self.milliseconds = self.milliseconds.saturating_add(round.milliseconds);
        self.executions = self.executions.saturating_add(round.executions);
        if round.coverage > 0 {
            (self.coverage, self.features) = (round.coverage, round.features);
        }
    }
}

/// The outcome of a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Round {
    /// Processor time.
    pub(super) milliseconds: u64,
    pub(super) executions: u64,
    coverage: u64,
    features: u64,
    pub(super) found: bool,
}

impl Round {
    /// Reads libFuzzer's output.
    fn read(output: &str) -> Self {
        let mut round = Self::default();
        for line in output.lines() {
            let mut words = line.split_whitespace();
            while let Some(word) = words.next() {
                let field = match word {
                    "cov:" => &mut round.coverage,
                    "ft:" => &mut round.features,
                    "stat::number_of_executed_units:" => &mut round.executions,
                    _ => continue,
                };
                if let Some(value) = words.next().and_then(|value| value.parse().ok()) {
                    *field = value;
                }
            }
        }
        round
    }
}

/// A target, with its folder in the user's cache.
pub(super) struct Target {
    pub(super) name: String,
    pub(super) totals: Totals,
    folder: PathBuf,
}

impl Target {
    /// The target `name` with the state stored in `folder`.
    pub(super) fn load(folder: &Path, name: String) -> Result<Self, Failure> {
        let folder = folder.join(&name);
        for created in ["corpus", "findings"].map(|part| folder.join(part)) {
            fs::create_dir_all(&created)
                .map_err(|error| Failure::new(format!("can't create {}: {error}", created.display())))?;
        }
        let totals = match fs::read_to_string(folder.join("totals")) {
            Ok(text) => Totals::decode(&text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Totals::default(),
            Err(error) => return Err(Failure::new(format!("can't read the state of {name}: {error}"))),
        };
        Ok(Self { name, totals, folder })
    }

    /// The folder of the inputs that libFuzzer has found.
    pub(super) fn grown(&self) -> PathBuf {
        self.folder.join("corpus")
    }

    /// The folder in `fuzz/corpus`.
    pub(super) fn committed(&self) -> PathBuf {
        corpus::root().join(&self.name)
    }

    /// A file or folder for a step's own use.
    pub(super) fn scratch(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The inputs that fail.
    pub(super) fn findings(&self) -> Vec<PathBuf> {
        let folder = self.folder.join("findings");
        let names = corpus::names(&folder).unwrap_or_default();
        names.into_iter().filter(|name| !name.starts_with(SLOW)).map(|name| folder.join(name)).collect()
    }

    /// The cap on the length of an input.
    fn max_len(&self) -> u64 {
        let folder = self.committed();
        let names = corpus::names(&folder).unwrap_or_default();
        names.iter().map(|name| corpus::length(&folder.join(name))).max().unwrap_or_default().max(MAX_LEN)
    }

    /// Fuzzes for `seconds`, or until the first finding, and stores the sums.
    pub(super) fn run_round(&mut self, program: &Path, seconds: u64) -> Result<Round, Failure> {
        let failed = |error: io::Error| Failure::new(format!("can't run {}: {error}", self.name));
        let log = self.folder.join("log");
        let output = File::create(&log).map_err(failed)?;
        let mut command = libfuzzer(program, self);
        command
            .arg(format!("-max_total_time={seconds}"))
            .arg(format!("-max_len={}", self.max_len()))
            .arg(format!("-artifact_prefix={}/findings/", self.folder.display()))
            .args(["-print_final_stats=1", "-reload=0"])
            .args([self.grown(), self.committed()])
            .stdout(output.try_clone().map_err(failed)?)
            .stderr(output);
        let (status, milliseconds) = command.spawn().and_then(wait).map_err(failed)?;
        self.discard_false_timeouts(program)?;
        let text = String::from_utf8_lossy(&fs::read(&log).map_err(failed)?).into_owned();
        let found = !self.findings().is_empty();
        let has_timed_out = status.code() == Some(TIMEOUT_STATUS);
        if !status.success() && !found && !has_timed_out {
            return Err(Failure::new(format!("{} ended with {status}; its output is in {}", self.name, log.display())));
        }
        let round = Round { milliseconds, found, ..Round::read(&text) };
        self.totals.add(&round);
        self.store()?;
        Ok(round)
    }

    /// Deletes the inputs that exceeded the time limit only because other processes delayed the fuzzer.
    fn discard_false_timeouts(&self, program: &Path) -> Result<(), Failure> {
        let is_timeout =
            |path: &PathBuf| path.file_name().is_some_and(|name| name.to_string_lossy().starts_with(TIMEOUT));
        for finding in self.findings().into_iter().filter(is_timeout) {
            if self.passes(program, &finding)? {
                fs::remove_file(&finding)
                    .map_err(|error| Failure::new(format!("can't delete {}: {error}", finding.display())))?;
            }
        }
        Ok(())
    }

    /// Whether the target passes on the input.
    fn passes(&self, program: &Path, input: &Path) -> Result<bool, Failure> {
        let mut replay = libfuzzer(program, self);
        replay.arg(input).stdout(Stdio::null()).stderr(Stdio::null());
        let status =
            replay.status().map_err(|error| Failure::new(format!("can't replay {}: {error}", input.display())))?;
        Ok(status.success())
    }

    /// Stores the sums. The file is replaced as a whole, so that an interruption leaves the last sums.
    fn store(&self) -> Result<(), Failure> {
        let (file, temporary) = (self.folder.join("totals"), self.folder.join("totals.tmp"));
        fs::write(&temporary, self.totals.encode())
            .and_then(|()| fs::rename(&temporary, &file))
            .map_err(|error| Failure::new(format!("can't write {}: {error}", file.display())))
    }

    /// Runs the stored findings again. Moves the inputs that no longer fail to `fuzz/corpus`.
    pub(super) fn replay_findings(&mut self, program: &Path) -> Result<(), Failure> {
        for finding in self.findings() {
            let Some(name) = finding.file_name() else { continue };
            if !self.passes(program, &finding)? {
                continue;
            }
            let entry = self.committed().join(name);
            fs::copy(&finding, &entry)
                .and_then(|_| fs::remove_file(&finding))
                .map_err(|error| Failure::new(format!("can't move {}: {error}", finding.display())))?;
            println!("{}: fixed; commit {}", self.name, entry.display());
        }
        Ok(())
    }
}

/// Waits for the end of a process. Returns its status and its processor time in milliseconds, which is read until the
/// end, because the standard library doesn't report it.
fn wait(mut child: Child) -> io::Result<(ExitStatus, u64)> {
    let path = format!("/proc/{}/stat", child.id());
    let mut ticks = 0;
    loop {
        ticks = fs::read_to_string(&path).ok().and_then(|stat| processor_ticks(&stat)).unwrap_or(ticks);
        if let Some(status) = child.try_wait()? {
            return Ok((status, ticks.saturating_mul(TICK_MILLISECONDS)));
        }
        thread::sleep(SAMPLE_INTERVAL);
    }
}

/// The processor time in the text of `/proc/PID/stat`: the fields 14 and 15, counted after the name in parentheses.
fn processor_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields.split_whitespace().skip(11).map(|field| field.parse::<u64>().ok());
    Some(times.next()??.saturating_add(times.next()??))
}

#[cfg(test)]
mod tests {
    use super::{Round, Totals, processor_ticks};

    #[test]
    fn the_processor_time_is_the_sum_of_user_and_system_time() {
        let stat = "4242 (a (b) c) S 1 2 3 0 -1 4194304 100 0 0 0 731 269 0 0 20 0 1 0 55 1000 200";
        assert_eq!(processor_ticks(stat), Some(1000));
        assert_eq!(processor_ticks("4242 (name) S 1"), None);
    }

    #[test]
    fn stored_sums_are_read_back_and_malformed_lines_count_as_zero() {
        let totals = Totals { milliseconds: 61, executions: 7_000_000, coverage: 12, features: 34 };
        assert_eq!(Totals::decode(&totals.encode()), totals);
        assert_eq!(Totals::decode("milliseconds x\ncoverage 3\n"), Totals { coverage: 3, ..Totals::default() });
    }

    #[test]
    fn the_last_coverage_and_the_executions_are_read_from_the_output() {
        let output = "#2 INITED cov: 10 ft: 11 corp: 1/1b exec/s: 0 rss: 30Mb\n\
            #9\tREDUCE cov: 12 ft: 15 corp: 3/9b lim: 4 exec/s: 0 rss: 31Mb L: 3/3 MS: 1 EraseBytes-\n\
            #80\tDONE   cov: 13 ft: 16 corp: 4/9b lim: 4 exec/s: 40 rss: 31Mb\n\
            stat::number_of_executed_units: 80\nstat::average_exec_per_sec: 40\n";
        let round = Round { executions: 80, coverage: 13, features: 16, ..Round::default() };
        assert_eq!(Round::read(output), round);
        let mut totals = Totals { milliseconds: 60, executions: 20, coverage: 9, features: 9 };
        totals.add(&Round { milliseconds: 2, ..round });
        assert_eq!(totals, Totals { milliseconds: 62, executions: 100, coverage: 13, features: 16 });
        totals.add(&Round { milliseconds: 1, ..Round::default() });
        assert_eq!(totals.coverage, 13, "a round that ended before its first figures keeps the last ones");
    }
}
