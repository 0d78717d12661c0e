//! TCP connections to targets: resolution, policy, and staggered attempts at several addresses (after RFC 8305).

use core::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};
use std::{collections::VecDeque, io, net::UdpSocket};

use tokio::{
    net::TcpStream,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::resolver::{AddressLookup, Resolver};
use crate::{
    base::Counter as _,
    delegated::limits::RequestOwner,
    exit_policy::Policy,
    wire::{EndReason, Host, Target},
};

/// Cap on attempts for one target.
const MAX_ATTEMPTS: usize = 4;
/// Delay between the starts of concurrent attempts.
const STAGGER_DELAY: Duration = Duration::from_millis(250);
/// Timeout of one attempt.
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(10);

/// System errors at the limit on open files, of this process and of the machine.
const TOO_MANY_FILES: [Option<i32>; 2] = [Some(libc::EMFILE), Some(libc::ENFILE)];

/// A connection to a target.
pub(crate) struct Connected {
    pub(crate) socket: TcpStream,
    pub(crate) address: IpAddr,
    /// Duration of the TCP handshake: the round trip to the target, unless a SYN was lost.
    pub(crate) round_trip: Duration,
}

/// Connects to `target`: tries the addresses that `policy` allows, as the resolver finds them, and returns the first
/// connection.
///
/// # Errors
/// The reason for the END message. [`EndReason::Policy`] if the policy refused an address and no attempt was made.
pub(crate) async fn connect(
    policy: &Policy,
    resolver: &Resolver,
    owner: Option<RequestOwner>,
    target: &Target,
) -> Result<Connected, EndReason> {
    let mut race = Race::new(policy, resolver, target.port);
    let lookup = match &target.host {
        Host::Ip(ip) => {
            race.add([*ip]);
            None
        }
        Host::Name(name) => Some(resolver.lookup(owner, name).await?),
    };
    race.run(lookup).await
}

/// Staggered attempts at the addresses of one target.
struct Race<'a> {
    policy: &'a Policy,
    resolver: &'a Resolver,
    port: u16,
    waiting: WaitingAddresses,
    /// Number of attempts started.
    attempts: usize,
    running: JoinSet<Result<Connected, EndReason>>,
    /// The most informative failure of an attempt.
    failure: Option<EndReason>,
    /// The reason why an address was not tried, or why the lookup failed.
    no_address: Option<EndReason>,
}

impl<'a> Race<'a> {
    fn new(policy: &'a Policy, resolver: &'a Resolver, port: u16) -> Self {
        let (waiting, running) = (WaitingAddresses::default(), JoinSet::new());
        Self { policy, resolver, port, waiting, attempts: 0, running, failure: None, no_address: None }
    }

    /// Adds the addresses that the policy allows.
    fn add(&mut self, found: impl IntoIterator<Item = IpAddr>) {
        for ip in found.into_iter().map(|ip| ip.to_canonical()) {
            if self.resolver.permits(self.policy, ip, self.port) {
                self.waiting.push(ip);
            } else {
                self.no_address = Some(EndReason::Policy);
            }
        }
    }

    async fn run(mut self, mut lookup: Option<AddressLookup>) -> Result<Connected, EndReason> {
        let mut next_start = Instant::now();
        loop {
            if self.attempts >= MAX_ATTEMPTS {
                lookup = None;
                self.waiting = WaitingAddresses::default();
            }
            let (is_looking_up, has_waiting, has_running) =
                (lookup.is_some(), !self.waiting.is_empty(), !self.running.is_empty());
            if !(is_looking_up || has_waiting || has_running) {
                return Err(self.failure.or(self.no_address).unwrap_or(EndReason::Failed));
            }
            tokio::select! {
                found = next_addresses(&mut lookup), if is_looking_up => match found {
                    Ok(found) => self.add(found),
                    Err(reason) => {
                        lookup = None;
                        self.no_address = self.no_address.or(Some(reason));
                    }
                },
                Some(joined) = self.running.join_next(), if has_running => match joined.unwrap_or(Err(EndReason::Failed)) {
                    Ok(connected) => return Ok(connected),
                    Err(reason) => {
                        self.failure = more_informative(self.failure, reason);
                        next_start = Instant::now();
                    }
                },
                () = sleep_until(next_start), if has_waiting => {
                    if self.start_next() {
                        let now = Instant::now();
                        next_start = now.checked_add(STAGGER_DELAY).unwrap_or(now);
                    }
                }
            }
        }
    }
}

impl Race<'_> {
    /// Starts the next attempt, unless the policy refuses private addresses and the address is this machine's. Returns
    /// whether an attempt started.
    fn start_next(&mut self) -> bool {
        let Some(ip) = self.waiting.pop() else { return false };
        if !self.policy.private_addresses() {
            let refused = match is_this_machine(ip, self.port) {
                Ok(true) => Some(EndReason::Policy),
                Ok(false) => None,
                Err(_) => Some(EndReason::ResourceLimit),
            };
            if refused.is_some() {
                self.no_address = refused;
                return false;
            }
        }
        self.attempts.increment();
        self.running.spawn(attempt(ip, self.port));
        true
    }
}

/// Whether `ip` is an address of this machine: the kernel would choose `ip` as the source of a connection to `ip`.
///
/// # Errors
/// When no file descriptor or UDP port is free.
fn is_this_machine(ip: IpAddr, port: u16) -> io::Result<bool> {
    let any = match ip {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    };
    match UdpSocket::bind((any, 0)) {
        // Connecting a UDP socket sends nothing; the kernel chooses the route and the source address.
        Ok(socket) => {
            Ok(socket.connect((ip, port)).and_then(|()| socket.local_addr()).is_ok_and(|source| source.ip() == ip))
        }
        Err(error) if error.kind() == io::ErrorKind::AddrInUse || TOO_MANY_FILES.contains(&error.raw_os_error()) => {
            Err(error)
        }
        // The machine has no addresses of this family, so an attempt fails too.
        Err(_) => Ok(false),
    }
}

async fn next_addresses(lookup: &mut Option<AddressLookup>) -> Result<Vec<IpAddr>, EndReason> {
    let Some(lookup) = lookup else { return Err(EndReason::NotFound) };
    match lookup.next().await {
        Some(found) => Ok(found),
        None => Err(lookup.failure()),
    }
}

/// Addresses that wait for their attempt. The address families alternate; IPv4 is first because most exits have IPv4.
#[derive(Default)]
pub(crate) struct WaitingAddresses {
    ipv4: VecDeque<IpAddr>,
    ipv6: VecDeque<IpAddr>,
    last_was_ipv4: bool,
}

impl WaitingAddresses {
    pub(crate) fn push(&mut self, ip: IpAddr) {
        if ip.is_ipv4() { self.ipv4.push_back(ip) } else { self.ipv6.push_back(ip) }
    }

    pub(crate) fn pop(&mut self) -> Option<IpAddr> {
        let (first, second) = match self.last_was_ipv4 {
            true => (&mut self.ipv6, &mut self.ipv4),
            false => (&mut self.ipv4, &mut self.ipv6),
        };
        let ip = first.pop_front().or_else(|| second.pop_front())?;
        self.last_was_ipv4 = ip.is_ipv4();
        Some(ip)
    }

    fn is_empty(&self) -> bool {
        self.ipv4.is_empty() && self.ipv6.is_empty()
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
        Ok(Err(error)) => Err(end_reason(&error)),
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

fn end_reason(error: &io::Error) -> EndReason {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_machine_is_recognised_by_its_route() {
        assert!(is_this_machine(Ipv4Addr::LOCALHOST.into(), 80).unwrap());
        // Addresses of other machines, with or without a route to them.
        for text in ["192.0.2.1", "2001:db8::1"] {
            assert!(!is_this_machine(text.parse().unwrap(), 80).unwrap(), "{text}");
        }
    }
}
