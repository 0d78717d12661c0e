//! The accepted HTTP connections of a directory or of the pages' server: a share for each network, and eviction of slow
//! peers.
//!
//! | cap | at the cap |
//! |---|---|
//! | 4,096 connections, fewer if the process may have fewer open files | the slowest connection below 4 KiB/s is evicted; if there is none, the new connection is refused |
//! | 16 of one network, an IPv4 /24 or IPv6 /48 | as above, among the connections of the network |
//!
//! For peers at addresses that aren't global, only the first cap holds. Such peers are the nodes of a testnet or of one
//! site, or all peers behind a reverse proxy on this machine. A connection of a trusted proxy counts for the network of
//! the client whose request it carries ([`ConnectionShare`]).

mod metered;

use core::{convert::Infallible, future::Future, time::Duration};
use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::sys::resource::{Resource, getrlimit};
use tokio::{
    io::{AsyncWriteExt as _, copy, sink},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore, oneshot},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use crate::{
    base::{AddressPrefix, Counter as _},
    exit_policy::is_global,
};
use metered::{Meter, MeteredSocket};

/// Open files reserved for other purposes than connections.
const RESERVED_FILES: u64 = 256;
/// Bytes a second below which a peer is slow.
const MIN_BYTES_PER_SECOND: u64 = 4 << 10;
/// Minimum age of a connection that can be evicted for its rate.
const MIN_RATED_AGE: Duration = Duration::from_secs(2);
/// Bytes of an answer that the system buffers for a connection: few, so that a slow reader is detected soon.
const SEND_BUFFER: usize = 32 << 10;

/// Pause after a failed `accept`.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Cap on refused connections that are being answered. Others are closed without an answer.
const MAX_REFUSALS: usize = 64;
const REFUSAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Accepts connections until the future is dropped, which ends all connections. Runs `serve` with a place for each.
/// `client` returns the peer whose network the connection counts for, or `None` for a proxy whose client isn't known
/// yet. A connection without a place is answered with the HTTP response `refusal`, its head and its text.
pub(crate) async fn accept_with_places<F>(
    listener: TcpListener,
    caps: ConnectionCaps,
    client: impl Fn(IpAddr) -> Option<IpAddr>,
    serve: impl Fn(TcpStream, IpAddr, HttpConnectionPlace) -> F,
    refusal: [&'static str; 2],
) -> Infallible
where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = Connections::new(caps);
    let refusals = Arc::new(Semaphore::new(MAX_REFUSALS));
    let mut tasks = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        while tasks.try_join_next().is_some() {}
        match accepted {
            Ok((socket, peer)) => match connections.admit(Instant::now(), client(peer.ip())) {
                Some(place) => {
                    // Nagle's algorithm would delay the last piece of each answer until an acknowledgement.
                    _ = socket.set_nodelay(true);
                    tasks.spawn(serve(socket, peer.ip(), place));
                }
                None => {
                    if let Ok(permit) = Arc::clone(&refusals).try_acquire_owned() {
                        tasks.spawn(refuse(socket, refusal, permit));
                    }
                }
            },
            Err(error) => {
                tracing::warn!(%error, "can't accept a connection");
                connections.evict_slow(Instant::now());
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers a connection without a place.
async fn refuse(mut socket: TcpStream, refusal: [&'static str; 2], _permit: OwnedSemaphorePermit) {
    let answer = async {
        socket.write_all(refusal.concat().as_bytes()).await?;
        socket.shutdown().await?;
        // A close with unread bytes would reset the connection before the peer has read the answer.
        copy(&mut socket, &mut sink()).await
    };
    // A failure to answer needs no action.
    _ = timeout(REFUSAL_TIMEOUT, answer).await;
}

/// The caps on connections, and the timeout of slow readers.
#[derive(Clone, Copy)]
pub(crate) struct ConnectionCaps {
    /// Maximum connections in total.
    pub(crate) all: usize,
    /// Maximum connections of one network.
    pub(crate) of_network: usize,
    /// Returns the network whose cap holds for a peer; `None` if only the cap in total holds.
    pub(crate) network: fn(IpAddr) -> Option<AddressPrefix>,
    /// Interval in which a peer must read at least [`MIN_BYTES_PER_SECOND`] bytes a second of an answer.
    pub(crate) slow_reader_timeout: Duration,
}

impl Default for ConnectionCaps {
    fn default() -> Self {
        let files = getrlimit(Resource::RLIMIT_NOFILE).map_or(1_024, |(soft, _)| soft);
        let all = usize::try_from(files.saturating_sub(RESERVED_FILES)).unwrap_or(usize::MAX).clamp(16, 4_096);
        Self { all, of_network: 16, network: network_of, slow_reader_timeout: Duration::from_secs(5) }
    }
}

/// The network of a global address.
pub(crate) fn network_of(peer: IpAddr) -> Option<AddressPrefix> {
    let peer = peer.to_canonical();
    is_global(peer).then(|| AddressPrefix::network(peer))
}

/// The open connections.
pub(crate) struct Connections {
    caps: ConnectionCaps,
    table: Mutex<ConnectionTable>,
}

/// The open connections, by number.
#[derive(Default)]
struct ConnectionTable {
    next: u64,
    open: BTreeMap<u64, OpenConnection>,
    by_network: HashMap<AddressPrefix, BTreeSet<u64>>,
}

struct OpenConnection {
    network: Option<AddressPrefix>,
    opened: Instant,
    meter: Arc<Meter>,
    /// Dropped to end the connection.
    _end: oneshot::Sender<()>,
}

/// The part of a network's share for which an open connection counts.
pub(crate) struct ConnectionShare {
    connections: Arc<Connections>,
    number: u64,
}

/// The place of an open connection among [`Connections`]. A drop frees the place.
pub(crate) struct HttpConnectionPlace {
    connections: Arc<Connections>,
    number: u64,
    meter: Arc<Meter>,
    evicted: oneshot::Receiver<()>,
}

impl Connections {
    pub(crate) fn new(caps: ConnectionCaps) -> Arc<Self> {
        Arc::new(Self { caps, table: Mutex::default() })
    }

    /// A place for a connection of `peer`; `None` for a proxy whose client isn't known yet. At a cap, evicts the
    /// slowest connection. Returns `None` if no connection is slow.
    pub(crate) fn admit(self: &Arc<Self>, now: Instant, peer: Option<IpAddr>) -> Option<HttpConnectionPlace> {
        let network = peer.and_then(self.caps.network);
        let mut table = self.table();
        if !table.admit_to_network(network, self.caps.of_network, now) {
            return None;
        }
        if table.open.len() >= self.caps.all && !table.evict_slowest_of_all(now) {
            return None;
        }
        let (end, evicted) = oneshot::channel();
        let meter = Arc::new(Meter::default());
        let number = table.insert(OpenConnection { network, opened: now, meter: Arc::clone(&meter), _end: end });
        Some(HttpConnectionPlace { connections: Arc::clone(self), number, meter, evicted })
    }

    /// Evicts the slowest connection, if one is slow. Called after a failed `accept`, usually for lack of open files.
    pub(crate) fn evict_slow(&self, now: Instant) {
        self.table().evict_slowest_of_all(now);
    }

    fn table(&self) -> MutexGuard<'_, ConnectionTable> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionTable {
    fn insert(&mut self, open: OpenConnection) -> u64 {
        let number = self.next;
        self.next.increment();
        if let Some(network) = open.network {
            self.by_network.entry(network).or_default().insert(number);
        }
        self.open.insert(number, open);
        number
    }

    fn remove(&mut self, number: u64) {
        if let Some(open) = self.open.remove(&number) {
            self.remove_from_network(number, open.network);
        }
    }

    fn remove_from_network(&mut self, number: u64, network: Option<AddressPrefix>) {
        let Some(network) = network else { return };
        if let Some(of_same_network) = self.by_network.get_mut(&network) {
            of_same_network.remove(&number);
            if of_same_network.is_empty() {
                self.by_network.remove(&network);
            }
        }
    }

    /// Whether one more connection of `network` is admitted. At the `cap` of the network, evicts its slowest
    /// connection; `false` if none is slow.
    fn admit_to_network(&mut self, network: Option<AddressPrefix>, cap: usize, now: Instant) -> bool {
        let of_same_network = network.and_then(|network| self.by_network.get(&network)).cloned().unwrap_or_default();
        of_same_network.len() < cap || self.evict_slowest(of_same_network, now)
    }

    /// Counts an open connection for `network` instead of its previous network. Returns `false` if the network is at
    /// its `cap`, or if the connection has been evicted.
    fn assign(&mut self, number: u64, network: Option<AddressPrefix>, cap: usize, now: Instant) -> bool {
        let Some(previous) = self.open.get(&number).map(|open| open.network) else { return false };
        if previous == network {
            return true;
        }
        if !self.admit_to_network(network, cap, now) {
            return false;
        }
        self.remove_from_network(number, previous);
        if let Some(network) = network {
            self.by_network.entry(network).or_default().insert(number);
        }
        if let Some(open) = self.open.get_mut(&number) {
            open.network = network;
        }
        true
    }

    /// Evicts the slowest of all connections; returns `false` if none is slow.
    fn evict_slowest_of_all(&mut self, now: Instant) -> bool {
        let all: Vec<u64> = self.open.keys().copied().collect();
        self.evict_slowest(all, now)
    }

    /// Evicts the slowest of these connections, or the oldest of several equally slow ones. Returns `false` if none is
    /// slow.
    fn evict_slowest(&mut self, numbers: impl IntoIterator<Item = u64>, now: Instant) -> bool {
        let rate = |number: u64| self.open.get(&number).and_then(|open| open.slow_rate(now)).map(|rate| (rate, number));
        let slowest = numbers.into_iter().filter_map(rate).min();
        let Some((_, number)) = slowest else { return false };
        self.remove(number);
        true
    }
}

impl OpenConnection {
    /// The connection's rate since it was opened, in bytes a second; `None` if the connection is not slow, or too new.
    fn slow_rate(&self, now: Instant) -> Option<u64> {
        let age = now.saturating_duration_since(self.opened);
        let milliseconds = u64::try_from(age.as_millis()).unwrap_or(u64::MAX).max(1);
        let rate = self.meter.transferred().saturating_mul(1_000).checked_div(milliseconds).unwrap_or_default();
        (age >= MIN_RATED_AGE && rate < MIN_BYTES_PER_SECOND).then_some(rate)
    }
}

impl ConnectionShare {
    /// Counts the connection for the network of `client`, whose request it carries. At the cap of that network, evicts
    /// the slowest connection of it. Returns `false` if none is slow.
    pub(crate) fn take(&self, now: Instant, client: IpAddr) -> bool {
        let Connections { caps, .. } = &*self.connections;
        self.connections.table().assign(self.number, (caps.network)(client), caps.of_network, now)
    }
}

impl HttpConnectionPlace {
    /// The part of a network's share that the connection takes.
    pub(crate) fn share(&self) -> ConnectionShare {
        ConnectionShare { connections: Arc::clone(&self.connections), number: self.number }
    }

    /// The socket of the connection, with its bytes counted.
    pub(crate) fn socket(&self, socket: TcpStream) -> MeteredSocket {
        // After a failure the system's buffer is longer, and a slow reader is detected later.
        _ = socket2::SockRef::from(&socket).set_send_buffer_size(SEND_BUFFER);
        MeteredSocket::new(socket, Arc::clone(&self.meter))
    }

    /// Waits until the connection must end: it was evicted, or the peer reads an answer too slowly.
    pub(crate) async fn wait_for_end(&mut self) {
        let slow_reader_timeout = self.connections.caps.slow_reader_timeout;
        let min_bytes =
            MIN_BYTES_PER_SECOND.saturating_mul(slow_reader_timeout.as_millis().try_into().unwrap_or(u64::MAX)) / 1_000;
        let slow = async {
            loop {
                let before = self.meter.transferred();
                sleep(slow_reader_timeout).await;
                if self.meter.is_blocked() && self.meter.transferred().saturating_sub(before) < min_bytes {
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
