//! The corpora in `fuzz/corpus`: one folder for each target.

use std::{
    fs,
    path::{Path, PathBuf},
};

use crate::run::{self, Failure};

/// The folder with a corpus for each target.
pub(super) fn root() -> PathBuf {
    run::root().join("fuzz/corpus")
}

/// The names of the entries of a folder, in ascending order.
pub(super) fn names(folder: &Path) -> Result<Vec<String>, Failure> {
    let failed = |error| Failure::new(format!("can't read {}: {error}", folder.display()));
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        names.push(entry.map_err(failed)?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}

/// Whether libFuzzer has found an entry. Such an entry has its SHA-1 as its name, and a merge may replace it. All other
/// entries are seeds and fixed findings.
pub(super) fn is_grown(name: &str) -> bool {
    name.len() == 40 && name.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// The length of a file; zero if it can't be read.
pub(super) fn length(path: &Path) -> u64 {
    fs::metadata(path).map_or(0, |metadata| metadata.len())
}
