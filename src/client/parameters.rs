//! Settings of a client: caps and times.

use core::time::Duration;

use crate::{base::RelayId, channel::ChannelParameters};

/// Settings of a client.
#[derive(Clone, Debug)]
pub struct ClientParameters {
    /// Settings of the client's channels.
    pub channels: ChannelParameters,
    /// Spare circuits kept ready. Default 2.
    pub spare_circuits: usize,
    /// Cap on circuits; the circuits of one isolation have a cap of a quarter. At a cap, a new circuit replaces a
    /// circuit without a stream of the same isolation. If there is none, the request fails. Default 512.
    pub max_circuits: usize,
    /// Cap on circuits that are being built for one isolation, and on spare circuits that are being built. Default 16.
    pub max_builds: usize,
    /// Cap on requests, including those with open streams. Default 8,192.
    pub max_streams: usize,
    /// Time for which a request waits for a circuit. Default 30 s.
    pub circuit_wait: Duration,
    /// Maximum age of a circuit that has carried no request. Each circuit is retired at a random part of this age, at
    /// least half. Default 30 min.
    pub max_spare_age: Duration,
    /// The relay directly behind the guard on every circuit. For tests and measurements only, because a fixed
    /// middle makes a client distinguishable. Default none.
    pub middle: Option<RelayId>,
}

impl Default for ClientParameters {
    fn default() -> Self {
        Self {
            channels: ChannelParameters::default(),
            spare_circuits: 2,
            max_circuits: 512,
            max_builds: 16,
            max_streams: 8192,
            circuit_wait: Duration::from_secs(30),
            max_spare_age: Duration::from_secs(30 * 60),
            middle: None,
        }
    }
}

impl ClientParameters {
    /// Cap on the circuits of one isolation.
    pub(super) const fn max_circuits_of_isolation(&self) -> usize {
        self.max_circuits.div_ceil(4)
    }
}
