//! The times at which the client ends circuits that carry no stream.
//!
//! One event can make several circuits of a client unnecessary: a new consensus, or a guard that is reachable again.
//! Ends at one instant, or at the ticks of one timer, would show the relays behind the guard that the circuits belong
//! to one client. Therefore each circuit ends at a separate random time.

use core::time::Duration;

use rand::{CryptoRng, RngExt as _};

use crate::{
    base::{Deadlines, Instant},
    client::PooledCircuitKey,
};

/// Minimum time without a stream before the end of a circuit that accepts further requests.
const IDLE_TIME: Duration = Duration::from_secs(120);
/// Maximum of the random part of the time to the end, uniformly distributed.
const MAX_END_DELAY: Duration = Duration::from_secs(240);

/// The scheduled ends of circuits. Contains only circuits of the pool without a stream.
#[derive(Default)]
pub(super) struct CircuitEnds(Deadlines<PooledCircuitKey>);

impl CircuitEnds {
    /// Sets a random end of a circuit without a stream, unless the circuit has one. `is_retired` states whether the
    /// circuit accepts no further requests.
    pub(super) fn schedule(&mut self, now: Instant, key: PooledCircuitKey, is_retired: bool, rng: &mut dyn CryptoRng) {
        if self.0.contains(key) {
            return;
        }
        let idle_time = if is_retired { Duration::ZERO } else { IDLE_TIME };
        let delay = MAX_END_DELAY.mul_f64(rng.random::<f64>());
        self.0.set(key, now.after(idle_time).after(delay));
    }

    /// The circuit has a stream or has ended.
    pub(super) fn cancel(&mut self, key: PooledCircuitKey) {
        self.0.remove(key);
    }

    /// Removes and returns a circuit whose end is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<PooledCircuitKey> {
        self.0.pop_due(now)
    }

    /// The earliest end.
    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        self.0.earliest()
    }
}
