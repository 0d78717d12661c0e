//! Transports: what carries links between nodes.
//!
//! A transport opens links, carries messages over their lanes and says when a link is gone. The protocol core asks
//! through [`Transmit`] and is told through [`LinkEvent`]; it knows nothing else of what is beneath. Governed by
//! `proto/01-transport.md`. Drivers: `native` (WebRTC data channels over UDP), `browser` (the same by
//! a browser's own stack) and the simulator's.

#[cfg(feature = "browser")]
pub mod browser;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "its sockets' loop keeps the machine's time, and so do its libraries")]
pub mod native;
#[cfg(feature = "native")]
pub mod sctp;
#[cfg(any(feature = "browser", test))]
mod sdp;

use rand::CryptoRng;

use crate::base::{Instant, LinkEvent, LinkMachine, Transmit};

/// A transport without I/O: a machine that a driver hands time, requests and datagrams.
///
/// The drain contract: after any call that takes `&mut self` and a time, call [`Self::poll_link_event`] until it gives
/// `None`, then send what the transport has to send, then ask [`Self::poll_timeout`] anew. Time never runs backward.
pub trait Transport {
    /// Takes a request of the core's. A request about a link that is gone is passed over.
    fn handle_transmit(&mut self, now: Instant, transmit: Transmit);

    /// The next thing that the core must know, if there is any.
    fn poll_link_event(&mut self) -> Option<LinkEvent>;

    /// Does what has become due by `now`. Calling it early does nothing.
    fn handle_timeout(&mut self, now: Instant);

    /// When [`Self::handle_timeout`] wants to be called, if ever.
    fn poll_timeout(&self) -> Option<Instant>;
}

/// Lets `core` and `transport` talk until neither has anything more to say to the other: half of the drain contract of both.
pub fn settle(now: Instant, core: &mut impl LinkMachine, transport: &mut impl Transport, rng: &mut dyn CryptoRng) {
    loop {
        while let Some(event) = transport.poll_link_event() {
            core.handle_link(now, event, rng);
        }
        let mut said = false;
        while let Some(transmit) = core.poll_transmit(now, rng) {
            transport.handle_transmit(now, transmit);
            said = true;
        }
        if !said {
            return;
        }
    }
}
