//! Splices a TCP connection and a stream: copies bytes both ways until both directions have ended.

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

/// Cap on bytes of one read from a socket.
const MAX_READ_LEN: usize = 64 * 1024;
/// Time limit without bytes once one direction has ended. The other end has then most likely disappeared, which TCP
/// does not report.
const HALF_CLOSED_TIMEOUT: Duration = Duration::from_secs(10 * 60);

/// Time limit for writing the last bytes of a failed stream to the socket.
const LAST_BYTES_TIMEOUT: Duration = Duration::from_secs(2);

/// Forwards bytes between `socket` and `stream` until both directions have ended.
///
/// A half-close of one side half-closes the other. If the socket fails, the stream is reset. If the stream fails, the
/// socket is reset (not closed), so that truncated data never looks complete. `early` are bytes already read from the
/// socket. `round_trip` is the round trip to the socket's other end. If it is given, the socket's receive window is
/// limited while the stream is the slower side.
///
/// # Errors
/// The failure, unless both directions ended cleanly.
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

/// Makes `socket` send a TCP reset when it is closed.
pub(crate) fn reset_on_close(socket: &TcpStream) {
    // An error means that the socket has already failed.
    let _ = socket2::SockRef::from(socket).set_linger(Some(Duration::ZERO));
}

async fn join(
    socket: &mut TcpStream,
    stream: &mut Stream,
    early: &[u8],
    round_trip: Option<Duration>,
) -> io::Result<()> {
    // The failure is polled separately, since both directions may wait for the socket when the stream fails.
    let failure = stream.failure();
    let discarded = stream.discarded();
    let (socket_reader, socket_writer) = socket.split();
    let (reader, writer) = stream.split();
    // The number of reads and writes in both directions.
    let transfers = AtomicU64::new(0);
    let mut sending = pin!(async {
        writer.write_all(early).await?;
        let window = round_trip.and_then(|round_trip| ReceiveWindow::new(Instant::now(), round_trip));
        from_socket(&socket_reader, writer, &transfers, window).await
    });
    let mut receiving = pin!(to_socket(reader, socket_writer, &transfers));
    let mut both = pin!(async {
        tokio::select! {
            result = &mut sending => {
                result?;
                finish(&transfers, receiving).await
            }
            result = &mut receiving => {
                result?;
                finish(&transfers, sending).await
            }
        }
    });
    tokio::select! {
        // Bytes received before the failure are still written to the socket, within a time limit, unless discarded.
        biased;
        result = &mut both => result,
        reason = failure => tokio::select! {
            biased;
            () = discarded => Err(io_error(reason)),
            result = timeout(LAST_BYTES_TIMEOUT, both) => result.unwrap_or_else(|_| Err(io_error(reason))),
        },
    }
}

/// Waits for the end of the direction `open`. Fails if that direction transfers no bytes for [`HALF_CLOSED_TIMEOUT`].
async fn finish(transfers: &AtomicU64, mut open: impl Future<Output = io::Result<()>> + Unpin) -> io::Result<()> {
    loop {
        let before = transfers.load(Ordering::Relaxed);
        match timeout(HALF_CLOSED_TIMEOUT, &mut open).await {
            Ok(result) => return result,
            Err(_) if transfers.load(Ordering::Relaxed) == before => return Err(io::ErrorKind::TimedOut.into()),
            Err(_) => {}
        }
    }
}

/// Reads from `socket` into the stream, until the socket's other end finishes. `transfers` counts the reads.
async fn from_socket(
    socket: &ReadHalf<'_>,
    writer: &StreamWriter,
    transfers: &AtomicU64,
    mut window: Option<ReceiveWindow>,
) -> io::Result<()> {
    loop {
        let room = poll_fn(|cx| writer.poll_room(cx)).await?;
        if let Some(window) = &mut window {
            window.handle_room(Instant::now(), socket.as_ref());
        }
        socket.readable().await?;
        // Allocated here, so that an idle stream holds no buffer.
        let limit = room.min(MAX_READ_LEN);
        let mut buffer = BytesMut::with_capacity(limit);
        let read = match socket.try_read_buf(&mut (&mut buffer).limit(limit)) {
            Ok(0) => {
                writer.finish();
                return Ok(());
            }
            Ok(read) => {
                writer.write_buffer(buffer);
                transfers.fetch_add(1, Ordering::Relaxed);
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

/// Writes the bytes of the stream to `socket`, until the stream ends. `transfers` counts the writes.
async fn to_socket(reader: &mut StreamReader, mut socket: WriteHalf<'_>, transfers: &AtomicU64) -> io::Result<()> {
    loop {
        let chunk = reader.fill_buf().await?;
        if chunk.is_empty() {
            return socket.shutdown().await;
        }
        let written = socket.write(chunk).await?;
        reader.consume(written);
        transfers.fetch_add(1, Ordering::Relaxed);
    }
}
