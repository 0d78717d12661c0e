//! The DNS resolver of an exit.
//!
//! Origins select the names, so the machine's hosts file and search list are not used. Special-use names
//! ([`SpecialHost`]) are rejected; those of private networks only unless the policy allows private addresses. Concurrent
//! lookups, time, answers and memory are capped. There is no cache: a cached answer would show a client that another
//! client had looked up the name.
//!
//! A lookup of a name queries A and AAAA simultaneously, and returns the addresses of each family as they arrive (RFC
//! 8305). This module logs no lookups. The library logs names at debug level, so a node disables the library's log
//! targets (`hickory_*`).

mod name_servers;
mod nat64;
mod places;

#[cfg(test)]
pub(crate) mod tests;

use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use hickory_resolver::{
    net::NetError,
    proto::rr::{Name, RData, RecordType},
};
use tokio::{
    sync::watch,
    task::JoinSet,
    time::{Instant, timeout, timeout_at},
};

pub(crate) use self::nat64::Nat64Queries;
use self::{
    name_servers::NameServers,
    places::{LookupPlace, LookupPlaces},
};
use crate::{
    delegated::limits::RequestOwner,
    exit_policy::{Nat64Prefix, is_global},
    path::SpecialHost,
    wire::{EndReason, Host, ResolvedAnswer},
};

/// Cap on answers to one lookup.
const MAX_ANSWERS: usize = 16;
/// Cap on bytes of the names in one answer, which must fit into a relay message.
const MAX_ANSWER_BYTES: usize = 512;
/// The TTL of all answers, in seconds. The remaining TTL of a record would reveal earlier lookups by other clients, from
/// the cache of the name server.
const TTL: u32 = 300;
/// Time limit of a RESOLVE for the answer of the second address family, counted from the first answer.
const SECOND_FAMILY_TIMEOUT: Duration = Duration::from_millis(250);

/// Options of an exit's resolver.
#[derive(Clone, Debug)]
pub struct ResolverOptions {
    /// Name servers, in order of preference; if empty, those of the system, also after a change.
    pub servers: Vec<SocketAddr>,
    /// Whether private addresses are valid answers, and private names may be looked up.
    pub private_addresses: bool,
    /// Maximum concurrent lookups; default 256. A circuit gets at most 8 of these, an owner of circuits at
    /// most a quarter. Further lookups wait, at most for their timeout.
    pub concurrency: usize,
    /// Timeout of a lookup. Default 10 s.
    pub timeout: Duration,
    /// Whether policies without private addresses refuse all IPv6 addresses until a name server has answered the query
    /// for the NAT64 prefixes of the network (`Nat64Queries`). Default false.
    pub await_nat64: bool,
}

impl Default for ResolverOptions {
    fn default() -> Self {
        Self {
            servers: Vec::new(),
            private_addresses: false,
            concurrency: 256,
            timeout: Duration::from_secs(10),
            await_nat64: false,
        }
    }
}

/// The answers of a lookup.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct LookupAnswers<T> {
    /// TTL in seconds.
    pub(crate) ttl: u32,
    /// The answers, at least one.
    pub(crate) answers: Vec<T>,
}

/// A DNS resolver with limits.
pub struct Resolver {
    name_servers: NameServers,
    places: LookupPlaces,
    timeout: Duration,
    private_addresses: bool,
    /// The NAT64 prefixes that name servers have revealed; `None` while IPv6 addresses are refused for lack of an answer.
    nat64: watch::Sender<Option<Vec<Nat64Prefix>>>,
}

impl Resolver {
    /// A resolver with `options`. Without a name server, logs a warning; the resolver then resolves only `localhost`, until
    /// the system names a server.
    #[must_use]
    pub fn new(options: &ResolverOptions) -> Self {
        Self {
            name_servers: NameServers::new(options),
            places: LookupPlaces::new(options.concurrency),
            timeout: options.timeout,
            private_addresses: options.private_addresses,
            nat64: watch::Sender::new((!options.await_nat64).then(Vec::new)),
        }
    }

    /// Looks up `host` for an origin: a name's addresses, or an address's names.
    pub(crate) async fn resolve(
        &self,
        owner: Option<RequestOwner>,
        host: &Host,
    ) -> Result<LookupAnswers<ResolvedAnswer>, EndReason> {
        match host {
            Host::Name(name) => {
                let LookupAnswers { ttl, answers } = self.addresses(owner, name).await?;
                Ok(LookupAnswers { ttl, answers: answers.into_iter().map(ResolvedAnswer::Ip).collect() })
            }
            Host::Ip(ip) => {
                let LookupAnswers { ttl, answers } = self.names(owner, *ip).await?;
                Ok(LookupAnswers { ttl, answers: answers.into_iter().map(ResolvedAnswer::Name).collect() })
            }
        }
    }

    /// The addresses of `name`, IPv4 first, without private addresses unless these are allowed. Fails with `Policy` if
    /// all are private.
    pub(crate) async fn addresses(
        &self,
        owner: Option<RequestOwner>,
        name: &str,
    ) -> Result<LookupAnswers<IpAddr>, EndReason> {
        let mut lookup = self.lookup(owner, name).await?;
        let mut answers = Vec::new();
        while let Some(found) = match answers.is_empty() {
            true => lookup.next().await,
            false => timeout(SECOND_FAMILY_TIMEOUT, lookup.next()).await.unwrap_or(None),
        } {
            answers.extend(found);
        }
        if answers.is_empty() {
            return Err(lookup.failure());
        }
        answers.sort_by_key(IpAddr::is_ipv6);
        answers.truncate(MAX_ANSWERS);
        Ok(LookupAnswers { ttl: TTL, answers })
    }

    /// Starts a lookup of the addresses of `name`, in both families simultaneously. `owner` is the circuit of the
    /// request; `None` for the exit's own lookups, such as those for descriptions of engines.
    pub(crate) async fn lookup(&self, owner: Option<RequestOwner>, name: &str) -> Result<AddressLookup, EndReason> {
        let deadline = now_after(self.timeout);
        let mut lookup = AddressLookup {
            queries: JoinSet::new(),
            deadline,
            private_addresses: self.private_addresses,
            failure: None,
            place: None,
        };
        if self.is_loopback(name)? {
            lookup.queries.spawn(async { Ok(vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()]) });
            return Ok(lookup);
        }
        let name = absolute(name)?;
        let inner = self.name_servers.resolver()?;
        lookup.place =
            Some(timeout_at(deadline, self.places.take(owner)).await.unwrap_or(Err(EndReason::LookupFailed))?);
        for family in [RecordType::A, RecordType::AAAA] {
            let (inner, name) = (inner.clone(), name.clone());
            lookup.queries.spawn(async move {
                let found = inner.lookup(name, family).await.map_err(|error| end_reason(&error))?;
                let addresses = found.answers().iter().filter_map(|record| record.data.ip_addr());
                Ok(addresses.take(MAX_ANSWERS).collect())
            });
        }
        Ok(lookup)
    }

    async fn names(&self, owner: Option<RequestOwner>, ip: IpAddr) -> Result<LookupAnswers<String>, EndReason> {
        let ip = ip.to_canonical();
        if !self.private_addresses && !is_global(ip) {
            return Err(EndReason::Policy);
        }
        let inner = self.name_servers.resolver()?;
        let lookup = self.within_limits(owner, inner.reverse_lookup(ip)).await?;
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
        Ok(LookupAnswers { ttl: TTL, answers })
    }

    async fn within_limits<T>(
        &self,
        owner: Option<RequestOwner>,
        lookup: impl Future<Output = Result<T, NetError>>,
    ) -> Result<T, EndReason> {
        let limited = async {
            let mut place = self.places.take(owner).await?;
            tokio::select! {
                found = lookup => found.map_err(|error| end_reason(&error)),
                () = place.ended() => Err(EndReason::LookupFailed),
            }
        };
        timeout(self.timeout, limited).await.unwrap_or(Err(EndReason::LookupFailed))
    }

    /// Whether `name` is `localhost`. Fails for names outside the DNS, and for private names unless these are allowed.
    /// A client sends no such name (`proto/08-paths.md` §6), and the name server of the exit must not see them either.
    fn is_loopback(&self, name: &str) -> Result<bool, EndReason> {
        match SpecialHost::of_name(name) {
            Some(SpecialHost::Reserved) => return Err(EndReason::NotFound),
            Some(SpecialHost::Private) if !self.private_addresses => return Err(EndReason::Policy),
            _ => {}
        }
        let last_label = name.strip_suffix('.').unwrap_or(name).rsplit('.').next();
        Ok(last_label.is_some_and(|label| label.eq_ignore_ascii_case("localhost")))
    }
}

/// A running lookup of a name's addresses. Dropping this value cancels the queries.
pub(crate) struct AddressLookup {
    /// One for each address family.
    queries: JoinSet<Result<Vec<IpAddr>, EndReason>>,
    deadline: Instant,
    private_addresses: bool,
    failure: Option<EndReason>,
    place: Option<LookupPlace>,
}

/// Completes at `deadline`, or when the lookup loses its place to another.
async fn ended(place: Option<&mut LookupPlace>, deadline: Instant) {
    let place_lost = async {
        match place {
            Some(place) => place.ended().await,
            None => core::future::pending().await,
        }
    };
    let _ = timeout_at(deadline, place_lost).await;
}

impl AddressLookup {
    /// The next addresses, of one family, without private addresses unless these are allowed; `None` when both families
    /// have answered, or at the timeout. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Vec<IpAddr>> {
        loop {
            let place = self.place.as_mut();
            let joined = tokio::select! {
                joined = self.queries.join_next() => joined?,
                () = ended(place, self.deadline) => {
                    self.queries.shutdown().await;
                    self.fail(EndReason::LookupFailed);
                    return None;
                }
            };
            match joined.unwrap_or(Err(EndReason::LookupFailed)) {
                Ok(mut found) => {
                    let has_no_records = found.is_empty();
                    found.retain(|ip| self.private_addresses || is_global(ip.to_canonical()));
                    match (found.is_empty(), has_no_records) {
                        (false, _) => return Some(found),
                        (true, true) => self.fail(EndReason::NotFound),
                        (true, false) => self.fail(EndReason::Policy),
                    }
                }
                Err(reason) => self.fail(reason),
            }
        }
    }

    /// Why the lookup has found no address.
    pub(crate) fn failure(&self) -> EndReason {
        self.failure.unwrap_or(EndReason::NotFound)
    }

    /// Records a failure of one family. `Policy` has precedence, because private addresses show that the name exists.
    /// `NotFound` replaces no other reason, because the other family may have addresses.
    fn fail(&mut self, reason: EndReason) {
        self.failure = match (self.failure, reason) {
            (Some(EndReason::Policy), _) => Some(EndReason::Policy),
            (Some(known), EndReason::NotFound) => Some(known),
            _ => Some(reason),
        };
    }
}

impl core::fmt::Debug for Resolver {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Resolver").finish_non_exhaustive()
    }
}

fn now_after(time: Duration) -> Instant {
    let now = Instant::now();
    now.checked_add(time).unwrap_or(now)
}

/// The fully qualified name, to which no search list applies.
fn absolute(name: &str) -> Result<Name, EndReason> {
    let mut name = Name::from_ascii(name).map_err(|_| EndReason::NotFound)?;
    name.set_fqdn(true);
    Ok(name)
}

fn end_reason(error: &NetError) -> EndReason {
    match error {
        error if error.is_no_records_found() => EndReason::NotFound,
        NetError::Busy => EndReason::ResourceLimit,
        // An error code of the name server, no answer, or an invalid one.
        _ => EndReason::LookupFailed,
    }
}
