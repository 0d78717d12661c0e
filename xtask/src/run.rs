//! Runs other programs, and counts the tests in their output.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    thread,
};

/// The failure of a step, as a message for the build's output.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    tally: Tally,
}

impl Failure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), tally: Tally { passed: 0, failed: 1 } }
    }

    /// The counts of the failed program, with at least one failed test.
    pub(crate) const fn tally(&self) -> Tally {
        self.tally
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// Numbers of passed and failed tests in a program's output. A program that prints no numbers counts as one test.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u64,
    pub(crate) failed: u64,
}

impl Tally {
    pub(crate) const ONE: Self = Self { passed: 1, failed: 0 };

    pub(crate) const fn and(self, other: Self) -> Self {
        Self { passed: self.passed.saturating_add(other.passed), failed: self.failed.saturating_add(other.failed) }
    }

    /// Adds the counts in `line`, if it is a summary of nextest, of `cargo test`, of Node's test runner or of vitest.
    fn read(&mut self, line: &str) {
        let nextest = line.trim_start().starts_with("Summary [");
        // Not the line "Test Files", which vitest prints too.
        let vitest = line.trim_start().starts_with("Tests  ");
        if nextest || vitest || line.starts_with("test result: ") {
            let words: Vec<&str> = line.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
            for pair in words.windows(2) {
                let [count, word] = pair else { continue };
                let Ok(count) = count.parse::<u64>() else { continue };
                match *word {
                    "passed" => self.passed = self.passed.saturating_add(count),
                    "failed" | "exec-failed" => self.failed = self.failed.saturating_add(count),
                    _ => {}
                }
            }
            // nextest: "2 timed out"
            if nextest && let Some((before, _)) = line.split_once(" timed out") {
                let count = before.rsplit(' ').next().and_then(|word| word.parse().ok()).unwrap_or(0);
                self.failed = self.failed.saturating_add(count);
            }
        }
        let node = |label: &str| line.strip_prefix(label).and_then(|rest| rest.trim().parse::<u64>().ok());
        if let Some(count) = node("# pass ").or_else(|| node("ℹ pass ")) {
            self.passed = self.passed.saturating_add(count);
        }
        if let Some(count) = node("# fail ").or_else(|| node("ℹ fail ")) {
            self.failed = self.failed.saturating_add(count);
        }
    }
}

/// A program to run, by default in the checkout's root.
pub(crate) struct Run {
    command: Command,
    description: String,
    to_stderr: bool,
}

impl Run {
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let description = Path::new(program.as_ref()).file_name().unwrap_or_default().to_string_lossy().into_owned();
        let mut command = Command::new(program);
        command.current_dir(root()).stdin(Stdio::null());
        Self { command, description, to_stderr: false }
    }

    /// The cargo that runs this build tool.
    pub(crate) fn cargo() -> Self {
        let mut run = Self::new(cargo());
        // Variables that cargo sets for the build tool must not affect the builds that it starts.
        for name in ["CARGO_MANIFEST_DIR", "CARGO_PKG_NAME", "CARGO_PKG_VERSION"] {
            run.command.env_remove(name);
        }
        run
    }

    pub(crate) fn args<I: IntoIterator<Item: AsRef<OsStr>>>(mut self, arguments: I) -> Self {
        for argument in arguments {
            self.description.push(' ');
            self.description.push_str(&argument.as_ref().to_string_lossy());
            self.command.arg(argument);
        }
        self
    }

    pub(crate) fn env(mut self, name: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(name, value);
        self
    }

    /// Puts `folder` first on the program's path.
    pub(crate) fn first_on_path(self, folder: &Path) -> Self {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let folders = std::iter::once(folder.to_owned()).chain(std::env::split_paths(&path));
        match std::env::join_paths(folders) {
            Ok(path) => self.env("PATH", path),
            Err(_) => self,
        }
    }

    pub(crate) fn directory(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Redirects all output to standard error, because standard output is for a result.
    pub(crate) fn redirect_to_stderr(mut self) -> Self {
        self.to_stderr = true;
        self
    }

    /// Runs the program, forwards its output, and counts the tests in the output.
    pub(crate) fn run(mut self) -> Result<Tally, Failure> {
        let out = || -> Box<dyn Write> { if self.to_stderr { Box::new(io::stderr()) } else { Box::new(io::stdout()) } };
        let _ = writeln!(out(), "+ {}", self.description);
        self.command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = self.command.spawn().map_err(|error| self.failure(&format!("can't start: {error}")))?;
        let errors = child.stderr.take().map(|stream| thread::spawn(move || forward(stream, io::stderr())));
        let mut tally = child.stdout.take().map(|stream| forward(stream, out())).unwrap_or_default();
        if let Some(Ok(counted)) = errors.map(thread::JoinHandle::join) {
            tally = tally.and(counted);
        }
        let status = child.wait().map_err(|error| self.failure(&error.to_string()))?;
        if !status.success() {
            tally.failed = tally.failed.max(1);
            return Err(Failure { tally, ..self.failure(&status.to_string()) });
        }
        Ok(if tally == Tally::default() { Tally::ONE } else { tally })
    }

    /// Runs the program and returns its output, or `None` if it failed or can't be started.
    pub(crate) fn output(mut self) -> Option<String> {
        let output = self.command.stderr(Stdio::null()).output().ok()?;
        output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs the program and returns its output, or the failure. Standard error is inherited.
    pub(crate) fn try_output(mut self) -> Result<String, Failure> {
        let output = self.command.stderr(Stdio::inherit()).output();
        let output = output.map_err(|error| self.failure(&format!("can't start: {error}")))?;
        if !output.status.success() {
            return Err(self.failure(&output.status.to_string()));
        }
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// Runs the program without output; returns whether it succeeded.
    pub(crate) fn succeeds(self) -> bool {
        self.output().is_some()
    }

    fn failure(&self, reason: &str) -> Failure {
        Failure::new(format!("{}: {reason}", self.description))
    }
}

fn forward(stream: impl Read, mut out: impl Write) -> Tally {
    let mut tally = Tally::default();
    let mut stream = BufReader::new(stream);
    let mut line = Vec::new();
    while stream.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
        // A write error is ignored, because only the program's exit status counts.
        let _ = out.write_all(&line);
        let _ = out.flush();
        tally.read(String::from_utf8_lossy(&line).trim_end());
        line.clear();
    }
    tally
}

/// The cargo that started this tool.
pub(crate) fn cargo() -> OsString {
    std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into())
}

/// The root folder of the checkout.
pub(crate) fn root() -> PathBuf {
    let xtask = std::env::var_os("CARGO_MANIFEST_DIR").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    xtask.parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Cargo's target folder.
pub(crate) fn target_folder() -> Result<PathBuf, Failure> {
    let metadata = Run::new(cargo()).args(["metadata", "--no-deps", "--format-version", "1", "--offline"]).output();
    let metadata = metadata.ok_or_else(|| Failure::new("cargo metadata failed"))?;
    let after = metadata.split_once("\"target_directory\":\"").map(|(_, after)| after);
    let folder = after.and_then(|after| after.split_once('"')).map(|(folder, _)| PathBuf::from(folder));
    folder.ok_or_else(|| Failure::new("the output of cargo metadata has no target folder"))
}

/// The folder of the tool `name`, outside the checkout and the target folder, so that tools remain after a clean build.
pub(crate) fn cache(name: &str) -> Result<PathBuf, Failure> {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let base = base.or_else(|| std::env::var_os("HOME").map(|home| Path::new(&home).join(".cache")));
    let path =
        base.ok_or_else(|| Failure::new("neither XDG_CACHE_HOME nor HOME is set"))?.join("umbel-tools").join(name);
    std::fs::create_dir_all(&path)
        .map_err(|error| Failure::new(format!("can't create {}: {error}", path.display())))?;
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::Tally;

    fn tally(lines: &[&str]) -> (u64, u64) {
        let mut tally = Tally::default();
        lines.iter().for_each(|line| tally.read(line));
        (tally.passed, tally.failed)
    }

    #[test]
    fn summaries_of_every_runner_are_counted() {
        assert_eq!(tally(&["     Summary [   3.2s] 12 tests run: 12 passed (1 slow), 3 skipped"]), (12, 0));
        assert_eq!(tally(&["     Summary [   3.2s] 9 tests run: 5 passed, 2 failed, 2 timed out, 0 skipped"]), (5, 4));
        assert_eq!(tally(&["test result: ok. 7 passed; 0 failed; 1 ignored; 0 measured"]), (7, 0));
        assert_eq!(tally(&[" Test Files  4 passed (4)", "      Tests  1 failed | 25 passed (26)"]), (25, 1));
        assert_eq!(tally(&["# tests 3", "# pass 2", "# fail 1"]), (2, 1));
        assert_eq!(tally(&["5 passed by on the other side"]), (0, 0));
    }
}
