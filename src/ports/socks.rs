//! The SOCKS proxy port for applications (RFC 1928, RFC 1929, SOCKS 4 and 4a, and Tor's two additions).
//!
//! | command | answer |
//! |---|---|
//! | CONNECT to a name, IPv4 or IPv6 | a stream |
//! | RESOLVE (0xF0) | the first address of the name |
//! | RESOLVE_PTR (0xF1) | the first name of the address |
//! | BIND, UDP ASSOCIATE | reply 7, command not supported |
//!
//! Any user name and password are accepted. They select the isolation: different credentials use different circuits.
//!
//! | failure | reply |
//! |---|---|
//! | the target refused the connection | 5, refused |
//! | target unreachable from the exit; name without address; failure of the exit's resolver | 4, host unreachable |
//! | no exit of the network allows the target, or the target is not public | 2, not allowed |
//! | the target did not answer in time | 6, TTL expired, the only code for a timeout |
//! | no consensus, too few relays, no guard reachable, or no circuit built | 3, network unreachable |
//! | another failure, also a cap | 1, general failure |
//!
//! `tor-socksproto` implements the codec of the handshake. A handshake is limited to a kilobyte and ten seconds.
//! Requests are never logged.

#[cfg(test)]
mod tests;

use core::{net::IpAddr, time::Duration};
use std::io;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    time::timeout,
};
use tor_socksproto::{
    Buffer, Error, Handshake as _, NextStep, SocksAddr, SocksAuth, SocksCmd, SocksHostname, SocksProxyHandshake,
    SocksRequest, SocksStatus, SocksVersion,
};

use super::{accept::serve_port, places::ConnectionPlaces};
use crate::{
    base::ErrorClass,
    client::StreamFailure,
    connector::{ConnectError, Connector, Isolation},
    io::{
        listener::{LocalPort, answer_and_close},
        stream::{SocketEnd, splice},
    },
    wire::{EndReason, Host, ResolvedAnswer, Target},
};

/// Limits of the SOCKS port.
#[derive(Clone, Copy, Debug)]
pub struct SocksLimits {
    /// Timeout of the handshake. Default 10 s.
    pub handshake_timeout: Duration,
    /// Timeout for opening a stream, or for a lookup. Default 60 s.
    pub open_timeout: Duration,
    /// Cap on TCP connections of applications; further connections get reply code 1. While connections hold three
    /// quarters of the cap, a request on a further connection gets reply code 1 if its isolation holds a quarter of the
    /// cap or more. Default 1,024. A connection without its stream occupies a few kilobytes.
    pub max_connections: usize,
}

impl Default for SocksLimits {
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(10),
            open_timeout: Duration::from_secs(60),
            max_connections: 1024,
        }
    }
}

/// Serves SOCKS on `listener` until the future is dropped, which closes the connections.
pub async fn serve<C: Connector>(listener: TcpListener, connector: C, limits: SocksLimits) {
    let serve_one = |socket, connector, places| serve_one(socket, connector, places, limits);
    serve_port(LocalPort::Socks, listener, connector, limits.max_connections, serve_one, shed).await;
}

/// Refuses a connection beyond the cap, by a reply in the SOCKS version of its handshake.
async fn shed(mut socket: TcpStream) {
    let reply = match shake_hands(&mut socket).await {
        Ok(Ok((request, _))) => reply(&request, general_failure(), None),
        Ok(Err(reply)) => reply,
        Err(_) => return,
    };
    // An error needs no action, because the connection ends in any case.
    let _ = answer_and_close(socket, &reply).await;
}

async fn serve_one<C: Connector>(
    mut socket: TcpStream,
    connector: C,
    places: ConnectionPlaces,
    limits: SocksLimits,
) -> io::Result<()> {
    let handshake = timeout(limits.handshake_timeout, shake_hands(&mut socket)).await??;
    let (request, early) = match handshake {
        Ok(accepted) => accepted,
        Err(reply) => return answer_and_close(socket, &reply).await,
    };
    let isolation = isolation(request.auth());
    let Some(_place) = places.take(isolation) else { return answer(socket, &request, Err(general_failure())).await };
    match request.command() {
        SocksCmd::CONNECT => {
            let Some(host) = host(request.addr()) else {
                return answer(socket, &request, Err(general_failure())).await;
            };
            let opening = connector.open(Target { host, port: request.port() }, isolation);
            match timeout(limits.open_timeout, opening).await.unwrap_or(Err(EndReason::TimedOut.into())) {
                Ok(stream) => {
                    socket.write_all(&reply(&request, SocksStatus::SUCCEEDED, None)).await?;
                    splice(socket, stream, &early, SocketEnd::Application).await
                }
                Err(error) => answer(socket, &request, Err(status(error))).await,
            }
        }
        SocksCmd::RESOLVE => {
            let found = timeout(limits.open_timeout, resolve(&request, &connector, isolation)).await;
            answer(socket, &request, found.unwrap_or(Err(SocksStatus::TTL_EXPIRED))).await
        }
        SocksCmd::RESOLVE_PTR => {
            let found = timeout(limits.open_timeout, resolve_ptr(&request, &connector, isolation)).await;
            answer(socket, &request, found.unwrap_or(Err(SocksStatus::TTL_EXPIRED))).await
        }
        _ => answer(socket, &request, Err(SocksStatus::COMMAND_NOT_SUPPORTED)).await,
    }
}

/// Performs the handshake. Returns the request and the bytes read after it, or the reply to an invalid handshake.
async fn shake_hands(socket: &mut TcpStream) -> io::Result<Result<(SocksRequest, Vec<u8>), Vec<u8>>> {
    let mut handshake = SocksProxyHandshake::new();
    let mut buffer = Buffer::new();
    let mut version = None;
    let mut has_chosen_method = false;
    loop {
        match handshake.step(&mut buffer) {
            Ok(NextStep::Send(bytes)) => {
                has_chosen_method = true;
                socket.write_all(&bytes).await?;
            }
            Ok(NextStep::Recv(mut step)) => {
                let length = socket.read(step.buf()).await?;
                version = version.or_else(|| step.buf().first().copied());
                if step.note_received(length).is_err() {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            Ok(NextStep::Finished(finished)) => return Ok(Ok(finished.into_output_and_vec())),
            Err(error) => return Ok(Err(refusal(&error, version, has_chosen_method))),
        }
    }
}

/// The reply to an invalid handshake. The reply is empty if the protocol has none in this state.
fn refusal(error: &Error, version: Option<u8>, has_chosen_method: bool) -> Vec<u8> {
    match (version, error) {
        (Some(4), _) => vec![0, 0x5B, 0, 0, 0, 0, 0, 0],
        (Some(5), Error::NotImplemented(_)) if !has_chosen_method => vec![5, 0xFF],
        (Some(5), _) if !has_chosen_method => Vec::new(),
        (Some(5), Error::NotImplemented(_)) => bare_reply(SocksStatus::COMMAND_NOT_SUPPORTED),
        (Some(5), Error::Decode(_)) => bare_reply(SocksStatus::ADDRTYPE_NOT_SUPPORTED),
        (Some(5), _) => bare_reply(SocksStatus::GENERAL_FAILURE),
        // The first letter of an HTTP method.
        (Some(first_byte), _) if first_byte.is_ascii_uppercase() => HTTP_ON_SOCKS.to_vec(),
        _ => Vec::new(),
    }
}

/// The answer to an application that uses this port as an HTTP proxy. The header fields hide from a probing web page
/// whether this port answers.
const HTTP_ON_SOCKS: &[u8] = b"HTTP/1.0 501 Not an HTTP proxy\r\nContent-Type: text/plain\r\nConnection: close\r\n\
    Cross-Origin-Resource-Policy: same-origin\r\nX-Frame-Options: DENY\r\n\r\n\
    This is Umbel's SOCKS port. Set it as a SOCKS5 proxy, or use Umbel's HTTP proxy port.\n";

fn bare_reply(status: SocksStatus) -> Vec<u8> {
    vec![5, status.into(), 0, 1, 0, 0, 0, 0, 0, 0]
}

fn reply(request: &SocksRequest, status: SocksStatus, address: Option<&SocksAddr>) -> Vec<u8> {
    request.reply(status, address).unwrap_or_else(|_| bare_reply(SocksStatus::GENERAL_FAILURE))
}

async fn answer(socket: TcpStream, request: &SocksRequest, answer: Result<SocksAddr, SocksStatus>) -> io::Result<()> {
    let reply = match &answer {
        Ok(address) => reply(request, SocksStatus::SUCCEEDED, Some(address)),
        Err(status) => reply(request, *status, None),
    };
    answer_and_close(socket, &reply).await
}

async fn resolve<C: Connector>(
    request: &SocksRequest,
    connector: &C,
    isolation: Isolation,
) -> Result<SocksAddr, SocksStatus> {
    // SOCKS 4 has no IPv6 addresses.
    let is_usable = |ip: &IpAddr| request.version() == SocksVersion::V5 || ip.is_ipv4();
    let host = host(request.addr()).ok_or_else(general_failure)?;
    if let Host::Ip(ip) = host {
        return Ok(SocksAddr::Ip(ip));
    }
    let answers = connector.resolve(host, isolation).await.map_err(status)?;
    let addresses = answers.iter().filter_map(|answer| match answer {
        ResolvedAnswer::Ip(ip) => Some(*ip),
        ResolvedAnswer::Name(_) => None,
    });
    addresses.filter(is_usable).map(SocksAddr::Ip).next().ok_or(SocksStatus::HOST_UNREACHABLE)
}

async fn resolve_ptr<C: Connector>(
    request: &SocksRequest,
    connector: &C,
    isolation: Isolation,
) -> Result<SocksAddr, SocksStatus> {
    let Some(host @ Host::Ip(_)) = host(request.addr()) else { return Err(SocksStatus::ADDRTYPE_NOT_SUPPORTED) };
    let answers = connector.resolve(host, isolation).await.map_err(status)?;
    let names = answers.into_iter().filter_map(|answer| match answer {
        ResolvedAnswer::Name(name) => SocksHostname::try_from(name).ok(),
        ResolvedAnswer::Ip(_) => None,
    });
    names.map(SocksAddr::Hostname).next().ok_or(SocksStatus::HOST_UNREACHABLE)
}

fn host(address: &SocksAddr) -> Option<Host> {
    match address {
        SocksAddr::Ip(ip) => Some(Host::Ip(*ip)),
        SocksAddr::Hostname(name) => Host::parse(name.as_ref()).ok(),
    }
}

fn isolation(auth: &SocksAuth) -> Isolation {
    const LISTENER: &str = "socks";
    match auth {
        SocksAuth::Username(user, password) => Isolation::new(LISTENER, user, password),
        SocksAuth::Socks4(user) => Isolation::new(LISTENER, user, &[]),
        _ => Isolation::of_listener(LISTENER),
    }
}

const fn general_failure() -> SocksStatus {
    SocksStatus::GENERAL_FAILURE
}

fn status(error: ConnectError) -> SocksStatus {
    match error {
        ConnectError::Stopped => SocksStatus::GENERAL_FAILURE,
        ConnectError::Stream(StreamFailure::Ended(reason)) => match reason {
            EndReason::Refused => SocksStatus::CONNECTION_REFUSED,
            EndReason::Unreachable | EndReason::NotFound | EndReason::LookupFailed => SocksStatus::HOST_UNREACHABLE,
            EndReason::Policy => SocksStatus::NOT_ALLOWED,
            EndReason::TimedOut => SocksStatus::TTL_EXPIRED,
            EndReason::Done | EndReason::Reset | EndReason::ResourceLimit | EndReason::Failed => general_failure(),
        },
        ConnectError::Stream(failure) => match failure.class() {
            ErrorClass::Network => SocksStatus::NETWORK_UNREACHABLE,
            ErrorClass::Local => SocksStatus::NOT_ALLOWED,
            ErrorClass::Limit | ErrorClass::Peer | ErrorClass::Bug => general_failure(),
        },
    }
}
