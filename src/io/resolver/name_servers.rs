//! The name servers of a resolver: configured ones, or those of the system, which are read again when their file changes.
//!
//! A node may start before the network of its machine, or the machine may move to another network.

use core::{net::SocketAddr, time::Duration};
use std::{
    fs,
    path::PathBuf,
    sync::{Mutex, PoisonError},
};

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    system_conf::parse_resolv_conf,
};
use tokio::time::Instant;

use super::ResolverOptions;
use crate::wire::EndReason;

/// The file with the system's name servers.
const SYSTEM_FILE: &str = "/etc/resolv.conf";
/// Minimum time between two reads of the file.
const CHECK_INTERVAL: Duration = Duration::from_secs(2);

/// The library's resolver, for the current name servers.
pub(super) struct NameServers {
    options: ResolverOptions,
    file: PathBuf,
    state: Mutex<State>,
}

struct State {
    /// `None` while there is no name server.
    resolver: Option<TokioResolver>,
    /// The file's content that was read last; empty without a file.
    content: Vec<u8>,
    checked_at: Instant,
}

impl NameServers {
    /// The configured name servers, or else those of the system. Logs a warning if there are none.
    pub(super) fn new(options: &ResolverOptions) -> Self {
        Self::in_file(options, SYSTEM_FILE.into())
    }

    fn in_file(options: &ResolverOptions, file: PathBuf) -> Self {
        let content = fs::read(&file).unwrap_or_default();
        let resolver = build(options, &content)
            .inspect_err(|_| {
                tracing::warn!(
                    "no name server is configured, so this exit can't resolve names; configure one with resolver, or in \
                     /etc/resolv.conf"
                );
            })
            .ok();
        let state = Mutex::new(State { resolver, content, checked_at: Instant::now() });
        Self { options: options.clone(), file, state }
    }

    /// The resolver for the current name servers.
    ///
    /// # Errors
    /// [`EndReason::LookupFailed`] without a name server.
    pub(super) fn resolver(&self) -> Result<TokioResolver, EndReason> {
        self.resolver_at(Instant::now())
    }

    fn resolver_at(&self, now: Instant) -> Result<TokioResolver, EndReason> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if self.options.servers.is_empty() && now.saturating_duration_since(state.checked_at) >= CHECK_INTERVAL {
            state.checked_at = now;
            let content = fs::read(&self.file).unwrap_or_default();
            if content != state.content {
                // The last name servers stay until the file names others: it may be incomplete while it is written.
                if let Ok(resolver) = build(&self.options, &content) {
                    tracing::info!("the name servers of the system have changed");
                    state.resolver = Some(resolver);
                }
                state.content = content;
            }
        }
        state.resolver.clone().ok_or(EndReason::LookupFailed)
    }
}

/// A resolver for the configured name servers, or else for those in the `content` of the system's file.
fn build(options: &ResolverOptions, content: &[u8]) -> Result<TokioResolver, NetError> {
    let (config, mut limited) = if options.servers.is_empty() {
        parse_resolv_conf(content)?
    } else {
        let servers = options.servers.iter().map(|server| name_server(*server)).collect();
        (ResolverConfig::from_name_servers(servers), ResolverOpts::default())
    };
    apply_limits(&mut limited, options);
    TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).with_options(limited).build()
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn apply_limits(options: &mut ResolverOpts, limits: &ResolverOptions) {
    const ATTEMPTS: usize = 2;
    options.timeout = limits.timeout.checked_div(3).unwrap_or(limits.timeout);
    options.attempts = ATTEMPTS;
    options.cache_size = 0;
    options.use_hosts_file = ResolveHosts::Never;
    // A lookup has a query for each family.
    options.max_active_requests = limits.concurrency.saturating_mul(2);
    options.case_randomization = true;
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The value by which the tests recognise a resolver: an option of the file that no limit replaces.
    fn ndots(servers: &NameServers, now: Instant) -> Result<usize, EndReason> {
        servers.resolver_at(now).map(|resolver| resolver.options().ndots)
    }

    #[tokio::test]
    async fn a_name_server_that_the_system_names_later_is_used_and_others_replace_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        let servers = NameServers::in_file(&ResolverOptions::default(), file.clone());
        let mut now = Instant::now();
        assert_eq!(ndots(&servers, now), Err(EndReason::LookupFailed));
        let mut expected = Err(EndReason::LookupFailed);
        now += CHECK_INTERVAL;
        assert_eq!(ndots(&servers, now), Err(EndReason::LookupFailed));
        for (content, ndots_after) in [
            ("# no network yet\n", Err(EndReason::LookupFailed)),
            ("nameserver 127.0.0.1\noptions ndots:2\n", Ok(2)),
            ("", Ok(2)),
            ("nameserver 127.0.0.2\noptions ndots:3\n", Ok(3)),
        ] {
            fs::write(&file, content).unwrap();
            assert_eq!(ndots(&servers, now), expected, "not read again within the interval");
            now += CHECK_INTERVAL;
            assert_eq!(ndots(&servers, now), ndots_after, "{content}");
            expected = ndots_after;
        }
    }

    #[tokio::test]
    async fn configured_name_servers_stay_whatever_the_system_names() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("resolv.conf");
        let options = ResolverOptions { servers: vec![([127, 0, 0, 1], 53).into()], ..ResolverOptions::default() };
        let servers = NameServers::in_file(&options, file.clone());
        let now = Instant::now();
        let before = ndots(&servers, now);
        fs::write(&file, "nameserver 127.0.0.1\noptions ndots:7\n").unwrap();
        assert!(before.is_ok() && ndots(&servers, now + CHECK_INTERVAL * 2) == before);
    }
}
