//! The process's limit of open files: each stream of an application or target needs one.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::ports::socks::SocksLimits;

/// Highest limit that is set; a program that visits all possible descriptors would take long with more.
const HIGHEST: u64 = 1 << 20;
/// A lower limit is logged.
const RECOMMENDED: u64 = 4096;
/// Descriptors for everything but the connections of applications: sockets of links, files, fetches.
const RESERVED: u64 = 128;

/// Raises the soft limit to the hard one.
pub(super) fn raise() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let wanted = hard.min(HIGHEST);
        if soft < wanted {
            // A lower limit is sufficient for most uses, and logged otherwise.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, wanted, hard);
        }
    }
}

fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(RECOMMENDED, |(soft, _)| soft)
}

/// Logs a low limit.
pub(super) fn warn_if_few() {
    let limit = limit();
    if limit < RECOMMENDED {
        tracing::warn!(
            limit,
            "this process may open few files, which limits its streams; raise the hard limit (ulimit -Hn, LimitNOFILE)"
        );
    }
}

/// Connections of applications that each of the three local ports serves concurrently.
pub(super) fn applications() -> usize {
    share(limit(), SocksLimits::default().max_applications)
}

fn share(limit: u64, most: usize) -> usize {
    let share = limit.saturating_sub(RESERVED).checked_div(3).unwrap_or_default();
    usize::try_from(share).unwrap_or(most).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::testing::with_limits;

    #[test]
    fn the_ports_leave_descriptors_to_everything_else() {
        for (limit, applications) in [(64, 1), (256, 42), (1024, 298), (4096, 1024), (u64::MAX, 1024)] {
            assert_eq!(share(limit, 1024), applications);
        }
    }

    #[test]
    #[ignore = "the_soft_limit_is_raised_at_the_start runs it with a low soft limit"]
    fn raise_in_child() {
        raise();
        println!("limits {:?}", getrlimit(Resource::RLIMIT_NOFILE).unwrap());
    }

    #[test]
    fn the_soft_limit_is_raised_at_the_start() {
        let child = with_limits("node::descriptors::tests::raise_in_child", "ulimit -Sn 100; ulimit -Hn 200").output();
        let output = String::from_utf8(child.unwrap().stdout).unwrap();
        assert!(output.contains("limits (200, 200)"), "{output}");
    }
}
