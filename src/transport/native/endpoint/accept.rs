//! Links that others dial: from a ClientHello to the start of the DTLS handshake.

use core::time::Duration;

use super::{
    super::{SocketRoute, front::ClientHello, hellos::WaitingHello},
    Dtls, Ending, Endpoint, Link, LinkRole,
};
use crate::base::{Counter as _, Instant, LinkClose};

/// Time in which further hellos replace a half-open link only once, so that a dialler with several cookies can't cause a
/// handshake by each datagram. The one exception is for a dialler that repeats its attempt after a wrong certificate.
const REPLACEMENT_INTERVAL: Duration = Duration::from_secs(1);

/// Whether a half-open link is younger than [`REPLACEMENT_INTERVAL`].
fn is_young(link: &Link, now: Instant) -> bool {
    !link.opened && now.since(link.created) < REPLACEMENT_INTERVAL
}

impl Endpoint {
    /// Handles a hello that belongs to no link. A hello without a cookie is answered without state. One with a valid
    /// cookie waits for its handshake, within the rates.
    pub(super) fn handle_hello(&mut self, now: Instant, route: SocketRoute, hello: &ClientHello<'_>, datagram: &[u8]) {
        if hello.cookie.is_empty() {
            if let Some(cookie) = self.front.cookie(now, route.remote, hello) {
                self.counts.hellos_answered.increment();
                self.out.push(route, &hello.verify_request(&cookie), self.max_segments);
            }
            return;
        }
        let Some(cookie) = self.front.verified(now, route.remote, hello) else {
            self.counts.cookies_refused.increment();
            return;
        };
        let stays = self.link_at(route).is_some_and(|link| link.is_replacement && is_young(link, now));
        let hello = WaitingHello::new(now, hello.random, cookie, datagram).filter(|_| !stays);
        if hello.is_some_and(|hello| self.hellos.push(now, route, hello)) {
            self.accept_waiting(now);
        } else {
            self.counts.over_caps.increment();
        }
    }

    /// Begins the handshakes of waiting hellos that the rate permits now, in turns of the networks.
    pub(super) fn accept_waiting(&mut self, now: Instant) {
        while let Some((route, hello)) = self.hellos.pop(now) {
            self.accept(now, route, hello);
        }
    }

    /// Creates a link for a hello within the caps, and begins its handshake.
    fn accept(&mut self, now: Instant, route: SocketRoute, hello: WaitingHello) {
        let replaced = self.link_at(route);
        let is_replacement = replaced.is_some_and(|link| is_young(link, now));
        let replaced = replaced.map(|link| link.listed_rank);
        let Ok(evicted) = self.accepted.to_evict(route.remote.ip(), replaced) else {
            return self.counts.over_caps.increment();
        };
        for evicted in evicted.into_iter().flatten() {
            self.counts.evicted.increment();
            self.with_link_at(now, evicted, Link::evict);
        }
        if let Some(replaced) = self.routes.get(&route).copied() {
            self.remove(replaced, Ending::Closed(LinkClose::ByPeer));
        }
        self.hellos.count(now);
        self.counts.handshakes.increment();
        let std_now = self.clock.to_std(now);
        let dtls = match Dtls::accept(&self.dtls, &self.config.certificate, std_now, &hello.random, hello.cookie) {
            Ok(dtls) => dtls,
            Err(error) => {
                tracing::debug!(%error, "can't handle a ClientHello with a valid cookie");
                return;
            }
        };
        let deadline = now.after(self.config.caps.opening_timeout);
        let id = self.insert(now, route, LinkRole::Listener(hello.random), dtls, self.fingerprint, deadline);
        if let Some(link) = self.links.get_mut(&id) {
            link.is_replacement = is_replacement;
        }
        for mut datagram in hello.datagrams {
            self.with_link(now, id, |link, context| link.handle_datagram(context, &mut datagram));
        }
    }
}
