//! The TLS layer of an exchange, with the byte stream that hyper reads and writes.

use core::{
    cell::RefCell,
    pin::Pin,
    task::{Context, Poll},
};
use std::{
    io::{self, Read as _, Write as _},
    rc::Rc,
};

use bytes::{Buf as _, BytesMut};
use hyper::rt::{Read, ReadBufCursor, Write};
use rustls::{ClientConnection, pki_types::ServerName};

use super::{HttpsError, Trust};
use crate::delegated::binary_http::MAX_HEAD_LEN;

/// Bytes of ciphertext to send at which writes wait. One write may exceed this number.
const MAX_OUTGOING: usize = 64 << 10;
/// Maximum bytes of received ciphertext in the buffer. Only a caller that does not poll events exceeds this number.
const MAX_RECEIVED: usize = 1 << 20;
/// Maximum bytes of ciphertext decrypted before the response's head, with those of the handshake. rustls and hyper skip
/// TLS tickets and informational responses without a cap.
const MAX_BEFORE_HEAD: usize = 4 * MAX_HEAD_LEN;
/// Maximum plaintext bytes of one read.
const MAX_READ: usize = 16 << 10;

/// A TLS connection over a stream.
pub(super) struct TlsConnection {
    connection: ClientConnection,
    /// Received ciphertext that is not decrypted yet.
    received: BytesMut,
    /// Whether the stream has ended.
    ended: bool,
    /// Ciphertext to send.
    outgoing: Vec<u8>,
    failure: Option<HttpsError>,
    /// Bytes of ciphertext that may still be decrypted before the head is received; `None` after the head.
    left_before_head: Option<usize>,
}

impl TlsConnection {
    /// A connection to `host`, a name or an address, with its first message ready to send.
    pub(super) fn new(trust: &Trust, host: &str) -> Result<Self, HttpsError> {
        let name = ServerName::try_from(host.to_owned()).map_err(|_| HttpsError::Address)?;
        let connection = ClientConnection::new(trust.config(), name).map_err(|error| HttpsError::from(&error))?;
        let mut tls = Self {
            connection,
            received: BytesMut::new(),
            ended: false,
            outgoing: Vec::new(),
            failure: None,
            left_before_head: Some(MAX_BEFORE_HEAD),
        };
        tls.seal();
        Ok(tls)
    }

    pub(super) fn handle_received(&mut self, bytes: &[u8]) {
        if self.received.len().saturating_add(bytes.len()) > MAX_RECEIVED {
            self.failure.get_or_insert(HttpsError::NotHttp);
        } else if !self.ended {
            self.received.extend_from_slice(bytes);
        }
    }

    pub(super) const fn handle_end(&mut self) {
        self.ended = true;
    }

    /// Removes and returns the ciphertext to send.
    pub(super) fn take_outgoing(&mut self) -> Vec<u8> {
        core::mem::take(&mut self.outgoing)
    }

    /// The TLS error, if there is one.
    pub(super) const fn failure(&self) -> Option<HttpsError> {
        self.failure
    }

    /// Handles the receipt of the response's head: lifts the cap on the bytes before it.
    pub(super) const fn handle_head(&mut self) {
        self.left_before_head = None;
    }

    /// Moves ciphertext from rustls to the output.
    fn seal(&mut self) {
        while self.connection.wants_write() && self.connection.write_tls(&mut self.outgoing).is_ok() {}
    }

    /// Decrypts received bytes. Returns `false` if there are none and the stream has not ended.
    fn open(&mut self) -> io::Result<bool> {
        if self.failure.is_some() || (self.received.is_empty() && !self.ended) {
            return self.failure.map_or(Ok(false), |_| Err(broken()));
        }
        // At the end of the stream, `read_tls` reads zero bytes, which signals the end to rustls.
        let mut rest = &self.received[..];
        let read = self.connection.read_tls(&mut rest)?;
        self.received.advance(read);
        if let Some(left) = &mut self.left_before_head {
            *left = left.saturating_sub(read);
            if *left == 0 {
                self.failure = Some(HttpsError::NotHttp);
                return Err(broken());
            }
        }
        let outcome = self.connection.process_new_packets();
        // rustls has queued handshake messages, or an alert after an error.
        self.seal();
        if let Err(error) = outcome {
            self.failure = Some(HttpsError::from(&error));
            return Err(broken());
        }
        Ok(true)
    }

    fn read(&mut self, plain: &mut [u8]) -> Poll<io::Result<usize>> {
        loop {
            match self.connection.reader().read(plain) {
                Ok(read) => return Poll::Ready(Ok(read)),
                // Without a close_notify alert, an attacker may have truncated the stream.
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Poll::Ready(Err(error)),
                Err(_) => {}
            }
            let at_end = self.ended && self.received.is_empty();
            match self.open() {
                Ok(true) if at_end && self.connection.is_handshaking() => return Poll::Ready(Err(broken())),
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn write(&mut self, plain: &[u8]) -> Poll<io::Result<usize>> {
        // No plaintext is accepted, not even into the buffer, before the server is authenticated.
        while self.connection.is_handshaking() {
            let at_end = self.ended && self.received.is_empty();
            match self.open() {
                Ok(true) if at_end => return Poll::Ready(Err(broken())),
                Ok(true) => {}
                Ok(false) => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if self.failure.is_some() {
            return Poll::Ready(Err(broken()));
        }
        if self.outgoing.len() >= MAX_OUTGOING {
            return Poll::Pending;
        }
        let written = self.connection.writer().write(plain);
        self.seal();
        Poll::Ready(written)
    }
}

fn broken() -> io::Error {
    io::ErrorKind::ConnectionAborted.into()
}

/// A [`TlsConnection`] as a byte stream for hyper. No waker is used, because the exchange is polled after each input.
pub(super) struct TlsIo(pub(super) Rc<RefCell<TlsConnection>>);

impl TlsIo {
    fn with<T>(&self, act: impl FnOnce(&mut TlsConnection) -> Poll<io::Result<T>>) -> Poll<io::Result<T>> {
        self.0.try_borrow_mut().map_or_else(|_| Poll::Ready(Err(broken())), |mut tls| act(&mut tls))
    }
}

impl Read for TlsIo {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        mut buffer: ReadBufCursor<'_>,
    ) -> Poll<Result<(), io::Error>> {
        let mut plain = [0; MAX_READ];
        let length = buffer.remaining().min(MAX_READ);
        let Some(plain) = plain.get_mut(..length) else { return Poll::Ready(Err(broken())) };
        self.with(|tls| tls.read(plain)).map_ok(|read| buffer.put_slice(plain.get(..read).unwrap_or_default()))
    }
}

impl Write for TlsIo {
    fn poll_write(self: Pin<&mut Self>, _: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize, io::Error>> {
        self.with(|tls| tls.write(bytes))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        self.with(|tls| {
            tls.connection.send_close_notify();
            tls.seal();
            Poll::Ready(Ok(()))
        })
    }
}
