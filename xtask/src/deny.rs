//! Checks licences, bans and sources of the dependencies, by cargo-deny and `deny.toml`.

use std::path::PathBuf;

use crate::{
    packages::on_path,
    run::{Failure, Run, Tally, cache},
};

/// Runs the checks, including that for known vulnerabilities if the advisory database is available.
pub(crate) fn check() -> Result<Tally, Failure> {
    let program = program()?;
    let fetched = Run::new(&program).args(["fetch", "db"]).succeeds();
    let mut checks = vec!["licenses", "bans", "sources"];
    if fetched {
        checks.push("advisories");
    } else {
        println!("can't fetch the advisory database; skipping the check for known vulnerabilities");
    }
    Run::new(&program).args(["check", "--hide-inclusion-graph"]).args(checks).run()
}

/// The program cargo-deny: from the path, otherwise built once and stored.
fn program() -> Result<PathBuf, Failure> {
    if let Some(program) = on_path("cargo-deny") {
        return Ok(program);
    }
    let folder = cache("cargo-deny")?;
    let program = folder.join("bin/cargo-deny");
    if !program.is_file() {
        println!("building cargo-deny; later runs use the stored program");
        let build = folder.join("build");
        Run::cargo()
            .args(["install", "--quiet", "--locked", "cargo-deny", "--root"])
            .args([&folder])
            .args(["--target-dir"])
            .args([&build])
            .run()?;
        // The build folder is large, and only the program is needed.
        let _ = std::fs::remove_dir_all(build);
    }
    Ok(program)
}
