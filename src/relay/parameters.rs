//! Limits and settings of a relay.

use crate::{base::Rate, channel::ChannelParameters, flow::FlowParameters};

/// Limits and settings of a relay.
#[derive(Clone, Debug)]
pub struct RelayParameters {
    /// Parameters of its channels.
    pub channel: ChannelParameters,
    /// Congestion control of the circuits that end here.
    pub flow: FlowParameters,
    /// Cap on circuits. Default 65,536 (about 1 KiB each without streams or waiting cells). A source (IPv4 address,
    /// IPv6 /64) has at most a sixteenth over all its channels, its network (/24, /48) and a listed relay a quarter;
    /// more are refused. At the cap, a circuit of the owner closest to its share ends for a new one.
    pub circuits: usize,
    /// Rate at which a source may open circuits over all its channels, and a quarter of the rate of its network. A
    /// listed relay has the rate of a channel, over all its channels. Default 100 a second, 400 at once.
    pub creates_of_source: Rate,
    /// Cap on circuits whose CREATE lacks fragments, 4 KiB each, with the shares of `circuits`. At the cap, the oldest
    /// of the owner closest to its share is refused. Default 1,024.
    pub half_built: usize,
    /// Cap on circuits that wait for a channel to their next hop, 4 KiB each, with the shares of `circuits`. Beyond its
    /// share, the circuit that extends ends; at the cap, the longest waiting one of the owner closest to its share. The
    /// circuits of a source wait for at most 16 relays, those of a listed relay for 64. Default 4,096.
    pub dialling: usize,
    /// Whether it serves BEGIN and RESOLVE. Default no.
    pub exit: bool,
    /// Whether it serves REQUEST. Default no.
    pub delegate: bool,
    /// How circuits reach it. Default directly.
    pub reach: Reach,
}

/// How circuits reach a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// It has a public address, accepts dials, and is a gateway of volunteers.
    #[default]
    Direct,
    /// It is a volunteer: it can't be dialled, and circuits reach it over the channels that it keeps to its gateways.
    Gateways,
}

impl Default for RelayParameters {
    fn default() -> Self {
        Self {
            channel: ChannelParameters::default(),
            flow: FlowParameters::default(),
            circuits: 65_536,
            creates_of_source: Rate { per_second: 100, burst: 400 },
            half_built: 1024,
            dialling: 4096,
            exit: false,
            delegate: false,
            reach: Reach::Direct,
        }
    }
}
