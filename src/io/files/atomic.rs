//! Files that are whole or not there at all, also when the machine stops in between.

use std::{
    fs,
    io::{self, Write as _},
    path::Path,
};

use tempfile::NamedTempFile;

use super::FileError;

/// Writes `bytes` to `path` (mode 0600) in place of what was there; a reader finds the old contents or the new.
///
/// # Errors
/// When the system refuses; the old contents are then untouched.
pub fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let written = write_aside(path, bytes).and_then(|(file, folder)| {
        file.persist(path)?;
        sync(folder)
    });
    written.map_err(FileError::io("writing it", path))
}

/// Writes `bytes` to `path` (mode 0600) unless there is a file already, which is no error.
pub(super) fn create_atomically(path: &Path, bytes: &[u8]) -> Result<(), FileError> {
    let written = write_aside(path, bytes).and_then(|(file, folder)| match file.persist_noclobber(path) {
        Err(error) if error.error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        persisted => persisted.map_err(io::Error::from).and_then(|_| sync(folder)),
    });
    written.map_err(FileError::io("writing it", path))
}

/// The bytes in a temporary file in the folder of `path`, on disk.
fn write_aside<'a>(path: &'a Path, bytes: &[u8]) -> io::Result<(NamedTempFile, &'a Path)> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // Made with mode 0600.
    let mut file = NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    Ok((file, folder))
}

/// Makes the new name in the folder last.
fn sync(folder: &Path) -> io::Result<()> {
    fs::File::open(folder)?.sync_all()
}
