//! What real browsers do, a relay's transport and the search page: `tests/browser`, driven by Node.

use std::fs;

use crate::run::{Failure, Run, Tally, root};

/// Installs the pinned driver when it isn't there, and runs the browsers' tests.
pub(crate) fn test() -> Result<Tally, Failure> {
    let folder = root().join("tests/browser");
    // npm notes what it installed; the note is as old as the lock file it came from.
    let written = |path: &str| fs::metadata(folder.join(path)).and_then(|file| file.modified()).ok();
    let installed = written("node_modules/.package-lock.json");
    if installed.is_none() || installed < written("package-lock.json") {
        Run::new("npm").args(["ci", "--no-audit", "--no-fund"]).directory(&folder).run()?;
    }
    Run::new("npm").args(["test"]).directory(&folder).run()
}
