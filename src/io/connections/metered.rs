//! A TCP socket that counts its bytes, and records whether bytes to write wait for the peer.

use core::{
    pin::Pin,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    task::{Context, Poll},
};
use std::{
    io::{self, IoSlice},
    sync::Arc,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
};

/// The counts of a socket.
#[derive(Default)]
pub(crate) struct Meter {
    /// Bytes read and written.
    transferred: AtomicU64,
    /// Whether the last write waits for the peer.
    is_blocked: AtomicBool,
}

impl Meter {
    /// Bytes read and written.
    pub(super) fn transferred(&self) -> u64 {
        self.transferred.load(Ordering::Relaxed)
    }

    /// Whether bytes to write wait for the peer.
    pub(super) fn is_blocked(&self) -> bool {
        self.is_blocked.load(Ordering::Relaxed)
    }

    #[cfg(test)]
    pub(super) fn set_blocked(&self) {
        self.is_blocked.store(true, Ordering::Relaxed);
    }

    /// Counts bytes read or written.
    pub(super) fn add(&self, bytes: usize) {
        self.transferred.fetch_add(u64::try_from(bytes).unwrap_or_default(), Ordering::Relaxed);
    }

    /// Records the outcome of a write, and returns it.
    fn record_write(&self, written: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        self.is_blocked.store(written.is_pending(), Ordering::Relaxed);
        if let Poll::Ready(Ok(bytes)) = &written {
            self.add(*bytes);
        }
        written
    }
}

/// A socket with its [`Meter`].
pub(crate) struct MeteredSocket {
    socket: TcpStream,
    meter: Arc<Meter>,
}

impl MeteredSocket {
    pub(super) const fn new(socket: TcpStream, meter: Arc<Meter>) -> Self {
        Self { socket, meter }
    }
}

impl AsyncRead for MeteredSocket {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.socket).poll_read(cx, buffer);
        self.meter.add(buffer.filled().len().saturating_sub(before));
        read
    }
}

impl AsyncWrite for MeteredSocket {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write(cx, bytes);
        self.meter.record_write(written)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.socket).poll_write_vectored(cx, slices);
        self.meter.record_write(written)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }
}
