//! HTTP requests that an exit performs: each over a new connection to an address that its policy allows.
//!
//! This module resolves names. The policy decides on each address, and the connection goes to an allowed address, so a
//! changing DNS answer can't redirect the request. `https` certificates are verified. Redirects are not followed: a
//! caller that follows a redirect sends a new request, for which the policy decides again. Governed by
//! `proto/09-delegated.md`. Threat addressed: use of an exit against its local network.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use core::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};
use std::sync::Arc;

use hyper::{
    Request, Response,
    header::{self, HeaderValue},
};
use tokio::time::timeout;

use crate::{
    delegated::{Refusal, limits::RequestOwner},
    exit_policy::Policy,
    http_exchange::{
        body::OutgoingBody,
        http1::{ExchangeError, ExchangeLimits, StreamedBody, exchange, target_of},
    },
    io::{
        connect::connect,
        resolver::Resolver,
        tls::{Tls, TlsError},
    },
    wire::{EndReason, Host, Target},
};

/// The policies for the targets of requests.
#[derive(Clone, Debug)]
pub(crate) struct TargetPolicies {
    /// For the addresses of resolved names.
    pub(crate) resolved: Policy,
    /// For address literals, and `localhost`.
    pub(crate) literal: Policy,
}

/// Limits on a target's time and size.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutboundLimits {
    /// Time limit for resolving, connecting and the TLS handshake together; 10 s.
    pub(crate) connect_timeout: Duration,
    /// For request and response, after connecting.
    pub(crate) exchange: ExchangeLimits,
}

impl Default for OutboundLimits {
    fn default() -> Self {
        let exchange = ExchangeLimits {
            head_timeout: Duration::from_secs(30),
            idle_timeout: Some(Duration::from_secs(30)),
            max_head_bytes: 64 * 1024,
            max_fields: 128,
        };
        Self { connect_timeout: Duration::from_secs(10), exchange }
    }
}

/// The reason why a request has no response. The text contains nothing of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OutboundError {
    /// The URL is not a valid absolute `http` or `https` URL, or has a user name.
    #[error("the URL is not an http or https URL of a host")]
    Address,
    /// The connection failed; [`EndReason::Policy`] when the policy allows no address of the target.
    #[error("{0}")]
    Connect(EndReason),
    /// The TLS handshake failed.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The exchange failed.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

/// Sends requests of an exit. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct OutboundClient {
    policies: Arc<TargetPolicies>,
    resolver: Arc<Resolver>,
    tls: Tls,
    limits: OutboundLimits,
}

impl OutboundClient {
    pub(crate) fn new(policies: TargetPolicies, resolver: Arc<Resolver>, tls: Tls, limits: OutboundLimits) -> Self {
        Self { policies: Arc::new(policies), resolver, tls, limits }
    }

    /// Sends `request`, whose URL must be absolute, and returns the response. The request is changed only in `Host`,
    /// hop-by-hop fields and `Accept-Encoding`, which accepts no encoding of the body.
    ///
    /// The request's lookups count as those of `owner`, or of the exit itself.
    ///
    /// The caller caps the body's length ([`crate::http_exchange::http1::read_whole`]) and the total time.
    ///
    /// # Errors
    /// See [`OutboundError`]. Dropping the future cancels the request.
    pub(crate) async fn send<B: OutgoingBody>(
        &self,
        owner: Option<RequestOwner>,
        mut request: Request<B>,
    ) -> Result<Response<StreamedBody>, OutboundError> {
        let (secure, target) = target_of(request.uri()).ok_or(OutboundError::Address)?;
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let limits = self.limits.exchange;
        let timed_out = |_| OutboundError::Connect(EndReason::TimedOut);
        if secure {
            let stream = timeout(self.limits.connect_timeout, async {
                let socket = self.connect(owner, &target).await?;
                Ok::<_, OutboundError>(self.tls.connect(&target.host.to_text(), socket).await?)
            });
            Ok(exchange(stream.await.map_err(timed_out)??, request, limits).await?)
        } else {
            let connecting = timeout(self.limits.connect_timeout, self.connect(owner, &target));
            let socket = connecting.await.map_err(timed_out)??;
            Ok(exchange(socket, request, limits).await?)
        }
    }

    async fn connect(
        &self,
        owner: Option<RequestOwner>,
        target: &Target,
    ) -> Result<tokio::net::TcpStream, OutboundError> {
        const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let literal = match &target.host {
            Host::Ip(ip) => Some(*ip),
            Host::Name(name) => name.eq_ignore_ascii_case("localhost").then_some(LOOPBACK),
        };
        let connected = match literal {
            Some(ip) => {
                let target = Target { host: Host::Ip(ip), port: target.port };
                connect(&self.policies.literal, &self.resolver, owner, &target).await
            }
            None => connect(&self.policies.resolved, &self.resolver, owner, target).await,
        };
        connected.map(|connected| connected.socket).map_err(OutboundError::Connect)
    }
}

impl From<OutboundError> for Refusal {
    fn from(error: OutboundError) -> Self {
        match error {
            OutboundError::Address => Self::Malformed,
            OutboundError::Connect(reason) => match reason {
                EndReason::Policy => Self::Prohibited,
                EndReason::NotFound => Self::NoName,
                EndReason::Refused => Self::ConnectionRefused,
                EndReason::TimedOut => Self::ConnectionTimedOut,
                EndReason::ResourceLimit => Self::Busy,
                EndReason::Unreachable
                | EndReason::LookupFailed
                | EndReason::Done
                | EndReason::Reset
                | EndReason::Failed => Self::Unreachable,
            },
            OutboundError::Tls(TlsError::Certificate) => Self::Certificate,
            OutboundError::Tls(TlsError::NoRoots) => Self::Misconfigured,
            OutboundError::Tls(TlsError::Handshake | TlsError::Broken) => Self::Tls,
            OutboundError::Exchange(error) => match error {
                ExchangeError::TimedOut => Self::ResponseTimedOut,
                ExchangeError::NotHttp => Self::NotHttp,
                ExchangeError::TooLarge => Self::HeadTooLarge,
                ExchangeError::Broken => Self::Broken,
                ExchangeError::RequestBody => Self::Malformed,
            },
        }
    }
}
