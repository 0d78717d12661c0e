//! Transports: drivers that open links between nodes and carry messages over the lanes of each link.
//!
//! The protocol core emits outputs as [`Transmit`] and receives [`LinkEvent`]s. The core has no other interface to a
//! transport. Governed by `proto/01-transport.md`. Drivers: `native` (WebRTC data channels over UDP by our own stack),
//! `browser` (WebRTC data channels of a browser) and the simulator's transport.

#[cfg(feature = "browser")]
pub mod browser;
#[cfg(feature = "native")]
#[allow(clippy::disallowed_methods, reason = "the loop of the sockets and the libraries use the system's clock")]
pub mod native;
#[cfg(feature = "native")]
pub mod sctp;
#[cfg(any(feature = "browser", test))]
mod sdp;

use rand::CryptoRng;

use crate::base::{Instant, LinkEvent, LinkMachine, Transmit};

/// A transport as a machine: its driver passes it the time, the core's outputs and the events of the network.
///
/// The drain contract: after any call that takes `&mut self` and a time, call [`Self::poll_link_event`] until it
/// returns `None`. Then send the transport's output, and call [`Self::poll_timeout`] again. Time never runs backward.
pub trait Transport {
    /// Handles an output of the core. An output for a link that has ended is ignored.
    fn handle_transmit(&mut self, now: Instant, transmit: Transmit);

    /// The next event for the core, if any.
    fn poll_link_event(&mut self) -> Option<LinkEvent>;

    /// Performs the work due at `now`. An early call does no harm.
    fn handle_timeout(&mut self, now: Instant);

    /// The deadline for [`Self::handle_timeout`], if any.
    fn poll_timeout(&self) -> Option<Instant>;
}

/// Exchanges events and outputs between `machine` and `transport` until neither has more. The caller must then send
/// the transport's output and poll both deadlines.
pub fn settle(now: Instant, machine: &mut impl LinkMachine, transport: &mut impl Transport, rng: &mut dyn CryptoRng) {
    loop {
        while let Some(event) = transport.poll_link_event() {
            machine.handle_link(now, event, rng);
        }
        machine.handle_batch_end(now, rng);
        let mut sent = false;
        while let Some(transmit) = machine.poll_transmit(now, rng) {
            transport.handle_transmit(now, transmit);
            sent = true;
        }
        if !sent {
            return;
        }
    }
}

/// A machine with its edges, which a driver runs over a transport.
pub trait Driven {
    /// The machine that uses the transport.
    fn machine(&mut self) -> &mut impl LinkMachine;

    /// Passes the machine's events to their recipients; returns whether there were any.
    fn deliver(&mut self, now: Instant) -> bool;

    /// Notifies neighbours before the links close.
    fn shut_down(&mut self, _now: Instant) {}
}

/// Performs the work of `driven` and `transport` that is due at `now`, and drains both.
pub fn turn(now: Instant, driven: &mut impl Driven, transport: &mut impl Transport, rng: &mut dyn CryptoRng) {
    if transport.poll_timeout().is_some_and(|due| due <= now) {
        transport.handle_timeout(now);
    }
    let machine = driven.machine();
    if machine.poll_timeout().is_some_and(|due| due <= now) {
        machine.handle_timeout(now, rng);
    }
    drain(now, driven, transport, rng);
}

/// Exchanges events and requests, and delivers the machine's own events, until there are no more.
pub fn drain(now: Instant, driven: &mut impl Driven, transport: &mut impl Transport, rng: &mut dyn CryptoRng) {
    loop {
        settle(now, driven.machine(), transport, rng);
        if !driven.deliver(now) {
            return;
        }
    }
}

/// The time of the next [`turn`] without earlier input.
pub fn next_turn(driven: &mut impl Driven, transport: &impl Transport) -> Option<Instant> {
    [driven.machine().poll_timeout(), transport.poll_timeout()].into_iter().flatten().min()
}
