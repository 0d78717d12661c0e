//! The one shape in which a protocol core is driven.

use rand::CryptoRng;

use super::{Instant, LinkEvent, Transmit};

/// A protocol core above links, without I/O: it is handed events, time and randomness, and says what to send and
/// when it wants to be called next.
///
/// **Drain contract.** After every `handle_…` call the driver calls [`poll_transmit`](Self::poll_transmit) until it
/// gives `None`, and only then waits, at most until [`poll_timeout`](Self::poll_timeout). Time never runs backwards
/// from call to call.
pub trait LinkMachine {
    /// Takes in what happened to a link or a dial.
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng);

    /// Does what is due at `now`. A call before anything is due changes nothing.
    fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng);

    /// The next thing the transport must do.
    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit>;

    /// When [`handle_timeout`](Self::handle_timeout) wants to be called, if at all.
    fn poll_timeout(&self) -> Option<Instant>;
}
