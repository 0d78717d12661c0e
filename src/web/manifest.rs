//! The manifest of the pages: the names and SHA-256 hashes of their files, in the format of `sha256sum`.

use core::fmt;
use std::collections::BTreeMap;

use data_encoding::HEXLOWER;

use super::File;
use crate::crypto::sha256;

/// Maximum files of a manifest.
const MAX_FILES: usize = 256;
/// Maximum bytes of a file's name.
const MAX_NAME: usize = 128;

/// The names and hashes of the files of a release.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Manifest {
    files: BTreeMap<String, [u8; 32]>,
}

/// The reason why a text is not a manifest.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum ManifestError {
    #[error("line {0} is not a hash and a new file name, as `umbel web manifest` prints them")]
    Line(usize),
    #[error("the manifest has more than {MAX_FILES} files")]
    TooMany,
    #[error("the manifest has no file")]
    Empty,
}

impl Manifest {
    /// The manifest of `files`.
    pub(crate) fn of(files: &[File]) -> Self {
        Self { files: files.iter().map(|file| (file.name.to_owned(), sha256(file.whole))).collect() }
    }

    /// Parses lines of 64 hexadecimal digits, two spaces and a name. Empty lines and lines that begin with `#` are
    /// skipped.
    ///
    /// # Errors
    /// When a line is malformed, a name is repeated or could be outside the folder, or there are no files or too many.
    pub(crate) fn parse(text: &str) -> Result<Self, ManifestError> {
        let mut files = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let (name, hash) = entry(line).ok_or(ManifestError::Line(index.saturating_add(1)))?;
            if files.insert(name.to_owned(), hash).is_some() {
                return Err(ManifestError::Line(index.saturating_add(1)));
            }
            if files.len() > MAX_FILES {
                return Err(ManifestError::TooMany);
            }
        }
        if files.is_empty() { Err(ManifestError::Empty) } else { Ok(Self { files }) }
    }

    pub(crate) fn files(&self) -> impl Iterator<Item = (&str, &[u8; 32])> {
        self.files.iter().map(|(name, hash)| (name.as_str(), hash))
    }

    pub(crate) fn len(&self) -> usize {
        self.files.len()
    }
}

/// The name and hash in a line, if both are valid.
fn entry(line: &str) -> Option<(&str, [u8; 32])> {
    let (hash, name) = line.split_once("  ")?;
    let hash = HEXLOWER.decode(hash.as_bytes()).ok()?.try_into().ok()?;
    let is_plain = |part: &str| {
        !part.is_empty()
            && !part.starts_with('.')
            && part.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
    };
    (name.len() <= MAX_NAME && name.split('/').all(is_plain)).then_some((name, hash))
}

impl fmt::Display for Manifest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, hash) in self.files() {
            writeln!(f, "{}  {name}", HEXLOWER.encode(hash))?;
        }
        Ok(())
    }
}
