//! The UDP sockets of a node, many datagrams to a system call (GSO and GRO by `quinn-udp`).
//!
//! A node that is dialled listens on one port per address family for all its neighbours. It dials from other ports:
//! when two relays dial each other at once, each association needs an address pair of its own.

use core::{fmt, net::SocketAddr, task::Poll};
use std::{
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr},
};

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, SockAddr, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::{Batch, Endpoint};
use crate::base::Instant;

/// Asked of the kernel for each socket and direction. With its usual 212 kB bulk transfers run at a tenth.
const KERNEL_BUFFER: usize = 4 << 20;
/// Bytes sent before it is time to receive: what the kernel holds for the socket meanwhile must fit its buffer.
const FLUSH: usize = 2 << 20;
/// Receive buffers, each for one coalesced run of datagrams.
const BUFFERS: usize = 8;
const BUFFER_SIZE: usize = 64 << 10;
/// Ports to dial from, for each address family: DTLS 1.2 tells two links to one address apart by our port alone.
const DIAL_PORTS: usize = 2;

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PortUse {
    /// Being dialled.
    Listen,
    /// Dialling.
    Dial,
}

/// One of a node's sockets, as its [`Endpoint`] knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// Its number.
    pub id: u8,
    /// What it is for.
    pub purpose: PortUse,
    /// Whether it speaks IPv6 (and nothing else) or IPv4.
    pub ipv6: bool,
}

/// Which of our sockets, and who at the other end.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Route {
    /// [`Port::id`].
    pub port: u8,
    /// The other end.
    pub remote: SocketAddr,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").field("port", &self.port).finish_non_exhaustive()
    }
}

/// Why there are no sockets.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The address to listen on can't be had; it is the operator's, so it is named.
    #[error("can't listen on UDP {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// Why.
        #[source]
        error: io::Error,
    },
    /// No socket to dial from.
    #[error("can't open a UDP socket: {0}")]
    Dial(#[source] io::Error),
    /// More addresses than there are port numbers.
    #[error("too many addresses to listen on")]
    TooMany,
}

/// The sockets of a node. Needs a tokio runtime with I/O.
pub struct Sockets {
    sockets: Vec<Socket>,
    buffers: Vec<u8>,
}

struct Socket {
    port: Port,
    socket: UdpSocket,
    state: UdpSocketState,
    address: SocketAddr,
}

impl Sockets {
    /// Opens one socket per address to listen on and, if `dial`, two per address family to dial from: a link that replaces a
    /// retired one takes the second. IPv6 is left out where the machine has none.
    ///
    /// # Errors
    /// [`SocketError`] if a listening address can't be had, or no socket for dialling can.
    pub fn bind(listen: &[SocketAddr], dial: bool) -> Result<Self, SocketError> {
        let mut this = Self { sockets: Vec::new(), buffers: vec![0; BUFFERS.saturating_mul(BUFFER_SIZE)] };
        for address in listen {
            this.open(*address, PortUse::Listen)?.map_err(|error| SocketError::Listen { address: *address, error })?;
        }
        if dial {
            for _ in 0..DIAL_PORTS {
                this.open((Ipv4Addr::UNSPECIFIED, 0).into(), PortUse::Dial)?.map_err(SocketError::Dial)?;
            }
            for _ in 0..DIAL_PORTS {
                if let Err(error) = this.open((Ipv6Addr::UNSPECIFIED, 0).into(), PortUse::Dial)? {
                    tracing::info!(%error, "no IPv6: dialling over IPv4 only");
                    break;
                }
            }
        }
        Ok(this)
    }

    fn open(&mut self, address: SocketAddr, purpose: PortUse) -> Result<io::Result<()>, SocketError> {
        let id = u8::try_from(self.sockets.len()).map_err(|_| SocketError::TooMany)?;
        let port = Port { id, purpose, ipv6: address.is_ipv6() };
        Ok(Socket::open(address, port).map(|socket| self.sockets.push(socket)))
    }

    /// The ports, for [`Endpoint::set_ports`].
    #[must_use]
    pub fn ports(&self) -> Vec<Port> {
        self.sockets.iter().map(|socket| socket.port).collect()
    }

    /// How many datagrams one system call can send, for [`Endpoint::set_ports`].
    #[must_use]
    pub fn segments(&self) -> usize {
        self.sockets.iter().map(|socket| socket.state.max_gso_segments()).min().unwrap_or(1)
    }

    /// The addresses that [`Self::bind`] was to listen on, with the ports the kernel chose.
    #[must_use]
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.sockets
            .iter()
            .filter(|socket| socket.port.purpose == PortUse::Listen)
            .map(|socket| socket.address)
            .collect()
    }

    /// Waits until a datagram can be received. May be dropped and called again.
    pub async fn readable(&self) {
        poll_fn(|task| {
            // An error is as good as a datagram: receiving will show it.
            let ready = self.sockets.iter().filter(|socket| socket.socket.poll_recv_ready(task).is_ready()).count();
            if ready > 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Receives what is there, a bounded number from each socket. Gives `take` the datagrams that the kernel joined, with the
    /// length of each but the last.
    pub fn receive(&mut self, mut take: impl FnMut(Route, &mut [u8], usize)) {
        for socket in &self.sockets {
            socket.receive(&mut self.buffers, &mut take);
        }
    }

    /// Sends what `endpoint` has to send, waiting while the kernel has no room. Gives whether that was all: after
    /// [`FLUSH`] bytes it is time to receive again.
    pub async fn flush(&mut self, now: Instant, endpoint: &mut Endpoint) -> bool {
        let mut sent: usize = 0;
        while let Some(batch) = endpoint.poll_datagrams(now) {
            sent = sent.saturating_add(batch.bytes.len());
            if let Some(socket) = self.sockets.get(usize::from(batch.route.port)) {
                socket.send(&batch).await;
            }
            if sent >= FLUSH {
                return false;
            }
        }
        true
    }
}

impl Socket {
    fn open(address: SocketAddr, port: Port) -> io::Result<Self> {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        if port.ipv6 {
            socket.set_only_v6(true)?;
        }
        // The kernel caps them silently.
        socket.set_recv_buffer_size(KERNEL_BUFFER)?;
        socket.set_send_buffer_size(KERNEL_BUFFER)?;
        if socket.recv_buffer_size()? < KERNEL_BUFFER / 2 {
            tracing::warn!(
                bytes = socket.recv_buffer_size()?,
                "small UDP receive buffer, transfers will be slow; raise net.core.rmem_max to {KERNEL_BUFFER}"
            );
        }
        socket.bind(&SockAddr::from(address))?;
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { address: socket.local_addr()?, port, socket, state })
    }

    fn receive(&self, buffers: &mut [u8], take: &mut impl FnMut(Route, &mut [u8], usize)) {
        let mut chunks = buffers.chunks_mut(BUFFER_SIZE);
        let mut slices: [IoSliceMut<'_>; BUFFERS] =
            core::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let mut metas = [RecvMeta::default(); BUFFERS];
        let received = self
            .socket
            .try_io(Interest::READABLE, || self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut metas));
        // Errors are either "nothing there" or an ICMP answer to something sent earlier, which anyone may forge.
        let received = received.unwrap_or(0);
        for (meta, slice) in metas.iter().zip(&mut slices).take(received) {
            let route = Route { port: self.port.id, remote: meta.addr };
            take(route, slice.get_mut(..meta.len).unwrap_or_default(), meta.stride);
        }
    }

    /// Sends a batch, in as few calls as the kernel and the network card allow.
    async fn send(&self, batch: &Batch<'_>) {
        let segment = batch.segment.max(1);
        let most = segment.saturating_mul(self.state.max_gso_segments().max(1));
        for run in batch.bytes.chunks(most) {
            // Not every card can segment; that shows in the first attempt, whose datagrams then go one by one.
            if !self.send_run(batch.route.remote, run, segment).await && run.len() > segment {
                for datagram in run.chunks(segment) {
                    self.send_run(batch.route.remote, datagram, segment).await;
                }
            }
        }
    }

    /// Sends datagrams in one call, waiting for room. Tells whether the kernel took them.
    async fn send_run(&self, destination: SocketAddr, contents: &[u8], segment: usize) -> bool {
        let segment_size = (contents.len() > segment).then_some(segment);
        let transmit = quinn_udp::Transmit { destination, ecn: None, contents, segment_size, src_ip: None };
        loop {
            let sent = self
                .socket
                .try_io(Interest::WRITABLE, || self.state.try_send(UdpSockRef::from(&self.socket), &transmit));
            match sent {
                Ok(()) => return true,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    if self.socket.writable().await.is_err() {
                        return false;
                    }
                }
                // Unreachable, too big: lost like any datagram may be; the machines above notice.
                Err(_) => return false,
            }
        }
    }
}
