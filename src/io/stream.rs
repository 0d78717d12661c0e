//! Asynchronous streams through the overlay, and the queues between them and a node's core.
//!
//! One task owns the core (of a client or a relay) and a `Hub`. Other tasks own the [`Stream`] of each open stream. The
//! two sides share a small state for each stream, and one queue of streams with pending output for the core:
//!
//! ```text
//! core's task   Hub::push ────────▶ received ─────▶ poll_read    application's, SOCKS's or exit's task
//!               StreamCommand ◀──── outgoing ◀──── poll_write
//! ```
//!
//! The directions of a stream, received and outgoing, are named from this end, at an origin as at an exit. Both queues
//! are capped in bytes, not in messages. The stream's credit caps the received bytes, which count as consumed
//! (`StreamCommand::Consumed`) once they are read. Small pieces are packed, so that many small messages occupy little
//! more memory than their bytes. The core's room (`Hub::set_room`) caps the outgoing bytes. A stream is in the queue at
//! most once, so the queue is no longer than the number of streams.
//!
//! A reader gets the end of the stream only if the peer finished cleanly. Any other end is an error, after the bytes
//! that were received before it.

mod hub;
mod receive_window;
mod splice;
#[cfg(test)]
mod tests;

use core::{
    fmt,
    pin::Pin,
    task::{Context, Poll, Waker},
    time::Duration,
};
use std::{
    collections::VecDeque,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncBufRead, AsyncRead, AsyncWrite, ReadBuf},
    sync::mpsc,
};

use crate::wire::EndReason;

pub(crate) use self::{
    hub::Hub,
    splice::{HALF_CLOSED_TIMEOUT, SocketEnd, await_acknowledged, idle, reset_on_close, splice},
};

/// Number of consumed bytes after which they are reported to the core, so that only some reads wake the core's task. A
/// stream's credit must be at least twice this step.
const CONSUMED_STEP: usize = 32 * 1024;
/// Time limit for sending the last bytes of a stream that is reset.
const FAIL_TIMEOUT: Duration = Duration::from_secs(60);
/// Capacity of the first chunk in a stream's queue, in bytes.
const FIRST_CHUNK_LEN: usize = 4 * 1024;
/// Capacity of the following chunks, in bytes.
const NEXT_CHUNK_LEN: usize = 64 * 1024;

/// The reason of a stream's failure, wrapped in the [`io::Error`]s of a [`Stream`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StreamFailed(pub EndReason);

/// The error for an application whose stream ended for `reason`.
#[must_use]
pub fn io_error(reason: EndReason) -> io::Error {
    let kind = match reason {
        EndReason::Refused => io::ErrorKind::ConnectionRefused,
        EndReason::Unreachable | EndReason::LookupFailed => io::ErrorKind::HostUnreachable,
        EndReason::Policy => io::ErrorKind::PermissionDenied,
        EndReason::TimedOut => io::ErrorKind::TimedOut,
        EndReason::NotFound => io::ErrorKind::NotFound,
        EndReason::Reset => io::ErrorKind::ConnectionReset,
        EndReason::ResourceLimit => io::ErrorKind::ResourceBusy,
        EndReason::Done | EndReason::Failed => io::ErrorKind::ConnectionAborted,
    };
    io::Error::new(kind, StreamFailed(reason))
}

/// A stream through the overlay: bytes in both directions, each of which finishes independently.
///
/// A read of zero bytes means that the other end finished cleanly; any other end is an error that wraps
/// [`StreamFailed`]. Shutdown finishes the write direction and leaves the other open. Dropping a stream that hasn't
/// finished in both directions resets it.
pub struct Stream {
    reader: StreamReader,
    writer: StreamWriter,
    shared: Arc<StreamShared>,
}

impl Stream {
    /// The two directions, for concurrent use.
    pub fn split(&mut self) -> (&mut StreamReader, &mut StreamWriter) {
        (&mut self.reader, &mut self.writer)
    }

    /// Waits for the failure of the stream, independently of reads and writes.
    pub(crate) fn failure(&self) -> impl Future<Output = EndReason> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        core::future::poll_fn(move |cx| {
            let mut state = shared.lock();
            match state.failed {
                Some(reason) => Poll::Ready(reason),
                None => {
                    store_waker(&mut state.failure_waker, cx);
                    Poll::Pending
                }
            }
        })
    }

    /// Waits until the stream has failed and its unread bytes are discarded. Only one task may wait for this or for
    /// [`Self::failure`].
    fn discarded(&self) -> impl Future<Output = ()> + Send + use<> {
        let shared = Arc::clone(&self.shared);
        core::future::poll_fn(move |cx| {
            let mut state = shared.lock();
            if state.discarded {
                return Poll::Ready(());
            }
            store_waker(&mut state.failure_waker, cx);
            Poll::Pending
        })
    }

    /// Resets the stream. The other end gets the reason.
    pub fn reset(self, reason: EndReason) {
        self.shared.lock().dropped = Some(reason);
    }

    /// Resets the stream after the bytes already written, as far as they are sent within [`FAIL_TIMEOUT`].
    pub(crate) async fn reset_after_bytes(self, reason: EndReason) {
        {
            let mut state = self.shared.lock();
            state.finished = true;
            state.failing = Some(reason);
            self.shared.enqueue(&mut state);
        }
        if tokio::time::timeout(FAIL_TIMEOUT, self.failure()).await.is_err() {
            // Otherwise the stream would count as finished, and the other end would get no reset.
            self.shared.lock().finished = false;
            self.reset(reason);
        }
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
        state.dropped.get_or_insert(EndReason::Reset);
        state.received.clear();
        self.shared.forget_unread(&mut state, usize::MAX);
        self.shared.enqueue(&mut state);
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

/// The receiving direction of a [`Stream`].
pub struct StreamReader {
    shared: Arc<StreamShared>,
    /// Chunks moved out of the shared state, so that copies need no lock.
    chunks: VecDeque<BytesMut>,
    /// Bytes that were read and are not reported to the core.
    unreported: usize,
}

impl fmt::Debug for StreamReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamReader").finish_non_exhaustive()
    }
}

impl StreamReader {
    fn report_consumed(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        self.report_consumed_locked(&mut state);
    }

    fn report_consumed_locked(&mut self, state: &mut DuplexState) {
        let consumed = core::mem::take(&mut self.unreported);
        self.shared.forget_unread(state, consumed);
        state.consumed = state.consumed.saturating_add(consumed);
        if state.consumed >= CONSUMED_STEP {
            self.shared.enqueue(state);
        }
    }

    /// Waits for a chunk. Returns false at the clean end of the stream.
    fn poll_chunk(&mut self, cx: &Context<'_>) -> Poll<io::Result<bool>> {
        if !self.chunks.is_empty() {
            return Poll::Ready(Ok(true));
        }
        let shared = Arc::clone(&self.shared);
        let mut state = shared.lock();
        self.report_consumed_locked(&mut state);
        core::mem::swap(&mut self.chunks, &mut state.received);
        if !self.chunks.is_empty() {
            return Poll::Ready(Ok(true));
        }
        match (state.failed, state.peer_finished) {
            // Discarded bytes are missing before the peer's end.
            (Some(reason), _) if state.discarded => Poll::Ready(Err(io_error(reason))),
            // The peer finished before the failure, so all its bytes have been read.
            (_, true) => Poll::Ready(Ok(false)),
            (Some(reason), false) => Poll::Ready(Err(io_error(reason))),
            (None, false) => {
                store_waker(&mut state.reader_waker, cx);
                Poll::Pending
            }
        }
    }

    fn advance(&mut self, amount: usize) {
        if let Some(chunk) = self.chunks.front_mut() {
            let amount = amount.min(chunk.len());
            chunk.advance(amount);
            self.unreported = self.unreported.saturating_add(amount);
            if chunk.is_empty() {
                self.chunks.pop_front();
            }
        }
        if self.unreported >= CONSUMED_STEP {
            self.report_consumed();
        }
    }
}

impl AsyncRead for StreamReader {
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

impl AsyncBufRead for StreamReader {
    fn poll_fill_buf(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<&[u8]>> {
        let reader = self.get_mut();
        core::task::ready!(reader.poll_chunk(cx))?;
        Poll::Ready(Ok(reader.chunks.front().map_or(&[], |chunk| chunk.as_ref())))
    }

    fn consume(mut self: Pin<&mut Self>, amount: usize) {
        self.advance(amount);
    }
}

/// The sending direction of a [`Stream`].
pub struct StreamWriter {
    shared: Arc<StreamShared>,
}

impl fmt::Debug for StreamWriter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StreamWriter").finish_non_exhaustive()
    }
}

impl StreamWriter {
    /// Waits for room; returns the number of bytes that may be written, at least one.
    pub(crate) fn poll_room(&self, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        Self::poll_room_locked(&mut self.shared.lock(), cx)
    }

    fn poll_room_locked(state: &mut DuplexState, cx: &Context<'_>) -> Poll<io::Result<usize>> {
        if let Some(reason) = state.failed {
            return Poll::Ready(Err(io_error(reason)));
        }
        if state.finished {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        match state.room.saturating_sub(state.outgoing.len()) {
            0 => {
                store_waker(&mut state.writer_waker, cx);
                Poll::Pending
            }
            room => Poll::Ready(Ok(room)),
        }
    }

    /// Queues a buffer within the room of [`Self::poll_room`]. The buffer is not copied if the queue is empty.
    pub(crate) fn write_buffer(&self, buffer: BytesMut) {
        let mut state = self.shared.lock();
        if state.outgoing.is_empty() {
            state.outgoing = buffer;
        } else {
            state.outgoing.extend_from_slice(&buffer);
        }
        self.shared.enqueue(&mut state);
    }

    /// Finishes this direction after the bytes already written.
    pub(crate) fn finish(&self) {
        let mut state = self.shared.lock();
        if !state.finished {
            state.finished = true;
            self.shared.enqueue(&mut state);
        }
    }
}

impl AsyncWrite for StreamWriter {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let mut state = self.shared.lock();
        let room = core::task::ready!(Self::poll_room_locked(&mut state, cx))?;
        let fitting = buf.get(..room.min(buf.len())).unwrap_or_default();
        state.outgoing.extend_from_slice(fitting);
        self.shared.enqueue(&mut state);
        Poll::Ready(Ok(fitting.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Each write queues the stream, so a flush has no work.
        Poll::Ready(self.shared.lock().failed.map_or(Ok(()), |reason| Err(io_error(reason))))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish();
        Poll::Ready(self.shared.lock().failed.map_or(Ok(()), |reason| Err(io_error(reason))))
    }
}

/// The state that hub and stream share.
struct StreamShared {
    /// The core's identifier of the stream, as a number.
    id: u64,
    /// The queue of streams with pending output for the core.
    queue: mpsc::UnboundedSender<Arc<StreamShared>>,
    /// The unread bytes of all streams of the hub.
    all_unread: Arc<AtomicUsize>,
    state: Mutex<DuplexState>,
}

#[derive(Default)]
struct DuplexState {
    /// Bytes from the other end that are not read yet; at most the stream's credit.
    received: VecDeque<BytesMut>,
    /// The number of bytes from the other end that the reader has not reported as read.
    unread: usize,
    /// Whether the other end finished cleanly. All its bytes have then been appended to `received`.
    peer_finished: bool,
    /// The stream failed for this reason; no bytes move in either direction.
    failed: Option<EndReason>,
    /// The stream has failed, and its unread bytes are discarded.
    discarded: bool,
    /// Bytes that were read and are not yet in a command to the core.
    consumed: usize,
    /// Bytes for the other end that are not yet in a command to the core; at most `room`.
    outgoing: BytesMut,
    /// Maximum length of `outgoing`.
    room: usize,
    /// Whether this end has finished writing.
    finished: bool,
    /// Whether `finished` was reported to the core.
    finish_reported: bool,
    /// The reason for which the stream must end after the bytes of `outgoing`, until it is reported to the core.
    failing: Option<EndReason>,
    /// The stream was dropped. Unless both directions have finished, it is reset for this reason.
    dropped: Option<EndReason>,
    /// Whether the stream is in the core's queue.
    queued: bool,
    reader_waker: Option<Waker>,
    writer_waker: Option<Waker>,
    /// The waker of the task that waits for a failure, or after a failure until the unread bytes are discarded.
    failure_waker: Option<Waker>,
}

impl StreamShared {
    fn lock(&self) -> MutexGuard<'_, DuplexState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts pushed bytes.
    fn add_unread(&self, state: &mut DuplexState, bytes: usize) {
        state.unread = state.unread.saturating_add(bytes);
        self.all_unread.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Counts `bytes` as read, or as many as are counted as unread. Discarded bytes are counted as read already.
    fn forget_unread(&self, state: &mut DuplexState, bytes: usize) {
        let forgotten = state.unread.min(bytes);
        state.unread = state.unread.saturating_sub(forgotten);
        self.all_unread.fetch_sub(forgotten, Ordering::Relaxed);
    }

    /// Adds the stream to the core's queue, unless the stream is already in it.
    fn enqueue(self: &Arc<Self>, state: &mut DuplexState) {
        if !state.queued {
            state.queued = true;
            // An error means that the core's task has ended; all streams have failed then.
            let _ = self.queue.send(Arc::clone(self));
        }
    }
}

impl DuplexState {
    /// Appends to `received`, packed into chunks.
    fn append(&mut self, bytes: &[u8]) {
        if let Some(last) = self.received.back_mut()
            && last.capacity().saturating_sub(last.len()) >= bytes.len()
        {
            last.extend_from_slice(bytes);
            return;
        }
        let size = if self.received.is_empty() { FIRST_CHUNK_LEN } else { NEXT_CHUNK_LEN };
        let mut chunk = BytesMut::with_capacity(size.max(bytes.len()));
        chunk.extend_from_slice(bytes);
        self.received.push_back(chunk);
    }
}

fn store_waker(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}
