//! ClientHellos with a valid cookie that wait for their DTLS handshake.
//!
//! The handshakes of accepted links run in the core's task, so they have a rate. Hellos above it wait, and networks take
//! turns, each network one hello. So a flood from many addresses delays a hello of another network by one turn of each
//! attacking network. Beside this, each source and each network has a rate of hellos that wait or begin a handshake.

use core::time::Duration;

use super::{EndpointCaps, SocketRoute, front::Cookie};
use crate::base::{Allowances, Instant, Owner, Rate, TokenBucket, TurnQueue};

/// Cap on waiting hellos, by the shares of [`TurnQueue`].
const MAX_WAITING: usize = 512;
/// Most datagrams of a waiting hello. Chromium sends a hello in two.
const MAX_FRAGMENTS: usize = 4;
/// Most bytes of such a datagram.
const MAX_FRAGMENT_LEN: usize = 1_500;
/// Time after which a waiting hello is dropped. The dialler retransmits it.
const WAIT_TIMEOUT: Duration = Duration::from_secs(3);

/// A hello with a valid cookie.
pub(super) struct WaitingHello {
    pub(super) random: [u8; 32],
    pub(super) cookie: Cookie,
    /// The first fragment of the hello, and those that have followed.
    pub(super) datagrams: Vec<Vec<u8>>,
    since: Instant,
}

impl WaitingHello {
    /// A hello whose first fragment is `datagram`. `None` if the datagram is too long.
    pub(super) fn new(now: Instant, random: [u8; 32], cookie: Cookie, datagram: &[u8]) -> Option<Self> {
        let is_short = datagram.len() <= MAX_FRAGMENT_LEN;
        is_short.then(|| Self { random, cookie, datagrams: vec![datagram.to_vec()], since: now })
    }
}

/// The waiting hellos, at most one for each route.
pub(super) struct WaitingHellos {
    rate: Rate,
    tokens: TokenBucket,
    allowances: Allowances,
    queue: TurnQueue<SocketRoute, WaitingHello>,
}

impl WaitingHellos {
    pub(super) fn new(caps: &EndpointCaps) -> Self {
        Self {
            rate: caps.handshakes,
            tokens: TokenBucket::new(),
            allowances: Allowances::new(caps.handshakes_of_source, caps.handshakes_of_source),
            queue: TurnQueue::new(MAX_WAITING),
        }
    }

    /// Adds a hello, which replaces one of the same route with another random. Returns `false` if the rate or the share of
    /// the source is reached, or that of its network and no other source has more.
    pub(super) fn push(&mut self, now: Instant, route: SocketRoute, hello: WaitingHello) -> bool {
        if let Some(waiting) = self.queue.get_mut(route) {
            if waiting.random != hello.random {
                *waiting = hello;
            }
            return true;
        }
        let owner = Owner::of_address(route.remote.ip());
        self.queue.admits(&owner)
            && self.allowances.take(now, &owner)
            && self.queue.insert(now, owner, route, hello).is_ok()
    }

    /// Adds a further fragment to the waiting hello of a route. Returns whether there is such a hello.
    pub(super) fn push_fragment(&mut self, route: SocketRoute, datagram: &[u8]) -> bool {
        let Some(waiting) = self.queue.get_mut(route) else { return false };
        if waiting.datagrams.len() < MAX_FRAGMENTS && datagram.len() <= MAX_FRAGMENT_LEN {
            waiting.datagrams.push(datagram.to_vec());
        }
        true
    }

    /// The next hello, in turns of the networks. `None` if there is none, or if the rate permits no handshake now.
    pub(super) fn pop(&mut self, now: Instant) -> Option<(SocketRoute, WaitingHello)> {
        if self.tokens.available(now, self.rate) == 0 {
            return None;
        }
        loop {
            let (route, hello) = self.queue.pop()?;
            if now.since(hello.since) < WAIT_TIMEOUT {
                return Some((route, hello));
            }
        }
    }

    /// Counts a handshake towards the rate.
    pub(super) fn count(&mut self, now: Instant) {
        self.tokens.spend(now, self.rate, 1);
    }

    /// The time from which [`Self::pop`] returns a hello.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        (!self.queue.is_empty()).then(|| self.tokens.available_at(self.rate, 1))
    }
}
