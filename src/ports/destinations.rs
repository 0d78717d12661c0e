//! Isolation by destination: streams to different hosts use different circuits.

use crate::{
    base::RelayId,
    connector::{ConnectError, Connector, Delegated, Isolation},
    delegated::Delegation,
    io::stream::Stream,
    wire::{Host, ResolvedAnswer, Target},
};

/// A connector that isolates streams and lookups by host too, if that is switched on.
#[derive(Clone, Debug)]
pub(crate) struct ByDestination<C> {
    connector: C,
    on: bool,
}

impl<C> ByDestination<C> {
    /// `connector`, with isolation by destination if `on`.
    pub(crate) const fn new(connector: C, on: bool) -> Self {
        Self { connector, on }
    }

    fn isolation(&self, isolation: Isolation, host: &Host) -> Isolation {
        if self.on { isolation.for_host(host) } else { isolation }
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

    async fn delegate(
        &self,
        delegation: Delegation,
        excluded_exits: Vec<RelayId>,
        isolation: Isolation,
    ) -> Result<Delegated, ConnectError> {
        // Each delegated request has a separate circuit.
        self.connector.delegate(delegation, excluded_exits, isolation).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::io::testing::Direct;

    async fn isolations(on: bool) -> Vec<Isolation> {
        let direct = Direct::default();
        let connector = ByDestination::new(direct.clone(), on);
        let (one, other) = (Isolation::of_listener("socks"), Isolation::of_listener("http"));
        for (host, isolation) in
            [("refused.test", one), ("REFUSED.test.", one), ("policy.test", one), ("refused.test", other)]
        {
            let host = Host::parse(host).unwrap();
            assert!(connector.open(Target { host, port: 80 }, isolation).await.is_err());
        }
        assert!(connector.resolve(Host::parse("refused.test").unwrap(), one).await.is_err());
        direct.isolations()
    }

    #[tokio::test]
    async fn destinations_share_no_isolation_when_that_is_switched_on() {
        let isolations = isolations(true).await;
        let [first, same_host, other_host, other_listener, lookup] = isolations[..] else { panic!("five requests") };
        assert!(first == same_host && first == lookup);
        assert!(first != other_host && first != other_listener && other_host != other_listener);
    }

    #[tokio::test]
    async fn destinations_share_the_isolation_by_default() {
        let one = Isolation::of_listener("socks");
        assert_eq!(isolations(false).await, [one, one, one, Isolation::of_listener("http"), one]);
    }
}
