//! Limits and settings of a relay.

use crate::{channel::ChannelParameters, flow::FlowParameters};

/// Limits and settings of a relay.
#[derive(Clone, Debug)]
pub struct RelayParameters {
    /// Parameters of its channels.
    pub channel: ChannelParameters,
    /// Congestion control of the circuits that end here.
    pub flow: FlowParameters,
    /// Cap on circuits; more are refused. Default 65,536 (about 1 KiB each without streams or waiting cells).
    pub circuits: usize,
    /// Cap on circuits whose CREATE lacks fragments, 4 KiB each; more are refused. Default 1,024, and 64 per channel.
    pub half_built: usize,
    /// Cap on circuits that wait for a channel to their next hop, 4 KiB each; beyond it, the circuit that extends
    /// ends. Default 1,024, and 256 per channel, for at most 16 relays.
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
            half_built: 1024,
            dialling: 1024,
            exit: false,
            delegate: false,
            reach: Reach::Direct,
        }
    }
}
