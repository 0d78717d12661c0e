//! The DNS resolver of an exit.
//!
//! Origins select the names, so the machine's hosts file and search list are not used. Names of private networks are
//! rejected unless the policy allows private addresses. Concurrent lookups, time, answers and memory are capped.
//! Lookups are not logged here. The library logs names at debug level, so a node disables its log targets
//! (`hickory_*`).

#[cfg(test)]
pub(crate) mod tests;

use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use std::time::Instant;

use hickory_resolver::{
    TokioResolver,
    config::{ConnectionConfig, LookupIpStrategy, NameServerConfig, ResolveHosts, ResolverConfig, ResolverOpts},
    net::{NetError, runtime::TokioRuntimeProvider},
    proto::rr::{Name, RData},
};
use tokio::{sync::Semaphore, time::timeout};

use crate::{
    exit_policy::is_global,
    wire::{EndReason, Host, ResolvedAnswer},
};

/// Most answers to one lookup.
const MAX_ANSWERS: usize = 16;
/// Most bytes of the names in one answer, limited by a relay message.
const MAX_ANSWER_BYTES: usize = 512;
/// The two TTLs in answers, in seconds. Exact TTLs would reveal earlier lookups by other clients.
const SHORT_TTL: u32 = 300;
const LONG_TTL: u32 = 3600;
/// Most cached responses.
const CACHE_SIZE: u64 = 1024;

/// Names that are never looked up. No public name server has them (RFC 6761, RFC 7686), and a lookup would reveal them.
const SPECIAL: [&str; 2] = ["onion", "invalid"];
/// Names of private networks (RFC 6762, RFC 8375 and the names that ICANN reserved).
const PRIVATE: [&str; 5] = ["local", "internal", "home.arpa", "intranet", "lan"];

/// Options of an exit's resolver.
#[derive(Clone, Debug)]
pub struct ResolverOptions {
    /// Name servers, in order of preference; if empty, those of the system.
    pub servers: Vec<SocketAddr>,
    /// Whether private addresses are valid answers, and private names may be looked up.
    pub private_addresses: bool,
    /// Most concurrent lookups. Default 256. Further lookups wait, at most for their timeout.
    pub concurrency: usize,
    /// Timeout of a lookup. Default 10 s.
    pub timeout: Duration,
}

impl Default for ResolverOptions {
    fn default() -> Self {
        Self { servers: Vec::new(), private_addresses: false, concurrency: 256, timeout: Duration::from_secs(10) }
    }
}

/// The answers of a lookup.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LookupAnswers<T> {
    /// TTL in seconds.
    pub(crate) ttl: u32,
    /// At least one.
    pub(crate) answers: Vec<T>,
}

/// A DNS resolver with limits.
pub struct Resolver {
    inner: Option<TokioResolver>,
    permits: Semaphore,
    timeout: Duration,
    private_addresses: bool,
}

impl Resolver {
    /// A resolver with `options`. Without a name server it logs a warning and resolves only `localhost`.
    #[must_use]
    pub fn new(options: &ResolverOptions) -> Self {
        let inner = build(options)
            .inspect_err(|_| {
                tracing::warn!(
                    "no name server is configured, so this exit can't resolve names; configure one with resolver, or in \
                     /etc/resolv.conf"
                );
            })
            .ok();
        Self {
            inner,
            permits: Semaphore::new(options.concurrency),
            timeout: options.timeout,
            private_addresses: options.private_addresses,
        }
    }

    fn inner(&self) -> Result<&TokioResolver, EndReason> {
        self.inner.as_ref().ok_or(EndReason::Failed)
    }

    /// Looks up an origin's host: a name's addresses, or an address's names.
    pub(crate) async fn resolve(&self, host: &Host) -> Result<LookupAnswers<ResolvedAnswer>, EndReason> {
        match host {
            Host::Name(name) => {
                let LookupAnswers { ttl, answers } = self.addresses(name).await?;
                Ok(LookupAnswers { ttl, answers: answers.into_iter().map(ResolvedAnswer::Ip).collect() })
            }
            Host::Ip(ip) => {
                let LookupAnswers { ttl, answers } = self.names(*ip).await?;
                Ok(LookupAnswers { ttl, answers: answers.into_iter().map(ResolvedAnswer::Name).collect() })
            }
        }
    }

    /// The addresses of `name`, without private addresses unless these are allowed. Fails with `Policy` if all are
    /// private.
    pub(crate) async fn addresses(&self, name: &str) -> Result<LookupAnswers<IpAddr>, EndReason> {
        if self.is_loopback(name)? {
            let loopback = vec![IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)];
            return Ok(LookupAnswers { ttl: LONG_TTL, answers: loopback });
        }
        let name = absolute(name)?;
        let lookup = self.within_limits(self.inner()?.lookup_ip(name)).await?;
        let allowed = |ip: &IpAddr| self.private_addresses || is_global(ip.to_canonical());
        let answers: Vec<IpAddr> = lookup.iter().filter(allowed).take(MAX_ANSWERS).collect();
        match (answers.is_empty(), lookup.iter().next()) {
            (true, None) => Err(EndReason::NotFound),
            (true, Some(_)) => Err(EndReason::Policy),
            (false, _) => Ok(LookupAnswers { ttl: coarse_ttl(lookup.valid_until()), answers }),
        }
    }

    async fn names(&self, ip: IpAddr) -> Result<LookupAnswers<String>, EndReason> {
        let ip = ip.to_canonical();
        if !self.private_addresses && !is_global(ip) {
            return Err(EndReason::Policy);
        }
        let lookup = self.within_limits(self.inner()?.reverse_lookup(ip)).await?;
        let mut bytes = 0_usize;
        let names = lookup.answers().iter().filter_map(|record| match &record.data {
            RData::PTR(name) => Some(name.0.to_ascii().trim_end_matches('.').to_owned()),
            _ => None,
        });
        let answers: Vec<String> = names
            .filter(|name| Host::parse(name).is_ok_and(|host| matches!(host, Host::Name(_))))
            .take_while(|name| {
                bytes = bytes.saturating_add(name.len()).saturating_add(2);
                bytes <= MAX_ANSWER_BYTES
            })
            .take(MAX_ANSWERS)
            .collect();
        if answers.is_empty() {
            return Err(EndReason::NotFound);
        }
        Ok(LookupAnswers { ttl: coarse_ttl(lookup.valid_until()), answers })
    }

    async fn within_limits<T>(&self, lookup: impl Future<Output = Result<T, NetError>>) -> Result<T, EndReason> {
        let limited = async {
            let _permit = self.permits.acquire().await.map_err(|_| EndReason::Failed)?;
            lookup.await.map_err(|error| reason(&error))
        };
        timeout(self.timeout, limited).await.unwrap_or(Err(EndReason::TimedOut))
    }

    /// Whether `name` is `localhost`. Fails for special names, and for private names unless these are allowed.
    fn is_loopback(&self, name: &str) -> Result<bool, EndReason> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let is_under =
            |suffix: &str| name.strip_suffix(suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        if SPECIAL.into_iter().any(is_under) {
            return Err(EndReason::NotFound);
        }
        let loopback = is_under("localhost");
        let private = loopback || !name.contains('.') || PRIVATE.into_iter().any(is_under);
        if private && !self.private_addresses { Err(EndReason::Policy) } else { Ok(loopback) }
    }
}

impl core::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

fn build(options: &ResolverOptions) -> Result<TokioResolver, NetError> {
    let mut builder = if options.servers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let servers = options.servers.iter().map(|server| name_server(*server)).collect();
        let config = ResolverConfig::from_name_servers(servers);
        TokioResolver::builder_with_config(config, TokioRuntimeProvider::default())
    };
    limit(builder.options_mut(), options);
    builder.build()
}

fn name_server(address: SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

fn limit(options: &mut ResolverOpts, limits: &ResolverOptions) {
    const ATTEMPTS: usize = 2;
    options.timeout = limits.timeout.checked_div(3).unwrap_or(limits.timeout);
    options.attempts = ATTEMPTS;
    options.cache_size = CACHE_SIZE;
    options.use_hosts_file = ResolveHosts::Never;
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    options.max_active_requests = limits.concurrency;
    options.positive_max_ttl = Some(Duration::from_secs(LONG_TTL.into()));
    options.negative_max_ttl = Some(Duration::from_secs(SHORT_TTL.into()));
    options.case_randomization = true;
}

/// The name as a fully qualified one, so that no search list applies.
fn absolute(name: &str) -> Result<Name, EndReason> {
    let mut name = Name::from_ascii(name).map_err(|_| EndReason::NotFound)?;
    name.set_fqdn(true);
    Ok(name)
}

fn coarse_ttl(valid_until: Instant) -> u32 {
    let left = valid_until.saturating_duration_since(Instant::now());
    if left <= Duration::from_secs(SHORT_TTL.into()) { SHORT_TTL } else { LONG_TTL }
}

fn reason(error: &NetError) -> EndReason {
    match error {
        error if error.is_no_records_found() => EndReason::NotFound,
        NetError::Timeout => EndReason::TimedOut,
        NetError::Busy => EndReason::ResourceLimit,
        _ => EndReason::Failed,
    }
}
