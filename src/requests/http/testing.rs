//! A replacement of the overlay for tests: exits in this process that perform requests.

use core::time::Duration;
use std::{
    sync::{Arc, Mutex},
    time::Instant,
};

use super::Requester;
use crate::{
    base::RelayId,
    connector::{ConnectError, Connector, Delegated, DelegatedRequest, Hop, Isolation},
    delegated::{Service, limits::RequestOwner},
    exit::{
        delegated::{
            Delegate,
            engines::{Engines, Senders},
            http::{Http, HttpCaps, HttpPolicy},
            limits::{ExitLimits, Rates},
            search::{ExitSearch, SearchCaps},
        },
        outbound::{OutboundClient, OutboundLimits, TargetPolicies},
    },
    exit_policy::Policy,
    io::{
        resolver::{Resolver, ResolverOptions},
        stream::Stream,
        testing::{Direct, stream_pair},
        tls::Tls,
    },
    path::PathError,
    wire::{EndReason, Host, ResolvedAnswer, Target},
};

/// A connector to one or several identical exits in this process. The exits send requests to targets on this machine.
#[derive(Clone)]
pub(crate) struct LocalExits {
    exit: Arc<Delegate>,
    exits: u8,
    isolations: Arc<Mutex<Vec<Isolation>>>,
}

impl LocalExits {
    pub(crate) async fn new() -> Self {
        Self::several(1).await
    }

    pub(crate) async fn several(exits: u8) -> Self {
        let policy = Policy::parse(["accept *"], true).unwrap();
        let options = ResolverOptions { servers: vec!["127.0.0.1:9".parse().unwrap()], ..ResolverOptions::default() };
        let policies = TargetPolicies { resolved: policy.clone(), literal: policy };
        let resolver = Arc::new(Resolver::new(&options));
        let outbound = OutboundClient::new(policies, resolver, Tls::default(), OutboundLimits::default());
        let http = Http::new(HttpPolicy::Open(outbound.clone()), HttpCaps::default());
        let limits = ExitLimits::new(Rates::default(), Instant::now());
        let senders = Senders { configured: outbound.clone(), public: outbound };
        let none = Engines::load::<&str>(&[], senders).await.unwrap();
        let search = ExitSearch::new(none, SearchCaps::default());
        Self { exit: Arc::new(Delegate::new(search, http, limits)), exits, isolations: Arc::default() }
    }

    pub(crate) fn requester(self) -> Requester<Self> {
        Requester::new(self, Tls::default())
    }

    /// The isolations of all requests.
    pub(crate) fn isolations(&self) -> Vec<Isolation> {
        self.isolations.lock().unwrap().clone()
    }
}

impl Connector for LocalExits {
    async fn open(&self, target: Target, isolation: Isolation) -> Result<Stream, ConnectError> {
        Direct::default().open(target, isolation).await
    }

    async fn resolve(&self, _: Host, _: Isolation) -> Result<Vec<ResolvedAnswer>, ConnectError> {
        Err(EndReason::Policy.into())
    }

    async fn delegate(&self, request: DelegatedRequest) -> Result<Delegated, ConnectError> {
        let DelegatedRequest { delegation, excluded_exits, isolation } = request;
        self.isolations.lock().unwrap().push(isolation);
        let mut exits = (0..self.exits).map(|number| RelayId::from_bytes([number; 32]));
        let chosen = exits.find(|exit| !excluded_exits.contains(exit) && delegation.is_offered(&self.exit.offer()));
        let relay = chosen.ok_or(PathError::NotOffered)?;
        let (near, far) = stream_pair();
        let exit = Arc::clone(&self.exit);
        tokio::spawn(async move { exit.serve(Service::Http, RequestOwner::alone(1), far).await });
        Ok(Delegated { stream: near, path: vec![Hop { relay, handshake_time: Duration::ZERO }], shared_exit: false })
    }
}
