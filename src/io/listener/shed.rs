//! Refusal of connections beyond a port's cap, and the file descriptors kept for such refusals.

use core::time::Duration;
use std::{fs::File, io};

use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

/// Number of descriptors that a port keeps for the refusal of connections.
const SPARE_DESCRIPTORS: usize = 4;
/// Cap on bytes of a request's head that a refusal reads.
const MAX_HEAD_LEN: usize = 64 * 1024;

/// Descriptors that are released when the process has no free ones, so that a port can accept and refuse.
#[derive(Debug, Default)]
pub(super) struct SpareDescriptors(Vec<File>);

impl SpareDescriptors {
    /// Opens missing descriptors, as far as the system permits.
    pub(super) fn refill(&mut self) {
        while self.0.len() < SPARE_DESCRIPTORS {
            let Ok(file) = File::open("/dev/null") else { return };
            self.0.push(file);
        }
    }

    /// Releases one descriptor; returns whether there was one.
    pub(super) fn release_one(&mut self) -> bool {
        self.0.pop().is_some()
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// Whether the process (EMFILE) or the system (ENFILE) has no free descriptors.
pub(super) fn is_out_of_descriptors(error: &io::Error) -> bool {
    const CODES: [i32; 2] = [nix::libc::EMFILE, nix::libc::ENFILE];
    error.raw_os_error().is_some_and(|code| CODES.contains(&code))
}

/// Sends `answer`, then reads and drops the rest of the input. Closing the socket with unread input would make the
/// system discard the answer.
///
/// # Errors
/// When the socket fails.
pub(crate) async fn answer_and_close(mut socket: TcpStream, answer: &[u8]) -> io::Result<()> {
    const DROP_TIMEOUT: Duration = Duration::from_secs(2);
    const MAX_DROPPED: u64 = 64 * 1024;
    socket.write_all(answer).await?;
    socket.shutdown().await?;
    let mut dropped = socket.take(MAX_DROPPED);
    let _ = timeout(DROP_TIMEOUT, tokio::io::copy(&mut dropped, &mut tokio::io::sink())).await;
    Ok(())
}

/// The answer of an HTTP port beyond its cap. A web page that probes the port must not see whether there is an answer.
const BUSY: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nContent-Type: text/plain; charset=utf-8\r\n\
    Connection: close\r\nCross-Origin-Resource-Policy: same-origin\r\nX-Frame-Options: DENY\r\n\r\n\
    Umbel: all connections of this port are in use; close some, or try again later\n";

/// Answers the first HTTP request with status 503, and closes.
pub(crate) async fn refuse_http(mut socket: TcpStream) {
    let mut head = Vec::new();
    // Some clients discard an answer that arrives before they have sent the request.
    while !head.windows(4).any(|end| end == b"\r\n\r\n") {
        match socket.read_buf(&mut head).await {
            Ok(1..) if head.len() < MAX_HEAD_LEN => {}
            _ => break,
        }
    }
    // An error of a refused connection needs no action.
    let _ = answer_and_close(socket, BUSY).await;
}
