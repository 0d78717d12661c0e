//! The output of a fetched body: a file, standard output, or a terminal.

use std::{
    io::{IsTerminal as _, Stdout, Write as _},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tempfile::NamedTempFile;

use crate::node::Failure;

/// Time from the start of a fetch to its progress bar.
const PROGRESS_BAR_DELAY: Duration = Duration::from_secs(1);

/// A file or standard output, with a progress bar on standard error for long fetches.
pub(super) struct Output {
    sink: Sink,
    bar: ProgressBar,
    started: Instant,
}

enum Sink {
    /// A temporary file beside the final path, until the body is complete.
    File(NamedTempFile, PathBuf),
    Stdout(Stdout),
    /// A terminal, and the last byte of the body so far. Control characters are replaced, because a terminal interprets
    /// them.
    Terminal(Stdout, u8),
}

/// Checks that `path` doesn't exist or is a regular file, which may be replaced.
///
/// # Errors
/// When `path` is a folder, a device or a pipe. A file that replaces `/dev/null` would affect all users.
pub(super) fn check(path: &Path) -> Result<(), Failure> {
    match std::fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(Failure::usage(format!(
            "--output: {} is not a regular file; omit --output and redirect standard output",
            path.display()
        ))),
        _ => Ok(()),
    }
}

impl Output {
    /// Opens the output for a body of `length` bytes, if the length is known.
    ///
    /// # Errors
    /// When the file can't be created.
    pub(super) fn open(path: Option<&Path>, length: Option<u64>) -> Result<Self, Failure> {
        let sink = match path {
            Some(path) => {
                let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
                let file = NamedTempFile::new_in(folder).map_err(unwritable(path))?;
                Sink::File(file, path.to_owned())
            }
            None if std::io::stdout().is_terminal() => Sink::Terminal(std::io::stdout(), 0),
            None => Sink::Stdout(std::io::stdout()),
        };
        let bar = ProgressBar::with_draw_target(length, ProgressDrawTarget::hidden());
        let template = if length.is_some() {
            "{bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}"
        } else {
            "{spinner} {bytes} {bytes_per_sec}"
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        Ok(Self { sink, bar, started: Instant::now() })
    }

    /// Writes the next piece.
    ///
    /// # Errors
    /// When the piece can't be written.
    pub(super) fn write(&mut self, piece: &[u8]) -> Result<(), Failure> {
        let written = match &mut self.sink {
            Sink::File(file, path) => file.write_all(piece).map_err(unwritable(path)),
            Sink::Stdout(stdout) => stdout.write_all(piece).map_err(stdout_failure()),
            Sink::Terminal(stdout, last) => stdout.write_all(&printable(piece, last)).map_err(stdout_failure()),
        };
        written?;
        self.bar.inc(piece.len().try_into().unwrap_or(u64::MAX));
        let may_show_bar = !matches!(self.sink, Sink::Terminal(..)) && std::io::stderr().is_terminal();
        if self.bar.is_hidden() && may_show_bar && self.started.elapsed() > PROGRESS_BAR_DELAY {
            self.bar.set_draw_target(ProgressDrawTarget::stderr());
        }
        Ok(())
    }

    /// Completes the body.
    ///
    /// # Errors
    /// When the last bytes can't be written, or the file can't be moved to its path.
    pub(super) fn finish(self) -> Result<(), Failure> {
        self.bar.finish_and_clear();
        match self.sink {
            Sink::File(file, path) => file.persist(&path).map(drop).map_err(|error| unwritable(&path)(error.error)),
            Sink::Stdout(mut stdout) | Sink::Terminal(mut stdout, _) => stdout.flush().map_err(stdout_failure()),
        }
    }
}

/// `piece` with `?` in place of bytes that a terminal interprets: control characters other than line ends and tabs,
/// including the eight-bit ones (U+0080 to U+009F) in UTF-8. `last` is the byte before `piece`, because a character may
/// be split between two pieces.
fn printable(piece: &[u8], last: &mut u8) -> Vec<u8> {
    let mut shown = Vec::with_capacity(piece.len());
    for byte in piece {
        let control = (*byte < 0x20 && !matches!(byte, b'\n' | b'\t')) || *byte == 0x7f;
        let eight_bit = *last == 0xc2 && (0x80..0xa0).contains(byte);
        shown.push(if control || eight_bit { b'?' } else { *byte });
        *last = *byte;
    }
    shown
}

fn unwritable(path: &Path) -> impl FnOnce(std::io::Error) -> Failure {
    Failure::system(format!("can't write {}", path.display()))
}

fn stdout_failure() -> impl FnOnce(std::io::Error) -> Failure {
    Failure::system("can't write to standard output")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_created_only_when_the_body_is_complete() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let mut output = Output::open(Some(&path), Some(4)).unwrap();
        output.write(b"half").unwrap();
        assert!(!path.exists());
        drop(output);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        let mut output = Output::open(Some(&path), None).unwrap();
        output.write(b"whole").unwrap();
        output.finish().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"whole");
    }

    #[test]
    fn only_a_regular_file_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path(), Path::new("/dev/null"), Path::new("/dev/full")] {
            assert!(check(path).is_err(), "{}", path.display());
        }
        check(&folder.path().join("new")).unwrap();
    }

    #[test]
    fn a_symbolic_link_is_replaced_and_its_target_is_unchanged() {
        let folder = tempfile::tempdir().unwrap();
        let (link, elsewhere) = (folder.path().join("link"), folder.path().join("elsewhere"));
        std::fs::write(&elsewhere, "mine").unwrap();
        std::os::unix::fs::symlink(&elsewhere, &link).unwrap();
        check(&link).unwrap();
        let mut output = Output::open(Some(&link), None).unwrap();
        output.write(b"theirs").unwrap();
        output.finish().unwrap();
        assert_eq!(std::fs::read(&elsewhere).unwrap(), b"mine");
        assert_eq!(std::fs::read(&link).unwrap(), b"theirs");
    }

    #[test]
    fn a_terminal_gets_no_control_characters() {
        let shown = |pieces: &[&[u8]]| {
            let mut last = 0;
            pieces.iter().flat_map(|piece| printable(piece, &mut last)).collect::<Vec<_>>()
        };
        assert_eq!(shown(&[b"a\x1b[31m\r\n\tb\x07\xc2\x9b\xc3\x9f"]), b"a?[31m?\n\tb?\xc2?\xc3\x9f");
        assert_eq!(shown(&[b"a\xc2", b"\x9b31m"]), b"a\xc2?31m", "a character split between pieces");
    }
}
