//! Progress reports of a supervised node to its testnet: one JSON object a line on standard output.
//!
//! Reports stay on the machine. They name only processes of the testnet and the first circuit of its client.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

/// A step in a node's start.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub(crate) enum Report {
    /// A directory listens at `api` and signs with `authority`.
    Directory {
        /// Its HTTP API.
        api: SocketAddr,
        /// Its authority key in base 32.
        authority: String,
    },
    /// A relay listens and has published its descriptor.
    Published,
    /// A volunteer can be reached.
    Reachable {
        /// The number of gateways over which it can be reached.
        gateways: usize,
    },
    /// A client has its first consensus.
    Consensus {
        /// The number of relays listed.
        relays: usize,
    },
    /// A client has built its first circuit.
    Circuit {
        /// Time to open the channel to the guard.
        channel: Duration,
        /// Its hops in order.
        hops: Vec<HopReport>,
    },
    /// A client accepts requests.
    Ready {
        /// Its SOCKS5 port.
        socks: SocketAddr,
        /// Its HTTP proxy port.
        http: SocketAddr,
        /// Its search page.
        page: SocketAddr,
    },
}

/// One hop of the first circuit.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
pub(crate) struct HopReport {
    /// The relay's identity, shortened.
    pub relay: String,
    /// The time of the handshake with the hop.
    pub handshake_time: Duration,
}

/// The recipient of reports: standard output if the node is supervised, otherwise none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reporter {
    supervised: bool,
}

impl Reporter {
    pub(crate) const fn new(supervised: bool) -> Self {
        Self { supervised }
    }

    /// Sends a report to the supervisor, if there is one. A write error is ignored, because [`super::supervised`] ends
    /// this process after its supervisor.
    pub(crate) fn send(self, report: &Report) {
        if self.supervised
            && let Ok(line) = serde_json::to_string(report)
        {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}");
            let _ = out.flush();
        }
    }
}
