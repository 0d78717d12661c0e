//! Tests with real browsers: `tests/browser`, run by Node.

use std::fs;

use crate::run::{Failure, Run, Tally, root};

/// Installs the pinned driver if it is missing, and runs the browsers' tests.
pub(crate) fn test() -> Result<Tally, Failure> {
    let folder = root().join("tests/browser");
    // npm writes a list of installed packages, which has the modification time of the lock file.
    let modified = |path: &str| fs::metadata(folder.join(path)).and_then(|file| file.modified()).ok();
    let installed = modified("node_modules/.package-lock.json");
    if installed.is_none() || installed < modified("package-lock.json") {
        Run::new("npm").args(["ci", "--no-audit", "--no-fund"]).directory(&folder).run()?;
    }
    Run::new("npm").args(["test"]).directory(&folder).run()
}
