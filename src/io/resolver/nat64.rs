//! Discovery of the NAT64 prefixes of an exit's network (RFC 7050).
//!
//! A name server with DNS64 derives the IPv6 addresses of `ipv4only.arpa` from the prefixes. The query is repeated until
//! a name server answers, and again before the answer expires, because the network may come up late or change. Threat
//! addressed: an address of such a prefix leads to an IPv4 address that the exit policy refuses.

use core::{
    net::{IpAddr, Ipv6Addr},
    time::Duration,
};
use std::sync::Arc;

use hickory_resolver::proto::rr::RecordType;
use tokio::time::{Instant, sleep, timeout};

use super::{MAX_ANSWERS, Resolver, absolute, end_reason};
use crate::{
    exit_policy::{Nat64Prefix, Policy},
    wire::EndReason,
};

/// The name by which a host finds the NAT64 prefixes of its network.
const IPV4_ONLY_NAME: &str = "ipv4only.arpa";
/// Time limit of the first query, which delays the start of an exit.
const START_TIMEOUT: Duration = Duration::from_secs(2);
/// Delay after the first query without an answer. The delay doubles with each further one.
const MIN_RETRY_DELAY: Duration = Duration::from_millis(250);
/// Maximum delay after a query without an answer.
const MAX_RETRY_DELAY: Duration = Duration::from_secs(60);
/// Minimum time from an answer to the next query.
const MIN_INTERVAL: Duration = Duration::from_secs(60);
/// Maximum time from an answer to the next query, also after an answer without prefixes.
const MAX_INTERVAL: Duration = Duration::from_secs(60 * 60);
/// Time from the next query to the end of the answer's TTL (RFC 7050 §3).
const LEAD_TIME: Duration = Duration::from_secs(10);
/// Cap on prefixes. At the cap, the prefix that was found longest ago is dropped.
const MAX_PREFIXES: usize = 16;
/// Interval of the warning that no name server answers.
const WARNING_INTERVAL: Duration = Duration::from_secs(24 * 60 * 60);

impl Resolver {
    /// Whether `policy` allows a connection to `port` at `ip`, by the NAT64 prefixes that are known now
    /// ([`Policy::allows_in_network`]).
    pub(crate) fn permits(&self, policy: &Policy, ip: IpAddr, port: u16) -> bool {
        policy.allows_in_network(ip, port, self.nat64.borrow().as_deref())
    }

    /// Whether IPv6 addresses are refused because no name server has revealed the NAT64 prefixes yet. They never are
    /// again after [`Self::ipv6_opened`].
    pub(crate) fn is_ipv6_closed(&self) -> bool {
        self.nat64.borrow().is_none()
    }

    /// Completes once IPv6 addresses aren't refused for that reason.
    pub(crate) async fn ipv6_opened(&self) {
        let _ = self.nat64.subscribe().wait_for(Option::is_some).await;
    }

    /// Queries the name servers for the NAT64 prefixes of the network, and returns the time to the next query. A prefix
    /// stays known if a later answer omits it, because a further prefix allows no further address. An answer without
    /// records is an answer.
    ///
    /// # Errors
    /// When no name server answers, or the answer is an error such as SERVFAIL, which a local name server sends while the
    /// network is down.
    async fn query_nat64(&self) -> Result<Duration, EndReason> {
        let name = absolute(IPV4_ONLY_NAME)?;
        let answer = match self.name_servers.resolver()?.lookup(name, RecordType::AAAA).await {
            Ok(answer) => Some(answer),
            Err(error) if error.is_no_records_found() => None,
            Err(error) => return Err(end_reason(&error)),
        };
        let records = || answer.iter().flat_map(|answer| answer.answers()).take(MAX_ANSWERS);
        let prefixes = records().filter_map(|record| match record.data.ip_addr()? {
            IpAddr::V6(ip) => Some(ip),
            IpAddr::V4(_) => None,
        });
        self.nat64.send_modify(|known| add_prefixes(known.get_or_insert_default(), prefixes));
        Ok(interval(records().map(|record| record.ttl).min()))
    }
}

/// Adds the prefixes that the `addresses` of `ipv4only.arpa` embed, the last found one at the end.
fn add_prefixes(known: &mut Vec<Nat64Prefix>, addresses: impl Iterator<Item = Ipv6Addr>) {
    for prefix in addresses.flat_map(Nat64Prefix::of_ipv4_only) {
        known.retain(|other| *other != prefix);
        known.push(prefix);
    }
    known.drain(..known.len().saturating_sub(MAX_PREFIXES));
}

/// The time from an answer with this TTL, in seconds, to the next query.
fn interval(ttl: Option<u32>) -> Duration {
    let lifetime = ttl.map_or(MAX_INTERVAL, |ttl| Duration::from_secs(ttl.into()).saturating_sub(LEAD_TIME));
    lifetime.clamp(MIN_INTERVAL, MAX_INTERVAL)
}

/// The repeated query for NAT64 prefixes.
pub(crate) struct Nat64Queries {
    resolver: Arc<Resolver>,
    /// Delay after the next query without an answer.
    retry_delay: Duration,
    /// Time to the next query.
    wait: Duration,
    /// Whether the last query had no answer.
    is_failing: bool,
    /// The time of the last warning.
    warned_at: Option<Instant>,
}

impl Nat64Queries {
    /// Makes the first query, in at most 2 s.
    pub(crate) async fn start(resolver: Arc<Resolver>) -> Self {
        let mut queries =
            Self { resolver, retry_delay: MIN_RETRY_DELAY, wait: Duration::ZERO, is_failing: false, warned_at: None };
        queries.query(START_TIMEOUT).await;
        queries
    }

    /// Repeats the query without end.
    pub(crate) async fn run(mut self) {
        loop {
            sleep(self.wait).await;
            self.query(self.resolver.timeout).await;
        }
    }

    async fn query(&mut self, time_limit: Duration) {
        let answer = timeout(time_limit, self.resolver.query_nat64()).await.unwrap_or(Err(EndReason::TimedOut));
        match answer {
            Ok(wait) => {
                if self.is_failing {
                    tracing::info!("a name server has answered the query for NAT64 prefixes");
                }
                (self.wait, self.retry_delay, self.is_failing) = (wait, MIN_RETRY_DELAY, false);
            }
            Err(reason) => {
                let is_due = self.warned_at.is_none_or(|at| at.elapsed() >= WARNING_INTERVAL);
                if is_due && self.resolver.nat64.borrow().is_none() {
                    self.warned_at = Some(Instant::now());
                    tracing::warn!(
                        %reason,
                        "no name server has answered the query for the NAT64 prefixes of this network; until one does, this \
                         exit opens no IPv6 connections. If no name server ever answers, set nat64 = [\"64:ff9b::/96\"], or \
                         the prefixes of the network"
                    );
                }
                (self.wait, self.is_failing) = (self.retry_delay, true);
                self.retry_delay = self.retry_delay.saturating_mul(2).min(MAX_RETRY_DELAY);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use core::net::SocketAddr;
    use std::sync::Mutex;

    use hickory_proto::{
        op::{Message, ResponseCode},
        rr::{RData, Record},
    };

    use super::*;
    use crate::io::resolver::{
        ResolverOptions,
        tests::{name_server, name_server_with},
    };

    /// A resolver that refuses IPv6 addresses until `server` answers.
    fn resolver(server: SocketAddr) -> Arc<Resolver> {
        let options = ResolverOptions {
            servers: vec![server],
            await_nat64: true,
            timeout: Duration::from_secs(3),
            ..ResolverOptions::default()
        };
        Arc::new(Resolver::new(&options))
    }

    /// A name server whose answers have the response code and the addresses of `state`.
    async fn changing_name_server(state: &Arc<Mutex<(ResponseCode, Vec<Ipv6Addr>)>>) -> SocketAddr {
        let state = Arc::clone(state);
        let answer = move |question: &Message| {
            let (code, addresses) = state.lock().unwrap().clone();
            let mut answer = Message::error_msg(question.id, question.op_code, code);
            let query = question.queries.first().unwrap();
            answer.add_query(query.clone());
            let records = addresses.into_iter().map(|ip| RData::AAAA(ip.into()));
            answer.add_answers(records.map(|data| Record::from_rdata(query.name().clone(), 300, data)));
            Some(answer)
        };
        name_server_with(answer).await.0
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn prefixes(resolver: &Resolver) -> Option<Vec<Nat64Prefix>> {
        resolver.nat64.borrow().clone()
    }

    #[tokio::test]
    async fn the_nat64_prefixes_of_a_network_are_those_of_its_name_server() {
        let resolver = resolver(name_server().await.0);
        let queries = Nat64Queries::start(Arc::clone(&resolver)).await;
        assert_eq!(prefixes(&resolver), Some(vec!["2001:db8:64::/96".parse().unwrap()]));
        assert_eq!(queries.wait, MIN_INTERVAL, "the TTL of the records is 60 s");
    }

    #[tokio::test]
    async fn an_exit_whose_name_server_answers_late_opens_no_ipv6_connection_before() {
        let policy = Policy::parse(["accept *"], false).unwrap();
        for failure in [ResponseCode::ServFail, ResponseCode::Refused] {
            let state = Arc::new(Mutex::new((failure, Vec::new())));
            let resolver = resolver(changing_name_server(&state).await);
            let permits = |text| resolver.permits(&policy, ip(text), 443);
            let queries = Nat64Queries::start(Arc::clone(&resolver)).await;
            assert!(permits("1.1.1.1") && !permits("2606:4700::1") && !permits("2606:64::a00:1"));
            let mut found = resolver.nat64.subscribe();
            *state.lock().unwrap() = (ResponseCode::NoError, vec!["2606:64::192.0.0.170".parse().unwrap()]);
            let answered = timeout(Duration::from_secs(20), found.wait_for(Option::is_some));
            tokio::select! {
                () = queries.run() => {}
                answered = answered => assert!(answered.unwrap().is_ok()),
            }
            assert!(permits("1.1.1.1") && permits("2606:4700::1") && permits("2606:64::101:101"));
            assert!(!permits("2606:64::a00:1"), "10.0.0.1 behind the prefix of the network");
        }
    }

    #[tokio::test]
    async fn a_network_without_nat64_has_a_definite_answer() {
        let policy = Policy::parse(["accept *"], false).unwrap();
        for code in [ResponseCode::NXDomain, ResponseCode::NoError] {
            let resolver = resolver(changing_name_server(&Arc::new(Mutex::new((code, Vec::new())))).await);
            let queries = Nat64Queries::start(Arc::clone(&resolver)).await;
            assert_eq!((prefixes(&resolver), queries.wait), (Some(Vec::new()), MAX_INTERVAL));
            assert!(resolver.permits(&policy, ip("2606:4700::1"), 443));
        }
    }

    #[tokio::test]
    async fn prefixes_stay_known_when_later_answers_omit_them() {
        let prefix = |text: &str| text.parse::<Nat64Prefix>().unwrap();
        let state = Arc::new(Mutex::new((ResponseCode::NoError, vec!["2606:64::192.0.0.170".parse().unwrap()])));
        let resolver = resolver(changing_name_server(&state).await);
        let mut queries = Nat64Queries::start(Arc::clone(&resolver)).await;
        assert_eq!(queries.wait, Duration::from_secs(290));
        for (code, address, retry, expected) in [
            (ResponseCode::NoError, Some("2606:65::192.0.0.171"), false, &["2606:64::/96", "2606:65::/96"][..]),
            (ResponseCode::NoError, Some("2606:64::192.0.0.170"), false, &["2606:65::/96", "2606:64::/96"]),
            (ResponseCode::NoError, None, false, &["2606:65::/96", "2606:64::/96"]),
            (ResponseCode::ServFail, None, true, &["2606:65::/96", "2606:64::/96"]),
        ] {
            *state.lock().unwrap() = (code, address.map(|text| text.parse().unwrap()).into_iter().collect());
            queries.query(Duration::from_secs(3)).await;
            assert_eq!(prefixes(&resolver), Some(expected.iter().copied().map(prefix).collect()));
            assert_eq!(queries.wait == MIN_RETRY_DELAY, retry);
        }
    }

    #[test]
    fn queries_follow_the_ttl_within_bounds_and_prefixes_are_capped() {
        for (ttl, expected) in [(None, 3600), (Some(0), 60), (Some(300), 290), (Some(86_400), 3600)] {
            assert_eq!(interval(ttl), Duration::from_secs(expected), "{ttl:?}");
        }
        let mut known = Vec::new();
        add_prefixes(&mut known, (0..40_u16).map(|part| Ipv6Addr::new(0x2606, part, 0, 0, 0, 0, 0xc000, 0xaa)));
        assert_eq!(known.len(), MAX_PREFIXES);
        assert_eq!(known.last(), "2606:27::/96".parse().ok().as_ref());
    }
}
