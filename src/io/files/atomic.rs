//! Atomic file writes: a written file is complete or absent, also after a crash of the machine.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use tempfile::NamedTempFile;

use super::FileError;

/// Replaces the contents of the file at `path` with `bytes` (mode 0600). Readers get the old or the new contents.
///
/// # Errors
/// When a system call fails. The contents are then unchanged, unless the final sync of the folder failed.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let written = write_temporary(path, bytes).and_then(|(file, folder)| {
        file.persist(path)?;
        sync(folder)
    });
    written.map_err(FileError::io("write it", path))
}

/// Writes `bytes` to `path` (mode 0600) if there is no file yet. An existing file stays unchanged, without an error.
pub(super) fn create_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let written = write_temporary(path, bytes).and_then(|(file, folder)| match file.persist_noclobber(path) {
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        persisted => persisted.map_err(io::Error::from).and_then(|_| sync(folder)),
    });
    written.map_err(FileError::io("write it", path))
}

/// Writes and syncs the bytes to a temporary file in the folder of `path`.
fn write_temporary<'a>(path: &'a Path, bytes: &[u8]) -> io::Result<(NamedTempFile, &'a Path)> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Created with mode 0600.
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok((file, folder))
}

/// Syncs the folder, so that the new name survives a crash.
fn sync(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}
