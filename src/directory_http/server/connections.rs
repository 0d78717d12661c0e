//! The accepted HTTP connections of a directory: a share for each network, and eviction of slow peers.
//!
//! | cap | at the cap |
//! |---|---|
//! | 4,096 connections, fewer if the process may have fewer open files | the slowest below 4 KiB/s is evicted; without one the new connection is refused |
//! | 16 of one network, an IPv4 /24 or IPv6 /48 | the same within the network |
//!
//! A peer at an address that isn't global has no share of its own, and only the first cap holds for it. Such peers are
//! the nodes of a testnet or of one site, or all peers behind a reverse proxy on this machine.

mod metered;

use core::time::Duration;
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    net::TcpStream,
    sync::oneshot,
    time::{Instant, sleep},
};

use crate::{base::AddressPrefix, exit_policy::is_global};
pub(super) use metered::{Meter, MeteredSocket};

/// Open files left for other purposes than connections.
const OTHER_FILES: u64 = 256;
/// Bytes a second below which a peer is slow.
const SLOW: u64 = 4 << 10;
/// Age from which the rate of a connection counts.
const GRACE: Duration = Duration::from_secs(2);
/// Bytes of an answer that the system stores for a connection: few, so that the rate of a slow reader shows soon.
const SEND_BUFFER: usize = 32 << 10;

/// The limits of connections.
#[derive(Clone, Copy)]
pub(super) struct ConnectionCaps {
    /// All connections.
    pub(super) all: usize,
    /// Connections of one network.
    pub(super) of_network: usize,
    /// The network in whose share a peer is, if any.
    pub(super) network: fn(IpAddr) -> Option<AddressPrefix>,
    /// Interval in which a peer must read at least [`SLOW`] bytes a second of an answer.
    pub(super) patience: Duration,
}

impl Default for ConnectionCaps {
    fn default() -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(soft, _)| soft);
        let all = usize::try_from(files.saturating_sub(OTHER_FILES)).unwrap_or(usize::MAX).clamp(16, 4_096);
        Self { all, of_network: 16, network: network_of, patience: Duration::from_secs(5) }
    }
}

fn network_of(peer: IpAddr) -> Option<AddressPrefix> {
    let peer = peer.to_canonical();
    is_global(peer).then(|| AddressPrefix::network(peer))
}

/// The open connections.
pub(super) struct Connections {
    caps: ConnectionCaps,
    table: Mutex<OpenConnections>,
}

#[derive(Default)]
struct OpenConnections {
    next: u64,
    open: BTreeMap<u64, Open>,
    by_network: HashMap<AddressPrefix, BTreeSet<u64>>,
}

struct Open {
    network: Option<AddressPrefix>,
    opened: Instant,
    meter: Arc<Meter>,
    /// Dropped to end the connection.
    _end: oneshot::Sender<()>,
}

/// The place of an open connection. Dropped with it.
pub(super) struct HttpConnectionPlace {
    connections: Arc<Connections>,
    number: u64,
    meter: Arc<Meter>,
    evicted: oneshot::Receiver<()>,
}

impl Connections {
    pub(super) fn new(caps: ConnectionCaps) -> Arc<Self> {
        Arc::new(Self { caps, table: Mutex::default() })
    }

    /// A place for a connection of `peer`; `None` if all places that it may have are taken by peers that aren't slow.
    pub(super) fn admit(self: &Arc<Self>, now: Instant, peer: IpAddr) -> Option<HttpConnectionPlace> {
        let network = (self.caps.network)(peer);
        let mut table = self.table();
        if let Some(network) = network {
            let together = table.by_network.get(&network).cloned().unwrap_or_default();
            if together.len() >= self.caps.of_network && !table.evict_slowest(together, now) {
                return None;
            }
        }
        if table.open.len() >= self.caps.all && !table.evict_slowest_of_all(now) {
            return None;
        }
        let (end, evicted) = oneshot::channel();
        let meter = Arc::new(Meter::default());
        let number = table.insert(Open { network, opened: now, meter: Arc::clone(&meter), _end: end });
        Some(HttpConnectionPlace { connections: Arc::clone(self), number, meter, evicted })
    }

    /// Evicts the slowest peer, because this process has too many open files.
    pub(super) fn make_room(&self, now: Instant) {
        self.table().evict_slowest_of_all(now);
    }

    fn table(&self) -> MutexGuard<'_, OpenConnections> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl OpenConnections {
    fn insert(&mut self, open: Open) -> u64 {
        let number = self.next;
        self.next = self.next.saturating_add(1);
        if let Some(network) = open.network {
            self.by_network.entry(network).or_default().insert(number);
        }
        self.open.insert(number, open);
        number
    }

    fn remove(&mut self, number: u64) {
        let Some(open) = self.open.remove(&number) else { return };
        let Some(network) = open.network else { return };
        if let Some(together) = self.by_network.get_mut(&network) {
            together.remove(&number);
            if together.is_empty() {
                self.by_network.remove(&network);
            }
        }
    }

    /// Evicts the slowest of all connections; `false` if none is slow.
    fn evict_slowest_of_all(&mut self, now: Instant) -> bool {
        let all: Vec<u64> = self.open.keys().copied().collect();
        self.evict_slowest(all, now)
    }

    /// Evicts the slowest of these connections, of equally slow ones the oldest; `false` if none is slow.
    fn evict_slowest(&mut self, numbers: impl IntoIterator<Item = u64>, now: Instant) -> bool {
        let rate = |number: u64| self.open.get(&number).and_then(|open| open.slow_rate(now)).map(|rate| (rate, number));
        let slowest = numbers.into_iter().filter_map(rate).min();
        let Some((_, number)) = slowest else { return false };
        self.remove(number);
        true
    }
}

impl Open {
    /// Its bytes a second since it was opened, if they are below [`SLOW`] after [`GRACE`].
    fn slow_rate(&self, now: Instant) -> Option<u64> {
        let age = now.saturating_duration_since(self.opened);
        let milliseconds = u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = self.meter.moved().saturating_mul(1_000).checked_div(milliseconds).unwrap_or_default();
        (age >= GRACE && rate < SLOW).then_some(rate)
    }
}

impl HttpConnectionPlace {
    /// The socket of the connection, with its bytes counted.
    pub(super) fn socket(&self, socket: TcpStream) -> MeteredSocket {
        // On failure the system's buffer is longer, and a slow reader shows later.
        _ = socket2::SockRef::from(&socket).set_send_buffer_size(SEND_BUFFER);
        MeteredSocket::new(socket, Arc::clone(&self.meter))
    }

    /// Waits until the connection must end: it was evicted, or its peer reads an answer too slowly.
    pub(super) async fn ended(&mut self) {
        let patience = self.connections.caps.patience;
        let least = SLOW.saturating_mul(patience.as_millis().try_into().unwrap_or(u64::MAX)) / 1_000;
        let slow = async {
            loop {
                let before = self.meter.moved();
                sleep(patience).await;
                if self.meter.is_blocked() && self.meter.moved().saturating_sub(before) < least {
                    return;
                }
            }
        };
        tokio::select! {
            _ = &mut self.evicted => {}
            () = slow => {}
        }
    }
}

impl Drop for HttpConnectionPlace {
    fn drop(&mut self) {
        self.connections.table().remove(self.number);
    }
}

#[cfg(test)]
mod tests;
