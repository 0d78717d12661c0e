//! The process's limit of file descriptors: each TCP connection of an application or to a target needs one descriptor.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use crate::ports::socks::SocksLimits;

/// Maximum that [`raise`] sets. A started program that closes all possible descriptors takes long with a higher limit.
const MAX_LIMIT: u64 = 1 << 20;
/// Under this limit, [`warn_if_few`] logs a warning.
const RECOMMENDED_LIMIT: u64 = 4096;
/// Descriptors that the connections of applications leave free: for sockets of links, files and fetches.
const RESERVED: u64 = 128;

/// Raises the soft limit to the hard limit, at most to [`MAX_LIMIT`].
pub(super) fn raise() {
    if let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) {
        let raised = hard.min(MAX_LIMIT);
        if soft < raised {
            // An error needs no action: `warn_if_few` logs a limit that stays low.
            let _ = setrlimit(Resource::RLIMIT_NOFILE, raised, hard);
        }
    }
}

fn limit() -> u64 {
    getrlimit(Resource::RLIMIT_NOFILE).map_or(RECOMMENDED_LIMIT, |(soft, _)| soft)
}

/// Logs a warning if the limit is low.
pub(super) fn warn_if_few() {
    let limit = limit();
    if limit < RECOMMENDED_LIMIT {
        tracing::warn!(
            limit,
            "this process may open few files, which limits its streams; raise the hard limit (ulimit -Hn, LimitNOFILE)"
        );
    }
}

/// Connections of applications that each of the three local ports serves concurrently.
pub(super) fn connections_per_port() -> usize {
    share(limit(), SocksLimits::default().max_connections)
}

fn share(limit: u64, max: usize) -> usize {
    let share = limit.saturating_sub(RESERVED).checked_div(3).unwrap_or_default();
    usize::try_from(share).unwrap_or(max).clamp(1, max)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::testing::with_limits;

    #[test]
    fn the_ports_leave_descriptors_for_other_uses() {
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
