//! Tests with real browsers: `tests/browser`, run by Node.

use std::{env, fs};

use crate::run::{Failure, Run, Tally, root, target_folder};

/// Installs the pinned driver if it is missing, and runs the browsers' tests.
pub(crate) fn test() -> Result<Tally, Failure> {
    let folder = root().join("tests/browser");
    // npm writes a list of installed packages, which has the modification time of the lock file.
    let modified = |path: &str| fs::metadata(folder.join(path)).and_then(|file| file.modified()).ok();
    let installed = modified("node_modules/.package-lock.json");
    if installed.is_none() || installed < modified("package-lock.json") {
        Run::new("npm").args(["ci", "--no-audit", "--no-fund"]).directory(&folder).run()?;
    }
    // With the examples, the dependencies have the same features as for the other tests, so that they are built once.
    Run::cargo().args(["build", "--quiet", "--workspace", "--locked", "--bins", "--examples"]).run()?;
    let built = target_folder()?.join("debug");
    let run = Run::new("npm").args(["test"]).directory(&folder).env("UMBEL_LISTENER", built.join("examples/listen"));
    // The environment can name another program.
    let run = if env::var_os("UMBEL_PROGRAM").is_some() { run } else { run.env("UMBEL_PROGRAM", built.join("umbel")) };
    run.run()
}
