//! What a supervised node tells the testnet that started it: one JSON object a line on standard output.
//!
//! Reports stay on the machine and name only what the person who started the testnet owns: its own processes and its
//! own client's first circuit.

use std::{io::Write as _, net::SocketAddr, time::Duration};

use serde::{Deserialize, Serialize};

/// A step in a node's start.
#[derive(Clone, Debug, Deserialize, PartialEq, Eq, Serialize)]
#[serde(tag = "report", rename_all = "snake_case")]
pub(crate) enum Report {
    /// A directory answers at `api` and signs with `authority`.
    Directory {
        /// Its HTTP API.
        api: SocketAddr,
        /// Its authority key in base 32.
        authority: String,
    },
    /// A relay listens and has handed in its descriptor.
    Registered,
    /// A volunteer can be reached.
    Reachable {
        /// The relays over which it can.
        gateways: usize,
    },
    /// A client has its first consensus.
    Consensus {
        /// Relays listed.
        relays: usize,
    },
    /// A client's first circuit stands.
    Circuit {
        /// How long the channel to the guard took.
        channel: Duration,
        /// Its hops in order.
        hops: Vec<HopReport>,
    },
    /// A client takes requests.
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
    /// The relay, shortened.
    pub relay: String,
    /// How long it took to add.
    pub took: Duration,
}

/// Where reports go: nowhere unless the node is supervised.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reporter {
    supervised: bool,
}

impl Reporter {
    /// A reporter of a node that is or isn't supervised.
    pub(crate) const fn new(supervised: bool) -> Self {
        Self { supervised }
    }

    /// Tells the supervisor, if there is one. A supervisor that has gone ends this process elsewhere
    /// (see [`super::supervised`]), so a failed write is no concern here.
    pub(crate) fn tell(self, report: &Report) {
        if self.supervised
            && let Ok(line) = serde_json::to_string(report)
        {
            let mut out = std::io::stdout().lock();
            let _ = writeln!(out, "{line}");
            let _ = out.flush();
        }
    }
}
