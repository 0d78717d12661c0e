//! `cargo xtask attack`: floods a relay with CREATEs or ClientHellos from many addresses, and measures an honest client meanwhile.
//!
//! The attacks are a test in `tests/overlay/attack.rs`. This module builds the programs, and runs the test with the
//! options.

use crate::{
    arguments::{Arguments, unknown_option},
    packages,
    run::{Failure, Run, target_folder},
};

const USAGE: &str = "\
Attacks a relay in network namespaces for a minute with each of several floods of CREATEs or ClientHellos, and prints a
table.

usage: cargo xtask attack [OPTION]…

  --seconds N   duration of each attack (default 60)
  --only NAME   only this attack; repeatable: none, one-address, sixteen-addresses, slash-24, slash-48, many-networks,
                sixteen-extend, extend-through-eight, hellos, sixteen-hellos

Needs root and iproute2. The attacked relay has a processor core alone; the attacker shares the others with all other
nodes, at the lowest priority. The machine should be idle otherwise.

example: cargo xtask attack --seconds 20 --only slash-24
";

const TEST: &str = "attack::circuits_of_an_honest_client_stand_while_addresses_flood_their_relay";

pub(crate) fn command(arguments: &[&str]) -> Result<(), Failure> {
    if arguments.iter().any(|argument| ["--help", "-h", "help"].contains(argument)) {
        print!("{USAGE}");
        return Ok(());
    }
    let (seconds, only) = parse(arguments)?;
    if !packages::is_root() {
        return Err(Failure::new("network namespaces need root: run it as root (cargo xtask attack --help)"));
    }
    Run::cargo().args(["build", "--release", "--locked", "--bin", "umbel", "--example", "attack"]).run()?;
    let options = ["test", "--locked", "--test", "overlay", "--", "--ignored", "--exact", TEST, "--nocapture"];
    Run::cargo()
        .args(options)
        .env("UMBEL_ATTACK_PROGRAMS", target_folder()?.join("release"))
        .env("UMBEL_ATTACK_SECONDS", seconds.to_string())
        .env("UMBEL_ATTACK_ONLY", only)
        .run()
        .map(drop)
}

/// The seconds of each attack, and the chosen attacks, separated by commas.
fn parse(arguments: &[&str]) -> Result<(u64, String), Failure> {
    let (mut seconds, mut only) = (60, Vec::new());
    let mut arguments = Arguments::new(arguments);
    while let Some(name) = arguments.next_name() {
        let value = arguments.value(name)?;
        match name {
            "--seconds" => {
                let number = value.parse().ok().filter(|seconds| *seconds > 0);
                let invalid = || Failure::new(format!("--seconds {value:?} is not a number of 1 or more"));
                seconds = number.ok_or_else(invalid)?;
            }
            "--only" => only.push(value),
            _ => return Err(unknown_option(name)),
        }
    }
    Ok((seconds, only.join(",")))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn each_attack_lasts_a_minute_by_default() {
        assert_eq!(parse(&[]).unwrap(), (60, String::new()));
        assert_eq!(parse(&["--seconds", "5", "--only", "a", "--only", "b"]).unwrap(), (5, "a,b".into()));
    }

    #[test]
    fn the_error_for_an_invalid_option_names_it() {
        for (arguments, named) in [(&["--seconds", "0"][..], "\"0\""), (&["--only"], "--only"), (&["--x", "1"], "--x")]
        {
            let error = parse(arguments).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }
}
