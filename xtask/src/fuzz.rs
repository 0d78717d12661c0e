//! `cargo xtask fuzz`: runs the fuzz targets in turn, accumulates their minutes over several calls, and merges the grown
//! corpora into `fuzz/corpus`.
//!
//! The build needs only the stable compiler: libFuzzer's instrumentation is a pass of LLVM, and no sanitizer is used,
//! because the crate has no unsafe code. The state of each target is in the user's cache, so that it survives a clean
//! build and an interruption.

mod corpus;
mod merge;
mod target;

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Mutex, PoisonError},
    thread,
};

use self::target::{ROUND_SECONDS, Round, Target};
use crate::{
    arguments::{Arguments, unknown_option},
    packages::on_path,
    run::{Failure, Run, cache, root, target_folder},
};

const USAGE: &str = "\
Runs the fuzz targets until each has the given time, and merges the inputs that they found into fuzz/corpus.

usage: cargo xtask fuzz [OPTION]…

  --minutes N     minutes of processor time that each target reaches, over all calls (default 10); 0 only merges the
                  corpora
  --jobs N        targets that run at once (default 2)
  --target NAME   only this target; repeatable
  --list          print the targets with their minutes, executions, coverage and findings, and run nothing

The targets with the least time run first, in rounds of one minute; an interruption loses at most the current round. Times,
grown corpora and findings are in ${XDG_CACHE_HOME:-~/.cache}/umbel-tools/fuzz. A target with a finding doesn't run until the
finding is fixed: the next call moves the inputs that no longer fail to fuzz/corpus.

It needs the stable compiler and a C++ compiler (Debian's package g++). No sanitizer is used, because the crate has no
unsafe code; debug assertions and overflow checks are on.

example: nice -n 19 cargo xtask fuzz --minutes 10
";

/// The environment variable with the name of the target.
const TARGET_VARIABLE: &str = "UMBEL_FUZZ_TARGET";
/// The instrumentation that libFuzzer needs, as cargo-fuzz sets it.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares";

struct Options {
    minutes: u64,
    jobs: usize,
    targets: Vec<String>,
    list: bool,
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self, Failure> {
        let mut options = Self { minutes: 10, jobs: 2, targets: Vec::new(), list: false };
        let mut arguments = Arguments::new(arguments);
        while let Some(name) = arguments.next_name() {
            match name {
                "--list" => options.list = true,
                "--minutes" => options.minutes = number(name, arguments.value(name)?)?,
                "--jobs" => {
                    options.jobs = number(name, arguments.value(name)?)?.try_into().unwrap_or(usize::MAX).clamp(1, 256)
                }
                "--target" => options.targets.push(arguments.value(name)?.to_owned()),
                _ => return Err(unknown_option(name)),
            }
        }
        Ok(options)
    }
}

fn number(name: &str, text: &str) -> Result<u64, Failure> {
    text.parse().map_err(|_| Failure::new(format!("{name} needs a number, not {text:?}")))
}

/// Fuzzes as requested by `arguments`, and prints a table.
pub(crate) fn command(arguments: &[&str]) -> Result<(), Failure> {
    if arguments.iter().any(|argument| ["--help", "-h", "help"].contains(argument)) {
        print!("{USAGE}");
        return Ok(());
    }
    let options = Options::parse(arguments)?;
    let folder = cache("fuzz")?;
    let mut targets = selected(&folder, &options.targets)?;
    if options.list {
        print_table(&targets);
        return Ok(());
    }
    let lock = File::create(folder.join("lock")).map_err(|error| Failure::new(format!("can't lock: {error}")))?;
    lock.try_lock()
        .map_err(|_| Failure::new(format!("another `cargo xtask fuzz` uses {}; wait for its end", folder.display())))?;
    let program = build()?;
    for target in &mut targets {
        target.replay_findings(&program)?;
    }
    let goal = options.minutes.saturating_mul(60_000);
    let targets = fuzz(&program, targets, goal, options.jobs)?;
    for target in &targets {
        if let Some((before, after)) = merge::merge(&program, target)? {
            println!("{}: {before} entries in fuzz/corpus, {after} after the merge", target.name);
        }
    }
    print_table(&targets);
    report_findings(&program, &targets)
}

/// The selected targets, by default all, with their stored state.
fn selected(folder: &Path, names: &[String]) -> Result<Vec<Target>, Failure> {
    let all = corpus::names(&corpus::root())?;
    if let Some(unknown) = names.iter().find(|name| !all.contains(name)) {
        return Err(Failure::new(format!("unknown target {unknown:?}; --list prints the targets")));
    }
    let chosen = all.into_iter().filter(|name| names.is_empty() || names.contains(name));
    chosen.map(|name| Target::load(folder, name)).collect()
}

/// Builds the program of all targets, with the versions of the dependencies that the product has.
fn build() -> Result<PathBuf, Failure> {
    if on_path("c++").is_none() {
        return Err(Failure::new("libFuzzer needs a C++ compiler; install Debian's package g++"));
    }
    let manifest = root().join("fuzz/Cargo.toml");
    fs::copy(root().join("Cargo.lock"), root().join("fuzz/Cargo.lock"))
        .map_err(|error| Failure::new(format!("can't copy Cargo.lock to fuzz: {error}")))?;
    let version = Run::cargo().args(["-vV"]).try_output()?;
    let host = version.lines().find_map(|line| line.strip_prefix("host: "));
    let host = host.ok_or_else(|| Failure::new("the output of cargo -vV has no host"))?;
    let folder = target_folder()?.join("fuzz");
    Run::cargo()
        .args(["build", "--quiet", "--release", "--manifest-path"])
        .args([&manifest])
        // With a target, the flags don't apply to build scripts.
        .args(["--target", host, "--target-dir"])
        .args([&folder])
        .env("RUSTFLAGS", RUSTFLAGS)
        .run()?;
    Ok(folder.join(host).join("release/umbel-fuzz"))
}

/// A libFuzzer process of one target, with its limits.
fn libfuzzer(program: &Path, target: &Target) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).stdin(Stdio::null()).env(TARGET_VARIABLE, &target.name);
    command.args(["-timeout=10", "-rss_limit_mb=2048", "-report_slow_units=30"]);
    command
}

/// Runs rounds, `jobs` at once, until each target has had `goal` milliseconds of processor time or has a finding.
fn fuzz(program: &Path, targets: Vec<Target>, goal: u64, jobs: usize) -> Result<Vec<Target>, Failure> {
    let schedule = Mutex::new(Schedule { idle: targets, done: Vec::new(), goal });
    let failures = thread::scope(|scope| {
        let workers: Vec<_> = (0..jobs).map(|_| scope.spawn(|| work(program, &schedule))).collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()?.err()).collect::<Vec<_>>()
    });
    let Schedule { mut idle, mut done, .. } = schedule.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some(failure) = failures.into_iter().next() {
        return Err(failure);
    }
    done.append(&mut idle);
    done.sort_by(|one, next| one.name.cmp(&next.name));
    Ok(done)
}

/// The targets that wait for a round, and those that need none.
struct Schedule {
    idle: Vec<Target>,
    done: Vec<Target>,
    goal: u64,
}

impl Schedule {
    /// Takes the target with the least time; `None` if no target waits.
    fn take(&mut self) -> Option<(Target, u64)> {
        let goal = self.goal;
        let (idle, done): (Vec<_>, Vec<_>) =
            self.idle.drain(..).partition(|target| target.totals.milliseconds < goal && target.findings().is_empty());
        self.idle = idle;
        self.done.extend(done);
        let (index, _) = self.idle.iter().enumerate().min_by_key(|(_, target)| target.totals.milliseconds)?;
        let target = self.idle.swap_remove(index);
        let seconds = goal.saturating_sub(target.totals.milliseconds).div_ceil(1000).min(ROUND_SECONDS);
        Some((target, seconds))
    }
}

/// Runs rounds until no target waits.
fn work(program: &Path, schedule: &Mutex<Schedule>) -> Result<(), Failure> {
    let lock = || schedule.lock().unwrap_or_else(PoisonError::into_inner);
    loop {
        // Not in the loop's condition, which would hold the lock during the round.
        let taken = lock().take();
        let Some((mut target, seconds)) = taken else { return Ok(()) };
        let outcome = target.run_round(program, seconds);
        if let Ok(round) = &outcome {
            print_round(&target, round, lock().goal);
        }
        lock().idle.push(target);
        outcome?;
    }
}

fn print_round(target: &Target, round: &Round, goal: u64) {
    let totals = &target.totals;
    let rate = round.executions.saturating_mul(1000).checked_div(round.milliseconds).unwrap_or_default();
    println!(
        "{:24} {:5.1} of {} min, {rate:6} executions/s, cov {}, ft {}{}",
        target.name,
        minutes(totals.milliseconds),
        goal / 60_000,
        totals.coverage,
        totals.features,
        if round.found { ", FINDING" } else { "" }
    );
}

fn minutes(milliseconds: u64) -> f64 {
    std::time::Duration::from_millis(milliseconds).as_secs_f64() / 60.0
}

/// Prints the state of the targets as a Markdown table.
fn print_table(targets: &[Target]) {
    println!("\n| target | minutes | executions | edges | features | findings |");
    println!("|---|---|---|---|---|---|");
    for target in targets {
        let totals = &target.totals;
        let (time, findings) = (minutes(totals.milliseconds), target.findings().len());
        println!(
            "| `{}` | {time:.1} | {} | {} | {} | {findings} |",
            target.name, totals.executions, totals.coverage, totals.features
        );
    }
    let milliseconds = targets.iter().map(|target| target.totals.milliseconds).sum();
    let executions: u64 = targets.iter().map(|target| target.totals.executions).sum();
    println!("| all {} | {:.1} | {executions} | | | |\n", targets.len(), minutes(milliseconds));
}

/// Prints how to reproduce each finding.
///
/// # Errors
/// When there is a finding.
fn report_findings(program: &Path, targets: &[Target]) -> Result<(), Failure> {
    let mut count = 0_usize;
    for target in targets {
        for finding in target.findings() {
            count = count.saturating_add(1);
            println!("FINDING in {}:", target.name);
            println!("  {TARGET_VARIABLE}={} {} {}", target.name, program.display(), finding.display());
        }
    }
    if count == 0 {
        return Ok(());
    }
    Err(Failure::new(format!("{count} inputs fail; fix each, and commit it to fuzz/corpus with a test")))
}
