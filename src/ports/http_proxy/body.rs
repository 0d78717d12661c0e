//! Bodies of HTTP/1.1 messages: how they are delimited, and forwarding as they arrive.

use core::{
    future::poll_fn,
    pin::Pin,
    sync::atomic::{AtomicU64, Ordering},
    task::Poll,
};
use std::io;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncWrite, AsyncWriteExt as _};

use super::head;

/// Cap on bytes of a line with a chunk's length.
const MAX_CHUNK_LINE_LEN: usize = 4 * 1024;
/// Bytes from which a piece is written without a copy.
const LARGE_PIECE_LEN: usize = 8 * 1024;
/// Names that a trailer can't contain: they delimit the message, or concern one connection (RFC 9110 §6.5.1).
const FORBIDDEN_IN_TRAILER: [&str; 10] = [
    "content-length",
    "transfer-encoding",
    "host",
    "trailer",
    "connection",
    "proxy-connection",
    "proxy-authorization",
    "proxy-authenticate",
    "te",
    "upgrade",
];

/// The delimiter of a body.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    /// The end of the connection; of responses only.
    UntilClose,
}

/// A number of Content-Length.
pub(super) fn parse_length(value: &[u8]) -> Option<u64> {
    let digits = core::str::from_utf8(value).ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()))?;
    digits.parse().ok()
}

/// The reason why a message is not forwarded to its end.
#[derive(Debug)]
pub(super) enum ForwardError {
    /// The sender failed, ended too early or sent an invalid body.
    Sender,
    /// The receiver failed.
    Receiver,
}

/// Forwards the bytes of one message from `reader` to `writer`.
pub(super) struct Forwarder<'a, R, W> {
    reader: &'a mut R,
    writer: &'a mut W,
    /// Bytes for the writer that are not written, because more of the message is available.
    pending: Vec<u8>,
    /// Counts the reads and writes.
    transfers: &'a AtomicU64,
    /// Whether chunks and trailers must have the exact syntax of HTTP.
    is_strict: bool,
    max_trailer_len: usize,
}

impl<'a, R: AsyncBufRead + Unpin, W: AsyncWrite + Unpin> Forwarder<'a, R, W> {
    /// Forwards `head` before the body.
    pub(super) const fn new(
        head: Vec<u8>,
        reader: &'a mut R,
        writer: &'a mut W,
        transfers: &'a AtomicU64,
        is_strict: bool,
        max_trailer_len: usize,
    ) -> Self {
        Self { reader, writer, pending: head, transfers, is_strict, max_trailer_len }
    }

    /// Forwards the head and the body.
    pub(super) async fn forward(mut self, framing: Framing) -> Result<(), ForwardError> {
        let result = self.forward_body(framing).await;
        if !matches!(result, Err(ForwardError::Receiver)) {
            // The bytes before a failure of the sender are forwarded too.
            self.flush().await?;
        }
        result
    }

    async fn forward_body(&mut self, framing: Framing) -> Result<(), ForwardError> {
        match framing {
            Framing::Empty => Ok(()),
            Framing::Length(length) => self.bytes(length).await,
            Framing::Chunked => self.chunks().await,
            Framing::UntilClose => {
                while !self.is_at_end().await? {
                    self.piece(u64::MAX).await?;
                }
                Ok(())
            }
        }
    }

    async fn flush(&mut self) -> Result<(), ForwardError> {
        if !self.pending.is_empty() {
            self.writer.write_all(&self.pending).await.map_err(|_| ForwardError::Receiver)?;
            self.pending.clear();
            self.count();
        }
        Ok(())
    }

    fn count(&self) {
        self.transfers.fetch_add(1, Ordering::Relaxed);
    }

    /// Waits for bytes of the sender, and writes the pending ones before. Returns whether the sender's bytes have ended.
    async fn is_at_end(&mut self) -> Result<bool, ForwardError> {
        let available = poll_fn(|cx| {
            Poll::Ready(match Pin::new(&mut *self.reader).poll_fill_buf(cx) {
                Poll::Ready(bytes) => Some(bytes.map(<[u8]>::is_empty)),
                Poll::Pending => None,
            })
        });
        let is_at_end: io::Result<bool> = match available.await {
            Some(is_at_end) => is_at_end,
            None => {
                self.flush().await?;
                self.reader.fill_buf().await.map(<[u8]>::is_empty)
            }
        };
        is_at_end.map_err(|_| ForwardError::Sender)
    }

    /// Forwards available bytes, at most `length`. Returns their number.
    async fn piece(&mut self, length: u64) -> Result<u64, ForwardError> {
        let available = self.reader.fill_buf().await.map_err(|_| ForwardError::Sender)?;
        let length = usize::try_from(length).unwrap_or(usize::MAX).min(available.len());
        let piece = available.get(..length).unwrap_or_default();
        let forwarded = if piece.len() < LARGE_PIECE_LEN {
            self.pending.extend_from_slice(piece);
            piece.len()
        } else {
            if !self.pending.is_empty() {
                self.writer.write_all(&self.pending).await.map_err(|_| ForwardError::Receiver)?;
                self.pending.clear();
            }
            self.writer.write(piece).await.map_err(|_| ForwardError::Receiver)?
        };
        self.reader.consume(forwarded);
        self.count();
        if self.pending.len() >= LARGE_PIECE_LEN {
            self.flush().await?;
        }
        if forwarded == 0 { Err(ForwardError::Receiver) } else { Ok(u64::try_from(forwarded).unwrap_or(u64::MAX)) }
    }

    async fn bytes(&mut self, length: u64) -> Result<(), ForwardError> {
        let mut left = length;
        while left > 0 {
            if self.is_at_end().await? {
                return Err(ForwardError::Sender);
            }
            left = left.saturating_sub(self.piece(left).await?);
        }
        Ok(())
    }

    /// Reads a line of at most `cap` bytes, and removes its line end.
    async fn line(&mut self, cap: usize) -> Result<Vec<u8>, ForwardError> {
        let mut line = Vec::new();
        loop {
            if self.is_at_end().await? {
                return Err(ForwardError::Sender);
            }
            let available = self.reader.fill_buf().await.map_err(|_| ForwardError::Sender)?;
            let end = available.iter().position(|byte| *byte == b'\n').map(|end| end.saturating_add(1));
            let part = available.get(..end.unwrap_or(available.len())).unwrap_or_default();
            line.extend_from_slice(part);
            let length = part.len();
            self.reader.consume(length);
            if line.len() > cap {
                return Err(ForwardError::Sender);
            }
            if end.is_some() {
                let (content, ends_with_crlf) = head::without_line_end(&line);
                if self.is_strict && (!ends_with_crlf || content.contains(&b'\r')) {
                    return Err(ForwardError::Sender);
                }
                let length = content.len();
                line.truncate(length);
                // Some clients end a line at a CR (RFC 9112 §2.2).
                line.iter_mut().filter(|byte| **byte == b'\r').for_each(|byte| *byte = b' ');
                return Ok(line);
            }
        }
    }

    /// Forwards a chunked body. The chunks get exact lines, without extensions (RFC 9112 §7.1.1).
    async fn chunks(&mut self) -> Result<(), ForwardError> {
        loop {
            let line = self.line(MAX_CHUNK_LINE_LEN).await?;
            let length = chunk_length(&line, self.is_strict).ok_or(ForwardError::Sender)?;
            self.pending.extend_from_slice(format!("{length:x}\r\n").as_bytes());
            if length == 0 {
                break;
            }
            self.bytes(length).await?;
            if !head::trim(&self.line(MAX_CHUNK_LINE_LEN).await?).is_empty() {
                return Err(ForwardError::Sender);
            }
            self.pending.extend_from_slice(b"\r\n");
        }
        let mut left = self.max_trailer_len;
        loop {
            let line = self.line(left).await?;
            left = left.saturating_sub(line.len());
            if line.is_empty() {
                break;
            }
            let field = if self.is_strict {
                head::strict_field(&line).map_err(|_| ForwardError::Sender)?
            } else {
                head::lenient_field(&line, &mut true)
            };
            if !field.name.is_empty() && !field.is_one_of(&FORBIDDEN_IN_TRAILER) {
                field.write(&mut self.pending);
            }
        }
        self.pending.extend_from_slice(b"\r\n");
        Ok(())
    }
}

/// The length in a chunk's line (RFC 9112 §7.1).
fn chunk_length(line: &[u8], is_strict: bool) -> Option<u64> {
    let digits_len = line.iter().position(|byte| !byte.is_ascii_hexdigit()).unwrap_or(line.len());
    let (digits, extension) = line.split_at_checked(digits_len)?;
    let is_valid_extension = extension.is_empty()
        || (head::trim(extension).starts_with(b";") && extension.iter().copied().all(head::is_value));
    if digits.len() > 16 || (is_strict && !is_valid_extension) {
        return None;
    }
    u64::from_str_radix(core::str::from_utf8(digits).ok()?, 16).ok()
}
