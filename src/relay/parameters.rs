//! Limits and settings of a relay.

use crate::{base::Rate, channel::ChannelParameters, flow::FlowParameters};

/// Limits and settings of a relay.
#[derive(Clone, Debug)]
pub struct RelayParameters {
    /// Parameters of the relay's channels.
    pub channel: ChannelParameters,
    /// Congestion control of this relay's exit streams.
    pub flow: FlowParameters,
    /// Cap on circuits. Default 65,536 (about 1 KiB each without waiting cells, another KiB after a stream message). The share of a source (IPv4
    /// address, IPv6 /64) over all its channels is a sixteenth; the share of its network (/24, /48), and of a listed
    /// relay, is a quarter. Beyond the share, circuits are refused. At the cap, a new circuit replaces the least used
    /// circuit of the owner closest to its share.
    pub circuits: usize,
    /// Rate at which a source may open circuits over all its channels. The rate of its network is four times as high. A
    /// listed relay has the rate of one channel, over all its channels. Default 100 a second, with a burst of 400.
    pub creates_of_source: Rate,
    /// Cap on CREATEs that lack fragments, 4 KiB each, with the shares of `circuits`. At the cap, the oldest CREATE of
    /// the owner closest to its share is refused. Default 1,024.
    pub partial_creates: usize,
    /// Cap on complete CREATEs that wait for their handshake, 4 KiB each, with the shares of `circuits`, which exceed
    /// the bursts of CREATEs. At the cap, the oldest CREATE of the owner closest to its share is refused. Default 8,192.
    pub waiting_creates: usize,
    /// Rate of the handshakes of all circuits, which run in the core's task and delay its cells. Default 2,000 a second:
    /// at about 0.2 ms each, less than half of the task's time. The burst, default 4, is the maximum in one batch, so
    /// that the handshakes of a batch delay its cells by less than 1 ms.
    pub circuit_handshakes: Rate,
    /// Cap on circuits that wait for a channel to their next hop, for `creates_to_relay` or for an answered CREATE, 4 KiB
    /// each, with the shares of `circuits`. Beyond the share of its owner, the circuit that extends ends. At the cap, the circuit that has
    /// waited longest, of the owner closest to its share, ends. The circuits of a source wait for at most 16 relays,
    /// those of a listed relay for 64. Default 4,096.
    pub waiting_extends: usize,
    /// Rate of CREATEs to each next relay. CREATEs above the rate wait, and the owners of the circuits take turns: one
    /// CREATE of the clients, one of the listed relays. Below
    /// the rate that the next relay accepts of this relay (`ChannelParameters::creates_of_relay`), so that it refuses
    /// no CREATE. Default 450 a second, in bursts of up to 500.
    pub creates_to_relay: Rate,
    /// Number of unanswered CREATEs to a next relay at first. The number grows while answers are prompt, and shrinks
    /// while they are late. Further CREATEs wait as those above `creates_to_relay`. Default 16.
    pub create_window: usize,
    /// Cap on streams, RESOLVEs and delegated requests as an exit, with the shares of `circuits`. At the cap, a new
    /// stream replaces the least active stream of the owner closest to its share. A new stream of an owner at its share,
    /// or as close to it, replaces the least active stream of the same owner, up to a rate of its circuit. Beyond that
    /// rate, the new stream is refused. Default 4,096.
    pub exit_streams: usize,
    /// Cap on records of streams of all circuits: recently closed streams, and messages that origins have not accepted,
    /// about 100 bytes each, with the shares of `circuits`. At the cap, the circuit with the most records, of the owner
    /// closest to its share, forgets the older half of its closed streams. Without closed streams, it ends. Default
    /// 524,288.
    pub stream_records: usize,
    /// Whether the relay serves BEGIN and RESOLVE. Default no.
    pub exit: bool,
    /// Whether the relay serves REQUEST. Default no.
    pub delegate: bool,
    /// How circuits reach the relay. Default [`Reach::Direct`].
    pub reach: Reach,
}

/// How circuits reach a relay.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Reach {
    /// The relay has a public address, accepts dials, and is a gateway of volunteers.
    #[default]
    Direct,
    /// The relay is a volunteer: it can't be dialled, and circuits reach it over its channels to gateways.
    Gateways,
}

impl Default for RelayParameters {
    fn default() -> Self {
        Self {
            channel: ChannelParameters::default(),
            flow: FlowParameters::default(),
            circuits: 65_536,
            creates_of_source: Rate { per_second: 100, burst: 400 },
            partial_creates: 1024,
            waiting_creates: 8192,
            circuit_handshakes: Rate { per_second: 2000, burst: 4 },
            waiting_extends: 4096,
            creates_to_relay: Rate { per_second: 450, burst: 500 },
            create_window: 16,
            exit_streams: 4096,
            stream_records: 512 * 1024,
            exit: false,
            delegate: false,
            reach: Reach::Direct,
        }
    }
}
