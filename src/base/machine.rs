//! The interface by which a driver runs a machine of the core.

use rand::CryptoRng;

use super::{Instant, LinkEvent, Transmit};

/// A machine of the core that uses links. It has no I/O. The driver passes events, time and randomness; the machine
/// returns output and its next deadline.
///
/// **Drain contract.** A batch is any number of inputs: [`handle_link`](Self::handle_link),
/// [`handle_timeout`](Self::handle_timeout), and the machine's own methods that take commands. After each batch the
/// driver calls [`handle_batch_end`](Self::handle_batch_end) once, then [`poll_transmit`](Self::poll_transmit) until it
/// returns `None`. Output may cause further link events: the driver passes them and repeats both steps, until
/// `poll_transmit` returns `None` at its first call. Only then the driver waits, at most until
/// [`poll_timeout`](Self::poll_timeout). `now` never decreases from call to call.
pub trait LinkMachine {
    /// Takes an event of a link or a dial.
    fn handle_link(&mut self, now: Instant, event: LinkEvent, rng: &mut dyn CryptoRng);

    /// Performs the actions that are due at `now`, or leaves them to [`handle_batch_end`](Self::handle_batch_end). A
    /// call before the deadline changes nothing.
    fn handle_timeout(&mut self, now: Instant, rng: &mut dyn CryptoRng);

    /// Performs the work that the inputs since the last call require, once for all these inputs, and may perform
    /// actions that are due at `now`. Without inputs and before the deadline, a call changes nothing.
    fn handle_batch_end(&mut self, now: Instant, rng: &mut dyn CryptoRng);

    /// The next output for the transport. Also refills the queues of circuits on channels that this output has made
    /// low. All other work is done in `handle_…` calls.
    fn poll_transmit(&mut self, now: Instant, rng: &mut dyn CryptoRng) -> Option<Transmit>;

    /// The deadline for [`handle_timeout`](Self::handle_timeout), if there is one.
    fn poll_timeout(&self) -> Option<Instant>;
}
