//! Isolation by destination (`--isolate-destination`): streams to different hosts use different circuits.

use crate::{
    connector::{ConnectError, Connector, Delegated, DelegatedRequest, Isolation},
    io::stream::Stream,
    wire::{Host, ResolvedAnswer, Target},
};

/// A connector that also isolates streams and lookups by host, if isolation by destination is enabled.
#[derive(Clone, Debug)]
pub(crate) struct ByDestination<C> {
    connector: C,
    enabled: bool,
}

impl<C> ByDestination<C> {
    /// `connector`, with isolation by destination if `enabled`.
    pub(crate) const fn new(connector: C, enabled: bool) -> Self {
        Self { connector, enabled }
    }

    fn isolation(&self, isolation: Isolation, host: &Host) -> Isolation {
        if self.enabled { isolation.for_host(host) } else { isolation }
    }
}

impl<C: Connector> Connector for ByDestination<C> {
    async fn open(&self, target: Target, isolation: Isolation) -> Result<Stream, ConnectError> {
        let isolation = self.isolation(isolation, &target.host);
        self.connector.open(target, isolation).await
    }

    async fn resolve(&self, host: Host, isolation: Isolation) -> Result<Vec<ResolvedAnswer>, ConnectError> {
        let isolation = self.isolation(isolation, &host);
        self.connector.resolve(host, isolation).await
    }

    async fn delegate(&self, request: DelegatedRequest) -> Result<Delegated, ConnectError> {
        // Each delegated request has a separate circuit in any case.
        self.connector.delegate(request).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::testing::Direct;

    /// The isolations of four streams and a lookup.
    async fn isolations(enabled: bool) -> Vec<Isolation> {
        let direct = Direct::default();
        let connector = ByDestination::new(direct.clone(), enabled);
        let (socks, http) = (Isolation::of_listener("socks"), Isolation::of_listener("http"));
        for (host, isolation) in
            [("refused.test", socks), ("REFUSED.test.", socks), ("policy.test", socks), ("refused.test", http)]
        {
            let host = Host::parse(host).unwrap();
            assert!(connector.open(Target { host, port: 80 }, isolation).await.is_err());
        }
        assert!(connector.resolve(Host::parse("refused.test").unwrap(), socks).await.is_err());
        direct.isolations()
    }

    #[tokio::test]
    async fn different_hosts_have_different_isolations_if_enabled() {
        let isolations = isolations(true).await;
        let [first, same_host, other_host, other_listener, lookup] = isolations[..] else { panic!("five requests") };
        assert!(first == same_host && first == lookup);
        assert!(first != other_host && first != other_listener && other_host != other_listener);
    }

    #[tokio::test]
    async fn different_hosts_share_the_isolation_if_disabled() {
        let socks = Isolation::of_listener("socks");
        assert_eq!(isolations(false).await, [socks, socks, socks, Isolation::of_listener("http"), socks]);
    }
}
