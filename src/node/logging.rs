//! Logs of this crate to standard error, at the requested level.
//!
//! Logs of libraries are discarded, because they may contain addresses and names. Logs of this crate contain no address
//! or name (`threat-model.md`, "Logs").

use tracing_subscriber::{Layer as _, filter::Targets, layer::SubscriberExt as _, util::SubscriberInitExt as _};

use super::Failure;

/// Starts logging for the whole process.
///
/// # Errors
/// [`Failure::Usage`] when `level` is not a log level.
pub(crate) fn start(level: Option<&str>) -> Result<(), Failure> {
    let level: tracing::Level = level
        .unwrap_or("info")
        .parse()
        .map_err(|_| Failure::usage("log: unknown level; choose error, warn, info, debug or trace"))?;
    let targets = Targets::new().with_target("umbel", level);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_filter(targets);
    // A second start in one process (tests of the crate) keeps the settings of the first.
    let _ = tracing_subscriber::registry().with(lines).try_init();
    Ok(())
}
