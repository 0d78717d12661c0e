//! `cargo xtask compare`: measures Umbel and Tor under the same conditions, and prints a table.
//!
//! The labs in `xtask/labs` start both networks and measure them. This module selects the conditions, alternates the
//! programs, and computes medians and ratios.

mod table;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use self::table::{CONDITIONS, Condition, Contender, Results};
use crate::{
    arguments::{Arguments, unknown_option},
    packages,
    run::{Failure, Run, root, target_folder},
};

const USAGE: &str = "\
Measures Umbel and Tor under the same conditions and prints a table.

usage: cargo xtask compare [OPTION]…

  --only ROW        only this condition; repeatable (the list is below)
  --runs N          runs of each program, alternating (default 3); the table has medians
  --umbel PATH      the program to measure (default: a release build of this checkout)
  --baseline PATH   a second umbel program, measured alternately, for comparisons before and after a change
  --no-tor          measure Umbel only
  --tcp-cc NAME     TCP's congestion control in the namespaces (default bbr); it determines Tor's figures under loss. The
                    conditions beside-bbr and beside-cubic select their own
  --keep FOLDER     write the output of each run to a file in this folder

";

const NOTES: &str = "
All conditions except loopback and channels use a network namespace for each node, which needs root and Linux 6.2:

  cargo build --release --bin umbel --example attack
  sudo -E env PATH=\"$PATH\" cargo xtask compare --umbel target/release/umbel

Tor is Debian's package, which is installed without its service if it is missing. No traffic leaves the machine. All
conditions with three runs take about 70 minutes, half of which is Tor's start. Umbel alone takes 20 minutes. The example
`attack` opens the channels of the condition channels.

The condition beside-cubic needs CUBIC in /proc/sys/net/ipv4/tcp_allowed_congestion_control, which an administrator can write.

Progress is printed to standard error, the table to standard output as Markdown, one condition at a time. The machine
should be idle otherwise; the last line has the load of other processes. Differences under about 25 % are not significant.
xtask/labs/README.md explains the figures.

examples: cargo xtask compare --only loopback --no-tor --runs 1
          cargo xtask compare --umbel new/umbel --baseline old/umbel --no-tor --only loss-1 --only delay-100
";

/// Time limit of one run of a lab, in seconds.
const LAB_TIMEOUT: &str = "420";
const DEFAULT_RUNS: usize = 3;

struct Options {
    conditions: Vec<&'static Condition>,
    runs: usize,
    umbel: Option<PathBuf>,
    baseline: Option<PathBuf>,
    tor: bool,
    tcp_cc: Option<String>,
    keep: Option<PathBuf>,
}

/// Measures as requested by `arguments` and prints the table.
pub(crate) fn command(arguments: &[&str]) -> Result<(), Failure> {
    if arguments.iter().any(|argument| ["--help", "-h", "help"].contains(argument)) {
        print!("{USAGE}{}{NOTES}", table::list_of_conditions());
        return Ok(());
    }
    let options = Options::parse(arguments)?;
    if !packages::is_root() && options.conditions.iter().any(|condition| condition.is_namespaced()) {
        return Err(Failure::new(
            "network namespaces need root: run it as root (cargo xtask compare --help shows how), or --only loopback",
        ));
    }
    packages::install_for_labs()?;
    if options.tor {
        packages::install_tor()?;
    }
    if let Some(folder) = &options.keep {
        fs::create_dir_all(folder)
            .map_err(|error| Failure::new(format!("can't create {}: {error}", folder.display())))?;
    }
    let contenders = contenders(&options)?;
    measure(&options, &contenders)
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self, Failure> {
        let mut options = Self {
            conditions: Vec::new(),
            runs: DEFAULT_RUNS,
            umbel: None,
            baseline: None,
            tor: true,
            tcp_cc: None,
            keep: None,
        };
        let mut arguments = Arguments::new(arguments);
        while let Some(name) = arguments.next_name() {
            match name {
                "--no-tor" => options.tor = false,
                "--only" => options.conditions.push(condition(arguments.value(name)?)?),
                "--runs" => options.runs = runs(arguments.value(name)?)?,
                "--umbel" => options.umbel = Some(program(arguments.value(name)?)?),
                "--baseline" => options.baseline = Some(program(arguments.value(name)?)?),
                "--tcp-cc" => options.tcp_cc = Some(arguments.value(name)?.to_owned()),
                "--keep" => options.keep = Some(arguments.value(name)?.into()),
                _ => return Err(unknown_option(name)),
            }
        }
        if options.conditions.is_empty() {
            options.conditions = CONDITIONS.iter().collect();
        }
        Ok(options)
    }
}

fn condition(name: &str) -> Result<&'static Condition, Failure> {
    let condition = CONDITIONS.iter().find(|condition| condition.name == name);
    condition.ok_or_else(|| Failure::new(format!("unknown condition {name:?}; --help lists the conditions")))
}

fn runs(text: &str) -> Result<usize, Failure> {
    let runs = text.parse().ok().filter(|runs| *runs > 0);
    runs.ok_or_else(|| Failure::new(format!("--runs {text:?} is not a number of 1 or more")))
}

/// The program at `path`, relative to the folder in which the command was started.
fn program(path: &str) -> Result<PathBuf, Failure> {
    fs::canonicalize(path).map_err(|error| Failure::new(format!("can't find the program {path}: {error}")))
}

/// The programs to measure: Umbel first, as the reference.
fn contenders(options: &Options) -> Result<Vec<Contender>, Failure> {
    let umbel = match &options.umbel {
        Some(program) => program.clone(),
        None => build()?,
    };
    let mut contenders = vec![Contender { name: "Umbel", lab: "umbel-lab", program: Some(umbel) }];
    if let Some(program) = &options.baseline {
        contenders.push(Contender { name: "baseline", lab: "umbel-lab", program: Some(program.clone()) });
    }
    if options.tor {
        contenders.push(Contender { name: "Tor", lab: "tor-lab", program: None });
    }
    Ok(contenders)
}

fn build() -> Result<PathBuf, Failure> {
    let programs = ["build", "--release", "--locked", "--bin", "umbel", "--example", "attack"];
    Run::cargo().args(programs).redirect_to_stderr().run()?;
    Ok(target_folder()?.join("release/umbel"))
}

/// Measures each condition, then prints the table's rows of the condition.
fn measure(options: &Options, contenders: &[Contender]) -> Result<(), Failure> {
    let total = options.conditions.iter().map(|condition| measured(condition, contenders)).sum::<usize>();
    let total = total.saturating_mul(options.runs);
    let mut done: usize = 0;
    let mut results = Results::default();
    println!("{}", table::header(contenders));
    for condition in &options.conditions {
        let measured = measured(condition, contenders);
        for run in 0..options.runs {
            // Each contender is first in turn, so that effects of the order, such as heat, are equal for all.
            let order = (0..measured).cycle().skip(run).take(measured);
            for (number, contender) in order.filter_map(|number| Some((number, contenders.get(number)?))) {
                done = done.saturating_add(1);
                let run_name = format!("{}, run {}, {}", condition.name, run.saturating_add(1), contender.name);
                eprint!("[{done}/{total}] {run_name} … ");
                let started = Instant::now();
                let output = run_lab(options, condition, contender);
                eprintln!("{} s", started.elapsed().as_secs());
                match output {
                    Ok(output) => {
                        write_output(options, condition, run, contender, &output)?;
                        results.add(condition, number, run, &run_name, &output);
                    }
                    Err(error) => {
                        eprintln!("{error}");
                        results.add_failure(format!("{run_name}: {error}"));
                    }
                }
            }
        }
        print!("{}", results.rows(condition, contenders));
    }
    println!("\n{}", results.footer(options.runs, options.tor));
    match results.failures() {
        0 => Ok(()),
        failures => Err(Failure::new(format!("{failures} runs failed or received wrong bytes"))),
    }
}

/// Number of contenders that are measured under `condition`: Tor, the last one, may lack the measurement.
fn measured(condition: &Condition, contenders: &[Contender]) -> usize {
    contenders.iter().filter(|contender| condition.of_tor || contender.program.is_some()).count()
}

/// The output of a lab for one contender under one condition.
fn run_lab(options: &Options, condition: &Condition, contender: &Contender) -> Result<String, Failure> {
    let mut command = Command::new("python3");
    command.arg(root().join("xtask/labs").join(contender.lab)).args(condition.options);
    command.args(["--only", condition.measurements, "--limit", LAB_TIMEOUT, "--end-with-parent"]);
    if let Some(program) = &contender.program {
        command.arg("--umbel").arg(program);
    }
    // Without namespaces the setting would apply to the whole machine.
    if let Some(name) = options.tcp_cc.as_ref().filter(|_| condition.is_namespaced() && !condition.selects_tcp()) {
        command.args(["--tcp-cc", name]);
    }
    let failed = |what: &str| Failure::new(format!("{}: {what}", contender.lab));
    let output = command.stdin(Stdio::null()).output().map_err(|error| failed(&format!("can't start: {error}")))?;
    if !output.status.success() {
        return Err(failed(String::from_utf8_lossy(&output.stderr).trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Writes a run's output to the folder given by `--keep`.
fn write_output(
    options: &Options,
    condition: &Condition,
    run: usize,
    contender: &Contender,
    output: &str,
) -> Result<(), Failure> {
    let Some(folder) = &options.keep else { return Ok(()) };
    let name = format!("{}.{}.{}.txt", condition.name, contender.name.to_lowercase(), run.saturating_add(1));
    let file = folder.join(Path::new(&name));
    fs::write(&file, output).map_err(|error| Failure::new(format!("can't write {}: {error}", file.display())))
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn without_only_every_condition_is_measured() {
        let options = Options::parse(&["--runs", "2", "--no-tor"]).unwrap();
        assert_eq!(options.conditions.len(), super::CONDITIONS.len());
        assert_eq!((options.runs, options.tor), (2, false));
    }

    #[test]
    fn the_error_for_an_unknown_option_or_condition_names_it() {
        for (arguments, named) in [
            (&["--only", "loss-7"][..], "loss-7"),
            (&["--fast"], "--fast"),
            (&["--runs", "0"], "\"0\""),
            (&["--runs"], "--runs"),
        ] {
            let error = Options::parse(arguments).err().unwrap().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
