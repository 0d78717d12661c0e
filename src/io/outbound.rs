//! Requests that an exit performs itself: over a fresh connection to an address that its policy has judged.
//!
//! Names are resolved here, each address is judged, and an address that was judged is the one connected to, so that a name
//! which changes its mind leads nowhere else. `https` is verified. Redirects are not followed: a caller that does so sends
//! again, and is judged again. Governed by `proto/09-delegated.md`; it keeps an exit from being turned against its own network.

#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use core::{
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};
use std::{error::Error, sync::Arc};

use hyper::{
    Request, Response, Uri,
    body::Body,
    header::{self, HeaderValue},
};
use tokio::time::timeout;

use crate::{
    exit::Policy,
    wire::{EndReason, Host, Target},
};

use super::{
    connector::reason_text,
    exchange::{Answer, ExchangeError, ExchangeLimits, exchange},
    exit::connect::connect,
    resolver::Resolver,
    tls::{Tls, TlsError},
};

/// Where requests may go.
#[derive(Clone, Debug)]
pub(crate) struct Reach {
    /// Judges the addresses that a name resolves to.
    pub(crate) resolved: Policy,
    /// Judges addresses written as such, and `localhost`.
    pub(crate) written: Policy,
}

/// How long and how much a target may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct OutboundLimits {
    /// For resolving, connecting and the TLS handshake together; 10 s.
    pub(crate) connect: Duration,
    /// For request and response, once there is a connection.
    pub(crate) exchange: ExchangeLimits,
}

impl Default for OutboundLimits {
    fn default() -> Self {
        let exchange = ExchangeLimits {
            head: Duration::from_secs(30),
            idle: Some(Duration::from_secs(30)),
            head_bytes: 64 * 1024,
            fields: 128,
        };
        Self { connect: Duration::from_secs(10), exchange }
    }
}

/// Why a request had no response. Names nothing of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum OutboundError {
    /// The address is not an absolute `http` or `https` one, or has a user name in it.
    #[error("the address is not one of a web server")]
    Address,
    /// No connection; [`EndReason::Policy`] when no address of the target may be connected to.
    #[error("{}", reason_text(*.0))]
    Connect(EndReason),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No response.
    #[error(transparent)]
    Exchange(#[from] ExchangeError),
}

/// Sends requests. Cheap to clone.
#[derive(Clone, Debug)]
pub(crate) struct Outbound {
    reach: Arc<Reach>,
    resolver: Arc<Resolver>,
    tls: Tls,
    limits: OutboundLimits,
}

impl Outbound {
    pub(crate) fn new(reach: Reach, resolver: Arc<Resolver>, tls: Tls, limits: OutboundLimits) -> Self {
        Self { reach: Arc::new(reach), resolver, tls, limits }
    }

    /// Sends `request`, whose address is absolute, and gives the response. The request goes as it stands, but for `Host`,
    /// hop-by-hop fields, and `Accept-Encoding`: no encoding of the body is accepted.
    ///
    /// The body's length is the caller's to cap ([`super::exchange::read_whole`]), and the time in all.
    ///
    /// # Errors
    /// See [`OutboundError`]. Dropping the future gives the request up.
    pub(crate) async fn send<B>(&self, mut request: Request<B>) -> Result<Response<Answer>, OutboundError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn Error + Send + Sync>>,
    {
        let (secure, target) = target_of(request.uri()).ok_or(OutboundError::Address)?;
        request.headers_mut().insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        let limits = self.limits.exchange;
        let late = |_| OutboundError::Connect(EndReason::TimedOut);
        if secure {
            let stream = timeout(self.limits.connect, async {
                let socket = self.connect(&target).await?;
                Ok::<_, OutboundError>(self.tls.connect(&target.host.to_text(), socket).await?)
            });
            Ok(exchange(stream.await.map_err(late)??, request, limits).await?)
        } else {
            let socket = timeout(self.limits.connect, self.connect(&target)).await.map_err(late)??;
            Ok(exchange(socket, request, limits).await?)
        }
    }

    async fn connect(&self, target: &Target) -> Result<tokio::net::TcpStream, OutboundError> {
        const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
        let written = match &target.host {
            Host::Ip(ip) => Some(*ip),
            Host::Name(name) => name.eq_ignore_ascii_case("localhost").then_some(LOOPBACK),
        };
        let connected = match written {
            Some(ip) => {
                let target = Target { host: Host::Ip(ip), port: target.port };
                connect(&self.reach.written, &self.resolver, &target).await
            }
            None => connect(&self.reach.resolved, &self.resolver, target).await,
        };
        connected.map(|connected| connected.socket).map_err(OutboundError::Connect)
    }
}

/// Whether by TLS, and where to, that an absolute address says; none if it is not an `http` or `https` one, has a user
/// name in it, or its port is none.
pub(crate) fn target_of(uri: &Uri) -> Option<(bool, Target)> {
    let (scheme, authority) = (uri.scheme_str()?, uri.authority()?);
    let secure = match scheme.to_ascii_lowercase().as_str() {
        "https" => true,
        "http" => false,
        _ => return None,
    };
    if authority.as_str().contains('@') {
        return None;
    }
    let host = Host::parse(authority.host()).ok()?;
    // One that is no port must not count as none.
    let port = match authority.as_str().strip_prefix(authority.host())? {
        "" | ":" => {
            if secure {
                443
            } else {
                80
            }
        }
        _ => authority.port_u16().filter(|port| *port != 0)?,
    };
    Some((secure, Target { host, port }))
}
