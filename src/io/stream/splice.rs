//! Copies bytes between a TCP connection and a stream, both ways, until both have ended.

use core::{
    future::poll_fn,
    pin::pin,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};
use std::io;

use bytes::{BufMut, BytesMut};
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt},
    net::{
        TcpStream,
        tcp::{ReadHalf, WriteHalf},
    },
    time::{Instant, timeout},
};

use crate::wire::EndReason;

use super::{Stream, StreamFailed, StreamReader, StreamWriter, io_error, receive_window::ReceiveWindow};

/// Bytes read from a socket at once.
const CHUNK: usize = 64 * 1024;
/// Time without bytes after which a half-closed stream fails: the other end has most likely gone, which TCP does not
/// report.
const HALF_CLOSED_SILENCE: Duration = Duration::from_secs(10 * 60);

/// Time limit for writing the last bytes of a failed stream to the socket.
const LAST_BYTES: Duration = Duration::from_secs(2);

/// Joins `socket` and `stream` until both directions have ended.
///
/// A half-close of one is a half-close of the other. A failure of one is a failure of the other: the stream is reset
/// if the socket fails, and the socket is reset (not closed) if the stream does, so that truncated data is not taken
/// as complete. `early` are bytes that were read from the socket before. With `round_trip`, the time to the socket's
/// other end, the socket's receive window is limited while the stream is the slower side.
///
/// # Errors
/// The first failure of either side. Without one, both directions have ended cleanly.
pub(crate) async fn splice(
    mut socket: TcpStream,
    mut stream: Stream,
    early: &[u8],
    round_trip: Option<Duration>,
) -> io::Result<()> {
    let result = join(&mut socket, &mut stream, early, round_trip).await;
    if let Err(error) = &result {
        reset_on_close(&socket);
        if !error.get_ref().is_some_and(|inner| inner.is::<StreamFailed>()) {
            stream.reset(if error.kind() == io::ErrorKind::TimedOut { EndReason::TimedOut } else { EndReason::Reset });
        }
    }
    result
}

/// Makes closing `socket` a TCP reset.
pub(crate) fn reset_on_close(socket: &TcpStream) {
    // Best effort: where it fails the socket is gone already.
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

async fn join(
    socket: &mut TcpStream,
    stream: &mut Stream,
    early: &[u8],
    round_trip: Option<Duration>,
) -> io::Result<()> {
    // Apart from both directions, because both may wait for the socket when the stream fails.
    let failure = stream.failure();
    let (socket_reader, socket_writer) = socket.split();
    let (reader, writer) = stream.split();
    let moved = AtomicU64::new(0);
    let mut sending = pin!(async {
        writer.write_all(early).await?;
        let window = round_trip.and_then(|round_trip| ReceiveWindow::new(Instant::now(), round_trip));
        from_socket(&socket_reader, writer, &moved, window).await
    });
    let mut receiving = pin!(to_socket(reader, socket_writer, &moved));
    let mut both = pin!(async {
        tokio::select! {
            result = &mut sending => {
                result?;
                while_moving(&moved, receiving).await
            }
            result = &mut receiving => {
                result?;
                while_moving(&moved, sending).await
            }
        }
    });
    tokio::select! {
        // Bytes from before the failure are still written to the socket, within a short time limit.
        biased;
        result = &mut both => result,
        reason = failure => timeout(LAST_BYTES, both).await.unwrap_or_else(|_| Err(io_error(reason))),
    }
}

/// Waits for `rest`; fails if no bytes move for too long.
async fn while_moving(moved: &AtomicU64, mut rest: impl Future<Output = io::Result<()>> + Unpin) -> io::Result<()> {
    loop {
        let before = moved.load(Ordering::Relaxed);
        match timeout(HALF_CLOSED_SILENCE, &mut rest).await {
            Ok(result) => return result,
            Err(_) if moved.load(Ordering::Relaxed) == before => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

async fn from_socket(
    socket: &ReadHalf<'_>,
    writer: &StreamWriter,
    moved: &AtomicU64,
    mut window: Option<ReceiveWindow>,
) -> io::Result<()> {
    loop {
        let room = poll_fn(|cx| writer.poll_room(cx)).await?;
        if let Some(window) = &mut window {
            window.handle_room(Instant::now(), socket.as_ref());
        }
        socket.readable().await?;
        // Made only now, so that an idle stream holds no buffer.
        let limit = room.min(CHUNK);
        let mut buffer = BytesMut::with_capacity(limit);
        let read = match socket.try_read_buf(&mut (&mut buffer).limit(limit)) {
            Ok(0) => {
                writer.finish();
                return Ok(());
            }
            Ok(read) => {
                writer.write_buffer(buffer);
                moved.fetch_add(1, Ordering::Relaxed);
                read
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
            Err(error) => return Err(error),
        };
        if let Some(window) = &mut window {
            window.handle_bytes(Instant::now(), read);
        }
    }
}

async fn to_socket(reader: &mut StreamReader, mut socket: WriteHalf<'_>, moved: &AtomicU64) -> io::Result<()> {
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return socket.shutdown().await;
        }
        let written = socket.write(chunk).await?;
        reader.consume(written);
        moved.fetch_add(1, Ordering::Relaxed);
    }
}
