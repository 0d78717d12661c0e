//! The UDP sockets of a node, with many datagrams in a system call (GSO and GRO by `quinn-udp`).
//!
//! A node listens on its configured addresses and dials from other ports. When two relays dial each other
//! simultaneously, each association needs a separate address pair.

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

/// Kernel buffer requested for each socket and direction, in bytes. With the default of 212 kB, bulk transfers have a
/// tenth of the rate.
const KERNEL_BUFFER: usize = 4 << 20;
/// Most bytes sent between two calls that receive. Datagrams that arrive meanwhile must fit the kernel's buffer.
const MAX_FLUSH: usize = 2 << 20;
/// Number of receive buffers. Each holds one run of datagrams that the kernel has joined.
const BUFFERS: usize = 8;
/// Size of a receive buffer, in bytes.
const BUFFER_SIZE: usize = 64 << 10;
/// Ports to dial from for each address family. Only the local port distinguishes two DTLS 1.2 links to one address.
const DIAL_PORTS: usize = 2;

/// Reason for which the sockets can't be opened.
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
    /// More than 256 sockets.
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
    /// Opens one socket for each listening address. With `dial`, also opens two sockets to dial from for each
    /// address family; the second is for links beside a retired link. Without IPv6 on the machine, only IPv4 is used.
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

    /// Largest number of datagrams in one system call, for [`Endpoint::set_ports`].
    #[must_use]
    pub fn max_segments(&self) -> usize {
        self.sockets.iter().map(|socket| socket.state.max_gso_segments()).min().unwrap_or(1)
    }

    /// The listening addresses of [`Self::bind`], with the port numbers assigned by the kernel.
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
            // An error counts as ready; the receive call returns it.
            let ready = self.sockets.iter().filter(|socket| socket.socket.poll_recv_ready(task).is_ready()).count();
            if ready > 0 { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
    }

    /// Receives available datagrams, a bounded number from each socket. Passes each run that the kernel has joined to
    /// `handle`, with the length of its datagrams; the last may be shorter.
    pub fn receive(&mut self, mut handle: impl FnMut(SocketRoute, &mut [u8], usize)) {
        for socket in &self.sockets {
            socket.receive(&mut self.buffers, &mut handle);
        }
    }

    /// Sends the datagrams of `endpoint`; waits while the kernel has no room. Stops after 2 MiB, so that the caller can
    /// receive. Returns whether all datagrams were sent.
    pub async fn flush(&mut self, now: Instant, endpoint: &mut Endpoint) -> bool {
        let mut sent: usize = 0;
        while let Some(batch) = endpoint.poll_datagrams(now) {
            sent = sent.saturating_add(batch.bytes.len());
            if let Some(socket) = self.sockets.get(usize::from(batch.route.port)) {
                socket.send(&batch).await;
            }
            if sent >= MAX_FLUSH {
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

    fn receive(&self, buffers: &mut [u8], handle: &mut impl FnMut(SocketRoute, &mut [u8], usize)) {
        let mut chunks = buffers.chunks_mut(BUFFER_SIZE);
        let mut slices: [IoSliceMut<'_>; BUFFERS] =
            core::array::from_fn(|_| IoSliceMut::new(chunks.next().unwrap_or_default()));
        let mut metas = [RecvMeta::default(); BUFFERS];
        let received = self
            .socket
            .try_io(Interest::READABLE, || self.state.recv(UdpSockRef::from(&self.socket), &mut slices, &mut metas));
        // An error means that there is no datagram, or that an ICMP error for an earlier datagram arrived. A third
        // party can forge an ICMP error, so errors are ignored.
        let received = received.unwrap_or(0);
        for (meta, slice) in metas.iter().zip(&mut slices).take(received) {
            let route = SocketRoute { port: self.port.id, remote: meta.addr };
            handle(route, slice.get_mut(..meta.len).unwrap_or_default(), meta.stride);
        }
    }

    /// Sends a batch in as few system calls as kernel and network card allow.
    async fn send(&self, batch: &Batch<'_>) {
        let segment = batch.segment.max(1);
        let max_run = segment.saturating_mul(self.state.max_gso_segments().max(1));
        for run in batch.bytes.chunks(max_run) {
            // Without segmentation offload the first call fails, and the datagrams are sent one by one.
            if !self.send_run(batch.route.remote, run, segment).await && run.len() > segment {
                for datagram in run.chunks(segment) {
                    self.send_run(batch.route.remote, datagram, segment).await;
                }
            }
        }
    }

    /// Sends datagrams in one system call; waits for room. Returns whether the kernel accepted them.
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
