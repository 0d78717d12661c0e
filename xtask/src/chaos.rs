//! `cargo xtask chaos`: the test of a network under disturbances, for minutes and with a release build.
//!
//! The test itself is `tests/overlay/chaos.rs`, of which `cargo xtask test` runs seconds with a debug build. This module
//! builds the program, and passes the settings.

use std::{fs, path::PathBuf};

use crate::{
    arguments::{Arguments, unknown_option},
    run::{Failure, Run, target_folder},
};

const USAGE: &str = "\
Makes ten requests a second through a network on this machine, while each second a relay is killed, stopped or restarted,
its port is flooded, or its disk is filled. Prints the figures as a table. Fails below 99.5 % right requests, on wrong
bytes, a request beyond 10 s, memory above its caps, and state that doesn't survive.

usage: cargo xtask chaos [OPTION]…

  --minutes N      duration of the load (default 10)
  --seed N         seed of the disturbances (default: the time)
  --relays N       relays, a third of them exits (default 24)
  --umbel PATH     the program (default: a release build of this checkout)
  --keep FOLDER    write the nodes' logs to this folder

Disks are filled only with the privilege to mount, so run it as root:

  sudo -E env PATH=\"$PATH\" cargo xtask chaos

docs/chaos.md explains the figures.
";

const TEST: &str = "chaos::requests_succeed_while_relays_fail_and_all_state_survives";
/// The percentage of requests that must be right at the first try.
const FLOOR: &str = "99.5";

#[derive(Debug, PartialEq)]
struct Options {
    minutes: u64,
    seed: Option<u64>,
    relays: u64,
    umbel: Option<PathBuf>,
    keep: Option<PathBuf>,
}

/// Runs the test as requested by `arguments`.
pub(crate) fn command(arguments: &[&str]) -> Result<(), Failure> {
    if arguments.iter().any(|argument| ["--help", "-h", "help"].contains(argument)) {
        print!("{USAGE}");
        return Ok(());
    }
    let options = Options::parse(arguments)?;
    let umbel = match options.umbel {
        Some(path) => fs::canonicalize(&path)
            .map_err(|error| Failure::new(format!("can't find the program {}: {error}", path.display())))?,
        None => {
            Run::cargo().args(["build", "--release", "--locked", "--bin", "umbel"]).run()?;
            target_folder()?.join("release/umbel")
        }
    };
    let seed = options.seed.unwrap_or_else(time_as_seed);
    println!("seed {seed}: cargo xtask chaos --seed {seed} repeats the disturbances");
    let test = ["test", "--locked", "--test", "overlay", "--", "--ignored", "--exact", TEST, "--nocapture"];
    let mut run = Run::cargo()
        .args(test)
        .env("UMBEL_TEST_PROGRAM", umbel)
        .env("UMBEL_CHAOS_SECONDS", options.minutes.saturating_mul(60).to_string())
        .env("UMBEL_CHAOS_SEED", seed.to_string())
        .env("UMBEL_CHAOS_RELAYS", options.relays.to_string())
        .env("UMBEL_CHAOS_FLOOR", FLOOR);
    if let Some(folder) = options.keep {
        let folder = std::path::absolute(&folder)
            .map_err(|error| Failure::new(format!("can't use the folder {}: {error}", folder.display())))?;
        run = run.env("UMBEL_CHAOS_FOLDER", folder);
    }
    run.run().map(drop)
}

fn time_as_seed() -> u64 {
    let time = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    time.map_or(0, |time| time.as_secs())
}

impl Options {
    fn parse(arguments: &[&str]) -> Result<Self, Failure> {
        let mut options = Self { minutes: 10, seed: None, relays: 24, umbel: None, keep: None };
        let mut arguments = Arguments::new(arguments);
        while let Some(name) = arguments.next_name() {
            match name {
                "--minutes" => options.minutes = number(name, arguments.value(name)?, 1..=1000)?,
                "--seed" => options.seed = Some(number(name, arguments.value(name)?, 0..=u64::MAX)?),
                "--relays" => options.relays = number(name, arguments.value(name)?, 9..=100)?,
                "--umbel" => options.umbel = Some(arguments.value(name)?.into()),
                "--keep" => options.keep = Some(arguments.value(name)?.into()),
                _ => return Err(unknown_option(name)),
            }
        }
        Ok(options)
    }
}

fn number(name: &str, text: &str, range: std::ops::RangeInclusive<u64>) -> Result<u64, Failure> {
    let number = text.parse().ok().filter(|number| range.contains(number));
    let (least, most) = (range.start(), range.end());
    number.ok_or_else(|| Failure::new(format!("{name} {text:?} is not a number from {least} to {most}")))
}

#[cfg(test)]
mod tests {
    use super::Options;

    #[test]
    fn the_error_for_an_unknown_option_or_value_names_it() {
        for (arguments, named) in [
            (&["--fast"][..], "--fast"),
            (&["--minutes", "0"], "\"0\""),
            (&["--relays", "8"], "--relays"),
            (&["--seed"], "--seed needs a value"),
        ] {
            let error = Options::parse(arguments).err().unwrap().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_seed_and_a_duration_are_options() {
        let options = Options::parse(&["--minutes", "2", "--seed", "7"]).unwrap();
        assert_eq!((options.minutes, options.seed, options.relays), (2, Some(7), 24));
    }
}
