//! Streams as asynchronous code sees them, and the plumbing that joins them to a node's core.
//!
//! The core (a client or a relay) belongs to one task. That task also owns a [`Hub`]; each open stream has a
//! [`Stream`] in the hands of some other task. Between the two lies one small piece of shared state per stream, and
//! one queue of those that rang:
//!
//! ```text
//! core's task   Hub::push ────────▶ inbound ──────▶ poll_read    application's, SOCKS's or exit's task
//!               StreamCommand ◀──── outbound ◀──── poll_write
//! ```
//!
//! Both directions are bounded in bytes, not in messages. Inbound, by the stream's credit: bytes count as consumed
//! ([`StreamCommand::Consumed`]) only when they were read, and what comes in small pieces is packed, so that many tiny
//! messages take no more memory than their bytes. Outbound, by the room the core told ([`Hub::set_room`]). A stream
//! stands at most once in the queue, however much it has to say, so the queue is as long as there are streams.
//!
//! A reader sees the end of the stream only when the other end finished cleanly; any other end is an error, after the
//! bytes that came before it.

mod hub;
mod receive_window;
mod splice;
#[cfg(test)]
mod tests;

use core::{
    fmt,
    pin::Pin,
    task::{Context, Poll, Waker},
};
use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};

use crate::wire::EndReason;

use super::connector::reason_text;

pub(crate) use self::{
    hub::{Hub, StreamCommand, StreamKey},
    splice::{reset_on_close, splice},
};

/// Consumed bytes are told the core in steps of this many, so that it isn't woken for each read. A stream's credit
/// must be at least twice as much.
const CONSUMED_STEP: usize = 32 * 1024;
/// Room in a packed chunk, the first of a stream's queue and the next ones.
const FIRST_CHUNK: usize = 4 * 1024;
const NEXT_CHUNK: usize = 64 * 1024;

/// Why a stream failed; found inside the [`io::Error`]s of a [`Stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}", reason_text(*.0))]
pub struct StreamFailed(pub EndReason);

/// The error an application sees when a stream ended for `reason`.
#[must_use]
pub fn io_error(reason: EndReason) -> io::Error {
    let kind = match reason {
        EndReason::Refused => io::ErrorKind::ConnectionRefused,
        EndReason::Unreachable => io::ErrorKind::HostUnreachable,
        EndReason::Policy => io::ErrorKind::PermissionDenied,
        EndReason::TimedOut => io::ErrorKind::TimedOut,
        EndReason::NotFound => io::ErrorKind::NotFound,
        EndReason::Reset => io::ErrorKind::ConnectionReset,
        EndReason::ResourceLimit => io::ErrorKind::ResourceBusy,
        EndReason::Done | EndReason::Failed => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, StreamFailed(reason))
}

/// A stream through the overlay: bytes both ways, each direction finished by itself.
///
/// Reading ends with zero bytes only after the other end finished cleanly; whatever else ends the stream is an error
/// that wraps [`StreamFailed`]. Shutting down the write side finishes this direction and leaves the other open.
/// Dropping a stream that hasn't finished in both directions resets it.
pub struct Stream {
    reader: Reader,
    writer: Writer,
    shared: Arc<Shared>,
}

impl Stream {
    /// The two directions, to be used at the same time.
    pub fn split(&mut self) -> (&mut Reader, &mut Writer) {
        (&mut self.reader, &mut self.writer)
    }

    /// Waits until the stream has failed, whatever else goes on.
    pub(crate) fn failure(&self) -> impl Future<Output = EndReason> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        core::future::poll_fn(move |cx| {
            let mut state = shared.lock();
            match state.failed {
                Some(reason) => Poll::Ready(reason),
                None => {
                    store_waker(&mut state.watcher, cx);
                    Poll::Pending
                }
            }
        })
    }

    /// Gives the stream up and tells the other end why.
    pub fn reset(self, reason: EndReason) {
        self.shared.lock().abandoned = Some(reason);
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").finish_non_exhaustive()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let mut state = self.shared.lock();
        state.abandoned.get_or_insert(EndReason::Reset);
        state.inbound.clear();
        self.shared.ring(&mut state);
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.reader).poll_read(cx, buf)
    }
}

impl AsyncBufRead for Stream {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        Pin::new(&mut self.get_mut().reader).poll_fill_buf(cx)
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        Pin::new(&mut self.reader).consume(amount);
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.writer).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.writer).poll_shutdown(cx)
    }
}

/// The direction of a [`Stream`] that comes from the other end.
pub struct Reader {
    shared: Arc<Shared>,
    /// Taken from the shared state, so that copying holds no lock.
    chunks: VecDeque<BytesMut>,
    /// Bytes read but not yet told the core.
    untold: usize,
}

impl fmt::Debug for Reader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reader").finish_non_exhaustive()
    }
}

impl Reader {
    fn tell_consumed(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        self.tell_consumed_locked(&mut state);
    }

    fn tell_consumed_locked(&mut self, state: &mut State) {
        state.consumed = state.consumed.saturating_add(core::mem::take(&mut self.untold));
        if state.consumed >= CONSUMED_STEP {
            self.shared.ring(state);
        }
    }

    /// Makes sure that there is a chunk; `false` at the clean end.
    fn poll_chunk(&mut self, cx: &Context<'_>) -> Poll<io::Result<bool>> {
        if !self.chunks.is_empty() {
            return Poll::Ready(Ok(true));
        }
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        self.tell_consumed_locked(&mut state);
        core::mem::swap(&mut self.chunks, &mut state.inbound);
        if !self.chunks.is_empty() {
            return Poll::Ready(Ok(true));
        }
        match (state.failed, state.peer_finished) {
            (Some(reason), _) => Poll::Ready(Err(io_error(reason))),
            (None, true) => Poll::Ready(Ok(false)),
            (None, false) => {
                store_waker(&mut state.reader, cx);
                Poll::Pending
            }
        }
    }

    fn advance(&mut self, amount: usize) {
        if let Some(chunk) = self.chunks.front_mut() {
            let amount = amount.min(chunk.len());
            chunk.advance(amount);
            self.untold = self.untold.saturating_add(amount);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        if self.untold >= CONSUMED_STEP {
            self.tell_consumed();
        }
    }
}

impl AsyncRead for Reader {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if buf.remaining() == 0 {
            return Poll::Ready(Ok(()));
        }
        if !core::task::ready!(self.poll_chunk(cx))? {
            return Poll::Ready(Ok(()));
        }
        while let Some(chunk) = self.chunks.front() {
            let amount = chunk.len().min(buf.remaining());
            if amount == 0 {
                break;
            }
            buf.put_slice(chunk.get(..amount).unwrap_or_default());
            self.advance(amount);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncBufRead for Reader {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let reader = self.get_mut();
        core::task::ready!(reader.poll_chunk(cx))?;
        Poll::Ready(Ok(reader.chunks.front().map_or(&[], |chunk| chunk.as_ref())))
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.advance(amount);
    }
}

/// The direction of a [`Stream`] that goes to the other end.
pub struct Writer {
    shared: Arc<Shared>,
}

impl fmt::Debug for Writer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Writer").finish_non_exhaustive()
    }
}

impl Writer {
    /// How many bytes may be written now, at least one.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        Self::poll_room_locked(&mut self.shared.lock(), cx)
    }

    fn poll_room_locked(state: &mut State, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(reason) = state.failed {
            return Poll::Ready(Err(io_error(reason)));
        }
        if state.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match state.room.saturating_sub(state.outbound.len()) {
            0 => {
                store_waker(&mut state.writer, cx);
                Poll::Pending
            }
            room => Poll::Ready(Ok(room)),
        }
    }

    /// Hands over a buffer no longer than [`Self::poll_room`] said, without copying it if nothing is waiting.
    pub(crate) fn hand_over(&self, buffer: BytesMut) {
        let mut state = self.shared.lock();
        if state.outbound.is_empty() {
            state.outbound = buffer;
        } else {
            state.outbound.extend_from_slice(&buffer);
        }
        self.shared.ring(&mut state);
    }

    /// Finishes this direction after what was written.
    pub(crate) fn finish(&self) {
        let mut state = self.shared.lock();
        if !state.finished {
            state.finished = true;
            self.shared.ring(&mut state);
        }
    }
}

impl AsyncWrite for Writer {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.shared.lock();
        let room = core::task::ready!(Self::poll_room_locked(&mut state, cx))?;
        let taken = buf.get(..room.min(buf.len())).unwrap_or_default();
        state.outbound.extend_from_slice(taken);
        self.shared.ring(&mut state);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Nothing is held back: a write rings.
        Poll::Ready(self.shared.lock().failed.map_or(Ok(()), |reason| Err(io_error(reason))))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(self.shared.lock().failed.map_or(Ok(()), |reason| Err(io_error(reason))))
    }
}

/// What the two ends of the plumbing share of one stream.
struct Shared {
    key: StreamKey,
    /// Where the stream puts itself when it has something to say.
    bell: mpsc::UnboundedSender<Arc<Shared>>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// From the other end, not yet taken by the reader; at most the stream's credit.
    inbound: VecDeque<BytesMut>,
    /// The other end finished cleanly; all it sent is in `inbound` or further.
    peer_finished: bool,
    /// The stream is over for this reason; nothing goes either way any more.
    failed: Option<EndReason>,
    /// Bytes that were read and the core doesn't know of yet.
    consumed: usize,
    /// To the other end, not yet taken by the core; at most `room`.
    outbound: BytesMut,
    /// What the core takes in all, `outbound` included.
    room: usize,
    /// This end has nothing more to write.
    finished: bool,
    /// The core knows of that.
    finish_told: bool,
    /// The stream was dropped; if it wasn't over, it is to be reset for this reason.
    abandoned: Option<EndReason>,
    /// The stream stands in the queue.
    rung: bool,
    reader: Option<Waker>,
    writer: Option<Waker>,
    /// Who waits for a failure alone.
    watcher: Option<Waker>,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the stream in the core's queue, unless it stands there.
    fn ring(self: &Arc<Self>, state: &mut State) {
        if !state.rung {
            state.rung = true;
            // Fails only when the core's task is gone; the streams have failed then.
            let _ = self.bell.send(Arc::clone(self));
        }
    }
}

impl State {
    /// Appends to `inbound`, packed into chunks.
    fn append(&mut self, bytes: &[u8]) {
        if let Some(last) = self.inbound.back_mut()
            && last.capacity().saturating_sub(last.len()) >= bytes.len()
        {
            last.extend_from_slice(bytes);
            return;
        }
        let size = if self.inbound.is_empty() { FIRST_CHUNK } else { NEXT_CHUNK };
        let mut chunk = BytesMut::with_capacity(size.max(bytes.len()));
        chunk.extend_from_slice(bytes);
        self.inbound.push_back(chunk);
    }
}

fn store_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
