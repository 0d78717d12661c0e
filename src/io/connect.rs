//! TCP connections to targets: resolution, policy, and staggered attempts at several addresses (after RFC 8305).

use core::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};
use std::io;

use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, timeout},
};

use super::resolver::Resolver;
use crate::{
    exit_policy::Policy,
    wire::{EndReason, Host, Target},
};

/// Most addresses to try.
const MAX_ATTEMPTS: usize = 4;
/// Delay between the starts of concurrent attempts.
const STAGGER: Duration = Duration::from_millis(250);
/// Timeout of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to a target.
pub(crate) struct Connected {
    pub(crate) socket: TcpStream,
    pub(crate) address: IpAddr,
    /// Duration of the TCP handshake: the round trip to the target, unless a SYN was lost.
    pub(crate) round_trip: Duration,
}

/// Connects to `target`: attempts the addresses that `policy` allows, and returns the first connection.
pub(crate) async fn connect(policy: &Policy, resolver: &Resolver, target: &Target) -> Result<Connected, EndReason> {
    let found = match &target.host {
        Host::Ip(ip) => vec![*ip],
        Host::Name(name) => resolver.addresses(name).await?.answers,
    };
    // Only the checked addresses are used from here on.
    let allowed: Vec<IpAddr> =
        found.into_iter().map(|ip| ip.to_canonical()).filter(|ip| policy.allows(*ip, target.port)).collect();
    if allowed.is_empty() {
        return Err(EndReason::Policy);
    }
    race(&alternating(&allowed), target.port).await
}

/// At most [`MAX_ATTEMPTS`] of the addresses, of alternating families. IPv4 is first because most exits have it.
pub(crate) fn alternating(addresses: &[IpAddr]) -> Vec<IpAddr> {
    let (mut ipv4, mut ipv6) = (addresses.iter().filter(|ip| ip.is_ipv4()), addresses.iter().filter(|ip| ip.is_ipv6()));
    let mut ordered = Vec::new();
    loop {
        let pair = [ipv4.next(), ipv6.next()];
        if pair == [None, None] {
            return ordered;
        }
        ordered.extend(pair.into_iter().flatten().take(MAX_ATTEMPTS.saturating_sub(ordered.len())));
    }
}

async fn race(addresses: &[IpAddr], port: u16) -> Result<Connected, EndReason> {
    let mut waiting = addresses.iter();
    let mut running = JoinSet::new();
    let mut failure = None;
    loop {
        if let Some(ip) = waiting.next() {
            running.spawn(attempt(*ip, port));
        }
        let more = waiting.len() > 0;
        tokio::select! {
            joined = running.join_next() => match joined {
                Some(Ok(Ok(connected))) => return Ok(connected),
                Some(Ok(Err(reason))) => failure = more_informative(failure, reason),
                Some(Err(_)) => failure = more_informative(failure, EndReason::Failed),
                // No attempt is running and no address is left.
                None => return Err(failure.unwrap_or(EndReason::Failed)),
            },
            () = tokio::time::sleep(STAGGER), if more => {}
        }
    }
}

async fn attempt(ip: IpAddr, port: u16) -> Result<Connected, EndReason> {
    let start = Instant::now();
    match timeout(ATTEMPT_TIMEOUT, TcpStream::connect(SocketAddr::new(ip, port))).await {
        Ok(Ok(socket)) => {
            // Nagle's algorithm would delay the last piece of each answer until an acknowledgement.
            let _ = socket.set_nodelay(true);
            Ok(Connected { socket, address: ip, round_trip: start.elapsed() })
        }
        Ok(Err(error)) => Err(reason(&error)),
        Err(_) => Err(EndReason::TimedOut),
    }
}

/// The more informative of two failures: a refusal shows that the target exists.
const fn more_informative(known: Option<EndReason>, new: EndReason) -> Option<EndReason> {
    match (known, new) {
        (Some(EndReason::Refused), _) | (Some(EndReason::TimedOut), EndReason::Unreachable | EndReason::Failed) => {
            known
        }
        _ => Some(new),
    }
}

fn reason(error: &io::Error) -> EndReason {
    /// The limit on open files, of this process or of the machine.
    const TOO_MANY_FILES: [Option<i32>; 2] = [Some(libc::EMFILE), Some(libc::ENFILE)];
    match error.kind() {
        io::ErrorKind::ConnectionRefused => EndReason::Refused,
        io::ErrorKind::TimedOut => EndReason::TimedOut,
        io::ErrorKind::HostUnreachable
        | io::ErrorKind::NetworkUnreachable
        | io::ErrorKind::NetworkDown
        | io::ErrorKind::AddrNotAvailable
        | io::ErrorKind::PermissionDenied => EndReason::Unreachable,
        io::ErrorKind::ConnectionReset => EndReason::Reset,
        _ if TOO_MANY_FILES.contains(&error.raw_os_error()) => EndReason::ResourceLimit,
        _ => EndReason::Failed,
    }
}
