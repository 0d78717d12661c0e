//! The UDP sockets of a node, with many datagrams in a system call (GSO and GRO by `quinn-udp`).
//!
//! A node that accepts links listens on one port per address family for all its neighbours. It dials from other
//! ports: when two relays dial each other at once, each association needs a separate address pair.

use core::{net::SocketAddr, task::Poll};
use std::{
    future::poll_fn,
    io::{self, IoSliceMut},
    net::{Ipv4Addr, Ipv6Addr},
};

use quinn_udp::{RecvMeta, UdpSockRef, UdpSocketState};
use socket2::{Domain, Protocol, SockAddr, Type};
use tokio::{io::Interest, net::UdpSocket};

use super::{Batch, Endpoint, Port, PortUse, SocketRoute};
use crate::base::Instant;

/// Kernel buffer requested for each socket and direction. With the usual 212 kB, bulk transfers run at a tenth.
const KERNEL_BUFFER: usize = 4 << 20;
/// Bytes sent before receiving again; meanwhile received datagrams must fit the kernel's buffer.
const FLUSH: usize = 2 << 20;
/// Number of receive buffers, each for one coalesced run of datagrams.
const BUFFERS: usize = 8;
const BUFFER_SIZE: usize = 64 << 10;
/// Ports to dial from, per address family: only the local port distinguishes two DTLS 1.2 links to one address.
const DIAL_PORTS: usize = 2;

/// Why no sockets could be opened.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The listening address is unavailable. The operator chose it, so the message contains it.
    #[error("can't listen on UDP {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// The cause.
        #[source]
        error: io::Error,
    },
    /// No socket to dial from could be opened.
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
    /// Opens one socket for each listening address and, if `dial`, two for each address family to dial from: a link
    /// that replaces a retired one uses the second. IPv6 is left out where the machine has none.
    ///
    /// # Errors
    /// [`SocketError`] if a listening address is unavailable, or no socket for dialling can be opened.
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
                    tracing::info!(%error, "this machine has no IPv6; dialling over IPv4 only");
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

    /// Most datagrams in one system call, for [`Endpoint::set_ports`].
    #[must_use]
    pub fn segments(&self) -> usize {
        self.sockets.iter().map(|socket| socket.state.max_gso_segments()).min().unwrap_or(1)
    }

    /// The listening addresses of [`Self::bind`], with the ports that the kernel chose.
    #[must_use]
    pub fn listening(&self) -> Vec<SocketAddr> {
        self.sockets
            .iter()
            .filter(|socket| socket.port.purpose == PortUse::Listen)
            .map(|socket| socket.address)
            .collect()
    }

    /// Waits until a datagram can be received. Cancel-safe.
    pub async fn readable(&self) {
        poll_fn(|task| {
            // An error counts as ready: receiving returns it.
            let ready = self.sockets.iter().filter(|socket| socket.socket.poll_recv_ready(task).is_ready()).count();
            if ready > 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Receives available datagrams, a bounded number from each socket. Passes each run that the kernel joined to
    /// `take`, with the length of all its datagrams but the last.
    pub fn receive(&mut self, mut take: impl FnMut(SocketRoute, &mut [u8], usize)) {
        for socket in &self.sockets {
            socket.receive(&mut self.buffers, &mut take);
        }
    }

    /// Sends the datagrams of `endpoint`, waiting while the kernel has no room. Returns whether all were sent; it
    /// stops after `FLUSH` bytes so that the caller can receive.
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
        // The kernel caps the sizes silently.
        socket.set_recv_buffer_size(KERNEL_BUFFER)?;
        socket.set_send_buffer_size(KERNEL_BUFFER)?;
        if socket.recv_buffer_size()? < KERNEL_BUFFER / 2 {
            tracing::warn!(
                bytes = socket.recv_buffer_size()?,
                "the UDP receive buffer is small, so transfers are slow; raise net.core.rmem_max to {KERNEL_BUFFER}"
            );
        }
        socket.bind(&SockAddr::from(address))?;
        socket.set_nonblocking(true)?;
        let state = UdpSocketState::new(UdpSockRef::from(&socket))?;
        let socket = UdpSocket::from_std(socket.into())?;
        Ok(Self { address: socket.local_addr()?, port, socket, state })
    }

    fn receive(&self, buffers: &mut [u8], take: &mut impl FnMut(SocketRoute, &mut [u8], usize)) {
        let mut chunks = buffers.chunks_mut(BUFFER_SIZE);
        let mut slices: [IoSliceMut<'_>; BUFFERS] =
            core::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let mut metas = [RecvMeta::default(); BUFFERS];
        let received = self
            .socket
            .try_io(Interest::READABLE, || self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut metas));
        // An error means either no datagram or an ICMP answer to an earlier datagram, which a third party can forge.
        let received = received.unwrap_or(0);
        for (meta, slice) in metas.iter().zip(&mut slices).take(received) {
            let route = SocketRoute { port: self.port.id, remote: meta.addr };
            take(route, slice.get_mut(..meta.len).unwrap_or_default(), meta.stride);
        }
    }

    /// Sends a batch, in as few calls as the kernel and the network card allow.
    async fn send(&self, batch: &Batch<'_>) {
        let segment = batch.segment.max(1);
        let most = segment.saturating_mul(self.state.max_gso_segments().max(1));
        for run in batch.bytes.chunks(most) {
            // Without segmentation in the network card the first attempt fails; its datagrams are then sent one by
            // one.
            if !self.send_run(batch.route.remote, run, segment).await && run.len() > segment {
                for datagram in run.chunks(segment) {
                    self.send_run(batch.route.remote, datagram, segment).await;
                }
            }
        }
    }

    /// Sends datagrams in one call, waiting for room. Returns whether the kernel took them.
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
                // Unreachable or too big: the datagrams count as lost.
                Err(_) => return false,
            }
        }
    }
}
